//! Nodes and what runs on them, as plain data.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use platctrl_kinds::{Capacity, Node, Pod, PodSpec, app_matches, node_condition};

use platctrl_framework::model::Object;

use super::{Refusal, Request};
use crate::ledger::is_silent;

/// Processor time, memory and pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a processor.
    pub cpu: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Pods.
    pub pods: u32,
}

impl Amounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_add(other.cpu),
            memory: self.memory.saturating_add(other.memory),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// So many times this.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self {
            cpu: self.cpu.saturating_mul(count.into()),
            memory: self.memory.saturating_mul(count.into()),
            pods: self.pods.saturating_mul(count),
        }
    }

    /// What is left without the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu),
            memory: self.memory.saturating_sub(other.memory),
            pods: self.pods.saturating_sub(other.pods),
        }
    }
}

/// What a pod asks of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNeeds {
    /// Its namespace.
    pub namespace: String,
    /// Its app.
    pub app: String,
    /// Processor time in thousandths and bytes of memory, of all its programs together.
    pub amounts: Amounts,
    /// The numbers of its fixed ports.
    pub ports: Vec<u16>,
    /// Apps that must be on the node, by pattern.
    pub with: Vec<String>,
    /// Apps that must not be on the node, by pattern.
    pub conflicts: Vec<String>,
}

impl PodNeeds {
    /// What a pod with this spec asks. `app` is what its app is when the spec names none.
    #[must_use]
    pub fn of(namespace: &str, app: &str, spec: &PodSpec) -> Self {
        let mut amounts = Amounts {
            pods: 1,
            ..Amounts::default()
        };
        for program in spec.launchables.values() {
            let resources = &program.resources;
            amounts = amounts.plus(Amounts {
                cpu: resources.cpu.map_or(0, |cpu| cpu.millis().into()),
                memory: resources.memory.map_or(0, platctrl_kinds::Bytes::get),
                pods: 0,
            });
        }
        Self {
            namespace: namespace.to_owned(),
            app: spec.app.clone().unwrap_or_else(|| app.to_owned()),
            amounts,
            ports: spec.ports.values().filter_map(|port| port.port).collect(),
            with: spec.placement.with.clone(),
            conflicts: spec.placement.conflicts.clone(),
        }
    }

    /// What a pod that is there asks.
    #[must_use]
    pub fn of_pod(pod: &Object<Pod>) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Self::of(namespace, &pod.metadata.name, &pod.spec)
    }

    /// It asks more of its node than another: room, or a port.
    #[must_use]
    pub fn asks_more_than(&self, other: &Self) -> bool {
        self.amounts.cpu > other.amounts.cpu
            || self.amounts.memory > other.amounts.memory
            || self.ports.iter().any(|port| !other.ports.contains(port))
    }

    /// Two of these cannot be on one node.
    pub(super) fn excludes_itself(&self) -> bool {
        !self.ports.is_empty() || self.names_as_conflict(&self.app)
    }

    fn names_as_conflict(&self, app: &str) -> bool {
        (self.conflicts.iter()).any(|pattern| app_matches(pattern, app))
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        self.namespace == other.namespace
            && (self.names_as_conflict(&other.app) || other.names_as_conflict(&self.app))
    }
}

/// What pods may use of a node; None: as much as they like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Thousandths of a processor.
    pub cpu: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Pods.
    pub pods: Option<u32>,
}

impl Room {
    /// What a node's record says, and where it says nothing what its agent reports.
    #[must_use]
    pub fn of(node: &Object<Node>) -> Self {
        let Capacity { cpu, memory, pods } = node.spec.capacity;
        let fact =
            |name: &str| -> Option<u64> { node.status.detail.attributes.get(name)?.parse().ok() };
        let reported = || fact("attr.cpus").map(|cpus| cpus.saturating_mul(1000));
        Self {
            cpu: cpu.map(|cpu| cpu.millis().into()).or_else(reported),
            memory: (memory.map(platctrl_kinds::Bytes::get)).or_else(|| fact("attr.memory")),
            pods,
        }
    }
}

/// Whether a node takes new pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// It does.
    #[default]
    Open,
    /// Little of the disk that pods are kept on is left.
    ShortOfDisk,
    /// A person said that it takes no new ones.
    Cordoned,
    /// It is not heard of, and not given up: nobody would begin with what is put there.
    Silent,
    /// Its pods are being moved away.
    Draining,
    /// It is given up: it was not heard of for too long.
    Lost,
    /// Its record has a tombstone.
    Leaving,
}

impl NodeState {
    /// Pods that are on such a node stay there.
    #[must_use]
    pub fn keeps_pods(self) -> bool {
        match self {
            Self::Open | Self::ShortOfDisk | Self::Cordoned | Self::Silent => true,
            Self::Draining | Self::Lost | Self::Leaving => false,
        }
    }

