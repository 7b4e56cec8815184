//! Reading and writing objects, with the rules that keep them safe.
//!
//! A [`Client`] works without any controller: it reads and writes the store directly. Programs
//! that know a kind's types use [`Client::fresh`], which asks the store, or [`Client::cached`],
//! which asks a mirror; those that serve kinds they do not know use the client's own methods and
//! [`RawObject`]. The rules are in [`Batch`], which turns intentions about objects (create, update, report, delete,
//! remove) into one store transaction with the compares that make it safe; controllers use it
//! for commits over several objects.

mod apply;
mod batch;
mod entry;
mod error;
mod objects;
mod part;
mod patch;
mod read;
mod register;
mod transaction;
mod watch;

use std::sync::Arc;

pub use apply::{LAST_APPLIED, applied, first_applied, three_way_merge};
pub use batch::{Batch, DeleteOptions, Outcome};
pub use entry::Entry;
pub use error::{ClientError, Result};
pub use objects::{Cached, Fresh, ObjectList};
pub use patch::{Patch, PatchError, merge};
pub use read::List;
pub use register::{RegisterError, Registered, incompatibilities, register_kind, registered_kinds};
pub use transaction::ObjectTransaction;
pub use watch::{ObjectEvent, ObjectStream};

use crate::environment::Environment;
use crate::model::{Joined, KindChecks, Object, ObjectKey, RawObject, Resource};
use crate::store::{Revision, Store, StoreError, Transaction};

/// How often a change that met one by somebody else begins again.
const ATTEMPTS: usize = 5;

/// Reads and writes objects of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    store: Arc<dyn Store>,
    environment: Environment,
    actor: Arc<str>,
}

