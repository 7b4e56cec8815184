//! The store: what every backend promises, and nothing more.
//!
//! A [`Store`] keeps small values under ordered keys, commits transactions that happen whole or
//! not at all, gives every commit a [`Revision`] that only grows, and tells watchers what
//! changed. Backends differ in speed and in [`Capabilities`]; a controller cannot tell them
//! apart otherwise.
//!
//! Keys are relative to the root that the backend was opened with, so one server can hold
//! several fleets.

mod error;
mod key;
mod memory;
mod pipeline;
mod revision;
mod right;
mod transaction;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

pub use error::StoreError;
pub use key::{InvalidKey, Key, MAX_KEY_BYTES, Prefix};
pub use memory::{
    CommitFault, FaultCounts, Faults, HistoryEntry, MemoryOptions, MemorySnapshot, MemoryStore,
};
pub use pipeline::{Pipeline, PipelineCounts};
pub use revision::{ParseRevisionError, Revision};
pub use right::{Access, Policy, Right};
pub use transaction::{Compare, Transaction, Write};

/// What a call on a store ends with.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The stream that [`Store::watch`] returns.
pub type WatchStream = BoxStream<'static, Result<WatchEvent>>;

/// A backend.
///
/// The trait is implemented by boxing futures, so that it can be used as `Arc<dyn Store>`
/// without generics reaching into every signature. All methods may be called at the same time
/// from many tasks. Dropping a returned future abandons the wait, not the work: a commit whose
/// future was dropped may still happen.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What this backend can do and how much it takes at once.
    fn capabilities(&self) -> Capabilities;

    /// Reads several keys at one revision. The answer has one entry for each key asked for, in
    /// the same order.
    ///
    /// # Errors
    /// `Denied`, `Invalid` (more keys than [`Limits::max_operations`]), `Unavailable`.
    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>>;

    /// Reads one page of the keys under a prefix, in key order.
    ///
    /// # Errors
    /// `Compacted` when `request.at` is no longer kept, `Denied`, `Unavailable`.
    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>>;

    /// Applies all writes if every compare holds, else none, and returns the revision that the
    /// writes got. A transaction without writes returns the revision it was judged at.
    ///
    /// # Errors
    /// `Conflict` names the compares that failed. `Unavailable`: it did not happen. `Unknown`:
    /// it may have happened, or may still. `Denied`, `TooLarge` and `Invalid`: it did not
    /// happen and will not by repeating it. A dead lease is `LeaseNotFound`.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>>;

    /// What changes under `prefix` after revision `after`.
    ///
    /// Promised: the latest state, eventually, at least once, for each key in order. States in
    /// between may be left out. All changes of one transaction under the prefix come in one
    /// [`WatchEvent::Changes`]. After a [`WatchEvent::Reset`] or an error the stream ends: read
    /// the prefix again, compare with what was known, and watch from there.
    ///
    /// The revisions of the events of one stream never go back, and a watcher of a quiet prefix
    /// learns of newer revisions by [`WatchEvent::Progress`] in bounded time. A watch from a
    /// revision that the store has not reached is another history: it ends with a `Reset`.
    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream;

    /// Makes a lease that ends unless [kept alive](Store::keep_alive) within `ttl`. The backend
    /// may grant a longer time than asked for, never a shorter one.
    ///
    /// # Errors
    /// `Denied`, `Unavailable`, `Unknown`.
    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>>;

    /// Starts the lease's time again.
    ///
    /// # Errors
    /// `LeaseNotFound` once it has ended, which is final; `Unavailable` or `Unknown` otherwise.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>>;

    /// Ends a lease and deletes the keys that hang on it, in one revision.
    ///
    /// # Errors
    /// `LeaseNotFound`, `Denied`, `Unavailable`, `Unknown`.
    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>>;
}

/// A key, its value, and when it came and last changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The key, relative to the root.
    pub key: Key,
    /// The value as written.
    pub value: Bytes,
    /// The revision that put the key where there was none.
    pub created: Revision,
    /// The revision of the last put.
    pub modified: Revision,
    /// The lease that the key ends with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
}

/// The answer of [`Store::get`]: what some keys held at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// One entry for each key asked for.
    pub records: Vec<Option<Record>>,
    /// The store's revision at the read; never older than any commit acknowledged before it.
    pub revision: Revision,
}

/// A request for one page of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// The prefix to read.
    pub prefix: Prefix,
    /// Start after this key: the last one of the page before.
    pub after: Option<Key>,
    /// At most this many records; the backend may return fewer. Zero is an empty page or
    /// `Invalid`.
    pub limit: usize,
    /// Read as of this revision, which must be one that the store has reached and still keeps.
    /// None reads the newest state. A backend without
    /// [`Capabilities::pinned_reads`] serves the revision if it happens to have it still, as while
    /// the pages of one list are fetched, else the newest state, and says so by the page's
    /// revision.
    pub at: Option<Revision>,
}

impl ListRequest {
    /// The records per page that suits most backends: above it answers grow past message
    /// limits, below it round trips cost [measured on etcd: 2,000 beats 500 by 1.6 times].
    pub const DEFAULT_LIMIT: usize = 2_000;

