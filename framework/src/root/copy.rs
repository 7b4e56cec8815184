//! Copies a root into another store, of any backend.
//!
//! The source is sealed first, so that it stands still. The target has no anchor until the copy
//! is whole and compared, so nobody takes half of it for a fleet. What is there already is not
//! written again: a copy that was interrupted goes on where it was.

use std::cmp::Ordering;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::change::{encode, seal};
use crate::model::Digest;
use crate::model::identity::{Anchor, AnchorState, IdentityError, anchor_key, open};
use crate::store::{Key, ListRequest, Prefix, Record, Store, StoreError, Transaction, Write};

/// Passes over source and target before giving up on a source that somebody writes in spite of
/// its seal.
const PASSES: usize = 3;
/// Writes of one transaction of the copy, where the target takes so many.
const WRITES: usize = 64;

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyProgress {
    /// Keys to copy in all.
    pub total: u64,
    /// Keys looked at in this pass.
    pub done: u64,
    /// Keys that had to be written, in all passes.
    pub written: u64,
    /// Bytes of their values.
    pub written_bytes: u64,
}

/// What a copy did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyReport {
    /// The anchor of the target: the same store, one epoch later.
    pub anchor: Anchor,
    /// Keys that source and target have in common.
    pub keys: u64,
    /// Keys that had to be written.
    pub written: u64,
    /// The digest of all keys and values, which is that of the source and that of the target.
    pub digest: Digest,
}

/// Why a root was not copied. The source stays sealed once the copy has begun: do it again, or
/// [`unseal`](super::unseal) it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The source cannot be used.
    #[error("the source: {0}")]
    Source(IdentityError),
    /// The target holds something that is no unfinished copy of this source.
    #[error(
        "the target is not empty (it holds `{key}`) and is no unfinished copy of this source: choose an empty root"
    )]
    NotEmpty {
        /// A key that is there.
        key: Key,
    },
    /// A record is larger than what the target takes.
    #[error("the target does not take {key}: {source}")]
    TooLarge {
        /// The record's key.
        key: Key,
        /// Why.
        source: StoreError,
    },
    /// The target failed.
    #[error("the target: {0}")]
    Target(StoreError),
    /// Both differ after several passes.
    #[error(
        "source ({from}) and target ({to}) still differ after {PASSES} passes: somebody writes to one of them; stop every process that uses either and copy again"
    )]
    Differs {
        /// The digest of the source.
        from: Digest,
        /// The digest of the target.
        to: Digest,
    },
}

fn source(error: impl Into<IdentityError>) -> CopyError {
    CopyError::Source(error.into())
}

/// The note in an unfinished target about where it comes from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unfinished {
    store_id: String,
    epoch: u16,
}

fn unfinished_key() -> Key {
    Key::new("x/copy").expect("a constant that is a valid key")
}

/// Whether a record belongs to the copy. Left out are what the copy itself writes, what ends with
/// a lease of the source, and the generation tree that a backend keeps for itself.
fn is_copied(record: &Record) -> bool {
    let key = record.key.as_str();
    record.lease.is_none()
        && !["x/anchor", "x/copy"].contains(&key)
        && !["x/gen/", "x/gen1/", "x/lease/"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

/// Copies the root `from` into the empty root `to` and makes the copy ready for use: the same
/// store id, one epoch later. `from` is sealed and stays so.
///
/// Both are the backends themselves, not a [`RootedStore`](super::RootedStore) of them.
///
/// # Errors
/// [`CopyError`]; doing it again goes on where it stopped.
pub async fn copy(
    from: &dyn Store,
    to: &dyn Store,
    mut progress: impl FnMut(CopyProgress),
) -> Result<CopyReport, CopyError> {
    let (anchor, _) = open(from).await.map_err(source)?;
    let unfinished = Unfinished {
        store_id: anchor.store_id.clone(),
        epoch: anchor.epoch,
    };
    begin(to, &unfinished).await?;
    let anchor = seal(from).await.map_err(CopyError::Source)?;
    let mut state = CopyProgress {
        total: digest(from).await.map_err(source)?.1,
        ..CopyProgress::default()
    };
    let mut passes = 0;
    loop {
        passes += 1;
        state.done = 0;
        pass(from, to, &mut state, &mut progress).await?;
        let (of_source, keys) = digest(from).await.map_err(source)?;
        let (of_target, _) = digest(to).await.map_err(CopyError::Target)?;
        if of_source == of_target {
            let anchor = finish(to, anchor).await?;
            return Ok(CopyReport {
                anchor,
                keys,
                written: state.written,
                digest: of_source,
            });
        }
        if passes == PASSES {
            let (from, to) = (of_source, of_target);
            return Err(CopyError::Differs { from, to });
        }
    }
}

/// Marks an empty target as this copy's, or finds the mark there.
async fn begin(to: &dyn Store, unfinished: &Unfinished) -> Result<(), CopyError> {
    let mark = unfinished_key();
    loop {
        let found = to.get(std::slice::from_ref(&mark)).await;
        let found = found.map_err(CopyError::Target)?.records;
        if let Some(record) = found.into_iter().next().flatten() {
            let same = serde_json::from_slice::<Unfinished>(&record.value);
            return if same.is_ok_and(|same| same == *unfinished) {
                Ok(())
            } else {
                Err(CopyError::NotEmpty { key: mark })
            };
        }
        let mut anything = ListRequest::new(Prefix::all());
        anything.limit = 1;
        let page = to.list(&anything).await.map_err(CopyError::Target)?;
        if let Some(record) = page.records.into_iter().next() {
            return Err(CopyError::NotEmpty { key: record.key });
        }
        let transaction = Transaction::new()
            .require_absent(mark.clone())
            .put(mark.clone(), encode(unfinished));
        match to.commit(transaction).await {
            Ok(_) => return Ok(()),
            // Somebody was faster: look who.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(CopyError::Target(error)),
        }
    }
}

async fn finish(to: &dyn Store, mut anchor: Anchor) -> Result<Anchor, CopyError> {
    anchor.epoch = anchor.epoch.saturating_add(1);
    anchor.state = AnchorState::Active;
    let transaction = Transaction::new()
        .require_absent(anchor_key())
        .put(anchor_key(), encode(&anchor))
        .delete(unfinished_key());
    to.commit(transaction).await.map_err(CopyError::Target)?;
    Ok(anchor)
}

/// Makes the target like the source, key by key.
async fn pass(
    from: &dyn Store,
    to: &dyn Store,
    state: &mut CopyProgress,
    progress: &mut impl FnMut(CopyProgress),
) -> Result<(), CopyError> {
    let (mut wanted, mut there) = (Walk::new(from), Walk::new(to));
    let mut writes = Writes::new(to);
    loop {
        let next = wanted
            .peek()
            .await
            .map_err(source)?
            .map(|it| it.key.clone());
        let had = there.peek().await.map_err(CopyError::Target)?;
        let order = match (&next, had.map(|it| &it.key)) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(next), Some(had)) => next.cmp(had),
        };
        let wanted = if order.is_le() { wanted.take() } else { None };
        let there = if order.is_ge() { there.take() } else { None };
        match (wanted, there) {
            (Some(wanted), Some(there)) if wanted.value == there.value => state.done += 1,
            (Some(wanted), _) => {
                state.done += 1;
                state.written += 1;
                state.written_bytes += wanted.value.len() as u64;
                writes.put(wanted).await?;
                progress(*state);
            }
            (None, Some(there)) => writes.delete(there.key).await?,
            (None, None) => {}
        }
        if state.done.is_multiple_of(1_000) {
            progress(*state);
        }
    }
    writes.flush().await?;
    progress(*state);
    Ok(())
}

