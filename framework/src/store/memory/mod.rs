//! A store in memory, for tests: deterministic, with its whole history, and with faults on demand.
//!
//! It keeps everything the trait can promise (pinned reads, the range compare, exact watches), so
//! that a test starts from the strongest backend and takes away what it wants to see missing:
//! [`MemoryOptions`] lowers limits and history, [`Faults`] loses answers, holds watches, ends
//! leases and brings back older data. Time comes from the [`Environment`] alone, so it works on
//! virtual time and on tokio's paused time.
//!
//! Watchers hold no queues: each is a position in the one history that all share, indexed by
//! prefix. A commit never waits for a watcher, and one that is too slow for the history kept is
//! told [`WatchEvent::Reset`](super::WatchEvent::Reset).

mod data;
#[cfg(feature = "testing")]
mod direct;
mod faults;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::{
    Capabilities, Key, Lease, LeaseId, Limits, ListRequest, Page, Prefix, Record, Result, Revision,
    Snapshot, Store, StoreError, Transaction, WatchStream,
};
use crate::environment::Environment;
use data::Data;
pub use data::{HistoryEntry, MemorySnapshot};
use faults::Settings;
pub use faults::{CommitFault, FaultCounts, Faults};
use watch::{Groups, Watcher};

/// How a [`MemoryStore`] behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemoryOptions {
    /// The limits it enforces; by default those of etcd.
    pub limits: Limits,
    /// How many revisions stay readable behind the newest, for pinned reads and resumed watches:
    /// 100,000 unless set.
    pub history: usize,
    /// How many bytes of keys and values that history may hold: 256 MiB unless set.
    pub history_bytes: usize,
    /// Whether watches deliver every transaction; otherwise they merge what is pending.
    pub exact_watch: bool,
    /// Whether lists can be read at an older revision; otherwise they show the newest state, as
    /// where a store has no old ones.
    pub pinned_reads: bool,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            limits: Limits {
                max_writes: 128,
                max_compares: 128,
                max_operations: 256,
                max_transaction_bytes: 1536 * 1024,
                max_value_bytes: 1024 * 1024,
            },
            history: 100_000,
            history_bytes: 256 * 1024 * 1024,
            exact_watch: true,
            pinned_reads: true,
        }
    }
}

/// A store in memory. Cheap to clone; clones are one store.
///
/// A watcher of a quiet prefix learns of newer revisions by
/// [`WatchEvent::Progress`](super::WatchEvent::Progress): at once while the store has at most 64
/// watchers, else within 100 ms for each thousand watchers on the environment's clock, so that a
/// commit never costs more than a bounded number of wakes. Only the latest revision is told.
///
/// Leases end on the environment's clock. Every call looks for ended leases first; a task on the
/// tokio runtime of the first lease or watch wakes watchers when nobody calls.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use platctrl_framework::environment::Environment;
/// use platctrl_framework::store::{CommitFault, Key, MemoryStore, Store, StoreError, Transaction};
///
/// let store = MemoryStore::new(Environment::system());
/// let key = Key::new("o/intent/a").unwrap();
///
/// // The answer to the next commit is lost, though it happened.
/// store.faults().next_commits(1, CommitFault::UnknownApplied);
/// let outcome = store.commit(Transaction::new().put(key.clone(), "1")).await;
/// assert!(matches!(outcome, Err(StoreError::Unknown { .. })));
/// assert_eq!(store.dump().len(), 1);
/// # });
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    environment: Environment,
    options: MemoryOptions,
    /// Tells the driver task that there may be something new to wait for.
    alarm: Arc<Notify>,
    state: Mutex<State>,
}

struct State {
    data: Data,
    groups: Groups,
    faults: Settings,
    driver_runs: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state with every lease ended whose time is up.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.expire(self.environment.monotonic());
        state
    }
}

impl State {
    fn expire(&mut self, now: Duration) {
        while self.data.expire_next(now).is_some() {}
        self.publish();
    }

    /// Tells watchers of the revisions they were not told of yet.
    fn publish(&mut self) {
        self.groups.publish(&self.data);
        self.groups.forget(&self.data.take_trimmed());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The driver then finds the store gone and ends.
        self.alarm.notify_one();
    }
}

