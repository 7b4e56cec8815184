//! Starting, ending and starting again.
//!
//! Whatever ends, ends the same way: the launchable's process is gone, then everything it left
//! behind (the shim is its subreaper, so "nothing left" is exactly "no child left"), and only
//! then comes what is to come after. So there are never two copies.

use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus, kill_process_group, wait};

use super::launch::{self, Progress};
use super::policy::{self, Begin, Next};
use super::{REPORT, Supervisor, cgroup, sys};
use crate::exits::{ExitRecord, ExitStatus};
use crate::process::ProcessId;
use crate::process::{self, boot_clock_ms, unix_ms};
use crate::spec::RestartPolicy;
use crate::state::{Phase, State};

/// Between attempts to kill what does not go, at first and at most.
const RETRY_MS: u64 = 10;
const MAX_RETRY_MS: u64 = 1000;

/// Something is being stopped or cleared away.
#[derive(Debug)]
pub(super) struct Ending {
    after: After,
    /// When everything left is killed, or killed again.
    pub(super) kill_at: u64,
    retry: u64,
}

/// What comes once nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Start,
    StartAt(u64),
    Finish,
    Stop,
    Leave,
}

impl Ending {
    fn by(kill_at: u64, after: After) -> Self {
        Self {
            after,
            kill_at,
            retry: RETRY_MS,
        }
    }

    /// Whether processes have survived several attempts to kill them.
    fn stuck(&self) -> bool {
        self.retry == MAX_RETRY_MS
    }

