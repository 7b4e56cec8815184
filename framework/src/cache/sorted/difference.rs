//! What is different between two maps that share structure.
//!
//! Parts that both have are passed over without a look at them, so that it costs about as much as
//! there are differences, and not as much as there are values.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Keyed, Node, Sorted};

/// A value that is not the same in both: what it was, and what it is.
pub(crate) type Difference<'t, V> = (Option<&'t V>, Option<&'t V>);

/// What lies ahead in a map: whole nodes, as long as nobody looks into them.
enum Ahead<'t, V> {
    Node(&'t Node<V>),
    Value(&'t V),
}

/// A way through a map, which need not go into every node.
struct Walk<'t, V> {
    ahead: Vec<Ahead<'t, V>>,
}

impl<V> Node<V> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Leaf(one), Self::Leaf(other)) => Arc::ptr_eq(one, other),
            (Self::Branch(one), Self::Branch(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// How far its leaves are.
    fn height(&self) -> usize {
        let mut node = self;
        let mut height = 0;
        while let Self::Branch(branch) = node
            && let Some(first) = branch.children.first()
        {
            height += 1;
            node = first;
        }
        height
    }
}

impl<'t, V: Keyed> Walk<'t, V> {
    fn new(map: &'t Sorted<V>) -> Self {
        Self {
            ahead: vec![Ahead::Node(&map.root)],
        }
    }

    /// Goes into the node that is next, if one is.
    fn enter(&mut self) {
        match self.ahead.pop_if(|next| matches!(next, Ahead::Node(_))) {
            Some(Ahead::Node(Node::Leaf(leaf))) => {
                self.ahead
                    .extend(leaf.values.iter().rev().map(Ahead::Value));
            }
            Some(Ahead::Node(Node::Branch(branch))) => {
                let children = branch.children.iter().rev();
                self.ahead.extend(children.map(Ahead::Node));
            }
            _ => {}
        }
    }

    fn value(&mut self) -> Option<&'t V> {
        match self.ahead.pop() {
            Some(Ahead::Value(value)) => Some(value),
            _ => None,
        }
    }
}

impl<V: Keyed> Sorted<V> {
    /// Calls `each` with every value that is not the `same` as in an `earlier` map, in the order
    /// of keys.
    pub(crate) fn differences<'t>(
        &'t self,
        earlier: &'t Self,
        same: impl Fn(&V, &V) -> bool,
        mut each: impl FnMut(Difference<'t, V>),
    ) {
        let (mut before, mut after) = (Walk::new(earlier), Walk::new(self));
        loop {
            match (before.ahead.last(), after.ahead.last()) {
                (None, None) => return,
                (Some(&Ahead::Node(one)), Some(&Ahead::Node(other))) => {
                    if one.is_same(other) {
                        before.ahead.pop();
                        after.ahead.pop();
                        continue;
                    }
                    // Their parts may be the same where they begin together.
                    let (one, other) = (one.height(), other.height());
                    if one >= other {
                        before.enter();
                    }
                    if other >= one {
                        after.enter();
                    }
                }
                (Some(Ahead::Node(_)), _) => before.enter(),
                (_, Some(Ahead::Node(_))) => after.enter(),
                (Some(&Ahead::Value(one)), Some(&Ahead::Value(other))) => {
                    let order = one.key().cmp(other.key());
                    let unchanged = order == Ordering::Equal && same(one, other);
                    let was = order.is_le().then(|| before.value()).flatten();
                    let is = order.is_ge().then(|| after.value()).flatten();
                    if !unchanged {
                        each((was, is));
                    }
                }
                (Some(Ahead::Value(_)), None) => each((before.value(), None)),
                (None, Some(Ahead::Value(_))) => each((None, after.value())),
            }
        }
    }
}
