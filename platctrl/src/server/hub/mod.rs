//! The one watch of the store that all watches of the API share.
//!
//! It mirrors all objects as the bytes they are stored as, joins intent, reality and parts, and
//! keeps the latest changes in a ring. A watcher is a position in that ring: a slow one costs no
//! memory, and one that falls out of the ring is told to list again. What one transaction did to
//! an object is one change.

mod item;
mod snapshots;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::Failsafe;
use platctrl_framework::model::{
    GroupPlural, Joined, Kinds, ObjectKey, RawObject, Reality, Resource as _, Tree, Uid, Versioned,
    identity,
};
use platctrl_framework::store::{
    Change as StoreChange, Key, ListRequest, Prefix, Revision, Store, StoreError, WatchEvent,
};
use tokio::sync::{Notify, watch};

use item::{Item, Slot};
use snapshots::Kept;
pub(super) use snapshots::Snapshot;

/// Changes that are kept for watchers that are behind or come back.
const RING: usize = 2048;
/// Bytes of records in those changes.
const RING_BYTES: usize = 8 * 1024 * 1024;
/// The newest of them stay decoded: nearly all watchers are there. The others are decoded again
/// for those who are behind.
const DECODED: usize = 128;
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// One object's change, decoded once for all watchers.
#[derive(Debug)]
pub(super) struct Change {
    /// The revision that made it.
    pub(super) revision: Revision,
    kind: GroupPlural,
    before: Option<Arc<Item>>,
    after: Option<Arc<Item>>,
    shown: OnceLock<Shown>,
}

#[derive(Debug)]
pub(super) struct Shown {
    pub(super) before: Option<RawObject>,
    pub(super) after: Option<RawObject>,
    /// The JSON of `after`.
    pub(super) after_json: Bytes,
    /// The JSON of `before`, at the revision of the change: what a watcher that loses it is told.
    pub(super) before_json: Bytes,
}

impl Change {
    pub(super) fn is_of(&self, kind: &GroupPlural) -> bool {
        self.kind == *kind
    }

    fn undecoded(&self) -> Self {
        Self {
            revision: self.revision,
            kind: self.kind.clone(),
            before: self.before.clone(),
            after: self.after.clone(),
            shown: OnceLock::new(),
        }
    }

    fn bytes(&self) -> usize {
        self.before
            .iter()
            .chain(&self.after)
            .map(|item| item.bytes())
            .sum()
    }

    pub(super) fn shown(&self) -> &Shown {
        self.shown.get_or_init(|| {
            let mut before = self.before.as_ref().and_then(|item| item.object());
            let after = self.after.as_ref().and_then(|item| item.object());
            if let Some(before) = &mut before {
                before.metadata.resource_version = Some(self.revision);
            }
            let json = |object: &Option<RawObject>| {
                let text = object.as_ref().map(|object| object.to_api().to_string());
                Bytes::from(text.unwrap_or_default())
            };
            Shown {
                after_json: json(&after),
                before_json: json(&before),
                before,
                after,
            }
        })
    }
}

#[derive(Debug, Default)]
struct State {
    /// By the path of their keys behind the tree.
    objects: BTreeMap<String, Arc<Item>>,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// The number of the ring's first change.
    first: u64,
    /// Raised when the history is another one: no position before is worth anything.
    history: u64,
    /// All changes after this revision are in the ring.
    floor: Revision,
    /// Everything up to here has been told; None before the first list.
    revision: Option<Revision>,
    store_id: Option<String>,
    /// From this revision on the mirror is one moment of the store: where a store cannot read all
    /// pages at one revision, what was read first is that only once it has caught up.
    whole_from: Revision,
    /// Which kinds were known when everything was read: see [`Inner::generation`].
    generation: u64,
    /// How many changes the mirror has taken in.
    taken: u64,
    /// The revision of the newest of them.
    changed: Revision,
    /// Bytes of the records that changes have replaced.
    replaced: u64,
    kept: Kept,
}

/// A watcher's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    history: u64,
    next: u64,
}

/// What a watcher finds at its place.
#[derive(Debug)]
pub(super) enum Found {
    /// These changes, and that everything up to this revision is told with them if no more come.
    Changes(Vec<Arc<Change>>, Option<Revision>),
    /// It is too far behind.
    Lost,
}

