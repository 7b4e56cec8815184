//! What is heard of a pod's programs and of its health, and what it means for the record.

use platctrl_framework::model::EventType;
use platctrl_kinds::Exit;

use super::Pod;
use super::units::Heard;
use crate::health::{HealthState, Verdict};
use crate::launch::{Activity, UnitEvent, UnitExit, UnitState};
use crate::report::ended;
use crate::state::KnownHealth;

impl Pod {
    /// Takes in what was heard.
    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Health(state) => self.heard_health(*state),
            Heard::Liveness(state) => {
                self.heard_liveness(&state);
                let (pids, state) = (self.units.pids(), *state);
                self.record.liveness = Some(KnownHealth { pids, state });
                self.unsaved = true;
            }
            Heard::Unit(program, number, event) => {
                if !self.units.is_current(&program, number) {
                    return;
                }
                match event {
                    UnitEvent::State(state) => self.heard_state(&program, *state),
                    UnitEvent::Exit(exit) => self.heard_exit(&program, *exit),
                    UnitEvent::Lost => self.heard_lost(&program),
                }
            }
        }
    }

    fn heard_health(&mut self, state: HealthState) {
        let before = self
            .record
            .health
            .as_ref()
            .map(|known| &known.state.verdict);
        match (&state.verdict, before) {
            (Verdict::Healthy, Some(Verdict::Healthy)) | (Verdict::Unknown, _) => {}
            (Verdict::Unhealthy { .. }, Some(Verdict::Unhealthy { .. })) => {}
            (Verdict::Healthy, _) => {
                self.event(
                    EventType::Normal,
                    "Healthy",
                    "its health check passes".into(),
                );
            }
            (Verdict::Unhealthy { reason }, _) => {
                self.event(EventType::Warning, "Unhealthy", reason.clone());
            }
        }
        self.record.health = Some(KnownHealth {
            pids: self.units.pids(),
            state,
        });
        self.unsaved = true;
    }

    fn heard_state(&mut self, program: &str, state: UnitState) {
        let Some(facts) = self.units.facts_of(program) else {
            return;
        };
        let restarted = facts.state.as_ref().is_some_and(|old| {
            state.activity == Activity::Running && old.pid.is_some() && old.pid != state.pid
        });
        facts.state = Some(state);
        if restarted && !self.is_stopping() {
            // What the check said was about a process that is gone.
            let current = self.record.current.clone();
            self.units.check_health(current.as_ref(), None);
            self.withdraw("its program was started anew");
        }
    }

    fn heard_exit(&mut self, program: &str, mut exit: UnitExit) {
        if exit.signal == Some(9) && !exit.requested {
            let kills = self.host.oom_kills(&self.name, program);
            if self
                .oom_kills
                .insert(program.to_owned(), kills)
                .unwrap_or(0)
                < kills
            {
                exit.message = "out of memory: raise resources.memory, or make it need less".into();
            }
        }
        let noted = Exit {
            launchable: program.to_owned(),
            at: exit.at,
            code: exit.code,
            signal: exit.signal,
            message: exit.message.clone(),
        };
        let news = self.record.note_exit(program, exit.number, noted);
        if news {
            self.unsaved = true;
            let (event_type, reason) = match (exit.requested, exit.code) {
                (true, _) => (EventType::Normal, "Stopped"),
                (false, Some(0)) => (EventType::Normal, "Exited"),
                (false, _) => (EventType::Warning, "Exited"),
            };
            self.event(event_type, reason, format!("{program} {}", ended(&exit)));
        }
        if exit.code.is_none() && exit.signal.is_none() {
            // It could not be executed, perhaps for want of its group.
            self.mend_group(program);
        }
        if let Some(facts) = self.units.facts_of(program) {
            facts.last_exit = Some(exit);
        }
    }

    fn heard_lost(&mut self, program: &str) {
        if self.units.is_supervised(program)
            && self
                .units
                .facts()
                .get(program)
                .is_some_and(|facts| facts.state.is_some())
        {
            let message = format!("the supervisor of {program} is gone; another one takes over");
            self.event(EventType::Warning, "SupervisorLost", message);
        }
        self.units.lost(program);
    }
}
