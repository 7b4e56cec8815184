//! Transactions as etcd's: compares, writes, and reads that tell which compares failed.

use std::collections::HashMap;

use bytes::Bytes;
use platctrl_framework::model::identity::anchor_key;
use platctrl_framework::store::{
    Compare, Key, LeaseId, Limits, Result, Revision, StoreError, Transaction, Write,
};

use crate::call::Repeat;
use crate::connection::methods;
use crate::error::{About, Failure, Refusal};
use crate::grpc::Method;
use crate::keys::Keys;
use crate::link::Link;
use crate::shared::revision;
use crate::wire::{self, Relation, Target};

/// What etcd takes in one transaction, of compares and of operations each.
const MAX_OPERATIONS: usize = 128;

/// The limits of a transaction. etcd takes 1.5 MiB of request; what is left of it beyond the
/// transaction's own bytes is for the root in each key, for the reads that tell which compares
/// failed, and for the encoding.
pub(crate) const LIMITS: Limits = Limits {
    max_writes: MAX_OPERATIONS,
    max_compares: MAX_OPERATIONS,
    max_operations: 2 * MAX_OPERATIONS,
    max_transaction_bytes: 1 << 20,
    max_value_bytes: 1 << 20,
};

/// A transaction in etcd's terms.
#[derive(Debug)]
struct Plan {
    request: wire::TxnRequest,
    /// For each compare, the position of its read in the request's failure branch; None when
    /// there is but one compare, which must be the one that failed.
    reads: Option<Vec<usize>>,
}

impl Link {
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<Revision> {
        LIMITS.check(&transaction)?;
        let plan = plan(&self.shared.keys, &transaction)?;
        let size = prost::Message::encoded_len(&plan.request);
        let about = || About {
            what: describe(&transaction),
            size,
            ..About::default()
        };
        let answer = self
            .call::<_, wire::TxnResponse>(methods::TXN, &plan.request, Repeat::Never)
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            // The answer holds nothing large: this cannot be.
            Err(Failure::TooLong(_)) => {
                return Err(StoreError::Unknown {
                    reason: format!("{}: the answer is too large", about().what),
                });
            }
            Err(failure) if failure.is_refused_as(Refusal::LeaseNotFound) => {
                let lease = self.ended_lease(&transaction).await;
                return Err(failure.into_store_error(About { lease, ..about() }));
            }
            Err(failure) => return Err(failure.into_store_error(about())),
        };
        if answer.succeeded {
            let counter = answer.header.as_ref().map_or(0, |header| header.revision);
            return Ok(revision(counter));
        }
        let failed = match plan.reads {
            None => vec![0],
            Some(reads) => {
                let held: Vec<_> = answer.ranges().collect();
                failed(&transaction.compares, |position| {
                    reads.get(position).and_then(|read| held.get(*read))
                })
            }
        };
        Err(StoreError::Conflict { failed })
    }

    /// The first of the leases that a transaction names which has ended.
    async fn ended_lease(&self, transaction: &Transaction) -> Option<LeaseId> {
        let mut leases: Vec<LeaseId> = Vec::new();
        for write in &transaction.writes {
            if let Write::Put {
                lease: Some(lease), ..
            } = write
                && !leases.contains(lease)
            {
                leases.push(*lease);
            }
        }
        for lease in leases.iter().take(leases.len().saturating_sub(1)) {
            if !self.lease_lives(*lease).await {
                return Some(*lease);
            }
        }
        leases.last().copied()
    }

    async fn lease_lives(&self, lease: LeaseId) -> bool {
        let Some(id) = lease_number(lease) else {
            return false;
        };
        const METHOD: Method = methods::TIME_TO_LIVE;
        let request = wire::LeaseRequest { id };
        let answer = self.call::<_, wire::LeaseTtlResponse>(METHOD, &request, Repeat::Freely);
        answer.await.is_ok_and(|answer| answer.ttl > 0)
    }
}

fn describe(transaction: &Transaction) -> String {
    let keys = transaction.writes.iter().map(Write::key);
    match keys.clone().count() {
        0 => "commit without writes".to_owned(),
        1 => format!("commit to {}", keys.map(Key::as_str).collect::<String>()),
        count => {
            let first = keys.clone().next().map(Key::as_str).unwrap_or_default();
            format!("commit to {first} and {} more keys", count - 1)
        }
    }
}

/// etcd's number of a lease; None when it cannot be one of etcd's.
pub(crate) fn lease_number(lease: LeaseId) -> Option<i64> {
    i64::try_from(lease.0).ok().filter(|number| *number != 0)
}

