//! Writing and removing files so that a crash, a full disk or a hostile app user changes nothing
//! they should not.
//!
//! Root works in directories that belong to root alone; the one exception, a pod's `data/`, is
//! only ever removed, by [`remove_tree`], which follows no link and needs neither stack nor
//! descriptors for deep trees.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fsync,
    openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

/// A call on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct FileError {
    /// The verb.
    pub doing: &'static str,
    /// Its object.
    pub path: PathBuf,
    /// What the kernel answered.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// The disk or the quota is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Who may read what is written. Without a group only the writer may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// The permission bits.
    pub(crate) mode: u32,
    /// The owner, if not the writer.
    pub(crate) uid: Option<u32>,
    /// The group, if not the writer's.
    pub(crate) gid: Option<u32>,
}

impl Access {
    /// These bits, owner and group as the writer's.
    pub(crate) const fn mode(mode: u32) -> Self {
        Self {
            mode,
            uid: None,
            gid: None,
        }
    }

    fn apply(self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.uid.is_some() || self.gid.is_some() {
            fchown(
                file,
                self.uid.map(Uid::from_raw),
                self.gid.map(Gid::from_raw),
            )?;
        }
        // After the owner: changing it clears bits.
        fchmod(file, Mode::from_raw_mode(self.mode))
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes a directory, or takes the one that is there, and gives it this access. A link or anything
/// else in its place is refused.
pub(crate) fn make_dir(path: &Path, access: Access) -> Result<(), FileError> {
    let error = |errno: Errno| FileError::new("make the directory", path, errno);
    match fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(error(errno)),
    }
    let dir = openat(CWD, path, DIRECTORY, Mode::empty()).map_err(error)?;
    access.apply(dir.as_fd()).map_err(error)
}

/// Puts a file in place whole: a reader, or a crash, sees the old content or the new.
/// `durable` waits until it is on disk.
pub(crate) fn write(
    path: &Path,
    bytes: &[u8],
    access: Access,
    durable: bool,
) -> Result<(), FileError> {
    let error = |source: io::Error| FileError::new("write", path, source);
    let (dir_path, name) = split(path).map_err(error)?;
    let dir = openat(CWD, dir_path, DIRECTORY, Mode::empty()).map_err(|e| error(e.into()))?;
    let temporary = temporary_name(name);
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let result = (|| -> io::Result<()> {
        let file = openat(&dir, &temporary, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        file.write_all(bytes)?;
        access.apply(file.as_fd())?;
        if durable {
            file.sync_all()?;
        }
        renameat(&dir, &temporary, &dir, name)?;
        if durable {
            fsync(&dir)?;
        }
        Ok(())
    })();
    if result.is_err() {
        // Nothing is left behind by a full disk; what cannot be removed is overwritten next time.
        let _ = unlinkat(&dir, &temporary, AtFlags::empty());
    }
    result.map_err(error)
}

/// Makes `path` a symbolic link to `target`, replacing a link that is there in one step. It is not
/// on disk yet when this returns.
pub(crate) fn link(path: &Path, target: &Path) -> Result<(), FileError> {
    let error = |source: io::Error| FileError::new("link", path, source);
    let (dir_path, name) = split(path).map_err(error)?;
    if std::fs::read_link(path).is_ok_and(|existing| existing == target) {
        return Ok(());
    }
    let dir = openat(CWD, dir_path, DIRECTORY, Mode::empty()).map_err(|e| error(e.into()))?;
    let temporary = temporary_name(name);
    let result = (|| -> rustix::io::Result<()> {
        match unlinkat(&dir, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        fs::symlinkat(target, &dir, &temporary)?;
        renameat(&dir, &temporary, &dir, name)
    })();
    result.map_err(|errno| error(errno.into()))
}

/// Waits until the names in a directory are on disk as they are now.
pub(crate) fn flush_names(dir: &Path) -> Result<(), FileError> {
    let error = |errno: Errno| FileError::new("flush", dir, errno);
    let open = openat(CWD, dir, DIRECTORY, Mode::empty()).map_err(error)?;
    fsync(open).map_err(error)
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    temporary
}

/// Reads a file of at most `limit` bytes without following a link at its end. None when there is
/// none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    match open(path, limit)? {
        Some(file) => file.read().map(Some),
        None => Ok(None),
    }
}

/// A file that is open, and what was true of it then: by its path it may be another one by now.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    path: &'a Path,
    file: std::fs::File,
    limit: u64,
    /// Whose it is, and who may write it.
    pub(crate) metadata: std::fs::Metadata,
}

