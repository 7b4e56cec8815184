//! Reads: consistent, pinned, paged.

use platctrl_framework::store::{
    Compare, ListRequest, Prefix, Revision, Store, StoreError, Transaction,
};

use crate::helpers::{dump, key, open, open_with, prefix, put, text};

#[tokio::test]
async fn pages_show_one_revision_though_commits_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..20 {
        put(&store, &format!("o/{i:02}"), "old").await;
    }
    put(&store, "z", "outside").await;
    let (before, revision) = dump(&store, None, 100).await;
    for i in (0..20).step_by(3) {
        put(&store, &format!("o/{i:02}"), "new").await;
        put(&store, &format!("o/{i:02}"), "newer").await;
    }
    for i in (1..20).step_by(4) {
        store
            .commit(Transaction::new().delete(key(&format!("o/{i:02}"))))
            .await
            .unwrap();
    }
    for i in 0..5 {
        put(&store, &format!("o/00-{i}"), "came later").await;
    }
    for page in [1, 2, 3, 7, 100] {
        assert_eq!(
            dump(&store, Some(revision), page).await,
            (before.clone(), revision)
        );
    }
    let mut request = ListRequest::new(prefix("o/"));
    request.at = Some(revision);
    assert_eq!(store.list(&request).await.unwrap().records.len(), 20);
    request.at = Some(Revision::new(0, 9_999));
    assert!(matches!(
        store.list(&request).await,
        Err(StoreError::Invalid { .. })
    ));
}

#[tokio::test]
async fn a_revision_that_is_no_longer_kept_is_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), |options| options.history_revisions = 10);
    let first = put(&store, "a", "0").await;
    for i in 0..50 {
        put(&store, "a", i.to_string()).await;
    }
    let mut request = ListRequest::new(Prefix::all());
    request.at = Some(first);
    let error = store.list(&request).await.unwrap_err();
    let StoreError::Compacted { requested, oldest } = error else {
        panic!("{error}");
    };
    assert_eq!(requested, first);
    request.at = Some(oldest);
    assert_eq!(store.list(&request).await.unwrap().revision, oldest);
}

#[tokio::test]
async fn long_values_end_a_page_early() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..12 {
        put(&store, &format!("o/{i:02}"), "x".repeat(900_000)).await;
    }
    let page = store.list(&ListRequest::new(Prefix::all())).await.unwrap();
    assert!(page.more && page.records.len() < 12);
    assert_eq!(dump(&store, None, 2_000).await.0.len(), 12);
}

#[tokio::test]
async fn compares_are_judged_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = put(&store, "n/1/a", "1").await;
    let second = put(&store, "n/2/a", "1").await;
    let all = Transaction::new()
        .require_absent(key("n/1/a"))
        .require_unchanged(key("n/1/a"), Some(first))
        .require_unchanged(key("n/1/a"), Some(second))
        .require_unchanged(key("none"), Some(first))
        .require(Compare::RangeNotNewer(prefix("n/1/"), first))
        .require(Compare::RangeNotNewer(prefix("n/"), first))
        .put(key("never"), "1");
    let error = store.commit(all).await.unwrap_err();
    assert_eq!(
        error,
        StoreError::Conflict {
            failed: vec![0, 2, 3, 5]
        }
    );
    let snapshot = store.get(&[key("never"), key("n/1/a")]).await.unwrap();
    assert!(snapshot.records[0].is_none());
    assert_eq!(text(snapshot.records[1].as_ref().unwrap()), "1");
    assert_eq!(snapshot.revision, second);
    // Deletes pass the range compare.
    store
        .commit(Transaction::new().delete(key("n/2/a")))
        .await
        .unwrap();
    let range = Transaction::new().require(Compare::RangeNotNewer(prefix("n/"), first));
    store.commit(range).await.unwrap();
    // A transaction that changes nothing gets no revision of its own.
    let now = store.commit(Transaction::new()).await.unwrap();
    let nothing = store
        .commit(Transaction::new().delete(key("none")))
        .await
        .unwrap();
    assert_eq!(now, nothing);
    let twice = Transaction::new().put(key("a"), "1").delete(key("a"));
    assert!(matches!(
        store.commit(twice).await,
        Err(StoreError::Invalid { .. })
    ));
    let large = Transaction::new().put(key("a"), vec![0; 2 << 20]);
    assert!(matches!(
        store.commit(large).await,
        Err(StoreError::TooLarge { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_exactly_one_wins_each_round_and_each_gets_its_own_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(dir.path()));
    let mut seen = None;
    for _ in 0..20 {
        let attempts: Vec<_> = (0..32)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move {
                    let contended = Transaction::new()
                        .require_unchanged(key("counter"), seen)
                        .put(key("counter"), i.to_string());
                    let own = Transaction::new().put(key(&format!("own/{i}")), "1");
                    (
                        store.commit(contended).await,
                        store.commit(own).await.unwrap(),
                    )
                })
            })
            .collect();
        let (mut won, mut revisions) = (Vec::new(), Vec::new());
        for attempt in attempts {
            let (contended, own) = attempt.await.unwrap();
            match contended {
                Ok(revision) => won.push(revision),
                Err(error) => assert!(error.is_conflict(), "{error}"),
            }
            revisions.push(own);
        }
        assert_eq!(won.len(), 1);
        revisions.push(won[0]);
        revisions.sort_unstable();
        let distinct = revisions.len();
        revisions.dedup();
        assert_eq!(revisions.len(), distinct);
        seen = Some(won[0]);
    }
}

#[tokio::test]
async fn a_commit_whose_future_is_dropped_after_the_first_poll_still_happens() {
    use futures::FutureExt;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut commit = store.commit(Transaction::new().put(key("a"), "1"));
    let polled = futures::future::poll_immediate(&mut commit).now_or_never();
    drop(commit);
    assert!(polled.is_some());
    drop(store);
    let store = open(dir.path());
    assert_eq!(
        crate::helpers::value(&store, "a").await.as_deref(),
        Some("1")
    );
}
