//! An artifact on its way into the cache: `cache/partial/<hex>.part`, and beside it, once it is
//! known how to go on with it later, `<hex>.json`.
//!
//! One writer at a time has it: whoever fetches a digest holds its lock, which is held until the
//! file is let go of, also by a thread that writes for somebody who gave up. What is left of a
//! transfer that broke off is worth keeping only when the server can give the rest of the same
//! bytes; in all other cases nothing is left. Nothing is believed of it either: the digest covers
//! the whole.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use platctrl_framework::failpoint;
use serde::{Deserialize, Serialize};

use super::digest::Hasher;
use super::download::{Begin, Resume};
use super::{Digest, Error};

/// How long a part is kept for going on.
const KEPT: Duration = Duration::from_secs(24 * 3600);
const NOTE_BYTES: u64 = 64 * 1024;

/// While it lives nobody else works on a digest.
pub(super) type Alone = Arc<dyn Any + Send + Sync>;

/// How to go on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The digest of the location that the bytes came from.
    origin: Digest,
    validator: String,
}

/// A file in the making. When it is dropped, what can be gone on with is left for another attempt,
/// and nothing else.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    note: PathBuf,
    origin: Digest,
    file: File,
    hasher: Hasher,
    validator: Option<String>,
    state: Worth,
    _alone: Alone,
}

/// What is left of a file in the making when it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// It may be gone on with.
    Part,
    /// Nobody wants it.
    Nothing,
    /// It is somewhere else, whole.
    All,
}

impl Partial {
    /// Opens what there is of `digest` from `origin`, reading it once. Blocks.
    pub(super) fn open(
        directory: &Path,
        digest: &Digest,
        origin: &str,
        alone: Alone,
    ) -> Result<Self, Error> {
        let path = directory.join(format!("{}.part", digest.hex()));
        let io = |e| Error::io("write", &path, e);
        let note = path.with_extension("json");
        let origin = Digest::of(origin);
        let validator = read_note(&note)
            .filter(|note| note.origin == origin)
            .map(|note| note.validator);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(validator.is_none())
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(io)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(Self {
            note,
            origin,
            file,
            hasher,
            validator,
            state: Worth::Part,
            path,
            _alone: alone,
        })
    }

    /// From where on the rest is wanted.
    pub(super) fn resume(&self) -> Option<Resume> {
        let validator = self.validator.clone()?;
        let offset = self.hasher.bytes();
        (offset > 0).then_some(Resume { offset, validator })
    }

