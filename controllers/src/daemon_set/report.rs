//! What a daemon set says about itself: counts, conditions, events.

use platctrl_framework::controller::Context;
use platctrl_framework::model::{Condition, ConditionStatus, EventType, Object, Status};
use platctrl_kinds::{DaemonSet, DaemonSetStatus, condition};

use super::plan::{Plan, Wait};
use crate::carry_out::Done;
use crate::ledger;

/// Nodes that are named in a message.
const NAMED: usize = 3;

fn named<'n>(nodes: impl ExactSizeIterator<Item = &'n String>) -> String {
    let more = if nodes.len() > NAMED { ", …" } else { "" };
    let names: Vec<&str> = nodes.take(NAMED).map(String::as_str).collect();
    format!("{}{more}", names.join(", "))
}

/// Why nodes have no pod, or not the template.
fn refusals(plan: &Plan) -> Option<String> {
    let (first, why) = plan.refused.first_key_value()?;
    let nodes = match plan.refused.len() {
        1 => "1 node has".to_owned(),
        count => format!("{count} nodes have"),
    };
    let names = named(plan.refused.keys());
    Some(format!(
        "{nodes} no place for the pod as it is wanted: {names} ({first}: {why})"
    ))
}

fn next(set: &Object<DaemonSet>, plan: &Plan) -> String {
    if set.spec.disabled {
        return "disabled: nothing is done".to_owned();
    }
    let acting = crate::carry_out::told(
        plan.create.len(),
        plan.update.len(),
        plan.delete.len(),
        plan.adopt.len(),
    );
    let there = format!("{} of {} nodes ready", plan.ready, plan.desired);
    match (&plan.wait, acting.is_empty()) {
        (Some(wait), true) => format!("waiting: {there}; {wait}"),
        (Some(wait), false) => format!("{}: {there}; {wait}", acting.join(", ")),
        (None, false) => format!("{}: {there}", acting.join(", ")),
        (None, true) => String::new(),
    }
}

fn late(set: &Object<DaemonSet>, plan: &Plan) -> Option<String> {
    if plan.late.is_empty() {
        return None;
    }
    Some(format!(
        "{} not ready within {}: {}",
        match plan.late.len() {
            1 => "the pod of 1 node is".to_owned(),
            count => format!("the pods of {count} nodes are"),
        },
        set.spec.timeout,
        named(plan.late.iter())
    ))
}

/// No pod can ever be changed, because as many have to stay healthy as there are nodes.
fn floor_too_high(plan: &Plan) -> Option<String> {
    match plan.wait {
        Some(Wait::Healthy { needed, pods, .. }) if needed >= plan.desired => Some(format!(
            "{needed} pods have to stay healthy and there are {} nodes: {pods} pods can never be changed; lower spec.minimumHealthy or the disruption budget",
            plan.desired
        )),
        _ => None,
    }
}

/// Events for what was not so before.
pub(super) fn tell(set: &Object<DaemonSet>, plan: &Plan, context: &Context) {
    let said = |kind: &str, message: &str| {
        let before = set.status.conditions.get(kind);
        before.is_some_and(|condition| condition.message == message)
    };
    let next = next(set, plan);
    let held = plan.hold.as_ref().map(ToString::to_string);
    for (kind, event, severity, message) in [
        (
            "Progressing",
            "Waiting",
            EventType::Normal,
            (plan.steps() == 0).then_some(next),
        ),
        (
            condition::SCHEDULED,
            "Unplaced",
            EventType::Warning,
            refusals(plan),
        ),
        ("Stalled", "Late", EventType::Warning, late(set, plan)),
        (condition::HELD, "Held", EventType::Warning, held),
    ] {
        if let Some(message) = message.filter(|it| !it.is_empty() && !said(kind, it)) {
            context.event(severity, event, message);
        }
    }
}

pub(super) fn status(
    set: &Object<DaemonSet>,
    plan: &Plan,
    context: &Context,
    done: Done,
    held: Option<String>,
) -> Status<DaemonSetStatus> {
    let (now, generation) = (context.environment().now(), set.metadata.generation);
    let joined = context.joined();
    let mut status = set.status.clone();
    status.observed_generation = Some(generation);
    let intent = joined.intent.as_ref();
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    let detail = &mut status.detail;
    detail.desired = plan.desired;
    detail.current = plan.live + done.created;
    detail.updated = plan.updated + done.created + done.updated;
    detail.ready = plan.ready;
    detail.without_place = u32::try_from(plan.refused.len()).unwrap_or(u32::MAX);
    let mut set_condition = |kind: &str, holds: bool, reason: &str, message: String| {
        let is = match holds {
            true => ConditionStatus::True,
            false => ConditionStatus::False,
        };
        let condition = Condition::new(kind, is, reason, message);
        status.conditions.set(condition, generation, now);
    };
    let available = plan.ready >= plan.desired && plan.desired > 0;
    set_condition(
        "Available",
        available,
        if available { "AllReady" } else { "TooFewReady" },
        format!(
            "{} of {} nodes have a pod that is ready",
            plan.ready, plan.desired
        ),
    );
    let refused = refusals(plan);
    let (reason, message) = match &refused {
        None => ("AllPlaced", String::new()),
        Some(message) => ("NoPlace", message.clone()),
    };
    set_condition(condition::SCHEDULED, refused.is_none(), reason, message);
    let active = !set.spec.disabled && plan.hold.is_none();
    let progressing = active && (plan.steps() > 0 || plan.wait.is_some());
    let reason = match (set.spec.disabled, progressing, plan.steps()) {
        (true, ..) => "Disabled",
        (_, false, _) => "Settled",
        (_, true, 0) => "Waiting",
        (_, true, _) => "Acting",
    };
    set_condition("Progressing", progressing, reason, next(set, plan));
    let stalled = late(set, plan).map(|message| ("Timeout", message));
    let stalled = stalled.or_else(|| refused.map(|message| ("NoPlace", message)));
    let stalled = stalled.or_else(|| floor_too_high(plan).map(|message| ("FloorTooHigh", message)));
    let stalled = stalled.filter(|_| active);
    let (reason, message) = stalled.clone().unwrap_or(("Moving", String::new()));
    set_condition("Stalled", stalled.is_some(), reason, message);
    let hold = plan.hold.as_ref().map(|hold| {
        let reason = match hold {
            super::Hold::NoNodes => "NoNodes",
            super::Hold::NoneChosen { .. } => "NoneChosen",
            super::Hold::Contends { .. } => "Contends",
        };
        (reason, hold.to_string())
    });
    let hold = held.map(|why| ("Failsafe", why)).or(hold);
    let (reason, message) = hold.clone().unwrap_or(("Free", String::new()));
    set_condition(condition::HELD, hold.is_some(), reason, message);
    let before = set.status.detail.observed_revision;
    if status != set.status || ledger::entered_at(context.view(), context.key()) > before {
        status.detail.observed_revision = Some(context.view().revision());
    }
    status
}
