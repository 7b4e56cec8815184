//! Everything that can go wrong with an artifact, each with the thing, the cause and the way out.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Digest;

/// Why an artifact could not be built, fetched, checked or installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The archive breaks a rule. Nothing of it is kept.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is nothing in the artifact that could be launched.
    #[error("{problem}")]
    LaunchInvalid {
        /// What is wrong with which file.
        problem: String,
    },
    /// The bytes are not the ones that were asked for.
    #[error(
        "{what} has the digest {actual}, but {expected} was asked for; correct the digest, or publish the right artifact there"
    )]
    DigestMismatch {
        /// Whose bytes: a location or a file.
        what: String,
        /// The digest of the bytes that came.
        actual: Digest,
        /// The digest that the intent names.
        expected: Digest,
    },
    /// A location of a form the agent cannot fetch from.
    #[error(
        "location `{location}` cannot be fetched: {reason}; what works is https://HOST/PATH, s3://BUCKET/KEY, file:/DIR/FILE under a directory the agent allows, and artifact:sha256:HEX from the server (`platctrl apply` uploads a local file and writes that)"
    )]
    UnsupportedLocation {
        /// The location, escaped.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A `file:` location outside the directories that the agent may read artifacts from.
    #[error(
        "file:{path} is not under a directory this agent may read artifacts from ({allowed}); move the file there, or have the operator allow its directory"
    )]
    OutsideAllowed {
        /// The path, escaped.
        path: String,
        /// The allowed directories, or `none are configured`.
        allowed: String,
    },
    /// The source has no such artifact.
    #[error("{location} does not exist{hint}")]
    NotFound {
        /// Where it was looked for.
        location: String,
        /// The way out, beginning with its own punctuation; may be empty.
        hint: String,
    },
    /// The fetch user may not read the file.
    #[error(
        "{path} cannot be read as {user}: {source}; let that user read the file and enter the directories above it"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// Who tried.
        user: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The server gave no usable answer.
    #[error("{server} did not give {digest}: {reason}")]
    Server {
        /// The server's address.
        server: String,
        /// What was asked for.
        digest: Digest,
        /// What it answered.
        reason: String,
    },
    /// What the server answered leads nowhere, now or later.
    #[error(
        "{server} cannot give {digest}: {reason}; correct the location, or what is served there"
    )]
    ServerRefused {
        /// The server's address.
        server: String,
        /// What was asked for.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// More bytes than the limit.
    #[error(
        "{what} is larger than {limit} bytes, the limit for an artifact on this node: leave out what it does not need to run"
    )]
    TooLarge {
        /// Whose bytes.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Nothing came for too long, or the whole took too long.
    #[error("{what} {problem} {after:?}")]
    TimedOut {
        /// What was awaited.
        what: String,
        /// `sent nothing for`, `was not done after`.
        problem: &'static str,
        /// The time that was allowed.
        after: Duration,
    },
    /// The disk or the quota is full. What was written so far has been removed.
    #[error("no space left at {}: free some, or move the data directory", path.display())]
    NoSpace {
        /// The file system's path.
        path: PathBuf,
    },
    /// Another process works in this data directory.
    #[error("{} is in use by another platctrl process: stop that one, or choose another data directory", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The helper process ended without an answer.
    #[error("the {task} process ended without an answer ({status}){said}")]
    Child {
        /// `unpack` or `read`.
        task: &'static str,
        /// Its exit status.
        status: String,
        /// The last of what it said, escaped; may be empty.
        said: String,
    },
    /// The unpacked tree is not what its unpacker reported: it was tampered with.
    #[error("the unpacked tree was refused: {path} {problem}")]
    Tampered {
        /// The path inside the tree, escaped.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl Error {
    /// The cause in one word of CamelCase, for a condition's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(_) | Self::Tampered { .. } => "ArtifactRefused",
            Self::LaunchInvalid { .. } => "LaunchInvalid",
            Self::DigestMismatch { .. } => "DigestMismatch",
            Self::UnsupportedLocation { .. } => "UnsupportedLocation",
            Self::OutsideAllowed { .. } => "LocationNotAllowed",
            Self::NotFound { .. } => "ArtifactNotFound",
            Self::Unreadable { .. } => "ArtifactUnreadable",
            Self::Server { .. } | Self::ServerRefused { .. } => "FetchFailed",
            Self::TooLarge { .. } => "ArtifactTooLarge",
            Self::TimedOut { .. } => "TimedOut",
            Self::NoSpace { .. } => "NoSpace",
            Self::Busy { .. } => "Busy",
            Self::Child { .. } | Self::Io { .. } => "InstallFailed",
        }
    }

    /// Whether trying again with the same location and digest can only fail again, because the
    /// fault is in the bytes or in what was asked for.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::LaunchInvalid { .. }
                | Self::UnsupportedLocation { .. }
                | Self::OutsideAllowed { .. }
                | Self::ServerRefused { .. }
                | Self::TooLarge { .. }
        )
    }

    /// An I/O error at `path`; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(
        doing: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io {
                doing,
                path,
                source,
            },
        }
    }
}

