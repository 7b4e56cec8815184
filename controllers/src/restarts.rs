//! Answers agents that ask whether they may restart a pod.
//!
//! An agent sees its own node alone: when a database goes away, every pod of a workload may fail
//! its liveness check in the same second. So it asks, and here the workload's ledger is asked
//! whether one more may go. Pods of one workload that ask at once are answered in one commit, as
//! many as may be; the others when those have started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::cache::View;
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{EventType, Object, ObjectKey, Resource as _};
use platctrl_kinds::{
    DaemonSet, DisruptionBudget, Node, Pod, ReplicationController, RollingUpdate,
};

use crate::daemon_set;
use crate::ledger::{Ledger, LedgerError, claimant, controller_of, node_key};

/// How soon it is looked again whether one that was not answered may be.
const AGAIN: Duration = Duration::from_secs(2);

/// The controller.
#[must_use]
pub fn controller() -> Controller<Node> {
    Controller::new("restart", reconcile)
        .watches::<Pod>(|pod, _| {
            let asks = pod.status.detail.restart_request.is_some();
            let node = pod.spec.node_name.as_deref().filter(|_| asks);
            node.and_then(node_key).into_iter().collect()
        })
        .watches::<ReplicationController>(|_, _| Vec::new())
        .watches::<RollingUpdate>(|_, _| Vec::new())
        .watches::<DaemonSet>(|_, _| Vec::new())
        .watches::<DisruptionBudget>(|_, _| Vec::new())
}

/// The pods that share a ledger, and the name that it is written under.
struct Workload {
    ledger: Result<Ledger, LedgerError>,
    pods: Vec<Arc<Object<Pod>>>,
    name: String,
}

impl Workload {
    /// The workload of a pod. One whose owner is not known here is a workload of its own.
    fn of(view: &View, pod: &Arc<Object<Pod>>) -> Option<Self> {
        if let Some(controller) = controller_of(pod).and_then(|key| {
            let found = view.get::<ReplicationController>(&key)?;
            owns(pod, &found.metadata.uid).then_some(found)
        }) {
            return Some(Self::of_controller(view, &controller));
        }
        if let Some(set) = set_of(view, pod) {
            let pods = live(view.list::<Pod>().owned_by(&set.metadata.uid).to_vec());
            let wanted = u32::try_from(pods.len()).unwrap_or(u32::MAX);
            let floor = daemon_set::floor(set.spec.minimum_healthy, wanted);
            let ledger = Ledger::open(view, set.key().ok()?, &pods, wanted, Some(floor));
            let name = format!("{}/{}", DaemonSet::SINGULAR, set.metadata.name);
            return Some(Self { ledger, pods, name });
        }
        let pods = vec![pod.clone()];
        Some(Self {
            ledger: Ledger::open(view, pod.key().ok()?, &pods, 1, None),
            name: format!("{}/{}", Pod::SINGULAR, pod.metadata.name),
            pods,
        })
    }

    fn of_controller(view: &View, controller: &Object<ReplicationController>) -> Self {
        let mut owners = vec![controller.metadata.uid.clone()];
        // While a roll claims it, the ledger is that of both.
        if let Some(roll) = claimant(view, controller) {
            let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
            for side in [&roll.spec.from, &roll.spec.to] {
                let key = crate::ledger::replication_controller_key(namespace, side);
                let side = key.and_then(|key| view.get::<ReplicationController>(&key));
                owners.extend(side.map(|side| side.metadata.uid.clone()));
            }
        }
        owners.sort();
        owners.dedup();
        let pods = owners.iter();
        let pods = pods.flat_map(|owner| view.list::<Pod>().owned_by(owner).to_vec());
        Self {
            ledger: Ledger::of_controller(view, controller),
            pods: pods.collect(),
            name: format!(
                "{}/{}",
                ReplicationController::SINGULAR,
                controller.metadata.name
            ),
        }
    }
}

fn live(mut pods: Vec<Arc<Object<Pod>>>) -> Vec<Arc<Object<Pod>>> {
    pods.retain(|pod| !pod.metadata.is_deleted());
    pods
}

fn owns(pod: &Object<Pod>, uid: &platctrl_framework::model::Uid) -> bool {
    let owner = pod.metadata.controller();
    owner.is_some_and(|owner| owner.uid == *uid)
}

fn set_of(view: &View, pod: &Object<Pod>) -> Option<Arc<Object<DaemonSet>>> {
    let owner = pod.metadata.controller()?;
    if owner.kind != DaemonSet::KIND {
        return None;
    }
    let namespace = pod.metadata.namespace.as_deref()?;
    let (group, plural) = (DaemonSet::GROUP, DaemonSet::PLURAL);
    let key = ObjectKey::namespaced(group, plural, namespace, &owner.name).ok()?;
    let found = view.get::<DaemonSet>(&key)?;
    (found.metadata.uid == owner.uid).then_some(found)
}

async fn reconcile(node: Arc<Object<Node>>, context: Context) -> Result<Action, ReconcileError> {
    let view = context.view();
    let asking = |pod: &Arc<Object<Pod>>| {
        pod.status.detail.restart_request.is_some() && !pod.metadata.is_deleted()
    };
    let pods = view.list::<Pod>().on_node(&node.metadata.name).to_vec();
    let asking: Vec<_> = pods.into_iter().filter(asking).collect();
    let (mut answered, mut unanswered) = (BTreeSet::new(), false);
    for pod in &asking {
        let Some(workload) = Workload::of(view, pod) else {
            continue;
        };
        if answered.insert(workload.name.clone()) {
            unanswered |= answer(&context, workload).await?;
        }
    }
    Ok(if unanswered {
        Action::requeue_after(AGAIN)
    } else {
        Action::await_change()
    })
}

/// Grants what may be granted now. Whether something is left.
async fn answer(context: &Context, workload: Workload) -> Result<bool, ReconcileError> {
    let Workload { ledger, pods, name } = workload;
    // One that is on its way to or from a roll has arrived in a moment.
    let Ok(mut ledger) = ledger else {
        return Ok(true);
    };
    let mut changes = context.changes();
    if ledger.is_missing() {
        // First it has to be there for everybody: what others decided meanwhile is seen then.
        ledger.establish(&mut changes)?;
        changes.commit().await?;
        return Ok(true);
    }
    let wanted = ledger.account().asking().len();
    let now = context.environment().now();
    let granted = ledger.grant_restarts(context.view(), &pods, &mut changes, &name, now)?;
    ledger.write(&mut changes)?;
    if granted.is_empty() {
        return Ok(wanted > 0);
    }
    let counts = format!(
        "{} of {} healthy, {} needed",
        ledger.account().healthy(),
        pods.len(),
        ledger.floor().pods
    );
    changes.commit().await?;
    for pod in &granted {
        let message = format!("pod {pod} of {name} may restart: {counts}");
        context.event(EventType::Normal, "RestartGranted", message);
    }
    Ok(granted.len() < wanted)
}
