//! A store outlives the runtime that it was opened on, as a library's user may do it: what was
//! being watched is told of it, and what is watched from then on works.

use std::time::Duration;

use futures::StreamExt;
use platctrl_framework::store::{Key, Prefix, Store, StoreError, Transaction, WatchEvent};

use crate::server::{Cluster, Plan, Release, root};

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn watches_end_with_their_runtime_and_begin_again_on_another() {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let put = || Transaction::new().put(Key::new("o/a").unwrap(), "1");
    let all = || Prefix::new("o/").unwrap();
    let first = runtime();
    let (store, mut early, start) = first.block_on(async {
        let store = cluster.store(&root()).await;
        let start = store.commit(put()).await.unwrap();
        let mut early = store.watch(all(), start);
        store.commit(put()).await.unwrap();
        // It has begun.
        loop {
            match early.next().await.unwrap().unwrap() {
                WatchEvent::Changes { .. } => break,
                WatchEvent::Progress(_) => {}
                WatchEvent::Reset { reason } => panic!("{reason}"),
            }
        }
        (store, early, start)
    });
    drop(first);
    let told = async {
        // Nobody waits for ever for a task that has ended.
        let end = loop {
            match early.next().await {
                Some(Ok(WatchEvent::Progress(_))) => {}
                end => break end,
            }
        };
        assert!(
            matches!(&end, Some(Err(StoreError::Unavailable { .. }))),
            "{end:?}"
        );
        assert!(early.next().await.is_none());
        let mut late = store.watch(all(), start);
        let last = store.commit(put()).await.unwrap();
        loop {
            match late.next().await.unwrap().unwrap() {
                WatchEvent::Changes { revision, .. } if revision == last => return,
                WatchEvent::Reset { reason } => panic!("{reason}"),
                _ => {}
            }
        }
    };
    runtime().block_on(async {
        tokio::time::timeout(Duration::from_secs(60), told)
            .await
            .unwrap();
    });
}
