//! Restarts that agents ask for, answered by the ledgers of the pods' workloads.

use std::collections::BTreeSet;
use std::time::Duration;

use platctrl_framework::client::Batch;
use platctrl_framework::model::{Condition, ConditionStatus, Object, Tree, Uid};
use platctrl_kinds::{Grant, Pod, RestartRequest, condition};

use crate::world::{World, until};

const NODES: [(&str, &str); 4] = [("n1", "web"), ("n2", "web"), ("n3", "web"), ("n4", "web")];

impl World {
    /// A pod's agent reports this of it.
    async fn told(&self, pod: &Object<Pod>, ready: bool, request: Option<&str>) {
        let joined = self.client.joined(&pod.key().unwrap()).await.unwrap();
        let mut status = pod.status.clone();
        // Health of another spec counts for nothing.
        let intent = joined.intent.as_ref().unwrap();
        status.observed_spec = Some(intent.value.spec_digest());
        status.observed_generation = Some(pod.metadata.generation);
        let is = match ready {
            true => ConditionStatus::True,
            false => ConditionStatus::False,
        };
        let ready = Condition::new(condition::READY, is, "Test", "");
        status.conditions.set(ready, 1, jiff::Timestamp::now());
        status.detail.restart_request = request.map(|id| RestartRequest {
            id: id.to_owned(),
            reason: "it hangs".into(),
        });
        let mut batch = Batch::new();
        batch.report_typed::<Pod>(&joined, &status).unwrap();
        let commit = self.client.store().commit(batch.into_transaction());
        commit.await.unwrap();
    }

    /// The pods that may restart now: those with a grant for the request of this id.
    async fn granted(&self, id: &str) -> BTreeSet<Uid> {
        let mut granted = BTreeSet::new();
        for pod in self.pods().await {
            let key = pod.key().unwrap().store_key(Tree::Grant);
            let snapshot = self.client.store().get(&[key]).await.unwrap();
            let Some(record) = snapshot.records.into_iter().flatten().next() else {
                continue;
            };
            let grant: Grant = serde_json::from_slice(&record.value).unwrap();
            assert_eq!(grant.uid, pod.metadata.uid);
            if grant.request == id {
                granted.insert(grant.uid);
            }
        }
        granted
    }
}

/// A pod that agents of this world do not report on.
fn quiet(spec: &mut platctrl_kinds::ReplicationControllerSpec) {
    let labels = &mut spec.template.metadata.labels;
    labels.insert("reported".into(), "by-test".into());
}

#[tokio::test(start_paused = true)]
async fn pods_that_ask_at_once_are_restarted_one_after_the_other() {
    let world = World::with_nodes(&NODES).await;
    world.create(4, quiet).await;
    until("four pods", || async { world.pods().await.len() == 4 }).await;
    for pod in world.pods().await {
        world.told(&pod, true, None).await;
    }
    // A database went away: no pod lives.
    for pod in world.pods().await {
        world.told(&pod, false, Some("one")).await;
    }
    let mut restarted = BTreeSet::new();
    while restarted.len() < 4 {
        until("a grant", || async {
            world.granted("one").await.len() > restarted.len()
        })
        .await;
        // The default floor of four is three: one at a time, however long that takes.
        tokio::time::sleep(Duration::from_secs(120)).await;
        let granted = world.granted("one").await;
        assert_eq!(granted.len(), restarted.len() + 1, "{granted:?}");
        for pod in world.pods().await {
            let uid = &pod.metadata.uid;
            if granted.contains(uid) && restarted.insert(uid.clone()) {
                world.told(&pod, true, None).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_healthy_pod_that_somebody_wants_restarted_waits_while_another_is_missing() {
    let world = World::with_nodes(&NODES).await;
    world.create(3, quiet).await;
    until("three pods", || async { world.pods().await.len() == 3 }).await;
    let pods = world.pods().await;
    world.told(&pods[0], false, None).await;
    world.told(&pods[1], true, None).await;
    world.told(&pods[2], true, Some("one")).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.granted("one").await, BTreeSet::new());
    let first = world.pods().await.remove(0);
    world.told(&first, true, None).await;
    until("a grant", || async {
        world.granted("one").await == BTreeSet::from([pods[2].metadata.uid.clone()])
    })
    .await;
}
