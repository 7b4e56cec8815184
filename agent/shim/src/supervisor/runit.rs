//! The same launchable under runit's `runsv` instead of a shim.
//!
//! `runsv` starts, watches and stops; what it has no notion of is done here, by the programs that
//! it calls: `exec` becomes the launchable exactly as a shim's child does, `finish` records how it
//! ended and applies the restart policy, `log` is its logger, and `clear` ends what a killed
//! `runsv` left behind. They read and write the same files in the same directory as a shim.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::adopt::end_leftovers;
use super::output::pump_stdin;
use super::policy::{self, Next};
use super::slots::SlotFile;
use super::{EXIT_SLOT, EXITS, STATE_SLOT, inband, launch, lifecycle, start};
use crate::exits::{ExitRecord, ExitStatus, read_exits};
use crate::marks::MarkKind;
use crate::process::{boot_clock_ms, boot_id, identify, unix_ms};
use crate::spec::{Spec, read_spec};
use crate::state::{Phase, State, read_state};

/// There while the launchable is to stay down.
pub(crate) const STOPPED: &str = "stopped";

/// `runit exec|log|clear DIR` and `runit finish DIR CODE STATUS`. Returns the exit code.
pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> i32 {
    let verb = args.next().unwrap_or_default();
    let Some(dir) = args.next() else {
        return usage();
    };
    let numbers: Vec<i32> = args
        .filter_map(|number| number.to_str()?.parse().ok())
        .collect();
    let done = start::enter(Path::new(&dir))
        .map_err(|refusal| io::Error::other(refusal.to_string()))
        .and_then(|()| match (verb.to_str(), &numbers[..]) {
            (Some("exec"), []) => exec(),
            (Some("log"), []) => read_spec(here()).and_then(|spec| pump_stdin(spec.log)),
            (Some("finish"), [code, status]) => finish(*code, *status),
            (Some("clear"), []) => clear(),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        });
    match done {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => usage(),
        Err(error) => {
            let _ = writeln!(
                io::stderr(),
                "platctrl-shim runit {}: {error}",
                verb.display()
            );
            // What runsv takes for an end: it calls `finish`, which waits by the policy.
            111
        }
    }
}

fn usage() -> i32 {
    let _ = writeln!(
        io::stderr(),
        "usage: platctrl-shim runit exec|log|clear DIRECTORY, or finish DIRECTORY CODE STATUS"
    );
    2
}

fn here() -> &'static Path {
    Path::new(".")
}

/// Becomes the launchable. On disk first, so whatever runs is known by name.
fn exec() -> io::Result<()> {
    let spec = read_spec(here())?;
    let mut state = read_state(here())?.unwrap_or_default();
    if state.generation == spec.generation {
        state.restarts = state.restarts.saturating_add(1);
    } else {
        (state.restarts, state.failures) = (0, 0);
    }
    state.generation = spec.generation;
    state.boot_id = boot_id();
    state.phase = Phase::Running;
    state.wanted = true;
    state.child = identify(std::process::id());
    // Who watches over it, for whoever asks.
    let parent =
        rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    state.shim = parent.and_then(identify);
    state.next_start_boot_ms = None;
    state.message.clear();
    (state.started_unix_ms, state.started_boot_ms) = (unix_ms(), boot_clock_ms());
    // Open while it is still this user's, so that what fails afterwards can be told.
    let file = state_file()?;
    save_to(&file, &mut state)?;
    let run = next_exit(&state, &read_exits(here())?);
    inband::say(MarkKind::Begin { run });
    let failure = launch::become_in_place(&spec);
    state.message.clone_from(&failure.message);
    save_to(&file, &mut state)?;
    Err(io::Error::other(failure.message))
}

fn state_file() -> io::Result<SlotFile> {
    SlotFile::open("state", STATE_SLOT, 2, [])
}

fn save_to(file: &SlotFile, state: &mut State) -> io::Result<()> {
    state.seq = state.seq.saturating_add(1);
    file.write(state.seq, &state.encode(), true)
}

fn save(state: &mut State) -> io::Result<()> {
    save_to(&state_file()?, state)
}

