//! Restarts that are asked for: by a check that finds the pod not alive, or by somebody on the
//! node.
//!
//! Whatever takes a pod away has to fit what else happens to its workload, and an agent sees its
//! own node alone. So it asks, by a request in the pod's report, and whoever keeps the workload's
//! ledger grants it. From the moment the request is no longer reported, the pod is reported as not
//! ready until its programs have started. A crashed program asks nobody: it is gone already.

use std::time::Duration;

use platctrl_framework::model::EventType;
use platctrl_kinds::LivenessOffline;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Pod;
use super::control::Control;
use crate::health::{HealthState, Verdict};
use crate::plan::{Order, Step};
use crate::report::Trouble;
use crate::situation::Granter;
use crate::version::Version;

/// How often one that may not be restarted now looks whether it may.
const AGAIN: Duration = Duration::from_secs(1);
/// A pod that was restarted without a grant and does not come to life stands in no other's way
/// for longer than this.
const TURN: Duration = Duration::from_secs(120);

/// Who wants it, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wish {
    /// Somebody on the node wants it restarted.
    Restart,
    /// The pod does not live.
    Liveness,
    /// Somebody on the node wants it stopped.
    Stop,
}

/// A restart that was asked for, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedRestart {
    /// Tells this request from others for the same pod.
    pub id: String,
    /// Who wants it.
    pub wish: Wish,
    /// Why, for people.
    pub why: String,
    /// It may be done: the request is not reported any more.
    #[serde(default)]
    pub granted: bool,
}

/// The place of the one pod that is restarted without a grant.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
    until: Instant,
}

/// Whether the pod is left to its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restarting {
    /// There is none to be done now.
    No,
    /// Programs are being stopped.
    Underway,
}

impl Pod {
    /// Somebody on the node stopped it, and it was not changed since.
    pub(super) fn is_held_down(&self) -> bool {
        let current = self.record.current.as_ref();
        self.record.stopped.is_some() && self.record.stopped == current.map(|it| it.generation)
    }

    /// Takes in what was said.
    pub(super) fn controlled(&mut self, word: Control) {
        match word {
            Control::Grant { request } => {
                if let Some(asked) = &mut self.record.restart
                    && asked.id == request
                    && !asked.granted
                {
                    asked.granted = true;
                    self.unsaved = true;
                    let message = "its restart was granted".into();
                    self.event(EventType::Normal, "RestartGranted", message);
                }
            }
            Control::Restart { by, now } => {
                // What waits for its next try is tried now.
                self.prepare.retry_now();
                self.main.retry_now();
                self.ask(Wish::Restart, by, now);
            }
            Control::Stop { by, now } => self.ask(Wish::Stop, by, now),
            Control::Start { by } => {
                let stops = |asked: &AskedRestart| asked.wish == Wish::Stop;
                if self.record.restart.as_ref().is_some_and(stops) {
                    self.record.restart = None;
                    self.unsaved = true;
                }
                if self.record.stopped.take().is_some() {
                    self.unsaved = true;
                    self.event(
                        EventType::Normal,
                        "StartAsked",
                        format!("{by} starts it again"),
                    );
                }
            }
        }
    }

    fn ask(&mut self, wish: Wish, why: String, now: bool) {
        if self.record.current.is_none() || self.is_stopping() {
            return;
        }
        if let Some(asked) = &mut self.record.restart {
            // What is being done is done first; of two wishes the stronger one holds.
            if asked.granted || (asked.wish >= wish && !now) {
                return;
            }
            if now {
                asked.wish = asked.wish.max(wish);
                asked.granted = true;
                self.unsaved = true;
                return;
            }
        }
        let verb = match wish {
            Wish::Liveness | Wish::Restart => "a restart",
            Wish::Stop => "a stop",
        };
        let granted = if now { "" } else { " and waits for a grant" };
        let message = format!("{why} asks for {verb}{granted}");
        let event_type = match wish {
            Wish::Liveness => EventType::Warning,
            Wish::Restart | Wish::Stop => EventType::Normal,
        };
        self.event(event_type, "RestartAsked", message);
        self.record.restart = Some(AskedRestart {
            id: format!("{:016x}", self.host.environment.random_u64()),
            wish,
            why,
            granted: now,
        });
        self.unsaved = true;
    }

    /// The liveness check says something else than before.
    pub(super) fn heard_liveness(&mut self, state: &HealthState) {
        match &state.verdict {
            Verdict::Unhealthy { reason } if !state.stale => {
                self.turn = None;
                self.ask(
                    Wish::Liveness,
                    format!("its liveness check ({reason})"),
                    false,
                );
            }
            Verdict::Healthy => {
                self.turn = None;
                self.withdraw("it lives again");
            }
            _ => {}
        }
    }

