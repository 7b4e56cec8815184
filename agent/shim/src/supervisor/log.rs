//! A log: a file that is replaced before it grows too large or too old.
//!
//! Output that cannot be written (a full disk) is dropped and counted, never waited for; a line in
//! the log tells how much is missing once there is room again. Where runs begin and end is written
//! down beside it, in [`marks`](super::marks).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use super::marks::Marks;
use crate::marks::MarkKind;
use crate::process::boot_clock_ms;
use crate::spec::LogSpec;

/// How often the line about dropped output is tried when nothing else is written.
const RETRY_MS: u64 = 1000;

/// Output that was lost and of which the log does not tell yet.
#[derive(Debug)]
struct Missing {
    bytes: u64,
    why: String,
    retry_at: u64,
}

/// A log, as whoever writes it knows it.
#[derive(Debug)]
pub(super) struct Sink {
    log: LogSpec,
    open: Option<Open>,
    missing: Option<Missing>,
    dropped_ever: u64,
    marks: Marks,
}

#[derive(Debug)]
struct Open {
    dir: OwnedFd,
    file: File,
    size: u64,
    at_line_start: bool,
    /// When the file was made, as far as the file system says.
    begun: SystemTime,
}

impl Sink {
    /// A log, with its marks in files of that directory.
    pub(super) fn new(log: LogSpec, marks: impl Into<PathBuf>) -> Self {
        Self {
            log,
            open: None,
            missing: None,
            dropped_ever: 0,
            marks: Marks::new(marks),
        }
    }

    /// Whether it is this log.
    pub(super) fn goes_to(&self, log: &LogSpec) -> bool {
        self.log == *log
    }

    /// Goes on in another log, with its marks in the current directory.
    pub(super) fn redirect(&mut self, log: LogSpec) {
        *self = Self {
            dropped_ever: self.dropped_ever,
            ..Self::new(log, ".")
        };
    }

    /// Bytes dropped since the shim started, and why, while dropping goes on.
    pub(super) fn dropped(&self) -> (u64, Option<&str>) {
        let missing = self.missing.as_ref();
        (self.dropped_ever, missing.map(|it| it.why.as_str()))
    }

