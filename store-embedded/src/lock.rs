//! One process per directory.
//!
//! The lock is the kernel's, on the open file, so it ends with its holder however that dies. The
//! pid inside the file is only for the message to the next one; a stale pid harms nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::OpenError;

/// Holds a directory until dropped.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(OpenError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse {
                    dir: dir.to_owned(),
                    pid: recorded_pid(&mut file),
                });
            }
            Err(TryLockError::Error(error)) => return Err(OpenError::io("lock", &path)(error)),
        }
        // A full disk must not keep a store from opening, so a pid that cannot be written is let
        // go: the lock holds without it.
        let recorded = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        if let Err(error) = recorded {
            tracing::warn!(path = %path.display(), %error, "cannot record the pid in the lock file");
        }
        Ok(Self { _file: file })
    }
}

fn recorded_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_pid_harms_nothing_and_a_held_lock_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "4194304\n").unwrap();
        let held = DirectoryLock::take(dir.path()).unwrap();
        let refused = DirectoryLock::take(dir.path()).unwrap_err();
        assert!(
            matches!(&refused, OpenError::InUse { pid: Some(pid), .. } if *pid == std::process::id())
        );
        let text = refused.to_string();
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
        drop(held);
        DirectoryLock::take(dir.path()).unwrap();
    }
}
