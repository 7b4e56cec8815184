//! Reading a log as somebody asks for it: all of it, its last lines, what came since a time, the
//! run before the present one, and what comes from now on.
//!
//! `<pod>/log/<program>.log` is the newest file, `.log.1` the one before, and so on. Files are
//! opened without following links and must be regular. Where runs begin and end, and when lines
//! came, the supervisor has [marked](platctrl_shim_lib::Mark).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, openat};

use super::ranges::{self, Place, Previous, Sheet};
use crate::layout::{Layout, PodPaths};
use crate::name::PodName;

/// Bytes that are read at once.
const READ: usize = 64 * 1024;
/// How often a followed log is looked at.
const TICK: Duration = Duration::from_millis(200);
/// More files than this are never kept.
const MAX_FILES: u32 = 1000;
/// More programs than this are not listed.
const MAX_PROGRAMS: usize = 1000;

/// What of a pod's log is asked for. By default: all of it, of its only program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogQuery {
    /// The program, when the pod has several: `web`, or `web/a`.
    pub program: Option<String>,
    /// Only the last so many lines of it.
    pub tail: Option<u64>,
    /// Only what was written since then, to the second.
    pub since: Option<SystemTime>,
    /// Only what the run before the present one wrote; of a program that does not run, the last.
    pub previous: bool,
    /// Go on with what is written. Without effect beside `previous`.
    pub follow: bool,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Nothing of the pod has run here.
    #[error("the pod has no log yet: nothing of it has run on this node")]
    NoLog,
    /// The pod has no such program.
    #[error("the pod has no log of a launchable `{program}`: it has {}", known.join(", "))]
    NoProgram {
        /// What was asked for.
        program: String,
        /// The programs that have a log.
        known: Vec<String>,
    },
    /// The pod has several programs.
    #[error("the pod has several programs: {}", known.join(", "))]
    Several {
        /// The programs that have a log.
        known: Vec<String>,
    },
    /// No run has ended.
    #[error(
        "no run of {program} before the present one is in its log: it was not started again since the log begins"
    )]
    NoPrevious {
        /// The program.
        program: String,
    },
    /// A file cannot be read.
    #[error("cannot read the log of {program}: {source}")]
    Read {
        /// The program, or the pod.
        program: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A log that was found and opened.
///
/// ```no_run
/// use platctrl_agent::{LogQuery, LogReader, PodName};
///
/// let mut query = LogQuery::default();
/// query.tail = Some(100);
/// let pod = PodName::new("default", "hello")?;
/// let log = LogReader::open("/var/lib/platctrl".as_ref(), &pod, query)?;
/// let print = |bytes: bytes::Bytes| {
///     print!("{}", String::from_utf8_lossy(&bytes));
///     true // and more
/// };
/// log.copy(&|| false, &print)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LogReader {
    log: Log,
    parts: Vec<Part>,
    from: Place,
    to: Option<Place>,
    query: LogQuery,
    note: Option<&'static str>,
}

/// A program's log.
#[derive(Debug)]
struct Log {
    directory: OwnedFd,
    /// As in the files' names.
    name: String,
    program: String,
    /// Where its supervisor keeps the marks.
    marks: PathBuf,
}

/// One of its files.
#[derive(Debug)]
struct Part {
    file: File,
    inode: u64,
}

impl LogReader {
    /// Finds what is asked for of a pod on this node. Blocks, as all here does.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(data_dir: &Path, pod: &PodName, query: LogQuery) -> Result<Self, LogError> {
        let failed = |source| LogError::Read {
            program: pod.to_string(),
            source,
        };
        let Ok(layout) = Layout::open(data_dir) else {
            return Err(LogError::NoLog);
        };
        let directory = match log_directory(&layout, pod) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LogError::NoLog),
            Err(error) => return Err(failed(error)),
        };
        let programs = programs(&directory).map_err(failed)?;
        let program = choose(programs, query.program.as_deref())?;
        let log = Log {
            directory,
            name: PodPaths::log_name(&program),
            marks: layout.pod(pod).shim(&program),
            program,
        };
        log.find(query)
    }

    /// The program whose log it is.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.log.program
    }

    /// What somebody who reads it should know, in a sentence.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        self.note
    }

    /// Gives what was asked for to `send`, until that wants no more (false) or `end` says so.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn copy(self, end: &dyn Fn() -> bool, send: &dyn Fn(Bytes) -> bool) -> io::Result<()> {
        let Self {
            log,
            parts,
            mut from,
            to,
            query,
            ..
        } = self;
        if let Some(lines) = query.tail {
            from = from.max(tail(&parts, to, lines)?);
        }
        let mut last = None;
        for (index, part) in parts.into_iter().enumerate().skip(from.file) {
            let mut at = match index == from.file {
                true => from.offset,
                false => 0,
            };
            let until = match to {
                Some(to) if to.file == index => to.offset,
                Some(to) if to.file < index => return Ok(()),
                _ => u64::MAX,
            };
            if !copy(&part, &mut at, until, end, send)? {
                return Ok(());
            }
            last = Some((part, at));
        }
        if query.follow && to.is_none() {
            log.follow(last, end, send)?;
        }
        Ok(())
    }
}

