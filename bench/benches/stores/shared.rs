//! Independent commits that share transactions, against the same commits one by one, on a store
//! that takes one transaction at a time and half a millisecond for each, as a round of consensus
//! or a write to disk does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use platctrl_bench::{Goal, Result, ratio, raw, runs, same};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, MemoryStore, Page, Pipeline, Prefix,
    Result as Answer, Revision, Snapshot, Store, Transaction, WatchStream,
};

const WRITERS: usize = 64;
const COMMITS: usize = 4_096;
const ROUND: Duration = Duration::from_micros(500);

#[derive(Debug)]
struct Serial {
    memory: MemoryStore,
    turn: tokio::sync::Mutex<()>,
}

impl Store for Serial {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Answer<Snapshot>> {
        self.memory.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Answer<Page>> {
        self.memory.list(request)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Answer<Revision>> {
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            let begun = Instant::now();
            // Timers are too coarse for this.
            while begun.elapsed() < ROUND {
                tokio::task::yield_now().await;
            }
            self.memory.commit(transaction).await
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.memory.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Answer<Lease>> {
        self.memory.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Answer<()>> {
        self.memory.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Answer<()>> {
        self.memory.revoke_lease(lease)
    }
}

/// Commits per second, and what lies in the store afterwards.
fn rate(shared: bool) -> Result<(f64, usize)> {
    super::executor()?.block_on(async {
        let memory = MemoryStore::new(Environment::system());
        let turn = tokio::sync::Mutex::default();
        let serial = Arc::new(Serial {
            memory: memory.clone(),
            turn,
        });
        let store: Arc<dyn Store> = if shared {
            Arc::new(Pipeline::new(serial))
        } else {
            serial
        };
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let mut seen = None;
                for turn in 0..COMMITS / WRITERS {
                    let (key, value) = super::write_of(WRITERS, writer, 0);
                    let key = Key::new(key)?;
                    let commit = Transaction::new()
                        .require_unchanged(key.clone(), seen)
                        .put(key, format!("{turn} {value}"));
                    seen = Some(store.commit(commit).await?);
                }
                Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        let rate = COMMITS as f64 / begun.elapsed().as_secs_f64();
        Ok((rate, memory.dump().len()))
    })
}

pub(crate) fn shared_commits() -> Result<()> {
    let (mut together, mut apart) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        let (one, other) = (rate(true)?, rate(false)?);
        same("the number of records", &one.1, &other.1)?;
        together.push(one.0);
        apart.push(other.0);
    }
    let together = raw(
        "64 writers, 0.5 ms a transaction: pipeline",
        "commits/s",
        &together,
    );
    let apart = raw(
        "64 writers, 0.5 ms a transaction: one by one",
        "commits/s",
        &apart,
    );
    ratio(
        "stores.pipeline.64-writers",
        together / apart,
        Goal::AtLeast(2.0),
    );
    Ok(())
}
