//! One object that is to be there: changed if it is, made if it is not.

use super::objects::{Fresh, check};
use super::{Batch, ClientError, Result};
use crate::model::{Object, ObjectKey, Resource};
use crate::store::StoreError;

type Modify<'f, K> = Box<dyn FnMut(&mut Object<K>) + Send + 'f>;

/// Changes an object or makes it: see [`Fresh::entry`].
#[must_use = "nothing happens before `save` or `or_insert` is awaited"]
pub struct Entry<'f, K: Resource> {
    objects: Fresh<K>,
    name: String,
    modify: Vec<Modify<'f, K>>,
}

impl<K: Resource> std::fmt::Debug for Entry<'_, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("kind", &K::KIND)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K: Resource> Fresh<K> {
    /// An object that is to be there. What is done with it is decided on what the store holds,
    /// and decided again when somebody else was faster.
    pub fn entry<'f>(&self, name: &str) -> Entry<'f, K> {
        Entry {
            objects: self.clone(),
            name: name.to_owned(),
            modify: Vec::new(),
        }
    }
}

impl<'f, K: Resource> Entry<'f, K> {
    /// Changes metadata or spec of the object if there is one. The function may be called several
    /// times, each time with the newest object; what it does to the status is left out.
    pub fn and_modify(mut self, modify: impl FnMut(&mut Object<K>) + Send + 'f) -> Self {
        self.modify.push(Box::new(modify));
        self
    }

    /// Changes the object, and returns it as stored.
    ///
    /// # Errors
    /// `NotFound` when there is none; `AlreadyExists` while it is being deleted; `Invalid`;
    /// `Conflict` when others keep changing it; the store's.
    pub async fn save(mut self) -> Result<Object<K>> {
        let key = self.objects.key(&self.name)?;
        let changed = self.change(&key).await?;
        changed.ok_or_else(|| ClientError::not_found(&key))
    }

    /// Changes the object, or creates the one that `make` gives, under this entry's name, and
    /// returns it as stored.
    ///
    /// # Errors
    /// As [`save`](Self::save), but for `NotFound`.
    pub async fn or_insert(
        mut self,
        mut make: impl FnMut() -> Object<K> + Send,
    ) -> Result<Object<K>> {
        let key = self.objects.key(&self.name)?;
        for _ in 0..super::ATTEMPTS {
            if let Some(object) = self.change(&key).await? {
                return Ok(object);
            }
            let mut object = make();
            object.metadata.name.clone_from(&self.name);
            object.metadata.namespace = key.namespace().map(ToOwned::to_owned);
            match self.objects.create(&object).await {
                // Somebody made it just now.
                Err(ClientError::AlreadyExists { hint: "", .. }) => {}
                done => return done,
            }
        }
        Err(ClientError::conflict(&key, "others kept changing it"))
    }

    /// None when there is no object.
    async fn change(&mut self, key: &ObjectKey) -> Result<Option<Object<K>>> {
        let client = self.objects.client.clone();
        for _ in 0..super::ATTEMPTS {
            let joined = client.joined(key).await?;
            let Some(raw) = joined.object() else {
                return Ok(None);
            };
            if raw.metadata.is_deleted() {
                return Err(ClientError::exists(&joined));
            }
            let before = super::typed::<K>(key, &raw)?;
            let mut object = before.clone();
            self.modify
                .iter_mut()
                .for_each(|modify| modify(&mut object));
            if object.spec != before.spec {
                check(&object)?;
                let mut errors = Vec::new();
                K::validate_update(&before.spec, &object.spec, &mut errors);
                if !errors.is_empty() {
                    let key = key.to_string();
                    return Err(ClientError::Invalid { key, errors });
                }
            }
            let mut batch = Batch::new();
            batch.update_typed(&joined, &object)?;
            if batch.is_empty() {
                return Ok(Some(before));
            }
            match client.commit(batch).await {
                Ok(_) => return Ok(Some(client.get(key).await?)),
                Err(ClientError::Store(StoreError::Conflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::conflict(key, "others kept changing it"))
    }
}
