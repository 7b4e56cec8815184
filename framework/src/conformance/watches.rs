//! Cases about watches. Every event is also held against the promise by the observer.

use std::collections::BTreeMap;

use super::kit::{
    Check, Observer, Stop, Subject, Told, ensure, ensure_matches, key, prefix, within,
};
use crate::store::{Change, ListRequest, Prefix, Revision, StoreError, Transaction};

pub(super) async fn a_watch_tells_every_change_to_come(subject: Subject) -> Check {
    let start = subject.revision().await?;
    let mut observer = subject.observe("o/", start)?;
    let mut last = start;
    for n in 0..60 {
        let name = format!("o/{}", n % 7);
        last = match n % 5 {
            4 => {
                let swap = Transaction::new()
                    .delete(key(&name)?)
                    .put(key("o/also")?, n.to_string());
                subject.commit(swap).await?
            }
            _ => subject.put(&name, &n.to_string()).await?,
        };
        if n % 11 == 0 {
            observer.until(last).await?;
        }
    }
    observer.until(last).await?;
    observer.must_hold(&subject.all(&prefix("o/")?, 100).await?.0)
}

pub(super) async fn an_exact_watch_tells_every_transaction_in_order(subject: Subject) -> Check {
    if !subject.store.capabilities().exact_watch {
        return Err(Stop::does_not_apply(
            "the backend's watches may leave states out",
        ));
    }
    let start = subject.put("o/a", "before").await?;
    let mut live = subject.observe("o/", start)?;
    let mut expected = Vec::new();
    for n in 0..40 {
        let transaction = match n % 4 {
            0 => Transaction::new().put(key("o/a")?, "x"),
            1 => Transaction::new().delete(key("o/a")?),
            2 => Transaction::new()
                .put(key("o/b")?, "x")
                .put(key("o/a")?, "x"),
            _ => Transaction::new().put(key("o/a")?, "x").delete(key("o/b")?),
        };
        expected.push(subject.commit(transaction).await?);
    }
    let last = subject.put("elsewhere", "1").await?;
    live.until(last).await?;
    let mut replay = subject.observe("o/", start)?;
    replay.until(last).await?;
    for observer in [live, replay] {
        let told: Vec<Revision> = observer.events.iter().map(|event| event.revision).collect();
        ensure!(told == expected, "told {told:?}, committed {expected:?}");
    }
    Ok(())
}

pub(super) async fn a_watch_resumes_behind_the_revision_it_is_given(subject: Subject) -> Check {
    let mut revisions = Vec::new();
    for n in 0..12 {
        let name = format!("o/{}", n % 4);
        revisions.push(match n {
            8 => subject.delete(&name).await?,
            _ => subject.put(&name, &n.to_string()).await?,
        });
    }
    let last = *revisions.last().unwrap_or(&Revision::ZERO);
    let now = subject.all(&prefix("o/")?, 100).await?.0;
    for (position, after) in revisions.iter().enumerate() {
        let mut observer = subject.observe("o/", *after)?;
        observer.until(last).await?;
        let mut expected: BTreeMap<_, _> = BTreeMap::new();
        for record in &now {
            if record.modified > *after {
                expected.insert(record.key.clone(), record.clone());
            }
        }
        for (key, record) in &expected {
            ensure!(
                observer.state.get(key) == Some(record),
                "resumed behind {after}: {key} is {:?}, not {record:?}",
                observer.state.get(key)
            );
        }
        let deleted = revisions[8];
        let gone = observer
            .events
            .iter()
            .flat_map(|event| &event.changes)
            .any(|change| matches!(change, Change::Delete { .. }));
        // A backend that merges may leave the delete out for the key that has come back.
        let back = now.iter().any(|record| record.created > deleted);
        ensure!(
            *after >= deleted || gone || back,
            "resumed behind {after}, the delete of {deleted} was not told"
        );
        if position + 1 == revisions.len() {
            ensure!(
                observer.events.is_empty(),
                "nothing came: {:?}",
                observer.events
            );
        }
    }
    Ok(())
}

pub(super) async fn a_watch_from_before_everything_tells_all_or_is_reset(
    subject: Subject,
) -> Check {
    subject.put("o/a", "1").await?;
    subject.put("o/b", "1").await?;
    subject.delete("o/a").await?;
    let last = subject.put("o/c", "1").await?;
    let mut observer = subject.observe("o/", Revision::ZERO)?;
    while observer.at < last {
        if observer.next().await? == Told::Reset {
            return Ok(());
        }
    }
    observer.must_hold(&subject.all(&prefix("o/")?, 100).await?.0)
}

