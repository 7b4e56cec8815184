//! Restores: revisions that went back, and such that went forward, are another history.

use std::time::Duration;

use futures::StreamExt;
use platctrl_framework::store::{
    Key, ListRequest, Prefix, Store, StoreError, Transaction, WatchEvent, WatchStream,
};
use platctrl_store_etcd::EtcdStore;

use crate::proxy::Proxy;
use crate::server::{Cluster, Plan, Release};
use crate::workload::brisk;

fn put(name: &str, value: &'static str) -> Transaction {
    Transaction::new().put(Key::new(name).unwrap(), value)
}

/// Waits for the reset that a watch must end with.
async fn reset(mut watch: WatchStream) -> String {
    let ended = async {
        loop {
            match watch.next().await.unwrap().unwrap() {
                WatchEvent::Reset { reason } => return reason,
                WatchEvent::Progress(_) => {}
                changes @ WatchEvent::Changes { .. } => panic!("{changes:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .expect("the restore is noticed")
}

struct Scene {
    cluster: Cluster,
    proxy: Proxy,
    store: EtcdStore,
    watch: WatchStream,
    snapshot: String,
    token: String,
    /// What only the history after the snapshot knows.
    after: platctrl_framework::store::Revision,
}

async fn scene() -> Scene {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let proxy = Proxy::start(cluster.members[0].endpoint()).await;
    let location = format!("etcd://{}/r", proxy.address).parse().unwrap();
    let store = EtcdStore::connect(location, brisk(cluster.options())).await;
    let store = store.unwrap();
    store.commit(put("o/a", "before")).await.unwrap();
    let snapshot = cluster.dir().join("snapshot").display().to_string();
    cluster.ctl(&["snapshot", "save", &snapshot]);
    let mut after = store.commit(put("o/a", "after")).await.unwrap();
    for _ in 0..20 {
        after = store.commit(put("o/a", "after")).await.unwrap();
    }
    let mut watch = store.watch(Prefix::new("o/").unwrap(), after);
    // It is live: it has been told how far the store is.
    let last = store.commit(put("x/elsewhere", "1")).await.unwrap();
    while watch.next().await.unwrap().unwrap() != WatchEvent::Progress(last) {}
    let token = cluster.token.clone();
    Scene {
        cluster,
        proxy,
        store,
        watch,
        snapshot,
        token,
        after,
    }
}

#[tokio::test]
async fn an_older_snapshot_is_noticed_because_revisions_went_back() {
    let mut scene = scene().await;
    scene.cluster.restore(&scene.snapshot, &scene.token, &[]);
    scene.cluster.members[0].start();
    let reason = reset(scene.watch).await;
    assert!(reason.contains("another history"), "{reason}");
    let page = scene
        .store
        .list(&ListRequest::new(Prefix::all()))
        .await
        .unwrap();
    assert_eq!(page.records.len(), 1);
    assert!(page.revision < scene.after && page.records[0].value == "before");
    // What was decided on the lost history cannot be committed.
    let key = || Key::new("o/a").unwrap();
    let late = put("o/b", "late").require_unchanged(key(), Some(scene.after));
    let outcome = scene.store.commit(late).await;
    assert!(
        matches!(outcome, Err(StoreError::Conflict { .. })),
        "{outcome:?}"
    );
    let pinned = ListRequest {
        at: Some(scene.after),
        ..ListRequest::new(Prefix::all())
    };
    let outcome = scene.store.list(&pinned).await;
    assert!(
        matches!(outcome, Err(StoreError::Invalid { .. })),
        "{outcome:?}"
    );
    // A watch that remembers the lost history is told as well.
    let watch = scene.store.watch(Prefix::new("o/").unwrap(), scene.after);
    let reason = reset(watch).await;
    assert!(reason.contains("another history"), "{reason}");
}

#[tokio::test]
async fn an_older_snapshot_with_revisions_moved_forward_is_noticed() {
    let mut scene = scene().await;
    let forward = ["--bump-revision=1000000", "--mark-compacted"];
    scene
        .cluster
        .restore(&scene.snapshot, &scene.token, &forward);
    scene.cluster.members[0].start();
    let reason = reset(scene.watch).await;
    assert!(reason.contains("compacted"), "{reason}");
    let page = scene
        .store
        .list(&ListRequest::new(Prefix::all()))
        .await
        .unwrap();
    assert!(
        page.revision > scene.after && page.records[0].value == "before",
        "{page:?}"
    );
}

#[tokio::test]
async fn another_cluster_at_the_same_address_is_noticed_when_it_is_ahead() {
    let mut scene = scene().await;
    scene.proxy.hold(true);
    scene.cluster.restore(&scene.snapshot, "another-token", &[]);
    scene.cluster.members[0].start();
    scene.cluster.wait_until_ready();
    for _ in 0..40 {
        scene.cluster.ctl(&["put", "elsewhere", "x"]);
    }
    scene.proxy.hold(false);
    let reason = reset(scene.watch).await;
    assert!(reason.contains("cluster"), "{reason}");
}
