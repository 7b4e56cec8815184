//! What is known of an object without reading its spec.

use std::collections::BTreeMap;

use super::entry::Entry;
use crate::model::{ObjectKey, Uid};

/// An object's key, labels and owners, as its metadata says. Costs nothing to look at: they are
/// known of every object of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Head<'e> {
    entry: &'e Entry,
}

/// An object that another one was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeadOwner<'e> {
    /// The group of its kind.
    pub group: &'e str,
    /// Its kind.
    pub kind: &'e str,
    /// Its name.
    pub name: &'e str,
    /// Its uid.
    pub uid: &'e Uid,
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl<'e> Head<'e> {
    pub(crate) fn of(entry: &'e Entry) -> Self {
        Self { entry }
    }

    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &'e ObjectKey {
        &self.entry.key
    }

    /// Its labels.
    #[must_use]
    pub fn labels(&self) -> &'e BTreeMap<String, String> {
        self.entry.labels.as_deref().unwrap_or(&NO_LABELS)
    }

    /// The objects it was made for.
    pub fn owners(&self) -> impl Iterator<Item = HeadOwner<'e>> + use<'e> {
        self.entry.owners().iter().map(|owner| HeadOwner {
            group: &owner.group,
            kind: &owner.kind,
            name: &owner.name,
            uid: &owner.uid,
        })
    }

    /// It has a tombstone.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.entry.deleted
    }
}
