//! The inner layer: ustar headers with the PAX and GNU extensions that real archives carry.
//!
//! This reader is our own, and small, on purpose. What goes wrong with archives goes wrong *between*
//! readers: two of them disagree on which size, which name or which header counts, and one of them
//! did the checking. A general reader resolves extension headers by itself, leniently, and shows the
//! result; here every disagreement that is possible on the wire (a size given twice, an extension
//! header doubled or mixed with another kind, a number in an unusual form, bytes after the end) has
//! to be seen in order to be refused. So nothing is resolved that is not also checked, and there
//! are no fallbacks.

use std::io::Read;

use super::error::refuse;
use super::gzip::Gunzip;
use super::{Error, Limits, Rule};

const BLOCK: usize = 512;
/// The longest PAX header that is looked at; real ones have a few hundred bytes.
const PAX_BYTES: u64 = 64 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
}

/// One entry, its extension headers applied; its bytes follow in the stream when it is a file.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) executable: bool,
    pub(super) size: u64,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extensions {
    fn any(&self) -> bool {
        self.pax || self.path.is_some() || self.link.is_some()
    }
}

/// Reads the headers of an archive, one after the other.
pub(super) struct Headers {
    limits: Limits,
    count: u64,
}

impl Headers {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            count: 0,
        }
    }

    /// The next entry, or `None` after the archive's proper end, up to which everything is checked.
    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Gunzip<'_, R>,
    ) -> Result<Option<Header>, Error> {
        let mut extensions = Extensions::default();
        loop {
            let offset = input.expanded();
            let block = read_block(input)?;
            if block == [0; BLOCK] {
                if extensions.any() {
                    return Err(orphan(&raw_name(&block)));
                }
                expect_end(input)?;
                return Ok(None);
            }
            // Extension headers count as well: they cost as much time as entries.
            self.count += 1;
            if self.count > self.limits.entries.saturating_mul(4) {
                return Err(refuse(
                    b"",
                    Rule::TooManyEntries,
                    "too many extension headers",
                ));
            }
            let name = raw_name(&block);
            check_header(&block, &name, offset)?;
            let size = octal(&block[124..136], &name, "size")?;
            match block[156] {
                b'x' => self.pax(input, &name, size, &mut extensions)?,
                b'g' if extensions.any() => return Err(orphan(&name)),
                b'g' => {
                    // Global headers outlive the entry they precede; only remarks are harmless.
                    let mut global = Extensions::default();
                    self.pax(input, &name, size, &mut global)?;
                    if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                        let detail = "a global header sets a path or a size";
                        return Err(refuse(&name, Rule::BadExtension, detail));
                    }
                }
                kind @ (b'L' | b'K') => {
                    let value = self.long_name(input, &name, size, extensions.pax)?;
                    let slot = match kind {
                        b'L' => &mut extensions.path,
                        _ => &mut extensions.link,
                    };
                    if slot.replace(value).is_some() {
                        let detail = "two long names for one entry";
                        return Err(refuse(&name, Rule::BadExtension, detail));
                    }
                }
                _ => return entry(&block, name, size, extensions).map(Some),
            }
        }
    }

    fn pax<R: Read>(
        &self,
        input: &mut Gunzip<'_, R>,
        name: &[u8],
        size: u64,
        extensions: &mut Extensions,
    ) -> Result<(), Error> {
        if extensions.any() {
            // Readers differ on what then applies to the entry (GHSA-3cv2-h65g-fgmm).
            let detail = "several extension headers for one entry";
            return Err(refuse(name, Rule::BadExtension, detail));
        }
        if size > PAX_BYTES {
            let detail = format!("a PAX header of {size} bytes");
            return Err(refuse(name, Rule::BadExtension, detail));
        }
        let body = read_body(input, size)?;
        extensions.pax = true;
        pax_records(&body, name, extensions)
    }

    fn long_name<R: Read>(
        &self,
        input: &mut Gunzip<'_, R>,
        name: &[u8],
        size: u64,
        after_pax: bool,
    ) -> Result<Vec<u8>, Error> {
        if after_pax {
            let detail = "a PAX header and a GNU long name for one entry";
            return Err(refuse(name, Rule::BadExtension, detail));
        }
        // The terminating NUL comes on top.
        if size > self.limits.path_bytes as u64 + 1 {
            let detail = format!("a name of {size} bytes");
            return Err(refuse(name, Rule::PathTooLong, detail));
        }
        let mut value = read_body(input, size)?;
        if value.last() == Some(&0) {
            value.pop();
        }
        Ok(value)
    }
}

fn orphan(name: &[u8]) -> Error {
    refuse(
        name,
        Rule::BadExtension,
        "an extension header that no entry follows",
    )
}

/// Reads exactly `block.len()` bytes.
fn read_exact<R: Read>(input: &mut Gunzip<'_, R>, mut block: &mut [u8]) -> Result<(), Error> {
    while !block.is_empty() {
        let chunk = input.fill()?;
        if chunk.is_empty() {
            return Err(refuse(
                b"",
                Rule::Truncated,
                "the archive ends in the middle",
            ));
        }
        let n = chunk.len().min(block.len());
        block[..n].copy_from_slice(&chunk[..n]);
        block = &mut block[n..];
        input.consume(n);
    }
    Ok(())
}

