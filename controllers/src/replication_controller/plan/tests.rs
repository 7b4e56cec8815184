use proptest::prelude::*;

use platctrl_kinds::Strategy;

use super::*;
use crate::placement::{FleetNode, PodNeeds, Spread};

fn pod(name: &str, node: &str, ready: bool) -> PodFacts {
    PodFacts {
        name: name.into(),
        node: node.into(),
        ready,
        leaving: false,
        singleton: false,
        taken_back: false,
        gone: false,
        current: true,
        same_spec: false,
        created: 1,
        grows: false,
        stuck: None,
    }
}

fn node(index: usize) -> FleetNode {
    FleetNode::named(&format!("n{index}"))
}

fn observed(replicas: u32, nodes: usize, pods: Vec<PodFacts>) -> Observed {
    let mut request = Request::new("default/hello", "*".parse().unwrap());
    for pod in &pods {
        *request.own.entry(pod.node.clone()).or_default() += 1;
    }
    Observed {
        request,
        fleet: Arc::new(Fleet::new((0..nodes).map(node))),
        replicas,
        strategy: Strategy::Static,
        claimed: false,
        disabled: false,
        pods,
        orphans: Vec::new(),
        budget: Budget {
            floor: replicas,
            ..Budget::default()
        },
    }
}

fn dynamic(replicas: u32, nodes: usize, pods: Vec<PodFacts>) -> Observed {
    Observed {
        strategy: Strategy::Dynamic,
        ..observed(replicas, nodes, pods)
    }
}

fn decide(observed: &Observed) -> Plan {
    plan(observed, &Spread)
}

fn deleted(plan: &Plan) -> Vec<&str> {
    plan.delete.iter().map(|pod| pod.name.as_str()).collect()
}

#[test]
fn missing_pods_are_created_where_there_is_room() {
    let plan = decide(&observed(3, 2, vec![pod("a", "n0", true)]));
    assert_eq!(plan.create, ["n1"]);
    assert_eq!((plan.unplaced, plan.live, plan.ready), (1, 1, 1));
}

#[test]
fn pods_of_an_end_that_was_taken_back_are_replaced_when_they_are_gone_and_not_before() {
    let pods = |gone, taken_back| {
        let leaving = |name, node| PodFacts {
            leaving: true,
            gone,
            taken_back,
            ..pod(name, node, false)
        };
        observed(2, 4, vec![leaving("a", "n0"), leaving("b", "n1")])
    };
    let plan = decide(&pods(false, true));
    assert_eq!((plan.create.len(), plan.unplaced), (0, 0));
    let waits = plan.wait.unwrap().to_string();
    assert!(waits.contains("when a is gone"), "{waits}");
    assert_eq!(decide(&pods(true, true)).create.len(), 2, "it was too late");
    assert_eq!(
        decide(&pods(false, false)).create.len(),
        2,
        "ended by others"
    );
    // Of pods on a machine that is not heard of nobody knows how long they take.
    let mut lost = pods(false, true);
    let state = |index| FleetNode {
        state: match index {
            0 => NodeState::Lost,
            _ => NodeState::Open,
        },
        ..node(index)
    };
    lost.fleet = Arc::new(Fleet::new((0..4).map(state)));
    assert_eq!(decide(&lost).create.len(), 1);
}

#[test]
fn a_pod_on_its_way_out_holds_its_place() {
    let leaving = PodFacts {
        leaving: true,
        ..pod("a", "n0", false)
    };
    let plan = decide(&observed(1, 1, vec![leaving]));
    assert!(plan.create.is_empty());
    assert_eq!(plan.unplaced, 1);
}

#[test]
fn of_too_many_pods_the_unready_go_first_then_the_ineligible_then_the_newest() {
    let at = |created, pod| PodFacts { created, ..pod };
    let pods = vec![
        at(1, pod("old", "n0", true)),
        at(9, pod("new", "n1", true)),
        at(2, pod("elsewhere", "x", true)),
        at(1, pod("unready", "n2", false)),
    ];
    let gone = |replicas| {
        let plan = decide(&observed(replicas, 3, pods.clone()));
        deleted(&plan).join(" ")
    };
    assert_eq!(gone(3), "unready");
    assert_eq!(gone(2), "unready elsewhere");
    assert_eq!(gone(1), "unready elsewhere new");
}

