//! A fleet from a view, without decoding every pod each time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use platctrl_framework::cache::View;
use platctrl_framework::model::{Object, ObjectKey, Resource, Tree};
use platctrl_framework::store::Revision;
use platctrl_kinds::{Node, Pod, PodSpec};
use serde::Deserialize;

use crate::ledger::is_silent;

use super::{Fleet, FleetNode, NodeState, PodNeeds, Room};

/// Remembers what pods ask and nodes have, so that a new view costs only what changed in it.
/// Clones share what is remembered.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    /// By the path of their keys.
    pods: HashMap<Box<str>, Entry>,
    /// Needs that many pods have in common.
    shared: HashMap<PodNeedsKey, Arc<PodNeeds>>,
    /// What the last pod needed: the next one is mostly made of the same template.
    last: Option<Arc<PodNeeds>>,
    /// What pods need that were put at these revisions, and that no view has shown yet.
    expected: HashMap<Box<str>, Entry>,
    /// From so many on, those that no pod has are dropped.
    sweep_at: usize,
    /// The newest fleet, and the view that it is of.
    newest: Option<(View, Arc<Fleet>)>,
}

#[derive(Debug)]
struct Entry {
    modified: Revision,
    needs: Arc<PodNeeds>,
}

/// Needs as text, to find equal ones.
type PodNeedsKey = String;

/// Shared needs that are kept without a look at whether somebody has them.
const FEW: usize = 64;

/// Changes of the store after which a view is not held on to any longer: it keeps alive all that
/// was replaced since.
const HELD: u64 = 1024;

/// As much of a pod's intent as is asked of nodes.
#[derive(Deserialize)]
struct Light {
    spec: PodSpec,
}

impl Accounts {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All nodes of a view and what runs on them. A pod whose intent cannot be read counts as it
    /// was when it could, else as a pod that asks nothing.
    #[must_use]
    pub fn fleet(&self, view: &View) -> Arc<Fleet> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let fleet = match books.newest.take() {
            Some((earlier, fleet)) => books.brought(fleet, &earlier, view),
            None => Arc::new(books.fleet(view)),
        };
        books.newest = Some((view.clone(), fleet.clone()));
        fleet
    }

    /// Pods that were put at this revision, and what each of them needs: it need not be read from
    /// them when a view shows them so.
    pub(crate) fn expect<'k>(
        &self,
        pods: impl IntoIterator<Item = &'k ObjectKey>,
        put: Revision,
        needs: &PodNeeds,
    ) {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let needs = books.shared(needs.clone());
        let pods = pods.into_iter().map(|key| {
            let needs = needs.clone();
            let modified = put;
            (key.path().into(), Entry { modified, needs })
        });
        books.expected.extend(pods);
    }

    /// For who needs no fleet now: lets go of a view that is much older than this one.
    pub(crate) fn pass(&self, view: &View) {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = books.newest.as_ref();
        let held = newest.map(|(view, _)| view.revision().counter());
        drop(books);
        if held.is_some_and(|held| view.revision().counter().saturating_sub(held) > HELD) {
            drop(self.fleet(view));
        }
    }
}

/// A node as its record says, with no pods.
fn shape(node: &Object<Node>) -> FleetNode {
    FleetNode {
        name: node.metadata.name.as_str().into(),
        labels: Arc::new(node.metadata.labels.clone()),
        state: NodeState::of(node),
        moves_static: node.spec.drain && node.spec.drain_static,
        silent: is_silent(node),
        room: Room::of(node),
        pods: Vec::new(),
    }
}

impl Books {
    fn fleet(&mut self, view: &View) -> Fleet {
        let nodes = view.list::<Node>().into_iter();
        let nodes = nodes.map(|node| (node.metadata.name.clone(), shape(&node)));
        let mut nodes: BTreeMap<String, FleetNode> = nodes.collect();
        for (key, modified, value) in view.intents::<Pod>() {
            let needs = self.needs(key, modified, value);
            if let Some(node) = key.node().and_then(|node| nodes.get_mut(node)) {
                node.pods.push(needs);
            }
        }
        Fleet::new(nodes.into_values())
    }

