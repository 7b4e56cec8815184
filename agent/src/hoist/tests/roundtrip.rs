//! What is built can be unpacked, by us and by others; what is damaged harms nobody.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::raw::{Raw, gzip};
use super::{Canary, rule, tree};
use crate::hoist::{
    Digest, EntryKind, Error, Launch, Limits, Program, Rule, build, inspect, verify,
};

/// Writes a tree with something to start, and these files.
fn source(files: &BTreeMap<String, (Vec<u8>, bool)>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &[u8], executable: bool| {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let mode = if executable { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("bin/launch", b"#!/bin/sh\n", true);
    for (path, (content, executable)) in files {
        write(path, content, *executable);
    }
    for entry in walk(directory.path()) {
        if entry.is_dir() {
            fs::set_permissions(&entry, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    directory
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    tree(directory)
        .into_keys()
        .map(|path| directory.join(path))
        .collect()
}

fn some_files() -> BTreeMap<String, (Vec<u8>, bool)> {
    let long = "long-".repeat(30);
    BTreeMap::from([
        ("README".into(), (b"hello".to_vec(), false)),
        (format!("lib/{long}/{long}"), (vec![7; 200_000], true)),
        ("lib/empty".into(), (vec![], false)),
        ("lib/é".into(), (vec![1], false)),
    ])
}

#[test]
fn an_artifact_unpacks_to_the_tree_it_was_built_from() {
    let from = source(&some_files());
    symlink("README", from.path().join("LIESMICH")).unwrap();
    symlink("../README", from.path().join("lib/up")).unwrap();
    fs::create_dir(from.path().join("nothing")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("a.tar.gz");
    let built = build(from.path(), &file).unwrap();
    let bytes = fs::read(&file).unwrap();
    assert_eq!(
        (built.digest, built.size),
        (Digest::of(&bytes), bytes.len() as u64)
    );
    let canary = Canary::new();
    canary.unpack(&bytes, &Limits::default()).unwrap();
    assert_eq!(tree(&canary.target()), tree(from.path()));
    verify(&file, Some(&built.digest)).unwrap();

    // And by the archiver everybody has.
    let by_tar = tempfile::tempdir().unwrap();
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(&file)
        .arg("-C")
        .arg(by_tar.path())
        .status();
    assert!(status.unwrap().success());
    assert_eq!(tree(by_tar.path()), tree(from.path()));
}

#[test]
fn what_everybodys_archiver_makes_is_accepted() {
    let from = source(&some_files());
    fs::hard_link(from.path().join("README"), from.path().join("lib/README")).unwrap();
    symlink("README", from.path().join("LIESMICH")).unwrap();
    for format in ["gnu", "pax", "ustar", "v7", "oldgnu"] {
        let file = from.path().with_extension(format);
        let mut tar = Command::new("tar");
        tar.arg(format!("--format={format}"))
            .arg("-czf")
            .arg(&file)
            .arg("-C")
            .arg(from.path());
        if matches!(format, "ustar" | "v7") {
            tar.arg("--exclude=long-*");
        }
        assert!(tar.arg(".").status().unwrap().success());
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let canary = Canary::new();
        let outcome = canary.unpack(&bytes, &Limits::default());
        outcome.unwrap_or_else(|error| panic!("{format}: {error}"));
        let mut expected = tree(from.path());
        if matches!(format, "ustar" | "v7") {
            expected.retain(|path, _| !path.to_string_lossy().contains("long-"));
        }
        assert_eq!(tree(&canary.target()), expected, "{format}");
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_wherever_and_whenever() {
    let out = tempfile::tempdir().unwrap();
    let digests: Vec<_> = ["a", "b"]
        .map(|name| {
            let from = source(&some_files());
            if name == "b" {
                // Finer modes, times and owners are not part of it.
                let readme = from.path().join("README");
                fs::set_permissions(&readme, fs::Permissions::from_mode(0o600)).unwrap();
                let file = fs::File::options().write(true).open(&readme).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }
            build(from.path(), out.path().join(name)).unwrap().digest
        })
        .into();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn an_artifact_written_into_its_own_directory_is_not_part_of_itself() {
    let from = source(&some_files());
    let file = from.path().join("a.tar.gz");
    let first = build(from.path(), &file).unwrap();
    let second = build(from.path(), &file).unwrap();
    assert_eq!(first, second);
    let names: Vec<_> = inspect(&file)
        .unwrap()
        .entries
        .into_iter()
        .map(|e| e.path)
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name.contains("tar.gz") || name.contains("hoist")),
        "{names:?}"
    );
}

#[test]
fn what_cannot_be_an_artifact_is_refused_when_it_is_built_and_leaves_no_file() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("a.tar.gz");
    let refuse = |spoil: &dyn Fn(&Path)| {
        let from = source(&BTreeMap::new());
        spoil(from.path());
        let error = build(from.path(), &file).unwrap_err();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "{error}");
        error
    };
    let launch = |dir: &Path| dir.join("bin/launch");
    let error = refuse(&|dir| fs::remove_file(launch(dir)).unwrap());
    assert!(
        error.to_string().contains("bin/launch is missing"),
        "{error}"
    );
    let error = refuse(&|dir| {
        fs::set_permissions(launch(dir), fs::Permissions::from_mode(0o644)).unwrap();
    });
    assert!(error.to_string().contains("chmod +x"), "{error}");
    let error = refuse(&|dir| symlink("/etc/passwd", dir.join("l")).unwrap());
    assert_eq!(rule(&error), Some(Rule::SymlinkTarget));
    let error = refuse(&|dir| {
        fs::write(dir.join("a"), "").unwrap();
        fs::write(dir.join("A"), "").unwrap();
    });
    assert_eq!(rule(&error), Some(Rule::Collision));
    let error = refuse(&|dir| fs::write(dir.join("a\nb"), "").unwrap());
    assert_eq!(rule(&error), Some(Rule::BadCharacter));
    let error = refuse(&|dir| {
        std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    });
    assert!(
        error.to_string().contains("socket, pipe or device"),
        "{error}"
    );
    let error = refuse(&|dir| fs::remove_dir_all(dir).unwrap());
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn an_artifact_tells_what_is_in_it() {
    let mut files = some_files();
    files.insert(
        "bin/helper".into(),
        (fs::read("/proc/self/exe").unwrap()[..4096].to_vec(), true),
    );
    let from = source(&files);
    fs::remove_file(from.path().join("bin/launch")).unwrap();
    fs::create_dir(from.path().join("bin/launch")).unwrap();
    fs::hard_link(
        from.path().join("bin/helper"),
        from.path().join("bin/launch/web"),
    )
    .unwrap();
    let script = from.path().join("bin/launch/worker");
    fs::write(&script, "#!/usr/bin/env python3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("a.tar.gz");
    let built = build(from.path(), &file).unwrap();
    let summary = inspect(&file).unwrap();
    assert_eq!((summary.digest, summary.size), (built.digest, built.size));
    let architecture = std::env::consts::ARCH.to_owned();
    let launch = Launch::Directory(BTreeMap::from([
        ("web".to_owned(), Program::Elf { architecture }),
        (
            "worker".to_owned(),
            Program::Script {
                interpreter: "/usr/bin/env python3".into(),
            },
        ),
    ]));
    assert_eq!(
        (&summary.launch, &summary.launch_problem),
        (&Some(launch.clone()), &None)
    );
    assert_eq!(verify(&file, None).unwrap().launch, launch);
    let readme = summary
        .entries
        .iter()
        .find(|entry| entry.path == "README")
        .unwrap();
    assert_eq!(
        (readme.kind, readme.size, readme.executable),
        (EntryKind::File, 5, false)
    );
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9._-]{0,12}"
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_as_it_was(
        // Directories and files have different names, so that none is in the other's way.
        files in prop::collection::btree_map(
            (prop::collection::vec(name().prop_map(|n| format!("d{n}")), 0..4), name())
                .prop_map(|(mut path, file)| { path.push(format!("f{file}")); path.join("/") }),
            (prop::collection::vec(any::<u8>(), 0..3000), any::<bool>()),
            0..20,
        ),
    ) {
        let from = source(&files);
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("a.tar.gz");
        build(from.path(), &file).unwrap();
        let canary = Canary::new();
        canary.unpack(&fs::read(&file).unwrap(), &Limits::default()).unwrap();
        prop_assert_eq!(tree(&canary.target()), tree(from.path()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_harm_nobody(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let canary = Canary::new();
        let _ = canary.unpack(&bytes, &Limits::default());
        // As the archive inside, too.
        let canary = Canary::new();
        prop_assert!(canary.unpack(&gzip(&bytes), &Limits::default()).is_err());
    }

    #[test]
    fn a_changed_archive_harms_nobody(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        mend in any::<bool>(),
    ) {
        let mut bytes = Raw::good()
            .pax(&[("path", b"a/long/path"), ("size", b"3")])
            .file("a", b"")
            .body(b"xyz")
            .long(b'L', b"another/long/path")
            .file("b", b"abc")
            .symlink("up", "bin/launch")
            .hard_link("h", "b0")
            .end()
            .0;
        for (at, to) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *to;
            if mend {
                // Mended, so that the change gets past the checksum.
                let block = at / 512 * 512;
                let block = &mut bytes[block..block + 512];
                if &block[257..262] == b"ustar" {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let canary = Canary::new();
        let _ = canary.unpack(&gzip(&bytes), &Limits::default());
        let mut compressed = Raw::good().file("f", b"some text").gz();
        for (at, to) in &changes {
            let at = at.index(compressed.len());
            compressed[at] = *to;
        }
        let canary = Canary::new();
        let _ = canary.unpack(&compressed, &Limits::default());
    }
}
