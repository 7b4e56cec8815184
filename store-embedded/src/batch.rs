//! One write to disk: judges transactions one after the other, each against what the ones before
//! it left, and applies those that hold. What comes out equals that serial order.

use std::cell::Cell;
use std::collections::HashSet;

use bytes::Bytes;
use platctrl_framework::store::{
    Change, Compare, Key, LeaseId, Record, Result as Answer, Revision, StoreError, Transaction,
    Write,
};
use redb::{ReadableTable, Table, WriteTransaction};

use crate::codec::{Event, Put, SegmentBuilder, State, Stored, is_in, segment_time, to_key};
use crate::engine::{HISTORY, LEASED, META, RECORDS};
use crate::error::EngineError;
use crate::feed::Commit;
use crate::options::Options;

type Result<T> = std::result::Result<T, EngineError>;

/// The tables of one write transaction of the engine.
pub(crate) struct Batch<'txn> {
    records: Table<'txn, &'static [u8], &'static [u8]>,
    leased: Table<'txn, &'static [u8], ()>,
    history: Table<'txn, u64, &'static [u8]>,
    meta: Table<'txn, &'static str, &'static [u8]>,
    segment: SegmentBuilder,
    state: State,
    began: State,
    time: i64,
    commits: Vec<Commit>,
    ended: HashSet<LeaseId>,
    buffer: Vec<u8>,
}

/// What a batch did, to be told once it is durable.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) state: State,
    pub(crate) commits: Vec<Commit>,
    pub(crate) ended: HashSet<LeaseId>,
    pub(crate) changed: bool,
}

