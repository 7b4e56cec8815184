//! Everything that can go wrong with a memory store, on demand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::super::{LeaseId, Prefix, Result, Revision, StoreError, Transaction, WatchEvent};
use super::data::{Data, MemorySnapshot};
use super::watch::broken;
use super::{Shared, State};

/// What goes wrong with a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitFault {
    /// It happens (or conflicts), but the answer is lost: `Unknown`.
    UnknownApplied,
    /// It does not happen, and nobody can tell: `Unknown`.
    UnknownLost,
    /// `Unknown` now; it is judged and applied when [`Faults::apply_delayed`] is called.
    UnknownDelayed,
    /// It does not happen: `Unavailable`.
    Unavailable,
}

/// How often each fault happened, so that a test can assert that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Calls answered `Unknown`.
    pub unknown: u64,
    /// Calls answered `Unavailable`.
    pub unavailable: u64,
    /// Calls answered `Denied`.
    pub denied: u64,
}

/// What is wrong now.
#[derive(Debug)]
pub(super) struct Settings {
    away: bool,
    pub(super) latency: Duration,
    commits: VecDeque<CommitFault>,
    delayed: VecDeque<Transaction>,
    denied_reads: Vec<Prefix>,
    denied_writes: Vec<Prefix>,
    hidden: Vec<Prefix>,
    held: Vec<Prefix>,
    pub(super) coalesce: bool,
    /// How often all watches were ended.
    pub(super) watch_breaks: u64,
    pub(super) watch_end: Result<WatchEvent>,
    counts: FaultCounts,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            away: false,
            latency: Duration::ZERO,
            commits: VecDeque::new(),
            delayed: VecDeque::new(),
            denied_reads: Vec::new(),
            denied_writes: Vec::new(),
            hidden: Vec::new(),
            held: Vec::new(),
            coalesce: false,
            watch_breaks: 0,
            watch_end: Err(broken()),
            counts: FaultCounts::default(),
        }
    }
}

/// Whether a key or prefix concerns one of some prefixes: it is below it, or it covers it.
fn concerns(prefixes: &[Prefix], text: &str) -> bool {
    let concerned = |prefix: &Prefix| {
        let covers = text.is_empty() || text.ends_with('/');
        prefix.covers(text) || (covers && prefix.as_str().starts_with(text))
    };
    prefixes.iter().any(concerned)
}

impl Settings {
    pub(super) fn check_available(&mut self, what: &str) -> Result<()> {
        if self.away {
            self.counts.unavailable += 1;
            let reason = format!("memory: {what} while the store is away");
            return Err(StoreError::unavailable(reason));
        }
        Ok(())
    }

    fn check(&mut self, denied: bool, what: String) -> Result<()> {
        if denied {
            self.counts.denied += 1;
            return Err(StoreError::Denied { what });
        }
        Ok(())
    }

    /// `text` is a key, or a prefix with its slash.
    pub(super) fn check_read(&mut self, text: &str) -> Result<()> {
        let denied = concerns(&self.denied_reads, text);
        self.check(denied, format!("reading {text}"))
    }

    pub(super) fn check_write(&mut self, key: &str) -> Result<()> {
        let denied = concerns(&self.denied_writes, key);
        self.check(denied, format!("writing {key}"))
    }

    pub(super) fn is_hidden(&self, key: &str) -> bool {
        concerns(&self.hidden, key)
    }

    pub(super) fn is_held(&self, watched: &Prefix) -> bool {
        let under = |held: &Prefix| held.covers(watched.as_str());
        self.held.iter().any(under)
    }

    pub(super) fn take_commit_fault(&mut self) -> Option<CommitFault> {
        self.commits.pop_front()
    }

    pub(super) fn commit(
        &mut self,
        data: &mut Data,
        transaction: Transaction,
        fault: CommitFault,
    ) -> Result<Revision> {
        match fault {
            CommitFault::UnknownApplied => {
                // Whether it conflicted is as unknown as the rest.
                let _ = data.commit(&transaction);
            }
            CommitFault::UnknownLost => {}
            CommitFault::UnknownDelayed => self.delayed.push_back(transaction),
            CommitFault::Unavailable => {
                self.counts.unavailable += 1;
                return Err(StoreError::unavailable("memory: the commit was not sent"));
            }
        }
        self.counts.unknown += 1;
        let reason = "memory: the connection broke before the answer".to_owned();
        Err(StoreError::Unknown { reason })
    }

    fn end_watches(&mut self, end: Result<WatchEvent>) {
        self.watch_breaks += 1;
        self.watch_end = end;
    }
}

/// Makes a [`MemoryStore`](super::MemoryStore) misbehave. Every fault lasts until it is used up
/// or taken back. Cheap to clone.
#[derive(Clone)]
pub struct Faults {
    pub(super) shared: Arc<Shared>,
}

