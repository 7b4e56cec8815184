//! The versions of a kind: one is stored, and objects are shown and taken in each.

use platctrl_framework::model::{KnownKind, RawObject, VersionDefinition};

/// A kind as it is in one of its other versions: for names, documents and the check of what comes.
/// Its own checks are made on what is stored.
pub(super) fn face(kind: &KnownKind, other: &VersionDefinition) -> KnownKind {
    let mut definition = kind.definition.clone();
    definition.version.clone_from(&other.version);
    definition.other_versions = Vec::new();
    if let Some(spec) = definition.schema.pointer_mut("/properties/spec") {
        *spec = other.schema.clone();
    }
    KnownKind {
        definition,
        checks: None,
    }
}

/// How stored objects are shown in the version that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    /// None for a kind that has one version: its objects are shown as they are stored.
    kind: Option<Box<KnownKind>>,
    version: String,
    api_version: String,
}

impl Shown {
    pub(super) fn new(kind: &KnownKind, version: &str) -> Self {
        let converts = kind.checks.is_some() && !kind.definition.other_versions.is_empty();
        Self {
            kind: converts.then(|| Box::new(kind.clone())),
            version: version.to_owned(),
            api_version: format!("{}/{version}", kind.definition.group),
        }
    }

    /// Whether objects may have to be converted.
    pub(super) fn converts(&self) -> bool {
        self.kind.is_some()
    }

    /// The object in this version; as it is stored, where that cannot be read.
    pub(super) fn show(&self, object: RawObject) -> RawObject {
        match &self.kind {
            Some(kind) if object.api_version != self.api_version => {
                kind.show(&object, &self.version).unwrap_or_else(|error| {
                    tracing::debug!(%error, "an object is shown as it is stored");
                    object
                })
            }
            _ => object,
        }
    }
}
