//! That a stuck pod delays no other: how much longer a pod takes to come up beside one whose
//! download stands still, one whose hook does not end, and one whose process cannot be killed.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use platctrl_bench::{Goal, Result, p99, ratio, raw};
use serde_json::json;

use crate::node::Machine;

/// Pods that are started one after the other.
const TIMED: usize = 30;
const SOON: Duration = Duration::from_secs(30);
const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// A process that nothing ends, not even SIGKILL, until this is dropped: what waits for a dead
/// disk behaves so, and version 1 of control groups can make it happen.
struct Frozen {
    group: PathBuf,
    pid: u32,
}

impl Frozen {
    /// None where the kernel cannot.
    fn new(pid: u32) -> Result<Option<Self>> {
        let group = PathBuf::from(FREEZER).join(format!("platctrl-bench-{}", std::process::id()));
        if fs::create_dir(&group).is_err() {
            return Ok(None);
        }
        let frozen = Self { group, pid };
        fs::write(frozen.group.join("cgroup.procs"), pid.to_string())?;
        fs::write(frozen.group.join("freezer.state"), "FROZEN")?;
        Ok(Some(frozen))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("freezer.state"), "THAWED");
        // It may have ended by now.
        let root = PathBuf::from(FREEZER).join("cgroup.procs");
        let _ = fs::write(root, self.pid.to_string());
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.group).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(crate) fn stuck() -> Result<()> {
    let notes = tempfile::Builder::new()
        .prefix("platctrl-bench-")
        .tempdir()?;
    let note = notes.path().join("hook");
    // Every pod's is called; only one does not end.
    let hook = format!(
        "#!/bin/sh\nif [ \"$HOOKED_POD_NAME\" = stuck-hook ]; then echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000; fi\n",
        note.display()
    );
    let machine = Machine::new(&[("wait", &hook)])?;
    machine.start(0, 1)?;
    let timed = |first: usize| -> Result<Vec<f64>> {
        (first..first + TIMED)
            .map(|number| machine.start(number, 1))
            .collect()
    };
    let alone = timed(1)?;

    // Whoever connects is answered nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let location = format!("http://{}/a.tar.gz", silent.local_addr()?);
    let digest = format!("sha256:{}", "0".repeat(64));
    machine.want(
        "stuck-download",
        &json!({"location": location, "digest": digest}),
    )?;
    let (_connection, _) = silent.accept()?;
    machine.want("stuck-hook", machine.artifact())?;
    machine.want("stuck-process", machine.artifact())?;
    let frozen = Frozen::new(machine.pid("stuck-process")?)?;
    if frozen.is_some() {
        machine.delete("stuck-process")?;
        machine.phase("stuck-process", "Stopping")?;
    } else {
        println!("stuck: no process that cannot be killed, for want of {FREEZER}");
    }
    machine.phase("stuck-download", "Fetching")?;
    let begun = Instant::now();
    while !note.exists() {
        if begun.elapsed() > SOON {
            return Err("the hook was not called".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let beside = timed(1 + TIMED)?;
    // They were stuck throughout.
    machine.phase("stuck-download", "Fetching")?;
    if frozen.is_some() {
        machine.phase("stuck-process", "Stopping")?;
    }
    let hook = fs::read_to_string(&note)?;
    if !PathBuf::from("/proc").join(hook.trim()).exists() {
        return Err("the hook ended".into());
    }
    raw("a pod from intent to ready: alone", "ms", &alone);
    raw(
        "a pod from intent to ready: beside stuck ones",
        "ms",
        &beside,
    );
    let delay = (p99(&beside) - p99(&alone)).max(0.0);
    ratio("agent.node.stuck-delay-ms.p99", delay, Goal::AtMost(100.0));
    drop(frozen);
    Ok(())
}
