//! A disk that is really full: a small tmpfs, so root only.

use std::path::Path;
use std::process::Command;

use platctrl_framework::store::{Store, StoreError, Transaction};
use platctrl_store_embedded::Health;

use crate::helpers::{key, open, put, value};

/// Unmounts when dropped.
struct Small(tempfile::TempDir);

impl Small {
    /// None when this process may not mount.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(dir.path())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_commits_fail_typed_reads_go_on_and_space_heals_it() {
    let Some(disk) = Small::mount("24m") else {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    };
    let dir = disk.path().join("store");
    let store = open(&dir);
    put(&store, "first", "1").await;
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 12 << 20]).unwrap();
    let mut acked = Vec::new();
    let refused = loop {
        let name = format!("fill/{}", acked.len());
        let put = Transaction::new().put(key(&name), vec![7; 200_000]);
        match store.commit(put).await {
            Ok(_) => acked.push(name),
            Err(error) => break error,
        }
        assert!(acked.len() < 200, "the disk fills");
    };
    let StoreError::Unavailable { reason, .. } = &refused else {
        panic!("{refused}");
    };
    assert!(reason.contains("No space left"), "{reason}");
    assert!(matches!(store.health(), Health::Refusing(_)));
    // What was acknowledged is served, and what was refused is not there.
    for name in &acked {
        assert_eq!(value(&store, name).await.unwrap().len(), 200_000);
    }
    assert_eq!(value(&store, &format!("fill/{}", acked.len())).await, None);
    // While it is full every commit is refused, also the small ones, and fast.
    let small = Transaction::new().put(key("small"), "1");
    assert!(matches!(
        store.commit(small).await,
        Err(StoreError::Unavailable { .. })
    ));
    std::fs::remove_file(&ballast).unwrap();
    put(&store, "after", "1").await;
    assert_eq!(store.health(), Health::Writing);
    assert_eq!(value(&store, "small").await, None);
    drop(store);
    let store = open(&dir);
    for name in &acked {
        assert_eq!(value(&store, name).await.unwrap().len(), 200_000);
    }
    assert_eq!(value(&store, "after").await.as_deref(), Some("1"));
}
