//! The shim itself: one thread that waits for ends, output, requests and deadlines.
//!
//! [`start`] makes the process and hands over to [`Supervisor::run`]. What happens to the
//! launchable is in [`lifecycle`]; what follows from what is decided in [`policy`].

mod adopt;
mod beside;
mod cgroup;
mod control;
mod inband;
mod launch;
mod lifecycle;
mod log;
mod marks;
mod mounts;
mod output;
mod policy;
mod runit;
mod slots;
mod start;
mod sys;

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, epoll};

pub use start::main;

use crate::exits::{ExitRecord, read_exits};
use crate::process::ProcessId;
use crate::process::{boot_clock_ms, identify};
use crate::protocol::{Reply, Request};
use crate::spec::{Spec, read_spec};
use crate::state::{Phase, State};
use control::{Control, MAX_CLIENTS};
use launch::{Failure, Report};
use lifecycle::Ending;
use output::Output;
use slots::SlotFile;

/// A state line is well below this.
const STATE_SLOT: usize = 4096;
/// So is an exit line.
const EXIT_SLOT: usize = 2048;
/// How many ends are remembered.
const EXITS: u64 = 32;
/// Longest wait in one go, so that a deadline on the boot clock is met soon after a suspend.
const NAP_MS: u64 = 60_000;

// What an epoll event is about; clients are numbered from the last on.
const SIGNALS: u64 = 0;
const LISTENER: u64 = 1;
const OUTPUT: u64 = 2;
const REPORT: u64 = 3;
const CLIENTS: u64 = 16;

/// What a starting shim has found and opened.
#[derive(Debug)]
struct Parts {
    spec: Spec,
    before: Option<State>,
    exits: Vec<ExitRecord>,
    boot_id: String,
    /// The launchable is to be down, whatever it was before.
    down: bool,
    output: Output,
    control: Control,
    signals: OwnedFd,
    lock: File,
}

/// A shim at work.
#[derive(Debug)]
struct Supervisor {
    spec: Spec,
    /// Read on request, used from the next start on.
    next_spec: Option<Spec>,
    state: State,
    /// Why the launchable does not run, in words.
    problem: String,
    state_file: SlotFile,
    exits_file: SlotFile,
    /// Whether the next start is the first of its generation.
    fresh: bool,
    /// Open between fork and exec.
    report: Option<Report>,
    /// What the launchable's process reported through it.
    failure: Option<Failure>,
    /// What is under way while something is being stopped or cleared away.
    ending: Option<Ending>,
    /// Whether nothing that descends from this process is left.
    childless: bool,
    done: bool,
    /// Whether memory was used that an idle shim has no use for.
    untidy: bool,
    output: Output,
    /// Whether the state tells that output is being lost.
    losing: bool,
    control: Control,
    epoll: OwnedFd,
    signals: OwnedFd,
    _lock: File,
}

impl Supervisor {
    /// Takes over from the shim before, whose launchable is gone by now.
    fn new(parts: Parts) -> io::Result<Self> {
        let Parts {
            spec,
            before,
            exits,
            boot_id,
            down,
            mut output,
            control,
            signals,
            lock,
        } = parts;
        let same_boot = before
            .as_ref()
            .is_some_and(|before| before.boot_id == boot_id);
        let mut state = before.clone().unwrap_or_default();
        state.last_exit = state.last_exit.max(exits.last().map_or(0, |exit| exit.seq));
        let kept = exits.iter().map(|exit| (exit.seq, exit.encode()));
        let exits_file = SlotFile::open("exits", EXIT_SLOT, EXITS, kept)?;
        let kept = before.iter().map(|state| (state.seq, state.encode()));
        let state_file = SlotFile::open("state", STATE_SLOT, 2, kept)?;

        let ended = before
            .as_ref()
            .and_then(|before| lifecycle::cut_off(before, &exits, same_boot));
        if let Some(ended) = &ended
            && ended.seq > state.last_exit
        {
            exits_file.write(ended.seq, &ended.encode(), true)?;
            state.last_exit = ended.seq;
            output.take_over(ended.seq);
        }
        let mut begin = policy::begin(before.as_ref(), ended.as_ref(), spec.generation, same_boot);
        if down {
            begin = begin.without_a_start();
            state.wanted = false;
        }
        state.boot_id = boot_id;
        state.shim = identify(std::process::id());
        state.child = None;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut supervisor = Self {
            problem: state.message.clone(),
            spec,
            next_spec: None,
            state,
            state_file,
            exits_file,
            fresh: false,
            report: None,
            failure: None,
            ending: None,
            childless: true,
            done: false,
            untidy: true,
            output,
            losing: false,
            control,
            epoll,
            signals,
            _lock: lock,
        };
        supervisor.watch_all()?;
        supervisor.take_up(&begin, ended.as_ref(), same_boot);
        Ok(supervisor)
    }