fn log_directory(layout: &Layout, pod: &PodName) -> io::Result<OwnedFd> {
    let homes = File::open(layout.homes())?;
    let home = directory(&homes, &pod.directory())?;
    directory(&home, "log")
}

fn directory(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// The programs that have a log, sorted.
fn programs(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut programs = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_str().ok();
        let name = name.and_then(|name| name.strip_suffix(".log"));
        // `web/a` of a launch directory is `web:a` in file names.
        let name = name.filter(|name| !name.is_empty());
        programs.extend(name.map(|name| name.replace(':', "/")));
        if programs.len() > MAX_PROGRAMS {
            break;
        }
    }
    programs.sort_unstable();
    Ok(programs)
}

/// It is the log of a script of a launchable: `web/bin/enable`. A program is `web`, or `web/a`.
fn is_script(program: &str) -> bool {
    program
        .split_once('/')
        .is_some_and(|(_, rest)| rest.contains('/'))
}

fn choose(programs: Vec<String>, wanted: Option<&str>) -> Result<String, LogError> {
    match (wanted, programs.as_slice()) {
        (_, []) => Err(LogError::NoLog),
        (None, [one]) => Ok(one.clone()),
        (None, all) => {
            // Whoever names none means what runs, not what the scripts beside it said.
            let known: Vec<_> = all.iter().filter(|it| !is_script(it)).cloned().collect();
            match known.as_slice() {
                [one] => Ok(one.clone()),
                [] => Err(LogError::Several { known: programs }),
                _ => Err(LogError::Several { known }),
            }
        }
        (Some(wanted), known) => {
            // Also as it is in file names.
            let wanted = wanted.replace(':', "/");
            match known.contains(&wanted) {
                true => Ok(wanted),
                false => Err(LogError::NoProgram {
                    program: wanted,
                    known: programs,
                }),
            }
        }
    }
}

impl Log {
    fn failed(&self, source: io::Error) -> LogError {
        LogError::Read {
            program: self.program.clone(),
            source,
        }
    }

    /// Opens the files, now, while it can still be said what is wrong.
    fn find(self, query: LogQuery) -> Result<LogReader, LogError> {
        let parts = self.parts().map_err(|error| self.failed(error))?;
        let mut from = Place { file: 0, offset: 0 };
        let (mut to, mut note) = (None, None);
        if query.previous || query.since.is_some() {
            let sheets: io::Result<Vec<_>> = parts.iter().map(|part| self.sheet(part)).collect();
            let sheets = sheets.map_err(|error| self.failed(error))?;
            if query.previous {
                match ranges::previous(&sheets) {
                    Previous::Kept {
                        from: begun,
                        to: ended,
                        whole,
                    } => {
                        (from, to) = (begun, Some(ended));
                        note = (!whole).then_some("the beginning of that run is no longer kept");
                    }
                    Previous::Nothing => {
                        return Err(LogError::NoPrevious {
                            program: self.program,
                        });
                    }
                    Previous::Unmarked => {
                        note = Some(
                            "an older supervisor wrote this log, as one stream over all restarts: this is all that is kept",
                        );
                    }
                }
            }
            if let Some(since) = query.since {
                let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
                let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
                let place = ranges::since(&sheets, since);
                let place = line_start(&parts, place).map_err(|error| self.failed(error))?;
                from = from.max(place);
            }
        }
        if to.is_some_and(|to| to < from) {
            to = Some(from);
        }
        Ok(LogReader {
            log: self,
            parts,
            from,
            to,
            query,
            note,
        })
    }

    fn sheet(&self, part: &Part) -> io::Result<Sheet> {
        let metadata = part.file.metadata()?;
        let written = metadata.modified()?.duration_since(UNIX_EPOCH);
        let written = written.unwrap_or_default().as_millis();
        Ok(Sheet {
            length: metadata.len(),
            written_ms: u64::try_from(written).unwrap_or(u64::MAX),
            marks: platctrl_shim_lib::read_marks(&self.marks, &metadata)?,
        })
    }

