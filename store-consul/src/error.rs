//! Why a store on Consul cannot be opened.

use platctrl_framework::store::StoreError;

use crate::address::Address;

/// Why a store on Consul cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option, or a file that it names, is wrong.
    #[error("cannot open {address}: {reason}")]
    Options {
        /// The store.
        address: Address,
        /// What is wrong.
        reason: String,
    },
    /// The first read failed.
    #[error("cannot open {address}: {source}")]
    Store {
        /// The store.
        address: Address,
        /// Why.
        source: StoreError,
    },
}

impl OpenError {
    /// The store's answer, if it gave one.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store { source, .. } => Some(source),
            Self::Options { .. } => None,
        }
    }
}