/// The counter that etcd compares with. Its revisions have no epoch: one with an epoch is newer
/// than all of them, and no key was ever put at it.
fn counter(revision: Revision) -> Option<i64> {
    let counter = i64::try_from(revision.counter()).unwrap_or(i64::MAX - 1);
    (revision.epoch() == 0).then_some(counter)
}

/// The newest counter that a range may have to be "not newer" than a revision.
fn bound(revision: Revision) -> i64 {
    counter(revision).unwrap_or(i64::MAX - 1)
}

fn plan(keys: &Keys, transaction: &Transaction) -> Result<Plan> {
    let mut compare: Vec<wire::Compare> = Vec::new();
    let mut require = |wanted: wire::Compare| {
        // Commits that were put together often compare one claim.
        if !compare.contains(&wanted) {
            compare.push(wanted);
        }
    };
    for wanted in &transaction.compares {
        match wanted {
            Compare::Absent(key) => {
                let value = Target::Version(0);
                require(wire::Compare::new(keys.key(key), Relation::Equal, value));
            }
            Compare::Revision(key, revision) => {
                // A missing key has 0, which is no revision of any key.
                let counter = counter(*revision).filter(|counter| *counter > 0);
                let value = Target::Mod(counter.unwrap_or(-1));
                require(wire::Compare::new(keys.key(key), Relation::Equal, value));
            }
            Compare::RangeNotNewer(prefix, revision) => {
                let (start, end) = keys.range(prefix);
                let value = Target::Mod(bound(*revision) + 1);
                let mut wanted = wire::Compare::new(start, Relation::Less, value);
                wanted.range_end = end;
                require(wanted);
            }
            Compare::ClaimHeld {
                key,
                epoch: won,
                lease,
            } => {
                let created = counter(*won).filter(|counter| *counter > 0);
                let value = Target::Create(created.unwrap_or(-1));
                require(wire::Compare::new(keys.key(key), Relation::Equal, value));
                let value = Target::Lease(lease_number(*lease).unwrap_or(-1));
                require(wire::Compare::new(keys.key(key), Relation::Equal, value));
            }
            _ => {
                return Err(StoreError::Invalid {
                    reason: format!("this version does not know the compare {wanted:?}"),
                });
            }
        }
    }
    if compare.len() > MAX_OPERATIONS {
        return Err(StoreError::TooLarge {
            what: "compares in a transaction, of which each claim counts twice".to_owned(),
            size: compare.len(),
            limit: MAX_OPERATIONS,
        });
    }
    let mut success = Vec::with_capacity(transaction.writes.len().max(1));
    for write in &transaction.writes {
        success.push(operation(keys, write)?);
    }
    if success.is_empty() {
        // Without an operation etcd would judge by what one member happens to know.
        let read = wire::RangeRequest {
            key: match compare.first() {
                Some(first) => first.key.clone(),
                None => keys.key(&anchor_key()),
            },
            keys_only: true,
            ..wire::RangeRequest::default()
        };
        success.push(wire::Request::Range(read).into());
    }
    let (failure, reads) = match transaction.compares.as_slice() {
        [] | [_] => (Vec::new(), None),
        compares => {
            let (failure, reads) = reads(keys, compares);
            (failure, Some(reads))
        }
    };
    let request = wire::TxnRequest {
        compare,
        success,
        failure,
    };
    Ok(Plan { request, reads })
}

fn operation(keys: &Keys, write: &Write) -> Result<wire::RequestOp> {
    let request = match write {
        Write::Put { key, value, lease } => {
            let lease = match lease {
                None => 0,
                Some(lease) => {
                    lease_number(*lease).ok_or(StoreError::LeaseNotFound { lease: *lease })?
                }
            };
            wire::Request::Put(wire::PutRequest {
                key: keys.key(key),
                value: value.clone(),
                lease,
            })
        }
        Write::Delete { key } => {
            wire::Request::Delete(wire::DeleteRangeRequest { key: keys.key(key) })
        }
    };
    Ok(request.into())
}

