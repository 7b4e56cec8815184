//! The store that proves its identity with every commit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};

use crate::model::identity::{Anchor, AnchorState, anchor_key};
use crate::store::{
    Capabilities, Change, Compare, Key, Lease, LeaseId, ListRequest, Page, Prefix, Record, Result,
    Revision, Snapshot, Store, StoreError, Transaction, WatchEvent, WatchStream,
};

/// How often a commit looks at the anchor again when only the anchor was in its way.
const ATTEMPTS: usize = 3;

/// A store whose commits happen only in the root that was opened.
///
/// Revisions carry the epoch of the root's anchor. One of an earlier epoch is another history: a
/// commit that compares it is a conflict, and a watch from it is reset. One compare of each
/// transaction is taken for the anchor, so the limits are lower by one than those of the store
/// below. What the backend needs to know of the anchor is read when it is first used, so the
/// store need not be there yet.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
///
/// use platctrl_framework::environment::Environment;
/// use platctrl_framework::model::identity;
/// use platctrl_framework::root::{self, RootedStore};
/// use platctrl_framework::store::{Key, MemoryStore, Store, Transaction};
///
/// let environment = Environment::system();
/// let plain = Arc::new(MemoryStore::new(environment.clone()));
/// identity::initialise(&*plain, &environment).await.unwrap();
///
/// let store = RootedStore::new(plain.clone());
/// let key = Key::new("o/intent/a").unwrap();
/// let before = store.commit(Transaction::new().put(key.clone(), "1")).await.unwrap();
///
/// // After a restore a person says so, and every revision from then on is newer than all before.
/// root::restored(&*plain, &environment).await.unwrap();
/// let late = Transaction::new().require_unchanged(key.clone(), Some(before)).put(key.clone(), "2");
/// assert!(store.commit(late).await.unwrap_err().is_conflict());
/// assert!(store.get(&[key]).await.unwrap().revision > before);
/// # });
/// ```
#[derive(Debug)]
pub struct RootedStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    known: Mutex<Option<Known>>,
}

/// What is known of the root.
#[derive(Clone, Debug)]
struct Known {
    anchor: Anchor,
    /// The backend's own revision of the anchor. None while the anchor is missing.
    revision: Option<Revision>,
    /// Another store answered last. Its anchor may have the same revision as this one's, so the
    /// compare alone does not tell them apart.
    other: Option<String>,
    /// The epoch that the backend itself gives its revisions: 0 unless it reads the anchor too.
    native: u16,
}

/// The root's epoch, and the one that its backend speaks of.
#[derive(Clone, Copy, Debug, Default)]
struct Epochs {
    root: u16,
    native: u16,
}

impl Epochs {
    /// The revision as the backend knows it.
    fn lower(self, revision: Revision) -> Option<Revision> {
        // Zero is before every commit of every epoch.
        if revision == Revision::ZERO {
            return Some(revision);
        }
        let same = revision.epoch() == self.root;
        same.then(|| Revision::new(self.native, revision.counter()))
    }
}

impl Known {
    fn epochs(&self) -> Epochs {
        Epochs {
            root: self.anchor.epoch,
            native: self.native,
        }
    }
}

impl RootedStore {
    /// A root of `store`, which is asked nothing yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let known = Mutex::new(None);
        Self {
            shared: Arc::new(Shared { store, known }),
        }
    }

    /// A root of `store`, unless it is one already. What a runtime works on: a client beside it
    /// that takes revisions from its view has to speak of the same epochs.
    #[must_use]
    pub fn around(store: Arc<dyn Store>) -> Arc<dyn Store> {
        if store.capabilities().rooted {
            store
        } else {
            Arc::new(Self::new(store))
        }
    }
}

/// A revision of the backend as one of the epoch.
fn lift(epoch: u16, revision: Revision) -> Revision {
    Revision::new(epoch, revision.counter())
}

fn lift_record(epoch: u16, mut record: Record) -> Record {
    record.created = lift(epoch, record.created);
    record.modified = lift(epoch, record.modified);
    record
}

fn lift_error(epoch: u16, error: StoreError) -> StoreError {
    match error {
        StoreError::Compacted { requested, oldest } => StoreError::Compacted {
            requested: lift(epoch, requested),
            oldest: lift(epoch, oldest),
        },
        other => other,
    }
}

fn lift_event(epoch: u16, event: WatchEvent) -> WatchEvent {
    match event {
        WatchEvent::Changes { revision, changes } => WatchEvent::Changes {
            revision: lift(epoch, revision),
            changes: changes
                .into_iter()
                .map(|change| match change {
                    Change::Put(record) => Change::Put(lift_record(epoch, record)),
                    Change::Delete { key, revision } => Change::Delete {
                        key,
                        revision: lift(epoch, revision),
                    },
                })
                .collect(),
        },
        WatchEvent::Progress(revision) => WatchEvent::Progress(lift(epoch, revision)),
        reset @ WatchEvent::Reset { .. } => reset,
    }
}