#[test]
fn a_new_template_costs_one_ready_pod_at_a_time() {
    let old = |name: &str, ready| PodFacts {
        current: false,
        ..pod(name, "n0", ready)
    };
    let mut view = observed(
        3,
        3,
        vec![old("a", true), old("b", true), pod("c", "n1", true)],
    );
    view.budget.floor = 2;
    assert_eq!(decide(&view).update, ["a"]);
    view.pods[2].ready = false;
    let plan = decide(&view);
    assert!(
        plan.update.is_empty(),
        "the one updated before is not ready"
    );
    let wait = Wait::Ready {
        ready: 2,
        needed: 3,
    };
    assert_eq!(plan.wait, Some(wait));
    view.pods[1].ready = false;
    assert_eq!(
        decide(&view).update,
        ["b"],
        "an unready one is lost already"
    );
}

#[test]
fn a_new_template_waits_where_no_healthy_pod_may_be_spared_and_says_who_says_so() {
    let old = |name: &str, ready| PodFacts {
        current: false,
        ..pod(name, "n0", ready)
    };
    let mut view = observed(2, 3, vec![old("a", true), old("b", true)]);
    view.budget.by = Some("all".into());
    let plan = decide(&view);
    assert!(plan.update.is_empty() && plan.outdated == 2, "{plan:?}");
    let wait = plan.wait.unwrap().to_string();
    assert_eq!(
        wait,
        "a gets the template when more than 2 pods are healthy; 2 are (disruption budget all)"
    );
    // What is decided about others counts.
    (view.budget.floor, view.budget.open) = (1, 1);
    let wait = decide(&view).wait.unwrap().to_string();
    assert!(wait.contains("2 are, 1 of them on their way out"), "{wait}");
    // Labels disturb nobody, and who is not healthy loses nothing.
    view.pods[0].same_spec = true;
    assert_eq!(decide(&view).update, ["a"]);
    view.pods[1].ready = false;
    assert_eq!(decide(&view).update, ["b"]);
}

#[test]
fn static_keeps_pods_on_nodes_that_no_longer_match_and_says_so() {
    let plan = decide(&observed(1, 1, vec![pod("a", "gone", true)]));
    assert!(plan.create.is_empty() && plan.delete.is_empty());
    assert_eq!(plan.astray["a"], Astray::NodeMissing);
}

#[test]
fn dynamic_moves_a_pod_when_its_replacement_is_ready_and_not_before() {
    let newer = |ready| PodFacts {
        created: 5,
        ..pod("new", "n1", ready)
    };
    let mut view = dynamic(2, 3, vec![pod("a", "n0", true), pod("stray", "x", true)]);
    let plan = decide(&view);
    assert_eq!((plan.create.len(), plan.delete.len()), (1, 0));
    view.pods.push(newer(false));
    let plan = decide(&view);
    assert_eq!((plan.create.len(), plan.delete.len()), (0, 0));
    let wait = Wait::Replacement {
        pod: "new".into(),
        instead_of: "stray".into(),
    };
    assert_eq!(plan.wait, Some(wait));
    view.pods[2] = newer(true);
    assert_eq!(deleted(&decide(&view)), ["stray"]);
    view.budget.open = 1;
    let plan = decide(&view);
    assert!(plan.delete.is_empty());
    let wait = Wait::Budget {
        pod: "stray".into(),
        until: Shortage {
            healthy: 3,
            open: 1,
            needed: 2,
            budget: None,
        },
    };
    assert_eq!(
        plan.wait,
        Some(wait),
        "somebody else takes one away already"
    );
}

#[test]
fn dynamic_moves_one_pod_after_the_other_and_those_that_are_lost_first() {
    let strays = vec![
        pod("ready", "x", true),
        pod("lost", "y", false),
        pod("a", "n0", true),
        PodFacts {
            created: 5,
            ..pod("new", "n1", true)
        },
    ];
    let mut view = dynamic(3, 4, strays);
    assert_eq!(deleted(&decide(&view)), ["lost"]);
    view.pods[1].leaving = true;
    // Its node is not there to say that it is gone: the next one is moved all the same.
    assert_eq!(decide(&view).create.len(), 1);
    // A node that is there has to say so.
    view.pods[1].node = "n2".into();
    let plan = decide(&view);
    assert!(plan.create.is_empty());
    let wait = Wait::Leaving { pod: "lost".into() };
    assert_eq!(plan.wait, Some(wait));
}

