//! What a runtime does, for people and for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::unrest::RestlessKey;
use crate::cache::{Freshness, SourceStatus};
use crate::failsafe::FailsafeView;
use crate::model::ObjectKey;
use crate::store::{Prefix, Revision};

/// What a runtime does at the moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RuntimeStatus {
    /// The name of the program.
    pub name: String,
    /// The sources of its view.
    pub sources: Vec<SourceStatus>,
    /// The newest revision that the store is known to have.
    pub newest: Revision,
    /// How new its view is; None before every source was read once.
    pub freshness: Option<Freshness>,
    /// Whether it holds its claim; None without leader election.
    pub leads: Option<bool>,
    /// Its part in the work; None unless it is shared by shards.
    pub shards: Option<ShardStatus>,
    /// Its controllers.
    pub controllers: Vec<ControllerStatus>,
    /// Records that cannot be read.
    pub set_aside: usize,
    /// What is held back.
    pub failsafe: FailsafeView,
    /// Kinds that this program could not register, so that servers may not serve them, and why.
    pub unregistered: BTreeMap<String, String>,
}

impl RuntimeStatus {
    /// By how many revisions a source lags behind what the store is known to have. None before it
    /// was read once.
    #[must_use]
    pub fn lag(&self, source: &SourceStatus) -> Option<u64> {
        let newest = self.newest.as_u64();
        Some(newest.saturating_sub(source.revision?.as_u64()))
    }
}

/// A process's part in work that is shared by shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardStatus {
    /// How many shards there are.
    pub count: usize,
    /// Those that this process holds.
    pub held: Vec<usize>,
    /// The processes that take part, as far as is known.
    pub members: usize,
    /// What this process is called among them; None while it does not take part.
    pub member: Option<String>,
    /// It waits for processes that go by another number of shards to end.
    pub waits_for_others: bool,
}

/// What a controller does at the moment, and how often it did what.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ControllerStatus {
    /// Its name.
    pub name: String,
    /// Sources that it works with and that were not read yet: nothing runs before they are.
    pub waits_for: Vec<Prefix>,
    /// A kind that it works with and that cannot be read as a whole: nothing runs meanwhile.
    pub unreadable: Option<String>,
    /// Keys that could run now.
    pub ready: usize,
    /// Keys that wait for their time.
    pub waiting: usize,
    /// Keys that wait for the view to show what they wrote.
    pub parked: usize,
    /// Keys that run.
    pub running: usize,
    /// How long the oldest ready key waits.
    pub oldest_ready: Duration,
    /// The key that waits longest for the view.
    pub longest_parked: Option<ParkedKey>,
    /// Runs that ended, whatever the outcome.
    pub runs: u64,
    /// Runs that failed; conflicts, timeouts and panics are not among them.
    pub errors: u64,
    /// Runs on what was not so any more.
    pub conflicts: u64,
    /// Runs that took too long.
    pub timeouts: u64,
    /// Runs that panicked.
    pub panics: u64,
    /// Runs after which the key was slowed because it does not come to rest.
    pub slowed: u64,
    /// Keys whose last run failed, at most a hundred of them.
    pub failing: Vec<FailingKey>,
    /// Keys that do not come to rest and are slowed, at most a hundred of them.
    pub restless: Vec<RestlessKey>,
    /// How long no run begins because the write budget is used up; None within it.
    pub over_budget: Option<Duration>,
}

/// A key that waits for the view.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedKey {
    /// Which.
    pub key: ObjectKey,
    /// The source that lags.
    pub source: Prefix,
    /// The revision that it has to show.
    pub revision: Revision,
    /// Since when.
    pub waited: Duration,
}

/// A key whose last run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailingKey {
    /// Which.
    pub key: ObjectKey,
    /// Failures in a row.
    pub failures: u32,
    /// What was wrong the last time.
    pub error: String,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) runs: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) slowed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fill(&self, status: &mut ControllerStatus) {
        status.runs = self.runs.load(Ordering::Relaxed);
        status.errors = self.errors.load(Ordering::Relaxed);
        status.conflicts = self.conflicts.load(Ordering::Relaxed);
        status.timeouts = self.timeouts.load(Ordering::Relaxed);
        status.panics = self.panics.load(Ordering::Relaxed);
        status.slowed = self.slowed.load(Ordering::Relaxed);
    }
}
