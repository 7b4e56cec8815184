//! The node's own record: what the machine is and how it fares, orders in it, and what may be
//! begun.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_agent::{Agent, AgentConfig, BootGates};
use platctrl_framework::environment::{Clock, Environment};
use platctrl_framework::model::{Metadata, Object, ObjectKey, Tree};
use platctrl_framework::store::{MemoryStore, Store, Transaction};
use platctrl_kinds::{Node, Pod};

use crate::rig::{SOON, is_alive, kill};
use crate::store::{NODE, Site, initialise, key, node_key};

impl Site {
    pub(crate) fn node(&self) -> Option<Object<Node>> {
        self.rig.block_on(self.client.get::<Node>(&node_key())).ok()
    }

    pub(crate) fn pods_ready(&self, name: &str) -> Option<Object<Pod>> {
        let key = ObjectKey::on_node("platctrl.dev", "pods", NODE, "default", name).unwrap();
        let pod = self.rig.block_on(self.client.get::<Pod>(&key)).ok()?;
        pod.status.conditions.is_true("Ready").then_some(pod)
    }

    fn create_named(&self, name: &str) {
        self.create_named_as(name, &self.spec());
    }

    pub(crate) fn create_named_as(&self, name: &str, spec: &serde_json::Value) {
        let mut metadata = Metadata::named(name);
        metadata.namespace = Some("default".into());
        let spec = serde_json::from_value(spec.clone()).unwrap();
        let pod = Object::<Pod>::new(metadata, spec);
        self.rig.block_on(self.client.create(&pod)).unwrap();
    }

    /// Starts the agent again, with gates.
    fn start_with(&mut self, gates: BootGates) {
        self.stop();
        let mut config = AgentConfig::new(self.rig.host_config(), Arc::clone(&self.store));
        config.gates = gates;
        let agent = self.rig.block_on(Agent::new(config)).unwrap();
        self.run(agent);
    }
}

#[test]
fn a_node_says_what_it_is_and_how_it_fares() {
    let site = Site::new();
    let node = site.wait("a report", || {
        site.node()
            .filter(|node| node.status.conditions.is_true("Ready"))
    });
    let attributes = &node.status.detail.attributes;
    for fact in [
        "attr.os",
        "attr.arch",
        "attr.kernel",
        "attr.cpus",
        "attr.memory",
        "attr.cgroup",
    ] {
        assert!(attributes.contains_key(fact), "{fact}: {attributes:?}");
    }
    for condition in ["DiskPressure", "MemoryPressure", "ClockSkew"] {
        assert!(
            node.status.conditions.get(condition).is_some(),
            "{condition}"
        );
    }
    assert_eq!(node.status.detail.agent_version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn an_order_in_the_nodes_record_is_heard_at_once() {
    // Without a watch it would be heard after a minute.
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let mut node = site.node().unwrap();
    node.spec.incarnation = 1;
    let begun = std::time::Instant::now();
    site.rig.block_on(site.client.update(&node)).unwrap();
    site.wait("the end", || (!is_alive(pid)).then_some(()));
    println!("heard and stopped after {:?}", begun.elapsed());
    site.wait("its report", || {
        (site.node()?.status.detail.incarnation == 1).then_some(())
    });
}

/// A clock on which no beat ever comes: what is heard is heard by a watch.
struct BeatsNever(std::time::Instant);

impl Clock for BeatsNever {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if duration >= Duration::from_secs(10) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(duration).await;
        })
    }
}

#[test]
fn an_order_in_a_record_that_is_older_than_the_stores_memory_is_heard_at_once() {
    let clock = Arc::new(BeatsNever(std::time::Instant::now()));
    let environment = Environment::seeded(clock, rand::random());
    let store = Arc::new(MemoryStore::new(environment.clone()));
    let mut site = Site::on(environment, Arc::clone(&store) as _);
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.stop();
    let intent = node_key().store_key(Tree::Intent);
    let read = site.rig.block_on(store.get(&[intent])).unwrap();
    let written = read.records[0].as_ref().unwrap().modified;
    assert!(written < read.revision);
    store.faults().compact(read.revision);
    site.start();
    site.wait("an agent that takes orders", || {
        let handle = site.handle.as_ref()?;
        handle.waits_for().is_none().then_some(())
    });
    let mut node = site.node().unwrap();
    node.spec.incarnation = 1;
    site.rig.block_on(site.client.update(&node)).unwrap();
    site.wait("the end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn nothing_is_begun_before_the_required_file_is_there_and_what_runs_goes_on() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let file = site.rig.artifacts().join("may-run");
    let gates = BootGates {
        require_file: Some(file.clone()),
        ..BootGates::default()
    };
    site.start_with(gates);
    site.create_named("later");
    site.event("NotYet");
    let waits = site.wait("its status", || site.waits("later", "NotYet"));
    assert!(waits.contains("may-run"), "{waits}");
    assert!(is_alive(pid));
    assert!(site.pods_ready("later").is_none());
    std::fs::write(&file, "").unwrap();
    site.wait("the other pod", || site.pods_ready("later"));
    assert_eq!(site.ready().status.detail.pids["web"], pid);
}

#[test]
fn an_update_waits_at_a_gate_and_the_pod_that_runs_says_so() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let file = site.rig.artifacts().join("may-run");
    site.start_with(BootGates {
        require_file: Some(file.clone()),
        ..BootGates::default()
    });
    let mut pod = site.ready();
    assert!(
        pod.status.conditions.get("Held").is_none(),
        "it is as wanted"
    );
    pod.spec.config = serde_json::json!({"new": 1});
    site.rig.block_on(site.client.update(&pod)).unwrap();
    site.held("NotYet");
    // What is served says that nobody knows whether the wanted version is ready.
    let told = site.reality().unwrap().status;
    assert!(told.conditions.is_true("Ready"));
    assert_eq!(told.observed_generation, Some(1));
    assert_eq!(told.detail["pids"]["web"], pid);
    std::fs::write(&file, "").unwrap();
    site.wait("the new version", || {
        let status = site.pod()?.status;
        let is = status.observed_generation == Some(2) && status.conditions.is_true("Ready");
        (is && status.conditions.get("Held").is_none()).then_some(())
    });
    assert!(!is_alive(pid));
}

