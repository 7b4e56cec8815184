//! What supervisors of every kind do alike: they block in a thread for it, are followed by a task
//! each, and leave no directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use platctrl_shim_lib::SPEC_FILE;
use tokio::sync::mpsc;

use super::{SuperviseError, Unit, UnitEvent};

/// Records of a unit that wait to be taken: a slow pod holds up its own supervisor's news only.
const QUEUE: usize = 64;
/// Between two looks at what is about to happen.
const PAUSE: Duration = Duration::from_millis(2);

/// Does something that blocks to a unit.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    unit: &Unit,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, SuperviseError> {
    let result = match crate::blocking::waiting(work).await {
        Ok(result) => result,
        Err(panic) => Err(io::Error::other(panic)),
    };
    result.map_err(|source| error(doing, unit, source))
}

/// What could not be done to a unit.
pub(super) fn error(doing: &'static str, unit: &Unit, source: io::Error) -> SuperviseError {
    SuperviseError {
        doing,
        program: unit.program.clone(),
        source,
    }
}

/// Follows a unit in a task of its own, until that ends or nobody listens.
pub(super) fn watch<F>(
    unit: &Unit,
    follow: impl FnOnce(PathBuf, mpsc::Sender<UnitEvent>) -> F,
) -> mpsc::Receiver<UnitEvent>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let dir = unit.dir.clone();
    let following = follow(dir.clone(), sender.clone());
    tokio::spawn(async move {
        // However it ends, nobody hears of the unit any more.
        if let Err(error) = following.await {
            tracing::debug!(dir = %dir.display(), %error, "a supervisor is not heard any more");
        }
        let _ = sender.send(UnitEvent::Lost).await;
    });
    receiver
}

/// Ends the supervisor of a unit at rest, and removes what it kept.
pub(super) async fn forget(
    unit: &Unit,
    quit: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
) -> Result<(), SuperviseError> {
    let dir = unit.dir.clone();
    let work = move || {
        quit(&dir)?;
        remove(&dir)
    };
    blocking("forget", unit, work).await
}

/// Removes the directory of a unit at rest. What it is to run goes first: a directory without that,
/// left by whoever died over this, is of nothing that could run.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let there = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    there(std::fs::remove_file(dir.join(SPEC_FILE)))?;
    there(std::fs::remove_dir_all(dir))
}

/// Waits for what nobody tells.
pub(super) fn wait(
    patience: Duration,
    otherwise: &'static str,
    mut done: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    while !done()? {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, otherwise));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
