//! From the shim to the launchable's program: fork, take everything away, execute.
//!
//! The child waits until the shim has put its identity on disk, so no program ever runs that no
//! record names. What fails on the way is reported through a pipe that closes when the program is
//! executed.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

use super::{cgroup, mounts, output, sys};
use crate::exits::ExitStatus;
use crate::process::ProcessId;
use crate::process::identify;
use crate::spec::{Resource, Rlimit, Spec, User};

/// Why a program was not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    errno: i32,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(what: &str, error: &io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("cannot {what}: {error}"),
        }
    }
}

impl From<Failure> for ExitStatus {
    fn from(failure: Failure) -> Self {
        let Failure { errno, message } = failure;
        Self::NotStarted { errno, message }
    }
}

/// A child that waits to be let go.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) process: ProcessId,
    gate: OwnedFd,
    report: OwnedFd,
}

/// Where a child reports what failed; at its end, the program runs.
#[derive(Debug)]
pub(super) struct Report(File);

impl Ready {
    /// Lets the child execute the program. Dropping it instead makes the child leave.
    pub(super) fn go(self) -> Report {
        // A child that is gone already shows by its exit.
        let _ = File::from(self.gate).write_all(b"g");
        Report(File::from(self.report))
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a [`Report`] says so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Still between fork and exec.
    Underway,
    /// The program runs (or the child was killed before it could say anything).
    Executed,
    /// The child gave up.
    Failed(Failure),
}

impl Report {
    /// Reads without waiting.
    pub(super) fn read(&mut self, spec: &Spec) -> Progress {
        let mut bytes = [0; 8];
        match self.0.read(&mut bytes) {
            Ok(0) => Progress::Executed,
            Ok(8) => Progress::Failed(explain(&bytes, spec)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Underway,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Progress::Underway,
            Ok(_) | Err(_) => Progress::Executed,
        }
    }
}

/// Makes the child. It does nothing yet.
pub(super) fn prepare(spec: &Spec) -> Result<Ready, Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Failure::new("make a pipe", &e.into()));
    let (go, gate) = pipe()?;
    let (report, tell) = pipe()?;
    rustix::io::ioctl_fionbio(&report, true)
        .map_err(|error| Failure::new("prepare a pipe", &error.into()))?;
    match sys::fork().map_err(|error| Failure::new("make a process", &error))? {
        sys::Fork::Child => {
            drop((gate, report));
            child(spec, File::from(go), File::from(tell))
        }
        sys::Fork::Parent { pid } => {
            // It is this process's child and was not waited for, so it is in /proc.
            let process = identify(pid).ok_or_else(|| {
                Failure::new(
                    "find the new process in /proc",
                    &io::ErrorKind::NotFound.into(),
                )
            })?;
            Ok(Ready {
                process,
                gate,
                report,
            })
        }
    }
}

/// The steps between fork and exec, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Session,
    Cgroup,
    OomScore,
    Rlimit,
    Output,
    PrivateTmp,
    Capabilities,
    Groups,
    User,
    NoNewPrivs,
    Cwd,
    Descriptors,
    Signals,
    Exec,
}

impl Step {
    const ALL: [Self; 14] = [
        Self::Session,
        Self::Cgroup,
        Self::OomScore,
        Self::Rlimit,
        Self::Output,
        Self::PrivateTmp,
        Self::Capabilities,
        Self::Groups,
        Self::User,
        Self::NoNewPrivs,
        Self::Cwd,
        Self::Descriptors,
        Self::Signals,
        Self::Exec,
    ];
}

/// A step that failed: which, with which of several (limits, groups), and why.
struct Failed(Step, usize, io::Error);

impl Failed {
    /// The form that is sent to the shim.
    fn encode(&self) -> [u8; 8] {
        let Self(step, index, error) = self;
        let mut bytes = [0; 8];
        bytes[0] = *step as u8;
        bytes[2..4].copy_from_slice(&u16::try_from(*index).unwrap_or(u16::MAX).to_le_bytes());
        bytes[4..].copy_from_slice(&error.raw_os_error().unwrap_or(0).to_le_bytes());
        bytes
    }
}

trait At<T> {
    fn at(self, step: Step, index: usize) -> Result<T, Failed>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, index: usize) -> Result<T, Failed> {
        self.map_err(|error| Failed(step, index, error.into()))
    }
}

fn child(spec: &Spec, mut go: File, mut tell: File) -> ! {
    let mut word = [0; 1];
    if !matches!(go.read(&mut word), Ok(1)) {
        sys::leave(0); // the shim died or changed its mind: nothing was executed
    }
    let failed = become_the_launchable(spec);
    let _ = tell.write_all(&failed.encode());
    sys::leave(127)
}

/// Executes the program in this process, whose output goes where it went. Returns why not.
pub(super) fn become_in_place(spec: &Spec) -> Failure {
    let Failed(step, index, error) = match shed(spec, Output::AsItIs) {
        Ok((argv, env)) => Failed(Step::Exec, 0, sys::exec(&argv, &env)),
        Err(failed) => failed,
    };
    explain(&Failed(step, index, error).encode(), spec)
}

