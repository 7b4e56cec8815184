//! Looks at an artifact file: what is in it ([`inspect`]), and whether an agent would take it
//! ([`verify`]).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::Serialize;

use super::archive::{self, Body, Sink};
use super::launch::{self, Found, HEAD};
use super::{Digest, Error, Launch, Limits, unpack};

/// What an artifact contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Summary {
    /// The digest of the file.
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of all files in it, unpacked.
    pub unpacked_size: u64,
    /// Its entries, in the order of the archive.
    pub entries: Vec<EntrySummary>,
    /// What it offers to be started, for any machine.
    pub launch: Option<Launch>,
    /// Why it cannot be started, when it cannot.
    pub launch_problem: Option<String>,
}

/// One entry of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct EntrySummary {
    /// The path inside the artifact.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes, of a file; else 0.
    pub size: u64,
    /// Whether it gets installed as executable.
    pub executable: bool,
    /// Where a link points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of an earlier file.
    HardLink,
}

/// What [`verify`] found to be in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Verified {
    /// The digest of the file.
    pub digest: Digest,
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of all files, unpacked.
    pub unpacked_size: u64,
    /// What it offers to be started on this machine.
    pub launch: Launch,
}

/// Reads the artifact `file` through every check without writing anything.
///
/// An artifact that is well-formed and cannot be started is no error: [`Summary::launch_problem`].
/// Blocks; takes about as long as `gunzip`.
///
/// # Errors
/// [`Error::Refused`] with the entry and the rule; [`Error::NotFound`] and [`Error::Io`].
pub fn inspect(file: impl AsRef<Path>) -> Result<Summary, Error> {
    let (input, size) = open(file.as_ref())?;
    let summary = summarize(input, &Limits::default())?;
    Ok(Summary { size, ..summary })
}

/// Does to the artifact `file` what an agent does: reads it through every check, unpacks it (into a
/// temporary directory, removed again), and looks at its `bin/launch` for this machine.
///
/// Blocks; takes about as long as `tar xzf`.
///
/// # Errors
/// [`Error::Refused`] with the entry and the rule, [`Error::DigestMismatch`],
/// [`Error::LaunchInvalid`]; [`Error::NotFound`], [`Error::NoSpace`] and [`Error::Io`].
pub fn verify(file: impl AsRef<Path>, expected: Option<&Digest>) -> Result<Verified, Error> {
    verify_within(file.as_ref(), expected, &Limits::default())
}

pub(super) fn verify_within(
    file: &Path,
    expected: Option<&Digest>,
    limits: &Limits,
) -> Result<Verified, Error> {
    let (input, _) = open(file)?;
    // Random name, mode 0700: nobody else gets into it.
    let directory = tempfile::Builder::new()
        .prefix("platctrl-verify-")
        .tempdir()
        .map_err(|e| Error::io("make a directory in", std::env::temp_dir(), e))?;
    let open_directory = || {
        File::open(directory.path())
            .map(OwnedFd::from)
            .map_err(|e| Error::io("open", directory.path(), e))
    };
    let what = super::escape(file.as_os_str().as_encoded_bytes());
    let totals = unpack::unpack(input, &what, expected, limits, open_directory()?)?;
    let found = Launch::look(&open_directory()?)?;
    let launch = launch::judge(found, Some(std::env::consts::ARCH))?;
    Ok(Verified {
        digest: totals.digest,
        entries: totals.entries,
        unpacked_size: totals.bytes,
        launch,
    })
}

fn open(file: &Path) -> Result<(File, u64), Error> {
    let io = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound {
            location: file.display().to_string(),
            hint: String::new(),
        },
        _ => Error::io("read", file, e),
    };
    let input = File::open(file).map_err(io)?;
    let metadata = input.metadata().map_err(io)?;
    if metadata.is_dir() {
        let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(Error::Io {
            doing: "read",
            path: file.to_owned(),
            source,
        });
    }
    Ok((input, metadata.len()))
}

/// Reads an artifact and remembers what it saw.
pub(super) fn summarize(input: impl Read, limits: &Limits) -> Result<Summary, Error> {
    let mut collector = Collector {
        entries: Vec::new(),
        files: HashMap::new(),
        launch: Found::Missing,
    };
    let totals = archive::read(input, "the artifact", None, limits, &mut collector)?;
    let (launch, launch_problem) = match launch::judge(collector.launch, None) {
        Ok(launch) => (Some(launch), None),
        Err(problem) => (None, Some(problem.to_string())),
    };
    Ok(Summary {
        digest: totals.digest,
        size: 0,
        unpacked_size: totals.bytes,
        entries: collector.entries,
        launch,
        launch_problem,
    })
}

struct Collector {
    entries: Vec<EntrySummary>,
    /// Each file's mode and first bytes, for a hard link to be looked up.
    files: HashMap<String, (bool, Vec<u8>)>,
    launch: Found,
}

impl Collector {
    /// Remembers what is at, or right beneath, `bin/launch`.
    fn note(&mut self, path: &str, found: Found) {
        if path == "bin/launch" {
            self.launch = found;
        } else if let Some(name) = path.strip_prefix("bin/launch/")
            && !name.contains('/')
            && let Found::Directory(entries) = &mut self.launch
        {
            entries.insert(name.to_owned(), found);
        }
    }

    fn push(&mut self, path: &str, kind: EntryKind, size: u64, executable: bool, target: &str) {
        let target = (!target.is_empty()).then(|| target.to_owned());
        self.entries.push(EntrySummary {
            path: path.to_owned(),
            kind,
            size,
            executable,
            target,
        });
    }
}

impl Sink for Collector {
    fn directory(&mut self, path: &str) -> Result<(), Error> {
        self.note(path, Found::Directory(BTreeMap::new()));
        self.push(path, EntryKind::Directory, 0, true, "");
        Ok(())
    }

    fn file(&mut self, path: &str, executable: bool, body: &mut Body<'_>) -> Result<(), Error> {
        let size = body.size();
        let mut head = Vec::new();
        body.for_each(|chunk| {
            head.extend(chunk.iter().take(HEAD - head.len()));
            Ok(())
        })?;
        self.files
            .insert(path.to_owned(), (executable, head.clone()));
        self.note(path, Found::File { executable, head });
        self.push(path, EntryKind::File, size, executable, "");
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error> {
        if path == "bin" {
            self.launch = Found::Symlink;
        }
        self.note(path, Found::Symlink);
        self.push(path, EntryKind::Symlink, 0, false, target);
        Ok(())
    }

    fn hard_link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        // The same file under a second name.
        let (executable, head) = self.files.get(target).cloned().unwrap_or_default();
        self.files
            .insert(path.to_owned(), (executable, head.clone()));
        self.note(path, Found::File { executable, head });
        self.push(path, EntryKind::HardLink, 0, executable, target);
        Ok(())
    }
}
