//! The pods of one owner, as far as its controllers decide on them, brought from view to view.
//!
//! A run that looked at each of ten thousand pods would cost ten thousand times what has changed.
//! So as much of each pod is kept as decisions need, with sums of what they mostly ask for: how
//! many are ready, and of which template. Specs that many pods have in common are kept once.

mod expected;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use platctrl_framework::cache::{Tally, View};
use platctrl_framework::model::{ConditionStatus, Digest, Object, ObjectKey, Resource, Uid};
use platctrl_framework::store::Revision;
use platctrl_kinds::{Pod, PodPhase, PodSpec, condition};

use self::expected::Expected;
pub(crate) use self::expected::Made;
use crate::nodes::Names;
use crate::placement::PodNeeds;
use crate::template::{created, is_ready, is_same_elsewhere};

/// What pods that were made of one template have in common.
#[derive(Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) namespace: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Without the node.
    pub(crate) spec: PodSpec,
}

impl Shape {
    fn is_of(&self, pod: &Object<Pod>) -> bool {
        let metadata = &pod.metadata;
        self.namespace == metadata.namespace
            && self.labels == metadata.labels
            && self.annotations == metadata.annotations
            && self.spec.app == pod.spec.app
            && is_same_elsewhere(&self.spec, &pod.spec)
    }

    fn of(pod: &Object<Pod>) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: pod.metadata.annotations.clone(),
            spec: PodSpec {
                node_name: None,
                ..pod.spec.clone()
            },
        }
    }
}

/// What is kept of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Brief {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) uid: Uid,
    pub(crate) generation: u64,
    pub(crate) created: i64,
    pub(crate) ready: bool,
    /// It has a tombstone.
    pub(crate) leaving: bool,
    /// Nothing of it is left on its node.
    pub(crate) gone: bool,
    /// It was reported on, with its present spec, and cannot do its work.
    pub(crate) failed: bool,
    /// Why it has its tombstone.
    pub(crate) end_reason: Option<Box<str>>,
    /// It has more than one owner.
    pub(crate) shared: bool,
    /// The restart that its agent asks for.
    pub(crate) request: Option<Box<str>>,
    pub(crate) shape: Arc<Shape>,
    /// The digest of its spec, once somebody asked.
    digest: OnceLock<Option<Digest>>,
}