/// Records how the launchable ended, ends what it left behind, and waits as the policy says.
fn finish(code: i32, status: i32) -> io::Result<()> {
    let spec = read_spec(here())?;
    let mut state = read_state(here())?.unwrap_or_default();
    let stopped = Path::new(STOPPED).exists();
    let status = match (code, status) {
        (111, _) if !state.message.is_empty() => ExitStatus::NotStarted {
            errno: 0,
            message: state.message.clone(),
        },
        (-1, status) => ExitStatus::Signal {
            signal: status & 0x7f,
            core: status & 0x80 != 0,
        },
        (code, _) => ExitStatus::Code(code),
    };
    let exit = record(&mut state, status, stopped)?;
    sweep(&spec)?;
    inband::say(MarkKind::End { run: exit.seq });
    let (next, failures) = policy::after_exit(
        &spec.restart,
        &exit.status,
        exit.uptime(),
        state.failures,
        lifecycle::jitter(),
    );
    state.failures = failures;
    if stopped {
        state.phase = Phase::Stopped;
        state.wanted = false;
        return save(&mut state);
    }
    match next {
        Next::Finish => {
            state.phase = Phase::Exited;
            save(&mut state)?;
            control(b"d")
        }
        Next::StartAfter(wait) => {
            state.phase = Phase::Backoff;
            let at = boot_clock_ms().saturating_add(lifecycle::millis(wait));
            state.next_start_boot_ms = Some(at);
            save(&mut state)?;
            wait_until(at);
            if Path::new(STOPPED).exists() {
                state.phase = Phase::Stopped;
                state.wanted = false;
                return save(&mut state);
            }
            Ok(())
        }
    }
}

/// Waits out a backoff; a stop that is asked for meanwhile ends it.
fn wait_until(at: u64) {
    while boot_clock_ms() < at && !Path::new(STOPPED).exists() {
        let left = at.saturating_sub(boot_clock_ms()).min(100);
        std::thread::sleep(Duration::from_millis(left));
    }
}

/// The number that the next exit record has.
fn next_exit(state: &State, exits: &[ExitRecord]) -> u64 {
    let last = exits.last().map_or(0, |exit| exit.seq).max(state.last_exit);
    last.saturating_add(1)
}

fn record(state: &mut State, status: ExitStatus, requested: bool) -> io::Result<ExitRecord> {
    let exits = read_exits(here())?;
    let exit = ExitRecord {
        seq: next_exit(state, &exits),
        generation: state.generation,
        boot_id: state.boot_id.clone(),
        process: state.child,
        started_unix_ms: state.started_unix_ms,
        started_boot_ms: state.started_boot_ms,
        ended_unix_ms: unix_ms(),
        ended_boot_ms: boot_clock_ms(),
        status,
        requested,
    };
    let kept = exits.iter().map(|exit| (exit.seq, exit.encode()));
    let file = SlotFile::open("exits", EXIT_SLOT, EXITS, kept)?;
    file.write(exit.seq, &exit.encode(), true)?;
    state.last_exit = exit.seq;
    state.child = None;
    Ok(exit)
}

/// Ends what a launchable left behind in its group.
fn sweep(spec: &Spec) -> io::Result<()> {
    end_leftovers(None, None, spec).map_err(io::Error::other)
}

/// Ends what a killed `runsv` left running, and records its end as unknown.
fn clear() -> io::Result<()> {
    let spec = read_spec(here())?;
    let Some(mut state) = read_state(here())? else {
        return sweep(&spec);
    };
    let same_boot = state.boot_id == boot_id();
    let leader = state.child.filter(|_| same_boot);
    end_leftovers(leader, None, &spec).map_err(io::Error::other)?;
    let exits = read_exits(here())?;
    if let Some(exit) = lifecycle::cut_off(&state, &exits, same_boot)
        && exit.seq > state.last_exit
    {
        record(&mut state, ExitStatus::Unknown, Path::new(STOPPED).exists())?;
    }
    if matches!(
        state.phase,
        Phase::Starting | Phase::Running | Phase::Stopping
    ) {
        // "Never" means that a run that was cut short is not done over.
        let never = spec.restart.policy == crate::spec::RestartPolicy::Never;
        state.phase = if never { Phase::Exited } else { Phase::Stopped };
    }
    state.child = None;
    save(&mut state)
}

/// A word to the `runsv` that called this.
fn control(word: &[u8]) -> io::Result<()> {
    let path = Path::new("service/supervise/control");
    let mut pipe = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    pipe.write_all(word)
}
