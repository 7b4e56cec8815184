//! What happens to the objects of a kind, as a stream that never ends.
//!
//! A stream lists the objects, watches their records from there, and goes on by itself after
//! whatever interrupts it: after a broken connection from where it was, after a reset by reading
//! everything again and telling only what is different. It takes nothing from another store, or
//! from one that went back.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::FutureExt;
use futures::stream::{self, BoxStream, SelectAll, Stream, StreamExt};

use super::objects::{Fresh, typed_object};
use super::read::range_of;
use super::{ClientError, Result};
use crate::backoff::Backoff;
use crate::model::identity::open;
use crate::model::{
    Intent, Joined, Object, ObjectKey, Reality, RecordError, Resource, Tree, Versioned,
};
use crate::store::{Change, Record, Revision, StoreError, WatchEvent};

/// The trees that an object's records are in.
const TREES: [Tree; 3] = [Tree::Intent, Tree::Reality, Tree::Part];
/// After this long without a word, the store is asked whether there was nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// A watch that lived so long has recovered from what was before it.
const CALM: Duration = Duration::from_secs(10);
/// Changes that have arrived and are taken in before any is told, so that a spec and the report
/// about it are mostly told together.
const AT_ONCE: usize = 1_000;

/// Something that happened to an object of the kind `K`.
#[non_exhaustive]
pub enum ObjectEvent<K: Resource> {
    /// Everything that there was when it was last read has been told.
    Synced(Revision),
    /// The object is there, and was not before.
    Added(Object<K>),
    /// Its intent or its reality is different.
    Modified(Object<K>),
    /// Its intent is gone, or its labels do not match any more: the object as it was last told.
    /// This is no order to take anything away: look for the tombstone.
    Removed(Object<K>),
    /// It cannot be read. It is neither there nor gone.
    Unreadable(RecordError),
}

impl<K: Resource> fmt::Debug for ObjectEvent<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Synced(revision) => f.debug_tuple("Synced").field(revision).finish(),
            Self::Added(object) => f.debug_tuple("Added").field(object).finish(),
            Self::Modified(object) => f.debug_tuple("Modified").field(object).finish(),
            Self::Removed(object) => f.debug_tuple("Removed").field(object).finish(),
            Self::Unreadable(error) => f.debug_tuple("Unreadable").field(error).finish(),
        }
    }
}

/// The stream of [`Fresh::watch`].
pub struct ObjectStream<K: Resource> {
    events: BoxStream<'static, Result<ObjectEvent<K>>>,
}

impl<K: Resource> fmt::Debug for ObjectStream<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStream")
            .field("kind", &K::KIND)
            .finish_non_exhaustive()
    }
}

impl<K: Resource> Stream for ObjectStream<K> {
    type Item = Result<ObjectEvent<K>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(context)
    }
}

impl<K: Resource> Fresh<K> {
    /// What is there, and then what happens to it: [`Added`](ObjectEvent::Added) for each object,
    /// [`Synced`](ObjectEvent::Synced), and changes as they arrive. States in between may be left
    /// out; each object's come in their order. Intent and reality are read apart, so a spec may
    /// be told before the report that was committed with it.
    ///
    /// The stream does not end. An error says why it is behind; it goes on by itself, later and
    /// later while the same happens again. Nothing happens while nobody asks it for the next item.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// # use std::sync::Arc;
    /// # use platctrl_framework::{environment::Environment, store::MemoryStore, model::{Metadata, Object, Resource, identity}};
    /// # use schemars::JsonSchema;
    /// # use serde::{Deserialize, Serialize};
    /// # /// A web site.
    /// # #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
    /// # #[resource(group = "example.dev", version = "v1", kind = "Site")]
    /// # pub struct SiteSpec { pages: u32 }
    /// use futures::StreamExt;
    /// use platctrl_framework::client::{Client, ObjectEvent};
    ///
    /// # let environment = Environment::system();
    /// # let store = Arc::new(MemoryStore::new(environment.clone()));
    /// # identity::initialise(&*store, &environment).await.unwrap();
    /// # let client = Client::new(store, environment, "docs");
    /// # client.fresh::<Site>().create(&Object::new(Metadata::named("home"), SiteSpec { pages: 1 })).await.unwrap();
    /// let mut events = client.fresh::<Site>().watch();
    /// while let Some(event) = events.next().await {
    ///     match event {
    ///         Ok(ObjectEvent::Added(site)) => println!("{} has {} pages", site.metadata.name, site.spec.pages),
    ///         Ok(ObjectEvent::Synced(_)) => break,
    ///         Ok(other) => println!("{other:?}"),
    ///         Err(error) => eprintln!("behind: {error}"),
    ///     }
    /// }
    /// # });
    /// ```
    #[must_use]
    pub fn watch(&self) -> ObjectStream<K> {
        let watching = Watching {
            objects: self.clone(),
            store_id: None,
            known: BTreeMap::new(),
            after: [Revision::ZERO; 3],
            open: None,
            state: State::Unread,
            failures: 0,
            begun: Duration::ZERO,
            told: VecDeque::new(),
        };
        let events = stream::unfold(watching, async |mut watching| {
            let next = watching.next().await;
            Some((next, watching))
        });
        ObjectStream {
            events: events.boxed(),
        }
    }
}

