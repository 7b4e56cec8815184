//! Writes down where in the log runs begin and end, and when output came.
//!
//! Nothing depends on it: where a mark cannot be written, the log is written all the same, and the
//! mark is tried again with the next output.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, statat};

use crate::marks::{self, Mark, MarkKind};
use crate::process::unix_ms;
use crate::spec::LogSpec;

/// The time of output is told this exactly...
const SPAN_MS: u64 = 1000;
/// ... and so exactly in a log file that has many marks already.
const COARSE_MS: u64 = 60_000;
const MANY_BYTES: u64 = 256 << 10;
/// Marks that wait because they could not be written.
const WAITING: usize = 16;

/// The marks of the log file that is being written.
#[derive(Debug)]
pub(super) struct Marks {
    dir: PathBuf,
    open: Option<Open>,
    /// What comes with the next output, at its place.
    waiting: Vec<(MarkKind, u64)>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Written with the first mark.
    head: String,
    size: u64,
    inode: u64,
    /// Where the last mark is.
    last: u64,
    /// When the last `at` began, and how long it holds.
    at: Option<(u64, u64)>,
}

impl Marks {
    /// Marks in files of this directory.
    pub(super) fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            open: None,
            waiting: Vec::new(),
        }
    }

    /// From now on it is about this file of the log, which lies in `dir`.
    pub(super) fn follow(&mut self, file: &Metadata, log: &LogSpec, dir: impl AsFd) {
        let before = self.open.take();
        let shorter = |open: &Open| open.inode == file.ino() && file.len() < open.last;
        // An empty one is new, or was emptied.
        let anew = file.len() == 0 || before.as_ref().is_some_and(shorter);
        self.open = Open::new(&self.dir, file, anew).ok();
        if self.open.as_ref().is_some_and(|open| open.size == 0) {
            // Should it fail, there is more than is needed until the next file.
            let _ = self.forget_others(log, dir);
        }
    }

    /// Marks a place.
    pub(super) fn mark(&mut self, kind: MarkKind, offset: Option<u64>) {
        let unix_ms = unix_ms();
        let open = self.open.as_mut().filter(|_| self.waiting.is_empty());
        let mark = offset.map(|offset| Mark {
            offset,
            unix_ms,
            kind,
        });
        if let (Some(open), Some(mark)) = (open, mark)
            && open.write(mark).is_ok()
        {
            // When a run says its first word is told in any case.
            open.at = None;
            return;
        }
        if self.waiting.len() == WAITING {
            self.waiting.remove(0);
        }
        self.waiting.push((kind, unix_ms));
    }

    /// Output comes, at this place.
    pub(super) fn output(&mut self, offset: u64) {
        let Some(open) = &mut self.open else {
            return;
        };
        while let Some(&(kind, unix_ms)) = self.waiting.first() {
            let mark = Mark {
                offset,
                unix_ms,
                kind,
            };
            if open.write(mark).is_err() {
                return;
            }
            self.waiting.remove(0);
        }
        let now = unix_ms();
        // Also when the clock was set back.
        let holds = |(begun, span): (u64, u64)| (begun..begun.saturating_add(span)).contains(&now);
        if open.at.is_some_and(holds) {
            return;
        }
        let span_ms = if open.size < MANY_BYTES {
            SPAN_MS
        } else {
            COARSE_MS
        };
        let mark = Mark {
            offset,
            unix_ms: now,
            kind: MarkKind::At { span_ms },
        };
        if open.write(mark).is_ok() {
            open.at = Some((now, span_ms));
        }
    }

    /// Removes the marks of files that are no longer part of the log.
    fn forget_others(&self, log: &LogSpec, dir: impl AsFd) -> io::Result<()> {
        let mut kept = Vec::new();
        for number in 0..=log.max_files {
            let name = match number {
                0 => format!("{}.log", log.name),
                n => format!("{}.log.{n}", log.name),
            };
            if let Ok(there) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                && FileType::from_raw_mode(there.st_mode) == FileType::RegularFile
            {
                kept.push(there.st_ino);
            }
        }
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let inode = name.to_str().and_then(|name| name.strip_prefix("marks."));
            let Some(inode) = inode.and_then(|inode| inode.parse::<u64>().ok()) else {
                continue;
            };
            if !kept.contains(&inode) {
                std::fs::remove_file(self.dir.join(name))?;
            }
        }
        Ok(())
    }
}

impl Open {
    fn new(dir: &Path, log: &Metadata, anew: bool) -> io::Result<Self> {
        let path = dir.join(marks::file_name(log.ino()));
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let head = marks::head(log);
        let mut found = vec![0; head.len()];
        let mut size = file.metadata()?.len();
        if anew || file.read_exact_at(&mut found, 0).is_err() || found != head.as_bytes() {
            file.set_len(0)?;
            size = 0;
        }
        let mut open = Self {
            file,
            head,
            size,
            inode: log.ino(),
            last: 0,
            at: None,
        };
        let mut end = [b'\n'];
        if size > 0 {
            open.file.read_exact_at(&mut end, size - 1)?;
        }
        if end != *b"\n" {
            // The line is torn. The next one is not to be part of it.
            open.append("\n")?;
        }
        Ok(open)
    }

    fn write(&mut self, mark: Mark) -> io::Result<()> {
        let line = mark.encode();
        match self.size {
            0 => self.append(&format!("{}{line}", self.head))?,
            _ => self.append(&line)?,
        }
        self.last = mark.offset;
        Ok(())
    }

