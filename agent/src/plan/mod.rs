//! What to do next with a pod, decided over plain data.
//!
//! [`plan`] says which [`Step`]s follow from what is wanted and what is so. They are in two lanes:
//! a version is got ready beside what is done with the one that runs, and neither lane waits for
//! the other. Only a tombstone, or a newer spec of the same uid, stops anything:
//! absence is never an order.

mod hold;
mod step;
#[cfg(test)]
mod tests;

use platctrl_framework::model::{Digest, Uid};

pub(crate) use hold::Hold;
pub use step::{Row, Step, UPDATE};

use crate::state::{Position, Preparation};
use crate::version::{Desired, Scripts};

/// What the store says about a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Somebody wants this.
    Want(Box<Desired>),
    /// The record of it is missing, and nobody ordered its end.
    Missing,
    /// Nobody knows: the store cannot be asked, or its answer cannot be believed.
    Unknown,
}

/// For which events of a pod's life this node has hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HookedEvents {
    /// Before anything is fetched.
    pub(crate) before_install: bool,
    /// Once it is there.
    pub(crate) after_install: bool,
    /// Before the new version is made the current one.
    pub(crate) before_launch: bool,
    /// Once it does its work.
    pub(crate) after_launch: bool,
    /// Before a pod is removed.
    pub(crate) before_uninstall: bool,
}

/// What is so on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    /// Whose programs and files are here; empty when nobody's or unknown.
    pub(crate) uid: Uid,
    /// Only the directories of the pod are known, not what they are.
    pub(crate) unidentified: bool,
    /// The newest generation and spec of that uid that was wanted before.
    pub(crate) seen: Option<(u64, Digest)>,
    /// The spec of the version that is current.
    pub(crate) current: Option<Digest>,
    /// The spec of the version that is fetched and takes over next.
    pub(crate) next: Option<Digest>,
    /// How far getting a version ready has come, and which.
    pub(crate) preparation: Option<(Digest, Preparation)>,
    /// How far the change has come.
    pub(crate) position: Position,
    /// The drain has lasted as long as it should.
    pub(crate) drained: bool,
    /// Every program of the pod that has a supervisor, and is to be stopped, is at rest.
    pub(crate) at_rest: bool,
    /// A program of the current version has no supervisor.
    pub(crate) missing: bool,
    /// Files of older generations are there.
    pub(crate) stale: bool,
    /// What is wanted differs from the current version in nothing that needs another process.
    pub(crate) adjustable: bool,
    /// The last step of the change failed, and is to be tried again.
    pub(crate) failed: bool,
    /// A version that failed to start, and of what; it is not tried again.
    pub(crate) quarantined: Option<(Digest, String)>,
    /// The version that takes over next is the one that ran before.
    pub(crate) reverting: bool,
    /// The scripts of the current version.
    pub(crate) current_scripts: Scripts,
    /// The scripts of the next version, as far as it is there.
    pub(crate) next_scripts: Scripts,
    /// The hooks of this node.
    pub(crate) hooked: HookedEvents,
    /// The pod never runs twice at once: it may run elsewhere by now, unless it is wanted here.
    pub(crate) singleton: bool,
}

/// What to do. In each of the two lists, when a step has to wait, those behind it wait with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What gets a version ready, beside the one that runs.
    pub(crate) prepare: Vec<Step>,
    /// What is done with the version that runs, up to another one's taking over.
    pub(crate) steps: Vec<Step>,
    /// What is not done, and why.
    pub(crate) hold: Option<Hold>,
}

impl Plan {
    fn of(steps: Vec<Step>) -> Self {
        Self {
            steps,
            ..Self::default()
        }
    }
}

/// Decides what to do.
#[must_use]
pub(crate) fn plan(order: &Order, observed: &Observed) -> Plan {
    let mut plan = decide(order, observed);
    if observed.singleton && !matches!(order, Order::Want(_)) {
        // What runs is left alone; what does not may have been replaced while nobody could say so.
        let start = plan.steps.iter().position(|step| *step == Step::Start);
        plan.steps.truncate(start.unwrap_or(plan.steps.len()));
    }
    plan
}

