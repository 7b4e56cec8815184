//! Cases about a store that is closed the hard way and opened again.

use super::kit::{Check, Stop, Subject, ensure, prefix};
use crate::store::Revision;

pub(super) async fn acknowledged_commits_survive_reopening(subject: Subject) -> Check {
    if !subject.store.capabilities().durable {
        return Err(Stop::does_not_apply("the backend is not durable"));
    }
    let mut subject = subject;
    for round in 0..3 {
        for n in 0..20 {
            subject
                .put(&format!("o/{}", n % 7), &format!("{round}-{n}"))
                .await?;
        }
        subject.delete("o/3").await?;
        let (before, _) = subject.all(&prefix("")?, 1000).await?;
        subject = subject.reopen().await?;
        let (after, _) = subject.all(&prefix("")?, 1000).await?;
        ensure!(before == after, "before {before:?}, after {after:?}");
    }
    Ok(())
}

pub(super) async fn revisions_go_on_after_reopening(subject: Subject) -> Check {
    if !subject.store.capabilities().durable {
        return Err(Stop::does_not_apply("the backend is not durable"));
    }
    let mut subject = subject;
    let mut last = Revision::ZERO;
    for round in 0..4 {
        let revision = subject.put("o/a", &round.to_string()).await?;
        ensure!(revision > last, "{revision} after {last}");
        // The newest revision was a delete's, of which no record is left.
        last = subject.delete("o/a").await?;
        ensure!(last > revision, "{last} after {revision}");
        subject = subject.reopen().await?;
        let now = subject.revision().await?;
        ensure!(now >= last, "opened again at {now}, before it was {last}");
    }
    Ok(())
}

pub(super) async fn a_watch_after_reopening_misses_nothing(subject: Subject) -> Check {
    if !subject.store.capabilities().durable {
        return Err(Stop::does_not_apply("the backend is not durable"));
    }
    let start = subject.put("o/a", "1").await?;
    let (records, _) = subject.all(&prefix("o/")?, 9).await?;
    let last = subject.put("o/b", "1").await?;
    let subject = subject.reopen().await?;
    let mut observer = subject.observe("o/", start)?.starting_with(records);
    let next = subject.put("o/c", "1").await?.max(last);
    while observer.at < next {
        if observer.next().await? == super::kit::Told::Reset {
            return Ok(());
        }
    }
    observer.must_hold(&subject.all(&prefix("o/")?, 9).await?.0)
}