impl Opened<'_> {
    /// What is in it, up to the limit that it was opened with.
    pub(crate) fn read(self) -> Result<Vec<u8>, FileError> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        match self.file.take(self.limit).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(FileError::new("read", self.path, error)),
        }
    }
}

/// Opens a file of at most `limit` bytes without following a link at its end. None when there is
/// none.
pub(crate) fn open(path: &Path, limit: u64) -> Result<Option<Opened<'_>>, FileError> {
    let error = |source: io::Error| FileError::new("read", path, source);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(error(errno.into())),
    };
    let metadata = file.metadata().map_err(error)?;
    if !metadata.is_file() || metadata.len() > limit {
        let why = format!("it is no regular file of at most {limit} bytes");
        return Err(error(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    Ok(Some(Opened {
        path,
        file,
        limit,
        metadata,
    }))
}

/// How often a directory that keeps filling up is emptied before giving up.
const PASSES: usize = 64;

/// Removes whatever is at `path`. What is there is first moved into `trash`, a directory of the
/// caller's alone, so that nobody finds it by its path any more, and removed there without
/// following links. Also finishes what an earlier call left in `trash`.
pub(crate) fn remove_tree(path: &Path, trash: &Path) -> Result<(), FileError> {
    let error = |source: io::Error| FileError::new("remove", path, source);
    let (dir_path, name) = split(path).map_err(error)?;
    let bin = openat(CWD, trash, DIRECTORY, Mode::empty())
        .map_err(|errno| FileError::new("open", trash, errno))?;
    match openat(CWD, dir_path, DIRECTORY, Mode::empty()) {
        Ok(dir) => {
            make_writable(&dir, name);
            move_in(&dir, name, &bin).map_err(|errno| error(errno.into()))?;
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(error(errno.into())),
    }
    empty(&bin).map_err(|errno| FileError::new("empty", trash, errno))
}

fn move_in(dir: &OwnedFd, name: &OsStr, bin: &OwnedFd) -> rustix::io::Result<()> {
    for _ in 0..PASSES {
        let target = format!("{:016x}", rand::random::<u64>());
        match renameat_with(dir, name, bin, &target, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            result => return result,
        }
    }
    Err(Errno::EXIST)
}

/// Directories that others may fill are emptied one level at a time: what lies deeper is moved up
/// into `bin`, so no depth costs more than another.
fn empty(bin: &OwnedFd) -> rustix::io::Result<()> {
    for _ in 0..PASSES {
        let mut found = false;
        // Entries are moved in while it is read: the next pass sees those that were missed.
        loop {
            let entries = entries(bin)?;
            if entries.is_empty() {
                break;
            }
            found = true;
            let mut progress = false;
            for name in entries {
                progress |= remove_level(bin, &name)?;
            }
            if !progress {
                return Err(Errno::NOTEMPTY);
            }
        }
        if !found {
            return Ok(());
        }
    }
    Err(Errno::NOTEMPTY)
}

/// Removes one entry of `bin`, or moves what is in it up. Says whether anything changed.
fn remove_level(bin: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    match unlinkat(bin, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    make_writable(bin, name);
    let dir = match openat(bin, name, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let mut progress = false;
    for child in entries(&dir)? {
        match unlinkat(&dir, &child, AtFlags::empty()) {
            Ok(()) => progress = true,
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                match unlinkat(&dir, &child, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(_) => {
                        make_writable(&dir, &child);
                        move_in(&dir, &child, bin)?;
                    }
                }
                progress = true;
            }
            Err(errno) => return Err(errno),
        }
    }
    match unlinkat(bin, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(progress),
        Err(errno) => Err(errno),
    }
}

/// Without root a directory that its own user made unreadable cannot be emptied: it is made
/// readable first. Root needs nothing of the kind and touches no modes.
fn make_writable(dir: &OwnedFd, name: &OsStr) {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(child) = openat(dir, name, flags, Mode::empty()) {
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", child.as_raw_fd());
        // If it fails, the removal fails and says why.
        let _ = fs::chmod(path, Mode::RWXU);
    }
}

fn entries(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    /// Enough for one round; a directory with more is read again.
    const ROUND: usize = 4096;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
        if names.len() == ROUND {
            break;
        }
    }
    Ok(names)
}

/// The names in a directory that are directories themselves, sorted; none when there is no such
/// directory.
pub(crate) fn subdirectories(path: &Path) -> Result<Vec<String>, FileError> {
    let error = |errno: Errno| FileError::new("read", path, errno);
    let dir = match openat(CWD, path, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(error(errno)),
    };
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name();
        let is_dir = match entry.file_type() {
            FileType::Unknown => fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            known => known == FileType::Directory,
        };
        if let Ok(name) = name.to_str()
            && is_dir
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn with_trash() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let trash = dir.path().join("trash");
        make_dir(&trash, Access::mode(0o700)).unwrap();
        (dir, trash)
    }

    #[test]
    fn removing_a_tree_leaves_what_its_links_point_to() {
        let (dir, trash) = with_trash();
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "alive").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&canary, tree.join("link")).unwrap();
        symlink(&canary, tree.join("a/b/link")).unwrap();
        fs::hard_link(canary.join("file"), tree.join("a/hard")).unwrap();
        remove_tree(&tree, &trash).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "alive");
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
        remove_tree(&tree, &trash).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_stack_and_descriptors_allow_is_removed() {
        let (dir, trash) = with_trash();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = openat(CWD, &tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&tree, &trash).unwrap();
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_refused_and_in_that_of_a_file_replaced() {
        let (dir, _) = with_trash();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        assert!(make_dir(&dir.path().join("link"), Access::mode(0o755)).is_err());
        assert!(
            write(
                &dir.path().join("link/file"),
                b"x",
                Access::mode(0o600),
                false
            )
            .is_err()
        );
        symlink(target.join("out"), dir.path().join("file")).unwrap();
        write(&dir.path().join("file"), b"x", Access::mode(0o640), true).unwrap();
        assert!(!target.join("out").exists(), "the link was not followed");
        let mode = fs::symlink_metadata(dir.path().join("file"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn what_was_written_to_last_is_there_whole_after_the_power_failed() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let Some(mut disk) = platctrl_test_support::power_cut::Disk::mount(at, 64) else {
            return;
        };
        let path = at.join("record");
        let large = vec![b'x'; 100_000];
        for (content, lasts) in [(&b"one"[..], true), (&large, true), (b"two", false)] {
            write(&path, content, Access::mode(0o600), lasts).unwrap();
            disk.cut();
            let found = fs::read(&path).unwrap();
            assert_eq!(found == content, lasts, "{} bytes", content.len());
        }
        write(&path, b"three", Access::mode(0o600), true).unwrap();
        fs::remove_file(&path).unwrap();
        disk.cut();
        assert!(path.exists(), "nobody flushed that it is gone");
        fs::remove_file(&path).unwrap();
        flush_names(at).unwrap();
        disk.cut();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_flipped_whole() {
        let (dir, _) = with_trash();
        let path = dir.path().join("current");
        for target in ["one", "two", "two"] {
            link(&path, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
        }
    }
}