    /// The fleet of an earlier view, brought to a later one.
    fn brought(&mut self, mut fleet: Arc<Fleet>, earlier: &View, view: &View) -> Arc<Fleet> {
        let nodes = view.changed_since::<Node>(earlier).into_iter();
        let mut changed: BTreeSet<String> = nodes.map(|key| key.name().to_owned()).collect();
        let mut last = String::new();
        for pod in view.changed_since::<Pod>(earlier) {
            match view.record(&pod, Tree::Intent) {
                Some((_, modified)) => {
                    let known = self.pods.get(pod.path());
                    if known.is_some_and(|known| known.modified == modified) {
                        // Something else of it changed.
                        continue;
                    }
                }
                None => {
                    self.pods.remove(pod.path());
                }
            }
            // Those of one node come one after the other.
            if let Some(node) = pod.node().filter(|node| *node != last) {
                changed.insert(node.to_owned());
                node.clone_into(&mut last);
            }
        }
        if changed.is_empty() {
            self.forget_expected(view);
            return fleet;
        }
        let of_now = Arc::make_mut(&mut fleet);
        for name in changed {
            let key = ObjectKey::cluster(Node::GROUP, Node::PLURAL, &name).ok();
            match key.and_then(|key| view.get::<Node>(&key)) {
                None => of_now.remove(&name),
                Some(node) => {
                    let mut node = shape(&node);
                    let pods = view.intents_on::<Pod>(&name);
                    let pods = pods.map(|(key, modified, value)| self.needs(key, modified, value));
                    node.pods = pods.collect();
                    of_now.put(node);
                }
            }
        }
        self.forget_expected(view);
        fleet
    }

    /// What a view had to show and did not was gone before.
    fn forget_expected(&mut self, view: &View) {
        if !self.expected.is_empty() {
            let seen = view.revision_of::<Pod>();
            self.expected.retain(|_, entry| entry.modified > seen);
        }
    }

    fn needs(&mut self, key: &ObjectKey, modified: Revision, value: &[u8]) -> Arc<PodNeeds> {
        let known = self.pods.get(key.path());
        if let Some(known) = known.filter(|known| known.modified == modified) {
            return known.needs.clone();
        }
        let expected = self.expected.remove(key.path());
        if let Some(entry) = expected.filter(|entry| entry.modified == modified) {
            let needs = entry.needs.clone();
            self.pods.insert(key.path().into(), entry);
            return needs;
        }
        let namespace = key.namespace().unwrap_or_default();
        let needs = match (serde_json::from_slice::<Light>(value), known) {
            (Ok(light), _) => PodNeeds::of(namespace, key.name(), &light.spec),
            (Err(_), Some(known)) => (*known.needs).clone(),
            (Err(_), None) => PodNeeds::of(namespace, key.name(), &PodSpec::default()),
        };
        let needs = self.shared(needs);
        let entry = Entry {
            modified,
            needs: needs.clone(),
        };
        self.pods.insert(key.path().into(), entry);
        needs
    }

    /// The one copy of needs that many pods have in common.
    fn shared(&mut self, needs: PodNeeds) -> Arc<PodNeeds> {
        if self.shared.len() >= self.sweep_at.max(FEW) {
            self.shared.retain(|_, needs| Arc::strong_count(needs) > 1);
            self.sweep_at = self.shared.len() * 2;
        }
        let needs = match self.last.take().filter(|last| **last == needs) {
            Some(last) => last,
            None => self
                .shared
                .entry(format!("{needs:?}"))
                .or_insert_with(|| Arc::new(needs))
                .clone(),
        };
        self.last = Some(needs.clone());
        needs
    }
}
