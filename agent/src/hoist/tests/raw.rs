//! Makes archives block by block, including the ones no archiver makes.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Raw(pub(super) Vec<u8>);

/// The fields of a header, each as it lies in the block.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) name: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: Vec<u8>,
    pub(super) size: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) owner: Vec<u8>,
    pub(super) mtime: Vec<u8>,
    pub(super) magic: [u8; 8],
    /// Added to the right checksum.
    pub(super) checksum_off_by: u32,
    /// Sum bytes as signed, as some old archivers did.
    pub(super) signed_checksum: bool,
}

impl Block {
    pub(super) fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode: b"0000644\0".to_vec(),
            size: b"00000000000\0".to_vec(),
            link: Vec::new(),
            owner: b"0000000\0".to_vec(),
            mtime: b"00000000000\0".to_vec(),
            magic: *b"ustar\x0000",
            checksum_off_by: 0,
            signed_checksum: false,
        }
    }

    pub(super) fn size(mut self, size: u64) -> Self {
        self.size = format!("{size:011o}\0").into_bytes();
        self
    }

    pub(super) fn mode(mut self, mode: u32) -> Self {
        self.mode = format!("{mode:07o}\0").into_bytes();
        self
    }

    pub(super) fn link(mut self, link: impl AsRef<[u8]>) -> Self {
        self.link = link.as_ref().to_vec();
        self
    }

    pub(super) fn bytes(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name);
        put(100, &self.mode);
        put(108, &self.owner);
        put(116, &self.owner);
        put(124, &self.size);
        put(136, &self.mtime);
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link);
        put(257, &self.magic);
        put(265, b"root");
        let sum: i64 = if self.signed_checksum {
            block.iter().map(|&b| i64::from(b.cast_signed())).sum()
        } else {
            block.iter().map(|&b| i64::from(b)).sum()
        };
        let sum = sum + i64::from(self.checksum_off_by);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

impl Raw {
    /// An archive that would be accepted, to which something is added.
    pub(super) fn good() -> Self {
        Self::default()
            .dir("bin/")
            .exec("bin/launch", b"#!/bin/sh\n")
    }

    pub(super) fn block(mut self, block: &Block) -> Self {
        self.0.extend(block.bytes());
        self
    }

    /// Bytes, padded to a whole block.
    pub(super) fn body(mut self, body: &[u8]) -> Self {
        self.0.extend(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: impl AsRef<[u8]>, body: &[u8]) -> Self {
        self.block(&Block::new(name, b'0').size(body.len() as u64))
            .body(body)
    }

    pub(super) fn exec(self, name: impl AsRef<[u8]>, body: &[u8]) -> Self {
        self.block(&Block::new(name, b'0').size(body.len() as u64).mode(0o755))
            .body(body)
    }

    pub(super) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.block(&Block::new(name, b'5').mode(0o755))
    }

    pub(super) fn symlink(self, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.block(&Block::new(name, b'2').link(to))
    }

    pub(super) fn hard_link(self, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.block(&Block::new(name, b'1').link(to))
    }

    /// A header of an extension (`x`, `g`, `L`, `K`) with its body.
    pub(super) fn extension(self, kind: u8, body: &[u8]) -> Self {
        self.block(&Block::new("ext", kind).size(body.len() as u64))
            .body(body)
    }

    /// A PAX header with well-formed records.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
        self.extension(b'x', &body)
    }

    pub(super) fn long(self, kind: u8, name: &[u8]) -> Self {
        self.extension(kind, &[name, b"\0"].concat())
    }

    pub(super) fn end(mut self) -> Self {
        self.0.resize(self.0.len() + 1024, 0);
        self
    }

    /// Ends the archive properly and compresses it.
    pub(super) fn gz(self) -> Vec<u8> {
        gzip(&self.end().0)
    }
}

pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
