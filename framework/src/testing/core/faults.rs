//! What is made to go wrong at a write, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use super::{AFTER_RESTORE, Core, HIDDEN, Order, State, unconfirmed};
use crate::store::{Compare, Key, Prefix, Result, Revision, Transaction};
use crate::testing::fault::{Fault, FaultKind};
use crate::testing::trace::{Actor, Touched, What, describe};

impl Core {
    /// The faults of this write that were not met yet, before or after it.
    pub(super) fn due(
        &self,
        state: &mut State,
        write: u32,
        actor: &Actor,
        touched: &[Touched],
        before: bool,
    ) -> Vec<Fault> {
        let replica = matches!(actor, Actor::Replica(..));
        let mut due = Vec::new();
        for (fault, met) in &mut state.faults {
            let fits = replica || !fault.kind.is_writers();
            if !*met && fault.write == write && fault.kind.is_before() == before && fits {
                *met = true;
                due.push(*fault);
            }
        }
        for fault in &due {
            let what = describe(touched).unwrap_or_default();
            let text = fault.in_words(&format!("{} {what}", actor.name()));
            self.line(state, Actor::World, What::Fault(text));
        }
        due
    }

    pub(super) fn lose_claims(&self) {
        let prefix = Prefix::new("x/lease/").expect("a constant that is a valid prefix");
        for record in self.store.dump_under(&prefix) {
            if let Some(lease) = record.lease {
                self.store.faults().end_lease(lease);
            }
        }
    }

    /// Somebody rewrites what a transaction compares. False if it compares nothing that is there.
    pub(super) fn touch(&self, state: &mut State, transaction: &Transaction) -> bool {
        let compared = transaction
            .compares
            .iter()
            .find_map(|compare| match compare {
                Compare::Revision(key, revision) => self
                    .store
                    .peek(key)
                    .filter(|record| record.modified == *revision),
                _ => None,
            });
        let Some(record) = compared else {
            return false;
        };
        let touch = Transaction::new().put(record.key.clone(), record.value.clone());
        let touched = Touched::by(&touch, |key| self.store.peek(key));
        if let Ok(revision) = self.store.commit_now(&touch) {
            let what = What::Commit {
                write: None,
                revision,
                touched,
            };
            self.line(state, Actor::Somebody, what);
        }
        true
    }

