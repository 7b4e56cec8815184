//! From one version to the next, and back: what is noted when a version takes over, how it is seen
//! that it does its work, and what follows when it does not.

use std::time::Duration;

use platctrl_framework::model::EventType;
use platctrl_kinds::OnFailedStart;
use tokio::time::Instant;

use super::steps::Outcome;
use super::trouble::with_files;
use super::{Pod, Progress, prepare};
use crate::launch::Activity;
use crate::plan::{Order, Step};
use crate::report::{Fitness, Trouble, ended};
use crate::state::{DrainStart, Position, Quarantined};
use crate::version::Version;

/// A version without a health check does its work when its programs have run for so long.
const STEADY: Duration = Duration::from_secs(1);
/// A new version whose program was started again so often does not do its work.
const RESTARTS: u64 = 3;

/// Whether the version that runs does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Launched {
    Yes,
    /// Not yet; look again after so long.
    NotYet(Duration),
    Failed(String),
}

impl Pod {
    pub(super) async fn flip(&mut self) -> Outcome {
        let Some(next) = self.record.next.clone() else {
            return Ok(Progress::Done);
        };
        // Supervisors of programs that the new version does not have are not needed any more.
        for program in self.units.programs() {
            if !next.programs.contains_key(&program) {
                self.forget(&program, Step::Flip).await?;
            }
        }
        let (paths, generation) = (self.paths.clone(), next.generation);
        let before = self
            .record
            .current
            .as_ref()
            .map(|current| current.generation);
        self.take_over(next);
        self.configured.retain(|it| *it == generation);
        let record = self.record.clone();
        with_files(Step::Flip, move || {
            // The record alone has to be on disk. An agent that finds nothing running makes the
            // link again before it starts anything, and the copy is for a record that is damaged
            // later.
            prepare::make_current(&paths, generation)?;
            record.write(&paths.record_copy(), false)?;
            record.write(&paths.record(), true)
        })
        .await?;
        self.stale = before.is_some();
        self.unidentified = false;
        if let Some(current) = &self.record.current {
            self.host
                .ports
                .set(&self.name, current.ports.values().copied());
        }
        Ok(Progress::Done)
    }

    /// The next version becomes the current one, in the record.
    fn take_over(&mut self, next: Version) {
        let record = &mut self.record;
        let before = record.current.replace(next);
        if record.reverting {
            record.previous = None;
        } else if !record.unproven {
            record.previous = before;
        }
        // What ran before is known to do its work, and there is nothing else to go back to.
        record.unproven = !record.reverting;
        record.reverting = false;
        record.next = None;
        record.prepared = None;
        // What was asked of the old version is void.
        record.restart = None;
        record.position = Position::Flipped;
        record.draining = None;
        record.launched = Some(DrainStart::now());
        self.steady = None;
    }

    /// Notes how far the launch has come by a step that ran beside the worker.
    pub(super) fn launched_further(&mut self, step: Step) {
        let position = match step {
            Step::Disable => Position::Stopping,
            Step::BeforeLaunch => Position::Readied,
            Step::BeforeUninstall => Position::Released,
            Step::PostActivate => Position::Activated,
            Step::Enable => Position::Enabled,
            Step::AfterLaunch => Position::Settled,
            _ => return,
        };
        self.record.position = position;
    }

    pub(super) async fn enable(&mut self, order: &Order) -> Outcome {
        if self.record.position < Position::Started {
            self.record.position = Position::Started;
            self.save(Step::Enable).await?;
        }
        self.run_scripts(Step::Enable, order).await
    }

    /// Waits until the version that runs does its work.
    pub(super) async fn healthy(&mut self) -> Outcome {
        match self.launched() {
            Launched::Yes => {
                self.record.unproven = false;
                let hooked = self.hooked().after_launch;
                self.record.position = if hooked {
                    Position::Healthy
                } else {
                    Position::Settled
                };
                self.save(Step::Healthy).await?;
                Ok(Progress::Done)
            }
            Launched::Failed(why) if self.can_revert() => {
                Err(Trouble::passing(Step::Healthy, "NotHealthy", why))
            }
            // There is nothing to go back to, or it is not to be: what is wrong with it is told
            // by its readiness.
            Launched::Failed(_) => Ok(Progress::Underway),
            Launched::NotYet(wait) => {
                self.main.wake = Some(Instant::now() + wait);
                Ok(Progress::Underway)
            }
        }
    }

