//! How many pods of a workload have to stay healthy, and who says so.

use std::sync::Arc;

use platctrl_framework::cache::View;
use platctrl_framework::model::{Object, Selector};
use platctrl_kinds::{DisruptionBudget, Pod, default_floor};

/// How many pods have to stay healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    /// How many.
    pub pods: u32,
    /// The disruption budget that says so; None if the workload does, or nobody.
    pub budget: Option<String>,
}

/// The highest of what the workload itself asks for and of the budgets that select any of its
/// pods. Where nobody says anything: all but one, or all but a tenth.
#[must_use]
pub fn floor(view: &View, pods: &[Arc<Object<Pod>>], wanted: u32, minimum: Option<u32>) -> Floor {
    let mut found = minimum.map(|pods| Floor { pods, budget: None });
    for budget in view.list::<DisruptionBudget>() {
        if budget.metadata.is_deleted() {
            continue;
        }
        // One that cannot be read was refused when it was written.
        let Ok(selector) = budget.spec.pod_selector.parse::<Selector>() else {
            continue;
        };
        let selects = |pod: &Arc<Object<Pod>>| {
            pod.metadata.namespace == budget.metadata.namespace
                && selector.matches(&pod.metadata.labels)
        };
        if !pods.iter().any(selects) {
            continue;
        }
        let asked = budget.spec.minimum_healthy.rounded_up(wanted).min(wanted);
        if found.as_ref().is_none_or(|found| found.pods < asked) {
            found = Some(Floor {
                pods: asked,
                budget: Some(budget.metadata.name.clone()),
            });
        }
    }
    found.unwrap_or_else(|| Floor {
        pods: default_floor(wanted),
        budget: None,
    })
}
