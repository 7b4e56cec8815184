//! Where everything of an agent is on disk.
//!
//! ```text
//! <data-dir>/                       0711: pod users pass through
//!   pods/<namespace>.<pod>/         the home, root's: POD_HOME
//!     installs/<digest>             -> the shared, sealed install
//!     generations/<generation>/<launchable>  -> ../../installs/<digest>
//!     current                       -> generations/<generation>: flipped whole
//!     env/<generation>/<launchable>/<NAME>   the environment as files, for tools
//!     config/<generation>/…         CONFIG_PATH and its siblings
//!     labels                        POD_LABELS_PATH
//!     log/                          written by the shims
//!     data/                         the app's own: HOME
//!     tmp/                          the app's own: its /tmp and /var/tmp
//!   state/                          0700: nothing in here is anybody else's
//!     pods/<namespace>.<pod>/pod.json, shim/<program>/, once/<script or hook>/, hooks/<hook>.log
//!     trash/
//!   secrets/<namespace>.<pod>/<generation>/<NAME>   in memory, for the pod's user alone
//!   installs/, cache/               the artifact store's
//!   shim/<digest>                   the supervisor, by content: it outlives upgrades
//! ```
//!
//! An app user owns `data/` and `tmp/` and nothing else, so root meets no link, FIFO or file of theirs
//! anywhere it reads or writes.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::files::{self, Access, FileError};
use crate::name::PodName;
use crate::version::RunAs;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A directory above it, or it itself, cannot be entered by pod users.
    #[error(
        "{} cannot be entered by pod users, and {} lies below it: `chmod o+x {}`, or choose another data directory, as /var/lib/platctrl",
        blocking.display(), data_dir.display(), blocking.display()
    )]
    Blocked {
        /// The directory that blocks.
        blocking: PathBuf,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LayoutError {
    /// Whoever asks is not let in.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Blocked { .. } => false,
            Self::File(error) => error.source.kind() == io::ErrorKind::PermissionDenied,
        }
    }
}

/// The paths below a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    data_dir: PathBuf,
}

impl Layout {
    /// Makes the data directory what it has to be, and checks as root that pod users can pass
    /// through the directories above it.
    ///
    /// # Errors
    /// [`LayoutError::Blocked`] names the directory in the way.
    pub fn prepare(data_dir: &Path) -> Result<Self, LayoutError> {
        let failed = |error| FileError::new("make the data directory", data_dir, error);
        std::fs::create_dir_all(data_dir).map_err(failed)?;
        let layout = Self::open(data_dir)?;
        files::make_dir(&layout.data_dir, Access::mode(0o711))?;
        for (dir, mode) in [
            (layout.homes(), 0o711),
            (layout.state(), 0o700),
            (layout.records(), 0o700),
            (layout.trash(), 0o700),
            (layout.shims(), 0o711),
        ] {
            files::make_dir(&dir, Access::mode(mode))?;
        }
        if rustix::process::geteuid().is_root() {
            layout.check_traversable()?;
        }
        Ok(layout)
    }

