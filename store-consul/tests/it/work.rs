//! What goes on while faults are made, held against what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use platctrl_framework::store::{Revision, Store, StoreError, Transaction};
use platctrl_store_consul::ConsulStore;

use crate::helpers::{Mirror, key, list, put, until};

/// A writer and a watcher that work while something goes wrong.
pub(crate) struct Work {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writer: tokio::task::JoinHandle<Written>,
    watcher: tokio::task::JoinHandle<Mirror>,
    last: Arc<AtomicU64>,
}

/// What the writer was told.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) acknowledged: Vec<(usize, Revision)>,
    pub(crate) refused: Vec<usize>,
    pub(crate) unknown: Vec<usize>,
}

/// Each write is a pair of keys in two scopes, created together.
fn pair_of(n: usize) -> [String; 2] {
    [
        format!("o/a/b/c/left/{n:05}"),
        format!("o/a/b/c/right/{n:05}"),
    ]
}

impl Work {
    pub(crate) fn begin(store: &Arc<ConsulStore>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let last = Arc::new(AtomicU64::new(0));
        let writer = {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut written = Written::default();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let [left, right] = pair_of(n);
                    let transaction = Transaction::new()
                        .require_absent(key(&left))
                        .put(key(&left), "x")
                        .put(key(&right), "x");
                    match store.commit(transaction).await {
                        Ok(revision) => {
                            written.acknowledged.push((n, revision));
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(StoreError::Unavailable { .. }) => written.refused.push(n),
                        Err(StoreError::Unknown { .. }) => written.unknown.push(n),
                        Err(other) => panic!("write {n}: {other}"),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                written
            })
        };
        let watcher = {
            let (store, last) = (Arc::clone(store), Arc::clone(&last));
            tokio::spawn(async move {
                let done = move || match last.load(Ordering::SeqCst) {
                    0 => None,
                    last => Some(Revision::from_u64(last)),
                };
                Mirror::follow(store, "o/", done).await
            })
        };
        Self {
            stop,
            acknowledged,
            writer,
            watcher,
            last,
        }
    }

    /// Waits until so many more writes were acknowledged.
    pub(crate) async fn more(&self, count: u64) {
        let wanted = self.acknowledged.load(Ordering::SeqCst) + count;
        until("writes go on", || async {
            self.acknowledged.load(Ordering::SeqCst) >= wanted
        })
        .await;
    }

    /// Stops, and holds what is there against what was told.
    pub(crate) async fn check(self, store: &ConsulStore) -> Written {
        self.stop.store(true, Ordering::SeqCst);
        let written = self.writer.await.unwrap();
        let last = put(store, "o/a/b/c/left/last", "x").await;
        self.last.store(last.as_u64(), Ordering::SeqCst);
        let mirror = tokio::time::timeout(Duration::from_secs(60), self.watcher);
        let mirror = mirror.await.expect("the watcher catches up").unwrap();
        let (records, _) = list(store, "o/").await.unwrap();
        let told: Vec<_> = mirror.state.values().collect();
        assert!(
            told.into_iter().eq(records.iter()),
            "the watcher was told something else"
        );
        let there = |name: &String| {
            let found = records.iter().find(|record| record.key.as_str() == name);
            found.map(|record| record.modified)
        };
        for (n, revision) in &written.acknowledged {
            for name in &pair_of(*n) {
                assert_eq!(there(name), Some(*revision), "{name} was acknowledged");
            }
        }
        for n in &written.refused {
            assert_eq!(
                pair_of(*n).each_ref().map(there),
                [None, None],
                "{n} was refused"
            );
        }
        for n in &written.unknown {
            let [left, right] = pair_of(*n).each_ref().map(there);
            assert_eq!(left, right, "{n} is there in part");
        }
        let mut revisions: Vec<_> = written.acknowledged.iter().map(|(_, at)| *at).collect();
        let told = revisions.clone();
        revisions.sort();
        revisions.dedup();
        assert_eq!(told, revisions, "revisions of one writer grow");
        written
    }
}