/// The shared watch. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    environment: Environment,
    kinds: RwLock<Kinds>,
    /// Raised with each change of the kinds.
    generation: AtomicU64,
    /// There are more kinds than there were when all was read.
    grown: Notify,
    state: Mutex<State>,
    moved: watch::Sender<()>,
}

impl Hub {
    pub(super) fn new(store: Arc<dyn Store>, environment: Environment, kinds: Kinds) -> Self {
        let inner = Inner {
            store,
            environment,
            kinds: RwLock::new(kinds),
            generation: AtomicU64::new(0),
            grown: Notify::new(),
            state: Mutex::default(),
            moved: watch::Sender::new(()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Mirrors objects of these kinds from now on, too.
    pub(super) fn set_kinds(&self, kinds: Kinds) {
        let known = self.inner.kinds.write();
        *known.unwrap_or_else(PoisonError::into_inner) = kinds;
        self.inner.generation.fetch_add(1, Ordering::AcqRel);
        self.inner.grown.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The store that is mirrored.
    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Told whenever there may be something new.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.inner.moved.subscribe()
    }

    /// Waits until everything was read once.
    pub(super) async fn synced(&self) {
        let mut moved = self.subscribe();
        while self.state().revision.is_none() {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    /// The place behind a revision; None if what came after it is no longer known.
    pub(super) fn position(&self, after: Revision) -> Option<Position> {
        let state = self.state();
        if state.revision.is_none() || after < state.floor {
            return None;
        }
        let known = state
            .ring
            .partition_point(|change| change.revision <= after);
        Some(Position {
            history: state.history,
            next: state.first + known as u64,
        })
    }

    /// The next changes at a place, which moves behind them.
    pub(super) fn take(&self, position: &mut Position, most: usize) -> Found {
        let state = self.state();
        if position.history != state.history || position.next < state.first {
            return Found::Lost;
        }
        let skip = usize::try_from(position.next - state.first).unwrap_or(usize::MAX);
        let mut changes: Vec<Arc<Change>> =
            state.ring.iter().skip(skip).take(most).cloned().collect();
        // A transaction is told whole.
        let last = changes.last().map(|change| change.revision);
        let rest = state.ring.iter().skip(skip + changes.len());
        changes.extend(
            rest.take_while(|change| Some(change.revision) == last)
                .cloned(),
        );
        position.next += changes.len() as u64;
        let done = position.next == state.first + state.ring.len() as u64;
        Found::Changes(changes, state.revision.filter(|_| done))
    }

    /// The objects that somebody reports on though their intents are missing.
    pub(super) fn unexplained(&self) -> Vec<ObjectKey> {
        let state = self.state();
        let items = state.objects.values();
        let missing = items.filter(|item| {
            let reality = item.get(&Slot::Reality);
            let reality = reality.filter(|_| !item.has_intent());
            let reality = reality
                .and_then(|record| Versioned::<Reality>::from_record(&item.key, record).ok());
            let joined = Joined {
                reality,
                ..Joined::empty(item.key.clone())
            };
            joined.is_unexplained()
        });
        missing.map(|item| item.key.clone()).collect()
    }

    /// How many holds programs have written down.
    pub(super) fn held(&self) -> u64 {
        let kind = Failsafe::group_plural().prefix(Tree::Intent);
        let state = self.state();
        let programs = state.objects.range(kind.as_str().to_owned()..);
        programs
            .take_while(|(path, _)| path.starts_with(kind.as_str()))
            .filter_map(|(_, item)| item.object())
            .filter_map(|program| program.status.detail.get("held")?.as_u64())
            .sum()
    }

    /// How many objects are mirrored, and how many changes are kept.
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.state();
        (state.objects.len(), state.ring.len())
    }

    /// Everything up to here is known; None before the first list.
    pub(super) fn revision(&self) -> Option<Revision> {
        self.state().revision
    }

    /// How many objects name this one as an owner.
    pub(super) fn owned_by(&self, uid: &Uid) -> usize {
        let items: Vec<_> = self.state().objects.values().cloned().collect();
        let mentions = |item: &&Arc<Item>| {
            let intent = item.get(&Slot::Intent);
            let text = intent.and_then(|record| std::str::from_utf8(&record.value).ok());
            text.is_some_and(|text| text.contains(uid.as_str()))
        };
        let objects = items
            .iter()
            .filter(mentions)
            .filter_map(|item| item.object());
        let owned = |object: &RawObject| {
            let metadata = &object.metadata;
            !metadata.is_deleted()
                && metadata
                    .owner_references
                    .iter()
                    .any(|owner| owner.uid == *uid)
        };
        objects.filter(owned).count()
    }

    /// Reads and watches the store for as long as this is polled.
    pub(super) async fn feed(&self) {
        let mut failures = 0;
        loop {
            let error = match self.read_all().await {
                Ok(revision) => {
                    failures = 0;
                    match self.follow(revision).await {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            failures += 1;
            let pause = PAUSE.0.saturating_mul(1 << failures.min(7)).min(PAUSE.1);
            tracing::warn!(%error, failures, "watches wait: the store cannot be read");
            self.inner
                .environment
                .sleep(self.inner.environment.jitter(pause))
                .await;
        }
    }

    /// Reads everything, and tells the difference to what was known.
    async fn read_all(&self) -> Result<Revision, identity::IdentityError> {
        let store = self.inner.store.as_ref();
        let generation = self.inner.generation.load(Ordering::Acquire);
        let (anchor, _) = identity::open(store).await?;
        let mut request = ListRequest::new(objects_prefix());
        let mut first = None;
        let mut newest = Revision::ZERO;
        let mut found: BTreeMap<String, Item> = BTreeMap::new();
        loop {
            let page = store.list(&request).await?;
            let revision = *first.get_or_insert(page.revision);
            newest = newest.max(page.revision);
            // A store that cannot pin may have it still, and says so if it has not.
            request.at = Some(revision);
            request.after = page.records.last().map(|record| record.key.clone());
            for record in page.records {
                if let Some((path, key, slot)) = self.place(&record.key) {
                    let item = found.entry(path).or_insert_with(|| Item::new(key));
                    item.put(slot, record);
                }
            }
            if !page.more || request.after.is_none() {
                break;
            }
        }
        let revision = first.unwrap_or(Revision::ZERO);
        let mut state = self.state();
        let same = state.store_id.as_ref() == Some(&anchor.store_id);
        let known = state.revision.filter(|had| same && *had <= revision);
        let found: BTreeMap<_, _> = found
            .into_iter()
            .map(|(path, item)| (path, Arc::new(item)))
            .collect();
        if known.is_none() {
            // Nothing was known, or it was another history: whoever watched has to list again.
            let history = state.history + 1;
            *state = State {
                objects: found,
                history,
                floor: revision,
                changed: revision,
                revision: Some(revision),
                store_id: Some(anchor.store_id),
                ..State::default()
            };
        } else {
            let mut changes = Vec::new();
            for (path, item) in &found {
                let before = state.objects.get(path);
                if before.is_none_or(|before| before.state() != item.state()) {
                    let at = item.state().1.unwrap_or(revision);
                    changes.push((
                        at.max(known.unwrap_or(at)),
                        path.clone(),
                        Some(item.clone()),
                    ));
                }
            }
            let gone = state
                .objects
                .keys()
                .filter(|path| !found.contains_key(*path));
            changes.extend(gone.map(|path| (revision, path.clone(), None)));
            state.apply(changes, revision);
        }
        state.generation = generation;
        state.whole_from = newest;
        drop(state);
        self.inner.moved.send_replace(());
        Ok(revision)
    }

    /// Follows changes until there is a gap (`Ok`) or the store fails.
    async fn follow(&self, mut after: Revision) -> Result<(), identity::IdentityError> {
        let mut stream = self.inner.store.watch(objects_prefix(), after);
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                // Objects of a kind that was not known are in the store already.
                () = self.inner.grown.notified() => return Ok(()),
            };
            match event {
                Some(Ok(WatchEvent::Changes { revision, changes })) => {
                    after = after.max(revision);
                    self.told(changes, after);
                }
                Some(Ok(WatchEvent::Progress(revision))) => {
                    after = after.max(revision);
                    self.told(Vec::new(), after);
                }
                Some(Ok(WatchEvent::Reset { .. }) | Err(StoreError::Compacted { .. })) => {
                    return Ok(());
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(StoreError::unavailable("the watch ended").into()),
            }
        }
    }

    fn told(&self, changes: Vec<StoreChange>, revision: Revision) {
        let mut state = self.state();
        let mut edits: BTreeMap<String, (Revision, Item)> = BTreeMap::new();
        for change in changes {
            let Some((path, key, slot)) = self.place(change.key()) else {
                continue;
            };
            let at = change.revision();
            let held = state.objects.get(&path);
            let known = held.and_then(|item| item.get(&slot));
            // Told twice, or older than what was read.
            if known.is_some_and(|known| known.modified >= at) {
                continue;
            }
            let (last, item) = edits.entry(path).or_insert_with(|| {
                let item = held.map(|item| (**item).clone());
                (Revision::ZERO, item.unwrap_or_else(|| Item::new(key)))
            });
            *last = at.max(*last);
            match change {
                StoreChange::Put(record) => item.put(slot, record),
                StoreChange::Delete { .. } => item.remove(&slot),
            }
        }
        let changes = edits
            .into_iter()
            .map(|(path, (at, item))| (at, path, (!item.is_empty()).then(|| Arc::new(item))));
        let changes = changes.collect();
        state.apply(changes, revision);
        drop(state);
        self.inner.moved.send_replace(());
    }

    /// Where a key belongs; None for what no watcher is told of.
    fn place(&self, key: &Key) -> Option<(String, ObjectKey, Slot)> {
        let kinds = self.inner.kinds.read();
        let kinds = kinds.unwrap_or_else(PoisonError::into_inner);
        let (tree, object, writer) =
            ObjectKey::parse(key, |group, plural| kinds.scope(group, plural))?;
        drop(kinds);
        let slot = match tree {
            Tree::Intent => Slot::Intent,
            Tree::Reality => Slot::Reality,
            Tree::Part => Slot::Part(writer?.to_owned()),
            Tree::Grant | Tree::Ledger => return None,
        };
        let path = object.store_key(Tree::Intent).as_str().to_owned();
        Some((path, object, slot))
    }
}

impl State {
    /// Takes changes into the mirror and the ring.
    fn apply(
        &mut self,
        mut changes: Vec<(Revision, String, Option<Arc<Item>>)>,
        revision: Revision,
    ) {
        changes.sort_by_key(|(at, _, _)| *at);
        for (at, path, after) in changes {
            let before = match &after {
                Some(after) => self.objects.insert(path, after.clone()),
                None => self.objects.remove(&path),
            };
            self.taken += 1;
            self.changed = self.changed.max(at);
            self.replaced += before.as_ref().map_or(0, |before| before.bytes() as u64);
            if !before.iter().chain(&after).any(|item| item.has_intent()) {
                continue;
            }
            let Some(kind) = before
                .iter()
                .chain(&after)
                .next()
                .map(|item| item.key.kind().clone())
            else {
                continue;
            };
            let change = Change {
                // Positions are found by revision: it never goes back in the ring.
                revision: at.max(self.ring.back().map_or(self.floor, |last| last.revision)),
                kind,
                before,
                after,
                shown: OnceLock::new(),
            };
            self.ring_bytes += change.bytes();
            self.ring.push_back(Arc::new(change));
            let aged = self.ring.len().checked_sub(DECODED + 1);
            if let Some(aged) = aged.and_then(|index| self.ring.get_mut(index)) {
                *aged = Arc::new(aged.undecoded());
            }
        }
        while self.ring.len() > RING || self.ring_bytes > RING_BYTES {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes = self.ring_bytes.saturating_sub(oldest.bytes());
            self.first += 1;
            self.floor = oldest.revision;
        }
        self.revision = self.revision.max(Some(revision));
        self.kept.bound(self.replaced);
    }
}

fn objects_prefix() -> Prefix {
    Prefix::new("o/").expect("a literal prefix is valid")
}
