//! Ending everything in a cgroup v2 directory.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use crate::process;

/// Moves the calling process into the group.
pub(super) fn join(group: &Path) -> io::Result<()> {
    write(&group.join("cgroup.procs"), "0")
}

/// Sends SIGKILL to everything in the group and below it.
pub(super) fn kill(group: &Path) -> io::Result<()> {
    match write(&group.join("cgroup.kill"), "1") {
        // Kernels before 5.14 have no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_each(group),
        result => result,
    }
}

fn kill_each(group: &Path) -> io::Result<()> {
    let members = || fs::read_to_string(group.join("cgroup.procs"));
    for pid in members()?.lines().filter_map(|line| line.parse().ok()) {
        let Some(process) = process::identify(pid) else {
            continue;
        };
        // The number may have passed to a stranger between the listing and now.
        if members()?.lines().any(|line| line == pid.to_string()) {
            process::kill_exactly(process);
        }
    }
    Ok(())
}

/// Whether anything lives in the group or below it.
pub(super) fn populated(group: &Path) -> bool {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "populated 1"),
        Err(_) => false,
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Never created: on a path that is no cgroup, a file would be left behind.
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}