impl Brief {
    fn of(key: &Arc<ObjectKey>, pod: &Object<Pod>, shape: Arc<Shape>) -> Self {
        let request = pod.status.detail.restart_request.as_ref();
        let deletion = pod.metadata.deletion.as_ref();
        Self {
            key: key.clone(),
            uid: pod.metadata.uid.clone(),
            generation: pod.metadata.generation,
            created: created(pod),
            ready: is_ready(pod),
            leaving: pod.metadata.is_deleted(),
            gone: PodPhase::of(&pod.status.phase) == Some(PodPhase::Gone),
            failed: is_failed(pod),
            end_reason: deletion.and_then(|it| it.reason.as_deref().map(Into::into)),
            shared: pod.metadata.owner_references.len() > 1,
            request: request.map(|request| request.id.as_str().into()),
            shape,
            digest: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.key.name()
    }

    pub(crate) fn node(&self) -> &str {
        self.key.node().unwrap_or_default()
    }

    pub(crate) fn needs(&self) -> PodNeeds {
        let namespace = self.shape.namespace.as_deref().unwrap_or_default();
        PodNeeds::of(namespace, self.name(), &self.shape.spec)
    }

    /// The digest of its spec as it is stored; None if it cannot be read.
    pub(crate) fn digest(&self, view: &View) -> Option<Digest> {
        *self.digest.get_or_init(|| {
            let joined = view.joined(&self.key).ok()?;
            Some(joined.intent?.value.spec_digest())
        })
    }

    fn place(&self) -> Place {
        Place {
            ready: self.ready,
            key: self.key.clone(),
        }
    }

    fn is_singleton(&self) -> bool {
        self.shape.spec.singleton
    }

    fn is_ending(&self) -> bool {
        self.leaving && !self.gone
    }
}

fn is_failed(pod: &Object<Pod>) -> bool {
    let ready = pod.status.conditions.get(condition::READY);
    let unhealthy = ready.is_some_and(|ready| {
        ready.status == ConditionStatus::False
            && matches!(ready.reason.as_str(), "Unhealthy" | "Crashed")
    });
    unhealthy || PodPhase::of(&pod.status.phase) == Some(PodPhase::Failed)
}

/// Those that are not ready first, then by name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    ready: bool,
    key: Arc<ObjectKey>,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        let ready = self.ready.cmp(&other.ready);
        let name = ready.then_with(|| self.key.name().cmp(other.key.name()));
        name.then_with(|| self.key.path().cmp(other.key.path()))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// How many pods of one shape there are.
#[derive(Clone, Debug)]
pub(crate) struct Alike {
    pub(crate) shape: Arc<Shape>,
    /// All of them.
    pub(crate) all: u32,
    /// Those without a tombstone.
    pub(crate) live: u32,
    /// Those of them that are ready.
    pub(crate) ready: u32,
}

/// Shapes that a new pod is compared with.
const RECENT: usize = 8;

/// The pods of one owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crew {
    /// By path: in the order of nodes.
    pods: BTreeMap<ByPath, Brief>,
    /// Once somebody asked.
    by_uid: OnceLock<HashMap<Uid, Arc<ObjectKey>>>,
    /// By the address of the shape.
    alike: HashMap<usize, Alike>,
    recent: VecDeque<Arc<Shape>>,
    /// Those that are not on their way out, in the order in which they are taken away, once
    /// somebody asked.
    order: OnceLock<BTreeSet<Place>>,
    live: usize,
    /// Those that ask for a restart.
    asking: BTreeSet<ByPath>,
    /// Those that are on their way out and may still run.
    ending: BTreeSet<ByPath>,
    /// Those that have more than one owner.
    shared: BTreeSet<ByPath>,
    singletons: u32,
    ready: u32,
    failed: u32,
}

/// A key that is found by its path, and comes in the order of paths.
#[derive(Clone, Debug)]
pub(crate) struct ByPath(Arc<ObjectKey>);

impl Borrow<str> for ByPath {
    fn borrow(&self) -> &str {
        self.0.path()
    }
}

impl PartialEq for ByPath {
    fn eq(&self, other: &Self) -> bool {
        self.0.path() == other.0.path()
    }
}

impl Eq for ByPath {}

impl Ord for ByPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.path().cmp(other.0.path())
    }
}

impl PartialOrd for ByPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for ByPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.path().hash(state);
    }
}

fn address(shape: &Arc<Shape>) -> usize {
    Arc::as_ptr(shape) as usize
}

impl Crew {
    /// All of them, in the order of their keys.
    pub(crate) fn pods(&self) -> impl ExactSizeIterator<Item = &Brief> {
        self.pods.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    /// The pods that are not on their way out.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Those of them that are ready.
    pub(crate) fn ready(&self) -> u32 {
        self.ready
    }

    /// Those that are seen to be unhealthy.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// How many there are that never run twice.
    pub(crate) fn singletons(&self) -> u32 {
        self.singletons
    }

    /// Those that are on their way out and may still run.
    pub(crate) fn ending(&self) -> impl Iterator<Item = &Brief> {
        self.ending.iter().filter_map(|key| self.pods.get(key))
    }

    pub(crate) fn uids(&self) -> Vec<Uid> {
        self.pods.values().map(|pod| pod.uid.clone()).collect()
    }

    pub(crate) fn get(&self, uid: &Uid) -> Option<&Brief> {
        let by_uid = self.by_uid.get_or_init(|| {
            let pods = self.pods.values();
            pods.map(|pod| (pod.uid.clone(), pod.key.clone())).collect()
        });
        self.pods.get(by_uid.get(uid)?.path())
    }

    pub(crate) fn at(&self, path: &str) -> Option<&Brief> {
        self.pods.get(path)
    }

    /// Those of a node.
    pub(crate) fn on_node(&self, node: &str) -> impl Iterator<Item = &Brief> {
        let prefix = format!("{}/{}/{node}/", Pod::GROUP, Pod::PLURAL);
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let pods = self.pods.range::<str, _>(from);
        pods.map(|(_, pod)| pod)
            .take_while(move |pod| pod.key.path().starts_with(&prefix))
    }

    /// How many there are of each template.
    pub(crate) fn alike(&self) -> impl Iterator<Item = &Alike> {
        self.alike.values()
    }

    /// Those that ask for a restart.
    pub(crate) fn asking(&self) -> impl Iterator<Item = &Brief> {
        self.asking.iter().filter_map(|key| self.pods.get(key))
    }

    /// Those that another owner may have, too.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Brief> {
        self.shared.iter().filter_map(|key| self.pods.get(key))
    }