/// The digest of all that is copied, and its number of keys.
async fn digest(store: &dyn Store) -> Result<(Digest, u64), StoreError> {
    let mut walk = Walk::new(store);
    let mut hash = Sha256::new();
    let mut keys = 0;
    while walk.peek().await?.is_some() {
        let Some(record) = walk.take() else { break };
        for part in [record.key.as_str().as_bytes(), &record.value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        keys += 1;
    }
    Ok((Digest::from_bytes(hash.finalize().into()), keys))
}

/// Reads what is copied in the order of keys, at one revision where the backend can.
struct Walk<'s> {
    store: &'s dyn Store,
    request: Option<ListRequest>,
    page: VecDeque<Record>,
}

impl<'s> Walk<'s> {
    fn new(store: &'s dyn Store) -> Self {
        Self {
            store,
            request: Some(ListRequest::new(Prefix::all())),
            page: VecDeque::new(),
        }
    }

    async fn peek(&mut self) -> Result<Option<&Record>, StoreError> {
        let pinned = self.store.capabilities().pinned_reads;
        while self.page.is_empty() {
            let Some(request) = &mut self.request else {
                return Ok(None);
            };
            let page = match self.store.list(request).await {
                Ok(page) => page,
                // It takes longer than the backend keeps history: the sealed source stands still.
                Err(StoreError::Compacted { .. }) if request.at.is_some() => {
                    request.at = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if pinned && request.after.is_none() {
                request.at = Some(page.revision);
            }
            let last = page.records.last().map(|record| record.key.clone());
            match last.filter(|_| page.more) {
                Some(last) => request.after = Some(last),
                None => self.request = None,
            }
            self.page.extend(page.records.into_iter().filter(is_copied));
        }
        Ok(self.page.front())
    }

    fn take(&mut self) -> Option<Record> {
        self.page.pop_front()
    }
}

/// Collects writes into transactions that the target takes.
struct Writes<'s> {
    store: &'s dyn Store,
    transaction: Transaction,
    bytes: usize,
}

impl<'s> Writes<'s> {
    fn new(store: &'s dyn Store) -> Self {
        Self {
            store,
            transaction: Transaction::new(),
            bytes: 0,
        }
    }

    async fn put(&mut self, record: Record) -> Result<(), CopyError> {
        let (size, limit) = (
            record.value.len(),
            self.store.capabilities().limits.max_value_bytes,
        );
        if size > limit {
            let what = "its value in bytes".to_owned();
            return Err(CopyError::TooLarge {
                key: record.key,
                source: StoreError::TooLarge { what, size, limit },
            });
        }
        let bytes = record.key.as_str().len() + size;
        self.add(
            Write::Put {
                key: record.key,
                value: record.value,
                lease: None,
            },
            bytes,
        )
        .await
    }

    async fn delete(&mut self, key: Key) -> Result<(), CopyError> {
        let bytes = key.as_str().len();
        self.add(Write::Delete { key }, bytes).await
    }

    async fn add(&mut self, write: Write, bytes: usize) -> Result<(), CopyError> {
        let limits = self.store.capabilities().limits;
        let full = self.transaction.writes.len() >= limits.max_writes.min(WRITES)
            || self.bytes + bytes > limits.max_transaction_bytes / 2;
        if full {
            self.flush().await?;
        }
        self.transaction.writes.push(write);
        self.bytes += bytes;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), CopyError> {
        self.bytes = 0;
        let transaction = std::mem::take(&mut self.transaction);
        if transaction.writes.is_empty() {
            return Ok(());
        }
        let committed = self.store.commit(transaction).await;
        committed.map(|_| ()).map_err(CopyError::Target)
    }
}
