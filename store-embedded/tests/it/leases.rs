//! Leases: granted, kept, ended by time, by order and by a restart.

use std::time::Duration;

use platctrl_framework::store::{Compare, LeaseId, Store, StoreError, Transaction};
use platctrl_store_embedded::{EmbeddedStore, Options};

use crate::helpers::{HandClock, key, next_changes, open, prefix, put, until, value};

const TTL: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_lease_ends_at_its_time_and_its_keys_go_in_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::default();
    let store =
        EmbeddedStore::open_with(dir.path(), clock.environment(), Options::default()).unwrap();
    let lease = store.grant_lease(TTL).await.unwrap();
    assert!(lease.ttl >= TTL);
    let claim = Transaction::new()
        .put_with_lease(key("x/lease/a"), "me", lease.id)
        .put_with_lease(key("x/lease/b"), "me", lease.id)
        .put(key("o/c"), "stays");
    let revision = store.commit(claim).await.unwrap();
    let mut watch = store.watch(prefix("x/lease/"), revision);
    clock.advance(TTL / 2);
    store.keep_alive(lease.id).await.unwrap();
    clock.advance(TTL - Duration::from_millis(1));
    store.keep_alive(lease.id).await.unwrap();
    let held = Compare::ClaimHeld {
        key: key("x/lease/a"),
        epoch: revision,
        lease: lease.id,
    };
    store
        .commit(Transaction::new().require(held.clone()))
        .await
        .unwrap();
    clock.advance(TTL);
    let (_, changes) = next_changes(&mut watch).await;
    assert_eq!(changes, ["-x/lease/a", "-x/lease/b"]);
    assert_eq!(value(&store, "o/c").await.as_deref(), Some("stays"));
    let late = store.keep_alive(lease.id).await;
    assert_eq!(late, Err(StoreError::LeaseNotFound { lease: lease.id }));
    let conflict = store.commit(Transaction::new().require(held)).await;
    assert_eq!(conflict, Err(StoreError::Conflict { failed: vec![0] }));
    let put = Transaction::new().put_with_lease(key("x/lease/a"), "me", lease.id);
    let refused = store.commit(put).await;
    assert_eq!(refused, Err(StoreError::LeaseNotFound { lease: lease.id }));
}

#[tokio::test]
async fn a_revoked_lease_takes_its_keys_along_and_a_plain_put_frees_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.grant_lease(TTL).await.unwrap().id;
    let both = Transaction::new()
        .put_with_lease(key("a"), "1", lease)
        .put_with_lease(key("b"), "1", lease);
    store.commit(both).await.unwrap();
    put(&store, "b", "2").await;
    store.revoke_lease(lease).await.unwrap();
    assert_eq!(value(&store, "a").await, None);
    assert_eq!(value(&store, "b").await.as_deref(), Some("2"));
    let again = store.revoke_lease(lease).await;
    assert_eq!(again, Err(StoreError::LeaseNotFound { lease }));
}

#[tokio::test]
async fn opening_ends_the_leases_of_the_process_before_in_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leases = [
        store.grant_lease(TTL).await.unwrap().id,
        store.grant_lease(TTL).await.unwrap().id,
    ];
    put(&store, "stays", "1").await;
    let mut revision = Default::default();
    for (i, lease) in leases.into_iter().enumerate() {
        let claim = Transaction::new().put_with_lease(key(&format!("x/{i}")), "me", lease);
        revision = store.commit(claim).await.unwrap();
    }
    drop(store);
    let store = open(dir.path());
    let mut watch = store.watch(prefix("x/"), revision);
    let (at, changes) = next_changes(&mut watch).await;
    assert_eq!(
        (at, changes),
        (revision.next(), vec!["-x/0".to_owned(), "-x/1".to_owned()])
    );
    assert_eq!(value(&store, "stays").await.as_deref(), Some("1"));
    assert!(store.keep_alive(leases[0]).await.is_err());
    let new = store.grant_lease(TTL).await.unwrap().id;
    assert!(!leases.contains(&new));
    assert!(store.keep_alive(LeaseId(1)).await.is_err());
}

#[tokio::test]
async fn a_lease_ends_though_nobody_calls_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store
        .grant_lease(Duration::from_millis(30))
        .await
        .unwrap()
        .id;
    store
        .commit(Transaction::new().put_with_lease(key("a"), "1", lease))
        .await
        .unwrap();
    until("the key is gone", || async {
        value(&store, "a").await.is_none()
    })
    .await;
}
