//! Writes an archive's tree into an open directory, and nowhere else.
//!
//! Two independent fences keep it inside: the rules (no `..`, nothing beneath a link) and the
//! kernel, which resolves every path with `openat2` beneath the directory, refusing symbolic links
//! on the way. Links are made last, when nothing is written any more.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags};

use super::archive::{self, Body, Sink, Totals};
use super::{Digest, Error, Limits};

/// How paths inside a tree are resolved, everywhere.
pub(super) const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const EXECUTABLE: Mode = Mode::from_raw_mode(0o755);
const PLAIN: Mode = Mode::from_raw_mode(0o644);

/// Unpacks the artifact `input` into the empty directory `root`.
///
/// Nothing is flushed to the disk and nothing is removed on failure: both are the caller's.
pub(super) fn unpack(
    input: impl Read,
    what: &str,
    expected: Option<&Digest>,
    limits: &Limits,
    root: OwnedFd,
) -> Result<Totals, Error> {
    let mut extractor = Extractor {
        root,
        parent: None,
        symlinks: Vec::new(),
    };
    let totals = archive::read(input, what, expected, limits, &mut extractor)?;
    extractor.make_symlinks()?;
    Ok(totals)
}

struct Extractor {
    root: OwnedFd,
    /// The directory of the last entry, open: most entries are in the same one.
    parent: Option<(String, OwnedFd)>,
    symlinks: Vec<(String, String)>,
}

impl Extractor {
    /// The open directory that `path` lies in, and its name there.
    fn locate<'p>(&mut self, path: &'p str) -> Result<(&OwnedFd, &'p str), Error> {
        let Some((parent, name)) = path.rsplit_once('/') else {
            return Ok((&self.root, path));
        };
        let known = self.parent.take().filter(|(known, _)| known == parent);
        let known = match known {
            Some(known) => known,
            None => (parent.to_owned(), self.open(parent)?),
        };
        Ok((&self.parent.insert(known).1, name))
    }

    fn open(&self, directory: &str) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat2(&self.root, directory, flags, Mode::empty(), INSIDE)
            .map_err(|e| Error::io("open", directory, e))
    }

    fn make_symlinks(&mut self) -> Result<(), Error> {
        for (path, target) in std::mem::take(&mut self.symlinks) {
            let (parent, name) = self.locate(&path)?;
            fs::symlinkat(&target, parent, name).map_err(|e| Error::io("link", &path, e))?;
        }
        Ok(())
    }
}

impl Sink for Extractor {
    fn directory(&mut self, path: &str) -> Result<(), Error> {
        let io = |e| Error::io("make directory", path, e);
        let (parent, name) = self.locate(path)?;
        fs::mkdirat(parent, name, DIRECTORY).map_err(io)?;
        // The mode is set on the open directory, whatever the umask is.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::openat2(parent, name, flags, Mode::empty(), INSIDE).map_err(io)?;
        fs::fchmod(&directory, DIRECTORY).map_err(io)?;
        self.parent = Some((path.to_owned(), directory));
        Ok(())
    }

    fn file(&mut self, path: &str, executable: bool, body: &mut Body<'_>) -> Result<(), Error> {
        let io = |e: std::io::Error| Error::io("write", path, e);
        let (parent, name) = self.locate(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if executable { EXECUTABLE } else { PLAIN };
        let file = fs::openat2(parent, name, flags, mode, INSIDE).map_err(|e| io(e.into()))?;
        fs::fchmod(&file, mode).map_err(|e| io(e.into()))?;
        let mut file = File::from(file);
        body.for_each(|chunk| file.write_all(chunk).map_err(io))
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error> {
        self.symlinks.push((path.to_owned(), target.to_owned()));
        Ok(())
    }

    fn hard_link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        let io = |e| Error::io("link", path, e);
        let (from, from_name) = match target.rsplit_once('/') {
            Some((parent, name)) => (self.open(parent)?, name),
            None => (
                self.root
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(|e| Error::io("link", path, e))?,
                target,
            ),
        };
        let (parent, name) = self.locate(path)?;
        // Without AT_SYMLINK_FOLLOW, and the target is a file of this archive.
        fs::linkat(&from, from_name, parent, name, AtFlags::empty()).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_kernel_follows_no_link_even_if_the_rules_had_let_one_in() {
        let area = tempfile::tempdir().unwrap();
        let target = area.path().join("target");
        fs::create_dir_all(target.join("real/below")).unwrap();
        for (name, link) in [("out", ".."), ("absolute", "/tmp"), ("inside", "real")] {
            std::os::unix::fs::symlink(link, target.join(name)).unwrap();
        }
        let root = File::open(&target).unwrap().into();
        let mut extractor = Extractor {
            root,
            parent: None,
            symlinks: Vec::new(),
        };
        extractor.directory("real/below/d").unwrap();
        for path in [
            "out/x",
            "absolute/x",
            "inside/x",
            "inside/below/x",
            "../x",
            "/tmp/x",
        ] {
            let error = extractor.directory(path).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{path}: {error}");
            let error = extractor.hard_link("real/h", path).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{path}: {error}");
        }
        assert_eq!(fs::read_dir(target.join("real")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(area.path()).unwrap().count(), 1);
    }
}
