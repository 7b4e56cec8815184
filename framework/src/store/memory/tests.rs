use std::time::Duration;

use futures::{FutureExt, StreamExt};

use super::*;
use crate::store::{Change, WatchEvent};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

fn put(text: &str, value: &str) -> Transaction {
    Transaction::new().put(key(text), value.to_owned())
}

fn store() -> MemoryStore {
    MemoryStore::new(Environment::system())
}

async fn next(stream: &mut WatchStream) -> WatchEvent {
    let event = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
    event.expect("an event in time").unwrap().unwrap()
}

/// What the stream has ready now.
fn ready(stream: &mut WatchStream) -> Option<Result<WatchEvent>> {
    stream.next().now_or_never().flatten()
}

#[tokio::test(start_paused = true)]
async fn a_lease_nobody_asks_about_ends_on_time_and_wakes_watchers() {
    let store = store();
    let lease = store.grant_lease(Duration::from_secs(5)).await.unwrap();
    let both = Transaction::new()
        .put_with_lease(key("x/a"), "1", lease.id)
        .put_with_lease(key("x/b"), "1", lease.id);
    let revision = store.commit(both).await.unwrap();
    let mut watch = store.watch(prefix("x/"), revision);
    // Nobody calls the store: only its own task can end the lease while time jumps.
    let began = tokio::time::Instant::now();
    let WatchEvent::Changes { changes, .. } = next(&mut watch).await else {
        panic!("expected the deletes");
    };
    assert_eq!(changes.len(), 2);
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watcher_among_hundreds_learns_the_newest_revision_in_bounded_time() {
    let store = store();
    let watches: Vec<_> = (0..300)
        .map(|n| store.watch(prefix(&format!("quiet/{n}/")), Revision::ZERO))
        .collect();
    let told = watches.into_iter().map(|mut watch| async move {
        loop {
            if let WatchEvent::Progress(revision) = next(&mut watch).await
                && revision.counter() == 50
            {
                return;
            }
        }
    });
    let writes = async {
        for n in 0..50 {
            store.commit(put("busy/a", &n.to_string())).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let began = tokio::time::Instant::now();
    futures::join!(futures::future::join_all(told), writes);
    assert!(began.elapsed() <= Duration::from_millis(200));
}

#[tokio::test]
async fn held_watches_hide_states_that_were_cancelled_meanwhile() {
    let store = store();
    store.commit(put("o/a", "1")).await.unwrap();
    let mut watch = store.watch(prefix("o/"), Revision::ZERO);
    next(&mut watch).await;
    store.faults().hold_watches(Prefix::all());
    store.commit(put("o/a", "2")).await.unwrap();
    store.commit(put("o/a", "3")).await.unwrap();
    assert!(ready(&mut watch).is_none());
    store.faults().coalesce_watches(true);
    store.faults().release_watches();
    let WatchEvent::Changes { changes, revision } = next(&mut watch).await else {
        panic!("expected the last state");
    };
    assert_eq!(revision, store.revision());
    assert!(matches!(&changes[..], [Change::Put(record)] if record.value == "3"));
}

#[tokio::test]
async fn lost_answers_are_unknown_whether_or_not_it_happened() {
    let store = store();
    let faults = store.faults();
    for (fault, happened) in [
        (CommitFault::UnknownApplied, true),
        (CommitFault::UnknownLost, false),
        (CommitFault::UnknownDelayed, false),
    ] {
        let name = format!("o/{fault:?}").to_lowercase();
        faults.next_commits(1, fault);
        let outcome = store.commit(put(&name, "1")).await;
        assert!(matches!(outcome, Err(StoreError::Unknown { .. })));
        assert_eq!(store.peek(&key(&name)).is_some(), happened, "{fault:?}");
    }
    assert_eq!(faults.counts().unknown, 3);
    assert_eq!(faults.apply_delayed().len(), 1);
    assert!(store.peek(&key("o/unknowndelayed")).is_some());
}

#[tokio::test]
async fn a_store_that_is_away_answers_nobody_and_breaks_watches() {
    let store = store();
    let mut watch = store.watch(Prefix::all(), Revision::ZERO);
    assert!(ready(&mut watch).is_none());
    store.faults().set_away(true);
    assert!(matches!(
        watch.next().await,
        Some(Err(StoreError::Unavailable { .. }))
    ));
    assert!(watch.next().await.is_none());
    assert!(store.get(&[key("a")]).await.unwrap_err().is_transient());
    store.faults().set_away(false);
    store.commit(put("a", "1")).await.unwrap();
    assert_eq!(store.faults().counts().unavailable, 1);
}

#[tokio::test]
async fn denied_prefixes_concern_reads_that_cover_them_and_hidden_ones_look_empty() {
    let store = store();
    store.commit(put("o/n1/a", "1")).await.unwrap();
    let list = |text: &str| ListRequest::new(prefix(text));
    store.faults().hide(prefix("o/n1/"));
    let page = store.list(&list("o/")).await.unwrap();
    assert!(page.records.is_empty());
    store.faults().allow_all();
    store.faults().deny_reads(prefix("o/n1/"));
    for text in ["", "o/", "o/n1/", "o/n1/deeper/"] {
        let answer = store.list(&list(text)).await;
        assert!(matches!(answer, Err(StoreError::Denied { .. })), "{text}");
    }
    store.list(&list("o/n10/")).await.unwrap();
    store.faults().deny_writes(prefix("o/n1/"));
    let outcome = store.commit(put("o/n1/b", "1")).await;
    assert!(matches!(outcome, Err(StoreError::Denied { .. })));
    assert_eq!(store.faults().counts().denied, 5);
}

#[tokio::test]
async fn restores_go_back_forward_or_to_nothing() {
    let store = store();
    store.commit(put("a", "old")).await.unwrap();
    let backup = store.snapshot();
    let newest = store.commit(put("a", "new")).await.unwrap();
    let value = |store: &MemoryStore| store.peek(&key("a")).map(|record| record.value);

    store.faults().come_back_older(&backup);
    assert_eq!(value(&store).unwrap(), "old");
    let mut ahead = store.watch(Prefix::all(), newest);
    assert!(matches!(next(&mut ahead).await, WatchEvent::Reset { .. }));

    store.faults().come_back_newer(&backup, 1000);
    assert_eq!(value(&store).unwrap(), "old");
    assert!(store.revision() > newest);
    let mut behind = store.watch(Prefix::all(), newest);
    assert!(matches!(next(&mut behind).await, WatchEvent::Reset { .. }));

    store.faults().come_back_empty();
    assert_eq!((value(&store), store.revision()), (None, Revision::ZERO));
    store.commit(put("b", "1")).await.unwrap();
    let mut fresh = store.watch(Prefix::all(), Revision::ZERO);
    assert!(matches!(next(&mut fresh).await, WatchEvent::Changes { .. }));
}

#[tokio::test]
async fn history_is_bounded_and_what_left_it_is_compacted() {
    let options = MemoryOptions {
        history: 10,
        ..MemoryOptions::default()
    };
    let store = MemoryStore::with_options(Environment::system(), options);
    for n in 0..100 {
        store.commit(put("hot", &n.to_string())).await.unwrap();
        let cold = put(&format!("cold/{n}"), "1");
        store.commit(cold).await.unwrap();
        let gone = Transaction::new().delete(key(&format!("cold/{n}")));
        store.commit(gone).await.unwrap();
    }
    assert_eq!(store.history().len(), 10);
    let newest = store.revision();
    let oldest = Revision::from_u64(newest.as_u64() - 10);
    assert_eq!(store.dump_at(newest).unwrap(), store.dump());
    assert!(store.dump_at(oldest).is_ok());
    let older = Revision::from_u64(oldest.as_u64() - 1);
    assert!(matches!(
        store.dump_at(older),
        Err(StoreError::Compacted { .. })
    ));
    assert_eq!(store.shared.lock().data.kept_keys(), 5);
}

#[tokio::test]
async fn without_old_revisions_a_page_shows_the_newest_state_and_says_so() {
    let options = MemoryOptions {
        pinned_reads: false,
        ..MemoryOptions::default()
    };
    let store = MemoryStore::with_options(Environment::system(), options);
    assert!(!store.capabilities().pinned_reads);
    store.commit(put("o/a", "1")).await.unwrap();
    let mut request = ListRequest::new(prefix("o/"));
    let first = store.list(&request).await.unwrap();
    store.commit(put("o/b", "1")).await.unwrap();
    request.at = Some(first.revision);
    let again = store.list(&request).await.unwrap();
    assert_eq!(again.records.len(), 2);
    assert_eq!(again.revision, store.revision());
}

#[tokio::test]
async fn a_slow_watcher_is_reset_and_holds_nobody_up() {
    let options = MemoryOptions {
        history: 10,
        ..MemoryOptions::default()
    };
    let store = MemoryStore::with_options(Environment::system(), options);
    let mut slow = store.watch(prefix("o/"), Revision::ZERO);
    assert!(ready(&mut slow).is_none());
    for n in 0..1000 {
        store.commit(put("o/a", &n.to_string())).await.unwrap();
    }
    assert!(matches!(next(&mut slow).await, WatchEvent::Reset { .. }));
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn dropped_watches_leave_nothing_behind() {
    let store = store();
    let mut watches: Vec<_> = (0..10)
        .map(|n| store.watch(prefix(&format!("o/{}/", n % 3)), Revision::ZERO))
        .collect();
    for watch in &mut watches {
        assert!(ready(watch).is_none());
    }
    assert_eq!(store.shared.lock().groups.len(), (3, 10));
    drop(watches);
    assert_eq!(store.shared.lock().groups.len(), (0, 0));
}

#[test]
fn leases_outlive_the_runtime_that_drove_them() {
    let store = store();
    let run = |future| {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(future);
    };
    let grant = async {
        store.grant_lease(Duration::from_secs(1)).await.unwrap();
    };
    run(grant.boxed_local());
    assert!(!store.shared.lock().driver_runs);
    let again = async {
        store.grant_lease(Duration::from_secs(1)).await.unwrap();
        assert!(store.shared.lock().driver_runs);
    };
    run(again.boxed_local());
}
