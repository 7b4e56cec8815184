//! Several objects, of any kinds, read and changed as one.

use std::collections::BTreeMap;

use super::{Batch, Client, ClientError, DeleteOptions, Outcome, Result};
use crate::model::{Joined, Object, ObjectKey, Resource, Tree};
use crate::store::{Compare, Revision, StoreError};

/// Changes of several objects that happen together, on exactly what was read, or not at all.
///
/// Reads show what the store holds, never what this transaction is going to write, and everything
/// that was read is compared when it commits. An object may be changed once.
///
/// ```
/// # use std::sync::Arc;
/// # use platctrl_framework::{environment::Environment, store::MemoryStore, model::{Metadata, Object, Resource}};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # /// A box.
/// # #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// # #[resource(group = "example.dev", version = "v1", kind = "Box")]
/// # pub struct BoxSpec { coins: u32 }
/// use platctrl_framework::client::{Client, ClientError};
///
/// /// Moves a coin, however many others do at the same time.
/// async fn pay(client: &Client) -> Result<(), ClientError> {
///     let boxes = client.fresh::<Box>();
///     loop {
///         let mut transaction = client.transaction();
///         let mut from = transaction.get::<Box>(&boxes.key("a")?).await?;
///         let mut to = transaction.get::<Box>(&boxes.key("b")?).await?;
///         from.spec.coins -= 1;
///         to.spec.coins += 1;
///         transaction.update(&from).await?;
///         transaction.update(&to).await?;
///         match transaction.commit().await {
///             Err(error) if error.is_conflict() => continue,
///             done => return done.map(drop),
///         }
///     }
/// }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let environment = Environment::system();
/// # let client = Client::new(Arc::new(MemoryStore::new(environment.clone())), environment, "docs");
/// # for name in ["a", "b"] {
/// #     client.fresh::<Box>().create(&Object::new(Metadata::named(name), BoxSpec { coins: 5 })).await.unwrap();
/// # }
/// # pay(&client).await.unwrap();
/// # assert_eq!(client.fresh::<Box>().get("b").await.unwrap().spec.coins, 6);
/// # });
/// ```
#[derive(Debug)]
#[must_use = "nothing is written before `commit`"]
pub struct ObjectTransaction<'c> {
    client: &'c Client,
    batch: Batch,
    read: BTreeMap<ObjectKey, Joined>,
}

impl Client {
    /// Begins a transaction over objects.
    pub fn transaction(&self) -> ObjectTransaction<'_> {
        ObjectTransaction {
            client: self,
            batch: Batch::new(),
            read: BTreeMap::new(),
        }
    }
}

impl ObjectTransaction<'_> {
    /// All records of an object, read once in a transaction.
    async fn joined(&mut self, key: &ObjectKey) -> Result<&Joined> {
        if !self.read.contains_key(key) {
            let joined = self.client.joined(key).await?;
            self.read.insert(key.clone(), joined);
        }
        self.read
            .get(key)
            .ok_or_else(|| ClientError::not_found(key))
    }

    /// Reads an object. When the transaction commits, neither its intent nor its reality has
    /// changed since.
    ///
    /// # Errors
    /// `NotFound` (it must still be missing then), `Unreadable`, the store's.
    pub async fn get<K: Resource>(&mut self, key: &ObjectKey) -> Result<Object<K>> {
        let joined = self.joined(key).await?.clone();
        self.batch.require_read(&joined);
        let raw = joined.object();
        super::typed(key, &raw.ok_or_else(|| ClientError::not_found(key))?)
    }

    /// Creates an object, and returns it with its uid.
    ///
    /// # Errors
    /// See [`Batch::create_typed`].
    pub fn create<K: Resource>(&mut self, object: &Object<K>) -> Result<Object<K>> {
        super::objects::check(object)?;
        self.batch.create_typed(&self.client.environment, object)
    }

    /// Replaces labels, annotations, owners and spec of an object.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, the store's.
    pub async fn update<K: Resource>(&mut self, object: &Object<K>) -> Result<Outcome> {
        super::objects::check(object)?;
        let joined = self.joined(&object.key()?).await?.clone();
        self.batch.update_typed(&joined, object)
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, the store's.
    pub async fn update_status<K: Resource>(&mut self, object: &Object<K>) -> Result<Outcome> {
        let joined = self.joined(&object.key()?).await?.clone();
        super::objects::check_seen(&joined, &object.metadata)?;
        self.batch.report_typed::<K>(&joined, &object.status)
    }

    /// Asks for an object's end.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, the store's.
    pub async fn delete(&mut self, key: &ObjectKey, options: &DeleteOptions) -> Result<Outcome> {
        let joined = self.joined(key).await?.clone();
        let now = self.client.environment.now();
        self.batch.delete(&joined, options, &self.client.actor, now)
    }

    /// Only if this holds.
    pub fn require(&mut self, compare: Compare) {
        self.batch.require(compare);
    }

    /// Writes everything, if all that was read is as it was. None when there is nothing to write.
    ///
    /// # Errors
    /// `Conflict` names an object that has changed: begin again. `Store` with `Unknown`: it may
    /// have happened. The store's others: it did not.
    pub async fn commit(self) -> Result<Option<Revision>> {
        let compares = self.batch.transaction().compares.clone();
        match self.client.commit(self.batch).await {
            Err(ClientError::Store(StoreError::Conflict { failed })) => {
                let changed = |key: &&ObjectKey| {
                    let records = [Tree::Intent, Tree::Reality].map(|tree| key.store_key(tree));
                    failed.iter().any(|at| match compares.get(*at) {
                        Some(Compare::Absent(key) | Compare::Revision(key, _)) => {
                            records.contains(key)
                        }
                        _ => false,
                    })
                };
                Err(match self.read.keys().find(changed) {
                    Some(key) => ClientError::conflict(key, "it has changed since it was read"),
                    None => StoreError::Conflict { failed }.into(),
                })
            }
            outcome => outcome,
        }
    }
}
