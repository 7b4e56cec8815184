//! Daemon sets on a runtime, on virtual time, with a fake agent; and in the simulator.

use std::time::Duration;

use platctrl_controllers::{daemon_set, testing};
use platctrl_framework::model::{
    Condition, ConditionStatus, Object, ObjectKey, Propagation, Resource,
};
use platctrl_kinds::{Amount, Canary, DaemonSet, DaemonSetSpec, Node, Pod, RateLimit, Span};

use crate::simulation::{fleet_with, one_on_a_node, propagated};
use crate::world::{World, controller_spec, named, until};

const THREE: [(&str, &str); 3] = [("n1", "web"), ("n2", "web"), ("n3", "web")];

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced(DaemonSet::GROUP, DaemonSet::PLURAL, "default", name).unwrap()
}

pub(crate) fn set(name: &str) -> Object<DaemonSet> {
    let spec = DaemonSetSpec {
        node_selector: "role=web".into(),
        minimum_healthy: Amount::Percent(50),
        rate_limit: None,
        timeout: Span::from_secs(60),
        canary: None,
        disabled: false,
        deletion_policy: Propagation::Orphan,
        deletion_grace: None,
        template: controller_spec(1).template,
    };
    Object::new(named(name), spec)
}

fn breaks(spec: &mut DaemonSetSpec) {
    let web = spec.template.spec.launchables.get_mut("web").unwrap();
    web.location = "artifact:broken".into();
}

impl World {
    pub(crate) async fn set(&self, name: &str) -> Object<DaemonSet> {
        self.client.get(&key(name)).await.unwrap()
    }

    async fn change_set(&self, name: &str, change: impl Fn(&mut DaemonSetSpec)) {
        let mut object = self.set(name).await;
        change(&mut object.spec);
        self.client.update(&object).await.unwrap();
    }

    async fn label(&self, node: &str, name: &str, value: &str) {
        let key = ObjectKey::cluster("platctrl.dev", "nodes", node).unwrap();
        let mut node = self.client.get::<Node>(&key).await.unwrap();
        node.metadata.labels.insert(name.into(), value.into());
        self.client.update(&node).await.unwrap();
    }

    pub(crate) async fn set_says(&self, name: &str, kind: &str) -> Condition {
        let status = self.set(name).await.status;
        let none = || Condition::new(kind, ConditionStatus::Unknown, "None", "");
        status.conditions.get(kind).cloned().unwrap_or_else(none)
    }

    async fn nodes_of(&self, name: &str) -> String {
        let pods = self.pods().await.into_iter();
        let mut nodes: Vec<String> = pods
            .filter(|pod| {
                let owner = pod.metadata.owner_references.first();
                !pod.metadata.is_deleted() && owner.is_some_and(|owner| owner.name == name)
            })
            .filter_map(|pod| pod.spec.node_name)
            .collect();
        nodes.sort();
        nodes.join(" ")
    }

