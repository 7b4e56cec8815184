//! How much an artifact may ask of the machine, as data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits within which an artifact is read and unpacked. [`Limits::default`] is what an agent
/// uses unless told otherwise; `hoist build` refuses to make what they would refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of the artifact itself: 1 GiB.
    pub compressed_bytes: u64,
    /// Bytes of the archive inside, headers included: 4 GiB.
    pub expanded_bytes: u64,
    /// Expanded bytes for each compressed byte, looked at once `ratio_after_bytes` are out: 200.
    pub ratio: u64,
    /// From how many expanded bytes on the ratio counts: 10 MiB. (Small files compress well.)
    pub ratio_after_bytes: u64,
    /// Entries of the archive: 200,000.
    pub entries: u64,
    /// Bytes of one file: 2 GiB.
    pub file_bytes: u64,
    /// Bytes of a path or of a link's target: 1,024.
    pub path_bytes: usize,
    /// Bytes of one component of a path: 255.
    pub component_bytes: usize,
    /// Components of a path: 32.
    pub depth: usize,
    /// Bytes of all paths and link targets together, which bounds the memory the check needs: 64 MiB.
    pub names_bytes: usize,
    /// Time on the wall for one artifact: 10 minutes.
    pub wall_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            compressed_bytes: 1024 * MIB,
            expanded_bytes: 4 * 1024 * MIB,
            ratio: 200,
            ratio_after_bytes: 10 * MIB,
            entries: 200_000,
            file_bytes: 2 * 1024 * MIB,
            path_bytes: 1024,
            component_bytes: 255,
            depth: 32,
            names_bytes: 64 * 1024 * 1024,
            wall_time: Duration::from_secs(600),
        }
    }
}