    /// The first page of a prefix at the newest revision.
    #[must_use]
    pub fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            after: None,
            limit: Self::DEFAULT_LIMIT,
            at: None,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The records, in key order.
    pub records: Vec<Record>,
    /// The revision that the page was read at.
    pub revision: Revision,
    /// More keys follow the last one; false only when none does.
    pub more: bool,
}

/// Something a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// What one or several transactions changed. A key appears at most once.
    Changes {
        /// Everything under the prefix up to this revision has now been delivered.
        revision: Revision,
        /// The changes, in key order. Never empty.
        changes: Vec<Change>,
    },
    /// Nothing changed under the prefix up to this revision.
    Progress(Revision),
    /// The backend cannot tell what changed since (its history was trimmed, or it is another
    /// history). The last item of a stream.
    Reset {
        /// Why, for people.
        reason: String,
    },
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key holds this record now.
    Put(Record),
    /// The key is gone.
    Delete {
        /// The key.
        key: Key,
        /// The revision that deleted it.
        revision: Revision,
    },
}

impl Change {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(record) => &record.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(record) => record.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Names a lease of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

/// A granted lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// How long it lasts without being kept alive.
    pub ttl: Duration,
}

/// What a backend can do beyond the common promise, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The limits of one call.
    pub limits: Limits,
    /// Lists can be read at an older revision, so that all pages show one state.
    pub pinned_reads: bool,
    /// [`Compare::RangeNotNewer`] is understood; elsewhere it is `Invalid`.
    pub range_compare: bool,
    /// [`Compare::RangeNotNewer`] is understood at least of a group of keys: those that have
    /// their first five segments in common, as `o/intent/platctrl.dev/pods/n1/`. Where
    /// [`range_compare`](Self::range_compare) is not, a delete in the group may count as a write.
    pub group_compare: bool,
    /// Watches deliver every transaction, in order, at its own revision.
    pub exact_watch: bool,
    /// Commits survive the loss of power once acknowledged.
    pub durable: bool,
    /// Each transaction costs a round of its own (of consensus, of a lock), so that independent
    /// commits are cheaper in one transaction than in several: see [`Pipeline`]. Such a backend's
    /// limits count what it adds to a transaction itself.
    pub sharing_helps: bool,
    /// Commits that were in flight at the same time may have one revision in common.
    pub shared_revisions: bool,
    /// Each commit compares the root's anchor: see [`RootedStore`](crate::root::RootedStore).
    pub rooted: bool,
}

impl Capabilities {
    /// Capabilities with the given limits and nothing beyond the common promise.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pinned_reads: false,
            range_compare: false,
            group_compare: false,
            exact_watch: false,
            durable: false,
            sharing_helps: false,
            shared_revisions: false,
            rooted: false,
        }
    }
}

/// How much one call may carry. Exceeding one is [`StoreError::TooLarge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Writes in a transaction.
    pub max_writes: usize,
    /// Compares in a transaction.
    pub max_compares: usize,
    /// Compares and writes together; also keys in a [`Store::get`].
    pub max_operations: usize,
    /// Bytes of all keys and values in a transaction.
    pub max_transaction_bytes: usize,
    /// Bytes of one value.
    pub max_value_bytes: usize,
}

impl Limits {
    /// Checks a transaction against these limits and for what no backend takes.
    ///
    /// # Errors
    /// `TooLarge` names the limit; `Invalid` when a key is written twice.
    pub fn check(&self, transaction: &Transaction) -> Result<()> {
        let too_large = |what: &str, size: usize, limit: usize| {
            if size > limit {
                return Err(StoreError::TooLarge {
                    what: what.to_owned(),
                    size,
                    limit,
                });
            }
            Ok(())
        };
        let (compares, writes) = (transaction.compares.len(), transaction.writes.len());
        too_large("writes in a transaction", writes, self.max_writes)?;
        too_large("compares in a transaction", compares, self.max_compares)?;
        too_large(
            "operations in a transaction",
            compares + writes,
            self.max_operations,
        )?;
        let mut seen = std::collections::HashSet::with_capacity(writes);
        for write in &transaction.writes {
            if let Write::Put { key, value, .. } = write
                && value.len() > self.max_value_bytes
            {
                let what = format!("value of {key} in bytes");
                return too_large(&what, value.len(), self.max_value_bytes);
            }
            if !seen.insert(write.key()) {
                let reason = format!("{} is written twice in one transaction", write.key());
                return Err(StoreError::Invalid { reason });
            }
        }
        let bytes = Self::bytes_of(transaction);
        too_large("transaction in bytes", bytes, self.max_transaction_bytes)
    }

    /// The bytes of all keys and values of a transaction.
    #[must_use]
    pub fn bytes_of(transaction: &Transaction) -> usize {
        let write = |write: &Write| match write {
            Write::Put { key, value, .. } => key.as_str().len() + value.len(),
            Write::Delete { key } => key.as_str().len(),
        };
        let writes = transaction.writes.iter().map(write);
        let compares = transaction.compares.iter().map(Compare::key_bytes);
        writes.chain(compares).sum()
    }
}