    /// Makes something go wrong after a write. Some: this is the writer's answer.
    #[expect(clippy::option_option, reason = "no fault, no answer, an answer")]
    pub(super) fn strike(
        self: &Arc<Self>,
        state: &mut State,
        fault: &Fault,
        actor: &Actor,
        revision: Revision,
    ) -> Option<Option<Result<Revision>>> {
        let writer = match actor {
            Actor::Replica(index, _) => Some(*index),
            _ => None,
        };
        let before = Revision::from_u64(revision.as_u64() - 1);
        let count = state.replicas.len().max(1);
        let picked = fault.which as usize % count;
        match fault.kind {
            FaultKind::CrashAfter | FaultKind::CrashBeforeAck | FaultKind::StaleRestart => {
                let dying = match writer {
                    Some(index) => index..index + 1,
                    None => 0..state.replicas.len(),
                };
                for index in dying {
                    if fault.kind == FaultKind::StaleRestart {
                        state.replicas[index].next_ceiling = Some(before);
                    }
                    if fault.kind == FaultKind::CrashAfter && writer.is_some() {
                        // It dies at its next call, or a moment later.
                        state.replicas[index].doomed = true;
                        self.later(state, Duration::from_millis(1), move |core, state| {
                            if state.replicas[index].doomed {
                                core.crash_in(state, index);
                            }
                        });
                        return None;
                    }
                    self.crash_in(state, index);
                }
                return writer.map(|_| None);
            }
            FaultKind::LoseAck => return Some(Some(Err(unconfirmed()))),
            FaultKind::LoseClaimAfter => self.lose_claims(),
            FaultKind::Hide => {
                let from = fault.hidden_from();
                for (index, replica) in state.replicas.iter_mut().enumerate() {
                    if from.is_none_or(|from| from == index) {
                        replica.ceiling = Some(before);
                    }
                }
                state.hide_until = Some(fault.which);
                self.later(state, HIDDEN, |core, state| {
                    state.hide_until = None;
                    core.lift(state, None, "sees everything, what came in between merged");
                });
            }
            FaultKind::Compact => {
                for replica in &mut state.replicas {
                    replica.ceiling = Some(before);
                }
                self.later(state, Duration::from_secs(2), |core, state| {
                    core.store.faults().compact(core.store.revision());
                    core.store.faults().reset_watches();
                    core.lift(state, None, "reads everything again");
                });
            }
            FaultKind::Partition => {
                let replica = &mut state.replicas[picked];
                replica.away += 1;
                replica.breaks += 1;
                replica.gate.notify_waiters();
                self.later(state, fault.time(), move |core, state| {
                    state.replicas[picked].away -= 1;
                    let actor = Actor::Replica(picked, state.replicas[picked].incarnation);
                    core.line(
                        state,
                        actor,
                        What::Note("reaches the store again".to_owned()),
                    );
                });
            }
            FaultKind::WallClock => {
                state.replicas[picked].clock.set_wall(i64::from(fault.span));
            }
            FaultKind::Leap => state.replicas[picked].clock.leap(fault.time()),
            FaultKind::Restore | FaultKind::RestoreAhead => self.restore(state, fault),
            FaultKind::KillProcess | FaultKind::Unhealthy => {
                let running = state
                    .table
                    .iter()
                    .filter(|(_, process)| process.is_healthy());
                let paths: Vec<Arc<str>> = running.map(|(path, _)| path.clone()).collect();
                let path = paths
                    .get(fault.which as usize % paths.len().max(1))
                    .cloned()?;
                if fault.kind == FaultKind::KillProcess {
                    self.order(state, Order::Kill(path));
                } else {
                    self.order(state, Order::Health(path.clone(), false));
                    self.later(state, fault.time(), move |core, state| {
                        core.order(state, Order::Health(path, true));
                    });
                }
            }
            FaultKind::NodeDown | FaultKind::AgentCrash => {
                let nodes = &self.config.nodes;
                let node = nodes.get(fault.which as usize % nodes.len().max(1));
                let node = node.cloned().unwrap_or_default();
                if fault.kind == FaultKind::AgentCrash {
                    self.order(state, Order::AgentCrash(node));
                } else {
                    self.order(state, Order::NodeDown(node.clone()));
                    self.later(state, fault.time(), move |core, state| {
                        core.order(state, Order::NodeUp(node));
                    });
                }
            }
            // At the end, and those before the write.
            FaultKind::TravelBack
            | FaultKind::LoseWrite
            | FaultKind::LoseClaim
            | FaultKind::Storm => {}
        }
        None
    }

    /// Brings the store back as it was some writes ago, but with all that people wrote.
    fn restore(self: &Arc<Self>, state: &mut State, fault: &Fault) {
        let written = state.snapshots.len();
        let back = written.saturating_sub(1 + fault.which as usize);
        let back = back.max((state.last_by_scenario as usize).saturating_sub(1));
        let Some(snapshot) = state.snapshots.get(back) else {
            return;
        };
        if fault.kind == FaultKind::Restore {
            self.store.faults().come_back_older(snapshot);
        } else {
            self.store.faults().come_back_newer(snapshot, 1_000);
        }
        state.restored = true;
        // As the handbook says: whoever restores a store starts the controllers again.
        for index in 0..state.replicas.len() {
            state.replicas[index].next_delay = AFTER_RESTORE;
            self.crash_in(state, index);
        }
        self.order(state, Order::LookAtAll);
    }

    /// After a restore, as people do: what nothing wants is taken away. True if there was any.
    pub(in crate::testing) fn sweep(&self) -> bool {
        let mut removed = false;
        let paths: Vec<Arc<str>> = self.state().table.keys().cloned().collect();
        let exists = |path: &str| {
            let key = Key::new(format!("o/intent/{path}"));
            key.is_ok_and(|key| self.store.peek(&key).is_some())
        };
        for path in paths.iter().filter(|path| !exists(path)) {
            self.set_process(path, None);
            removed = true;
        }
        let realities = Prefix::new("o/reality/").expect("a constant that is a valid prefix");
        for record in self.store.dump_under(&realities) {
            let path = record.key.as_str().trim_start_matches("o/reality/");
            if !exists(path) {
                removed |= self
                    .store
                    .commit_now(&Transaction::new().delete(record.key))
                    .is_ok();
            }
        }
        self.state().last_activity = self.now();
        removed
    }
}
