//! Taking the version that runs out of use: it is drained, disabled and stopped.

use platctrl_framework::model::EventType;

use super::steps::Outcome;
use super::trouble::with_files;
use super::{Pod, Progress};
use crate::plan::{Order, Step};
use crate::report::Trouble;
use crate::state::{DrainStart, Position};
use crate::version::Version;

impl Pod {
    pub(super) async fn drain(&mut self) -> Outcome {
        let delay = self.drain_left();
        if delay.is_zero() {
            return Ok(Progress::Done);
        }
        if self.record.draining.is_none() {
            self.record.draining = Some(DrainStart::now());
            self.record.position = Position::Draining;
            self.save(Step::Drain).await?;
            let message = format!("not ready any more; stopped in {delay:?}");
            self.event(EventType::Normal, "Draining", message);
        }
        self.main.wake = Some(tokio::time::Instant::now() + self.drain_left());
        Ok(Progress::Underway)
    }

    pub(super) async fn disable(&mut self, order: &Order) -> Outcome {
        if self.record.position != Position::Disabling {
            self.record.position = Position::Disabling;
            self.save(Step::Disable).await?;
        }
        self.run_scripts(Step::Disable, order).await
    }

    pub(super) async fn stop(&mut self, order: &Order) -> Outcome {
        if !self.record.position.is_stopping() {
            self.record.position = Position::Stopping;
            let paths = self.paths.clone();
            with_files(Step::Stop, move || paths.make_state()).await?;
            self.save(Step::Stop).await?;
        }
        if !self.stop_told {
            self.stop_told = true;
            self.tell_why_it_stops(order);
        }
        self.units.check_health(None, None);
        let grace = match order {
            Order::Want(desired) => desired.tombstone.as_ref().and_then(|it| it.grace),
            _ => None,
        };
        let mut trouble = None;
        for program in self.units.programs() {
            let rests = self.units.is_at_rest(&program) || self.is_left_alone(&program, order);
            if rests || self.units.is_stopping(&program) {
                continue;
            }
            let Some(unit) = self.units.unit(&program) else {
                continue;
            };
            let current = self.record.current.as_ref();
            let timeout =
                current.map_or(Version::LONGEST_STOP, |it| it.stop_timeout(&program, grace));
            let supervised = self.units.is_supervised(&program);
            match self.host.supervisor.stop(&unit, timeout).await {
                // It had no supervisor and has none now: nothing of it is there.
                Ok(false) => self.units.forget(&program),
                Ok(true) => {
                    if !supervised {
                        let seen = self.record.seen_exits.get(&program).copied().unwrap_or(0);
                        self.units.watch(&program, unit.dir, seen);
                    }
                    self.units.mark_stopping(&program, true);
                }
                Err(error) => trouble = Some(error),
            }
        }
        if let Some(error) = trouble {
            return Err(Trouble::passing(
                Step::Stop,
                "StopFailed",
                error.to_string(),
            ));
        }
        if !self
            .units
            .at_rest(|program| !self.is_left_alone(program, order))
        {
            return Ok(Progress::Underway);
        }
        self.record.position = Position::Stopped;
        self.save(Step::Stop).await?;
        self.stop_told = false;
        Ok(Progress::Done)
    }

    fn tell_why_it_stops(&self, order: &Order) {
        let why = match (order, &self.record.next) {
            (Order::Want(desired), _) if desired.tombstone.is_some() => {
                let tombstone = desired.tombstone.as_ref();
                let by = tombstone.map(|it| it.by.as_str()).unwrap_or_default();
                let reason = tombstone.and_then(|it| it.reason.as_deref());
                let reason = reason
                    .map(|reason| format!(": {reason}"))
                    .unwrap_or_default();
                format!("its end was ordered by {by}{reason}")
            }
            (_, Some(next)) => format!("generation {} takes over", next.generation),
            _ => "it is not wanted any more".to_owned(),
        };
        self.event(EventType::Normal, "Stopping", why);
    }
}