    /// What a node's record and status say.
    #[must_use]
    pub fn of(node: &Object<Node>) -> Self {
        let conditions = &node.status.conditions;
        if node.metadata.is_deleted() {
            Self::Leaving
        } else if conditions.is_true(node_condition::LOST) {
            Self::Lost
        } else if conditions.is_true(node_condition::DRAINING) {
            Self::Draining
        } else if is_silent(node) {
            Self::Silent
        } else if node.spec.unschedulable {
            Self::Cordoned
        } else if conditions.is_true(node_condition::DISK_PRESSURE) {
            Self::ShortOfDisk
        } else {
            Self::Open
        }
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetNode {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Whether it takes new pods.
    pub state: NodeState,
    /// While it is drained, pods whose controllers are Static are moved, too.
    pub moves_static: bool,
    /// It is not heard of: what was last said of the health of its pods counts for nothing.
    pub silent: bool,
    /// What its pods may use.
    pub room: Room,
    /// Its pods, whoever owns them, also those on their way out.
    pub pods: Vec<Arc<PodNeeds>>,
}

impl FleetNode {
    /// An empty node without labels that takes any number of pods.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Pods that are there may stay.
    #[must_use]
    pub fn keeps_pods(&self) -> bool {
        self.state.keeps_pods()
    }

    /// The first pattern for apps that a pod must run beside and that no pod here matches.
    #[must_use]
    pub fn misses<'n>(&self, needs: &'n PodNeeds) -> Option<&'n str> {
        let is_there = |pattern: &&String| {
            self.pods
                .iter()
                .any(|pod| pod.namespace == needs.namespace && app_matches(pattern, &pod.app))
        };
        let missing = needs.with.iter().find(|pattern| !is_there(pattern));
        missing.map(String::as_str)
    }

    /// What its pods use.
    #[must_use]
    pub fn used(&self) -> Amounts {
        let pods = self.pods.iter();
        pods.fold(Amounts::default(), |sum, pod| sum.plus(pod.amounts))
    }
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// By name. Copies of a fleet share nodes.
    nodes: Vec<Arc<FleetNode>>,
    /// What each node's pods use, at the same places.
    used: Vec<Amounts>,
    names: Arc<NamesOfNodes>,
}

/// Nodes by name: a fleet changes seldom which nodes it has, and is asked for them often.
#[derive(Debug, Default)]
struct NamesOfNodes {
    places: HashMap<Arc<str>, usize>,
    /// A hash of each name, at the same places.
    hashes: Vec<u64>,
}

impl NamesOfNodes {
    fn of(nodes: &[Arc<FleetNode>]) -> Arc<Self> {
        let names = nodes.iter().map(|node| node.name.clone());
        Arc::new(Self {
            places: names.zip(0..).collect(),
            hashes: nodes.iter().map(|node| hash(&node.name)).collect(),
        })
    }
}