pub(super) async fn a_watch_from_now_tells_nothing_old(subject: Subject) -> Check {
    subject.put("o/a", "1").await?;
    let now = subject.put("o/b", "1").await?;
    let mut observer = subject.observe("o/", now)?;
    let next = subject.put("o/c", "1").await?;
    observer.until(next).await?;
    let told: Vec<&str> = observer
        .events
        .iter()
        .flat_map(|event| event.keys())
        .collect();
    ensure!(told == ["o/c"], "only o/c changed since, told was {told:?}");
    Ok(())
}

pub(super) async fn a_watch_from_the_future_is_reset(subject: Subject) -> Check {
    let now = subject.put("o/a", "1").await?;
    for ahead in [
        Revision::from_u64(now.as_u64() + 1000),
        Revision::new(now.epoch() + 1, 1),
    ] {
        let mut observer = subject.observe("o/", ahead)?;
        match within(observer.next()).await? {
            Ok(Told::Reset) => {}
            other => ensure_matches!(
                other,
                Ok(Told::Reset),
                format!("{ahead} is of another history than {now}")
            ),
        }
    }
    Ok(())
}

pub(super) async fn a_transaction_is_one_event(subject: Subject) -> Check {
    let start = subject.put("o/c", "0").await?;
    let mut observer = subject.observe("o/", start)?;
    for n in 0..10 {
        let transaction = Transaction::new()
            .put(key("o/a")?, n.to_string())
            .put(key("elsewhere")?, n.to_string())
            .put(key("o/b")?, n.to_string())
            .put(key("o/c/d")?, n.to_string());
        let revision = subject.commit(transaction).await?;
        observer.until(revision).await?;
    }
    for event in &observer.events {
        let keys = event.keys();
        ensure!(keys == ["o/a", "o/b", "o/c/d"], "an event has {keys:?}");
        let one = event
            .changes
            .windows(2)
            .all(|pair| pair[0].revision() == pair[1].revision());
        ensure!(one, "an event mixes transactions: {event:?}");
    }
    Ok(())
}

pub(super) async fn a_transaction_over_two_prefixes_reaches_both_watchers(
    subject: Subject,
) -> Check {
    let start = subject.revision().await?;
    let mut intent = subject.observe("o/intent/", start)?;
    let mut reality = subject.observe("o/reality/", start)?;
    let mut both = subject.observe("o/", start)?;
    let transaction = Transaction::new()
        .put(key("o/intent/a")?, "1")
        .put(key("o/reality/a")?, "1");
    let revision = subject.commit(transaction).await?;
    for (observer, expected) in [
        (&mut intent, &["o/intent/a"][..]),
        (&mut reality, &["o/reality/a"]),
        (&mut both, &["o/intent/a", "o/reality/a"]),
    ] {
        observer.until(revision).await?;
        let told: Vec<_> = observer.events.iter().map(super::kit::Seen::keys).collect();
        ensure!(told == [expected], "told {told:?}, expected {expected:?}");
        ensure!(
            observer.events[0].changes[0].revision() == revision,
            "told at another revision: {:?}",
            observer.events
        );
    }
    Ok(())
}

pub(super) async fn a_watch_hears_its_own_prefix_only(subject: Subject) -> Check {
    let start = subject.revision().await?;
    let mut web1 = subject.observe("n/web1/", start)?;
    let mut web10 = subject.observe("n/web10/", start)?;
    for name in [
        "n/web10/a",
        "n/web1",
        "n/web1-/a",
        "n/web2/a",
        "n/web1/a",
        "m/web1/a",
    ] {
        subject.put(name, "1").await?;
    }
    let last = subject.delete("n/web10/a").await?;
    web1.until(last).await?;
    web10.until(last).await?;
    // The observers fail on any key outside their prefix.
    web1.must_hold(&subject.all(&prefix("n/web1/")?, 9).await?.0)?;
    ensure!(web1.state.len() == 1, "{:?}", web1.state);
    web10.must_hold(&[])
}

