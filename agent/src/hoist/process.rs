//! The agent's side of the helper processes: starts them, bounds them, understands their answer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::child::{ChildCommand, ChildUser, Order, Report};
use super::{Digest, Error, Limits};

/// How much of a helper's standard error is read: its answer, or what a crash printed.
const SAID: u64 = 256 * 1024;
/// How long after its own deadline a helper is killed.
const MARGIN: Duration = Duration::from_secs(5);

/// How helpers are started on this node.
#[derive(Debug, Clone)]
pub(super) struct Helpers {
    pub(super) command: ChildCommand,
    /// `None`: as whoever runs this.
    pub(super) user: Option<ChildUser>,
}

/// What an unpacking helper said it did.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) missing: Vec<String>,
}

impl Helpers {
    /// The user's name for messages.
    pub(super) fn user_name(&self) -> String {
        match self.user {
            Some(user) => format!("uid {}", user.uid),
            None => format!("uid {}", rustix::process::geteuid().as_raw()),
        }
    }

    fn command(&self, task: &str) -> Command {
        let mut command = Command::new(&self.command.program);
        command
            .arg0("platctrl")
            .args(&self.command.arguments)
            .arg(task)
            .env_clear()
            .current_dir("/")
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(user) = self.user {
            // The standard library also drops all further groups then.
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn spawn(&self, mut command: Command) -> Result<Child, Error> {
        command
            .spawn()
            .map_err(|e| Error::io("start", &self.command.program, e))
    }

    /// Unpacks the open `artifact` into the open directory `target`.
    pub(super) async fn unpack(
        &self,
        artifact: File,
        target: OwnedFd,
        digest: &Digest,
        limits: &Limits,
    ) -> Result<Unpacked, Error> {
        let order = Order {
            limits: limits.clone(),
            digest: *digest,
        };
        let order = serde_json::to_string(&order)
            .map_err(|e| Error::io("ask for", digest.to_string(), e))?;
        let mut command = self.command("unpack");
        command.arg(order).stdin(artifact).stdout(target);
        let mut child = self.spawn(command)?;
        let report = tokio::time::timeout(limits.wall_time + MARGIN, finish(&mut child, "unpack"));
        match report.await {
            Ok(Ok(Report::Done {
                entries,
                bytes,
                missing,
            })) => Ok(Unpacked {
                entries,
                bytes,
                missing,
            }),
            Ok(Ok(report)) => Err(unpack_error(report)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                // Waited for, so that nobody writes into the directory any more.
                let _ = child.kill().await;
                Err(Error::TimedOut {
                    what: format!("unpacking {digest}"),
                    problem: "was not done after",
                    after: limits.wall_time,
                })
            }
        }
    }

    /// Starts to read `path` beneath the directory `root`.
    pub(super) fn read(&self, root: &Path, path: &Path, limit: u64) -> Result<Reading, Error> {
        let mut command = self.command("read");
        command.arg(limit.to_string()).arg(root).arg(path);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = self.spawn(command)?;
        let no_pipe = || Error::io("read from", root, io::Error::other("no pipe"));
        let output = child.stdout.take().ok_or_else(no_pipe)?;
        let file = root.join(path);
        Ok(Reading {
            child,
            output,
            file,
            user: self.user_name(),
        })
    }
}

/// A file on its way from a reading helper.
#[derive(Debug)]
pub(super) struct Reading {
    child: Child,
    output: ChildStdout,
    file: PathBuf,
    user: String,
}

impl Reading {
    /// The file's bytes.
    pub(super) fn output(&mut self) -> &mut (impl AsyncRead + Unpin + use<>) {
        &mut self.output
    }

    /// To be called after the last byte: was that the whole file?
    pub(super) async fn finish(&mut self) -> Result<(), Error> {
        let shown = super::escape(self.file.as_os_str().as_encoded_bytes());
        match finish(&mut self.child, "read").await? {
            Report::Done { missing, .. } => {
                if !missing.is_empty() {
                    tracing::debug!(?missing, "the reading process was not fully sandboxed");
                }
                Ok(())
            }
            Report::NotFound => Err(Error::NotFound {
                location: format!("file:{shown}"),
                hint: String::new(),
            }),
            Report::Outside => Err(Error::OutsideAllowed {
                path: shown,
                allowed: "a symbolic link leads out of it".into(),
            }),
            Report::Denied { errno } => Err(Error::Unreadable {
                path: shown,
                user: self.user.clone(),
                source: io::Error::from_raw_os_error(errno),
            }),
            Report::NotAFile => {
                let source = io::Error::other("it is not a regular file");
                Err(Error::Io {
                    doing: "read",
                    path: self.file.clone(),
                    source,
                })
            }
            other => Err(unpack_error(other)),
        }
    }
}

/// Reads the helper's answer and waits for its end.
async fn finish(child: &mut Child, task: &'static str) -> Result<Report, Error> {
    let said = match child.stderr.take() {
        Some(stderr) => listen(stderr).await,
        None => Vec::new(),
    };
    let status = child
        .wait()
        .await
        .map_err(|e| Error::io("wait for", task, e))?;
    let report = said
        .rsplit(|&byte| byte == b'\n')
        .find_map(|line| serde_json::from_slice::<Report>(line).ok());
    match report {
        Some(report) if status.success() == matches!(report, Report::Done { .. }) => Ok(report),
        // Our own deadline, told by the watching thread, may come in between.
        _ => {
            let last = said.trim_ascii_end().rsplit(|&byte| byte == b'\n').next();
            let said = match last.unwrap_or_default() {
                [] => String::new(),
                line => format!(": {}", super::escape(line)),
            };
            Err(Error::Child {
                task,
                status: status.to_string(),
                said,
            })
        }
    }
}

async fn listen(stderr: ChildStderr) -> Vec<u8> {
    let mut said = Vec::new();
    // What could be read of it is judged; a helper that says more finds the pipe closed.
    let _ = stderr.take(SAID).read_to_end(&mut said).await;
    said
}

fn unpack_error(report: Report) -> Error {
    match report {
        Report::Refused(refusal) => Error::Refused(refusal),
        Report::DigestMismatch { actual, expected } => Error::DigestMismatch {
            what: "the cached artifact".into(),
            actual,
            expected,
        },
        Report::Failed {
            path,
            errno: Some(errno),
            ..
        } => Error::io("unpack", path, io::Error::from_raw_os_error(errno)),
        Report::Failed {
            doing,
            path,
            message,
            ..
        } => {
            let source =
                io::Error::other(format!("{doing}: {}", super::escape(message.as_bytes())));
            Error::Io {
                doing: "unpack",
                path,
                source,
            }
        }
        other => Error::Child {
            task: "unpack",
            status: "an answer to another question".into(),
            said: format!(": {other:?}"),
        },
    }
}
