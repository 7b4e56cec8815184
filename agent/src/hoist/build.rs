//! Packs a directory into an artifact: the same bytes for the same tree, on any machine, whoever
//! packs it and when.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use rustix::fs::OFlags;
use serde::Serialize;

use super::digest::Hasher;
use super::inspect::summarize;
use super::rules;
use super::tar::Kind;
use super::{Digest, Error, Launch, Limits, launch};

/// A finished artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Built {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Packs the directory `dir` into the artifact `out_file`.
///
/// Entries are sorted; times, owners and finer modes are left out (a file is executable or not), so
/// equal trees give equal artifacts. `out_file` appears complete or not at all, and everything an
/// agent would refuse in it is refused here, except for programs of another machine: an artifact
/// may be built elsewhere than it runs. Blocks; takes about as long as `tar czf`.
///
/// # Errors
/// [`Error::LaunchInvalid`] when there is nothing to start; [`Error::Refused`] with the file that an
/// artifact cannot have; [`Error::Io`] and [`Error::NoSpace`].
///
/// # Example
/// ```no_run
/// let built = platctrl_agent::hoist::build("target/hello", "hello_1.0.0.tar.gz")?;
/// println!("{} ({} bytes)", built.digest, built.size);
/// # Ok::<(), platctrl_agent::hoist::Error>(())
/// ```
pub fn build(dir: impl AsRef<Path>, out_file: impl AsRef<Path>) -> Result<Built, Error> {
    let (dir, out_file) = (dir.as_ref(), out_file.as_ref());
    let limits = Limits::default();
    let root = File::open(dir).map_err(|e| Error::io("open the directory", dir, e))?;
    // The most common mistake gets its own answer, before any work.
    launch::judge(Launch::look(&OwnedFd::from(root))?, None)?;

    let out_dir = match out_file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let out = tempfile::Builder::new()
        .prefix(".hoist-build-")
        .tempfile_in(out_dir)
        .map_err(|e| Error::io("write in", out_dir, e))?;
    let skip = identities(&[out.path(), out_file])?;

    let io_out = |e: io::Error| Error::io("write", out_file, e);
    let hashed = Hashed {
        inner: BufWriter::new(out.as_file()),
        hasher: Hasher::default(),
    };
    let gzip = GzBuilder::new().mtime(0).write(hashed, Compression::new(6));
    let mut archive = tar::Builder::new(gzip);
    let mut pack = Pack {
        archive: &mut archive,
        skip: &skip,
        limits: &limits,
        out_file,
    };
    pack.directory(dir, "")?;
    let mut hashed = archive
        .into_inner()
        .and_then(GzEncoder::finish)
        .map_err(io_out)?;
    hashed.flush().map_err(io_out)?;
    let built = Built {
        digest: hashed.hasher.digest(),
        size: hashed.hasher.bytes(),
    };
    drop(hashed);

    // What we made has to pass what the agent will ask of it, limits included.
    let mut packed = out.reopen().map_err(io_out)?;
    packed.rewind().map_err(io_out)?;
    summarize(packed, &limits)?;

    // Readable like any file that a build makes; a temporary file is not.
    let mode = fs::Permissions::from_mode(0o644);
    out.as_file().set_permissions(mode).map_err(io_out)?;
    out.as_file().sync_all().map_err(io_out)?;
    out.persist(out_file).map_err(|e| io_out(e.error))?;
    Ok(built)
}

/// Device and inode of those `files` that exist: the artifact may be written into the directory it
/// is made of, and is not part of itself.
fn identities(files: &[&Path]) -> Result<Vec<(u64, u64)>, Error> {
    let mut identities = Vec::new();
    for file in files {
        match fs::metadata(file) {
            Ok(metadata) if metadata.is_dir() => {
                let source = io::Error::from(io::ErrorKind::IsADirectory);
                return Err(Error::io("write", file, source));
            }
            Ok(metadata) => identities.push((metadata.dev(), metadata.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", file, e)),
        }
    }
    Ok(identities)
}

struct Pack<'a, W: Write> {
    archive: &'a mut tar::Builder<W>,
    skip: &'a [(u64, u64)],
    limits: &'a Limits,
    out_file: &'a Path,
}

impl<W: Write> Pack<'_, W> {
    /// Packs what is in `directory`, whose path in the artifact is `prefix` (empty or with `/`).
    fn directory(&mut self, directory: &Path, prefix: &str) -> Result<(), Error> {
        let io = |e| Error::io("read", directory, e);
        let names: io::Result<Vec<_>> = fs::read_dir(directory)
            .map_err(io)?
            .map(|e| e.map(|e| e.file_name()))
            .collect();
        let mut names = names.map_err(io)?;
        names.sort();
        for name in names {
            self.entry(&directory.join(&name), prefix, name.as_bytes())?;
        }
        Ok(())
    }

    fn entry(&mut self, source: &Path, prefix: &str, name: &[u8]) -> Result<(), Error> {
        let io = |e| Error::io("read", source, e);
        let metadata = fs::symlink_metadata(source).map_err(io)?;
        if self.skip.contains(&(metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        let kind = match metadata.file_type() {
            t if t.is_dir() => Kind::Directory,
            t if t.is_symlink() => Kind::Symlink,
            t if t.is_file() => Kind::File,
            _ => {
                let what = source.as_os_str().as_bytes();
                let detail = "it is a socket, pipe or device; leave it out of the directory";
                return Err(super::error::refuse(what, super::Rule::EntryType, detail));
            }
        };
        let raw = [prefix.as_bytes(), name].concat();
        let Some(path) = rules::path(&raw, kind, self.limits)? else {
            return Ok(());
        };
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match kind {
            Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                self.append(&mut header, &format!("{path}/"), io::empty())?;
                self.directory(source, &format!("{path}/"))
            }
            Kind::Symlink => {
                let target = fs::read_link(source).map_err(io)?;
                let target = target.as_os_str().as_bytes();
                let target = rules::symlink(path, target, self.limits)?;
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                self.archive
                    .append_link(&mut header, path, target)
                    .map_err(|e| Error::io("write", self.out_file, e))
            }
            Kind::File | Kind::HardLink => {
                // Opened without following: it was a plain file when it was looked at.
                let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
                let file = File::options().read(true).custom_flags(flags).open(source);
                let file = file.map_err(io)?;
                let metadata = file.metadata().map_err(io)?;
                let executable = metadata.permissions().mode() & 0o111 != 0;
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(if executable { 0o755 } else { 0o644 });
                header.set_size(metadata.len());
                let mut exact = Exact {
                    file,
                    left: metadata.len(),
                    source: source.to_owned(),
                };
                let outcome = self.append(&mut header, path, &mut exact);
                exact.finish()?;
                outcome
            }
        }
    }

    fn append(
        &mut self,
        header: &mut tar::Header,
        path: &str,
        data: impl Read,
    ) -> Result<(), Error> {
        self.archive
            .append_data(header, path, data)
            .map_err(|e| Error::io("write", self.out_file, e))
    }
}

/// A file of which exactly the announced bytes are read: the header is written before them.
struct Exact {
    file: File,
    left: u64,
    source: PathBuf,
}

impl Exact {
    fn finish(mut self) -> Result<(), Error> {
        if self.left == 0 && matches!(self.file.read(&mut [0]), Ok(0)) {
            return Ok(());
        }
        let source = io::Error::other("it changed while it was read; pack a directory at rest");
        Err(Error::Io {
            doing: "pack",
            path: self.source,
            source,
        })
    }
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self.file.read(&mut buffer[..n])?;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Hashes what is written through it.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
