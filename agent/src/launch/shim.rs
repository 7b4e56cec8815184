//! Units under `platctrl-shim`: one small process each, found again by its socket, boot and start
//! time, and the unit by its cgroup.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use platctrl_shim_lib::protocol::GREETING;
use platctrl_shim_lib::{
    Client, ExitRecord, ExitStatus, Phase, Reply, Request, RestartPolicy, SPEC_FILE, Spec, State,
    User, is_alive, read_state, spawn, spawn_command, spawn_down, spawned, write_spec,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::alike::{self, blocking};
use super::{Activity, SuperviseError, Supervisor, Unit, UnitEvent, UnitExit, UnitSpec, UnitState};
use crate::blocking::{blocking as files, waiting};

/// How long a shim may take to greet; it does so at once.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two calls at a shim that has too many callers.
const PAUSE: Duration = Duration::from_millis(50);
/// Most of what a shim tells fits in so many bytes. Each pod's programs have such a buffer.
const RECORD: usize = 512;
/// How long a shim that was told to end may take.
const QUIT: Duration = Duration::from_secs(5);

/// Supervisors that are shims.
#[derive(Clone, Debug)]
pub struct Shims {
    program: PathBuf,
}

impl Shims {
    /// Starts new shims from this program; running ones are used whatever program they are.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }
}

impl Supervisor for Shims {
    fn start<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<(), SuperviseError>> {
        let (program, dir, spec) = (self.program.clone(), unit.dir.clone(), to_shim(spec));
        Box::pin(async move {
            let started = start(program, dir, spec).await;
            started.map_err(|source| alike::error("start", unit, source))
        })
    }

    fn hand<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>> {
        let (dir, spec) = (unit.dir.clone(), to_shim(spec));
        Box::pin(blocking("give a new version to", unit, move || {
            let mut client = match Client::connect(&dir) {
                Ok(client) => client,
                Err(error) if is_absent(&error) => return Ok(false),
                Err(error) => return Err(error),
            };
            write_spec(&dir, &spec)?;
            client.request(Request::Respec).map(|()| true)
        }))
    }

    fn watch(&self, unit: &Unit, after_exit: u64) -> mpsc::Receiver<UnitEvent> {
        alike::watch(unit, |dir, to| async move {
            follow(&dir, after_exit, &to).await
        })
    }

    fn stop<'a>(
        &'a self,
        unit: &'a Unit,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>> {
        let (program, dir) = (self.program.clone(), unit.dir.clone());
        Box::pin(blocking("stop", unit, move || {
            let request = Request::Stop {
                timeout: Some(timeout),
            };
            match Client::connect(&dir) {
                Ok(mut client) => client.request(request).map(|()| true),
                // What a killed shim left behind is found and ended by a new one, which starts
                // nothing first: it may run elsewhere by now.
                Err(error) if is_absent(&error) && has_started(&dir)? => {
                    spawn_down(&program, &dir)?.request(request).map(|()| true)
                }
                Err(error) if is_absent(&error) => Ok(false),
                Err(error) => Err(error),
            }
        }))
    }

    fn again<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>> {
        let (program, dir) = (self.program.clone(), unit.dir.clone());
        Box::pin(blocking("start", unit, move || {
            spawn(&program, &dir)?.request(Request::Restart { timeout: None })
        }))
    }

    fn forget<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(alike::forget(unit, quit))
    }
}

/// Nobody listens: there is no shim.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// A shim has worked in this directory, so that something of its unit may be left. One that was
/// about to be removed, at rest, is removed.
fn has_started(dir: &Path) -> io::Result<bool> {
    if read_state(dir)?.is_none() {
        return Ok(false);
    }
    if dir.join(SPEC_FILE).try_exists()? {
        return Ok(true);
    }
    alike::remove(dir).map(|()| false)
}

/// Nothing waits in a thread for the new process: hundreds may be made at once.
async fn start(program: PathBuf, dir: PathBuf, spec: Spec) -> io::Result<()> {
    let (at, generation) = (dir.clone(), spec.generation);
    let at_work = waiting(move || is_at_work(&at, generation));
    if at_work.await.map_err(io::Error::other)?? {
        return Ok(());
    }
    let at = dir.clone();
    let prepared = files(move || {
        write_spec(&at, &spec)?;
        // The same generation was stopped before, and is wanted again.
        Ok::<_, io::Error>(read_state(&at)?.is_some_and(|state| !state.wanted))
    });
    let stopped = prepared.await.map_err(io::Error::other)??;
    let mut command = tokio::process::Command::from(spawn_command(&program, &dir)?);
    let output = command.output().await.map_err(|error| {
        let what = format!("cannot execute {}: {error}", program.display());
        io::Error::new(error.kind(), what)
    })?;
    if spawned(&output)? && !stopped {
        return Ok(());
    }
    let told = waiting(move || {
        let mut client = spawn(&program, &dir)?;
        match client.status()?.wanted {
            true => Ok(()),
            false => client.request(Request::Start),
        }
    });
    told.await.map_err(io::Error::other)?
}

