//! Which node a pod is put on.
//!
//! [`Placement`] is asked once for all pods that one decision needs, and answers from plain data:
//! the same candidates give the same answer. [`Spread`] is the default.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A node that may be asked to run a pod, as a placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub node: String,
    /// The owner's pods that it runs already, and those on their way out.
    pub own: u32,
    /// All pods that it runs.
    pub pods: u32,
}

/// Chooses nodes for pods.
pub trait Placement: Send + Sync + 'static {
    /// At most `wanted` nodes for pods of the owner, one entry for each pod; a node may come
    /// several times but never gets more than `per_node` of the owner's pods.
    fn place(
        &self,
        owner: &str,
        candidates: Vec<Candidate>,
        wanted: u32,
        per_node: u32,
    ) -> Vec<String>;
}

/// Spreads an owner's pods evenly: first where the owner has the fewest, then where the fewest
/// pods run at all. Ties are broken by a hash of owner and node, so that different owners do not
/// all begin with the same node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread;

impl Placement for Spread {
    fn place(
        &self,
        owner: &str,
        candidates: Vec<Candidate>,
        wanted: u32,
        per_node: u32,
    ) -> Vec<String> {
        let tie = |node: &str| {
            // Fixed keys: the same on every run and machine of one build.
            let mut hasher = DefaultHasher::new();
            (owner, node).hash(&mut hasher);
            hasher.finish()
        };
        let mut heap: BinaryHeap<_> = candidates
            .into_iter()
            .filter(|candidate| candidate.own < per_node)
            .map(|candidate| {
                Reverse((
                    candidate.own,
                    candidate.pods,
                    tie(&candidate.node),
                    candidate.node,
                ))
            })
            .collect();
        let mut chosen = Vec::new();
        while let Some(Reverse((own, pods, tie, node))) = heap.pop() {
            if chosen.len() == wanted as usize {
                break;
            }
            chosen.push(node.clone());
            if own + 1 < per_node {
                heap.push(Reverse((own + 1, pods + 1, tie, node)));
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn candidates(counts: &[(u32, u32)]) -> Vec<Candidate> {
        let node = |(index, &(own, pods)): (usize, &(u32, u32))| Candidate {
            node: format!("n{index}"),
            own,
            pods,
        };
        counts.iter().enumerate().map(node).collect()
    }

    proptest! {
        #[test]
        fn no_node_gets_more_than_its_share_and_no_place_is_left_unused(
            counts in proptest::collection::vec((0u32..4, 0u32..9), 0..12),
            wanted in 0u32..40,
            per_node in 1u32..5,
        ) {
            let chosen = Spread.place("rc", candidates(&counts), wanted, per_node);
            let room: u32 = counts.iter().map(|(own, _)| per_node.saturating_sub(*own)).sum();
            prop_assert_eq!(chosen.len() as u32, wanted.min(room));
            let mut totals: BTreeMap<String, u32> = candidates(&counts).into_iter().map(|c| (c.node, c.own)).collect();
            for node in &chosen {
                *totals.get_mut(node).unwrap() += 1;
            }
            for node in &chosen {
                prop_assert!(totals[node] <= per_node);
            }
            prop_assert_eq!(chosen, Spread.place("rc", candidates(&counts), wanted, per_node));
        }
    }

    #[test]
    fn pods_go_where_the_owner_has_fewest() {
        let chosen = Spread.place("rc", candidates(&[(2, 2), (0, 9), (1, 1)]), 3, 3);
        assert_eq!(chosen[0], "n1");
        assert_eq!(chosen.iter().filter(|node| *node == "n0").count(), 0);
    }

    #[test]
    fn owners_do_not_all_begin_with_the_same_node() {
        let first = |owner: &str| {
            Spread
                .place(owner, candidates(&[(0, 0); 16]), 1, 1)
                .remove(0)
        };
        let firsts: std::collections::BTreeSet<_> =
            (0..20).map(|i| first(&format!("rc{i}"))).collect();
        assert!(firsts.len() > 4, "{firsts:?}");
    }
}
