//! Cases about get and list.

use std::collections::BTreeSet;

use super::kit::{Check, Stop, Subject, ensure, ensure_matches, key, prefix};
use crate::store::{Key, ListRequest, Prefix, Record, Revision, StoreError, Transaction};

fn names(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.key.as_str()).collect()
}

pub(super) async fn a_get_answers_each_key_in_the_order_asked(subject: Subject) -> Check {
    subject.put("o/b", "b").await?;
    subject.put("o/a", "a").await?;
    let keys = [key("o/b")?, key("o/none")?, key("o/a")?, key("o/b")?];
    let snapshot = subject.store.get(&keys).await?;
    let values: Vec<Option<&[u8]>> = snapshot
        .records
        .iter()
        .map(|record| record.as_ref().map(|record| &record.value[..]))
        .collect();
    let expected: [Option<&[u8]>; 4] = [Some(b"b"), None, Some(b"a"), Some(b"b")];
    ensure!(values == expected, "{values:?}");
    Ok(())
}

pub(super) async fn a_read_shows_every_acknowledged_commit(subject: Subject) -> Check {
    for n in 0..50 {
        let revision = subject.put("o/a", &n.to_string()).await?;
        let snapshot = subject.store.get(&[key("o/a")?]).await?;
        ensure!(
            snapshot.revision >= revision,
            "a get at {} after a commit at {revision}",
            snapshot.revision
        );
        let record = subject.existing("o/a").await?;
        ensure!(
            record.value == n.to_string(),
            "{n} was written, {record:?} read"
        );
        let page = subject.page(&ListRequest::new(prefix("o/")?)).await?;
        ensure!(page.revision >= revision, "a list at {}", page.revision);
        ensure!(page.records == [record], "a list shows {:?}", page.records);
    }
    Ok(())
}

pub(super) async fn a_get_of_too_many_keys_is_refused(subject: Subject) -> Check {
    let limit = subject.store.capabilities().limits.max_operations;
    let keys: Result<Vec<Key>, _> = (0..=limit).map(|n| key(format!("o/{n}"))).collect();
    let keys = keys?;
    let snapshot = subject.store.get(&keys[..limit]).await?;
    ensure!(
        snapshot.records.len() == limit,
        "{}",
        snapshot.records.len()
    );
    let outcome = subject.store.get(&keys).await;
    ensure_matches!(outcome, Err(StoreError::Invalid { .. }), "one key too many");
    Ok(())
}

pub(super) async fn records_tell_when_they_came_and_last_changed(subject: Subject) -> Check {
    let created = subject.put("o/a", "1").await?;
    subject.put("o/b", "1").await?;
    let modified = subject.put("o/a", "2").await?;
    for record in [
        subject.existing("o/a").await?,
        subject.all(&prefix("o/")?, 10).await?.0[0].clone(),
    ] {
        ensure!(
            (record.created, record.modified) == (created, modified),
            "created {created}, modified {modified}, but {record:?}"
        );
        ensure!(record.lease.is_none(), "no lease was named: {record:?}");
    }
    Ok(())
}

pub(super) async fn a_list_shows_its_own_prefix_in_key_order(subject: Subject) -> Check {
    let all = [
        "n/web",
        "n/web.1/a",
        "n/web-1/a",
        "n/web0/a",
        "n/web1",
        "n/web1-/a",
        "n/web1/0",
        "n/web1/a",
        "n/web1/a-b",
        "n/web1/a.b",
        "n/web1/a/b",
        "n/web1/a0",
        "n/web1/a_b",
        "n/web1/b/c/d",
        "n/web10/a",
        "n/web11/a",
        "n/web1_/a",
        "n/web2/a",
        "m/web1/a",
    ];
    for name in all {
        subject.put(name, "x").await?;
    }
    for text in [
        "",
        "n/",
        "n/web1/",
        "n/web1/a/",
        "n/web10/",
        "m/",
        "n/web/",
        "z/",
    ] {
        let wanted: BTreeSet<&str> = all
            .into_iter()
            .filter(|name| name.starts_with(text))
            .collect();
        for limit in [1, 3, 1000] {
            let (records, _) = subject.all(&prefix(text)?, limit).await?;
            let listed = names(&records);
            ensure!(
                listed.iter().copied().eq(wanted.iter().copied()),
                "`{text}` in pages of {limit}: {listed:?}, expected {wanted:?}"
            );
        }
    }
    Ok(())
}

