//! What a shim knows and remembers: its `state` file and its `exits` file.
//!
//! Both are text, one record per line, each with a checksum, rewritten in place in preallocated
//! slots (see `slots`). Readers take what is whole and ignore the rest.

use std::fs;
use std::io::{self, BufRead as _, Read as _};
use std::path::Path;
use std::time::Duration;

use crate::codec::{Fields, Record};
use crate::process;

const STATE: &str = "platctrl-shim-state";
const EXIT: &str = "platctrl-shim-exit";
/// More than either file ever holds.
const MAX_BYTES: u64 = 1 << 20;
/// More than any record.
const MAX_LINE: u64 = 4096;

/// What a launchable is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Not running, and not to be: it was stopped, or never started.
    #[default]
    Stopped,
    /// Its process exists; the program has not been executed yet.
    Starting,
    /// The program runs.
    Running,
    /// It, or what it left behind, is being stopped.
    Stopping,
    /// It ended and waits for its next start.
    Backoff,
    /// It ended and its restart policy lets it rest.
    Exited,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Stopped,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Backoff,
        Self::Exited,
    ];

    /// The name used in the state file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Exited => "exited",
        }
    }

    /// Whether nothing runs and nothing will without a request.
    pub fn at_rest(self) -> bool {
        matches!(self, Self::Stopped | Self::Exited)
    }
}

/// A process that cannot be mistaken for a later one with the same number, together with the
/// boot it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks after boot (field 22 of `/proc/<pid>/stat`).
    pub start_ticks: u64,
}

/// A shim's state. Times are milliseconds: `…_unix_ms` since 1970, `…_boot_ms` on the boot clock,
/// which counts suspended time and is never set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// Grows with every write.
    pub seq: u64,
    /// The boot in which this was written.
    pub boot_id: String,
    /// The shim that wrote it.
    pub shim: Option<ProcessId>,
    /// What the launchable is doing.
    pub phase: Phase,
    /// Whether it is to run, as far as requests go: `stop` clears it, `start` sets it.
    pub wanted: bool,
    /// The generation of the spec that was started last.
    pub generation: u64,
    /// The launchable's process, in [`Phase::Starting`], [`Phase::Running`] and
    /// [`Phase::Stopping`]; in the last it is absent once only what it left behind remains.
    pub child: Option<ProcessId>,
    /// When that process was started.
    pub started_unix_ms: u64,
    /// The same, on the boot clock.
    pub started_boot_ms: u64,
    /// How often this generation was started after the first time.
    pub restarts: u64,
    /// Ends in a row without the launchable staying up; the backoff follows from it.
    pub failures: u32,
    /// In [`Phase::Backoff`]: when it is started next.
    pub next_start_boot_ms: Option<u64>,
    /// The number of the last exit record; 0 before the first.
    pub last_exit: u64,
    /// Bytes of output that could not be written to the log since the shim started.
    pub log_dropped: u64,
    /// What is wrong, in words, while something is.
    pub message: String,
}

impl State {
    /// One line, with its newline.
    pub fn encode(&self) -> String {
        let mut record = Record::new(STATE)
            .number("seq", self.seq)
            .text("phase", self.phase.name())
            .number("wanted", u8::from(self.wanted))
            .number("generation", self.generation)
            .text("boot", &self.boot_id);
        if let Some(shim) = self.shim {
            record = record
                .number("shim", shim.pid)
                .number("shim-ticks", shim.start_ticks);
        }
        if let Some(child) = self.child {
            record = record
                .number("child", child.pid)
                .number("child-ticks", child.start_ticks);
        }
        record
            .number("started-unix-ms", self.started_unix_ms)
            .number("started-boot-ms", self.started_boot_ms)
            .number("restarts", self.restarts)
            .number("failures", self.failures)
            .maybe_number("next-start-boot-ms", self.next_start_boot_ms)
            .number("last-exit", self.last_exit)
            .number("log-dropped", self.log_dropped)
            .text("message", shortened(&self.message))
            .seal()
    }

