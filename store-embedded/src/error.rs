//! Why a store does not open, and how the engine fails while it runs.

use std::io;
use std::path::PathBuf;

use platctrl_framework::store::StoreError;

/// Why a directory could not be opened, copied or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another store in this one, has the directory open.
    #[error(
        "the store {} is in use by {}: stop it first, or use another directory",
        .dir.display(),
        shown_pid(*.pid)
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process that holds it, where it is known.
        pid: Option<u32>,
    },
    /// The file system refused something.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was written by a newer version.
    #[error(
        "{} has format {found}, this program understands up to {supported}: use the version that \
         wrote it, or a newer one",
        .path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is understood.
        supported: u32,
    },
    /// The file is damaged, or is no store.
    #[error(
        "{} is damaged or is no store: {detail}. Nothing was changed. Keep a copy of the file, \
         then put the newest backup in its place; without a backup, move the directory away and \
         start with an empty one",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is known.
        detail: String,
    },
    /// The target of a backup or restore exists already.
    #[error("{} exists already: choose a path that does not", .path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
}

fn shown_pid(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => format!("this process (pid {pid})"),
        Some(pid) => format!("the process with pid {pid}"),
        None => "a process whose pid is not known".to_owned(),
    }
}

impl OpenError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// How the engine failed under an open store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("{0}")]
    Storage(Box<redb::Error>),
    /// What is stored does not decode or does not match its checksum.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl EngineError {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

macro_rules! from_engine {
    ($($type:ty),+) => {
        $(impl From<$type> for EngineError {
            fn from(error: $type) -> Self {
                Self::Storage(Box::new(error.into()))
            }
        })+
    };
}

from_engine!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    redb::CompactionError
);

/// How a read fails: the engine's trouble, or an answer of the store.
#[derive(Debug)]
pub(crate) enum ReadError {
    Engine(EngineError),
    Store(StoreError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<E: Into<EngineError>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}
