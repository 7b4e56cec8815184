//! What the cases share: the store under test with its hooks, failures that say where, and an
//! observer that holds every event of a watch against the promise.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;

use crate::failsafe::Safeguard;
use crate::store::{
    Change, InvalidKey, Key, LeaseId, ListRequest, Page, Prefix, Record, Revision, Store,
    StoreError, Transaction, WatchEvent, WatchStream,
};

/// How long a case waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) type Hook<A, T> = Arc<dyn Fn(A) -> BoxFuture<'static, T> + Send + Sync>;

/// What revisions do when a backup is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restored {
    /// They are those of the backup again.
    Older,
    /// They go on behind the newest ever given.
    Forward,
}

/// A store under test: open, empty, and with what the test bench can do to it.
///
/// Only the store is needed. A hook that is missing leaves out the cases that need it, and they
/// say so.
pub struct Subject {
    pub(super) store: Arc<dyn Store>,
    pub(super) lease_ttl: Duration,
    advance: Hook<Duration, ()>,
    compact: Option<Hook<Revision, ()>>,
    reopen: Option<Hook<(), Arc<dyn Store>>>,
    lose_answer: Option<Hook<(), ()>>,
    pub(super) another: Option<Hook<(), Arc<dyn Store>>>,
    pub(super) backup: Option<Hook<(), ()>>,
    pub(super) restore: Option<Hook<Restored, Arc<dyn Store>>>,
    pub(super) without: Option<Safeguard>,
    guards: Vec<Box<dyn Any + Send>>,
}

