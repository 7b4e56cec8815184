//! Opening a store as one root, restoring it, and copying it into another.

use std::sync::Arc;

use futures::StreamExt;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, Anchor, AnchorState, IdentityError, anchor_key};
use platctrl_framework::root::{self, CopyError, RootedStore};
use platctrl_framework::store::{
    Compare, Key, ListRequest, MemoryOptions, MemoryStore, Prefix, Revision, Store, StoreError,
    Transaction, WatchEvent,
};
use proptest::prelude::*;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

async fn initialised() -> (MemoryStore, RootedStore) {
    let environment = Environment::system();
    let plain = MemoryStore::new(environment.clone());
    identity::initialise(&plain, &environment).await.unwrap();
    let rooted = RootedStore::new(Arc::new(plain.clone()));
    (plain, rooted)
}

async fn put(store: &dyn Store, name: &str, value: &str) -> Revision {
    let transaction = Transaction::new().put(key(name), value.to_owned());
    store.commit(transaction).await.unwrap()
}

async fn all(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
    let request = ListRequest::new(Prefix::all());
    let records = store.list(&request).await.unwrap().records;
    let records = records.into_iter();
    records
        .map(|it| (it.key.as_str().to_owned(), it.value.to_vec()))
        .collect()
}

#[tokio::test]
async fn nothing_is_written_into_a_root_that_was_emptied() {
    let (plain, rooted) = initialised().await;
    put(&rooted, "o/intent/a", "1").await;
    plain.faults().come_back_empty();
    assert!(plain.dump().is_empty(), "the fault did not happen");

    let create = Transaction::new()
        .require_absent(key("o/intent/a"))
        .put(key("o/intent/a"), "2");
    let error = rooted.commit(create.clone()).await.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("anchor"),
        "{error}"
    );
    assert!(plain.dump().is_empty(), "something was written");

    // Another store under the same address.
    identity::initialise(&plain, &Environment::system())
        .await
        .unwrap();
    let error = rooted.commit(create).await.unwrap_err();
    assert!(
        error.to_string().contains("another store answers"),
        "{error}"
    );
    assert!(plain.peek(&key("o/intent/a")).is_none());
}

#[tokio::test]
async fn a_root_that_is_not_initialised_yet_works_once_it_is() {
    let environment = Environment::system();
    let plain = MemoryStore::new(environment.clone());
    let rooted = RootedStore::new(Arc::new(plain.clone()));
    assert!(matches!(
        identity::open(&rooted).await,
        Err(IdentityError::Uninitialised)
    ));
    let write = Transaction::new().put(key("o/intent/a"), "1");
    assert!(
        rooted
            .commit(write.clone())
            .await
            .unwrap_err()
            .is_transient()
    );
    identity::initialise(&plain, &environment).await.unwrap();
    rooted.commit(write).await.unwrap();
}

#[tokio::test]
async fn a_sealed_root_is_not_written_and_goes_on_when_it_is_unsealed() {
    let (plain, rooted) = initialised().await;
    put(&rooted, "o/intent/a", "1").await;
    root::seal(&plain).await.unwrap();
    root::seal(&plain).await.unwrap();
    let write = Transaction::new().put(key("o/intent/a"), "2");
    let error = rooted.commit(write.clone()).await.unwrap_err();
    assert!(error.to_string().contains("sealed"), "{error}");
    assert_eq!(plain.peek(&key("o/intent/a")).unwrap().value, "1");
    let (anchor, _) = identity::open(&rooted).await.unwrap();
    assert_eq!(anchor.state, AnchorState::Sealed);
    root::unseal(&plain).await.unwrap();
    rooted.commit(write).await.unwrap();
}

