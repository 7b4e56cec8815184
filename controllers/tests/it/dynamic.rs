//! Moves, capacity, adoption: what a replication controller does about nodes and pods that others
//! change.

use std::collections::BTreeSet;
use std::time::Duration;

use platctrl_controllers::{ORPHAN_KIND, ORPHAN_OF, replication_controller};
use platctrl_framework::model::{
    Condition, ConditionStatus, Object, ObjectKey, Propagation, Status, Uid,
};
use platctrl_kinds::{Node, NodeStatus, Pod, Strategy, node_condition};

use crate::daemon_set::set;
use crate::rolls::version;
use crate::world::{World, named, until};

const FOUR: [(&str, &str); 4] = [("n1", "web"), ("n2", "web"), ("n3", "web"), ("n4", "web")];

impl World {
    async fn node(&self, name: &str) -> Object<Node> {
        self.client.get(&node_key(name)).await.unwrap()
    }

    pub(crate) async fn change_node(&self, name: &str, change: impl FnOnce(&mut Object<Node>)) {
        let mut node = self.node(name).await;
        change(&mut node);
        self.client.update(&node).await.unwrap();
    }

    async fn relabel(&self, name: &str, role: &str) {
        let set = |node: &mut Object<Node>| {
            node.metadata.labels.insert("role".into(), role.into());
        };
        self.change_node(name, set).await;
    }

    /// As whoever watches beats would say.
    pub(crate) async fn say(&self, node: &str, condition: &str, holds: bool) {
        let joined = self.client.joined(&node_key(node)).await.unwrap();
        let mut status: Status<NodeStatus> = self.node(node).await.status;
        let is = match holds {
            true => ConditionStatus::True,
            false => ConditionStatus::False,
        };
        let now = jiff::Timestamp::now();
        let condition = Condition::new(condition, is, "Test", "");
        status.conditions.set(condition, 1, now);
        let mut batch = platctrl_framework::client::Batch::new();
        batch.report_typed::<Node>(&joined, &status).unwrap();
        let transaction = batch.into_transaction();
        self.client.store().commit(transaction).await.unwrap();
    }

    pub(crate) async fn nodes_of_pods(&self) -> Vec<String> {
        let pods = self.pods().await.into_iter();
        let live = pods.filter(|pod| !pod.metadata.is_deleted());
        let mut nodes: Vec<String> = live.filter_map(|pod| pod.spec.node_name).collect();
        nodes.sort();
        nodes
    }

    pub(crate) async fn condition(&self, kind: &str) -> Condition {
        let status = self.controller().await.status;
        let none = || Condition::new(kind, ConditionStatus::Unknown, "None", "");
        status.conditions.get(kind).cloned().unwrap_or_else(none)
    }
}

