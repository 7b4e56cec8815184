//! Values packed as gzip, where a transaction would not fit into Consul's limit otherwise.
//!
//! Consul takes 512 KiB as the body of a transaction, in which values are base64: of a value of
//! 384 KiB, which every backend takes, nothing would be left for its key. Such transactions
//! carry their values packed, and a bit in a value's flags says so; all others are stored as
//! they are. JSON always packs far enough: bytes of valid UTF-8 have at most 7.6 bits of
//! information each, whatever the text. `consul kv get KEY | gunzip` shows a packed value.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// Set in the flags of what is packed.
pub(crate) const PACKED: u64 = 1 << 63;
/// What gzip begins with; no JSON does.
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Shorter ones are left alone.
const WORTH_IT: usize = 512;
/// More is no value of ours, whatever somebody put there.
const MOST: usize = 1 << 20;

/// The value packed, unless that makes it no shorter.
pub(crate) fn pack(value: &Bytes) -> Option<Bytes> {
    if value.len() < WORTH_IT {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(value.len()), Compression::default());
    encoder.write_all(value).ok()?;
    let packed = encoder.finish().ok()?;
    (packed.len() < value.len()).then(|| packed.into())
}

/// The value as it was before it was packed; as it is, when nobody packed it.
pub(crate) fn unpack(value: Bytes, flags: u64) -> Bytes {
    if flags & PACKED == 0 || !value.starts_with(&MAGIC) {
        return value;
    }
    let mut unpacked = Vec::new();
    let limit = u64::try_from(MOST).unwrap_or(u64::MAX);
    let mut decoder = GzDecoder::new(value.as_ref()).take(limit + 1);
    match decoder.read_to_end(&mut unpacked) {
        Ok(length) if length <= MOST => unpacked.into(),
        // Spoiled, or somebody else's: whoever reads the record sets it aside.
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_what_is_not_is_left_alone() {
        let long = Bytes::from("{\"a\": \"b\"}".repeat(1_000));
        let packed = pack(&long).unwrap();
        assert!(packed.len() < long.len() / 10);
        assert_eq!(unpack(packed.clone(), PACKED | 7), long);
        assert_eq!(
            unpack(packed.clone(), 7),
            packed,
            "nobody says it is packed"
        );
        assert_eq!(unpack(long.clone(), PACKED), long, "it is not");
        assert_eq!(pack(&Bytes::from_static(b"{}")), None);
    }

    #[test]
    fn what_was_spoiled_or_grows_beyond_measure_is_left_as_it_is() {
        let packed = pack(&Bytes::from("x".repeat(10_000))).unwrap();
        let half = packed.slice(..packed.len() / 2);
        assert_eq!(unpack(half.clone(), PACKED), half);
        let bomb = pack(&Bytes::from(vec![0; MOST + 1])).unwrap();
        assert_eq!(unpack(bomb.clone(), PACKED), bomb);
        let most = Bytes::from(vec![0; MOST]);
        assert_eq!(unpack(pack(&most).unwrap(), PACKED), most);
    }

    /// Text with as much information in each byte as UTF-8 allows, and its likes.
    #[test]
    fn every_text_of_the_largest_size_packs_far_enough() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from((state >> 20) % u64::from(below)).unwrap()
        };
        let ascii = |n: u32| char::from_u32(0x20 + n % 0x5f).unwrap();
        let two = |n: u32| char::from_u32(0x80 + n % 0x780).unwrap();
        let three = |n: u32| char::from_u32(0x1000 + n % 0xc000).unwrap();
        let four = |n: u32| char::from_u32(0x1_0000 + n % 0x10_0000).unwrap();
        for kind in 0..7 {
            let mut text = String::new();
            while text.len() < 384 * 1024 - 4 {
                let n = random(u32::MAX);
                text.push(match (kind, random(100)) {
                    (0, _) | (4, 0..=53) | (5, 0..=69) => ascii(n),
                    (1, _) | (4, _) | (6, 0..=49) => two(n),
                    (2, _) | (5, _) => three(n),
                    (3, _) | (6, _) => four(n),
                    _ => unreachable!("seven kinds"),
                });
            }
            let packed = pack(&text.into()).unwrap().len();
            // In base64, with 24 KiB for keys and records beside it.
            assert!(
                packed.div_ceil(3) * 4 < (512 - 24) * 1024,
                "{kind}: {packed}"
            );
        }
    }
}