#[test]
fn after_a_boot_only_pods_on_the_list_are_begun_from_what_was_wanted_last() {
    let environment = Environment::system();
    let memory = MemoryStore::new(environment.clone());
    let mut site = Site::on(environment, Arc::new(memory.clone()));
    site.create(&site.spec());
    site.create_named("listed");
    let first = site.ready().status.detail.pids["web"];
    let second = site.wait("the other", || site.pods_ready("listed"));
    let second = second.status.detail.pids["web"];
    site.stop();
    // The machine goes down: supervisors and programs are gone, and the store is away afterwards.
    for name in ["hello", "listed"] {
        let name = platctrl_agent::PodName::new("default", name).unwrap();
        let paths = site.rig.layout().pod(&name);
        let state = platctrl_shim_lib::read_state(&paths.shim("web"))
            .unwrap()
            .unwrap();
        kill(state.shim.unwrap().pid);
        kill(state.child.unwrap().pid);
    }
    for pid in [first, second] {
        site.wait("the end", || (!is_alive(pid)).then_some(()));
    }
    memory.faults().set_away(true);
    let list = site.rig.artifacts().join("list");
    std::fs::write(&list, "default/listed\n").unwrap();
    let gates = BootGates {
        whitelist: Some(list.clone()),
        ..BootGates::default()
    };
    let mut config = AgentConfig::new(site.rig.host_config(), Arc::clone(&site.store));
    config.gates = gates;
    let agent = site.rig.block_on(Agent::new(config)).unwrap();
    site.run(agent);
    let ready = |site: &Site, name: &str| {
        let reports = site.handle.as_ref().unwrap().reports();
        let mut reports = reports.into_iter();
        reports.any(|report| report.name.name() == name && report.is_ready())
    };
    site.wait("the pod on the list", || {
        ready(&site, "listed").then_some(())
    });
    assert!(!ready(&site, "hello"));
    std::fs::remove_file(&list).unwrap();
    site.wait("the other pod", || ready(&site, "hello").then_some(()));
}

#[test]
fn another_agent_that_takes_the_record_is_noticed_by_the_next_beat() {
    let mut site = Site::with(crate::rig::hasty());
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    // As another agent on another machine would write it.
    let key = node_key().store_key(Tree::Reality);
    let joined = site.rig.block_on(site.client.joined(&node_key())).unwrap();
    let mut reality = joined.reality.unwrap().value;
    reality.metadata.claim = Some("another".into());
    let value = serde_json::to_vec(&reality).unwrap();
    let put = Transaction::new().put(key, value);
    site.rig.block_on(site.store.commit(put)).unwrap();
    let (_, task) = site.running.take().unwrap();
    let ended = site
        .rig
        .block_on(async { tokio::time::timeout(SOON, task).await });
    let ended = ended.expect("it notices").unwrap();
    assert!(
        matches!(ended, Err(platctrl_agent::AgentError::NameInUse { .. })),
        "{ended:?}"
    );
    assert!(is_alive(pid));
}

#[test]
fn failsafe_pod_intent_of_another_node_is_nobodys_here() {
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    // A node whose name begins like this one's.
    let other = format!("{NODE}2");
    let mut spec = site.spec();
    spec["nodeName"] = other.clone().into();
    let mut metadata = Metadata::named("stranger");
    metadata.namespace = Some("default".into());
    let pod = Object::<Pod>::new(metadata, serde_json::from_value(spec).unwrap());
    site.rig.block_on(site.client.create(&pod)).unwrap();
    // One that comes later has come when it is there.
    site.create_named("later");
    site.wait("the later one", || site.pods_ready("later"));
    let pods = site.rig.layout().pods().unwrap();
    assert!(pods.iter().all(|pod| pod.name() != "stranger"), "{pods:?}");
    assert!(is_alive(pid));
}