/// The compare as the backend understands it; None when it is of another epoch and cannot hold.
fn lower(epochs: Epochs, compare: &Compare) -> Option<Compare> {
    Some(match compare {
        Compare::Absent(key) => Compare::Absent(key.clone()),
        Compare::Revision(key, revision) => {
            Compare::Revision(key.clone(), epochs.lower(*revision)?)
        }
        Compare::RangeNotNewer(prefix, revision) => {
            Compare::RangeNotNewer(prefix.clone(), epochs.lower(*revision)?)
        }
        Compare::ClaimHeld {
            key,
            epoch: won,
            lease,
        } => Compare::ClaimHeld {
            key: key.clone(),
            epoch: epochs.lower(*won)?,
            lease: *lease,
        },
    })
}

/// Why nothing is written, where the anchor says so.
fn refusal(known: &Known) -> Option<StoreError> {
    if let Some(other) = &known.other {
        return Some(another(other, &known.anchor.store_id));
    }
    if known.revision.is_none() {
        return Some(StoreError::unavailable(format!(
            "the anchor of store {} is gone: the root was emptied, is another one, or may not be read; nothing is written until it is back",
            known.anchor.store_id
        )));
    }
    match known.anchor.state {
        AnchorState::Active => None,
        AnchorState::Sealed => Some(StoreError::unavailable(format!(
            "store {} is sealed, because it was copied elsewhere: use the copy, or `platctrl store unseal` to go on here",
            known.anchor.store_id
        ))),
    }
}

fn another(found: &str, opened: &str) -> StoreError {
    StoreError::unavailable(format!(
        "another store answers: this is {found}, what was opened is {opened}; nothing is written here"
    ))
}

impl Shared {
    fn known(&self) -> Option<Known> {
        let known = self.known.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of the anchor as it was read.
    fn note(&self, record: Option<&Record>) -> Result<Option<Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = record else {
            if let Some(known) = &mut *known {
                known.revision = None;
            }
            return Ok(known.clone());
        };
        let anchor: Anchor = serde_json::from_slice(&record.value).map_err(|error| {
            StoreError::unavailable(format!("the store's anchor is not readable: {error}"))
        })?;
        if let Some(known) = &mut *known {
            if anchor.store_id != known.anchor.store_id {
                let error = another(&anchor.store_id, &known.anchor.store_id);
                known.other = Some(anchor.store_id);
                return Err(error);
            }
            known.other = None;
            // An answer that was on its way while a newer one was noted.
            if anchor.epoch < known.anchor.epoch
                || (anchor.epoch == known.anchor.epoch
                    && known.revision.is_some_and(|at| at > record.modified))
            {
                return Ok(Some(known.clone()));
            }
        }
        *known = Some(Known {
            anchor,
            revision: Some(record.modified),
            native: record.modified.epoch(),
            other: None,
        });
        Ok(known.clone())
    }

    /// Reads the anchor. None: there never was one here.
    async fn look(&self) -> Result<Option<Known>> {
        let snapshot = self.store.get(&[anchor_key()]).await?;
        self.note(snapshot.records.first().and_then(Option::as_ref))
    }

    /// The root; read when nothing is known of it.
    async fn root(&self) -> Result<Option<Known>> {
        match self.known() {
            Some(known) => Ok(Some(known)),
            None => self.look().await,
        }
    }

    async fn epochs(&self) -> Result<Epochs> {
        Ok(self
            .root()
            .await?
            .as_ref()
            .map_or_else(Epochs::default, Known::epochs))
    }

