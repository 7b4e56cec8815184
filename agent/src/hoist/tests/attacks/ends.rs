//! Ends: archives and artifacts cut short, and what follows the end.

use super::super::raw::{Raw, gzip};
use super::super::{Canary, rule};
use super::{accepted, refused, with};
use crate::hoist::Rule::*;
use crate::hoist::{Digest, Limits};

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
