//! Objects that are new.

use serde::Serialize;
use serde_json::Map;

use super::{Batch, Result};
use crate::environment::Environment;
use crate::model::{Intent, Metadata, Object, ObjectKey, RawObject, Resource, Status, Tree};
use crate::store::Compare;

/// An intent that was never stored: it has nothing that its types do not know.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct First<'f, S> {
    api_version: &'f str,
    kind: &'f str,
    metadata: &'f Metadata,
    spec: &'f S,
}

/// The metadata of an object that is created now.
fn first_metadata(environment: &Environment, key: &ObjectKey, given: Metadata) -> Metadata {
    Metadata {
        name: key.name().to_owned(),
        namespace: key.namespace().map(ToOwned::to_owned),
        uid: environment.uid(),
        resource_version: None,
        generation: 1,
        creation_timestamp: Some(environment.now()),
        deletion: None,
        ..given
    }
}

impl Batch {
    /// Creates an object. It gets a uid, its first generation and a creation time; a status it
    /// may have is left out. Nothing of its name may exist, neither intent nor reality.
    ///
    /// # Errors
    /// `Invalid` when it is too large.
    pub fn create(
        &mut self,
        environment: &Environment,
        key: &ObjectKey,
        object: RawObject,
    ) -> Result<RawObject> {
        let intent = Intent {
            api_version: object.api_version,
            kind: object.kind,
            metadata: first_metadata(environment, key, object.metadata),
            spec: object.spec,
            other: Map::new(),
        };
        self.require_nothing_of(key);
        self.put(key, Tree::Intent, &intent)?;
        let Intent {
            api_version,
            kind,
            metadata,
            spec,
            ..
        } = intent;
        Ok(RawObject {
            api_version,
            kind,
            metadata,
            spec,
            status: Status::default(),
        })
    }

    /// Creates an object of a known kind and returns it with its uid.
    ///
    /// # Errors
    /// See [`Batch::create`]; also for names that break the rules.
    pub fn create_typed<K: Resource>(
        &mut self,
        environment: &Environment,
        object: &Object<K>,
    ) -> Result<Object<K>> {
        let key = object.key()?;
        self.require_nothing_of(&key);
        let metadata = self.create_unseen(environment, &key, object)?;
        Ok(Object::new(metadata, object.spec.clone()))
    }

    /// As [`Batch::create_typed`], where other compares show that there is nothing of its name.
    pub(crate) fn create_unseen<K: Resource>(
        &mut self,
        environment: &Environment,
        key: &ObjectKey,
        object: &Object<K>,
    ) -> Result<Metadata> {
        let metadata = first_metadata(environment, key, object.metadata.clone());
        let first = First {
            api_version: &K::api_version(),
            kind: K::KIND,
            metadata: &metadata,
            spec: &object.spec,
        };
        self.put(key, Tree::Intent, &first)?;
        Ok(metadata)
    }

    pub(crate) fn require_nothing_of(&mut self, key: &ObjectKey) {
        self.require(Compare::Absent(key.store_key(Tree::Intent)));
        self.require(Compare::Absent(key.store_key(Tree::Reality)));
    }
}
