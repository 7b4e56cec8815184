//! What is made of nodes that fall silent, are drained, or are retired.

use std::sync::Arc;
use std::time::Duration;

use platctrl_controllers::node_lifecycle::{self, Limits};
use platctrl_framework::client::Client;
use platctrl_framework::controller::{Runtime, RuntimeHandle};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{
    ConditionStatus, Object, ObjectKey, Resource as _, Status, identity::initialise,
};
use platctrl_framework::store::{Key, MemoryStore, Store, Transaction};
use platctrl_kinds::{Node, Pod, PodPhase, PodSpec, PodStatus};
use tokio::task::JoinHandle;

use crate::world::{named, until};

mod takeover;
mod told;

/// Nodes with agents that beat until they are told not to.
pub(crate) struct Fleet {
    store: MemoryStore,
    pub(crate) client: Client,
    _handle: RuntimeHandle,
    runtime: JoinHandle<()>,
    agents: Vec<JoinHandle<()>>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.runtime.abort();
        self.agents.iter().for_each(JoinHandle::abort);
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::cluster(Node::GROUP, Node::PLURAL, name).unwrap()
}

/// A process that judges nodes.
fn observer(store: &MemoryStore, limits: Limits) -> (RuntimeHandle, JoinHandle<()>) {
    let (shared, environment): (Arc<dyn Store>, _) =
        (Arc::new(store.clone()), Environment::system());
    let lifecycle = node_lifecycle::controller(shared.clone(), environment.clone(), limits);
    let runtime = Runtime::new(shared, environment)
        .controller(lifecycle)
        .kind::<Pod>()
        .kind::<platctrl_kinds::ReplicationController>()
        .reap();
    let handle = runtime.handle();
    let running = tokio::spawn(async move { runtime.run().await.unwrap() });
    (handle, running)
}

impl Fleet {
    pub(crate) async fn of(nodes: usize) -> Self {
        Self::with(nodes, Limits::default()).await
    }

    async fn with(nodes: usize, limits: Limits) -> Self {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        initialise(&store, &environment).await.unwrap();
        let client = Client::new(Arc::new(store.clone()), environment.clone(), "test");
        for number in 1..=nodes {
            let node = platctrl_controllers::testing::node(&format!("n{number}"));
            client.create(&node).await.unwrap();
        }
        let (handle, runtime) = observer(&store, limits);
        let mut fleet = Self {
            store,
            client,
            _handle: handle,
            runtime,
            agents: Vec::new(),
        };
        for number in 1..=nodes {
            fleet.beats(&format!("n{number}"));
        }
        until("all are heard of", || async {
            fleet.says("n1", "Alive").await == Some(ConditionStatus::True)
                && fleet.says(&format!("n{nodes}"), "Alive").await == Some(ConditionStatus::True)
        })
        .await;
        fleet
    }

