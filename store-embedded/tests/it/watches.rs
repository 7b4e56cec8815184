//! Watches: exact, resumed, slow and late.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use platctrl_framework::store::{Prefix, Revision, Store, Transaction, WatchEvent};
use platctrl_store_embedded::{EmbeddedStore, Options};

use crate::helpers::{HandClock, key, next, next_changes, open, open_with, prefix, put};

#[tokio::test]
async fn every_transaction_comes_whole_in_order_and_at_its_own_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut watch = store.watch(prefix("o/"), Revision::ZERO);
    let two = Transaction::new()
        .put(key("o/b"), "1")
        .put(key("x/a"), "1")
        .put(key("o/a"), "1");
    let first = store.commit(two).await.unwrap();
    let second = put(&store, "o/a", "2").await;
    let third = store
        .commit(Transaction::new().delete(key("o/a")).delete(key("o/none")))
        .await
        .unwrap();
    for (revision, changes) in [
        (first, vec!["o/a=1", "o/b=1"]),
        (second, vec!["o/a=2"]),
        (third, vec!["-o/a"]),
    ] {
        let (at, seen) = next_changes(&mut watch).await;
        assert_eq!(
            (at, seen),
            (revision, changes.into_iter().map(str::to_owned).collect())
        );
    }
}

#[tokio::test]
async fn a_quiet_watcher_learns_of_other_commits_by_coalesced_progress() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut watch = store.watch(prefix("quiet/"), Revision::ZERO);
    let mut last = Revision::ZERO;
    for i in 0..50 {
        last = put(&store, "loud", i.to_string()).await;
    }
    assert_eq!(next(&mut watch).await, WatchEvent::Progress(last));
    assert!(watch.next().now_or_never().is_none(), "told once");
}

#[tokio::test]
async fn with_many_watchers_all_learn_of_progress_and_the_concerned_of_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut watches: Vec<_> = (0..200)
        .map(|i| store.watch(prefix(&format!("n{i}/")), Revision::ZERO))
        .collect();
    for watch in &mut watches {
        assert!(watch.next().now_or_never().is_none());
    }
    let revision = put(&store, "n7/a", "1").await;
    for (i, watch) in watches.iter_mut().enumerate() {
        match next(watch).await {
            WatchEvent::Changes { revision: at, .. } => assert_eq!((at, i), (revision, 7)),
            other => assert_eq!(other, WatchEvent::Progress(revision)),
        }
    }
}

#[tokio::test]
async fn a_watch_resumes_exactly_after_a_restart_with_every_value_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let start = put(&store, "o/a", "0").await;
    let mut expected = Vec::new();
    for i in 1..=700 {
        let name = format!("o/{}", i % 7);
        let revision = if i % 5 == 0 {
            let swap = Transaction::new()
                .put(key("o/a"), i.to_string())
                .delete(key(&name));
            store.commit(swap).await.unwrap()
        } else {
            put(&store, &name, i.to_string()).await
        };
        expected.push(revision);
    }
    let mut live = store.watch(prefix("o/"), start);
    let mut seen_live = Vec::new();
    for _ in &expected {
        seen_live.push(next_changes(&mut live).await);
    }
    drop((live, store));
    let store = open(dir.path());
    let mut resumed = store.watch(prefix("o/"), start);
    for (revision, changes) in seen_live {
        assert_eq!(next_changes(&mut resumed).await, (revision, changes));
    }
    // It goes on with what is new.
    let revision = put(&store, "o/new", "1").await;
    assert_eq!(
        next_changes(&mut resumed).await,
        (revision, vec!["o/new=1".to_owned()])
    );
}

#[tokio::test]
async fn a_slow_watcher_reads_what_memory_no_longer_holds_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), |options| options.recent_bytes = 2_000);
    let mut watch = store.watch(prefix("o/"), Revision::ZERO);
    for i in 0..600 {
        put(&store, "o/a", i.to_string()).await;
        put(&store, "x/a", i.to_string()).await;
    }
    for i in 0..600 {
        let (_, changes) = next_changes(&mut watch).await;
        assert_eq!(changes, [format!("o/a={i}")]);
    }
}

#[tokio::test]
async fn trimmed_history_is_a_reset_and_so_is_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), |options| options.history_revisions = 100);
    let first = put(&store, "a", "0").await;
    let mut last = first;
    for i in 0..500 {
        last = put(&store, "a", i.to_string()).await;
    }
    for after in [first, last.next()] {
        let mut watch = store.watch(Prefix::all(), after);
        let event = next(&mut watch).await;
        assert!(matches!(event, WatchEvent::Reset { .. }), "{event:?}");
        assert!(watch.next().await.is_none());
    }
    let kept = Revision::from_u64(last.as_u64() - 50);
    let mut watch = store.watch(Prefix::all(), kept);
    assert_eq!(next_changes(&mut watch).await.0, kept.next());
}

#[tokio::test]
async fn history_is_trimmed_by_age_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::default();
    let mut options = Options::default();
    options.history_age = Duration::from_secs(60);
    let store = EmbeddedStore::open_with(dir.path(), clock.environment(), options).unwrap();
    let first = put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    clock.advance(Duration::from_secs(61));
    put(&store, "a", "3").await;
    let mut watch = store.watch(Prefix::all(), first);
    assert!(matches!(next(&mut watch).await, WatchEvent::Reset { .. }));
    drop((watch, store));

    let store = open_with(dir.path(), |options| options.history_bytes = 20_000);
    let second = put(&store, "a", "4").await;
    for _ in 0..40 {
        put(&store, "a", "x".repeat(1_000)).await;
    }
    let mut watch = store.watch(Prefix::all(), second);
    assert!(matches!(next(&mut watch).await, WatchEvent::Reset { .. }));
}
