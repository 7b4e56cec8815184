//! How a request about an object can fail.

use crate::model::{FieldError, InvalidName, Joined, ObjectKey, RecordError};
use crate::store::StoreError;

/// What a request about an object ends with.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Why a request about an object was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no such object.
    #[error("{key} does not exist")]
    NotFound {
        /// Which.
        key: ObjectKey,
    },
    /// The name is taken.
    #[error("{key} already exists{hint}")]
    AlreadyExists {
        /// Which.
        key: ObjectKey,
        /// Why, and the way out.
        hint: &'static str,
    },
    /// It is not what the request assumed.
    #[error("{key} was not changed: {reason}; read it again and repeat")]
    Conflict {
        /// Which.
        key: ObjectKey,
        /// What is different.
        reason: String,
    },
    /// The object is not valid.
    #[error("{} is not valid: {}", .key, problems(.errors))]
    Invalid {
        /// Which.
        key: String,
        /// Everything that is wrong with it.
        errors: Vec<FieldError>,
    },
    /// The patch cannot be applied to the object.
    #[error("{key} was not changed: {error}")]
    Patch {
        /// Which.
        key: ObjectKey,
        /// Why not.
        #[source]
        error: Box<super::PatchError>,
    },
    /// The store is not one that can be used, or not the one that was read before.
    #[error(transparent)]
    Identity(#[from] crate::model::identity::IdentityError),
    /// Another store or another history answers; nothing is taken from it.
    #[error("{reason}: nothing is taken from it until a person has looked")]
    OtherHistory {
        /// What is different.
        reason: String,
    },
    /// The name cannot be part of a key.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// What the store holds cannot be read.
    #[error(transparent)]
    Unreadable(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object cannot be written as JSON.
    #[error("the object cannot be written as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

fn problems(errors: &[FieldError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl ClientError {
    pub(crate) fn not_found(key: &ObjectKey) -> Self {
        Self::NotFound { key: key.clone() }
    }

    pub(crate) fn conflict(key: &ObjectKey, reason: impl Into<String>) -> Self {
        Self::Conflict {
            key: key.clone(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unreadable(key: &ObjectKey, error: &serde_json::Error) -> Self {
        let revision = crate::store::Revision::ZERO;
        Self::Unreadable(RecordError {
            key: key.to_string(),
            revision,
            reason: error.to_string(),
        })
    }

    /// The name is taken by what was read, which says why.
    #[must_use]
    pub fn exists(joined: &Joined) -> Self {
        let hint = match &joined.intent {
            Some(intent) if intent.value.metadata.is_deleted() => {
                ": it is being deleted; wait until it is gone"
            }
            None if joined.reality.is_some() => {
                ": something of that name is still reported though nobody wants it; `platctrl failsafe list` shows it"
            }
            _ => "",
        };
        Self::AlreadyExists {
            key: joined.key.clone(),
            hint,
        }
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Somebody else was faster: read again and repeat.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::Store(StoreError::Conflict { .. })
        )
    }
}
