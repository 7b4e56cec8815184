//! Who writes: one thread of its own, whose processor time is not the loop's.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use platctrl_bench::{Result, thread_cpu};
use platctrl_framework::store::{Key, Store, Transaction};

use crate::widget::{Tally, body, key};

/// The most changes that are written and not yet seen.
const AHEAD: u64 = 10_000;

/// What is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Every object so many times, as fast as the loop follows.
    Storm { rounds: u64 },
    /// So many changes, one each millisecond, to one object after the other.
    Pace { changes: usize },
}

pub(crate) fn keys(objects: usize) -> Result<Vec<Key>> {
    (0..objects).map(key).collect()
}

/// Writes all objects at round 0, 64 a transaction.
pub(crate) async fn create(store: &dyn Store, keys: &[Key]) -> Result<()> {
    let all: Vec<(usize, &Key)> = keys.iter().enumerate().collect();
    for some in all.chunks(64) {
        let put = |transaction: Transaction, (index, key): &(usize, &Key)| {
            transaction.put((*key).clone(), body(*index, 0, 0))
        };
        store
            .commit(some.iter().fold(Transaction::new(), put))
            .await?;
    }
    Ok(())
}

/// Starts to write; the thread ends with the processor time it took.
pub(crate) fn start(
    load: Load,
    store: Arc<dyn Store>,
    keys: Vec<Key>,
    tally: Arc<Tally>,
) -> JoinHandle<Result<Duration>> {
    std::thread::spawn(move || {
        let executor = tokio::runtime::Builder::new_current_thread().build()?;
        let put = |index: usize, round, stamp| {
            let transaction =
                Transaction::new().put(keys[index].clone(), body(index, round, stamp));
            executor.block_on(store.commit(transaction))
        };
        match load {
            Load::Storm { rounds } => {
                let seen_before = tally.accounted();
                let mut written = 0;
                for round in 1..=rounds {
                    for index in 0..keys.len() {
                        while written > tally.accounted() - seen_before + AHEAD {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                        put(index, round, 0)?;
                        written += 1;
                    }
                }
            }
            Load::Pace { changes } => {
                let begun = Instant::now();
                for change in 0..changes {
                    let due = Duration::from_millis(change as u64);
                    std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    put(change % keys.len(), 1, tally.now())?;
                }
            }
        }
        Ok(thread_cpu())
    })
}
