//! The agent on a store: orders, reports, and what it does when records are lost.

use std::sync::Arc;

use platctrl_agent::{Agent, AgentConfig, AgentError, AgentHandle, watched_prefixes};
use platctrl_framework::cache::write_prefix_anchor;
use platctrl_framework::client::{Client, DeleteOptions};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Metadata, Object, ObjectKey, RawObject, Tree, identity};
use platctrl_framework::store::{MemoryStore, Store, Transaction};
use platctrl_kinds::{Node, NodeSpec, Pod, PodPhase};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, SOON, eventually, get, hasty, is_alive};

pub(crate) const NODE: &str = "node-under-test";

/// An agent at work on a store in memory.
pub(crate) struct Site {
    pub(crate) rig: Rig,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) client: Client,
    pub(crate) running: Option<(CancellationToken, JoinHandle<Result<(), AgentError>>)>,
    pub(crate) handle: Option<AgentHandle>,
}

pub(crate) fn key() -> ObjectKey {
    ObjectKey::on_node("platctrl.dev", "pods", NODE, "default", "hello").unwrap()
}

pub(crate) fn node_key() -> ObjectKey {
    ObjectKey::cluster("platctrl.dev", "nodes", NODE).unwrap()
}

pub(crate) async fn initialise(store: &Arc<dyn Store>, environment: &Environment) {
    identity::initialise(&**store, environment).await.unwrap();
    admit(store, environment).await;
}

