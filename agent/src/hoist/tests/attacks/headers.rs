//! Headers that two readers would read differently, odd numbers, and damage.

use std::fs;

use super::super::raw::{Block, Raw, gzip, record};
use super::{accepted, refused, with};
use crate::hoist::Rule::*;

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
            x(&[&record("comment", &[b'1'; 65536])]),
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
    accepted("a remark", &x(&[&record("comment", &[b'1'; 65000])]));
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
