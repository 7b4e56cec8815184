//! The objects of a kind in the order of their keys, all as of one revision: from the store page
//! by page or, where a store cannot read an old revision, from the server's own mirror.
//!
//! Neither needs the whole list in memory at once: pages of the store come as they are sent, and
//! the mirror's objects are there anyway.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::model::{
    Intent, Joined, KindDefinition, KnownKind, ObjectKey, Reality, RecordError, Scope, Tree,
    Versioned, identity,
};
use platctrl_framework::store::{Key, ListRequest, Prefix, Record, Revision, Store, StoreError};

use super::hub::{Hub, Snapshot};
use super::selection::Selection;
use super::status::{Failure, Result};

/// More records than any list has.
const WHOLE: usize = 1 << 30;
/// How long a list waits for the server's own view of the store.
const SYNC: Duration = Duration::from_secs(10);

/// The records of a prefix, page by page.
#[derive(Debug)]
pub(super) struct Pages {
    store: Arc<dyn Store>,
    pinned: bool,
    request: ListRequest,
    buffer: VecDeque<Record>,
    finished: bool,
    /// That of the first page.
    revision: Option<Revision>,
}

impl Pages {
    pub(super) fn new(store: Arc<dyn Store>, prefix: Prefix, at: Option<Revision>) -> Self {
        let pinned = store.capabilities().pinned_reads;
        let mut request = ListRequest::new(prefix);
        request.at = at.filter(|_| pinned);
        let mut pages = Self {
            store,
            pinned,
            request,
            buffer: VecDeque::new(),
            finished: false,
            revision: None,
        };
        pages.at_most(usize::MAX);
        pages
    }

    /// Goes on behind the last record of a page before.
    pub(super) fn go_on(&mut self, after: Key, at: Option<Revision>) {
        self.request.after = Some(after);
        self.request.at = at;
    }

    /// Reads no more than so many from a store that has the rest of a list only behind the last
    /// record that it gave out, and all at once if they are all wanted: such a store has read them
    /// all anyway, and may not have the rest for long.
    pub(super) fn at_most(&mut self, wanted: usize) {
        if !self.pinned {
            self.request.limit = wanted.clamp(1, WHOLE);
        }
    }

    async fn peek(&mut self) -> Result<Option<&Record>, StoreError> {
        while self.buffer.is_empty() && !self.finished {
            let page = self.store.list(&self.request).await?;
            let first = *self.revision.get_or_insert(page.revision);
            if !self.pinned && first != page.revision {
                return Err(StoreError::Compacted {
                    requested: first,
                    oldest: page.revision,
                });
            }
            // A store that cannot pin may have it still, and says so if it has not.
            self.request.at = Some(page.revision);
            self.finished = !page.more;
            match page.records.last() {
                Some(last) => self.request.after = Some(last.key.clone()),
                None => self.finished = true,
            }
            self.buffer = page.records.into();
        }
        Ok(self.buffer.front())
    }

    pub(super) async fn next(&mut self) -> Result<Option<Record>, StoreError> {
        self.peek().await?;
        Ok(self.buffer.pop_front())
    }

    /// The revision of what is read: that of the first page.
    pub(super) async fn revision(&mut self) -> Result<Revision, StoreError> {
        self.peek().await?;
        Ok(self.revision.unwrap_or(Revision::ZERO))
    }

    /// There may be more.
    pub(super) fn is_more(&self) -> bool {
        !self.buffer.is_empty() || !self.finished
    }
}

/// What is behind `o/<tree>/` in a key.
fn suffix(key: &Key, tree: Tree) -> &str {
    let rest = key.as_str().strip_prefix("o/").unwrap_or_default();
    let rest = rest.strip_prefix(tree.as_str()).unwrap_or_default();
    rest.strip_prefix('/').unwrap_or_default()
}

