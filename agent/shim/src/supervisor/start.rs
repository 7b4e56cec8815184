//! How a shim begins: from the agent's child to a process of its own that serves its directory.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::pipe::{PipeFlags, pipe_with};

use super::adopt::end_leftovers;
use super::control::Control;
use super::output::Output;
use super::{Parts, Supervisor, beside, cgroup, sys};
use crate::client::{ALREADY_RUNNING, DOWN, USAGE};
use crate::exits::read_exits;
use crate::process;
use crate::spec::{Spec, read_spec};
use crate::state::{Phase, State, read_state};

/// How long the process the agent waits for waits for the shim.
const READY: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// Why a shim does not begin.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Another one serves the directory.
    Running,
    Failed(String),
}

impl Refusal {
    fn at<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed(format!("cannot {what}: {error}"))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running => f.write_str("another one serves the directory"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// The program `platctrl-shim`: `platctrl-shim [down] <dir>`, a command beside a launchable, or
/// `platctrl-shim runit <verb> <dir>` where runit supervises instead. Returns its exit code.
pub fn main() -> i32 {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|word| word == "runit").is_some() {
        return super::runit::main(args);
    }
    if args.next_if(|word| word == beside::WORD).is_some() {
        return beside::main(args);
    }
    let down = args.next_if(|word| word == DOWN).is_some();
    let (Some(dir), None) = (args.next(), args.next()) else {
        let _ = writeln!(io::stderr(), "usage: platctrl-shim [{DOWN}] DIRECTORY");
        return USAGE;
    };
    match detach(&dir, down) {
        Ok(()) => 0,
        Err(Refusal::Running) => ALREADY_RUNNING,
        Err(Refusal::Failed(why)) => {
            let _ = writeln!(io::stderr(), "platctrl-shim {}: {why}", dir.display());
            1
        }
    }
}

/// Forks the shim proper and waits until it serves, or says why not.
fn detach(dir: &OsString, down: bool) -> Result<(), Refusal> {
    // Whatever the caller left open is not for the shim, let alone the launchable.
    sys::close_above_stdio(false).map_err(Refusal::at("close inherited files"))?;
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(Refusal::at("make a pipe"))?;
    if let sys::Fork::Child = sys::fork().map_err(Refusal::at("make a process"))? {
        drop(ready);
        let mut tell = File::from(tell);
        let word = match begin(Path::new(dir), down) {
            Ok(supervisor) => {
                let told = tell.write_all(b"ready");
                drop((tell, told));
                supervisor.run();
                sys::leave(0)
            }
            Err(Refusal::Running) => "running".to_owned(),
            Err(Refusal::Failed(why)) => why,
        };
        let _ = tell.write_all(word.as_bytes());
        sys::leave(1);
    }
    drop(tell);
    let mut watched = [PollFd::new(&ready, PollFlags::IN)];
    if poll(&mut watched, Some(&READY)).map_err(Refusal::at("wait for the shim"))? == 0 {
        return Err(Refusal::Failed(
            "it is not ready after 30 s; it goes on trying".to_owned(),
        ));
    }
    let mut word = String::new();
    File::from(ready)
        .read_to_string(&mut word)
        .map_err(Refusal::at("hear from the shim"))?;
    match word.as_str() {
        "ready" => Ok(()),
        "running" => Err(Refusal::Running),
        "" => Err(Refusal::Failed("it died before it was ready".to_owned())),
        _ => Err(Refusal::Failed(word)),
    }
}

/// Everything up to the point where requests are served. `down`: the launchable is not started.
fn begin(dir: &Path, down: bool) -> Result<Supervisor, Refusal> {
    rustix::process::setsid().map_err(Refusal::at("begin a session"))?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(Refusal::at("open /dev/null"))?;
    let stdio = rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null));
    stdio.map_err(Refusal::at("use /dev/null"))?;
    drop(null);
    rustix::process::umask(Mode::from_raw_mode(0o077));
    enter(dir)?;
    // From here on "." is the shim's directory.
    let here = Path::new(".");
    let lock = lock()?;
    let signals = sys::take_signals().map_err(Refusal::at("take signals"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(Refusal::at("become subreaper"))?;
    let spec = read_spec(here).map_err(Refusal::at("read the spec"))?;
    for group in &spec.shim_cgroups {
        match cgroup::join(group) {
            // Groups are gone after a boot, and whoever wants an end makes none.
            Err(error) if down && error.kind() == io::ErrorKind::NotFound => {}
            joined => joined.map_err(|error| {
                Refusal::Failed(format!("cannot join {}: {error}", group.display()))
            })?,
        }
    }
    let before = read_state(here).map_err(Refusal::at("read the state"))?;
    let exits = read_exits(here).map_err(Refusal::at("read the exits"))?;
    let (output, fifo_existed) =
        Output::open(spec.log.clone()).map_err(Refusal::at("prepare the output FIFO"))?;
    let boot_id = process::boot_id();
    end_predecessor(before.as_ref(), &boot_id, &output, fifo_existed, &spec)?;
    let control = Control::bind().map_err(Refusal::at("bind the socket"))?;
    Supervisor::new(Parts {
        spec,
        before,
        exits,
        boot_id,
        down,
        output,
        control,
        signals,
        lock,
    })
    .map_err(Refusal::at("prepare the state"))
}

/// Makes the directory the current one, if it is this user's alone.
pub(super) fn enter(dir: &Path) -> Result<(), Refusal> {
    if !dir.is_absolute() {
        return Err(Refusal::Failed(
            "the directory must be an absolute path".to_owned(),
        ));
    }
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(dir)
        .map_err(Refusal::at("open the directory"))?;
    let metadata = handle
        .metadata()
        .map_err(Refusal::at("look at the directory"))?;
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me || metadata.mode() & 0o077 != 0 {
        return Err(Refusal::Failed(format!(
            "the directory must belong to uid {me} with mode 0700; it belongs to uid {} with mode \
             {:04o}",
            metadata.uid(),
            metadata.mode() & 0o7777
        )));
    }
    rustix::process::fchdir(&handle).map_err(Refusal::at("enter the directory"))
}

/// Held until this process ends, however it ends.
fn lock() -> Result<File, Refusal> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open("lock")
        .map_err(Refusal::at("open the lock"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::Running),
        Err(error) => Err(Refusal::at("lock the directory")(error)),
    }
}

/// Ends what the shim before this one left running in this boot.
fn end_predecessor(
    before: Option<&State>,
    boot_id: &str,
    output: &Output,
    fifo_existed: bool,
    spec: &Spec,
) -> Result<(), Refusal> {
    let (leader, search) = match before {
        Some(before) if before.boot_id != boot_id => (None, false),
        Some(before) => (
            before.child,
            !matches!(before.phase, Phase::Stopped | Phase::Exited),
        ),
        // No state, or none that can be read: whoever holds the FIFO is of this launchable.
        None => (None, fifo_existed),
    };
    let fifo = search
        .then(|| output.identity())
        .transpose()
        .map_err(Refusal::at("look at the output FIFO"))?;
    if leader.is_none() && fifo.is_none() && spec.tracking.is_none() {
        return Ok(());
    }
    end_leftovers(leader, fifo, spec).map_err(Refusal::Failed)
}

/// What is left in the directory when a shim has been told to quit.
pub(super) fn leave_directory() {
    // The state, the exits and the spec stay; connecting must fail from now on.
    let _ = fs::remove_file(super::control::SOCKET);
}
