//! What a replication controller does next, from plain data.

use std::collections::BTreeMap;

use crate::placement::{Candidate, Placement};

/// What a plan is made from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The controller's namespace and name: breaks ties between nodes.
    pub owner: String,
    /// How many pods are wanted.
    pub replicas: u32,
    /// How many of them one node may run.
    pub max_per_node: u32,
    /// The pods it owns, also those on their way out.
    pub pods: Vec<PodFacts>,
    /// The nodes that match its selector.
    pub eligible: BTreeMap<String, NodeFacts>,
}

/// A pod, as far as a plan is about it. `name` orders pods of the same age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// It is ready, with the spec that is wanted of it now.
    pub ready: bool,
    /// It has a tombstone.
    pub leaving: bool,
    /// Its spec and labels are those of the template.
    pub current: bool,
    /// When it was created, as a number that grows.
    pub created: i64,
}

/// A node, as far as a plan is about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// New pods may be put on it.
    pub schedulable: bool,
    /// All pods that it runs, whoever owns them.
    pub pods: u32,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nodes to create pods on, one entry for each pod.
    pub create: Vec<String>,
    /// Names of pods to delete.
    pub delete: Vec<String>,
    /// Names of pods to bring to the present template, in place.
    pub update: Vec<String>,
    /// Pods that are wanted and have no place.
    pub unplaced: u32,
    /// Pods that are not of the present template and wait for their turn.
    pub outdated: u32,
    /// Pods on nodes that do not match the selector: they stay, and are reported.
    pub ineligible: u32,
    /// Pods that are not on their way out, before this plan.
    pub live: u32,
    /// Those of them that are ready and of the present template.
    pub ready: u32,
}

/// Decides what to do next.
///
/// - Too few pods: new ones where [`Placement`] says. Pods on their way out hold their places.
/// - Too many: first those not ready, then those on nodes that do not match, then the newest.
/// - Pods of an earlier template are updated in place: those not ready at once, since nothing is
///   lost by it; of those ready one at a time, and only while every other pod is ready, so that a
///   template that does not work costs one pod.
#[must_use]
pub fn plan(observed: &Observed, placement: &dyn Placement) -> Plan {
    let live: Vec<&PodFacts> = observed.pods.iter().filter(|pod| !pod.leaving).collect();
    let count = u32::try_from(live.len()).unwrap_or(u32::MAX);
    let is_eligible = |pod: &PodFacts| observed.eligible.contains_key(&pod.node);
    let mut plan = Plan {
        live: count,
        ready: count_of(&live, |pod| pod.ready && pod.current),
        ineligible: count_of(&live, |pod| !is_eligible(pod)),
        ..Plan::default()
    };
    if count < observed.replicas {
        let wanted = observed.replicas - count;
        let mut own: BTreeMap<&str, u32> = BTreeMap::new();
        for pod in &observed.pods {
            *own.entry(&pod.node).or_default() += 1;
        }
        let schedulable = observed
            .eligible
            .iter()
            .filter(|(_, facts)| facts.schedulable);
        let candidates = schedulable
            .map(|(node, facts)| Candidate {
                node: node.clone(),
                own: own.get(node.as_str()).copied().unwrap_or(0),
                pods: facts.pods,
            })
            .collect();
        plan.create = placement.place(&observed.owner, candidates, wanted, observed.max_per_node);
        plan.unplaced = wanted - u32::try_from(plan.create.len()).unwrap_or(wanted);
    }
    let mut kept = live;
    if count > observed.replicas {
        // The first in this order go first.
        kept.sort_by_key(|pod| {
            (
                pod.ready,
                is_eligible(pod),
                std::cmp::Reverse((pod.created, pod.name.clone())),
            )
        });
        let surplus = (count - observed.replicas) as usize;
        plan.delete = kept.drain(..surplus).map(|pod| pod.name.clone()).collect();
    }
    let outdated = kept.iter().filter(|pod| !pod.current);
    let (ready, unready): (Vec<&PodFacts>, Vec<&PodFacts>) = outdated.partition(|pod| pod.ready);
    let everybody_is_ready = kept.iter().all(|pod| pod.ready) && plan.create.is_empty();
    plan.update = unready.iter().map(|pod| pod.name.clone()).collect();
    plan.outdated = u32::try_from(ready.len()).unwrap_or(u32::MAX);
    if everybody_is_ready
        && let Some(next) = ready.iter().min_by_key(|pod| (pod.created, &pod.name))
    {
        plan.update.push(next.name.clone());
        plan.outdated -= 1;
    }
    plan
}

