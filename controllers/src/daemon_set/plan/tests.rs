use platctrl_kinds::Amount;
use proptest::prelude::*;

use super::*;
use crate::placement::FleetNode;

pub(super) fn pod(node: &str, ready: bool, current: bool) -> PodFacts {
    PodFacts {
        name: format!("p-{node}"),
        node: node.into(),
        ready,
        leaving: false,
        current,
        created: 1,
        grows: false,
        stuck: None,
        late: false,
    }
}

pub(super) fn node(name: &str, role: &str) -> FleetNode {
    FleetNode {
        labels: Arc::new([("role".to_owned(), role.to_owned())].into()),
        ..FleetNode::named(name)
    }
}

pub(super) fn observed(nodes: Vec<FleetNode>, pods: Vec<PodFacts>, floor: u32) -> Observed {
    let mut request = Request::new("default/d", "role=web".parse().unwrap());
    request.also_cordoned = true;
    for pod in &pods {
        *request.own.entry(pod.node.clone()).or_default() += 1;
    }
    let healthy = pods.iter().filter(|pod| pod.ready && !pod.leaving).count();
    Observed {
        request,
        fleet: Arc::new(Fleet::new(nodes)),
        allowed: number(healthy).saturating_sub(floor),
        floor,
        pods,
        orphans: Vec::new(),
        disabled: false,
        contends: None,
        rate: u32::MAX,
        canary: None,
    }
}

pub(super) fn deleted(plan: &Plan) -> Vec<&str> {
    plan.delete.iter().map(|pod| pod.name.as_str()).collect()
}

#[test]
fn every_matching_node_gets_one_and_a_node_that_does_not_match_any_more_loses_it() {
    let nodes = vec![
        node("a", "web"),
        FleetNode {
            state: NodeState::Cordoned,
            ..node("b", "web")
        },
        FleetNode {
            state: NodeState::Lost,
            ..node("c", "web")
        },
        node("d", "db"),
    ];
    let pods = vec![
        pod("a", true, true),
        pod("d", true, true),
        pod("x", true, true),
    ];
    let plan = plan(&observed(nodes, pods, 0));
    assert_eq!(plan.create, ["b"]);
    assert_eq!(deleted(&plan), ["p-d"], "the record of x is gone: no order");
    assert_eq!(plan.refused["c"], Refusal::State(NodeState::Lost));
    assert_eq!((plan.desired, plan.live), (3, 1));
}

#[test]
fn a_new_template_takes_no_more_healthy_pods_than_it_may() {
    let names = ["a", "b", "c", "d"];
    let nodes: Vec<FleetNode> = names.iter().map(|name| node(name, "web")).collect();
    let mut pods: Vec<PodFacts> = names.iter().map(|name| pod(name, true, false)).collect();
    let first = plan(&observed(nodes.clone(), pods.clone(), 2));
    assert_eq!(first.update.len(), 2);
    let wait = Wait::Healthy {
        healthy: 4,
        needed: 2,
        pods: 2,
    };
    assert_eq!(first.wait, Some(wait));
    // The new template does not work: it goes no further.
    for broken in &mut pods[..2] {
        (broken.ready, broken.current) = (false, true);
    }
    let then = plan(&observed(nodes, pods, 2));
    assert_eq!(then.steps(), 0);
}

#[test]
fn nothing_is_done_where_no_node_matches_or_there_are_none() {
    let pods = vec![pod("a", true, true)];
    let hold = |nodes| plan(&observed(nodes, pods.clone(), 0)).hold;
    assert_eq!(
        hold(vec![node("a", "db")]),
        Some(Hold::NoneChosen { pods: 1 })
    );
    assert_eq!(hold(Vec::new()), Some(Hold::NoNodes));
}

#[test]
fn a_set_that_contends_with_an_older_one_is_held() {
    let mut view = observed(vec![node("a", "web")], Vec::new(), 0);
    view.contends = Some(("older".into(), "a".into()));
    let plan = plan(&view);
    assert_eq!(plan.steps(), 0);
    assert!(plan.hold.unwrap().to_string().contains("daemonset/older"));
}

