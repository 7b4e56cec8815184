//! Units under runit's `runsv`, for machines whose operators run everything that way.
//!
//! One `runsv` for each unit, in a session of its own, so that it outlives the agent. What `runsv`
//! has no notion of (users, control groups, exit records, backoff, rotated logs) is done by
//! `platctrl-shim runit …`, which it calls and which writes the same files as a shim. `runsv`
//! waits a second before it starts a program that ran for less; nobody is told of a change, so the
//! files are looked at again and again.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use platctrl_shim_lib::{
    Phase, SPEC_FILE, Spec, State, read_exits, read_spec, read_state, write_spec,
};
use tokio::sync::mpsc;

use super::alike::{self, blocking};
use super::shim::{from_exit, from_state, to_shim};
use super::{SuperviseError, Supervisor, Unit, UnitEvent, UnitSpec};

/// Time between two looks at a unit.
const LOOK: Duration = Duration::from_millis(100);
/// How long a `runsv` may take to begin, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// There while a unit is to stay down.
const STOPPED: &str = "stopped";

/// Supervisors that are `runsv`.
#[derive(Clone, Debug)]
pub struct Runit {
    runsv: PathBuf,
    shim: PathBuf,
}

impl Runit {
    /// Starts units with this `runsv`, which calls this `platctrl-shim`. Both paths are absolute.
    pub fn new(runsv: impl Into<PathBuf>, shim: impl Into<PathBuf>) -> Self {
        Self {
            runsv: runsv.into(),
            shim: shim.into(),
        }
    }

    fn begin(&self, dir: &Path, spec: &Spec) -> io::Result<()> {
        if runs(dir) {
            let state = read_state(dir)?.unwrap_or_default();
            let down = is_down(dir);
            if current(dir)? == Some(spec.generation) && !down {
                return Ok(());
            }
            if !down && !state.phase.at_rest() {
                let why = format!("generation {} still runs", state.generation);
                return Err(io::Error::other(why));
            }
            quit(dir)?;
        } else if dir.join("state").exists() {
            self.clear(dir)?;
        }
        write_spec(dir, spec)?;
        let state = read_state(dir)?.unwrap_or_default();
        let rests = state.generation == spec.generation && state.phase == Phase::Exited;
        remove(&dir.join(STOPPED))?;
        self.write_service(dir, spec, rests)?;
        self.spawn(dir, spec)
    }

    /// The directory that `runsv` works in. `rests`: it is not to be started.
    fn write_service(&self, dir: &Path, spec: &Spec, rests: bool) -> io::Result<()> {
        let service = dir.join("service");
        std::fs::create_dir_all(service.join("log"))?;
        let call = |verb: &str, more: &str| {
            let (shim, dir) = (quoted(&self.shim), quoted(dir));
            format!("#!/bin/sh\nexec 2>&1\nexec {shim} runit {verb} {dir}{more}\n")
        };
        script(&service.join("run"), &call("exec", ""))?;
        script(&service.join("finish"), &call("finish", " \"$1\" \"$2\""))?;
        script(&service.join("log/run"), &call("log", ""))?;
        write_key(&dir.join("log-key"))?;
        let down = service.join("down");
        if rests || spec.restart.policy == platctrl_shim_lib::RestartPolicy::Never {
            std::fs::write(&down, "")?;
        } else {
            remove(&down)?;
        }
        Ok(())
    }

    fn spawn(&self, dir: &Path, spec: &Spec) -> io::Result<()> {
        use std::os::unix::process::CommandExt as _;
        let service = dir.join("service");
        // In a group of its own, so that no signal to the agent's reaches it.
        let mut child = std::process::Command::new(&self.runsv)
            .arg(&service)
            .env_clear()
            .env("PATH", super::FIXED_PATH)
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .process_group(0)
            .spawn()?;
        for group in &spec.shim_cgroups {
            std::fs::write(group.join("cgroup.procs"), child.id().to_string())?;
        }
        let pid = child.id();
        // Collected when it ends, should that be while this agent lives.
        std::thread::Builder::new()
            .name("runsv".into())
            .stack_size(64 << 10)
            .spawn(move || drop(child.wait()))?;
        alike::wait(PATIENCE, "runsv does not begin", || Ok(runs(dir)))?;
        std::fs::write(dir.join("runsv.pid"), pid.to_string())?;
        let rests = service.join("down").exists();
        let exited = read_state(dir)?.is_some_and(|state| {
            state.generation == spec.generation && state.phase == Phase::Exited
        });
        if rests && !exited {
            control(dir, b"o")?;
        }
        Ok(())
    }

    /// Starts what has ended for good.
    fn once_more(&self, dir: &Path) -> io::Result<()> {
        let spec = read_spec(dir)?;
        if !runs(dir) {
            self.clear(dir)?;
            self.write_service(dir, &spec, true)?;
            self.spawn(dir, &spec)?;
        }
        match spec.restart.policy {
            platctrl_shim_lib::RestartPolicy::Never => control(dir, b"o"),
            _ => control(dir, b"u"),
        }
    }

