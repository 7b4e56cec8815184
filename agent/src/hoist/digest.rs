//! The digest of what streams through: an artifact is known by the SHA-256 of its bytes.

use platctrl_framework::model::Digest;
use sha2::{Digest as _, Sha256};

/// A digest in the making, with the count of the bytes so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hasher {
    state: Sha256,
    bytes: u64,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::from_bytes(self.state.clone().finalize().into())
    }
}
