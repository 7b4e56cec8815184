//! What controllers ask of all nodes, brought from view to view: which are not heard of, which a
//! selector does not match, and where pods may stay. Looking at each node in each run costs more
//! than all the rest of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use platctrl_framework::cache::View;
use platctrl_framework::model::{Object, Selector};
use platctrl_kinds::{Node, Strategy};

use crate::ledger::is_silent;
use crate::placement::NodeState;

/// The names of some nodes.
pub(crate) type Names = Arc<HashSet<String>>;

/// Selectors that sets of nodes are kept for.
const SELECTORS: usize = 1024;

/// What is known of the nodes. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The view that the rest is of.
    view: Option<View>,
    names: Names,
    silent: Names,
    closed: Closed,
    sets: HashMap<(Belongs, String), (Selector, Names)>,
}

/// Which nodes are in a set that is about a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Belongs {
    /// Those that it does not match.
    Misfits,
    /// Those that it matches, whose pods may stay where they are.
    Homes,
}

impl Belongs {
    fn includes(self, node: &Object<Node>, selector: &Selector) -> bool {
        let matches = selector.matches(&node.metadata.labels);
        match self {
            Self::Misfits => !matches,
            Self::Homes => matches && NodeState::of(node).keeps_pods(),
        }
    }
}

/// The nodes that pods are taken from.
#[derive(Clone, Debug, Default)]
struct Closed {
    lost: Names,
    drained: Names,
    /// Of the drained ones those that also pods of Static controllers leave.
    drained_of_all: Names,
}

impl Closed {
    fn put(&mut self, name: &str, node: Option<&Object<Node>>) {
        let state = node.map(NodeState::of);
        let lost = matches!(state, Some(NodeState::Lost | NodeState::Leaving));
        let drained = state == Some(NodeState::Draining);
        put(&mut self.lost, name, lost);
        put(&mut self.drained, name, drained);
        let of_all = node.is_some_and(|node| node.spec.drain && node.spec.drain_static);
        put(&mut self.drained_of_all, name, drained && of_all);
    }

    /// Those that pods of such a controller leave.
    fn to(&self, strategy: Strategy) -> [&Names; 2] {
        match strategy {
            Strategy::Dynamic => [&self.lost, &self.drained],
            Strategy::Static => [&self.drained_of_all, &self.drained_of_all],
        }
    }
}

fn put(names: &mut Names, name: &str, belongs: bool) {
    if belongs && !names.contains(name) {
        Arc::make_mut(names).insert(name.to_owned());
    } else if !belongs && names.contains(name) {
        Arc::make_mut(names).remove(name);
    }
}

impl Known {
    fn bring_to(&mut self, view: &View) {
        let Some(earlier) = self.view.replace(view.clone()) else {
            for node in view.list::<Node>() {
                self.put(&node.metadata.name, Some(&node));
            }
            return;
        };
        for key in view.changed_since::<Node>(&earlier) {
            let node = view.get::<Node>(&key);
            self.put(key.name(), node.as_deref());
        }
    }

    fn put(&mut self, name: &str, node: Option<&Object<Node>>) {
        put(&mut self.names, name, node.is_some());
        put(&mut self.silent, name, node.is_some_and(is_silent));
        self.closed.put(name, node);
        for ((belongs, _), (selector, names)) in &mut self.sets {
            // One that nobody knows is in none of them.
            let is_in = node.is_some_and(|node| belongs.includes(node, selector));
            put(names, name, is_in);
        }
    }
}

impl Nodes {
    fn with<T>(&self, view: &View, look: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.bring_to(view);
        look(&mut known)
    }

    /// The nodes that are not heard of.
    pub(crate) fn silent(&self, view: &View) -> Names {
        self.with(view, |known| known.silent.clone())
    }

    /// The nodes that pods of a controller leave: those that its selector does not match, and those
    /// that are lost or drained, as far as its strategy is about them.
    pub(crate) fn left(&self, view: &View, selector: &str, strategy: Strategy) -> Names {
        let mut left = self.misfits(view, selector);
        self.with(view, |known| {
            for names in known.closed.to(strategy) {
                if !names.is_empty() {
                    Arc::make_mut(&mut left).extend(names.iter().cloned());
                }
            }
        });
        left
    }

    /// The nodes that pods are moved away from.
    pub(crate) fn drained(&self, view: &View) -> Names {
        self.with(view, |known| known.closed.drained.clone())
    }

    /// There is no record of any node.
    pub(crate) fn are_none(&self, view: &View) -> bool {
        self.with(view, |known| known.names.is_empty())
    }

    /// The nodes that a selector does not match; none for one that cannot be read.
    pub(crate) fn misfits(&self, view: &View, selector: &str) -> Names {
        self.set(view, Belongs::Misfits, selector)
    }

    /// The nodes that a selector matches and whose pods may stay where they are. As long as they
    /// are the same, it is the same set.
    pub(crate) fn homes(&self, view: &View, selector: &str) -> Names {
        self.set(view, Belongs::Homes, selector)
    }

    fn set(&self, view: &View, belongs: Belongs, selector: &str) -> Names {
        self.with(view, |known| {
            let entry = (belongs, selector.to_owned());
            if let Some((_, names)) = known.sets.get(&entry) {
                return names.clone();
            }
            let Ok(parsed) = selector.parse::<Selector>() else {
                return Names::default();
            };
            let nodes = view.list::<Node>().into_iter();
            let nodes = nodes.filter(|node| belongs.includes(node, &parsed));
            let names: Names = Arc::new(nodes.map(|node| node.metadata.name.clone()).collect());
            if known.sets.len() >= SELECTORS {
                // Those in use come back.
                known.sets.clear();
            }
            known.sets.insert(entry, (parsed, names.clone()));
            names
        })
    }

    pub(crate) fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Known::default();
    }
}
