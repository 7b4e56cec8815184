//! Reads: keys at one revision, and pages of a prefix at one revision in bounded memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use platctrl_framework::model::identity::anchor_key;
use platctrl_framework::store::{
    Key, LeaseId, ListRequest, Page, Prefix, Record, Result, Revision, Snapshot, StoreError,
};

use crate::call::Repeat;
use crate::commit::LIMITS;
use crate::connection::methods;
use crate::error::{About, Failure, Refusal};
use crate::link::Link;
use crate::shared::{Shared, revision};
use crate::wire;

/// Keys in one transaction.
const KEYS_AT_ONCE: usize = 128;
/// The bytes that a page should not exceed by much, whatever the records' size.
const PAGE_BYTES: usize = 4 << 20;
/// A page is never smaller than this, unless its answer could not be read.
const SMALL_PAGE: usize = 16;

/// How large records are, as far as pages have shown: pages of large records hold fewer.
#[derive(Debug)]
pub(crate) struct PageSize(AtomicUsize);

impl PageSize {
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(ListRequest::DEFAULT_LIMIT))
    }

    fn records(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn learn(&self, records: usize, bytes: usize) {
        if records < SMALL_PAGE {
            return;
        }
        let each = (bytes / records).max(1);
        let fitting = (PAGE_BYTES / each).clamp(SMALL_PAGE, ListRequest::DEFAULT_LIMIT);
        self.0.store(fitting, Ordering::Relaxed);
    }
}

/// A record that this store's readers can use.
pub(crate) fn record(shared: &Shared, kv: &wire::KeyValue) -> Option<Record> {
    let Some(key) = shared.keys.parse(&kv.key) else {
        let key = kv.key.escape_ascii();
        tracing::warn!(%key, "set aside: no key of this store; somebody else wrote it");
        return None;
    };
    Some(Record {
        key,
        // The value is a part of a large answer, which would live as long as it.
        value: Bytes::copy_from_slice(&kv.value),
        created: revision(kv.create_revision),
        modified: revision(kv.mod_revision),
        lease: lease(kv.lease),
    })
}

fn lease(number: i64) -> Option<LeaseId> {
    u64::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .map(LeaseId)
}

/// etcd's counter of the revision to read at; 0 is the newest.
fn pinned(request: &ListRequest, what: &str) -> Result<i64> {
    let Some(at) = request.at else { return Ok(0) };
    if at.epoch() > 0 {
        let reason =
            format!("{what}: revision {at} is ahead of the store: it is of another history");
        return Err(StoreError::Invalid { reason });
    }
    if at == Revision::ZERO {
        return Err(StoreError::Compacted {
            requested: at,
            oldest: Revision::new(0, 1),
        });
    }
    Ok(i64::try_from(at.counter()).unwrap_or(i64::MAX))
}

fn header_revision(header: Option<&wire::Header>) -> i64 {
    header.map_or(0, |header| header.revision)
}

impl Link {
    pub(crate) async fn get(&self, keys: &[Key]) -> Result<Snapshot> {
        if keys.len() > LIMITS.max_operations {
            let reason = format!(
                "{} keys in one get; the store takes {}: ask in several calls",
                keys.len(),
                LIMITS.max_operations
            );
            return Err(StoreError::Invalid { reason });
        }
        let about = |failure: Failure| {
            let what = match keys {
                [] => "get".to_owned(),
                [key] => format!("get {key}"),
                [key, ..] => format!("get {key} and {} more keys", keys.len() - 1),
            };
            failure.into_store_error(About {
                what,
                ..About::default()
            })
        };
        // What a pinned second part misses by a compaction in between is read again.
        for _ in 0..3 {
            match self.get_once(keys).await {
                Err(failure) if failure.is_refused_as(Refusal::Compacted) => {}
                outcome => return outcome.map_err(about),
            }
        }
        Err(StoreError::unavailable(
            "get: the history is compacted faster than it can be read",
        ))
    }