fn decide(order: &Order, observed: &Observed) -> Plan {
    let desired = match order {
        Order::Want(desired) => desired,
        // Nothing was ever done here: there is nothing to hold either.
        Order::Missing if observed.current.is_some() || observed.unidentified => {
            return keep(observed, Some(Hold::Unexplained));
        }
        Order::Missing | Order::Unknown => return keep(observed, None),
    };
    if let Some(hold) = suspicious(desired, observed) {
        return keep(observed, Some(hold));
    }
    if desired.tombstone.is_some() {
        return end(observed);
    }
    let takes_over_next = observed.next == Some(desired.digest);
    if observed.position.is_stopping() && observed.next.is_some() {
        // Its predecessor is stopped: finish this, then see what is wanted. Unless it cannot be
        // finished and is not wanted any more.
        if observed.failed && !takes_over_next && !observed.reverting {
            return Plan::of(vec![Step::Abandon]);
        }
        return Plan {
            hold: quarantined(desired, observed),
            ..take_over(observed)
        };
    }
    if let Some(field) = &desired.unsupported {
        let field = field.clone();
        return keep(observed, Some(Hold::Unsupported { field }));
    }
    if let Some(hold) = quarantined(desired, observed) {
        return keep(observed, Some(hold));
    }
    if observed.current == Some(desired.digest) {
        let changing = observed.position.is_leaving() || observed.position.is_stopping();
        if observed.next.is_some() || observed.preparation.is_some() || changing {
            return Plan::of(vec![Step::Discard]);
        }
        return keep(observed, None);
    }
    if observed.reverting && observed.next.is_some() {
        return take_over(observed);
    }
    if observed.adjustable && desired.problem().is_none() {
        if observed.next.is_some()
            || observed.preparation.is_some()
            || observed.position.is_leaving()
        {
            return Plan::of(vec![Step::Discard]);
        }
        let mut plan = keep(observed, None);
        plan.steps.insert(0, Step::Adjust);
        return plan;
    }
    if takes_over_next && is_ready(desired.digest, observed) {
        return take_over(observed);
    }
    // Names in it become parts of paths: whoever wrote it, it is checked here.
    if let Some(problem) = desired.problem() {
        return keep(observed, Some(Hold::Invalid { problem }));
    }
    // Until the new one is ready, the old one is looked after; what is old already can wait.
    let mut steps = launch(observed);
    steps.retain(|step| *step != Step::Prune);
    Plan {
        prepare: prepare(desired.digest, observed),
        steps,
        hold: None,
    }
}

/// An order that does not follow from what was ordered before.
fn suspicious(desired: &Desired, observed: &Observed) -> Option<Hold> {
    if observed.uid.is_empty() {
        return None;
    }
    if observed.uid != desired.uid {
        let holds_something = observed.current.is_some() || observed.next.is_some();
        return holds_something.then(|| Hold::UidChanged {
            running: observed.uid.clone(),
            wanted: desired.uid.clone(),
        });
    }
    let (seen, digest) = observed.seen?;
    if desired.generation < seen {
        return Some(Hold::WentBack {
            seen,
            wanted: desired.generation,
        });
    }
    (desired.generation == seen && desired.digest != digest)
        .then_some(Hold::Rewritten { generation: seen })
}

/// The version has failed to start.
fn quarantined(desired: &Desired, observed: &Observed) -> Option<Hold> {
    let failed = observed.quarantined.as_ref();
    let (_, why) = failed.filter(|(digest, _)| *digest == desired.digest)?;
    Some(Hold::Reverted { why: why.clone() })
}

/// Whatever runs keeps running; what was begun with it, or stopped half way, goes on.
fn keep(observed: &Observed, hold: Option<Hold>) -> Plan {
    let committed = observed.position.is_stopping() || observed.reverting;
    let mut plan = if committed && observed.next.is_some() {
        take_over(observed)
    } else {
        Plan::of(launch(observed))
    };
    plan.hold = hold;
    plan
}

