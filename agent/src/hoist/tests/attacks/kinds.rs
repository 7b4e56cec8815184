//! Kinds of entries, their modes and owners, and what hangs on them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::super::raw::Block;
use super::{Case, accepted, refused, with};
use crate::hoist::Rule::*;

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
