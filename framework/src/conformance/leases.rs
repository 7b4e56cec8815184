//! Cases about leases and the keys that hang on them.

use std::time::Duration;

use super::kit::{Check, Subject, ensure, ensure_matches, key, prefix};
use crate::store::{LeaseId, StoreError, Transaction};

/// Long enough for nothing to end by itself while a case runs.
const LONG: Duration = Duration::from_secs(600);

pub(super) async fn a_lease_lasts_its_time_and_no_less(subject: Subject) -> Check {
    let asked = subject.lease_ttl * 4;
    let lease = subject.store.grant_lease(asked).await?;
    ensure!(
        lease.ttl >= asked,
        "asked for {asked:?}, granted {:?}",
        lease.ttl
    );
    let revision = subject.hang("x/a", lease.id).await?;
    subject.advance(asked / 2).await;
    let record = subject.existing("x/a").await?;
    ensure!(
        record.lease == Some(lease.id) && record.modified == revision,
        "{record:?}"
    );
    subject.until_gone(&key("x/a")?, lease.ttl).await
}

pub(super) async fn an_ended_lease_deletes_its_keys_in_one_revision(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(subject.lease_ttl).await?;
    let start = subject.put("x/free", "1").await?;
    let free = subject.existing("x/free").await?;
    let mut observer = subject.observe("x/", start)?.starting_with(vec![free]);
    let keys = ["x/a", "x/b", "x/c/d"];
    for name in keys {
        subject.hang(name, lease.id).await?;
    }
    subject.until_gone(&key("x/a")?, lease.ttl).await?;
    check_one_delete(&subject, &mut observer, &keys).await
}

pub(super) async fn a_revoked_lease_deletes_its_keys_at_once_in_one_revision(
    subject: Subject,
) -> Check {
    let lease = subject.store.grant_lease(LONG).await?;
    let start = subject.put("x/free", "1").await?;
    let free = subject.existing("x/free").await?;
    let mut observer = subject.observe("x/", start)?.starting_with(vec![free]);
    let keys = ["x/a", "x/b", "x/c/d"];
    for name in keys {
        subject.hang(name, lease.id).await?;
    }
    let before = subject.revision().await?;
    observer.until(before).await?;
    subject.store.revoke_lease(lease.id).await?;
    let (left, after) = subject.all(&prefix("x/")?, 9).await?;
    ensure!(
        left.len() == 1 && after > before,
        "left at {after}: {left:?}"
    );
    check_one_delete(&subject, &mut observer, &keys).await?;
    for _ in 0..2 {
        let outcome = subject.store.revoke_lease(lease.id).await;
        ensure_matches!(outcome, Err(StoreError::LeaseNotFound { .. }), "revoked");
    }
    Ok(())
}

async fn check_one_delete(
    subject: &Subject,
    observer: &mut super::kit::Observer,
    keys: &[&str],
) -> Check {
    let now = subject.revision().await?;
    observer.until(now).await?;
    let is_delete =
        |change: &&crate::store::Change| matches!(change, crate::store::Change::Delete { .. });
    let mut deletes = Vec::new();
    for event in &observer.events {
        let gone: Vec<_> = event.changes.iter().filter(is_delete).collect();
        if !gone.is_empty() {
            deletes.push(gone);
        }
    }
    ensure!(
        deletes.len() == 1,
        "the deletes came in {} events",
        deletes.len()
    );
    let told: Vec<&str> = deletes[0]
        .iter()
        .map(|change| change.key().as_str())
        .collect();
    ensure!(told == keys, "deleted were {keys:?}, told {told:?}");
    let revision = deletes[0][0].revision();
    let one = deletes[0]
        .iter()
        .all(|change| change.revision() == revision);
    ensure!(one, "the deletes have several revisions: {deletes:?}");
    observer.must_hold(&subject.all(&prefix("x/")?, 9).await?.0)
}

pub(super) async fn a_lease_kept_alive_goes_on(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(subject.lease_ttl * 4).await?;
    subject.hang("x/a", lease.id).await?;
    for _ in 0..6 {
        subject.advance(lease.ttl / 3).await;
        subject.store.keep_alive(lease.id).await?;
    }
    subject.existing("x/a").await?;
    subject.until_gone(&key("x/a")?, lease.ttl).await
}

