//! What a server needs.

use std::path::PathBuf;
use std::sync::Arc;

use platctrl_framework::controller::RuntimeHandle;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::Kinds;
use platctrl_framework::store::Store;

use super::{Maintained, Validator};

/// What a [`Server`](super::Server) needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where objects are.
    pub store: Arc<dyn Store>,
    /// Clock and randomness.
    pub environment: Environment,
    /// The kinds that are served.
    pub kinds: Kinds,
    /// Where uploaded artifacts and the homes of this machine's pods are.
    pub data_dir: PathBuf,
    /// The store as something that can be saved and compacted, where this server has it open
    /// alone.
    pub maintained: Option<Arc<dyn Maintained>>,
    /// The node whose pods are on this machine, for their logs.
    pub node: Option<String>,
    /// The version that the server tells.
    pub version: String,
    /// Lets nodes be created over the API: for tests and for admission, no one else.
    pub admission: bool,
    /// Connections at once: 4,096 unless set.
    pub max_connections: usize,
    /// Watches at once: 2,048 unless set.
    pub max_watches: usize,
    /// Lists that are read at once: 64 unless set. Others wait a little for their turn.
    pub max_lists: usize,
    /// Logs that are followed at once: 64 unless set.
    pub max_follows: usize,
    /// Requests a second of one caller over the network: 200 unless set, and twice as many at once
    /// by whoever has asked nothing for a while.
    pub max_rate: u32,
    /// Checks of the embedder's own, beside those of the kinds.
    pub validators: Vec<Arc<dyn Validator>>,
    /// Runtimes of the same process, of which `/metrics`, `/statusz` and `/why` tell.
    pub runtimes: Vec<RuntimeHandle>,
}

impl ServerConfig {
    /// The defaults for this store, these kinds and this data directory.
    pub fn new(store: Arc<dyn Store>, kinds: Kinds, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            store,
            environment: Environment::system(),
            kinds,
            data_dir: data_dir.into(),
            maintained: None,
            node: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            admission: false,
            max_connections: 4096,
            max_watches: 2048,
            max_lists: 64,
            max_follows: 64,
            max_rate: 200,
            validators: Vec::new(),
            runtimes: Vec::new(),
        }
    }
}