    /// A file of the log, if it is there and a regular one: 0 is the newest.
    fn part(&self, number: u32) -> io::Result<Option<Part>> {
        let name = match number {
            0 => format!("{}.log", self.name),
            older => format!("{}.log.{older}", self.name),
        };
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("the log is no regular file"));
        }
        let inode = metadata.ino();
        Ok(Some(Part { file, inode }))
    }

    /// All files, oldest first. While they are opened they may move: each is there once.
    fn parts(&self) -> io::Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        for number in 0..MAX_FILES {
            match self.part(number)? {
                Some(part) if parts.iter().any(|known| known.inode == part.inode) => {}
                Some(part) => parts.push(part),
                // The newest is missing for a moment while files are replaced.
                None if number == 0 => {}
                None => break,
            }
        }
        parts.reverse();
        Ok(parts)
    }

    /// Goes on with what is written, from file to file, until the client or the log is gone.
    fn follow(
        &self,
        mut current: Option<(Part, u64)>,
        end: &dyn Fn() -> bool,
        send: &dyn Fn(Bytes) -> bool,
    ) -> io::Result<()> {
        while !end() {
            if rustix::fs::fstat(&self.directory)?.st_nlink == 0 {
                return Ok(());
            }
            if let Some((part, at)) = &mut current {
                // Emptied, because it could not be replaced.
                if part.file.metadata()?.len() < *at {
                    *at = 0;
                }
                if !copy(part, at, u64::MAX, end, send)? {
                    return Ok(());
                }
            }
            let newest = self.part(0)?;
            let same = match (&newest, &current) {
                (Some(newest), Some((part, _))) => newest.inode == part.inode,
                (newest, _) => newest.is_none(),
            };
            if same {
                std::thread::sleep(TICK);
                continue;
            }
            // Replaced: what was written to it before that, then the files that came after it.
            let known = current.as_ref().map(|(part, _)| part.inode);
            if let Some((part, at)) = &mut current
                && !copy(part, at, u64::MAX, end, send)?
            {
                return Ok(());
            }
            let parts = self.parts()?;
            let behind = parts.iter().position(|part| Some(part.inode) == known);
            let begin = behind.map_or(0, |position| position + 1);
            for part in parts.into_iter().skip(begin) {
                let mut at = 0;
                if !copy(&part, &mut at, u64::MAX, end, send)? {
                    return Ok(());
                }
                current = Some((part, at));
            }
        }
        Ok(())
    }
}

/// Sends a file from a place to another, or to its present end; false when nobody wants it any
/// more.
fn copy(
    part: &Part,
    at: &mut u64,
    until: u64,
    end: &dyn Fn() -> bool,
    send: &dyn Fn(Bytes) -> bool,
) -> io::Result<bool> {
    loop {
        if end() {
            return Ok(false);
        }
        let room = usize::try_from(until.saturating_sub(*at)).unwrap_or(READ);
        let mut buffer = vec![0; room.min(READ)];
        let read = match part.file.read_at(&mut buffer, *at) {
            Ok(0) => return Ok(true),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer.truncate(read);
        *at += read as u64;
        if !send(buffer.into()) {
            return Ok(false);
        }
    }
}

/// The beginning of the line that a place lies in, should that be near.
fn line_start(parts: &[Part], place: Place) -> io::Result<Place> {
    let begin = place.offset.saturating_sub(READ as u64);
    let length = usize::try_from(place.offset - begin).unwrap_or(READ);
    let Some(part) = parts.get(place.file).filter(|_| length > 0) else {
        return Ok(place);
    };
    let mut buffer = vec![0; length];
    part.file.read_exact_at(&mut buffer, begin)?;
    let before = buffer.iter().rposition(|byte| *byte == b'\n');
    let offset = match before {
        Some(at) => begin + at as u64 + 1,
        None if begin == 0 => 0,
        None => place.offset,
    };
    Ok(Place { offset, ..place })
}

/// Where the last so many lines before a place begin, or before the end.
fn tail(parts: &[Part], to: Option<Place>, lines: u64) -> io::Result<Place> {
    let mut wanted = lines;
    let mut buffer = vec![0; READ];
    // A line break at the very end ends the last line and begins none.
    let mut at_end = true;
    let files = to.map_or(parts.len(), |to| to.file + 1).min(parts.len());
    for (index, part) in parts[..files].iter().enumerate().rev() {
        let length = part.file.metadata()?.len();
        let mut end = match to {
            Some(to) if to.file == index => to.offset.min(length),
            _ => length,
        };
        if lines == 0 {
            return Ok(Place {
                file: index,
                offset: end,
            });
        }
        while end > 0 {
            let begin = end.saturating_sub(READ as u64);
            let length = usize::try_from(end - begin).unwrap_or(READ);
            part.file.read_exact_at(&mut buffer[..length], begin)?;
            for position in (0..length).rev() {
                if buffer[position] == b'\n' && !at_end {
                    wanted -= 1;
                    if wanted == 0 {
                        return Ok(Place {
                            file: index,
                            offset: begin + position as u64 + 1,
                        });
                    }
                }
                at_end = false;
            }
            end = begin;
        }
    }
    Ok(Place { file: 0, offset: 0 })
}