impl Subject {
    /// A subject without hooks, whose time passes by itself, with leases of one second.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            lease_ttl: Duration::from_secs(1),
            advance: Arc::new(|duration| Box::pin(tokio::time::sleep(duration))),
            compact: None,
            reopen: None,
            lose_answer: None,
            another: None,
            backup: None,
            restore: None,
            without: None,
            guards: Vec::new(),
        }
    }

    /// The time to live that leases are asked for: the shortest that the backend takes.
    #[must_use]
    pub fn with_lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = ttl;
        self
    }

    /// Moves the store's time on, where a test can.
    #[must_use]
    pub fn with_time<F>(mut self, advance: F) -> Self
    where
        F: Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    {
        self.advance = Arc::new(advance);
        self
    }

    /// Makes the store forget the history before a revision.
    #[must_use]
    pub fn with_compaction<F>(mut self, compact: F) -> Self
    where
        F: Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    {
        self.compact = Some(Arc::new(compact));
        self
    }

    /// Closes the store the hard way and opens it again.
    #[must_use]
    pub fn with_reopening<F>(mut self, reopen: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, Arc<dyn Store>> + Send + Sync + 'static,
    {
        self.reopen = Some(Arc::new(move |()| reopen()));
        self
    }

    /// Makes the answer to the next commit get lost on its way, though the commit happens.
    #[must_use]
    pub fn with_lost_answers<F>(mut self, lose_next: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static,
    {
        self.lose_answer = Some(Arc::new(move |()| lose_next()));
        self
    }

    /// Opens another store of this backend, empty: what may one day answer under the address of
    /// the one under test.
    #[must_use]
    pub fn with_another<F>(mut self, open: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, Arc<dyn Store>> + Send + Sync + 'static,
    {
        self.another = Some(Arc::new(move |()| open()));
        self
    }

    /// Takes a backup as this backend does it, and puts the last one back. What then is at the
    /// store's address is returned.
    #[must_use]
    pub fn with_backup<T, R>(mut self, take: T, restore: R) -> Self
    where
        T: Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static,
        R: Fn(Restored) -> BoxFuture<'static, Arc<dyn Store>> + Send + Sync + 'static,
    {
        self.backup = Some(Arc::new(move |()| take()));
        self.restore = Some(Arc::new(restore));
        self
    }

    /// Switches a safeguard off, to prove that a failsafe case notices.
    #[must_use]
    pub fn without_safeguard(mut self, safeguard: Safeguard) -> Self {
        self.without = Some(safeguard);
        self
    }

    /// Keeps something (a directory, a server process) until the case has ended.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Any + Send) -> Self {
        self.guards.push(Box::new(guard));
        self
    }

    /// Puts another store in front of this one, as wrappers that count or break things do.
    #[must_use]
    pub fn wrap(mut self, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        self.store = wrap(self.store);
        self
    }

    pub(super) async fn advance(&self, duration: Duration) {
        (self.advance)(duration).await;
    }

    pub(super) async fn compact(&self, revision: Revision) -> Check {
        let hook = self.compact.as_ref();
        let hook = hook.ok_or_else(|| Stop::does_not_apply("no hook makes it compact"))?;
        hook(revision).await;
        Ok(())
    }

    pub(super) fn lost_answers(&self) -> Check<Hook<(), ()>> {
        let hook = self.lose_answer.clone();
        hook.ok_or_else(|| Stop::does_not_apply("no hook makes answers get lost"))
    }

    /// Drops the store and opens it again.
    pub(super) async fn reopen(mut self) -> Result<Self, Stop> {
        let hook = self.reopen.clone();
        let hook = hook.ok_or_else(|| Stop::does_not_apply("no hook opens it again"))?;
        drop(self.store);
        self.store = hook(()).await;
        Ok(self)
    }

    /// Lets time pass until the key is gone; fails if it stays far beyond the lease's end.
    pub(super) async fn until_gone(&self, key: &Key, ttl: Duration) -> Check {
        let mut waited = Duration::ZERO;
        let patience = ttl * 4 + PATIENCE;
        while self.read(key).await?.is_some() {
            ensure!(waited < patience, "{key} outlives its lease by far");
            let step = (ttl / 5).max(Duration::from_millis(10));
            self.advance(step).await;
            waited += step;
        }
        Ok(())
    }

    pub(super) async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.store.commit(transaction).await
    }

    pub(super) async fn put(&self, name: &str, value: &str) -> Result<Revision, Stop> {
        let transaction = Transaction::new().put(key(name)?, value.to_owned());
        Ok(self.store.commit(transaction).await?)
    }

    pub(super) async fn delete(&self, name: &str) -> Result<Revision, Stop> {
        let transaction = Transaction::new().delete(key(name)?);
        Ok(self.store.commit(transaction).await?)
    }

    /// Puts under a lease.
    pub(super) async fn hang(&self, name: &str, lease: LeaseId) -> Result<Revision, Stop> {
        let transaction = Transaction::new().put_with_lease(key(name)?, "held", lease);
        Ok(self.store.commit(transaction).await?)
    }

    pub(super) async fn read(&self, key: &Key) -> Result<Option<Record>, Stop> {
        let snapshot = self.store.get(std::slice::from_ref(key)).await?;
        let [record] = <[_; 1]>::try_from(snapshot.records)
            .map_err(|records| Stop::failed(format!("{} answers for one key", records.len())))?;
        if let Some(record) = &record {
            ensure!(record.key == *key, "asked for {key}, got {}", record.key);
            ensure!(
                record.modified <= snapshot.revision,
                "{key} was modified at {}, after the read's revision {}",
                record.modified,
                snapshot.revision
            );
        }
        Ok(record)
    }

    /// The record of a key that must exist.
    pub(super) async fn existing(&self, name: &str) -> Result<Record, Stop> {
        let record = self.read(&key(name)?).await?;
        record.ok_or_else(|| Stop::failed(format!("{name} is missing")))
    }

    pub(super) async fn revision(&self) -> Result<Revision, Stop> {
        Ok(self.store.get(&[key("x/none")?]).await?.revision)
    }

    pub(super) async fn page(&self, request: &ListRequest) -> Result<Page, Stop> {
        let page = self.store.list(request).await?;
        ensure!(
            page.records.len() <= request.limit,
            "{} records where {} were asked for",
            page.records.len(),
            request.limit
        );
        let ordered = page
            .records
            .windows(2)
            .all(|pair| pair[0].key < pair[1].key);
        ensure!(ordered, "the page is not in key order: {:?}", page.records);
        for record in &page.records {
            ensure!(
                record.key.is_under(&request.prefix),
                "{} is not under {}",
                record.key,
                request.prefix
            );
            let behind = request.after.as_ref().is_none_or(|key| record.key > *key);
            ensure!(behind, "{} is not behind {:?}", record.key, request.after);
            ensure!(
                record.created <= record.modified && record.modified <= page.revision,
                "{record:?} on a page of revision {}",
                page.revision
            );
        }
        Ok(page)
    }

    /// All records of a prefix, page by page, at the revision of the first page where the
    /// backend can.
    pub(super) async fn all(
        &self,
        prefix: &Prefix,
        limit: usize,
    ) -> Result<(Vec<Record>, Revision), Stop> {
        let mut request = ListRequest {
            limit,
            ..ListRequest::new(prefix.clone())
        };
        let mut records = Vec::new();
        loop {
            let page = self.page(&request).await?;
            let revision = *request.at.get_or_insert(page.revision);
            records.extend(page.records);
            if !page.more {
                return Ok((records, revision));
            }
            let last = records.last().map(|record: &Record| record.key.clone());
            ensure!(
                last.is_some() && last != request.after,
                "a page says there is more but brings nothing"
            );
            request.after = last;
        }
    }

    /// Waits until an observer was told everything up to a revision; after a reset it reads
    /// again and goes on from there, as every watcher must.
    pub(super) async fn follow(&self, observer: &mut Observer, revision: Revision) -> Check {
        while observer.at < revision {
            if observer.next().await? == Told::Reset {
                let prefix = observer.prefix.clone();
                let (records, at) = self.all(&prefix, ListRequest::DEFAULT_LIMIT).await?;
                *observer = self.observe_range(prefix, at).starting_with(records);
            }
        }
        Ok(())
    }

    pub(super) fn observe(&self, prefix: &str, after: Revision) -> Result<Observer, Stop> {
        Ok(self.observe_range(self::prefix(prefix)?, after))
    }

    pub(super) fn observe_range(&self, prefix: Prefix, after: Revision) -> Observer {
        Observer {
            exact: self.store.capabilities().exact_watch,
            stream: self.store.watch(prefix.clone(), after),
            prefix,
            from: after,
            at: after,
            last: BTreeMap::new(),
            state: BTreeMap::new(),
            events: Vec::new(),
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Why a case ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The store broke the promise.
    Failed {
        at: &'static Location<'static>,
        what: String,
    },
    /// The case is about something the backend or its bench does not do.
    DoesNotApply(String),
}

impl Stop {
    #[track_caller]
    pub(super) fn failed(what: impl Into<String>) -> Self {
        Self::Failed {
            at: Location::caller(),
            what: what.into(),
        }
    }

    pub(super) fn does_not_apply(why: impl Into<String>) -> Self {
        Self::DoesNotApply(why.into())
    }
}

/// What a case ends with.
pub(super) type Check<T = ()> = Result<T, Stop>;

macro_rules! stop_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Stop {
            #[track_caller]
            fn from(error: $error) -> Self {
                Self::failed(format!("unexpected error: {error}"))
            }
        }
    )*};
}

