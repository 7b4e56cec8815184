//! What a shim runs, and how.
//!
//! A [`Spec`] is written by the agent and read by the shim; `text` has its form on disk.

mod text;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use text::{SPEC_FILE, read_spec, write_spec};

/// Everything a shim must know to run its launchable.
///
/// ```
/// use platctrl_shim_lib::{RestartPolicy, Spec};
///
/// let mut spec = Spec::new(["/srv/web/bin/launch"], "/srv/web", "/srv/log", "web");
/// spec.env.push(("PATH".into(), "/usr/bin:/bin".into()));
/// spec.restart.policy = RestartPolicy::OnFailure;
/// assert_eq!(Spec::decode(spec.encode()?.as_bytes())?, spec);
/// # Ok::<(), platctrl_shim_lib::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spec {
    /// Which version of the intent this is. Another one than the last started forgets the
    /// restart count, the backoff, and that the launchable had finished or was stopped.
    pub generation: u64,
    /// The program (an absolute path) and its arguments. It is executed as it is, without a shell.
    pub argv: Vec<OsString>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory, entered as the launchable's user.
    pub cwd: PathBuf,
    /// Who runs it; `None` runs it as whoever runs the shim.
    pub user: Option<User>,
    /// Resource limits. [`Spec::new`] sets core dumps to none.
    pub rlimits: Vec<Rlimit>,
    /// The file mode creation mask.
    pub umask: u32,
    /// A directory in a cgroup v2 hierarchy that holds this launchable alone. It is joined, and
    /// everything in it is killed when the launchable is stopped or restarted.
    pub tracking: Option<PathBuf>,
    /// Further cgroup directories to join (v1 controllers).
    pub cgroups: Vec<PathBuf>,
    /// Cgroup directories the shim itself joins, so that a service manager that ends the agent's
    /// cgroup leaves the shim alone.
    pub shim_cgroups: Vec<PathBuf>,
    /// The launchable's `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Whether setuid programs and file capabilities are without effect.
    pub no_new_privs: bool,
    /// A directory that it finds as `/tmp` and `/var/tmp`, in a view of the file system of its own.
    /// Which of the two its working directory lies under stays as it is. Root's shim only.
    pub private_tmp: Option<PathBuf>,
    /// Where its output goes.
    pub log: LogSpec,
    /// When it is started again.
    pub restart: Restart,
    /// How long it may take to stop after SIGTERM before everything is killed.
    pub stop_timeout: Duration,
}

/// The identity a launchable gets: exactly these, nothing inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// One resource limit; `u64::MAX` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// What is limited.
    pub resource: Resource,
    /// The limit in force.
    pub soft: u64,
    /// How far the launchable may raise it.
    pub hard: u64,
}

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A resource the kernel limits per process (see `setrlimit(2)` for the units).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Resource { $($(#[$doc])* $name,)* }

        impl Resource {
            /// The name used in the spec file.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            fn from_name(name: &[u8]) -> Option<Self> {
                $(if name == $text.as_bytes() { return Some(Self::$name); })*
                None
            }
        }
    };
}

resources! {
    /// Address space, bytes.
    AddressSpace = "as",
    /// Size of a core dump, bytes.
    Core = "core",
    /// Processor time, seconds.
    Cpu = "cpu",
    /// Data segment, bytes.
    Data = "data",
    /// Size of a file it writes, bytes.
    FileSize = "fsize",
    /// Locked memory, bytes.
    LockedMemory = "memlock",
    /// Open files.
    OpenFiles = "nofile",
    /// Processes and threads of the user.
    Processes = "nproc",
    /// Stack, bytes.
    Stack = "stack",
}

/// Where output goes: `<dir>/<name>.log`, older parts in `<name>.log.1` (newest) and so on.
///
/// The directory should be writable by the shim's user alone. The shim opens files in it without
/// following links and refuses anything but a regular file with one name, so a launchable that
/// can write there can lose its own log and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSpec {
    /// The directory. It must exist; while it does not, output is dropped and counted.
    pub dir: PathBuf,
    /// The file's name without `.log`.
    pub name: String,
    /// A file is closed before it grows beyond this many bytes.
    pub max_bytes: u64,
    /// How many files are kept, the open one included.
    pub max_files: u32,
    /// A file is closed when it is older than this and something is written; `None` never.
    pub max_age: Option<Duration>,
}

/// When a launchable that ended is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restart {
    /// After which ends.
    pub policy: RestartPolicy,
    /// The wait before the second restart in a row; the first happens at once. Each further one
    /// waits twice as long.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
    /// A launchable that stayed up this long starts over with the backoff.
    pub reset_after: Duration,
}

/// After which ends a launchable is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// After every end.
    #[default]
    Always,
    /// After every end but exit code 0.
    OnFailure,
    /// After none.
    Never,
}

impl RestartPolicy {
    /// The name used in manifests and in the spec file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::OnFailure => "OnFailure",
            Self::Never => "Never",
        }
    }

    /// The policy of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Always, Self::OnFailure, Self::Never]
            .into_iter()
            .find(|policy| policy.name() == name)
    }
}