#[test]
fn dynamic_replaces_a_lost_pod_although_another_is_broken() {
    let view = dynamic(
        3,
        4,
        vec![
            pod("broken", "n0", false),
            pod("lost", "x", false),
            pod("a", "n1", true),
            PodFacts {
                created: 5,
                ..pod("new", "n2", true)
            },
        ],
    );
    assert_eq!(deleted(&decide(&view)), ["lost"]);
}

#[test]
fn dynamic_without_a_place_for_a_replacement_moves_nothing_and_says_so() {
    let plan = decide(&dynamic(
        2,
        1,
        vec![pod("a", "n0", true), pod("stray", "x", true)],
    ));
    assert_eq!(plan.steps(), 0);
    let wait = Wait::Place {
        instead_of: "stray".into(),
    };
    assert_eq!(plan.wait, Some(wait));
}

#[test]
fn without_any_node_nothing_is_moved() {
    let pods = vec![pod("a", "n0", true), pod("b", "n1", false)];
    let plan = decide(&dynamic(2, 0, pods));
    assert_eq!(plan.steps(), 0);
}

#[test]
fn a_disabled_controller_does_nothing_and_counts() {
    let mut view = observed(1, 2, vec![pod("a", "n0", true), pod("b", "n1", true)]);
    view.disabled = true;
    view.orphans = vec!["c".into()];
    let plan = decide(&view);
    assert_eq!((plan.steps(), plan.live, plan.ready), (0, 2, 2));
}

#[test]
fn orphans_are_taken_over_before_anything_is_counted() {
    let mut view = observed(2, 3, vec![pod("a", "n0", true)]);
    view.orphans = vec!["b".into()];
    let plan = decide(&view);
    assert_eq!(plan.adopt, ["b"]);
    assert_eq!(plan.steps(), 1);
}

#[test]
fn two_pods_of_one_node_do_not_grow_at_once() {
    let growing = |name: &str| PodFacts {
        current: false,
        grows: true,
        ..pod(name, "n0", false)
    };
    let view = observed(2, 1, vec![growing("a"), growing("b")]);
    assert_eq!(decide(&view).update.len(), 1);
}

#[test]
fn a_pod_whose_node_has_no_room_for_the_template_is_moved_under_dynamic_and_kept_under_static() {
    let stuck = PodFacts {
        current: false,
        grows: true,
        stuck: Some(Refusal::Pods { most: 1 }),
        ..pod("a", "n0", true)
    };
    let plan = decide(&observed(1, 2, vec![stuck.clone()]));
    assert_eq!((plan.steps(), plan.outdated), (0, 1));
    let plan = decide(&dynamic(1, 2, vec![stuck]));
    assert_eq!(plan.create, ["n1"]);
}

prop_compose! {
    fn pods()(facts in proptest::collection::vec((0usize..6, any::<bool>(), any::<bool>(), any::<bool>(), 0i64..5), 0..12)) -> Vec<PodFacts> {
        facts.into_iter().enumerate().map(|(i, (node, ready, leaving, current, created))| PodFacts {
            leaving, current, created, ..pod(&format!("p{i}"), &format!("n{node}"), ready)
        }).collect()
    }
}

