//! Stores that each break one promise, in front of a memory store that keeps them all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::spoiled::{
    filtered, going_on_after_reset, silent_from_the_future, spoiled, without_first,
};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use platctrl_framework::store::{
    Capabilities, Change, Compare, Key, Lease, LeaseId, ListRequest, Page, Prefix, Record, Result,
    Revision, Snapshot, Store, StoreError, Transaction, WatchEvent, WatchStream, Write,
};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    LostEvent,
    ReorderedEvents,
    OldEventAgain,
    TornTransaction,
    TornEvent,
    UnpinnedPage,
    LeaseAba,
    UnknownAsUnavailable,
    StaleGet,
    ConflictIgnored,
    ConflictWithoutNames,
    RevisionTwice,
    DeleteNotReported,
    PrefixWithoutSlash,
    PutKeepsOldLease,
    LeaseEndsKeyByKey,
    LeaseEndsEarly,
    LeaseForgotten,
    DeadLeaseTaken,
    QuietWatchersForgotten,
    FutureWatchSilent,
    CompactionIgnored,
    IdenticalPutSkipped,
    CreationKept,
    LastWriteWins,
    CompareBeforeLock,
    PageStartsAtAfter,
    NeverMore,
    ByteTooFew,
    RangeCompareForgotten,
    DroppedCommitTorn,
    AlwaysReset,
    TornGet,
    ResumeSkipsOne,
}

/// A memory store with a bug in front.
#[derive(Debug)]
pub(super) struct Broken {
    inner: Arc<dyn Store>,
    bug: Bug,
    calls: AtomicU64,
    known: Mutex<Known>,
}

/// What some bugs remember of keys.
#[derive(Debug, Default)]
struct Known {
    /// What a stale read still shows.
    stale: HashMap<Key, Option<Record>>,
    /// The first creation of each key.
    created: HashMap<Key, Revision>,
}

