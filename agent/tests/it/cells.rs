//! The agent's cells of the matrix of failsafes: what it does when a record of its pods or of its
//! node is made, changed, ended, lost, or goes back, alone and all at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use platctrl_agent::watched_prefixes;
use platctrl_framework::client::DeleteOptions;
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::Guard;
use platctrl_framework::model::{Intent, Metadata, Object, ObjectKey, Tree};
use platctrl_framework::store::{Key, MemoryStore, Prefix, Transaction};
use platctrl_kinds::{Node, Pod};
use serde_json::{Value, json};

use crate::rig::{hasty, is_alive};
use crate::store::{NODE, Site, key, node_key};

/// So many that all of them at once is an alarm.
const MANY: usize = 6;

fn key_of(name: &str) -> ObjectKey {
    ObjectKey::on_node("platctrl.dev", "pods", NODE, "default", name).unwrap()
}

/// A node with many pods that only live.
struct Fleet {
    site: Site,
    memory: MemoryStore,
}

impl Fleet {
    fn new() -> Self {
        let environment = Environment::system();
        let memory = MemoryStore::new(environment.clone());
        let site = Site::on(environment, Arc::new(memory.clone()));
        let script = Some("#!/bin/sh\nexec sleep 1000\n");
        let artifact = site.rig.pack("sleeper", &[("bin/launch", script)]);
        let mut spec = site.rig.spec(&artifact);
        spec["ports"] = json!({});
        for name in names() {
            let mut metadata = Metadata::named(name);
            metadata.namespace = Some("default".into());
            let pod = Object::<Pod>::new(metadata, serde_json::from_value(spec.clone()).unwrap());
            site.rig.block_on(site.client.create(&pod)).unwrap();
        }
        Self { site, memory }
    }

    fn pod(&self, name: &str) -> Option<Object<Pod>> {
        let site = &self.site;
        site.rig
            .block_on(site.client.get::<Pod>(&key_of(name)))
            .ok()
    }

    /// Waits until every pod reports this generation as ready, and tells their processes.
    fn ready(&self, generation: u64) -> BTreeMap<String, u32> {
        let pids = names().map(|name| {
            let pod = self.site.wait(&format!("{name} to be ready"), || {
                let pod = self.pod(&name)?;
                let is = pod.status.observed_generation == Some(generation)
                    && pod.status.conditions.is_true("Ready");
                is.then_some(pod)
            });
            (name, pod.status.detail.pids["web"])
        });
        pids.collect()
    }

    /// Gives every pod another configuration, by order.
    fn change_all(&self) {
        for name in names() {
            let mut pod = self.pod(&name).unwrap();
            pod.spec.config = json!({"changed": true});
            self.site
                .rig
                .block_on(self.site.client.update(&pod))
                .unwrap();
        }
    }

    /// Waits until the agent says that it holds back for one of these reasons.
    fn held(&self, guards: &[Guard]) {
        self.site.wait("a hold", || {
            let status = self.site.handle.as_ref()?.runtime().status()?;
            let holds = status.failsafe.holds;
            holds
                .iter()
                .any(|hold| guards.contains(&hold.guard))
                .then_some(())
        });
    }

    #[track_caller]
    fn run_on(&self, pids: &BTreeMap<String, u32>) {
        for (name, pid) in pids {
            assert!(is_alive(*pid), "{name}");
        }
        let reports = self.site.handle.as_ref().unwrap().reports();
        for report in reports {
            let now = report.status.pids.get("web").copied();
            assert_eq!(now, pids.get(report.name.name()).copied(), "{report:?}");
        }
    }
}

fn names() -> impl Iterator<Item = String> {
    (0..MANY).map(|number| format!("pod-{number}"))
}

