//! Rolling updates: move pods from one replication controller to another, without ever taking
//! away more healthy ones than the floor leaves.
//!
//! What is next, [`plan`](fn@plan) says, a pure function. A roll first claims both controllers:
//! from then on it says how many pods each has, and their ledgers are one. Each commit moves a
//! few pods (spec, labels and owner of the same record), the two counts, the ledger and the
//! roll's own report together, so that whoever takes over at any point goes on from there.

mod claim;
pub mod history;
mod memory;
mod observe;
mod plan;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::cache::View;
use platctrl_framework::client::DeleteOptions;
use platctrl_framework::controller::{
    Action, Changes, CommitError, Context, Controller, ReconcileError,
};
use platctrl_framework::model::{EventType, Object, ObjectKey, Resource};
use platctrl_kinds::{
    DisruptionBudget, Node, OnFailure, Pod, ReplicationController, RollPhase, RollingUpdate,
};

pub use plan::{BATCH, Move, Observed, Plan, PodFacts, Side, Wait, is_settled, limit, plan};

use crate::ledger::{self, Ledger};
use crate::replication_controller::wanted_spec;
use memory::Memory;
use observe::{Roll, Sides};

/// When to look again at what another roll or person has to end first.
const BLOCKED: Duration = Duration::from_secs(30);

type RunResult = Result<Action, ReconcileError>;

/// The controller.
#[must_use]
pub fn controller() -> Controller<RollingUpdate> {
    let memory = Memory::default();
    let ended = memory.clone();
    Controller::new("rollingupdate", move |roll, context| {
        reconcile(roll, context, memory.clone())
    })
    .on_delete(move |roll, context| claim::cancel(roll, context, ended.clone()))
    .refuses_unknown_fields()
    .watches::<ReplicationController>(rolls_of)
    .watches_heads::<Pod>(|pod, view| {
        let owners = ledger::controllers_of(pod);
        let owners = owners.filter_map(|key| view.get::<ReplicationController>(&key));
        let rolls = owners.filter_map(|owner| ledger::claimant(view, &owner));
        rolls.filter_map(|roll| roll.key().ok()).collect()
    })
    .watches::<Node>(|_, view| active(view, None))
    .watches::<DisruptionBudget>(|budget, view| active(view, budget.metadata.namespace.as_deref()))
}

/// The rolls that are not at their end.
fn active(view: &View, namespace: Option<&str>) -> Vec<ObjectKey> {
    let rolls = view.list::<RollingUpdate>().into_iter();
    let rolls = rolls.filter(|roll| {
        !RollPhase::is_final(&roll.status.phase)
            && namespace.is_none_or(|it| roll.metadata.namespace.as_deref() == Some(it))
    });
    rolls.filter_map(|roll| roll.key().ok()).collect()
}

fn rolls_of(controller: &Object<ReplicationController>, view: &View) -> Vec<ObjectKey> {
    let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
    let name = &controller.metadata.name;
    let rolls = view.list::<RollingUpdate>().in_namespace(namespace);
    let rolls = rolls.into_iter().filter(|roll| {
        let is_final = RollPhase::is_final(&roll.status.phase);
        // One that is at its end looks after how many versions are kept.
        let is_free = controller.spec.claimed_by.is_none();
        (!is_final || is_free) && (roll.spec.from == *name || roll.spec.to == *name)
    });
    rolls.filter_map(|roll| roll.key().ok()).collect()
}

/// What is wrong with a roll that was written past the server, which refuses it.
fn invalid(roll: &Object<RollingUpdate>) -> Option<String> {
    let mut errors = Vec::new();
    RollingUpdate::validate(&roll.spec, &mut errors);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    (!errors.is_empty()).then(|| format!("nothing is moved: {}", errors.join("; ")))
}

/// Who a roll is in ledgers and events.
fn name_of(roll: &Object<RollingUpdate>) -> String {
    format!("{}/{}", RollingUpdate::SINGULAR, roll.metadata.name)
}