    /// The paths below a data directory that exists, without changing anything.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn open(data_dir: &Path) -> Result<Self, LayoutError> {
        let data_dir = data_dir
            .canonicalize()
            .map_err(|error| FileError::new("find the data directory", data_dir, error))?;
        Ok(Self { data_dir })
    }

    /// Finds the first directory on the way down that not everybody may enter.
    fn check_traversable(&self) -> Result<(), LayoutError> {
        let mut parents: Vec<_> = self.data_dir.ancestors().collect();
        parents.reverse();
        for parent in parents {
            let metadata = std::fs::metadata(parent)
                .map_err(|error| FileError::new("look at", parent, error))?;
            if metadata.permissions().mode() & 0o001 == 0 {
                return Err(LayoutError::Blocked {
                    blocking: parent.to_owned(),
                    data_dir: self.data_dir.clone(),
                });
            }
        }
        Ok(())
    }

    /// The data directory, absolute and without links.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The homes of all pods.
    #[must_use]
    pub fn homes(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// What only the agent sees.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.data_dir.join("state")
    }

    /// The records and supervisors of all pods.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.state().join("pods")
    }

    /// What is the agent's own for the hooks of the node itself.
    pub(crate) fn node_hooks(&self) -> PathBuf {
        self.state().join("node-hooks")
    }

    /// Where what is being removed is moved first.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.state().join("trash")
    }

    /// The supervisors' programs.
    #[must_use]
    pub fn shims(&self) -> PathBuf {
        self.data_dir.join("shim")
    }

    /// Where pods have their secrets: a file system in memory.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.data_dir.join("secrets")
    }

    /// The paths of one pod.
    #[must_use]
    pub fn pod(&self, name: &PodName) -> PodPaths {
        let directory = name.directory();
        PodPaths {
            secrets: self.secrets().join(&directory),
            home: self.homes().join(&directory),
            state: self.records().join(&directory),
        }
    }

    /// Every pod of which there is a home or a record, sorted.
    ///
    /// # Errors
    /// When the directories cannot be read.
    pub fn pods(&self) -> Result<Vec<PodName>, FileError> {
        let mut names = files::subdirectories(&self.records())?;
        names.extend(files::subdirectories(&self.homes())?);
        let mut pods: Vec<_> = names
            .iter()
            .filter_map(|name| PodName::from_directory(name))
            .collect();
        pods.sort_unstable();
        pods.dedup();
        Ok(pods)
    }

    /// The newest of the supervisors' programs: it also speaks for what older ones left behind.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn newest_shim(&self) -> Result<PathBuf, FileError> {
        let shims = self.shims();
        let entries = match std::fs::read_dir(&shims) {
            Ok(entries) => entries,
            // Then none was ever started.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(shims),
            Err(error) => return Err(FileError::new("read", &shims, error)),
        };
        let newest = entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .max_by_key(|entry| entry.metadata().and_then(|it| it.modified()).ok());
        Ok(newest.map_or(shims, |entry| entry.path()))
    }

    /// Copies the supervisor's program to where it outlives an upgrade of the binary it came
    /// with, and returns that path.
    ///
    /// # Errors
    /// When it cannot be read or copied.
    pub fn install_shim(&self, program: &Path) -> Result<PathBuf, FileError> {
        let bytes = std::fs::read(program)
            .map_err(|error| FileError::new("read the supervisor", program, error))?;
        let digest = platctrl_framework::model::Digest::of(&bytes);
        let installed = self.shims().join(digest.hex());
        let same = std::fs::metadata(&installed).is_ok_and(|there| {
            there.len() == bytes.len() as u64 && there.permissions().mode() & 0o777 == 0o755
        });
        if !same {
            files::write(&installed, &bytes, Access::mode(0o755), true)?;
        }
        Ok(installed)
    }
}

/// The paths of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPaths {
    home: PathBuf,
    state: PathBuf,
    secrets: PathBuf,
}

