//! Cases about each kind of compare.

use std::time::Duration;

use super::kit::{Check, Stop, Subject, ensure, ensure_matches, key, prefix};
use crate::store::{Compare, LeaseId, Revision, StoreError, Transaction};

/// Whether a transaction with this compare would be committed.
async fn passes(subject: &Subject, compare: Compare) -> Check<bool> {
    match subject.commit(Transaction::new().require(compare)).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { failed }) => {
            ensure!(failed == [0], "one compare, but failed are {failed:?}");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn before(revision: Revision) -> Revision {
    Revision::from_u64(revision.as_u64().saturating_sub(1))
}

pub(super) async fn absent_holds_only_without_the_key(subject: Subject) -> Check {
    let absent = || Ok::<_, Stop>(Compare::Absent(key("o/a")?));
    ensure!(passes(&subject, absent()?).await?, "before the put");
    subject.put("o/a", "").await?;
    ensure!(
        !passes(&subject, absent()?).await?,
        "an empty value is a value"
    );
    subject.put("o/a/below", "1").await?;
    subject.delete("o/a").await?;
    ensure!(
        passes(&subject, absent()?).await?,
        "keys below it are not the key"
    );
    Ok(())
}

pub(super) async fn a_revision_compare_holds_for_the_last_put_only(subject: Subject) -> Check {
    let is = |revision| Ok::<_, Stop>(Compare::Revision(key("o/a")?, revision));
    ensure!(
        !passes(&subject, is(Revision::ZERO)?).await?,
        "no key, revision 0"
    );
    let created = subject.put("o/a", "1").await?;
    ensure!(passes(&subject, is(created)?).await?, "just put");
    subject.put("o/b", "1").await?;
    ensure!(passes(&subject, is(created)?).await?, "another key was put");
    let modified = subject.put("o/a", "2").await?;
    ensure!(!passes(&subject, is(created)?).await?, "overwritten");
    ensure!(passes(&subject, is(modified)?).await?, "the last put");
    ensure!(
        !passes(&subject, is(modified.next())?).await?,
        "a later revision"
    );
    ensure!(
        !passes(&subject, is(before(modified))?).await?,
        "an earlier one"
    );
    let other_epoch = Revision::new(modified.epoch() + 1, modified.counter());
    ensure!(
        !passes(&subject, is(other_epoch)?).await?,
        "another epoch's"
    );
    subject.delete("o/a").await?;
    ensure!(!passes(&subject, is(modified)?).await?, "deleted");
    subject.put("o/a", "2").await?;
    ensure!(!passes(&subject, is(modified)?).await?, "created anew");
    Ok(())
}

pub(super) async fn the_range_compare_sees_newer_puts_in_its_range(subject: Subject) -> Check {
    let range =
        |text: &str, revision| Ok::<_, Stop>(Compare::RangeNotNewer(prefix(text)?, revision));
    if !subject.store.capabilities().range_compare {
        let outcome = subject
            .commit(Transaction::new().require(range("n/", Revision::ZERO)?))
            .await;
        ensure_matches!(
            outcome,
            Err(StoreError::Invalid { .. }),
            "it has no range compare"
        );
        return Ok(());
    }
    ensure!(
        passes(&subject, range("n/web1/", Revision::ZERO)?).await?,
        "empty"
    );
    subject.put("n/web1/a", "1").await?;
    let seen = subject.put("n/web1/b", "1").await?;
    ensure!(
        passes(&subject, range("n/web1/", seen)?).await?,
        "nothing newer"
    );
    ensure!(
        !passes(&subject, range("n/web1/", before(seen))?).await?,
        "b is newer"
    );
    ensure!(
        !passes(&subject, range("n/web1/", Revision::ZERO)?).await?,
        "since 0"
    );
    subject.put("n/web10/a", "1").await?;
    subject.put("n/web1", "1").await?;
    subject.put("n/web", "1").await?;
    ensure!(
        passes(&subject, range("n/web1/", seen)?).await?,
        "neighbours"
    );
    ensure!(
        !passes(&subject, range("n/", seen)?).await?,
        "a wider range"
    );
    ensure!(!passes(&subject, range("", seen)?).await?, "all keys");
    subject.delete("n/web1/a").await?;
    ensure!(
        passes(&subject, range("n/web1/", seen)?).await?,
        "deletes pass"
    );
    // The transaction's own put is judged after the compare, and seen by the next.
    let place = Transaction::new()
        .require(range("n/web1/", seen)?)
        .put(key("n/web1/c")?, "1");
    subject.commit(place.clone()).await?;
    let outcome = subject.commit(place).await;
    ensure_matches!(outcome, Err(StoreError::Conflict { .. }), "c is newer");
    let changed = subject.put("n/web1/b", "1").await?;
    ensure!(
        !passes(&subject, range("n/web1/", before(changed))?).await?,
        "same value"
    );
    ensure!(
        passes(&subject, range("n/web1/", changed)?).await?,
        "up to date"
    );
    Ok(())
}

pub(super) async fn a_group_of_keys_is_compared_as_a_whole(subject: Subject) -> Check {
    let group = |name: &str, revision| {
        let text = format!("o/intent/example.dev/pods/{name}/");
        Ok::<_, Stop>(Compare::RangeNotNewer(prefix(&text)?, revision))
    };
    if !subject.store.capabilities().group_compare {
        return Ok(());
    }
    ensure!(
        passes(&subject, group("n1", Revision::ZERO)?).await?,
        "empty"
    );
    let first = subject.put("o/intent/example.dev/pods/n1/a/b", "1").await?;
    subject
        .put("o/intent/example.dev/pods/n10/a/b", "1")
        .await?;
    let seen = subject.put("o/intent/example.dev/pods/n2/a/b", "1").await?;
    ensure!(passes(&subject, group("n1", first)?).await?, "neighbours");
    ensure!(passes(&subject, group("n1", seen)?).await?, "nothing newer");
    ensure!(
        !passes(&subject, group("n1", before(first))?).await?,
        "newer"
    );
    ensure!(
        !passes(&subject, group("n1", Revision::ZERO)?).await?,
        "since 0"
    );
    // Of two that put something in the group on the same state, one happens.
    let place = |name: &str| {
        let key = key(format!("o/intent/example.dev/pods/n1/a/{name}"))?;
        Ok::<_, Stop>(Transaction::new().require(group("n1", seen)?).put(key, "1"))
    };
    let at = subject.commit(place("c")?).await?;
    let outcome = subject.commit(place("d")?).await;
    ensure_matches!(outcome, Err(StoreError::Conflict { .. }), "c is newer");
    // And whoever did the first knows when nothing else came.
    let again = key("o/intent/example.dev/pods/n1/a/e")?;
    let again = Transaction::new().require(group("n1", at)?).put(again, "1");
    subject.commit(again).await?;
    Ok(())
}

fn claim(epoch: Revision, lease: LeaseId) -> Check<Compare> {
    let key = key("x/lease/leader")?;
    Ok(Compare::ClaimHeld { key, epoch, lease })
}

async fn win(subject: &Subject, lease: LeaseId) -> Check<Revision> {
    let key = key("x/lease/leader")?;
    let transaction = Transaction::new()
        .require_absent(key.clone())
        .put_with_lease(key, "holder", lease);
    Ok(subject.commit(transaction).await?)
}

/// Long enough for nothing to end by itself while the case runs.
const LONG: Duration = Duration::from_secs(600);

pub(super) async fn a_claim_holds_for_its_epoch_and_lease_only(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?.id;
    let other = subject.store.grant_lease(LONG).await?.id;
    ensure!(
        !passes(&subject, claim(Revision::ZERO, lease)?).await?,
        "no claim yet"
    );
    let epoch = win(&subject, lease).await?;
    ensure!(passes(&subject, claim(epoch, lease)?).await?, "just won");
    ensure!(
        !passes(&subject, claim(epoch, other)?).await?,
        "another's lease"
    );
    ensure!(
        !passes(&subject, claim(before(epoch), lease)?).await?,
        "an older epoch"
    );
    ensure!(
        !passes(&subject, claim(epoch.next(), lease)?).await?,
        "a newer epoch"
    );
    // The holder may rewrite its record, which keeps its creation.
    subject.hang("x/lease/leader", lease).await?;
    ensure!(
        passes(&subject, claim(epoch, lease)?).await?,
        "rewritten by its holder"
    );
    subject.hang("x/lease/leader", other).await?;
    ensure!(
        !passes(&subject, claim(epoch, lease)?).await?,
        "taken by another lease"
    );
    subject.hang("x/lease/leader", lease).await?;
    subject.put("x/lease/leader", "detached").await?;
    ensure!(
        !passes(&subject, claim(epoch, lease)?).await?,
        "detached from the lease"
    );
    Ok(())
}

pub(super) async fn a_claim_is_lost_with_its_lease(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?.id;
    let epoch = win(&subject, lease).await?;
    subject.store.revoke_lease(lease).await?;
    ensure!(!passes(&subject, claim(epoch, lease)?).await?, "revoked");
    let short = subject.store.grant_lease(subject.lease_ttl).await?;
    let epoch = win(&subject, short.id).await?;
    ensure!(passes(&subject, claim(epoch, short.id)?).await?, "just won");
    subject
        .until_gone(&key("x/lease/leader")?, short.ttl)
        .await?;
    ensure!(
        !passes(&subject, claim(epoch, short.id)?).await?,
        "its time is up"
    );
    Ok(())
}

pub(super) async fn a_claim_won_again_is_another_claim(subject: Subject) -> Check {
    let lease = subject.store.grant_lease(LONG).await?.id;
    let first = win(&subject, lease).await?;
    subject.delete("x/lease/leader").await?;
    ensure!(!passes(&subject, claim(first, lease)?).await?, "given up");
    // The same lease wins it again: what was decided under the first claim is void.
    let second = win(&subject, lease).await?;
    ensure!(
        !passes(&subject, claim(first, lease)?).await?,
        "the claim before"
    );
    ensure!(
        passes(&subject, claim(second, lease)?).await?,
        "the claim of now"
    );
    subject.store.revoke_lease(lease).await?;
    let other = subject.store.grant_lease(LONG).await?.id;
    ensure!(other != lease, "a lease id was given out twice");
    let third = win(&subject, other).await?;
    for (epoch, lease) in [
        (first, lease),
        (second, lease),
        (third, lease),
        (second, other),
    ] {
        let held = passes(&subject, claim(epoch, lease)?).await?;
        ensure!(
            !held,
            "epoch {epoch} with {lease:?} passes at {third} with {other:?}"
        );
    }
    ensure!(
        passes(&subject, claim(third, other)?).await?,
        "the new holder's"
    );
    Ok(())
}
