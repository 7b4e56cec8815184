//! The data of the memory store: versions of every key, the history, and leases. Pure: time is
//! an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::super::{
    Change, Compare, Key, Lease, LeaseId, Prefix, Record, Result, Revision, StoreError,
    Transaction, Write,
};

/// What one revision changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The revision.
    pub revision: Revision,
    /// Its changes, in key order, each key once.
    pub changes: Arc<[Change]>,
}

impl HistoryEntry {
    /// The changes under a prefix.
    #[must_use]
    pub fn under(&self, prefix: &Prefix) -> &[Change] {
        // Keys under a prefix are neighbours in key order.
        let text = prefix.as_str();
        let is_before = |change: &Change| change.key().as_str() < text;
        let start = self.changes.partition_point(is_before);
        let rest = &self.changes[start..];
        &rest[..rest.partition_point(|change| change.key().is_under(prefix))]
    }

    fn bytes(&self) -> usize {
        let size = |change: &Change| match change {
            Change::Put(record) => record.key.as_str().len() + record.value.len(),
            Change::Delete { key, .. } => key.as_str().len(),
        };
        self.changes.iter().map(size).sum()
    }
}

/// A copy of a [`MemoryStore`](super::MemoryStore)'s data: records, revision and leases.
#[derive(Clone, Debug)]
pub struct MemorySnapshot {
    records: Vec<Record>,
    revision: Revision,
    leases: Vec<Lease>,
}

impl MemorySnapshot {
    /// The records, in key order.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The revision that was the newest.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

/// One key through the history that is kept.
#[derive(Debug, Default)]
struct Versions {
    /// Since when `newest` holds.
    since: Revision,
    /// None: deleted.
    newest: Option<Record>,
    /// What held before, oldest first.
    older: VecDeque<(Revision, Option<Record>)>,
}

impl Versions {
    fn at(&self, revision: Revision) -> Option<&Record> {
        if self.since <= revision {
            return self.newest.as_ref();
        }
        let behind = self.older.partition_point(|(since, _)| *since <= revision);
        let (_, record) = self.older.get(behind.checked_sub(1)?)?;
        record.as_ref()
    }

    fn set(&mut self, revision: Revision, record: Option<Record>) {
        let before = std::mem::replace(&mut self.newest, record);
        let since = std::mem::replace(&mut self.since, revision);
        if since > Revision::ZERO {
            self.older.push_back((since, before));
        }
    }

    /// Forgets what no read at `oldest` or later can see; true when nothing is left.
    fn forget_before(&mut self, oldest: Revision) -> bool {
        if self.since <= oldest {
            self.older = VecDeque::new();
            return self.newest.is_none();
        }
        while self.older.get(1).is_some_and(|(since, _)| *since <= oldest) {
            self.older.pop_front();
        }
        false
    }
}

#[derive(Debug)]
struct LeaseState {
    ttl: Duration,
    deadline: Duration,
    keys: BTreeSet<Key>,
}

#[derive(Debug)]
pub(super) struct Data {
    keys: BTreeMap<Key, Versions>,
    /// One entry for each revision in `(oldest, revision]`.
    log: VecDeque<HistoryEntry>,
    log_bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    revision: Revision,
    /// The oldest revision that can be read and watched from.
    oldest: Revision,
    leases: BTreeMap<LeaseId, LeaseState>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
    last_lease: u64,
    /// Entries that left the history since they were last asked for.
    trimmed: Vec<HistoryEntry>,
}

impl Data {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            log_bytes: 0,
            max_entries,
            max_bytes,
            revision: Revision::ZERO,
            oldest: Revision::ZERO,
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_lease: 0,
            trimmed: Vec::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn oldest(&self) -> Revision {
        self.oldest
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Record> {
        self.keys.get(key)?.newest.as_ref()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.keys.values().filter_map(|key| key.newest.as_ref())
    }

    /// Keys that exist or did in the history that is kept.
    #[cfg(test)]
    pub(super) fn kept_keys(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn history(&self) -> impl Iterator<Item = &HistoryEntry> {
        self.log.iter()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = Lease> {
        let lease = |(id, state): (&LeaseId, &LeaseState)| Lease {
            id: *id,
            ttl: state.ttl,
        };
        self.leases.iter().map(lease)
    }

    /// Whether the state of a revision is kept.
    pub(super) fn readable(&self, revision: Revision) -> Result<()> {
        if revision < self.oldest {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest: self.oldest,
            });
        }
        if revision > self.revision {
            let newest = self.revision;
            let reason = format!(
                "revision {revision} is ahead of the store's {newest}: it is of another history"
            );
            return Err(StoreError::Invalid { reason });
        }
        Ok(())
    }

    /// The records under a prefix and behind `after`, as of a revision that is readable.
    pub(super) fn range(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        revision: Revision,
    ) -> impl Iterator<Item = &Record> {
        let start = match after {
            Some(key) if key.as_str() >= prefix.as_str() => Bound::Excluded(key.as_str()),
            _ => Bound::Included(prefix.as_str()),
        };
        let prefix = prefix.clone();
        self.keys
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.is_under(&prefix))
            .filter_map(move |(_, versions)| versions.at(revision))
    }

