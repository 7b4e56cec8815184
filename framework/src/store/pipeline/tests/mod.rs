//! A pipeline, on a store whose commits take a while and meet planned faults.

mod model;
mod sharing;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::environment::Environment;
use crate::store::{Compare, MemoryOptions, MemoryStore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Applied,
    Lost,
    Delayed,
    Unavailable,
}

/// A memory store whose commits take a while and meet planned faults.
#[derive(Debug)]
struct Rough {
    memory: MemoryStore,
    faults: Vec<Option<Fault>>,
    commits: AtomicUsize,
    delayed: Mutex<Vec<Transaction>>,
    /// Answers `Unknown` and `Unavailable` that it gave.
    unknown: AtomicUsize,
    unavailable: AtomicUsize,
}

impl Rough {
    fn new(memory: &MemoryStore, faults: Vec<Option<Fault>>) -> Arc<Self> {
        Arc::new(Self {
            memory: memory.clone(),
            faults,
            commits: AtomicUsize::new(0),
            delayed: Mutex::default(),
            unknown: AtomicUsize::new(0),
            unavailable: AtomicUsize::new(0),
        })
    }
}

impl Store for Rough {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        self.memory.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        self.memory.list(request)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        let n = self.commits.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            // The first one is what the others wait behind.
            let fault = n.checked_sub(1).and_then(|n| *self.faults.get(n)?);
            let lost = || StoreError::Unknown {
                reason: "lost".into(),
            };
            match fault {
                None => {}
                Some(Fault::Unavailable) => drop(self.unavailable.fetch_add(1, Ordering::Relaxed)),
                Some(_) => drop(self.unknown.fetch_add(1, Ordering::Relaxed)),
            }
            match fault {
                None => self.memory.commit(transaction).await,
                Some(Fault::Applied) => {
                    let _ = self.memory.commit(transaction).await;
                    Err(lost())
                }
                Some(Fault::Lost) => Err(lost()),
                Some(Fault::Delayed) => {
                    let mut delayed = self.delayed.lock().unwrap();
                    delayed.push(transaction);
                    Err(lost())
                }
                Some(Fault::Unavailable) => Err(StoreError::unavailable("planned")),
            }
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.memory.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        self.memory.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.memory.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.memory.revoke_lease(lease)
    }
}