async fn reconcile(
    roll: Arc<Object<RollingUpdate>>,
    context: Context,
    memory: Memory,
) -> RunResult {
    if RollPhase::is_final(&roll.status.phase) {
        memory.forget(&roll.metadata.uid);
        return history::keep(&roll, &context).await;
    }
    if let Some(why) = invalid(&roll) {
        return tell::blocked(&roll, &context, "Invalid", &why).await;
    }
    let sides = match Sides::find(context.view(), &roll, memory.pods()) {
        Ok(sides) => sides,
        Err(missing) => return tell::blocked(&roll, &context, "Missing", &missing).await,
    };
    if let Some(why) = claim::refusal(context.view(), &roll, &sides) {
        tell::blocked(&roll, &context, "Refused", &why).await?;
        return Ok(Action::requeue_after(BLOCKED));
    }
    if !claim::is_held(&roll, &sides) {
        return claim::take(&roll, &sides, &context).await;
    }
    if let Some(why) = claim::contest(&roll, &sides) {
        return tell::blocked(&roll, &context, "Contested", &why).await;
    }
    let silent = memory.nodes().silent(context.view());
    let mut ledger = match Ledger::of_roll_with(context.view(), &roll, &sides.crews(), &silent) {
        Ok(ledger) => ledger,
        Err(error) => return Err(ReconcileError::retry_after(Duration::from_secs(1), error)),
    };
    if ledger.is_missing() {
        // Whoever decided on the lost one fails on this, and then everybody goes on.
        let mut changes = context.changes();
        ledger.establish(&mut changes)?;
        changes.commit().await?;
        let message = "the ledger was missing and is made again from what is to be seen";
        context.event(EventType::Warning, "LedgerRebuilt", message);
        return Ok(Action::await_change());
    }
    let seen = Roll::observe(&roll, &sides, &ledger, &context, &memory);
    let step = seen.next(&roll);
    act(&roll, &sides, &mut ledger, &context, &memory, &seen, &step).await
}

/// What a run comes to.
struct Next {
    plan: Plan,
    phase: RollPhase,
    /// Why the roll has failed.
    failed: Option<String>,
    look_again: Option<Duration>,
}

impl Roll {
    /// What comes next: the plan, or why there is none to follow.
    fn next(&self, roll: &Object<RollingUpdate>) -> Next {
        let spec = &roll.spec;
        let plan = plan(&self.observed);
        let working = if spec.rollback {
            RollPhase::RollingBack
        } else {
            RollPhase::Rolling
        };
        let phase = match plan.wait {
            _ if spec.paused => RollPhase::Paused,
            Wait::Finished if spec.rollback => RollPhase::RolledBack,
            Wait::Finished => RollPhase::Complete,
            Wait::Gate => RollPhase::AtGate,
            _ => working,
        };
        let mut next = Next {
            look_again: plan.look_again,
            failed: None,
            plan,
            phase,
        };
        if phase != working {
            return next;
        }
        let deadline = spec.progress_deadline.duration();
        let budget = spec.failure_budget.map(|it| it.rounded_down(spec.replicas));
        if let Some(budget) = budget.filter(|budget| self.failures > *budget) {
            let (failures, wanted) = (self.failures, self.observed.target.replicas);
            next.failed = Some(format!(
                "{failures} of {wanted} moved pods are unhealthy, more than the failure budget of {budget}"
            ));
        } else if self.without_progress >= deadline {
            next.failed = Some(format!(
                "nothing got further for {}: {}",
                spec.progress_deadline, self.words.waiting
            ));
        } else {
            let left = deadline - self.without_progress;
            next.look_again = Some(next.look_again.map_or(left, |other| other.min(left)));
        }
        next
    }
}