fn count_of(pods: &[&PodFacts], is: impl Fn(&PodFacts) -> bool) -> u32 {
    u32::try_from(pods.iter().filter(|pod| is(pod)).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::placement::Spread;

    fn pod(name: &str, node: &str, ready: bool) -> PodFacts {
        PodFacts {
            name: name.into(),
            node: node.into(),
            ready,
            leaving: false,
            current: true,
            created: 1,
        }
    }

    fn observed(replicas: u32, nodes: usize, pods: Vec<PodFacts>) -> Observed {
        let eligible = (0..nodes)
            .map(|i| {
                (
                    format!("n{i}"),
                    NodeFacts {
                        schedulable: true,
                        pods: 0,
                    },
                )
            })
            .collect();
        Observed {
            owner: "default/hello".into(),
            replicas,
            max_per_node: 1,
            pods,
            eligible,
        }
    }

    #[test]
    fn missing_pods_are_created_where_there_is_room() {
        let plan = plan(&observed(3, 2, vec![pod("a", "n0", true)]), &Spread);
        assert_eq!(plan.create, ["n1"]);
        assert_eq!((plan.unplaced, plan.live, plan.ready), (1, 1, 1));
    }

    #[test]
    fn a_pod_on_its_way_out_holds_its_place() {
        let leaving = PodFacts {
            leaving: true,
            ..pod("a", "n0", false)
        };
        let plan = plan(&observed(1, 1, vec![leaving]), &Spread);
        assert!(plan.create.is_empty());
        assert_eq!(plan.unplaced, 1);
    }

    #[test]
    fn of_too_many_pods_the_unready_go_first_then_the_ineligible_then_the_newest() {
        let pods = vec![
            PodFacts {
                created: 1,
                ..pod("old", "n0", true)
            },
            PodFacts {
                created: 9,
                ..pod("new", "n1", true)
            },
            PodFacts {
                created: 2,
                ..pod("elsewhere", "x", true)
            },
            PodFacts {
                created: 1,
                ..pod("unready", "n2", false)
            },
        ];
        let deleted = |replicas| plan(&observed(replicas, 3, pods.clone()), &Spread).delete;
        assert_eq!(deleted(3), ["unready"]);
        assert_eq!(deleted(2), ["unready", "elsewhere"]);
        assert_eq!(deleted(1), ["unready", "elsewhere", "new"]);
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
        assert_eq!(plan(&view, &Spread).update, ["a"]);
        view.pods[2].ready = false;
        assert!(
            plan(&view, &Spread).update.is_empty(),
            "the pod updated before is not ready"
        );
        view.pods[1].ready = false;
        assert_eq!(
            plan(&view, &Spread).update,
            ["b"],
            "an unready one is lost already"
        );
    }

    #[test]
    fn pods_on_nodes_that_no_longer_match_stay_and_are_counted() {
        let plan = plan(&observed(1, 1, vec![pod("a", "gone", true)]), &Spread);
        assert!(plan.create.is_empty() && plan.delete.is_empty());
        assert_eq!(plan.ineligible, 1);
    }

    prop_compose! {
        fn pods()(facts in proptest::collection::vec((0usize..6, any::<bool>(), any::<bool>(), any::<bool>(), 0i64..5), 0..12)) -> Vec<PodFacts> {
            facts.into_iter().enumerate().map(|(i, (node, ready, leaving, current, created))| PodFacts {
                name: format!("p{i}"), node: format!("n{node}"), ready, leaving, current, created,
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn a_plan_leads_to_the_wanted_number_and_takes_no_more_than_it_may(
            pods in pods(), replicas in 0u32..10, nodes in 0usize..6, max_per_node in 1u32..3,
        ) {
            let view = Observed { max_per_node, ..observed(replicas, nodes, pods) };
            let plan = plan(&view, &Spread);
            let after = plan.live + plan.create.len() as u32 - plan.delete.len() as u32;
            prop_assert_eq!(after + plan.unplaced, replicas, "{:?}", plan);
            prop_assert!(plan.create.is_empty() || plan.delete.is_empty());
            // Of healthy pods that stay, at most one is touched.
            let find = |name: &String| view.pods.iter().find(|pod| pod.name == *name).unwrap();
            let healthy_updates = plan.update.iter().filter(|name| find(name).ready).count();
            prop_assert!(healthy_updates <= 1);
            prop_assert!(plan.update.iter().all(|name| !plan.delete.contains(name) && !find(name).leaving));
            // A ready pod is deleted only when no unready one is kept.
            let deletes_ready = plan.delete.iter().any(|name| find(name).ready);
            let keeps_unready = view.pods.iter().any(|pod| !pod.leaving && !pod.ready && !plan.delete.contains(&pod.name));
            prop_assert!(!(deletes_ready && keeps_unready));
        }
    }
}