    /// Whether the epoch is still the one that something was begun in.
    fn is_epoch(&self, epoch: u16) -> bool {
        self.known().map_or(0, |known| known.anchor.epoch) == epoch
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision> {
        let anchor = anchor_key();
        if transaction
            .writes
            .iter()
            .any(|write| write.key() == &anchor)
        {
            let reason = "the anchor of an open root is not written like a record".to_owned();
            return Err(StoreError::Invalid { reason });
        }
        let mut known = self.root().await?.ok_or_else(|| {
            StoreError::unavailable(
                "the root has no anchor: nothing was initialised here, or the credential may not read it; `platctrl store init` initialises an empty root",
            )
        })?;
        for _ in 0..ATTEMPTS {
            if let Some(refusal) = refusal(&known) {
                // It may have been put right since.
                known = self.look().await?.unwrap_or(known);
                if self::refusal(&known).is_some() {
                    return Err(refusal);
                }
            }
            let epoch = known.anchor.epoch;
            let lowered: Vec<Option<Compare>> = transaction
                .compares
                .iter()
                .map(|compare| lower(known.epochs(), compare))
                .collect();
            let impossible = positions(&lowered, Option::is_none);
            if !impossible.is_empty() {
                return Err(StoreError::Conflict { failed: impossible });
            }
            let mut compares: Vec<Compare> = lowered.into_iter().flatten().collect();
            let own = compares.len();
            compares.extend(
                known
                    .revision
                    .map(|revision| Compare::Revision(anchor.clone(), revision)),
            );
            let writes = transaction.writes.clone();
            let failed = match self.store.commit(Transaction { compares, writes }).await {
                Ok(revision) => return Ok(lift(epoch, revision)),
                Err(StoreError::Conflict { failed }) => failed,
                Err(error) => return Err(lift_error(epoch, error)),
            };
            let theirs: Vec<usize> = failed.iter().copied().filter(|at| *at < own).collect();
            if !failed.contains(&own) {
                return Err(StoreError::Conflict { failed: theirs });
            }
            let before = known.clone();
            known = self.look().await?.unwrap_or(known);
            let same = known.anchor == before.anchor && known.revision == before.revision;
            if same && !theirs.is_empty() {
                // A backend that names all compares when one fails.
                return Err(StoreError::Conflict { failed: theirs });
            }
        }
        Err(StoreError::unavailable(
            "the store's anchor keeps changing: somebody writes x/anchor again and again",
        ))
    }
}

fn positions<T>(items: &[T], is: impl Fn(&T) -> bool) -> Vec<usize> {
    let at = items.iter().enumerate().filter(|(_, item)| is(item));
    at.map(|(at, _)| at).collect()
}

fn other_epoch(of: Revision, now: u16) -> WatchEvent {
    WatchEvent::Reset {
        reason: format!(
            "the store is in epoch {now} and the watch is from epoch {}: it was restored meanwhile",
            of.epoch()
        ),
    }
}

impl Store for RootedStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.shared.store.capabilities();
        capabilities.rooted = true;
        let limits = &mut capabilities.limits;
        limits.max_compares = limits.max_compares.saturating_sub(1);
        limits.max_operations = limits.max_operations.saturating_sub(1);
        let anchor = anchor_key().as_str().len();
        limits.max_transaction_bytes = limits.max_transaction_bytes.saturating_sub(anchor);
        capabilities
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(async move {
            // A store that takes one operation has no room for the anchor; its commits say so.
            // It can still be read.
            let limit = self.capabilities().limits.max_operations.max(1);
            if keys.len() > limit {
                let count = keys.len();
                let reason = format!("{count} keys in one get; the store takes {limit}");
                return Err(StoreError::Invalid { reason });
            }
            let mut epoch = self.shared.epochs().await?.root;
            let mut snapshot = self.shared.store.get(keys).await?;
            let anchor = anchor_key();
            if let Some(at) = keys.iter().position(|key| *key == anchor) {
                // Another store's anchor is the reader's to judge; nothing is written there.
                if let Ok(Some(known)) = self.shared.note(snapshot.records[at].as_ref()) {
                    epoch = known.anchor.epoch;
                }
            }
            snapshot.revision = lift(epoch, snapshot.revision);
            for record in snapshot.records.iter_mut().flatten() {
                record.created = lift(epoch, record.created);
                record.modified = lift(epoch, record.modified);
            }
            Ok(snapshot)
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let epochs = self.shared.epochs().await?;
            let epoch = epochs.root;
            let mut native = request.clone();
            if let Some(at) = request.at {
                native.at = epochs.lower(at);
                if native.at.is_none() {
                    return Err(StoreError::Compacted {
                        requested: at,
                        oldest: Revision::new(epoch, 0),
                    });
                }
            }
            let page = self.shared.store.list(&native).await;
            let mut page = page.map_err(|error| lift_error(epoch, error))?;
            page.revision = lift(epoch, page.revision);
            for record in &mut page.records {
                record.created = lift(epoch, record.created);
                record.modified = lift(epoch, record.modified);
            }
            Ok(page)
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            self.capabilities().limits.check(&transaction)?;
            self.shared.commit(transaction).await
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        let shared = Arc::clone(&self.shared);
        let begun = async move {
            let epochs = match shared.epochs().await {
                Ok(epochs) => epochs,
                Err(error) => return stream::iter([Err(error)]).boxed(),
            };
            let epoch = epochs.root;
            let Some(native) = epochs.lower(after) else {
                return stream::iter([Ok(other_epoch(after, epoch))]).boxed();
            };
            let events = shared.store.watch(prefix, native);
            events
                .scan(false, move |ended, event| {
                    if *ended {
                        return std::future::ready(None);
                    }
                    *ended = !shared.is_epoch(epoch);
                    std::future::ready(Some(if *ended {
                        let now = shared.known().map_or(0, |known| known.anchor.epoch);
                        Ok(other_epoch(Revision::new(epoch, 0), now))
                    } else {
                        event
                            .map(|event| lift_event(epoch, event))
                            .map_err(|error| lift_error(epoch, error))
                    }))
                })
                .boxed()
        };
        stream::once(begun).flatten().boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        self.shared.store.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.shared.store.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.shared.store.revoke_lease(lease)
    }
}
