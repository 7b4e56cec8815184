//! Programs that run once, to their end, within a time: scripts of artifacts, and hooks.
//!
//! They run under a supervisor as everything else does, so all that they start goes with them,
//! also what forks away, and an agent that dies meanwhile finds them again: the next one waits
//! for the same run, or hears how it ended, and does not run it a second time.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use platctrl_framework::model::Digest;
use tokio::sync::mpsc;

use super::{SuperviseError, Supervisor, Unit, UnitEvent, UnitExit, UnitSpec};

/// How long a program that took too long may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long processes that were killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a program has no end that could be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnceError {
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    #[error("it took longer than {within:?} and was killed with all that it had started")]
    TimedOut { within: Duration },
    #[error(
        "its processes do not end, not even by SIGKILL: the kernel waits for a device or a network file system"
    )]
    Stuck,
}

/// A number for a run that tells it from every other: the same parts, the same run.
pub(crate) fn run_number(parts: &[&str]) -> u64 {
    let digest = Digest::of(parts.join("\0").as_bytes());
    let hex: String = digest.hex().chars().take(15).collect();
    // 60 bits: a number that every format takes. Never 0, which is a unit's before its first run.
    u64::from_str_radix(&hex, 16).unwrap_or(1).max(1)
}

/// Runs a unit to its end, or waits for the run of the same number that was begun before; one that
/// went down with the machine, or its supervisor, is begun again. Its result stays with the
/// supervisor until [`forget`] is called, so that it is not run again.
pub(crate) async fn run(
    supervisor: &dyn Supervisor,
    unit: &Unit,
    spec: &UnitSpec,
    within: Duration,
) -> Result<UnitExit, OnceError> {
    let run = async {
        if let Err(error) = supervisor.start(unit, spec).await {
            // An earlier run that nobody waits for any more is in the way.
            end(supervisor, unit).await?;
            tracing::debug!(program = unit.program, %error, "an earlier run was ended");
            supervisor.start(unit, spec).await?;
        }
        loop {
            let mut events = supervisor.watch(unit, 0);
            match ended(&mut events, spec.generation).await {
                Some(exit) if !exit.unseen => return Ok(exit),
                // It was cut off, and says nothing about the program: once more, from its start.
                Some(_) => end(supervisor, unit).await?,
                // Its supervisor was killed: another one tells, and has ended what was left.
                None => {}
            }
            supervisor.start(unit, spec).await?;
        }
    };
    if let Ok(result) = tokio::time::timeout(within, run).await {
        return result;
    }
    end(supervisor, unit).await?;
    Err(OnceError::TimedOut { within })
}

/// The end of the run of this number; None when its supervisor is gone.
async fn ended(events: &mut mpsc::Receiver<UnitEvent>, generation: u64) -> Option<UnitExit> {
    let mut last = None;
    loop {
        match events.recv().await? {
            UnitEvent::Exit(exit) => last = Some(exit),
            UnitEvent::State(state)
                if state.activity.at_rest() && state.generation == generation =>
            {
                if let Some(exit) = last {
                    return Some(*exit);
                }
            }
            UnitEvent::State(_) => {}
            UnitEvent::Lost => return None,
        }
    }
}

/// Stops a run, with all that it started, and forgets it.
pub(crate) async fn end(supervisor: &dyn Supervisor, unit: &Unit) -> Result<(), OnceError> {
    if supervisor.stop(unit, GRACE).await? {
        let mut events = supervisor.watch(unit, u64::MAX);
        let rest = async {
            while let Some(event) = events.recv().await {
                match event {
                    UnitEvent::State(state) if state.activity.at_rest() => return,
                    UnitEvent::Lost => return,
                    _ => {}
                }
            }
        };
        if tokio::time::timeout(GRACE + PATIENCE, rest).await.is_err() {
            return Err(OnceError::Stuck);
        }
    }
    Ok(supervisor.forget(unit).await?)
}

/// Ends every run of which there is a directory in `parent` whose name begins with `prefix`, and
/// forgets them.
pub(crate) async fn end_all(
    supervisor: &dyn Supervisor,
    parent: &std::path::Path,
    prefix: &str,
) -> Result<(), OnceError> {
    let names = crate::files::subdirectories(parent).unwrap_or_default();
    for name in names.into_iter().filter(|name| name.starts_with(prefix)) {
        let dir: PathBuf = parent.join(&name);
        end(supervisor, &Unit { program: name, dir }).await?;
    }
    Ok(())
}

/// The last lines that a program wrote, short enough for a message.
pub(crate) fn last_words(log_dir: &std::path::Path, log_name: &str) -> String {
    const MOST: u64 = 600;
    let path = log_dir.join(format!("{log_name}.log"));
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().rev().take(3).collect();
    let printable = |line: &&str| {
        line.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect::<String>()
    };
    let lines: Vec<_> = lines.iter().rev().map(printable).collect();
    lines.join(" / ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_by_all_their_parts() {
        let one = run_number(&["a", "b"]);
        assert_eq!(one, run_number(&["a", "b"]));
        assert!(
            [&["ab", ""][..], &["a", "c"], &["a"]]
                .iter()
                .all(|parts| run_number(parts) != one)
        );
        assert!(one > 0 && one < 1 << 60);
    }

    #[test]
    fn the_last_words_are_the_last_lines_without_anything_that_moves_a_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let words = |text: &[u8]| {
            std::fs::write(dir.path().join("x.log"), text).unwrap();
            last_words(dir.path(), "x")
        };
        assert_eq!(words(b"one\ntwo\nthree\nfour\n"), "two / three / four");
        assert_eq!(words(b"\x1b[31mred\n"), "[31mred");
        assert_eq!(words(b""), "");
        assert!(words(&[b'x'; 5000]).len() <= 600);
        assert_eq!(last_words(dir.path(), "nothing"), "");
    }
}