/// What is known of an object.
struct Known<K: Resource> {
    joined: Joined,
    /// As it was last told, unless it was told to be removed.
    shown: Option<Object<K>>,
    /// The records that cannot be read, by their keys.
    unreadable: BTreeMap<String, RecordError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everything is to be read.
    Unread,
    /// The watches go on from where they were.
    Interrupted,
    Watching,
}

type Watches = SelectAll<BoxStream<'static, (usize, std::result::Result<WatchEvent, StoreError>)>>;

struct Watching<K: Resource> {
    objects: Fresh<K>,
    /// The store that was read first.
    store_id: Option<String>,
    known: BTreeMap<ObjectKey, Known<K>>,
    /// How far each tree has come.
    after: [Revision; 3],
    open: Option<Watches>,
    state: State,
    failures: u32,
    begun: Duration,
    told: VecDeque<Result<ObjectEvent<K>>>,
}

impl<K: Resource> Watching<K> {
    async fn next(&mut self) -> Result<ObjectEvent<K>> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return event;
            }
            if self.state != State::Watching {
                if self.failures > 0 {
                    let environment = &self.objects.client.environment;
                    let delay = Backoff::SOURCE.delay(self.failures, environment);
                    environment.sleep(delay).await;
                }
                // What fails before a watch has lived for a while is the same failure.
                self.failures = self.failures.saturating_add(1);
                self.begin().await?;
                self.begun = self.now();
                continue;
            }
            self.hear().await;
        }
    }

    /// Reads everything, or makes sure that nothing has to be, and watches from there.
    async fn begin(&mut self) -> Result<()> {
        let (anchor, revision) = open(&**self.objects.client.store()).await?;
        let expected = self.store_id.get_or_insert(anchor.store_id.clone());
        if *expected != anchor.store_id {
            let found = anchor.store_id;
            return Err(ClientError::OtherHistory {
                reason: format!("another store answers: this is {found}, not {expected}"),
            });
        }
        let had = self.after.iter().copied().max().unwrap_or(Revision::ZERO);
        if revision < had {
            return Err(ClientError::OtherHistory {
                reason: format!("the store went back from revision {had} to {revision}"),
            });
        }
        if self.state == State::Unread {
            self.read().await?;
        }
        let mut watches = SelectAll::new();
        for (index, tree) in TREES.into_iter().enumerate() {
            let range = self.range(tree)?;
            let watch = self.objects.client.store().watch(range, self.after[index]);
            let end = stream::once(async { Err(StoreError::unavailable("the watch ended")) });
            watches.push(watch.chain(end).map(move |event| (index, event)).boxed());
        }
        self.open = Some(watches);
        self.state = State::Watching;
        Ok(())
    }

    fn range(&self, tree: Tree) -> Result<crate::store::Prefix> {
        let selection = &self.objects.selection;
        let place = (selection.node.as_deref(), selection.namespace.as_deref());
        range_of(&K::group_plural(), K::SCOPE, place, tree)
    }

    async fn read(&mut self) -> Result<()> {
        let mut found = BTreeMap::new();
        let mut after = [Revision::ZERO; 3];
        let mut pinned = None;
        for (index, tree) in TREES.into_iter().enumerate() {
            let range = self.range(tree)?;
            let (records, revision) = self.objects.client.all(&range, pinned).await?;
            pinned.get_or_insert(revision);
            after[index] = revision;
            for record in records {
                self.put(&mut found, &record);
            }
        }
        self.after = after;
        let before = std::mem::replace(&mut self.known, found);
        for (key, known) in &mut self.known {
            let Some(before) = before.get(key) else {
                continue;
            };
            known.shown.clone_from(&before.shown);
        }
        let gone = before
            .into_iter()
            .filter(|(key, _)| !self.known.contains_key(key));
        let gone: Vec<_> = gone.filter_map(|(_, known)| known.shown).collect();
        self.told.extend(
            gone.into_iter()
                .map(|object| Ok(ObjectEvent::Removed(object))),
        );
        let keys: Vec<_> = self.known.keys().cloned().collect();
        for key in keys {
            self.tell(&key);
        }
        let revision = after.into_iter().min().unwrap_or(Revision::ZERO);
        self.told.push_back(Ok(ObjectEvent::Synced(revision)));
        Ok(())
    }

    /// Waits for what the watches say next, and takes it in.
    async fn hear(&mut self) {
        let environment = self.objects.client.environment.clone();
        let Some(open) = &mut self.open else {
            self.state = State::Interrupted;
            return;
        };
        let first = tokio::select! {
            biased;
            event = open.next() => event,
            () = environment.sleep(SILENCE) => return self.ask().await,
        };
        let mut changed = Vec::new();
        let mut next = first;
        for _ in 0..AT_ONCE {
            match next {
                Some((index, event)) => self.take(index, event, &mut changed),
                None => self.interrupt(StoreError::unavailable("the watches ended")),
            }
            if self.state != State::Watching {
                break;
            }
            let Some(open) = &mut self.open else { break };
            match open.next().now_or_never() {
                Some(event) => next = event,
                None => break,
            }
        }
        changed.sort();
        changed.dedup();
        for key in changed {
            self.tell(&key);
        }
    }

    fn take(
        &mut self,
        index: usize,
        event: std::result::Result<WatchEvent, StoreError>,
        changed: &mut Vec<ObjectKey>,
    ) {
        match event {
            Ok(WatchEvent::Changes { revision, changes }) => {
                self.after[index] = revision.max(self.after[index]);
                let mut known = std::mem::take(&mut self.known);
                for change in changes {
                    changed.extend(match change {
                        Change::Put(record) => self.put(&mut known, &record),
                        Change::Delete { key, revision } => self.delete(&mut known, &key, revision),
                    });
                }
                self.known = known;
            }
            Ok(WatchEvent::Progress(revision)) => {
                self.after[index] = revision.max(self.after[index]);
            }
            Ok(WatchEvent::Reset { .. }) | Err(StoreError::Compacted { .. }) => {
                self.stop(State::Unread);
            }
            Err(error) => self.interrupt(error),
        }
    }

    fn now(&self) -> Duration {
        self.objects.client.environment.monotonic()
    }

    fn stop(&mut self, state: State) {
        self.open = None;
        self.state = state;
        if self.now().saturating_sub(self.begun) >= CALM {
            self.failures = 0;
        }
    }

    fn interrupt(&mut self, error: impl Into<ClientError>) {
        self.stop(State::Interrupted);
        self.told.push_back(Err(error.into()));
    }

    /// The watches said nothing for long: was there nothing?
    async fn ask(&mut self) {
        match open(&**self.objects.client.store()).await {
            // One that is alive would have told of this revision.
            Ok((_, revision)) if self.after.iter().any(|after| *after < revision) => {
                self.stop(State::Unread);
            }
            Ok(_) => {}
            Err(error) => self.interrupt(error),
        }
    }

    /// The object and the writer, for a part, that a key belongs to, if it is one of ours.
    fn place(&self, key: &crate::store::Key) -> Option<(Tree, ObjectKey, String)> {
        let (tree, object, writer) = ObjectKey::parse(key, |_, _| Some(K::SCOPE))?;
        let namespace = self.objects.selection.namespace.as_deref();
        let ours =
            namespace.is_none() || object.namespace().is_none() || object.namespace() == namespace;
        let writer = writer.unwrap_or_default().to_owned();
        ours.then_some((tree, object, writer))
    }

    fn put(&self, known: &mut BTreeMap<ObjectKey, Known<K>>, record: &Record) -> Option<ObjectKey> {
        let (tree, key, writer) = self.place(&record.key)?;
        let entry = known.entry(key.clone()).or_insert_with(|| Known {
            joined: Joined::empty(key.clone()),
            shown: None,
            unreadable: BTreeMap::new(),
        });
        let joined = &mut entry.joined;
        let reality = || Versioned::<Reality>::from_record(&key, record);
        // A watch may tell what was known before.
        let older = |had: Option<Revision>| had.is_some_and(|had| had > record.modified);
        let read = match tree {
            Tree::Intent if older(joined.intent.as_ref().map(|it| it.modified)) => return None,
            Tree::Intent => {
                Versioned::<Intent>::from_record(&key, record).map(|it| joined.intent = Some(it))
            }
            Tree::Reality if older(joined.reality.as_ref().map(|it| it.modified)) => return None,
            Tree::Reality => reality().map(|it| joined.reality = Some(it)),
            _ if older(joined.parts.get(&writer).map(|it| it.modified)) => return None,
            _ => reality().map(|it| drop(joined.parts.insert(writer, it))),
        };
        let text = record.key.to_string();
        match read {
            Ok(()) => drop(entry.unreadable.remove(&text)),
            Err(error) => drop(entry.unreadable.insert(text, error)),
        }
        Some(key)
    }

    fn delete(
        &self,
        known: &mut BTreeMap<ObjectKey, Known<K>>,
        key: &crate::store::Key,
        revision: Revision,
    ) -> Option<ObjectKey> {
        let (tree, object, writer) = self.place(key)?;
        let entry = known.get_mut(&object)?;
        let joined = &mut entry.joined;
        // A delete of what came back since is old.
        let newer = |had: Revision| had > revision;
        match tree {
            Tree::Intent if joined.intent.as_ref().is_some_and(|it| newer(it.modified)) => {
                return None;
            }
            Tree::Intent => joined.intent = None,
            Tree::Reality if joined.reality.as_ref().is_some_and(|it| newer(it.modified)) => {
                return None;
            }
            Tree::Reality => joined.reality = None,
            _ if joined
                .parts
                .get(&writer)
                .is_some_and(|it| newer(it.modified)) =>
            {
                return None;
            }
            _ => drop(joined.parts.remove(&writer)),
        }
        entry.unreadable.remove(key.as_str());
        Some(object)
    }

    /// Tells what is different about an object from what was told last.
    fn tell(&mut self, key: &ObjectKey) {
        let Some(known) = self.known.get_mut(key) else {
            return;
        };
        let intent = key.store_key(Tree::Intent).to_string();
        if let Some(error) = known.unreadable.get(&intent) {
            self.told
                .push_back(Ok(ObjectEvent::Unreadable(error.clone())));
            return;
        }
        let reports = known.unreadable.values().cloned();
        let mut events: Vec<_> = reports.map(ObjectEvent::Unreadable).collect();
        let selection = &self.objects.selection;
        let now = match typed_object::<K>(&known.joined) {
            Some(Ok(object)) => Some(object).filter(|object| selection.fits(object)),
            Some(Err(error)) => {
                self.told.push_back(Ok(ObjectEvent::Unreadable(error)));
                return;
            }
            None => None,
        };
        let revision = |object: &Object<K>| object.metadata.resource_version;
        match (known.shown.take(), now) {
            (None, Some(now)) => {
                known.shown = Some(now.clone());
                events.insert(0, ObjectEvent::Added(now));
            }
            (Some(before), Some(now)) => {
                let same = before.metadata.uid == now.metadata.uid;
                let changed = revision(&before) != revision(&now) || before.status != now.status;
                known.shown = Some(now.clone());
                if !same {
                    // Another object under the same name.
                    events.insert(0, ObjectEvent::Removed(before));
                    events.insert(1, ObjectEvent::Added(now));
                } else if changed {
                    events.insert(0, ObjectEvent::Modified(now));
                }
            }
            (Some(before), None) => events.insert(0, ObjectEvent::Removed(before)),
            (None, None) => {}
        }
        let joined = &known.joined;
        let empty = joined.intent.is_none() && joined.reality.is_none() && joined.parts.is_empty();
        if empty && known.unreadable.is_empty() {
            self.known.remove(key);
        }
        self.told.extend(events.into_iter().map(Ok));
    }
}