async fn admit(store: &Arc<dyn Store>, environment: &Environment) {
    for prefix in watched_prefixes(NODE).unwrap() {
        write_prefix_anchor(&**store, &prefix).await.unwrap();
    }
    let client = Client::new(Arc::clone(store), environment.clone(), "test");
    let node = Object::<Node>::new(Metadata::named(NODE), NodeSpec::default());
    client.create(&node).await.unwrap();
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(Environment::system())
    }

    pub(crate) fn with(environment: Environment) -> Self {
        let store = Arc::new(MemoryStore::new(environment.clone()));
        Self::on(environment, store)
    }

    pub(crate) fn on(environment: Environment, store: Arc<dyn Store>) -> Self {
        Self::of(Rig::with(environment), store)
    }

    /// With directories that are there already.
    pub(crate) fn of(rig: Rig, store: Arc<dyn Store>) -> Self {
        let environment = rig.environment.clone();
        rig.block_on(initialise(&store, &environment));
        let client = Client::new(Arc::clone(&store), environment, "test");
        let mut site = Self {
            rig,
            store,
            client,
            running: None,
            handle: None,
        };
        site.start();
        site
    }

    pub(crate) fn start(&mut self) {
        let config = AgentConfig::new(self.rig.host_config(), Arc::clone(&self.store));
        let agent = self.rig.block_on(Agent::new(config)).unwrap();
        self.run(agent);
    }

    /// Lets an agent work.
    pub(crate) fn run(&mut self, agent: Agent) {
        self.handle = Some(agent.handle());
        let shutdown = CancellationToken::new();
        let task = self.rig.spawn(agent.run(shutdown.clone()));
        self.running = Some((shutdown, task));
    }

    pub(crate) fn stop(&mut self) {
        let (shutdown, task) = self.running.take().unwrap();
        shutdown.cancel();
        self.rig.block_on(task).unwrap().unwrap();
    }

    pub(crate) fn create(&self, spec: &Value) {
        let mut metadata = Metadata::named("hello");
        metadata.namespace = Some("default".into());
        let spec = serde_json::from_value(spec.clone()).unwrap();
        let pod = Object::<Pod>::new(metadata, spec);
        self.rig.block_on(self.client.create(&pod)).unwrap();
    }

    pub(crate) fn pod(&self) -> Option<Object<Pod>> {
        self.rig.block_on(self.client.get::<Pod>(&key())).ok()
    }

    /// The pod's reality as stored, whatever its intent.
    pub(crate) fn reality(&self) -> Option<RawObject> {
        let joined = self.rig.block_on(self.client.joined(&key())).ok()?;
        let reality = joined.reality?.value;
        let metadata = Metadata {
            uid: reality.metadata.uid,
            ..Metadata::named("hello")
        };
        Some(RawObject {
            api_version: reality.api_version,
            kind: reality.kind,
            metadata,
            spec: Value::Null,
            status: reality.status,
        })
    }

    /// Waits for it. Should it not come, the pod as it is then is shown.
    #[track_caller]
    pub(crate) fn wait<T>(&self, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + SOON;
        eventually(what, || {
            let found = poll();
            let late = found.is_none() && std::time::Instant::now() >= deadline;
            assert!(!late, "{what} did not come: {:#?}", self.pod());
            found
        })
    }

    pub(crate) fn ready(&self) -> Object<Pod> {
        self.wait("a ready pod", || {
            self.pod()
                .filter(|pod| pod.status.conditions.is_true("Ready"))
        })
    }

    pub(crate) fn held(&self, reason: &str) {
        self.wait(reason, || {
            let status = self.reality()?.status;
            status
                .conditions
                .get("Held")
                .filter(|held| held.reason == reason)
                .map(drop)
        });
    }

    /// Waits until somebody has recorded this about the pod.
    pub(crate) fn event(&self, reason: &str) {
        let prefix = platctrl_framework::store::Prefix::new(format!("x/event/{NODE}/")).unwrap();
        let request = platctrl_framework::store::ListRequest::new(prefix);
        self.wait(reason, || {
            let page = self.rig.block_on(self.store.list(&request)).ok()?;
            let text: Vec<_> = page
                .records
                .iter()
                .map(|it| String::from_utf8_lossy(&it.value).into_owned())
                .collect();
            text.iter()
                .any(|it| it.contains(&format!("\"reason\":\"{reason}\"")))
                .then_some(())
        });
    }

    pub(crate) fn lose(&self, trees: &[Tree]) {
        let transaction = trees.iter().fold(Transaction::new(), |transaction, tree| {
            transaction.delete(key().store_key(*tree))
        });
        self.rig.block_on(self.store.commit(transaction)).unwrap();
    }

    pub(crate) fn spec(&self) -> Value {
        self.rig.spec(&self.rig.app("one"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((shutdown, task)) = self.running.take() {
            shutdown.cancel();
            let _ = self.rig.block_on(task);
        }
    }
}

#[test]
fn a_pod_in_the_store_runs_and_is_reported() {
    let site = Site::new();
    site.create(&site.spec());
    let pod = site.ready();
    assert_eq!(pod.status.phase.as_str(), "Running");
    assert_eq!(pod.status.detail.node_name, NODE);
    assert_eq!(get(pod.status.detail.ports["http"], "/version"), "one");
    site.event("Started");
    let node = site
        .rig
        .block_on(site.client.get::<Node>(&node_key()))
        .unwrap();
    assert!(node.status.conditions.is_true("Ready"));
    assert_eq!(node.status.detail.attributes["attr.os"], "linux");
}

#[test]
fn failsafe_pod_intent_tombstone_uninstalls_and_is_told() {
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.rig
        .block_on(site.client.delete(&key(), &DeleteOptions::default()))
        .unwrap();
    site.wait("the end", || {
        (site.reality()?.status.phase == PodPhase::Gone.into()).then_some(())
    });
    assert!(!is_alive(pid));
    assert_eq!(site.rig.layout().pods().unwrap(), []);
}

#[test]
fn failsafe_pod_intent_lost_keeps_running_and_is_reported() {
    let site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.lose(&[Tree::Intent]);
    site.held("Unexplained");
    assert!(is_alive(pid));
}

#[test]
fn failsafe_pod_reality_lost_is_published_again_and_nothing_restarts() {
    let site = Site::new();
    site.create(&site.spec());
    let before = site.ready();
    site.lose(&[Tree::Reality]);
    let after = site.ready();
    assert_eq!(after.status.detail.pids, before.status.detail.pids);
    assert!(is_alive(before.status.detail.pids["web"]));
}

#[test]
fn failsafe_pod_intent_all_vanish_stops_nothing_also_after_a_restart() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.lose(&[Tree::Intent, Tree::Reality]);
    site.event("Unexplained");
    assert!(is_alive(pid));
    site.stop();
    site.start();
    site.wait("the agent", || {
        let node = site
            .rig
            .block_on(site.client.get::<Node>(&node_key()))
            .ok()?;
        (node.status.detail.pods == 1).then_some(())
    });
    assert!(is_alive(pid));
}

#[test]
fn failsafe_root_another_store_is_refused_and_pods_keep_running() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.stop();
    let environment = Environment::system();
    let other: Arc<dyn Store> = Arc::new(MemoryStore::new(environment.clone()));
    site.rig.block_on(initialise(&other, &environment));
    let first = std::mem::replace(&mut site.store, Arc::clone(&other));
    site.start();
    let why = site.wait("a refusal", || site.handle.as_ref()?.waits_for());
    assert!(why.contains("belongs to the store"), "{why}");
    let beat = platctrl_framework::store::Key::new(format!("x/beat/{NODE}")).unwrap();
    let snapshot = site.rig.block_on(other.get(&[beat])).unwrap();
    assert_eq!(snapshot.records, [None]);
    assert!(is_alive(pid));
    site.stop();
    site.store = first;
    site.start();
    assert_eq!(site.ready().status.detail.pids["web"], pid);
}