/// Where the output of the program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// The FIFO in the current directory.
    Fifo,
    AsItIs,
}

fn become_the_launchable(spec: &Spec) -> Failed {
    match shed(spec, Output::Fifo) {
        Ok((argv, env)) => Failed(Step::Exec, 0, sys::exec(&argv, &env)),
        Err(failed) => failed,
    }
}

type Strings = Vec<CString>;

/// Everything before the exec itself.
fn shed(spec: &Spec, to: Output) -> Result<(Strings, Strings), Failed> {
    // Still as the shim's user.
    match rustix::process::setsid() {
        // It leads one already.
        Err(rustix::io::Errno::PERM) if to == Output::AsItIs => {}
        result => drop(result.at(Step::Session, 0)?),
    }
    for (index, group) in groups(spec).enumerate() {
        cgroup::join(group).at(Step::Cgroup, index)?;
    }
    set_oom_score(spec.oom_score_adj).at(Step::OomScore, 0)?;
    for (index, limit) in spec.rlimits.iter().enumerate() {
        set_rlimit(*limit).at(Step::Rlimit, index)?;
    }
    rustix::process::umask(Mode::from_raw_mode(spec.umask));
    let input = File::open("/dev/null").at(Step::Output, 0)?;
    rustix::stdio::dup2_stdin(&input).at(Step::Output, 0)?;
    if to == Output::Fifo {
        let output = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(output::FIFO)
            .at(Step::Output, 0)?;
        rustix::stdio::dup2_stdout(&output).at(Step::Output, 0)?;
        rustix::stdio::dup2_stderr(&output).at(Step::Output, 0)?;
    }

    if let Some(tmp) = &spec.private_tmp {
        mounts::private_tmp(tmp, &spec.cwd).at(Step::PrivateTmp, 0)?;
    }

    // From here on as the launchable's.
    if let Some(user) = &spec.user {
        switch_user(user, spec.no_new_privs)?;
    }
    if spec.no_new_privs {
        rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivs, 0)?;
    }
    rustix::process::chdir(&spec.cwd).at(Step::Cwd, 0)?;
    sys::close_above_stdio(true).at(Step::Descriptors, 0)?;
    let argv = spec
        .argv
        .iter()
        .map(|arg| c_string(arg))
        .collect::<Result<_, _>>()?;
    let env = environment(spec)?;
    // Last, since a stop that was asked for meanwhile is delivered here.
    sys::reset_signals().at(Step::Signals, 0)?;
    Ok((argv, env))
}

/// Everything that a command beside the launchable sheds: like [`shed`], but with the session,
/// input and output of whoever asked. It sees the file systems in `view`, if that is given. Returns
/// its environment, or what failed.
///
/// A launchable may have changed what it sees, and put other files in the place of those of the
/// system. So everything that is looked up by its path as the shim's user is, before the command
/// sees what the launchable sees.
pub(super) fn shed_beside(spec: &Spec, view: Option<File>) -> Result<Strings, String> {
    let join = || {
        for (index, group) in groups(spec).enumerate() {
            cgroup::join(group).at(Step::Cgroup, index)?;
        }
        set_oom_score(spec.oom_score_adj).at(Step::OomScore, 0)?;
        for (index, limit) in spec.rlimits.iter().enumerate() {
            set_rlimit(*limit).at(Step::Rlimit, index)?;
        }
        rustix::process::umask(Mode::from_raw_mode(spec.umask));
        Ok(())
    };
    let shed = || {
        if let Some(user) = &spec.user {
            switch_user(user, spec.no_new_privs)?;
        }
        if spec.no_new_privs {
            rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivs, 0)?;
        }
        rustix::process::chdir(&spec.cwd).at(Step::Cwd, 0)?;
        sys::close_above_stdio(true).at(Step::Descriptors, 0)?;
        let env = environment(spec)?;
        sys::reset_signals().at(Step::Signals, 0)?;
        Ok(env)
    };
    let explained = |failed: Failed| explain(&failed.encode(), spec).message;
    join().map_err(explained)?;
    if let Some(view) = view {
        let kind = Some(LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(view.as_fd(), kind)
            .map_err(|error| format!("cannot join its file system: {error}"))?;
    }
    shed().map_err(explained)
}

fn environment(spec: &Spec) -> Result<Strings, Failed> {
    let variables = spec.env.iter().map(|(key, value)| {
        let mut variable = key.clone();
        variable.push("=");
        variable.push(value);
        c_string(&variable)
    });
    variables.collect()
}

fn groups(spec: &Spec) -> impl Iterator<Item = &std::path::PathBuf> {
    spec.tracking.iter().chain(&spec.cgroups)
}

fn c_string(text: &OsStr) -> Result<CString, Failed> {
    CString::new(text.as_bytes()).at(Step::Exec, 0)
}