    /// Changes what comes after; never keeps the shim from leaving, never lengthens a timeout.
    fn amend(&mut self, after: After, kill_at: u64) {
        if self.after != After::Leave {
            self.after = after;
        }
        self.kill_at = self.kill_at.min(kill_at);
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The record of the run that was under way when the shim before was killed: the one it still
/// wrote, or one that says that its end is unknown.
pub(super) fn cut_off(before: &State, exits: &[ExitRecord], same_boot: bool) -> Option<ExitRecord> {
    if !matches!(
        before.phase,
        Phase::Starting | Phase::Running | Phase::Stopping
    ) {
        return None;
    }
    let last = exits.last();
    let Some(child) = before.child else {
        return last.cloned();
    };
    let of_this_run =
        |exit: &&ExitRecord| exit.process == Some(child) && exit.boot_id == before.boot_id;
    if let Some(exit) = last.filter(of_this_run) {
        return Some(exit.clone());
    }
    Some(ExitRecord {
        seq: last
            .map_or(0, |exit| exit.seq)
            .max(before.last_exit)
            .saturating_add(1),
        generation: before.generation,
        boot_id: before.boot_id.clone(),
        process: Some(child),
        started_unix_ms: before.started_unix_ms,
        started_boot_ms: before.started_boot_ms,
        ended_unix_ms: unix_ms(),
        // The clock began anew with the boot; how long it ran before is not known.
        ended_boot_ms: if same_boot {
            boot_clock_ms()
        } else {
            before.started_boot_ms
        },
        status: ExitStatus::Unknown,
        requested: !before.wanted,
    })
}

impl Supervisor {
    /// Does what a new shim does first.
    pub(super) fn take_up(&mut self, begin: &Begin, ended: Option<&ExitRecord>, same_boot: bool) {
        let now = boot_clock_ms();
        let after = match begin {
            Begin::Start { fresh } => {
                self.fresh = *fresh;
                self.state.wanted = true;
                After::Start
            }
            // However damaged the file: never later than the longest wait from now.
            Begin::StartAt(at) => {
                After::StartAt((*at).min(now.saturating_add(millis(self.spec.restart.max))))
            }
            Begin::Stay(Phase::Exited) => After::Finish,
            Begin::Stay(_) => After::Stop,
            Begin::Ended => match ended.map(|ended| self.decide(ended)) {
                // A machine that went down is not the launchable's failure.
                Some(After::StartAt(_)) if !same_boot => After::Start,
                Some(after) => after,
                None => After::Start,
            },
        };
        // Carried out by the first `advance`.
        self.ending = Some(Ending::by(now, after));
        self.state.phase = Phase::Stopping;
    }

    /// Does what is due.
    pub(super) fn advance(&mut self) {
        self.output.retry();
        if self.state.phase == Phase::Backoff
            && self
                .state
                .next_start_boot_ms
                .is_none_or(|next| next <= boot_clock_ms())
        {
            self.start();
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        if self.childless {
            let after = ending.after;
            if ending.stuck() {
                self.problem.clear();
            }
            self.ending = None;
            self.settle(after);
            return;
        }
        let now = boot_clock_ms();
        if ending.kill_at <= now {
            let again = ending.retry > RETRY_MS;
            ending.kill_at = now.saturating_add(ending.retry);
            ending.retry = (ending.retry * 2).min(MAX_RETRY_MS);
            let stuck = ending.stuck() && self.problem.is_empty();
            self.kill_everything(again);
            if stuck || !again {
                if stuck {
                    self.problem = "processes survive SIGKILL; it is not started beside them \
                                    (see the kernel's log for a device or file server that hangs)"
                        .to_owned();
                }
                self.save(false);
            }
        }
    }

    /// Nothing is left of the last run.
    fn settle(&mut self, after: After) {
        self.output.end();
        // What somebody else put into the group (a debugging shell, say) goes too.
        if let Some(group) = self
            .spec
            .tracking
            .as_ref()
            .filter(|group| cgroup::populated(group))
        {
            let _ = cgroup::kill(group);
        }
        self.state.next_start_boot_ms = None;
        match after {
            After::Start => return self.start(),
            After::StartAt(at) if at <= boot_clock_ms() => return self.start(),
            After::StartAt(at) => {
                self.state.phase = Phase::Backoff;
                self.state.next_start_boot_ms = Some(at);
            }
            After::Finish => self.state.phase = Phase::Exited,
            After::Stop => self.state.phase = Phase::Stopped,
            After::Leave => {
                // "Never" means that a run that was cut short is not done over.
                let never = self.spec.restart.policy == RestartPolicy::Never;
                self.state.phase = if never { Phase::Exited } else { Phase::Stopped };
                self.done = true;
            }
        }
        self.save(true);
    }

    fn start(&mut self) {
        if let Some(spec) = self.next_spec.take() {
            self.fresh |= spec.generation != self.state.generation;
            self.spec = spec;
        }
        self.output.redirect(&self.spec.log);
        let given = self
            .output
            .give_to(self.spec.user.as_ref().map(|user| user.uid));
        // The number that its exit record will have.
        self.output.begin(self.state.last_exit.saturating_add(1));
        let state = &mut self.state;
        state.generation = self.spec.generation;
        if std::mem::take(&mut self.fresh) {
            (state.restarts, state.failures) = (0, 0);
        } else {
            state.restarts = state.restarts.saturating_add(1);
        }
        state.next_start_boot_ms = None;
        state.phase = Phase::Starting;
        (state.started_unix_ms, state.started_boot_ms) = (unix_ms(), boot_clock_ms());
        let ready = match given {
            Ok(()) => launch::prepare(&self.spec),
            Err(error) => Err(launch::Failure::new("give it its output", &error)),
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(failure) => return self.ended(None, failure.into()),
        };
        state.child = Some(ready.process);
        self.childless = false;
        // On disk before the program runs, so whatever runs is known by name.
        self.save(true);
        let report = ready.go();
        self.failure = None;
        let token = epoll::EventData::new_u64(REPORT);
        // Failing, the program's start is seen when it ends.
        let _ = epoll::add(&self.epoll, &report, token, epoll::EventFlags::IN);
        self.report = Some(report);
    }

    /// The child said something between fork and exec, or passed it.
    pub(super) fn hear_report(&mut self) {
        let Some(report) = &mut self.report else {
            return;
        };
        match report.read(&self.spec) {
            Progress::Underway => {}
            Progress::Executed => {
                self.report = None;
                if self.state.phase == Phase::Starting {
                    self.state.phase = Phase::Running;
                    self.problem.clear();
                    // Not worth a wait: Starting means the same to a successor.
                    self.save(false);
                }
            }
            // Its exit follows at once; that records it.
            Progress::Failed(failure) => {
                self.report = None;
                self.failure = Some(failure);
            }
        }
    }

    /// Collects everything that ended.
    pub(super) fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
                    if let Some(child) = self.state.child.filter(|child| child.pid == pid) {
                        let status = self.how(status);
                        self.ended(Some(child), status);
                    }
                }
                Ok(None) => {
                    self.childless = false;
                    return;
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    /// How the launchable's process ended.
    fn how(&mut self, status: WaitStatus) -> ExitStatus {
        self.hear_report();
        self.report = None;
        if let Some(failure) = self.failure.take() {
            return failure.into();
        }
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (_, Some(signal)) => ExitStatus::Signal {
                signal,
                core: status.as_raw() & 0x80 != 0,
            },
            (None, None) => ExitStatus::Unknown,
        }
    }

    /// Writes down that a run ended, and decides what follows unless that is settled already.
    fn ended(&mut self, process: Option<ProcessId>, status: ExitStatus) {
        let state = &mut self.state;
        let exit = ExitRecord {
            seq: state.last_exit.saturating_add(1),
            generation: state.generation,
            boot_id: state.boot_id.clone(),
            process,
            started_unix_ms: state.started_unix_ms,
            started_boot_ms: state.started_boot_ms,
            ended_unix_ms: unix_ms(),
            ended_boot_ms: boot_clock_ms(),
            status,
            requested: self.ending.is_some(),
        };
        state.last_exit = exit.seq;
        state.child = None;
        let line = exit.encode();
        if let Err(error) = self.exits_file.write(exit.seq, &line, true) {
            self.problem = format!("the exit record cannot be written: {error}");
        }
        self.control.broadcast(&line);
        if let ExitStatus::NotStarted { message, .. } = &exit.status {
            self.problem.clone_from(message);
        }
        if self.ending.is_none() {
            let after = self.decide(&exit);
            self.state.phase = Phase::Stopping;
            self.ending = Some(Ending::by(boot_clock_ms(), after));
        }
    }

    /// Applies the restart policy to a run that ended by itself.
    fn decide(&mut self, exit: &ExitRecord) -> After {
        let (next, failures) = policy::after_exit(
            &self.spec.restart,
            &exit.status,
            exit.uptime(),
            self.state.failures,
            jitter(),
        );
        self.state.failures = failures;
        match next {
            Next::Finish => After::Finish,
            Next::StartAfter(wait) => After::StartAt(boot_clock_ms().saturating_add(millis(wait))),
        }
    }

    /// `start`: up, if it was stopped.
    pub(super) fn want_up(&mut self) -> Result<(), String> {
        if let Some(ending) = &mut self.ending {
            match ending.after {
                After::Leave => return Err("the shim is leaving".to_owned()),
                After::Stop => ending.after = After::Start,
                _ => {}
            }
        }
        let stopped = self.state.phase == Phase::Stopped;
        if !self.state.wanted || stopped {
            self.state.wanted = true;
            if stopped {
                self.problem.clear();
                self.state.failures = 0;
                self.start();
            } else {
                self.save(true);
            }
        }
        Ok(())
    }

    /// `stop`: down, whatever it does.
    pub(super) fn want_down(&mut self, timeout: Option<Duration>) -> Result<(), String> {
        self.state.wanted = false;
        self.stop(After::Stop, timeout);
        Ok(())
    }

    /// `restart`: down if it is up, then up.
    pub(super) fn restart(&mut self, timeout: Option<Duration>) -> Result<(), String> {
        if self
            .ending
            .as_ref()
            .is_some_and(|ending| ending.after == After::Leave)
        {
            return Err("the shim is leaving".to_owned());
        }
        self.state.wanted = true;
        self.state.failures = 0;
        self.problem.clear();
        self.stop(After::Start, timeout);
        Ok(())
    }

    /// SIGTERM to the shim: the machine goes down. It is wanted as before afterwards.
    pub(super) fn leave(&mut self) {
        if self.state.phase == Phase::Backoff || self.state.phase.at_rest() {
            self.done = true;
        } else {
            self.stop(After::Leave, None);
        }
    }

    fn stop(&mut self, after: After, timeout: Option<Duration>) {
        let timeout = millis(timeout.unwrap_or(self.spec.stop_timeout));
        let kill_at = boot_clock_ms().saturating_add(timeout);
        if let Some(ending) = &mut self.ending {
            ending.amend(after, kill_at);
            return self.save(true);
        }
        let Some(child) = self.state.child else {
            // At rest, or waiting. What finished stays finished when it is stopped.
            if self.state.phase != Phase::Exited || after != After::Stop {
                return self.settle(after);
            }
            return self.save(true);
        };
        self.state.phase = Phase::Stopping;
        self.ending = Some(Ending::by(kill_at, after));
        self.save(true);
        // The child is not reaped yet, so the number is its own. A process that has ended, or a
        // group not made yet, cannot be signalled, which is fine.
        if self.report.is_some() {
            let _ = sys::kill(child.pid, libc::SIGTERM);
        } else {
            self.signal_group(child, Signal::TERM);
            // A stopped process must run to notice.
            self.signal_group(child, Signal::CONT);
        }
    }

    fn signal_group(&self, leader: ProcessId, signal: Signal) {
        if let Some(pid) = process::to_pid(leader.pid) {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// SIGKILL to all there is. Without a tracking group (or `again`) that means walking through
    /// the descendants, which a process that forks meanwhile can outrun; hence it is repeated.
    fn kill_everything(&mut self, again: bool) {
        let tracked = self
            .spec
            .tracking
            .as_ref()
            .is_some_and(|group| cgroup::kill(group).is_ok());
        if let Some(child) = self.state.child {
            self.signal_group(child, Signal::KILL);
            let _ = sys::kill(child.pid, libc::SIGKILL);
        }
        if !tracked || again {
            for process in process::tree(std::process::id(), &process::everybody()) {
                process::kill_exactly(process);
            }
        }
    }
}

/// A number in 0..1 that differs between shims and moments.
pub(super) fn jitter() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seed = (now.tv_nsec as u64) ^ (u64::from(std::process::id()) << 32);
    // The finaliser of splitmix64.
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
