//! Cases about commits: order, atomicity, what a put and a delete mean.

use bytes::Bytes;
use futures::FutureExt;

use super::kit::{Check, Subject, ensure, ensure_matches, key, prefix};
use crate::store::{Compare, Revision, StoreError, Transaction};

pub(super) async fn revisions_only_grow(subject: Subject) -> Check {
    let mut last = subject.revision().await?;
    for n in 0..30 {
        let revision = match n % 3 {
            0 => subject.put("o/a", "x").await?,
            1 => subject.put(&format!("o/{n}"), "x").await?,
            _ => subject.delete("o/a").await?,
        };
        ensure!(revision > last, "{revision} after {last}");
        last = revision;
        let read = subject.revision().await?;
        ensure!(read >= last, "read at {read} after {last}");
        last = read;
    }
    Ok(())
}

pub(super) async fn a_transaction_happens_whole_or_not_at_all(subject: Subject) -> Check {
    let first = subject.put("o/a", "1").await?;
    let before = subject.all(&prefix("")?, 100).await?.0;
    let writes = |transaction: Transaction| {
        Ok::<_, super::kit::Stop>(
            transaction
                .put(key("o/a")?, "2")
                .put(key("o/b")?, "2")
                .delete(key("o/c")?),
        )
    };
    for compare in [
        Compare::Absent(key("o/a")?),
        Compare::Revision(key("o/a")?, Revision::from_u64(first.as_u64() + 1)),
        Compare::Revision(key("o/b")?, first),
    ] {
        for passing_first in [false, true] {
            let mut transaction = Transaction::new();
            if passing_first {
                transaction = transaction.require(Compare::Absent(key("o/none")?));
            }
            let transaction = writes(transaction.require(compare.clone()))?;
            let outcome = subject.commit(transaction).await;
            ensure_matches!(
                outcome,
                Err(StoreError::Conflict { .. }),
                compare_text(&compare)
            );
            let after = subject.all(&prefix("")?, 100).await?.0;
            ensure!(before == after, "a conflict left {after:?}");
        }
    }
    let transaction = writes(Transaction::new().require_unchanged(key("o/a")?, Some(first)))?;
    subject.commit(transaction).await?;
    ensure!(
        subject.all(&prefix("o/")?, 9).await?.0.len() == 2,
        "o/a and o/b"
    );
    Ok(())
}

fn compare_text(compare: &Compare) -> String {
    format!("{compare:?}")
}

pub(super) async fn a_conflict_names_the_compares_that_failed(subject: Subject) -> Check {
    let revision = subject.put("o/a", "1").await?;
    let transaction = Transaction::new()
        .require_unchanged(key("o/a")?, Some(revision))
        .require_absent(key("o/a")?)
        .require_absent(key("o/none")?)
        .require_unchanged(key("o/none")?, Some(revision))
        .put(key("o/b")?, "1");
    match subject.commit(transaction).await {
        Err(StoreError::Conflict { failed }) => {
            let named = |position| failed.contains(&position);
            ensure!(named(1) && named(3), "1 and 3 failed, named are {failed:?}");
            ensure!(
                failed.iter().all(|at| *at < 4),
                "there are four: {failed:?}"
            );
        }
        other => ensure_matches!(other, Err(StoreError::Conflict { .. }), "compares fail"),
    }
    Ok(())
}

pub(super) async fn all_writes_of_a_transaction_share_one_revision(subject: Subject) -> Check {
    subject.put("o/gone", "1").await?;
    let transaction = Transaction::new()
        .put(key("o/a")?, "1")
        .put(key("x/b")?, "1")
        .delete(key("o/gone")?)
        .put(key("o/c")?, "1");
    let revision = subject.commit(transaction).await?;
    for name in ["o/a", "x/b", "o/c"] {
        let record = subject.existing(name).await?;
        ensure!(
            record.created == revision && record.modified == revision,
            "the commit was {revision}: {record:?}"
        );
    }
    ensure!(
        subject.read(&key("o/gone")?).await?.is_none(),
        "o/gone is there"
    );
    Ok(())
}

pub(super) async fn an_identical_put_is_a_change(subject: Subject) -> Check {
    let created = subject.put("o/a", "same").await?;
    let mut observer = subject.observe("o/", created)?;
    let revision = subject.put("o/a", "same").await?;
    ensure!(revision > created, "{revision} after {created}");
    let record = subject.existing("o/a").await?;
    ensure!(record.modified == revision, "{record:?} after {revision}");
    observer.until(revision).await?;
    ensure!(!observer.events.is_empty(), "no watcher was told");
    observer.must_hold(&[record])
}

pub(super) async fn a_recreated_key_is_created_anew(subject: Subject) -> Check {
    let first = subject.put("o/a", "1").await?;
    subject.delete("o/a").await?;
    ensure!(
        subject.read(&key("o/a")?).await?.is_none(),
        "it was deleted"
    );
    let second = subject.put("o/a", "2").await?;
    let record = subject.existing("o/a").await?;
    ensure!(
        record.created == second && second > first,
        "created at {first}, deleted, created at {second}: {record:?}"
    );
    Ok(())
}

