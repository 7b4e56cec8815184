//! The store on an etcd cluster.
//!
//! [`EtcdStore`] is a [`Store`] whose keys are below a root of an etcd, version 3.4 or newer. It
//! speaks etcd's own protocol (gRPC over HTTP/2, with or without TLS) to one member at a time and
//! goes to the next when one fails, within a deadline for each call. What may have happened is
//! never sent twice: it ends as [`StoreError::Unknown`].
//!
//! All watches of a store are on one stream. It is resumed where it was when it breaks, so that a
//! watcher notices nothing; where that cannot be, because the history was compacted or is another
//! one, the watch ends with a reset. Lists and transactions go over a connection of their own.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use platctrl_framework::store::{Key, Store, Transaction};
//! use platctrl_store_etcd::{EtcdStore, Options};
//!
//! let location = "etcd://db1:2379,db2:2379,db3:2379/platctrl".parse()?;
//! let store = EtcdStore::connect(location, Options::default()).await?;
//! store.commit(Transaction::new().put(Key::new("o/intent/a")?, "1")).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`StoreError::Unknown`]: platctrl_framework::store::StoreError::Unknown

pub mod access;
mod alert;
mod call;
mod commit;
mod connection;
mod error;
mod grpc;
mod keys;
mod lease;
mod link;
mod location;
mod options;
mod read;
mod shared;
mod tls;
mod version;
mod watch;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision, Snapshot,
    Store, Transaction, WatchStream,
};

pub use error::ConnectError;
pub use location::{InvalidLocation, Location};
pub use options::{Credentials, Options, Tls};
pub use shared::Server;

use connection::Trouble;
use link::{Link, any_member};
use read::PageSize;
use shared::Shared;

/// A store on an etcd cluster. See [the crate](crate).
///
/// Dropping it closes its connections; its watches end with an error.
pub struct EtcdStore {
    shared: Arc<Shared>,
    reads: Arc<Link>,
    watches: watch::Handle,
    page_size: PageSize,
}

impl EtcdStore {
    /// Makes a store without asking the cluster, which may be away: calls wait for it as long as
    /// their deadline allows. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// `Options` when a file of TLS is missing or not what it should be.
    pub fn open(location: Location, options: Options) -> std::result::Result<Self, ConnectError> {
        let name = location.to_string();
        let shared = Shared::new(location, options).map_err(|reason| ConnectError::Options {
            location: name,
            reason,
        })?;
        let shared = Arc::new(shared);
        // Both begin with the same member, and part when one of their connections fails.
        let member = any_member(&shared.location);
        let reads = Arc::new(Link::new(Arc::clone(&shared), member));
        let stream = Arc::new(Link::new(Arc::clone(&shared), member));
        let watches = watch::start(Arc::clone(&stream), Arc::clone(&reads));
        let store = Self {
            shared,
            reads,
            watches,
            page_size: PageSize::new(),
        };
        store.watch_files(stream);
        Ok(store)
    }

    /// Makes a store and waits until a member of the cluster has answered: for as long as the
    /// deadline allows when time may help, not at all when a person must change something.
    ///
    /// # Errors
    /// [`ConnectError`] names each member with what came of it.
    pub async fn connect(
        location: Location,
        options: Options,
    ) -> std::result::Result<Self, ConnectError> {
        let store = Self::open(location, options)?;
        let deadline = tokio::time::Instant::now() + store.shared.options.deadline;
        loop {
            let Err(unreachable) = store.reads.connection().await else {
                return Ok(store);
            };
            let location = store.shared.location.to_string();
            let reason = unreachable.reason;
            match unreachable.kind {
                Trouble::Rights => return Err(ConnectError::Denied { location, reason }),
                Trouble::Configuration => {
                    return Err(ConnectError::Misconfigured { location, reason });
                }
                Trouble::Time if tokio::time::Instant::now() >= deadline => {
                    return Err(ConnectError::Unavailable { location, reason });
                }
                Trouble::Time => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Where the store is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.shared.location
    }

    /// The member that reads and commits go to now, as `HOST:PORT`; None while there is no
    /// connection.
    #[must_use]
    pub fn member(&self) -> Option<String> {
        self.reads.member()
    }

    /// What the server that answered last said of itself; None before any did.
    #[must_use]
    pub fn server(&self) -> Option<Server> {
        self.shared.server()
    }

    /// Renews the connections when the files of TLS change.
    fn watch_files(&self, stream: Arc<Link>) {
        if !self.shared.is_secure() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let reads = Arc::clone(&self.reads);
        let reopen = self.watches.reopener();
        tokio::spawn(async move {
            let mut renew = false;
            loop {
                tokio::select! {
                    () = shared.closed.cancelled() => return,
                    () = tokio::time::sleep(shared.options.reload_interval) => {}
                }
                let again = Arc::clone(&shared);
                let reloaded = tokio::task::spawn_blocking(move || again.reload()).await;
                match reloaded {
                    Ok(Ok(changed)) => renew |= changed,
                    Ok(Err(reason)) => {
                        tracing::warn!(%reason, "changed files of TLS are not used");
                    }
                    Err(_) => return,
                }
                if !renew {
                    continue;
                }
                // Until a connection with the new files works, those with the old ones do.
                let renewed = match reads.renew().await {
                    Ok(()) => stream.renew().await,
                    refused => refused,
                };
                match renewed {
                    Ok(()) => {
                        renew = false;
                        tracing::info!("connections are renewed with changed files of TLS");
                        reopen();
                    }
                    Err(unreachable) => {
                        let reason = unreachable.reason;
                        tracing::warn!(%reason, "no connection with the changed files of TLS");
                    }
                }
            }
        });
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

impl Store for EtcdStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(commit::LIMITS);
        capabilities.pinned_reads = true;
        capabilities.range_compare = true;
        capabilities.group_compare = true;
        capabilities.exact_watch = true;
        capabilities.durable = true;
        capabilities.sharing_helps = true;
        capabilities
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(self.reads.get(keys))
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.reads.list(request, &self.page_size))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(self.reads.commit(transaction))
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.watches.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(self.reads.grant(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.reads.keep_alive(lease))
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.reads.revoke(lease))
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("location", &self.shared.location.to_string())
            .field("server", &self.server())
            .finish_non_exhaustive()
    }
}
