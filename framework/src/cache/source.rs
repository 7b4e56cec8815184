//! One prefix of the store, listed and then watched for as long as the cache lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::backoff::Backoff;
use crate::environment::Environment;
use crate::failsafe::{Safeguard, Safeguards};
use crate::model::identity::{Anchor, IdentityError, PREFIX_ANCHOR, anchor_key, open};
use crate::store::{
    Change, Key, ListRequest, Prefix, Record, Revision, Store, StoreError, Transaction, WatchEvent,
};

/// After this long without a word from a watch, the store is asked whether there was nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// Watches have bugs: now and then everything is read and compared.
const FULL_DIFF: Duration = Duration::from_secs(30 * 60);
/// Pages of a first list that are read ahead of who takes them in. Each may be some megabytes.
const PAGES_AHEAD: usize = 4;
/// A source that worked this long has recovered.
const CALM: Duration = Duration::from_secs(120);

/// Why a source cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The answer does not show which store it is from.
    #[error(
        "the answer for `{prefix}` has no anchor, so it is not taken for an empty store: nothing was initialised here, the root is wrong, or the credential may not read it"
    )]
    NoAnchor {
        /// The prefix that was read.
        prefix: Prefix,
    },
    /// The anchor is not readable.
    #[error("the anchor {key} is not readable: {reason}")]
    BadAnchor {
        /// Where it is.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// Another store answers.
    #[error("another store answers: this is {found}, what was read before is {expected}")]
    OtherStore {
        /// The identity of the store that was read before.
        expected: String,
        /// The identity of the store that answers now.
        found: String,
    },
    /// The store is at an older revision than it was.
    #[error(
        "the store went back from revision {had} to {found}: it was restored or replaced, and nothing is taken from it until a person has looked"
    )]
    OlderHistory {
        /// The revision that was seen.
        had: Revision,
        /// The revision it has now.
        found: Revision,
    },
}

/// How a source stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStatus {
    /// What it reads.
    pub prefix: Prefix,
    /// Everything up to here was delivered. None before the first list.
    pub revision: Option<Revision>,
    /// How long ago it was last heard of. None before the first list.
    pub heard: Option<Duration>,
    /// How often everything was read.
    pub lists: u64,
    /// How often a watch was begun.
    pub watches: u64,
    /// Why it is not up to date, while it is not.
    pub failing: Option<SourceError>,
}

#[derive(Debug, Default)]
struct Known {
    revision: Option<Revision>,
    heard: Option<Duration>,
    lists: u64,
    watches: u64,
    failing: Option<SourceError>,
}

/// A source's state, as others see it.
#[derive(Debug)]
pub(crate) struct SourceState {
    prefix: Prefix,
    known: Mutex<Known>,
    again: Notify,
}

impl SourceState {
    pub(crate) fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            known: Mutex::default(),
            again: Notify::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self, now: Duration) -> SourceStatus {
        let known = self.known();
        SourceStatus {
            prefix: self.prefix.clone(),
            revision: known.revision,
            heard: known.heard.map(|heard| now.saturating_sub(heard)),
            lists: known.lists,
            watches: known.watches,
            failing: known.failing.clone(),
        }
    }

    /// What is there now is taken, even if it is older: a person has looked.
    pub(crate) fn accept_history(&self) {
        self.known().revision = None;
    }

    /// Asks for a full read, because something waits for what the watch did not tell.
    pub(crate) fn read_again(&self) {
        self.again.notify_one();
    }
}

/// What sources tell the cache's writer.
#[derive(Debug)]
pub(crate) enum Feed {
    /// A page of the source's first list.
    Page(usize, FirstPage),
    /// A list is complete: these records, besides the pages before.
    List(usize, Vec<Record>, Revision),
    Changes(usize, Vec<Change>, Revision),
    Progress(usize, Revision),
}

