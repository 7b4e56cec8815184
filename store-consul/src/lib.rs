//! The store on Consul: its KV tree, used through transactions only.
//!
//! [`ConsulStore`] is a [`Store`] for teams that already run Consul (1.8.7 or newer). Every
//! commit is one transaction of Consul, all or nothing, at the index that becomes its revision;
//! reads ask the leader; leases are sessions; one blocking read serves all watchers of a
//! process. What is stored are the plain values under plain keys: `consul kv get ROOT/o/…` shows
//! them.
//!
//! What Consul cannot do shows in the [capabilities](Store::capabilities): no reads of the past,
//! no compare of ranges but of a scope's keys, watches that may leave states out.
//!
//! ```no_run
//! use platctrl_framework::environment::Environment;
//! use platctrl_framework::store::{Key, Store, Transaction};
//! use platctrl_store_consul::{ConsulStore, Options};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let address = "consul://127.0.0.1:8500/platctrl".parse()?;
//! let store = ConsulStore::open(&address, Options::default(), Environment::system()).await?;
//! let key = Key::new("o/intent/example.dev/widgets/default/a")?;
//! let revision = store.commit(Transaction::new().put(key, "{}")).await?;
//! println!("committed at {revision}");
//! # Ok(())
//! # }
//! ```

pub mod access;
mod address;
mod api;
mod burial;
mod commit;
mod error;
mod feed;
mod gone;
mod http;
mod layout;
mod leases;
mod options;
mod pack;
mod probe;
mod read;
mod search;
mod shared;
mod tls;
mod watch;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision, Snapshot,
    Store, Transaction, WatchStream,
};

pub use address::{Address, InvalidAddress};
pub use error::OpenError;
pub use options::{Options, TlsOptions};

use api::Api;
use shared::Shared;

/// A store below one root of Consul's KV tree. Dropping it ends its watches; its leases end with
/// their time.
pub struct ConsulStore {
    shared: Arc<Shared>,
    address: Address,
}

impl ConsulStore {
    /// Connects, and reads the anchor that tells which store this is.
    ///
    /// A root that is empty, or that holds something else, opens as well: what is in it is for
    /// the caller to judge (`framework::model::identity`).
    ///
    /// # Errors
    /// [`OpenError`] names the endpoint and the cause.
    pub async fn open(
        address: &Address,
        options: Options,
        environment: Environment,
    ) -> std::result::Result<Self, OpenError> {
        let store = Self::open_later(address, options, environment)?;
        store
            .shared
            .refresh_anchor()
            .await
            .map_err(|source| OpenError::Store {
                address: address.clone(),
                source,
            })?;
        Ok(store)
    }

    /// Makes a store without asking Consul, which may be away: its calls fail until somebody
    /// answers, and the first that is answered reads the anchor.
    ///
    /// # Errors
    /// `Options` when an option, or a file that it names, is wrong.
    pub fn open_later(
        address: &Address,
        options: Options,
        environment: Environment,
    ) -> std::result::Result<Self, OpenError> {
        let endpoint = |reason: String| OpenError::Options {
            address: address.clone(),
            reason,
        };
        if let Some(datacenter) = &options.datacenter {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            if datacenter.is_empty() || !datacenter.bytes().all(plain) {
                return Err(endpoint(format!("`{datacenter}` is no datacenter's name")));
            }
        }
        let tls = options
            .tls
            .clone()
            .map(|tls| tls::Tls::new(tls, address.host()))
            .transpose()
            .map_err(|error| endpoint(error.to_string()))?;
        let http = http::Endpoint::new(
            address.host(),
            address.port(),
            address.authority(),
            tls,
            options.max_connections,
        );
        let api = Api::new(
            http,
            address.root(),
            options.datacenter.clone(),
            options.token_file.clone(),
            options.timeout,
        )
        .map_err(endpoint)?;
        Ok(Self {
            shared: Arc::new(Shared::new(api, environment, options)),
            address: address.clone(),
        })
    }

    /// Where the store is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for ConsulStore {
    fn drop(&mut self) {
        self.shared.feed.close();
    }
}

impl Store for ConsulStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(shared::LIMITS);
        capabilities.durable = true;
        capabilities.group_compare = true;
        capabilities
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(self.shared.get(keys))
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.shared.list(request))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move { self.shared.commit(&transaction).await })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        feed::watch(&self.shared, prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(self.shared.grant_lease(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.shared.keep_alive(lease))
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.shared.revoke_lease(lease))
    }
}

impl fmt::Debug for ConsulStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulStore")
            .field("address", &self.address.to_string())
            .finish_non_exhaustive()
    }
}