    /// Those that are not on their way out: those that are not ready first, then by name.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &Brief> {
        let order = self.order.get_or_init(|| {
            let pods = self.pods.values().filter(|pod| !pod.leaving);
            pods.map(Brief::place).collect()
        });
        let pods = order.iter();
        pods.filter_map(|place| self.pods.get(place.key.path()))
    }

    fn put(&mut self, key: &Arc<ObjectKey>, pod: Option<&Object<Pod>>) {
        match pod {
            Some(pod) => {
                let shape = self.shape_of(pod);
                self.insert(key, Brief::of(key, pod, shape));
            }
            None => self.take_out(key),
        }
    }

    fn insert(&mut self, key: &Arc<ObjectKey>, brief: Brief) {
        self.take_out(key);
        let path = ByPath(key.clone());
        let alike = self.alike.entry(address(&brief.shape));
        let alike = alike.or_insert_with(|| Alike {
            shape: brief.shape.clone(),
            all: 0,
            live: 0,
            ready: 0,
        });
        alike.all += 1;
        if !brief.leaving {
            alike.live += 1;
            alike.ready += u32::from(brief.ready);
            self.ready += u32::from(brief.ready);
            self.live += 1;
            if let Some(order) = self.order.get_mut() {
                order.insert(brief.place());
            }
        }
        if brief.request.is_some() {
            self.asking.insert(path.clone());
        }
        if brief.is_ending() {
            self.ending.insert(path.clone());
        }
        if brief.shared {
            self.shared.insert(path.clone());
        }
        self.singletons += u32::from(brief.is_singleton());
        self.failed += u32::from(brief.failed);
        if let Some(by_uid) = self.by_uid.get_mut() {
            by_uid.insert(brief.uid.clone(), key.clone());
        }
        self.pods.insert(path, brief);
    }

    fn take_out(&mut self, key: &Arc<ObjectKey>) {
        let path = key.path();
        let Some(brief) = self.pods.remove(path) else {
            return;
        };
        let at = address(&brief.shape);
        if let Some(alike) = self.alike.get_mut(&at) {
            alike.all -= 1;
            if !brief.leaving {
                alike.live -= 1;
                alike.ready -= u32::from(brief.ready);
            }
            if alike.all == 0 {
                self.alike.remove(&at);
            }
        }
        if !brief.leaving {
            self.ready -= u32::from(brief.ready);
            self.live -= 1;
            if let Some(order) = self.order.get_mut() {
                order.remove(&brief.place());
            }
        }
        self.asking.remove(path);
        self.ending.remove(path);
        self.shared.remove(path);
        self.singletons -= u32::from(brief.is_singleton());
        self.failed -= u32::from(brief.failed);
        // Its uid may be another key's by now.
        if let Some(by_uid) = self.by_uid.get_mut()
            && (by_uid.get(&brief.uid)).is_some_and(|other| other.path() == path)
        {
            by_uid.remove(&brief.uid);
        }
    }

    fn shape_of(&mut self, pod: &Object<Pod>) -> Arc<Shape> {
        let make = || Arc::new(Shape::of(pod));
        self.shape_like(|shape| shape.is_of(pod), make)
    }

    /// The shape that is kept for all pods that are like this.
    fn kept_shape(&mut self, like: &Arc<Shape>) -> Arc<Shape> {
        let is_same = |shape: &Arc<Shape>| Arc::ptr_eq(shape, like) || shape == like;
        self.shape_like(is_same, || like.clone())
    }

    fn shape_like(
        &mut self,
        is_it: impl Fn(&Arc<Shape>) -> bool,
        make: impl FnOnce() -> Arc<Shape>,
    ) -> Arc<Shape> {
        match self.recent.iter().position(is_it) {
            Some(0) => {}
            Some(at) => {
                let found = self.recent.remove(at);
                found.into_iter().for_each(|it| self.recent.push_front(it));
            }
            None => {
                self.recent.truncate(RECENT - 1);
                self.recent.push_front(make());
            }
        }
        self.recent[0].clone()
    }
}