/// With fixed keys: the same on every run and machine of one build.
pub(super) fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Fleet {
    /// A fleet of these nodes.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = FleetNode>) -> Self {
        let mut nodes: Vec<Arc<FleetNode>> = nodes.into_iter().map(Arc::new).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let used = nodes.iter().map(|node| node.used()).collect();
        let names = NamesOfNodes::of(&nodes);
        Self { nodes, used, names }
    }

    /// Puts a node in the place of the one of its name, or adds it.
    pub(super) fn put(&mut self, node: FleetNode) {
        let place = (self.nodes).binary_search_by(|other| other.name.cmp(&node.name));
        let (used, node) = (node.used(), Arc::new(node));
        match place {
            Ok(place) => (self.nodes[place], self.used[place]) = (node, used),
            Err(place) => {
                self.nodes.insert(place, node);
                self.used.insert(place, used);
                self.names = NamesOfNodes::of(&self.nodes);
            }
        }
    }

    /// Takes out the node of a name.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(place) = self.position(name) {
            self.nodes.remove(place);
            self.used.remove(place);
            self.names = NamesOfNodes::of(&self.nodes);
        }
    }

    /// Its nodes, by name.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<FleetNode>] {
        &self.nodes
    }

    /// A node's place.
    fn position(&self, name: &str) -> Option<usize> {
        self.names.places.get(name).copied()
    }

    /// A node is heard of, so that what its agent last said of its pods is so. One of which there
    /// is no record counts as heard of.
    #[must_use]
    pub fn is_heard_of(&self, node: &str) -> bool {
        !self.node(node).is_some_and(|node| node.silent)
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&FleetNode> {
        Some(&self.nodes[self.position(name)?])
    }

    /// A hash of a node's name.
    pub(super) fn hash(&self, place: usize) -> u64 {
        self.names.hashes[place]
    }

    pub(super) fn used(&self, place: usize) -> Amounts {
        self.used[place]
    }

    /// Why a node takes no pod of a request, though nothing was put on it since; None when it
    /// takes one.
    #[must_use]
    pub fn refusal(&self, node: &str, request: &Request) -> Option<Refusal> {
        match self.position(node) {
            Some(place) => {
                let own = request.own.get(node).copied().unwrap_or(0);
                self.refusal_at(place, request, own, 0)
            }
            None => Some(Refusal::NotThere),
        }
    }

    /// How many pods of the request's owner each node has, at the same places.
    pub(super) fn own(&self, request: &Request) -> Vec<u32> {
        let mut all = vec![0; self.nodes.len()];
        for (name, own) in &request.own {
            if let Some(place) = self.position(name) {
                all[place] = *own;
            }
        }
        all
    }

    /// As [`Fleet::refusal`], for an owner of so many pods there, with so many more put there
    /// since.
    pub(super) fn refusal_at(
        &self,
        place: usize,
        request: &Request,
        own: u32,
        put: u32,
    ) -> Option<Refusal> {
        let node = &self.nodes[place];
        match node.state {
            NodeState::Open => {}
            NodeState::Cordoned if request.also_cordoned => {}
            state => return Some(Refusal::State(state)),
        }
        if !request.selector.matches(&node.labels) {
            return Some(Refusal::NotSelected);
        }
        if own.saturating_add(put) >= request.per_node {
            return Some(Refusal::MaxPerNode { own: own + put });
        }
        self.lacks(place, &request.needs, put)
    }

    /// What a node has not that a pod needs, with so many like it put there since.
    pub(super) fn lacks(&self, place: usize, needs: &PodNeeds, put: u32) -> Option<Refusal> {
        let node = &self.nodes[place];
        let used = self.used[place].plus(needs.amounts.times(put));
        if let Some(refusal) = too_little(node.room, used, needs.amounts) {
            return Some(refusal);
        }
        if put > 0 && needs.excludes_itself() {
            return Some(match needs.ports.first() {
                Some(&port) => Refusal::Port { port },
                None => Refusal::Conflict {
                    app: needs.app.clone(),
                },
            });
        }
        let taken = |port: &&u16| node.pods.iter().any(|pod| pod.ports.contains(port));
        if let Some(&port) = needs.ports.iter().find(taken) {
            return Some(Refusal::Port { port });
        }
        if let Some(other) = node.pods.iter().find(|pod| needs.conflicts_with(pod)) {
            return Some(Refusal::Conflict {
                app: other.app.clone(),
            });
        }
        node.misses(needs).map(|pattern| Refusal::Without {
            pattern: pattern.to_owned(),
        })
    }

    /// Why a pod that is on a node cannot be changed there to need something else; None when it
    /// can.
    #[must_use]
    pub fn refuses_change(&self, node: &str, from: &PodNeeds, to: &PodNeeds) -> Option<Refusal> {
        let Some(place) = self.position(node) else {
            return Some(Refusal::NotThere);
        };
        let grows = to.amounts.cpu > from.amounts.cpu || to.amounts.memory > from.amounts.memory;
        let node = &self.nodes[place];
        if grows {
            // Only what it asks more of: a node that holds too much already is not made worse by
            // a pod that asks less.
            let others = self.used[place].minus(from.amounts);
            let more_of = |to: u64, from: u64| if to > from { to } else { 0 };
            let more = Amounts {
                cpu: more_of(to.amounts.cpu, from.amounts.cpu),
                memory: more_of(to.amounts.memory, from.amounts.memory),
                pods: 0,
            };
            if let Some(refusal) = too_little(node.room, others, more) {
                return Some(refusal);
            }
        }
        let new = |port: &&u16| !from.ports.contains(port);
        let taken = |port: &u16| node.pods.iter().any(|pod| pod.ports.contains(port));
        let port = to.ports.iter().filter(new).find(|port| taken(port));
        port.map(|&port| Refusal::Port { port })
    }
}

fn too_little(room: Room, used: Amounts, asked: Amounts) -> Option<Refusal> {
    if let Some(most) = room.pods
        && asked.pods > 0
        && used.pods.saturating_add(asked.pods) > most
    {
        return Some(Refusal::Pods { most });
    }
    if let Some(most) = room.cpu
        && asked.cpu > 0
        && used.cpu.saturating_add(asked.cpu) > most
    {
        let free = most.saturating_sub(used.cpu);
        let (asked, most) = (asked.cpu, most);
        return Some(Refusal::Cpu { asked, free, most });
    }
    if let Some(most) = room.memory
        && asked.memory > 0
        && used.memory.saturating_add(asked.memory) > most
    {
        let free = most.saturating_sub(used.memory);
        let asked = asked.memory;
        return Some(Refusal::Memory { asked, free, most });
    }
    None
}
