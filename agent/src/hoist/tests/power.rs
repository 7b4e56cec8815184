//! The power fails while an artifact comes: what is there under its name afterwards is all of it.

use std::fs;
use std::os::unix::fs::FileExt as _;

use platctrl_test_support::power_cut::Disk;

use super::node::{Node, wait_until};
use super::raw::Raw;
use super::web_server::{Answer, WebServer, cut, file};
use crate::hoist::{Digest, Error, Store};

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

fn artifact() -> Vec<u8> {
    let noise = (0u32..20_000).flat_map(|i| Digest::of(i.to_le_bytes()).hex().into_bytes());
    Raw::good().file("noise", &noise.collect::<Vec<u8>>()).gz()
}

#[tokio::test]
async fn a_part_that_the_power_failed_over_is_gone_on_with_or_begun_anew_and_comes_out_whole() {
    let artifact = artifact();
    let (digest, half) = (Digest::of(&artifact), artifact.len() / 2);
    for left in [Left::Nothing, Left::Part, Left::Garbage] {
        let node = Node::new();
        let Some(mut disk) = Disk::mount(&node.path("data"), 64) else {
            return;
        };
        let body = artifact.clone();
        let server = WebServer::plain(move |asked, number| match number {
            0 => match cut(file(asked, &body, "\"one\""), half) {
                Answer::Bytes(bytes) => Answer::Silence(bytes),
                other => other,
            },
            _ => file(asked, &body, "\"one\""),
        })
        .await;
        let store = node.open();
        let source = server.source("/a");
        let asking = {
            let (store, source) = (store.clone(), source.clone());
            tokio::spawn(async move { store.ensure(&digest, &source).await })
        };
        let part = node.path(&format!("data/cache/partial/{}.part", digest.hex()));
        wait_until("a part", || {
            fs::metadata(&part).is_ok_and(|it| it.len() > 100_000)
        })
        .await;
        asking.abort();
        let _ = asking.await;
        drop(store);
        // The thread that writes may hold it for a moment longer.
        let store = loop {
            match Store::open(node.config()) {
                Err(Error::Busy { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        };
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