/// A crew, and which of its pods were not looked at since they changed.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    crew: Arc<Crew>,
    expected: Expected,
    news: News,
    astray: Astray,
}

/// Which pods are new to somebody.
#[derive(Debug, Default)]
pub(crate) enum News {
    /// All of them.
    #[default]
    All,
    /// Those with these keys, which may be gone.
    Of(Vec<Arc<ObjectKey>>),
}

/// The pods on nodes that they should not be on.
#[derive(Debug, Default)]
struct Astray {
    /// The nodes where they may be.
    homes: Option<Names>,
    pods: HashSet<ByPath>,
}

impl Tally<Pod> for Kept {
    fn put(&mut self, key: &Arc<ObjectKey>, pod: Option<&Object<Pod>>) {
        // What was expected of it is not so.
        self.expected.forget(key);
        // A copy is made only while a run works on the one before.
        Arc::make_mut(&mut self.crew).put(key, pod);
        self.is_news(key);
    }

    fn put_known(&mut self, key: &Arc<ObjectKey>, put: Revision) -> bool {
        let Some(made) = self.expected.take(key, put) else {
            return false;
        };
        let crew = Arc::make_mut(&mut self.crew);
        let shape = crew.kept_shape(made.shape());
        crew.insert(key, made.into_brief(key, shape));
        self.is_news(key);
        true
    }

    fn is_empty(&self) -> bool {
        self.crew.len() == 0 && self.expected.is_empty()
    }
}

impl Kept {
    fn is_news(&mut self, key: &Arc<ObjectKey>) {
        let there = self.crew.len();
        if let News::Of(paths) = &mut self.news {
            if paths.len() > there + 64 {
                self.news = News::All;
            } else {
                paths.push(key.clone());
            }
        }
    }

    /// Pods that were made at this revision, all of one shape. They need not be read again when a
    /// view shows them so. `seen` is what the views that were looked at show.
    pub(crate) fn expect(
        &mut self,
        made: Vec<Made>,
        shape: &Arc<Shape>,
        put: Revision,
        seen: Revision,
    ) {
        self.expected.add(made, shape, put, seen);
    }

    pub(crate) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// What has changed since this was asked last.
    pub(crate) fn news(&mut self) -> News {
        std::mem::replace(&mut self.news, News::Of(Vec::new()))
    }

    /// How many pods that are not on their way out are on none of the nodes in `homes`. For one
    /// who asks nothing else about news.
    pub(crate) fn astray(&mut self, homes: &Names) -> usize {
        let news = self.news();
        let astray = &mut self.astray;
        let same = (astray.homes.as_ref()).is_some_and(|before| Arc::ptr_eq(before, homes));
        let strays = |pod: &Brief| !pod.leaving && !homes.contains(pod.node());
        match news {
            News::Of(paths) if same => {
                for key in paths {
                    if self.crew.at(key.path()).is_some_and(strays) {
                        astray.pods.insert(ByPath(key));
                    } else if !astray.pods.is_empty() {
                        astray.pods.remove(key.path());
                    }
                }
            }
            News::All | News::Of(_) => {
                let all = self.crew.pods().filter(|pod| strays(pod));
                astray.pods = all.map(|pod| ByPath(pod.key.clone())).collect();
                astray.homes = Some(homes.clone());
            }
        }
        astray.pods.len()
    }
}

#[cfg(test)]
mod tests;
