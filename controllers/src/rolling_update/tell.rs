//! What a roll says: its status, its conditions, and what comes next.

use std::sync::Arc;

use platctrl_framework::controller::{Action, Context};
use platctrl_framework::model::{Condition, ConditionStatus, EventType, Object, Status};
use platctrl_kinds::{RollPhase, RollingUpdate, RollingUpdateStatus};

use super::observe::Roll;
use super::plan::Wait;
use super::{Next, RunResult};
use crate::ledger;

fn is(holds: bool) -> ConditionStatus {
    if holds {
        ConditionStatus::True
    } else {
        ConditionStatus::False
    }
}

fn common(roll: &Object<RollingUpdate>, context: &Context) -> Status<RollingUpdateStatus> {
    let mut status = roll.status.clone();
    status.observed_generation = Some(roll.metadata.generation);
    let intent = context.joined().intent;
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    status
}

/// Reports that nothing is moved, and why.
pub(super) async fn blocked(
    roll: &Arc<Object<RollingUpdate>>,
    context: &Context,
    reason: &str,
    why: &str,
) -> RunResult {
    let (now, generation) = (context.environment().now(), roll.metadata.generation);
    let mut status = common(roll, context);
    if status.phase.is_empty() {
        status.phase = RollPhase::Pending.into();
    }
    let is_news = status.detail.next != why;
    why.clone_into(&mut status.detail.next);
    let mut set = |condition| status.conditions.set(condition, generation, now);
    set(Condition::new(
        "Progressing",
        ConditionStatus::False,
        reason,
        why,
    ));
    set(Condition::new("Held", ConditionStatus::True, reason, why));
    // What was counted before may not be so any more.
    let message = "not counted while the roll is held";
    set(Condition::new(
        "Available",
        ConditionStatus::Unknown,
        reason,
        message,
    ));
    let is_failed = (roll.status.conditions.get("Stalled"))
        .is_some_and(|it| it.status == ConditionStatus::True && it.reason == "Failed");
    if !is_failed {
        set(Condition::new(
            "Stalled",
            ConditionStatus::False,
            "Held",
            "",
        ));
    }
    let mut changes = context.changes();
    changes.report::<RollingUpdate>(&status)?;
    changes.commit().await?;
    if is_news {
        context.event(EventType::Warning, reason, why);
    }
    Ok(Action::await_change())
}

/// What comes next, and what it waits for.
fn next_step(roll: &Object<RollingUpdate>, seen: &Roll, next: &Next) -> String {
    let (observed, words) = (&seen.observed, &seen.words);
    let target = if roll.spec.rollback {
        &roll.spec.from
    } else {
        &roll.spec.to
    };
    let left = observed.goal.saturating_sub(next.plan.target);
    match (next.phase, &next.plan.wait) {
        (RollPhase::Complete, _) => format!("complete: {target} has all {} pods", observed.goal),
        (RollPhase::RolledBack, _) => {
            format!("rolled back: {target} has all {} pods", observed.goal)
        }
        _ if next.failed.is_some() => {
            format!("failed: {}", next.failed.as_deref().unwrap_or_default())
        }
        (RollPhase::Paused, _) => format!(
            "paused with {left} pods left to move: `platctrl rollout resume` goes on, `undo` goes back"
        ),
        (RollPhase::AtGate, _) => format!(
            "at a gate with {} of {} pods moved, all of them healthy: `platctrl rollout promote` goes on, `undo` goes back",
            observed.target.replicas, observed.goal
        ),
        (_, Wait::Delay) => format!(
            "waiting for the delay of {} between moves; {left} pods left",
            roll.spec.delay
        ),
        (_, Wait::No) => format!(
            "moving {} pods to {target}, {left} left; {}",
            next.plan.moves.len(),
            words.counts
        ),
        (_, Wait::Health) => format!(
            "waiting: {}; {left} pods left to move to {target}",
            words.waiting
        ),
        _ if seen.unseen > 0 => format!(
            "waiting for {} pods of {target} whose nodes are not heard of: they count when the nodes are back, and others are made when these are retired by `platctrl node retire`; {}",
            seen.unseen, words.counts
        ),
        _ => format!(
            "waiting for the pods of {target} to be healthy: {} of {} were for {}; {}",
            seen.confirmed, observed.target.replicas, roll.spec.min_healthy_time, words.counts
        ),
    }
}

/// The status after a run that gives the controllers so many pods.
pub(super) fn status(
    roll: &Object<RollingUpdate>,
    context: &Context,
    seen: &Roll,
    next: &Next,
    (from, to): (u32, u32),
) -> Status<RollingUpdateStatus> {
    let (now, generation) = (context.environment().now(), roll.metadata.generation);
    let mut status = common(roll, context);
    let text = next_step(roll, seen, next);
    let is_final = matches!(next.phase, RollPhase::Complete | RollPhase::RolledBack);
    status.phase = next.phase.into();
    let detail = &mut status.detail;
    detail.updated = to;
    detail.confirmed = seen.confirmed;
    detail.healthy = seen.healthy;
    detail.floor = seen.floor;
    detail.from_replicas = Some(from);
    detail.to_replicas = Some(to);
    detail.next.clone_from(&text);
    if is_final {
        detail.finished_at = Some(now);
    }
    let stalled = status.conditions.get("Stalled");
    let has_failed = stalled.is_some_and(|it| it.status == is(true) && it.reason == "Failed");
    let stays = roll.spec.paused || roll.spec.rollback;
    let mut set = |condition| status.conditions.set(condition, generation, now);
    let moving = matches!(next.phase, RollPhase::Rolling | RollPhase::RollingBack);
    set(Condition::new(
        "Progressing",
        is(moving && next.failed.is_none()),
        next.phase.as_str(),
        text,
    ));
    let available = seen.healthy >= seen.floor;
    let reason = if available {
        "EnoughHealthy"
    } else {
        "TooFewHealthy"
    };
    set(Condition::new(
        "Available",
        is(available),
        reason,
        seen.words.counts.clone(),
    ));
    set(Condition::new(
        "Held",
        ConditionStatus::False,
        "Claimed",
        "",
    ));
    match &next.failed {
        Some(why) => {
            set(Condition::new(
                "Stalled",
                ConditionStatus::True,
                "Failed",
                why.clone(),
            ));
        }
        None if has_failed && stays => {}
        None if seen.unseen > 0 => {
            set(Condition::new(
                "Stalled",
                ConditionStatus::True,
                "AwaitsNodes",
                status.detail.next.clone(),
            ));
        }
        None => {
            set(Condition::new(
                "Stalled",
                ConditionStatus::False,
                "Working",
                "",
            ));
        }
    }
    let before = roll.status.detail.observed_revision;
    if status != roll.status || ledger::entered_at(context.view(), context.key()) > before {
        status.detail.observed_revision = Some(context.view().revision());
    }
    status
}
