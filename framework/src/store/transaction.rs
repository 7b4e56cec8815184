//! Transactions: compares and writes that happen together or not at all.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Key, LeaseId, Prefix, Revision};

/// What must hold for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Compare {
    /// The key does not exist.
    Absent(Key),
    /// The key exists and was last put at this revision.
    Revision(Key, Revision),
    /// No key under the prefix was put after this revision. Deletes pass.
    RangeNotNewer(Prefix, Revision),
    /// The claim is still the one that was won: the key was created at `epoch` and still hangs
    /// on `lease`, which has not ended.
    ClaimHeld {
        /// The claim's key.
        key: Key,
        /// The revision that created it.
        epoch: Revision,
        /// The lease of its holder.
        lease: LeaseId,
    },
}

impl Compare {
    pub(super) fn key_bytes(&self) -> usize {
        match self {
            Self::Absent(key) | Self::Revision(key, _) | Self::ClaimHeld { key, .. } => {
                key.as_str().len()
            }
            Self::RangeNotNewer(prefix, _) => prefix.as_str().len(),
        }
    }
}

/// One key's change in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Write {
    /// Sets the key. The lease named here replaces whatever lease the key hung on before.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Bytes,
        /// Deletes the key when this lease ends.
        lease: Option<LeaseId>,
    },
    /// Removes the key; nothing happens where there is none.
    Delete {
        /// The key.
        key: Key,
    },
}

impl Write {
    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Compares and writes, committed by [`Store::commit`](super::Store::commit).
///
/// ```
/// use platctrl_framework::store::{Key, Transaction};
///
/// let key = Key::new("x/lease/leader").unwrap();
/// let create = Transaction::new().require_absent(key.clone()).put(key, "me");
/// assert_eq!((create.compares.len(), create.writes.len()), (1, 1));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is then written. No key twice.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// A transaction without compares and writes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a compare.
    #[must_use]
    pub fn require(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Requires that the key does not exist.
    #[must_use]
    pub fn require_absent(self, key: Key) -> Self {
        self.require(Compare::Absent(key))
    }

    /// Requires that the key was last put at `revision`; None requires that it does not exist.
    #[must_use]
    pub fn require_unchanged(self, key: Key, revision: Option<Revision>) -> Self {
        self.require(match revision {
            Some(revision) => Compare::Revision(key, revision),
            None => Compare::Absent(key),
        })
    }

    /// Adds a put.
    #[must_use]
    pub fn put(mut self, key: Key, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put {
            key,
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Adds a put whose key is deleted when the lease ends.
    #[must_use]
    pub fn put_with_lease(mut self, key: Key, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        self.writes.push(Write::Put {
            key,
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.writes.push(Write::Delete { key });
        self
    }
}