/// Whether a shim runs this generation. One at rest with another ends.
fn is_at_work(dir: &Path, generation: u64) -> io::Result<bool> {
    match Client::connect(dir) {
        Ok(mut client) => {
            let state = client.status()?;
            if state.generation == generation && state.wanted {
                return Ok(true);
            }
            if !state.phase.at_rest() {
                let why = format!("generation {} still runs", state.generation);
                return Err(io::Error::other(why));
            }
            // A new version gets a new shim: the program of the shim may be a newer one too.
            drop(client);
            quit(dir)?;
        }
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(false)
}

/// Ends the shim of a unit at rest and waits until it is gone.
fn quit(dir: &Path) -> io::Result<()> {
    match Client::connect(dir) {
        Ok(mut client) => {
            client.request(Request::Quit)?;
            let deadline = std::time::Instant::now() + QUIT;
            // It closes its socket when it leaves.
            loop {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                match client.next_event(left) {
                    Err(_) => break,
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the shim does not end",
                        ));
                    }
                }
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            alike::wait(left, "the shim does not end", || {
                Ok(!read_state(dir)?.is_some_and(|state| is_alive(&state)))
            })
        }
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Connects to the shim of a directory, and waits for no greeting.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    // By way of a descriptor: a socket's address has room for 107 bytes only.
    let handle = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/sock", handle.as_raw_fd());
    loop {
        match UnixStream::connect(&path).await {
            // Many have called and it has not answered yet.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Passes on what a shim tells until it is gone or nobody listens.
async fn follow(dir: &Path, after_exit: u64, to: &mpsc::Sender<UnitEvent>) -> io::Result<()> {
    let begun = async {
        let (reader, mut writer) = connect(dir).await?.into_split();
        let mut lines = BufReader::with_capacity(RECORD, reader).split(b'\n');
        let greeting = lines.next_segment().await?;
        if greeting.as_deref() != Some(GREETING.as_bytes()) {
            let what = "the shim greets otherwise than expected";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let request = Request::Subscribe { after_exit }.encode();
        writer.write_all(request.as_bytes()).await?;
        Ok((lines, writer))
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(ANSWER, Box::pin(begun)) => begun,
        () = to.closed() => return Ok(()),
    };
    // The shim takes a half-closed connection for one that is gone.
    let (mut lines, _writer) = begun.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    loop {
        let line = tokio::select! {
            line = lines.next_segment() => line?,
            () = to.closed() => return Ok(()),
        };
        let Some(line) = line else { return Ok(()) };
        let event = match Reply::decode(&line) {
            Some(Reply::State(state)) => UnitEvent::State(Box::new(from_state(&state))),
            Some(Reply::Exit(exit)) => UnitEvent::Exit(Box::new(from_exit(&exit))),
            Some(Reply::Refused(why)) => return Err(io::Error::other(why)),
            _ => continue,
        };
        if to.send(event).await.is_err() {
            return Ok(());
        }
    }
}

pub(super) fn to_shim(unit: &UnitSpec) -> Spec {
    let argv = [unit.program.clone().into_os_string()];
    let mut spec = Spec::new(argv, &unit.cwd, &unit.log_dir, &unit.log_name);
    spec.generation = unit.generation;
    spec.env = unit
        .env
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    spec.user = unit.user.as_ref().map(|user| User {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
    });
    // What says nothing of its limits makes no core dumps all the same.
    if !unit.rlimits.is_empty() {
        spec.rlimits.clone_from(&unit.rlimits);
    }
    spec.umask = unit.umask;
    spec.private_tmp.clone_from(&unit.private_tmp);
    spec.tracking.clone_from(&unit.tracking);
    spec.cgroups.clone_from(&unit.cgroups);
    spec.shim_cgroups.clone_from(&unit.supervisor_cgroups);
    spec.restart.policy = match unit.restart {
        platctrl_kinds::RestartPolicy::Always => RestartPolicy::Always,
        platctrl_kinds::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        platctrl_kinds::RestartPolicy::Never => RestartPolicy::Never,
    };
    spec.stop_timeout = unit.stop_timeout;
    spec.no_new_privs = !unit.may_gain_rights;
    if let Some(size) = unit.logs.max_size {
        spec.log.max_bytes = size.get();
    }
    if let Some(files) = unit.logs.max_files {
        spec.log.max_files = files;
    }
    spec.log.max_age = unit.logs.max_age.map(platctrl_kinds::Span::duration);
    spec
}

/// What a program does, as its shim says.
pub(crate) fn activity(phase: Phase) -> Activity {
    match phase {
        Phase::Stopped => Activity::Stopped,
        Phase::Starting => Activity::Starting,
        Phase::Running => Activity::Running,
        Phase::Backoff => Activity::Waiting,
        Phase::Exited => Activity::Finished,
        // Stopping, and what a newer shim may distinguish: not at rest yet.
        _ => Activity::Stopping,
    }
}

pub(super) fn from_state(state: &State) -> UnitState {
    UnitState {
        activity: activity(state.phase),
        generation: state.generation,
        pid: state.child.map(|child| child.pid),
        started: state.child.and_then(|_| timestamp(state.started_unix_ms)),
        restarts: state.restarts,
        next_start_in: state.next_start_in(),
        message: state.message.clone(),
    }
}

pub(super) fn from_exit(exit: &ExitRecord) -> UnitExit {
    let (code, signal, message) = match &exit.status {
        ExitStatus::Code(code) => (Some(*code), None, String::new()),
        ExitStatus::Signal { signal, core } => {
            let dumped = if *core { "its memory was dumped" } else { "" };
            (None, Some(*signal), dumped.to_owned())
        }
        ExitStatus::NotStarted { message, .. } => (None, None, message.clone()),
        _ => (
            None,
            None,
            "nobody saw how: its supervisor was killed, or the machine went down".into(),
        ),
    };
    UnitExit {
        number: exit.seq,
        at: timestamp(exit.ended_unix_ms).unwrap_or(Timestamp::UNIX_EPOCH),
        code,
        signal,
        message,
        requested: exit.requested,
        unseen: exit.status == ExitStatus::Unknown,
    }
}

fn timestamp(unix_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}
