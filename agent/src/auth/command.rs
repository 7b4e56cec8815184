//! Running one of the machine's tools, for so long and no longer.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::AuthError;

/// Where such tools are: never where the environment says.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// What is read of what a tool says.
const LIMIT: u64 = 1 << 20;

/// What a tool did.
#[derive(Debug)]
pub(super) struct Output {
    /// Its exit code; None after a signal.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    /// What it said, on one line.
    pub(super) message: String,
}

/// Where a tool is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

/// Runs a tool and kills it when it takes too long.
pub(super) fn run(
    program: &'static str,
    user: &str,
    args: &[&str],
    within: Duration,
) -> Result<Output, AuthError> {
    let path = find(program).ok_or(AuthError::NoTool { program })?;
    let failed = |message: String| AuthError::Tool {
        program,
        name: user.to_owned(),
        message,
    };
    let io_failed = |error: io::Error| failed(error.to_string());
    // Files and not pipes: a full one stops nobody, and no descendant keeps us waiting.
    let stdout = tempfile::tempfile().map_err(io_failed)?;
    let stderr = tempfile::tempfile().map_err(io_failed)?;
    let mut child = Command::new(path)
        .args(args)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(io_failed)?)
        .stderr(stderr.try_clone().map_err(io_failed)?)
        .spawn()
        .map_err(io_failed)?;
    let ended = wait(&child, within);
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
    }
    let status = child.wait().map_err(io_failed)?;
    if !ended.map_err(io_failed)? {
        return Err(failed(format!(
            "it did not end within {within:?} and was killed"
        )));
    }
    let stdout = text(stdout).map_err(io_failed)?;
    let message = text(stderr).map_err(io_failed)?;
    let message: Vec<_> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let message = match (message.is_empty(), status.code()) {
        (false, _) => message.join("; "),
        (true, Some(code)) => format!("exit code {code}"),
        (true, None) => status.to_string(),
    };
    Ok(Output {
        code: status.code(),
        stdout,
        message,
    })
}

fn text(mut file: File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the child ends in time. It stays to be waited for.
fn wait(child: &Child, within: Duration) -> io::Result<bool> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_hangs_is_killed_and_named() {
        let error = run("sleep", "hello", &["1000"], Duration::from_millis(20)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`sleep`") && text.contains("was killed"),
            "{text}"
        );
    }

    #[test]
    fn what_a_tool_says_is_kept_on_one_line() {
        let output = run(
            "ls",
            "hello",
            &["/no such directory"],
            Duration::from_secs(20),
        )
        .unwrap();
        assert_ne!(output.code, Some(0));
        assert!(output.message.contains("no such directory") && !output.message.contains('\n'));
        assert!(matches!(
            run("no-such-tool", "hello", &[], Duration::from_secs(1)),
            Err(AuthError::NoTool {
                program: "no-such-tool"
            })
        ));
    }
}
