//! Each rule of a set's plan by itself.

use super::tests::{deleted, node, observed, pod};
use super::*;
use crate::placement::FleetNode;

fn leaving(name: &str) -> FleetNode {
    FleetNode {
        state: NodeState::Leaving,
        ..node(name, "web")
    }
}

#[test]
fn a_node_that_is_retired_gets_no_pod_and_ends_its_own() {
    let nodes = vec![node("a", "web"), leaving("b"), leaving("c")];
    let pods = vec![pod("a", true, true), pod("b", true, true)];
    let plan = plan(&observed(nodes, pods, 0));
    assert_eq!((plan.desired, plan.live), (1, 1));
    assert_eq!((plan.create.len(), deleted(&plan).len()), (0, 0));
    assert_eq!(plan.refused.len(), 0, "it is not one of its nodes");
}

#[test]
fn a_node_that_has_a_pod_gets_no_second_one_also_while_that_is_on_its_way_out() {
    let mut ends = pod("b", true, true);
    ends.leaving = true;
    let nodes = vec![node("a", "web"), node("b", "web")];
    let mut asked = observed(nodes, vec![pod("a", true, true), ends], 0);
    asked.request.per_node = 5;
    assert_eq!(plan(&asked).create, Vec::<String>::new());
}

#[test]
fn pods_that_are_not_ready_get_the_template_though_no_healthy_one_may_be_taken() {
    let nodes = ["a", "b", "c"].map(|name| node(name, "web")).into();
    let pods = vec![
        pod("a", true, false),
        pod("b", false, false),
        pod("c", true, false),
    ];
    let mut asked = observed(nodes, pods, 2);
    asked.allowed = 0;
    assert_eq!(plan(&asked).update, ["p-b"]);
}

#[test]
fn a_pod_that_has_no_room_for_the_template_stays_as_it_is_and_says_why() {
    let mut stuck = pod("a", true, false);
    stuck.stuck = Some(Refusal::Port { port: 80 });
    let asked = observed(vec![node("a", "web")], vec![stuck], 0);
    let plan = plan(&asked);
    assert_eq!(plan.update, Vec::<String>::new());
    assert_eq!(plan.refused["a"], Refusal::Port { port: 80 });
}

#[test]
fn a_disabled_set_does_nothing_and_one_with_orphans_takes_them_over_first() {
    let nodes = || vec![node("a", "web"), node("b", "web")];
    let mut asked = observed(nodes(), vec![pod("a", true, false)], 0);
    asked.disabled = true;
    assert_eq!(plan(&asked).steps(), 0);
    asked.disabled = false;
    asked.orphans = vec!["p-b".to_owned()];
    let plan = plan(&asked);
    assert_eq!((plan.adopt.len(), plan.steps()), (1, 1));
}