impl PodPaths {
    /// POD_HOME.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The agent's own directory for the pod.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The pod's record.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.state.join("pod.json")
    }

    /// A copy of the record as it was when the running version took over.
    #[must_use]
    pub fn record_copy(&self) -> PathBuf {
        self.state.join("pod.flip.json")
    }

    /// The directory of the supervisor of a program: `web`, or `web/a` as `web:a`, which no name
    /// can be.
    #[must_use]
    pub fn shim(&self, program: &str) -> PathBuf {
        self.state.join("shim").join(program.replace('/', ":"))
    }

    /// Where what runs once has its supervisors: scripts of artifacts, and hooks.
    #[must_use]
    pub fn once(&self) -> PathBuf {
        self.state.join("once")
    }

    /// The supervisors' directories that exist, by program.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn programs(&self) -> Result<Vec<String>, FileError> {
        let names = files::subdirectories(&self.state.join("shim"))?;
        Ok(names
            .into_iter()
            .map(|name| name.replace(':', "/"))
            .collect())
    }

    /// The app's own directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The app's own `/tmp`.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.home.join("tmp")
    }

    /// The pod's secrets, by generation.
    #[must_use]
    pub fn secrets(&self) -> &Path {
        &self.secrets
    }

    /// The programs' output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// The name of a program's log file without `.log`.
    #[must_use]
    pub fn log_name(program: &str) -> String {
        program.replace('/', ":")
    }

    /// POD_LABELS_PATH.
    #[must_use]
    pub fn labels(&self) -> PathBuf {
        self.home.join("labels")
    }

    /// The configuration of a generation.
    #[must_use]
    pub fn config(&self, generation: u64) -> PathBuf {
        self.home.join("config").join(generation.to_string())
    }

    /// The environment of a generation, as files.
    #[must_use]
    pub fn env(&self, generation: u64) -> PathBuf {
        self.home.join("env").join(generation.to_string())
    }

    /// The installs of a generation, by launchable.
    #[must_use]
    pub fn generation(&self, generation: u64) -> PathBuf {
        self.home.join("generations").join(generation.to_string())
    }

    /// The link to an install.
    #[must_use]
    pub fn install(&self, digest: &str) -> PathBuf {
        self.home.join("installs").join(digest)
    }

    /// The generation that runs.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.home.join("current")
    }

    /// Makes the agent's own directories for the pod.
    pub(crate) fn make_state(&self) -> Result<(), FileError> {
        files::make_dir(&self.state, Access::mode(0o700))?;
        files::make_dir(&self.once(), Access::mode(0o700))?;
        files::make_dir(&self.state.join("shim"), Access::mode(0o700))
    }

    /// Makes the home for a user.
    pub(crate) fn make_home(&self, run_as: &RunAs) -> Result<(), FileError> {
        let root = rustix::process::geteuid().is_root();
        let gid = root.then_some(run_as.gid);
        let readable = Access {
            mode: 0o750,
            uid: None,
            gid,
        };
        files::make_dir(&self.home, Access::mode(0o711))?;
        for dir in ["installs", "generations"] {
            files::make_dir(&self.home.join(dir), Access::mode(0o755))?;
        }
        for dir in ["env", "config"] {
            files::make_dir(&self.home.join(dir), readable)?;
        }
        files::make_dir(&self.log(), readable)?;
        let uid = root.then_some(run_as.uid);
        for own in [self.data(), self.tmp()] {
            match std::fs::symlink_metadata(&own) {
                // It is the app's: what it made of it is its own affair, as long as it is its own.
                Ok(there) if there.is_dir() && is_owned(&there, uid) => continue,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(FileError::new("look at", &own, error)),
            }
            let access = Access {
                mode: 0o700,
                uid,
                gid,
            };
            files::make_dir(&own, access)?;
        }
        Ok(())
    }
}

fn is_owned(metadata: &std::fs::Metadata, uid: Option<u32>) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    uid.is_none_or(|uid| metadata.uid() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_that_blocks_pod_users_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        std::fs::create_dir_all(closed.join("data")).unwrap();
        for (path, mode) in [(dir.path(), 0o755), (&closed, 0o700)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let layout = Layout::open(&closed.join("data")).unwrap();
        let error = layout.check_traversable().unwrap_err();
        let closed = closed.canonicalize().unwrap();
        assert!(matches!(&error, LayoutError::Blocked { blocking, .. } if *blocking == closed));
        assert!(error.to_string().contains("chmod o+x"), "{error}");
    }

    #[test]
    fn the_supervisor_is_kept_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::prepare(&dir.path().join("data")).unwrap();
        let program = dir.path().join("shim");
        std::fs::write(&program, "one").unwrap();
        let one = layout.install_shim(&program).unwrap();
        assert_eq!(layout.install_shim(&program).unwrap(), one);
        std::fs::write(&program, "two").unwrap();
        let two = layout.install_shim(&program).unwrap();
        assert_ne!(one, two);
        assert_eq!(
            std::fs::read_to_string(one).unwrap(),
            "one",
            "an old one stays for its shims"
        );
    }

    #[test]
    fn pods_are_found_by_their_records_and_their_homes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::prepare(dir.path()).unwrap();
        let (one, two) = (
            PodName::new("a", "one").unwrap(),
            PodName::new("a", "two").unwrap(),
        );
        std::fs::create_dir(layout.pod(&one).home()).unwrap();
        layout.pod(&two).make_state().unwrap();
        std::fs::create_dir(layout.homes().join("not a pod")).unwrap();
        assert_eq!(layout.pods().unwrap(), [one, two]);
    }
}
