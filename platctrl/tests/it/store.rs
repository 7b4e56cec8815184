//! The store as its operator meets it: saved, checked, restored, copied.

use std::fs;
use std::path::Path;

use crate::rig::{Rig, is_alive};

fn url(dir: &Path) -> String {
    format!("embedded:{}", dir.display())
}

/// Ends `up` in order; its pods run on.
fn stop(rig: &mut Rig) {
    assert!(rig.end_up(15).success());
}

#[test]
fn a_store_is_saved_while_it_runs_and_restored_and_the_pods_never_notice() {
    let mut rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);

    let saved = rig.cli(&["store", "backup", "saved"]).ok();
    assert!(saved.contains(" keys, "), "{saved}");
    rig.cli(&["store", "backup", "saved"])
        .fails(1, &["saved exists already", "never overwritten"]);
    rig.cli(&["store", "check", "saved"]).ok();
    let compacted = rig.cli(&["store", "compact"]).ok();
    assert!(compacted.contains(" bytes, before "), "{compacted}");
    let store = rig.data_dir().join("store");
    rig.cli(&["store", "check", &url(&store)])
        .fails(1, &["in use by the process with pid"]);
    let left: Vec<_> = fs::read_dir(rig.data_dir().join("backup.partial"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // The store is lost, and what was saved takes its place.
    stop(&mut rig);
    rig.cli(&["store", "check", &url(&store)]).ok();
    fs::remove_dir_all(&store).unwrap();
    let restored = rig.cli(&["store", "restore", "saved", &url(&store)]).ok();
    assert!(restored.contains("is in epoch 1"), "{restored}");
    rig.up();
    let found = rig.ready(1).remove(0);
    assert_eq!((found.name, found.pid), (pod.name, pod.pid));
    let version: u64 = rig.json(&["get", "rc", "hello"])["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(version > 1 << 48, "{version}");
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    crate::rig::eventually("the pod's end", || rig.pods().is_empty().then_some(()));
    assert!(!is_alive(pod.pid));
}

#[test]
fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let rig = Rig::running();
    rig.cli(&["store", "backup", "saved"]).ok();
    let path = rig.path("saved");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 4096] {
        *byte ^= 0x5a;
    }
    fs::write(&path, &bytes[..bytes.len() - 4096]).unwrap();
    rig.cli(&["store", "check", "saved"]).fails(1, &["saved"]);
    let target = rig.path("new");
    rig.cli(&["store", "restore", "saved", &url(&target)])
        .fails(1, &["saved"]);
    assert!(!target.join("store.redb").exists());
}

#[test]
fn a_store_moves_and_its_pods_go_on_under_the_copy() {
    let mut rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);
    stop(&mut rig);
    let (store, copy) = (rig.data_dir().join("store"), rig.path("copy"));
    let copied = rig.cli(&["store", "copy", &url(&store), &url(&copy)]);
    assert!(copied.err.contains("is sealed"), "{}", copied.err);
    assert!(copied.ok().contains("in epoch 1"));
    rig.cli(&["store", "copy", &url(&store), &url(&copy)])
        .fails(6, &["not empty"]);
    let about = rig.cli(&["store", "info", &url(&store)]).ok();
    assert!(
        about.contains("sealed") && about.contains("epoch     0"),
        "{about}"
    );
    let about = rig.cli(&["store", "info", &url(&copy)]).ok();
    assert!(
        about.contains("active") && about.contains("epoch     1"),
        "{about}"
    );

    // Nobody works on the source any more.
    let data_dir = rig.data_dir();
    rig.cli(&["up", "--data-dir", data_dir.to_str().unwrap()])
        .fails(1, &["is sealed", "store unseal"]);
    assert!(is_alive(pod.pid));

    fs::rename(&store, rig.path("old")).unwrap();
    fs::rename(&copy, &store).unwrap();
    rig.up();
    let found = rig.ready(1).remove(0);
    assert_eq!((&found.name, found.pid), (&pod.name, pod.pid));
    let old = url(&rig.path("old"));
    rig.cli(&["store", "unseal", &old]).ok();
    assert!(rig.cli(&["store", "info", &old]).ok().contains("active"));
}

#[test]
fn what_is_no_store_is_named() {
    let rig = Rig::new();
    let missing = url(&rig.path("missing"));
    for verb in ["info", "check", "unseal", "restored"] {
        rig.cli(&["store", verb, &missing])
            .fails(1, &["there is no store in"]);
        assert!(!rig.path("missing").exists(), "{verb} made one");
    }
    rig.cli(&["store", "info", "missing"])
        .fails(2, &["is no store", "embedded:"]);
    rig.cli(&["store", "copy", &missing, &missing])
        .fails(2, &["same store"]);
    rig.cli(&["store", "check", "missing"])
        .fails(1, &["missing"]);
    let new = url(&rig.path("new"));
    rig.cli(&["store", "init", &new]).ok();
    rig.cli(&["store", "init", &new]).fails(6, &["not empty"]);
}