#[test]
fn failsafe_pod_intent_create_is_claimed_before_anything_is_begun() {
    let environment = Environment::system();
    let memory = MemoryStore::new(environment.clone());
    let site = Site::on(environment, Arc::new(memory.clone()));
    let reality = key().store_key(Tree::Reality);
    memory.faults().deny_writes(Prefix::only(&reality));
    site.create(&site.spec());
    site.wait("a claim that is refused", || {
        (memory.faults().counts().denied > 0).then_some(())
    });
    // One that is created after that and can be claimed has run through all that this one has not.
    site.create_named_as("later", &site.spec());
    site.wait("the other one", || site.pods_ready("later"));
    let here = site.rig.layout().pods().unwrap();
    assert!(here.iter().all(|pod| pod.name() == "later"), "{here:?}");
    memory.faults().allow_all();
    let pod = site.ready();
    assert!(is_alive(pod.status.detail.pids["web"]));
}

#[test]
fn failsafe_pod_intent_change_runs_the_old_version_until_the_new_one_is_verified() {
    let site = Site::new();
    let old = site.spec();
    site.create(&old);
    let pid = site.ready().status.detail.pids["web"];
    let right = site.rig.app("two");
    let change = |digest: Value| {
        let mut pod = site.pod().unwrap();
        let mut spec = serde_json::to_value(&pod.spec).unwrap();
        spec["launchables"]["web"]["location"] = right.0.clone().into();
        spec["launchables"]["web"]["digest"] = digest;
        pod.spec = serde_json::from_value(spec).unwrap();
        site.rig.block_on(site.client.update(&pod)).unwrap();
    };
    // What is there is not what was ordered.
    let wrong = format!("sha256:{}", "1".repeat(64));
    change(wrong.into());
    site.wait("a refusal", || {
        let pod = site.pod()?;
        (pod.status.detail.reason == "DigestMismatch").then_some(())
    });
    assert!(is_alive(pid));
    assert_eq!(site.pod().unwrap().status.detail.pids["web"], pid);
    change(json!(right.1));
    let now = site.wait("the new version", || {
        let pod = site.pod()?;
        let is =
            pod.status.observed_generation == Some(3) && pod.status.conditions.is_true("Ready");
        is.then_some(pod)
    });
    assert_ne!(now.status.detail.pids["web"], pid);
    assert!(!is_alive(pid));
}

#[test]
fn failsafe_pod_intents_all_go_back_with_an_older_store_are_held() {
    let fleet = Fleet::new();
    fleet.ready(1);
    let backup = fleet.memory.snapshot();
    fleet.change_all();
    let pids = fleet.ready(2);
    fleet.memory.faults().come_back_older(&backup);
    let generation = fleet.pod("pod-0").unwrap().metadata.generation;
    assert_eq!(generation, 1, "the fault happened");
    fleet.held(&[Guard::History, Guard::WentBack]);
    fleet.run_on(&pids);
}

#[test]
fn failsafe_pod_intents_all_go_back_with_a_store_restored_forward_are_held() {
    let fleet = Fleet::new();
    fleet.ready(1);
    let backup = fleet.memory.snapshot();
    fleet.change_all();
    let pids = fleet.ready(2);
    fleet.memory.faults().come_back_newer(&backup, 1000);
    let generation = fleet.pod("pod-0").unwrap().metadata.generation;
    assert_eq!(generation, 1, "the fault happened");
    fleet.held(&[Guard::History, Guard::WentBack]);
    fleet.run_on(&pids);
}

#[test]
fn failsafe_pod_intents_all_changed_without_an_order_are_held() {
    let fleet = Fleet::new();
    let pids = fleet.ready(1);
    // As a script does that writes to the store by itself: the generation stays.
    let mut transaction = Transaction::new();
    for name in names() {
        let key = key_of(&name);
        let joined = fleet
            .site
            .rig
            .block_on(fleet.site.client.joined(&key))
            .unwrap();
        let mut intent: Intent = joined.intent.unwrap().value;
        intent.spec["config"] = json!({"changed": true});
        let value = serde_json::to_vec(&intent).unwrap();
        transaction = transaction.put(key.store_key(Tree::Intent), value);
    }
    let committed = fleet.site.store.commit(transaction);
    fleet.site.rig.block_on(committed).unwrap();
    fleet.held(&[Guard::Changed]);
    fleet.run_on(&pids);
}

