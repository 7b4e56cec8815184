//! A store in front of a store that counts and times what is asked of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use super::histogram::Histogram;
use crate::environment::Environment;
use crate::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision, Snapshot,
    Store, StoreError, Transaction, WatchStream,
};

/// What is asked of a store, in the words of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    List,
    Commit,
    Watch,
    Lease,
}

impl Operation {
    pub(crate) const ALL: [Self; 5] = [
        Self::Get,
        Self::List,
        Self::Commit,
        Self::Watch,
        Self::Lease,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Commit => "commit",
            Self::Watch => "watch",
            Self::Lease => "lease",
        }
    }
}

/// The outcomes of a call, in the words of metrics.
pub(crate) const OUTCOMES: [&str; 9] = [
    "ok",
    "conflict",
    "denied",
    "too_large",
    "invalid",
    "compacted",
    "lease_not_found",
    "unavailable",
    "unknown",
];

fn outcome<T>(answer: &Result<T>) -> usize {
    match answer {
        Ok(_) => 0,
        Err(StoreError::Conflict { .. }) => 1,
        Err(StoreError::Denied { .. }) => 2,
        Err(StoreError::TooLarge { .. }) => 3,
        Err(StoreError::Invalid { .. }) => 4,
        Err(StoreError::Compacted { .. }) => 5,
        Err(StoreError::LeaseNotFound { .. }) => 6,
        Err(StoreError::Unavailable { .. }) => 7,
        Err(StoreError::Unknown { .. }) => 8,
    }
}

/// What was asked of a store and how it went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    /// By operation and outcome.
    pub(crate) counts: [[u64; OUTCOMES.len()]; Operation::ALL.len()],
    /// By operation. A watch is counted when it begins, and not timed.
    pub(crate) took: [Histogram; Operation::ALL.len()],
}

#[derive(Debug, Default)]
struct Meter {
    calls: Mutex<Calls>,
    /// The newest revision that an answer told of.
    newest: AtomicU64,
}

impl Meter {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store that counts and times what is asked of it, for [`Metrics`](super::Metrics). A runtime
/// does so by itself; this is for clients of your own. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct MeteredStore {
    inner: Arc<dyn Store>,
    environment: Environment,
    meter: Arc<Meter>,
}

impl MeteredStore {
    /// Counts what is asked of `inner` from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, environment: Environment) -> Self {
        Self {
            inner,
            environment,
            meter: Arc::default(),
        }
    }

    pub(crate) fn calls(&self) -> Calls {
        self.meter.calls().clone()
    }

    /// The newest revision that the store is known to have.
    pub(crate) fn newest(&self) -> Revision {
        Revision::from_u64(self.meter.newest.load(Ordering::Relaxed))
    }

    async fn timed<T>(
        &self,
        operation: Operation,
        call: BoxFuture<'_, Result<T>>,
        revision: impl FnOnce(&T) -> Option<Revision>,
    ) -> Result<T> {
        let begun = self.environment.monotonic();
        let answer = call.await;
        let took = self.environment.monotonic().saturating_sub(begun);
        self.note(operation, outcome(&answer), Some(took));
        if let Some(revision) = answer.as_ref().ok().and_then(revision) {
            let revision = revision.as_u64();
            self.meter.newest.fetch_max(revision, Ordering::Relaxed);
        }
        answer
    }

    fn note(&self, operation: Operation, outcome: usize, took: Option<Duration>) {
        let mut calls = self.meter.calls();
        calls.counts[operation as usize][outcome] += 1;
        if let Some(took) = took {
            calls.took[operation as usize].observe(took);
        }
    }
}

impl Store for MeteredStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        let call = self.inner.get(keys);
        Box::pin(self.timed(Operation::Get, call, |snapshot| Some(snapshot.revision)))
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        let call = self.inner.list(request);
        Box::pin(self.timed(Operation::List, call, |page| Some(page.revision)))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        let call = self.inner.commit(transaction);
        Box::pin(self.timed(Operation::Commit, call, |revision| Some(*revision)))
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.note(Operation::Watch, 0, None);
        self.inner.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        let call = self.inner.grant_lease(ttl);
        Box::pin(self.timed(Operation::Lease, call, |_| None))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        let call = self.inner.keep_alive(lease);
        Box::pin(self.timed(Operation::Lease, call, |()| None))
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        let call = self.inner.revoke_lease(lease);
        Box::pin(self.timed(Operation::Lease, call, |()| None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{CommitFault, MemoryStore};

    #[tokio::test(start_paused = true)]
    async fn calls_are_counted_by_outcome_and_the_newest_revision_is_known() {
        let environment = Environment::system();
        let memory = MemoryStore::new(environment.clone());
        let store = MeteredStore::new(Arc::new(memory.clone()), environment);
        let key = Key::new("o/a").unwrap();
        let put = || Transaction::new().put(key.clone(), "1");
        let first = store.commit(put()).await.unwrap();
        let absent = put().require_absent(key.clone());
        store.commit(absent).await.unwrap_err();
        memory.faults().next_commits(1, CommitFault::Unavailable);
        store.commit(put()).await.unwrap_err();
        store.get(std::slice::from_ref(&key)).await.unwrap();
        let calls = store.calls();
        let commits = calls.counts[Operation::Commit as usize];
        assert_eq!((commits[0], commits[1], commits[7]), (1, 1, 1));
        assert_eq!(calls.took[Operation::Commit as usize].count(), 3);
        assert_eq!(calls.counts[Operation::Get as usize][0], 1);
        assert_eq!(store.newest(), first);
    }
}