/// The keys of a tree in which everything is that a selection may select.
fn range(definition: &KindDefinition, selection: &Selection, tree: Tree) -> Prefix {
    let mut below = String::new();
    let node = selection.required("spec.nodeName");
    let segments = match definition.scope {
        Scope::Cluster => [None, None],
        Scope::Namespaced => [selection.namespace.as_deref(), None],
        Scope::Node => [
            node,
            selection.namespace.as_deref().filter(|_| node.is_some()),
        ],
    };
    for segment in segments.into_iter().flatten() {
        below.push_str(segment);
        below.push('/');
    }
    let kind = definition.group_plural().prefix(tree);
    // A name that no key can have narrows nothing; the selection then finds nothing.
    Prefix::new(format!("{kind}{below}")).unwrap_or(kind)
}

/// The key in a range behind which a list goes on.
fn place(range: &Prefix, tree: Tree, after: &str) -> Result<Key> {
    let key = Key::new(format!("o/{}/{after}", tree.as_str())).ok();
    let key = key.filter(|key| key.is_under(range));
    key.ok_or_else(|| Failure::bad_request("`continue` is of another list"))
}

/// Objects of one kind, one after the other.
#[derive(Debug)]
pub(super) struct Objects {
    source: Source,
    pub(super) revision: Revision,
    /// Records that cannot be read.
    pub(super) unreadable: Vec<RecordError>,
}

#[derive(Debug)]
enum Source {
    Store(Box<Stored>),
    Mirror { snapshot: Snapshot, next: usize },
}

impl Objects {
    /// Begins to read: behind `after`, as of `at`, where they are given.
    pub(super) async fn open(
        hub: &Hub,
        kind: &KnownKind,
        selection: &Selection,
        after: Option<&str>,
        at: Option<Revision>,
    ) -> Result<Self> {
        let (source, revision) = if hub.store().capabilities().pinned_reads {
            let stored = Stored::open(hub.store(), kind, selection, after, at).await?;
            let revision = stored.intents.revision.unwrap_or(Revision::ZERO);
            (Source::Store(Box::new(stored)), revision)
        } else {
            let range = range(&kind.definition, selection, Tree::Intent);
            let after = after.map(|after| place(&range, Tree::Intent, after));
            let after = after.transpose()?;
            let snapshot = mirrored(hub, &range, at).await?;
            let next = after.map_or(0, |after| snapshot.behind(after.as_str()));
            let revision = snapshot.revision;
            (Source::Mirror { snapshot, next }, revision)
        };
        Ok(Self {
            source,
            revision,
            unreadable: Vec::new(),
        })
    }

    /// The next object that has an intent, with the suffix of its keys.
    pub(super) async fn next(&mut self) -> Result<Option<(String, Joined)>, StoreError> {
        let unreadable = &mut self.unreadable;
        match &mut self.source {
            Source::Store(stored) => stored.next(unreadable).await,
            Source::Mirror { snapshot, next } => {
                while let Some(joined) = snapshot.joined(*next, |error| unreadable.push(error)) {
                    *next += 1;
                    if joined.intent.is_some() {
                        let key = joined.key.store_key(Tree::Intent);
                        return Ok(Some((suffix(&key, Tree::Intent).to_owned(), joined)));
                    }
                }
                Ok(None)
            }
        }
    }

    /// There will be another list that goes on at this revision.
    pub(super) fn keep(&self, hub: &Hub) {
        if let Source::Mirror { snapshot, .. } = &self.source {
            hub.keep(snapshot);
        }
    }
}

/// The mirror's objects: as of a revision, or no older than what anybody was told was written.
async fn mirrored(hub: &Hub, range: &Prefix, at: Option<Revision>) -> Result<Snapshot> {
    let gone = |at: Revision| {
        Failure::expired(format!(
            "the list at resource version {at} is no longer kept: list again from the beginning"
        ))
    };
    // An answer without its anchor is an error, and no empty fleet.
    let (anchor, now) = identity::open(hub.store().as_ref()).await?;
    if let Some(at) = at.filter(|at| *at > now) {
        return Err(gone(at));
    }
    let caught_up = async {
        loop {
            hub.reach(at.unwrap_or(now), &anchor.store_id).await;
            match at {
                Some(at) => return hub.snapshot_at(range, at).ok_or_else(|| gone(at)),
                None => {
                    if let Some(snapshot) = hub.snapshot(range) {
                        return Ok(snapshot);
                    }
                }
            }
        }
    };
    let late = |_| Failure::unavailable("the server has not read the store yet: try again");
    tokio::time::timeout(SYNC, caught_up).await.map_err(late)?
}

