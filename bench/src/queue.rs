//! The controllers' work queue alone, on one thread, per second of that thread's processor time:
//! on a shared machine the clock counts others' work.
//!
//! The queue is private to the framework and stays so. What is measured here is its very source
//! file, compiled a second time: nothing between the measurement and the queue, and nothing
//! public only to be measured.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::environment::Environment;
use crate::{Result, same, thread_cpu};

#[path = "../../framework/src/queue/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    missing_docs,
    reason = "the framework uses all of it, this measurement a part"
)]
mod source;

use source::{Done, Priority, Queue, Request};

/// How many times all of `keys` go through the queue in one run.
fn rounds(keys: usize) -> usize {
    (1_000_000 / keys).max(1)
}

fn names(keys: usize) -> Vec<Arc<str>> {
    let name = |n| Arc::from(format!("bench.dev/widgets/default/widget-{n:07}"));
    (0..keys).map(name).collect()
}

fn per_second(keys: usize, started: Duration, taken: usize) -> Result<f64> {
    same("the number of runs", &(keys * rounds(keys)), &taken)?;
    Ok(taken as f64 / (thread_cpu() - started).as_secs_f64())
}

/// Adds all keys, then takes and gives back each, again and again; returns how many went through
/// per processor second.
///
/// # Errors
/// A key came twice or not at all.
pub async fn queue(keys: usize) -> Result<f64> {
    let names = names(keys);
    let queue: Queue<Arc<str>, u8> = Queue::new(1, Environment::system());
    let mut taken = 0;
    let started = thread_cpu();
    for _ in 0..rounds(keys) {
        for name in &names {
            queue.push([(Arc::clone(name), Request::now(Priority::Change, 0))]);
        }
        for _ in 0..keys {
            let job = queue.next().await;
            queue.done(job.ticket, Done::ok());
            taken += 1;
        }
    }
    same(
        "the number of keys left",
        &0,
        &queue.sizes().ready.iter().sum::<usize>(),
    )?;
    per_second(keys, started, taken)
}

/// The same with nothing but a set and a list: no classes, times, causes, failures or waiting
/// tasks. What a machine's memory gives.
///
/// # Errors
/// As for [`queue`].
pub fn floor(keys: usize) -> Result<f64> {
    let names = names(keys);
    let (mut known, mut ready) = (HashSet::new(), VecDeque::new());
    let mut taken = 0;
    let started = thread_cpu();
    for _ in 0..rounds(keys) {
        for name in &names {
            if known.insert(Arc::clone(name)) {
                ready.push_back(Arc::clone(name));
            }
        }
        while let Some(name) = ready.pop_front() {
            known.remove(&name);
            taken += 1;
        }
    }
    per_second(keys, started, taken)
}
