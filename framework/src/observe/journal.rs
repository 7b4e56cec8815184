//! What a controller did lately, and how often it did what.
//!
//! Each run is noted once, when it has ended, under a lock that only keys of about the same hash
//! share: a run costs its counters no more than that. The last runs of a key are kept beside
//! those of a few others, so that a key that runs all the time pushes hardly anybody's out.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::histogram::Histogram;
use super::runs::Ending;
use crate::controller::Cause;
use crate::model::ObjectKey;
use crate::queue::Causes;
use crate::store::Revision;

/// Groups of keys that share a lock.
const SHARDS: usize = 32;
/// Rings in each.
const RINGS: usize = 4;
/// Runs that one ring keeps.
const RUNS: usize = 8;
/// The longest text of an error that is kept.
const MAX_ERROR_BYTES: usize = 512;

/// A run that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// The path of its key: a copy, because the key itself is mostly in another core's memory by
    /// the time that the run is forgotten.
    pub(crate) path: Box<str>,
    pub(crate) id: u64,
    /// When it began, on the environment's clock.
    pub(crate) begun: Duration,
    pub(crate) took: Duration,
    /// How long the key was ready before.
    pub(crate) waited: Duration,
    pub(crate) causes: Causes<Cause>,
    pub(crate) more_causes: u32,
    /// The last revision that it wrote.
    pub(crate) wrote: Option<Revision>,
    pub(crate) ending: Ending,
    pub(crate) error: Option<Box<str>>,
}

/// How often a controller did what.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) endings: [u64; Ending::ALL.len()],
    pub(crate) took: Histogram,
    pub(crate) waited: Histogram,
    /// When a run last ended well.
    pub(crate) last_success: Option<Duration>,
}

impl Tally {
    pub(crate) fn count(&self, ending: Ending) -> u64 {
        self.endings[ending as usize]
    }

    fn add(&mut self, other: &Self) {
        for (count, other) in self.endings.iter_mut().zip(other.endings) {
            *count += other;
        }
        self.took.add(&other.took);
        self.waited.add(&other.waited);
        self.last_success = self.last_success.max(other.last_success);
    }
}

#[derive(Debug, Default)]
struct Ring {
    runs: Vec<Finished>,
    oldest: usize,
}

impl Ring {
    fn push(&mut self, run: Finished) {
        if self.runs.len() < RUNS {
            self.runs.push(run);
            return;
        }
        self.runs[self.oldest] = run;
        self.oldest = (self.oldest + 1) % RUNS;
    }
}

#[derive(Debug, Default)]
struct Shard {
    tally: Tally,
    rings: [Ring; RINGS],
}

/// The journal of one controller.
#[derive(Debug)]
pub(crate) struct Journal {
    shards: Box<[Mutex<Shard>]>,
}

/// Spreads keys over places. It need not withstand anybody: who chooses names to meet in one
/// place loses history of those names alone.
fn place_of(path: &str) -> usize {
    let words = path.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let hash = words.fold(path.len() as u64, |hash, word| {
        let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 32)
    });
    hash as usize
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, place: usize) -> MutexGuard<'_, Shard> {
        let shard = self.shards[place % SHARDS].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a run.
    pub(crate) fn note(&self, mut run: Finished) {
        if let Some(error) = &run.error
            && error.len() > MAX_ERROR_BYTES
        {
            let end = error.floor_char_boundary(MAX_ERROR_BYTES);
            run.error = Some(error[..end].into());
        }
        let place = place_of(&run.path);
        let mut shard = self.shard(place);
        let tally = &mut shard.tally;
        tally.endings[run.ending as usize] += 1;
        tally.took.observe(run.took);
        tally.waited.observe(run.waited);
        if run.ending.is_success() {
            tally.last_success = tally.last_success.max(Some(run.begun + run.took));
        }
        shard.rings[place / SHARDS % RINGS].push(run);
    }

    /// The last runs of a key that are known, oldest first.
    pub(crate) fn runs_of(&self, key: &ObjectKey) -> Vec<Finished> {
        let place = place_of(key.path());
        let mut runs: Vec<_> = {
            let shard = self.shard(place);
            let runs = shard.rings[place / SHARDS % RINGS].runs.iter();
            runs.filter(|run| *run.path == *key.path())
                .cloned()
                .collect()
        };
        runs.sort_by_key(|run| run.id);
        runs
    }

    /// All counters.
    pub(crate) fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for place in 0..SHARDS {
            all.add(&self.shard(place).tally);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::namespaced("example.dev", "things", "default", name).unwrap()
    }

    fn run(name: &str, id: u64, ending: Ending) -> Finished {
        Finished {
            path: key(name).path().into(),
            id,
            begun: Duration::from_secs(id),
            took: Duration::from_millis(3),
            waited: Duration::from_millis(1),
            causes: Causes::One(Cause::Requeued),
            more_causes: 0,
            wrote: None,
            ending,
            error: None,
        }
    }

    #[test]
    fn a_key_that_runs_all_the_time_does_not_push_out_the_others() {
        let journal = Journal::new();
        for id in 0..100 {
            journal.note(run(&format!("quiet-{id}"), id, Ending::Done));
        }
        for id in 100..100_000 {
            journal.note(run("busy", id, Ending::Done));
        }
        let busy = journal.runs_of(&key("busy"));
        let ids: Vec<_> = busy.iter().map(|run| run.id).collect();
        assert_eq!(ids, (99_992..100_000).collect::<Vec<_>>());
        let known = |id: &u64| !journal.runs_of(&key(&format!("quiet-{id}"))).is_empty();
        let known = (0..100).filter(known).count();
        assert!(known >= 95, "{known} of 100 are known");
    }

    #[test]
    fn every_run_is_counted_once() {
        let journal = Journal::new();
        for id in 0..1000 {
            let ending = if id % 10 == 0 {
                Ending::Error
            } else {
                Ending::Done
            };
            journal.note(run(&format!("k{}", id % 77), id, ending));
        }
        let tally = journal.tally();
        assert_eq!(
            (tally.count(Ending::Done), tally.count(Ending::Error)),
            (900, 100)
        );
        assert_eq!((tally.took.count(), tally.waited.count()), (1000, 1000));
        assert_eq!(tally.last_success, Some(Duration::from_millis(999_003)));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let journal = Journal::new();
        let error = Some("ä".repeat(2 * MAX_ERROR_BYTES).into());
        journal.note(Finished {
            error,
            ..run("a", 1, Ending::Error)
        });
        let kept = journal.runs_of(&key("a"));
        assert_eq!(kept[0].error.as_deref().unwrap().len(), MAX_ERROR_BYTES);
    }
}