/// Objects as they are read from the store.
#[derive(Debug)]
struct Stored {
    scope: Scope,
    intents: Pages,
    realities: Pages,
    /// Few, and in another order than the rest.
    parts: BTreeMap<ObjectKey, Vec<(String, Record)>>,
}

impl Stored {
    async fn open(
        store: &Arc<dyn Store>,
        kind: &KnownKind,
        selection: &Selection,
        after: Option<&str>,
        at: Option<Revision>,
    ) -> Result<Self> {
        let definition = &kind.definition;
        let pages = |tree, at| -> Result<Pages> {
            let mut pages = Pages::new(store.clone(), range(definition, selection, tree), at);
            if let Some(after) = after {
                let after = place(&pages.request.prefix, tree, after)?;
                pages.request.after = Some(after);
            }
            Ok(pages)
        };
        let mut intents = pages(Tree::Intent, at)?;
        let empty = intents.peek().await?.is_none();
        let revision = intents.revision.unwrap_or(Revision::ZERO);
        if empty && after.is_none() {
            // An answer without its anchor is an error, and no empty fleet.
            identity::open(store.as_ref()).await?;
        }
        let mut realities = pages(Tree::Reality, Some(revision))?;
        realities.peek().await?;
        let mut parts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let range = range(definition, selection, Tree::Part);
        let mut all = Pages::new(store.clone(), range, Some(revision));
        while let Some(record) = all.next().await? {
            let parsed = ObjectKey::parse(&record.key, |_, _| Some(definition.scope));
            if let Some((_, key, Some(writer))) = parsed {
                let writer = writer.to_owned();
                parts.entry(key).or_default().push((writer, record));
            }
        }
        Ok(Self {
            scope: definition.scope,
            intents,
            realities,
            parts,
        })
    }

    async fn next(
        &mut self,
        unreadable: &mut Vec<RecordError>,
    ) -> Result<Option<(String, Joined)>, StoreError> {
        loop {
            let Some(record) = self.intents.next().await? else {
                return Ok(None);
            };
            let parsed = ObjectKey::parse(&record.key, |_, _| Some(self.scope));
            let Some((_, key, _)) = parsed else {
                continue;
            };
            let path = suffix(&record.key, Tree::Intent).to_owned();
            let mut joined = Joined::empty(key.clone());
            joined.intent = match Versioned::<Intent>::from_record(&key, &record) {
                Ok(intent) => Some(intent),
                Err(error) => {
                    unreadable.push(error);
                    continue;
                }
            };
            joined.reality = self.reality(&key, &path, unreadable).await?;
            for (writer, record) in self.parts.remove(&key).unwrap_or_default() {
                match Versioned::<Reality>::from_record(&key, &record) {
                    Ok(part) => {
                        joined.parts.insert(writer, part);
                    }
                    Err(error) => unreadable.push(error),
                }
            }
            return Ok(Some((path, joined)));
        }
    }

    /// The reality of an object. Realities before it have no intent.
    async fn reality(
        &mut self,
        key: &ObjectKey,
        path: &str,
        unreadable: &mut Vec<RecordError>,
    ) -> Result<Option<Versioned<Reality>>, StoreError> {
        loop {
            let Some(record) = self.realities.peek().await? else {
                return Ok(None);
            };
            match suffix(&record.key, Tree::Reality).cmp(path) {
                Ordering::Greater => return Ok(None),
                Ordering::Less => {}
                Ordering::Equal => {
                    let reality = Versioned::<Reality>::from_record(key, record);
                    return Ok(reality.map_err(|error| unreadable.push(error)).ok());
                }
            }
            self.realities.next().await?;
        }
    }
}
