//! The kinds that a program knows, found by any of their names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::{
    FieldError, GroupPlural, KindDefinition, OtherVersion, Propagation, RawObject, Resource, Scope,
    in_stored_version,
};

/// What a kind's types check, behind untyped values.
#[derive(Clone, Copy)]
pub struct KindChecks {
    validate: fn(&Value) -> Vec<FieldError>,
    validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    deletion_policy: fn(&Value) -> Propagation,
    node: fn(&Value) -> Option<String>,
    api_version: fn() -> String,
    to_stored: fn(&str, &Value) -> Result<Value, String>,
    other_versions: fn() -> Vec<OtherVersion>,
}

impl fmt::Debug for KindChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindChecks").finish_non_exhaustive()
    }
}

fn decode<K: Resource>(spec: &Value) -> Result<K::Spec, FieldError> {
    serde::Deserialize::deserialize(spec)
        .map_err(|error: serde_json::Error| FieldError::new("spec", error.to_string()))
}

fn unreadable(error: impl fmt::Display) -> FieldError {
    FieldError::new("spec", error.to_string())
}

impl KindChecks {
    /// The checks of a kind known by its types.
    #[must_use]
    pub fn of<K: Resource>() -> Self {
        Self {
            validate: |spec| match decode::<K>(spec) {
                Ok(spec) => {
                    let mut errors = Vec::new();
                    K::validate(&spec, &mut errors);
                    errors
                }
                Err(error) => vec![error],
            },
            validate_update: |old, new| match (decode::<K>(old), decode::<K>(new)) {
                (Ok(old), Ok(new)) => {
                    let mut errors = Vec::new();
                    K::validate_update(&old, &new, &mut errors);
                    errors
                }
                // What is stored cannot be read: any readable spec is an improvement.
                (Err(_), Ok(_)) => Vec::new(),
                (_, Err(error)) => vec![error],
            },
            deletion_policy: |spec| {
                decode::<K>(spec)
                    .map(|spec| K::deletion_policy(&spec))
                    .unwrap_or_default()
            },
            node: |spec| K::node(&decode::<K>(spec).ok()?).map(ToOwned::to_owned),
            to_stored: |api_version, spec| {
                let stored = in_stored_version::<K>(api_version, spec);
                stored
                    .map(Cow::into_owned)
                    .map_err(|error| error.to_string())
            },
            other_versions: K::other_versions,
            api_version: K::api_version,
        }
    }

    /// `group/version` that is stored.
    pub(crate) fn api_version(&self) -> String {
        (self.api_version)()
    }

    /// A spec in the version that is stored, from the one it was written in.
    pub(crate) fn in_stored_version(
        &self,
        api_version: &str,
        spec: &Value,
    ) -> Result<Value, String> {
        (self.to_stored)(api_version, spec)
    }

    /// What is wrong with a spec by itself.
    #[must_use]
    pub fn validate(&self, spec: &Value) -> Vec<FieldError> {
        (self.validate)(spec)
    }

    /// What is wrong with a change of a spec.
    #[must_use]
    pub fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        (self.validate_update)(old, new)
    }
}

/// A kind as a program knows it: its definition and, when it has the types, their checks.
#[derive(Clone, Debug)]
pub struct KnownKind {
    /// The definition.
    pub definition: KindDefinition,
    /// The checks. None for a kind that is known by its definition alone.
    pub checks: Option<KindChecks>,
}

impl KnownKind {
    /// What becomes of the objects that an object of this kind owns.
    #[must_use]
    pub fn deletion_policy(&self, spec: &Value) -> Propagation {
        self.checks
            .map(|checks| (checks.deletion_policy)(spec))
            .unwrap_or_default()
    }

    /// A stored object as it is in one of the kind's versions, whichever it is stored in.
    ///
    /// # Errors
    /// The version is none of the kind's, or the spec cannot be read in it.
    pub fn show(&self, object: &RawObject, version: &str) -> Result<RawObject, FieldError> {
        let spec = self.in_stored_version(object)?;
        let spec = if version == self.definition.version {
            spec
        } else {
            let other = self.other_version(version)?;
            other.show(&spec).map_err(unreadable)?
        };
        Ok(self.with_spec(object, version, spec))
    }

    /// What is to be stored of an object that somebody sent in any of the kind's versions. With
    /// the object that is stored now, only what they changed is changed: what their version cannot
    /// say stays.
    ///
    /// # Errors
    /// The version is none of the kind's, or the spec cannot be read in it.
    pub fn store(
        &self,
        sent: &RawObject,
        stored: Option<&RawObject>,
    ) -> Result<RawObject, FieldError> {
        let own = &self.definition.version;
        let version = sent.api_version.rsplit('/').next().unwrap_or_default();
        if version == own {
            return Ok(sent.clone());
        }
        let stored = stored.map(|stored| self.in_stored_version(stored));
        let other = self.other_version(version)?;
        let spec = other.store(&sent.spec, stored.transpose()?.as_ref());
        Ok(self.with_spec(sent, own, spec.map_err(unreadable)?))
    }

