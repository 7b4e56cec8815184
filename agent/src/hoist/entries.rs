//! What else than `bin/launch` can be started of an install: other entry points, and scripts.

use std::path::Path;

use rustix::fs::OFlags;

use super::launch::{Found, Launch, judge_at, look_at};
use super::{Error, install};

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The programs at an entry point of an install: those of a file, or of a directory of files.
///
/// # Errors
/// [`Error::LaunchInvalid`] says what is wrong with it.
pub(crate) fn entry_point(install: &Path, entry: &str) -> Result<Launch, Error> {
    let root = install::open_directory(install)?;
    judge_at(
        entry,
        look_at(&root, entry, LOOK, true)?,
        Some(std::env::consts::ARCH),
    )
}

/// Whether an install has this script.
///
/// # Errors
/// [`Error::LaunchInvalid`] when it is there and cannot be run.
pub(crate) fn has_script(install: &Path, script: &str) -> Result<bool, Error> {
    let root = install::open_directory(install)?;
    match look_at(&root, script, LOOK, false)? {
        Found::Missing => Ok(false),
        found => judge_at(script, found, Some(std::env::consts::ARCH)).map(|_| true),
    }
}