/// The reads that show which compares failed, and for each compare which one is its.
fn reads(keys: &Keys, compares: &[Compare]) -> (Vec<wire::RequestOp>, Vec<usize>) {
    let mut operations: Vec<wire::RequestOp> = Vec::new();
    let mut known: HashMap<(Bytes, i64), usize> = HashMap::new();
    let mut positions = Vec::with_capacity(compares.len());
    for compare in compares {
        let mut read = wire::RangeRequest {
            keys_only: true,
            ..wire::RangeRequest::default()
        };
        match compare {
            Compare::RangeNotNewer(prefix, revision) => {
                (read.key, read.range_end) = keys.range(prefix);
                read.min_mod_revision = bound(*revision) + 1;
                read.limit = 1;
            }
            Compare::Absent(key) | Compare::Revision(key, _) | Compare::ClaimHeld { key, .. } => {
                read.key = keys.key(key);
            }
            // Refused before.
            _ => {}
        }
        let next = operations.len();
        let place = (read.key.clone(), read.min_mod_revision);
        let position = *known.entry(place).or_insert(next);
        if position == next {
            operations.push(wire::Request::Range(read).into());
        }
        positions.push(position);
    }
    (operations, positions)
}

/// The compares that do not hold, by what the keys held when the transaction was judged; all of
/// them if that does not show it.
fn failed<'a>(
    compares: &[Compare],
    held: impl Fn(usize) -> Option<&'a wire::RangeResponse>,
) -> Vec<usize> {
    let holds = |(position, compare): (usize, &Compare)| {
        let range = held(position)?;
        let kv = range.kvs.first();
        Some(match compare {
            Compare::Absent(_) => kv.is_none(),
            Compare::Revision(_, revision) => {
                kv.is_some_and(|kv| counter(*revision) == Some(kv.mod_revision))
            }
            Compare::RangeNotNewer(..) => kv.is_none(),
            Compare::ClaimHeld {
                epoch: won, lease, ..
            } => kv.is_some_and(|kv| {
                counter(*won) == Some(kv.create_revision) && lease_number(*lease) == Some(kv.lease)
            }),
            _ => false,
        })
    };
    let failed: Vec<usize> = compares
        .iter()
        .enumerate()
        .filter(|(position, compare)| !holds((*position, compare)).unwrap_or(false))
        .map(|(position, _)| position)
        .collect();
    if failed.is_empty() {
        return (0..compares.len()).collect();
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn a_transaction_without_writes_reads_so_that_it_is_judged_by_the_newest_state() {
        let keys = Keys::new("r");
        for transaction in [
            Transaction::new(),
            Transaction::new().require_absent(key("a")),
        ] {
            let plan = plan(&keys, &transaction).unwrap();
            assert_eq!(plan.request.success.len(), 1);
        }
    }

    #[test]
    fn one_claim_compared_by_many_commits_counts_once() {
        let keys = Keys::new("r");
        let claim = Compare::ClaimHeld {
            key: key("x/lease/c"),
            epoch: Revision::new(0, 5),
            lease: LeaseId(7),
        };
        let mut transaction = Transaction::new();
        for _ in 0..128 {
            transaction = transaction.require(claim.clone());
        }
        let plan = plan(&keys, &transaction).unwrap();
        assert_eq!(plan.request.compare.len(), 2);
        assert_eq!(plan.request.failure.len(), 1);
    }

    #[test]
    fn the_largest_transaction_fits_into_what_etcd_takes() {
        let root = "r".repeat(128);
        let keys = Keys::new(&root);
        let segment = |n: usize| format!("{n:03}{}", "k".repeat(508));
        let prefix = |n: usize| {
            platctrl_framework::store::Prefix::new(format!("{n:03}{}/", "k".repeat(508))).unwrap()
        };
        let mut transaction = Transaction::new();
        for n in 0..128 {
            transaction =
                transaction.require(Compare::RangeNotNewer(prefix(n), Revision::new(0, 1 << 40)));
        }
        let mut left = LIMITS.max_transaction_bytes - 128 * 512;
        for n in 0..128 {
            let key = key(&segment(n));
            let size = (left - key.as_str().len()) / (128 - n);
            let value = vec![b'x'; size.saturating_sub(512)];
            left -= value.len() + key.as_str().len();
            transaction = transaction.put_with_lease(key, value, LeaseId(i64::MAX as u64));
        }
        LIMITS.check(&transaction).unwrap();
        let plan = plan(&keys, &transaction).unwrap();
        let size = prost::Message::encoded_len(&plan.request);
        assert!(size < (3 << 19) - 1024, "{size}");
    }

    #[test]
    fn a_revision_with_an_epoch_is_newer_than_all_and_no_key_has_it() {
        assert_eq!(bound(Revision::new(0, 500)), 500);
        assert_eq!(bound(Revision::new(1, 5)), i64::MAX - 1);
        assert_eq!(counter(Revision::new(1, 5)), None);
    }
}
