//! The claim of a roll on its two controllers: taken before anything moves, given back at the end.

use std::sync::Arc;

use platctrl_framework::cache::View;
use platctrl_framework::controller::{Action, Changes, Context, ReconcileError};
use platctrl_framework::model::{EventType, Object, ObjectKey, Resource, Uid};
use platctrl_kinds::{Pod, ReplicationController, RollPhase, RollingUpdate};

use super::RunResult;
use super::memory::Memory;
use super::observe::Sides;
use crate::ledger::{self, Ledger, replication_controller_key};

/// Why a roll cannot have its controllers.
pub(super) fn refusal(view: &View, roll: &Object<RollingUpdate>, sides: &Sides) -> Option<String> {
    for side in [&sides.from, &sides.to] {
        let Some(claimant) = side.spec.claimed_by.as_ref() else {
            continue;
        };
        let namespace = side.metadata.namespace.as_deref().unwrap_or_default();
        let key = ledger::roll_key(namespace, claimant);
        if *claimant == roll.metadata.name {
            continue;
        }
        let name = &side.metadata.name;
        if ledger::claimant(view, side).is_some() {
            return Some(format!(
                "replication controller {name} is claimed by rollingupdate/{claimant}: wait for its end, or delete it"
            ));
        }
        let unexplained = key.is_some_and(|key| {
            view.get::<RollingUpdate>(&key).is_none()
                && view
                    .joined(&key)
                    .is_ok_and(|joined| joined.is_unexplained())
        });
        if unexplained {
            return Some(format!(
                "replication controller {name} is claimed by rollingupdate/{claimant}, whose record was lost: adopt or remove it with `platctrl failsafe`"
            ));
        }
    }
    None
}

/// Both controllers say that they are claimed by this roll, and it knows what it gave them.
pub(super) fn is_held(roll: &Object<RollingUpdate>, sides: &Sides) -> bool {
    let name = Some(&roll.metadata.name);
    let both = [&sides.from, &sides.to];
    let claimed = both
        .iter()
        .all(|side| side.spec.claimed_by.as_ref() == name);
    claimed
        && roll.status.detail.from_replicas.is_some()
        && roll.status.detail.to_replicas.is_some()
}

/// Why somebody else decides how many pods there are.
pub(super) fn contest(roll: &Object<RollingUpdate>, sides: &Sides) -> Option<String> {
    let given = &roll.status.detail;
    for (side, given) in [
        (&sides.from, given.from_replicas),
        (&sides.to, given.to_replicas),
    ] {
        let (name, is) = (&side.metadata.name, side.spec.replicas);
        if let Some(given) = given.filter(|given| *given != is) {
            return Some(format!(
                "replicas of {name} was set to {is} though this roll claims it and gave it {given}: set it back, change spec.replicas of the roll, or delete the roll"
            ));
        }
    }
    None
}

/// Claims both controllers and makes their ledgers one. Nothing is moved yet.
pub(super) async fn take(
    roll: &Arc<Object<RollingUpdate>>,
    sides: &Sides,
    context: &Context,
) -> RunResult {
    let mut changes = context.changes();
    let mut keys = Vec::new();
    for side in [&sides.from, &sides.to] {
        let mut claimed = Object::clone(side);
        claimed.spec.claimed_by = Some(roll.metadata.name.clone());
        changes.update(&claimed)?;
        keys.push(side.key()?);
    }
    ledger::move_to_roll(context.view(), &mut changes, context.key(), &keys)?;
    let mut status = roll.status.clone();
    status.phase = RollPhase::Pending.into();
    status.observed_generation = Some(roll.metadata.generation);
    status.detail.from_replicas = Some(sides.from.spec.replicas);
    status.detail.to_replicas = Some(sides.to.spec.replicas);
    status.detail.started_at = Some(context.environment().now());
    status.detail.floor = roll.spec.floor();
    changes.report::<RollingUpdate>(&status)?;
    changes.commit().await?;
    let message = format!(
        "claimed {} with {} pods and {} with {}",
        roll.spec.from, sides.from.spec.replicas, roll.spec.to, sides.to.spec.replicas
    );
    context.event(EventType::Normal, "Claimed", message);
    Ok(Action::await_change())
}

fn uids(pods: &[Arc<Object<Pod>>]) -> Vec<Uid> {
    pods.iter().map(|pod| pod.metadata.uid.clone()).collect()
}

/// Gives the controllers back at the end. One that is left without pods stays claimed: how many
/// pods it has is not for an old manifest to say.
pub(super) fn finish(
    roll: &Object<RollingUpdate>,
    sides: &Sides,
    ledger: &Ledger,
    context: &Context,
    changes: &mut Changes<'_>,
) -> Result<(), ReconcileError> {
    let (source, target) = sides.in_direction(roll);
    for side in [source, target] {
        let is_left = side.metadata.uid == source.metadata.uid && side.spec.replicas == 0;
        if is_left {
            continue;
        }
        let mut free = side.clone();
        free.spec.claimed_by = None;
        changes.update(&free)?;
    }
    let ledgers = [
        (sides.from.key()?, sides.of_from.uids()),
        (sides.to.key()?, sides.of_to.uids()),
    ];
    let (view, open) = (context.view(), ledger.open_entries());
    ledger::move_back(view, changes, context.key(), &open, &ledgers)?;
    Ok(())
}

/// The roll is deleted: everything stays where it is, and the controllers are given back.
pub(super) async fn cancel(
    roll: Arc<Object<RollingUpdate>>,
    context: Context,
    memory: Memory,
) -> RunResult {
    memory.forget(&roll.metadata.uid);
    let namespace = roll.metadata.namespace.as_deref().unwrap_or_default();
    let view = context.view();
    let mut changes = context.changes();
    let mut ledgers: Vec<(ObjectKey, Vec<Uid>)> = Vec::new();
    let mut sides = Vec::new();
    for name in [&roll.spec.from, &roll.spec.to] {
        let key = replication_controller_key(namespace, name);
        let Some(key) = key else { continue };
        let Some(side) = view.get::<ReplicationController>(&key) else {
            continue;
        };
        if side.spec.claimed_by.as_ref() != Some(&roll.metadata.name) {
            continue;
        }
        if !side.metadata.is_deleted() {
            let mut free = Object::clone(&side);
            free.spec.claimed_by = None;
            changes.update(&free)?;
        }
        let pods = view.list::<Pod>().owned_by(&side.metadata.uid).to_vec();
        ledgers.push((key, uids(&pods)));
        sides.push(side);
    }
    let is_first = !ledgers.is_empty();
    if is_first {
        let sides: Vec<_> = sides.iter().map(|side| &**side).collect();
        let ledger = Ledger::of_roll(view, &roll, &sides);
        let open = ledger.map(|ledger| ledger.open_entries());
        let open = open.unwrap_or_default();
        ledger::move_back(view, &mut changes, context.key(), &open, &ledgers)?;
    }
    changes.report_gone()?;
    changes.commit().await?;
    if is_first {
        let message = format!(
            "{} is given up: {} and {} stay as they are",
            RollingUpdate::SINGULAR,
            roll.spec.from,
            roll.spec.to
        );
        context.event(EventType::Normal, "Cancelled", message);
    }
    Ok(Action::await_change())
}
