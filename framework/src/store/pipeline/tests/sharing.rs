//! Which commits share a transaction, how many are in flight, and what becomes of those that are
//! given up.

use futures::FutureExt as _;

use super::*;

fn numbered(n: usize) -> Transaction {
    Transaction::new().put(Key::new(format!("o/{n}")).unwrap(), "x")
}

fn slow(memory: &MemoryStore) -> Arc<Rough> {
    Rough::new(memory, Vec::new())
}

#[tokio::test]
async fn a_commit_goes_at_once_while_nothing_is_in_flight_and_in_the_form_it_has() {
    let memory = MemoryStore::new(Environment::system());
    let store = slow(&memory);
    let pipeline = Pipeline::new(store.clone());
    for n in 0..5 {
        pipeline.commit(numbered(n)).await.unwrap();
    }
    let counts = pipeline.counts();
    assert_eq!(
        (counts.commits, counts.transactions, counts.again),
        (5, 5, 0)
    );
}

#[tokio::test]
async fn commits_that_meet_share_transactions_within_the_limits() {
    let mut options = MemoryOptions::default();
    options.limits.max_writes = 8;
    let memory = MemoryStore::with_options(Environment::system(), options);
    let pipeline = Pipeline::new(slow(&memory)).in_flight(1);
    let commits = (0..25).map(|n| pipeline.commit(numbered(n)));
    let revisions = futures::future::try_join_all(commits).await.unwrap();
    // One alone, then three times eight.
    assert_eq!(pipeline.counts().transactions, 4);
    assert_eq!(revisions[1], revisions[8]);
    assert!(revisions[8] < revisions[9]);
    assert_eq!(memory.dump().len(), 25);
}

#[tokio::test]
async fn no_more_transactions_are_in_flight_than_said() {
    let memory = MemoryStore::new(Environment::system());
    let store = slow(&memory);
    let pipeline = Pipeline::new(store.clone()).in_flight(3);
    let same = || Transaction::new().put(Key::new("o/same").unwrap(), "x");
    let mut commits: Vec<_> = (0..10).map(|_| pipeline.commit(same())).collect();
    for commit in &mut commits {
        assert!(commit.now_or_never().is_none());
    }
    tokio::task::yield_now().await;
    assert_eq!(store.commits.load(Ordering::Relaxed), 3);
    futures::future::try_join_all(commits).await.unwrap();
}

#[tokio::test]
async fn commits_of_one_claim_share_its_compare() {
    let mut options = MemoryOptions::default();
    options.limits.max_compares = 2;
    let memory = MemoryStore::with_options(Environment::system(), options);
    let lease = memory
        .grant_lease(Duration::from_secs(60))
        .await
        .unwrap()
        .id;
    let claim = Key::new("x/lease/c").unwrap();
    let won = Transaction::new().put_with_lease(claim.clone(), "me", lease);
    let epoch = memory.commit(won).await.unwrap();
    let pipeline = Pipeline::new(slow(&memory)).in_flight(1);
    let under_claim = |n| {
        numbered(n).require(Compare::ClaimHeld {
            key: claim.clone(),
            epoch,
            lease,
        })
    };
    let commits = (0..10).map(|n| pipeline.commit(under_claim(n)));
    futures::future::try_join_all(commits).await.unwrap();
    assert_eq!(pipeline.counts().transactions, 2);
    // When it is lost, each one learns at which of its own compares.
    memory.revoke_lease(lease).await.unwrap();
    let commits = (0..10).map(|n| pipeline.commit(under_claim(n)));
    for outcome in futures::future::join_all(commits).await {
        assert_eq!(outcome, Err(StoreError::Conflict { failed: vec![0] }));
    }
}

#[tokio::test]
async fn a_commit_given_up_while_it_waits_is_not_sent_and_holds_nobody_up() {
    let memory = MemoryStore::new(Environment::system());
    let pipeline = Pipeline::new(slow(&memory)).in_flight(1);
    let mut first = pipeline.commit(numbered(0));
    assert!((&mut first).now_or_never().is_none());
    for n in 1..2_000 {
        let mut given_up = pipeline.commit(numbered(n));
        assert!((&mut given_up).now_or_never().is_none());
    }
    // The first is never asked for its answer again, and still the last comes through.
    pipeline.commit(numbered(2_000)).await.unwrap();
    assert_eq!(memory.dump().len(), 2);
    drop(first);
}

#[tokio::test]
async fn one_members_ended_lease_or_size_is_nobody_elses() {
    let memory = MemoryStore::new(Environment::system());
    let pipeline = Pipeline::new(slow(&memory)).in_flight(1);
    let dead = Transaction::new().put_with_lease(Key::new("o/dead").unwrap(), "x", LeaseId(77));
    let large = Transaction::new().put(Key::new("o/large").unwrap(), vec![0; 2 << 20]);
    let outcomes = futures::join!(
        pipeline.commit(numbered(0)),
        pipeline.commit(numbered(1)),
        pipeline.commit(dead),
        pipeline.commit(large),
        pipeline.commit(numbered(2)),
    );
    assert!(
        outcomes.0.is_ok() && outcomes.1.is_ok() && outcomes.4.is_ok(),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes.2, Err(StoreError::LeaseNotFound { .. })),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes.3, Err(StoreError::TooLarge { .. })),
        "{outcomes:?}"
    );
}

#[test]
fn what_waits_when_the_executor_ends_is_told_that_it_was_not_sent() {
    let memory = MemoryStore::new(Environment::system());
    let pipeline = Pipeline::new(slow(&memory)).in_flight(1);
    let executor = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (mut sent, mut waiting) = (pipeline.commit(numbered(0)), pipeline.commit(numbered(1)));
    executor.block_on(async {
        assert!((&mut sent).now_or_never().is_none());
        assert!((&mut waiting).now_or_never().is_none());
        tokio::task::yield_now().await;
    });
    drop(executor);
    let (sent, waiting) = (
        sent.now_or_never().unwrap(),
        waiting.now_or_never().unwrap(),
    );
    assert!(matches!(sent, Err(StoreError::Unknown { .. })), "{sent:?}");
    assert!(
        matches!(waiting, Err(StoreError::Unavailable { .. })),
        "{waiting:?}"
    );
}