pub(super) async fn deleting_an_absent_key_is_no_error(subject: Subject) -> Check {
    let before = subject.put("o/a", "1").await?;
    let revision = subject.delete("o/none").await?;
    ensure!(revision >= before, "{revision} after {before}");
    let transaction = Transaction::new()
        .delete(key("o/none")?)
        .put(key("o/b")?, "1");
    let revision = subject.commit(transaction).await?;
    ensure!(subject.existing("o/b").await?.modified == revision, "o/b");
    ensure!(
        subject.existing("o/a").await?.modified == before,
        "o/a changed"
    );
    Ok(())
}

pub(super) async fn an_empty_transaction_tells_the_revision_it_was_judged_at(
    subject: Subject,
) -> Check {
    let before = subject.put("o/a", "1").await?;
    let mut observer = subject.observe("o/", before)?;
    let empty = subject.commit(Transaction::new()).await?;
    ensure!(empty >= before, "judged at {empty} after {before}");
    let compared = Transaction::new().require_unchanged(key("o/a")?, Some(before));
    ensure!(subject.commit(compared).await? >= before, "a compare alone");
    let failing = Transaction::new().require_absent(key("o/a")?);
    let outcome = subject.commit(failing).await;
    ensure_matches!(outcome, Err(StoreError::Conflict { .. }), "a compare alone");
    let after = subject.put("o/b", "1").await?;
    ensure!(after > empty, "{after} after {empty}");
    observer.until(after).await?;
    let told: Vec<_> = observer
        .events
        .iter()
        .flat_map(|event| event.keys())
        .collect();
    ensure!(told == ["o/b"], "transactions without writes told {told:?}");
    Ok(())
}

pub(super) async fn a_key_written_twice_is_refused(subject: Subject) -> Check {
    let a = || key("o/a");
    for transaction in [
        Transaction::new().put(a()?, "1").put(a()?, "2"),
        Transaction::new()
            .put(a()?, "1")
            .put(key("o/b")?, "1")
            .delete(a()?),
        Transaction::new().delete(a()?).put(a()?, "1"),
    ] {
        let outcome = subject.commit(transaction).await;
        ensure_matches!(outcome, Err(StoreError::Invalid { .. }), "o/a twice");
        let left = subject.all(&prefix("")?, 9).await?.0;
        ensure!(left.is_empty(), "a refused transaction left {left:?}");
    }
    Ok(())
}

pub(super) async fn compares_are_judged_before_the_writes(subject: Subject) -> Check {
    let create = Transaction::new()
        .require_absent(key("o/a")?)
        .put(key("o/a")?, "1");
    let revision = subject.commit(create.clone()).await?;
    let outcome = subject.commit(create).await;
    ensure_matches!(outcome, Err(StoreError::Conflict { .. }), "it exists");
    let swap = Transaction::new()
        .require_unchanged(key("o/a")?, Some(revision))
        .require_absent(key("o/b")?)
        .delete(key("o/a")?)
        .put(key("o/b")?, "1");
    subject.commit(swap).await?;
    let keys = subject.all(&prefix("")?, 9).await?.0;
    ensure!(keys.len() == 1 && keys[0].key == key("o/b")?, "{keys:?}");
    Ok(())
}

pub(super) async fn a_dropped_commit_is_whole_or_nothing(subject: Subject) -> Check {
    for n in 0..40 {
        let value = n.to_string();
        let pair = Transaction::new()
            .put(key("o/a")?, value.clone())
            .put(key("o/b")?, value.clone())
            .put(key(format!("o/c{n}"))?, value);
        let commit = subject.store.commit(pair);
        if n % 2 == 0 {
            // Asked once, then forgotten.
            let _ = commit.now_or_never();
        } else {
            let _ = tokio::time::timeout(std::time::Duration::ZERO, commit).await;
        }
        // Later commits come behind it, or it comes behind them; it is never seen in part.
        let keys = [key("o/a")?, key("o/b")?, key(format!("o/c{n}"))?];
        let snapshot = subject.store.get(&keys).await?;
        let value = |at: usize| {
            snapshot.records[at]
                .as_ref()
                .map(|record| record.value.clone())
        };
        ensure!(value(0) == value(1), "torn: {snapshot:?}");
        let there = value(0) == Some(Bytes::from(n.to_string()));
        ensure!(there == value(2).is_some(), "torn: {snapshot:?}");
    }
    subject.put("o/after", "1").await?;
    Ok(())
}

pub(super) async fn a_lost_answer_is_unknown_and_never_a_refusal(subject: Subject) -> Check {
    let lose_next = subject.lost_answers()?;
    for n in 0..5 {
        let name = format!("o/{n}");
        lose_next(()).await;
        match subject.put_outcome(&name).await? {
            Ok(_) | Err(StoreError::Unknown { .. }) => {}
            Err(error) => {
                let record = subject.read(&key(&name)?).await?;
                ensure!(record.is_none(), "it happened, but the answer was: {error}");
                ensure_matches!(error, StoreError::Unavailable { .. }, "the answer was lost");
            }
        }
        // Who tries again under the same compare creates it once.
        let again = Transaction::new()
            .require_absent(key(&name)?)
            .put(key(&name)?, "again");
        match subject.commit(again).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        subject.existing(&name).await?;
    }
    Ok(())
}

impl Subject {
    async fn put_outcome(
        &self,
        name: &str,
    ) -> Result<Result<Revision, StoreError>, super::kit::Stop> {
        let create = Transaction::new()
            .require_absent(key(name)?)
            .put(key(name)?, "first");
        Ok(self.commit(create).await)
    }
}