impl Broken {
    pub(super) fn wrap(inner: Arc<dyn Store>, bug: Bug) -> Arc<dyn Store> {
        Arc::new(Self {
            inner,
            bug,
            calls: AtomicU64::new(0),
            known: Mutex::default(),
        })
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nth_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    async fn record(&self, key: &Key) -> Result<Option<Record>> {
        let snapshot = self.inner.get(std::slice::from_ref(key)).await?;
        Ok(snapshot.records.into_iter().next().flatten())
    }

    /// A claim compare that looks at the lease alone.
    async fn weaken_claims(&self, transaction: &mut Transaction) -> Result<()> {
        for compare in &mut transaction.compares {
            if let Compare::ClaimHeld { key, epoch, .. } = compare
                && let Some(record) = self.record(key).await?
            {
                *epoch = record.created;
            }
        }
        Ok(())
    }

    async fn keep_leases(&self, transaction: &mut Transaction) -> Result<()> {
        for write in &mut transaction.writes {
            if let Write::Put { key, lease, .. } = write
                && lease.is_none()
                && let Some(record) = self.record(key).await?
            {
                *lease = record.lease;
            }
        }
        Ok(())
    }

    async fn commit_broken(&self, mut transaction: Transaction) -> Result<Revision> {
        match self.bug {
            Bug::TornTransaction if transaction.writes.len() > 1 => {
                let rest = transaction.writes.split_off(transaction.writes.len() / 2);
                self.inner.commit(transaction).await?;
                let mut second = Transaction::new();
                second.writes = rest;
                return self.inner.commit(second).await;
            }
            Bug::DroppedCommitTorn if transaction.writes.len() > 2 => {
                let rest = transaction.writes.split_off(1);
                self.inner.commit(transaction).await?;
                tokio::task::yield_now().await;
                let mut second = Transaction::new();
                second.writes = rest;
                return self.inner.commit(second).await;
            }
            Bug::LeaseAba => self.weaken_claims(&mut transaction).await?,
            Bug::ConflictIgnored => transaction.compares.clear(),
            Bug::PutKeepsOldLease => self.keep_leases(&mut transaction).await?,
            Bug::RangeCompareForgotten => transaction
                .compares
                .retain(|compare| !matches!(compare, Compare::RangeNotNewer(..))),
            Bug::DeadLeaseTaken => {
                for write in &mut transaction.writes {
                    if let Write::Put { lease, .. } = write
                        && let Some(id) = lease
                        && self.inner.keep_alive(*id).await.is_err()
                    {
                        *lease = None;
                    }
                }
            }
            Bug::LeaseForgotten => {
                for write in &mut transaction.writes {
                    if let Write::Put { lease, .. } = write {
                        *lease = None;
                    }
                }
            }
            Bug::LastWriteWins => {
                let mut last = HashMap::new();
                for (at, write) in transaction.writes.iter().enumerate() {
                    last.insert(write.key().clone(), at);
                }
                let mut at = 0..;
                transaction
                    .writes
                    .retain(|write| at.next() == last.get(write.key()).copied());
            }
            Bug::IdenticalPutSkipped => {
                let mut changed = Vec::new();
                for write in std::mem::take(&mut transaction.writes) {
                    let same = match &write {
                        Write::Put { key, value, lease } => self
                            .record(key)
                            .await?
                            .is_some_and(|record| record.value == value && record.lease == *lease),
                        Write::Delete { .. } => false,
                    };
                    if !same {
                        changed.push(write);
                    }
                }
                transaction.writes = changed;
            }
            Bug::CompareBeforeLock => {
                let mut judged = Transaction::new();
                judged.compares = std::mem::take(&mut transaction.compares);
                self.inner.commit(judged).await?;
                tokio::task::yield_now().await;
            }
            _ => {}
        }
        if self.is(Bug::ByteTooFew) {
            let limits = self.inner.capabilities().limits;
            for write in &transaction.writes {
                if let Write::Put { value, .. } = write
                    && value.len() == limits.max_value_bytes
                {
                    return Err(StoreError::TooLarge {
                        what: "value".to_owned(),
                        size: value.len() + 1,
                        limit: limits.max_value_bytes,
                    });
                }
            }
        }
        if matches!(self.bug, Bug::StaleGet | Bug::CreationKept) {
            for key in transaction.writes.iter().map(Write::key) {
                let before = self.record(key).await?;
                let mut known = self.known();
                if let Some(record) = &before {
                    let created = known.created.entry(key.clone());
                    created.or_insert(record.created);
                }
                known.stale.insert(key.clone(), before);
            }
        }
        match self.inner.commit(transaction).await {
            Err(StoreError::Unknown { reason }) if self.is(Bug::UnknownAsUnavailable) => {
                Err(StoreError::unavailable(reason))
            }
            Err(StoreError::Conflict { .. }) if self.is(Bug::ConflictWithoutNames) => {
                Err(StoreError::Conflict { failed: vec![0] })
            }
            Ok(revision) if self.is(Bug::RevisionTwice) && self.nth_call() % 2 == 1 => {
                Ok(Revision::from_u64(revision.as_u64() - 1))
            }
            outcome => outcome,
        }
    }

    fn falsify(&self, record: Record) -> Record {
        let created = self.known().created.get(&record.key).copied();
        match created {
            Some(created) if self.is(Bug::CreationKept) => Record { created, ..record },
            _ => record,
        }
    }
}

impl Store for Broken {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(async move {
            if self.is(Bug::TornGet) && keys.len() > 1 {
                let (first, rest) = keys.split_at(1);
                let mut snapshot = self.inner.get(first).await?;
                tokio::task::yield_now().await;
                let other = self.inner.get(rest).await?;
                snapshot.records.extend(other.records);
                snapshot.revision = other.revision;
                return Ok(snapshot);
            }
            let mut snapshot = self.inner.get(keys).await?;
            let falsified = snapshot
                .records
                .into_iter()
                .map(|r| r.map(|r| self.falsify(r)));
            snapshot.records = falsified.collect();
            if self.is(Bug::StaleGet) && self.nth_call() % 3 == 2 {
                let stale = &self.known().stale;
                for (key, record) in keys.iter().zip(&mut snapshot.records) {
                    if let Some(before) = stale.get(key) {
                        record.clone_from(before);
                    }
                }
            }
            Ok(snapshot)
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let mut request = request.clone();
            let at = request.at;
            if self.is(Bug::UnpinnedPage) {
                request.at = None;
            }
            if self.is(Bug::PrefixWithoutSlash) {
                return self.list_without_slash(&request).await;
            }
            let mut repeated = None;
            if self.is(Bug::PageStartsAtAfter)
                && let Some(after) = &request.after
                && after.is_under(&request.prefix)
            {
                repeated = self.record(after).await?;
            }
            let mut page = match self.inner.list(&request).await {
                Err(StoreError::Compacted { .. }) if self.is(Bug::CompactionIgnored) => {
                    let newest = ListRequest {
                        at: None,
                        ..request
                    };
                    self.inner.list(&newest).await?
                }
                page => page?,
            };
            if let Some(record) = repeated {
                page.records.insert(0, record);
            }
            if self.is(Bug::UnpinnedPage) {
                page.revision = at.unwrap_or(page.revision);
            }
            if self.is(Bug::NeverMore) {
                page.more = false;
            }
            page.records = page
                .records
                .into_iter()
                .map(|record| self.falsify(record))
                .collect();
            Ok(page)
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(self.commit_broken(transaction))
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        match self.bug {
            Bug::AlwaysReset => {
                let reason = "it is all too much".to_owned();
                stream::iter([Ok(WatchEvent::Reset { reason })]).boxed()
            }
            Bug::FutureWatchSilent => silent_from_the_future(self.inner.watch(prefix, after)),
            Bug::ResumeSkipsOne => without_first(self.inner.watch(prefix, after), after),
            Bug::CompactionIgnored => going_on_after_reset(Arc::clone(&self.inner), prefix, after),
            Bug::PrefixWithoutSlash => {
                let text = prefix.as_str().trim_end_matches('/').to_owned();
                filtered(self.inner.watch(Prefix::all(), after), move |change| {
                    change.key().as_str().starts_with(&text)
                })
            }
            Bug::DeleteNotReported => filtered(self.inner.watch(prefix, after), |change| {
                matches!(change, Change::Put(_))
            }),
            bug => spoiled(self.inner.watch(prefix, after), bug),
        }
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            if self.is(Bug::LeaseEndsEarly) {
                let lease = self.inner.grant_lease(ttl / 4).await?;
                return Ok(Lease { ttl, ..lease });
            }
            self.inner.grant_lease(ttl).await
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.inner.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.is(Bug::LeaseEndsKeyByKey) {
                let page = self.inner.list(&ListRequest::new(Prefix::all())).await?;
                for record in page.records {
                    if record.lease == Some(lease) {
                        let delete = Transaction::new().delete(record.key);
                        self.inner.commit(delete).await?;
                    }
                }
            }
            self.inner.revoke_lease(lease).await
        })
    }
}

impl Broken {
    async fn list_without_slash(&self, request: &ListRequest) -> Result<Page> {
        let text = request.prefix.as_str().trim_end_matches('/');
        let all = ListRequest {
            prefix: Prefix::all(),
            limit: usize::MAX,
            ..request.clone()
        };
        let mut page = self.inner.list(&all).await?;
        page.records
            .retain(|record| record.key.as_str().starts_with(text));
        page.more = page.records.len() > request.limit;
        page.records.truncate(request.limit);
        Ok(page)
    }
}
