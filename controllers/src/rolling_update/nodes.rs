//! What a roll asks of nodes, brought from view to view: which are not heard of, and which a
//! selector does not match. Looking at each node in each run costs more than all the rest of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use platctrl_framework::cache::View;
use platctrl_framework::model::{Object, Selector};
use platctrl_kinds::Node;

use crate::ledger::is_silent;

type Names = Arc<HashSet<String>>;

/// What is known of the nodes. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The view that the rest is of.
    view: Option<View>,
    silent: Names,
    /// By selector.
    misfits: HashMap<String, (Selector, Names)>,
}

fn put(names: &mut Names, name: &str, belongs: bool) {
    if belongs {
        Arc::make_mut(names).insert(name.to_owned());
    } else if names.contains(name) {
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
        put(&mut self.silent, name, node.is_some_and(is_silent));
        for (selector, misfits) in self.misfits.values_mut() {
            // One that nobody knows is no reason to move.
            let misfit = node.is_some_and(|node| !selector.matches(&node.metadata.labels));
            put(misfits, name, misfit);
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
    pub(super) fn silent(&self, view: &View) -> Names {
        self.with(view, |known| known.silent.clone())
    }

    /// The nodes that a selector does not match; none for one that cannot be read.
    pub(super) fn misfits(&self, view: &View, selector: &str) -> Names {
        self.with(view, |known| {
            if let Some((_, misfits)) = known.misfits.get(selector) {
                return misfits.clone();
            }
            let Ok(parsed) = selector.parse::<Selector>() else {
                return Names::default();
            };
            let nodes = view.list::<Node>().into_iter();
            let nodes = nodes.filter(|node| !parsed.matches(&node.metadata.labels));
            let misfits: Names = Arc::new(nodes.map(|node| node.metadata.name.clone()).collect());
            let entry = (parsed, misfits.clone());
            known.misfits.insert(selector.to_owned(), entry);
            misfits
        })
    }

    pub(super) fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Known::default();
    }
}
