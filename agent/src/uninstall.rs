//! Taking everything away that agents of a data directory ever made on this machine.
//!
//! It needs no running agent, and none may run: it takes the same lock. It can be run again, also
//! after it was interrupted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;

use crate::auth::{UserPolicy, Users};
use crate::cgroup::{self, Cgroups};
use crate::files::{self, FileError};
use crate::hoist;
use crate::launch::{Runit, Shims, SuperviseError, Supervisor, Unit, UnitEvent, is_runit, once};
use crate::layout::{Layout, LayoutError};
use crate::name::PodName;
use crate::secrets::Secrets;

/// How long a program may take to end after its grace before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why something was left behind. What could be removed is removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UninstallError {
    /// An agent works in the data directory.
    #[error("an agent is running in {}: stop it first", path.display())]
    Running {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The artifact store cannot be taken.
    #[error(transparent)]
    Artifacts(hoist::Error),
    /// A program cannot be stopped.
    #[error("pod {pod}: {source}")]
    Program {
        /// Its pod.
        pod: PodName,
        /// What went wrong.
        source: SuperviseError,
    },
    /// A file cannot be removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A user or a cgroup cannot be removed.
    #[error("{0}")]
    Machine(String),
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uninstalled {
    /// The pods that were stopped and removed.
    pub pods: Vec<PodName>,
}

/// Stops and removes every pod of a data directory, its supervisors, cgroups and artifacts, and the
/// users that agents made. A program may take `grace` to end.
///
/// ```no_run
/// # async fn clear() -> Result<(), platctrl_agent::UninstallError> {
/// let grace = std::time::Duration::from_secs(10);
/// let removed = platctrl_agent::uninstall("/var/lib/platctrl".as_ref(), grace).await?;
/// println!("{} pods were removed", removed.pods.len());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The first thing that could not be removed; everything else was tried all the same.
pub async fn uninstall(data_dir: &Path, grace: Duration) -> Result<Uninstalled, UninstallError> {
    if !data_dir.exists() {
        return Ok(Uninstalled::default());
    }
    let layout = Layout::open(data_dir)?;
    let lock =
        hoist::Store::open(hoist::Config::new(layout.data_dir())).map_err(|error| match error {
            hoist::Error::Busy { path } => UninstallError::Running { path },
            other => UninstallError::Artifacts(other),
        })?;
    let mut failures = Vec::new();
    let pods = layout.pods()?;
    let ends = join_all(pods.iter().map(|pod| end_pod(&layout, pod, grace))).await;
    for end in ends {
        failures.extend(end.err());
    }
    let hooks = layout.node_hooks().join("once");
    let ended = once::end_all(&Shims::new(layout.newest_shim()?), &hooks, "").await;
    failures.extend(
        ended
            .err()
            .map(|error| UninstallError::Machine(error.to_string())),
    );
    if failures.is_empty() {
        let cgroups = Cgroups::detect(&cgroup::tag(layout.data_dir()));
        let removed = cgroups.remove_all().map_err(|error| error.to_string());
        failures.extend(removed.err().map(UninstallError::Machine));
        let users = Users::open(layout.data_dir(), UserPolicy::default());
        let removed = users.remove_created().map_err(|error| error.to_string());
        failures.extend(removed.err().map(UninstallError::Machine));
    }
    failures.extend(Secrets::end(&layout).err().map(UninstallError::File));
    if failures.is_empty() {
        failures.extend(remove_directories(&layout).err().map(UninstallError::File));
    }
    drop(lock);
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(Uninstalled { pods }),
    }
}

async fn end_pod(layout: &Layout, pod: &PodName, grace: Duration) -> Result<(), UninstallError> {
    let paths = layout.pod(pod);
    let shim = layout.newest_shim()?;
    let shims = Shims::new(&shim);
    // Nothing is started, so it does not matter which.
    let runit = Runit::new("runsv", &shim);
    let units = paths.programs()?.into_iter().map(|program| {
        let dir = paths.shim(&program);
        Unit { program, dir }
    });
    let ends = units.map(|unit| {
        let supervisor: &dyn Supervisor = match is_runit(&unit.dir) {
            true => &runit,
            false => &shims,
        };
        end_unit(supervisor, unit, grace)
    });
    for end in join_all(ends).await {
        end.map_err(|source| UninstallError::Program {
            pod: pod.clone(),
            source,
        })?;
    }
    end_once(&shims, pod, &paths.once()).await?;
    files::make_dir(&layout.trash(), files::Access::mode(0o700))?;
    files::remove_tree(paths.home(), &layout.trash())?;
    files::remove_tree(paths.state(), &layout.trash())?;
    Ok(())
}

/// Ends scripts and hooks that still run.
async fn end_once(shims: &Shims, pod: &PodName, dir: &Path) -> Result<(), UninstallError> {
    let ended = once::end_all(shims, dir, "").await;
    ended.map_err(|error| UninstallError::Machine(format!("pod {pod}: {error}")))
}

async fn end_unit(
    shims: &dyn Supervisor,
    unit: Unit,
    grace: Duration,
) -> Result<(), SuperviseError> {
    if !shims.stop(&unit, grace).await? {
        return shims.forget(&unit).await;
    }
    let mut events = shims.watch(&unit, u64::MAX);
    let rest = async {
        while let Some(event) = events.recv().await {
            match event {
                UnitEvent::State(state) if state.activity.at_rest() => return,
                UnitEvent::Lost => return,
                _ => {}
            }
        }
    };
    if tokio::time::timeout(grace + PATIENCE, rest).await.is_err() {
        let source = io::Error::new(io::ErrorKind::TimedOut, "its processes do not end");
        return Err(SuperviseError {
            doing: "stop",
            program: unit.program.clone(),
            source,
        });
    }
    shims.forget(&unit).await
}

fn remove_directories(layout: &Layout) -> Result<(), FileError> {
    // The trash goes with the state it lies in, so it moves out first.
    let trash = layout.data_dir().join("trash");
    files::make_dir(&trash, files::Access::mode(0o700))?;
    for name in ["pods", "state", "shim", "installs", "cache", "users.json"] {
        files::remove_tree(&layout.data_dir().join(name), &trash)?;
    }
    std::fs::remove_dir(&trash).map_err(|error| FileError::new("remove", &trash, error))?;
    // What others keep in the data directory is theirs to remove, and so is a disk that is mounted
    // there (then it is busy).
    use io::ErrorKind::{DirectoryNotEmpty, ResourceBusy};
    match std::fs::remove_dir(layout.data_dir()) {
        Err(error) if !matches!(error.kind(), DirectoryNotEmpty | ResourceBusy) => {
            Err(FileError::new("remove", layout.data_dir(), error))
        }
        _ => Ok(()),
    }
}
