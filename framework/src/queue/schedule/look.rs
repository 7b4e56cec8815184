//! Looking into a schedule: where one key is, and how many are where.

use std::cmp::Reverse;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use super::{CLASSES, Item, Schedule, SlotId, State};
use crate::store::Revision;

/// How many keys are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Ready keys by class.
    pub(crate) ready: [usize; CLASSES],
    pub(crate) waiting: usize,
    pub(crate) parked: usize,
    pub(crate) running: usize,
    /// How long the oldest ready key waits.
    pub(crate) oldest_ready: Duration,
    /// How long the longest run takes so far.
    pub(crate) longest_running: Duration,
    /// How long all runs take so far, together.
    pub(crate) unfinished: Duration,
    /// How often a run was asked for.
    pub(crate) adds: u64,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// Kept for its failures, or for what it must see.
    Idle,
    Ready {
        since: Duration,
    },
    Waiting {
        left: Duration,
        backoff: bool,
    },
    Parked {
        since: Duration,
        /// The source that lags, and what it has to show.
        behind: Option<(usize, Revision)>,
    },
    Running {
        since: Duration,
    },
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Look {
    pub(crate) place: Place,
    pub(crate) failures: u32,
}

impl<K, C> Schedule<K, C>
where
    K: Clone + Eq + Hash + Debug,
    C: PartialEq + Debug,
{
    /// Where a key is; None for one that nothing is known of.
    pub(crate) fn look(&self, key: &K, now: Duration) -> Option<Look> {
        let hash = self.hasher.hash_one(key);
        let same = |&id: &SlotId| self.slots.get(id).is_some_and(|entry| entry.key == *key);
        let entry = self.slots.get(*self.places.find(hash, same)?)?;
        let since = |since: Duration| now.saturating_sub(since);
        let place = match entry.state {
            State::Idle => Place::Idle,
            State::Ready { since: at, .. } => Place::Ready { since: since(at) },
            State::Waiting { at, backoff, .. } => Place::Waiting {
                left: at.saturating_sub(now),
                backoff,
            },
            State::Parked { since: at, .. } => Place::Parked {
                since: since(at),
                behind: Self::unmet(&self.reached, entry.must_see()),
            },
            State::Running { since: at } => Place::Running { since: since(at) },
        };
        Some(Look {
            place,
            failures: entry.memory.as_ref().map_or(0, |memory| memory.failures),
        })
    }

    /// How many keys are where.
    pub(crate) fn sizes(&self, now: Duration) -> Sizes {
        let mut sizes = Sizes {
            running: self.running,
            adds: self.adds,
            ..Sizes::default()
        };
        for (count, class) in sizes.ready.iter_mut().zip(&self.ready) {
            for entry in self.slots.iter(class) {
                *count += 1;
                if let State::Ready { since, .. } = entry.state {
                    sizes.oldest_ready = sizes.oldest_ready.max(now.saturating_sub(since));
                }
            }
        }
        // The heaps hold little but what waits and is parked, so that not all keys are looked at.
        for Reverse(Item(_, stamp, id)) in &self.waiting {
            sizes.waiting += usize::from(self.at_stamp(*id, *stamp).is_some());
        }
        for Reverse(Item(_, stamp, id)) in self.parked.iter().flatten() {
            let state = self.at_stamp(*id, *stamp).map(|entry| entry.state);
            sizes.parked += usize::from(matches!(state, Some(State::Parked { .. })));
        }
        let entries = self.places.iter().filter_map(|&id| self.slots.get(id));
        for entry in entries.filter(|_| self.running > 0) {
            if let State::Running { since } = entry.state {
                let takes = now.saturating_sub(since);
                sizes.longest_running = sizes.longest_running.max(takes);
                sizes.unfinished += takes;
            }
        }
        sizes
    }
}