pub(super) async fn an_ended_lease_stays_ended(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(subject.lease_ttl).await?;
    subject.hang("x/a", lease.id).await?;
    subject.until_gone(&key("x/a")?, lease.ttl).await?;
    let never = LeaseId(lease.id.0 ^ 0x5a5a_0000_0000);
    for lease in [lease.id, never] {
        let outcome = subject.store.keep_alive(lease).await;
        ensure_matches!(outcome, Err(StoreError::LeaseNotFound { .. }), "keep alive");
        let outcome = subject.store.revoke_lease(lease).await;
        ensure_matches!(outcome, Err(StoreError::LeaseNotFound { .. }), "revoke");
    }
    Ok(())
}

pub(super) async fn a_put_under_an_ended_lease_is_refused_whole(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?;
    subject.store.revoke_lease(lease.id).await?;
    let before = subject.put("x/free", "1").await?;
    let transaction = Transaction::new()
        .put(key("x/a")?, "1")
        .put_with_lease(key("x/b")?, "1", lease.id)
        .delete(key("x/free")?);
    match subject.commit(transaction).await {
        Err(StoreError::LeaseNotFound { lease: named }) => {
            ensure!(named == lease.id, "named is {named:?}");
        }
        other => ensure_matches!(other, Err(StoreError::LeaseNotFound { .. }), "ended"),
    }
    let (left, _) = subject.all(&prefix("")?, 9).await?;
    ensure!(
        left.len() == 1 && left[0].modified == before,
        "left is {left:?}"
    );
    Ok(())
}

pub(super) async fn a_put_moves_the_key_to_the_lease_it_names(subject: Subject) -> Check {
    let first = subject.store.grant_lease(LONG).await?;
    let second = subject.store.grant_lease(LONG).await?;
    ensure!(first.id != second.id, "one id for two leases");
    subject.hang("x/a", first.id).await?;
    subject.hang("x/a", second.id).await?;
    let record = subject.existing("x/a").await?;
    ensure!(record.lease == Some(second.id), "{record:?}");
    subject.store.revoke_lease(first.id).await?;
    let record = subject.existing("x/a").await?;
    ensure!(record.lease == Some(second.id), "{record:?}");
    subject.store.revoke_lease(second.id).await?;
    ensure!(
        subject.read(&key("x/a")?).await?.is_none(),
        "its lease has ended"
    );
    Ok(())
}

pub(super) async fn a_put_without_lease_detaches_the_key(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?;
    subject.hang("x/a", lease.id).await?;
    let revision = subject.put("x/a", "free").await?;
    let record = subject.existing("x/a").await?;
    ensure!(record.lease.is_none(), "{record:?}");
    subject.store.revoke_lease(lease.id).await?;
    let record = subject.existing("x/a").await?;
    ensure!(
        record.modified == revision && record.value == "free",
        "{record:?}"
    );
    Ok(())
}

pub(super) async fn a_recreated_key_does_not_end_with_its_old_lease(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?;
    for name in ["x/a", "x/b"] {
        subject.hang(name, lease.id).await?;
        subject.delete(name).await?;
    }
    subject.put("x/a", "free").await?;
    let other = subject.store.grant_lease(LONG).await?;
    subject.hang("x/b", other.id).await?;
    subject.store.revoke_lease(lease.id).await?;
    subject.existing("x/a").await?;
    subject.existing("x/b").await?;
    Ok(())
}

pub(super) async fn leases_end_independently(subject: Subject) -> Check {
    let short = subject.store.grant_lease(subject.lease_ttl).await?;
    let long = subject.store.grant_lease(LONG).await?;
    subject.hang("x/short", short.id).await?;
    subject.hang("x/long", long.id).await?;
    let both = Transaction::new()
        .put_with_lease(key("x/s2")?, "1", short.id)
        .put_with_lease(key("x/l2")?, "1", long.id);
    subject.commit(both).await?;
    subject.until_gone(&key("x/short")?, short.ttl).await?;
    ensure!(subject.read(&key("x/s2")?).await?.is_none(), "x/s2 is left");
    subject.existing("x/long").await?;
    subject.existing("x/l2").await?;
    subject.store.keep_alive(long.id).await?;
    subject.store.revoke_lease(long.id).await?;
    let left = subject.all(&prefix("x/")?, 9).await?.0;
    ensure!(left.is_empty(), "left is {left:?}");
    Ok(())
}

pub(super) async fn a_lease_without_keys_ends_as_well(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?;
    subject.store.keep_alive(lease.id).await?;
    subject.store.revoke_lease(lease.id).await?;
    let outcome = subject.store.keep_alive(lease.id).await;
    ensure_matches!(outcome, Err(StoreError::LeaseNotFound { .. }), "revoked");
    Ok(())
}
