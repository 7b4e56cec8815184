//! Opening, and what is refused.

use std::os::unix::fs::PermissionsExt;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Store, Transaction};
use platctrl_store_embedded::{EmbeddedStore, OpenError};
use redb::{Database, TableDefinition};

use crate::helpers::{dump, key, open, put, value};

fn refused(dir: &std::path::Path) -> OpenError {
    EmbeddedStore::open(dir, Environment::system()).unwrap_err()
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let store = open(&path);
    let first = put(&store, "o/a", "1").await;
    let second = put(&store, "o/b", "2").await;
    assert!(second > first);
    drop(store);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let store = open(&path);
    assert_eq!(value(&store, "o/b").await.as_deref(), Some("2"));
    // Reopening is no commit, and revisions go on where they were.
    assert_eq!(put(&store, "o/c", "3").await, second.next());
}

#[test]
fn a_second_opening_names_the_first_and_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = refused(dir.path());
    let text = error.to_string();
    assert!(matches!(error, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    drop(store);
    open(dir.path());
}

#[tokio::test]
async fn closing_frees_the_directory_though_watches_and_streams_are_kept() {
    use futures::StreamExt;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let revision = put(&store, "a", "1").await;
    let mut watch = store.watch(platctrl_framework::store::Prefix::all(), revision);
    let waiting = tokio::spawn(async move { watch.next().await });
    drop(store);
    open(dir.path());
    let ended = waiting.await.unwrap();
    assert!(matches!(ended, Some(Err(_))), "{ended:?}");
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "a", "1").await;
    drop(store);
    let file = dir.path().join("store.redb");
    let meta: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
    let database = Database::open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    let newer = 99u32.to_le_bytes();
    transaction
        .open_table(meta)
        .unwrap()
        .insert("format", newer.as_slice())
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let before = std::fs::read(&file).unwrap();
    let error = refused(dir.path());
    assert!(
        matches!(error, OpenError::NewerFormat { found: 99, .. }),
        "{error}"
    );
    assert_eq!(std::fs::read(&file).unwrap().len(), before.len());
}

#[tokio::test]
async fn files_that_are_no_store_are_refused_with_the_way_out() {
    for contents in [
        b"".to_vec(),
        b"hello".to_vec(),
        vec![7; 100_000],
        vec![0; 8192],
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("store.redb"), &contents).unwrap();
        let error = refused(dir.path());
        let text = error.to_string();
        assert!(matches!(error, OpenError::Damaged { .. }), "{text}");
        assert!(
            text.contains("store.redb") && text.contains("backup"),
            "{text}"
        );
        // It was not overwritten by an empty store.
        assert_eq!(
            std::fs::read(dir.path().join("store.redb")).unwrap(),
            contents
        );
    }
}

#[tokio::test]
async fn a_file_cut_short_or_with_flipped_bits_is_refused_or_harms_only_what_was_hit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..200 {
        put(&store, &format!("k/{i:03}"), "x".repeat(500)).await;
    }
    let (before, _) = dump(&store, None, 1000).await;
    drop(store);
    let file = dir.path().join("store.redb");
    let good = std::fs::read(&file).unwrap();

    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");

    // One byte in every page in turn: opening refuses, or reading does, or every record that is
    // served is right. Never is a wrong value served, and never does the process end.
    let (mut noticed, mut served) = (0, 0);
    for page in 0..good.len() / 4096 {
        let mut bad = good.clone();
        bad[page * 4096 + 1234] ^= 0x10;
        std::fs::write(&file, &bad).unwrap();
        if platctrl_store_embedded::check(dir.path()).is_err() {
            noticed += 1;
        }
        std::fs::write(&file, &bad).unwrap();
        let Ok(store) = EmbeddedStore::open(dir.path(), Environment::system()) else {
            continue;
        };
        for record in &before {
            if let Ok(found) = store.get(std::slice::from_ref(&record.key)).await {
                served += 1;
                if let Some(found) = &found.records[0] {
                    assert_eq!(found, record, "page {page}");
                }
            }
        }
    }
    assert!(noticed > 20 && served > 200, "{noticed} {served}");
}

#[tokio::test]
async fn many_keys_open_without_reading_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let count = 100_000;
    for chunk in 0..count / 1000 {
        let mut transaction = Transaction::new();
        for i in 0..1000 {
            let name = format!("o/intent/platctrl.dev/pods/n{i}/default/pod-{chunk}");
            transaction = transaction.put(key(&name), "v");
        }
        store.commit(transaction).await.unwrap();
    }
    drop(store);
    let started = std::time::Instant::now();
    let store = open(dir.path());
    println!("opened {count} keys in {:?}", started.elapsed());
    let (records, _) = dump(&store, None, 2000).await;
    assert_eq!(records.len(), count);
}