    fn watch_all(&self) -> io::Result<()> {
        let watch = |fd: std::os::fd::BorrowedFd<'_>, token| {
            epoll::add(
                &self.epoll,
                fd,
                epoll::EventData::new_u64(token),
                epoll::EventFlags::IN,
            )
        };
        use std::os::fd::AsFd as _;
        watch(self.signals.as_fd(), SIGNALS)?;
        watch(self.control.listener(), LISTENER)?;
        watch(self.output.as_fd(), OUTPUT)?;
        Ok(())
    }

    /// Serves until told to leave.
    fn run(mut self) {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 8];
        loop {
            self.advance();
            if self.done {
                break;
            }
            let timeout = self.timeout();
            if std::mem::take(&mut self.untidy) {
                sys::trim_memory();
            }
            match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok((events, _)) => {
                    for event in events {
                        self.handle(event.data.u64());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                // It cannot fail otherwise; should it, the shim must not spin.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.output.pump();
        start::leave_directory();
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadlines = [
            self.ending.as_ref().map(|ending| ending.kill_at),
            self.state
                .next_start_boot_ms
                .filter(|_| self.state.phase == Phase::Backoff),
            self.output.deadline(),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        let left = next.saturating_sub(boot_clock_ms()).min(NAP_MS);
        let (seconds, rest) = (left / 1000, left % 1000);
        Some(Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or(60),
            tv_nsec: i64::try_from(rest * 1_000_000).unwrap_or(0),
        })
    }

    fn handle(&mut self, token: u64) {
        match token {
            SIGNALS => {
                while let Some(signal) = sys::next_signal(&self.signals) {
                    if signal == libc::SIGCHLD {
                        self.reap();
                    } else {
                        self.leave();
                    }
                }
            }
            LISTENER => self.greet(),
            OUTPUT => self.pump(),
            REPORT => self.hear_report(),
            client => {
                if let Ok(client) = usize::try_from(client.saturating_sub(CLIENTS)) {
                    self.converse(client);
                }
            }
        }
    }

    fn pump(&mut self) {
        self.output.pump();
        let losing = self.output.dropped().1.is_some();
        if losing != self.losing {
            self.losing = losing;
            self.save(false);
        }
    }

    fn greet(&mut self) {
        let Some(client) = self.control.accept() else {
            return;
        };
        let token = epoll::EventData::new_u64(CLIENTS + client as u64);
        if let Some(stream) = self.control.stream(client) {
            // Failing leaves a client that gets no answer, and gives up.
            let _ = epoll::add(&self.epoll, stream, token, epoll::EventFlags::IN);
        }
    }

    fn converse(&mut self, client: usize) {
        if client >= MAX_CLIENTS {
            return;
        }
        self.control.receive(client);
        while let Some(line) = self.control.next_line(client) {
            let answer = match Request::decode(&line) {
                Ok(request) => self.answer(client, request),
                Err(why) => Err(why.to_owned()),
            };
            let reply = answer.map_or_else(Reply::Refused, |()| Reply::Ok);
            self.control.send(client, &reply.encode());
        }
    }

    fn answer(&mut self, client: usize, request: Request) -> Result<(), String> {
        match request {
            Request::Status => {
                self.describe();
                self.control.send(client, &self.state.encode());
                Ok(())
            }
            Request::Subscribe { after_exit } => {
                let exits = read_exits(Path::new(".")).unwrap_or_default();
                for exit in exits.iter().filter(|exit| exit.seq > after_exit) {
                    self.control.send(client, &exit.encode());
                }
                self.describe();
                self.control.send(client, &self.state.encode());
                self.control.subscribe(client);
                self.untidy = true;
                Ok(())
            }
            Request::Start => self.want_up(),
            Request::Stop { timeout } => self.want_down(timeout),
            Request::Restart { timeout } => self.restart(timeout),
            Request::Signal(signal) => match self.state.child {
                Some(ProcessId { pid, .. }) => {
                    sys::kill(pid, signal).map_err(|error| format!("cannot send it: {error}"))
                }
                None => Err("the launchable does not run".to_owned()),
            },
            Request::Respec => {
                let spec = read_spec(Path::new(".")).map_err(|error| error.to_string())?;
                self.next_spec = Some(spec);
                Ok(())
            }
            Request::Quit => {
                if !self.state.phase.at_rest() || self.ending.is_some() {
                    let phase = self.state.phase.name();
                    return Err(format!("the launchable is {phase}; stop it first"));
                }
                self.done = true;
                Ok(())
            }
        }
    }

    /// Brings the parts of the state that are kept elsewhere up to date.
    fn describe(&mut self) {
        let (dropped, why) = self.output.dropped();
        self.state.log_dropped = dropped;
        self.state.message = match why {
            None => self.problem.clone(),
            Some(why) => {
                let gap = if self.problem.is_empty() { "" } else { "; " };
                format!("{}{gap}its output is lost: {why}", self.problem)
            }
        };
    }

    /// Writes the state down and tells the subscribers. `durable` waits for the disk. Where it
    /// cannot be written the launchable still comes first: it is run, and the message tells.
    fn save(&mut self, durable: bool) {
        self.state.seq = self.state.seq.saturating_add(1);
        self.untidy = true;
        self.describe();
        if let Err(error) = self
            .state_file
            .write(self.state.seq, &self.state.encode(), durable)
        {
            let message = &mut self.state.message;
            let gap = if message.is_empty() { "" } else { "; " };
            message.push_str(&format!("{gap}the state cannot be written: {error}"));
        }
        let line = self.state.encode();
        self.control.broadcast(&line);
    }
}
