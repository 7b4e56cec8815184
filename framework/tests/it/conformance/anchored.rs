//! A store that has an anchor and shows nothing but what the suite writes.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::model::identity::{Anchor, AnchorState, anchor_key};
use platctrl_framework::store::{
    Capabilities, Compare, Key, Lease, LeaseId, ListRequest, Page, Prefix, Record, Result,
    Revision, Snapshot, Store, Transaction, WatchStream,
};

#[derive(Debug)]
pub(super) struct Anchored(pub(super) Arc<dyn Store>);

/// Its revision is compared by every commit.
const AT: Revision = Revision::new(0, 1);

fn anchor() -> Record {
    let anchor = Anchor {
        store_id: "suite".to_owned(),
        epoch: 2,
        state: AnchorState::Active,
    };
    Record {
        key: anchor_key(),
        value: serde_json::to_vec(&anchor).unwrap().into(),
        created: AT,
        modified: AT,
        lease: None,
    }
}

impl Store for Anchored {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(async move {
            let mut snapshot = self.0.get(keys).await?;
            for (key, record) in keys.iter().zip(&mut snapshot.records) {
                if *key == anchor_key() {
                    *record = Some(anchor());
                }
            }
            Ok(snapshot)
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        self.0.list(request)
    }

    fn commit(&self, mut transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        let compared = transaction.compares.pop();
        assert_eq!(compared, Some(Compare::Revision(anchor_key(), AT)));
        self.0.commit(transaction)
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