pub(super) async fn a_watch_of_one_key_hears_that_key_only(subject: Subject) -> Check {
    let start = subject.put("n/web1", "before").await?;
    let only = Prefix::only(&key("n/web1")?);
    let mut observer = subject.observe_range(only.clone(), start);
    for name in ["n/web10", "n/web1/a", "n/web1-a", "n/web", "n/web1"] {
        subject.put(name, "1").await?;
    }
    let swap = Transaction::new()
        .put(key("n/web1")?, "2")
        .delete(key("n/web10")?);
    let swapped = subject.commit(swap).await?;
    observer.until(swapped).await?;
    // The observer fails on any other key.
    observer.must_hold(&subject.all(&only, 9).await?.0)?;
    let deleted = subject.delete("n/web1").await?;
    observer.until(deleted).await?;
    observer.must_hold(&[])?;
    let last = subject.put("n/web1/b", "quiet").await?;
    observer.until(last).await
}

pub(super) async fn a_delete_is_told(subject: Subject) -> Check {
    let start = subject.put("o/a", "1").await?;
    let kept = subject.put("o/kept", "1").await?;
    let (records, _) = subject.all(&prefix("o/")?, 9).await?;
    let mut observer = subject.observe("o/", kept)?.starting_with(records);
    let deleted = subject.delete("o/a").await?;
    observer.until(deleted).await?;
    let change = observer
        .events
        .iter()
        .flat_map(|event| &event.changes)
        .next();
    match change {
        Some(Change::Delete { key, revision }) => {
            ensure!(
                key.as_str() == "o/a" && *revision > start && *revision <= deleted,
                "deleted at {deleted}, told {change:?}"
            );
        }
        other => return Err(Stop::failed(format!("o/a was deleted, told {other:?}"))),
    }
    observer.must_hold(&subject.all(&prefix("o/")?, 9).await?.0)
}

pub(super) async fn a_key_that_comes_back_is_told_with_its_new_creation(subject: Subject) -> Check {
    let first = subject.put("o/a", "1").await?;
    let (records, _) = subject.all(&prefix("o/")?, 9).await?;
    let mut observer = subject.observe("o/", first)?.starting_with(records);
    subject.delete("o/a").await?;
    let second = subject.put("o/a", "1").await?;
    observer.until(second).await?;
    let record = observer.state.get("o/a");
    ensure!(
        record.is_some_and(|record| record.created == second),
        "created again at {second}, told {record:?}"
    );
    Ok(())
}

pub(super) async fn progress_reaches_watchers_of_quiet_prefixes(subject: Subject) -> Check {
    let start = subject.put("quiet/a", "1").await?;
    let mut observers = Vec::new();
    for text in ["quiet/", "empty/", "x/never/"] {
        observers.push(subject.observe(text, start)?);
    }
    for n in 0..5 {
        let revision = subject.put("busy/a", &n.to_string()).await?;
        for observer in &mut observers {
            observer.until(revision).await?;
            ensure!(observer.events.is_empty(), "told {:?}", observer.events);
        }
    }
    Ok(())
}

pub(super) async fn a_watch_behind_the_history_is_reset(subject: Subject) -> Check {
    let old = subject.put("o/a", "1").await?;
    subject.put("o/a", "2").await?;
    subject.delete("o/a").await?;
    let kept = subject.put("o/b", "1").await?;
    subject.compact(kept).await?;
    let mut observer = subject.observe("o/", old)?;
    let told = observer.next().await?;
    ensure!(
        told == Told::Reset,
        "resumed from {old}, compacted to {kept}, told {:?}",
        observer.events
    );
    let mut observer = subject.observe("o/", kept)?;
    let next = subject.put("o/c", "1").await?;
    observer.until(next).await?;
    ensure!(observer.state.len() == 1, "{:?}", observer.state);
    Ok(())
}

pub(super) async fn a_list_behind_the_history_is_compacted(subject: Subject) -> Check {
    if !subject.store.capabilities().pinned_reads {
        return Err(Stop::does_not_apply("the backend has no pinned reads"));
    }
    let old = subject.put("o/a", "1").await?;
    subject.put("o/a", "2").await?;
    let kept = subject.put("o/a", "3").await?;
    subject.put("o/a", "4").await?;
    subject.compact(kept).await?;
    let at = |revision| {
        Ok::<_, Stop>(ListRequest {
            at: Some(revision),
            ..ListRequest::new(prefix("o/")?)
        })
    };
    match subject.store.list(&at(old)?).await {
        Err(StoreError::Compacted { requested, oldest }) => {
            ensure!(
                requested == old && oldest > old && oldest <= kept,
                "asked at {old}, compacted to {kept}: requested {requested}, oldest {oldest}"
            );
        }
        other => ensure_matches!(other, Err(StoreError::Compacted { .. }), "compacted"),
    }
    let page = subject.page(&at(kept)?).await?;
    ensure!(page.records[0].value == "3", "at {kept}: {page:?}");
    Ok(())
}