impl MemoryStore {
    /// An empty store with the default options.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self::with_options(environment, MemoryOptions::default())
    }

    /// An empty store.
    #[must_use]
    pub fn with_options(environment: Environment, options: MemoryOptions) -> Self {
        let alarm = Arc::new(Notify::new());
        let state = State {
            data: Data::new(options.history, options.history_bytes),
            groups: Groups::new(Arc::clone(&alarm)),
            faults: Settings::default(),
            driver_runs: false,
        };
        Self {
            shared: Arc::new(Shared {
                environment,
                options,
                alarm,
                state: Mutex::new(state),
            }),
        }
    }

    /// What can go wrong, on demand.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Every record, in key order, whatever faults are on.
    #[must_use]
    pub fn dump(&self) -> Vec<Record> {
        self.shared.current().data.records().cloned().collect()
    }

    /// Every record as of a revision, in key order.
    ///
    /// # Errors
    /// `Compacted` or `Invalid` when that revision is not kept or not reached.
    pub fn dump_at(&self, revision: Revision) -> Result<Vec<Record>> {
        let state = self.shared.current();
        state.data.readable(revision)?;
        let prefix = Prefix::all();
        let all = state.data.range(&prefix, None, revision);
        Ok(all.cloned().collect())
    }

    /// One record's newest state, whatever faults are on.
    #[must_use]
    pub fn peek(&self, key: &Key) -> Option<Record> {
        self.shared.current().data.get(key).cloned()
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.shared.current().data.revision()
    }

    /// The history that is kept, oldest first: one entry for each revision.
    #[must_use]
    pub fn history(&self) -> Vec<HistoryEntry> {
        self.shared.current().data.history().cloned().collect()
    }

    /// The leases that have not ended.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        self.shared.current().data.leases().collect()
    }

    /// A copy of everything, for [`Faults::come_back_older`] and [`Faults::come_back_newer`].
    #[must_use]
    pub fn snapshot(&self) -> MemorySnapshot {
        self.shared.current().data.snapshot()
    }

    /// Starts the task that ends leases and tells quiet watchers of progress, if there is a
    /// tokio runtime to run it and it is not running.
    fn ensure_driver(shared: &Arc<Shared>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut state = shared.lock();
        if std::mem::replace(&mut state.driver_runs, true) {
            return;
        }
        drop(state);
        let driver = Driver {
            shared: Arc::downgrade(shared),
            environment: shared.environment.clone(),
            alarm: Arc::clone(&shared.alarm),
        };
        runtime.spawn(driver.run());
    }

    /// Waits as the faults ask for and refuses if the store is away.
    async fn enter(&self, what: &str) -> Result<()> {
        tokio::task::coop::consume_budget().await;
        let latency = self.shared.lock().faults.latency;
        if !latency.is_zero() {
            self.shared.environment.sleep(latency).await;
        }
        self.shared.lock().faults.check_available(what)
    }
}

/// Does what must happen at a time, when nobody calls the store.
struct Driver {
    shared: Weak<Shared>,
    environment: Environment,
    alarm: Arc<Notify>,
}

impl Driver {
    async fn run(self) {
        loop {
            let next = {
                let Some(shared) = self.shared.upgrade() else {
                    return;
                };
                let now = self.environment.monotonic();
                let mut state = shared.lock();
                state.expire(now);
                let progress = state.groups.sweep(now);
                let lease = state.data.next_expiry();
                let next = progress.into_iter().chain(lease).min();
                next.map(|deadline| deadline.saturating_sub(now))
            };
            match next {
                None => self.alarm.notified().await,
                Some(wait) => tokio::select! {
                    biased;
                    () = self.alarm.notified() => {}
                    () = self.environment.sleep(wait) => {}
                },
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Its runtime ended: the next lease or watch starts another one.
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().driver_runs = false;
        }
    }
}

impl Store for MemoryStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(self.shared.options.limits);
        capabilities.pinned_reads = self.shared.options.pinned_reads;
        capabilities.range_compare = true;
        capabilities.group_compare = true;
        capabilities.exact_watch = self.shared.options.exact_watch;
        capabilities
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(async move {
            self.enter("get").await?;
            let limit = self.shared.options.limits.max_operations;
            if keys.len() > limit {
                let reason = format!(
                    "{} keys in one get; the store takes {limit}: ask in several calls",
                    keys.len()
                );
                return Err(StoreError::Invalid { reason });
            }
            let mut state = self.shared.current();
            for key in keys {
                state.faults.check_read(key.as_str())?;
            }
            let hidden = |key: &Key| state.faults.is_hidden(key.as_str());
            let read = |key: &Key| state.data.get(key).filter(|_| !hidden(key)).cloned();
            Ok(Snapshot {
                records: keys.iter().map(read).collect(),
                revision: state.data.revision(),
            })
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            self.enter("list").await?;
            let mut state = self.shared.current();
            state.faults.check_read(request.prefix.as_str())?;
            let at = request.at.filter(|_| self.shared.options.pinned_reads);
            let revision = at.unwrap_or(state.data.revision());
            state.data.readable(revision)?;
            let after = request.after.as_ref();
            let mut rest = state
                .data
                .range(&request.prefix, after, revision)
                .filter(|record| !state.faults.is_hidden(record.key.as_str()));
            let records = rest.by_ref().take(request.limit).cloned().collect();
            let more = rest.next().is_some();
            Ok(Page {
                records,
                revision,
                more,
            })
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            self.enter("commit").await?;
            self.shared.options.limits.check(&transaction)?;
            let mut state = self.shared.current();
            let state = &mut *state;
            for write in &transaction.writes {
                state.faults.check_write(write.key().as_str())?;
            }
            let fault = state.faults.take_commit_fault();
            let outcome = match fault {
                None => state.data.commit(&transaction),
                Some(fault) => state.faults.commit(&mut state.data, transaction, fault),
            };
            state.publish();
            outcome
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        Watcher::new(Arc::clone(&self.shared), prefix, after)
            .into_stream()
            .boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            self.enter("grant_lease").await?;
            Self::ensure_driver(&self.shared);
            let now = self.shared.environment.monotonic();
            let lease = self.shared.current().data.grant(ttl, now);
            self.shared.alarm.notify_one();
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter("keep_alive").await?;
            let now = self.shared.environment.monotonic();
            self.shared.current().data.keep_alive(lease, now)
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter("revoke_lease").await?;
            let mut state = self.shared.current();
            state.data.end_lease(lease)?;
            state.publish();
            Ok(())
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("MemoryStore")
            .field("revision", &state.data.revision())
            .field("keys", &state.data.records().count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
