//! The framework's failsafe cases on a real server, restored as etcd does it.

use std::sync::Arc;

use platctrl_framework::conformance::{Restored, Subject};
use platctrl_framework::store::Store;
use platctrl_store_etcd::EtcdStore;
use platctrl_test_support::failsafe;
use platctrl_test_support::processes::{random, root};

use crate::server::{Cluster, Plan, Release};

type Shared = failsafe::Shared<Cluster>;

async fn open(cluster: Shared) -> Arc<EtcdStore> {
    let (location, options) = {
        let cluster = cluster.lock();
        (cluster.location(&root()), cluster.options())
    };
    Arc::new(EtcdStore::connect(location, options).await.unwrap())
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
                saved.lock().ctl(&["snapshot", "save", &kept]);
                Box::pin(async {})
            },
            move |how| {
                restore(&mut cluster.lock(), &last, how);
                let store: Arc<dyn Store> = again.clone();
                Box::pin(async move { store })
            },
        )
}

/// Replaces the only member's data by a snapshot's, and starts it.
fn restore(cluster: &mut Cluster, snapshot: &str, how: Restored) {
    // What etcd recommends, so that no watch and no cache goes deaf.
    let forward: &[&str] = &["--bump-revision=1000000", "--mark-compacted"];
    let arguments = if how == Restored::Forward {
        forward
    } else {
        &[]
    };
    let token = cluster.token.clone();
    cluster.restore(snapshot, &token, arguments);
    cluster.members[0].start();
    cluster.wait_until_ready();
}

#[test]
fn failsafe_cases_on_etcd_3_5() {
    failsafe::run(&[], 6, || Cluster::start(Plan::one(Release::V3_5)), fresh);
}