/// The rule an archive broke, and which of its entries did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the artifact was refused: {}{detail} ({rule:?})", prefix(entry))]
pub struct Refusal {
    /// The entry's path, escaped and shortened; empty when the archive as a whole is at fault.
    pub entry: String,
    /// Which rule.
    pub rule: Rule,
    /// What was found.
    pub detail: String,
}

fn prefix(entry: &str) -> String {
    if entry.is_empty() {
        String::new()
    } else {
        format!("entry `{entry}`: ")
    }
}

/// The rules of an artifact. All are allow-lists: what is not known to be harmless is refused, and
/// with it the whole artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Rule {
    /// One gzip member is expected, and this is not gzip.
    NotGzip,
    /// The gzip stream is damaged or cut short.
    CorruptGzip,
    /// There is something after the gzip member or after the archive's end.
    TrailingData,
    /// The archive ends early.
    Truncated,
    /// A header that is not ustar, or whose checksum is wrong.
    BadHeader,
    /// A number in a header that is not plain octal.
    BadNumber,
    /// An extension header (PAX, GNU long name) that is malformed, doubled, mixed or has no entry.
    BadExtension,
    /// A size given twice, differently.
    SizeConflict,
    /// A type other than file, directory, symbolic link or hard link.
    EntryType,
    /// Sparse files.
    Sparse,
    /// Extended attributes, capabilities, access control lists.
    ExtendedAttributes,
    /// A path from the root.
    AbsolutePath,
    /// A `..` in a path.
    ParentComponent,
    /// An empty or `.` component, or a name of blanks.
    BadComponent,
    /// Not UTF-8, or control characters.
    BadCharacter,
    /// A path, component or nesting beyond the limits.
    PathTooLong,
    /// The same path twice.
    Duplicate,
    /// Two paths that differ only by case or Unicode form.
    Collision,
    /// Something beneath a file or a symbolic link.
    ParentNotDirectory,
    /// A symbolic link that leaves the artifact, or could.
    SymlinkTarget,
    /// A hard link to anything but a file that came earlier.
    HardLinkTarget,
    /// A name that the installer keeps for itself.
    ReservedName,
    /// Too many entries.
    TooManyEntries,
    /// Too many bytes: of the artifact, a file, all files, or of all names.
    TooLarge,
    /// Compressed suspiciously well.
    CompressionRatio,
    /// Took too long.
    TooSlow,
}

/// A refusal of `entry`, as an error.
pub(crate) fn refuse(entry: &[u8], rule: Rule, detail: impl Into<String>) -> Error {
    Error::Refused(Refusal {
        entry: super::escape(entry),
        rule,
        detail: detail.into(),
    })
}