proptest! {
    #[test]
    fn a_plan_leads_to_the_wanted_number_and_takes_no_more_than_it_may(
        pods in pods(), replicas in 0u32..10, nodes in 0usize..6, max_per_node in 1u32..3,
        floor in 0u32..10,
    ) {
        let mut view = observed(replicas, nodes, pods);
        view.request.per_node = max_per_node;
        view.budget.floor = floor;
        let plan = decide(&view);
        let after = plan.live + plan.create.len() as u32 - plan.delete.len() as u32;
        prop_assert_eq!(after + plan.unplaced, replicas, "{:?}", plan);
        prop_assert!(plan.create.is_empty() || plan.delete.is_empty());
        // Of healthy pods that stay, at most one is touched.
        let find = |name: &str| view.pods.iter().find(|pod| pod.name == name).unwrap();
        let healthy_updates = plan.update.iter().filter(|name| find(name).ready).count();
        let healthy = view.pods.iter().filter(|pod| pod.ready && !pod.leaving).count() as u32;
        prop_assert!(healthy_updates as u32 <= view.budget.allowed(healthy).min(1));
        let gone = deleted(&plan);
        prop_assert!(plan.update.iter().all(|name| !gone.contains(&name.as_str()) && !find(name).leaving));
        // A ready pod is deleted only when no unready one is kept.
        let deletes_ready = gone.iter().any(|name| find(name).ready);
        let keeps_unready = view.pods.iter().any(|pod| !pod.leaving && !pod.ready && !gone.contains(&pod.name.as_str()));
        prop_assert!(!(deletes_ready && keeps_unready));
    }

    #[test]
    fn moves_never_make_fewer_healthy_and_never_more_than_one_pod_too_many(
        at in proptest::collection::vec((0usize..6, any::<bool>()), 1..6),
        lost in proptest::collection::vec(any::<bool>(), 6),
        sick in proptest::collection::vec(any::<bool>(), 64),
    ) {
        // Played to the end: new pods become ready a step later unless they are sick.
        let nodes: Vec<FleetNode> = lost.iter().enumerate().map(|(i, lost)| FleetNode {
            state: if *lost { NodeState::Lost } else { NodeState::Open },
            ..node(i)
        }).collect();
        let replicas = at.len() as u32;
        let start = at.iter().enumerate().map(|(i, (node, ready))| pod(&format!("p{i}"), &format!("n{node}"), *ready)).collect();
        let mut view = Observed { fleet: Arc::new(Fleet::new(nodes)), ..dynamic(replicas, 0, start) };
        view.request.per_node = 2;
        let mut made = 0;
        let mut steps = 0;
        loop {
            let healthy = view.pods.iter().filter(|pod| pod.ready && !pod.leaving).count();
            let plan = decide(&view);
            prop_assert!(plan.delete.len() <= 1 && plan.create.len() <= 1, "{:?}", plan);
            if plan.steps() == 0 && view.pods.iter().all(|pod| pod.ready || sick.get(pod.created as usize).copied().unwrap_or(false) || lost[pod.node[1..].parse::<usize>().unwrap()]) {
                break;
            }
            steps += 1;
            prop_assert!(steps < 100, "it does not end: {:?}", plan);
            for name in deleted(&plan) {
                view.pods.retain(|pod| pod.name != name);
            }
            let left = view.pods.iter().filter(|pod| pod.ready).count();
            // What goes is ready only if another one came for it.
            prop_assert!(left >= healthy.min(replicas as usize), "{} of {}", left, healthy);
            prop_assert!(view.pods.len() <= replicas as usize + 1);
            for pod in &mut view.pods {
                let node: usize = pod.node[1..].parse().unwrap();
                pod.ready |= !lost[node] && !sick[pod.created as usize];
            }
            for node in plan.create {
                made += 1;
                view.pods.push(PodFacts { created: 1 + made, ..pod(&format!("m{made}"), &node, false) });
            }
            view.request.own.clear();
            for pod in &view.pods {
                *view.request.own.entry(pod.node.clone()).or_default() += 1;
            }
        }
    }
}

#[test]
fn a_pod_that_ran_beside_another_that_went_is_astray() {
    let mut view = observed(1, 1, vec![pod("a", "n0", true)]);
    view.request.needs = PodNeeds {
        with: vec!["db".into()],
        ..PodNeeds::default()
    };
    assert_eq!(decide(&view).astray["a"], Astray::Without("db".to_owned()));
}

fn in_state(index: usize, state: NodeState, moves_static: bool) -> FleetNode {
    FleetNode {
        state,
        moves_static,
        ..node(index)
    }
}

fn on(observed: Observed, nodes: impl IntoIterator<Item = FleetNode>) -> Observed {
    Observed {
        fleet: Arc::new(Fleet::new(nodes)),
        ..observed
    }
}

