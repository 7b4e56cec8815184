//! What lives in a group: asking, ending, and removing the group when nothing does any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::limits::write;
use super::{CgroupError, Group};

/// Between two looks at a group that is not empty yet.
const PAUSE: Duration = Duration::from_millis(2);
/// How long killing one by one may go on against something that forks.
const KILLING: Duration = Duration::from_secs(1);

/// Kills everything in the group and below it.
pub(super) fn kill(group: &Group) -> Result<(), CgroupError> {
    if let Some(tracking) = &group.tracking {
        let file = tracking.join("cgroup.kill");
        match write(&file, "1") {
            // Whatever joins a group joins it in version 2 too.
            Ok(()) => return Ok(()),
            // No such group, or a kernel before 5.14.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CgroupError::new("kill", tracking, error)),
        }
    }
    kill_each(group)
}

/// Kills one by one until nothing is left that was not killed.
fn kill_each(group: &Group) -> Result<(), CgroupError> {
    // Nothing new is started meanwhile where that can be forbidden.
    let fork_limits: Vec<_> = group
        .directories()
        .flat_map(with_below)
        .map(|directory| directory.join("pids.max"))
        .filter_map(|file| Some((fs::read_to_string(&file).ok()?, file)))
        .collect();
    for (_, file) in &fork_limits {
        let _ = write(file, "0");
    }
    let deadline = Instant::now() + KILLING;
    let result = loop {
        let members = match list(group) {
            Ok(members) => members,
            Err(error) => break Err(error),
        };
        if members.is_empty() || Instant::now() > deadline {
            break Ok(());
        }
        for pid in members {
            kill_member(group, pid);
        }
        std::thread::sleep(PAUSE);
    };
    for (limit, file) in &fork_limits {
        // The group may be gone by now, and its limit with it.
        let _ = write(file, limit.trim());
    }
    result
}

/// Kills a process if it is still in the group: the number may have passed to a stranger since it
/// was read, but what the handle stands for stays.
fn kill_member(group: &Group, pid: u32) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(handle) = pidfd_open(number, PidfdFlags::empty()) else {
        return;
    };
    if list(group).is_ok_and(|members| members.contains(&pid)) {
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
}

/// Whether anything lives in the group or below it.
pub(super) fn populated(group: &Group) -> Result<bool, CgroupError> {
    if let Some(tracking) = &group.tracking {
        let file = tracking.join("cgroup.events");
        match fs::read_to_string(&file) {
            Ok(events) if events.lines().any(|line| line == "populated 1") => return Ok(true),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(CgroupError::new("read", &file, error)),
        }
    }
    // What was made by hand may be in version 1 alone.
    Ok(!list(group)?.is_empty())
}

/// The processes in the group and below it, as far as they have ids here.
pub(super) fn list(group: &Group) -> Result<Vec<u32>, CgroupError> {
    let mut members = Vec::new();
    for directory in group.directories().flat_map(with_below) {
        let file = directory.join("cgroup.procs");
        match fs::read_to_string(&file) {
            Ok(text) => members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(CgroupError::new("read", &file, error)),
        }
    }
    members.sort_unstable();
    members.dedup();
    // 0 is a process that this one cannot see.
    members.retain(|pid| *pid != 0);
    Ok(members)
}

/// A group that is being removed answers ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Waits until nothing lives in the group.
pub(super) fn wait_until_empty(group: &Group, within: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + within;
    let mut pause = PAUSE;
    while populated(group)? {
        if Instant::now() > deadline {
            let path = group
                .directories()
                .next()
                .map(Path::to_owned)
                .unwrap_or_default();
            return Err(CgroupError::Populated {
                path,
                members: list(group)?,
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Removes a group and what is below it. What is not there is removed already.
pub(super) fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let mut failure = None;
        for directory in with_below(directory).into_iter().rev() {
            match fs::remove_dir(&directory) {
                Err(error) if !is_gone(&error) => failure = Some((directory, error)),
                _ => {}
            }
        }
        match failure {
            None => return Ok(()),
            // The last process is not quite gone, or somebody made another group.
            Some((_, error))
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(PAUSE);
            }
            Some((path, error)) => return Err(CgroupError::new("remove the group", &path, error)),
        }
    }
}

/// The directory and every one below it, those above first.
fn with_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut at = 0;
    while let Some(next) = found.get(at) {
        let below = fs::read_dir(next).into_iter().flatten().flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<_> = below.map(|entry| entry.path()).collect();
        found.extend(below);
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_number_that_is_not_in_the_group_any_more_is_a_strangers_and_lives() {
        let dir = tempfile::tempdir().unwrap();
        let group = Group {
            tracking: Some(dir.path().to_owned()),
            join: Vec::new(),
            unenforced: Vec::new(),
        };
        let mut stranger = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = stranger.id();
        let (mut to, from) = (
            stranger.stdin.take().unwrap(),
            stranger.stdout.take().unwrap(),
        );
        // It was in the list when that was read, and is not now.
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        kill_member(&group, pid);
        // A process that was sent SIGKILL answers nothing any more, also where it is not dead yet.
        to.write_all(b"here\n").unwrap();
        let mut answer = String::new();
        BufReader::new(from).read_line(&mut answer).unwrap();
        assert_eq!(answer, "here\n");
        // One that is, is killed.
        fs::write(dir.path().join("cgroup.procs"), format!("{pid}\n")).unwrap();
        kill_member(&group, pid);
        let status = stranger.wait().unwrap();
        assert!(!status.success());
    }
}
