//! Every attack on the format that we know of, each as the bytes on the wire.

use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};

use super::raw::{Block, Raw, gzip, record};
use super::{Canary, rule, tree, verify_bytes};
use crate::hoist::Rule::{self, *};
use crate::hoist::{Digest, Error, Limits, verify};

type Case = (&'static str, Vec<u8>, Rule);

fn refused(cases: impl IntoIterator<Item = Case>) {
    refused_within(&Limits::default(), cases);
}

/// Each artifact is refused for its rule, with nothing outside touched, and says so in plain text.
fn refused_within(limits: &Limits, cases: impl IntoIterator<Item = Case>) {
    for (what, artifact, expected) in cases {
        let canary = Canary::new();
        let error = match canary.unpack(&artifact, limits) {
            Ok(()) => panic!("{what}: was accepted: {:?}", tree(&canary.target())),
            Err(error) => error,
        };
        assert_eq!(rule(&error), Some(expected), "{what}: {error}");
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{what}: {text:?}");
        // The command says the same.
        let verified = verify_bytes(&artifact, limits).unwrap_err();
        assert_eq!(rule(&verified), Some(expected), "{what}: {verified}");
    }
}

fn accepted(what: &str, artifact: &[u8]) -> Canary {
    let canary = Canary::new();
    if let Err(error) = canary.unpack(artifact, &Limits::default()) {
        panic!("{what}: {error}");
    }
    canary
}

fn with(entry: impl FnOnce(Raw) -> Raw) -> Vec<u8> {
    entry(Raw::good()).gz()
}

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
fn links_that_lead_out_or_are_written_through_are_refused() {
    refused([
        (
            "write through a link to /tmp",
            with(|raw| raw.symlink("d", "/tmp").file("d/x", b"")),
            SymlinkTarget,
        ),
        (
            "write through ..",
            with(|raw| raw.symlink("d", "..").file("d/x", b"")),
            SymlinkTarget,
        ),
        (
            "write through a link that stays inside",
            with(|raw| raw.symlink("d", "bin").file("d/x", b"")),
            ParentNotDirectory,
        ),
        (
            "write through the canary",
            with(|raw| raw.symlink("d", "../outside").file("d/shadow", b"")),
            SymlinkTarget,
        ),
        (
            "chain to the root",
            with(|raw| {
                raw.symlink("a", "b")
                    .symlink("b", "c")
                    .symlink("c", "/")
                    .file("a/x", b"")
            }),
            SymlinkTarget,
        ),
        (
            "chain of insiders",
            with(|raw| raw.symlink("a", "b").file("a/x", b"")),
            ParentNotDirectory,
        ),
        (
            "absolute target",
            with(|raw| raw.symlink("l", "/etc/passwd")),
            SymlinkTarget,
        ),
        (
            "target above",
            with(|raw| raw.symlink("a/b/l", "../../../x")),
            SymlinkTarget,
        ),
        (
            "target above by way of a directory",
            with(|raw| raw.dir("p/").symlink("p/up", "..").symlink("z", "p/up/..")),
            SymlinkTarget,
        ),
        (
            "target with a late .. that counting levels would allow",
            with(|raw| raw.symlink("a/b/up", "../..").symlink("a/b/z", "up/../x")),
            SymlinkTarget,
        ),
        (
            "target inside by way of ..",
            with(|raw| raw.symlink("l", "bin/../bin")),
            SymlinkTarget,
        ),
        (
            "empty target",
            with(|raw| raw.symlink("l", "")),
            SymlinkTarget,
        ),
        (
            "target with //",
            with(|raw| raw.symlink("l", "a//b")),
            SymlinkTarget,
        ),
        (
            "directory over a link, to chmod its target (CVE-2026-33056)",
            with(|raw| {
                raw.symlink("d", "bin")
                    .block(&Block::new("d/", b'5').mode(0o777))
            }),
            Duplicate,
        ),
        (
            "link over a directory",
            with(|raw| raw.symlink("bin", "x")),
            Duplicate,
        ),
        (
            "link over a file",
            with(|raw| raw.symlink("bin/launch", "x")),
            Duplicate,
        ),
    ]);
    let canary = accepted(
        "links that stay inside",
        &with(|raw| {
            raw.symlink("lib.so", "lib.so.1")
                .symlink("a/b/l", "../../bin/launch")
                .symlink("dot", "./bin/launch")
                .symlink("dir", "bin/")
                .symlink("dangling", "nowhere")
        }),
    );
    let inside = fs::read_to_string(canary.target().join("a/b/l")).unwrap();
    assert_eq!(inside, "#!/bin/sh\n");
}

#[test]
fn hard_links_to_anything_but_an_earlier_file_are_refused() {
    refused([
        (
            "absolute",
            with(|raw| raw.hard_link("h", "/etc/shadow")),
            HardLinkTarget,
        ),
        (
            "above",
            with(|raw| raw.hard_link("h", "../outside/shadow")),
            HardLinkTarget,
        ),
        (
            "to a symbolic link",
            with(|raw| raw.symlink("s", "bin/launch").hard_link("h", "s")),
            HardLinkTarget,
        ),
        (
            "to a directory",
            with(|raw| raw.hard_link("h", "bin")),
            HardLinkTarget,
        ),
        (
            "forward",
            with(|raw| raw.hard_link("h", "f").file("f", b"")),
            HardLinkTarget,
        ),
        (
            "to itself",
            with(|raw| raw.hard_link("h", "h")),
            HardLinkTarget,
        ),
        (
            "to nothing",
            with(|raw| raw.hard_link("h", "")),
            HardLinkTarget,
        ),
        (
            "through a link",
            with(|raw| raw.symlink("d", "bin").hard_link("h", "d/launch")),
            HardLinkTarget,
        ),
        (
            "over a file",
            with(|raw| raw.hard_link("bin/launch", "bin/launch")),
            Duplicate,
        ),
        (
            "with a body",
            with(|raw| {
                raw.block(&Block::new("h", b'1').link("bin/launch").size(1))
                    .body(b"x")
            }),
            SizeConflict,
        ),
    ]);
    let canary = accepted(
        "to a file",
        &with(|raw| raw.hard_link("a/h", "./bin/launch")),
    );
    let inode = |path| fs::metadata(canary.target().join(path)).unwrap().ino();
    assert_eq!(inode("a/h"), inode("bin/launch"));
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

#[test]
fn types_other_than_files_directories_and_links_are_refused() {
    let mut cases: Vec<Case> = b"346sVMDNAXZ7\x01\xff"
        .iter()
        .map(|&kind| {
            (
                "type",
                with(|raw| raw.block(&Block::new("n", kind))),
                EntryType,
            )
        })
        .collect();
    cases.push((
        "old GNU sparse",
        with(|raw| raw.block(&Block::new("n", b'S'))),
        Sparse,
    ));
    cases.push((
        "directory with a body",
        with(|raw| raw.block(&Block::new("d/", b'5').size(5)).body(b"12345")),
        SizeConflict,
    ));
    refused(cases);
}

#[test]
fn modes_and_owners_are_ours_whatever_the_archive_says() {
    let modes = [0o4755, 0o2755, 0o1777, 0o666, 0, 0o7777, 0o100];
    let archive = with(|mut raw| {
        for (i, mode) in modes.into_iter().enumerate() {
            let mut file = Block::new(format!("f{i}"), b'0').mode(mode);
            file.owner = [
                &b"7777777\0"[..],
                b"\xff\xff\xff\xff\xff\xff\xff\xff",
                b"xyz     ",
            ][i % 3]
                .into();
            file.mtime = b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec();
            raw = raw
                .block(&file)
                .block(&Block::new(format!("d{i}/"), b'5').mode(mode));
        }
        raw
    });
    let canary = accepted("modes", &archive);
    let mine = rustix::process::geteuid().as_raw();
    for (i, mode) in modes.into_iter().enumerate() {
        let file = fs::metadata(canary.target().join(format!("f{i}"))).unwrap();
        let expected = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
        assert_eq!(file.permissions().mode() & 0o7777, expected, "{mode:o}");
        assert_eq!(file.uid(), mine);
        let directory = fs::metadata(canary.target().join(format!("d{i}"))).unwrap();
        assert_eq!(directory.permissions().mode() & 0o7777, 0o755, "{mode:o}");
    }
}

#[test]
fn extended_attributes_and_sparse_files_are_refused_in_all_their_spellings() {
    let pax = |key, value: &[u8]| with(|raw| raw.pax(&[(key, value)]).file("f", b""));
    let mut cases: Vec<Case> = Vec::new();
    for key in [
        "SCHILY.xattr.security.capability",
        "SCHILY.xattr.user.x",
        "LIBARCHIVE.xattr.user.x",
        "SCHILY.acl.access",
        "RHT.security.selinux",
    ] {
        cases.push((key, pax(key, b"\x01\0\0\x02"), ExtendedAttributes));
    }
    for key in [
        "GNU.sparse.size",
        "GNU.sparse.map",
        "GNU.sparse.major",
        "GNU.sparse.realsize",
        "SCHILY.realsize",
    ] {
        cases.push((key, pax(key, b"1099511627776"), Sparse));
    }
    refused(cases);
    accepted("a vendor's remark", &pax("LIBARCHIVE.creationtime", b"1"));
    accepted("times and owners", &pax("mtime", b"-99999999999.5"));
}

#[test]
fn archives_that_two_readers_would_read_differently_are_refused() {
    let nested = Raw::default().file("evil", b"evil").end().0;
    let size = nested.len().to_string().into_bytes();
    let x = |records: &[&[u8]]| with(|raw| raw.extension(b'x', &records.concat()).file("f", b""));
    refused([
        (
            "a PAX size beside another",
            with(|raw| raw.pax(&[("size", b"2")]).file("f", b"x")),
            SizeConflict,
        ),
        (
            "PAX before a GNU name (GHSA-3cv2)",
            with(|raw| raw.pax(&[("size", b"1")]).long(b'L', b"n").file("f", b"x")),
            BadExtension,
        ),
        (
            "a GNU name before PAX",
            with(|raw| raw.long(b'L', b"n").pax(&[("size", b"1")]).file("f", b"x")),
            BadExtension,
        ),
        (
            "PAX twice",
            with(|raw| {
                raw.pax(&[("path", b"a")])
                    .pax(&[("path", b"b")])
                    .file("f", b"")
            }),
            BadExtension,
        ),
        (
            "GNU name twice",
            with(|raw| raw.long(b'L', b"a").long(b'L', b"b").file("f", b"")),
            BadExtension,
        ),
        (
            "a key twice",
            x(&[&record("path", b"a"), &record("path", b"b")]),
            BadExtension,
        ),
        (
            "an extension without an entry",
            with(|raw| raw.pax(&[("path", b"a")])),
            BadExtension,
        ),
        (
            "a GNU name without an entry",
            with(|raw| raw.long(b'L', b"a")),
            BadExtension,
        ),
        (
            "a global header in between",
            with(|raw| {
                raw.pax(&[("path", b"a")])
                    .extension(b'g', b"")
                    .file("f", b"")
            }),
            BadExtension,
        ),
        (
            "a global path",
            with(|raw| raw.extension(b'g', &record("path", b"a")).file("f", b"")),
            BadExtension,
        ),
        (
            "a global size",
            with(|raw| raw.extension(b'g', &record("size", b"1")).file("f", b"")),
            BadExtension,
        ),
        ("a record too long", x(&[b"99 path=a\n"]), BadExtension),
        ("a record too short", x(&[b"3 path=a\n"]), BadExtension),
        ("a record of length 0", x(&[b"0 path=a\n"]), BadExtension),
        ("a negative length", x(&[b"-9 path=a\n"]), BadExtension),
        (
            "a length of 20 digits",
            x(&[b"18446744073709551626 path=a\n"]),
            BadExtension,
        ),
        ("no end of line", x(&[b"9 path=ab"]), BadExtension),
        ("no =", x(&[b"7 path\n"]), BadExtension),
        ("no key", x(&[b"5 =a\n"]), BadExtension),
        ("nothing but a length", x(&[b"9"]), BadExtension),
        ("an unknown key", x(&[&record("paht", b"a")]), BadExtension),
        ("an empty path", x(&[&record("path", b"")]), BadExtension),
        ("a negative size", x(&[&record("size", b"-1")]), BadNumber),
        ("a signed size", x(&[&record("size", b"+1")]), BadNumber),
        (
            "a huge size",
            x(&[&record("size", b"18446744073709551616")]),
            BadNumber,
        ),
        ("8 TiB", x(&[&record("size", b"9999999999999")]), BadNumber),
        (
            "64 KiB of PAX",
            with(|raw| raw.extension(b'x', &[b'1'; 65537]).file("f", b"")),
            BadExtension,
        ),
        (
            "a link target of a file",
            x(&[&record("linkpath", b"a")]),
            BadExtension,
        ),
    ]);
    // TARmageddon (CVE-2025-62518): the size is in PAX alone, and the body is itself an archive.
    let canary = accepted(
        "a size in PAX alone",
        &with(|raw| raw.pax(&[("size", &size)]).file("f", b"").body(&nested)),
    );
    assert_eq!(fs::read(canary.target().join("f")).unwrap(), nested);
    assert!(!canary.target().join("evil").exists());
    accepted(
        "a remark for all",
        &with(|raw| {
            raw.extension(b'g', &record("comment", b"0123abcd"))
                .file("f", b"")
        }),
    );
}

#[test]
fn numbers_in_unusual_forms_are_refused() {
    let size = |bytes: &[u8]| {
        let mut block = Block::new("f", b'0');
        block.size = bytes.to_vec();
        with(|raw| raw.block(&block))
    };
    refused([
        ("negative base-256", size(&[0xff; 12]), BadNumber),
        (
            "2^63 in base-256",
            size(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
            BadNumber,
        ),
        (
            "8 GiB + 1 in base-256",
            size(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"),
            BadNumber,
        ),
        (
            "small base-256",
            size(b"\x80\0\0\0\0\0\0\0\0\0\0\0"),
            BadNumber,
        ),
        ("empty", size(&[0; 12]), BadNumber),
        ("negative", size(b"-0000000001\0"), BadNumber),
        (
            "digits after NUL",
            size(b"0\x001\0\0\0\0\0\0\0\0\0"),
            BadNumber,
        ),
        ("not octal", size(b"00000000009\0"), BadNumber),
        ("hexadecimal", size(b"0x000000001\0"), BadNumber),
        (
            "larger than a file may be",
            size(b"37777777777\0"),
            TooLarge,
        ),
    ]);
    accepted("padded with blanks", &size(b"          0 "));
    accepted("without a NUL", &size(b"000000000000"));
}

#[test]
fn damaged_headers_are_refused_and_old_checksums_accepted() {
    let with_block = |change: &dyn Fn(&mut Block)| {
        let mut block = Block::new("\u{e9}", b'0');
        change(&mut block);
        with(|raw| raw.block(&block))
    };
    refused([
        (
            "wrong checksum",
            with_block(&|b| b.checksum_off_by = 1),
            BadHeader,
        ),
        (
            "unknown magic",
            with_block(&|b| b.magic = *b"ustar\x0001"),
            BadHeader,
        ),
        ("no tar inside", gzip(&[b'x'; 2048]), BadHeader),
        ("gzip inside gzip", gzip(&gzip(&[0; 100_000])), Truncated),
        (
            "one zero block in the middle",
            {
                let raw = Raw::good().body(&[0; 512]).file("f", b"");
                raw.gz()
            },
            BadHeader,
        ),
    ]);
    accepted(
        "signed checksum",
        &with_block(&|b| b.signed_checksum = true),
    );
    accepted("GNU magic", &with_block(&|b| b.magic = *b"ustar  \0"));
    accepted("no magic", &with_block(&|b| b.magic = [0; 8]));
}

#[test]
fn an_archive_cut_at_any_block_is_refused() {
    let whole = Raw::good()
        .pax(&[("path", b"p")])
        .file("f", &[1; 1300])
        .end()
        .0;
    for length in (0..whole.len()).step_by(512) {
        let canary = Canary::new();
        let error = canary
            .unpack(&gzip(&whole[..length]), &Limits::default())
            .unwrap_err();
        assert_eq!(
            rule(&error),
            Some(Truncated),
            "{length} of {}: {error}",
            whole.len()
        );
    }
    accepted("the whole", &gzip(&whole));
    // Cut anywhere else, including in the middle of the end.
    for length in [1, 100, 511, 513, whole.len() - 1, whole.len() - 513] {
        let canary = Canary::new();
        let error = canary
            .unpack(&gzip(&whole[..length]), &Limits::default())
            .unwrap_err();
        assert_eq!(rule(&error), Some(Truncated), "{length}: {error}");
    }
}

#[test]
fn an_artifact_cut_at_any_block_is_refused() {
    // Bytes that do not compress, so that there are several blocks.
    let noise: Vec<u8> = (0u64..1200)
        .flat_map(|i| {
            *Digest::of(i.to_le_bytes())
                .hex()
                .as_bytes()
                .first_chunk::<8>()
                .unwrap()
        })
        .collect();
    let whole = with(|raw| raw.file("f", &noise));
    assert!(whole.len() > 4 * 512);
    for length in (0..whole.len())
        .step_by(512)
        .chain([1, 2, 9, whole.len() - 1])
    {
        let canary = Canary::new();
        let error = canary
            .unpack(&whole[..length], &Limits::default())
            .unwrap_err();
        let expected = if length < 2 { NotGzip } else { CorruptGzip };
        assert_eq!(
            rule(&error),
            Some(expected),
            "{length} of {}: {error}",
            whole.len()
        );
    }
}

#[test]
fn bytes_after_the_end_are_refused_wherever_they_are() {
    let after = |bytes: &[u8]| {
        let mut raw = Raw::good().end();
        raw.0.extend(bytes);
        gzip(&raw.0)
    };
    let good = Raw::good().gz();
    let mut padding = Raw::good().file("f", b"x").end();
    let last = padding.0.len() - 1024 - 1;
    padding.0[last] = 1;
    let mut ragged = Raw::good().end();
    ragged.0.extend([0; 100]);
    refused([
        ("a byte", after(b"\x01"), TrailingData),
        ("another archive", after(&Raw::good().end().0), TrailingData),
        (
            "another archive after blocks",
            after(&[vec![0; 8192], Raw::good().end().0].concat()),
            TrailingData,
        ),
        ("in a file's padding", gzip(&padding.0), TrailingData),
        (
            "a second member",
            [good.clone(), good.clone()].concat(),
            TrailingData,
        ),
        (
            "an empty second member",
            [good.clone(), gzip(b"")].concat(),
            TrailingData,
        ),
        (
            "a byte after the member",
            [&good[..], b"x"].concat(),
            TrailingData,
        ),
        (
            "a zero after the member",
            [&good[..], b"\0"].concat(),
            TrailingData,
        ),
        ("part of a block", gzip(&ragged.0), Truncated),
    ]);
    accepted("zero blocks, as archivers write them", &after(&[0; 9216]));
}

#[test]
fn what_is_not_gzip_is_refused_by_name() {
    refused([
        ("empty", Vec::new(), NotGzip),
        ("tar", Raw::good().end().0, NotGzip),
        ("zip", b"PK\x03\x04aaaa".to_vec(), NotGzip),
        ("xz", b"\xfd7zXZ\0aaaa".to_vec(), NotGzip),
        ("zstd", b"\x28\xb5\x2f\xfdaaaa".to_vec(), NotGzip),
        (
            "an error page",
            b"<html>\x1b[2J not found".to_vec(),
            NotGzip,
        ),
    ]);
    let error = verify_bytes(&Raw::good().end().0, &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("plain tar"), "{error}");
}

#[test]
fn damaged_gzip_is_refused() {
    let good = Raw::good().gz();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let n = good.len();
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::new(6));
    deflate.write_all(&Raw::good().end().0).unwrap();
    let deflate = deflate.finish().unwrap();
    refused([
        ("CRC", changed(n - 8, good[n - 8] ^ 1), CorruptGzip),
        ("ISIZE", changed(n - 4, good[n - 4] ^ 1), CorruptGzip),
        ("method", changed(2, 7), CorruptGzip),
        ("reserved flags", changed(3, 0xe0), CorruptGzip),
        (
            "a name without an end",
            [
                b"\x1f\x8b\x08\x08\0\0\0\0\0\x03".to_vec(),
                vec![b'a'; 300_000],
            ]
            .concat(),
            CorruptGzip,
        ),
        (
            "extra bytes that are not there",
            b"\x1f\x8b\x08\x04\0\0\0\0\0\x03\xff\xff".to_vec(),
            CorruptGzip,
        ),
        (
            "no trailer",
            [b"\x1f\x8b\x08\0\0\0\0\0\0\x03", &deflate[..]].concat(),
            CorruptGzip,
        ),
        (
            "a zlib body",
            [b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x78\x9c", &deflate[..]].concat(),
            CorruptGzip,
        ),
    ]);
}

/// Zeros, compressed, without ever holding them.
fn bomb(header: &[u8], zeros: u64) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(header).unwrap();
    io::copy(&mut io::repeat(0).take(zeros), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_stop_at_the_limits() {
    let mib = 1024 * 1024;
    let file = Raw::good().block(&Block::new("f", b'0').size(12 * mib)).0;
    let limits = |change: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    refused([
        (
            "a file of zeros",
            bomb(&file, 12 * mib + 1024),
            CompressionRatio,
        ),
        (
            "zeros after the end",
            bomb(&Raw::good().0, 12 * mib),
            CompressionRatio,
        ),
    ]);
    // Expanded bytes, with the ratio out of the way.
    refused_within(
        &limits(&|l| (l.ratio, l.expanded_bytes) = (u64::MAX, 4 * mib)),
        [("bytes", bomb(&file, 12 * mib + 1024), TooLarge)],
    );
    refused_within(
        &limits(&|l| l.file_bytes = 100),
        [("a file", with(|raw| raw.file("f", &[1; 101])), TooLarge)],
    );
    refused_within(
        &limits(&|l| l.compressed_bytes = 100),
        [("the artifact", with(|raw| raw.file("f", b"")), TooLarge)],
    );
    // Deflate that goes on and gives nothing: empty stored blocks.
    let mut silent = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    for _ in 0..100_000 {
        silent.extend(b"\0\0\0\xff\xff");
    }
    refused_within(
        &limits(&|l| l.compressed_bytes = 100_000),
        [("empty blocks", silent, TooLarge)],
    );
    refused_within(
        &limits(&|l| l.wall_time = Duration::ZERO),
        [("time", with(|raw| raw), TooSlow)],
    );
    refused_within(
        &limits(&|l| l.names_bytes = 40),
        [("names", with(|raw| raw.file([b'n'; 50], b"")), TooLarge)],
    );
}

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
