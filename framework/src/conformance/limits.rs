//! Cases about limits, and about keys and values at the edges.

use bytes::Bytes;

use super::kit::{Check, Stop, Subject, ensure, ensure_matches, key, prefix};
use crate::store::{Key, MAX_KEY_BYTES, StoreError, Transaction};

async fn must_be_too_large(subject: &Subject, transaction: Transaction, what: &str) -> Check {
    let before = subject.all(&prefix("")?, 1000).await?.0;
    let outcome = subject.commit(transaction).await;
    match outcome {
        Err(StoreError::TooLarge { size, limit, .. }) => {
            ensure!(size > limit, "{what}: {size} does not exceed {limit}");
        }
        other => ensure_matches!(other, Err(StoreError::TooLarge { .. }), what),
    }
    let after = subject.all(&prefix("")?, 1000).await?.0;
    ensure!(
        before == after,
        "{what}: a refused transaction changed something"
    );
    Ok(())
}

fn puts(count: usize, transaction: Transaction) -> Check<Transaction> {
    let mut transaction = transaction;
    for n in 0..count {
        transaction = transaction.put(key(format!("o/{n}"))?, "x");
    }
    Ok(transaction)
}

fn compares(count: usize) -> Check<Transaction> {
    let mut transaction = Transaction::new();
    for n in 0..count {
        transaction = transaction.require_absent(key(format!("none/{n}"))?);
    }
    Ok(transaction)
}

pub(super) async fn writes_up_to_the_limit_are_taken(subject: Subject) -> Check {
    let limits = subject.store.capabilities().limits;
    let most = limits.max_writes.min(limits.max_operations);
    let revision = subject.commit(puts(most, Transaction::new())?).await?;
    let (records, _) = subject.all(&prefix("o/")?, 1000).await?;
    let one = records.iter().all(|record| record.modified == revision);
    ensure!(records.len() == most && one, "{} of {most}", records.len());
    must_be_too_large(
        &subject,
        puts(most + 1, Transaction::new())?,
        "one write more",
    )
    .await
}

pub(super) async fn compares_up_to_the_limit_are_taken(subject: Subject) -> Check {
    let limits = subject.store.capabilities().limits;
    let most = limits.max_compares.min(limits.max_operations);
    subject.commit(compares(most)?).await?;
    // The last one counts as much as the first.
    subject.put(&format!("none/{}", most - 1), "x").await?;
    match subject.commit(compares(most)?).await {
        Err(StoreError::Conflict { failed }) => {
            ensure!(failed.contains(&(most - 1)), "failed are {failed:?}");
        }
        other => ensure_matches!(other, Err(StoreError::Conflict { .. }), "the last compare"),
    }
    must_be_too_large(&subject, compares(most + 1)?, "one compare more").await
}

pub(super) async fn operations_up_to_the_limit_are_taken(subject: Subject) -> Check {
    let limits = subject.store.capabilities().limits;
    let writes = limits.max_writes.min(limits.max_operations / 2);
    let left = limits.max_compares.min(limits.max_operations - writes);
    subject.commit(puts(writes, compares(left)?)?).await?;
    let over = limits.max_operations + 1 - writes.min(limits.max_operations);
    if over > limits.max_compares {
        return Err(Stop::does_not_apply(
            "its limits of writes and compares keep below that of operations",
        ));
    }
    must_be_too_large(
        &subject,
        puts(writes, compares(over)?)?,
        "one operation more",
    )
    .await
}

pub(super) async fn values_up_to_the_limit_are_taken(subject: Subject) -> Check {
    let limits = subject.store.capabilities().limits;
    let name = key("o/a")?;
    let most = limits
        .max_value_bytes
        .min(limits.max_transaction_bytes - name.as_str().len());
    let value = |size: usize| {
        let bytes: Vec<u8> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        Bytes::from(bytes)
    };
    let put = |size| Ok::<_, Stop>(Transaction::new().put(key("o/a")?, value(size)));
    let start = subject.revision().await?;
    let mut observer = subject.observe("o/", start)?;
    let revision = subject.commit(put(most)?).await?;
    let record = subject.existing("o/a").await?;
    ensure!(
        record.value == value(most),
        "{} bytes came back",
        record.value.len()
    );
    observer.until(revision).await?;
    observer.must_hold(&[record])?;
    must_be_too_large(&subject, put(most + 1)?, "one byte more").await
}