    /// An agent whose clock is an hour slow.
    fn beats(&mut self, node: &str) {
        let (store, node) = (self.store.clone(), node.to_owned());
        self.agents.push(tokio::spawn(async move {
            for count in 0_u64.. {
                let beat = format!(r#"{{"count":{count},"at":"2000-01-01T00:00:00Z"}}"#);
                let beat_key = Key::new(format!("x/beat/{node}")).unwrap();
                store
                    .commit(Transaction::new().put(beat_key, beat))
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        }));
    }

    async fn node(&self, name: &str) -> Object<Node> {
        self.client.get(&key(name)).await.unwrap()
    }

    async fn says(&self, name: &str, condition: &str) -> Option<ConditionStatus> {
        let node = self.node(name).await;
        node.status.conditions.get(condition).map(|it| it.status)
    }
}

#[tokio::test(start_paused = true)]
async fn failsafe_node_heartbeat_lost_one() {
    let fleet = Fleet::of(5).await;
    fleet.agents[0].abort();
    let silent = tokio::time::Instant::now();
    until("it is not known how it is", || async {
        fleet.says("n1", "Alive").await == Some(ConditionStatus::Unknown)
    })
    .await;
    assert!(
        silent.elapsed() >= Duration::from_secs(30),
        "{:?}",
        silent.elapsed()
    );
    assert_eq!(fleet.says("n1", "Lost").await, Some(ConditionStatus::False));
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_eq!(fleet.says("n1", "Lost").await, Some(ConditionStatus::False));
    until("it is lost", || async {
        fleet.says("n1", "Lost").await == Some(ConditionStatus::True)
    })
    .await;
    assert!(
        silent.elapsed() >= Duration::from_secs(290),
        "{:?}",
        silent.elapsed()
    );
    assert_eq!(fleet.says("n2", "Alive").await, Some(ConditionStatus::True));
    // Back, whatever its clock says.
    let mut fleet = fleet;
    fleet.beats("n1");
    until("it is alive again", || async {
        fleet.says("n1", "Alive").await == Some(ConditionStatus::True)
            && fleet.says("n1", "Lost").await == Some(ConditionStatus::False)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_node_heartbeat_lost_by_many_gives_none_up() {
    let fleet = Fleet::of(6).await;
    for agent in &fleet.agents[..3] {
        agent.abort();
    }
    tokio::time::sleep(Duration::from_secs(1200)).await;
    for node in ["n1", "n2", "n3"] {
        let node = fleet.node(node).await;
        let alive = node.status.conditions.get("Alive").unwrap();
        assert_eq!(alive.status, ConditionStatus::Unknown);
        assert!(
            alive.message.contains("3 of 6 nodes are silent"),
            "{}",
            alive.message
        );
        assert!(!node.status.conditions.is_true("Lost"));
    }
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_retired_node_are_gone_once_it_is_silent() {
    let fleet = Fleet::of(5).await;
    let pod = fleet.bare_pod("web-1").await;
    fleet.retire("n1").await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(
        fleet.is_wanted(&pod).await,
        "its agent is heard of: it ends its pods itself"
    );
    fleet.agents[0].abort();
    until("the pod is removed", || async {
        !fleet.is_there(&pod).await
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_says_has_ended_with_its_node_gets_its_tombstone() {
    let fleet = Fleet::of(5).await;
    let pod = fleet.bare_pod("web-1").await;
    fleet.retire("n1").await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(fleet.is_wanted(&pod).await);
    fleet
        .report(&pod, |status| status.phase = PodPhase::Gone.into())
        .await;
    until("its records are removed", || async {
        !fleet.is_there(&pod).await
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_as_its_node_is_given_up_is_not_overruled() {
    let mut fleet = Fleet::of(5).await;
    let pod = fleet.bare_pod("web-1").await;
    fleet.agents[0].abort();
    until("it is silent", || async {
        fleet.says("n1", "Alive").await == Some(ConditionStatus::Unknown)
    })
    .await;
    // Between two looks at the beats, and none is due before the node is looked at.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    let before = tokio::time::Instant::now();
    let beat = Transaction::new().put(Key::new("x/beat/n1").unwrap(), "back");
    fleet.store.commit(beat).await.unwrap();
    fleet.retire("n1").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(before.elapsed(), Duration::from_millis(500));
    assert_eq!(
        fleet.says("n1", "Alive").await,
        Some(ConditionStatus::Unknown),
        "nobody has heard that beat yet"
    );
    fleet.beats("n1");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(
        fleet.is_wanted(&pod).await,
        "it may have begun with it again, and ends it itself"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_drained_says_so() {
    let fleet = Fleet::of(1).await;
    let mut node = fleet.node("n1").await;
    (node.spec.drain, node.spec.unschedulable) = (true, true);
    fleet.client.update(&node).await.unwrap();
    until("it is drained", || async {
        let node = fleet.node("n1").await;
        let draining = node.status.conditions.get("Draining");
        draining.is_some_and(|it| it.status == ConditionStatus::True && it.reason == "Drained")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_deleted_leaves_nothing_behind() {
    let fleet = Fleet::of(2).await;
    let options = platctrl_framework::client::DeleteOptions::default();
    fleet.client.delete(&key("n2"), &options).await.unwrap();
    until("all records of it are gone", || async {
        let joined = fleet.client.joined(&key("n2")).await.unwrap();
        joined.intent.is_none() && joined.parts.is_empty()
    })
    .await;
}

impl Fleet {
    async fn reason(&self, name: &str, condition: &str) -> String {
        let node = self.node(name).await;
        let condition = node.status.conditions.get(condition);
        condition.map(|it| it.reason.clone()).unwrap_or_default()
    }

    /// A pod that an agent has begun with, and that no controller keeps.
    async fn bare_pod(&self, name: &str) -> ObjectKey {
        let json = r#"{"nodeName": "n1", "launchables": {"web": {"location": "artifact:one"}}}"#;
        let spec: PodSpec = serde_json::from_str(json).unwrap();
        let metadata = named(name);
        let pod = Object::<Pod>::new(metadata, spec);
        self.client.create(&pod).await.unwrap();
        let key = pod.key().unwrap();
        let joined = self.client.joined(&key).await.unwrap();
        let mut batch = platctrl_framework::client::Batch::new();
        batch.claim(&joined, "agent").unwrap();
        self.client.commit(batch).await.unwrap();
        key
    }

    /// A person gives the node up.
    async fn retire(&self, name: &str) {
        let mut node = self.node(name).await;
        (node.spec.incarnation, node.spec.unschedulable) = (1, true);
        self.client.update(&node).await.unwrap();
    }

    /// There is a record of the pod.
    async fn is_there(&self, key: &ObjectKey) -> bool {
        let joined = self.client.joined(key).await.unwrap();
        joined.intent.is_some()
    }

    /// Nobody has ordered the pod's end.
    async fn is_wanted(&self, key: &ObjectKey) -> bool {
        let joined = self.client.joined(key).await.unwrap();
        let intent = joined.intent.map(|intent| intent.value);
        intent.is_some_and(|intent| intent.metadata.deletion.is_none())
    }

    /// The agent reports on a pod.
    pub(crate) async fn report(
        &self,
        key: &ObjectKey,
        change: impl FnOnce(&mut Status<PodStatus>),
    ) {
        let joined = self.client.joined(key).await.unwrap();
        let pod: Object<Pod> = joined.object().unwrap().typed().unwrap();
        let mut status = pod.status.clone();
        change(&mut status);
        let mut batch = platctrl_framework::client::Batch::new();
        batch.report_typed::<Pod>(&joined, &status).unwrap();
        self.client.commit(batch).await.unwrap();
    }

    pub(crate) async fn ask(&self, key: &ObjectKey, request: Option<&str>) {
        let request = request.map(|id| platctrl_kinds::RestartRequest {
            id: id.to_owned(),
            reason: String::new(),
        });
        self.report(key, |status| status.detail.restart_request = request)
            .await;
    }

    fn is_granted(&self, key: &ObjectKey) -> bool {
        let grant = key.store_key(platctrl_framework::model::Tree::Grant);
        self.store.peek(&grant).is_some()
    }
}

/// Says of one node that it answers.
#[derive(Debug)]
struct Seen(&'static str);

impl node_lifecycle::SecondOpinion for Seen {
    fn on<'a>(
        &'a self,
        node: &'a Object<Node>,
        _pods: &'a [Arc<Object<Pod>>],
    ) -> node_lifecycle::Answer<'a> {
        let seen = (node.metadata.name == self.0).then(|| "10.0.0.1:80 answers".to_owned());
        Box::pin(async move { seen })
    }
}

#[tokio::test(start_paused = true)]
async fn failsafe_node_heartbeat_lost_by_several_is_asked_about_elsewhere_first() {
    let mut limits = Limits::default();
    limits.second_opinion = Some(Arc::new(Seen("n1")));
    let fleet = Fleet::with(12, limits).await;
    fleet.agents[0].abort();
    fleet.agents[1].abort();
    tokio::time::sleep(Duration::from_secs(250)).await;
    until("the one that nobody sees is lost", || async {
        fleet.says("n2", "Lost").await == Some(ConditionStatus::True)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let node = fleet.node("n1").await;
    let held = node.status.conditions.get("Held").unwrap();
    assert_eq!(
        (held.status, &*held.reason),
        (ConditionStatus::True, "SecondOpinion")
    );
    assert!(
        held.message.contains("10.0.0.1:80 answers"),
        "{}",
        held.message
    );
    assert!(!node.status.conditions.is_true("Lost") && !node.status.conditions.is_true("Alive"));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_silent_alone_is_given_up_without_another_opinion() {
    let mut limits = Limits::default();
    limits.second_opinion = Some(Arc::new(Seen("n1")));
    let fleet = Fleet::with(5, limits).await;
    fleet.agents[0].abort();
    tokio::time::sleep(Duration::from_secs(250)).await;
    until("it is lost", || async {
        fleet.says("n1", "Lost").await == Some(ConditionStatus::True)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nodes_are_given_up_no_faster_than_the_rate_and_each_comes_to_its_turn() {
    let mut limits = Limits::default();
    (limits.rate.nodes, limits.rate.window) = (1, Duration::from_secs(900));
    let fleet = Fleet::with(12, limits).await;
    fleet.agents[0].abort();
    fleet.agents[1].abort();
    let lost = || async {
        let mut lost = 0;
        for node in ["n1", "n2"] {
            lost += usize::from(fleet.says(node, "Lost").await == Some(ConditionStatus::True));
        }
        lost
    };
    tokio::time::sleep(Duration::from_secs(250)).await;
    until("one is lost", || async { lost().await == 1 }).await;
    let at = tokio::time::Instant::now();
    until("the other waits for its turn", || async {
        let reasons = [
            fleet.reason("n1", "Held").await,
            fleet.reason("n2", "Held").await,
        ];
        reasons.contains(&"TooFast".to_owned())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(750)).await;
    until("it comes to it", || async { lost().await == 2 }).await;
    assert!(
        at.elapsed() >= Duration::from_secs(800),
        "{:?}",
        at.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_what_stays_and_why() {
    let fleet = Fleet::of(1).await;
    fleet.bare_pod("web-1").await;
    let mut node = fleet.node("n1").await;
    (node.spec.drain, node.spec.unschedulable) = (true, true);
    fleet.client.update(&node).await.unwrap();
    until("it is said", || async {
        let node = fleet.node("n1").await;
        let stalled = node.status.conditions.get("Stalled").cloned();
        stalled.is_some_and(|it| {
            it.status == ConditionStatus::True
                && it.message.contains("1 stay: web-1 (nothing keeps it")
                && it.message.contains("--delete-bare")
        })
    })
    .await;
    assert_eq!(fleet.reason("n1", "Available").await, "Draining");
    let observed = fleet.node("n1").await;
    let draining = observed.status.conditions.get("Draining").unwrap();
    assert_eq!(draining.observed_generation, observed.metadata.generation);
}

#[tokio::test(start_paused = true)]
async fn of_pods_that_nobody_keeps_one_of_a_node_restarts_at_a_time() {
    let fleet = Fleet::of(1).await;
    let (one, two) = (fleet.bare_pod("a").await, fleet.bare_pod("b").await);
    fleet.ask(&one, Some("1")).await;
    fleet.ask(&two, Some("1")).await;
    until("one is granted", || async {
        fleet.is_granted(&one) || fleet.is_granted(&two)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(fleet.is_granted(&one) != fleet.is_granted(&two));
    let (first, second) = match fleet.is_granted(&one) {
        true => (one, two),
        false => (two, one),
    };
    fleet.ask(&first, None).await;
    until("then the other", || async { fleet.is_granted(&second) }).await;
}