stop_from!(StoreError, InvalidKey, tokio::task::JoinError);

/// Ends the case as failed unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::kit::Stop::failed(format!($($message)+)));
        }
    };
}

/// Ends the case as failed unless the value matches.
macro_rules! ensure_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)?, $what:expr) => {
        match $value {
            $pattern $(if $guard)? => {}
            other => {
                return Err($crate::conformance::kit::Stop::failed(format!(
                    "{}: expected {}, got {other:?}",
                    $what,
                    stringify!($pattern)
                )))
            }
        }
    };
}

pub(super) use {ensure, ensure_matches};

pub(super) fn key(text: impl AsRef<str>) -> Result<Key, InvalidKey> {
    Key::new(text)
}

pub(super) fn prefix(text: &str) -> Result<Prefix, InvalidKey> {
    Prefix::new(text)
}

/// Waits for what must come.
#[track_caller]
pub(super) fn within<F: Future>(future: F) -> impl Future<Output = Result<F::Output, Stop>> {
    let at = Location::caller();
    async move {
        tokio::time::timeout(PATIENCE, future)
            .await
            .map_err(|_| Stop::Failed {
                at,
                what: format!("nothing came within {PATIENCE:?}"),
            })
    }
}

/// An event as an observer keeps it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) revision: Revision,
    pub(super) changes: Vec<Change>,
}