fn read_block<R: Read>(input: &mut Gunzip<'_, R>) -> Result<[u8; BLOCK], Error> {
    let mut block = [0; BLOCK];
    read_exact(input, &mut block)?;
    Ok(block)
}

/// The body of an extension header. The caller has checked that `size` is small.
fn read_body<R: Read>(input: &mut Gunzip<'_, R>, size: u64) -> Result<Vec<u8>, Error> {
    let mut body = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    read_exact(input, &mut body)?;
    skip_padding(input, size)?;
    Ok(body)
}

/// Skips from the end of `size` bytes to the next block; the padding has to be zeros.
pub(super) fn skip_padding<R: Read>(input: &mut Gunzip<'_, R>, size: u64) -> Result<(), Error> {
    let mut padding = [0; BLOCK];
    let length = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    let padding = &mut padding[..usize::try_from(length).unwrap_or(0)];
    read_exact(input, padding)?;
    if padding.iter().any(|&byte| byte != 0) {
        return Err(refuse(
            b"",
            Rule::TrailingData,
            "there are bytes in the padding after a file",
        ));
    }
    Ok(())
}

/// After the first zero block: a second one, then nothing but zeros, in whole blocks.
fn expect_end<R: Read>(input: &mut Gunzip<'_, R>) -> Result<(), Error> {
    if read_block(input)? != [0; BLOCK] {
        return Err(refuse(
            b"",
            Rule::BadHeader,
            "a single zero block in the middle",
        ));
    }
    let mut rest = 0;
    loop {
        let chunk = input.fill()?;
        if chunk.is_empty() {
            break;
        }
        if chunk.iter().any(|&byte| byte != 0) {
            return Err(refuse(
                b"",
                Rule::TrailingData,
                "there are bytes after the archive's end",
            ));
        }
        let n = chunk.len();
        rest += n;
        input.consume(n);
    }
    if rest % BLOCK != 0 {
        return Err(refuse(
            b"",
            Rule::Truncated,
            "the archive does not end with a whole block",
        ));
    }
    input.expect_end_of_input()
}

/// A fixed-size text field, up to its first NUL.
fn field(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The name as the block has it, for messages.
fn raw_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let (name, prefix) = (field(&block[..100]), field(&block[345..500]));
    if is_posix(block) && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

fn is_posix(block: &[u8; BLOCK]) -> bool {
    &block[257..265] == b"ustar\x0000"
}

fn check_header(block: &[u8; BLOCK], name: &[u8], offset: u64) -> Result<(), Error> {
    // `offset` counts whole chunks, so it only says roughly where.
    let known = is_posix(block) || &block[257..265] == b"ustar  \0" || block[257..265] == [0; 8];
    if !known {
        let detail = format!("not a tar header, within the archive's first {offset} bytes");
        return Err(refuse(name, Rule::BadHeader, detail));
    }
    let recorded = octal(&block[148..156], name, "checksum")?;
    // The checksum is taken with its own field as blanks. Some old writers summed signed bytes.
    let blank = 8 * u64::from(b' ');
    let others = || block[..148].iter().chain(&block[156..]);
    let unsigned: u64 = others().map(|&byte| u64::from(byte)).sum::<u64>() + blank;
    let signed: i64 = others()
        .map(|&byte| i64::from(byte.cast_signed()))
        .sum::<i64>()
        + 8 * 32;
    if recorded != unsigned && i64::try_from(recorded) != Ok(signed) {
        return Err(refuse(
            name,
            Rule::BadHeader,
            "the header's checksum is wrong",
        ));
    }
    Ok(())
}

/// An octal number: blanks, digits, then only NULs and blanks.
fn octal(bytes: &[u8], name: &[u8], what: &str) -> Result<u64, Error> {
    let bad = || {
        let text = super::escape(bytes);
        refuse(
            name,
            Rule::BadNumber,
            format!("its {what} `{text}` is not a plain octal number"),
        )
    };
    let text = bytes.trim_ascii_start();
    let digits = text
        .iter()
        .take_while(|byte| matches!(byte, b'0'..=b'7'))
        .count();
    let (digits, rest) = text.split_at(digits);
    if digits.is_empty() || rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err(bad());
    }
    // At most twelve digits fit the field, which is 36 bits.
    Ok(digits
        .iter()
        .fold(0, |number, digit| number << 3 | u64::from(digit - b'0')))
}