#[tokio::test]
async fn after_a_restore_every_revision_is_newer_and_nothing_decided_before_it_lands() {
    let (plain, rooted) = initialised().await;
    for round in 0..20 {
        put(&rooted, "o/intent/a", &round.to_string()).await;
    }
    let before = put(&rooted, "o/intent/a", "last").await;
    let mut watch = rooted.watch(prefix("o/"), before);
    let anchor = root::restored(&plain, &Environment::system())
        .await
        .unwrap();
    assert_eq!((anchor.epoch, anchor.state), (1, AnchorState::Active));

    for compare in [
        Compare::Revision(key("o/intent/a"), before),
        Compare::RangeNotNewer(prefix("o/"), before),
    ] {
        let late = Transaction::new()
            .require(compare)
            .put(key("o/intent/a"), "late");
        let Err(StoreError::Conflict { failed }) = rooted.commit(late).await else {
            panic!("it landed");
        };
        assert_eq!(failed, [0]);
    }
    let after = put(&rooted, "o/intent/b", "1").await;
    assert_eq!(after.epoch(), 1);
    assert!(after > before);
    let told = watch.next().await.unwrap().unwrap();
    assert!(
        matches!(&told, WatchEvent::Reset { reason } if reason.contains("epoch 1")),
        "{told:?}"
    );
    assert!(watch.next().await.is_none());
    let again = rooted
        .watch(prefix("o/"), before)
        .next()
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(again, WatchEvent::Reset { .. }));

    // In the new epoch everything works as in the first.
    let read = rooted.get(&[key("o/intent/a")]).await.unwrap();
    let modified = read.records[0].as_ref().unwrap().modified;
    assert!(modified.epoch() == 1 && read.revision >= after);
    let mut watch = rooted.watch(prefix("o/"), after);
    let update = Transaction::new()
        .require_unchanged(key("o/intent/a"), Some(modified))
        .put(key("o/intent/a"), "new");
    let revision = rooted.commit(update).await.unwrap();
    let WatchEvent::Changes { revision: told, .. } = watch.next().await.unwrap().unwrap() else {
        panic!("no change");
    };
    assert_eq!(told, revision);
    let mut request = ListRequest::new(prefix("o/"));
    request.at = Some(after);
    assert_eq!(rooted.list(&request).await.unwrap().revision, after);
    request.at = Some(before);
    assert!(matches!(
        rooted.list(&request).await,
        Err(StoreError::Compacted { requested, .. }) if requested == before
    ));
}

#[tokio::test]
async fn a_commit_in_flight_during_a_restore_that_compares_nothing_lands_in_the_new_epoch() {
    let (plain, rooted) = initialised().await;
    put(&rooted, "o/intent/a", "1").await;
    root::restored(&plain, &Environment::system())
        .await
        .unwrap();
    assert_eq!(put(&rooted, "o/intent/a", "2").await.epoch(), 1);
}

#[tokio::test]
async fn the_anchor_is_no_record_to_write() {
    let (_, rooted) = initialised().await;
    let write = Transaction::new().put(anchor_key(), "mine");
    assert!(matches!(
        rooted.commit(write).await,
        Err(StoreError::Invalid { .. })
    ));
}

#[tokio::test]
async fn a_copy_is_the_same_store_one_epoch_later_and_its_source_is_sealed() {
    let (from, rooted) = initialised().await;
    for number in 0..300 {
        put(
            &rooted,
            &format!("o/intent/{number:03}"),
            &"v".repeat(number),
        )
        .await;
    }
    let lease = from
        .grant_lease(std::time::Duration::from_secs(60))
        .await
        .unwrap();
    let claim = Transaction::new().put_with_lease(key("x/lease/leader"), "me", lease.id);
    from.commit(claim).await.unwrap();

    let to = MemoryStore::new(Environment::system());
    let mut last = None;
    let report = root::copy(&from, &to, |progress| last = Some(progress))
        .await
        .unwrap();
    assert_eq!(
        report.keys, 303,
        "300, the objects' anchor, the format, the chain"
    );
    let last = last.unwrap();
    assert_eq!((last.done, last.total, last.written), (303, 303, 303));

    let (before, after) = (
        identity::open(&from).await.unwrap().0,
        identity::open(&to).await.unwrap().0,
    );
    assert_eq!(before.state, AnchorState::Sealed);
    assert_eq!(
        after,
        Anchor {
            epoch: 1,
            state: AnchorState::Active,
            ..before
        }
    );
    let besides = |store: Vec<(String, Vec<u8>)>| -> Vec<_> {
        let mut records = store;
        records.retain(|(key, _)| key != "x/anchor" && key != "x/lease/leader");
        records
    };
    assert_eq!(besides(all(&from).await), besides(all(&to).await));
    assert!(
        rooted
            .commit(Transaction::new().put(key("o/intent/z"), ""))
            .await
            .is_err()
    );
    // What the copy says is newer than all that the source said.
    let there = RootedStore::new(Arc::new(to));
    assert!(put(&there, "o/intent/z", "").await > from_revision(&rooted).await);
}

async fn from_revision(store: &dyn Store) -> Revision {
    store.get(&[anchor_key()]).await.unwrap().revision
}

