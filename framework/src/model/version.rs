//! Versions of a kind: one is stored, others are read and written on request.
//!
//! A conversion is plain `From` both ways between two spec types. What neither type knows, because
//! a newer program wrote it, is carried along at its place, so that a spec survives being read and
//! written in a version, or by a program, that has never heard of part of it.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Error, Map, Value};

use super::kind::spec_schema;
use super::schema::{Segment, parse_path, unknown_fields};
use super::{Resource, preserve_unknown};

/// A version of a kind beside the one that is stored: see [`Resource::other_versions`].
#[derive(Clone, Copy)]
pub struct OtherVersion {
    version: &'static str,
    schema: fn() -> Value,
    to_stored: fn(&Value) -> Result<Value, Error>,
    from_stored: fn(&Value) -> Result<Value, Error>,
}

impl fmt::Debug for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OtherVersion").field(&self.version).finish()
    }
}

/// A version's schema, as registered in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct VersionDefinition {
    /// The version, as `v1beta1`.
    pub version: String,
    /// The JSON schema of the spec in it.
    pub schema: Value,
}

/// A spec as `From` by way of `To`, with what `From` does not know carried along.
fn convert<From, To>(spec: &Value) -> Result<Value, Error>
where
    From: Serialize + DeserializeOwned + JsonSchema,
    To: Serialize + JsonSchema + std::convert::From<From>,
{
    let known = From::deserialize(spec)?;
    let mut converted = serde_json::to_value(To::from(known))?;
    for path in unknown_fields(spec, &spec_schema::<From>(), "") {
        if let Some(segments) = parse_path(&path) {
            carry(spec, &mut converted, &segments);
        }
    }
    Ok(converted)
}

/// Copies what is at a path, unless something is there already. Where a list became one of
/// another length, its items are others and nothing is copied.
fn carry(from: &Value, to: &mut Value, path: &[Segment]) {
    let (Some(first), rest) = (path.first(), path.get(1..).unwrap_or_default()) else {
        return;
    };
    match (first, from, to) {
        (Segment::Name(name), Value::Object(from), Value::Object(to)) => {
            let Some(value) = from.get(name) else { return };
            if rest.is_empty() {
                match to.get_mut(name) {
                    Some(there) => overlay(value, there),
                    None => drop(to.insert(name.clone(), value.clone())),
                }
            } else if let Some(below) = to.get_mut(name) {
                carry(value, below, rest);
            } else {
                // Its surroundings have another name now: they are kept for the way back.
                let mut below = match rest.first() {
                    Some(Segment::Name(_)) => Value::Object(Map::new()),
                    _ => return,
                };
                carry(value, &mut below, rest);
                to.insert(name.clone(), below);
            }
        }
        (Segment::Item(Some(at)), Value::Array(from), Value::Array(to)) => {
            if from.len() == to.len()
                && let (Some(value), Some(below)) = (from.get(*at), to.get_mut(*at))
            {
                carry(value, below, rest);
            }
        }
        _ => {}
    }
}

/// Adds the fields that are not there.
fn overlay(from: &Value, to: &mut Value) {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return;
    };
    for (name, value) in from {
        match to.get_mut(name) {
            Some(there) => overlay(value, there),
            None => drop(to.insert(name.clone(), value.clone())),
        }
    }
}

impl OtherVersion {
    /// The version of the kind `K` in which specs are written as `S`.
    #[must_use]
    pub fn of<K, S>(version: &'static str) -> Self
    where
        K: Resource,
        K::Spec: From<S>,
        S: Serialize + DeserializeOwned + JsonSchema + From<K::Spec>,
    {
        Self {
            version,
            schema: spec_schema::<S>,
            to_stored: convert::<S, K::Spec>,
            from_stored: convert::<K::Spec, S>,
        }
    }

    /// The version, as `v1beta1`.
    #[must_use]
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// The version with its schema.
    #[must_use]
    pub fn definition(&self) -> VersionDefinition {
        VersionDefinition {
            version: self.version.to_owned(),
            schema: (self.schema)(),
        }
    }

    /// A stored spec in this version.
    ///
    /// # Errors
    /// When it is not what the stored version's type says.
    pub fn show(&self, stored: &Value) -> Result<Value, Error> {
        (self.from_stored)(stored)
    }

    /// What is to be stored of a spec that somebody sent in this version. With the spec that is
    /// stored now, only what they changed is changed: what this version cannot say stays.
    ///
    /// # Errors
    /// When the spec is not what this version's type says.
    pub fn store(&self, sent: &Value, stored: Option<&Value>) -> Result<Value, Error> {
        let after = (self.to_stored)(sent)?;
        let Some(stored) = stored else {
            return Ok(after);
        };
        // What would be stored if they had sent back what they were shown.
        let before = (self.to_stored)(&self.show(stored)?)?;
        Ok(preserve_unknown(stored, &before, &after))
    }
}

/// A spec in the version that is stored, from the one it was written in.
pub(crate) fn in_stored_version<'s, K: Resource>(
    api_version: &str,
    spec: &'s Value,
) -> Result<Cow<'s, Value>, Error> {
    let version = api_version
        .strip_prefix(K::GROUP)
        .and_then(|rest| rest.strip_prefix('/'));
    if version == Some(K::VERSION) {
        return Ok(Cow::Borrowed(spec));
    }
    let others = K::other_versions();
    if let Some(other) = others.iter().find(|it| version == Some(it.version)) {
        return Ok(Cow::Owned((other.to_stored)(spec)?));
    }
    let others: String = others
        .iter()
        .map(|it| format!(", {}", it.version))
        .collect();
    let (group, own) = (K::GROUP, K::VERSION);
    let api_version: String = api_version
        .chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect();
    Err(Error::custom(format!(
        "it is written as `{api_version}`; known versions of {group} here: {own}{others}"
    )))
}
