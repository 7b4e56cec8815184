//! Turns a tree that an unprivileged process has written into an install: sealed, marked, renamed.
//!
//! The steps and why they are in this order. (1) Walk the tree by open directories, check that it
//! is what an unpacker makes and nothing else, and make it root's. (2) Flush it. (3) Write the
//! marker, flush it and its directory. (4) Rename the whole to its name, flush that. The name
//! exists only after all bytes are on the disk, and the marker says so once more: a crash anywhere
//! leaves a temporary directory, which the next start removes, or the complete install.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use serde::{Deserialize, Serialize};

use super::rules::{self, MARKER};
use super::unpack::INSIDE;
use super::{ChildUser, Digest, Error, Launch, Limits, launch};

/// The form of the marker and of the tree beside it.
const FORMAT: u32 = 1;
/// A marker has a few hundred bytes, and up to that much with a large `bin/launch/`.
const MARKER_BYTES: u64 = 4 * 1024 * 1024;

/// Up to this many entries are flushed one by one; a larger tree by one flush of the file system.
///
/// An artifact may have a hundred thousand files, and flushing each is a commit of the file
/// system's journal of its own. Flushing the file system is one, but also waits for whatever others
/// have written there and not flushed: nothing a small artifact should wait for. Both report errors
/// of writing back.
const FEW: u64 = 64;

/// An installed artifact: complete, checked, never changed again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Install {
    /// The directory it is installed in.
    pub path: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// What it offers to be started, beneath `path`.
    pub launch: Launch,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    format: u32,
    digest: Digest,
    entries: u64,
    bytes: u64,
    launch: Launch,
}

/// The install of `digest` at `path`, if one is complete there.
pub(super) fn installed(path: &Path, digest: &Digest) -> Option<Install> {
    let file = fs::open(
        path.join(MARKER),
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let file = File::from(file.ok()?);
    let metadata = file.metadata().ok()?;
    // What root installed, only root can have marked.
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MARKER_BYTES).read_to_end(&mut text).ok()?;
    let marker: Marker = serde_json::from_slice(&text).ok()?;
    (marker.format == FORMAT && marker.digest == *digest).then(|| Install {
        path: path.to_owned(),
        digest: *digest,
        launch: marker.launch,
    })
}

/// Notes that the install is being used, which is what keeps it longest when room is short.
pub(super) fn touch(install: &Install) {
    let now = fs::Timespec {
        tv_sec: 0,
        tv_nsec: fs::UTIME_NOW,
    };
    let times = fs::Timestamps {
        last_access: now,
        last_modification: now,
    };
    let marker = install.path.join(MARKER);
    // One that is wrongly believed unused is fetched again at worst.
    let _ = fs::utimensat(fs::CWD, &marker, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// About how many bytes the install at `path` has on the disk, and when it was used last.
pub(super) fn measure(path: &Path) -> (u64, SystemTime) {
    /// What a file takes beyond its bytes.
    const EACH: u64 = 4096;
    let marker = path.join(MARKER);
    let used = std::fs::symlink_metadata(&marker).and_then(|it| it.modified());
    let marker = File::open(&marker)
        .ok()
        .and_then(|file| serde_json::from_reader::<_, Marker>(file.take(MARKER_BYTES)).ok());
    let bytes = marker.map_or(0, |marker| {
        marker
            .bytes
            .saturating_add(marker.entries.saturating_mul(EACH))
    });
    (bytes, used.unwrap_or(SystemTime::UNIX_EPOCH))
}

/// What the unpacker said of the tree, which is compared with what is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) digest: Digest,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Makes the tree in the directory `from` (written by `owner`) the install at `to`.
///
/// Blocks. On failure `from` is left as it is then, for the caller to remove.
pub(super) fn complete(
    from: &Path,
    to: &Path,
    owner: Option<ChildUser>,
    told: Told,
    limits: &Limits,
) -> Result<Install, Error> {
    let root = open_directory(from)?;
    let few = told.entries <= FEW;
    Seal::new(owner, few, limits).tree(&root, told.entries)?;
    let launch = launch::judge(Launch::look(&root)?, Some(std::env::consts::ARCH))?;

    if !few {
        fs::syncfs(&root).map_err(|e| Error::io("flush", from, e))?;
    }

    let Told {
        digest,
        entries,
        bytes,
    } = told;
    let marker = Marker {
        format: FORMAT,
        digest,
        entries,
        bytes,
        launch,
    };
    write_marker(&root, &marker).map_err(|e| Error::io("mark", from, e))?;
    rename(from, to)?;
    Ok(Install {
        path: to.to_owned(),
        digest,
        launch: marker.launch,
    })
}

fn write_marker(root: &OwnedFd, marker: &Marker) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = fs::openat2(root, MARKER, flags, Mode::from_raw_mode(0o644), INSIDE)?;
    let mut file = File::from(file);
    file.write_all(&serde_json::to_vec(marker)?)?;
    fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    file.sync_all()?;
    fs::fsync(root)?;
    Ok(())
}

/// Renames `from` to `to` in the same directory, for good.
fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    let io = |e| Error::io("rename to", to, e);
    fs::renameat_with(fs::CWD, from, fs::CWD, to, RenameFlags::NOREPLACE).map_err(io)?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    fs::fsync(open_directory(parent)?).map_err(io)
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open", path, e))
}