fn entry(
    block: &[u8; BLOCK],
    name: Vec<u8>,
    mut size: u64,
    extensions: Extensions,
) -> Result<Header, Error> {
    let path = extensions.path.unwrap_or(name);
    let kind = match block[156] {
        b'0' | 0 => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'5' => Kind::Directory,
        b'S' => return Err(refuse(&path, Rule::Sparse, "it is a sparse file")),
        other => {
            let what = match other {
                b'3' => "a character device".to_owned(),
                b'4' => "a block device".to_owned(),
                b'6' => "a named pipe".to_owned(),
                other => format!("of type `{}`", super::escape(&[other])),
            };
            let detail = format!("it is {what}; only files, directories and links are accepted");
            return Err(refuse(&path, Rule::EntryType, detail));
        }
    };
    if let Some(pax) = extensions.size {
        if size != 0 && size != pax {
            let detail = format!("its size is given as {size} and as {pax}");
            return Err(refuse(&path, Rule::SizeConflict, detail));
        }
        size = pax;
    }
    if kind != Kind::File && size != 0 {
        return Err(refuse(
            &path,
            Rule::SizeConflict,
            "it is no file and has a size",
        ));
    }
    let links = matches!(kind, Kind::Symlink | Kind::HardLink);
    let link = match extensions.link {
        Some(_) if !links => {
            return Err(refuse(
                &path,
                Rule::BadExtension,
                "it is no link and has a link target",
            ));
        }
        Some(link) => link,
        None if links => field(&block[157..257]).to_vec(),
        None => Vec::new(),
    };
    let mode = octal(&block[100..108], &path, "mode")?;
    Ok(Header {
        path,
        link,
        kind,
        executable: mode & 0o111 != 0,
        size,
    })
}

/// Parses `<length> <key>=<value>\n` records.
fn pax_records(mut body: &[u8], name: &[u8], extensions: &mut Extensions) -> Result<(), Error> {
    let bad = |detail: &str| refuse(name, Rule::BadExtension, format!("its PAX header {detail}"));
    let mut keys = Vec::new();
    while !body.is_empty() {
        let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 6 || body[0] == b'0' || body.get(digits) != Some(&b' ') {
            return Err(bad("has a malformed length"));
        }
        let length = body[..digits]
            .iter()
            .fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
        if length <= digits + 1 || length > body.len() {
            return Err(bad("has a record of the wrong length"));
        }
        let (record, rest) = body.split_at(length);
        body = rest;
        let Some((b'\n', record)) = record[digits + 1..].split_last() else {
            return Err(bad("has a record without an end of line"));
        };
        let Some(equals) = record.iter().position(|&byte| byte == b'=') else {
            return Err(bad("has a record without `=`"));
        };
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let Ok(key) = std::str::from_utf8(key) else {
            return Err(bad("has a key that is not UTF-8"));
        };
        if key.is_empty() || keys.contains(&key) {
            return Err(bad(&format!(
                "has the key `{}` empty or twice",
                super::escape(key.as_bytes())
            )));
        }
        keys.push(key);
        pax_record(key, value, name, extensions)?;
    }
    Ok(())
}

fn pax_record(
    key: &str,
    value: &[u8],
    name: &[u8],
    extensions: &mut Extensions,
) -> Result<(), Error> {
    let bad = |detail: String| Err(refuse(name, Rule::BadExtension, detail));
    match key {
        // An empty value would mean: as if the record were not there. Nobody writes that for these.
        "path" | "linkpath" | "size" if value.is_empty() => {
            bad(format!("its PAX header has an empty {key}"))
        }
        "path" => {
            extensions.path = Some(value.to_vec());
            Ok(())
        }
        "linkpath" => {
            extensions.link = Some(value.to_vec());
            Ok(())
        }
        "size" => {
            let digits = value.iter().all(u8::is_ascii_digit) && value.len() <= 12;
            match std::str::from_utf8(value).map(str::parse) {
                Ok(Ok(size)) if digits => {
                    extensions.size = Some(size);
                    Ok(())
                }
                _ => {
                    let text = super::escape(value);
                    Err(refuse(
                        name,
                        Rule::BadNumber,
                        format!("its PAX size is `{text}`"),
                    ))
                }
            }
        }
        // Times and owners are read by nobody: an installed tree has neither from the archive.
        "atime" | "mtime" | "ctime" | "uid" | "gid" | "uname" | "gname" | "comment" | "charset"
        | "hdrcharset" => Ok(()),
        _ if key.starts_with("GNU.sparse.") || key == "SCHILY.realsize" => {
            Err(refuse(name, Rule::Sparse, "it is a sparse file"))
        }
        _ if key.contains(".xattr.")
            || key.starts_with("SCHILY.acl.")
            || key.starts_with("RHT.security.")
            || key.starts_with("security.") =>
        {
            let key = super::escape(key.as_bytes());
            let detail = format!("it carries the extended attribute `{key}`; pack without them");
            Err(refuse(name, Rule::ExtendedAttributes, detail))
        }
        // What vendors add under their own name (VENDOR.keyword) describes, and changes nothing.
        _ if key.starts_with(|c: char| c.is_ascii_uppercase()) && key.contains('.') => Ok(()),
        _ => bad(format!(
            "its PAX header has the unknown key `{}`",
            super::escape(key.as_bytes())
        )),
    }
}
