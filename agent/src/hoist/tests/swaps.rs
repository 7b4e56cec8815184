//! Files that somebody swaps while they are looked at: what is unpacked is what was checked, or
//! nothing is.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use super::node::{Node, ensured};
use super::raw::Raw;
use super::{Canary, tree};
use crate::hoist::{ChildCommand, Digest, Error, Limits, Store};

/// Bytes that do not compress, so that an artifact of them is as large.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut noise = Vec::with_capacity(length + 64);
    let mut last = Digest::of([seed]).hex();
    while noise.len() < length {
        last = Digest::of(&last).hex();
        noise.extend(last.as_bytes());
    }
    noise.truncate(length);
    noise
}

/// Two artifacts that would both be accepted, of one length.
fn two() -> (Vec<u8>, Vec<u8>) {
    let artifact = |seed, script: &[u8]| {
        let archive = Raw::default().exec("bin/launch", script);
        archive.file("lib/noise", &noise(seed, 1 << 20)).gz()
    };
    let (mut right, mut wrong) = (artifact(1, b"#!/bin/sh\n"), artifact(2, b"#!/bin/no\n"));
    let longest = right.len().max(wrong.len());
    // A comment in the header is nobody's concern, and fills up what is missing.
    for bytes in [&mut right, &mut wrong] {
        let missing = longest + 2 - bytes.len();
        let mut comment = vec![b'x'; missing - 1];
        comment.push(0);
        bytes[3] |= 0x10;
        bytes.splice(10..10, comment);
    }
    assert_eq!(right.len(), wrong.len());
    (right, wrong)
}

/// A store whose helpers are started by a script: `$1` is the task, `run` starts the real one.
fn interposed(node: &Node, script: &str) -> Store {
    let mut config = node.config();
    let helper = config.child.program.display().to_string();
    let script = format!("PATH=/usr/bin:/bin; run() {{ {helper} \"$@\"; }}\n{script}");
    config.child = ChildCommand::new("/bin/sh", ["-c", &script, "sh"]);
    Store::open(config).unwrap()
}

#[tokio::test]
async fn a_cached_artifact_that_is_swapped_before_it_is_unpacked_is_not_unpacked() {
    let (right, wrong) = two();
    let expected = {
        let node = Node::new();
        let artifact = node.publish("a", &right);
        tree(&ensured(&node.open(), &artifact).await.unwrap().path)
    };
    for (how, swap, afterwards) in [
        ("by another file", "mv $area/wrong $cached", ""),
        ("in place", "cat $area/wrong > $cached", ""),
        (
            "in place, for as long as it is unpacked",
            "cat $area/wrong > $cached",
            "cat $area/right > $cached",
        ),
        (
            "by half",
            "head -c 500000 $area/wrong | dd of=$cached conv=notrunc 2>&-",
            "",
        ),
        ("by a shorter one", "truncate -s 500000 $cached", ""),
    ] {
        let node = Node::new();
        let artifact = node.publish("a", &right);
        fs::write(node.path("right"), &right).unwrap();
        fs::write(node.path("wrong"), &wrong).unwrap();
        let cached = node.path("data/cache/sha256").join(artifact.0.hex());
        // Between the check of what was fetched, which named it so, and the first byte unpacked.
        let store = interposed(
            &node,
            &format!(
                "area={}; cached={}\n\
                 if [ $1 != unpack ] || [ -e $area/swapped ]; then run \"$@\"; exit; fi\n\
                 cmp -s $cached $area/right || exit 9\n\
                 {swap}\n\
                 cmp -s $cached $area/right || touch $area/swapped\n\
                 run \"$@\"; status=$?\n\
                 {afterwards}\n\
                 exit $status",
                node.area.path().display(),
                cached.display(),
            ),
        );
        let outcome = ensured(&store, &artifact).await;
        assert!(node.path("swapped").exists(), "{how}: the fault happened");
        match outcome {
            // The file that was checked was open by then.
            Ok(install) => {
                assert_eq!(how, "by another file");
                assert_eq!(fs::read(&cached).unwrap(), wrong);
                assert_eq!(tree(&install.path), expected, "{how}");
            }
            Err(error) => {
                assert_ne!(how, "by another file");
                assert_eq!(error.reason(), "DigestMismatch", "{how}: {error}");
                assert!(!store.is_installed(&artifact.0), "{how}");
            }
        }
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{how}");
        // It is had in the end, and is what it has to be.
        let install = ensured(&store, &artifact).await.unwrap();
        assert_eq!(tree(&install.path), expected, "{how}");
    }
}

