//! What may go into one transaction: commits none of which compares or writes a key that another
//! one writes, within the store's limits. Pure.
//!
//! Such commits come out the same whichever of them happens first, so doing them all at one
//! revision is doing them one after the other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use crate::store::{Compare, Key, Limits, Prefix, Transaction};

/// A transaction that grows by whole commits.
#[derive(Debug)]
pub(super) struct Draft {
    limits: Limits,
    transaction: Transaction,
    /// Where each member's compares are in the transaction. Members share equal ones.
    compares_of: Vec<Vec<usize>>,
    places: HashMap<Compare, usize>,
    /// Keys that some member writes, in order, so that a prefix is a range.
    written: BTreeSet<Key>,
    /// Keys that some member compares.
    compared: HashSet<Key>,
    /// Prefixes that some member compares.
    pub(super) ranges: Vec<Prefix>,
    bytes: usize,
}

impl Draft {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            transaction: Transaction::new(),
            compares_of: Vec::new(),
            places: HashMap::new(),
            written: BTreeSet::new(),
            compared: HashSet::new(),
            ranges: Vec::new(),
            bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.compares_of.is_empty()
    }

    /// The transaction, and where each member's compares are in it, in the order of joining.
    pub(super) fn finish(self) -> (Transaction, Vec<Vec<usize>>) {
        (self.transaction, self.compares_of)
    }

    /// Takes a commit in if it may. The first one always may: the store judges it as it is.
    pub(super) fn join(&mut self, commit: &Transaction) -> bool {
        let may = self.is_empty() || (self.is_independent_of(commit) && self.has_room_for(commit));
        if may {
            self.add(commit);
        }
        may
    }

    /// No member compares or writes what the commit writes, nor writes what it compares.
    pub(super) fn is_independent_of(&self, commit: &Transaction) -> bool {
        self.writes_apart_from(commit) && self.compares_apart_from(commit)
    }

    /// Nothing that the commit writes is written by a member.
    pub(super) fn writes_apart_from(&self, commit: &Transaction) -> bool {
        let mut writes = commit.writes.iter();
        writes.all(|write| !self.written.contains(write.key()))
    }

    /// Nothing that the commit writes is compared by a member, and the other way round.
    fn compares_apart_from(&self, commit: &Transaction) -> bool {
        let unseen = |key: &Key| {
            let in_range = |range: &Prefix| key.is_under(range);
            !self.compared.contains(key) && !self.ranges.iter().any(in_range)
        };
        let unwritten = |compare: &Compare| match compare {
            Compare::Absent(key) | Compare::Revision(key, _) | Compare::ClaimHeld { key, .. } => {
                !self.written.contains(key)
            }
            Compare::RangeNotNewer(range, _) => !self.writes_under(range),
        };
        commit.writes.iter().all(|write| unseen(write.key()))
            && commit.compares.iter().all(unwritten)
    }

    fn writes_under(&self, range: &Prefix) -> bool {
        let from = (Bound::Included(range.as_str()), Bound::Unbounded);
        let next = self.written.range::<str, _>(from).next();
        next.is_some_and(|key| key.is_under(range))
    }

    pub(super) fn has_room_for(&self, commit: &Transaction) -> bool {
        let writes = self.transaction.writes.len() + commit.writes.len();
        let new = |compare: &&Compare| !self.places.contains_key(*compare);
        let compares = self.transaction.compares.len() + commit.compares.iter().filter(new).count();
        writes <= self.limits.max_writes
            && compares <= self.limits.max_compares
            && writes + compares <= self.limits.max_operations
            && self.bytes + Limits::bytes_of(commit) <= self.limits.max_transaction_bytes
    }

    pub(super) fn add(&mut self, commit: &Transaction) {
        let mut places = Vec::with_capacity(commit.compares.len());
        for compare in &commit.compares {
            let compares = &mut self.transaction.compares;
            let place = *self.places.entry(compare.clone()).or_insert_with(|| {
                compares.push(compare.clone());
                compares.len() - 1
            });
            places.push(place);
            match compare {
                Compare::Absent(key)
                | Compare::Revision(key, _)
                | Compare::ClaimHeld { key, .. } => {
                    self.compared.insert(key.clone());
                }
                Compare::RangeNotNewer(range, _) => self.ranges.push(range.clone()),
            }
        }
        let keys = commit.writes.iter().map(|write| write.key().clone());
        self.written.extend(keys);
        let writes = &mut self.transaction.writes;
        writes.extend(commit.writes.iter().cloned());
        self.bytes += Limits::bytes_of(commit);
        self.compares_of.push(places);
    }
}