#[test]
fn failsafe_pod_intent_copied_from_another_node_is_not_carried_out() {
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    // What runs is given another node's name, and a record that is another node's is put here.
    let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
    let mut intent = joined.intent.unwrap().value;
    intent.metadata.generation += 1;
    intent.spec["nodeName"] = "web2".into();
    intent.spec["config"] = serde_json::json!({"new": 1});
    let changed = serde_json::to_vec(&intent).unwrap();
    intent.metadata.name = "copied".into();
    intent.metadata.uid = "another".into();
    let copied = serde_json::to_vec(&intent).unwrap();
    let there = ObjectKey::on_node("platctrl.dev", "pods", NODE, "default", "copied").unwrap();
    let put = Transaction::new()
        .put(key().store_key(Tree::Intent), changed)
        .put(there.store_key(Tree::Intent), copied);
    site.rig.block_on(site.store.commit(put)).unwrap();
    site.held("Invalid");
    let waits = site.wait("its status", || site.waits("copied", "Invalid"));
    assert!(waits.contains("spec.nodeName says web2"), "{waits}");
    assert!(is_alive(pid));
    let report = site.handle.as_ref().unwrap().reports().remove(0);
    assert!(report.is_ready() && report.status.pids["web"] == pid);
    let pods = site.rig.layout().pods().unwrap();
    assert!(pods.iter().all(|pod| pod.name() != "copied"), "{pods:?}");
}

#[test]
fn failsafe_root_away_for_long_and_back_changes_nothing() {
    let environment = crate::rig::hasty();
    let memory = MemoryStore::new(environment.clone());
    let site = Site::on(environment, Arc::new(memory.clone()));
    site.create(&site.spec());
    let before = site.ready();
    memory.faults().set_away(true);
    assert!(
        site.rig.block_on(site.store.get(&[])).is_err(),
        "the fault happened"
    );
    // Minutes pass on this clock, in which nothing is heard of the store.
    let clock = &site.rig.environment;
    let begun = clock.monotonic();
    site.wait("some time", || {
        let passed = clock.monotonic().saturating_sub(begun);
        (passed > std::time::Duration::from_secs(300)).then_some(())
    });
    assert!(site.handle.as_ref().unwrap().reports()[0].is_ready());
    memory.faults().set_away(false);
    site.create_named("later");
    site.wait("the agent's return", || site.pods_ready("later"));
    assert_eq!(site.ready().status.detail.pids, before.status.detail.pids);
}

#[test]
fn failsafe_node_intent_lost_keeps_pods_running() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    let lost = Transaction::new().delete(node_key().store_key(Tree::Intent));
    site.rig.block_on(site.store.commit(lost)).unwrap();
    assert!(site.node().is_none(), "the fault happened");
    site.stop();
    site.start();
    let why = site.wait("a reason", || site.handle.as_ref()?.waits_for());
    assert!(why.contains("not admitted"), "{why}");
    assert!(is_alive(pid));
    assert!(
        site.handle
            .as_ref()
            .unwrap()
            .reports()
            .iter()
            .all(platctrl_agent::Report::is_ready)
    );
}

#[test]
fn failsafe_pod_intent_that_went_back_is_held_also_by_an_agent_that_was_restarted() {
    let mut site = Site::new();
    site.create(&site.spec());
    site.ready();
    let old = site.rig.block_on(site.client.joined(&key())).unwrap();
    let old = serde_json::to_vec(&old.intent.unwrap().value).unwrap();
    let mut pod = site.pod().unwrap();
    pod.spec.config = serde_json::json!({"new": 1});
    site.rig.block_on(site.client.update(&pod)).unwrap();
    let newer = site.wait("the newer version", || {
        let pod = site.pod()?;
        let is =
            pod.status.conditions.is_true("Ready") && pod.status.observed_generation == Some(2);
        is.then_some(pod)
    });
    site.stop();
    // A backup was restored while the agent was away: only its own memory knows better.
    let put = Transaction::new().put(key().store_key(Tree::Intent), old);
    site.rig.block_on(site.store.commit(put)).unwrap();
    site.start();
    site.held("GenerationWentBack");
    assert!(is_alive(newer.status.detail.pids["web"]));
}

#[test]
fn failsafe_root_empty_under_the_same_address_is_refused_by_an_agent_that_boots() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.stop();
    let environment = Environment::system();
    site.store = Arc::new(MemoryStore::new(environment.clone())) as Arc<dyn Store>;
    site.start();
    let why = site.wait("a reason", || site.handle.as_ref()?.waits_for());
    assert!(
        why.contains("initialise") || why.contains("store init"),
        "{why}"
    );
    assert!(is_alive(pid));
    // Even when somebody makes it a store in all haste.
    site.rig.block_on(initialise(&site.store, &environment));
    site.wait("a refusal", || {
        let why = site.handle.as_ref()?.waits_for()?;
        why.contains("belongs to the store").then_some(())
    });
    assert!(is_alive(pid));
}