fn set_oom_score(score: i32) -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let current = std::fs::read_to_string(path).unwrap_or_default();
    if current.trim() == score.to_string() {
        return Ok(());
    }
    match OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(score.to_string().as_bytes())
    {
        // Only root may lower it below what it was started with: then it stays.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

fn set_rlimit(limit: Rlimit) -> Result<(), rustix::io::Errno> {
    use rustix::process as p;
    let resource = match limit.resource {
        Resource::AddressSpace => p::Resource::As,
        Resource::Core => p::Resource::Core,
        Resource::Cpu => p::Resource::Cpu,
        Resource::Data => p::Resource::Data,
        Resource::FileSize => p::Resource::Fsize,
        Resource::LockedMemory => p::Resource::Memlock,
        Resource::OpenFiles => p::Resource::Nofile,
        Resource::Processes => p::Resource::Nproc,
        Resource::Stack => p::Resource::Stack,
    };
    let value = |bound| (bound != u64::MAX).then_some(bound);
    p::setrlimit(
        resource,
        p::Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        },
    )
}

/// Becomes that user for good, and makes sure of it.
fn switch_user(user: &User, no_new_privs: bool) -> Result<(), Failed> {
    use rustix::thread as t;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && rustix::process::geteuid() == uid && rustix::process::getegid() == gid {
        return Ok(());
    }
    if !uid.is_root() {
        match sys::drop_bounding_set() {
            // In a container that may not: without new privileges the set gives nothing anyway.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && no_new_privs => {}
            result => result.at(Step::Capabilities, 0)?,
        }
    }
    let groups: Vec<_> = user
        .groups
        .iter()
        .map(|group| Gid::from_raw(*group))
        .collect();
    t::set_thread_groups(&groups).at(Step::Groups, 0)?;
    t::set_thread_res_gid(gid, gid, gid).at(Step::User, 0)?;
    t::set_thread_res_uid(uid, uid, uid).at(Step::User, 0)?;
    if uid.is_root() {
        return Ok(());
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    t::set_capabilities(None, sets).at(Step::Capabilities, 0)?;
    let same = rustix::process::getuid() == uid && rustix::process::geteuid() == uid;
    let back = t::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT);
    if !same || back.is_ok() {
        return Err(Failed(Step::User, 0, rustix::io::Errno::PERM.into()));
    }
    Ok(())
}

/// Says in words what a child reported.
fn explain(bytes: &[u8; 8], spec: &Spec) -> Failure {
    let step = Step::ALL
        .into_iter()
        .find(|step| *step as u8 == bytes[0])
        .unwrap_or(Step::Exec);
    let index = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    let errno = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let error = io::Error::from_raw_os_error(errno);
    let what = match step {
        Step::Session => "begin a session".to_owned(),
        Step::Cgroup => format!(
            "join the cgroup {}",
            groups(spec)
                .nth(index)
                .map_or_else(String::new, |group| group.display().to_string())
        ),
        Step::OomScore => format!("set its oom_score_adj to {}", spec.oom_score_adj),
        Step::Rlimit => match spec.rlimits.get(index) {
            Some(Rlimit {
                resource,
                soft,
                hard,
            }) => {
                format!("limit {} to {soft}:{hard}", resource.name())
            }
            None => "set a resource limit".to_owned(),
        },
        Step::Output => "open its input and output".to_owned(),
        Step::PrivateTmp => "make a /tmp of its own".to_owned(),
        Step::Capabilities => "drop capabilities".to_owned(),
        Step::Groups => "set its groups (is the shim run by root?)".to_owned(),
        Step::User => match &spec.user {
            Some(user) => format!("become user {} and group {}", user.uid, user.gid),
            None => "become its user".to_owned(),
        },
        Step::NoNewPrivs => "renounce new privileges".to_owned(),
        Step::Cwd => format!("enter {} as its user", spec.cwd.display()),
        Step::Descriptors => "close files".to_owned(),
        Step::Signals => "reset signals".to_owned(),
        Step::Exec => {
            let program = spec.argv.first().map(std::path::Path::new);
            let name = program.map_or_else(String::new, |program| program.display().to_string());
            let mut failure = Failure::new(&format!("execute {name}"), &error);
            failure.message.push_str(match errno {
                libc::ENOENT if program.is_some_and(std::path::Path::exists) => {
                    " (the file exists: is the interpreter or loader it names missing?)"
                }
                libc::ENOEXEC => " (is a first line like #!/bin/sh missing?)",
                libc::EACCES => {
                    " (is it executable, and can its user enter every directory above it?)"
                }
                libc::E2BIG => " (arguments and environment are too large)",
                _ => "",
            });
            return failure;
        }
    };
    Failure::new(&what, &error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    #[test]
    fn a_child_that_was_not_let_go_executes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let trace = dir.path().join("trace");
        let spec = Spec::new(
            ["/usr/bin/touch".as_ref(), trace.as_os_str()],
            "/",
            "/tmp",
            "x",
        );
        let ready = prepare(&spec).unwrap();
        let pid = crate::process::to_pid(ready.process.pid);
        drop(ready); // as when the shim is killed before the start is on disk
        let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        assert!(!trace.exists());
    }
}