    /// Reads a line; `None` when it is not a whole state record.
    pub fn decode(line: &[u8]) -> Option<Self> {
        let fields = Fields::open(STATE, line)?;
        let phase = fields.string("phase")?;
        Some(Self {
            seq: fields.number("seq")?,
            boot_id: fields.string("boot").unwrap_or_default(),
            shim: process_id(fields, "shim", "shim-ticks"),
            phase: Phase::ALL.into_iter().find(|known| known.name() == phase)?,
            wanted: fields.number::<u8>("wanted") != Some(0),
            generation: fields.number("generation").unwrap_or_default(),
            child: process_id(fields, "child", "child-ticks"),
            started_unix_ms: fields.number("started-unix-ms").unwrap_or_default(),
            started_boot_ms: fields.number("started-boot-ms").unwrap_or_default(),
            restarts: fields.number("restarts").unwrap_or_default(),
            failures: fields.number("failures").unwrap_or_default(),
            next_start_boot_ms: fields.number("next-start-boot-ms"),
            last_exit: fields.number("last-exit").unwrap_or_default(),
            log_dropped: fields.number("log-dropped").unwrap_or_default(),
            message: fields.string("message").unwrap_or_default(),
        })
    }

    /// How long until the next start, in [`Phase::Backoff`].
    pub fn next_start_in(&self) -> Option<Duration> {
        let next = self.next_start_boot_ms?;
        Some(Duration::from_millis(
            next.saturating_sub(process::boot_clock_ms()),
        ))
    }
}

/// How a run of a launchable ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// It was ended by a signal.
    Signal {
        /// Which.
        signal: i32,
        /// Whether the kernel dumped its memory.
        core: bool,
    },
    /// Nobody saw it: the shim was killed, or the machine went down.
    Unknown,
    /// Its program was never executed.
    NotStarted {
        /// The error number the kernel gave, or 0.
        errno: i32,
        /// What failed, in words.
        message: String,
    },
}

impl ExitStatus {
    /// Whether it ended by itself with code 0.
    pub fn success(&self) -> bool {
        matches!(self, Self::Code(0))
    }
}

/// One run of a launchable that ended. Times as in [`State`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitRecord {
    /// 1 for the first, without gaps; a reader remembers the last it has seen.
    pub seq: u64,
    /// The generation of the spec that ran.
    pub generation: u64,
    /// The boot in which this was recorded.
    pub boot_id: String,
    /// The process; `None` when none could be made.
    pub process: Option<ProcessId>,
    /// When it was started.
    pub started_unix_ms: u64,
    /// The same, on the boot clock.
    pub started_boot_ms: u64,
    /// When its end was seen.
    pub ended_unix_ms: u64,
    /// The same, on the boot clock.
    pub ended_boot_ms: u64,
    /// How it ended.
    pub status: ExitStatus,
    /// Whether it had been asked to stop (`stop`, `restart`, or SIGTERM to the shim).
    pub requested: bool,
}

impl ExitRecord {
    /// One line, with its newline.
    pub fn encode(&self) -> String {
        let mut record = Record::new(EXIT)
            .number("seq", self.seq)
            .number("generation", self.generation)
            .text("boot", &self.boot_id);
        if let Some(process) = self.process {
            record = record
                .number("pid", process.pid)
                .number("ticks", process.start_ticks);
        }
        record = record
            .number("started-unix-ms", self.started_unix_ms)
            .number("started-boot-ms", self.started_boot_ms)
            .number("ended-unix-ms", self.ended_unix_ms)
            .number("ended-boot-ms", self.ended_boot_ms)
            .number("requested", u8::from(self.requested));
        match &self.status {
            ExitStatus::Code(code) => record.text("status", "code").number("code", *code),
            ExitStatus::Signal { signal, core } => record
                .text("status", "signal")
                .number("signal", *signal)
                .number("core", u8::from(*core)),
            ExitStatus::Unknown => record.text("status", "unknown"),
            ExitStatus::NotStarted { errno, message } => record
                .text("status", "not-started")
                .number("errno", *errno)
                .text("message", shortened(message)),
        }
        .seal()
    }

