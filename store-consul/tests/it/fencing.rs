//! A leader that is stopped until another took over writes nothing when it goes on.

use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_store_consul::{Address, ConsulStore, Options};
use platctrl_test_support::fencing;
use platctrl_test_support::processes::root;

use crate::server::{Cluster, Plan};

/// Not a test by itself: a process that writes while it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_while_it_leads() {
    let Some(address) = fencing::told_to_write() else {
        return;
    };
    let address: Address = address.parse().unwrap();
    let store = ConsulStore::open(&address, Options::default(), Environment::system()).await;
    fencing::write_while_leading(Arc::new(store.unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_stopped_until_another_took_over_writes_nothing_afterwards() {
    let cluster = Cluster::start(Plan::one());
    let root = root();
    let store = Arc::new(cluster.store(&root).await);
    let address = cluster.address(0, &root).to_string();
    let child = "fencing::child_writes_while_it_leads";
    fencing::a_stopped_leader_writes_nothing(store, &address, child).await;
}
