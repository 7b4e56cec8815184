//! What cannot be done, or makes no sense: it is said, nothing is taken away for it, and it costs
//! nothing while it waits.

use std::collections::BTreeSet;
use std::time::Duration;

use platctrl_framework::model::{Condition, Object, ObjectKey, Resource, Tree, Uid};
use platctrl_framework::store::{Store as _, Transaction};
use platctrl_kinds::{
    Amount, DisruptionBudget, DisruptionBudgetSpec, Pod, ReplicationController, RollingUpdate,
};
use serde_json::{Value, json};

use crate::daemon_set::set;
use crate::rolling_update::{begin, change, get, phase, the_roll, world};
use crate::rolls::{roll, roll_key, version};
use crate::world::{World, named, until};

/// Runs that a controller of these makes in an hour though nothing happens: one that looks again
/// each half minute, and some room.
const FEW: u64 = 200;

impl World {
    /// The runs of all controllers so far. None of them panicked, took too long or failed.
    fn runs(&self) -> u64 {
        let status = self.handle.status().unwrap();
        let controllers = status.controllers.iter();
        let controllers = controllers.filter(|controller| controller.name != "agent");
        let runs = controllers.map(|controller| {
            let bad = (controller.panics, controller.timeouts, controller.errors);
            assert_eq!(bad, (0, 0, 0), "{controller:?}");
            assert!(controller.restless.is_empty(), "{controller:?}");
            controller.runs
        });
        runs.sum()
    }

    /// For an hour nothing of the pods changes, and hardly anybody looks.
    async fn rests(&self) {
        let pods = async || -> BTreeSet<(Uid, u64)> {
            let pods = self.pods().await.into_iter();
            pods.map(|pod| (pod.metadata.uid, pod.metadata.generation))
                .collect()
        };
        let (before, runs) = (pods().await, self.runs());
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let more = self.runs() - runs;
        assert!(more < FEW, "{more} runs in an hour");
        assert_eq!(pods().await, before);
    }

    async fn says<K: Resource>(&self, key: &ObjectKey, kind: &str) -> Option<Condition> {
        let object = self.client.get::<K>(key).await.ok()?;
        object.status.conditions.get(kind).cloned()
    }

    /// Waits until a condition says this, for this reason.
    async fn is_told<K: Resource>(&self, key: &ObjectKey, kind: &str, reason: &str, part: &str) {
        until(&format!("{kind} {reason}: {part}"), || async {
            let said = self.says::<K>(key, kind).await;
            said.is_some_and(|it| it.reason == reason && it.message.contains(part))
        })
        .await;
    }

