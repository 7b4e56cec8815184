//! Room: full disks, and what is removed to make some.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use platctrl_test_support::needs;

use super::node::{Node, Tmpfs, ensured, good};
use super::raw::Raw;
use crate::hoist::{Collected, Digest, Error, Water};

#[tokio::test]
async fn collecting_keeps_what_is_kept_and_what_is_in_use() {
    let node = Node::new();
    let store = node.open();
    let old = node.publish("old", &good());
    let new = node.publish("new", &Raw::good().file("new", b"").gz());
    let stranger = node.path("data/installs/somebody-elses");
    fs::create_dir(&stranger).unwrap();
    for artifact in [&old, &new] {
        ensured(&store, artifact).await.unwrap();
    }
    // Below the high water nothing goes, however little of it is used.
    let none = BTreeSet::new();
    let collected = store.collect(&none, roomy()).await.unwrap();
    assert_eq!(collected, Collected::default());
    let room = store.room().await.unwrap();
    assert!(
        room.installs > 0 && room.cached > 0 && room.disk > room.free,
        "{room:?}"
    );
    // What was used just now is left alone, whoever needs it.
    let now = Water {
        rest: Duration::from_secs(3600),
        ..everything()
    };
    let collected = store.collect(&none, now).await.unwrap();
    assert!(
        collected.installs.is_empty() && collected.short > 0,
        "{collected:?}"
    );

    let keep = BTreeSet::from([new.0]);
    let collected = store.collect(&keep, everything()).await.unwrap();
    assert_eq!(collected.installs, BTreeSet::from([old.0]));
    // Of what is kept the packed copy may go, which can be fetched again.
    assert_eq!(collected.cached, BTreeSet::from([old.0, new.0]));
    assert!(collected.freed > 0 && collected.short > 0, "{collected:?}");
    assert!(store.is_installed(&new.0) && !store.is_installed(&old.0));
    assert!(stranger.exists(), "what is not ours is left alone");
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    ensured(&store, &old).await.unwrap();
    ensured(&store, &new).await.unwrap();
}

/// The defaults, however full the machine is that runs the tests.
fn roomy() -> Water {
    Water {
        full: 100,
        ..Water::default()
    }
}

/// Everything that nobody keeps.
fn everything() -> Water {
    Water {
        high: 0,
        low: 0,
        rest: Duration::ZERO,
        ..roomy()
    }
}

#[tokio::test]
async fn the_longest_unused_goes_first_and_no_more_than_needed() {
    let node = Node::new();
    let store = node.open();
    let artifacts: Vec<_> = (0..4)
        .map(|i| {
            node.publish(
                &i.to_string(),
                &Raw::good().file(format!("f{i}"), &[i; 9000]).gz(),
            )
        })
        .collect();
    for artifact in &artifacts {
        ensured(&store, artifact).await.unwrap();
    }
    // They were used long ago, the second last of all; and that one is used again now.
    let ages = [40, 50, 30, 20];
    for (artifact, age) in artifacts.iter().zip(ages) {
        let then = SystemTime::now() - Duration::from_secs(age * 3600);
        let hex = artifact.0.hex();
        let marker = format!("data/installs/sha256-{hex}/.platctrl-install.json");
        for path in [marker, format!("data/cache/sha256/{hex}")] {
            let file = File::open(node.path(&path)).unwrap();
            file.set_modified(then).unwrap();
        }
    }
    ensured(&store, &artifacts[1]).await.unwrap();
    let room = store.room().await.unwrap();
    let held = room.installs + room.cached;
    let water = Water {
        high: held - 1,
        low: held - 1,
        ..roomy()
    };
    let collected = store.collect(&BTreeSet::new(), water).await.unwrap();
    assert_eq!(
        collected.installs,
        BTreeSet::from([artifacts[0].0]),
        "one is enough"
    );
    assert_eq!(collected.short, 0);
    let water = Water {
        low: held / 8 * 5,
        ..water
    };
    // It is below the high water already.
    let collected = store.collect(&BTreeSet::new(), water).await.unwrap();
    assert_eq!(collected, Collected::default());
    let water = Water {
        high: held / 8 * 5,
        ..water
    };
    let collected = store.collect(&BTreeSet::new(), water).await.unwrap();
    assert_eq!(collected.installs, BTreeSet::from([artifacts[2].0]));
    assert!(store.is_installed(&artifacts[1].0) && store.is_installed(&artifacts[3].0));
}

#[tokio::test]
async fn a_full_disk_is_told_as_such_and_leaves_nothing() {
    // It mounts a small file system.
    if !needs::root() {
        return;
    }
    let node = Node::new();
    let noise: Vec<u8> = (0u32..60_000)
        .flat_map(|i| Digest::of(i.to_le_bytes()).hex().into_bytes())
        .collect();
    for (what, options, artifact) in [
        (
            "the cache",
            "size=1m",
            Raw::good().file("noise", &noise).gz(),
        ),
        (
            "the tree",
            "size=1m",
            Raw::good().file("zeros", &[0; 4 << 20]).gz(),
        ),
        (
            "the tree's files",
            "size=1m,nr_inodes=40",
            (0..50)
                .fold(Raw::good(), |raw, i| raw.file(format!("{i}"), b""))
                .gz(),
        ),
    ] {
        let disk = Tmpfs::mount(&node.path("data"), options);
        let store = node.open();
        let artifact = node.publish("a", &artifact);
        let error = ensured(&store, &artifact).await.unwrap_err();
        assert!(matches!(*error, Error::NoSpace { .. }), "{what}: {error}");
        assert_eq!(error.reason(), "NoSpace");
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{what}");
        // With room again, what failed works.
        drop(store);
        rustix::mount::mount_remount(
            &disk.0,
            rustix::mount::MountFlags::empty(),
            c"size=64m,nr_inodes=1000",
        )
        .unwrap();
        ensured(&node.open(), &artifact).await.unwrap();
        drop(disk);
    }
}
