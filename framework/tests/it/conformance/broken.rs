//! Stores that each break one promise, in front of a memory store that keeps them all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
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
    TornGet,
    ResumeSkipsOne,
}

/// A memory store with a bug in front.
#[derive(Debug)]
pub(super) struct Broken {
    inner: Arc<dyn Store>,
    bug: Bug,
    /// What a stale read still shows.
    stale: Mutex<HashMap<Key, Option<Record>>>,
    calls: AtomicU64,
    /// Since when a forgotten lease was not written to.
    created: Mutex<HashMap<Key, Revision>>,
}

impl Broken {
    pub(super) fn wrap(inner: Arc<dyn Store>, bug: Bug) -> Arc<dyn Store> {
        Arc::new(Self {
            inner,
            bug,
            stale: Mutex::default(),
            calls: AtomicU64::new(0),
            created: Mutex::default(),
        })
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
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
        for key in transaction.writes.iter().map(Write::key) {
            let before = self.record(key).await?;
            if self.is(Bug::StaleGet) {
                self.stale
                    .lock()
                    .unwrap()
                    .insert(key.clone(), before.clone());
            }
            if let Some(record) = before {
                self.created
                    .lock()
                    .unwrap()
                    .entry(record.key)
                    .or_insert(record.created);
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
        let created = self.created.lock().unwrap().get(&record.key).copied();
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
                let stale = self.stale.lock().unwrap();
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
        let inner = Arc::clone(&self.inner);
        let good = |prefix, after| inner.watch(prefix, after);
        match self.bug {
            Bug::FutureWatchSilent => {
                let silent = |event: &Result<WatchEvent>| matches!(event, Ok(WatchEvent::Reset { reason }) if reason.contains("ahead"));
                let waits = good(prefix, after).take_while(move |event| {
                    let silent = silent(event);
                    async move {
                        if silent {
                            std::future::pending::<()>().await;
                        }
                        true
                    }
                });
                waits.boxed()
            }
            Bug::ResumeSkipsOne if after > Revision::ZERO => {
                skip_first_old(good(prefix, after), after).boxed()
            }
            Bug::CompactionIgnored => {
                let retry = Arc::clone(&self.inner);
                let first = good(prefix.clone(), after);
                let healed = first.flat_map(move |event| -> WatchStream {
                    match event {
                        Ok(WatchEvent::Reset { .. }) => {
                            // It goes on from what is left, as if nothing had been lost.
                            let retry = Arc::clone(&retry);
                            let prefix = prefix.clone();
                            let now = async move { retry.commit(Transaction::new()).await };
                            let again = Arc::clone(&self_inner(&inner));
                            stream::once(now)
                                .flat_map(move |now| match now {
                                    Ok(now) => again.watch(prefix.clone(), now),
                                    Err(error) => stream::iter([Err(error)]).boxed(),
                                })
                                .boxed()
                        }
                        event => stream::iter([event]).boxed(),
                    }
                });
                healed.boxed()
            }
            Bug::PrefixWithoutSlash => {
                let text = prefix.as_str().trim_end_matches('/').to_owned();
                let under = move |key: &Key| key.as_str().starts_with(&text);
                filtered(good(Prefix::all(), after), move |change| {
                    under(change.key())
                })
            }
            Bug::DeleteNotReported => filtered(good(prefix, after), |change| {
                matches!(change, Change::Put(_))
            }),
            bug => spoiled(good(prefix, after), bug),
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

fn self_inner(inner: &Arc<dyn Store>) -> Arc<dyn Store> {
    Arc::clone(inner)
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

fn filtered(
    events: WatchStream,
    keep: impl Fn(&Change) -> bool + Send + 'static,
) -> BoxStream<'static, Result<WatchEvent>> {
    events
        .map(move |event| match event {
            Ok(WatchEvent::Changes {
                revision,
                mut changes,
            }) => {
                changes.retain(&keep);
                Ok(if changes.is_empty() {
                    WatchEvent::Progress(revision)
                } else {
                    WatchEvent::Changes { revision, changes }
                })
            }
            event => event,
        })
        .boxed()
}

/// Takes the first event for an old one.
fn skip_first_old(
    events: WatchStream,
    after: Revision,
) -> impl futures::Stream<Item = Result<WatchEvent>> + Send {
    events.filter(move |event| {
        let skipped = matches!(event, Ok(WatchEvent::Changes { revision, .. })
            if *revision == after.next());
        std::future::ready(!skipped)
    })
}

/// Loses, reorders, repeats or splits events.
fn spoiled(events: WatchStream, bug: Bug) -> WatchStream {
    let state = (events, VecDeque::new(), 0_u64, None);
    stream::unfold(
        state,
        move |(mut events, mut queue, mut count, mut kept)| async move {
            loop {
                if let Some(event) = queue.pop_front() {
                    return Some((event, (events, queue, count, kept)));
                }
                let event = events.next().await?;
                let changes = matches!(event, Ok(WatchEvent::Changes { .. }));
                if bug == Bug::QuietWatchersForgotten
                    && matches!(event, Ok(WatchEvent::Progress(_)))
                {
                    continue;
                }
                if !changes {
                    queue.push_back(event);
                    continue;
                }
                count += 1;
                match bug {
                    Bug::LostEvent if count % 5 == 3 => {}
                    Bug::ReorderedEvents => match kept.take() {
                        None if count % 3 == 2 => kept = Some(event),
                        None => queue.push_back(event),
                        Some(before) => queue.extend([event, before]),
                    },
                    Bug::OldEventAgain => {
                        queue.push_back(event.clone());
                        match kept.take() {
                            None => kept = Some(event),
                            Some(before) => queue.push_back(before),
                        }
                    }
                    Bug::TornEvent => {
                        if let Ok(WatchEvent::Changes { revision, changes }) = event {
                            for change in changes {
                                let changes = vec![change];
                                queue.push_back(Ok(WatchEvent::Changes { revision, changes }));
                            }
                        }
                    }
                    _ => queue.push_back(event),
                }
            }
        },
    )
    .boxed()
}
