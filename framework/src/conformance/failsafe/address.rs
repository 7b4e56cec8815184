//! An address, where one store may answer today and another one tomorrow.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision, Snapshot,
    Store, StoreError, Transaction, WatchStream,
};

/// Passes everything on to the store that is at the address now.
#[derive(Debug)]
pub(super) struct Address {
    now: Mutex<Arc<dyn Store>>,
    turned: watch::Sender<u64>,
}

impl Address {
    pub(super) fn of(store: Arc<dyn Store>) -> Self {
        Self {
            now: Mutex::new(store),
            turned: watch::Sender::new(0),
        }
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        let now = self.now.lock();
        now.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on another store answers. Watches break.
    pub(super) fn turn_to(&self, store: Arc<dyn Store>) {
        let old = {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *now, store)
        };
        self.turned.send_modify(|count| *count += 1);
        drop(old);
    }
}

impl Store for Address {
    fn capabilities(&self) -> Capabilities {
        self.store().capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        let store = self.store();
        Box::pin(async move { store.get(keys).await })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        let store = self.store();
        Box::pin(async move { store.list(request).await })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        let store = self.store();
        Box::pin(async move { store.commit(transaction).await })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        let mut turned = self.turned.subscribe();
        let broken = async move {
            let _ = turned.changed().await;
            Err(StoreError::unavailable("the connection broke"))
        };
        let events = self.store().watch(prefix, after).map(Some);
        // Whichever of the two ends first ends it.
        let ends = futures::stream::once(broken).map(Some);
        let both = futures::stream::select(
            events.chain(futures::stream::iter([None])),
            ends.chain(futures::stream::iter([None])),
        );
        both.take_while(|event| std::future::ready(event.is_some()))
            .filter_map(std::future::ready)
            .boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        let store = self.store();
        Box::pin(async move { store.grant_lease(ttl).await })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        let store = self.store();
        Box::pin(async move { store.keep_alive(lease).await })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        let store = self.store();
        Box::pin(async move { store.revoke_lease(lease).await })
    }
}
