//! The default placement: evenly.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::fleet::hash;
use super::{Fleet, NodeState, Placement, Request, Room};

/// Spreads an owner's pods evenly: first over the values of the label that it names, then over
/// nodes, then to where little is used and few pods run.
///
/// Ties are broken by a hash of owner and node, so that different owners do not all begin with
/// the same node; and in a large fleet owners see loads a little differently, so that they do not
/// all want the one node that is the emptiest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread;

/// From so many nodes on, owners see loads differently.
const LARGE: usize = 64;
/// Steps that a load is told in.
const STEPS: u64 = 16;

/// A number that is made of two others, and looks like neither.
fn tie(owner: u64, what: u64) -> u64 {
    let mut mixed = owner.rotate_left(32) ^ what;
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        mixed = (mixed ^ (mixed >> 29)).wrapping_mul(multiplier);
    }
    mixed ^ (mixed >> 32)
}

/// A number to its three highest bits: exact below eight, then in steps of about an eighth.
fn coarse(number: u32) -> u32 {
    let spare = u32::BITS
        .saturating_sub(number.leading_zeros())
        .saturating_sub(3);
    number >> spare << spare
}

/// How much is used of what is the scarcest, in steps.
fn load(room: Room, used: super::Amounts) -> u64 {
    let share = |used: u64, most: Option<u64>| match most {
        Some(0) => STEPS,
        Some(most) => used.saturating_mul(STEPS) / most,
        None => 0,
    };
    let pods = share(used.pods.into(), room.pods.map(u64::from));
    let cpu = share(used.cpu, room.cpu);
    pods.max(cpu).max(share(used.memory, room.memory))
}

/// What nodes are ordered by: the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    own: u32,
    load: u64,
    pods: u32,
    tie: u64,
    place: usize,
    put: u32,
}

struct Group {
    own: u32,
    tie: u64,
    nodes: BinaryHeap<Reverse<Rank>>,
}