#[tokio::test]
async fn a_copy_refuses_a_target_that_holds_anything_and_leaves_the_source_open() {
    let (from, rooted) = initialised().await;
    let (to, _) = initialised().await;
    let error = root::copy(&from, &to, |_| ()).await.unwrap_err();
    assert!(matches!(error, CopyError::NotEmpty { .. }), "{error}");
    put(&rooted, "o/intent/a", "still open").await;

    // An unfinished copy of another store is somebody's, too.
    let to = MemoryStore::new(Environment::system());
    put(&to, "x/copy", r#"{"storeId":"other","epoch":0}"#).await;
    let error = root::copy(&from, &to, |_| ()).await.unwrap_err();
    assert!(
        matches!(&error, CopyError::NotEmpty { key } if key.as_str() == "x/copy"),
        "{error}"
    );
}

#[tokio::test]
async fn a_value_that_the_target_does_not_take_is_named() {
    let (from, rooted) = initialised().await;
    put(&rooted, "o/intent/large", &"x".repeat(5_000)).await;
    let mut options = MemoryOptions::default();
    options.limits.max_value_bytes = 4_096;
    let to = MemoryStore::with_options(Environment::system(), options);
    let error = root::copy(&from, &to, |_| ()).await.unwrap_err();
    assert!(
        matches!(&error, CopyError::TooLarge { key, .. } if key.as_str() == "o/intent/large"),
        "{error}"
    );
    assert!(matches!(
        identity::open(&to).await,
        Err(IdentityError::Uninitialised)
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Interrupted anywhere and as often as it may be, with the source changed by somebody who
    /// does not mind the seal in between: once it ends well, both hold the same.
    #[test]
    fn an_interrupted_copy_goes_on_and_ends_with_the_same(
        first in proptest::collection::btree_map("[a-e]{1,3}", "[a-z]{0,9}", 0..60),
        second in proptest::collection::btree_map("[a-e]{1,3}", "[a-z]{0,9}", 0..20),
        removed in proptest::collection::vec("[a-e]{1,3}", 0..10),
        breaks in proptest::collection::vec(0usize..6, 0..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (from, _) = initialised().await;
            for (name, value) in &first {
                put(&from, &format!("o/{name}"), value).await;
            }
            let mut options = MemoryOptions::default();
            options.limits.max_writes = 3;
            let to = MemoryStore::with_options(Environment::system(), options);
            for commits in &breaks {
                let broken = Breaking::new(to.clone(), *commits);
                if root::copy(&from, &broken, |_| ()).await.is_ok() {
                    return; // It was whole before the break.
                }
            }
            for (name, value) in &second {
                put(&from, &format!("o/{name}"), value).await;
            }
            for name in &removed {
                from.commit(Transaction::new().delete(key(&format!("o/{name}")))).await.unwrap();
            }
            root::copy(&from, &to, |_| ()).await.unwrap();
            let strip = |mut records: Vec<(String, Vec<u8>)>| {
                records.retain(|(key, _)| key != "x/anchor");
                records
            };
            assert_eq!(strip(all(&from).await), strip(all(&to).await));
        });
    }
}

/// A store that is lost after some commits.
#[derive(Debug)]
struct Breaking {
    store: MemoryStore,
    left: std::sync::atomic::AtomicUsize,
}

impl Breaking {
    fn new(store: MemoryStore, commits: usize) -> Self {
        let left = commits.into();
        Self { store, left }
    }
}

impl Store for Breaking {
    fn capabilities(&self) -> platctrl_framework::store::Capabilities {
        self.store.capabilities()
    }
    fn get<'a>(
        &'a self,
        keys: &'a [Key],
    ) -> futures::future::BoxFuture<
        'a,
        platctrl_framework::store::Result<platctrl_framework::store::Snapshot>,
    > {
        self.store.get(keys)
    }
    fn list<'a>(
        &'a self,
        request: &'a ListRequest,
    ) -> futures::future::BoxFuture<
        'a,
        platctrl_framework::store::Result<platctrl_framework::store::Page>,
    > {
        self.store.list(request)
    }
    fn commit(
        &self,
        transaction: Transaction,
    ) -> futures::future::BoxFuture<'_, platctrl_framework::store::Result<Revision>> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.left.load(SeqCst);
        if left == 0 {
            return Box::pin(async { Err(StoreError::unavailable("pulled away")) });
        }
        self.left.store(left - 1, SeqCst);
        self.store.commit(transaction)
    }
    fn watch(&self, prefix: Prefix, after: Revision) -> platctrl_framework::store::WatchStream {
        self.store.watch(prefix, after)
    }
    fn grant_lease(
        &self,
        ttl: std::time::Duration,
    ) -> futures::future::BoxFuture<
        '_,
        platctrl_framework::store::Result<platctrl_framework::store::Lease>,
    > {
        self.store.grant_lease(ttl)
    }
    fn keep_alive(
        &self,
        lease: platctrl_framework::store::LeaseId,
    ) -> futures::future::BoxFuture<'_, platctrl_framework::store::Result<()>> {
        self.store.keep_alive(lease)
    }
    fn revoke_lease(
        &self,
        lease: platctrl_framework::store::LeaseId,
    ) -> futures::future::BoxFuture<'_, platctrl_framework::store::Result<()>> {
        self.store.revoke_lease(lease)
    }
}