    /// When [`Sink::retry`] is due, in milliseconds on the boot clock.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.missing.as_ref().map(|missing| missing.retry_at)
    }

    /// Tries to write the line about dropped output, when that is due.
    pub(super) fn retry(&mut self) {
        if self.deadline().is_some_and(|at| at <= boot_clock_ms()) {
            self.admit();
        }
    }

    /// Marks the place that has been reached.
    pub(super) fn mark(&mut self, kind: MarkKind) {
        let reached = self.opened().ok().map(|open| open.size);
        self.marks.mark(kind, reached);
    }

    /// Writes all of it, or counts what cannot be written.
    pub(super) fn write(&mut self, mut data: &[u8]) {
        // Somebody who removes a full log, or empties it, expects the space back.
        if self.open.as_ref().is_some_and(|open| {
            let is = open.file.metadata();
            is.is_ok_and(|is| is.nlink() == 0 || is.len() < open.size)
        }) {
            self.open = None;
        }
        if self.is_old() {
            // Should it fail, the next write finds the same; nothing is lost by a file that is old.
            let _ = self.rotate();
        }
        while !data.is_empty() {
            let written = if self.missing.is_some() && !self.admit() {
                Err((0, io::ErrorKind::StorageFull.into()))
            } else {
                self.write_some(data)
            };
            match written {
                Ok(n) => data = &data[n..],
                Err((n, error)) => {
                    self.lose(data.len() - n, &error);
                    return;
                }
            }
        }
    }

    /// Whether the file is to be closed for its age: at a line's end, and not while it is empty.
    fn is_old(&mut self) -> bool {
        let Some(most) = self.log.max_age else {
            return false;
        };
        let Ok(open) = self.opened() else {
            return false;
        };
        let age = SystemTime::now().duration_since(open.begun);
        open.at_line_start && open.size > 0 && age.is_ok_and(|age| age >= most)
    }

    /// Writes what goes into one file, at least one byte; closes a file that is full. An error
    /// comes with what was written before it.
    fn write_some(&mut self, data: &[u8]) -> Result<usize, (usize, io::Error)> {
        let none = |error| (0, error);
        let max = self.log.max_bytes;
        let reached = self.opened().map_err(none)?.size;
        self.marks.output(reached);
        let open = self.opened().map_err(none)?;
        let room = usize::try_from(max.saturating_sub(open.size)).unwrap_or(usize::MAX);
        if data.len() <= room {
            return open.append(data).map(|()| data.len());
        }
        // Lines stay whole as long as a line fits a file.
        let lines = data[..room]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map(|at| at + 1);
        let cut = match lines {
            Some(end) => end,
            None if open.at_line_start && open.size > 0 => 0,
            None => room,
        };
        open.append(&data[..cut])?;
        self.rotate().map_err(|error| (cut, error))?;
        if cut == 0 {
            self.write_some(data)
        } else {
            Ok(cut)
        }
    }

    fn opened(&mut self) -> io::Result<&mut Open> {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin_file()?,
        };
        Ok(self.open.insert(open))
    }

    fn begin_file(&mut self) -> io::Result<Open> {
        let open = Open::new(&self.log)?;
        self.marks
            .follow(&open.file.metadata()?, &self.log, &open.dir);
        Ok(open)
    }

    /// Makes room for a new file: `.log` becomes `.log.1`, and so on; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let name = |number: u32| match number {
            0 => format!("{}.log", self.log.name),
            n => format!("{}.log.{n}", self.log.name),
        };
        // Files of a time when more were kept.
        for number in self.log.max_files.. {
            if unlinkat(&open.dir, name(number), AtFlags::empty()).is_err() {
                break;
            }
        }
        for number in (1..self.log.max_files).rev() {
            match renameat(&open.dir, name(number - 1), &open.dir, name(number)) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                // Then nothing can be kept; the file must not grow without bound all the same.
                Err(_) => break,
            }
        }
        // Either it has another name now, or it is the one that cannot be kept.
        let mut fresh = Open::new(&self.log)?;
        if fresh.size > 0 {
            fresh.file.set_len(0)?;
            fresh.size = 0;
            fresh.at_line_start = true;
            // It is the same file, begun anew.
            fresh.begun = SystemTime::now();
        }
        self.marks
            .follow(&fresh.file.metadata()?, &self.log, &fresh.dir);
        self.open = Some(fresh);
        Ok(())
    }

    fn lose(&mut self, bytes: usize, error: &io::Error) {
        let bytes = bytes as u64;
        self.dropped_ever = self.dropped_ever.saturating_add(bytes);
        let retry_at = boot_clock_ms().saturating_add(RETRY_MS);
        match &mut self.missing {
            Some(missing) => {
                missing.bytes = missing.bytes.saturating_add(bytes);
                missing.retry_at = retry_at;
            }
            None => {
                self.missing = Some(Missing {
                    bytes,
                    why: error.to_string(),
                    retry_at,
                });
            }
        }
    }

    /// Tells in the log what is missing from it; whether that succeeded.
    fn admit(&mut self) -> bool {
        let Some(missing) = self.missing.take() else {
            return true;
        };
        let told = self.opened().and_then(|open| {
            let break_line = if open.at_line_start { "" } else { "\n" };
            let Missing { bytes, why, .. } = &missing;
            let line =
                format!("{break_line}[platctrl-shim: {bytes} bytes of output lost: {why}]\n");
            open.append_whole(line.as_bytes())
        });
        if told.is_err() {
            let retry_at = boot_clock_ms().saturating_add(RETRY_MS);
            self.missing = Some(Missing {
                retry_at,
                ..missing
            });
        }
        told.is_ok()
    }
}

impl Open {
    fn new(log: &LogSpec) -> io::Result<Self> {
        let dir = rustix::fs::open(
            &log.dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let flags = OFlags::RDWR
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        let file = File::from(openat(&dir, format!("{}.log", log.name), flags, mode)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::other(format!(
                "{}/{}.log is not a regular file with one name",
                log.dir.display(),
                log.name
            )));
        }
        let size = metadata.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        Ok(Self {
            dir,
            file,
            size,
            at_line_start: last == *b"\n",
            begun: metadata
                .created()
                .or_else(|_| metadata.modified())
                .unwrap_or_else(|_| SystemTime::now()),
        })
    }

