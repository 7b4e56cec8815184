//! The outer layer: what is no gzip, damaged gzip, bombs.

use std::io::{self, Read, Write as _};
use std::time::Duration;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};

use super::super::raw::{Block, Raw};
use super::super::verify_bytes;
use super::{refused, refused_within, with};
use crate::hoist::Limits;
use crate::hoist::Rule::*;

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
