//! Where in a log a run begins and ends, and when lines were written.
//!
//! A log is one stream over all runs, and byte for byte what the launchable wrote. What is known
//! of it beside that is in a file for each file of the log, in the shim's directory, named by the
//! log file's inode: `marks.<inode>`. It keeps its name when the log file gets another.
//!
//! The first line says which file is meant: `platctrl-marks 1 <device> <inode> <born>`, with the
//! nanosecond in which the file was made, or 0; so another file that was given the same number
//! later is not taken for it. Every further line is a mark, in the order of the offsets:
//!
//! - `begin <offset> <ms> <run>`: from here on, that run wrote.
//! - `end <offset> <ms> <run>`: nothing of that run comes behind this, as nothing of it lives.
//! - `at <offset> <ms> <span>`: from here to the next `at`, everything was written at that time or
//!   at most so many milliseconds later.
//!
//! Offsets are in bytes, times in milliseconds since 1970 by the wall clock. Runs have the numbers
//! of their [exit records](crate::ExitRecord). Marks are not waited for: those of the last moment
//! before the machine went down may be missing, and a reader skips lines that it does not
//! understand. Beside a log of an older shim there are none.

use std::fs::{File, Metadata};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// No more of a file is read: many times what a shim writes.
const MAX_BYTES: u64 = 16 << 20;
/// A mark is shorter.
const MAX_LINE: u64 = 128;

/// Something known of a place in a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mark {
    /// Bytes from the beginning of the file.
    pub offset: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What is known.
    pub kind: MarkKind,
}

/// What a [`Mark`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MarkKind {
    /// A run begins.
    Begin {
        /// Its number, which its exit record will have.
        run: u64,
    },
    /// All of a run has ended.
    End {
        /// Its number.
        run: u64,
    },
    /// What follows was written from that time on.
    At {
        /// In at most so many milliseconds.
        span_ms: u64,
    },
}

impl Mark {
    /// A mark.
    #[must_use]
    pub fn new(offset: u64, unix_ms: u64, kind: MarkKind) -> Self {
        Self {
            offset,
            unix_ms,
            kind,
        }
    }

    pub(crate) fn encode(self) -> String {
        let (word, number) = match self.kind {
            MarkKind::Begin { run } => ("begin", run),
            MarkKind::End { run } => ("end", run),
            MarkKind::At { span_ms } => ("at", span_ms),
        };
        format!("{word} {} {} {number}\n", self.offset, self.unix_ms)
    }

    fn decode(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let word = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (offset, unix_ms, number) = (number()?, number()?, number()?);
        let kind = match word {
            "begin" => MarkKind::Begin { run: number },
            "end" => MarkKind::End { run: number },
            "at" => MarkKind::At { span_ms: number },
            _ => return None,
        };
        Some(Self {
            offset,
            unix_ms,
            kind,
        })
    }
}

/// The name of the file with the marks of the log file with this inode.
pub(crate) fn file_name(inode: u64) -> String {
    format!("marks.{inode}")
}

/// The first line of it.
pub(crate) fn head(log: &Metadata) -> String {
    let born = log.created().ok();
    let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or(0, |born| born.as_nanos());
    format!("platctrl-marks 1 {} {} {born}\n", log.dev(), log.ino())
}

/// What the shim of the directory `dir` knows of a log file, of which `log` is told by the open
/// file itself. None when it knows nothing: an older shim wrote it.
///
/// # Errors
/// When there are marks and they cannot be read.
pub fn read_marks(dir: &Path, log: &Metadata) -> io::Result<Option<Vec<Mark>>> {
    let mut options = File::options();
    options.read(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(dir.join(file_name(log.ino()))) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut file = BufReader::new(file.take(MAX_BYTES));
    let mut marks: Vec<Mark> = Vec::new();
    let mut line = String::new();
    if !next_line(&mut file, &mut line)? || line != head(log).trim_end() {
        return Ok(None);
    }
    while next_line(&mut file, &mut line)? {
        let mark = Mark::decode(&line);
        let last = marks.last().map_or(0, |last| last.offset);
        marks.extend(mark.filter(|mark| mark.offset >= last && mark.offset <= log.len()));
    }
    Ok(Some(marks))
}

/// Reads a line without its end; one that is too long, or no text, is empty. False at the end.
fn next_line(file: &mut impl io::BufRead, line: &mut String) -> io::Result<bool> {
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    line.clear();
    // Only a whole line counts: the last may be torn.
    if let Some(whole) = bytes.strip_suffix(b"\n") {
        line.push_str(std::str::from_utf8(whole).unwrap_or_default());
    }
    Ok(!bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn marks_are_read_back_and_nonsense_among_them_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, [b'x'; 50]).unwrap();
        let log = fs::metadata(&log).unwrap();
        let path = dir.path().join(file_name(log.ino()));
        assert_eq!(read_marks(dir.path(), &log).unwrap(), None);
        let marks = [
            (0, MarkKind::Begin { run: 7 }),
            (0, MarkKind::At { span_ms: 1000 }),
            (50, MarkKind::End { run: 7 }),
        ];
        let marks = marks.map(|(offset, kind)| Mark {
            offset,
            unix_ms: 5,
            kind,
        });
        let [one, two, three] = marks.map(Mark::encode);
        // From the future, before the one before it, behind the end, too long, torn.
        let long = "9".repeat(300);
        let text = format!(
            "{}{one}{two}\nwonder 1 2 3\nat x y\n{three}at 20 5 1000\nat 51 5 1000\nat {long}\nbegin 50 5 8",
            head(&log)
        );
        fs::write(&path, &text).unwrap();
        assert_eq!(read_marks(dir.path(), &log).unwrap().unwrap(), marks);
        // Those of a file that had the number before.
        fs::write(&path, text.replace(&head(&log), "platctrl-marks 1 0 0 0\n")).unwrap();
        assert_eq!(read_marks(dir.path(), &log).unwrap(), None);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read_marks(dir.path(), &log).is_err());
    }
}