#[test]
fn failsafe_pod_intents_all_changed_by_order_are_carried_out() {
    let fleet = Fleet::new();
    let before = fleet.ready(1);
    fleet.change_all();
    let after = fleet.ready(2);
    for (name, pid) in &before {
        assert_ne!(after[name], *pid);
        assert!(!is_alive(*pid));
    }
}

#[test]
fn failsafe_pod_tombstones_in_bulk_that_were_ordered_are_carried_out() {
    let fleet = Fleet::new();
    let pids = fleet.ready(1);
    let site = &fleet.site;
    for name in names() {
        let (key, options) = (key_of(&name), DeleteOptions::default());
        let deleted = site.client.delete(&key, &options);
        site.rig.block_on(deleted).unwrap();
    }
    for pid in pids.values() {
        site.wait("the end", || (!is_alive(*pid)).then_some(()));
    }
    site.wait("nothing to be left", || {
        site.rig.layout().pods().unwrap().is_empty().then_some(())
    });
}

#[test]
fn failsafe_pod_intent_anchor_lost_stops_nothing() {
    let environment = Environment::system();
    let memory = MemoryStore::new(environment.clone());
    let site = Site::on(environment, Arc::new(memory.clone()));
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let mut transaction = Transaction::new();
    for prefix in watched_prefixes(NODE).unwrap() {
        transaction = transaction.delete(Key::new(format!("{}.anchor", prefix.as_str())).unwrap());
    }
    // With the orders, as when a prefix is wiped.
    transaction = transaction.delete(key().store_key(Tree::Intent));
    site.rig.block_on(site.store.commit(transaction)).unwrap();
    memory.faults().break_watches();
    crate::store::distrusted(&site, "NoAnchor");
    assert!(is_alive(pid));
    assert!(site.handle.as_ref().unwrap().reports()[0].is_ready());
}

#[test]
fn failsafe_pod_reality_of_another_uid_is_written_anew_and_nothing_restarts() {
    let site = Site::new();
    site.create(&site.spec());
    let before = site.ready();
    let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
    let mut reality = joined.reality.unwrap().value;
    reality.metadata.uid = "00000000-0000-4000-8000-000000000000".into();
    let value = serde_json::to_vec(&reality).unwrap();
    let put = Transaction::new().put(key().store_key(Tree::Reality), value);
    site.rig.block_on(site.store.commit(put)).unwrap();
    let after = site.wait("its own report", || {
        let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
        let uid = joined.reality?.value.metadata.uid;
        (uid == before.metadata.uid).then(|| site.ready())
    });
    assert_eq!(after.status.detail.pids, before.status.detail.pids);
    assert!(is_alive(before.status.detail.pids["web"]));
}

#[test]
fn failsafe_pod_reality_of_another_spec_is_written_anew_and_nothing_restarts() {
    let site = Site::new();
    site.create(&site.spec());
    let before = site.ready();
    let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
    let mut reality = joined.reality.unwrap().value;
    let told = reality.status.observed_spec;
    reality.status.observed_spec = None;
    reality.status.observed_generation = Some(0);
    let value = serde_json::to_vec(&reality).unwrap();
    let put = Transaction::new().put(key().store_key(Tree::Reality), value);
    site.rig.block_on(site.store.commit(put)).unwrap();
    site.wait("its own report", || {
        let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
        (joined.reality?.value.status.observed_spec == told).then_some(())
    });
    assert_eq!(site.ready().status.detail.pids, before.status.detail.pids);
    assert!(is_alive(before.status.detail.pids["web"]));
}