    fn launched(&mut self) -> Launched {
        let Some(current) = self.record.current.clone() else {
            return Launched::Yes;
        };
        if !self.may_begin() {
            // Somebody keeps it from running: it is not its failure.
            return Launched::NotYet(current.start_timeout());
        }
        let mut running = true;
        let mut all_ended = true;
        let mut tired = None;
        for program in current.programs.keys() {
            let facts = self.units.facts().get(program);
            let state = facts.and_then(|facts| facts.state.as_ref());
            let exit = facts.and_then(|facts| facts.last_exit.as_ref());
            let activity = state.map(|state| state.activity);
            if activity == Some(Activity::Finished) {
                if exit.is_some_and(|exit| exit.code != Some(0)) {
                    let how = exit.map(ended).unwrap_or_default();
                    return Launched::Failed(format!("{program} {how}"));
                }
                continue;
            }
            all_ended = false;
            running &= activity == Some(Activity::Running);
            if let Some(state) = state.filter(|state| state.restarts >= RESTARTS) {
                let how = exit.map(ended).unwrap_or_default();
                tired = Some(format!(
                    "{program} was started again {} times: it {how}",
                    state.restarts
                ));
            }
        }
        if all_ended {
            return Launched::Yes;
        }
        let mut wait = self.start_time_left(&current);
        if running {
            match self.units.fitness() {
                Fitness::Healthy { .. } => return Launched::Yes,
                Fitness::Unchecked => match STEADY.checked_sub(self.steady_for()) {
                    None | Some(Duration::ZERO) => return Launched::Yes,
                    Some(left) => wait = wait.min(left),
                },
                Fitness::Unknown | Fitness::Unhealthy { .. } => {}
            }
        }
        if let Some(why) = tired {
            return Launched::Failed(why);
        }
        if wait.is_zero() {
            let timeout = current.start_timeout();
            let state = match self.units.fitness() {
                Fitness::Unhealthy { message } => format!(": {message}"),
                _ => String::new(),
            };
            return Launched::Failed(format!("it did not do its work within {timeout:?}{state}"));
        }
        Launched::NotYet(wait)
    }

    /// How much is left of the time that the version may take.
    fn start_time_left(&mut self, current: &Version) -> Duration {
        let elapsed = self.record.launched.as_ref().and_then(DrainStart::elapsed);
        let elapsed = elapsed.unwrap_or_else(|| {
            // The machine went down meanwhile.
            self.record.launched = Some(DrainStart::now());
            self.unsaved = true;
            Duration::ZERO
        });
        current.start_timeout().saturating_sub(elapsed)
    }

    /// For how long the processes that run now have been running, as far as was seen.
    fn steady_for(&mut self) -> Duration {
        let pids = self.units.pids();
        match &self.steady {
            Some((known, since)) if *known == pids => since.elapsed(),
            _ => {
                self.steady = Some((pids, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// The version that runs is new, and the one before is to be gone back to if it fails.
    fn can_revert(&self) -> bool {
        let record = &self.record;
        let wanted = record.current.as_ref().map(|it| it.spec.on_failed_start);
        record.unproven && record.previous.is_some() && wanted == Some(OnFailedStart::Revert)
    }

    /// Goes back to the version before, if that is what is to follow from this trouble; else
    /// returns it.
    pub(super) async fn go_back(&mut self, trouble: Trouble) -> Option<Trouble> {
        let of_the_version = matches!(
            trouble.reason.as_str(),
            "HookFailed" | "PostActivateFailed" | "EnableFailed" | "NotHealthy"
        );
        if !of_the_version {
            return Some(trouble);
        }
        match trouble.step {
            Step::BeforeLaunch => {
                let next = self.record.next.as_ref();
                let next = next.filter(|it| it.spec.on_failed_start == OnFailedStart::Revert);
                let Some(next) = next.filter(|_| self.record.current.is_some()) else {
                    return Some(trouble);
                };
                self.record.quarantined = Some(quarantine(next, &trouble));
                self.forget_next();
            }
            Step::PostActivate | Step::Enable | Step::Healthy if self.can_revert() => {
                let current = self.record.current.as_ref()?;
                self.record.quarantined = Some(quarantine(current, &trouble));
                self.record.next = self.record.previous.take();
                self.record.prepared = None;
                self.record.reverting = true;
                self.configured.clear();
            }
            _ => return Some(trouble),
        }
        let message = format!("the version before is started again: {}", trouble.message);
        self.event(EventType::Warning, "StartFailed", message);
        self.main.clear();
        // Forgotten by a crash, it is decided again.
        let saved = self.save(Step::Revert).await;
        self.end_runs(trouble.step).await;
        // Planned anew at once.
        self.wake = Some(Instant::now());
        saved.err()
    }

    /// The next version is not to take over: the one that is current goes on, or is started again.
    pub(super) fn forget_next(&mut self) {
        let record = &mut self.record;
        record.next = None;
        record.prepared = None;
        record.reverting = false;
        record.draining = None;
        record.position = match record.position {
            _ if record.current.is_none() => Position::Settled,
            // Its scripts say again that it is in use.
            Position::Disabling => Position::Activated,
            Position::Draining if record.unproven => Position::Activated,
            Position::Draining => Position::Settled,
            position if position.is_stopping() => Position::Flipped,
            position => position,
        };
        if record.position.is_launching() {
            record.launched = Some(DrainStart::now());
        }
        let ports = record.current.as_ref().map(|current| &current.ports);
        let ports: Vec<_> = ports
            .into_iter()
            .flat_map(|it| it.values().copied())
            .collect();
        self.host.ports.set(&self.name, ports);
    }

    /// The next version cannot take over, and is not wanted any more.
    pub(super) async fn abandon(&mut self) -> Outcome {
        if let Some(next) = &self.record.next {
            let message = format!(
                "generation {} could not take over and is not wanted any more",
                next.generation
            );
            self.event(EventType::Normal, "Abandoned", message);
        }
        self.forget_next();
        self.stale = true;
        self.save(Step::Abandon).await?;
        Ok(Progress::Done)
    }
}

fn quarantine(version: &Version, trouble: &Trouble) -> Quarantined {
    Quarantined {
        digest: version.digest,
        generation: version.generation,
        why: trouble.message.clone(),
    }
}
