//! What becomes of pods, of their counts and of rolls while nodes are not heard of.

use std::time::Duration;

use platctrl_framework::model::{ConditionStatus, Object};
use platctrl_kinds::{Amount, Node, Span, Strategy, node_condition};

use crate::daemon_set::set;
use crate::rolling_update::{change, get, phase, the_roll};
use crate::rolls::{roll, version};
use crate::world::{World, until};

const FIVE: [(&str, &str); 5] = [
    ("n1", "web"),
    ("n2", "web"),
    ("n3", "web"),
    ("n4", "web"),
    ("n5", "web"),
];

/// Three pods of hello-1, and a roll to hello-2 that is paused.
async fn about_to_roll(strategy: Strategy) -> World {
    let world = World::with_nodes(&FIVE).await;
    for (name, artifact, replicas) in [("hello-1", "one", 3), ("hello-2", "two", 0)] {
        let mut version = version(name, artifact, replicas);
        version.spec.strategy = strategy;
        world.client.create(&version).await.unwrap();
    }
    until("all are ready", || async {
        get(&world, "hello-1").await.status.detail.ready_replicas == 3
    })
    .await;
    let roll = roll(3, |spec| {
        spec.paused = true;
        spec.minimum_healthy = Some(Amount::Count(1));
        spec.progress_deadline = Span::from_secs(60);
    });
    world.client.create(&roll).await.unwrap();
    phase(&world, "Paused").await;
    world
}

/// A node with a pod is not heard of, and is given up.
async fn lose_one(world: &World) -> String {
    let node = world.nodes_of_pods().await.remove(0);
    world.say(&node, "Alive", false).await;
    world.say(&node, node_condition::LOST, true).await;
    node
}

#[tokio::test(start_paused = true)]
async fn a_roll_makes_pods_of_a_lost_node_anew_elsewhere() {
    let world = about_to_roll(Strategy::Dynamic).await;
    let lost = lose_one(&world).await;
    change(&world, |spec| spec.paused = false).await;
    phase(&world, "Complete").await;
    let nodes = world.nodes_of_pods().await;
    assert!(nodes.len() == 3 && !nodes.contains(&lost), "{nodes:?}");
    for pod in world.pods().await {
        let there = pod.spec.node_name.as_deref() == Some(&lost);
        assert_eq!(pod.metadata.is_deleted(), there);
        assert!(there || pod.spec.launchables["web"].location == "artifact:two");
    }
}

#[tokio::test(start_paused = true)]
async fn a_roll_makes_pods_of_a_drained_node_anew_elsewhere() {
    let world = about_to_roll(Strategy::Static).await;
    let drained = world.nodes_of_pods().await.remove(0);
    let drain = |node: &mut Object<Node>| {
        (node.spec.drain, node.spec.drain_static) = (true, true);
    };
    world.change_node(&drained, drain).await;
    world.say(&drained, node_condition::DRAINING, true).await;
    change(&world, |spec| spec.paused = false).await;
    phase(&world, "Complete").await;
    let nodes = world.nodes_of_pods().await;
    assert!(nodes.len() == 3 && !nodes.contains(&drained), "{nodes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_roll_waits_for_nodes_that_are_not_heard_of_and_fails_by_nothing_of_that() {
    let world = about_to_roll(Strategy::Static).await;
    let silent = lose_one(&world).await;
    change(&world, |spec| spec.paused = false).await;
    until("it says what it waits for", || async {
        let status = the_roll(&world).await.status;
        let stalled = status.conditions.get("Stalled").cloned();
        stalled.is_some_and(|it| {
            it.status == ConditionStatus::True
                && it.reason == "AwaitsNodes"
                && it
                    .message
                    .contains("1 pods of hello-2 whose nodes are not heard of")
                && it.message.contains("2 of 3 healthy")
        })
    })
    .await;
    // Long after its deadline nothing is rolled back or paused.
    tokio::time::sleep(Duration::from_secs(1_200)).await;
    let roll = the_roll(&world).await;
    assert_eq!(roll.status.phase.as_str(), "Rolling");
    assert!(!roll.spec.paused && !roll.spec.rollback);
    assert!(
        world.nodes_of_pods().await.contains(&silent),
        "it is Static"
    );

    world.say(&silent, "Alive", true).await;
    world.say(&silent, node_condition::LOST, false).await;
    phase(&world, "Complete").await;
    let status = the_roll(&world).await.status;
    assert!(!status.conditions.is_true("Stalled"));
}

#[tokio::test(start_paused = true)]
async fn a_roll_that_is_paused_does_not_keep_pods_of_a_lost_node_from_being_replaced() {
    let world = about_to_roll(Strategy::Dynamic).await;
    let lost = lose_one(&world).await;
    until("another one is there", || async {
        let nodes = world.nodes_of_pods().await;
        nodes.len() == 3 && !nodes.contains(&lost)
    })
    .await;
    let controller = get(&world, "hello-1").await;
    assert_eq!(controller.spec.replicas, 3, "nothing was moved");
}

#[tokio::test(start_paused = true)]
async fn pods_on_a_node_that_is_not_heard_of_are_not_counted_as_ready() {
    let world = World::with_nodes(&FIVE).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let node = world.nodes_of_pods().await.remove(0);
    world.say(&node, "Alive", false).await;
    until("one is missing", || async {
        let available = world.condition("Available").await;
        let status = world.controller().await.status;
        available.status == ConditionStatus::False
            && available.message == "2 of 3 pods are ready"
            && (status.detail.replicas, status.detail.ready_replicas) == (3, 2)
    })
    .await;
    world.say(&node, "Alive", true).await;
    world.settled(3, 3).await;
    assert!(
        world
            .controller()
            .await
            .status
            .conditions
            .is_true("Available")
    );
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_daemon_set_on_such_a_node_are_none_either_and_are_late_in_time() {
    let world = World::with_nodes(&FIVE[..3]).await;
    world.client.create(&set("logs")).await.unwrap();
    world.set_is_ready("logs", 3).await;
    world.say("n2", "Alive", false).await;
    until("one is missing, and then late", || async {
        let stalled = world.set_says("logs", "Stalled").await;
        let set = world.set("logs").await;
        set.status.detail.ready == 2
            && stalled.reason == "Timeout"
            && stalled
                .message
                .contains("of 1 node is not ready within 1m: n2")
    })
    .await;
    world.say("n2", "Alive", true).await;
    world.set_is_ready("logs", 3).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_new_is_put_on_a_node_that_is_not_heard_of() {
    let world = World::with_nodes(&FIVE[..3]).await;
    world.say("n2", "Alive", false).await;
    world.create(3, |_| {}).await;
    world.client.create(&set("logs")).await.unwrap();
    until("it is said why one has no place", || async {
        let scheduled = world.condition("Scheduled").await;
        let of_set = world.set_says("logs", "Scheduled").await;
        let part = "1 is not heard of (n2)";
        scheduled.message.contains(part) && of_set.message.contains("n2: it is not heard of")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.nodes_of_pods().await, ["n1", "n1", "n3", "n3"]);
    world.say("n2", "Alive", true).await;
    world.settled(3, 3).await;
    world.set_is_ready("logs", 3).await;
    // What is there stays there when the node falls silent.
    world.say("n2", "Alive", false).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.nodes_of_pods().await.len(), 6);
}