fn singleton(name: &str, node: &str) -> PodFacts {
    PodFacts {
        singleton: true,
        ..pod(name, node, true)
    }
}

#[test]
fn a_drain_moves_pods_of_a_static_controller_only_when_it_says_so() {
    let pods = || vec![pod("a", "n0", true), pod("b", "n1", true)];
    let with = |moves_static| {
        let nodes = [
            in_state(0, NodeState::Draining, moves_static),
            node(1),
            node(2),
        ];
        decide(&on(observed(2, 0, pods()), nodes))
    };
    let stays = with(false);
    assert!(stays.create.is_empty() && stays.wait.is_none());
    assert_eq!(stays.astray.len(), 1, "it is said");
    assert_eq!(with(true).create, ["n2"], "its replacement comes first");
}

#[test]
fn a_drained_pod_of_a_claimed_controller_goes_first_and_within_the_budget() {
    let nodes = || [in_state(0, NodeState::Draining, false), node(1), node(2)];
    let pods = vec![pod("a", "n0", true), pod("b", "n1", true)];
    let mut view = on(dynamic(2, 0, pods), nodes());
    view.claimed = true;
    let waits = decide(&view);
    assert!(matches!(waits.wait, Some(Wait::Budget { .. })), "{waits:?}");
    view.budget.floor = 1;
    let goes = decide(&view);
    assert_eq!((deleted(&goes), goes.create.len()), (vec!["a"], 0));
    // What only does not match is the roll's.
    view.fleet = Arc::new(Fleet::new([node(0), node(1), node(2)]));
    view.request.selector = "n in (1,2)".parse().unwrap();
    let stays = decide(&view);
    assert_eq!((stays.astray.len(), stays.steps()), (2, 0), "{stays:?}");
}

#[test]
fn a_pod_of_a_claimed_controller_whose_node_is_given_up_is_made_anew_whatever_the_floor() {
    let nodes = [in_state(0, NodeState::Lost, false), node(1), node(2)];
    let pods = vec![pod("a", "n0", false), pod("b", "n1", true)];
    let mut view = on(dynamic(2, 0, pods), nodes);
    view.claimed = true;
    let goes = decide(&view);
    assert_eq!((deleted(&goes), goes.create.len()), (vec!["a"], 0));
    view.pods[0].leaving = true;
    assert_eq!(decide(&view).create, ["n2"]);
    view.strategy = Strategy::Static;
    view.pods[0].leaving = false;
    assert_eq!(decide(&view).steps(), 0, "it waits for the node");
}

#[test]
fn a_pod_that_never_runs_twice_goes_before_another_one_comes() {
    let nodes = || [in_state(0, NodeState::Draining, false), node(1)];
    let mut view = on(dynamic(1, 0, vec![singleton("a", "n0")]), nodes());
    view.budget.floor = 0;
    let goes = decide(&view);
    assert_eq!((deleted(&goes), goes.create.len()), (vec!["a"], 0));
    view.pods[0].leaving = true;
    let waits = decide(&view);
    assert_eq!(waits.steps(), 0);
    assert_eq!(waits.wait, Some(Wait::Leaving { pod: "a".into() }));
    view.pods[0].gone = true;
    assert_eq!(decide(&view).create, ["n1"]);
}

#[test]
fn a_pod_that_never_runs_twice_stays_on_a_lost_node_until_that_is_retired() {
    let nodes = || [in_state(0, NodeState::Lost, false), node(1)];
    let mut view = on(dynamic(1, 0, vec![singleton("a", "n0")]), nodes());
    (view.pods[0].ready, view.budget.floor) = (false, 0);
    let retirement = Some(Wait::Retirement {
        pod: "a".into(),
        node: "n0".into(),
    });
    let waits = decide(&view);
    assert_eq!((waits.steps(), waits.wait.clone()), (0, retirement.clone()));
    let text = waits.wait.unwrap().to_string();
    assert!(text.contains("platctrl node retire n0"), "{text}");
    // Deleted by a person: the same.
    view.pods[0].leaving = true;
    let waits = decide(&view);
    assert_eq!((waits.steps(), waits.wait), (0, retirement));
    // Its record is gone, as the node's retirement makes it.
    view.pods.clear();
    assert_eq!(decide(&view).create, ["n1"]);
}
