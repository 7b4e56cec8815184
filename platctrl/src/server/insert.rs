//! Putting a new object into the store, under a name that no other has.
//!
//! Of kinds whose keys have a node in them, two requests for one name on two nodes have no key in
//! common. So each creation also rewrites a record that all creations of its name share, and
//! compares that with what it was before the name was looked for: whatever servers they reach, of
//! two such requests one is decided again.

use platctrl_framework::client::{Batch, Client, ClientError};
use platctrl_framework::model::{Digest, FieldError, GroupPlural, ObjectKey, RawObject, Scope};
use platctrl_framework::store::{Key, Revision, StoreError, Transaction};

use super::read::locate;
use super::status::{Failure, Result};
use super::write::{ATTEMPTS, Writing, is_node};
use crate::access::{self, Deed};

/// The record that all creations of a name rewrite. There are 4096, each for many names.
#[derive(Debug)]
struct SharedName {
    key: Key,
    read: Option<Revision>,
    nonce: u64,
}

impl SharedName {
    /// As it is before anybody looks whether there is an object of the name.
    async fn read(
        client: &Client,
        kind: &GroupPlural,
        namespace: Option<&str>,
        name: &str,
    ) -> std::result::Result<Self, StoreError> {
        let text = format!("{kind}/{}/{name}", namespace.unwrap_or_default());
        let digest = Digest::of(text).hex();
        let key = Key::new(format!("x/name/{}", &digest[..3]));
        let key = key.map_err(|error| StoreError::Invalid {
            reason: error.to_string(),
        })?;
        let records = client
            .store()
            .get(std::slice::from_ref(&key))
            .await?
            .records;
        let read = records.into_iter().flatten().next();
        Ok(Self {
            key,
            read: read.map(|record| record.modified),
            nonce: client.environment().random_u64(),
        })
    }

    /// A creation that happens only if nobody has created anything of the name since.
    fn beside(self, creation: Transaction) -> Transaction {
        let value = format!("{:016x}", self.nonce);
        creation
            .require_unchanged(self.key.clone(), self.read)
            .put(self.key, value)
    }
}

impl Writing<'_> {
    /// Creates the object, and returns it as stored.
    pub(super) async fn insert(&self, raw: RawObject) -> Result<RawObject> {
        self.permit(None, Some(&raw)).await?;
        if is_node(self.kind()) && !self.admission {
            return Err(Failure::forbidden(
                "a node is admitted, not created: start `platctrl up` or an agent on the machine",
            ));
        }
        let group_plural = self.kind().definition.group_plural();
        if access::gives_access(&group_plural) && access::is_built_in(&raw.metadata.name) {
            let text = "is the name of a role that is there already: choose another";
            let errors = vec![FieldError::new("metadata.name", text)];
            return Err(Failure::invalid(self.title(&raw.metadata.name), errors));
        }
        let key = self.key(&raw)?;
        let mut attempts = 0..ATTEMPTS;
        loop {
            attempts.next();
            let name = self.free_name(&key).await?;
            if self.dry_run {
                break;
            }
            let shared = name.is_some();
            let beside = |created: &RawObject, transaction| {
                let deed = Deed {
                    verb: "create".to_owned(),
                    uid: created.metadata.uid.to_string(),
                    ..self.deed(&key)
                };
                let transaction = self.audit.beside(&deed, transaction);
                match name {
                    Some(name) => name.beside(transaction),
                    None => transaction,
                }
            };
            let created = self.client.create_raw_beside(&key, raw.clone(), beside);
            match created.await {
                // Of this name or of another that shares its record: the next look tells.
                Err(ClientError::AlreadyExists { .. }) if shared => {}
                created => {
                    let created = created?;
                    self.audit.tidy();
                    return Ok(created);
                }
            }
            if attempts.is_empty() {
                break;
            }
        }
        let joined = self.client.joined(&key).await?;
        if joined.intent.is_some() || joined.reality.is_some() {
            return Err(ClientError::exists(&joined).into());
        }
        if !self.dry_run {
            return Err(Failure::conflict(
                "others kept creating objects at the same moment: try again",
            ));
        }
        Ok(Batch::new().create(self.client.environment(), &key, raw)?)
    }

    /// Refuses a name that an object on another node has. None where keys have no node in them:
    /// the commit sees it.
    async fn free_name(&self, key: &ObjectKey) -> Result<Option<SharedName>> {
        if self.kind().definition.scope != Scope::Node {
            return Ok(None);
        }
        let (namespace, name) = (key.namespace(), key.name());
        let shared = SharedName::read(&self.client, key.kind(), namespace, name).await?;
        match locate(&self.client, self.kind(), namespace, name).await? {
            Some(found) => Err(ClientError::exists(&self.client.joined(&found).await?).into()),
            None => Ok(Some(shared)),
        }
    }
}
