//! A store whose commits take a few turns of the executor, so that others meet them on their way.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision, Snapshot,
    Store, Transaction, WatchStream,
};

#[derive(Debug)]
pub(super) struct Slow(Arc<dyn Store>);

impl Slow {
    pub(super) fn wrap(inner: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Self(inner))
    }
}

impl Store for Slow {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        self.0.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        self.0.list(request)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            self.0.commit(transaction).await
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.0.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        self.0.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.0.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.0.revoke_lease(lease)
    }
}
