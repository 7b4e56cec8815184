//! What a replication controller says about itself: counts, conditions, events.

use std::time::Duration;

use jiff::Timestamp;
use platctrl_framework::controller::{Action, Context};
use platctrl_framework::model::{Condition, ConditionStatus, EventType, Object, Status};
use platctrl_kinds::{Progress, ReplicationController, ReplicationControllerStatus, condition};

use super::plan::{Astray, Observed, Plan, Wait};
use super::{PROGRESS_DEADLINE, RunResult};
use crate::carry_out::Done;
use crate::ledger;

/// Pods that are named in a message.
const NAMED: usize = 3;

/// What is said of a plan, in words.
pub(super) struct News {
    /// Why pods have no place.
    unplaced: Option<String>,
    /// The template asks more than any node has.
    never_fits: bool,
    /// Pods that are not where they should be.
    astray: Option<String>,
    /// What the next step is, and what it waits for.
    next: String,
    /// Something is still to come.
    progressing: bool,
    /// Why nothing will come of it by itself.
    stuck: Option<(&'static str, String)>,
    no_nodes: bool,
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

impl News {
    pub(super) fn of(
        owner: &Object<ReplicationController>,
        plan: &Plan,
        observed: Option<&Observed>,
        no_nodes: bool,
    ) -> Self {
        let waits_for_place = matches!(plan.wait, Some(Wait::Place { .. }));
        let mut never_fits = false;
        let observed = observed.filter(|_| plan.unplaced > 0 || waits_for_place);
        let unplaced = observed.map(|observed| {
            // As it is after what is created now.
            let mut request = observed.request.clone();
            for node in &plan.create {
                *request.own.entry(node.clone()).or_default() += 1;
            }
            let explanation = observed.fleet.explain(&request);
            never_fits = explanation.never_fits;
            let pods = counted(plan.unplaced.max(1) as usize, "pod");
            format!("no place for {pods}: {}", explanation.summary())
        });
        let unready = plan.live.saturating_sub(plan.ready);
        let no_room = |why: &Astray| matches!(why, Astray::NoRoom(_));
        let stuck = plan.astray.iter().find(|(_, why)| no_room(why));
        let stuck = stuck.map(|(pod, why)| {
            let why =
                format!("{pod} cannot get the template where it is, because of its node: {why}");
            ("NoRoom", why)
        });
        let stuck = match &plan.wait {
            Some(wait @ Wait::Retirement { .. }) => Some(("AwaitsRetirement", wait.to_string())),
            _ => stuck,
        };
        let steps = plan.steps();
        let next = next(owner, plan);
        let progressing = !owner.spec.disabled && (steps > 0 || plan.wait.is_some() || unready > 0);
        Self {
            unplaced,
            never_fits,
            astray: strays(owner, plan),
            next,
            progressing,
            stuck,
            no_nodes,
        }
    }

    /// Events for what was not so before.
    pub(super) fn tell(&self, owner: &Object<ReplicationController>, context: &Context) {
        let before = &owner.status.conditions;
        let said = |kind: &str, message: &str| {
            before
                .get(kind)
                .is_some_and(|condition| condition.message == message)
        };
        if let Some(message) = &self.unplaced
            && !said(condition::SCHEDULED, message)
        {
            context.event(EventType::Warning, "Unplaced", message.clone());
        }
        if let Some(message) = &self.astray
            && !said("Eligible", message)
        {
            context.event(EventType::Warning, "Astray", message.clone());
        }
        let waits = self.next.starts_with("waiting") && self.unplaced.is_none();
        if waits && !said("Progressing", &self.next) {
            context.event(EventType::Normal, "Waiting", self.next.clone());
        }
    }
}

/// What the next step is, and what it waits for.
fn next(owner: &Object<ReplicationController>, plan: &Plan) -> String {
    if owner.spec.disabled {
        return "disabled: nothing is done".to_owned();
    }
    let (wanted, ready) = (owner.spec.replicas, plan.ready);
    if plan.steps() > 0 {
        let mut parts = crate::carry_out::told(
            plan.create.len(),
            plan.update.len(),
            plan.delete.len(),
            plan.adopt.len(),
        );
        if plan.outdated > 0 {
            parts.push(format!("{} wait for the template", plan.outdated));
        }
        let there = format!("{} of {wanted} there, {ready} ready", plan.live);
        return format!("{}: {there}", parts.join(", "));
    }
    if let Some(wait) = &plan.wait {
        return format!("waiting: {ready} of {wanted} ready; {wait}");
    }
    if plan.unplaced > 0 {
        let pods = counted(plan.unplaced as usize, "pod");
        return format!("waiting: {ready} of {wanted} ready; {pods} without a place");
    }
    if plan.live > ready {
        return format!("waiting: {ready} of {wanted} ready");
    }
    match &owner.spec.claimed_by {
        Some(roll) => format!("rollingupdate/{roll} says how many pods there are"),
        None => String::new(),
    }
}

fn strays(owner: &Object<ReplicationController>, plan: &Plan) -> Option<String> {
    let (first, why) = plan.astray.first_key_value()?;
    let names: Vec<&str> = plan.astray.keys().take(NAMED).map(String::as_str).collect();
    let more = if plan.astray.len() > NAMED {
        ", …"
    } else {
        ""
    };
    let strategy = owner.spec.strategy;
    let what = match plan.moved as usize {
        0 => format!("left where they are ({strategy:?})"),
        moved if moved == plan.astray.len() => format!("moved one at a time ({strategy:?})"),
        moved => format!("of these {moved} are moved one at a time ({strategy:?})"),
    };
    Some(format!(
        "{} not on nodes where they should be, and {what}: {}{more} ({first}: {why})",
        match plan.astray.len() {
            1 => "1 pod is".to_owned(),
            count => format!("{count} pods are"),
        },
        names.join(", ")
    ))
}

/// When something last moved.
fn progress_at(
    owner: &Object<ReplicationController>,
    plan: &Plan,
    done: bool,
    now: Timestamp,
) -> Timestamp {
    let detail = &owner.status.detail;
    let same = (detail.replicas, detail.ready_replicas) == (plan.live, plan.ready)
        && owner.status.observed_generation == Some(owner.metadata.generation);
    match detail.progress {
        Some(Progress { at }) if same && !done => at,
        _ => now,
    }
}

fn deadline(owner: &Object<ReplicationController>) -> Duration {
    let spec = owner.spec.progress_deadline;
    spec.unwrap_or(PROGRESS_DEADLINE).duration()
}

/// How long nothing has moved.
fn standing(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or_default()
}

/// When to look again though nothing changes: when nothing has moved for too long.
pub(super) fn next_look(
    owner: &Object<ReplicationController>,
    plan: &Plan,
    news: &News,
    context: &Context,
) -> RunResult {
    let now = context.environment().now();
    if !news.progressing || news.stuck.is_some() || news.unplaced.is_some() {
        return Ok(Action::await_change());
    }
    let at = progress_at(owner, plan, plan.steps() > 0, now);
    let left = deadline(owner).saturating_sub(standing(at, now));
    if left.is_zero() {
        return Ok(Action::await_change());
    }
    // A moment later, so that it is over by then.
    Ok(Action::requeue_after(left + Duration::from_millis(10)))
}

pub(super) fn status(
    owner: &Object<ReplicationController>,
    plan: &Plan,
    news: &News,
    context: &Context,
    done: Done,
    held: Option<String>,
) -> Status<ReplicationControllerStatus> {
    let (now, generation) = (context.environment().now(), owner.metadata.generation);
    let joined = context.joined();
    let mut status = owner.status.clone();
    status.observed_generation = Some(generation);
    let intent = joined.intent.as_ref();
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    let detail = &mut status.detail;
    detail.replicas = (plan.live + done.created + done.adopted).saturating_sub(done.deleted);
    detail.ready_replicas = plan.ready;
    let at = progress_at(owner, plan, done.any(), now);
    detail.progress = Some(Progress { at });
    let wanted = owner.spec.replicas;
    let is = |holds: bool| match holds {
        true => ConditionStatus::True,
        false => ConditionStatus::False,
    };
    let mut set = |kind: &str, holds: bool, reason: &str, message: String| {
        let condition = Condition::new(kind, is(holds), reason, message);
        status.conditions.set(condition, generation, now);
    };
    let available = plan.ready >= wanted;
    set(
        "Available",
        available,
        if available { "AllReady" } else { "TooFewReady" },
        format!("{} of {wanted} pods are ready", plan.ready),
    );
    let (reason, message) = match &news.unplaced {
        None => ("AllPlaced", String::new()),
        Some(message) => ("NoPlace", message.clone()),
    };
    set(
        condition::SCHEDULED,
        news.unplaced.is_none(),
        reason,
        message,
    );
    let reason = if owner.spec.disabled {
        "Disabled"
    } else if !news.progressing && news.unplaced.is_some() {
        "Stalled"
    } else if !news.progressing {
        "Settled"
    } else if plan.steps() > 0 {
        "Acting"
    } else {
        "Waiting"
    };
    set("Progressing", news.progressing, reason, news.next.clone());
    let (reason, message) = match &news.astray {
        None => ("AllEligible", String::new()),
        Some(message) => ("Ineligible", message.clone()),
    };
    set("Eligible", news.astray.is_none(), reason, message);
    let late = news.progressing && standing(at, now) >= deadline(owner);
    let stalled = match (&news.unplaced, &news.stuck) {
        (Some(message), _) if news.never_fits => Some(("NeverFits", message.clone())),
        (Some(message), _) => Some(("NoPlace", message.clone())),
        (None, Some((reason, message))) => Some((*reason, message.clone())),
        (None, None) if late => Some((
            "ProgressDeadline",
            format!(
                "nothing has moved for {}: {}",
                owner.spec.progress_deadline.unwrap_or(PROGRESS_DEADLINE),
                news.next
            ),
        )),
        (None, None) => None,
    };
    let is_stalled = stalled.is_some() && !owner.spec.disabled;
    let (reason, message) = stalled
        .filter(|_| is_stalled)
        .unwrap_or(("Moving", String::new()));
    set("Stalled", is_stalled, reason, message);
    let (holds, reason, message) = match held {
        Some(why) => (true, "Failsafe", why),
        None if news.no_nodes && (wanted > 0 || plan.live > 0) => (
            true,
            "NoNodes",
            "there is no record of any node: nothing is placed or moved".to_owned(),
        ),
        None => (false, "Free", String::new()),
    };
    set(condition::HELD, holds, reason, message);
    let before = owner.status.detail.observed_revision;
    if status != owner.status || ledger::entered_at(context.view(), context.key()) > before {
        status.detail.observed_revision = Some(context.view().revision());
    }
    status
}
