//! Very many new pods, made by commits that are under way together.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use platctrl_controllers::replication_controller;
use platctrl_framework::model::Tree;
use platctrl_framework::store::{Change, Limits, Prefix, Revision, Store, WatchEvent};
use platctrl_framework::testing::Simulation;

use crate::simulation::{fleet_with, object, one_on_a_node};
use crate::world::{World, controller_key, until};

const NODES: usize = 50;
/// More than three commits take.
const PODS: u32 = 500;

async fn world() -> World {
    let names: Vec<String> = (0..NODES).map(|node| format!("n{node:02}")).collect();
    let nodes: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "web")).collect();
    World::with_nodes(&nodes).await
}

/// What the controller's reports said of commits that are under way, one after the other.
async fn said(world: &World) -> Vec<bool> {
    let key = controller_key().store_key(Tree::Reality);
    let last = world.store.peek(&key).unwrap().modified;
    let mut said = Vec::new();
    let mut watch = world.store.watch(Prefix::only(&key), Revision::ZERO);
    while let Some(event) = watch.next().await {
        let WatchEvent::Changes { changes, revision } = event.unwrap() else {
            continue;
        };
        for change in changes {
            if let Change::Put(record) = change {
                let report: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
                said.push(report["metadata"]["abreast"] == true);
            }
        }
        if revision >= last {
            return said;
        }
    }
    said
}

#[tokio::test(start_paused = true)]
async fn very_many_pods_are_made_in_commits_abreast_and_counted_when_these_are_over() {
    let world = world().await;
    world.create(PODS, |spec| spec.max_per_node = 10).await;
    world.settled(PODS, PODS).await;
    let mut on_each = BTreeMap::<String, u32>::new();
    for pod in world.pods().await {
        *on_each.entry(pod.spec.node_name.unwrap()).or_default() += 1;
    }
    assert_eq!(on_each.len(), NODES);
    assert!(on_each.values().all(|&pods| pods == 10), "{on_each:?}");
    let said = said(&world).await;
    assert!(said.contains(&true), "they were abreast: {said:?}");
    assert_eq!(said.last(), Some(&false), "and are over: {said:?}");
    // It finds them as it made them: nothing is left to do.
    world.change(|spec| spec.replicas += 5).await;
    until("those that have no place are counted", || async {
        let status = world.controller().await.status;
        let scheduled = status.conditions.get("Scheduled").cloned().unwrap();
        scheduled.message.starts_with("no place for 5 pods")
    })
    .await;
    assert_eq!(world.pods().await.len(), PODS as usize);
}

#[tokio::test(start_paused = true)]
async fn who_changes_their_mind_is_heard_by_commits_that_are_under_way() {
    let world = world().await;
    let report = controller_key().store_key(Tree::Reality);
    world.store.faults().set_latency(Duration::from_millis(200));
    world.create(PODS, |spec| spec.max_per_node = 10).await;
    until("they are under way", || async {
        let report = world.store.peek(&report);
        report.is_some_and(|report| {
            let report: serde_json::Value = serde_json::from_slice(&report.value).unwrap();
            report["metadata"]["abreast"] == true
        })
    })
    .await;
    world.change(|spec| spec.replicas = 7).await;
    world.store.faults().set_latency(Duration::ZERO);
    world.settled(7, 7).await;
    assert_eq!(said(&world).await.last(), Some(&false));
}

/// A store that takes two new pods in one transaction.
fn small() -> Limits {
    Limits {
        max_writes: 128,
        max_compares: 128,
        max_operations: 10,
        max_transaction_bytes: 1 << 20,
        max_value_bytes: 1 << 20,
    }
}

fn fleet(replicas: usize) -> Simulation {
    fleet_with(8, replication_controller::controller)
        .limits(small())
        .replicas(replicas)
        .scenario(|world| async move {
            world.create(&object(8)).await?;
            world.settled().await?;
            Ok(())
        })
        .invariant("never more than eight pods", |now| {
            now.processes().count() <= 8
        })
        .invariant("one pod on a node", one_on_a_node)
}

#[test]
fn commits_abreast_come_to_the_same_end_whatever_goes_wrong_at_a_write() {
    let explored = fleet(1).exhaustive().unwrap();
    assert!(explored.writes >= 12, "{explored:?}");
    assert_eq!(explored.runs, explored.faults);
}

#[test]
fn commits_abreast_of_two_replicas_live_through_what_is_drawn() {
    fleet(2).random(0..16).unwrap();
}