impl Default for Restart {
    /// At once, then 1 s, 2 s, … up to 5 min; over again after 10 min up.
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

impl LogSpec {
    /// Five files of 10 MiB in `dir`.
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            name: name.into(),
            max_bytes: 10 << 20,
            max_files: 5,
            max_age: None,
        }
    }
}

/// Why a spec cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// The file is cut short, damaged, or of another format or major version.
    Damaged(&'static str),
    /// A value is missing or not allowed.
    Invalid {
        /// Which.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It holds something that an older shim must not ignore.
    Newer {
        /// The key it does not know.
        key: String,
    },
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(why) => write!(f, "the spec is damaged: {why}; write it again"),
            Self::Invalid { key, why } => write!(f, "{key} in the spec {why}"),
            Self::Newer { key } => write!(
                f,
                "the spec needs {key}, which this shim does not know; start a newer shim"
            ),
        }
    }
}

impl std::error::Error for SpecError {}

impl From<SpecError> for io::Error {
    fn from(error: SpecError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

fn invalid(key: &str, why: &'static str) -> SpecError {
    SpecError::Invalid {
        key: key.to_owned(),
        why,
    }
}

impl Spec {
    /// A spec with the defaults: empty environment, umask 022, no core dumps, `no_new_privs`,
    /// restart always, ten seconds to stop, five log files of 10 MiB named after `log_name`.
    pub fn new<A: Into<OsString>>(
        argv: impl IntoIterator<Item = A>,
        cwd: impl Into<PathBuf>,
        log_dir: impl Into<PathBuf>,
        log_name: impl Into<String>,
    ) -> Self {
        Self {
            generation: 1,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: cwd.into(),
            user: None,
            rlimits: vec![Rlimit {
                resource: Resource::Core,
                soft: 0,
                hard: 0,
            }],
            umask: 0o022,
            tracking: None,
            cgroups: Vec::new(),
            shim_cgroups: Vec::new(),
            oom_score_adj: 0,
            no_new_privs: true,
            private_tmp: None,
            log: LogSpec::new(log_dir, log_name),
            restart: Restart::default(),
            stop_timeout: Duration::from_secs(10),
        }
    }

    /// Checks what the kernel or the shim would stumble over.
    pub fn validate(&self) -> Result<(), SpecError> {
        fn path(key: &str, path: &Path) -> Result<(), SpecError> {
            if !path.is_absolute() {
                return Err(invalid(key, "must be an absolute path"));
            }
            text(key, path.as_os_str())
        }
        fn text(key: &str, value: &OsStr) -> Result<(), SpecError> {
            if value.as_bytes().contains(&0) {
                return Err(invalid(key, "must not contain a NUL byte"));
            }
            Ok(())
        }
        let Some(program) = self.argv.first() else {
            return Err(invalid("argv", "must name a program"));
        };
        path("argv", Path::new(program))?;
        self.argv.iter().try_for_each(|arg| text("argv", arg))?;
        for (key, value) in &self.env {
            text("env", key)?;
            text("env", value)?;
            if key.is_empty() || key.as_bytes().contains(&b'=') {
                return Err(invalid(
                    "env",
                    "must have names that are not empty and have no '='",
                ));
            }
        }
        path("cwd", &self.cwd)?;
        if let Some(tmp) = &self.private_tmp {
            path("!private-tmp", tmp)?;
        }
        path("log-dir", &self.log.dir)?;
        for dir in self
            .tracking
            .iter()
            .chain(&self.cgroups)
            .chain(&self.shim_cgroups)
        {
            path("cgroup", dir)?;
        }
        if let Some(user) = &self.user {
            // -1 means "leave unchanged" to the kernel: the launchable would stay root.
            let ids = [user.uid, user.gid];
            if ids.iter().chain(&user.groups).any(|id| *id == u32::MAX) {
                return Err(invalid("user", "must not have the id 4294967295"));
            }
        }
        let name = self.log.name.as_bytes();
        if name.is_empty() || name.len() > 200 || name == b".." || name == b"." {
            return Err(invalid(
                "log-name",
                "must be 1 to 200 bytes and no directory",
            ));
        }
        if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(invalid("log-name", "must not contain '/' or NUL"));
        }
        if self.log.max_bytes < 4096 {
            return Err(invalid("log-max-bytes", "must be at least 4096"));
        }
        if !(1..=1000).contains(&self.log.max_files) {
            return Err(invalid("log-max-files", "must be 1 to 1000"));
        }
        if self.umask > 0o777 {
            return Err(invalid("umask", "must be at most 0777"));
        }
        if !(-1000..=1000).contains(&self.oom_score_adj) {
            return Err(invalid("oom-score-adj", "must be -1000 to 1000"));
        }
        if self.rlimits.iter().any(|limit| limit.soft > limit.hard) {
            return Err(invalid(
                "rlimit",
                "must not have a soft limit above the hard one",
            ));
        }
        Ok(())
    }
}
