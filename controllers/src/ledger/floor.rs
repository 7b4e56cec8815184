//! How many pods of a workload have to stay healthy, and who says so.

use std::sync::Arc;

use platctrl_framework::cache::View;
use platctrl_framework::model::{Metadata, Object, Selector};
use platctrl_kinds::{DisruptionBudget, Pod, default_floor};

use crate::crew::Crew;

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
    let any = |budget: &Metadata, selector: &Selector| {
        let mut metadata = pods.iter().map(|pod| &pod.metadata);
        metadata.any(|pod| pod.namespace == budget.namespace && selector.matches(&pod.labels))
    };
    floor_where(view, wanted, minimum, any)
}

/// As [`floor`], of pods that are known as far as what they have in common.
pub(super) fn floor_of(
    view: &View,
    crews: &[Arc<Crew>],
    wanted: u32,
    minimum: Option<u32>,
) -> Floor {
    let any = |budget: &Metadata, selector: &Selector| {
        let shapes = crews.iter().flat_map(|crew| crew.alike());
        let mut shapes = shapes.map(|alike| &alike.shape);
        shapes.any(|pod| pod.namespace == budget.namespace && selector.matches(&pod.labels))
    };
    floor_where(view, wanted, minimum, any)
}

fn floor_where(
    view: &View,
    wanted: u32,
    minimum: Option<u32>,
    selects_any: impl Fn(&Metadata, &Selector) -> bool,
) -> Floor {
    let mut found = minimum.map(|pods| Floor { pods, budget: None });
    for budget in view.list::<DisruptionBudget>() {
        if budget.metadata.is_deleted() {
            continue;
        }
        // One that cannot be read was refused when it was written.
        let Ok(selector) = budget.spec.pod_selector.parse::<Selector>() else {
            continue;
        };
        if !selects_any(&budget.metadata, &selector) {
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