    /// Ends what a killed `runsv` left behind.
    fn clear(&self, dir: &Path) -> io::Result<()> {
        let output = std::process::Command::new(&self.shim)
            .args(["runit", "clear"])
            .arg(dir)
            .env_clear()
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(said))
    }

    fn end(&self, dir: &Path, timeout: Duration) -> io::Result<bool> {
        if !dir.join(SPEC_FILE).exists() {
            return Ok(false);
        }
        std::fs::write(dir.join(STOPPED), "")?;
        if !runs(dir) {
            self.clear(dir)?;
            return Ok(false);
        }
        control(dir, b"d")?;
        let (dir, tracking) = (dir.to_owned(), read_spec(dir)?.tracking);
        std::thread::Builder::new()
            .name("runit stop".into())
            .stack_size(64 << 10)
            .spawn(move || {
                let deadline = Instant::now() + timeout;
                while Instant::now() < deadline {
                    if rests(&dir) {
                        return;
                    }
                    std::thread::sleep(LOOK / 4);
                }
                // One or the other: a `k` that comes when the program is dead already makes runsv
                // forget to call `finish`. Whoever cannot be reached is found by the next attempt.
                let killed = tracking
                    .is_some_and(|group| std::fs::write(group.join("cgroup.kill"), "1").is_ok());
                if !killed {
                    let _ = control(&dir, b"k");
                }
            })?;
        Ok(true)
    }
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// What tells the logger's own words from everything that a program writes.
fn write_key(path: &Path) -> io::Result<()> {
    // Its logger may run and know this one.
    if std::fs::metadata(path).is_ok_and(|there| there.len() == 32) {
        return Ok(());
    }
    let key: [u8; 16] = rand::random();
    let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)
}

fn script(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a pipe of `runsv`, if somebody reads it.
fn pipe(dir: &Path, name: &str) -> io::Result<std::fs::File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(dir.join("service/supervise").join(name))?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is no FIFO"));
    }
    Ok(file)
}

/// A `runsv` works in the unit's directory.
fn runs(dir: &Path) -> bool {
    pipe(dir, "ok").is_ok()
}

fn control(dir: &Path, word: &[u8]) -> io::Result<()> {
    pipe(dir, "control")?.write_all(word)
}

/// Whether nothing of the unit runs, according to `runsv`: its status is 20 bytes, of which the
/// last is 0 when it is down.
fn rests(dir: &Path) -> bool {
    std::fs::read(dir.join("service/supervise/status"))
        .is_ok_and(|status| status.get(19) == Some(&0))
}

fn is_down(dir: &Path) -> bool {
    dir.join(STOPPED).exists() && rests(dir)
}

/// The generation that a unit was started with last.
fn current(dir: &Path) -> io::Result<Option<u64>> {
    Ok(read_spec(dir).ok().map(|spec| spec.generation))
}

fn quit(dir: &Path) -> io::Result<()> {
    if runs(dir) {
        control(dir, b"x")?;
        alike::wait(PATIENCE, "runsv does not end", || Ok(!runs(dir)))?;
    }
    Ok(())
}

/// Its process is there, as far as its number tells.
fn lives(state: &State) -> bool {
    let child = state.child.filter(|_| state.phase == Phase::Running);
    child.is_some_and(|child| Path::new("/proc").join(child.pid.to_string()).exists())
}

/// Whether a unit's directory is one of `runsv`.
pub(crate) fn is_runit(dir: &Path) -> bool {
    dir.join("service").exists()
}

/// The state as a shim would tell it.
fn look(dir: &Path) -> io::Result<State> {
    let mut state = read_state(dir)?.unwrap_or_default();
    let spec_generation = current(dir)?.unwrap_or(state.generation);
    let wanted = !dir.join(STOPPED).exists();
    if state.generation != spec_generation && wanted && !lives(&state) {
        // Not executed yet.
        state.phase = Phase::Starting;
        state.generation = spec_generation;
        state.child = None;
    } else if is_down(dir) && state.phase != Phase::Exited {
        state.phase = Phase::Stopped;
        state.child = None;
    } else if dir.join(STOPPED).exists() && !rests(dir) {
        state.phase = Phase::Stopping;
    } else if state.phase.at_rest() && !rests(dir) {
        // Its `finish` has said so, and is about to end.
        state.phase = Phase::Stopping;
    }
    Ok(state)
}

async fn follow(dir: &Path, after_exit: u64, to: &mpsc::Sender<UnitEvent>) -> io::Result<()> {
    let mut seen = after_exit;
    let mut told = None;
    loop {
        let owned = dir.to_owned();
        let looked = crate::blocking::waiting(move || -> io::Result<_> {
            if !runs(&owned) {
                return Ok(None);
            }
            // The state first: an end that it tells of is in the records by then.
            let state = look(&owned)?;
            Ok(Some((state, read_exits(&owned)?)))
        });
        let Some((state, exits)) = looked.await.map_err(io::Error::other)?? else {
            return Ok(());
        };
        for exit in exits.iter().filter(|exit| exit.seq > seen) {
            if to
                .send(UnitEvent::Exit(Box::new(from_exit(exit))))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        seen = exits.last().map_or(seen, |exit| exit.seq.max(seen));
        let state = from_state(&state);
        if told.as_ref() != Some(&state) {
            told = Some(state.clone());
            if to.send(UnitEvent::State(Box::new(state))).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = to.closed() => return Ok(()),
        }
    }
}

impl Supervisor for Runit {
    fn start<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<(), SuperviseError>> {
        let (this, dir, spec) = (self.clone(), unit.dir.clone(), to_shim(spec));
        Box::pin(blocking("start", unit, move || this.begin(&dir, &spec)))
    }

    fn hand<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>> {
        let (dir, spec) = (unit.dir.clone(), to_shim(spec));
        // `exec` reads it at the next start.
        Box::pin(blocking("give a new version to", unit, move || {
            if !runs(&dir) {
                return Ok(false);
            }
            write_spec(&dir, &spec).map(|()| true)
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
        let (this, dir) = (self.clone(), unit.dir.clone());
        Box::pin(blocking("stop", unit, move || this.end(&dir, timeout)))
    }

    fn again<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>> {
        let (this, dir) = (self.clone(), unit.dir.clone());
        Box::pin(blocking("start", unit, move || this.once_more(&dir)))
    }

    fn forget<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(alike::forget(unit, quit))
    }
}
