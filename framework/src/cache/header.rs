//! The little of a record that finding and indexing it need, read without the rest.
//!
//! A record is mostly its spec, which is read when somebody asks for the object. Reading stops
//! behind the metadata, which is near the beginning of all that this library writes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::entry::Owner;
use super::scan::Plain;
use crate::model::Uid;

/// Text that is borrowed from the record unless it has escapes.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text<'r>(pub(super) Cow<'r, str>);

impl<'de: 'r, 'r> Deserialize<'de> for Text<'r> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;

        impl<'de> Visitor<'de> for Borrowed {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Borrowed)
    }
}

/// Names and values, sorted by name.
#[derive(Debug, Default)]
pub(super) struct Labels<'r>(pub(super) Vec<(Text<'r>, Text<'r>)>);

impl<'de: 'r, 'r> Deserialize<'de> for Labels<'r> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Labels::of(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

impl<'r> Labels<'r> {
    fn of(mut pairs: Vec<(Text<'r>, Text<'r>)>) -> Self {
        if !pairs.is_sorted_by(|a, b| a.0 < b.0) {
            // Of a repeated one the last counts, as in a map.
            pairs.reverse();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            pairs.dedup_by(|later, first| later.0 == first.0);
        }
        Self(pairs)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header<'r> {
    #[serde(borrow, default)]
    pub(super) name: Text<'r>,
    #[serde(borrow, default)]
    pub(super) namespace: Option<Text<'r>>,
    #[serde(borrow, default)]
    pub(super) uid: Text<'r>,
    #[serde(borrow, default)]
    pub(super) labels: Labels<'r>,
    #[serde(default)]
    owner_references: Vec<OwnerReference>,
    #[serde(default)]
    deletion: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerReference {
    api_version: Box<str>,
    kind: Box<str>,
    name: Box<str>,
    uid: Uid,
}

impl From<OwnerReference> for Owner {
    fn from(reference: OwnerReference) -> Self {
        let group = reference.api_version.split_once('/');
        Self {
            group: group.map_or("", |(group, _)| group).into(),
            kind: reference.kind,
            name: reference.name,
            uid: reference.uid,
        }
    }
}

impl<'r> Header<'r> {
    fn of(plain: Plain<'r>) -> Option<Self> {
        let text = |text: &'r str| Text(Cow::Borrowed(text));
        let labels = plain.labels.unwrap_or_default().into_iter();
        Some(Self {
            name: text(plain.name.unwrap_or_default()),
            namespace: plain.namespace.map(text),
            uid: text(plain.uid.unwrap_or_default()),
            labels: Labels::of(labels.map(|(k, v)| (text(k), text(v))).collect()),
            owner_references: match plain.owner_references {
                Some(json) => serde_json::from_str(json).ok()?,
                None => Vec::new(),
            },
            deletion: match plain.deletion {
                Some(json) => serde_json::from_str(json).ok()?,
                None => None,
            },
        })
    }

    pub(super) fn take_owners(&mut self) -> impl Iterator<Item = Owner> + use<> {
        std::mem::take(&mut self.owner_references)
            .into_iter()
            .map(Owner::from)
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.deletion.is_some()
    }
}

/// Puts the metadata where it is told, and goes no further.
struct UpToMetadata<'o, 'r>(&'o mut Option<Header<'r>>);

impl<'de> Visitor<'de> for UpToMetadata<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record with metadata")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            if name == "metadata" {
                *self.0 = Some(map.next_value()?);
                return Ok(());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Err(de::Error::missing_field("metadata"))
    }
}

impl<'de> DeserializeSeed<'de> for UpToMetadata<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// Reads a record's metadata.
pub(super) fn read(record: &[u8]) -> Result<Header<'_>, serde_json::Error> {
    match Plain::of(record).and_then(Header::of) {
        Some(header) => Ok(header),
        None => read_any(record),
    }
}

/// Reads the metadata of a record in whatever form.
fn read_any(record: &[u8]) -> Result<Header<'_>, serde_json::Error> {
    let mut header = None;
    let mut json = serde_json::Deserializer::from_slice(record);
    let ended = UpToMetadata(&mut header).deserialize(&mut json);
    // Having left the rest is an error, too, but not of the record.
    header.ok_or_else(|| match ended {
        Err(error) => error,
        Ok(()) => de::Error::missing_field("metadata"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_found_wherever_it_is_and_what_follows_is_not_read() {
        for json in [
            r#"{"metadata":{"name":"a","namespace":"d","uid":"u","labels":{"z":"1","b":"x\n","z":"2"},"deletion":{"x":[]},"new":{}},"spec":{broken"#,
            r#"{"kind":"K","spec":{"metadata":{"name":"wrong"}},"metadata":{"name":"a","namespace":"d","uid":"u","labels":{"b":"x\n","z":"2"},"deletion":{}}}"#,
        ] {
            let header = read(json.as_bytes()).unwrap();
            let any = read_any(json.as_bytes()).unwrap();
            assert_eq!(header.labels.0, any.labels.0);
            assert_eq!((&*header.name.0, &*header.uid.0), ("a", "u"));
            assert_eq!(header.namespace.as_ref().unwrap().0, "d");
            assert!(header.is_deleted());
            let labels: Vec<_> = header
                .labels
                .0
                .iter()
                .map(|(k, v)| (&*k.0, &*v.0))
                .collect();
            assert_eq!(labels, [("b", "x\n"), ("z", "2")]);
        }
    }

    #[test]
    fn what_has_no_metadata_is_refused() {
        for json in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"spec":{}}"#,
            r#"{"metadata":1}"#,
            r#"{"metadata":{"name":1}}"#,
            r#"{"metadata":{"labels":{"a":1}}}"#,
            r#"{"metadata":{"name":"a""#,
        ] {
            assert!(read(json.as_bytes()).is_err(), "{json}");
        }
    }
}
