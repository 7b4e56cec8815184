//! Which hooks there are, and when each is called.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use platctrl_kinds::Span;
use serde::Deserialize;

use super::HookEvent;
use crate::files::{self, FileError};

/// The file that says when each hook is called.
const CONFIG: &str = "hooks.yaml";
const MAX_BYTES: u64 = 256 << 10;
/// How long a hook may take when nothing is said.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Why it is not known which hooks to call. Until it is, nothing is done that hooks might have to
/// be called for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HooksError {
    /// Somebody else could put programs there that root would run.
    #[error(
        "{} can be changed by others than uid {owner}: make it theirs, with nothing writable by group or others (chmod go-w)",
        path.display()
    )]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// Whose it must be.
        owner: u32,
    },
    /// The directory that an operator named is not there.
    #[error(
        "{} is not there, and hooks are to be called from it: make it, or start the agent without --hooks",
        path.display()
    )]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The file that says when they are called cannot be understood.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It names a program that is not there.
    #[error("{} names the hook `{name}`, and there is no executable file of that name beside it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The hook.
        name: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A program that is called at some events.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hook {
    /// Its file's name.
    pub name: String,
    /// Where it is.
    pub program: PathBuf,
    /// When it is called.
    pub events: BTreeSet<HookEvent>,
    /// The pod waits until it succeeded.
    pub required: bool,
    /// How long it may take.
    pub timeout: Duration,
}

/// The hooks of a node. They are looked at anew for each event, so a change needs no restart.
#[derive(Clone, Debug)]
pub struct Hooks {
    dir: PathBuf,
    /// Without the directory nothing is known, rather than that there are none.
    required: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    hooks: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    events: BTreeSet<HookEvent>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    timeout: Option<Span>,
}

impl Hooks {
    /// The hooks in a directory, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            required: false,
        }
    }

    /// The hooks in a directory that somebody named, which has to be there.
    pub fn named(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            required: true,
        }
    }

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Those that are called at `event`, in order. Reads a small directory.
    ///
    /// # Errors
    /// [`HooksError`].
    pub fn at(&self, event: HookEvent) -> Result<Vec<Hook>, HooksError> {
        let mut hooks = self.all()?;
        hooks.retain(|hook| hook.events.contains(&event));
        Ok(hooks)
    }

    /// All of them, in order.
    ///
    /// # Errors
    /// [`HooksError`].
    pub fn all(&self) -> Result<Vec<Hook>, HooksError> {
        let failed = |path: &Path, error| FileError::new("look at", path, error);
        match std::fs::symlink_metadata(&self.dir) {
            Ok(there) => check(&self.dir, &there)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.required => {
                return Err(HooksError::NoDirectory {
                    path: self.dir.clone(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.dir, error).into()),
        }
        let path = self.dir.join(CONFIG);
        let mut config = read_config(&path)?;
        let entries = std::fs::read_dir(&self.dir)
            .map_err(|error| FileError::new("read", &self.dir, error))?;
        let mut hooks = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| FileError::new("read", &self.dir, error))?;
            let program = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let there = entry.metadata().map_err(|error| failed(&program, error))?;
            if name.starts_with('.') || !there.is_file() || there.permissions().mode() & 0o111 == 0
            {
                continue;
            }
            check(&program, &there)?;
            let entry = config.hooks.remove(&name);
            let (events, required, timeout) = match entry {
                Some(entry) => (entry.events, entry.required, entry.timeout),
                None => (HookEvent::ALL.into(), false, None),
            };
            hooks.push(Hook {
                name,
                program,
                events,
                required,
                timeout: timeout.map_or(TIMEOUT, Span::duration),
            });
        }
        if let Some((name, _)) = config.hooks.pop_first() {
            return Err(HooksError::Missing { path, name });
        }
        hooks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(hooks)
    }
}

fn read_config(path: &Path) -> Result<Config, HooksError> {
    let invalid = |problem: String| HooksError::Config {
        path: path.to_owned(),
        problem,
    };
    match std::fs::symlink_metadata(path) {
        Ok(there) => check(path, &there)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
        Err(error) => return Err(FileError::new("look at", path, error).into()),
    }
    let bytes = files::read(path, MAX_BYTES)?.unwrap_or_default();
    let text = std::str::from_utf8(&bytes).map_err(|error| invalid(error.to_string()))?;
    if text.trim().is_empty() {
        return Ok(Config::default());
    }
    serde_saphyr::from_str(text).map_err(|error| invalid(error.without_snippet().to_string()))
}

