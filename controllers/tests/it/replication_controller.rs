//! What a replication controller does to a fleet.

use std::collections::BTreeSet;

use platctrl_framework::model::{ConditionStatus, Propagation, Tree};
use platctrl_framework::store::{Store, Transaction};
use platctrl_kinds::Span;

use crate::world::{World, controller_key, until};

const THREE: [(&str, &str); 4] = [("n1", "web"), ("n2", "web"), ("n3", "web"), ("db1", "db")];

#[tokio::test(start_paused = true)]
async fn pods_are_spread_over_the_nodes_that_match() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let pods = world.pods().await;
    let nodes: BTreeSet<_> = pods
        .iter()
        .filter_map(|pod| pod.spec.node_name.clone())
        .collect();
    assert_eq!(
        nodes,
        BTreeSet::from(["n1".into(), "n2".into(), "n3".into()])
    );
    let owner = world.controller().await;
    for pod in &pods {
        assert_eq!(pod.metadata.controller().unwrap().uid, owner.metadata.uid);
        assert_eq!(pod.spec.app.as_deref(), Some("hello"));
        let suffix = pod.metadata.name.strip_prefix("hello-").unwrap();
        assert!(
            suffix.len() == 10 && suffix.chars().all(|c| c.is_ascii_alphanumeric()),
            "{suffix}"
        );
    }
    assert!(owner.status.conditions.is_true("Available"));
    assert_eq!(owner.status.observed_generation, Some(1));
}

#[tokio::test(start_paused = true)]
async fn pods_without_a_place_are_counted_and_placed_when_a_node_appears() {
    let world = World::with_nodes(&THREE[..1]).await;
    world.create(2, |_| {}).await;
    world.settled(1, 1).await;
    let scheduled = world
        .controller()
        .await
        .status
        .conditions
        .get("Scheduled")
        .cloned()
        .unwrap();
    assert_eq!(scheduled.status, ConditionStatus::False);
    assert_eq!(
        scheduled.message,
        "no place for 1 pod: of 1 node 1 runs as many of these pods as maxPerNode allows (n1)"
    );
    let mut node = world
        .client
        .get::<platctrl_kinds::Node>(
            &platctrl_framework::model::ObjectKey::cluster("platctrl.dev", "nodes", "n1").unwrap(),
        )
        .await
        .unwrap();
    node.metadata.name = "n9".into();
    node.metadata.uid = "".into();
    world.client.create(&node).await.unwrap();
    world.settled(2, 2).await;
}

#[tokio::test(start_paused = true)]
async fn fewer_replicas_take_pods_away_in_order() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    world.change(|spec| spec.replicas = 1).await;
    world.settled(1, 1).await;
    until("the others are gone", || async {
        world.pods().await.len() == 1
    })
    .await;
    world.change(|spec| spec.replicas = 0).await;
    until("all are gone", || async { world.pods().await.is_empty() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_template_reaches_every_pod_in_place() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let before: BTreeSet<_> = world
        .pods()
        .await
        .into_iter()
        .map(|pod| pod.metadata.uid)
        .collect();
    world
        .change(|spec| spec.template.spec.drain_delay = Some(Span::from_secs(1)))
        .await;
    world.settled(3, 3).await;
    let pods = world.pods().await;
    assert!(
        pods.iter()
            .all(|pod| pod.spec.drain_delay == Some(Span::from_secs(1)))
    );
    let after: BTreeSet<_> = pods.into_iter().map(|pod| pod.metadata.uid).collect();
    assert_eq!(before, after, "the same pods");
}

#[tokio::test(start_paused = true)]
async fn a_template_that_does_not_work_costs_one_pod() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let broken = |spec: &mut platctrl_kinds::ReplicationControllerSpec| {
        spec.template
            .spec
            .launchables
            .get_mut("web")
            .unwrap()
            .location = "artifact:broken".into();
    };
    world.change(broken).await;
    until("one pod is not ready", || async {
        let status = world.controller().await.status;
        status.observed_generation == Some(2) && status.detail.ready_replicas == 0 && {
            world
                .pods()
                .await
                .iter()
                .filter(|pod| pod.status.conditions.is_true("Ready"))
                .count()
                == 2
        }
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    let ready = world
        .pods()
        .await
        .iter()
        .filter(|pod| pod.status.conditions.is_true("Ready"))
        .count();
    assert_eq!(ready, 2, "the roll waits");
}

#[tokio::test(start_paused = true)]
async fn an_orphaning_delete_keeps_the_pods() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    world.delete(Propagation::Orphan).await;
    until("the controller is gone", || async {
        world
            .client
            .joined(&controller_key())
            .await
            .unwrap()
            .intent
            .is_none()
    })
    .await;
    let pods = world.pods().await;
    assert_eq!(pods.len(), 3);
    assert!(
        pods.iter()
            .all(|pod| pod.metadata.owner_references.is_empty() && !pod.metadata.is_deleted())
    );
}

#[tokio::test(start_paused = true)]
async fn a_cascading_delete_ends_the_pods_first() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    world.delete(Propagation::Cascade).await;
    until("everything is gone", || async {
        let left = world.store.dump();
        !left.iter().any(|record| {
            record.key.as_str().contains("/pods/")
                || record.key.as_str().contains("/replicationcontrollers/")
        })
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_replication_controller_lost() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    // Somebody removes the record by hand: nobody ordered an end.
    world
        .store
        .commit(Transaction::new().delete(controller_key().store_key(Tree::Intent)))
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    let pods = world.pods().await;
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| !pod.metadata.is_deleted()));
    let view = world.handle.view().unwrap();
    assert_eq!(
        view.unexplained::<platctrl_kinds::ReplicationController>()
            .count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn failsafe_replication_controller_unreadable() {
    let world = World::with_nodes(&THREE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let key = controller_key().store_key(Tree::Intent);
    let record = world.store.peek(&key).unwrap();
    let text = String::from_utf8(record.value.to_vec())
        .unwrap()
        .replace("\"replicas\":3", "\"replicas\":\"none\"");
    world
        .store
        .commit(Transaction::new().put(key, text))
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(
        world
            .pods()
            .await
            .iter()
            .filter(|pod| !pod.metadata.is_deleted())
            .count(),
        3
    );
}
