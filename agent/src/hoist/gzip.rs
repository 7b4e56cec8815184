//! The outer layer: exactly one gzip member, counted, hashed and limited while it streams.
//!
//! Inflating is flate2's; deciding what to accept is ours. Everything stays in two fixed buffers,
//! whatever the input claims.

use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use flate2::bufread::GzDecoder;

use super::digest::Hasher;
use super::error::refuse;
use super::{Digest, Error, Limits, Refusal, Rule};

const BUFFER: usize = 128 * 1024;

/// The raw input: hashed, counted and limited as it passes. The limits are here and not only at the
/// inflated end because deflate can go on for long without giving a byte.
pub(super) struct Input<R> {
    inner: R,
    hasher: Hasher,
    limit: u64,
    wall_time: Duration,
    started: Instant,
}

impl<R: Read> Input<R> {
    pub(super) fn new(inner: R, limits: &Limits) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
            limit: limits.compressed_bytes,
            wall_time: limits.wall_time,
            started: Instant::now(),
        }
    }

    /// The digest of the whole input, after reading what is left of it.
    pub(super) fn digest(mut self) -> Result<Digest, Error> {
        io::copy(&mut self, &mut io::sink()).map_err(broken)?;
        Ok(self.hasher.digest())
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        let over = if self.hasher.bytes() > self.limit {
            (
                Rule::TooLarge,
                format!("the file is larger than {} bytes", self.limit),
            )
        } else if self.started.elapsed() > self.wall_time {
            (
                Rule::TooSlow,
                format!("it took longer than {:?}", self.wall_time),
            )
        } else {
            return Ok(n);
        };
        let refusal = Refusal {
            entry: String::new(),
            rule: over.0,
            detail: over.1,
        };
        Err(io::Error::other(refusal))
    }
}

/// The archive inside the artifact, in chunks.
pub(super) struct Gunzip<'a, R> {
    decoder: GzDecoder<BufReader<&'a mut Input<R>>>,
    buffer: Box<[u8]>,
    position: usize,
    filled: usize,
    expanded: u64,
    limits: Limits,
}

impl<'a, R: Read> Gunzip<'a, R> {
    pub(super) fn new(input: &'a mut Input<R>, limits: &Limits) -> Result<Self, Error> {
        let mut reader = BufReader::with_capacity(BUFFER, input);
        let head = reader.fill_buf().map_err(broken)?;
        if !head.starts_with(&[0x1f, 0x8b]) {
            let found = match head {
                [] => "the file is empty".to_owned(),
                [b'P', b'K', ..] => "this is a zip file".to_owned(),
                [0xfd, b'7', b'z', ..] => "this is xz".to_owned(),
                [0x28, 0xb5, 0x2f, 0xfd, ..] => "this is zstd".to_owned(),
                _ if head.get(257..262) == Some(b"ustar") => {
                    "this is a plain tar file; compress it with gzip".to_owned()
                }
                _ => format!(
                    "it begins with `{}`",
                    super::escape(&head[..head.len().min(40)])
                ),
            };
            return Err(refuse(b"", Rule::NotGzip, format!("not a tar.gz: {found}")));
        }
        Ok(Self {
            decoder: GzDecoder::new(reader),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            position: 0,
            filled: 0,
            expanded: 0,
            limits: limits.clone(),
        })
    }

    fn compressed(&self) -> u64 {
        self.decoder.get_ref().get_ref().hasher.bytes()
    }

    /// Bytes that came out so far.
    pub(super) fn expanded(&self) -> u64 {
        self.expanded
    }

    /// The next bytes, without taking them; empty at the end of the (verified) gzip member.
    pub(super) fn fill(&mut self) -> Result<&[u8], Error> {
        if self.position == self.filled {
            let n = loop {
                match self.decoder.read(&mut self.buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other.map_err(broken)?,
                }
            };
            (self.position, self.filled) = (0, n);
            self.expanded += n as u64;
            self.check()?;
        }
        Ok(&self.buffer[self.position..self.filled])
    }

    /// Takes `n` of the bytes that [`fill`](Self::fill) showed.
    pub(super) fn consume(&mut self, n: usize) {
        self.position = (self.position + n).min(self.filled);
    }

    fn check(&self) -> Result<(), Error> {
        let limits = &self.limits;
        if self.expanded > limits.expanded_bytes {
            let detail = format!("it unpacks to more than {} bytes", limits.expanded_bytes);
            return Err(refuse(b"", Rule::TooLarge, detail));
        }
        if self.expanded > limits.ratio_after_bytes
            && self.expanded > self.compressed().saturating_mul(limits.ratio)
        {
            let detail = format!("it unpacks to more than {} times its size", limits.ratio);
            return Err(refuse(b"", Rule::CompressionRatio, detail));
        }
        Ok(())
    }

    /// To be called at the end of the member: nothing may follow it.
    pub(super) fn expect_end_of_input(&mut self) -> Result<(), Error> {
        if self
            .decoder
            .get_mut()
            .fill_buf()
            .map_err(broken)?
            .is_empty()
        {
            return Ok(());
        }
        Err(refuse(
            b"",
            Rule::TrailingData,
            "there are bytes after the gzip member",
        ))
    }
}

fn broken(error: io::Error) -> Error {
    let error = match error.downcast::<Refusal>() {
        Ok(refusal) => return Error::Refused(refusal),
        Err(error) => error,
    };
    if error.raw_os_error().is_some() {
        return Error::io("read", "the artifact", error);
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return refuse(b"", Rule::CorruptGzip, "the gzip stream is cut short");
    }
    refuse(
        b"",
        Rule::CorruptGzip,
        format!("the gzip stream is damaged: {error}"),
    )
}