/// What runs as root is root's alone.
fn check(path: &Path, there: &std::fs::Metadata) -> Result<(), HooksError> {
    let owner = rustix::process::geteuid().as_raw();
    let theirs = there.uid() == owner || there.uid() == 0;
    if there.is_symlink() || !theirs || there.mode() & 0o022 != 0 {
        return Err(HooksError::Open {
            path: path.to_owned(),
            owner,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o755);
        dir
    }

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn program(dir: &Path, name: &str) {
        std::fs::write(dir.join(name), "#!/bin/sh\n").unwrap();
        mode(&dir.join(name), 0o755);
    }

    fn names(hooks: &[Hook]) -> Vec<&str> {
        hooks.iter().map(|hook| hook.name.as_str()).collect()
    }

    #[test]
    fn hooks_are_called_at_the_events_that_the_file_names_in_the_order_of_their_names() {
        let dir = dir();
        let hooks = Hooks::new(dir.path());
        for name in ["20-b", "10-a", "30-c"] {
            program(dir.path(), name);
        }
        std::fs::write(dir.path().join("README"), "not a hook").unwrap();
        let config = "hooks:\n  10-a: {events: [before_install, after_launch], required: true, timeout: 30s}\n  20-b: {events: []}\n";
        std::fs::write(dir.path().join(CONFIG), config).unwrap();
        let at = |event| hooks.at(event).unwrap();
        assert_eq!(names(&at(HookEvent::BeforeInstall)), ["10-a", "30-c"]);
        assert_eq!(names(&at(HookEvent::BeforeLaunch)), ["30-c"]);
        let first = &at(HookEvent::AfterLaunch)[0];
        assert!(first.required && first.timeout == Duration::from_secs(30));
        let other = &at(HookEvent::AfterLaunch)[1];
        assert!(!other.required && other.timeout == TIMEOUT);
    }

    #[test]
    fn without_a_directory_there_are_none() {
        assert_eq!(Hooks::new("/nonexistent/hooks").all().unwrap(), []);
    }

    #[test]
    fn without_the_directory_that_somebody_named_it_is_not_known_which_there_are() {
        let dir = dir();
        let named = Hooks::named(dir.path().join("hooks"));
        let missing = named.all().unwrap_err();
        assert!(matches!(missing, HooksError::NoDirectory { .. }));
        let said = missing.to_string();
        assert!(
            said.contains("is not there") && said.contains("--hooks"),
            "{said}"
        );
        std::fs::create_dir(dir.path().join("hooks")).unwrap();
        mode(&dir.path().join("hooks"), 0o755);
        assert_eq!(named.all().unwrap(), []);
    }

    #[test]
    fn a_file_that_is_not_understood_is_an_error_and_never_no_hooks() {
        let dir = dir();
        program(dir.path(), "a");
        for config in [
            "hooks: {a: {events: [before_instal]}}",
            "hooks: {a: {events: [before_install], requird: true}}",
            "hooks: {a: {}}",
            "hook: {}",
            "{",
            "[]",
        ] {
            std::fs::write(dir.path().join(CONFIG), config).unwrap();
            let refused = Hooks::new(dir.path()).all();
            assert!(
                matches!(refused, Err(HooksError::Config { .. })),
                "{config}: {refused:?}"
            );
            let said = refused.unwrap_err().to_string();
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        std::fs::write(dir.path().join(CONFIG), "hooks: {b: {events: []}}").unwrap();
        let missing = Hooks::new(dir.path()).all().unwrap_err().to_string();
        assert!(missing.contains("`b`"), "{missing}");
    }

    #[test]
    fn what_others_can_write_is_not_run() {
        let dir = dir();
        let open = || matches!(Hooks::new(dir.path()).all(), Err(HooksError::Open { .. }));
        program(dir.path(), "a");
        assert!(!open());
        mode(&dir.path().join("a"), 0o775);
        assert!(open());
        mode(&dir.path().join("a"), 0o755);
        mode(dir.path(), 0o777);
        assert!(open());
        mode(dir.path(), 0o755);
        std::fs::write(dir.path().join(CONFIG), "").unwrap();
        mode(&dir.path().join(CONFIG), 0o666);
        assert!(open());
        mode(&dir.path().join(CONFIG), 0o644);
        assert!(!open());
        if !platctrl_test_support::needs::root() {
            return;
        }
        // Whoever owns a file can make it writable.
        for path in [dir.path(), &dir.path().join("a"), &dir.path().join(CONFIG)] {
            std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
            assert!(open(), "{}", path.display());
            std::os::unix::fs::chown(path, Some(0), None).unwrap();
        }
        assert!(!open());
    }
}
