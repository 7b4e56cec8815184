//! Leases: who lives, and until when.
//!
//! They live in memory alone, because opening the store ends all of the process before. What is
//! durable is which keys hang on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use platctrl_framework::store::{Lease, LeaseId, Result, StoreError};

#[derive(Debug)]
struct Entry {
    ttl: Duration,
    deadline: Duration,
}

/// The leases of a store. Pure: time is an argument.
#[derive(Debug)]
pub(crate) struct Leases {
    live: BTreeMap<LeaseId, Entry>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
    /// Ended by time; their keys are still to be deleted.
    ended: BTreeSet<LeaseId>,
    last: u64,
}

impl Leases {
    /// `opens`: how often the store was opened, so that ids never come twice.
    pub(crate) fn new(opens: u64) -> Self {
        Self {
            live: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ended: BTreeSet::new(),
            last: opens << 32,
        }
    }

    pub(crate) fn grant(&mut self, ttl: Duration, now: Duration) -> Lease {
        self.last += 1;
        let id = LeaseId(self.last);
        let deadline = now.saturating_add(ttl);
        self.live.insert(id, Entry { ttl, deadline });
        self.deadlines.insert((deadline, id));
        Lease { id, ttl }
    }

    /// Ends what is due first, so that a late keep-alive never brings a lease back.
    pub(crate) fn keep_alive(&mut self, lease: LeaseId, now: Duration) -> Result<()> {
        self.expire(now);
        let entry = self.live.get_mut(&lease);
        let entry = entry.ok_or(StoreError::LeaseNotFound { lease })?;
        self.deadlines.remove(&(entry.deadline, lease));
        entry.deadline = now.saturating_add(entry.ttl);
        self.deadlines.insert((entry.deadline, lease));
        Ok(())
    }

    /// Ends every lease whose time is up; true when keys are to be deleted.
    pub(crate) fn expire(&mut self, now: Duration) -> bool {
        while let Some((deadline, lease)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            self.live.remove(&lease);
            self.ended.insert(lease);
        }
        !self.ended.is_empty()
    }

    pub(crate) fn is_live(&self, lease: LeaseId) -> bool {
        self.live.contains_key(&lease)
    }

    /// The leases whose keys are to be deleted.
    pub(crate) fn ended(&self) -> Vec<LeaseId> {
        self.ended.iter().copied().collect()
    }

    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The keys of a lease are deleted, durably.
    pub(crate) fn forget(&mut self, lease: LeaseId) {
        self.ended.remove(&lease);
        if let Some(entry) = self.live.remove(&lease) {
            self.deadlines.remove(&(entry.deadline, lease));
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_lease_ends_at_its_time_and_no_keep_alive_brings_it_back() {
        let mut leases = Leases::new(1);
        let lease = leases.grant(seconds(10), seconds(0)).id;
        leases.keep_alive(lease, seconds(9)).unwrap();
        assert!(!leases.expire(seconds(18)));
        assert!(leases.is_live(lease));
        assert!(leases.keep_alive(lease, seconds(19)).is_err());
        assert!(!leases.is_live(lease));
        assert_eq!(leases.ended(), [lease]);
        leases.forget(lease);
        assert!(!leases.has_ended());
    }

    #[test]
    fn ids_of_another_opening_differ() {
        let a = Leases::new(1).grant(seconds(1), seconds(0));
        let b = Leases::new(2).grant(seconds(1), seconds(0));
        assert_ne!(a.id, b.id);
    }
}
