//! Which node a pod is put on.
//!
//! [`Placement`] is asked once for all pods that one decision needs, and answers from plain data:
//! the same fleet and the same request give the same answer. [`Spread`] is the default. What is
//! decided on may be out of date when it is committed, so each commit compares the pods of the
//! nodes that it puts pods on ([`Guard`]): no two programs overcommit a node, however many race.
//!
//! ```
//! use platctrl_controllers::placement::{Fleet, FleetNode, Placement, Request, Spread};
//!
//! let fleet = Fleet::new(["n1", "n2", "n3"].map(FleetNode::named));
//! let request = Request::new("default/hello", "*".parse().unwrap());
//! let chosen = Spread.place(&fleet, &request, 2);
//! assert_eq!(chosen.len(), 2);
//! assert_eq!(chosen, Spread.place(&fleet, &request, 2), "the same view, the same answer");
//! ```

mod accounts;
mod explain;
mod fleet;
mod guard;
#[cfg(test)]
mod rules;
mod spread;

pub use accounts::Accounts;
pub use explain::{Explanation, Refusal};
pub use fleet::{Amounts, Fleet, FleetNode, NodeState, PodNeeds, Room};
pub use guard::Guard;
pub use spread::Spread;

use std::collections::BTreeMap;

use platctrl_framework::model::Selector;

/// What nodes are wanted for: pods of one owner that all ask the same.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The owner's namespace and name. Breaks ties between nodes.
    pub owner: String,
    /// Which nodes may be chosen, by their labels.
    pub selector: Selector,
    /// What each pod asks of its node.
    pub needs: PodNeeds,
    /// How many of the owner's pods one node may run.
    pub per_node: u32,
    /// How many of the owner's pods nodes run already, those on their way out too.
    pub own: BTreeMap<String, u32>,
    /// The label of nodes whose values are to have equally many of the owner's pods each.
    pub spread_over: Option<String>,
    /// Nodes that take no new pods of their own choice are taken, too.
    pub also_cordoned: bool,
}

impl Request {
    /// One pod on each of the nodes that a selector matches, which ask for nothing.
    #[must_use]
    pub fn new(owner: impl Into<String>, selector: Selector) -> Self {
        Self {
            owner: owner.into(),
            selector,
            needs: PodNeeds::default(),
            per_node: 1,
            own: BTreeMap::new(),
            spread_over: None,
            also_cordoned: false,
        }
    }
}

/// Chooses nodes for pods.
pub trait Placement: Send + Sync + 'static {
    /// At most `wanted` nodes, one entry for each pod; a node may come several times. A pod is
    /// put only where nothing [refuses](Fleet::refusal) it, the ones put before it counted.
    fn place(&self, fleet: &Fleet, request: &Request, wanted: u32) -> Vec<String>;
}
