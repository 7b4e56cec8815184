//! A command beside a program of a pod, for people on the node: with the pod's user, its cgroup and
//! its environment, on the terminal of whoever asks.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::files::FileError;
use crate::layout::{Layout, LayoutError};
use crate::name::PodName;

/// Why no command can be run beside a pod.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BesideError {
    /// The data directory cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file of it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no such pod, or it was never started.
    #[error("pod {pod} has no programs on this node: `platctrl node inspect` lists what is here")]
    NoPod {
        /// The pod.
        pod: PodName,
    },
    /// The pod has no such program.
    #[error("pod {pod} has no program `{program}`: it has {}", known.join(", "))]
    NoProgram {
        /// The pod.
        pod: PodName,
        /// What was asked for.
        program: String,
        /// The programs that it has.
        known: Vec<String>,
    },
    /// The pod has several programs.
    #[error("pod {pod} has several programs: {}", known.join(", "))]
    Several {
        /// The pod.
        pod: PodName,
        /// The programs that it has.
        known: Vec<String>,
    },
}

/// The program and the arguments to execute, so that `command` runs beside a program of a pod (the
/// only one, unless `program` names it). Whoever executes it has to be root, or whom pods run as.
///
/// ```no_run
/// use platctrl_agent::{PodName, beside};
///
/// let pod = PodName::new("default", "hello")?;
/// let command = ["sh".into(), "-c".into(), "env".into()];
/// let (program, arguments) = beside("/var/lib/platctrl".as_ref(), &pod, None, &command)?;
/// std::process::Command::new(program).args(arguments).status()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`BesideError`].
pub fn beside(
    data_dir: &Path,
    pod: &PodName,
    program: Option<&str>,
    command: &[OsString],
) -> Result<(PathBuf, Vec<OsString>), BesideError> {
    let layout = Layout::open(data_dir)?;
    let paths = layout.pod(pod);
    let mut known = paths.programs()?;
    known.sort();
    let found = match (program, known.as_slice()) {
        (_, []) => return Err(BesideError::NoPod { pod: pod.clone() }),
        (None, [one]) => one.clone(),
        (None, _) => {
            let pod = pod.clone();
            return Err(BesideError::Several { pod, known });
        }
        (Some(program), _) => match known.iter().find(|known| *known == program) {
            Some(found) => found.clone(),
            None => {
                return Err(BesideError::NoProgram {
                    pod: pod.clone(),
                    program: program.to_owned(),
                    known,
                });
            }
        },
    };
    let shim = layout.newest_shim()?;
    let dir = paths.shim(&found).into_os_string();
    let head = ["exec".into(), dir, "--".into()];
    let arguments = head.into_iter().chain(command.iter().cloned());
    Ok((shim, arguments.collect()))
}
