//! Reads an artifact once, front to back, and hands what every rule accepted to a [`Sink`].
//!
//! Unpacking, inspecting and the last check of a build are sinks of this one loop, so they cannot
//! differ in what they accept.

use std::io::Read;

use super::gzip::{Gunzip, Input};
use super::rules::{self, Tree};
use super::tar::{self, Headers, Kind};
use super::{Digest, Error, Limits, Rule, error::refuse};

/// Receives the entries of an archive. Paths are checked, relative and in one form; every parent
/// comes before its children, whether or not the archive has an entry for it.
pub(super) trait Sink {
    fn directory(&mut self, path: &str) -> Result<(), Error>;
    fn file(&mut self, path: &str, executable: bool, body: &mut Body<'_>) -> Result<(), Error>;
    fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error>;
    /// `target` is the path of a file that came before.
    fn hard_link(&mut self, path: &str, target: &str) -> Result<(), Error>;
}

/// What the whole archive came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) digest: Digest,
    /// Files, directories (those only implied as well) and links.
    pub(super) entries: u64,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

/// The bytes of one file. What a sink leaves is skipped.
pub(super) struct Body<'a> {
    input: &'a mut dyn Chunks,
    size: u64,
    left: u64,
}

trait Chunks {
    fn fill(&mut self) -> Result<&[u8], Error>;
    fn consume(&mut self, n: usize);
}

impl<R: Read> Chunks for Gunzip<'_, R> {
    fn fill(&mut self) -> Result<&[u8], Error> {
        Gunzip::fill(self)
    }

    fn consume(&mut self, n: usize) {
        Gunzip::consume(self, n);
    }
}

impl Body<'_> {
    /// Bytes of the whole file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Gives the rest of the file to `take`, chunk by chunk.
    pub(super) fn for_each(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while self.left > 0 {
            let chunk = self.input.fill()?;
            if chunk.is_empty() {
                return Err(refuse(
                    b"",
                    Rule::Truncated,
                    "the archive ends inside a file",
                ));
            }
            let n = usize::try_from(self.left).map_or(chunk.len(), |left| left.min(chunk.len()));
            take(&chunk[..n])?;
            self.left -= n as u64;
            self.input.consume(n);
        }
        Ok(())
    }
}

/// Reads the artifact `input` into `sink`.
///
/// With an `expected` digest the bytes have to have it, and that is what is reported when they do
/// not, whatever else is wrong with them; `what` names them then. The sink has seen entries by that
/// time: it must be willing to throw everything away.
pub(super) fn read(
    input: impl Read,
    what: &str,
    expected: Option<&Digest>,
    limits: &Limits,
    sink: &mut impl Sink,
) -> Result<Totals, Error> {
    let mut input = Input::new(input, limits);
    let outcome =
        Gunzip::new(&mut input, limits).and_then(|mut archive| entries(&mut archive, limits, sink));
    if let Err(error @ (Error::Io { .. } | Error::NoSpace { .. })) = outcome {
        return Err(error);
    }
    // Also when it was refused: the fault may just be that these are other bytes, say an error page.
    match (input.digest(), expected) {
        (Ok(actual), Some(&expected)) if actual != expected => Err(Error::DigestMismatch {
            what: what.to_owned(),
            actual,
            expected,
        }),
        (digest, _) => {
            let (entries, bytes) = outcome?;
            Ok(Totals {
                digest: digest?,
                entries,
                bytes,
            })
        }
    }
}

fn entries<R: Read>(
    input: &mut Gunzip<'_, R>,
    limits: &Limits,
    sink: &mut impl Sink,
) -> Result<(u64, u64), Error> {
    let mut headers = Headers::new(limits);
    let mut tree = Tree::new(limits);
    let mut bytes = 0;
    let mut root_seen = false;
    while let Some(header) = headers.next(input)? {
        let raw = header.path.as_slice();
        let Some(path) = rules::path(raw, header.kind, limits)? else {
            if std::mem::replace(&mut root_seen, true) {
                return Err(refuse(raw, Rule::Duplicate, "it is there already"));
            }
            continue;
        };
        if header.size > limits.file_bytes {
            let detail = format!(
                "it has {} bytes, more than {}",
                header.size, limits.file_bytes
            );
            return Err(refuse(raw, Rule::TooLarge, detail));
        }
        let target = match header.kind {
            Kind::File | Kind::Directory => "",
            Kind::Symlink => rules::symlink(path, &header.link, limits)?,
            Kind::HardLink => tree.hard_link(path, &header.link)?,
        };
        tree.add_name(target, path)?;
        let placement = tree.add(path, header.kind)?;
        for parent in placement.parents {
            sink.directory(parent)?;
        }
        match header.kind {
            Kind::Directory if placement.exists => {}
            Kind::Directory => sink.directory(path)?,
            Kind::Symlink => sink.symlink(path, target)?,
            Kind::HardLink => sink.hard_link(path, target)?,
            Kind::File => {
                bytes += header.size;
                let size = header.size;
                let mut body = Body {
                    input,
                    size,
                    left: size,
                };
                sink.file(path, header.executable, &mut body)
                    .map_err(|e| name(e, path))?;
                body.for_each(|_| Ok(())).map_err(|e| name(e, path))?;
                tar::skip_padding(input, size).map_err(|e| name(e, path))?;
            }
        }
    }
    Ok((tree.len(), bytes))
}

/// Names the entry in a refusal that did not know it.
fn name(error: Error, path: &str) -> Error {
    match error {
        Error::Refused(mut refusal) if refusal.entry.is_empty() => {
            refusal.entry = super::escape(path.as_bytes());
            Error::Refused(refusal)
        }
        other => other,
    }
}
