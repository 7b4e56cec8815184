//! What a shim runs, and how: the `spec` file, written by the agent, read by the shim.
//!
//! One `key value` per line, values escaped; lists are repeated keys. The first line names the
//! format, the last carries a checksum, so half a file is never taken for a whole one. A reader
//! ignores keys it does not know, except those that start with `!`: a writer marks with it what
//! must not be ignored (a new restriction, say), and an older shim then refuses the spec.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::codec;

const HEADER: &str = "platctrl-shim-spec 1";
/// More than the kernel accepts as arguments and environment together.
const MAX_BYTES: u64 = 8 << 20;

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
    /// Which version of the intent this is. A higher one than the last started forgets the
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

    /// The text of the `spec` file.
    ///
    /// # Errors
    /// When [`Spec::validate`] refuses it.
    pub fn encode(&self) -> Result<String, SpecError> {
        self.validate()?;
        let mut out = Lines(format!("{HEADER}\n"));
        out.number("generation", self.generation);
        for arg in &self.argv {
            out.text("arg", arg.as_bytes());
        }
        for (key, value) in &self.env {
            out.text("env", &[key.as_bytes(), b"=", value.as_bytes()].concat());
        }
        out.text("cwd", self.cwd.as_os_str().as_bytes());
        if let Some(user) = &self.user {
            out.number("uid", user.uid);
            out.number("gid", user.gid);
            for group in &user.groups {
                out.number("group", *group);
            }
        }
        for limit in &self.rlimits {
            let Rlimit {
                resource,
                soft,
                hard,
            } = limit;
            out.text(
                "rlimit",
                format!("{}:{soft}:{hard}", resource.name()).as_bytes(),
            );
        }
        out.text("umask", format!("{:o}", self.umask).as_bytes());
        for (key, paths) in [
            ("tracking", self.tracking.as_slice()),
            ("cgroup", &self.cgroups),
            ("shim-cgroup", &self.shim_cgroups),
        ] {
            for path in paths {
                out.text(key, path.as_os_str().as_bytes());
            }
        }
        out.text("oom-score-adj", self.oom_score_adj.to_string().as_bytes());
        out.number("no-new-privs", u8::from(self.no_new_privs));
        out.text("log-dir", self.log.dir.as_os_str().as_bytes());
        out.text("log-name", self.log.name.as_bytes());
        out.number("log-max-bytes", self.log.max_bytes);
        out.number("log-max-files", self.log.max_files);
        out.text("restart", self.restart.policy.name().as_bytes());
        out.number("backoff-initial-ms", millis(self.restart.initial));
        out.number("backoff-max-ms", millis(self.restart.max));
        out.number("backoff-reset-ms", millis(self.restart.reset_after));
        out.number("stop-timeout-ms", millis(self.stop_timeout));
        let sum = codec::checksum(out.0.as_bytes());
        let _ = writeln!(out.0, "end {sum:016x}");
        Ok(out.0)
    }

    /// Reads what [`Spec::encode`] wrote, in this or another minor version.
    ///
    /// # Errors
    /// When the text is cut short or damaged, lacks something, or demands something unknown.
    pub fn decode(text: &[u8]) -> Result<Self, SpecError> {
        let text = text
            .strip_suffix(b"\n")
            .ok_or(SpecError::Damaged("no newline at its end"))?;
        let end = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .ok_or(SpecError::Damaged("it has no last line"))?;
        let (body, last) = text.split_at(end + 1);
        let sum = last
            .strip_prefix(b"end ")
            .ok_or(SpecError::Damaged("it is cut short"))?;
        if format!("{:016x}", codec::checksum(body)).as_bytes() != sum {
            return Err(SpecError::Damaged("its checksum does not match"));
        }
        let mut lines = body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        if lines.next() != Some(HEADER.as_bytes()) {
            return Err(SpecError::Damaged("it is of another format or version"));
        }
        let mut spec = Self::new([""; 0], "", "", "");
        spec.rlimits.clear();
        let (mut uid, mut gid, mut groups) = (None, None, Vec::new());
        for line in lines {
            let at = line
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or(SpecError::Damaged("a line has no value"))?;
            let key = std::str::from_utf8(&line[..at])
                .map_err(|_| SpecError::Damaged("a key is not text"))?;
            let value = codec::unescape(&line[at + 1..])
                .ok_or(SpecError::Damaged("a value is not escaped"))?;
            match key {
                "generation" => spec.generation = number(key, &value)?,
                "arg" => spec.argv.push(OsString::from_vec(value)),
                "env" => {
                    let equals = value.iter().position(|byte| *byte == b'=');
                    let at = equals.ok_or_else(|| invalid(key, "has no '='"))?;
                    let (name, rest) = value.split_at(at);
                    spec.env.push((
                        OsStr::from_bytes(name).to_owned(),
                        OsStr::from_bytes(&rest[1..]).to_owned(),
                    ));
                }
                "cwd" => spec.cwd = to_path(value),
                "uid" => uid = Some(number(key, &value)?),
                "gid" => gid = Some(number(key, &value)?),
                "group" => groups.push(number(key, &value)?),
                "rlimit" => spec.rlimits.push(rlimit(&value)?),
                "umask" => {
                    spec.umask = std::str::from_utf8(&value)
                        .ok()
                        .and_then(|text| u32::from_str_radix(text, 8).ok())
                        .ok_or_else(|| invalid(key, "is not an octal number"))?;
                }
                "tracking" => spec.tracking = Some(to_path(value)),
                "cgroup" => spec.cgroups.push(to_path(value)),
                "shim-cgroup" => spec.shim_cgroups.push(to_path(value)),
                "oom-score-adj" => spec.oom_score_adj = number(key, &value)?,
                "no-new-privs" => spec.no_new_privs = number::<u8>(key, &value)? != 0,
                "log-dir" => spec.log.dir = to_path(value),
                "log-name" => {
                    spec.log.name =
                        String::from_utf8(value).map_err(|_| invalid(key, "is not UTF-8"))?;
                }
                "log-max-bytes" => spec.log.max_bytes = number(key, &value)?,
                "log-max-files" => spec.log.max_files = number(key, &value)?,
                "restart" => {
                    spec.restart.policy = std::str::from_utf8(&value)
                        .ok()
                        .and_then(RestartPolicy::from_name)
                        .ok_or_else(|| invalid(key, "is not Always, OnFailure or Never"))?;
                }
                "backoff-initial-ms" => spec.restart.initial = duration(key, &value)?,
                "backoff-max-ms" => spec.restart.max = duration(key, &value)?,
                "backoff-reset-ms" => spec.restart.reset_after = duration(key, &value)?,
                "stop-timeout-ms" => spec.stop_timeout = duration(key, &value)?,
                _ if key.starts_with('!') => {
                    return Err(SpecError::Newer {
                        key: key.to_owned(),
                    });
                }
                _ => {}
            }
        }
        spec.user = match (uid, gid) {
            (Some(uid), Some(gid)) => Some(User { uid, gid, groups }),
            (None, None) if groups.is_empty() => None,
            _ => return Err(invalid("user", "must have both uid and gid, or neither")),
        };
        spec.validate()?;
        Ok(spec)
    }
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn number<T: std::str::FromStr>(key: &str, value: &[u8]) -> Result<T, SpecError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(key, "is not a number in range"))
}

