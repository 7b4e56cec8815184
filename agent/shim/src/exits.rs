//! How the last runs of a launchable ended: the `exits` file.
//!
//! It is text, a record a line, each with a checksum, rewritten in place in preallocated slots (see
//! `slots`). Readers take what is whole and ignore the rest.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::codec::{Fields, Record, each_line};
use crate::process::ProcessId;

const EXIT: &str = "platctrl-shim-exit";

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

/// One run of a launchable that ended. Times as in [`State`](crate::State).
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
        let record = Record::new(EXIT)
            .number("seq", self.seq)
            .number("generation", self.generation)
            .text("boot", &self.boot_id)
            .process("pid", "ticks", self.process)
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
                .message(message),
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
            process: fields.process("pid", "ticks"),
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn exits_are_read_back_as_they_were_written() {
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
    fn a_damaged_exits_file_gives_what_is_whole_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (exit(1, ExitStatus::Unknown), exit(2, ExitStatus::Code(0)));
        let zeros = "\0".repeat(3 * 2048);
        let text = format!("{zeros}{}garbage\n{zeros}{}", two.encode(), one.encode());
        std::fs::write(dir.path().join("exits"), text).unwrap();
        assert_eq!(read_exits(dir.path()).unwrap(), [one, two]);
    }
}