    async fn get_once(&self, keys: &[Key]) -> std::result::Result<Snapshot, Failure> {
        let mut records = Vec::with_capacity(keys.len());
        let mut at = 0;
        let anchor = [anchor_key()];
        let asked = if keys.is_empty() { &anchor[..] } else { keys };
        for some in asked.chunks(KEYS_AT_ONCE) {
            let (answers, revision) = self.get_some(some, at).await?;
            if at == 0 {
                at = revision;
            }
            for answer in answers {
                let kv = answer.kvs.into_iter().next();
                records.push(kv.and_then(|kv| record(&self.shared, &kv)));
            }
        }
        records.truncate(keys.len());
        Ok(Snapshot {
            records,
            revision: revision(at),
        })
    }

    /// A part of the keys, at a revision or, when it is 0, at the newest.
    async fn get_some(
        &self,
        keys: &[Key],
        at: i64,
    ) -> std::result::Result<(Vec<wire::RangeResponse>, i64), Failure> {
        let range = |key: &Key| wire::RangeRequest {
            key: self.shared.keys.key(key),
            revision: at,
            ..wire::RangeRequest::default()
        };
        if let [key] = keys {
            let answer = self
                .call::<_, wire::RangeResponse>(methods::RANGE, &range(key), Repeat::Freely)
                .await?;
            let revision = header_revision(answer.header.as_ref());
            return Ok((vec![answer], revision));
        }
        let request = wire::TxnRequest {
            success: keys
                .iter()
                .map(|key| wire::Request::Range(range(key)).into())
                .collect(),
            ..wire::TxnRequest::default()
        };
        let answer = self
            .call::<_, wire::TxnResponse>(methods::TXN, &request, Repeat::Freely)
            .await?;
        let revision = header_revision(answer.header.as_ref());
        Ok((answer.ranges().collect(), revision))
    }

    pub(crate) async fn list(&self, request: &ListRequest, size: &PageSize) -> Result<Page> {
        let what = format!("list {}/{}", self.shared.location.root(), request.prefix);
        if request.limit == 0 {
            return Err(StoreError::Invalid {
                reason: format!("{what}: a page of no records"),
            });
        }
        let mut at = pinned(request, &what)?;
        let mut after = request.after.as_ref().map(|key| self.shared.keys.key(key));
        let mut records = Vec::new();
        loop {
            let rest = match &after {
                None => Some(self.shared.keys.range(&request.prefix)),
                Some(key) => self.shared.keys.range_after(&request.prefix, key),
            };
            let behind_all = rest.is_none();
            let mut range = wire::RangeRequest {
                limit: 1,
                revision: at,
                ..wire::RangeRequest::default()
            };
            (range.key, range.range_end) = rest.unwrap_or_else(|| {
                // Nothing can follow; only the revision is asked for.
                range.keys_only = true;
                self.shared.keys.range(&request.prefix)
            });
            let answer = if behind_all {
                self.call::<_, wire::RangeResponse>(methods::RANGE, &range, Repeat::Freely)
                    .await
            } else {
                self.page(range, request.limit, size).await
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(failure) => return Err(self.list_error(failure, what, request, at).await),
            };
            if at == 0 {
                at = header_revision(answer.header.as_ref());
            }
            let more = answer.more && !behind_all;
            if !behind_all {
                after = answer.kvs.last().map(|kv| kv.key.clone()).or(after);
                let usable = answer.kvs.iter().filter_map(|kv| record(&self.shared, kv));
                records.extend(usable);
            }
            // A page of foreign keys alone would look like the end.
            if !records.is_empty() || !more {
                return Ok(Page {
                    records,
                    revision: revision(at),
                    more,
                });
            }
        }
    }

    /// One page; fewer records at once when their answer is too large.
    async fn page(
        &self,
        mut range: wire::RangeRequest,
        limit: usize,
        size: &PageSize,
    ) -> std::result::Result<wire::RangeResponse, Failure> {
        let mut records = limit.min(size.records());
        loop {
            range.limit = i64::try_from(records).unwrap_or(i64::MAX);
            let answer = self
                .call::<_, wire::RangeResponse>(methods::RANGE, &range, Repeat::Freely)
                .await;
            match answer {
                Err(Failure::TooLong(_)) if records > 1 => records = (records / 4).max(1),
                Ok(answer) => {
                    let bytes = answer.kvs.iter().map(|kv| kv.value.len() + kv.key.len());
                    size.learn(answer.kvs.len(), bytes.sum());
                    return Ok(answer);
                }
                outcome => return outcome,
            }
        }
    }