/// A file whose bytes are swapped on the disk once so many of them were read.
struct Swapping {
    file: File,
    at: usize,
    read: usize,
    path: PathBuf,
    with: Option<Vec<u8>>,
}

impl Read for Swapping {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read >= self.at
            && let Some(with) = self.with.take()
        {
            File::options()
                .write(true)
                .open(&self.path)?
                .write_all(&with)?;
        }
        let n = self.file.read(buffer)?;
        self.read += n;
        Ok(n)
    }
}

#[test]
fn an_artifact_that_is_swapped_while_it_is_unpacked_is_unpacked_as_checked_or_refused() {
    let (right, wrong) = two();
    let digest = Digest::of(&right);
    let area = tempfile::tempdir().unwrap();
    let path = area.path().join("cached");
    let mut refused = 0;
    let points = (0..right.len())
        .step_by(right.len() / 12)
        .chain([right.len()]);
    for at in points {
        fs::write(&path, &right).unwrap();
        let mut input = Swapping {
            file: File::open(&path).unwrap(),
            at,
            read: 0,
            path: path.clone(),
            with: Some(wrong.clone()),
        };
        let canary = Canary::new();
        let target = crate::hoist::install::open_directory(&canary.target()).unwrap();
        let limits = Limits::default();
        let outcome = crate::hoist::unpack::unpack(&mut input, "x", Some(&digest), &limits, target);
        assert!(input.with.is_none(), "{at}: the fault happened");
        assert_eq!(fs::read(&path).unwrap(), wrong, "{at}");
        match outcome {
            Ok(_) => {
                let unpacked = fs::read(canary.target().join("lib/noise")).unwrap();
                assert_eq!(unpacked, noise(1, 1 << 20), "{at}");
            }
            Err(Error::DigestMismatch { .. }) => refused += 1,
            Err(other) => panic!("{at}: {other}"),
        }
    }
    assert!(refused >= 10, "{refused}");
}

#[tokio::test]
async fn a_file_that_is_swapped_while_it_is_read_is_kept_as_asked_for_or_not_at_all() {
    let (right, wrong) = two();
    for (how, swap, is_right) in [
        // What was opened is read on.
        ("by another file", "mv $area/wrong $file", true),
        ("by a link", "ln -sf $area/wrong $file", true),
        ("removed", "rm $file", true),
        ("in place", "cat $area/wrong > $file", false),
        ("by a shorter one", "truncate -s 500000 $file", false),
        ("by a longer one", "cat $area/wrong >> $file", false),
    ] {
        let node = Node::new();
        let artifact = node.publish("a", &right);
        fs::write(node.path("wrong"), &wrong).unwrap();
        // The real helper reads on only as its pipe is emptied: most of the file is unread yet.
        let store = interposed(
            &node,
            &format!(
                "area={}; file={}\n\
                 if [ $1 != read ] || [ -e $area/swapped ]; then run \"$@\"; exit; fi\n\
                 run \"$@\" | {{ head -c 65536; cp $file $area/before; {swap}\n\
                 cmp -s $file $area/before || touch $area/swapped; cat; }}",
                node.area.path().display(),
                node.path("artifacts/a").display(),
            ),
        );
        let outcome = ensured(&store, &artifact).await;
        assert!(node.path("swapped").exists(), "{how}: the fault happened");
        assert_eq!(fs::read(node.path("before")).unwrap(), right, "{how}");
        let cached = node.path("data/cache/sha256").join(artifact.0.hex());
        if is_right {
            let install = outcome.unwrap_or_else(|error| panic!("{how}: {error}"));
            assert_eq!(fs::read(&cached).unwrap(), right, "{how}");
            let unpacked = fs::read(install.path.join("lib/noise")).unwrap();
            assert_eq!(unpacked, noise(1, 1 << 20), "{how}");
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(error.reason(), "DigestMismatch", "{how}: {error}");
            assert!(
                !cached.exists() && !store.is_installed(&artifact.0),
                "{how}"
            );
        }
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{how}");
    }
}
