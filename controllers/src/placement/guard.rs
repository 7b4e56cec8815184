//! What makes a commit that puts pods on nodes safe: the nodes' pods are as they were seen.

use std::collections::BTreeMap;

use platctrl_framework::model::{Resource, Tree};
use platctrl_framework::store::{Capabilities, Compare, Prefix, Revision};
use platctrl_kinds::Pod;

/// Compares of nodes' pods with what was decided on.
///
/// Nothing is written for it, so readers are not woken and a delete does not disturb. On a backend
/// that cannot compare a node's pods (see [`Capabilities::group_compare`]) it compares nothing:
/// two programs may then put a pod each in the last place of a node.
#[derive(Clone, Debug)]
pub struct Guard {
    seen: Revision,
    /// Nodes that this decision put pods on already: nothing else was put there since it was
    /// seen, or the commit had been refused.
    own: BTreeMap<String, Revision>,
    works: bool,
}

impl Guard {
    /// A guard for what is decided on all pods' intents as they were at `seen`.
    #[must_use]
    pub fn new(seen: Revision, capabilities: &Capabilities) -> Self {
        Self {
            seen,
            own: BTreeMap::new(),
            works: capabilities.group_compare,
        }
    }

    /// That no pod came to the node and none of its pods was changed since it was seen.
    #[must_use]
    pub fn compare(&self, node: &str) -> Option<Compare> {
        let seen = self.own.get(node).copied().unwrap_or(self.seen);
        let prefix = of_node(node).filter(|_| self.works)?;
        Some(Compare::RangeNotNewer(prefix, seen))
    }

    /// Nodes can be compared.
    pub(crate) fn works(&self) -> bool {
        self.works
    }

    /// A node's compare shows also that what was not seen there is not there.
    pub(crate) fn shows_absence(&self, node: &str) -> bool {
        self.works && !self.own.contains_key(node)
    }

    /// A commit that put pods on these nodes happened.
    pub fn put<'n>(&mut self, nodes: impl IntoIterator<Item = &'n str>, at: Revision) {
        for node in nodes {
            self.own.insert(node.to_owned(), at);
        }
    }

    /// The node that a compare of a guard is about.
    #[must_use]
    pub fn node(compare: &Compare) -> Option<&str> {
        let Compare::RangeNotNewer(prefix, _) = compare else {
            return None;
        };
        let pods = Pod::group_plural().prefix(Tree::Intent);
        prefix
            .as_str()
            .strip_prefix(pods.as_str())?
            .strip_suffix('/')
    }
}

/// The intents of a node's pods.
fn of_node(node: &str) -> Option<Prefix> {
    let pods = Pod::group_plural().prefix(Tree::Intent);
    Prefix::new(format!("{}{node}/", pods.as_str())).ok()
}

#[cfg(test)]
mod tests {
    use platctrl_framework::store::Limits;

    use super::*;

    fn guard() -> Guard {
        let limits = Limits {
            max_writes: 1,
            max_compares: 1,
            max_operations: 1,
            max_transaction_bytes: 1,
            max_value_bytes: 1,
        };
        let mut capabilities = Capabilities::new(limits);
        capabilities.group_compare = true;
        Guard::new(Revision::new(0, 7), &capabilities)
    }

    #[test]
    fn a_node_is_compared_with_when_it_was_seen_or_last_written_by_oneself() {
        let mut guard = guard();
        guard.put(["n1"], Revision::new(0, 9));
        let at = |node: &str| match guard.compare(node) {
            Some(Compare::RangeNotNewer(prefix, revision)) => {
                assert_eq!(
                    prefix.as_str(),
                    format!("o/intent/platctrl.dev/pods/{node}/")
                );
                revision.counter()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((at("n1"), at("n10")), (9, 7));
        assert_eq!(Guard::node(&guard.compare("n1").unwrap()), Some("n1"));
    }
}