impl Seen {
    pub(super) fn keys(&self) -> Vec<&str> {
        self.changes
            .iter()
            .map(|change| change.key().as_str())
            .collect()
    }
}

/// A watch whose every event is checked.
pub(super) struct Observer {
    stream: WatchStream,
    prefix: Prefix,
    exact: bool,
    from: Revision,
    /// Everything up to here was told.
    pub(super) at: Revision,
    /// The revision last told of each key.
    last: BTreeMap<Key, Revision>,
    /// What the prefix holds, as far as told.
    pub(super) state: BTreeMap<Key, Record>,
    pub(super) events: Vec<Seen>,
}

/// How an observer's wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Event,
    Reset,
}

impl Observer {
    /// Starts from what a list showed.
    pub(super) fn starting_with(mut self, records: Vec<Record>) -> Self {
        for record in records {
            self.last.insert(record.key.clone(), record.modified);
            self.state.insert(record.key.clone(), record);
        }
        self
    }

    /// Waits for one event and checks it.
    pub(super) async fn next(&mut self) -> Check<Told> {
        let event = within(self.stream.next()).await?;
        let event = event.ok_or_else(|| Stop::failed("the watch ended without a reason"))?;
        match event? {
            WatchEvent::Progress(revision) => {
                self.reach(revision)?;
                Ok(Told::Event)
            }
            WatchEvent::Changes { revision, changes } => {
                self.take(revision, changes)?;
                Ok(Told::Event)
            }
            WatchEvent::Reset { .. } => {
                let rest = within(self.stream.next()).await?;
                ensure!(rest.is_none(), "after a reset came {rest:?}");
                Ok(Told::Reset)
            }
        }
    }

    fn reach(&mut self, revision: Revision) -> Check {
        ensure!(
            revision >= self.at,
            "the watch of {} went from revision {} back to {revision}",
            self.prefix,
            self.at
        );
        self.at = revision;
        Ok(())
    }

    fn take(&mut self, revision: Revision, changes: Vec<Change>) -> Check {
        ensure!(!changes.is_empty(), "an event without changes");
        ensure!(
            !self.exact || revision > self.at,
            "an exact watch told revision {revision} after {}",
            self.at
        );
        self.reach(revision)?;
        let ordered = changes.windows(2).all(|pair| pair[0].key() < pair[1].key());
        ensure!(ordered, "not in key order, or a key twice: {changes:?}");
        for change in &changes {
            let (key, changed) = (change.key(), change.revision());
            ensure!(
                key.is_under(&self.prefix),
                "{key} in a watch of {}",
                self.prefix
            );
            ensure!(
                changed <= revision,
                "{key} changed at {changed}, after the event's revision {revision}"
            );
            ensure!(
                !self.exact || (changed == revision && changed > self.from),
                "{key} changed at {changed} in the exact event of {revision}"
            );
            let last = self.last.insert(key.clone(), changed);
            ensure!(
                last.is_none_or(|last| last <= changed),
                "{key} of {changed} was told after {last:?}"
            );
            match change {
                Change::Put(record) => {
                    self.state.insert(key.clone(), record.clone());
                }
                Change::Delete { .. } => {
                    self.state.remove(key);
                }
            }
        }
        self.events.push(Seen { revision, changes });
        Ok(())
    }

    /// Waits until everything up to a revision was told.
    pub(super) async fn until(&mut self, revision: Revision) -> Check {
        while self.at < revision {
            let told = self.next().await?;
            ensure!(
                told == Told::Event,
                "the watch of {} from {} was reset",
                self.prefix,
                self.from
            );
        }
        Ok(())
    }

    /// Fails unless what was told adds up to what the prefix holds.
    pub(super) fn must_hold(&self, records: &[Record]) -> Check {
        let told: Vec<&Record> = self.state.values().collect();
        let held: Vec<&Record> = records.iter().collect();
        ensure!(
            told == held,
            "the watch of {} adds up to {told:?}, a list shows {held:?}",
            self.prefix
        );
        Ok(())
    }
}