/// What is still to be done for the version that is current.
fn launch(observed: &Observed) -> Vec<Step> {
    let position = observed.position;
    if observed.current.is_none() || position.is_stopping() {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if position == Position::Flipped && observed.current_scripts.post_activate {
        steps.push(Step::PostActivate);
    }
    if observed.missing {
        steps.push(Step::Start);
    }
    if position.is_launching() {
        if position < Position::Enabled && observed.current_scripts.enable {
            steps.push(Step::Enable);
        }
        if position < Position::Healthy {
            steps.push(Step::Healthy);
        }
        if observed.hooked.after_launch {
            steps.push(Step::AfterLaunch);
        }
        steps.push(Step::Prune);
    } else if observed.stale && steps.is_empty() && observed.next.is_none() {
        steps.push(Step::Prune);
    }
    steps
}

/// How far getting this version ready has come.
fn preparation(digest: Digest, observed: &Observed) -> Preparation {
    match observed.preparation {
        Some((known, preparation)) if known == digest => preparation,
        // Noted by an agent that knew no more steps.
        _ if observed.next == Some(digest) => Preparation::Ready,
        _ => Preparation::Begun,
    }
}

fn is_ready(digest: Digest, observed: &Observed) -> bool {
    match preparation(digest, observed) {
        Preparation::Ready => true,
        Preparation::Fetched => !observed.hooked.after_install,
        _ => false,
    }
}

/// What gets a version ready, from where that has come.
fn prepare(digest: Digest, observed: &Observed) -> Vec<Step> {
    let known = preparation(digest, observed);
    let fetched = known >= Preparation::Fetched && observed.next == Some(digest);
    let mut steps = Vec::new();
    if known < Preparation::Authorised {
        steps.push(Step::Authorise);
    }
    if known < Preparation::Hooked && observed.hooked.before_install {
        steps.push(Step::BeforeInstall);
    }
    if !fetched {
        steps.push(Step::Fetch);
    }
    if known < Preparation::Ready && observed.hooked.after_install {
        steps.push(Step::AfterInstall);
    }
    steps
}

/// From the current version, if there is one, to the next.
fn take_over(observed: &Observed) -> Plan {
    let position = observed.position;
    let mut steps = vec![Step::Configure];
    if !position.is_stopping() {
        steps.extend(leave(observed));
    }
    if !observed.at_rest || position == Position::Stopping {
        steps.push(Step::Stop);
    }
    // What runs again was let run before.
    if observed.hooked.before_launch && position != Position::Readied && !observed.reverting {
        steps.push(Step::BeforeLaunch);
    }
    steps.push(Step::Flip);
    if observed.next_scripts.post_activate {
        steps.push(Step::PostActivate);
    }
    steps.push(Step::Start);
    if observed.next_scripts.enable {
        steps.push(Step::Enable);
    }
    steps.push(Step::Healthy);
    if observed.hooked.after_launch {
        steps.push(Step::AfterLaunch);
    }
    steps.push(Step::Prune);
    Plan::of(steps)
}

/// What comes before programs are stopped.
fn leave(observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    if !observed.at_rest && !observed.drained && !observed.reverting {
        steps.push(Step::Drain);
    }
    let enabled = !matches!(observed.position, Position::Flipped | Position::Activated);
    if observed.current_scripts.disable && enabled {
        steps.push(Step::Disable);
    }
    steps
}

fn end(observed: &Observed) -> Plan {
    let mut steps = Vec::new();
    if !observed.position.is_stopping() {
        steps.extend(leave(observed));
    }
    if !observed.at_rest {
        steps.push(Step::Stop);
    }
    let told = observed.position == Position::Released;
    if observed.hooked.before_uninstall && observed.current.is_some() && !told {
        steps.push(Step::BeforeUninstall);
    }
    steps.push(Step::Remove);
    Plan::of(steps)
}
