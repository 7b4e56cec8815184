//! Backups of a running store, restored and checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use platctrl_framework::store::{Store, Transaction};
use platctrl_store_embedded::{OpenError, check, restore};

use crate::helpers::{dump, key, next_changes, open, prefix, put};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_one_consistent_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("store")));
    // Both keys always hold the same number.
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut i = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let both = Transaction::new()
                    .put(key("a"), i.to_string())
                    .put(key("z"), i.to_string());
                store.commit(both).await.unwrap();
                i += 1;
            }
            i
        }
    });
    for i in 0..200 {
        put(&store, &format!("m/{i}"), "x".repeat(200)).await;
    }
    let file = dir.path().join("copy");
    let report = store.backup(&file).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);
    let (expected, _) = dump(&store, Some(report.revision), 100).await;
    let again = store.backup(&file).await.unwrap_err();
    assert!(matches!(again, OpenError::Exists { .. }), "{again}");

    let copy = dir.path().join("restored");
    let restored = restore(&file, &copy).unwrap();
    assert_eq!(restored, report);
    assert_eq!(check(&copy).unwrap(), report);
    assert!(matches!(
        restore(&file, &copy),
        Err(OpenError::Exists { .. })
    ));
    let copy = open(&copy);
    let (found, revision) = dump(&copy, None, 100).await;
    assert_eq!((&found, revision), (&expected, report.revision));
    let both: Vec<_> = found
        .iter()
        .filter(|r| ["a", "z"].contains(&r.key.as_str()))
        .collect();
    assert_eq!(both[0].value, both[1].value);
    // The history came along.
    let mut watch = copy.watch(prefix("m/"), report.oldest);
    assert_eq!(
        next_changes(&mut watch).await.1,
        [format!("m/0={}", "x".repeat(200))]
    );
}

#[tokio::test]
async fn a_damaged_copy_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    for i in 0..100 {
        put(&store, &format!("m/{i}"), "x".repeat(900)).await;
    }
    let file = dir.path().join("copy");
    store.backup(&file).await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let needle = [b'x'; 64];
    let at = bytes
        .windows(64)
        .position(|window| window == needle)
        .unwrap();
    bytes[at] = b'y';
    std::fs::write(&file, bytes).unwrap();
    let target = dir.path().join("restored");
    let error = restore(&file, &target).unwrap_err();
    assert!(
        matches!(&error, OpenError::Damaged { path, .. } if *path == file),
        "{error}"
    );
    assert!(!target.join("store.redb").exists());
}

#[tokio::test]
async fn a_store_in_use_is_not_checked_and_compacting_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..300 {
        put(&store, &format!("m/{i:03}"), "x".repeat(3_000)).await;
    }
    for i in 0..290 {
        store
            .commit(Transaction::new().delete(key(&format!("m/{i:03}"))))
            .await
            .unwrap();
    }
    let (before, revision) = dump(&store, None, 100).await;
    store.compact().await.unwrap();
    assert_eq!(dump(&store, None, 100).await, (before, revision));
    put(&store, "after", "1").await;
    assert!(matches!(check(dir.path()), Err(OpenError::InUse { .. })));
    drop(store);
    assert_eq!(check(dir.path()).unwrap().keys, 11);
}
