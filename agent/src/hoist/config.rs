//! How a node keeps its artifacts.

use std::path::PathBuf;
use std::time::Duration;

use super::child::{ChildCommand, ChildUser};
use super::server::Server;
use super::{Limits, Network};

/// How a node keeps its artifacts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The data directory; `cache/` and `installs/` in it are the store's.
    pub data_dir: PathBuf,
    /// The directories `file:` locations may lie under. None by default.
    pub allowed_directories: Vec<PathBuf>,
    /// Where `artifact:` locations are fetched from. None by default.
    pub server: Option<Server>,
    /// What an artifact may ask for.
    pub limits: Limits,
    /// How long a fetch may take.
    pub timeouts: Timeouts,
    /// How servers of artifacts are reached.
    pub network: Network,
    /// How helper processes are started: by default this program with its hidden subcommand.
    pub child: ChildCommand,
    /// Whom helper processes run as: by default [`ChildUser::default`] when root, else the same
    /// user (`None`, the only choice then).
    pub user: Option<ChildUser>,
}

impl Config {
    /// The defaults for this data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            allowed_directories: Vec::new(),
            server: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            network: Network::default(),
            child: ChildCommand::this_program(),
            user: rustix::process::geteuid()
                .is_root()
                .then(ChildUser::default),
        }
    }
}

/// How long a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Without a byte: 30 s.
    pub stall: Duration,
    /// Altogether: 30 minutes. What was fetched by then is gone on with where the server can.
    pub total: Duration,
    /// Bytes a second, on average over each time of `stall`, below which a sender counts as
    /// silent: 1,024.
    pub least_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            total: Duration::from_secs(30 * 60),
            least_rate: 1024,
        }
    }
}
