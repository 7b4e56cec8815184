//! What every object carries whatever its kind.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Uid;
use crate::store::Revision;

/// An object's metadata, in the shape Kubernetes made common.
///
/// Fields that this version does not know are kept in `other` and written back.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The name, unique among the objects of one kind in one namespace at one time.
    pub name: String,
    /// The tenant. None for kinds that are cluster-scoped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Given at creation.
    #[serde(skip_serializing_if = "Uid::is_empty")]
    pub uid: Uid,
    /// The highest revision of the object's records. Never stored: it is where they are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<Revision>,
    /// Counts changes of the spec, from 1.
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// When it was created, by the wall clock of whoever served the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// For selecting.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For people and tools; nothing selects by them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The objects this one was made for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// The tombstone: somebody asked for this object's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// Fields of other versions, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A field's name. Written out, because a derived `flatten` copies every field before it looks at
/// it, and metadata is read more often than anything else.
enum Field {
    Name,
    Namespace,
    Uid,
    ResourceVersion,
    Generation,
    CreationTimestamp,
    Labels,
    Annotations,
    OwnerReferences,
    Deletion,
    Other(String),
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "name" => Field::Name,
                    "namespace" => Field::Namespace,
                    "uid" => Field::Uid,
                    "resourceVersion" => Field::ResourceVersion,
                    "generation" => Field::Generation,
                    "creationTimestamp" => Field::CreationTimestamp,
                    "labels" => Field::Labels,
                    "annotations" => Field::Annotations,
                    "ownerReferences" => Field::OwnerReferences,
                    "deletion" => Field::Deletion,
                    other => Field::Other(other.to_owned()),
                })
            }
        }

        deserializer.deserialize_identifier(Name)
    }
}

/// Reads a value that may be there once.
fn once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    map: &mut A,
    value: &mut Option<T>,
    name: &'static str,
) -> Result<(), A::Error> {
    if value.replace(map.next_value()?).is_some() {
        return Err(de::Error::duplicate_field(name));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("metadata")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let (mut name, mut namespace, mut uid) = (None, None, None);
                let (mut version, mut generation, mut created) = (None, None, None);
                let (mut labels, mut annotations) = (None, None);
                let (mut owners, mut deletion) = (None, None);
                let mut other = Map::new();
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::Name => once(&mut map, &mut name, "name")?,
                        Field::Namespace => once(&mut map, &mut namespace, "namespace")?,
                        Field::Uid => once(&mut map, &mut uid, "uid")?,
                        Field::ResourceVersion => {
                            once(&mut map, &mut version, "resourceVersion")?;
                        }
                        Field::Generation => once(&mut map, &mut generation, "generation")?,
                        Field::CreationTimestamp => {
                            once(&mut map, &mut created, "creationTimestamp")?;
                        }
                        Field::Labels => once(&mut map, &mut labels, "labels")?,
                        Field::Annotations => once(&mut map, &mut annotations, "annotations")?,
                        Field::OwnerReferences => {
                            once(&mut map, &mut owners, "ownerReferences")?;
                        }
                        Field::Deletion => once(&mut map, &mut deletion, "deletion")?,
                        Field::Other(name) => {
                            other.insert(name, map.next_value()?);
                        }
                    }
                }
                Ok(Metadata {
                    name: name.unwrap_or_default(),
                    namespace: namespace.flatten(),
                    uid: uid.unwrap_or_default(),
                    resource_version: version.flatten(),
                    generation: generation.unwrap_or_default(),
                    creation_timestamp: created.flatten(),
                    labels: labels.unwrap_or_default(),
                    annotations: annotations.unwrap_or_default(),
                    owner_references: owners.unwrap_or_default(),
                    deletion: deletion.flatten(),
                    other,
                })
            }
        }

        deserializer.deserialize_map(Fields)
    }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_unknown_fields_are_kept() {
        let written = json!({
            "name": "a", "namespace": "d", "uid": "u", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"a": "b"},
            "annotations": {"c": "d"},
            "ownerReferences": [{"apiVersion": "e/v1", "kind": "K", "name": "n", "uid": "o", "controller": true}],
            "deletion": {"uid": "u", "at": "2026-01-01T00:00:00Z", "by": "p", "propagation": "Orphan"},
            "future": {"x": [1]},
        });
        let from_value: Metadata = serde_json::from_value(written.clone()).unwrap();
        let from_text: Metadata = serde_json::from_str(&written.to_string()).unwrap();
        assert_eq!(from_value, from_text);
        assert_eq!(from_text.other["future"], json!({"x": [1]}));
        assert_eq!(serde_json::to_value(&from_text).unwrap(), written);
    }

    #[test]
    fn missing_and_null_fields_are_empty_and_a_repeated_one_is_refused() {
        let empty: Metadata = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, Metadata::default());
        let null = json!({"namespace": Value::Null, "creationTimestamp": Value::Null, "deletion": Value::Null});
        assert_eq!(serde_json::from_value::<Metadata>(null).unwrap(), empty);
        for wrong in [
            r#"{"name":"a","name":"b"}"#,
            r#"{"labels":{"a":1}}"#,
            r#"{"generation":"x"}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Metadata>(wrong).is_err(), "{wrong}");
        }
    }
}
