//! The API server with many objects and many watchers, and the program that people type.
//!
//! The server runs in a process of its own, which is this one called again, so that its memory can
//! be told from its clients'. Its store is one in memory, which reads old revisions, as etcd does, or
//! the newest state only, as Consul: what is measured is the server.

mod child;
mod clients;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use platctrl_bench::{Goal, Result, proc_bytes, ratio, raw, runs};

use child::{Child, Reads};

const PROGRAM: &str = env!("CARGO_BIN_EXE_platctrl-bench-cli");
const MIB: f64 = (1 << 20) as f64;
/// Watchers at once.
const WATCHERS: usize = 1_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(child::SERVE) {
        return child::serve(arguments);
    }
    platctrl_bench::target("api", measure)
}

fn measure() -> Result<()> {
    program()?;
    for (reads, of) in [(Reads::Pinned, ""), (Reads::Newest, ".mirror")] {
        get_pods(reads, of)?;
        stream(reads, of)?;
    }
    watchers()
}

/// How long the program takes to say what it can, and how large it is.
fn program() -> Result<()> {
    let size = std::fs::metadata(PROGRAM)?.len() as f64 / MIB;
    let size = raw("program", "MiB", &[size]);
    ratio("api.program-mib", size, Goal::AtMost(40.0));
    let mut times = Vec::new();
    for _ in 0..runs() * 4 {
        let begun = Instant::now();
        let status = Command::new(PROGRAM)
            .arg("--help")
            .stdout(Stdio::null())
            .status()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            return Err("--help failed".into());
        }
    }
    let time = raw("--help", "ms", &times);
    ratio("api.help-ms", time, Goal::AtMost(20.0));
    Ok(())
}

/// `platctrl get pods` of 10,000.
fn get_pods(reads: Reads, of: &str) -> Result<()> {
    let server = Child::start(10_000, reads)?;
    let mut times = Vec::new();
    for _ in 0..runs() {
        let begun = Instant::now();
        let output = Command::new(PROGRAM)
            .args(["get", "pods", "-A", "--server"])
            .arg(format!("unix:{}", server.socket().display()))
            .output()?;
        times.push(begun.elapsed().as_secs_f64());
        let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        platctrl_bench::same("lines of `get pods`", &lines, &10_001)?;
    }
    let time = raw(&format!("get pods, 10,000{of}"), "s", &times);
    let name = format!("api.get-pods-seconds.10k{of}");
    ratio(&name, time, Goal::AtMost(1.0));
    Ok(())
}

/// Lists of 100,000, by one client and by four at once.
fn stream(reads: Reads, of: &str) -> Result<()> {
    let server = Child::start(100_000, reads)?;
    let before = server.memory("VmRSS:")?;
    server.forget_peak()?;
    let begun = Instant::now();
    let (objects, bytes) = clients::list(&server.socket(), 4)?;
    let seconds = begun.elapsed().as_secs_f64();
    platctrl_bench::same("objects of four lists", &objects, &400_000)?;
    raw(
        &format!("four lists of 100,000 at once{of}"),
        "s",
        &[seconds],
    );
    raw("bytes of one list", "MiB", &[bytes as f64 / 4.0 / MIB]);
    raw(
        "memory before, with the store and its mirror",
        "MiB",
        &[before],
    );
    let grown = server.memory("VmHWM:")? - before;
    let grown = raw("memory that four lists take at most", "MiB", &[grown]);
    let name = format!("api.list-memory-mib.4x100k{of}");
    ratio(&name, grown, Goal::AtMost(64.0));
    Ok(())
}

/// 1,000 watchers, and a change for all of them.
fn watchers() -> Result<()> {
    let server = Child::start(1_000, Reads::Pinned)?;
    let before = server.memory("VmRSS:")?;
    let times = clients::watch(&server.socket(), WATCHERS, runs() * 2)?;
    let all = raw(
        "a change, until the last of 1,000 watchers has it",
        "ms",
        &times
            .iter()
            .map(|it| it.as_secs_f64() * 1e3)
            .collect::<Vec<_>>(),
    );
    ratio("api.watch-all-ms.1000", all, Goal::AtMost(200.0));
    let after = server.memory("VmHWM:")?;
    raw("memory before, with 1,000 objects", "MiB", &[before]);
    let grown = raw("memory that 1,000 watchers take", "MiB", &[after - before]);
    ratio("api.watch-memory-mib.1000", grown, Goal::AtMost(100.0));
    Ok(())
}

/// How long anything may take before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(120);

impl Child {
    /// A figure of the server's memory, in MiB.
    fn memory(&self, field: &str) -> Result<f64> {
        let path = format!("/proc/{}/status", self.id());
        Ok(proc_bytes(&path, field)? as f64 / MIB)
    }
}