#[test]
fn failsafe_pod_health_lost_is_asked_again_and_never_taken_for_healthy() {
    let mut site = Site::new();
    let mut spec = site.spec();
    spec["health"] = json!({
        "http": {"port": "http", "path": "/_status"}, "interval": "50ms", "timeout": "10s",
    });
    site.create(&spec);
    let pid = site.ready().status.detail.pids["web"];
    site.stop();
    let name = platctrl_agent::PodName::new("default", "hello").unwrap();
    let paths = site.rig.layout().pod(&name);
    let text = std::fs::read(paths.record()).unwrap();
    let mut record: Value = serde_json::from_slice(&text).unwrap();
    let lost = record.as_object_mut().unwrap().remove("health");
    assert!(
        lost.is_some_and(|lost| !lost.is_null()),
        "the fault happened"
    );
    std::fs::write(paths.record(), serde_json::to_vec(&record).unwrap()).unwrap();
    let unhealthy = paths.data().join("unhealthy");
    std::fs::write(&unhealthy, "").unwrap();
    site.start();
    // What the agent says first about it is not that it is healthy.
    let first = site.wait("a word", || {
        let reports = site.handle.as_ref()?.reports();
        reports
            .into_iter()
            .find(|report| !report.status.pids.is_empty())
    });
    assert!(!first.is_ready(), "{first:?}");
    site.wait("an answer", || {
        let pod = site.pod()?;
        (pod.status.detail.reason == "Unhealthy").then_some(())
    });
    std::fs::remove_file(&unhealthy).unwrap();
    assert_eq!(site.ready().status.detail.pids["web"], pid);
    assert!(is_alive(pid));
}

#[test]
fn failsafe_node_intent_change_touches_no_pod() {
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let mut node = site
        .rig
        .block_on(site.client.get::<Node>(&node_key()))
        .unwrap();
    node.metadata.labels.insert("az".into(), "east".into());
    node.spec.unschedulable = true;
    site.rig.block_on(site.client.update(&node)).unwrap();
    site.wait("its report", || {
        let node = site
            .rig
            .block_on(site.client.get::<Node>(&node_key()))
            .ok()?;
        (node.status.observed_generation == Some(2)).then_some(())
    });
    assert_eq!(site.ready().status.detail.pids["web"], pid);
    assert!(is_alive(pid));
}

#[test]
fn failsafe_node_intent_tombstone_alone_stops_no_pod() {
    // Retiring is a procedure of the controllers: the order to the agent is a newer incarnation.
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let (key, options) = (node_key(), DeleteOptions::default());
    let deleted = site.client.delete(&key, &options);
    site.rig.block_on(deleted).unwrap();
    // Whatever comes later has been heard of when it is done.
    site.create_named_as("later", &site.spec());
    site.wait("the later one", || site.pods_ready("later"));
    assert!(site.node().is_none_or(|node| node.metadata.is_deleted()));
    assert!(is_alive(pid));
}

#[test]
fn failsafe_node_beat_and_events_lost_come_again_and_nothing_else_happens() {
    let site = Site::with(hasty());
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let beat = Key::new(format!("x/beat/{NODE}")).unwrap();
    let there = |site: &Site| {
        let snapshot = site
            .rig
            .block_on(site.store.get(std::slice::from_ref(&beat)));
        snapshot.unwrap().records[0].is_some()
    };
    site.wait("a beat", || there(&site).then_some(()));
    let mut transaction = Transaction::new().delete(beat.clone());
    for slot in 0..8 {
        let event = format!("x/event/{NODE}/{slot:03}");
        transaction = transaction.delete(Key::new(event).unwrap());
    }
    site.rig.block_on(site.store.commit(transaction)).unwrap();
    site.wait("another beat", || there(&site).then_some(()));
    assert_eq!(site.ready().status.detail.pids["web"], pid);
    assert!(is_alive(pid));
}
