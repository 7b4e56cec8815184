//! One check by a command beside a program of the pod, with its user, cgroups and environment.
//!
//! The supervisor's program executes it: a small process, so that starting one costs the same
//! however much the agent holds in memory. When it takes too long, its whole process group is
//! killed; what fled from that is in the pod's cgroup and ends with the pod.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use platctrl_framework::environment::Environment;
use platctrl_kinds::Span;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// So much of what a command says is read; more is thrown away.
const LONGEST_WORDS: usize = 1 << 10;

/// A command and where to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The supervisor's program.
    pub shim: PathBuf,
    /// The directory of the supervisor whose program the command runs beside.
    pub dir: PathBuf,
    /// The command and its arguments.
    pub command: Vec<String>,
}

impl Beside {
    /// The arguments of the supervisor's program that make it become the command.
    #[must_use]
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let words = self.command.iter().map(Into::into);
        let head = [
            "exec".into(),
            self.dir.clone().into_os_string(),
            "--".into(),
        ];
        head.into_iter().chain(words).collect()
    }
}

/// Kills the process group of a command that was given up, in whatever way.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // One that has ended is nobody's group.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs it once. A failure says what was run and how it ended.
pub(super) async fn run(
    environment: &Environment,
    beside: &Beside,
    timeout: Span,
) -> Result<(), String> {
    let outcome = tokio::select! {
        outcome = attempt(beside) => outcome,
        () = environment.sleep(timeout.duration()) => Err(format!("timed out after {timeout}")),
    };
    let name = beside.command.first().map_or("", String::as_str);
    outcome.map_err(|problem| format!("exec {name}: {problem}"))
}

async fn attempt(beside: &Beside) -> Result<(), String> {
    let mut child = Command::new(&beside.shim)
        .args(beside.arguments())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut group = Group(pid);
    let (status, words) = end(&mut child).await?;
    // It was waited for, so that its number may be another's from now on.
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    let first = words.lines().map(str::trim).find(|line| !line.is_empty());
    let said = first.map_or_else(String::new, |line| format!(": {line}"));
    Err(format!("{}{said}", ended(status)))
}

/// Waits for its end, and for that alone: whoever holds on to its output holds up nothing.
async fn end(child: &mut Child) -> Result<(ExitStatus, String), String> {
    let mut errors = child.stderr.take();
    let (mut words, mut piece) = (Vec::new(), [0; 512]);
    loop {
        let reading = async {
            match &mut errors {
                Some(errors) => errors.read(&mut piece).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        let read = tokio::select! {
            biased;
            read = reading => read,
            status = child.wait() => {
                let status = status.map_err(|error| error.to_string())?;
                return Ok((status, plain(&words)));
            }
        };
        if read == 0 {
            errors = None;
            continue;
        }
        let room = LONGEST_WORDS.saturating_sub(words.len());
        words.extend_from_slice(&piece[..read.min(room)]);
    }
}

/// What a command says is hostile: no control characters.
fn plain(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let keep = |c: char| match c {
        '\n' => '\n',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().map(keep).collect()
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A stand-in for the supervisor's program that runs what comes behind `--`.
    fn shim(dir: &std::path::Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join("shim");
        std::fs::write(&path, "#!/bin/sh\nshift 3\nexec \"$@\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn check(script: &str, timeout: Duration) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let beside = Beside {
            shim: shim(dir.path()),
            dir: "/nowhere".into(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        };
        let timeout = Span::from_millis(u64::try_from(timeout.as_millis()).unwrap());
        run(&Environment::system(), &beside, timeout).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn nought_is_healthy_and_everything_else_says_how_it_ended() {
        check("exit 0", LONG).await.unwrap();
        let failed = check("echo no database >&2; exit 3", LONG)
            .await
            .unwrap_err();
        assert_eq!(failed, "exec /bin/sh: exited with code 3: no database");
        let hostile = "printf 'a\\033[2J\\007b\\n' >&2; exit 3";
        let hostile = check(hostile, LONG).await.unwrap_err();
        assert_eq!(hostile, "exec /bin/sh: exited with code 3: a [2J b");
        let killed = check("kill -9 $$", LONG).await.unwrap_err();
        assert_eq!(killed, "exec /bin/sh: was ended by signal 9");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!(
            "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let failed = check(&script, Duration::from_millis(500))
            .await
            .unwrap_err();
        assert_eq!(failed, "exec /bin/sh: timed out after 500ms");
        // Under load it may have been killed before it started anything.
        let Ok(pid) = std::fs::read_to_string(&file) else {
            return;
        };
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = async {
            while std::fs::read_to_string(&stat).is_ok_and(|it| !it.contains(") Z")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, gone)
            .await
            .expect("it is killed, too");
    }

    #[tokio::test]
    async fn output_without_end_and_one_who_keeps_it_hold_up_nothing() {
        let failed = check("yes | tr -d '\\n' | head -c 300000 >&2; exit 1", LONG).await;
        assert!(failed.unwrap_err().len() < 2 * LONGEST_WORDS);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // Its child keeps standard error open, and is in another process group.
        let script = format!(
            "setsid sh -c 'echo $$ > {}; exec sleep 1000' & exit 0",
            file.display()
        );
        check(&script, LONG).await.unwrap();
        let started = async {
            loop {
                match std::fs::read_to_string(&file)
                    .ok()
                    .and_then(|it| it.trim().parse().ok())
                {
                    Some(pid) => return pid,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let pid = tokio::time::timeout(LONG, started).await.unwrap();
        let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
}