    /// The entries behind a revision that is readable.
    pub(super) fn entries_after(
        &self,
        revision: Revision,
    ) -> impl DoubleEndedIterator<Item = &HistoryEntry> {
        let seen = revision.as_u64().saturating_sub(self.oldest.as_u64());
        let seen = usize::try_from(seen).unwrap_or(usize::MAX);
        self.log.range(seen.min(self.log.len())..)
    }

    /// The entry of a revision, if it is kept.
    pub(super) fn entry(&self, revision: Revision) -> Option<&HistoryEntry> {
        // The log holds every revision from `oldest + 1` on.
        let index = revision.as_u64().checked_sub(self.oldest.as_u64() + 1)?;
        self.log.get(usize::try_from(index).ok()?)
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => self.get(key).is_none(),
            Compare::Revision(key, revision) => self
                .get(key)
                .is_some_and(|record| record.modified == *revision),
            Compare::RangeNotNewer(prefix, revision) => self
                .range(prefix, None, self.revision)
                .all(|record| record.modified <= *revision),
            Compare::ClaimHeld { key, epoch, lease } => self
                .get(key)
                .is_some_and(|record| record.created == *epoch && record.lease == Some(*lease)),
        }
    }

    /// Every compare of a transaction holds.
    #[cfg(feature = "testing")]
    pub(super) fn admits(&self, transaction: &Transaction) -> bool {
        transaction
            .compares
            .iter()
            .all(|compare| self.holds(compare))
    }

