//! The supervisor: how soon a program runs, how soon it runs again, and what a shim weighs.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use platctrl_bench::{Goal, Result, p99, proc_bytes, ratio, raw, same};
use platctrl_shim_lib::{Client, Phase, Request, Spec, State, spawn, write_spec};
use rustix::process::{Pid, Signal, kill_process};

const SHIM: &str = env!("CARGO_BIN_EXE_platctrl-bench-shim");
/// What is supervised. It uses no processor time.
const PROGRAM: [&str; 2] = ["/bin/sleep", "3600"];
const SOON: Duration = Duration::from_secs(30);
const STARTS: usize = 30;
const SHIMS: usize = 50;

/// A shim in a directory of its own; stopped with its program when it goes.
struct Supervised {
    client: Client,
    _dir: tempfile::TempDir,
}

impl Supervised {
    /// Starts a shim; returns it running with the time from the call to then, in milliseconds.
    fn start() -> Result<(Self, f64)> {
        let dir = tempfile::Builder::new()
            .prefix("platctrl-bench-")
            .tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let (home, logs, own) = (
            dir.path().join("home"),
            dir.path().join("log"),
            dir.path().join("shim"),
        );
        fs::create_dir(&home)?;
        fs::create_dir(&logs)?;
        let spec = Spec::new(PROGRAM, home, logs, "bench");
        write_spec(&own, &spec)?;
        let begun = Instant::now();
        let client = spawn(Path::new(SHIM), &own)?;
        let mut supervised = Self { client, _dir: dir };
        supervised.running(|_| true)?;
        Ok((supervised, begun.elapsed().as_secs_f64() * 1e3))
    }

    fn running(&mut self, also: impl Fn(&State) -> bool) -> Result<State> {
        let runs = |state: &State| state.phase == Phase::Running && also(state);
        Ok(self.client.wait_until(SOON, runs)?)
    }

    /// Kills the program; returns the time until another one runs, in milliseconds.
    fn kill(&mut self) -> Result<f64> {
        let before = self.client.status()?;
        let child = before.child.ok_or("no program runs")?;
        let begun = Instant::now();
        kill_process(pid(child.pid)?, Signal::KILL)?;
        let after = self.running(|state| state.child.is_some_and(|new| new != child))?;
        same("the restarts", &(before.restarts + 1), &after.restarts)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let timeout = Some(Duration::from_secs(1));
        // Asked in vain, the shim is gone already.
        let _ = self.client.request(Request::Stop { timeout });
        let _ = self.client.wait_until(SOON, |state| state.phase.at_rest());
        let _ = self.client.request(Request::Quit);
        while let Ok(Some(_)) = self.client.next_event(SOON) {}
    }
}

fn pid(number: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(number)?).ok_or("0 is no process")?)
}

/// A spawn of the program without a shim, until it was executed.
fn bare() -> Result<f64> {
    let [program, argument] = PROGRAM;
    let begun = Instant::now();
    // std returns when the program was executed.
    let mut child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .spawn()?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    child.kill()?;
    child.wait()?;
    Ok(took)
}

/// One small file, durably: a shim has written down what it starts before it does.
fn sync() -> Result<f64> {
    let mut file = tempfile::tempfile()?;
    let begun = Instant::now();
    file.write_all(&[0; 4096])?;
    file.sync_data()?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

pub(crate) fn latency() -> Result<()> {
    let (mut started, mut restarted) = (Vec::new(), Vec::new());
    let (mut alone, mut synced) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (mut supervised, took) = Supervised::start()?;
        started.push(took);
        restarted.push(supervised.kill()?);
        alone.push(bare()?);
        synced.push(sync()?);
    }
    raw("one small file written and synced", "ms", &synced);
    raw("spawn to exec: without a shim", "ms", &alone);
    let start = raw("spawn to running: shim", "ms", &started);
    let restart = raw("kill to running again: shim", "ms", &restarted);
    ratio(
        "agent.shim.spawn-to-running-ms.p50",
        start,
        Goal::AtMost(20.0),
    );
    ratio(
        "agent.shim.spawn-to-running-ms.p99",
        p99(&started),
        Goal::AtMost(20.0),
    );
    ratio(
        "agent.shim.kill-to-running-ms.p50",
        restart,
        Goal::AtMost(50.0),
    );
    ratio(
        "agent.shim.kill-to-running-ms.p99",
        p99(&restarted),
        Goal::AtMost(50.0),
    );
    Ok(())
}

pub(crate) fn memory() -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..SHIMS {
        all.push(Supervised::start()?.0);
    }
    let (mut pss, mut private) = (Vec::new(), Vec::new());
    for supervised in &mut all {
        let shim = supervised
            .client
            .status()?
            .shim
            .ok_or("the shim did not say who it is")?;
        let file = format!("/proc/{}/smaps_rollup", shim.pid);
        pss.push(proc_bytes(&file, "Pss:")? as f64 / 1024.0);
        private.push(proc_bytes(&file, "Private_Dirty:")? as f64 / 1024.0);
    }
    raw(&format!("PSS of a shim among {SHIMS}"), "KiB", &pss);
    raw("of which private and dirty", "KiB", &private);
    let mean = pss.iter().sum::<f64>() / pss.len() as f64;
    ratio("agent.shim.pss-kib.mean", mean, Goal::AtMost(200.0));
    Ok(())
}