    /// A request that was not granted yet and has no reason any more.
    pub(super) fn withdraw(&mut self, why: &str) {
        let void = |asked: &mut AskedRestart| asked.wish == Wish::Liveness && !asked.granted;
        if self.record.restart.take_if(void).is_some() {
            self.unsaved = true;
            let message = format!("it asks for no restart any more: {why}");
            self.event(EventType::Normal, "RestartWithdrawn", message);
        }
    }

    /// A change or an end stops the programs anyway.
    pub(super) fn forget_restart(&mut self) {
        if self.record.restart.take().is_some() {
            self.unsaved = true;
        }
    }

    /// Does the restart that was asked for, as soon as it may be done.
    pub(super) async fn restart(&mut self, order: &Order) -> Result<Restarting, Trouble> {
        if self
            .turn
            .as_ref()
            .is_some_and(|turn| turn.until <= Instant::now())
        {
            self.turn = None;
        }
        let Some(asked) = self.record.restart.clone() else {
            return Ok(Restarting::No);
        };
        let ends = matches!(order, Order::Want(desired) if desired.tombstone.is_some());
        if ends || self.is_stopping() {
            self.forget_restart();
            return Ok(Restarting::No);
        }
        if !asked.granted && !self.grant_itself(&asked) {
            return Ok(Restarting::No);
        }
        // What is remembered is told, and what is told is remembered.
        self.keep_news().await;
        let Some(current) = self.record.current.clone() else {
            self.forget_restart();
            return Ok(Restarting::No);
        };
        let mut rests = true;
        for program in current.programs.keys() {
            if self.units.is_at_rest(program) || !self.units.is_supervised(program) {
                continue;
            }
            rests = false;
            if self.units.is_stopping(program) {
                continue;
            }
            let Some(unit) = self.units.unit(program) else {
                continue;
            };
            let timeout = current.stop_timeout(program, None);
            let stopped = self.host.supervisor.stop(&unit, timeout).await;
            match stopped {
                Ok(true) => self.units.mark_stopping(program, true),
                Ok(false) => self.units.lost(program),
                Err(error) => {
                    return Err(Trouble::passing(
                        Step::Stop,
                        "StopFailed",
                        error.to_string(),
                    ));
                }
            }
        }
        if !rests {
            return Ok(Restarting::Underway);
        }
        self.units.check_health(None, None);
        // What is started now finds its secrets as they are now.
        self.configured.remove(&current.generation);
        if asked.wish == Wish::Restart {
            self.start_what_had_ended(&current).await?;
        }
        self.record.restart = None;
        self.record.stopped = (asked.wish == Wish::Stop).then_some(current.generation);
        self.save(Step::Stop).await?;
        Ok(Restarting::No)
    }

    /// Whoever wants a pod restarted wants all of its programs to run, also those that had ended
    /// for good. What was stopped just now is started by the plan.
    async fn start_what_had_ended(&mut self, current: &Version) -> Result<(), Trouble> {
        for program in current.programs.keys() {
            let Some(unit) = self.units.unit(program) else {
                continue;
            };
            if !self.units.is_finished(program) {
                continue;
            }
            self.restore().await?;
            let started = self.host.supervisor.again(&unit).await;
            started.map_err(|error| Trouble {
                step: Step::Start,
                reason: "StartFailed".into(),
                message: error.to_string(),
                permanent: false,
            })?;
            self.started(current, unit);
        }
        Ok(())
    }

    /// Whether it may be done without anybody's grant.
    fn grant_itself(&mut self, asked: &AskedRestart) -> bool {
        let granter = self.situation.borrow().granter;
        let offline = self
            .record
            .current
            .as_ref()
            .map(|it| it.spec.liveness_offline);
        let permit = match granter {
            Granter::Nobody => None,
            Granter::Store => return false,
            Granter::Away => {
                if asked.wish != Wish::Liveness || offline != Some(LivenessOffline::Restart) {
                    return false;
                }
                let place = self.host.circumstances.unasked.clone();
                let Ok(permit) = place.try_acquire_owned() else {
                    // Another's turn.
                    self.look = Some(Instant::now() + AGAIN);
                    return false;
                };
                Some(permit)
            }
        };
        if permit.is_some() {
            let message = "the store is away, so nobody can grant its restart: it is its turn";
            self.event(EventType::Warning, "RestartedUnasked", message.into());
        }
        self.turn = permit.map(|permit| Turn {
            _permit: permit,
            until: Instant::now() + TURN,
        });
        self.look = self.turn.as_ref().map(|turn| turn.until);
        if let Some(asked) = &mut self.record.restart {
            asked.granted = true;
            self.unsaved = true;
        }
        true
    }
}