/// A page of a first list.
#[derive(Debug)]
pub(crate) struct FirstPage {
    pub(crate) records: Vec<Record>,
    /// It is the first one.
    pub(crate) begins: bool,
    /// Given back when the page is taken in.
    _room: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
impl FirstPage {
    pub(crate) fn of(records: Vec<Record>, begins: bool) -> Self {
        Self {
            records,
            begins,
            _room: None,
        }
    }
}

/// What a source needs.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) index: usize,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) environment: Environment,
    pub(crate) state: Arc<SourceState>,
    pub(crate) feed: mpsc::Sender<Feed>,
    pub(crate) guards: Arc<Safeguards>,
}

/// Writes the anchor that a prefix needs to be read alone.
///
/// A single key ([`Prefix::only`]) needs none: it is read together with the store's own.
///
/// # Errors
/// `Uninitialised` for a store without an anchor of its own; the store's errors.
pub async fn write_prefix_anchor(store: &dyn Store, prefix: &Prefix) -> Result<(), IdentityError> {
    open(store).await?;
    if prefix.as_key().is_some() {
        return Ok(());
    }
    let key = prefix.key(PREFIX_ANCHOR).map_err(|error| {
        let reason = error.to_string();
        StoreError::Invalid { reason }
    })?;
    let mut records = store
        .get(&[anchor_key(), key.clone()])
        .await?
        .records
        .into_iter();
    let root = records
        .next()
        .flatten()
        .ok_or(IdentityError::Uninitialised)?;
    let held = records.next().flatten();
    if held.is_some_and(|held| held.value == root.value) {
        return Ok(());
    }
    let transaction = Transaction::new()
        .require_unchanged(root.key, Some(root.modified))
        .put(key, root.value);
    store.commit(transaction).await?;
    Ok(())
}

/// Keeps the cache fed from one source. Ends when nobody takes what it tells.
pub(crate) async fn feed(source: Source) {
    let mut reading = Reading {
        source,
        store_id: None,
        turns: 0,
        failures: 0,
        last_failure: Duration::ZERO,
        pages_ahead: Arc::new(Semaphore::new(PAGES_AHEAD)),
    };
    // The writer is gone: so is the cache.
    let _: Result<(), mpsc::error::SendError<Feed>> = reading.run().await;
}

struct Reading {
    source: Source,
    /// The store that was read first; no other is ever taken for it.
    store_id: Option<String>,
    /// How often the history turned out to be another one when this source last looked.
    turns: u64,
    failures: u32,
    last_failure: Duration,
    pages_ahead: Arc<Semaphore>,
}

/// How a watch ended.
enum Ended {
    /// Go on from where it was.
    Broken(SourceError),
    /// Read everything.
    Stale,
}

type Sent<T> = Result<T, mpsc::error::SendError<Feed>>;

