//! The agent's side: start a shim, find it again, talk to it.
//!
//! [`Client`] blocks; an asynchronous caller gives it to a blocking thread, or takes the stream
//! with [`Client::into_stream`] and uses [`crate::protocol`] itself.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::exits::ExitRecord;
use crate::protocol::{GREETING, Reply, Request};
use crate::state::State;

/// A shim answers at once; one that does not within this time is stuck.
const ANSWER: Duration = Duration::from_secs(10);
/// No record is as long as this.
const MAX_LINE: usize = 16 << 10;

/// The exit code of a shim that found another one at work in its directory.
pub(crate) const ALREADY_RUNNING: i32 = 10;
/// The exit code of a shim that does not know what it is asked for.
pub(crate) const USAGE: i32 = 2;
/// The word, before the directory, that asks for a shim that starts nothing.
pub(crate) const DOWN: &str = "down";

/// Starts a shim for `dir` and connects to it; to the one that runs already if there is one.
///
/// `dir` is absolute and holds a spec ([`crate::write_spec`]). The shim detaches itself: it is no
/// child of the caller and outlives it. It inherits no environment and no open files. When this
/// returns the shim serves its socket and the launchable is about to be started, unless it had
/// finished or been stopped in this generation (see [`Request::Start`]). The call blocks for some
/// milliseconds, or longer when a launchable of a killed shim must be ended first.
///
/// # Errors
/// When the shim cannot be executed or refuses to start; the message is the shim's own.
pub fn spawn(shim: &Path, dir: &Path) -> io::Result<Client> {
    spawn_with(shim, &[], dir)
}

/// Starts a shim for `dir` that only ends what a killed one left running: it starts nothing, not
/// even for a moment, and stays with a launchable that is stopped. Connects to the one that runs
/// already if there is one, which is as it was: [`Request::Stop`] has to be asked of it, and of a
/// program that is too old for this and starts the launchable.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_down(shim: &Path, dir: &Path) -> io::Result<Client> {
    spawn_with(shim, &[DOWN], dir)
}

/// The command that [`spawn`] runs, for a caller that waits for it in another way: until it has
/// ended, and with its output. What that comes to, [`spawned`] tells.
///
/// # Errors
/// When `dir` is not absolute.
pub fn spawn_command(shim: &Path, dir: &Path) -> io::Result<Command> {
    command(shim, &[], dir)
}

/// What became of a [`spawn_command`] that has ended: true, a new shim serves the directory; false,
/// another one does, or will in a moment.
///
/// # Errors
/// The shim refused to start; the message is its own.
pub fn spawned(output: &Output) -> io::Result<bool> {
    match output.status.code() {
        Some(0) => Ok(true),
        Some(ALREADY_RUNNING) => Ok(false),
        _ => Err(refusal(output)),
    }
}

fn command(shim: &Path, words: &[&str], dir: &Path) -> io::Result<Command> {
    if !dir.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the shim's directory {} must be an absolute path",
                dir.display()
            ),
        ));
    }
    // Without `pre_exec`, so that std can use posix_spawn, whose cost does not grow with the
    // caller's memory; the shim makes itself independent.
    let mut command = Command::new(shim);
    command.args(words).arg(dir).env_clear().current_dir("/");
    command.stdin(Stdio::null());
    Ok(command)
}

fn spawn_with(shim: &Path, words: &[&str], dir: &Path) -> io::Result<Client> {
    let output = command(shim, words, dir)?.output().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot execute {}: {error}", shim.display()),
        )
    })?;
    if output.status.success() {
        return Client::connect(dir);
    }
    if output.status.code() == Some(ALREADY_RUNNING) {
        return connect_soon(dir);
    }
    if output.status.code() == Some(USAGE) && !words.is_empty() {
        return spawn(shim, dir);
    }
    Err(refusal(&output))
}

/// The shim's own words.
fn refusal(output: &Output) -> io::Error {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let why = if said.is_empty() {
        output.status.to_string()
    } else {
        said.to_owned()
    };
    io::Error::other(why)
}

/// Connects to a shim that is there, but perhaps not ready yet.
fn connect_soon(dir: &Path) -> io::Result<Client> {
    let deadline = Instant::now() + ANSWER;
    loop {
        match Client::connect(dir) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The state changed (or is sent for the first time).
    State(State),
    /// A run ended.
    Exit(ExitRecord),
}

/// A connection to a running shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Bytes received and not yet used.
    buffer: Vec<u8>,
    /// Records that came while an answer was awaited.
    events: VecDeque<Event>,
    subscribed: bool,
}

