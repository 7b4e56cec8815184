//! Deletes that wait, are taken back, or are a person's own.

use std::time::Duration;

use platctrl_controllers::ledger::{DeleteError, enter_delete};
use platctrl_controllers::replication_controller;
use platctrl_framework::client::{Batch, DeleteOptions};
use platctrl_framework::model::{Object, ObjectKey, Propagation, Tree};
use platctrl_framework::store::{Store as _, Transaction};
use platctrl_framework::testing::FaultKind;
use platctrl_kinds::{Amount, DisruptionBudget, DisruptionBudgetSpec, Pod, Span};

use crate::simulation::{fleet_with, object};
use crate::world::{World, controller_key, named, until};

const THREE: [(&str, &str); 3] = [("n1", "web"), ("n2", "web"), ("n3", "web")];

fn uids(pods: &[Object<Pod>]) -> Vec<String> {
    let mut uids: Vec<_> = pods
        .iter()
        .map(|pod| pod.metadata.uid.to_string())
        .collect();
    uids.sort();
    uids
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(60 * count)).await;
}

async fn world(grace: Option<Span>) -> World {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |spec| spec.deletion_grace = grace).await;
    world.settled(3, 3).await;
    world
}

impl World {
    async fn undelete(&self, key: &ObjectKey) {
        let mut batch = Batch::new();
        batch
            .restore(&self.client.joined(key).await.unwrap())
            .unwrap();
        self.client.commit(batch).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_is_taken_back_before_its_grace_is_over() {
    let world = world(Some(Span::from_secs(600))).await;
    let before = world.pods().await;
    world.delete(Propagation::Cascade).await;
    until("it says how it is taken back", || async {
        let status = world.controller().await.status;
        let ending = status.conditions.get("Progressing").cloned();
        ending.is_some_and(|it| {
            it.reason == "Ending" && it.message.contains("undelete replicationcontroller/hello")
        })
    })
    .await;
    minutes(9).await;
    assert_eq!(world.pods().await.len(), 3);
    world.undelete(&controller_key()).await;
    world.settled(3, 3).await;
    minutes(30).await;
    let after = world.pods().await;
    assert_eq!(uids(&after), uids(&before));
    assert!(after.iter().all(|pod| !pod.metadata.is_deleted()
        && pod.metadata.generation == before[0].metadata.generation));
    // It is as good as before: it scales, and its next delete waits anew.
    world.change(|spec| spec.replicas = 2).await;
    world.settled(2, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_delete_takes_effect_when_its_grace_is_over() {
    let world = world(Some(Span::from_secs(600))).await;
    world.delete(Propagation::Cascade).await;
    minutes(9).await;
    assert_eq!(world.pods().await.len(), 3);
    until("all are gone", || async { world.pods().await.is_empty() }).await;
    until("it is gone itself", || async {
        let joined = world.client.joined(&controller_key()).await.unwrap();
        joined.intent.is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_delete_says_how_long_it_waits() {
    let world = world(Some(Span::from_secs(600))).await;
    let mut options = DeleteOptions::default();
    (options.grace_seconds, options.propagation) = (Some(0), Some(Propagation::Orphan));
    world
        .client
        .delete(&controller_key(), &options)
        .await
        .unwrap();
    until("it is gone at once", || async {
        let joined = world.client.joined(&controller_key()).await.unwrap();
        joined.intent.is_none()
    })
    .await;
    assert_eq!(world.pods().await.len(), 3, "and its pods stay");
}

/// A delete that was taken back in time did nothing, whatever goes wrong at a write.
#[test]
fn what_is_taken_back_in_time_never_happened() {
    let simulation = fleet_with(3, replication_controller::controller)
        .scenario(|world| async move {
            world.create(&object(2)).await?;
            world.settled().await?;
            let mut options = DeleteOptions::default();
            options.propagation = Some(Propagation::Cascade);
            options.grace_seconds = Some(3600);
            world.delete_with(&controller_key(), &options).await?;
            world.sleep(Duration::from_secs(90)).await;
            loop {
                let mut batch = Batch::new();
                batch.restore(&world.client().joined(&controller_key()).await?)?;
                match world.client().commit(batch).await {
                    Err(error) if error.is_conflict() => {}
                    done => {
                        done?;
                        break;
                    }
                }
            }
            world.settled().await?;
            Ok(())
        })
        .invariant("never more than two", |now| now.processes().count() <= 2)
        .history_matters()
        .without(FaultKind::Restore)
        .without(FaultKind::RestoreAhead);
    let explored = simulation.exhaustive().unwrap();
    assert_eq!(explored.runs, explored.faults);
}

impl World {
    /// Three are ready, and that was counted after the last thing that the ledger is about.
    async fn is_caught_up(&self) {
        until("three are ready again, and that is said", || async {
            let status = self.controller().await.status.detail;
            let ledger = self.store.peek(&controller_key().store_key(Tree::Ledger));
            let entered = ledger.map(|record| record.modified);
            status.ready_replicas == 3 && status.observed_revision > entered
        })
        .await;
    }

    /// As somebody who is served by an API server.
    async fn delete_pod(&self, pod: &Object<Pod>, anyway: bool) -> Result<(), DeleteError> {
        let joined = self.client.joined(&pod.key().unwrap()).await?;
        let mut batch = Batch::new();
        let now = jiff::Timestamp::now();
        batch.delete(&joined, &DeleteOptions::default(), "ann", now)?;
        enter_delete(&self.client, &joined, &mut batch, "ann", now, anyway).await?;
        self.client.commit(batch).await?;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_persons_delete_of_a_pod_is_in_the_ledger_and_leaves_the_floor() {
    let world = world(None).await;
    let pods = world.pods().await;
    world.delete_pod(&pods[0], false).await.unwrap();
    let ledger = controller_key().store_key(Tree::Ledger);
    let record = world.store.peek(&ledger).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
    assert_eq!(record["entries"][0]["by"], "ann");
    assert_eq!(
        record["entries"][0]["victim"],
        pods[0].metadata.uid.as_str()
    );
    // At once the next: it is not seen yet how the workload is.
    let behind = world.delete_pod(&pods[1], false).await.unwrap_err();
    assert!(matches!(behind, DeleteError::Behind { .. }), "{behind}");
    world.is_caught_up().await;
    world.delete_pod(&pods[1], false).await.unwrap();
    world.is_caught_up().await;

    // Nobody may go where a budget says so, unless it is meant. Of two the stricter counts.
    for (name, share) in [("some", 30), ("all", 100)] {
        let spec = DisruptionBudgetSpec {
            pod_selector: "*".into(),
            minimum_healthy: Amount::Percent(share),
        };
        let metadata = named(name);
        let budget = Object::<DisruptionBudget>::new(metadata, spec);
        world.client.create(&budget).await.unwrap();
    }
    let pod = world.pods().await.remove(0);
    let refused = world.delete_pod(&pod, false).await.unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("replicationcontroller/hello has 3 healthy")
            && text.contains("3 have to stay"),
        "{text}"
    );
    world.delete_pod(&pod, true).await.unwrap();
}

/// Whatever somebody decided on a ledger that a person wrote since does not happen.
#[tokio::test(start_paused = true)]
async fn a_persons_delete_makes_whoever_decided_before_decide_again() {
    let world = world(None).await;
    let pod = world.pods().await.remove(0);
    let ledger = controller_key().store_key(Tree::Ledger);
    let before = world.store.peek(&ledger).map(|record| record.modified);
    world.delete_pod(&pod, false).await.unwrap();
    let late = match before {
        Some(at) => Transaction::new().require_unchanged(ledger.clone(), Some(at)),
        None => Transaction::new().require_absent(ledger.clone()),
    };
    let late = world.store.commit(late.put(ledger, "{}")).await;
    assert!(late.is_err(), "{late:?}");
}