#[test]
fn canaries_come_first_and_the_others_when_all_of_them_are_ready() {
    let mut canary = node("a", "web");
    canary.labels = Arc::new(
        [("role", "web"), ("canary", "yes")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    );
    let nodes = vec![canary, node("b", "web"), node("c", "web")];
    let mut pods: Vec<PodFacts> = ["a", "b", "c"].map(|name| pod(name, true, false)).into();
    let at = |pods: &Vec<PodFacts>, only| {
        let mut view = observed(nodes.clone(), pods.clone(), 0);
        view.canary = Some(("canary=yes".parse().unwrap(), only));
        plan(&view)
    };
    assert_eq!(at(&pods, false).update, ["p-a"]);
    (pods[0].current, pods[0].ready) = (true, false);
    let waiting = at(&pods, false);
    assert!(waiting.update.is_empty());
    let wait = Wait::Canaries {
        ready: 0,
        of: 1,
        pods: 2,
    };
    assert_eq!(waiting.wait, Some(wait));
    pods[0].ready = true;
    assert_eq!(at(&pods, false).update, ["p-b", "p-c"]);
    let only = at(&pods, true);
    assert!(only.update.is_empty());
    assert_eq!(only.wait, Some(Wait::Others { pods: 2 }));
}

#[test]
fn the_rate_limit_counts_everything() {
    let nodes = vec![
        node("a", "web"),
        node("b", "web"),
        node("c", "db"),
        node("d", "web"),
    ];
    let pods = vec![pod("a", true, false), pod("c", true, true)];
    let mut view = observed(nodes, pods, 0);
    view.rate = 2;
    let plan = plan(&view);
    assert_eq!(plan.steps(), 2);
    assert_eq!(plan.wait, Some(Wait::Rate { pods: 2 }));
}

#[test]
fn of_two_pods_on_a_node_the_worse_one_goes() {
    let second = PodFacts {
        name: "second".into(),
        created: 2,
        ..pod("a", true, true)
    };
    let plan = plan(&observed(
        vec![node("a", "web")],
        vec![pod("a", false, true), second],
        0,
    ));
    assert_eq!(deleted(&plan), ["p-a"]);
}

#[test]
fn of_a_share_of_the_nodes_one_may_always_be_changed_and_a_count_is_a_count() {
    assert_eq!(floor(Amount::Percent(90), 3), 2);
    assert_eq!(floor(Amount::Percent(90), 100), 90);
    assert_eq!(floor(Amount::Percent(90), 0), 0);
    assert_eq!(floor(Amount::Count(5), 3), 5);
}

proptest! {
    #[test]
    fn a_plan_never_takes_more_healthy_pods_than_it_may_nor_more_than_the_rate_allows(
        nodes in proptest::collection::vec((any::<bool>(), 0u8..5), 0..10),
        facts in proptest::collection::vec((0usize..12, any::<bool>(), any::<bool>(), any::<bool>()), 0..12),
        floor in 0u32..8, rate in 0u32..8,
    ) {
        let states = [NodeState::Open, NodeState::Cordoned, NodeState::Draining, NodeState::Lost, NodeState::Leaving];
        let nodes: Vec<FleetNode> = nodes.iter().enumerate().map(|(i, (web, state))| FleetNode {
            state: states[*state as usize],
            ..node(&format!("n{i:02}"), if *web { "web" } else { "db" })
        }).collect();
        let pods = facts.iter().enumerate().map(|(i, (at, ready, current, leaving))| PodFacts {
            name: format!("p{i}"), leaving: *leaving, ..pod(&format!("n{at:02}"), *ready, *current)
        }).collect();
        let mut view = observed(nodes, pods, floor);
        view.rate = rate;
        let plan = plan(&view);
        prop_assert!(plan.steps() <= rate as usize);
        let find = |name: &str| view.pods.iter().find(|pod| pod.name == name).unwrap();
        let disturbed = plan.update.iter().filter(|name| find(name).ready).count();
        prop_assert!(disturbed as u32 <= view.allowed);
        let gone = deleted(&plan);
        for name in &plan.update {
            prop_assert!(!gone.contains(&name.as_str()) && !find(name).leaving && !find(name).current);
        }
        for node in &plan.create {
            prop_assert!(!view.pods.iter().any(|pod| pod.node == *node));
        }
        // A pod on a chosen node goes only when another one stays there: one alone, unless the
        // rate limit leaves doubles for later.
        let all_done = plan.steps() < rate as usize;
        for name in gone {
            let pod = find(name);
            let chosen = view.fleet.node(&pod.node).is_some_and(|node| view.request.selector.matches(&node.labels));
            let others = view.pods.iter().filter(|other| !other.leaving && other.node == pod.node && !deleted(&plan).contains(&other.name.as_str()));
            let others = others.count();
            prop_assert!(!chosen || others == 1 || (others > 1 && !all_done));
        }
    }
}