pub(super) async fn a_list_of_one_key_shows_that_key_only(subject: Subject) -> Check {
    for name in ["n/web1", "n/web10", "n/web1/a", "n/web1-a", "n/web"] {
        subject.put(name, "x").await?;
    }
    for (name, there) in [("n/web1", true), ("n/web1/a", true), ("n/none", false)] {
        let only = Prefix::only(&key(name)?);
        for limit in [1, 1000] {
            let (records, _) = subject.all(&only, limit).await?;
            let listed = names(&records);
            let expected: &[&str] = if there { &[name] } else { &[] };
            ensure!(listed == expected, "{name} alone: {listed:?}");
        }
    }
    Ok(())
}

pub(super) async fn a_list_goes_on_behind_the_key_it_is_given(subject: Subject) -> Check {
    for name in ["a/z", "o/b", "o/d", "o/d/x", "o/f", "p/a"] {
        subject.put(name, "x").await?;
    }
    for (after, expected) in [
        ("o/a", &["o/b", "o/d", "o/d/x", "o/f"][..]),
        ("o/b", &["o/d", "o/d/x", "o/f"]),
        ("o/c", &["o/d", "o/d/x", "o/f"]),
        ("o/d", &["o/d/x", "o/f"]),
        ("o/d-", &["o/d/x", "o/f"]),
        ("o/f", &[]),
        ("o/zzz", &[]),
        ("a/z", &["o/b", "o/d", "o/d/x", "o/f"]),
        ("p/a", &[]),
    ] {
        let request = ListRequest {
            after: Some(key(after)?),
            ..ListRequest::new(prefix("o/")?)
        };
        let page = subject.page(&request).await?;
        ensure!(
            names(&page.records) == expected && !page.more,
            "after {after}: {:?}, more: {}",
            names(&page.records),
            page.more
        );
    }
    Ok(())
}

pub(super) async fn a_list_keeps_its_limit_and_says_if_there_is_more(subject: Subject) -> Check {
    for n in 0..7 {
        subject.put(&format!("o/{n}"), "x").await?;
    }
    // A neighbour that no page may count.
    subject.put("p/0", "x").await?;
    for limit in [1, 2, 6, 7, 8, usize::MAX] {
        let mut request = ListRequest {
            limit,
            ..ListRequest::new(prefix("o/")?)
        };
        let mut total = 0;
        loop {
            let page = subject.page(&request).await?;
            total += page.records.len();
            ensure!(
                page.more == (total < 7),
                "limit {limit}: more is {} after {total} of 7",
                page.more
            );
            if !page.more {
                break;
            }
            let last = page.records.last().map(|record| record.key.clone());
            ensure!(last.is_some(), "an empty page that says there is more");
            request.after = last;
        }
        ensure!(total == 7, "limit {limit}: {total} of 7");
    }
    Ok(())
}

pub(super) async fn a_list_of_nothing_is_empty_and_not_an_error(subject: Subject) -> Check {
    let revision = subject.put("o/a", "x").await?;
    for text in ["none/", "o/a/"] {
        let page = subject.page(&ListRequest::new(prefix(text)?)).await?;
        ensure!(page.records.is_empty() && !page.more, "{text}: {page:?}");
        ensure!(page.revision >= revision, "at {}", page.revision);
    }
    // Zero records are at most zero records; a backend may also refuse to be asked.
    let request = ListRequest {
        limit: 0,
        ..ListRequest::new(prefix("o/")?)
    };
    match subject.store.list(&request).await {
        Ok(page) => ensure!(page.records.is_empty(), "limit 0: {page:?}"),
        Err(error) => ensure_matches!(error, StoreError::Invalid { .. }, "limit 0"),
    }
    Ok(())
}

