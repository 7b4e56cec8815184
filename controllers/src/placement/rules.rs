//! Each rule of placement by itself: what a node's record says, and what keeps a pod away.

use std::sync::Arc;

use platctrl_framework::model::{Condition, ConditionStatus, Deletion, Metadata, Object};
use platctrl_kinds::{Node, NodeSpec, node_condition};
use serde_json::json;

use super::{
    Amounts, Fleet, FleetNode, NodeState, Placement as _, PodNeeds, Refusal, Request, Room, Spread,
};
use crate::ledger::ALIVE;

fn needs(cpu: u64, memory: u64, ports: &[u16]) -> PodNeeds {
    PodNeeds {
        namespace: "default".into(),
        app: "web".into(),
        amounts: Amounts {
            cpu,
            memory,
            pods: 1,
        },
        ports: ports.to_vec(),
        ..PodNeeds::default()
    }
}

fn node(room: Room, pods: &[PodNeeds]) -> FleetNode {
    FleetNode {
        room,
        pods: pods.iter().cloned().map(Arc::new).collect(),
        ..FleetNode::named("n1")
    }
}

#[test]
fn pods_go_only_where_the_selector_says() {
    let labelled = |name: &str, role: &str| FleetNode {
        labels: Arc::new([("role".to_owned(), role.to_owned())].into()),
        ..FleetNode::named(name)
    };
    let fleet = Fleet::new([
        labelled("a", "db"),
        labelled("b", "web"),
        labelled("c", "db"),
    ]);
    let mut asked = Request::new("default/rc", "role=web".parse().unwrap());
    asked.per_node = 2;
    assert_eq!(Spread.place(&fleet, &asked, 6), ["b", "b"]);
    assert_eq!(fleet.refusal("a", &asked), Some(Refusal::NotSelected));
}

#[test]
fn a_node_takes_no_more_pods_than_it_has_room_for() {
    let room = Room {
        pods: Some(3),
        ..Room::default()
    };
    let fleet = Fleet::new([node(room, &[needs(0, 0, &[])])]);
    let mut asked = Request::new("default/rc", "*".parse().unwrap());
    asked.needs = needs(0, 0, &[]);
    asked.per_node = 9;
    assert_eq!(Spread.place(&fleet, &asked, 9), ["n1", "n1"]);
}

#[test]
fn a_pod_grows_where_it_is_only_as_far_as_its_node_has_room() {
    let room = Room {
        cpu: Some(1000),
        memory: Some(1000),
        pods: None,
    };
    let (own, other) = (needs(300, 300, &[80]), needs(500, 500, &[81]));
    let fleet = Fleet::new([node(room, &[own.clone(), other])]);
    let change = |to: PodNeeds| fleet.refuses_change("n1", &own, &to);
    assert_eq!(change(needs(500, 500, &[80])), None);
    assert!(matches!(
        change(needs(501, 300, &[80])),
        Some(Refusal::Cpu { .. })
    ));
    assert!(matches!(
        change(needs(300, 501, &[80])),
        Some(Refusal::Memory { .. })
    ));
    assert_eq!(
        change(needs(300, 300, &[81])),
        Some(Refusal::Port { port: 81 })
    );
    assert_eq!(change(needs(300, 300, &[82])), None);
    // Where there is too much already, one that asks less makes nothing worse.
    let full = Fleet::new([node(room, &[own.clone(), needs(900, 900, &[])])]);
    assert_eq!(full.refuses_change("n1", &own, &needs(200, 200, &[])), None);
    assert_eq!(
        full.refuses_change("n2", &own, &own),
        Some(Refusal::NotThere)
    );
}

fn record(spec: serde_json::Value) -> Object<Node> {
    let spec: NodeSpec = serde_json::from_value(spec).unwrap();
    Object::new(Metadata::named("n1"), spec)
}

#[test]
fn what_a_nodes_record_says_decides_whether_it_takes_pods() {
    let mut node = record(json!({}));
    assert_eq!(NodeState::of(&node), NodeState::Open);
    let say = |node: &mut Object<Node>, kind: &str| {
        let said = Condition::new(kind, ConditionStatus::True, "Test", "");
        node.status
            .conditions
            .set(said, 1, jiff::Timestamp::UNIX_EPOCH);
    };
    say(&mut node, node_condition::MEMORY_PRESSURE);
    assert_eq!(NodeState::of(&node), NodeState::Open);
    say(&mut node, node_condition::DISK_PRESSURE);
    assert_eq!(NodeState::of(&node), NodeState::ShortOfDisk);
    assert!(NodeState::of(&node).keeps_pods());
    node.spec.unschedulable = true;
    assert_eq!(NodeState::of(&node), NodeState::Cordoned);
    for (alive, state) in [
        (ConditionStatus::Unknown, NodeState::Silent),
        (ConditionStatus::False, NodeState::Silent),
        (ConditionStatus::True, NodeState::Cordoned),
        (ConditionStatus::Unknown, NodeState::Silent),
    ] {
        let said = Condition::new(ALIVE, alive, "Test", "");
        let conditions = &mut node.status.conditions;
        conditions.set(said, 1, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(NodeState::of(&node), state);
        assert!(state.keeps_pods());
    }
    say(&mut node, node_condition::DRAINING);
    assert_eq!(NodeState::of(&node), NodeState::Draining);
    say(&mut node, node_condition::LOST);
    assert_eq!(NodeState::of(&node), NodeState::Lost);
    let deletion = json!({
        "uid": node.metadata.uid, "at": "2026-01-01T00:00:00Z", "by": "ann", "propagation": "Orphan",
    });
    node.metadata.deletion = Some(serde_json::from_value::<Deletion>(deletion).unwrap());
    assert_eq!(NodeState::of(&node), NodeState::Leaving);
}

#[test]
fn a_node_has_what_its_record_says_and_else_what_its_agent_reports() {
    let mut node = record(json!({}));
    assert_eq!(Room::of(&node), Room::default());
    let attributes = &mut node.status.detail.attributes;
    attributes.insert("attr.cpus".into(), "4".into());
    attributes.insert("attr.memory".into(), "1024".into());
    let reported = Room {
        cpu: Some(4000),
        memory: Some(1024),
        pods: None,
    };
    assert_eq!(Room::of(&node), reported);
    node.spec = record(json!({"capacity": {"cpu": "2", "pods": 7}})).spec;
    let said = Room {
        cpu: Some(2000),
        pods: Some(7),
        ..reported
    };
    assert_eq!(Room::of(&node), said);
}

#[test]
fn in_a_large_fleet_owners_see_loads_a_little_differently() {
    // One node is emptier than all others, by a step of its load.
    let room = Room {
        cpu: Some(1600),
        ..Room::default()
    };
    let fleet = Fleet::new((0..100).map(|at| FleetNode {
        name: format!("n{at:03}").as_str().into(),
        ..node(room, &[needs(if at == 42 { 800 } else { 900 }, 0, &[])])
    }));
    let first = |owner: usize| {
        let mut asked = Request::new(format!("default/rc{owner}"), "*".parse().unwrap());
        asked.needs = needs(0, 0, &[]);
        Spread.place(&fleet, &asked, 1).remove(0)
    };
    let same = (0..50).filter(|owner| first(*owner) == "n042").count();
    assert!(
        same < 25,
        "{same} of 50 owners want the one that is the emptiest"
    );
}
