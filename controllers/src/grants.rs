//! Answers agents that ask whether they may restart a pod that runs and does not do its work.
//!
//! As many at a time as the workload's ledger allows, in one commit with it. A grant names the
//! request, so that an old one grants nothing.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::controller::{Action, Context, ReconcileError};
use platctrl_framework::model::{EventType, Object};
use platctrl_kinds::Pod;

use crate::ledger::{Ledger, LedgerError, is_granted};

/// Grants what may be granted of what `pods` ask for, and says when to look at the rest again.
/// None: nobody asks, or nobody may be answered before something changes.
pub(crate) async fn answer(
    context: &Context,
    pods: &[Arc<Object<Pod>>],
    ledger: impl FnOnce() -> Result<Ledger, LedgerError>,
    by: &str,
) -> Result<Option<Action>, ReconcileError> {
    let view = context.view();
    let asks = |pod: &&Arc<Object<Pod>>| {
        let request = pod.status.detail.restart_request.as_ref();
        request.is_some_and(|request| !is_granted(view, pod, request))
    };
    if !pods.iter().any(|pod| asks(&pod)) {
        return Ok(None);
    }
    // One on its way between ledgers is answered when it has arrived: that is a change.
    let Ok(mut ledger) = ledger() else {
        return Ok(None);
    };
    let mut changes = context.changes();
    if ledger.is_missing() {
        // Whoever decided on a lost one fails on this.
        ledger.establish(&mut changes)?;
        changes.commit().await?;
        return Ok(Some(Action::requeue_after(Duration::from_millis(1))));
    }
    let now = context.environment().now();
    let granted = ledger.grant_restarts(view, pods, &mut changes, by, now)?;
    if granted.is_empty() {
        return Ok(None);
    }
    ledger.write(&mut changes)?;
    changes.commit().await?;
    let account = ledger.account();
    let (healthy, floor) = (account.healthy(), account.floor());
    for pod in granted {
        let message = format!("pod {pod} may restart: {healthy} healthy, {floor} needed");
        context.event(EventType::Normal, "RestartGranted", message);
    }
    Ok(Some(Action::requeue_after(Duration::from_millis(1))))
}