    fn append(&mut self, mut data: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while !data.is_empty() {
            match self.file.write(data) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.at_line_start = data[n - 1] == b'\n';
                    self.size = self.size.saturating_add(n as u64);
                    written += n;
                    data = &data[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    /// Appends all of it or nothing.
    fn append_whole(&mut self, data: &[u8]) -> io::Result<()> {
        let (size, at_line_start) = (self.size, self.at_line_start);
        self.append(data).map_err(|(written, error)| {
            if written > 0 && self.file.set_len(size).is_ok() {
                self.size = size;
                self.at_line_start = at_line_start;
            }
            error
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn sink(dir: &Path, max_bytes: u64, max_files: u32) -> Sink {
        let mut log = LogSpec::new(dir, "web");
        (log.max_bytes, log.max_files) = (max_bytes, max_files);
        // No marks can be written there, and no log depends on them.
        Sink::new(log, dir.join("nowhere"))
    }

    fn text(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap_or_default()
    }

    #[test]
    fn files_are_replaced_at_line_ends_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(dir.path(), 10, 3);
        for line in ["aaa\n", "bbb\nccc\n", "ddd\neee\nfff\n", "ggg"] {
            sink.write(line.as_bytes());
        }
        assert_eq!(text(dir.path(), "web.log.2"), "ccc\nddd\n");
        assert_eq!(text(dir.path(), "web.log.1"), "eee\nfff\n");
        assert_eq!(text(dir.path(), "web.log"), "ggg");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(sink.dropped_ever, 0);
    }

    #[test]
    fn a_line_longer_than_a_file_is_cut_and_nothing_of_it_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(dir.path(), 10, 9);
        sink.write(b"ab\n");
        sink.write(&[b'x'; 25]);
        sink.write(b"\nyz\n");
        let all: String = (1..9)
            .rev()
            .map(|number| text(dir.path(), &format!("web.log.{number}")))
            .chain([text(dir.path(), "web.log")])
            .collect();
        assert_eq!(all, format!("ab\n{}\nyz\n", "x".repeat(25)));
        for entry in fs::read_dir(dir.path()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= 10);
        }
    }

    #[test]
    fn a_file_that_is_old_is_closed_at_the_end_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(dir.path(), 1000, 3);
        sink.log.max_age = Some(std::time::Duration::from_secs(3600));
        sink.write(b"a\n");
        sink.write(b"b");
        let age = |sink: &mut Sink| {
            let open = sink.open.as_mut().unwrap();
            open.begun = SystemTime::now() - std::time::Duration::from_secs(3601);
        };
        age(&mut sink);
        sink.write(b"c\n");
        assert_eq!(text(dir.path(), "web.log"), "a\nbc\n", "a line stays whole");
        sink.write(b"d\n");
        assert_eq!(text(dir.path(), "web.log.1"), "a\nbc\n");
        assert_eq!(text(dir.path(), "web.log"), "d\n");
        sink.write(b"e\n");
        assert_eq!(
            text(dir.path(), "web.log"),
            "d\ne\n",
            "the new one is young"
        );
        // A shim that takes over goes on with the file's own age.
        let mut next = self::sink(dir.path(), 1000, 3);
        next.log.max_age = Some(std::time::Duration::from_secs(3600));
        next.write(b"f\n");
        assert_eq!(text(dir.path(), "web.log"), "d\ne\nf\n");
        // Nothing is closed for being old that holds nothing, and nothing when no age is set.
        let mut ageless = self::sink(dir.path(), 1000, 3);
        ageless.write(b"g\n");
        age(&mut ageless);
        ageless.write(b"h\n");
        assert!(text(dir.path(), "web.log").ends_with("g\nh\n"));
    }

    #[test]
    fn a_new_sink_goes_on_in_the_file_and_removes_more_than_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut five = sink(dir.path(), 10, 5);
        five.write(b"111111\n222222\n333333\n444444\n555");
        let mut two = sink(dir.path(), 10, 2);
        two.write(b"55\n666666\n");
        assert_eq!(text(dir.path(), "web.log.1"), "444444\n555");
        assert_eq!(text(dir.path(), "web.log"), "55\n666666\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn links_and_other_things_in_place_of_the_log_are_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        let log = dir.path().join("web.log");
        fs::write(&victim, "precious").unwrap();
        let attack = |place: &dyn Fn()| {
            let _ = fs::remove_file(&log);
            place();
            let mut sink = sink(dir.path(), 100, 2);
            sink.write(b"hostile\n");
            assert_eq!(sink.dropped_ever, 8);
            assert_eq!(text(dir.path(), "victim"), "precious");
        };
        attack(&|| std::os::unix::fs::symlink(&victim, &log).unwrap());
        attack(&|| fs::hard_link(&victim, &log).unwrap());
        attack(&|| rustix::fs::mkfifoat(rustix::fs::CWD, &log, Mode::RUSR).unwrap());
        let _ = fs::remove_file(&log);
        let linked = dir.path().join("linked");
        std::os::unix::fs::symlink(dir.path(), &linked).unwrap();
        let mut sink = sink(&linked, 100, 2);
        sink.write(b"hostile\n");
        assert_eq!(sink.dropped_ever, 8);
        assert!(!log.exists());
    }

    #[test]
    fn what_was_lost_is_told_once_the_log_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let mut sink = sink(&logs, 1000, 2);
        sink.write(b"lost\n");
        sink.write(b"also lost\n");
        assert_eq!(sink.dropped_ever, 15);
        fs::create_dir(&logs).unwrap();
        sink.write(b"here\n");
        let log = text(&logs, "web.log");
        let (first, rest) = log.split_once('\n').unwrap();
        assert!(
            first.starts_with("[platctrl-shim: 15 bytes of output lost: "),
            "{first}"
        );
        assert_eq!(rest, "here\n");
        assert!(sink.missing.is_none());
    }

    #[test]
    fn a_removed_log_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(dir.path(), 1000, 2);
        sink.write(b"one\n");
        fs::remove_file(dir.path().join("web.log")).unwrap();
        sink.write(b"two\n");
        assert_eq!(text(dir.path(), "web.log"), "two\n");
    }
}