    fn in_stored_version(&self, object: &RawObject) -> Result<Value, FieldError> {
        match self.checks {
            Some(checks) => (checks.to_stored)(&object.api_version, &object.spec)
                .map_err(|problem| FieldError::new("spec", problem)),
            None => Ok(object.spec.clone()),
        }
    }

    fn other_version(&self, version: &str) -> Result<OtherVersion, FieldError> {
        let others = self
            .checks
            .map_or_else(Vec::new, |checks| (checks.other_versions)());
        let found = others.iter().find(|other| other.version() == version);
        found.copied().ok_or_else(|| {
            let known: String = others
                .iter()
                .map(|it| format!(", `{}`", it.version()))
                .collect();
            let own = self.definition.api_version();
            let text = format!("is no version of this kind: known are `{own}`{known}");
            FieldError::new("apiVersion", text)
        })
    }

    fn with_spec(&self, object: &RawObject, version: &str, spec: Value) -> RawObject {
        RawObject {
            api_version: format!("{}/{version}", self.definition.group),
            spec,
            ..object.clone()
        }
    }

    /// The node that works on an object, for kinds scoped by node: by convention
    /// `spec.nodeName` where the types are not known.
    #[must_use]
    pub fn node(&self, spec: &Value) -> Option<String> {
        if self.definition.scope != Scope::Node {
            return None;
        }
        match self.checks {
            Some(checks) => (checks.node)(spec),
            None => spec.get("nodeName")?.as_str().map(ToOwned::to_owned),
        }
    }
}

/// The kinds that a program knows.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    by_key: BTreeMap<GroupPlural, KnownKind>,
}

impl Kinds {
    /// No kinds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind by its types.
    #[must_use]
    pub fn with<K: Resource>(mut self) -> Self {
        let known = KnownKind {
            definition: KindDefinition::of::<K>(),
            checks: Some(KindChecks::of::<K>()),
        };
        self.by_key.insert(K::group_plural(), known);
        self
    }

    /// Adds a kind by its definition, unless its types are known.
    pub fn define(&mut self, definition: KindDefinition) {
        let known = self.by_key.entry(definition.group_plural());
        known.or_insert(KnownKind {
            definition,
            checks: None,
        });
    }

    /// Adds the definitions of all of `others`.
    pub(crate) fn define_all(&mut self, others: &Self) {
        for known in others.iter() {
            self.define(known.definition.clone());
        }
    }

    pub(crate) fn remove(&mut self, kind: &GroupPlural) {
        self.by_key.remove(kind);
    }

    /// All kinds.
    pub fn iter(&self) -> impl Iterator<Item = &KnownKind> {
        self.by_key.values()
    }

    /// The kind of a group and plural.
    #[must_use]
    pub fn get(&self, kind: &GroupPlural) -> Option<&KnownKind> {
        self.by_key.get(kind)
    }

    /// The kind that a manifest names.
    #[must_use]
    pub fn of_manifest(&self, api_version: &str, kind: &str) -> Option<&KnownKind> {
        self.iter().find(|known| {
            known.definition.kind == kind && known.definition.api_version() == api_version
        })
    }

    /// The kinds that a word on the command line names: plural, singular, kind or short name,
    /// with or without `.group`. Several groups may share one.
    #[must_use]
    pub fn named(&self, word: &str) -> Vec<&KnownKind> {
        let word = word.to_ascii_lowercase();
        let matches = |known: &&KnownKind| {
            let definition = &known.definition;
            let short = definition.short_names.iter().map(String::as_str);
            let kind = definition.kind.to_ascii_lowercase();
            [
                definition.plural.as_str(),
                definition.singular.as_str(),
                kind.as_str(),
            ]
            .into_iter()
            .chain(short)
            .any(|name| {
                let rest = word.strip_prefix(name);
                rest.is_some_and(|rest| {
                    rest.is_empty() || rest.strip_prefix('.') == Some(&definition.group)
                })
            })
        };
        self.iter().filter(matches).collect()
    }

    /// The scope of a kind, for [`ObjectKey::parse`](super::ObjectKey::parse).
    #[must_use]
    pub fn scope(&self, group: &str, plural: &str) -> Option<Scope> {
        self.known(group, plural).map(|(_, scope)| scope)
    }

    /// A kind by the segments of a key, with its scope.
    pub(crate) fn known(&self, group: &str, plural: &str) -> Option<(GroupPlural, Scope)> {
        // There are few kinds, and this is asked for each change of each record.
        let mut kinds = self.by_key.iter();
        kinds
            .find(|(kind, _)| *kind.plural == *plural && *kind.group == *group)
            .map(|(kind, known)| (kind.clone(), known.definition.scope))
    }
}