impl Placement for Spread {
    fn place(&self, fleet: &Fleet, request: &Request, wanted: u32) -> Vec<String> {
        let large = fleet.nodes().len() >= LARGE;
        let rank = |place: usize, own: u32, put: u32, tie: u64| {
            let used = (fleet.used(place)).plus(request.needs.amounts.times(put));
            let apart = if large { tie % 4 } else { 0 };
            Rank {
                own,
                load: load(fleet.nodes()[place].room, used) + apart,
                pods: coarse(used.pods).saturating_add(if large {
                    (tie >> 8) as u32 % 4
                } else {
                    0
                }),
                tie,
                place,
                put,
            }
        };
        let owner = hash(&request.owner);
        let mut groups: BTreeMap<&str, (u32, Vec<Reverse<Rank>>)> = BTreeMap::new();
        let mut one = (0, Vec::new());
        let all_own = fleet.own(request);
        for (place, node) in fleet.nodes().iter().enumerate() {
            let own = all_own[place];
            let open = node.state == NodeState::Open
                || (request.also_cordoned && node.state == NodeState::Cordoned);
            // Whether the selector matches is looked at when one comes to its turn.
            let open = open && own < request.per_node;
            if own == 0 && !open {
                continue;
            }
            let (count, nodes) = match &request.spread_over {
                Some(label) => {
                    let value = node.labels.get(label).map_or("", String::as_str);
                    groups.entry(value).or_default()
                }
                None => &mut one,
            };
            // What runs there counts for its value, also where no more can be put.
            *count += own;
            if open {
                nodes.push(Reverse(rank(place, own, 0, tie(owner, fleet.hash(place)))));
            }
        }
        if request.spread_over.is_none() {
            groups.insert("", one);
        }
        let mut groups: Vec<Group> = groups
            .into_iter()
            .map(|(value, (own, nodes))| Group {
                own,
                tie: tie(owner, hash(value)),
                nodes: nodes.into(),
            })
            .collect();
        let order = |group: &Group, index: usize| Reverse((group.own, group.tie, index));
        let mut next: BinaryHeap<_> = groups
            .iter()
            .enumerate()
            .map(|(index, group)| order(group, index))
            .collect();
        let mut chosen = Vec::new();
        while chosen.len() < wanted as usize
            && let Some(Reverse((_, _, index))) = next.pop()
        {
            let group = &mut groups[index];
            while let Some(Reverse(best)) = group.nodes.pop() {
                // What does not depend on how many are put there was looked at for the first.
                let own = best.own.saturating_sub(best.put);
                let refusal = match best.put {
                    0 => fleet.refusal_at(best.place, request, own, 0),
                    put => fleet.lacks(best.place, &request.needs, put),
                };
                if refusal.is_some() {
                    continue;
                }
                chosen.push(fleet.nodes()[best.place].name.to_string());
                if best.own + 1 < request.per_node {
                    let again = rank(best.place, best.own + 1, best.put + 1, best.tie);
                    group.nodes.push(Reverse(again));
                }
                group.own += 1;
                next.push(order(group, index));
                break;
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::{Amounts, FleetNode, PodNeeds};
    use super::*;

    fn pod(app: &str, cpu: u64) -> Arc<PodNeeds> {
        Arc::new(needs(app, cpu))
    }

    fn needs(app: &str, cpu: u64) -> PodNeeds {
        PodNeeds {
            namespace: "default".into(),
            app: app.into(),
            amounts: Amounts {
                cpu,
                memory: 0,
                pods: 1,
            },
            ..PodNeeds::default()
        }
    }

    fn fleet(pods: &[&[Arc<PodNeeds>]]) -> Fleet {
        Fleet::new(pods.iter().enumerate().map(|(i, pods)| FleetNode {
            pods: pods.to_vec(),
            labels: Arc::new([("az".to_owned(), format!("az{}", i % 3))].into()),
            ..FleetNode::named(&format!("n{i}"))
        }))
    }

    fn request(owner: &str) -> Request {
        let mut request = Request::new(owner, "*".parse().unwrap());
        request.needs = needs("web", 0);
        request
    }

    #[test]
    fn pods_go_where_the_owner_has_fewest() {
        let mut asked = request("rc");
        asked.per_node = 3;
        asked.own = [("n0".to_owned(), 2), ("n2".to_owned(), 1)].into();
        let many = vec![pod("a", 0); 9];
        let chosen = Spread.place(&fleet(&[&[], &many, &[]]), &asked, 3);
        assert_eq!(chosen[0], "n1");
        assert!(!chosen.contains(&"n0".to_owned()));
    }

    #[test]
    fn owners_do_not_all_begin_with_the_same_node() {
        let empty: Vec<&[Arc<PodNeeds>]> = vec![&[]; 16];
        let fleet = fleet(&empty);
        let first = |i| {
            Spread
                .place(&fleet, &request(&format!("rc{i}")), 1)
                .remove(0)
        };
        let firsts: BTreeSet<String> = (0..20).map(first).collect();
        assert!(firsts.len() > 4, "{firsts:?}");
    }

    #[test]
    fn in_a_large_fleet_owners_do_not_all_want_the_one_node_that_is_the_emptiest() {
        let some = vec![pod("a", 0); 9];
        let mut nodes: Vec<&[Arc<PodNeeds>]> = vec![&some; 200];
        nodes[77] = &some[..8];
        let fleet = fleet(&nodes);
        let first = |i| {
            Spread
                .place(&fleet, &request(&format!("rc{i}")), 1)
                .remove(0)
        };
        let firsts: BTreeSet<String> = (0..50).map(first).collect();
        assert!(firsts.len() > 25, "{firsts:?}");
    }

    #[test]
    fn pods_are_spread_evenly_over_the_values_of_a_label() {
        let empty: Vec<&[Arc<PodNeeds>]> = vec![&[]; 12];
        let fleet = fleet(&empty);
        let mut asked = request("rc");
        asked.spread_over = Some("az".into());
        // Two run in az0 already.
        asked.own = [("n0".to_owned(), 1), ("n3".to_owned(), 1)].into();
        let chosen = Spread.place(&fleet, &asked, 7);
        let mut counts = BTreeMap::from([("az0", 2)]);
        for node in &chosen {
            *counts
                .entry(&fleet.node(node).unwrap().labels["az"])
                .or_insert(0) += 1;
        }
        assert_eq!(counts, BTreeMap::from([("az0", 3), ("az1", 3), ("az2", 3)]));
    }

    #[test]
    fn one_whose_pattern_matches_itself_is_never_beside_another() {
        // As fleet's units that conflict with `conflict.*.service`: five of them, three machines.
        let mut asked = request("rc");
        asked.needs.conflicts = vec!["we?".into()];
        asked.per_node = 5;
        let chosen = Spread.place(&fleet(&[&[], &[], &[]]), &asked, 5);
        assert_eq!(chosen.len(), 3);
        let distinct: BTreeSet<_> = chosen.iter().collect();
        assert_eq!(distinct.len(), 3);
    }

    #[test]
    fn a_conflict_counts_from_both_sides_and_only_in_one_namespace() {
        let mut hostile = needs("db", 0);
        hostile.conflicts = vec!["web".into()];
        let mut elsewhere = hostile.clone();
        elsewhere.namespace = "other".into();
        let fleet = fleet(&[&[Arc::new(hostile)], &[Arc::new(elsewhere)]]);
        assert_eq!(Spread.place(&fleet, &request("rc"), 2), ["n1"]);
    }

    #[test]
    fn a_pod_that_must_run_beside_another_goes_where_that_is() {
        let fleet = fleet(&[&[], &[pod("db-1", 0)], &[pod("cache", 0)]]);
        let mut asked = request("rc");
        asked.needs.with = vec!["db-*".into()];
        assert_eq!(Spread.place(&fleet, &asked, 2), ["n1"]);
        asked.needs.with.push("cache".into());
        assert!(Spread.place(&fleet, &asked, 1).is_empty());
    }

    #[test]
    fn a_fixed_port_is_given_once_on_a_node() {
        let mut holder = needs("old", 0);
        holder.ports = vec![80];
        let fleet = fleet(&[&[Arc::new(holder)], &[]]);
        let mut asked = request("rc");
        asked.needs.ports = vec![80];
        asked.per_node = 4;
        assert_eq!(Spread.place(&fleet, &asked, 4), ["n1"]);
    }

    #[test]
    fn nodes_that_take_no_new_pods_get_none() {
        let in_state = |(index, state)| FleetNode {
            state,
            ..FleetNode::named(&format!("n{index}"))
        };
        let states = [
            NodeState::Leaving,
            NodeState::Lost,
            NodeState::Draining,
            NodeState::Silent,
            NodeState::Cordoned,
            NodeState::ShortOfDisk,
            NodeState::Open,
        ];
        let fleet = Fleet::new(states.into_iter().enumerate().map(in_state));
        let mut asked = request("rc");
        asked.per_node = 2;
        assert_eq!(Spread.place(&fleet, &asked, 9), ["n6", "n6"]);
        asked.also_cordoned = true;
        assert_eq!(Spread.place(&fleet, &asked, 9).len(), 4, "and n4");
    }

    proptest! {
        #[test]
        fn no_node_is_overcommitted_no_place_is_left_unused_and_the_answer_is_the_same(
            nodes in proptest::collection::vec((0u32..4, 0u64..9, 0u64..12), 0..12),
            wanted in 0u32..40,
            per_node in 1u32..5,
            asks in 0u64..4,
            spread: bool,
        ) {
            let fleet = Fleet::new(nodes.iter().enumerate().map(|(i, (_, used, most))| FleetNode {
                pods: vec![pod("x", *used)],
                room: Room { cpu: Some(*most), ..Room::default() },
                labels: Arc::new([("az".to_owned(), format!("az{}", i % 3))].into()),
                ..FleetNode::named(&format!("n{i:02}"))
            }));
            let mut asked = request("rc");
            asked.needs.amounts.cpu = asks;
            asked.per_node = per_node;
            asked.spread_over = spread.then(|| "az".into());
            asked.own = nodes.iter().enumerate().map(|(i, (own, ..))| (format!("n{i:02}"), *own)).collect();
            let chosen = Spread.place(&fleet, &asked, wanted);
            prop_assert_eq!(&chosen, &Spread.place(&fleet, &asked, wanted));
            let room = |(own, used, most): &(u32, u64, u64)| {
                let by_cpu = most.saturating_sub(*used).checked_div(asks).unwrap_or(u64::MAX);
                per_node.saturating_sub(*own).min(u32::try_from(by_cpu).unwrap_or(u32::MAX))
            };
            let all: u32 = nodes.iter().map(room).sum();
            prop_assert_eq!(chosen.len() as u32, wanted.min(all));
            for (i, node) in nodes.iter().enumerate() {
                let put = chosen.iter().filter(|name| **name == format!("n{i:02}")).count();
                prop_assert!(put as u32 <= room(node));
            }
        }
    }
}
