//! What can be chosen when a store is opened.

use std::time::Duration;

use platctrl_framework::store::Limits;

/// How an [`EmbeddedStore`](crate::EmbeddedStore) behaves. The defaults suit one machine.
///
/// ```
/// use platctrl_store_embedded::Options;
///
/// let mut options = Options::default();
/// options.history_revisions = 1_000;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The limits of one call [1 024 writes, 1 024 compares, 4 MiB, values of 1 MiB].
    pub limits: Limits,
    /// The engine's page cache in bytes; reads beyond it are the kernel's page cache [16 MiB].
    pub cache_bytes: usize,
    /// How many revisions stay readable behind the newest, for resumed watches and pinned
    /// reads [50 000].
    pub history_revisions: u64,
    /// How many bytes that history may take on disk [32 MiB].
    pub history_bytes: u64,
    /// How long history is kept, by the wall clock; looked at when something is committed
    /// [15 minutes].
    pub history_age: Duration,
    /// How many bytes of the newest changes are kept in memory for watchers that keep up;
    /// slower ones read the history from disk [4 MiB].
    pub recent_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits {
                max_writes: 1_024,
                max_compares: 1_024,
                max_operations: 2_048,
                max_transaction_bytes: 4 * 1024 * 1024,
                max_value_bytes: 1024 * 1024,
            },
            cache_bytes: 16 * 1024 * 1024,
            history_revisions: 50_000,
            history_bytes: 32 * 1024 * 1024,
            history_age: Duration::from_secs(15 * 60),
            recent_bytes: 4 * 1024 * 1024,
        }
    }
}
