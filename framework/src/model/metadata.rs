//! What every object carries whatever its kind.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Uid;
use crate::store::Revision;

/// An object's metadata, in the shape Kubernetes made common.
///
/// Fields that this version does not know are kept in `other` and written back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The name, unique among the objects of one kind in one namespace at one time.
    #[serde(default)]
    pub name: String,
    /// The tenant. None for kinds that are cluster-scoped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Given at creation.
    #[serde(default, skip_serializing_if = "Uid::is_empty")]
    pub uid: Uid,
    /// The highest revision of the object's records. Never stored: it is where they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<Revision>,
    /// Counts changes of the spec, from 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// When it was created, by the wall clock of whoever served the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// For selecting.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For people and tools; nothing selects by them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The objects this one was made for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// The tombstone: somebody asked for this object's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// Fields of other versions, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Metadata {
    /// Metadata with a name and nothing else.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Somebody asked for this object's end.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.deletion.is_some()
    }

    /// The owner that answers for this object, if there is one.
    #[must_use]
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// Says for whom an object was made. It names the owner by uid: an owner re-created under the
/// same name is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    /// The owner's `group/version`.
    pub api_version: String,
    /// The owner's kind.
    pub kind: String,
    /// The owner's name, in the same namespace.
    pub name: String,
    /// The owner's uid.
    #[schemars(with = "String")]
    pub uid: Uid,
    /// It is the one owner that manages the object.
    #[serde(default)]
    pub controller: bool,
}

/// The order to end an object: a record, because absence is never an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// The uid that is to end. A tombstone of another uid is not for this object.
    pub uid: Uid,
    /// When it was asked, by the wall clock of whoever served the request.
    pub at: Timestamp,
    /// Who asked.
    pub by: String,
    /// What becomes of the objects that this one owns.
    pub propagation: Propagation,
    /// Seconds that an orderly end may take; None leaves it to the object's spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It is a person's order, or follows from one. What a controller decides by itself is
    /// counted by [failsafes](crate::failsafe).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub declared: bool,
}

/// What becomes of the objects owned by one that ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Propagation {
    /// They stay and lose their owner.
    #[default]
    Orphan,
    /// They end too.
    Cascade,
}
