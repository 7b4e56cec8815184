//! The artifact as a whole: too many entries, other bytes than asked for, nothing to launch.

use std::fs;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::raw::{Block, Raw};
use super::super::{Canary, rule, tree, verify_bytes};
use super::{refused_within, with};
use crate::hoist::Rule::*;
use crate::hoist::{Digest, Error, Limits, verify};

#[test]
fn an_artifact_of_too_many_entries_is_refused_at_the_limit() {
    let many = |n: u64, kind: u8| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
        encoder.write_all(&Raw::good().0).unwrap();
        for i in 0..n {
            let slash = if kind == b'5' { "/" } else { "" };
            let mut block = Block::new(format!("{i:x}{slash}"), kind);
            block.owner = format!("{:07o}\0", i * 7919 % 0o7_777_777).into_bytes();
            encoder.write_all(&block.bytes()).unwrap();
        }
        encoder.write_all(&[0; 1024]).unwrap();
        encoder.finish().unwrap()
    };
    let limits = Limits {
        entries: 1000,
        ..Limits::default()
    };
    refused_within(
        &limits,
        [
            ("files", many(1000, b'0'), TooManyEntries),
            ("directories", many(1000, b'5'), TooManyEntries),
            (
                "headers that are no entries",
                many(4001, b'g'),
                TooManyEntries,
            ),
        ],
    );
    let canary = Canary::new();
    canary.unpack(&many(998, b'0'), &limits).unwrap();
    assert_eq!(tree(&canary.target()).len(), 1000);
}

#[test]
fn other_bytes_than_those_asked_for_are_reported_as_such_whatever_else_is_wrong_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.tar.gz");
    let asked = Digest::of(b"something else");
    for bytes in [
        Raw::good().gz(),
        b"<html>".to_vec(),
        with(|raw| raw.file("../x", b"")),
        vec![],
    ] {
        fs::write(&file, &bytes).unwrap();
        let error = verify(&file, Some(&asked)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{text}");
        assert!(text.contains(&asked.to_string()), "{text}");
        assert!(text.contains(&Digest::of(&bytes).to_string()), "{text}");
    }
    fs::write(&file, Raw::good().gz()).unwrap();
    let verified = verify(&file, Some(&Digest::of(Raw::good().gz()))).unwrap();
    assert_eq!((verified.entries, verified.unpacked_size), (2, 10));
}

#[test]
fn an_artifact_without_a_proper_launch_is_refused_with_the_way_out() {
    let script: &[u8] = b"#!/bin/sh\n";
    let launch = |entry: &dyn Fn(Raw) -> Raw| entry(Raw::default()).gz();
    for (artifact, words) in [
        (launch(&|raw| raw.file("README", b"")), "is missing"),
        (launch(&|raw| raw.file("bin", b"")), "is missing"),
        (
            launch(&|raw| raw.file("bin/launch", script)),
            "not executable",
        ),
        (launch(&|raw| raw.exec("bin/launch", b"")), "is empty"),
        (
            launch(&|raw| raw.exec("bin/launch", b"hello")),
            "neither a native program",
        ),
        (
            launch(&|raw| raw.dir("bin/launch")),
            "without an executable",
        ),
        (
            launch(&|raw| raw.exec("sh", script).symlink("bin/launch", "../sh")),
            "symbolic link",
        ),
        (
            launch(&|raw| raw.exec("b/launch", script).symlink("bin", "b")),
            "symbolic link",
        ),
        (
            launch(&|raw| raw.exec("sh", script).symlink("bin/launch/a", "../../sh")),
            "bin/launch/a is not",
        ),
    ] {
        let error = verify_bytes(&artifact, &Limits::default()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::LaunchInvalid { .. }), "{text}");
        assert!(
            text.contains(words) && text.contains("needs an executable file"),
            "{text}"
        );
        // Inspecting, which writes nothing, comes to the same.
        let summary = crate::hoist::inspect::summarize(&artifact[..], &Limits::default()).unwrap();
        assert_eq!(summary.launch, None);
        assert_eq!(summary.launch_problem, Some(text));
    }
    // A link to a program outside is refused earlier.
    let outside = launch(&|raw| raw.symlink("bin/launch", "/bin/sh"));
    assert_eq!(
        rule(&verify_bytes(&outside, &Limits::default()).unwrap_err()),
        Some(SymlinkTarget)
    );
}
