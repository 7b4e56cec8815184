//! `uninstall`: stops and removes everything of a data directory. It may be repeated, also after
//! it was interrupted, and removes nothing that platctrl did not make.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

use super::Setting;
use crate::error::{Failure, Result};
use crate::output;
use crate::place::{Lock, Pointer};

/// How long an `up` may take to end.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// What the parts of platctrl keep in a data directory, beside what the agent removes itself.
const KEPT: [&str; 16] = [
    "log",
    "store",
    "artifacts",
    "failsafe",
    "backup.partial",
    "tls",
    "token",
    "listens",
    "platctrl.sock",
    "agent.sock",
    "agent.lock",
    "platctrl.lock",
    "controllers.sock",
    "controllers.lock",
    "up.json",
    "up.lock",
];

#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// Do it
    #[arg(long)]
    yes: bool,
    /// How long programs may take to end
    #[arg(long, default_value = "10s", value_parser = super::duration, value_name = "TIME")]
    grace: Duration,
}

pub(crate) async fn run(args: &UninstallArgs, setting: &Setting) -> Result<()> {
    let data_dir = setting.data_dir()?;
    let Ok(data_dir) = data_dir.canonicalize() else {
        Pointer::remove(&data_dir);
        output::note(format_args!(
            "nothing is left to remove: there is no {}",
            data_dir.display()
        ));
        return Ok(());
    };
    if !is_data_dir(&data_dir)? {
        return Err(Failure::usage(format!(
            "{} is no data directory of platctrl",
            data_dir.display()
        ))
        .hint("name the directory that `platctrl up` was given; nothing was removed"));
    }
    if !args.yes {
        return Err(Failure::usage(format!(
            "this stops every pod of {} and removes them with their data",
            data_dir.display()
        ))
        .hint("say --yes to do it"));
    }
    let lock = stop_up(&data_dir).await?;
    let removed = platctrl_agent::uninstall(&data_dir, args.grace)
        .await
        .map_err(|error| {
            Failure::failed(error)
                .hint("what could be removed is removed; repeat it once the cause is gone")
        })?;
    remove_rest(&data_dir)?;
    drop(lock);
    Pointer::remove(&data_dir);
    output::note(format_args!(
        "removed {} pods and {}",
        removed.pods.len(),
        data_dir.display()
    ));
    Ok(())
}

/// Whether `up`, or an agent, ever worked here. An empty directory is what a finished uninstall
/// leaves when it was interrupted.
fn is_data_dir(dir: &Path) -> Result<bool> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", dir.display()));
    let marks = [
        Lock::path(dir),
        dir.join("state/pods"),
        dir.join("state/trash"),
    ];
    if marks.iter().any(|mark| mark.exists()) {
        return Ok(true);
    }
    Ok(std::fs::read_dir(dir).map_err(failed)?.next().is_none())
}

/// Takes the data directory from the `up` that has it.
async fn stop_up(data_dir: &Path) -> Result<Lock> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("cannot take {}: {error}", data_dir.display()))
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut asked = None;
    loop {
        let busy = match Lock::take(data_dir).map_err(failed)? {
            Ok(lock) => return Ok(lock),
            Err(busy) => busy,
        };
        // Who holds the lock wrote its number there, so this is it and no later process.
        if let Some(pid) = busy.pid
            && asked != Some(pid)
        {
            output::note(format_args!("stopping platctrl, process {pid}"));
            terminate(pid)?;
            asked = Some(pid);
        }
        if tokio::time::Instant::now() >= deadline {
            let who = busy
                .pid
                .map_or_else(String::new, |pid| format!(", process {pid},"));
            return Err(Failure::failed(format!(
                "the platctrl that runs on {}{who} does not end",
                data_dir.display()
            ))
            .hint("end it yourself, then repeat this; nothing was removed"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn terminate(pid: u32) -> Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let sent = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .and_then(|process| rustix::process::pidfd_send_signal(process, Signal::TERM));
    match sent {
        // It is ending already.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Failure::failed(format!(
            "cannot stop process {}: {error}",
            pid.as_raw_nonzero()
        ))),
    }
}

fn remove_rest(data_dir: &Path) -> Result<()> {
    let failed = |path: &Path, error: std::io::Error| {
        Failure::failed(format!("cannot remove {}: {error}", path.display()))
    };
    // The lock last: until then nobody else begins here.
    for name in KEPT {
        let path = data_dir.join(name);
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&path, error));
            }
            _ => {}
        }
    }
    use std::io::ErrorKind;
    match std::fs::remove_dir(data_dir) {
        // Busy: a disk of its own is mounted here, and unmounting it is not ours.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
            ) =>
        {
            let left = std::fs::read_dir(data_dir).map_err(|error| failed(data_dir, error))?;
            let left: Vec<_> = left
                .flatten()
                .map(|it| it.file_name().to_string_lossy().into_owned())
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            output::note(format_args!(
                "{} holds what platctrl did not put there, and stays: {}",
                data_dir.display(),
                output::plain(&left.join(", "))
            ));
            Ok(())
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(data_dir, error)),
        _ => Ok(()),
    }
}
