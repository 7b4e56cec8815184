//! Names: paths that leave the artifact, harm terminals or file systems, are too long, or are there twice.

use super::super::tree;
use super::{accepted, refused, with};
use crate::hoist::Rule::*;

#[test]
fn paths_that_leave_the_artifact_or_play_with_its_form_are_refused() {
    let path = |name: &str| with(|raw| raw.file(name, b"x"));
    refused([
        ("absolute", path("/etc/x"), AbsolutePath),
        ("absolute directory", with(|raw| raw.dir("/")), AbsolutePath),
        ("..", path("../x"), ParentComponent),
        ("a/../../x", path("a/../../x"), ParentComponent),
        (".. that stays inside", path("a/../x"), ParentComponent),
        ("a/..", path("a/.."), ParentComponent),
        ("directory ..", with(|raw| raw.dir("../")), ParentComponent),
        ("././a", path("././a"), BadComponent),
        ("a//b", path("a//b"), BadComponent),
        ("a/.", path("a/."), BadComponent),
        ("empty", path(""), BadComponent),
        (".", path("."), BadComponent),
        ("./ as a file", path("./"), BadComponent),
        (
            "directory . without a slash",
            with(|raw| raw.dir(".")),
            BadComponent,
        ),
        ("a file's trailing slash", path("a/"), BadComponent),
        (
            "two trailing slashes",
            with(|raw| raw.dir("a//")),
            BadComponent,
        ),
        (
            "the root twice",
            with(|raw| raw.dir("./").dir("./")),
            Duplicate,
        ),
        ("blank", path(" "), BadComponent),
        (
            "the installer's marker",
            path("./.platctrl-install.json"),
            ReservedName,
        ),
        (
            "the marker in capitals",
            path(".PLATCTRL-install.json"),
            ReservedName,
        ),
    ]);
    let canary = accepted(
        "plain names",
        &with(|raw| {
            raw.dir("./")
                .file("./a", b"1")
                .file("-rf", b"2")
                .file("c:d", b"3")
                .file("é ü", b"4")
        }),
    );
    let names: Vec<_> = tree(&canary.target()).into_keys().collect();
    assert_eq!(
        names,
        ["-rf", "a", "bin", "bin/launch", "c:d", "é ü"].map(std::path::PathBuf::from)
    );
}

#[test]
fn names_that_harm_terminals_or_file_systems_are_refused() {
    let path = |name: &[u8]| with(|raw| raw.file(name, b"x"));
    let pax = |name: &[u8]| with(|raw| raw.pax(&[("path", name)]).file("x", b"x"));
    refused([
        ("NUL", pax(b"a\0b"), BadCharacter),
        ("end of line", path(b"a\nb"), BadCharacter),
        ("escape", path(b"\x1b[2Ja"), BadCharacter),
        ("DEL", path(b"a\x7f"), BadCharacter),
        ("C1 control", path("a\u{9b}".as_bytes()), BadCharacter),
        ("not UTF-8", path(b"a\xff\xfe"), BadCharacter),
        (
            "not UTF-8 in a link",
            with(|raw| raw.symlink("l", b"\xff")),
            BadCharacter,
        ),
        (
            "NUL in a GNU name",
            with(|raw| raw.long(b'L', b"a\0b").file("x", b"")),
            BadCharacter,
        ),
    ]);
}

#[test]
fn names_are_as_long_and_deep_as_the_limits_and_not_longer() {
    let long = |n: usize| {
        let mut name = "d/".repeat(8);
        while name.len() + 101 < n {
            name.push_str(&"x".repeat(100));
            name.push('/');
        }
        name.push_str(&"y".repeat(n - name.len()));
        name.into_bytes()
    };
    let pax = |name: &[u8]| with(|raw| raw.pax(&[("path", name)]).file("x", b""));
    let gnu = |name: &[u8]| with(|raw| raw.long(b'L', name).file("x", b""));
    let deep = |n: usize| pax(vec!["d"; n].join("/").as_bytes());
    refused([
        ("component of 256 by PAX", pax(&[b'x'; 256]), PathTooLong),
        ("component of 256 by GNU", gnu(&[b'x'; 256]), PathTooLong),
        ("path of 1025 by PAX", pax(&long(1025)), PathTooLong),
        ("path of 1025 by GNU", gnu(&long(1025)), PathTooLong),
        ("path of 4097 by PAX", pax(&long(4097)), PathTooLong),
        ("path of 4097 by GNU", gnu(&long(4097)), PathTooLong),
        ("depth of 33", deep(33), PathTooLong),
        (
            "link target of 1025",
            with(|raw| raw.long(b'K', &long(1025)).symlink("l", "x")),
            PathTooLong,
        ),
    ]);
    for (what, artifact) in [
        ("component of 255 by PAX", pax(&[b'x'; 255])),
        ("component of 255 by GNU", gnu(&[b'x'; 255])),
        ("path of 1024 by PAX", pax(&long(1024))),
        ("path of 1024 by GNU", gnu(&long(1024))),
        ("depth of 32", deep(32)),
    ] {
        accepted(what, &artifact);
    }
}

#[test]
fn the_same_name_twice_in_any_form_is_refused() {
    refused([
        (
            "the same file",
            with(|raw| raw.file("f", b"1").file("f", b"1")),
            Duplicate,
        ),
        (
            "another file",
            with(|raw| raw.file("f", b"1").file("f", b"2")),
            Duplicate,
        ),
        (
            "./ in front",
            with(|raw| raw.file("f", b"1").file("./f", b"2")),
            Duplicate,
        ),
        (
            "file over directory",
            with(|raw| raw.file("bin", b"")),
            Duplicate,
        ),
        (
            "directory over file",
            with(|raw| raw.file("f", b"").dir("f/")),
            Duplicate,
        ),
        ("directory twice", with(|raw| raw.dir("bin/")), Duplicate),
        (
            "beneath a file",
            with(|raw| raw.file("f", b"").file("f/x", b"")),
            ParentNotDirectory,
        ),
        (
            "case",
            with(|raw| raw.file("README", b"").file("readme", b"")),
            Collision,
        ),
        (
            "case of a directory",
            with(|raw| raw.file("Bin/x", b"")),
            Collision,
        ),
        (
            "NFC and NFD",
            with(|raw| raw.file("\u{e9}", b"").file("e\u{301}", b"")),
            Collision,
        ),
    ]);
    // A directory may be named after what is in it: archivers do that.
    accepted(
        "late directory",
        &with(|raw| raw.file("d/e/f", b"").dir("d/").dir("d/e/")),
    );
}