impl Reading {
    async fn run(&mut self) -> Sent<()> {
        loop {
            let begun = self.now();
            let (records, revision) = match self.list().await {
                Ok(listed) => listed,
                Err(error) => {
                    self.failed(error).await;
                    continue;
                }
            };
            let index = self.source.index;
            self.heard(revision, |known| known.lists += 1);
            self.source
                .feed
                .send(Feed::List(index, records, revision))
                .await?;
            let full_diff = self.now() + self.source.environment.jitter(FULL_DIFF);
            let mut after = revision;
            while let Ended::Broken(error) = self.watch(&mut after, full_diff).await? {
                self.failed(error).await;
                match self.still_the_same(after).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.failed(error).await;
                        break;
                    }
                }
            }
            if self.now().saturating_sub(begun) < Backoff::SOURCE.first {
                // Whatever asks for one full read after another gets them at this pace.
                let pause = Backoff::SOURCE.delay(1, &self.source.environment);
                self.source.environment.sleep(pause).await;
            }
        }
    }

    fn now(&self) -> Duration {
        self.source.environment.monotonic()
    }

    fn heard(&self, revision: Revision, also: impl FnOnce(&mut Known)) {
        let now = self.now();
        let mut known = self.source.state.known();
        known.revision = known.revision.max(Some(revision));
        known.heard = Some(now);
        known.failing = None;
        also(&mut known);
    }

    async fn failed(&mut self, error: SourceError) {
        let now = self.now();
        if now.saturating_sub(self.last_failure) > CALM {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last_failure = now;
        let prefix = &self.source.state.prefix;
        tracing::warn!(%prefix, failures = self.failures, %error, "the store is not readable");
        self.source.state.known().failing = Some(error);
        let delay = Backoff::SOURCE.delay(self.failures, &self.source.environment);
        self.source.environment.sleep(delay).await;
        self.last_failure = self.now();
    }

    /// Reads the whole prefix, at one revision where the backend can, and checks whose it is.
    async fn list(&mut self) -> Result<(Vec<Record>, Revision), SourceError> {
        let (records, revision) = match self.source.state.prefix.as_key() {
            Some(key) => self.read_key(key).await?,
            None => self.read_prefix().await?,
        };
        let had = self.source.state.known().revision;
        let looks = self.source.guards.is_on(Safeguard::OlderRevision);
        if let Some(had) = had.filter(|&had| had > revision && looks) {
            self.source.guards.went_back(had, revision);
            self.source.guards.verify(&*self.source.store).await?;
            return Err(SourceError::OlderHistory {
                had,
                found: revision,
            });
        }
        self.turns = self.source.guards.verify(&*self.source.store).await?;
        Ok((records, revision))
    }

    /// Reads a key that is watched alone. No anchor can lie below it, so the store's own is read
    /// at the same revision.
    async fn read_key(&mut self, key: Key) -> Result<(Vec<Record>, Revision), SourceError> {
        let prefix = self.source.state.prefix.clone();
        let keys = [anchor_key(), key];
        let snapshot = self.source.store.get(&keys).await?;
        let mut records = snapshot.records.into_iter();
        let anchor = records.next().flatten();
        self.identify(&anchor.ok_or(SourceError::NoAnchor { prefix })?)?;
        Ok((records.flatten().collect(), snapshot.revision))
    }

    async fn read_prefix(&mut self) -> Result<(Vec<Record>, Revision), SourceError> {
        let mut request = ListRequest::new(self.source.state.prefix.clone());
        // The first list goes to the cache page by page, so that it is read and taken in at once;
        // later ones are compared as a whole.
        let initial = self.source.state.known().lists == 0;
        let mut records = Vec::new();
        let mut revision = None;
        let mut anchored = false;
        loop {
            let page = self.source.store.list(&request).await?;
            let begins = revision.is_none();
            let first = *revision.get_or_insert(page.revision);
            request.at = Some(first);
            request.after = page.records.last().map(|record| record.key.clone());
            if let Some(anchor) = self.anchor_in(&page.records).cloned() {
                self.identify(&anchor)?;
                anchored = true;
            }
            if initial {
                let page = FirstPage {
                    records: page.records,
                    begins,
                    // Nobody closes it.
                    _room: self.pages_ahead.clone().acquire_owned().await.ok(),
                };
                let page = Feed::Page(self.source.index, page);
                // When nobody takes it, nobody takes the end of the list either.
                let _: Sent<()> = self.source.feed.send(page).await;
            } else {
                records.extend(page.records);
            }
            if !page.more || request.after.is_none() {
                break;
            }
        }
        if !anchored && self.source.guards.is_on(Safeguard::Anchor) {
            let prefix = self.source.state.prefix.clone();
            return Err(SourceError::NoAnchor { prefix });
        }
        Ok((records, revision.unwrap_or(Revision::ZERO)))
    }

    /// The anchor that proves an answer for this source. It is read with what it proves: a
    /// refused read that looks empty does not show it either.
    fn anchor(&self) -> Key {
        let prefix = &self.source.state.prefix;
        if *prefix == Prefix::all() || prefix.as_key().is_some() {
            return anchor_key();
        }
        prefix
            .key(PREFIX_ANCHOR)
            .expect("a prefix leaves room for the anchor's name")
    }

    fn anchor_in<'r>(&self, page: &'r [Record]) -> Option<&'r Record> {
        let key = self.anchor();
        let place = page.binary_search_by(|record| record.key.cmp(&key));
        page.get(place.ok()?)
    }

    fn identify(&mut self, record: &Record) -> Result<(), SourceError> {
        let anchor: Anchor = serde_json::from_slice(&record.value).map_err(|error| {
            let (key, reason) = (record.key.clone(), error.to_string());
            SourceError::BadAnchor { key, reason }
        })?;
        let expected = self.store_id.get_or_insert_with(|| anchor.store_id.clone());
        if *expected == anchor.store_id || !self.source.guards.is_on(Safeguard::Identity) {
            return Ok(());
        }
        Err(SourceError::OtherStore {
            expected: expected.clone(),
            found: anchor.store_id,
        })
    }

    /// Before a watch goes on after an interruption: is it still this store, and no older?
    /// False when everything has to be read again, because the history is another one.
    async fn still_the_same(&mut self, after: Revision) -> Result<bool, SourceError> {
        let prefix = self.source.state.prefix.clone();
        let snapshot = self.source.store.get(&[self.anchor()]).await?;
        let found = snapshot.records.into_iter().flatten().next();
        self.identify(&found.ok_or(SourceError::NoAnchor { prefix })?)?;
        if snapshot.revision < after && self.source.guards.is_on(Safeguard::OlderRevision) {
            self.source.guards.went_back(after, snapshot.revision);
            self.source.guards.verify(&*self.source.store).await?;
            return Err(SourceError::OlderHistory {
                had: after,
                found: snapshot.revision,
            });
        }
        let turns = self.source.guards.verify(&*self.source.store).await?;
        if turns != self.turns {
            return Ok(false);
        }
        self.heard(after, |_| {});
        Ok(true)
    }

    async fn watch(&mut self, after: &mut Revision, full_diff: Duration) -> Sent<Ended> {
        let index = self.source.index;
        let state = self.source.state.clone();
        let environment = self.source.environment.clone();
        state.known().watches += 1;
        let mut stream = self.source.store.watch(state.prefix.clone(), *after);
        let mut heard = self.now();
        let mut quiet = Box::pin(environment.sleep(SILENCE));
        loop {
            // In this order: a stream that always has something holds up nothing else.
            let event = tokio::select! {
                biased;
                () = state.again.notified() => return Ok(Ended::Stale),
                () = &mut quiet => {
                    let now = self.now();
                    if now >= full_diff {
                        return Ok(Ended::Stale);
                    }
                    if now.saturating_sub(heard) >= SILENCE {
                        match self.source.store.get(&[self.anchor()]).await {
                            Ok(snapshot) if snapshot.revision > *after => return Ok(Ended::Stale),
                            Ok(_) => heard = now,
                            Err(error) => return Ok(Ended::Broken(error.into())),
                        }
                    }
                    quiet = Box::pin(environment.sleep(SILENCE.saturating_sub(now.saturating_sub(heard))));
                    continue;
                }
                event = stream.next() => event,
            };
            heard = self.now();
            match event {
                Some(Ok(WatchEvent::Changes { revision, changes })) => {
                    *after = revision.max(*after);
                    self.heard(revision, |_| {});
                    let feed = Feed::Changes(index, changes, revision);
                    self.source.feed.send(feed).await?;
                }
                Some(Ok(WatchEvent::Progress(revision))) => {
                    *after = revision.max(*after);
                    self.heard(revision, |_| {});
                    self.source
                        .feed
                        .send(Feed::Progress(index, revision))
                        .await?;
                }
                Some(Ok(WatchEvent::Reset { reason })) => {
                    tracing::info!(prefix = %state.prefix, %reason, "reading everything again");
                    return Ok(Ended::Stale);
                }
                Some(Err(StoreError::Compacted { .. })) => return Ok(Ended::Stale),
                Some(Err(error)) => return Ok(Ended::Broken(error.into())),
                None => {
                    let error = StoreError::unavailable("the watch ended");
                    return Ok(Ended::Broken(error.into()));
                }
            }
        }
    }
}
