//! A file system that cannot be written any more, as kernels leave one behind after errors. Root
//! only, because it is mounted for the test.

use std::path::Path;
use std::process::Command;

use platctrl_framework::environment::Environment;
use platctrl_store_embedded::EmbeddedStore;

use crate::helpers::{open, put, value};

/// Unmounts when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// None when this process may not mount.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "none"])
            .arg(dir.path())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, how: &str) {
        let mounted = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.path())
            .status();
        assert!(mounted.unwrap().success(), "remount,{how}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test]
async fn on_a_read_only_file_system_a_store_is_refused_by_name_and_left_as_it_is() {
    let Some(disk) = Mounted::new() else {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    };
    let dir = disk.path().join("store");
    let store = open(&dir);
    put(&store, "kept", "1").await;
    drop(store);
    let file = dir.join("store.redb");
    let before = std::fs::read(&file).unwrap();

    disk.remount("ro");
    assert!(
        std::fs::write(dir.join("x"), "x").is_err(),
        "it is read-only"
    );
    for dir in [&dir, &disk.path().join("new")] {
        let refused = EmbeddedStore::open(dir, Environment::system()).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains(&dir.display().to_string()), "{text}");
    }
    assert!(std::fs::read(&file).unwrap() == before);
    // It can be looked at, and saved from there.
    let copy = tempfile::tempdir().unwrap();
    let saved = copy.path().join("store.redb");
    std::fs::copy(&file, &saved).unwrap();
    let elsewhere = open(copy.path());
    assert_eq!(value(&elsewhere, "kept").await.as_deref(), Some("1"));

    disk.remount("rw");
    let store = open(&dir);
    assert_eq!(value(&store, "kept").await.as_deref(), Some("1"));
    put(&store, "kept", "2").await;
}