    /// Appends all of it or nothing.
    fn append(&mut self, text: &str) -> io::Result<()> {
        let written = self.file.write_all(text.as_bytes());
        match written {
            Ok(()) => self.size = self.size.saturating_add(text.len() as u64),
            Err(_) => self.file.set_len(self.size)?,
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::read_marks;
    use std::fs;

    /// A directory with a log of this text, and another for its marks.
    fn log(text: &str) -> (tempfile::TempDir, LogSpec, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (logs, shim) = (dir.path().join("log"), dir.path().join("shim"));
        fs::create_dir(&logs).unwrap();
        fs::create_dir(&shim).unwrap();
        fs::write(logs.join("web.log"), text).unwrap();
        let spec = LogSpec::new(&logs, "web");
        (dir, spec, shim)
    }

    fn metadata(log: &LogSpec) -> Metadata {
        fs::metadata(log.dir.join(format!("{}.log", log.name))).unwrap()
    }

    fn follow(marks: &mut Marks, log: &LogSpec) {
        let dir = File::open(&log.dir).unwrap();
        marks.follow(&metadata(log), log, &dir);
    }

    fn kinds(shim: &Path, log: &LogSpec) -> Vec<(u64, MarkKind)> {
        let marks = read_marks(shim, &metadata(log)).unwrap();
        let marks = marks.into_iter().flatten();
        marks.map(|mark| (mark.offset, mark.kind)).collect()
    }

    #[test]
    fn output_within_a_span_is_marked_once_and_after_a_run_began() {
        let (_dir, log, shim) = log("0123456789");
        let mut marks = Marks::new(&shim);
        follow(&mut marks, &log);
        marks.mark(MarkKind::Begin { run: 1 }, Some(2));
        marks.output(2);
        // A span that never ends, so that the test does not depend on how fast it runs.
        marks.open.as_mut().unwrap().at = Some((0, u64::MAX));
        marks.output(5);
        marks.mark(MarkKind::End { run: 1 }, Some(7));
        // The clock was set back.
        marks.open.as_mut().unwrap().at = Some((u64::MAX - 5, 1));
        marks.output(8);
        let at = MarkKind::At { span_ms: SPAN_MS };
        let expected = [
            (2, MarkKind::Begin { run: 1 }),
            (2, at),
            (7, MarkKind::End { run: 1 }),
            (8, at),
        ];
        assert_eq!(kinds(&shim, &log), expected);
        // Many marks are enough.
        marks.open.as_mut().unwrap().size = MANY_BYTES;
        marks.open.as_mut().unwrap().at = None;
        marks.output(9);
        let last = kinds(&shim, &log).pop();
        assert_eq!(last, Some((9, MarkKind::At { span_ms: COARSE_MS })));
    }

    #[test]
    fn what_could_not_be_marked_is_marked_with_the_next_output() {
        let (_dir, log, shim) = log("0123456789");
        fs::remove_dir(&shim).unwrap();
        let mut marks = Marks::new(&shim);
        follow(&mut marks, &log);
        for run in 0..20 {
            marks.mark(MarkKind::Begin { run }, Some(0));
        }
        marks.output(3);
        assert_eq!(kinds(&shim, &log), []);
        fs::create_dir(&shim).unwrap();
        follow(&mut marks, &log);
        marks.mark(MarkKind::End { run: 19 }, Some(4));
        marks.output(4);
        let found = kinds(&shim, &log);
        assert_eq!(found.len(), WAITING + 1);
        assert_eq!(found[0], (4, MarkKind::Begin { run: 5 }));
        assert_eq!(found[WAITING - 1], (4, MarkKind::End { run: 19 }));
    }

    #[test]
    fn the_next_shim_goes_on_and_an_emptied_log_begins_anew() {
        let (_dir, log, shim) = log("0123456789");
        let mut marks = Marks::new(&shim);
        follow(&mut marks, &log);
        marks.mark(MarkKind::Begin { run: 1 }, Some(2));
        // Torn by a power cut.
        let path = shim.join(marks::file_name(metadata(&log).ino()));
        let torn = fs::read_to_string(&path).unwrap() + "end 5";
        fs::write(&path, torn).unwrap();
        let mut next = Marks::new(&shim);
        follow(&mut next, &log);
        next.mark(MarkKind::Begin { run: 2 }, Some(8));
        let begun = [
            (2, MarkKind::Begin { run: 1 }),
            (8, MarkKind::Begin { run: 2 }),
        ];
        assert_eq!(kinds(&shim, &log), begun);
        // Somebody emptied it, and a program wrote since.
        fs::write(log.dir.join("web.log"), "0123").unwrap();
        follow(&mut next, &log);
        next.mark(MarkKind::Begin { run: 3 }, Some(4));
        assert_eq!(kinds(&shim, &log), [(4, MarkKind::Begin { run: 3 })]);
    }

    #[test]
    fn marks_of_files_that_are_gone_are_removed_and_nothing_else() {
        let (_dir, log, shim) = log("");
        fs::write(log.dir.join("web.log.1"), "old").unwrap();
        let kept = fs::metadata(log.dir.join("web.log.1")).unwrap().ino();
        for name in [
            marks::file_name(kept),
            marks::file_name(1),
            "marks.x".into(),
            "state".into(),
        ] {
            fs::write(shim.join(name), "").unwrap();
        }
        let mut marks = Marks::new(&shim);
        follow(&mut marks, &log);
        marks.output(0);
        let mut left: Vec<_> = fs::read_dir(&shim)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = vec![
            marks::file_name(kept),
            marks::file_name(metadata(&log).ino()),
            "marks.x".into(),
            "state".into(),
        ];
        expected.sort();
        assert_eq!(left, expected);
    }
}
