//! A fleet from a view, without decoding every pod each time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use platctrl_framework::cache::View;
use platctrl_framework::model::Object;
use platctrl_framework::store::Revision;
use platctrl_kinds::{Node, Pod, PodSpec};
use serde::Deserialize;

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
    pods: HashMap<Arc<str>, Entry>,
    nodes: HashMap<Arc<str>, (Arc<Object<Node>>, FleetNode)>,
    /// Needs that many pods have in common.
    shared: HashMap<PodNeedsKey, Arc<PodNeeds>>,
    /// The newest fleet, and the view that it is of.
    newest: Option<(Revision, Arc<Fleet>)>,
    round: u64,
}

#[derive(Debug)]
struct Entry {
    modified: Revision,
    needs: Arc<PodNeeds>,
    round: u64,
}

/// Needs as text, to find equal ones.
type PodNeedsKey = String;

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

    /// All nodes of a view, as if nothing ran on them: for what depends on nodes alone.
    #[must_use]
    pub fn nodes(&self, view: &View) -> Arc<Fleet> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::new(Fleet::new(books.nodes(view).into_values()))
    }

    /// All nodes of a view and what runs on them. A pod whose intent cannot be read counts as it
    /// was when it could, else as a pod that asks nothing.
    #[must_use]
    pub fn fleet(&self, view: &View) -> Arc<Fleet> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = view.revision();
        let exact = matches!(
            view.freshness(),
            platctrl_framework::cache::Freshness::Exact(_)
        );
        if let Some((of, fleet)) = &books.newest
            && exact
            && *of == revision
        {
            return fleet.clone();
        }
        let fleet = Arc::new(books.fleet(view));
        books.newest = Some((revision, fleet.clone()));
        fleet
    }
}

impl Books {
    fn nodes(&mut self, view: &View) -> BTreeMap<Arc<str>, FleetNode> {
        let mut nodes: BTreeMap<Arc<str>, FleetNode> = BTreeMap::new();
        let mut known = HashMap::new();
        for object in view.list::<Node>() {
            let name: Arc<str> = object.metadata.name.as_str().into();
            let shape = match self.nodes.remove(&name) {
                Some((of, shape)) if Arc::ptr_eq(&of, &object) => shape,
                _ => FleetNode {
                    name: name.clone(),
                    labels: Arc::new(object.metadata.labels.clone()),
                    state: NodeState::of(&object),
                    room: Room::of(&object),
                    pods: Vec::new(),
                },
            };
            nodes.insert(name.clone(), shape.clone());
            known.insert(name, (object, shape));
        }
        self.nodes = known;
        nodes
    }

    fn fleet(&mut self, view: &View) -> Fleet {
        self.round += 1;
        let mut nodes = self.nodes(view);
        let mut seen = 0;
        for (key, modified, value) in view.intents::<Pod>() {
            seen += 1;
            let needs = self.needs(key.path(), key.namespace(), key.name(), modified, value);
            if let Some(node) = key.node().and_then(|node| nodes.get_mut(node)) {
                node.pods.push(needs);
            }
        }
        if self.pods.len() > seen + seen / 4 + 64 {
            let round = self.round;
            self.pods.retain(|_, entry| entry.round == round);
            self.shared.retain(|_, needs| Arc::strong_count(needs) > 1);
        }
        Fleet::new(nodes.into_values())
    }

    fn needs(
        &mut self,
        path: &str,
        namespace: Option<&str>,
        name: &str,
        modified: Revision,
        value: &[u8],
    ) -> Arc<PodNeeds> {
        if let Some(entry) = self.pods.get_mut(path) {
            entry.round = self.round;
            if entry.modified == modified {
                return entry.needs.clone();
            }
        }
        let namespace = namespace.unwrap_or_default();
        let needs = match serde_json::from_slice::<Light>(value) {
            Ok(light) => PodNeeds::of(namespace, name, &light.spec),
            Err(_) => match self.pods.get(path) {
                Some(entry) => (*entry.needs).clone(),
                None => PodNeeds::of(namespace, name, &PodSpec::default()),
            },
        };
        let needs = self
            .shared
            .entry(format!("{needs:?}"))
            .or_insert_with(|| Arc::new(needs))
            .clone();
        let entry = Entry {
            modified,
            needs: needs.clone(),
            round: self.round,
        };
        self.pods.insert(path.into(), entry);
        needs
    }
}