pub(super) async fn transactions_up_to_their_bytes_are_taken(subject: Subject) -> Check {
    let limits = subject.store.capabilities().limits;
    // As many values of the largest size as are needed, and the rest in one more.
    let build = |bytes: usize| {
        let mut transaction = Transaction::new();
        let mut left = bytes;
        for n in 0..limits.max_writes {
            let name = key(format!("o/{n:04}"))?;
            let length = name.as_str().len();
            if left <= length {
                break;
            }
            let size = (left - length).min(limits.max_value_bytes);
            transaction = transaction.put(name, vec![b'x'; size]);
            left -= size + length;
        }
        Ok::<_, Stop>((transaction, left))
    };
    let (most, left) = build(limits.max_transaction_bytes)?;
    if left > 0 {
        return Err(Stop::does_not_apply(
            "the most writes of the largest values keep below its limit of bytes",
        ));
    }
    subject.commit(most).await?;
    let (mut over, left) = build(limits.max_transaction_bytes)?;
    ensure!(left == 0, "built above");
    over = over.require_absent(key("n")?);
    must_be_too_large(&subject, over, "a compare's one byte more").await
}

pub(super) async fn empty_and_binary_values_come_back_as_they_were(subject: Subject) -> Check {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let values: [Bytes; 5] = [
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from(all_bytes),
        Bytes::from_static(b"{\"a\": \"\xc3\xa9\"}\n"),
        Bytes::from_static(b"\xff\xfe/%2f"),
    ];
    let start = subject.revision().await?;
    let mut observer = subject.observe("o/", start)?;
    let mut last = start;
    for (n, value) in values.iter().enumerate() {
        let transaction = Transaction::new().put(key(format!("o/{n}"))?, value.clone());
        last = subject.commit(transaction).await?;
    }
    let (records, _) = subject.all(&prefix("o/")?, 2).await?;
    let read: Vec<&Bytes> = records.iter().map(|record| &record.value).collect();
    ensure!(read.iter().copied().eq(values.iter()), "{read:?}");
    observer.until(last).await?;
    observer.must_hold(&records)
}

pub(super) async fn every_valid_key_is_taken_as_it_is(subject: Subject) -> Check {
    let long_segment = "s".repeat(MAX_KEY_BYTES);
    let many_segments = ["a"; MAX_KEY_BYTES / 2].join("/");
    let long_path = format!("o/{}", "p".repeat(MAX_KEY_BYTES - 2));
    let names = [
        "a",
        "-",
        "_",
        "0",
        ".a",
        "a.",
        "..a",
        "...",
        "a..b",
        "a/.anchor",
        "a/-",
        "a/_",
        "a-/b",
        "a./b",
        "a0/b",
        "a_/b",
        "o/intent/platctrl.dev/pods/web1/default/hello-x7k2",
        "x/event/web1/007",
        &long_segment,
        &many_segments,
        &long_path,
    ];
    let start = subject.revision().await?;
    let mut observer = subject.observe("", start)?;
    let mut last = start;
    for name in names {
        last = subject.put(name, name).await?;
    }
    let mut sorted: Vec<Key> = names.iter().map(key).collect::<Result<_, _>>()?;
    sorted.sort();
    let (records, _) = subject.all(&prefix("")?, 4).await?;
    let listed: Vec<&Key> = records.iter().map(|record| &record.key).collect();
    ensure!(listed.iter().copied().eq(sorted.iter()), "{listed:?}");
    for record in &records {
        ensure!(record.value == record.key.as_str(), "{record:?}");
        let read = subject.existing(record.key.as_str()).await?;
        ensure!(read == *record, "get and list differ: {read:?}, {record:?}");
    }
    observer.until(last).await?;
    observer.must_hold(&records)?;
    for name in names {
        subject.delete(name).await?;
    }
    let left = subject.all(&prefix("")?, 100).await?.0;
    ensure!(left.is_empty(), "left is {left:?}");
    Ok(())
}

pub(super) async fn a_key_and_the_keys_below_it_are_apart(subject: Subject) -> Check {
    for name in ["o/a", "o/a/b", "o/a/b/c"] {
        subject.put(name, name).await?;
    }
    subject.delete("o/a").await?;
    subject.existing("o/a/b").await?;
    subject.delete("o/a/b/c").await?;
    subject.put("o/a", "back").await?;
    let record = subject.existing("o/a/b").await?;
    ensure!(record.value == "o/a/b", "{record:?}");
    let left = subject.all(&prefix("o/")?, 9).await?.0;
    ensure!(left.len() == 2, "{left:?}");
    Ok(())
}