    /// Judges and applies a transaction that is within the limits.
    pub(super) fn commit(&mut self, transaction: &Transaction) -> Result<Revision> {
        let failed: Vec<usize> = transaction
            .compares
            .iter()
            .enumerate()
            .filter(|(_, compare)| !self.holds(compare))
            .map(|(position, _)| position)
            .collect();
        if !failed.is_empty() {
            return Err(StoreError::Conflict { failed });
        }
        for write in &transaction.writes {
            if let Write::Put {
                lease: Some(lease), ..
            } = write
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseNotFound { lease: *lease });
            }
        }
        Ok(self.apply(&transaction.writes))
    }

    fn apply(&mut self, writes: &[Write]) -> Revision {
        let revision = self.revision.next();
        let mut changes = BTreeMap::new();
        for write in writes {
            let key = write.key();
            let before = self.get(key);
            let before_lease = before.and_then(|record| record.lease);
            let record = match write {
                Write::Put { key, value, lease } => Some(Record {
                    key: key.clone(),
                    value: value.clone(),
                    created: before.map_or(revision, |record| record.created),
                    modified: revision,
                    lease: *lease,
                }),
                Write::Delete { .. } if before.is_none() => continue,
                Write::Delete { .. } => None,
            };
            if let Some(state) = before_lease.and_then(|lease| self.leases.get_mut(&lease)) {
                state.keys.remove(key);
            }
            let new_lease = record.as_ref().and_then(|record| record.lease);
            if let Some(state) = new_lease.and_then(|lease| self.leases.get_mut(&lease)) {
                state.keys.insert(key.clone());
            }
            let change = match &record {
                Some(record) => Change::Put(record.clone()),
                None => Change::Delete {
                    key: key.clone(),
                    revision,
                },
            };
            changes.insert(key.clone(), change);
            let versions = self.keys.entry(key.clone()).or_default();
            versions.set(revision, record);
        }
        if changes.is_empty() {
            return self.revision;
        }
        self.revision = revision;
        let entry = HistoryEntry {
            revision,
            changes: changes.into_values().collect(),
        };
        self.log_bytes += entry.bytes();
        self.log.push_back(entry);
        while self.log.len() > self.max_entries || self.log_bytes > self.max_bytes {
            if !self.trim_one() {
                break;
            }
        }
        revision
    }

    fn trim_one(&mut self) -> bool {
        let Some(entry) = self.log.pop_front() else {
            return false;
        };
        self.log_bytes -= entry.bytes();
        self.oldest = entry.revision;
        for change in entry.changes.iter() {
            if let Some(versions) = self.keys.get_mut(change.key())
                && versions.forget_before(self.oldest)
            {
                self.keys.remove(change.key());
            }
        }
        self.trimmed.push(entry);
        true
    }

    /// Forgets what was before a revision, which stays readable.
    pub(super) fn compact(&mut self, revision: Revision) {
        while self.oldest < revision && self.trim_one() {}
    }

    pub(super) fn take_trimmed(&mut self) -> Vec<HistoryEntry> {
        std::mem::take(&mut self.trimmed)
    }

    pub(super) fn grant(&mut self, ttl: Duration, now: Duration) -> Lease {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.insert_lease(Lease { id, ttl }, now);
        Lease { id, ttl }
    }

    fn insert_lease(&mut self, lease: Lease, now: Duration) {
        let deadline = now.saturating_add(lease.ttl);
        let state = LeaseState {
            ttl: lease.ttl,
            deadline,
            keys: BTreeSet::new(),
        };
        self.leases.insert(lease.id, state);
        self.deadlines.insert((deadline, lease.id));
    }

    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Duration) -> Result<()> {
        let state = self.leases.get_mut(&lease);
        let state = state.ok_or(StoreError::LeaseNotFound { lease })?;
        self.deadlines.remove(&(state.deadline, lease));
        state.deadline = now.saturating_add(state.ttl);
        self.deadlines.insert((state.deadline, lease));
        Ok(())
    }

    pub(super) fn end_lease(&mut self, lease: LeaseId) -> Result<Revision> {
        let state = self.leases.remove(&lease);
        let state = state.ok_or(StoreError::LeaseNotFound { lease })?;
        self.deadlines.remove(&(state.deadline, lease));
        let delete = |key| Write::Delete { key };
        let writes: Vec<Write> = state.keys.into_iter().map(delete).collect();
        Ok(self.apply(&writes))
    }

    /// Ends the lease that is due first, if one is.
    pub(super) fn expire_next(&mut self, now: Duration) -> Option<Revision> {
        let (deadline, lease) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.end_lease(lease).ok()
    }

    pub(super) fn next_expiry(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn snapshot(&self) -> MemorySnapshot {
        MemorySnapshot {
            records: self.records().cloned().collect(),
            revision: self.revision,
            leases: self.leases().collect(),
        }
    }

    /// Becomes the snapshot's data, without its history, at a revision of its own. Lease ids
    /// given out before are not given out again.
    pub(super) fn restore(&mut self, snapshot: &MemorySnapshot, revision: Revision, now: Duration) {
        let mut restored = Self::new(self.max_entries, self.max_bytes);
        restored.last_lease = self.last_lease;
        restored.revision = revision;
        restored.oldest = revision;
        for lease in &snapshot.leases {
            restored.insert_lease(*lease, now);
        }
        for record in &snapshot.records {
            if let Some(state) = record.lease.and_then(|id| restored.leases.get_mut(&id)) {
                state.keys.insert(record.key.clone());
            }
            let versions = restored.keys.entry(record.key.clone()).or_default();
            versions.set(record.modified, Some(record.clone()));
        }
        *self = restored;
    }

    /// Forgets everything and starts again at revision zero.
    pub(super) fn clear(&mut self) {
        let last_lease = self.last_lease;
        *self = Self::new(self.max_entries, self.max_bytes);
        self.last_lease = last_lease;
    }
}