    /// Reads a line; `None` when it is not a whole exit record.
    pub fn decode(line: &[u8]) -> Option<Self> {
        let fields = Fields::open(EXIT, line)?;
        let status = match fields.string("status")?.as_str() {
            "code" => ExitStatus::Code(fields.number("code")?),
            "signal" => ExitStatus::Signal {
                signal: fields.number("signal")?,
                core: fields.number::<u8>("core") == Some(1),
            },
            "not-started" => ExitStatus::NotStarted {
                errno: fields.number("errno").unwrap_or_default(),
                message: fields.string("message").unwrap_or_default(),
            },
            // Also what a newer shim may distinguish and this reader cannot.
            _ => ExitStatus::Unknown,
        };
        Some(Self {
            seq: fields.number("seq")?,
            generation: fields.number("generation").unwrap_or_default(),
            boot_id: fields.string("boot").unwrap_or_default(),
            process: process_id(fields, "pid", "ticks"),
            started_unix_ms: fields.number("started-unix-ms").unwrap_or_default(),
            started_boot_ms: fields.number("started-boot-ms").unwrap_or_default(),
            ended_unix_ms: fields.number("ended-unix-ms").unwrap_or_default(),
            ended_boot_ms: fields.number("ended-boot-ms").unwrap_or_default(),
            status,
            requested: fields.number::<u8>("requested") == Some(1),
        })
    }

    /// How long it ran.
    pub fn uptime(&self) -> Duration {
        Duration::from_millis(self.ended_boot_ms.saturating_sub(self.started_boot_ms))
    }
}

fn process_id(fields: Fields<'_>, pid: &str, ticks: &str) -> Option<ProcessId> {
    // Numbers that no process has must never reach a call that sends signals.
    let pid = fields
        .number::<u32>(pid)
        .filter(|pid| (1..=i32::MAX as u32).contains(pid))?;
    Some(ProcessId {
        pid,
        start_ticks: fields.number(ticks)?,
    })
}