    async fn list_error(
        &self,
        failure: Failure,
        what: String,
        request: &ListRequest,
        at: i64,
    ) -> StoreError {
        let mut about = About {
            what,
            ..About::default()
        };
        if failure.is_refused_as(Refusal::Compacted) {
            let requested = revision(at);
            let oldest = self.oldest(&request.prefix).await;
            // Unless the server tells, it is known to be newer than what was asked for.
            let oldest = oldest.unwrap_or(at + 1).max(at + 1);
            about.history = Some((requested, revision(oldest)));
        }
        failure.into_store_error(about)
    }

    /// The newest revision of the store, read from whoever is the leader.
    pub(crate) async fn newest_of(&self, prefix: &Prefix) -> std::result::Result<i64, Failure> {
        let (key, range_end) = self.shared.keys.range(prefix);
        let request = wire::RangeRequest {
            key,
            range_end,
            limit: 1,
            keys_only: true,
            ..wire::RangeRequest::default()
        };
        let answer = self
            .call::<_, wire::RangeResponse>(methods::RANGE, &request, Repeat::Freely)
            .await?;
        Ok(header_revision(answer.header.as_ref()))
    }

    /// Whether a prefix looks as it did at a revision, and at which revision that was found:
    /// no key was put since, and there are as many.
    pub(crate) async fn is_quiet_since(
        &self,
        prefix: &Prefix,
        since: i64,
    ) -> std::result::Result<(bool, i64), Failure> {
        let (key, range_end) = self.shared.keys.range(prefix);
        let range = wire::RangeRequest {
            key,
            range_end,
            ..wire::RangeRequest::default()
        };
        let then = wire::RangeRequest {
            revision: since,
            count_only: true,
            ..range.clone()
        };
        let now = wire::RangeRequest {
            limit: 1,
            keys_only: true,
            min_mod_revision: since + 1,
            ..range
        };
        let request = wire::TxnRequest {
            success: vec![
                wire::Request::Range(then).into(),
                wire::Request::Range(now).into(),
            ],
            ..wire::TxnRequest::default()
        };
        let answer = self
            .call::<_, wire::TxnResponse>(methods::TXN, &request, Repeat::Freely)
            .await?;
        let revision = header_revision(answer.header.as_ref());
        let answers: Vec<_> = answer.ranges().collect();
        let quiet = match answers.as_slice() {
            [then, now] => now.kvs.is_empty() && then.count == now.count,
            _ => false,
        };
        Ok((quiet, revision))
    }

    /// The oldest revision that is kept, which etcd tells only to a watch that is too old.
    async fn oldest(&self, prefix: &Prefix) -> Option<i64> {
        let (key, range_end) = self.shared.keys.range(prefix);
        let create = wire::WatchCreate {
            key,
            range_end,
            start_revision: 1,
            watch_id: 1,
            fragment: true,
        };
        let ask = crate::grpc::frame(&wire::WatchRequest {
            ask: Some(wire::WatchAsk::Create(create)),
        });
        let asking = async {
            let connection = self.connection().await.ok()?;
            let token = self.shared.token(&connection).await.ok()?;
            let (questions, receiver) = tokio::sync::mpsc::unbounded_channel();
            questions.send(ask).ok()?;
            let mut answers = connection.converse::<wire::WatchResponse>(
                methods::WATCH,
                receiver,
                token.as_ref(),
            );
            loop {
                let answer = answers.next().await.ok()??;
                if answer.canceled {
                    return Some(answer.compact_revision).filter(|oldest| *oldest > 0);
                }
                if !answer.events.is_empty() {
                    return None;
                }
            }
        };
        let patience = self.shared.options.attempt_timeout;
        tokio::time::timeout(patience, asking).await.ok()?
    }
}