    /// The server said what it is going to send. Blocks.
    pub(super) fn begin(&mut self, begin: &Begin) -> Result<(), Error> {
        let io = |e| Error::io("write", &self.path, e);
        if begin.offset != self.hasher.bytes() {
            if begin.offset != 0 {
                let other = io::Error::other("the bytes that came are not the rest");
                return Err(io(other));
            }
            self.file.set_len(0).map_err(io)?;
            self.file.rewind().map_err(io)?;
            self.hasher = Hasher::default();
        }
        // The rest of something has the validator that was asked for.
        if begin.offset == 0 {
            self.validator.clone_from(&begin.validator);
            let written = match &begin.validator {
                Some(validator) => write_note(
                    &self.note,
                    &Note {
                        origin: self.origin,
                        validator: validator.clone(),
                    },
                ),
                None => Err(io::ErrorKind::Unsupported.into()),
            };
            if written.is_err() {
                // Then it cannot be gone on with, which is no reason not to fetch it.
                self.validator = None;
                let _ = fs::remove_file(&self.note);
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Err(error) = self.file.write_all(bytes) {
            // Half of it may be there, and the disk is perhaps full.
            self.state = Worth::Nothing;
            return Err(Error::io("write", &self.path, error));
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// It is not wanted any more, not even for another attempt.
    pub(super) fn spoil(mut self) {
        self.state = Worth::Nothing;
    }

    /// Everything came: makes it the file `to`, for good, when it has the digest. Blocks.
    pub(super) fn finish(mut self, what: &str, expected: &Digest, to: &Path) -> Result<(), Error> {
        let io = |e| Error::io("write", to, e);
        let actual = self.hasher.digest();
        failpoint!("agent.verify");
        if actual != *expected {
            self.state = Worth::Nothing;
            return Err(Error::DigestMismatch {
                what: format!("{what}{}", self.describe()),
                actual,
                expected: *expected,
            });
        }
        self.file.sync_all().map_err(io)?;
        failpoint!("agent.verify.done");
        fs::rename(&self.path, to).map_err(io)?;
        self.state = Worth::All;
        let _ = fs::remove_file(&self.note);
        let parent = to.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|it| it.sync_all()).map_err(io)
    }

    /// What came instead, when it does not even look like an artifact.
    fn describe(&mut self) -> String {
        let mut head = [0; 80];
        let read = self.file.rewind().and_then(|()| self.file.read(&mut head));
        match head.get(..read.unwrap_or(0)) {
            Some(head) if !head.is_empty() && !head.starts_with(&[0x1f, 0x8b]) => {
                format!(" (it begins with `{}`)", super::escape(head))
            }
            _ => String::new(),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let worth_nothing = self.state == Worth::Nothing || self.resume().is_none();
        if self.state != Worth::All && worth_nothing {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(&self.note);
        }
    }
}

fn read_note(path: &Path) -> Option<Note> {
    let file = File::open(path).ok()?;
    serde_json::from_reader(file.take(NOTE_BYTES)).ok()
}

fn write_note(path: &Path, note: &Note) -> io::Result<()> {
    let text = serde_json::to_vec(note)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(&text)
}

/// Removes from `directory` what no transfer will go on with.
pub(super) fn sweep(directory: &Path, names: &[String]) -> Result<(), Error> {
    let resumable = |name: &str| -> bool {
        let Some(stem) = name
            .strip_suffix(".part")
            .or_else(|| name.strip_suffix(".json"))
        else {
            return false;
        };
        let part = directory.join(format!("{stem}.part"));
        let modified = fs::symlink_metadata(part).and_then(|it| it.modified());
        let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        Digest::from_hex(stem).is_ok()
            && age.is_ok_and(|age| age < KEPT)
            && read_note(&directory.join(format!("{stem}.json"))).is_some()
    };
    // Judged before anything is removed: each of a pair is needed to judge the other.
    let doomed: Vec<_> = names.iter().filter(|name| !resumable(name)).collect();
    for name in doomed {
        let path = directory.join(name);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(offset: u64, validator: Option<&str>) -> Begin {
        Begin {
            offset,
            validator: validator.map(str::to_owned),
            ..Begin::default()
        }
    }

    #[test]
    fn a_part_is_gone_on_with_only_from_where_it_came_and_where_the_server_can() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of("all of it");
        let open = |origin| Partial::open(dir.path(), &digest, origin, Arc::new(())).unwrap();
        let mut part = open("here");
        assert_eq!(part.resume(), None);
        part.begin(&begin(0, Some("\"x\""))).unwrap();
        part.write(b"all ").unwrap();
        drop(part);
        let left = |count| assert_eq!(fs::read_dir(dir.path()).unwrap().count(), count);
        left(2);
        let mut part = open("here");
        let resume = part.resume().unwrap();
        assert_eq!((resume.offset, resume.validator.as_str()), (4, "\"x\""));
        part.begin(&begin(4, None)).unwrap();
        part.write(b"of it").unwrap();
        let whole = dir.path().join("whole");
        part.finish("x", &digest, &whole).unwrap();
        assert_eq!(fs::read(&whole).unwrap(), b"all of it");
        left(1);
        // Bytes of another place are not gone on with; nor those of a server that cannot say
        // whether it has the same ones.
        for validator in [Some("\"x\""), None] {
            let mut part = open("here");
            part.begin(&begin(0, validator)).unwrap();
            part.write(b"all ").unwrap();
            drop(part);
            let part = open("there");
            assert_eq!(part.resume(), None);
            drop(part);
            left(1);
        }
    }

    #[test]
    fn whoever_comes_next_finds_the_file_as_it_is_left() {
        struct Next(PathBuf);
        impl Drop for Next {
            fn drop(&mut self) {
                assert_eq!(fs::read_dir(&self.0).unwrap().count(), 0);
                fs::write(self.0.join("next"), "").unwrap();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let alone = Arc::new(Next(dir.path().to_owned()));
        let digest = Digest::of("x");
        let mut part = Partial::open(dir.path(), &digest, "here", alone).unwrap();
        part.write(b"half").unwrap();
        drop(part);
        assert!(dir.path().join("next").exists());
    }

    #[test]
    fn what_nobody_will_go_on_with_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of("x");
        let mut part = Partial::open(dir.path(), &digest, "here", Arc::new(())).unwrap();
        part.begin(&begin(0, Some("\"x\""))).unwrap();
        part.write(b"all ").unwrap();
        drop(part);
        let stem = digest.hex();
        let lone = Digest::of("y").hex();
        let stray = ["x.part".to_owned(), format!("{lone}.part"), "a.json".into()];
        for name in &stray {
            fs::write(dir.path().join(name), "half").unwrap();
        }
        let mut names = vec![format!("{stem}.part"), format!("{stem}.json")];
        names.extend(stray);
        sweep(dir.path(), &names).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [format!("{stem}.json"), format!("{stem}.part")]);
    }
}
