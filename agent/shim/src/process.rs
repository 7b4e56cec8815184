//! Facts about processes: which boot this is, who is who, who descends from whom.
//!
//! A process number alone names nobody for long. Whoever is to get a signal is held by a pidfd
//! first and then recognised by its start time, so a number that was given to a stranger in the
//! meantime is noticed.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};

/// A process that cannot be mistaken for a later one with the same number, together with the
/// boot it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks after boot (field 22 of `/proc/<pid>/stat`).
    pub start_ticks: u64,
}

/// The kernel's name for the current boot; empty when it does not say.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Milliseconds on the boot clock.
pub(crate) fn boot_clock_ms() -> u64 {
    clock_ms(ClockId::Boottime)
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    clock_ms(ClockId::Realtime)
}

fn clock_ms(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1000)
        .saturating_add(nanoseconds / 1_000_000)
}

/// A process as `/proc/<pid>/stat` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    /// Whether it has ended and only its parent has not noticed.
    pub(crate) dead: bool,
}

impl Process {
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold any byte.
        let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&stat[after..])
            .ok()?
            .split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X" | "x"); // field 3
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let start_ticks = fields.nth(16)?.parse().ok()?; // field 22
        Some(Self {
            id: ProcessId { pid, start_ticks },
            parent,
            group,
            dead,
        })
    }
}

/// When the process was started, in ticks after boot; `None` when there is none.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    Process::read(pid).map(|process| process.id.start_ticks)
}

/// The process of that number as it is now.
pub(crate) fn identify(pid: u32) -> Option<ProcessId> {
    start_ticks(pid).map(|start_ticks| ProcessId { pid, start_ticks })
}

pub(crate) fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Holds a process, having made sure that it is the one meant.
pub(crate) fn hold(process: ProcessId) -> Option<OwnedFd> {
    let fd = pidfd_open(to_pid(process.pid)?, PidfdFlags::empty()).ok()?;
    (start_ticks(process.pid) == Some(process.start_ticks)).then_some(fd)
}

/// Sends SIGKILL to exactly that process, if it still exists.
pub(crate) fn kill_exactly(process: ProcessId) {
    if let Some(fd) = hold(process) {
        // It may have ended just now, which is what is wanted.
        let _ = pidfd_send_signal(fd, Signal::KILL);
    }
}

/// The user a process was started by or became; `None` when there is no such process.
pub(crate) fn real_uid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// All processes there are.
pub(crate) fn everybody() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Everything among `everybody` that descends from `ancestor`, without itself.
pub(crate) fn tree(ancestor: u32, everybody: &[Process]) -> Vec<ProcessId> {
    let mut by_parent: Vec<_> = everybody
        .iter()
        .map(|other| (other.parent, other.id))
        .collect();
    by_parent.sort_by_key(|(parent, child)| (*parent, child.pid));
    let children = |parent: u32| {
        let from = by_parent.partition_point(|(other, _)| *other < parent);
        by_parent[from..]
            .iter()
            .take_while(move |(other, _)| *other == parent)
    };
    let mut found: Vec<ProcessId> = Vec::new();
    let mut next = ancestor;
    let mut at = 0;
    // A parent may change while /proc is read, so the list could even hold a circle.
    while found.len() <= everybody.len() {
        found.extend(
            children(next)
                .map(|(_, child)| *child)
                .filter(|c| c.pid != ancestor),
        );
        let Some(child) = found.get(at) else { break };
        next = child.pid;
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pid: u32, parent: u32) -> Process {
        Process {
            id: ProcessId {
                pid,
                start_ticks: 1,
            },
            parent,
            group: pid,
            dead: false,
        }
    }

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = b"7 (a) R 1 (b) S 42 8 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9911 1 1\n";
        let process = Process::parse(7, stat).unwrap();
        assert_eq!(
            (process.parent, process.group, process.dead),
            (42, 8, false)
        );
        assert_eq!(
            process.id,
            ProcessId {
                pid: 7,
                start_ticks: 9911
            }
        );
        assert_eq!(Process::parse(7, b"7 (a) S 1"), None);
    }

    #[test]
    fn descendants_are_found_at_every_depth_and_nobody_else() {
        let all = [
            entry(1, 0),
            entry(10, 1),
            entry(11, 10),
            entry(12, 11),
            entry(20, 1),
        ];
        let pids: Vec<_> = tree(10, &all).into_iter().map(|who| who.pid).collect();
        assert_eq!(pids, [11, 12]);
        assert_eq!(tree(99, &all), []);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let all = [entry(2, 3), entry(3, 2), entry(5, 5)];
        assert!(!tree(2, &all).is_empty());
        assert_eq!(tree(5, &all), []);
    }

    #[test]
    fn a_process_is_not_held_by_a_wrong_start_time() {
        let me = identify(std::process::id()).unwrap();
        assert!(hold(me).is_some());
        assert!(
            hold(ProcessId {
                start_ticks: me.start_ticks + 1,
                ..me
            })
            .is_none()
        );
    }
}
