//! A disk that takes its time.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::processes::{spawn, tool};

/// Makes every sync of a process to its disk take longer, until it is dropped.
#[derive(Debug)]
pub struct SlowDisk {
    tracer: Child,
    log: PathBuf,
}

impl SlowDisk {
    /// Of this process, by so much; what was slow is noted in a file.
    #[must_use]
    pub fn of(pid: u32, delay: Duration, log: PathBuf) -> Self {
        let calls = "fsync,fdatasync";
        let mut command = Command::new(tool("strace").join("strace"));
        command
            .args(["-f", "-qq", "-e", &format!("trace={calls}"), "-e"])
            .arg(format!("inject={calls}:delay_enter={}", delay.as_micros()))
            .arg("-o")
            .arg(&log)
            .arg("-p")
            .arg(pid.to_string())
            .stdin(Stdio::null());
        let tracer = spawn(command);
        Self { tracer, log }
    }

    /// How often something was slow.
    #[must_use]
    pub fn count(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.matches("(DELAYED)").count()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // In order, so that it lets the process go.
        let _ = kill_process(Pid::from_child(&self.tracer), Signal::TERM);
        let _ = self.tracer.wait();
    }
}