/// A message short enough that its record fits a slot, however much of it is escaped.
fn shortened(message: &str) -> &[u8] {
    let mut room = 600_usize;
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

/// The newest state recorded in `dir`, or `None` when no shim has written any that is whole.
///
/// It tells what was; whether that shim still lives, [`is_alive`] tells.
///
/// # Errors
/// When the file exists and cannot be read.
pub fn read_state(dir: &Path) -> io::Result<Option<State>> {
    let mut newest: Option<State> = None;
    each_line(&dir.join("state"), |line| {
        if let Some(state) = State::decode(line)
            && newest.as_ref().is_none_or(|newest| newest.seq < state.seq)
        {
            newest = Some(state);
        }
    })?;
    Ok(newest)
}

/// The exit records kept in `dir`, oldest first: the last 32.
///
/// # Errors
/// When the file exists and cannot be read.
pub fn read_exits(dir: &Path) -> io::Result<Vec<ExitRecord>> {
    let mut exits: Vec<ExitRecord> = Vec::new();
    each_line(&dir.join("exits"), |line| {
        exits.extend(ExitRecord::decode(line));
    })?;
    exits.sort_by_key(|exit| exit.seq);
    exits.dedup_by_key(|exit| exit.seq);
    Ok(exits)
}

/// Hands out the lines of a file one by one: most of it is empty space, and a shim that read it
/// whole would stay that large.
fn each_line(path: &Path, mut line_is: impl FnMut(&[u8])) -> io::Result<()> {
    let file = match fs::File::open(path) {
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
        if line != b"\n" {
            line_is(&line);
        }
    }
}

/// Whether the shim that wrote `state` still runs: same boot, same process.
pub fn is_alive(state: &State) -> bool {
    state.boot_id == process::boot_id()
        && state.shim.is_some_and(|shim| {
            // One that has ended and whom nobody has collected yet does nothing any more.
            process::Process::read(shim.pid).is_some_and(|now| now.id == shim && !now.dead)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn state() -> State {
        State {
            seq: 9,
            boot_id: "boot".into(),
            shim: Some(ProcessId {
                pid: 12,
                start_ticks: 34,
            }),
            phase: Phase::Backoff,
            wanted: true,
            generation: 3,
            child: Some(ProcessId {
                pid: 56,
                start_ticks: 78,
            }),
            started_unix_ms: 1,
            started_boot_ms: 2,
            restarts: 4,
            failures: 5,
            next_start_boot_ms: Some(6),
            last_exit: 7,
            log_dropped: 8,
            message: "cannot execute /a b/launch:\nno".into(),
        }
    }

    fn exit(seq: u64, status: ExitStatus) -> ExitRecord {
        ExitRecord {
            seq,
            generation: 3,
            boot_id: "boot".into(),
            process: Some(ProcessId {
                pid: 56,
                start_ticks: 78,
            }),
            started_unix_ms: 1,
            started_boot_ms: 2,
            ended_unix_ms: 3,
            ended_boot_ms: 1502,
            status,
            requested: true,
        }
    }

    #[test]
    fn state_and_exits_are_read_back_as_they_were_written() {
        let state = state();
        assert_eq!(State::decode(state.encode().as_bytes()), Some(state));
        for status in [
            ExitStatus::Code(-3),
            ExitStatus::Signal {
                signal: 9,
                core: true,
            },
            ExitStatus::Unknown,
            ExitStatus::NotStarted {
                errno: 2,
                message: "no \u{e4}\0".into(),
            },
        ] {
            let exit = exit(1, status);
            assert_eq!(ExitRecord::decode(exit.encode().as_bytes()), Some(exit));
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character_and_fits() {
        let mut state = state();
        for message in ["x".repeat(9000), "\u{20ac}".repeat(9000), "\n".repeat(9000)] {
            state.message = message.clone();
            let line = state.encode();
            assert!(line.len() < 1400, "{}", line.len());
            let read = State::decode(line.as_bytes()).unwrap().message;
            assert!(!read.is_empty() && message.starts_with(&read));
        }
    }

    #[test]
    fn damaged_files_give_what_is_whole_in_them() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_state(dir.path()).unwrap(), None);
        let (old, mut new) = (state(), state());
        new.seq += 1;
        let torn = &new.encode()[..40];
        fs::write(
            dir.path().join("state"),
            format!("{}\n\n{torn}", old.encode()),
        )
        .unwrap();
        assert_eq!(read_state(dir.path()).unwrap(), Some(old));
        fs::write(dir.path().join("state"), [0xff; 5000]).unwrap();
        assert_eq!(read_state(dir.path()).unwrap(), None);

        let (one, two) = (exit(1, ExitStatus::Unknown), exit(2, ExitStatus::Code(0)));
        let text = format!("{}garbage\n{}", two.encode(), one.encode());
        fs::write(dir.path().join("exits"), text).unwrap();
        assert_eq!(read_exits(dir.path()).unwrap(), [one, two]);
    }

    #[test]
    fn a_process_number_that_means_everybody_is_never_read() {
        for pid in ["0", "-1", "4294967295"] {
            let line = Record::new(STATE)
                .number("seq", 1)
                .text("phase", "running")
                .text("child", pid)
                .number("child-ticks", 1)
                .seal();
            assert_eq!(State::decode(line.as_bytes()).unwrap().child, None, "{pid}");
        }
    }

    #[test]
    fn another_boot_or_another_process_of_that_number_is_not_alive() {
        let pid = std::process::id();
        let ticks = process::start_ticks(pid).unwrap();
        let mut state = state();
        state.boot_id = process::boot_id();
        state.shim = Some(ProcessId {
            pid,
            start_ticks: ticks,
        });
        assert!(is_alive(&state));
        state.shim = Some(ProcessId {
            pid,
            start_ticks: ticks + 1,
        });
        assert!(!is_alive(&state));
        state.shim = Some(ProcessId {
            pid,
            start_ticks: ticks,
        });
        state.boot_id = "another".into();
        assert!(!is_alive(&state));
    }

    #[test]
    fn a_process_that_ended_and_was_not_collected_is_not_alive() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let shim = process::identify(child.id());
        let state = State {
            boot_id: process::boot_id(),
            shim,
            ..State::default()
        };
        assert!(is_alive(&state));
        child.kill().unwrap();
        while process::Process::read(child.id()).is_some_and(|now| !now.dead) {
            std::thread::yield_now();
        }
        assert!(!is_alive(&state));
        child.wait().unwrap();
    }
}
