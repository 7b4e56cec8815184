//! How a call on a store can fail, told apart by what the caller may do next.

use std::time::Duration;

use super::{LeaseId, Revision};

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Some compares of a transaction do not hold; nothing was written.
    #[error("conflict: {} of the transaction's compares do not hold", .failed.len())]
    Conflict {
        /// Positions in [`Transaction::compares`](super::Transaction::compares). Never empty;
        /// a backend that only learns that one failed names all that may have.
        failed: Vec<usize>,
    },
    /// The credential may not do this.
    #[error("the store denies {what}: check the credential and its rights")]
    Denied {
        /// The operation and the key or prefix.
        what: String,
    },
    /// A limit of the backend is exceeded; see [`Capabilities`](super::Capabilities).
    #[error("{what}: {size} exceeds the store's limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        size: usize,
        /// The most the store takes.
        limit: usize,
    },
    /// No backend, or this backend never, takes this request.
    #[error("invalid request to the store: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The history asked for is no longer kept: read the newest state.
    #[error("revision {requested} is no longer kept; the oldest is {oldest}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest that can be asked for.
        oldest: Revision,
    },
    /// The lease has ended or never was.
    #[error("lease {} does not exist or has ended", .lease.0)]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// The store could not be reached or is not ready. The request did not happen.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What was tried and what came back; names the endpoint or file.
        reason: String,
        /// Do not ask again sooner, where the store said so.
        retry_after: Option<Duration>,
    },
    /// The connection broke or time ran out after the request was sent. It may have happened,
    /// or may still happen.
    #[error("the store did not confirm: {reason}; the request may or may not have happened")]
    Unknown {
        /// What was seen.
        reason: String,
    },
}

impl StoreError {
    /// An [`Unavailable`](Self::Unavailable) without a time to wait.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: reason.into(),
            retry_after: None,
        }
    }

    /// Asking again, unchanged, can succeed without anybody changing the store's data, rights
    /// or limits.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unknown { .. })
    }

    /// A compare failed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