impl Client {
    /// A client that acts as `actor`, which tombstones name.
    pub fn new(
        store: Arc<dyn Store>,
        environment: Environment,
        actor: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            store,
            environment,
            actor: actor.into(),
        }
    }

    /// The store underneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The clock and randomness in use.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Who acts, for tombstones.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// Commits what a batch holds. A batch without writes commits nothing.
    ///
    /// # Errors
    /// The store's; see [`Store::commit`].
    pub async fn commit(&self, batch: Batch) -> Result<Option<Revision>> {
        if batch.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.store.commit(batch.into_transaction()).await?))
    }

    /// Creates an object and returns it as stored.
    ///
    /// # Errors
    /// `AlreadyExists` (also while the object of that name is being deleted), `Invalid`, the
    /// store's.
    pub async fn create_raw(&self, key: &ObjectKey, object: RawObject) -> Result<RawObject> {
        self.create_raw_beside(key, object, |_, transaction| transaction)
            .await
    }

    /// As [`Client::create_raw`], with what the caller adds to the transaction.
    ///
    /// # Errors
    /// See [`Client::create_raw`].
    pub async fn create_raw_beside(
        &self,
        key: &ObjectKey,
        object: RawObject,
        beside: impl FnOnce(&RawObject, Transaction) -> Transaction,
    ) -> Result<RawObject> {
        let mut batch = Batch::new();
        let created = batch.create(&self.environment, key, object)?;
        let transaction = beside(&created, batch.into_transaction());
        let committed = self.store.commit(transaction).await;
        match committed.map_err(ClientError::from) {
            Ok(_) => {}
            Err(ClientError::Store(StoreError::Conflict { .. })) => {
                let existing = self.joined(key).await?;
                return Err(ClientError::exists(&existing));
            }
            Err(ClientError::Store(unknown @ StoreError::Unknown { .. })) => {
                // The uid is ours alone: if it is there, so is our commit.
                let is_ours = |joined: &Joined| {
                    joined
                        .intent
                        .as_ref()
                        .is_some_and(|i| i.value.metadata.uid == created.metadata.uid)
                };
                if !self.joined(key).await.is_ok_and(|joined| is_ours(&joined)) {
                    return Err(unknown.into());
                }
            }
            Err(error) => return Err(error),
        }
        self.joined(key)
            .await?
            .object()
            .ok_or_else(|| ClientError::not_found(key))
    }

    /// Replaces metadata and spec of an object. The object's `resourceVersion`, when given, must
    /// not be older than the intent; `kind` adds the kind's own checks of the change.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, the store's.
    pub async fn update_raw(
        &self,
        key: &ObjectKey,
        object: RawObject,
        kind: Option<&KindChecks>,
    ) -> Result<(RawObject, Outcome)> {
        let joined = self.joined(key).await?;
        let mut batch = Batch::new();
        let outcome = batch.update(&joined, object, kind)?;
        self.commit_read(batch, key).await?;
        let object = self
            .joined(key)
            .await?
            .object()
            .ok_or_else(|| ClientError::not_found(key))?;
        Ok((object, outcome))
    }

    /// Asks for an object's end: see [`Batch::delete`].
    ///
    /// # Errors
    /// `NotFound`, `Conflict` (another uid than `options` asks for, or a change meanwhile), the
    /// store's.
    pub async fn delete(&self, key: &ObjectKey, options: &DeleteOptions) -> Result<RawObject> {
        let joined = self.joined(key).await?;
        let before = joined.object().ok_or_else(|| ClientError::not_found(key))?;
        let mut batch = Batch::for_store(&self.store.capabilities());
        batch.delete(&joined, options, &self.actor, self.environment.now())?;
        self.commit_read(batch, key).await?;
        Ok(self.joined(key).await?.object().unwrap_or(before))
    }

    /// Replaces an object's status. The object's `resourceVersion`, when given, must not be
    /// older than the reality.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, the store's.
    pub async fn update_status_raw(
        &self,
        key: &ObjectKey,
        object: &RawObject,
    ) -> Result<RawObject> {
        let joined = self.joined(key).await?;
        objects::check_seen(&joined, &object.metadata)?;
        let mut batch = Batch::new();
        batch.report(&joined, object.status.clone())?;
        self.commit_read(batch, key).await?;
        self.joined(key)
            .await?
            .object()
            .ok_or_else(|| ClientError::not_found(key))
    }

    /// Creates an object and returns it as stored.
    ///
    /// # Errors
    /// See [`Client::create_raw`].
    pub async fn create<K: Resource>(&self, object: &Object<K>) -> Result<Object<K>> {
        let key = object.key()?;
        typed(&key, &self.create_raw(&key, object.to_raw()?).await?)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// `NotFound`, `Unreadable`, the store's.
    pub async fn get<K: Resource>(&self, key: &ObjectKey) -> Result<Object<K>> {
        let object = self
            .joined(key)
            .await?
            .object()
            .ok_or_else(|| ClientError::not_found(key))?;
        typed(key, &object)
    }

    /// Replaces metadata and spec of an object. What its types do not know stays as stored.
    ///
    /// # Errors
    /// See [`Client::update_raw`].
    pub async fn update<K: Resource>(&self, object: &Object<K>) -> Result<Object<K>> {
        let key = object.key()?;
        let joined = self.joined(&key).await?;
        let mut batch = Batch::new();
        batch.update_typed(&joined, object)?;
        self.commit_read(batch, &key).await?;
        self.get(&key).await
    }

    /// Replaces an object's status. What its types do not know stays as stored. With the object's
    /// `resourceVersion` the status, with its uid the object must be what it was.
    ///
    /// # Errors
    /// See [`Client::update_status_raw`].
    pub async fn update_status<K: Resource>(&self, object: &Object<K>) -> Result<Object<K>> {
        let key = object.key()?;
        let joined = self.joined(&key).await?;
        objects::check_seen(&joined, &object.metadata)?;
        let mut batch = Batch::new();
        batch.report_typed::<K>(&joined, &object.status)?;
        self.commit_read(batch, &key).await?;
        self.get(&key).await
    }

    /// Commits a batch about the object at `key` that was just read: a failed compare is a
    /// conflict on that object.
    async fn commit_read(&self, batch: Batch, key: &ObjectKey) -> Result<()> {
        match self.commit(batch).await {
            Ok(_) => Ok(()),
            Err(ClientError::Store(StoreError::Conflict { .. })) => Err(ClientError::conflict(
                key,
                "it has changed since it was read",
            )),
            Err(error) => Err(error),
        }
    }
}

fn typed<K: Resource>(key: &ObjectKey, object: &RawObject) -> Result<Object<K>> {
    object
        .typed()
        .map_err(|error| ClientError::unreadable(key, &error))
}