impl Client {
    /// Connects to the shim of `dir`.
    ///
    /// # Errors
    /// `ConnectionRefused` or `NotFound` when none runs; `InvalidData` when it speaks another
    /// major version.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        // By way of a descriptor: a socket's address has room for 107 bytes only.
        let handle = fs::File::open(dir)?;
        let path = format!("/proc/self/fd/{}/sock", handle.as_raw_fd());
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut client = Self {
            stream,
            buffer: Vec::new(),
            events: VecDeque::new(),
            subscribed: false,
        };
        let greeting = client
            .line(Instant::now() + ANSWER)?
            .ok_or(io::ErrorKind::TimedOut)?;
        if greeting != GREETING.as_bytes() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the shim of {} greets with {:?} where {GREETING:?} is expected",
                    dir.display(),
                    String::from_utf8_lossy(&greeting)
                ),
            ));
        }
        Ok(client)
    }

    /// The shim's state now.
    ///
    /// # Errors
    /// When the shim is gone or does not answer.
    pub fn status(&mut self) -> io::Result<State> {
        let mut latest = None;
        self.ask(Request::Status, |event| {
            if let Event::State(state) = event {
                latest = Some(state.clone());
            }
        })?;
        latest.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the shim sent no state"))
    }

    /// Makes the request and waits until the shim has accepted it.
    ///
    /// # Errors
    /// When the shim is gone, does not answer, or refuses (then the message says why).
    pub fn request(&mut self, request: Request) -> io::Result<()> {
        self.ask(request, |_| {})
    }

    /// Asks for every exit record numbered above `after_exit`, the state, and all that follow.
    /// They come from [`Client::next_event`].
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn subscribe(&mut self, after_exit: u64) -> io::Result<()> {
        self.subscribed = true;
        self.request(Request::Subscribe { after_exit })
    }

    /// The next record for a subscriber; `None` when `timeout` passes without one.
    ///
    /// # Errors
    /// `UnexpectedEof` when the shim is gone (or this client was too slow and was dropped): read
    /// the files and connect again.
    pub fn next_event(&mut self, timeout: Duration) -> io::Result<Option<Event>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(line) = self.line(deadline)? else {
                return Ok(None);
            };
            if let Some(event) = Reply::decode(&line).and_then(event) {
                self.events.push_back(event);
            }
        }
    }

    /// Waits until `condition` holds of the state and returns that state. Exit records that come
    /// meanwhile are lost to this client; they stay in the file.
    ///
    /// # Errors
    /// `TimedOut`, naming the last state seen, or as [`Client::next_event`].
    pub fn wait_until(
        &mut self,
        timeout: Duration,
        mut condition: impl FnMut(&State) -> bool,
    ) -> io::Result<State> {
        let deadline = Instant::now() + timeout;
        if !self.subscribed {
            self.subscribe(u64::MAX)?;
        }
        let mut last = self.status()?;
        self.events.clear();
        while !condition(&last) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next_event(left)? {
                Some(Event::State(state)) => last = state,
                Some(Event::Exit(_)) => {}
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "the launchable is still {} {}",
                            last.phase.name(),
                            last.message
                        ),
                    ));
                }
            }
        }
        Ok(last)
    }

    /// The bare stream, for a caller that speaks [`crate::protocol`] itself. Whatever this client
    /// has received and not handed out is lost, so take it before subscribing.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    fn ask(&mut self, request: Request, mut seen: impl FnMut(&Event)) -> io::Result<()> {
        self.stream.write_all(request.encode().as_bytes())?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let line = self.line(deadline)?.ok_or_else(|| {
                io::Error::new(io::ErrorKind::TimedOut, "the shim does not answer")
            })?;
            match Reply::decode(&line) {
                Some(Reply::Ok) => return Ok(()),
                Some(Reply::Refused(why)) => return Err(io::Error::other(why)),
                Some(reply) => {
                    if let Some(event) = event(reply) {
                        seen(&event);
                        if self.subscribed {
                            self.events.push_back(event);
                        }
                    }
                }
                None => {}
            }
        }
    }

    /// The next line without its newline; `None` when `deadline` passes.
    fn line(&mut self, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=at).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the shim talks nonsense",
                ));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the shim is gone",
                    ));
                }
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    _ => return Err(error),
                },
            }
        }
    }
}

fn event(reply: Reply) -> Option<Event> {
    match reply {
        Reply::State(state) => Some(Event::State(state)),
        Reply::Exit(exit) => Some(Event::Exit(exit)),
        Reply::Ok | Reply::Refused(_) => None,
    }
}