pub(super) async fn listing_and_watching_from_there_misses_nothing(subject: Subject) -> Check {
    let writer = async {
        let mut last = Revision::ZERO;
        for n in 0..150 {
            let name = format!("o/{}", (n * 7) % 13);
            last = if n % 6 == 5 {
                subject.delete(&name).await?
            } else {
                subject.put(&name, &n.to_string()).await?
            };
            tokio::task::yield_now().await;
        }
        Ok::<_, Stop>(last)
    };
    let readers = async {
        let mut observers = Vec::new();
        for n in 0..25 {
            // Where pages cannot be pinned, one page is one state.
            let (records, revision) = subject.all(&prefix("o/")?, 1000).await?;
            observers.push(subject.observe("o/", revision)?.starting_with(records));
            // Some begin to read at once, the others later.
            if n % 2 == 0 && n > 0 {
                let at = subject.revision().await?;
                subject.follow(&mut observers[n], at).await?;
            }
            tokio::task::yield_now().await;
        }
        Ok::<Vec<Observer>, Stop>(observers)
    };
    let (last, observers) = futures::join!(writer, readers);
    let (last, mut observers) = (last?, observers?);
    let (records, _) = subject.all(&prefix("o/")?, 1000).await?;
    for observer in &mut observers {
        subject.follow(observer, last).await?;
        observer.must_hold(&records)?;
    }
    Ok(())
}

pub(super) async fn many_watchers_all_reach_the_last_state(subject: Subject) -> Check {
    let start = subject.revision().await?;
    let mut observers = Vec::new();
    for n in 0..200 {
        let text = match n % 3 {
            0 => String::new(),
            1 => "o/".to_owned(),
            _ => format!("o/{}/", n % 10),
        };
        observers.push(subject.observe(&text, start)?);
    }
    let mut last = start;
    for n in 0..50 {
        last = subject
            .put(&format!("o/{}/a", n % 10), &n.to_string())
            .await?;
    }
    let all = subject.all(&Prefix::all(), 1000).await?.0;
    let reached = observers
        .iter_mut()
        .map(|observer| subject.follow(observer, last));
    for outcome in futures::future::join_all(reached).await {
        outcome?;
    }
    for (n, observer) in observers.iter().enumerate() {
        let under = match n % 3 {
            0 => Prefix::all(),
            1 => prefix("o/")?,
            _ => prefix(&format!("o/{}/", n % 10))?,
        };
        let expected: Vec<_> = all
            .iter()
            .filter(|record| record.key.is_under(&under))
            .cloned()
            .collect();
        observer.must_hold(&expected)?;
    }
    Ok(())
}

pub(super) async fn a_slow_watcher_holds_nobody_up(subject: Subject) -> Check {
    let start = subject.put("o/a", "first").await?;
    let mut slow = subject.observe("o/", start)?;
    let mut quick = subject.observe("o/", start)?;
    let second = subject.put("o/a", "second").await?;
    slow.until(second).await?;
    // It now stops reading, while large values go by.
    let size = subject
        .store
        .capabilities()
        .limits
        .max_value_bytes
        .min(64 * 1024);
    let value = "v".repeat(size);
    let mut last = second;
    for n in 0..500 {
        let name = format!("o/{}", n % 20);
        last = within(subject.put(&name, &value)).await??;
        if n % 10 == 0 {
            quick.until(last).await?;
        }
    }
    quick.until(last).await?;
    let (records, _) = subject.all(&prefix("o/")?, 1000).await?;
    subject.follow(&mut slow, last).await?;
    slow.must_hold(&records)
}

pub(super) async fn dropped_watches_leave_the_others_alone(subject: Subject) -> Check {
    let start = subject.revision().await?;
    let mut kept = subject.observe("o/", start)?;
    let mut last = start;
    for n in 0..100 {
        let mut dropped = subject.observe("o/", last)?;
        last = subject.put("o/a", &n.to_string()).await?;
        if n % 2 == 0 {
            dropped.until(last).await?;
        }
    }
    subject.follow(&mut kept, last).await?;
    kept.must_hold(&subject.all(&prefix("o/")?, 9).await?.0)
}
