//! Disruption budgets: says what each comes to.
//!
//! That a budget holds is not done here: whoever takes pods away asks the workload's ledger,
//! which reads the budgets itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Condition, ConditionStatus, Object, ObjectKey, Selector};
use platctrl_kinds::{
    DisruptionBudget, DisruptionBudgetStatus, Node, Pod, ReplicationController, RollingUpdate,
};

use crate::ledger::Ledger;

/// The controller.
#[must_use]
pub fn controller() -> Controller<DisruptionBudget> {
    let budgets = |namespace: Option<&String>, view: &platctrl_framework::cache::View| {
        let query = view.list::<DisruptionBudget>();
        let keys: Vec<ObjectKey> = match namespace {
            Some(namespace) => query.in_namespace(namespace).keys(),
            None => query.keys(),
        };
        keys
    };
    Controller::new("disruptionbudget", reconcile)
        .watches::<Pod>(move |pod, view| budgets(pod.metadata.namespace.as_ref(), view))
        .watches::<ReplicationController>(move |it, view| {
            budgets(it.metadata.namespace.as_ref(), view)
        })
        .watches::<RollingUpdate>(move |it, view| budgets(it.metadata.namespace.as_ref(), view))
        .watches::<Node>(move |_, view| budgets(None, view))
}

async fn reconcile(
    budget: Arc<Object<DisruptionBudget>>,
    context: Context,
) -> Result<Action, ReconcileError> {
    let selector: Selector = (budget.spec.pod_selector)
        .parse()
        .map_err(ReconcileError::terminal)?;
    let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
    let view = context.view();
    let mut detail = DisruptionBudgetStatus::default();
    let (mut blocked, mut counted) = (Vec::new(), BTreeSet::new());
    for controller in view.list::<ReplicationController>().in_namespace(namespace) {
        let pods = view.list::<Pod>().owned_by(&controller.metadata.uid);
        if !pods
            .into_iter()
            .any(|pod| selector.matches(&pod.metadata.labels))
        {
            continue;
        }
        // One that is on its way between ledgers is counted when it has arrived.
        let Ok(ledger) = Ledger::of_controller(view, &controller) else {
            continue;
        };
        // Both controllers of a roll have one.
        if !counted.insert(ledger.key().to_string()) {
            continue;
        }
        let account = ledger.account();
        detail.workloads += 1;
        detail.healthy += account.healthy();
        detail.allowed += account.allowed();
        if account.allowed() == 0 {
            blocked.push(format!(
                "{}: {} healthy, {} needed",
                controller.metadata.name,
                account.healthy(),
                account.floor()
            ));
        }
    }
    let (now, generation) = (context.environment().now(), budget.metadata.generation);
    let mut status = budget.status.clone();
    status.observed_generation = Some(generation);
    let intent = context.joined().intent;
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    let (holds, reason) = match (blocked.is_empty(), detail.workloads) {
        (_, 0) => (ConditionStatus::Unknown, "SelectsNothing"),
        (true, _) => (ConditionStatus::True, "SomeMayGo"),
        (false, _) => (ConditionStatus::False, "NoneMayGo"),
    };
    let condition = Condition::new("Disruptable", holds, reason, blocked.join("; "));
    status.conditions.set(condition, generation, now);
    status.detail = detail;
    let mut changes = context.changes();
    changes.report::<DisruptionBudget>(&status)?;
    changes.commit().await?;
    Ok(Action::await_change())
}
