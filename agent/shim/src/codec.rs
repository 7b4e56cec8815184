//! The text form of everything the shim writes: lines of `key=value` words.
//!
//! Values are bytes. Whatever is not a plain printable character is written `\xHH`, so an
//! environment value with a newline, a NUL or half a UTF-8 sequence is one harmless word. A record
//! starts with its tag and major version and ends with a checksum, so a torn or damaged line is
//! recognised and skipped. Readers ignore keys they do not know.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead as _, Read as _};
use std::path::Path;

use crate::process::ProcessId;

/// The major version of every record; a reader refuses other majors and ignores unknown keys.
const MAJOR: u32 = 1;

/// More than any file of records ever holds.
const MAX_BYTES: u64 = 1 << 20;
/// More than any record.
const MAX_LINE: u64 = 4096;
/// A message in a record is cut to this, escaped.
const MAX_MESSAGE: usize = 600;

/// FNV-1a. It finds torn writes and flipped bits; it is no defence against forgery, which the
/// directory's permissions are.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Appends `value` to `out`, escaped.
pub(crate) fn escape(out: &mut String, value: &[u8]) {
    for &byte in value {
        if byte.is_ascii_graphic() && byte != b'\\' {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

/// The bytes that [`escape`] was given; `None` when `text` is not something it writes.
pub(crate) fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            if !byte.is_ascii_graphic() {
                return None;
            }
            out.push(byte);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.strip_prefix(b"x")?.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        out.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail;
    }
    Some(out)
}

/// Builds one record line.
#[derive(Debug)]
pub(crate) struct Record(String);

impl Record {
    pub(crate) fn new(tag: &str) -> Self {
        Self(format!("{tag} {MAJOR}"))
    }

    pub(crate) fn number(mut self, key: &str, value: impl Into<i128>) -> Self {
        let _ = write!(self.0, " {key}={}", value.into());
        self
    }

    pub(crate) fn text(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        let _ = write!(self.0, " {key}=");
        escape(&mut self.0, value.as_ref());
        self
    }

    /// Writes the key only when there is a value.
    pub(crate) fn maybe_number(self, key: &str, value: Option<impl Into<i128>>) -> Self {
        match value {
            Some(value) => self.number(key, value),
            None => self,
        }
    }

    /// A process under these two keys; neither when there is none.
    pub(crate) fn process(self, pid: &str, ticks: &str, process: Option<ProcessId>) -> Self {
        match process {
            Some(process) => self
                .number(pid, process.pid)
                .number(ticks, process.start_ticks),
            None => self,
        }
    }

    /// A message, cut so that the record fits a slot.
    pub(crate) fn message(self, message: &str) -> Self {
        self.text("message", shortened(message))
    }

    /// The finished line, with its checksum and newline.
    pub(crate) fn seal(mut self) -> String {
        let sum = checksum(self.0.as_bytes());
        let _ = writeln!(self.0, " sum={sum:016x}");
        self.0
    }
}

/// A record line that was found whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Checks the tag, the version and the checksum; `line` may end with a newline.
    pub(crate) fn open(tag: &str, line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let at = line.len().checked_sub(" sum=0123456789abcdef".len())?;
        let (body, tail) = line.split_at(at);
        let sum = std::str::from_utf8(tail.strip_prefix(b" sum=")?).ok()?;
        if u64::from_str_radix(sum, 16).ok()? != checksum(body) {
            return None;
        }
        let rest = body.strip_prefix(tag.as_bytes())?;
        let rest = rest.strip_prefix(b" 1")?;
        match rest.first() {
            None => Some(Self(rest)),
            Some(b' ') => Some(Self(&rest[1..])),
            Some(_) => None,
        }
    }

    /// The value of `key`, unescaped.
    pub(crate) fn text(self, key: &str) -> Option<Vec<u8>> {
        self.0.split(|byte| *byte == b' ').find_map(|word| {
            let value = word.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
            unescape(value)
        })
    }

    /// The value of `key` as a number that fits `T`.
    pub(crate) fn number<T: std::str::FromStr>(self, key: &str) -> Option<T> {
        std::str::from_utf8(&self.text(key)?).ok()?.parse().ok()
    }

    /// The value of `key` as text; bytes that are no UTF-8 are replaced.
    pub(crate) fn string(self, key: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.text(key)?).into_owned())
    }

    /// The process under these two keys.
    pub(crate) fn process(self, pid: &str, ticks: &str) -> Option<ProcessId> {
        // Numbers that no process has must never reach a call that sends signals.
        let pid = self
            .number::<u32>(pid)
            .filter(|pid| (1..=i32::MAX as u32).contains(pid))?;
        Some(ProcessId {
            pid,
            start_ticks: self.number(ticks)?,
        })
    }
}

/// A message short enough that its record fits a slot, however much of it is escaped.
fn shortened(message: &str) -> &[u8] {
    let mut room = MAX_MESSAGE;
    let fits = message.bytes().take_while(|byte| {
        let cost = if byte.is_ascii_graphic() && *byte != b'\\' {
            1
        } else {
            4
        };
        let left = room.checked_sub(cost);
        room = left.unwrap_or(0);
        left.is_some()
    });
    let mut end = fits.count();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message.as_bytes()[..end]
}

/// Hands out the lines of a file one by one: most of it is empty space, and a shim that read it
/// whole would stay that large.
pub(crate) fn each_line(path: &Path, mut line_is: impl FnMut(&[u8])) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file.take(MAX_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut file = io::BufReader::with_capacity(1024, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line longer than any record is read in pieces, of which none is whole.
        if file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What a power cut took of a file is zeros, and the next line may begin behind them.
        let zeros = line.iter().take_while(|byte| **byte == 0).count();
        let line = &line[zeros..];
        if !matches!(line, b"" | b"\n") {
            line_is(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_escaping() {
        let all: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        escape(&mut text, &all);
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(unescape(text.as_bytes()).as_deref(), Some(&all[..]));
    }

    #[test]
    fn what_escape_never_writes_is_refused() {
        for bad in ["\\", "\\x", "\\x1", "\\xzz", "\\n", "a b", "\\x+1", "\n"] {
            assert_eq!(unescape(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_record_is_read_back_and_unknown_keys_are_ignored() {
        let line = Record::new("t")
            .number("n", -3)
            .text("s", "a b\n")
            .text("new", "x")
            .seal();
        let fields = Fields::open("t", line.as_bytes()).unwrap();
        assert_eq!(fields.number::<i32>("n"), Some(-3));
        assert_eq!(fields.text("s").as_deref(), Some(&b"a b\n"[..]));
        assert_eq!(fields.number::<u8>("s"), None);
        assert_eq!(fields.text("absent"), None);
    }

    #[test]
    fn a_damaged_record_another_tag_or_another_major_is_refused() {
        let line = Record::new("t").number("n", 1).seal();
        assert!(Fields::open("t", line.as_bytes()).is_some());
        for at in 0..line.len() - 1 {
            let mut torn = line.clone().into_bytes();
            torn[at] ^= 1;
            assert!(Fields::open("t", &torn).is_none(), "byte {at}");
            assert!(
                Fields::open("t", &line.as_bytes()[..at]).is_none(),
                "cut {at}"
            );
        }
        assert!(Fields::open("u", line.as_bytes()).is_none());
        let newer = "t 2 n=1";
        let newer = format!("{newer} sum={:016x}\n", checksum(newer.as_bytes()));
        assert!(Fields::open("t", newer.as_bytes()).is_none());
    }
}