    /// Writes an object's intent as a person with the store's own tools does.
    async fn write_by_hand(&self, key: &ObjectKey, change: impl FnOnce(&mut Value)) {
        let record = key.store_key(Tree::Intent);
        let stored = self.store.peek(&record).unwrap();
        let mut intent: Value = serde_json::from_slice(&stored.value).unwrap();
        change(&mut intent["spec"]);
        let generation = intent["metadata"]["generation"].as_u64().unwrap() + 1;
        intent["metadata"]["generation"] = json!(generation);
        let put = Transaction::new().put(record, intent.to_string());
        self.store.commit(put).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_roll_that_makes_no_sense_and_was_written_past_the_server_moves_nothing_and_says_so() {
    for (field, value, part) in [
        ("to", json!("hello-1"), "spec.to"),
        (
            "minimumHealthy",
            json!(3),
            "none can ever be updated in place",
        ),
        ("minimumHealthy", json!(7), "is above spec.replicas"),
        ("replicas", json!(4_000_000_000_u32), "spec.replicas"),
        ("surge", json!(4_000_000_000_u32), "spec.surge"),
        ("keepOld", json!(4), "spec.keepOld"),
        ("steps", json!([{"upTo": 9}]), "spec.steps[0].upTo"),
    ] {
        let world = world("two").await;
        begin(&world, |spec| spec.paused = true).await;
        phase(&world, "Paused").await;
        world
            .write_by_hand(&roll_key(), |spec| {
                spec["paused"] = json!(false);
                spec[field] = value;
            })
            .await;
        world
            .is_told::<RollingUpdate>(&roll_key(), "Held", "Invalid", part)
            .await;
        world.rests().await;
        // What is put right goes on.
        world
            .write_by_hand(&roll_key(), |spec| {
                let spec = spec.as_object_mut().unwrap();
                spec.remove(field);
                spec.insert("to".into(), json!("hello-2"));
                spec.insert("replicas".into(), json!(3));
            })
            .await;
        phase(&world, "Complete").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_no_roll_at_all_is_set_aside_and_stops_nothing_else() {
    let world = world("two").await;
    begin(&world, |spec| spec.paused = true).await;
    phase(&world, "Paused").await;
    for (field, value) in [
        ("replicas", json!(-3)),
        ("replicas", json!("three")),
        ("surge", json!("110%")),
        ("delay", json!("-1s")),
    ] {
        let before = the_roll(&world).await;
        world
            .write_by_hand(&roll_key(), |spec| spec[field] = value.clone())
            .await;
        until("it is set aside", || async {
            let view = world.handle.view().unwrap();
            view.unreadable::<RollingUpdate>().len() == 1
        })
        .await;
        world.rests().await;
        let spec = serde_json::to_value(&before.spec).unwrap();
        world.write_by_hand(&roll_key(), |now| *now = spec).await;
        until("it is read again", || async {
            let view = world.handle.view().unwrap();
            view.unreadable::<RollingUpdate>().is_empty()
        })
        .await;
    }
    change(&world, |spec| spec.paused = false).await;
    phase(&world, "Complete").await;
}

#[tokio::test(start_paused = true)]
async fn a_roll_that_is_held_for_whatever_reason_rests() {
    // Somebody else says how many pods there are.
    let contested = world("two").await;
    begin(&contested, |spec| spec.paused = true).await;
    phase(&contested, "Paused").await;
    let mut other = get(&contested, "hello-1").await;
    other.spec.replicas = 2;
    contested.client.update(&other).await.unwrap();
    contested
        .is_told::<RollingUpdate>(&roll_key(), "Held", "Contested", "hello-1 was set to 2")
        .await;
    // What was counted before is not taken for what is so now.
    contested
        .is_told::<RollingUpdate>(&roll_key(), "Available", "Contested", "not counted")
        .await;
    let stalled = contested
        .says::<RollingUpdate>(&roll_key(), "Stalled")
        .await;
    assert_eq!(stalled.unwrap().reason, "Held");
    contested.rests().await;

    // One of its controllers is gone.
    let missing = world("two").await;
    begin(&missing, |spec| spec.paused = true).await;
    phase(&missing, "Paused").await;
    let key = get(&missing, "hello-2").await.key().unwrap();
    let options = platctrl_framework::client::DeleteOptions::default();
    missing.client.delete(&key, &options).await.unwrap();
    change(&missing, |spec| spec.paused = false).await;
    let part = "there is no replication controller hello-2";
    missing
        .is_told::<RollingUpdate>(&roll_key(), "Held", "Missing", part)
        .await;
    missing.rests().await;

    // Another roll has one of them.
    let two = world("two").await;
    begin(&two, |spec| spec.paused = true).await;
    phase(&two, "Paused").await;
    two.client
        .create(&version("hello-3", "three", 0))
        .await
        .unwrap();
    let mut second = roll(3, |spec| spec.to = "hello-3".into());
    second.metadata.name = "hello-3".into();
    two.client.create(&second).await.unwrap();
    let key = second.key().unwrap();
    let part = "claimed by rollingupdate/hello-2";
    two.is_told::<RollingUpdate>(&key, "Held", "Refused", part)
        .await;
    two.rests().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_can_never_fit_rests() {
    let world = World::with_nodes(&[("n1", "web"), ("n2", "web")]).await;
    for node in ["n1", "n2"] {
        let one = |node: &mut Object<platctrl_kinds::Node>| {
            node.spec.capacity.cpu = Some("1".parse().unwrap());
        };
        world.change_node(node, one).await;
    }
    let huge = |spec: &mut platctrl_kinds::PodTemplate| {
        let web = spec.spec.launchables.get_mut("web").unwrap();
        web.resources.cpu = Some("64".parse().unwrap());
    };
    world.create(2, |spec| huge(&mut spec.template)).await;
    let key = crate::world::controller_key();
    world
        .is_told::<ReplicationController>(&key, "Stalled", "NeverFits", "no place for 2 pods")
        .await;
    let mut logs = set("logs");
    huge(&mut logs.spec.template);
    world.client.create(&logs).await.unwrap();
    let key = logs.key().unwrap();
    world
        .is_told::<platctrl_kinds::DaemonSet>(&key, "Stalled", "NoPlace", "2 nodes have no place")
        .await;
    world.rests().await;
    assert!(world.pods().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn controllers_and_budgets_whose_selectors_overlap_keep_to_their_own_and_to_the_highest() {
    let nodes = ["n1", "n2", "n3", "n4", "n5", "n6"].map(|node| (node, "web"));
    let world = World::with_nodes(&nodes).await;
    // Same app, same labels, same nodes.
    for (name, replicas) in [("hello-1", 3), ("hello-2", 3)] {
        let mut wanted = version(name, "one", replicas);
        wanted.spec.template.metadata.labels = [("app".to_owned(), "hello".to_owned())].into();
        world.client.create(&wanted).await.unwrap();
    }
    until("all are ready", || async {
        let ready = async |name| get(&world, name).await.status.detail.ready_replicas;
        ready("hello-1").await == 3 && ready("hello-2").await == 3
    })
    .await;
    let of = async |name: &str| -> BTreeSet<Uid> {
        let owner = get(&world, name).await.metadata.uid;
        let pods = world.pods().await.into_iter();
        let own = pods.filter(|pod: &Object<Pod>| {
            let controller = pod.metadata.controller();
            controller.is_some_and(|it| it.uid == owner) && !pod.metadata.is_deleted()
        });
        own.map(|pod| pod.metadata.uid).collect()
    };
    let second = of("hello-2").await;
    let scale = async |replicas: u32| {
        let mut first = get(&world, "hello-1").await;
        first.spec.replicas = replicas;
        world.client.update(&first).await.unwrap();
    };
    scale(1).await;
    until("two of the first are gone", || async {
        of("hello-1").await.len() == 1
    })
    .await;
    world.rests().await;
    assert_eq!(of("hello-2").await, second, "these are another's");

    // Of budgets that select the same pods, the one that asks most counts, also above all there are.
    scale(3).await;
    let mut keys = Vec::new();
    for (name, minimum_healthy) in [
        ("few", Amount::Percent(10)),
        ("half", Amount::Percent(50)),
        ("most", Amount::Count(99)),
    ] {
        let spec = DisruptionBudgetSpec {
            pod_selector: "app=hello".into(),
            minimum_healthy,
        };
        let budget = Object::<DisruptionBudget>::new(named(name), spec);
        world.client.create(&budget).await.unwrap();
        keys.push(budget.key().unwrap());
    }
    let key = keys.remove(2);
    let part = "3 healthy, 3 needed";
    world
        .is_told::<DisruptionBudget>(&key, "Disruptable", "NoneMayGo", part)
        .await;
    let mut first = get(&world, "hello-1").await;
    let web = first.spec.template.spec.launchables.get_mut("web").unwrap();
    web.location = "artifact:two".into();
    world.client.update(&first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.rests().await;
    let moved = world.pods().await.into_iter();
    let moved = moved.filter(|pod| pod.spec.launchables["web"].location == "artifact:two");
    assert_eq!(moved.count(), 0, "none of the ready ones may go");
    // Without that one, the others still count.
    let options = platctrl_framework::client::DeleteOptions::default();
    world.client.delete(&key, &options).await.unwrap();
    until("one after the other gets it", || async {
        let first = get(&world, "hello-1").await;
        first.status.detail.ready_replicas == 3
            && first.status.observed_generation == Some(first.metadata.generation)
    })
    .await;
}