    pub(crate) async fn set_is_ready(&self, name: &str, nodes: u32) {
        until("the daemon set is ready", || async {
            let object = self.set(name).await;
            let detail = &object.status.detail;
            object.status.observed_generation == Some(object.metadata.generation)
                && (detail.desired, detail.updated, detail.ready) == (nodes, nodes, nodes)
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_follow_nodes_that_come_go_and_change_their_labels() {
    let world = World::with_nodes(&THREE).await;
    world.label("n3", "role", "db").await;
    world.client.create(&set("logs")).await.unwrap();
    world.set_is_ready("logs", 2).await;
    assert_eq!(world.nodes_of("logs").await, "n1 n2");
    world.label("n3", "role", "web").await;
    world.set_is_ready("logs", 3).await;
    world.label("n1", "role", "db").await;
    until("n1 has none", || async {
        world.nodes_of("logs").await == "n2 n3"
    })
    .await;
    let node = testing::node("n4");
    world.client.create(&node).await.unwrap();
    world.set_is_ready("logs", 3).await;
    assert_eq!(world.nodes_of("logs").await, "n2 n3 n4");
}

#[tokio::test(start_paused = true)]
async fn a_template_that_does_not_work_costs_no_more_than_may_be_missing_and_says_which_nodes() {
    let world = World::with_nodes(&THREE).await;
    let mut logs = set("logs");
    logs.spec.minimum_healthy = Amount::Count(2);
    world.client.create(&logs).await.unwrap();
    world.set_is_ready("logs", 3).await;
    world.change_set("logs", breaks).await;
    until("one node is late", || async {
        let stalled = world.set_says("logs", "Stalled").await;
        stalled.reason == "Timeout" && stalled.message.contains("of 1 node")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let pods = world.pods().await;
    let ready = pods
        .iter()
        .filter(|pod| pod.status.conditions.is_true("Ready"));
    assert_eq!(ready.count(), 2);
    // The way back.
    let template = set("logs").spec.template;
    world
        .change_set("logs", |spec| spec.template.clone_from(&template))
        .await;
    world.set_is_ready("logs", 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_set_whose_floor_is_as_high_as_its_nodes_says_that_nothing_can_be_changed() {
    let world = World::with_nodes(&THREE).await;
    let mut wanted = set("logs");
    wanted.spec.minimum_healthy = Amount::Count(3);
    world.client.create(&wanted).await.unwrap();
    world.set_is_ready("logs", 3).await;
    world
        .change_set("logs", |spec| {
            spec.template.spec.drain_delay = Some(Span::from_secs(1));
        })
        .await;
    until("it says so", || async {
        let stalled = world.set_says("logs", "Stalled").await;
        stalled.reason == "FloorTooHigh" && stalled.message.contains("3 pods can never be changed")
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(world.set("logs").await.status.detail.updated, 0);
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_holds() {
    let world = World::with_nodes(&THREE).await;
    let mut logs = set("logs");
    logs.spec.rate_limit = Some(RateLimit {
        pods: 1,
        per: Span::from_secs(60),
    });
    world.client.create(&logs).await.unwrap();
    until("there is one", || async { world.pods().await.len() == 1 }).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(world.pods().await.len(), 1);
    let says = world.set_says("logs", "Progressing").await;
    assert!(
        says.message.contains("2 wait for the rate limit"),
        "{says:?}"
    );
    world.set_is_ready("logs", 3).await;
    let mut times: Vec<_> = (world.pods().await.iter())
        .filter_map(|pod| pod.metadata.creation_timestamp)
        .collect();
    times.sort();
    for pair in times.windows(2) {
        assert!(pair[1].duration_since(pair[0]).as_secs() >= 60, "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn canaries_are_first_and_the_others_follow_when_they_are_let() {
    let world = World::with_nodes(&THREE).await;
    world.label("n2", "canary", "yes").await;
    let mut logs = set("logs");
    logs.spec.canary = Some(Canary {
        node_selector: "canary=yes".into(),
        only: true,
    });
    world.client.create(&logs).await.unwrap();
    world.set_is_ready("logs", 3).await;
    world
        .change_set("logs", |spec| spec.template.spec.keep_data = true)
        .await;
    until("the canary has it", || async {
        let status = world.set("logs").await.status;
        status.detail.updated == 1 && status.observed_generation == Some(2)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let pods = world.pods().await;
    let new: Vec<_> = pods.iter().filter(|pod| pod.spec.keep_data).collect();
    assert_eq!(new.len(), 1);
    assert_eq!(new[0].spec.node_name.as_deref(), Some("n2"));
    world
        .change_set("logs", |spec| spec.canary.as_mut().unwrap().only = false)
        .await;
    world.set_is_ready("logs", 3).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_sets_that_want_the_same_the_newer_is_held_until_they_do_not() {
    let world = World::with_nodes(&THREE).await;
    world.client.create(&set("first")).await.unwrap();
    world.set_is_ready("first", 3).await;
    // Two sets are of one age within a microsecond only.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut second = set("second");
    second.spec.template.spec.app = Some("first".into());
    world.client.create(&second).await.unwrap();
    until("it is held", || async {
        let held = world.set_says("second", "Held").await;
        held.reason == "Contends" && held.message.contains("daemonset/first")
    })
    .await;
    assert_eq!(world.nodes_of("second").await, "");
    // Labels change what they want.
    world.label("n3", "tier", "edge").await;
    world
        .change_set("first", |spec| {
            spec.node_selector = "role=web,tier!=edge".into();
        })
        .await;
    world
        .change_set("second", |spec| spec.node_selector = "tier=edge".into())
        .await;
    world.set_is_ready("second", 1).await;
    until("each has its own", || async {
        world.nodes_of("first").await == "n1 n2" && world.nodes_of("second").await == "n3"
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_disabled_set_does_nothing() {
    let world = World::with_nodes(&THREE).await;
    let mut logs = set("logs");
    logs.spec.disabled = true;
    world.client.create(&logs).await.unwrap();
    until("it says so", || async {
        world.set_says("logs", "Progressing").await.reason == "Disabled"
    })
    .await;
    assert!(world.pods().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn failsafe_daemon_set_selector_that_chooses_no_node() {
    let world = World::with_nodes(&THREE).await;
    world.client.create(&set("logs")).await.unwrap();
    world.set_is_ready("logs", 3).await;
    world
        .change_set("logs", |spec| spec.node_selector = "role=wbe".into())
        .await;
    until("it is held", || async {
        world.set_says("logs", "Held").await.reason == "NoneChosen"
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.nodes_of("logs").await, "n1 n2 n3");
}

#[tokio::test(start_paused = true)]
async fn failsafe_daemon_set_deleted_orphans_its_pods_and_a_later_one_takes_them_over() {
    let world = World::with_nodes(&THREE).await;
    world.client.create(&set("logs")).await.unwrap();
    world.set_is_ready("logs", 3).await;
    let uids = |pods: Vec<Object<Pod>>| {
        let mut uids: Vec<_> = pods.into_iter().map(|pod| pod.metadata.uid).collect();
        uids.sort();
        uids
    };
    let before = uids(world.pods().await);
    let options = platctrl_framework::client::DeleteOptions::default();
    world.client.delete(&key("logs"), &options).await.unwrap();
    until("the set is gone", || async {
        let joined = world.client.joined(&key("logs")).await.unwrap();
        joined.intent.is_none() && joined.reality.is_none()
    })
    .await;
    assert_eq!(world.nodes_of("logs").await, "");
    world.client.create(&set("logs")).await.unwrap();
    world.set_is_ready("logs", 3).await;
    assert_eq!(uids(world.pods().await), before);
}

#[tokio::test(start_paused = true)]
async fn failsafe_daemon_set_deleted_with_cascade_removes_its_pods_and_nobody_elses() {
    let world = World::with_nodes(&THREE).await;
    world.client.create(&set("logs")).await.unwrap();
    world.set_is_ready("logs", 3).await;
    world.create(2, |_| {}).await;
    world.settled(2, 2).await;
    let options = propagated(Propagation::Cascade);
    world.client.delete(&key("logs"), &options).await.unwrap();
    until("the set and its pods are gone", || async {
        let joined = world.client.joined(&key("logs")).await.unwrap();
        joined.intent.is_none() && world.pods().await.len() == 2
    })
    .await;
    world.settled(2, 2).await;
}

/// Its pods end with it, and nothing is left, whatever goes wrong at a write.
#[test]
fn a_cascading_end_of_a_daemon_set_leaves_nothing_behind_wherever_it_is_interrupted() {
    let explored = fleet_with(2, daemon_set::controller)
        .scenario(|world| async move {
            world.create(&set("logs")).await?;
            world.settled().await?;
            let options = propagated(Propagation::Cascade);
            world.delete_with(&key("logs"), &options).await?;
            Ok(())
        })
        .exhaustive()
        .unwrap();
    assert_eq!(explored.runs, explored.faults);
}

#[test]
fn a_daemon_set_lives_through_whatever_goes_wrong_at_a_write() {
    let explored = fleet_with(3, daemon_set::controller)
        .scenario(|world| async move {
            world.create(&set("logs")).await?;
            world.settled().await?;
            let change = |set: &mut Object<DaemonSet>| {
                set.spec.template.spec.drain_delay = Some(Span::from_secs(1));
            };
            world.change::<DaemonSet>(&key("logs"), change).await?;
            world.settled().await?;
            Ok(())
        })
        .invariant("one pod on a node", one_on_a_node)
        .exhaustive()
        .unwrap();
    assert_eq!(explored.runs, explored.faults);
}