impl<'txn> Batch<'txn> {
    /// `time`: the wall time in milliseconds.
    pub(crate) fn new(
        transaction: &'txn WriteTransaction,
        state: State,
        time: i64,
    ) -> Result<Self> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            leased: transaction.open_table(LEASED)?,
            history: transaction.open_table(HISTORY)?,
            meta: transaction.open_table(META)?,
            segment: SegmentBuilder::new(time),
            state,
            began: state,
            time,
            commits: Vec::new(),
            ended: HashSet::new(),
            buffer: Vec::new(),
        })
    }

    /// Judges one transaction and applies it if it holds. The outer error is the engine's and
    /// ends the batch.
    pub(crate) fn commit(
        &mut self,
        transaction: &Transaction,
        is_live: impl Fn(LeaseId) -> bool,
    ) -> Result<Answer<Revision>> {
        let mut failed = Vec::new();
        for (position, compare) in transaction.compares.iter().enumerate() {
            match self.holds(compare)? {
                Some(true) => {}
                Some(false) => failed.push(position),
                None => {
                    let reason = format!("this store does not know the compare {compare:?}");
                    return Ok(Err(StoreError::Invalid { reason }));
                }
            }
        }
        if !failed.is_empty() {
            return Ok(Err(StoreError::Conflict { failed }));
        }
        for write in &transaction.writes {
            if let Write::Put {
                lease: Some(lease), ..
            } = write
                && (!is_live(*lease) || self.ended.contains(lease))
            {
                return Ok(Err(StoreError::LeaseNotFound { lease: *lease }));
            }
        }
        let mut writes: Vec<&Write> = transaction.writes.iter().collect();
        writes.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        self.apply(writes.into_iter()).map(Ok)
    }

    /// Ends a lease: deletes its keys in one revision.
    pub(crate) fn end_lease(&mut self, lease: LeaseId) -> Result<Revision> {
        let writes = self.keys_of(lease.0, lease.0)?;
        self.ended.insert(lease);
        self.apply(writes.iter())
    }

    /// Ends every lease there is: deletes all their keys in one revision.
    pub(crate) fn end_all_leases(&mut self) -> Result<Revision> {
        let mut writes = self.keys_of(0, u64::MAX)?;
        writes.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        self.apply(writes.iter())
    }

    fn keys_of(&self, first: u64, last: u64) -> Result<Vec<Write>> {
        let start = first.to_be_bytes();
        let mut keys = Vec::new();
        for entry in self.leased.range::<&[u8]>(start.as_slice()..)? {
            let (row, ()) = entry.map(|(row, _)| (row, ()))?;
            let (number, key) = row
                .value()
                .split_first_chunk()
                .ok_or_else(|| EngineError::damaged("a row of the leases is cut off"))?;
            if u64::from_be_bytes(*number) > last {
                break;
            }
            keys.push(Write::Delete { key: to_key(key)? });
        }
        Ok(keys)
    }

    /// None: a compare that this version does not know.
    fn holds(&self, compare: &Compare) -> Result<Option<bool>> {
        let with = |key: &Key, holds: &dyn Fn(Stored<'_>) -> bool| -> Result<bool> {
            let bytes = key.as_str().as_bytes();
            match self.records.get(bytes)? {
                None => Ok(false),
                Some(guard) => Ok(holds(Stored::decode(bytes, guard.value())?)),
            }
        };
        let holds = match compare {
            Compare::Absent(key) => self.records.get(key.as_str().as_bytes())?.is_none(),
            Compare::Revision(key, revision) => with(key, &|stored| stored.modified == *revision)?,
            Compare::ClaimHeld { key, epoch, lease } => with(key, &|stored| {
                stored.created == *epoch
                    && stored.lease == Some(*lease)
                    && !self.ended.contains(lease)
            })?,
            Compare::RangeNotNewer(prefix, revision) => {
                // Nothing anywhere is newer than the newest revision.
                *revision >= self.state.revision || self.none_newer(prefix, *revision)?
            }
            _ => return Ok(None),
        };
        Ok(Some(holds))
    }

    fn none_newer(
        &self,
        prefix: &platctrl_framework::store::Prefix,
        revision: Revision,
    ) -> Result<bool> {
        let start = prefix.as_str().as_bytes();
        for entry in self.records.range::<&[u8]>(start..)? {
            let (key, value) = entry?;
            if !is_in(prefix, key.value()) {
                break;
            }
            if Stored::decode(key.value(), value.value())?.modified > revision {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Applies writes, which are in key order, and gives them a revision if they change anything.
    fn apply<'a>(&mut self, writes: impl Iterator<Item = &'a Write>) -> Result<Revision> {
        let revision = self.state.revision.next();
        let mut changes = Vec::new();
        for write in writes {
            if let Some(change) = self.apply_one(write, revision, changes.is_empty())? {
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return Ok(self.state.revision);
        }
        self.state.revision = revision;
        self.commits.push(Commit { revision, changes });
        if self.segment.is_full() {
            self.close_segment()?;
        }
        Ok(revision)
    }

    fn apply_one(
        &mut self,
        write: &Write,
        revision: Revision,
        is_first: bool,
    ) -> Result<Option<Change>> {
        let key = write.key().as_str().as_bytes();
        let lease_before = Cell::new(None);
        let existed = {
            let guard = self.records.get(key)?;
            let before = guard
                .as_ref()
                .map(|guard| Stored::decode(key, guard.value()))
                .transpose()?;
            let put = match write {
                Write::Put { lease, .. } => Some(Put {
                    created: before.map_or(revision, |before| before.created),
                    lease: *lease,
                }),
                Write::Delete { .. } if before.is_none() => return Ok(None),
                Write::Delete { .. } => None,
            };
            if is_first {
                self.segment.begin(revision);
            }
            self.segment.push(&Event { key, put, before });
            lease_before.set(before.and_then(|before| before.lease));
            before.map(|before| before.created)
        };
        let lease_after = match write {
            Write::Put { lease, .. } => *lease,
            Write::Delete { .. } => None,
        };
        let lease_before = lease_before.get();
        if lease_before != lease_after {
            if let Some(lease) = lease_before {
                self.leased.remove(leased_row(lease, key).as_slice())?;
            }
            if let Some(lease) = lease_after {
                self.leased.insert(leased_row(lease, key).as_slice(), ())?;
            }
        }
        Ok(Some(match write {
            Write::Put { key, value, lease } => {
                let stored = Stored {
                    created: existed.unwrap_or(revision),
                    modified: revision,
                    lease: *lease,
                    value,
                };
                stored.encode_into(key.as_str().as_bytes(), &mut self.buffer);
                self.records
                    .insert(key.as_str().as_bytes(), self.buffer.as_slice())?;
                Change::Put(Record {
                    key: key.clone(),
                    value: Bytes::clone(value),
                    created: stored.created,
                    modified: revision,
                    lease: *lease,
                })
            }
            Write::Delete { key } => {
                self.records.remove(key.as_str().as_bytes())?;
                Change::Delete {
                    key: key.clone(),
                    revision,
                }
            }
        }))
    }

    fn close_segment(&mut self) -> Result<()> {
        let segment = std::mem::replace(&mut self.segment, SegmentBuilder::new(self.time));
        if let Some((first, bytes)) = segment.finish() {
            self.history.insert(first, bytes.as_slice())?;
            self.state.history_bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes what is left and forgets old history.
    pub(crate) fn finish(mut self, options: &Options) -> Result<Outcome> {
        self.close_segment()?;
        let changed = self.state != self.began;
        if changed {
            self.trim(options)?;
            self.meta.insert("state", self.state.encode().as_slice())?;
        }
        Ok(Outcome {
            state: self.state,
            commits: self.commits,
            ended: self.ended,
            changed,
        })
    }

    /// Forgets whole segments, never the newest, and not too many in one batch.
    fn trim(&mut self, options: &Options) -> Result<()> {
        let age = i64::try_from(options.history_age.as_millis()).unwrap_or(i64::MAX);
        for _ in 0..1_024 {
            let kept = self.state.revision.as_u64() - self.state.oldest.as_u64();
            let time = match self.history.first()? {
                None => return Ok(()),
                Some((_, bytes)) => segment_time(bytes.value())?,
            };
            let is_old = time < self.time.saturating_sub(age);
            let is_over = kept > options.history_revisions
                || self.state.history_bytes > options.history_bytes;
            if !(is_old || is_over) || !self.forget_segment(self.state.revision)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Forgets the history before a revision, which stays readable, and returns the oldest that
    /// is.
    pub(crate) fn forget(&mut self, before: Revision) -> Result<Revision> {
        self.close_segment()?;
        let before = before.min(self.state.revision);
        while self.state.oldest < before && self.forget_segment(before)? {}
        self.state.oldest = self.state.oldest.max(before);
        Ok(self.state.oldest)
    }

    /// Removes the oldest segment if it ends at `last` or before and is not the newest.
    fn forget_segment(&mut self, last: Revision) -> Result<bool> {
        let (first, length) = match self.history.first()? {
            None => return Ok(false),
            Some((first, bytes)) => (first.value(), bytes.value().len() as u64),
        };
        // Revisions have no gaps: the segment ends where the next one begins.
        let next = match self.history.range(first + 1..)?.next() {
            None => return Ok(false),
            Some(entry) => entry?.0.value(),
        };
        if next - 1 > last.as_u64() {
            return Ok(false);
        }
        self.history.remove(first)?;
        self.state.oldest = self.state.oldest.max(Revision::from_u64(next - 1));
        self.state.history_bytes = self.state.history_bytes.saturating_sub(length);
        Ok(true)
    }

    /// Counts an opening.
    pub(crate) fn count_opening(&mut self) {
        self.state.opens += 1;
    }
}

fn leased_row(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    let mut row = lease.0.to_be_bytes().to_vec();
    row.extend_from_slice(key);
    row
}