async fn act(
    roll: &Arc<Object<RollingUpdate>>,
    sides: &Sides,
    ledger: &mut Ledger,
    context: &Context,
    memory: &Memory,
    seen: &Roll,
    next: &Next,
) -> RunResult {
    let environment = context.environment();
    let mut changes = context.changes();
    let mut notes: Vec<(EventType, &str, String)> = Vec::new();

    let mut moved = false;
    let (mut from, mut to) = (sides.from.spec.replicas, sides.to.spec.replicas);
    if matches!(next.phase, RollPhase::Complete | RollPhase::RolledBack) {
        claim::finish(roll, sides, ledger, context, &mut changes)?;
        let message = match next.phase {
            RollPhase::Complete => format!("all is moved to {}", roll.spec.to),
            _ => format!("all is back at {}", roll.spec.from),
        };
        notes.push((EventType::Normal, next.phase.as_str(), message));
    } else if let Some(why) = &next.failed {
        let mut changed = Object::clone(roll);
        let what = match roll.spec.on_failure {
            OnFailure::Rollback if !roll.spec.rollback => {
                changed.spec.rollback = true;
                "it is rolled back"
            }
            _ => {
                changed.spec.paused = true;
                "it is paused"
            }
        };
        changes.update(&changed)?;
        notes.push((EventType::Warning, "Stalled", format!("{why}; {what}")));
    } else if !roll.spec.paused && next.plan.wait == Wait::No {
        (from, to) = match roll.spec.rollback {
            true => (next.plan.target, next.plan.source),
            false => (next.plan.source, next.plan.target),
        };
        for (side, replicas) in [(&sides.from, from), (&sides.to, to)] {
            if side.spec.replicas != replicas {
                let mut side = Object::clone(side);
                side.spec.replicas = replicas;
                changes.update(&side)?;
            }
        }
        for it in &next.plan.moves {
            let (Move::InPlace(uid) | Move::Elsewhere(uid) | Move::Remove(uid)) = it;
            let Some(pod) = sides.pod(uid, context.view()) else {
                continue;
            };
            let note = take_pod(it, &pod, roll, sides, ledger, context, &mut changes)?;
            notes.push((
                EventType::Normal,
                note.0,
                format!("{}: {}", note.1, seen.words.counts),
            ));
        }
        if next.plan.moves.is_empty() {
            let message = format!(
                "{} is to have {from} pods, {} {to}: {}",
                roll.spec.from, roll.spec.to, seen.words.counts
            );
            notes.push((EventType::Normal, "Scaled", message));
        }
        moved = true;
    }
    ledger.write(&mut changes)?;
    let status = tell::status(roll, context, seen, next, (from, to));
    changes.report::<RollingUpdate>(&status)?;
    if let Err(error) = changes.commit().await {
        if let CommitError::Held { why, .. } = &error {
            // A freeze refuses this, too; the failsafe's own record says so then.
            let _ = tell::blocked(roll, context, "Failsafe", why).await;
        }
        return Err(error.into());
    }
    if moved {
        let now = environment.monotonic();
        memory.with(&roll.metadata.uid, |track| track.move_was_made(now));
    }
    if notes.is_empty() && status.detail.next != roll.status.detail.next {
        context.event(EventType::Normal, "Waiting", status.detail.next);
    }
    for (event_type, reason, message) in notes {
        context.event(event_type, reason, message);
    }
    Ok(next
        .look_again
        .map_or_else(Action::await_change, Action::requeue_after))
}

/// Does to a pod what the plan says, and enters it into the ledger.
fn take_pod(
    what: &Move,
    pod: &Arc<Object<Pod>>,
    roll: &Object<RollingUpdate>,
    sides: &Sides,
    ledger: &mut Ledger,
    context: &Context,
    changes: &mut Changes<'_>,
) -> Result<(&'static str, String), ReconcileError> {
    let (now, by) = (context.environment().now(), name_of(roll));
    let name = &pod.metadata.name;
    let (source, target) = sides.in_direction(roll);
    if let Move::InPlace(_) = what {
        let moved = moved_pod(pod, source, target);
        let entered = ledger.replace(context.view(), pod, &moved.spec, &by, now);
        entered.map_err(ReconcileError::transient)?;
        changes.update(&moved)?;
        let target = &target.metadata.name;
        return Ok(("Moved", format!("pod {name} goes over to {target}")));
    }
    ledger
        .delete(pod, &by, now)
        .map_err(ReconcileError::transient)?;
    let mut options = DeleteOptions::default();
    options.uid = Some(pod.metadata.uid.clone());
    options.reason = Some(format!("{by} goes to {}", target.metadata.name));
    changes.delete(&pod.key()?, &options)?;
    Ok(("Removed", format!("deleted pod {name}")))
}

/// A pod as its new controller wants it, on the node where it is.
fn moved_pod(
    pod: &Object<Pod>,
    source: &Object<ReplicationController>,
    target: &Object<ReplicationController>,
) -> Object<Pod> {
    let mut moved = pod.clone();
    let metadata = &mut moved.metadata;
    let (old, new) = (
        &source.spec.template.metadata,
        &target.spec.template.metadata,
    );
    // What others added to the pod stays.
    metadata
        .labels
        .retain(|name, value| old.labels.get(name) != Some(value));
    metadata.labels.extend(new.labels.clone());
    metadata
        .annotations
        .retain(|name, value| old.annotations.get(name) != Some(value));
    metadata.annotations.extend(new.annotations.clone());
    let owners = &mut metadata.owner_references;
    owners.retain(|owner| owner.uid != source.metadata.uid);
    owners.push(target.owner_reference());
    moved.spec = wanted_spec(target, pod.spec.node_name.as_deref().unwrap_or_default());
    moved
}