fn duration(key: &str, value: &[u8]) -> Result<Duration, SpecError> {
    number(key, value).map(Duration::from_millis)
}

fn rlimit(value: &[u8]) -> Result<Rlimit, SpecError> {
    let wrong = || invalid("rlimit", "is not a known NAME:SOFT:HARD");
    let mut parts = value.split(|byte| *byte == b':');
    let (Some(name), Some(soft), Some(hard), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    Ok(Rlimit {
        resource: Resource::from_name(name).ok_or_else(wrong)?,
        soft: number("rlimit", soft)?,
        hard: number("rlimit", hard)?,
    })
}

struct Lines(String);

impl Lines {
    fn number(&mut self, key: &str, value: impl Into<u64>) {
        let _ = writeln!(self.0, "{key} {}", value.into());
    }

    fn text(&mut self, key: &str, value: &[u8]) {
        let _ = write!(self.0, "{key} ");
        codec::escape(&mut self.0, value);
        self.0.push('\n');
    }
}

/// Writes `<dir>/spec` so that a reader sees the old one or the whole new one, also after a power
/// cut. Creates `dir` (mode 0700) when it is missing; its parent must exist.
///
/// # Errors
/// When the spec is refused by [`Spec::validate`] or a file operation fails.
pub fn write_spec(dir: &Path, spec: &Spec) -> io::Result<()> {
    let text = spec.encode()?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => sync_parent(dir)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let (new, path) = (dir.join("spec.new"), dir.join("spec"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    fs::File::open(dir)?.sync_all()
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    dir.parent()
        .map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
}

/// Reads `<dir>/spec`.
///
/// # Errors
/// When there is none or it cannot be used.
pub fn read_spec(dir: &Path) -> io::Result<Spec> {
    let mut text = Vec::new();
    fs::File::open(dir.join("spec"))?
        .take(MAX_BYTES)
        .read_to_end(&mut text)?;
    Ok(Spec::decode(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Spec {
        let mut spec = Spec::new(["/bin/launch", "a b", ""], "/", "/var/log/x y", "web");
        spec.generation = 7;
        spec.env = vec![
            ("A".into(), "line one\nline two=x\t\\x41".into()),
            ("B".into(), OsString::from_vec(vec![0xff, 0x80, 1])),
            ("EMPTY".into(), "".into()),
        ];
        spec.user = Some(User {
            uid: 1000,
            gid: 1001,
            groups: vec![5, 6],
        });
        spec.rlimits.push(Rlimit {
            resource: Resource::OpenFiles,
            soft: 1024,
            hard: u64::MAX,
        });
        spec.tracking = Some("/sys/fs/cgroup/unified/platctrl/x".into());
        spec.cgroups = vec![
            "/sys/fs/cgroup/memory/x".into(),
            "/sys/fs/cgroup/pids/x".into(),
        ];
        spec.shim_cgroups = vec!["/sys/fs/cgroup/unified/platctrl/shims".into()];
        spec.oom_score_adj = -7;
        spec.restart.policy = RestartPolicy::Never;
        spec.stop_timeout = Duration::from_millis(30_001);
        spec
    }

    /// `text` with its lines changed by `change` and the checksum made right again.
    fn edited(spec: &Spec, change: impl Fn(&mut String)) -> String {
        let text = spec.encode().unwrap();
        let mut body = text[..text.rfind("end ").unwrap()].to_owned();
        change(&mut body);
        let sum = codec::checksum(body.as_bytes());
        format!("{body}end {sum:016x}\n")
    }

    #[test]
    fn a_spec_is_read_back_as_it_was_written() {
        let spec = full();
        assert_eq!(Spec::decode(spec.encode().unwrap().as_bytes()), Ok(spec));
    }

    #[test]
    fn a_spec_that_is_cut_or_damaged_anywhere_is_refused() {
        let text = full().encode().unwrap();
        for at in 0..text.len() {
            assert!(Spec::decode(&text.as_bytes()[..at]).is_err(), "cut at {at}");
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 4;
            assert!(Spec::decode(&bytes).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored_unless_they_must_not_be() {
        let spec = full();
        let newer = edited(&spec, |body| body.push_str("shiny yes\n"));
        assert_eq!(Spec::decode(newer.as_bytes()), Ok(spec.clone()));
        let demanding = edited(&spec, |body| body.push_str("!seccomp strict\n"));
        assert_eq!(
            Spec::decode(demanding.as_bytes()),
            Err(SpecError::Newer {
                key: "!seccomp".into()
            })
        );
    }

    #[test]
    fn dangerous_values_are_refused() {
        type Change = fn(&mut Spec);
        let cases: [(&str, Change); 9] = [
            ("argv", |spec| spec.argv.clear()),
            ("argv", |spec| spec.argv[0] = "launch".into()),
            ("argv", |spec| spec.argv[1] = "a\0b".into()),
            ("env", |spec| spec.env[0].0 = "A=B".into()),
            ("user", |spec| spec.user.as_mut().unwrap().uid = u32::MAX),
            ("user", |spec| {
                spec.user.as_mut().unwrap().groups[0] = u32::MAX;
            }),
            ("log-name", |spec| spec.log.name = "../x".into()),
            ("cwd", |spec| spec.cwd = "relative".into()),
            ("cgroup", |spec| spec.tracking = Some("x".into())),
        ];
        for (key, change) in cases {
            let mut spec = full();
            change(&mut spec);
            assert!(
                matches!(spec.encode(), Err(SpecError::Invalid { key: k, .. }) if k == key),
                "{key}"
            );
        }
        for (from, to) in [("uid 1000", "uid 4294968296"), ("uid 1000", "uid -1")] {
            let text = edited(&full(), |body| *body = body.replace(from, to));
            assert!(Spec::decode(text.as_bytes()).is_err(), "{to}");
        }
        let half = edited(&full(), |body| *body = body.replace("gid 1001\n", ""));
        assert!(Spec::decode(half.as_bytes()).is_err());
    }
}
