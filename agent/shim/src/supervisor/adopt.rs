//! Ending what a killed shim left running, and nobody else.
//!
//! Whoever gets a signal here is recognised twice: it is the process the state file names (number
//! and start time, same boot), or of its process group or descent, or in the tracking cgroup, or
//! it holds the FIFO in this shim's private directory open while running as the launchable's
//! user; and it is held by a pidfd and recognised again before the signal is sent.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::cgroup;
use crate::process::ProcessId;
use crate::process::{self, Process};
use crate::spec::Spec;

/// How long the killed may take to vanish.
const PATIENCE_MS: u64 = 10_000;

/// Kills all that is left and waits until it is gone.
///
/// # Errors
/// Says which process does not go (one that waits in the kernel for a device, say).
pub(super) fn end_leftovers(
    leader: Option<ProcessId>,
    fifo: Option<(u64, u64)>,
    spec: &Spec,
) -> Result<(), String> {
    let deadline = process::boot_clock_ms().saturating_add(PATIENCE_MS);
    let mut known: Vec<ProcessId> = Vec::new();
    loop {
        let everybody = process::everybody();
        for found in find(leader, &known, fifo, spec, &everybody) {
            if !known.contains(&found) {
                known.push(found);
            }
        }
        known.retain(|known| {
            everybody
                .iter()
                .any(|other| other.id == *known && !other.dead)
        });
        if let Some(group) = &spec.tracking {
            // Failing leaves it populated, which is seen below.
            let _ = cgroup::kill(group);
        }
        for process in &known {
            process::kill_exactly(*process);
        }
        let populated = spec
            .tracking
            .as_ref()
            .is_some_and(|group| cgroup::populated(group));
        if known.is_empty() && !populated {
            return Ok(());
        }
        if process::boot_clock_ms() > deadline {
            let pids: Vec<_> = known
                .iter()
                .map(|process| process.pid.to_string())
                .collect();
            return Err(format!(
                "processes of a killed shim survive SIGKILL (pids {}; in the cgroup: {populated}); \
                 a new copy is not started beside them",
                pids.join(", ")
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find(
    leader: Option<ProcessId>,
    known: &[ProcessId],
    fifo: Option<(u64, u64)>,
    spec: &Spec,
    everybody: &[Process],
) -> Vec<ProcessId> {
    let me = std::process::id();
    let mut found: Vec<ProcessId> = Vec::new();
    // While the leader lives, even as a zombie, the number of its group is nobody else's.
    if let Some(leader) = leader.filter(|leader| everybody.iter().any(|other| other.id == *leader))
    {
        let of_group = |other: &&Process| other.id == leader || other.group == leader.pid;
        found.extend(everybody.iter().filter(of_group).map(|other| other.id));
    }
    if let Some(fifo) = fifo {
        let uid = match &spec.user {
            Some(user) => user.uid,
            None => rustix::process::geteuid().as_raw(),
        };
        let holders = everybody
            .iter()
            .filter(|other| holds(other.id.pid, fifo, uid));
        found.extend(holders.map(|other| other.id));
    }
    for process in known.iter().chain(&found.clone()) {
        found.extend(process::tree(process.pid, everybody));
    }
    found.retain(|process| process.pid != me);
    found
}

/// Whether the process, of that user, has the FIFO open.
fn holds(pid: u32, fifo: (u64, u64), uid: u32) -> bool {
    if process::real_uid(pid) != Some(uid) {
        return false;
    }
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files.flatten().any(|file| {
        let path = file.path();
        // The link's text first: looking at the file itself may wait for a dead file server.
        fs::read_link(&path).is_ok_and(|target| target.ends_with(super::output::FIFO))
            && fs::metadata(&path).is_ok_and(|meta| (meta.dev(), meta.ino()) == fifo)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;
    use crate::supervisor::output::FIFO;

    #[test]
    fn who_holds_the_output_of_a_launchable_is_of_it_only_as_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FIFO);
        mkfifoat(CWD, &path, Mode::RWXU).unwrap();
        let fifo = File::options().read(true).write(true).open(&path).unwrap();
        let there = fifo.metadata().unwrap();
        let identity = (there.dev(), there.ino());
        let mut holder = Command::new("sleep")
            .arg("1000")
            .stdin(fifo)
            .spawn()
            .unwrap();
        let me = rustix::process::getuid().as_raw();
        let held = [
            holds(holder.id(), identity, me),
            holds(holder.id(), identity, me + 1),
            holds(holder.id(), (identity.0, identity.1 + 1), me),
        ];
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(held, [true, false, false]);
    }
}
