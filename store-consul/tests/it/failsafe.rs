//! The framework's failsafe cases on a real server, restored as Consul does it.

use std::sync::Arc;

use platctrl_framework::conformance::{Restored, Subject};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_store_consul::ConsulStore;
use platctrl_test_support::failsafe;
use platctrl_test_support::processes::{random, root};

use crate::server::{Cluster, Plan};

type Shared = failsafe::Shared<Cluster>;

/// Consul puts a backup back with the revisions of its records, while its own go on: that is
/// neither of the two.
const WITHOUT: &[&str] = &["failsafe_store_restored_older"];
async fn open(cluster: Shared) -> Arc<ConsulStore> {
    let (address, options) = {
        let cluster = cluster.lock();
        (cluster.address(0, &root()), cluster.options())
    };
    let store = ConsulStore::open(&address, options, Environment::system());
    Arc::new(store.await.unwrap())
}

async fn fresh(cluster: Shared) -> Subject {
    let store = open(cluster.clone()).await;
    let snapshot = {
        let name = format!("snapshot{:x}", random());
        cluster.lock().dir().join(name).display().to_string()
    };
    let (saved, kept, last) = (cluster.clone(), snapshot.clone(), snapshot);
    let (again, others) = (Arc::clone(&store), cluster.clone());
    Subject::new(store)
        .with_another(move || {
            let cluster = others.clone();
            Box::pin(async move { open(cluster).await as Arc<dyn Store> })
        })
        .with_backup(
            move || {
                let _ = std::fs::remove_file(&kept);
                saved.lock().consul(&["snapshot", "save", &kept]);
                Box::pin(async {})
            },
            move |_: Restored| {
                cluster.lock().consul(&["snapshot", "restore", &last]);
                let store: Arc<dyn Store> = again.clone();
                Box::pin(async move { store })
            },
        )
}

#[test]
fn failsafe_cases_on_consul() {
    failsafe::run(WITHOUT, 4, || Cluster::start(Plan::one()), fresh);
}