pub(super) async fn all_pages_show_one_revision_while_writes_go_on(subject: Subject) -> Check {
    const KEYS: usize = 9;
    let all = prefix("o/")?;
    let write = |round: usize| {
        // All keys of a round carry its number, so that a page of another round shows.
        let mut transaction = Transaction::new();
        for n in 0..KEYS {
            transaction = transaction.put(key(format!("o/{n:02}"))?, round.to_string());
        }
        let gone = key(format!("o/00-{round}"))?;
        Ok::<_, Stop>(transaction.put(gone, round.to_string()))
    };
    subject.commit(write(0)?).await?;
    let mut request = ListRequest {
        limit: 3,
        ..ListRequest::new(all)
    };
    let pinned = subject.store.capabilities().pinned_reads;
    let mut values = BTreeSet::new();
    let mut keys = Vec::new();
    let mut newest = Revision::ZERO;
    for round in 1.. {
        let page = subject.page(&request).await?;
        let at = *request.at.get_or_insert(page.revision);
        if pinned {
            ensure!(page.revision == at, "a page of {} at {at}", page.revision);
        } else {
            ensure!(
                page.revision == at || page.revision >= newest,
                "a page of {} must be at {at}, which was asked for, or show the newest state, of \
                 {newest} or later",
                page.revision
            );
        }
        for record in &page.records {
            values.insert(record.value.clone());
            keys.push(record.key.clone());
        }
        if !page.more {
            break;
        }
        request.after = page.records.last().map(|record| record.key.clone());
        newest = subject.commit(write(round)?).await?;
        subject.delete(&format!("o/{:02}", KEYS - 1)).await?;
    }
    if pinned {
        ensure!(
            values.len() == 1 && keys.len() == KEYS + 1,
            "pages mix states: values {values:?}, keys {keys:?}"
        );
    }
    Ok(())
}

pub(super) async fn a_pinned_list_shows_the_past(subject: Subject) -> Check {
    if !subject.store.capabilities().pinned_reads {
        return Err(Stop::does_not_apply("the backend has no pinned reads"));
    }
    let all = prefix("o/")?;
    let mut states = Vec::new();
    subject.put("o/kept", "1").await?;
    for step in [
        Transaction::new().put(key("o/a")?, "1"),
        Transaction::new().put(key("o/a")?, "2"),
        Transaction::new().delete(key("o/a")?),
        Transaction::new()
            .put(key("o/a")?, "3")
            .put(key("o/b")?, "1"),
        Transaction::new().delete(key("o/a")?).delete(key("o/b")?),
        Transaction::new().put(key("elsewhere")?, "1"),
    ] {
        let revision = subject.commit(step).await?;
        let (records, at) = subject.all(&all, 100).await?;
        ensure!(at >= revision, "a list at {at} after {revision}");
        states.push((revision, records));
    }
    for (revision, expected) in states.iter().rev() {
        let request = ListRequest {
            at: Some(*revision),
            ..ListRequest::new(all.clone())
        };
        let page = subject.page(&request).await?;
        ensure!(page.revision == *revision, "asked at {revision}: {page:?}");
        ensure!(
            page.records == *expected,
            "at {revision}: {:?}, then it was {expected:?}",
            page.records
        );
    }
    Ok(())
}

pub(super) async fn a_list_at_no_revision_of_this_history_is_not_the_newest(
    subject: Subject,
) -> Check {
    if !subject.store.capabilities().pinned_reads {
        return Err(Stop::does_not_apply("the backend has no pinned reads"));
    }
    let newest = subject.put("o/a", "1").await?;
    for at in [
        Revision::ZERO,
        Revision::from_u64(newest.as_u64() + 1000),
        Revision::new(newest.epoch() + 1, 1),
    ] {
        let request = ListRequest {
            at: Some(at),
            ..ListRequest::new(Prefix::all())
        };
        if let Ok(page) = subject.store.list(&request).await {
            // Before every commit there was nothing, which a backend may answer.
            let nothing = at == Revision::ZERO && page.records.is_empty();
            ensure!(nothing, "asked at {at}, with {newest} the newest: {page:?}");
        }
    }
    Ok(())
}
