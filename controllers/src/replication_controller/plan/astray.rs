//! Pods that are not where they should be: why, and whether they are taken elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use platctrl_kinds::Strategy;

use super::{Observed, PodFacts};
use crate::placement::{NodeState, Refusal};

/// Why a pod is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Astray {
    /// Its node's labels do not match.
    NotSelected,
    /// There is no record of its node.
    NodeMissing,
    /// Its node is lost, drained or retired.
    Node(NodeState),
    /// No pod of an app is there that it must run beside.
    Without(String),
    /// Its node has not what the present template asks.
    NoRoom(Refusal),
}

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSelected => f.write_str("its node does not match the selector"),
            Self::NodeMissing => f.write_str("there is no record of its node"),
            Self::Node(state) => write!(f, "of its node: {}", Refusal::State(*state)),
            Self::Without(pattern) => write!(f, "its node does not run `{pattern}`"),
            Self::NoRoom(refusal) => write!(f, "of its node: {refusal}"),
        }
    }
}

pub(super) type Strays = BTreeMap<String, Astray>;

/// Why a pod on this node is not where it should be.
#[must_use]
pub fn astray(observed: &Observed, pod: &PodFacts) -> Option<Astray> {
    off_limits(observed, &pod.node).or_else(|| no_room(pod))
}

fn no_room(pod: &PodFacts) -> Option<Astray> {
    let refusal = pod.stuck.clone().filter(|_| !pod.current);
    refusal.map(Astray::NoRoom)
}

/// Why no pod of this controller should be on a node.
fn off_limits(observed: &Observed, node: &str) -> Option<Astray> {
    let Some(node) = observed.fleet.node(node) else {
        return Some(Astray::NodeMissing);
    };
    if matches!(
        node.state,
        NodeState::Draining | NodeState::Lost | NodeState::Leaving
    ) {
        return Some(Astray::Node(node.state));
    }
    if !observed.request.selector.matches(&node.labels) {
        return Some(Astray::NotSelected);
    }
    if let Some(pattern) = node.misses(&observed.request.needs) {
        return Some(Astray::Without(pattern.to_owned()));
    }
    None
}

/// Those that are not where they should be. Pods of one node come one after the other.
pub(super) fn strays_of(observed: &Observed, live: &[&PodFacts]) -> Strays {
    let mut strays = Strays::new();
    let mut last: Option<(&str, Option<Astray>)> = None;
    for pod in live {
        let why = match &last {
            Some((node, why)) if *node == pod.node => why.clone(),
            _ => off_limits(observed, &pod.node),
        };
        last = Some((&pod.node, why.clone()));
        let why = why.or_else(|| no_room(pod));
        strays.extend(why.map(|why| (pod.name.clone(), why)));
    }
    strays
}

/// A pod that is not where it should be is taken elsewhere.
pub(super) fn is_moved(observed: &Observed, pod: &PodFacts, why: &Astray) -> bool {
    let drained = *why == Astray::Node(NodeState::Draining);
    let node = observed.fleet.node(&pod.node);
    if drained && node.is_some_and(|node| node.moves_static) {
        return true;
    }
    // While a roll says which pods go, it is asked; of a node that is given up there is no asking.
    let given_up = matches!(why, Astray::Node(_) | Astray::NodeMissing);
    observed.strategy == Strategy::Dynamic && (given_up || !observed.claimed)
}

/// Nobody can say that the node's pods have stopped.
pub(super) fn is_out_of_reach(observed: &Observed, pod: &PodFacts) -> bool {
    let node = observed.fleet.node(&pod.node);
    node.is_none_or(|node| node.state == NodeState::Lost)
}