#[test]
fn an_unknown_field_is_refused_and_the_running_version_stays() {
    let site = Site::new();
    let mut spec = site.spec();
    site.create(&spec);
    let before = site.ready();
    spec["gpu"] = 1.into();
    let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
    let mut object = joined.object().unwrap();
    object.spec = spec;
    site.rig
        .block_on(site.client.update_raw(&key(), object, None))
        .unwrap();
    site.held("Unsupported");
    let reality = site.reality().unwrap();
    let message = reality.status.detail["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("Unsupported(spec.gpu)"), "{message}");
    assert!(is_alive(before.status.detail.pids["web"]));
}

#[test]
fn failsafe_node_incarnation_newer_stops_what_was_started_under_the_old_one() {
    let mut site = Site::new();
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    site.stop();
    let joined = site.rig.block_on(site.client.joined(&node_key())).unwrap();
    let mut node = joined.object().unwrap();
    node.spec["incarnation"] = 1.into();
    site.rig
        .block_on(site.client.update_raw(&node_key(), node, None))
        .unwrap();
    site.lose(&[Tree::Intent, Tree::Reality]);
    assert!(is_alive(pid));
    site.start();
    site.wait("the end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn what_ended_with_its_node_is_told_and_never_begun_again() {
    let mut site = Site::with(hasty());
    let script = "#!/bin/sh\necho $$ >> \"$HOME/starts\"\nexec sleep 1000\n";
    let mut spec = site.rig.script("sleeper", script);
    spec["keepData"] = true.into();
    site.create(&spec);
    let pid = site.ready().status.detail.pids["web"];
    let starts = site.rig.layout().pod(&crate::rig::name()).data();
    let starts = || crate::updates::lines(&starts.join("starts")).len();
    site.wait("its start", || (starts() == 1).then_some(()));
    let joined = site.rig.block_on(site.client.joined(&node_key())).unwrap();
    let mut node = joined.object().unwrap();
    node.spec["incarnation"] = 1.into();
    site.rig
        .block_on(site.client.update_raw(&node_key(), node, None))
        .unwrap();
    // Nobody has ordered the end of the pod itself: its intent is as it was.
    let is_gone = |site: &Site| {
        let pod = site.pod()?;
        assert!(!pod.metadata.is_deleted());
        let detail = &pod.status.detail;
        (pod.status.phase == PodPhase::Gone.into() && detail.reason == "NodeRetired").then_some(())
    };
    site.wait("its end is told", || is_gone(&site));
    let incarnation = |site: &Site| {
        let node = site.rig.block_on(site.client.get::<Node>(&node_key()));
        node.ok().map(|node| node.status.detail.incarnation)
    };
    site.wait("the new incarnation", || {
        (incarnation(&site) == Some(1)).then_some(())
    });
    assert!(!is_alive(pid));

    // What remembers it is the disk, and the store.
    for forgets in [false, true] {
        site.stop();
        if forgets {
            let memory = site.rig.layout().state().join("agent.json");
            std::fs::remove_file(memory).unwrap();
        } else {
            site.lose(&[Tree::Reality]);
        }
        site.start();
        site.wait("its end is told", || is_gone(&site));
        // A pod that comes after it is begun, so that one would have been, too.
        let next = format!("next-{forgets}");
        let mut metadata = Metadata::named(&next);
        metadata.namespace = Some("default".into());
        let pod = Object::<Pod>::new(metadata, serde_json::from_value(spec.clone()).unwrap());
        site.rig.block_on(site.client.create(&pod)).unwrap();
        let handle = site.handle.clone().unwrap();
        site.wait("the next one", || {
            let reports = handle.reports();
            let ready = reports.iter().find(|it| it.name.name() == next)?;
            ready.is_ready().then_some(())
        });
        assert!(is_gone(&site).is_some());
        assert_eq!(starts(), 1, "it was not begun again");
    }
}

#[test]
fn the_second_agent_of_a_name_takes_no_orders_and_the_first_goes_on() {
    let site = Site::with(hasty());
    site.create(&site.spec());
    let before = site.ready();
    // Another machine, with a data directory of its own, on the same store and name: it looks
    // twice, and sees the first agent's next beat in between.
    let other = Rig::with(hasty());
    let config = AgentConfig::new(other.host_config(), Arc::clone(&site.store));
    let agent = other.block_on(Agent::new(config)).unwrap();
    let result = other.block_on(agent.run(CancellationToken::new()));
    assert!(
        matches!(result, Err(AgentError::NameInUse { .. })),
        "{result:?}"
    );
    assert_eq!(site.ready().status.detail.pids, before.status.detail.pids);
}

#[test]
fn a_pod_keeps_running_while_the_store_is_away_and_its_report_catches_up() {
    let environment = Environment::system();
    let memory = MemoryStore::new(environment.clone());
    let site = Site::on(environment, Arc::new(memory.clone()));
    site.create(&site.spec());
    let before = site.ready();
    let pid = before.status.detail.pids["web"];
    memory.faults().set_away(true);
    let away = site.rig.block_on(site.store.get(&[]));
    assert!(away.is_err(), "the fault happened");
    crate::rig::kill(pid);
    let port = before.status.detail.ports["http"];
    site.wait("the program's return", || (!is_alive(pid)).then_some(()));
    assert_eq!(get(port, "/version"), "one");
    memory.faults().set_away(false);
    let after = site.wait("the report", || {
        site.pod()
            .filter(|pod| pod.status.detail.restarts == 1 && pod.status.conditions.is_true("Ready"))
    });
    assert_ne!(after.status.detail.pids["web"], pid);
}

/// Waits until the agent has noticed that its sources cannot be believed.
pub(crate) fn distrusted(site: &Site, why: &str) {
    site.wait("distrust", || {
        let status = site.handle.as_ref()?.runtime().status()?;
        let failing: Vec<_> = status
            .sources
            .iter()
            .filter_map(|it| it.failing.clone())
            .collect();
        let all = failing.len() == 3 && failing.iter().all(|it| format!("{it:?}").contains(why));
        all.then_some(())
    });
}

#[test]
fn failsafe_root_all_vanish_stops_nothing() {
    let environment = Environment::system();
    let memory = MemoryStore::new(environment.clone());
    let site = Site::on(environment, Arc::new(memory.clone()));
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    memory.faults().come_back_empty();
    assert_eq!(memory.dump(), [], "the fault happened");
    distrusted(&site, "");
    assert!(is_alive(pid));
    assert!(site.handle.as_ref().unwrap().reports()[0].is_ready());
}

#[test]
fn failsafe_pod_intent_refused_read_that_looks_empty_stops_nothing() {
    let environment = Environment::system();
    let memory = MemoryStore::new(environment.clone());
    let site = Site::on(environment, Arc::new(memory.clone()));
    site.create(&site.spec());
    let pid = site.ready().status.detail.pids["web"];
    for prefix in watched_prefixes(NODE).unwrap() {
        memory.faults().hide(prefix);
    }
    memory.faults().break_watches();
    distrusted(&site, "NoAnchor");
    assert!(is_alive(pid));
}

#[test]
fn a_hundred_pods_come_up_and_one_that_is_stuck_delays_none() {
    let site = Site::new();
    let script = Some("#!/bin/sh\nexec sleep 1000\n");
    let mut spec = site
        .rig
        .spec(&site.rig.pack("sleeper", &[("bin/launch", script)]));
    spec["ports"] = serde_json::json!({});
    let mut stuck = spec.clone();
    stuck["launchables"]["web"]["location"] = "file:/nowhere/a.tar.gz".into();
    stuck["launchables"]["web"]["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    let begun = std::time::Instant::now();
    for number in 0..101 {
        let mut metadata = Metadata::named(format!("pod-{number}"));
        metadata.namespace = Some("default".into());
        let spec = if number == 0 { &stuck } else { &spec };
        let pod = Object::<Pod>::new(metadata, serde_json::from_value(spec.clone()).unwrap());
        site.rig.block_on(site.client.create(&pod)).unwrap();
    }
    let handle = site.handle.as_ref().unwrap();
    site.wait("a hundred pods", || {
        let ready = handle
            .reports()
            .iter()
            .filter(|report| report.is_ready())
            .count();
        (ready == 100).then_some(())
    });
    println!("100 pods ready after {:?}", begun.elapsed());
    site.wait("the stuck one's reason", || {
        let reports = handle.reports();
        let stuck = reports
            .iter()
            .find(|report| report.name.name() == "pod-0")?;
        (stuck.status.reason == "LocationNotAllowed").then_some(())
    });
}
