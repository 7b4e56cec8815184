//! Objects: both records joined, as a reconcile, the API and files have them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    InvalidName, Metadata, ObjectKey, OwnerReference, Resource, Status, in_stored_version,
};

/// An object of the kind `K`.
pub struct Object<K: Resource> {
    /// Who and what it is.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: K::Spec,
    /// What is so.
    pub status: Status<K::Status>,
}

impl<K: Resource> Object<K> {
    /// An object that was not created yet.
    #[must_use]
    pub fn new(metadata: Metadata, spec: K::Spec) -> Self {
        Self {
            metadata,
            spec,
            status: Status::default(),
        }
    }

    /// The object's key.
    ///
    /// # Errors
    /// [`InvalidName`] when a name breaks the rules, or the kind's scope asks for a namespace or
    /// node that the object does not have.
    pub fn key(&self) -> Result<ObjectKey, InvalidName> {
        let metadata = &self.metadata;
        let node = K::node(&self.spec);
        ObjectKey::of_scope(
            &K::group_plural(),
            K::SCOPE,
            node,
            metadata.namespace.as_deref(),
            &metadata.name,
        )
    }

    /// A reference to this object for those it owns.
    #[must_use]
    pub fn owner_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: K::api_version(),
            kind: K::KIND.to_owned(),
            name: self.metadata.name.clone(),
            uid: self.metadata.uid.clone(),
            controller: true,
        }
    }

    /// The object without its types.
    ///
    /// # Errors
    /// When spec or status cannot be written as JSON, as a map whose keys are no strings.
    pub fn to_raw(&self) -> serde_json::Result<RawObject> {
        let status = &self.status;
        let detail = match serde_json::to_value(&status.detail)? {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        Ok(RawObject {
            api_version: K::api_version(),
            kind: K::KIND.to_owned(),
            metadata: self.metadata.clone(),
            spec: serde_json::to_value(&self.spec)?,
            status: Status {
                phase: status.phase.clone(),
                observed_generation: status.observed_generation,
                observed_spec: status.observed_spec,
                conditions: status.conditions.clone(),
                detail,
            },
        })
    }
}

impl<K: Resource> Clone for Object<K> {
    fn clone(&self) -> Self {
        Self {
            metadata: self.metadata.clone(),
            spec: self.spec.clone(),
            status: self.status.clone(),
        }
    }
}

impl<K: Resource> std::fmt::Debug for Object<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(K::KIND)
            .field("metadata", &self.metadata)
            .field("spec", &self.spec)
            .field("status", &self.status)
            .finish()
    }
}

/// An object of a kind whose types are not known here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RawObject {
    /// `group/version`.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Who and what it is.
    #[serde(default)]
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(default)]
    pub spec: Value,
    /// What is so.
    #[serde(default)]
    pub status: Status<Map<String, Value>>,
}

impl RawObject {
    /// The group of `apiVersion`; empty when it has none.
    #[must_use]
    pub fn group(&self) -> &str {
        self.api_version
            .split_once('/')
            .map_or("", |(group, _)| group)
    }

    /// The object with its types, from any of the kind's versions.
    ///
    /// # Errors
    /// When spec or status is not what the kind's types say, or the version is none of the kind's.
    pub fn typed<K: Resource>(&self) -> serde_json::Result<Object<K>> {
        let status = &self.status;
        let spec = in_stored_version::<K>(&self.api_version, &self.spec)?;
        Ok(Object {
            metadata: self.metadata.clone(),
            spec: K::Spec::deserialize(&*spec)?,
            status: Status {
                phase: status.phase.clone(),
                observed_generation: status.observed_generation,
                observed_spec: status.observed_spec,
                conditions: status.conditions.clone(),
                detail: K::Status::deserialize(&Value::Object(status.detail.clone()))?,
            },
        })
    }

    /// The object as clients are shown it: as its JSON, with `deletionTimestamp` where there is
    /// a tombstone.
    #[must_use]
    pub fn to_api(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_else(|_| json!({}));
        if let (Some(deletion), Some(metadata)) =
            (&self.metadata.deletion, value.get_mut("metadata"))
        {
            metadata["deletionTimestamp"] = json!(whole_seconds(deletion.at));
            if let Some(grace) = deletion.grace_seconds {
                metadata["deletionGracePeriodSeconds"] = json!(grace);
            }
        }
        if let (Some(created), Some(metadata)) =
            (self.metadata.creation_timestamp, value.get_mut("metadata"))
        {
            metadata["creationTimestamp"] = json!(whole_seconds(created));
        }
        if let Some(Value::Object(status)) = value.get("status")
            && status.is_empty()
        {
            value.as_object_mut().map(|fields| fields.remove("status"));
        }
        value
    }
}

/// Times in metadata have whole seconds, as Kubernetes clients expect.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
