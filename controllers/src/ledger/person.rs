//! What a person takes away: their delete of a pod is entered like everybody's.
//!
//! Whoever serves people has no view of all pods. How many are healthy, the workload's own status
//! says, with the revision that it was counted at: one that is as new as the ledger shows
//! whatever was decided before. One that is older is waited for.

use jiff::Timestamp;
use platctrl_framework::client::{Batch, Client, ClientError};
use platctrl_framework::model::{
    Joined, KindDefinition, Object, ObjectKey, Resource, Selector, Tree,
};
use platctrl_framework::store::Revision;
use platctrl_kinds::{
    DaemonSet, DisruptionBudget, Pod, ReplicationController, RollPhase, RollingUpdate,
    default_floor,
};

use super::account::{Act, Entry, Refused};
use super::{Record, replication_controller_key, roll_key};
use crate::daemon_set;
use crate::template::is_ready;

/// Why a person's delete is not entered.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The floor would break.
    #[error("{workload} has {refused}")]
    Refused {
        /// The workload, as `replicationcontroller/hello`.
        workload: String,
        /// The numbers.
        refused: Refused,
    },
    /// What was decided last is not in the workload's health yet.
    #[error("what was last decided about {workload} is not seen in its health yet")]
    Behind {
        /// The workload.
        workload: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A workload as its own status has it.
struct Workload {
    key: ObjectKey,
    title: String,
    healthy: u32,
    wanted: u32,
    /// What the workload itself asks for.
    floor: Option<u32>,
    counted_at: Option<Revision>,
}

async fn typed<K: Resource>(
    client: &Client,
    key: &ObjectKey,
) -> Result<Option<Object<K>>, ClientError> {
    let joined = client.joined(key).await?;
    Ok(joined.object().and_then(|raw| raw.typed::<K>().ok()))
}

fn title<K: Resource>(object: &Object<K>) -> String {
    format!("{}/{}", K::SINGULAR, object.metadata.name)
}

/// The workload that counts for a pod, with its ledger's record; None: nobody keeps it.
async fn workload(
    client: &Client,
    pod: &Object<Pod>,
) -> Result<Option<(Workload, Record, Option<Revision>)>, ClientError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let Some(owner) = pod.metadata.controller() else {
        return Ok(None);
    };
    if owner.kind == DaemonSet::KIND {
        let (group, plural) = (DaemonSet::GROUP, DaemonSet::PLURAL);
        let key = ObjectKey::namespaced(group, plural, namespace, &owner.name)?;
        let Some(set) = typed::<DaemonSet>(client, &key).await? else {
            return Ok(None);
        };
        let status = &set.status.detail;
        let (record, at) = record(client, &key).await?;
        let workload = Workload {
            title: title(&set),
            healthy: status.ready,
            wanted: status.desired,
            floor: Some(daemon_set::floor(set.spec.minimum_healthy, status.desired)),
            counted_at: status.observed_revision,
            key,
        };
        return Ok(Some((workload, record, at)));
    }
    if owner.kind != ReplicationController::KIND {
        return Ok(None);
    }
    let Some(key) = replication_controller_key(namespace, &owner.name) else {
        return Ok(None);
    };
    let Some(controller) = typed::<ReplicationController>(client, &key).await? else {
        return Ok(None);
    };
    let (record_of_own, at) = record(client, &key).await?;
    if let Some(roll) = &record_of_own.moved_to
        && let Some(key) = roll_key(namespace, roll)
        && let Some(roll) = typed::<RollingUpdate>(client, &key).await?
        && !RollPhase::is_final(&roll.status.phase)
    {
        let status = &roll.status.detail;
        let (record, at) = record(client, &key).await?;
        let workload = Workload {
            title: title(&roll),
            healthy: status.healthy,
            wanted: roll.spec.replicas,
            floor: Some(roll.spec.floor()),
            counted_at: status.observed_revision,
            key,
        };
        return Ok(Some((workload, record, at)));
    }
    let status = &controller.status.detail;
    let workload = Workload {
        title: title(&controller),
        healthy: status.ready_replicas,
        wanted: controller.spec.replicas,
        floor: None,
        counted_at: status.observed_revision,
        key,
    };
    Ok(Some((workload, record_of_own, at)))
}

async fn record(
    client: &Client,
    key: &ObjectKey,
) -> Result<(Record, Option<Revision>), ClientError> {
    let snapshot = client.store().get(&[key.store_key(Tree::Ledger)]).await?;
    let record = snapshot.records.into_iter().flatten().next();
    let at = record.as_ref().map(|record| record.modified);
    // One that cannot be read is made again, as by everybody.
    let record = record.and_then(|record| serde_json::from_slice(&record.value).ok());
    Ok((record.unwrap_or_default(), at))
}

/// The highest floor of the workload itself and of the budgets that select the pod.
async fn floor_of(
    client: &Client,
    pod: &Object<Pod>,
    workload: &Workload,
) -> Result<u32, ClientError> {
    let kind = KindDefinition::of::<DisruptionBudget>();
    let budgets = client
        .list(&kind, pod.metadata.namespace.as_deref())
        .await?;
    let mut floor = workload.floor;
    for raw in budgets.shown() {
        let Ok(budget) = raw.typed::<DisruptionBudget>() else {
            continue;
        };
        let Ok(selector) = budget.spec.pod_selector.parse::<Selector>() else {
            continue;
        };
        if budget.metadata.is_deleted() || !selector.matches(&pod.metadata.labels) {
            continue;
        }
        let wanted = workload.wanted;
        let asked = budget.spec.minimum_healthy.rounded_up(wanted).min(wanted);
        floor = Some(floor.map_or(asked, |floor| floor.max(asked)));
    }
    Ok(floor.unwrap_or_else(|| default_floor(workload.wanted)))
}

/// Adds to a batch that ends a pod what the ledger of its workload says then. `anyway`: also when
/// the floor breaks by it.
///
/// # Errors
/// See [`DeleteError`].
pub async fn enter_delete(
    client: &Client,
    pod: &Joined,
    batch: &mut Batch,
    by: &str,
    at: Timestamp,
    anyway: bool,
) -> Result<(), DeleteError> {
    let pod = pod.object().and_then(|raw| raw.typed::<Pod>().ok());
    // What is not healthy costs nothing.
    let Some(pod) = pod.filter(|pod| is_ready(pod) && !pod.metadata.is_deleted()) else {
        return Ok(());
    };
    let Some((workload, mut record, read_at)) = workload(client, &pod).await? else {
        return Ok(());
    };
    let is_seen = record.entries.is_empty() || workload.counted_at >= read_at;
    if !is_seen && !anyway {
        return Err(DeleteError::Behind {
            workload: workload.title,
        });
    }
    let floor = floor_of(client, &pod, &workload).await?;
    if workload.healthy <= floor && !anyway {
        return Err(DeleteError::Refused {
            workload: workload.title,
            refused: Refused {
                healthy: workload.healthy,
                open: 0,
                floor,
            },
        });
    }
    if is_seen {
        // What they did is in the health that this was decided on.
        let restarts = |entry: &Entry| matches!(entry.act, Act::Restart { .. });
        record.entries.retain(restarts);
    }
    record.entries.push(Entry {
        victim: pod.metadata.uid.clone(),
        act: Act::Delete,
        by: by.to_owned(),
        at,
    });
    batch.put_beside(&workload.key, Tree::Ledger, read_at, &record)?;
    Ok(())
}
