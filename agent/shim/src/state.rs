//! What a shim is doing: its `state` file.
//!
//! It is text, a record a line, each with a checksum, rewritten in place in preallocated slots (see
//! `slots`). Readers take the newest that is whole and ignore the rest.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::codec::{Fields, Record, each_line};
use crate::process::{self, ProcessId};

const STATE: &str = "platctrl-shim-state";

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
        Record::new(STATE)
            .number("seq", self.seq)
            .text("phase", self.phase.name())
            .number("wanted", u8::from(self.wanted))
            .number("generation", self.generation)
            .text("boot", &self.boot_id)
            .process("shim", "shim-ticks", self.shim)
            .process("child", "child-ticks", self.child)
            .number("started-unix-ms", self.started_unix_ms)
            .number("started-boot-ms", self.started_boot_ms)
            .number("restarts", self.restarts)
            .number("failures", self.failures)
            .maybe_number("next-start-boot-ms", self.next_start_boot_ms)
            .number("last-exit", self.last_exit)
            .number("log-dropped", self.log_dropped)
            .message(&self.message)
            .seal()
    }

    /// Reads a line; `None` when it is not a whole state record.
    pub fn decode(line: &[u8]) -> Option<Self> {
        let fields = Fields::open(STATE, line)?;
        let phase = fields.string("phase")?;
        Some(Self {
            seq: fields.number("seq")?,
            boot_id: fields.string("boot").unwrap_or_default(),
            shim: fields.process("shim", "shim-ticks"),
            phase: Phase::ALL.into_iter().find(|known| known.name() == phase)?,
            wanted: fields.number::<u8>("wanted") != Some(0),
            generation: fields.number("generation").unwrap_or_default(),
            child: fields.process("child", "child-ticks"),
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

    fn state() -> State {
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

    #[test]
    fn a_state_is_read_back_as_it_was_written() {
        let state = state();
        assert_eq!(State::decode(state.encode().as_bytes()), Some(state));
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
    fn a_damaged_state_file_gives_the_newest_that_is_whole_in_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_state(dir.path()).unwrap(), None);
        let (old, mut new) = (state(), state());
        new.seq += 1;
        let torn = &new.encode()[..40];
        std::fs::write(
            dir.path().join("state"),
            format!("{}\n\n{torn}", old.encode()),
        )
        .unwrap();
        assert_eq!(read_state(dir.path()).unwrap(), Some(old));
        std::fs::write(dir.path().join("state"), [0xff; 5000]).unwrap();
        assert_eq!(read_state(dir.path()).unwrap(), None);
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