/// Checks a tree and makes it root's (when root), by open directories, following nothing.
struct Seal {
    /// Who must own everything now.
    owner: Uid,
    /// Whether everything becomes root's.
    take: bool,
    /// Whether everything is flushed on the way.
    flush: bool,
    device: u64,
    /// Files with several names that have been taken under the first.
    taken: HashSet<u64>,
    limits: Limits,
    entries: u64,
}

impl Seal {
    fn new(owner: Option<ChildUser>, flush: bool, limits: &Limits) -> Self {
        Self {
            owner: owner.map_or_else(rustix::process::geteuid, |user| Uid::from_raw(user.uid)),
            take: owner.is_some(),
            flush,
            device: 0,
            taken: HashSet::new(),
            limits: limits.clone(),
            entries: 0,
        }
    }

    fn tree(mut self, root: &OwnedFd, entries: u64) -> Result<(), Error> {
        let stat = fs::fstat(root).map_err(|e| Error::io("look at", "the tree", e))?;
        self.device = stat.st_dev;
        self.check(".", &stat)?;
        self.take_directory(".", root)?;
        // It was private to its writer so far.
        fs::fchmod(root, Mode::from_raw_mode(0o755))
            .map_err(|e| Error::io("seal", "the tree", e))?;
        self.directory("", root, 0)?;
        if self.entries != entries {
            let problem = format!("has {} entries, not {entries}", self.entries);
            return Err(Error::Tampered {
                path: ".".into(),
                problem,
            });
        }
        Ok(())
    }

    fn directory(&mut self, prefix: &str, directory: &OwnedFd, depth: usize) -> Result<(), Error> {
        let io = |e| Error::io("read", prefix, e);
        if depth > self.limits.depth {
            return Err(tampered(prefix, "is nested too deeply"));
        }
        for entry in Dir::read_from(directory.as_fd()).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = format!("{prefix}{}", name.to_string_lossy());
            let io = |e| Error::io("seal", &path, e);
            self.entries += 1;
            let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
            let kind = self.check(&path, &stat)?;
            if kind == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let child =
                    fs::openat2(directory, name, flags, Mode::empty(), INSIDE).map_err(io)?;
                self.take_directory(&path, &child)?;
                self.directory(&format!("{path}/"), &child, depth + 1)?;
                continue;
            }
            if kind == FileType::Symlink {
                let target = fs::readlinkat(directory, name, Vec::new()).map_err(io)?;
                if rules::symlink(&path, target.to_bytes(), &self.limits).is_err() {
                    return Err(tampered(&path, "links to where no unpacker lets it"));
                }
            }
            if self.take {
                let (uid, gid) = (Some(Uid::ROOT), Some(Gid::ROOT));
                fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
                if stat.st_nlink > 1 {
                    self.taken.insert(stat.st_ino);
                }
            }
            if self.flush && kind == FileType::RegularFile {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file =
                    fs::openat2(directory, name, flags, Mode::empty(), INSIDE).map_err(io)?;
                fs::fsync(&file).map_err(io)?;
            }
        }
        if self.flush {
            fs::fsync(directory).map_err(io)?;
        }
        Ok(())
    }

    /// Before its entries, so that its writer, were it still there, could add none.
    fn take_directory(&self, path: &str, directory: &OwnedFd) -> Result<(), Error> {
        if self.take {
            fs::fchown(directory, Some(Uid::ROOT), Some(Gid::ROOT))
                .map_err(|e| Error::io("seal", path, e))?;
        }
        Ok(())
    }

    fn check(&self, path: &str, stat: &Stat) -> Result<FileType, Error> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mode = stat.st_mode & 0o7777;
        let is_root = path == ".";
        let owned = stat.st_uid == self.owner.as_raw() || self.taken.contains(&stat.st_ino);
        if !owned {
            return Err(tampered(path, "belongs to somebody else"));
        }
        if stat.st_dev != self.device {
            return Err(tampered(
                path,
                "is on another file system than the tree: the data directory has to be on one, and an overlay of several is not",
            ));
        }
        let plain = match kind {
            FileType::RegularFile => matches!(mode, 0o644 | 0o755),
            FileType::Directory => mode == 0o755 || is_root,
            FileType::Symlink => true,
            _ => false,
        };
        if !plain {
            return Err(tampered(path, "has a type or mode that no unpacker gives"));
        }
        Ok(kind)
    }
}

fn tampered(path: &str, problem: &str) -> Error {
    Error::Tampered {
        path: super::escape(path.as_bytes()),
        problem: problem.to_owned(),
    }
}