fn node_key(name: &str) -> ObjectKey {
    ObjectKey::cluster("platctrl.dev", "nodes", name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_moved_from_a_node_that_no_longer_matches_and_never_one_is_missing() {
    let world = World::with_nodes(&FOUR).await;
    world
        .create(3, |spec| spec.strategy = Strategy::Dynamic)
        .await;
    world.settled(3, 3).await;
    let away = world.nodes_of_pods().await.remove(0);
    let watch = world.fewest_ready();
    world.relabel(&away, "db").await;
    until("the pod is elsewhere", || async {
        let nodes = world.nodes_of_pods().await;
        nodes.len() == 3 && !nodes.contains(&away)
    })
    .await;
    world.settled(3, 3).await;
    assert!(watch.seen() >= 3, "{} were ready at once", watch.seen());
    assert_eq!(
        world.condition("Eligible").await.status,
        ConditionStatus::True
    );
}

#[tokio::test(start_paused = true)]
async fn static_keeps_the_pod_and_says_which_and_why() {
    let world = World::with_nodes(&FOUR).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let away = world.nodes_of_pods().await.remove(0);
    world.relabel(&away, "db").await;
    until("it is said", || async {
        let eligible = world.condition("Eligible").await;
        eligible.status == ConditionStatus::False
            && eligible
                .message
                .contains("its node does not match the selector")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(world.nodes_of_pods().await.contains(&away));
}

#[tokio::test(start_paused = true)]
async fn a_changed_selector_takes_effect() {
    let mut nodes = FOUR.to_vec();
    nodes.extend([("d1", "db"), ("d2", "db")]);
    let world = World::with_nodes(&nodes).await;
    world
        .create(2, |spec| spec.strategy = Strategy::Dynamic)
        .await;
    world.settled(2, 2).await;
    let watch = world.fewest_ready();
    world
        .change(|spec| spec.node_selector = "role=db".into())
        .await;
    until("both are moved", || async {
        world.nodes_of_pods().await == ["d1", "d2"]
    })
    .await;
    assert!(watch.seen() >= 2);
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_lost_node_are_replaced_and_those_of_a_drained_one_moved() {
    for condition in [node_condition::LOST, node_condition::DRAINING] {
        let world = World::with_nodes(&FOUR).await;
        world
            .create(2, |spec| spec.strategy = Strategy::Dynamic)
            .await;
        world.settled(2, 2).await;
        let away = world.nodes_of_pods().await.remove(0);
        world.say(&away, condition, true).await;
        until("it is elsewhere", || async {
            let nodes = world.nodes_of_pods().await;
            nodes.len() == 2 && !nodes.contains(&away)
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_says_so_moves_pods_of_a_static_controller_and_never_one_is_missing() {
    let world = World::with_nodes(&FOUR).await;
    world.create(3, |_| {}).await;
    world.settled(3, 3).await;
    let away = world.nodes_of_pods().await.remove(0);
    let watch = world.fewest_ready();
    world
        .change_node(&away, |node| node.spec.drain = true)
        .await;
    world.say(&away, node_condition::DRAINING, true).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(world.nodes_of_pods().await.contains(&away), "it is Static");
    assert!(
        world
            .condition("Eligible")
            .await
            .message
            .contains("left where they are (Static)")
    );
    world
        .change_node(&away, |node| node.spec.drain_static = true)
        .await;
    until("it is moved", || async {
        let nodes = world.nodes_of_pods().await;
        nodes.len() == 3 && !nodes.contains(&away)
    })
    .await;
    assert!(watch.seen() >= 3);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_runs_twice_is_moved_by_ending_it_first() {
    let world = World::with_nodes(&FOUR).await;
    world
        .create(1, |spec| {
            spec.strategy = Strategy::Dynamic;
            spec.template.spec.singleton = true;
        })
        .await;
    world.settled(1, 1).await;
    let away = world.nodes_of_pods().await.remove(0);
    world.say(&away, node_condition::LOST, true).await;
    until("it says what it waits for", || async {
        let stalled = world.condition("Stalled").await;
        stalled.reason == "AwaitsRetirement" && stalled.message.contains("platctrl node retire")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(world.nodes_of_pods().await, std::slice::from_ref(&away));
    // It is heard of again, and drained.
    world.say(&away, node_condition::LOST, false).await;
    world.say(&away, node_condition::DRAINING, true).await;
    until("it is elsewhere", || async {
        let nodes = world.nodes_of_pods().await;
        nodes.len() == 1 && !nodes.contains(&away)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_keeps_its_pods_and_gets_no_new_ones() {
    let world = World::with_nodes(&FOUR).await;
    world
        .create(2, |spec| spec.strategy = Strategy::Dynamic)
        .await;
    world.settled(2, 2).await;
    for (node, _) in FOUR {
        world
            .change_node(node, |node| node.spec.unschedulable = true)
            .await;
    }
    let before = world.nodes_of_pods().await;
    world.change(|spec| spec.replicas = 3).await;
    until("it says so", || async {
        let scheduled = world.condition("Scheduled").await;
        scheduled.message.contains("4 are cordoned")
    })
    .await;
    assert_eq!(world.nodes_of_pods().await, before);
    assert_eq!(world.condition("Stalled").await.reason, "NoPlace");
}

#[tokio::test(start_paused = true)]
async fn nodes_hold_no_more_than_they_have_and_the_template_that_never_fits_says_so() {
    let world = World::with_nodes(&FOUR[..2]).await;
    for (node, _) in &FOUR[..2] {
        let set = |node: &mut Object<Node>| node.spec.capacity.cpu = Some("1".parse().unwrap());
        world.change_node(node, set).await;
    }
    world
        .create(8, |spec| {
            spec.max_per_node = 9;
            let web = spec.template.spec.launchables.get_mut("web").unwrap();
            web.resources.cpu = Some("300m".parse().unwrap());
        })
        .await;
    until("there is no place for two", || async {
        let scheduled = world.condition("Scheduled").await;
        scheduled.message.contains("no place for 2 pods")
            && scheduled.message.contains("n1: 100m free")
    })
    .await;
    assert_eq!(world.pods().await.len(), 6);
    // In place it fits nowhere, and nothing is broken for it.
    world
        .change(|spec| {
            let web = spec.template.spec.launchables.get_mut("web").unwrap();
            web.resources.cpu = Some("2".parse().unwrap());
        })
        .await;
    until("it never fits", || async {
        world.condition("Stalled").await.reason == "NeverFits"
    })
    .await;
    assert_eq!(world.pods().await.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_disabled_controller_does_nothing_until_it_is_enabled() {
    let world = World::with_nodes(&FOUR).await;
    world.create(2, |spec| spec.disabled = true).await;
    until("it says so", || async {
        let status = world.controller().await.status;
        let progressing = status.conditions.get("Progressing").cloned();
        progressing.is_some_and(|condition| condition.reason == "Disabled")
    })
    .await;
    assert!(world.pods().await.is_empty());
    world.change(|spec| spec.disabled = false).await;
    world.settled(2, 2).await;
    world
        .change(|spec| {
            spec.disabled = true;
            spec.replicas = 0;
        })
        .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.nodes_of_pods().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn drift_is_repaired() {
    let world = World::with_nodes(&FOUR).await;
    world.create(1, |_| {}).await;
    world.settled(1, 1).await;
    let mut pod = world.pods().await.remove(0);
    let wanted = pod.spec.clone();
    pod.spec.keep_data = true;
    world.client.update(&pod).await.unwrap();
    until("the spec is the template's again", || async {
        world
            .pods()
            .await
            .first()
            .is_some_and(|pod| pod.spec == wanted)
    })
    .await;
    world.settled(1, 1).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_are_taken_over_by_a_later_controller_of_the_name_and_by_no_other() {
    let world = World::with_nodes(&FOUR).await;
    world.create(2, |_| {}).await;
    world.settled(2, 2).await;
    let uids = |pods: Vec<Object<Pod>>| {
        let mut uids: Vec<_> = pods.into_iter().map(|pod| pod.metadata.uid).collect();
        uids.sort();
        uids
    };
    let before = uids(world.pods().await);
    world.delete(Propagation::Orphan).await;
    until("the controller is gone", || async {
        let key = crate::world::controller_key();
        world.client.joined(&key).await.unwrap().intent.is_none()
    })
    .await;
    let orphans = world.pods().await;
    let says = |pod: &Object<Pod>| pod.metadata.labels.get(ORPHAN_OF).cloned();
    assert!(
        orphans
            .iter()
            .all(|pod| says(pod).as_deref() == Some("hello"))
    );
    // Another one of the same app does not touch them.
    let other = Object::<platctrl_kinds::ReplicationController>::new(
        named("other"),
        platctrl_kinds::ReplicationControllerSpec {
            template: {
                let mut template = crate::world::controller_spec(1).template;
                template.spec.app = Some("hello".into());
                template
            },
            ..crate::world::controller_spec(1)
        },
    );
    world.client.create(&other).await.unwrap();
    until("the other one has its own", || async {
        world.pods().await.len() == 3
    })
    .await;
    world.create(2, |_| {}).await;
    world.settled(2, 2).await;
    let owned = world.pods().await.into_iter().filter(|pod| {
        let owner = pod.metadata.owner_references.first();
        owner.is_some_and(|owner| owner.name == "hello")
    });
    assert_eq!(uids(owned.collect()), before);
}

#[tokio::test(start_paused = true)]
async fn orphans_wait_for_one_of_their_owners_kind_and_namespace() {
    let world = World::with_nodes(&FOUR).await;
    world.create(2, |_| {}).await;
    world.settled(2, 2).await;
    world.delete(Propagation::Orphan).await;
    until("the controller is gone", || async {
        let key = crate::world::controller_key();
        world.client.joined(&key).await.unwrap().intent.is_none()
    })
    .await;
    let mut elsewhere = version("hello", "one", 2);
    elsewhere.metadata.namespace = Some("elsewhere".into());
    world.client.create(&elsewhere).await.unwrap();
    world.client.create(&set("hello")).await.unwrap();
    until("these have their own", || async {
        world.pods().await.len() == 2 + 2 + FOUR.len()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let pods = world.pods().await.into_iter();
    let orphans = pods.filter(|pod| pod.metadata.labels.contains_key(ORPHAN_OF));
    let owners: Vec<usize> = orphans
        .map(|pod| pod.metadata.owner_references.len())
        .collect();
    assert_eq!(owners, [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_an_owner_is_taken_over_by_nobody_whatever_its_labels_say() {
    let world = World::with_nodes(&FOUR).await;
    world.create(2, |_| {}).await;
    world.settled(2, 2).await;
    let owner = world.controller().await.metadata.uid;
    let uids = async || -> BTreeSet<Uid> {
        let pods = world.pods().await.into_iter();
        pods.map(|pod| pod.metadata.uid).collect()
    };
    let before = uids().await;
    let mut claimed = world.pods().await.remove(0);
    let labels = &mut claimed.metadata.labels;
    labels.insert(ORPHAN_OF.into(), "other".into());
    labels.insert(ORPHAN_KIND.into(), "replicationcontroller".into());
    world.client.update(&claimed).await.unwrap();
    world
        .client
        .create(&version("other", "one", 0))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(uids().await, before, "none was ended and made anew");
    for pod in world.pods().await {
        assert!(!pod.metadata.is_deleted());
        let owners = &pod.metadata.owner_references;
        assert!(owners.len() == 1 && owners[0].uid == owner, "{owners:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_whose_pods_never_come_up_is_stalled_after_its_deadline_and_rests() {
    let world = World::with_nodes(&FOUR).await;
    world
        .create(1, |spec| {
            spec.progress_deadline = Some("1m".parse().unwrap());
            let web = spec.template.spec.launchables.get_mut("web").unwrap();
            web.location = "artifact:broken".into();
        })
        .await;
    until("it is stalled", || async {
        let stalled = world.condition("Stalled").await;
        stalled.status == ConditionStatus::True && stalled.reason == "ProgressDeadline"
    })
    .await;
    let runs = |world: &World| {
        let status = world.handle.status().unwrap();
        let mut all = status.controllers.iter();
        all.find(|it| it.name == "replicationcontroller")
            .unwrap()
            .runs
    };
    let before = runs(&world);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(runs(&world), before, "nothing changed, so nothing runs");
}

#[tokio::test(start_paused = true)]
async fn pods_are_spread_over_a_label_of_nodes() {
    let world = World::with_nodes(&FOUR).await;
    for (index, (node, _)) in FOUR.iter().enumerate() {
        let zone = if index == 0 { "a" } else { "b" };
        let set = |node: &mut Object<Node>| {
            node.metadata.labels.insert("zone".into(), zone.into());
        };
        world.change_node(node, set).await;
    }
    world
        .create(4, |spec| {
            spec.spread_over = Some("zone".into());
            spec.max_per_node = 2;
        })
        .await;
    world.settled(4, 4).await;
    let nodes = world.nodes_of_pods().await;
    let in_a = nodes.iter().filter(|node| *node == "n1").count();
    assert_eq!(in_a, 2, "{nodes:?}");
}

/// Controllers that share nothing but the store want more places than there are.
#[tokio::test(start_paused = true)]
async fn controllers_that_race_through_the_runtime_never_overcommit() {
    let world = World::with_nodes(&FOUR).await;
    for (node, _) in &FOUR {
        world
            .change_node(node, |node| node.spec.capacity.pods = Some(3))
            .await;
    }
    let _second = world.another(replication_controller::controller());
    for index in 0..20 {
        let metadata = named(&format!("rc{index}"));
        let spec = crate::world::controller_spec(1);
        let object = Object::<platctrl_kinds::ReplicationController>::new(metadata, spec);
        world.client.create(&object).await.unwrap();
    }
    until("every place is taken", || async {
        world.pods().await.len() >= 12
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let nodes = world.nodes_of_pods().await;
    for (node, _) in FOUR {
        assert_eq!(nodes.iter().filter(|it| *it == node).count(), 3, "{node}");
    }
}