impl Faults {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.shared.current();
        let answer = change(&mut state);
        state.publish();
        state.groups.wake_all();
        answer
    }

    /// The next `count` commits (after those already planned) meet this fault.
    pub fn next_commits(&self, count: usize, fault: CommitFault) {
        self.change(|state| {
            let faults = std::iter::repeat_n(fault, count);
            state.faults.commits.extend(faults);
        });
    }

    /// Planned commit faults that did not happen yet.
    #[must_use]
    pub fn planned_commits(&self) -> usize {
        self.shared.lock().faults.commits.len()
    }

    /// Judges and applies the commits that met [`CommitFault::UnknownDelayed`], in order, and
    /// returns what their callers never learn.
    pub fn apply_delayed(&self) -> Vec<Result<Revision>> {
        self.change(|state| {
            let delayed = std::mem::take(&mut state.faults.delayed);
            let apply = |transaction| state.data.commit(&transaction);
            delayed.into_iter().map(apply).collect()
        })
    }

    /// Forgets the commits that met [`CommitFault::UnknownDelayed`]; returns how many.
    pub fn drop_delayed(&self) -> usize {
        self.change(|state| std::mem::take(&mut state.faults.delayed).len())
    }

    /// With true, the store is away: every call is `Unavailable`, every watch breaks. Leases go
    /// on ending.
    pub fn set_away(&self, away: bool) {
        self.change(|state| {
            state.faults.away = away;
            if away {
                state.faults.end_watches(Err(broken()));
            }
        });
    }

    /// Every call first takes this long.
    pub fn set_latency(&self, latency: Duration) {
        self.change(|state| state.faults.latency = latency);
    }

    /// Reads and new watches that concern the prefix are `Denied`; open watches go on.
    pub fn deny_reads(&self, prefix: Prefix) {
        self.change(|state| state.faults.denied_reads.push(prefix));
    }

    /// Transactions that write under the prefix are `Denied`.
    pub fn deny_writes(&self, prefix: Prefix) {
        self.change(|state| state.faults.denied_writes.push(prefix));
    }

    /// Reads answer as if the prefix held no keys, as a store may that drops what a credential
    /// may not see. Watches are told to read again.
    pub fn hide(&self, prefix: Prefix) {
        self.change(|state| {
            state.faults.hidden.push(prefix);
            let reason = "memory: what may be read has changed".to_owned();
            state.faults.end_watches(Ok(WatchEvent::Reset { reason }));
        });
    }

    /// Takes back [`Faults::deny_reads`], [`Faults::deny_writes`] and [`Faults::hide`].
    pub fn allow_all(&self) {
        self.change(|state| {
            state.faults.denied_reads.clear();
            state.faults.denied_writes.clear();
            state.faults.hidden.clear();
        });
    }

    /// Watches of this prefix and of prefixes below it hear nothing until
    /// [`Faults::release_watches`]: a stale view. Nothing is lost.
    pub fn hold_watches(&self, prefix: Prefix) {
        self.change(|state| state.faults.held.push(prefix));
    }

    /// Lets held watches go on.
    pub fn release_watches(&self) {
        self.change(|state| state.faults.held.clear());
    }

    /// With true, watches merge everything pending into one event, so that states in between are
    /// never seen. With [`Faults::hold_watches`] this hides exactly what happens meanwhile.
    pub fn coalesce_watches(&self, coalesce: bool) {
        self.change(|state| state.faults.coalesce = coalesce);
    }

    /// Every open watch breaks with `Unavailable`.
    pub fn break_watches(&self) {
        self.change(|state| state.faults.end_watches(Err(broken())));
    }

    /// Every open watch is told to read again.
    pub fn reset_watches(&self) {
        self.change(|state| {
            let reason = "memory: a reset was asked for".to_owned();
            state.faults.end_watches(Ok(WatchEvent::Reset { reason }));
        });
    }

    /// Forgets the history before a revision, which stays readable.
    pub fn compact(&self, revision: Revision) {
        self.change(|state| state.data.compact(revision));
    }

    /// Ends a lease as if its time were up. False if it had ended before.
    pub fn end_lease(&self, lease: LeaseId) -> bool {
        self.change(|state| state.data.end_lease(lease).is_ok())
    }

    /// The store was wiped: no data, no leases, revisions start again. Watches break.
    pub fn come_back_empty(&self) {
        self.change(|state| {
            state.data.clear();
            state.faults.delayed.clear();
            state.groups.restart(Revision::ZERO);
            state.faults.end_watches(Err(broken()));
        });
    }

    /// The store was restored from a backup: data, leases and revision are the snapshot's.
    /// Watches break. One that resumes ahead of the store is reset; one that resumes after the
    /// store has passed its revision again is not, as on a real store.
    pub fn come_back_older(&self, snapshot: &MemorySnapshot) {
        self.restore(snapshot, |_| snapshot.revision());
    }

    /// The store was restored from a backup, and revisions continue `ahead` after the newest
    /// ever seen, with the history forgotten: what etcd recommends. Watches break.
    pub fn come_back_newer(&self, snapshot: &MemorySnapshot, ahead: u64) {
        self.restore(snapshot, |newest| {
            let newest = newest.max(snapshot.revision());
            Revision::from_u64(newest.as_u64() + ahead)
        });
    }

    fn restore(&self, snapshot: &MemorySnapshot, revision: impl FnOnce(Revision) -> Revision) {
        let now = self.shared.environment.monotonic();
        self.change(|state| {
            let revision = revision(state.data.revision());
            state.data.restore(snapshot, revision, now);
            state.faults.delayed.clear();
            state.groups.restart(revision);
            state.faults.end_watches(Err(broken()));
        });
    }

    /// How often faults happened.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        self.shared.lock().faults.counts
    }
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Faults")
            .field(&self.shared.lock().faults)
            .finish()
    }
}
