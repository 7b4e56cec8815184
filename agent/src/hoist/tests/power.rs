//! The power fails while an artifact comes: what is there under its name afterwards is all of it.

use std::fs;
use std::os::unix::fs::FileExt as _;

use platctrl_test_support::power_cut::Disk;

use super::broken_off::{BrokenOff, large};
use super::node::Node;
use super::raw::Raw;
use crate::hoist::Digest;

/// What the disk has of a part when the power fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    /// Nothing that was not flushed.
    Nothing,
    /// All of it.
    Part,
    /// Its length, and other bytes, as some file systems have it.
    Garbage,
}

#[tokio::test]
async fn a_part_that_the_power_failed_over_is_gone_on_with_or_begun_anew_and_comes_out_whole() {
    let artifact = large();
    let digest = Digest::of(&artifact);
    for left in [Left::Nothing, Left::Part, Left::Garbage] {
        let node = Node::new();
        let Some(mut disk) = Disk::mount(&node.path("data"), 64) else {
            return;
        };
        let BrokenOff {
            server,
            source,
            part,
            store,
        } = BrokenOff::new(&node, &artifact).await;
        drop(store);
        let length = fs::metadata(&part).unwrap().len();
        if left != Left::Nothing {
            let data = fs::File::open(node.path("data")).unwrap();
            rustix::fs::syncfs(data).unwrap();
        }
        disk.cut();
        let there = fs::metadata(&part).map_or(0, |it| it.len());
        assert_eq!(there, if left == Left::Nothing { 0 } else { length });
        if left == Left::Garbage {
            let file = fs::OpenOptions::new().write(true).open(&part).unwrap();
            file.write_all_at(&[0; 10_000], length - 10_000).unwrap();
        }
        let install = node.open().ensure(&digest, &source).await.unwrap();
        let asked = server.asked();
        let from: Vec<_> = asked[1..].iter().map(|it| it.from().is_some()).collect();
        let expected: &[bool] = match left {
            Left::Nothing => &[false],
            Left::Part => &[true],
            // Only the whole tells.
            Left::Garbage => &[true, false],
        };
        assert_eq!(from, expected, "{left:?}");
        // It is for good.
        drop(asked);
        disk.cut();
        let cached = node.path("data/cache/sha256").join(digest.hex());
        assert!(fs::read(cached).unwrap() == artifact, "{left:?}");
        assert_eq!(node.open().installed(&digest), Some(install), "{left:?}");
        assert!(node.leftovers().is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn an_install_is_there_with_every_byte_when_the_power_fails_after_it() {
    // So few that each is flushed, and so many that all are together.
    for files in [10_usize, 200] {
        let node = Node::new();
        let Some(mut disk) = Disk::mount(&node.path("data"), 64) else {
            return;
        };
        let content = |i: usize| format!("{i} ").repeat(20 * i).into_bytes();
        let mut raw = Raw::good();
        for i in 0..files {
            raw = raw.file(format!("share/{i}"), &content(i));
        }
        let (digest, source) = node.publish("a.tar.gz", &raw.gz());
        let store = node.open();
        let install = store.ensure(&digest, &source).await.unwrap();
        drop(store);
        disk.cut();
        assert_eq!(node.open().installed(&digest).as_ref(), Some(&install));
        for i in 0..files {
            let file = install.path.join(format!("share/{i}"));
            assert!(fs::read(&file).unwrap() == content(i), "{}", file.display());
        }
    }
}
