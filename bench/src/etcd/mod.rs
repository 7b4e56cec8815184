//! A real etcd for measurements: one member with its data on disk, and a client of it with nothing
//! around its protocol.

mod wire;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub use wire::Bare;

use crate::Result;

/// A server of its own, which ends with the bench.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// Address and port.
    pub endpoint: String,
    programs: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    /// There is no etcd below `target/tools` and none can be had, or it does not start.
    pub fn start() -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
        let found = Command::new(script).arg("etcd-3.5").output()?;
        if !found.status.success() {
            return Err(String::from_utf8_lossy(&found.stderr).into());
        }
        let programs = PathBuf::from(String::from_utf8(found.stdout)?.trim_end());
        let dir = tempfile::Builder::new()
            .prefix("platctrl-bench-")
            .tempdir()?;
        // An address of the loopback network that is free.
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let number = listener.local_addr()?.port();
        let address = format!("127.77.{}.{}", number >> 8, (number & 0xff).clamp(1, 254));
        let log = std::fs::File::create(dir.path().join("log"))?;
        let process = Command::new(programs.join("etcd"))
            .arg(format!("--data-dir={}", dir.path().join("data").display()))
            .arg(format!("--listen-client-urls=http://{address}:2379"))
            .arg(format!("--advertise-client-urls=http://{address}:2379"))
            .arg(format!("--listen-peer-urls=http://{address}:2380"))
            .arg("--quota-backend-bytes=8589934592")
            .arg("--log-level=error")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self {
            process,
            endpoint: format!("{address}:2379"),
            programs,
            _dir: dir,
        })
    }

    /// Runs etcdctl.
    ///
    /// # Errors
    /// It says that it failed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(self.programs.join("etcdctl"))
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint))
            .args(arguments)
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process.id()
    }
}
