//! The agent's side of the helper processes: starts them, bounds them, understands their answer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::child::{ChildCommand, ChildUser, Order, Report};
use super::{Digest, Error, Limits, download};

/// How much of a helper's standard error is read: its answer, or what a crash printed.
const SAID: u64 = 256 * 1024;
/// The longest first line of a helper that passes bytes on.
const LINE: u64 = 64 * 1024;
const CHUNK: usize = 128 * 1024;
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

    /// Nothing here keeps the standard library from `posix_spawn`, whose cost does not grow with
    /// the agent's memory: so it is the helper that becomes another user.
    fn command(&self, task: &str) -> Command {
        let mut command = Command::new(&self.command.program);
        command
            .arg0("platctrl")
            .args(&self.command.arguments)
            .arg(task)
            .arg(ChildUser::argument(self.user))
            .env_clear()
            .current_dir("/")
            .stderr(Stdio::piped())
            .kill_on_drop(true);
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
    pub(super) fn read(&self, root: &Path, path: &Path, limit: u64) -> Result<Passing, Error> {
        let mut command = self.command("read");
        command.arg(limit.to_string()).arg(root).arg(path);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Passing::of(self.spawn(command)?, "read")
    }

    /// Starts to fetch from a server; over this `connection` if there is one.
    pub(super) async fn fetch(
        &self,
        order: &download::Order,
        connection: Option<OwnedFd>,
    ) -> Result<Passing, Error> {
        let text = serde_json::to_string(order)
            .map_err(|e| Error::io("ask", "the fetching process", e))?;
        let mut command = self.command("fetch");
        command.stdout(Stdio::piped());
        let Some(connection) = connection else {
            command.stdin(Stdio::piped());
            let mut child = self.spawn(command)?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not listen says why.
                let _ = stdin.write_all(text.as_bytes()).await;
            }
            return Passing::of(child, "fetch");
        };
        command.arg(text).stdin(connection);
        Passing::of(self.spawn(command)?, "fetch")
    }

    /// Has a helper that is fenced into `directory` try what the sandbox has to refuse, some of it
    /// in the directory `beside`; returns what it did not, and the fences that this kernel does
    /// not have.
    pub(super) async fn prove(
        &self,
        directory: &Path,
        beside: &Path,
    ) -> Result<(Vec<String>, Vec<String>), Error> {
        let mut command = self.command("prove");
        command
            .args([directory, beside])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = self.spawn(command)?;
        match finish(&mut child, "prove").await? {
            Report::Proved { allowed, missing } => Ok((allowed, missing)),
            report => Err(unpack_error(report)),
        }
    }
}

/// Bytes on their way from a helper.
#[derive(Debug)]
pub(super) struct Passing {
    child: Child,
    output: BufReader<ChildStdout>,
    task: &'static str,
}

impl Passing {
    fn of(mut child: Child, task: &'static str) -> Result<Self, Error> {
        let output = child.stdout.take();
        let no_pipe = || Error::io("read from", task, io::Error::other("no pipe"));
        Ok(Self {
            output: BufReader::with_capacity(CHUNK, output.ok_or_else(no_pipe)?),
            child,
            task,
        })
    }

    /// What is said before the bytes. None when nothing comes: [`Passing::finish`] tells why.
    pub(super) async fn begin(&mut self) -> Result<Option<download::Begin>, Error> {
        let mut line = Vec::new();
        let mut head = (&mut self.output).take(LINE);
        let read = head.read_until(b'\n', &mut line).await;
        read.map_err(|e| Error::io("read from", self.task, e))?;
        Ok(serde_json::from_slice(&line).ok())
    }

    /// The next bytes; None after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let n = self.output.read_buf(&mut chunk).await;
        let n = n.map_err(|e| Error::io("read from", self.task, e))?;
        Ok((n > 0).then(|| chunk.freeze()))
    }

    /// To be called after the last byte: was that the whole?
    pub(super) async fn finish(&mut self) -> Result<Report, Error> {
        let report = finish(&mut self.child, self.task).await?;
        if let Report::Done { missing, .. } = &report
            && !missing.is_empty()
        {
            tracing::debug!(
                ?missing,
                task = self.task,
                "a helper was not fully sandboxed"
            );
        }
        Ok(report)
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
        Some(report) if status.success() == report.is_success() => Ok(report),
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

/// What a report of a failure means as an error; one of a success is out of place.
pub(super) fn unpack_error(report: Report) -> Error {
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
