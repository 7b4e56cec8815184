//! A leader that is stopped until another took over writes nothing when it goes on.

use std::sync::Arc;

use platctrl_store_etcd::EtcdStore;
use platctrl_test_support::fencing;

use crate::server::{Cluster, Plan, Release};

/// Not a test by itself: a process that writes while it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_while_it_leads() {
    let Some(location) = fencing::told_to_write() else {
        return;
    };
    let store = EtcdStore::connect(location.parse().unwrap(), Default::default()).await;
    fencing::write_while_leading(Arc::new(store.unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_stopped_until_another_took_over_writes_nothing_afterwards() {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let store = Arc::new(cluster.store("r").await);
    let location = cluster.location("r").to_string();
    let child = "fencing::child_writes_while_it_leads";
    fencing::a_stopped_leader_writes_nothing(store, &location, child).await;
}
