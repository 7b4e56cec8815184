//! Running programs: what a supervisor promises, and what a program is started with.
//!
//! A *unit* is one program of a pod under a supervisor that outlives the agent. The agent talks to
//! supervisors through [`Supervisor`] alone; [`Shims`] implements it with one `platctrl-shim` for
//! each unit.

mod alike;
mod configuration;
mod environment;
mod limits;
mod mixed;
pub(crate) mod once;
mod runit;
mod shim;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc;

pub(crate) use configuration::configuration;
#[cfg(test)]
pub(crate) use environment::tests::version;
pub(crate) use environment::{FIXED_PATH, install_name};
pub(crate) use environment::{Surroundings, environment, script_environment};
pub(crate) use limits::confine;
pub(crate) use mixed::Mixed;
pub use runit::Runit;
pub(crate) use runit::is_runit;
pub use shim::Shims;
pub(crate) use shim::activity;

/// A program under a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// The program: `web`, or `web/a`.
    pub program: String,
    /// The supervisor's own directory.
    pub dir: PathBuf,
}

/// Everything a supervisor needs to run a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    /// Which version of the pod this is; a higher one starts over with restarts and backoff.
    pub generation: u64,
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Where it is started.
    pub cwd: PathBuf,
    /// Whom it runs as; None: whoever runs the agent.
    pub user: Option<crate::version::RunAs>,
    /// A cgroup directory that holds this unit alone, to find and kill everything it starts.
    pub tracking: Option<PathBuf>,
    /// Further cgroup directories to join, for limits.
    pub cgroups: Vec<PathBuf>,
    /// Cgroup directories for the supervisor itself, so that it outlives the agent's.
    pub supervisor_cgroups: Vec<PathBuf>,
    /// What the kernel limits of each of its processes.
    pub rlimits: Vec<platctrl_shim_lib::Rlimit>,
    /// The permissions that files it makes do not get.
    pub umask: u32,
    /// The directory that it finds as `/tmp`, if that is not the machine's.
    pub private_tmp: Option<PathBuf>,
    /// Where its output goes.
    pub log_dir: PathBuf,
    /// The log file's name without `.log`.
    pub log_name: String,
    /// How much of its output is kept.
    pub logs: platctrl_kinds::LogLimits,
    /// It may get more rights than it is started with: only the node's own hooks may.
    pub may_gain_rights: bool,
    /// When it is started again.
    pub restart: platctrl_kinds::RestartPolicy,
    /// How long it may take to end.
    pub stop_timeout: Duration,
}

impl UnitSpec {
    /// A program that runs once, in the root directory, as whoever runs the agent, with an empty
    /// environment and without groups.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, log_dir: PathBuf, log_name: String) -> Self {
        Self {
            generation: 1,
            program: program.into(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: None,
            tracking: None,
            cgroups: Vec::new(),
            supervisor_cgroups: Vec::new(),
            rlimits: Vec::new(),
            umask: 0o022,
            private_tmp: None,
            log_dir,
            log_name,
            logs: platctrl_kinds::LogLimits::default(),
            may_gain_rights: false,
            restart: platctrl_kinds::RestartPolicy::Never,
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// What a unit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Its process is being made.
    Starting,
    /// Its program runs.
    Running,
    /// It, or what it left behind, is being stopped.
    Stopping,
    /// It ended and waits for its next start.
    Waiting,
    /// It was stopped.
    Stopped,
    /// It ended, and is not to be started again.
    Finished,
}

impl Activity {
    /// Nothing of it runs, and nothing will without being asked.
    #[must_use]
    pub const fn at_rest(self) -> bool {
        matches!(self, Self::Stopped | Self::Finished)
    }
}

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitState {
    /// What it does.
    pub activity: Activity,
    /// The version of the pod that was started last.
    pub generation: u64,
    /// Its process.
    pub pid: Option<u32>,
    /// When that was started.
    pub started: Option<Timestamp>,
    /// How often it was started again.
    pub restarts: u64,
    /// How long until the next start, while waiting.
    pub next_start_in: Option<Duration>,
    /// What is wrong, in words, while something is.
    pub message: String,
}

/// How a run of a unit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitExit {
    /// 1 for the first, without gaps.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What is known beyond that, in words.
    pub message: String,
    /// It had been asked to stop.
    pub requested: bool,
    /// Nobody saw it: its supervisor was killed, or the machine went down.
    pub unseen: bool,
}

/// What a supervisor tells about a unit. Small, because a channel has room for many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitEvent {
    /// The state changed, or is told for the first time.
    State(Box<UnitState>),
    /// A run ended.
    Exit(Box<UnitExit>),
    /// The supervisor is gone: nobody watches over the unit.
    Lost,
}

/// A supervisor that could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{program}`: {source}")]
pub struct SuperviseError {
    /// The verb.
    pub doing: &'static str,
    /// The program.
    pub program: String,
    /// What went wrong.
    pub source: io::Error,
}

/// Starts, watches and stops units, in processes that outlive the agent. Every call may be
/// repeated: after a crash nobody knows whether the last one happened.
pub trait Supervisor: fmt::Debug + Send + Sync + 'static {
    /// Starts a unit with this spec, or starts a new supervisor for one that lost it. A unit that
    /// runs under a live supervisor is left alone.
    fn start<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<(), SuperviseError>>;

    /// Gives a unit that runs under a live supervisor another spec, which is used from its next
    /// start on. False: there is no supervisor.
    fn hand<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>>;

    /// Tells the ends above `after_exit`, the state, and all that follow, on a channel that ends
    /// after [`UnitEvent::Lost`].
    fn watch(&self, unit: &Unit, after_exit: u64) -> mpsc::Receiver<UnitEvent>;

    /// Begins to stop a unit: SIGTERM, and after `timeout` SIGKILL to all it started. Returns when
    /// that has begun. False: there is no supervisor, and nothing of the unit either.
    fn stop<'a>(
        &'a self,
        unit: &'a Unit,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>>;

    /// Starts a unit once more that has ended for good.
    fn again<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>>;

    /// Ends the supervisor of a unit that is at rest, and forgets the unit.
    fn forget<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>>;
}
