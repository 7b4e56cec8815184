//! What a roll sees: its two controllers, their pods, and since when they are healthy.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::cache::{Owners, View};
use platctrl_framework::controller::{Context, Fence};
use platctrl_framework::model::{ConditionStatus, Object, Uid};
use platctrl_kinds::{Pod, PodPhase, ReplicationController, RollingUpdate, condition};

use super::memory::Memory;
use super::plan::{self, Observed, PodFacts, Side};
use crate::ledger::{Ledger, replication_controller_key};

/// The two controllers of a roll, with their pods.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) from: Arc<Object<ReplicationController>>,
    pub(super) to: Arc<Object<ReplicationController>>,
    pub(super) of_from: Vec<Arc<Object<Pod>>>,
    pub(super) of_to: Vec<Arc<Object<Pod>>>,
}

impl Sides {
    /// Both controllers, or which one is missing.
    pub(super) fn find(
        view: &View,
        roll: &Object<RollingUpdate>,
        pods: &Owners<Pod>,
    ) -> Result<Self, String> {
        let namespace = roll.metadata.namespace.as_deref().unwrap_or_default();
        let side = |name: &str| {
            let key = replication_controller_key(namespace, name);
            let found = key.and_then(|key| view.get::<ReplicationController>(&key));
            match found {
                Some(side) if side.metadata.is_deleted() => Err(format!(
                    "replication controller {name} is being deleted: nothing is moved; delete this roll"
                )),
                Some(side) => Ok(side),
                None => Err(format!(
                    "there is no replication controller {name}: nothing is moved until there is; delete this roll to leave everything as it is"
                )),
            }
        };
        let (from, to) = (side(&roll.spec.from)?, side(&roll.spec.to)?);
        Ok(Self {
            of_from: pods.owned(view, &from.metadata.uid),
            of_to: pods.owned(view, &to.metadata.uid),
            from,
            to,
        })
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Arc<Object<Pod>>> {
        self.of_from.iter().chain(&self.of_to)
    }

    /// Where pods come from, and where they go.
    pub(super) fn in_direction(
        &self,
        roll: &Object<RollingUpdate>,
    ) -> (
        &Object<ReplicationController>,
        &Object<ReplicationController>,
    ) {
        match roll.spec.rollback {
            true => (&self.to, &self.from),
            false => (&self.from, &self.to),
        }
    }
}

/// What a roll sees.
#[derive(Debug)]
pub(super) struct Roll {
    pub(super) observed: Observed,
    /// Moved pods that are seen to be unhealthy.
    pub(super) failures: u32,
    pub(super) confirmed: u32,
    pub(super) healthy: u32,
    pub(super) floor: u32,
    pub(super) without_progress: Duration,
    pub(super) words: Words,
}

/// The numbers of a decision, for people.
#[derive(Debug)]
pub(super) struct Words {
    /// `9 of 10 healthy, 8 needed`
    pub(super) counts: String,
    pub(super) waiting: String,
}

/// It was reported on, with its present spec, and cannot do its work.
fn is_failed(pod: &Object<Pod>) -> bool {
    let ready = pod.status.conditions.get(condition::READY);
    let unhealthy = ready.is_some_and(|ready| {
        ready.status == ConditionStatus::False
            && matches!(ready.reason.as_str(), "Unhealthy" | "Crashed")
    });
    unhealthy || PodPhase::of(&pod.status.phase) == Some(PodPhase::Failed)
}

/// How many pods one commit moves, at most: what the store takes, and not so many that a commit
/// takes long.
fn batch(context: &Context, target: &Object<ReplicationController>) -> usize {
    /// The roll, its ledger and its two controllers, compared and written, the claim, the anchor.
    const OTHERS: usize = 8;
    const MOST: usize = 40;
    let limits = context.capabilities().limits;
    // Each is compared and written, with what was reported on it.
    let operations = limits.max_operations.saturating_sub(2 * OTHERS) / 4;
    let each = limits
        .max_writes
        .min(limits.max_compares)
        .saturating_sub(OTHERS)
        / 2;
    let template = serde_json::to_vec(&target.spec.template);
    let bytes = template.map_or(0, |bytes| bytes.len()) + 2048;
    let bytes = limits.max_transaction_bytes / 2 / bytes;
    operations.min(each).min(bytes).clamp(plan::BATCH, MOST)
}

impl Roll {
    pub(super) fn observe(
        roll: &Object<RollingUpdate>,
        sides: &Sides,
        ledger: &Ledger,
        context: &Context,
        memory: &Memory,
    ) -> Self {
        let (spec, view) = (&roll.spec, context.view());
        let now = context.environment().monotonic();
        let epoch = context.fence().map(Fence::epoch);
        let (_, target_owner) = sides.in_direction(roll);
        let misfits = memory
            .nodes()
            .misfits(view, &target_owner.spec.node_selector);
        // What never runs twice is never made beside another.
        let once =
            target_owner.spec.template.spec.singleton || sides.pods().any(|pod| pod.spec.singleton);
        let account = ledger.account();
        let least = spec.min_healthy_time.duration();
        memory.with(&roll.metadata.uid, |track| {
            track.begin(epoch, roll.metadata.generation, now);
            let mut side = |replicas: u32, pods: &'_ [Arc<Object<Pod>>]| {
                let facts = pods.iter().map(|pod| {
                    let uid = &pod.metadata.uid;
                    let healthy = account.is_healthy(uid);
                    let generation = pod.metadata.generation;
                    let so_far = track.healthy_for(uid, generation, healthy, now);
                    PodFacts {
                        uid: uid.clone(),
                        name: pod.metadata.name.clone(),
                        healthy,
                        unconfirmed: least.saturating_sub(so_far),
                        leaving: pod.metadata.is_deleted(),
                        open: account.is_open(uid),
                        fits: true,
                    }
                });
                Side {
                    replicas,
                    pods: facts.collect(),
                }
            };
            let from = side(sides.from.spec.replicas, &sides.of_from);
            let to = side(sides.to.spec.replicas, &sides.of_to);
            let ((mut source, source_pods), (target, target_pods)) = match spec.rollback {
                true => ((to, &sides.of_to), (from, &sides.of_from)),
                false => ((from, &sides.of_from), (to, &sides.of_to)),
            };
            for (facts, pod) in source.pods.iter_mut().zip(source_pods) {
                let node = pod.spec.node_name.as_deref().unwrap_or_default();
                // Another one of these is not made before it is gone: its controller sees to that.
                facts.fits = pod.spec.singleton || !misfits.contains(node);
            }
            let all: Vec<&Uid> = sides.pods().map(|pod| &pod.metadata.uid).collect();
            track.keep(all.into_iter());
            let budget = spec.failure_budget.map(|it| it.rounded_down(spec.replicas));
            let tolerated = budget.unwrap_or(0);
            let settled = plan::is_settled(&target, tolerated);
            let (limit, goal) = match spec.rollback {
                true => (spec.replicas, spec.replicas),
                false => (plan::limit(spec, target.replicas, settled), spec.goal()),
            };
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let confirmed = target
                .pods
                .iter()
                .filter(|pod| pod.healthy && !pod.leaving && pod.unconfirmed.is_zero());
            let confirmed = count(confirmed.count());
            let failed = target_pods.iter().filter(|pod| is_failed(pod));
            let failures = count(failed.count());
            let mark = u64::from(target.replicas) + u64::from(confirmed);
            let waits_for_a_person = spec.paused || (settled && limit < goal);
            if waits_for_a_person {
                track.waits_for_a_person();
            }
            let without_progress = track.without_progress(mark, now);
            let (healthy, floor) = (account.healthy(), account.floor());
            let counts = format!("{healthy} of {} healthy, {floor} needed", spec.replicas);
            let mut waiting = counts.clone();
            if account.going() > 0 {
                waiting.push_str(&format!(", {} on their way out", account.going()));
            }
            let young = target
                .pods
                .iter()
                .filter(|pod| pod.healthy && !pod.leaving && !pod.unconfirmed.is_zero());
            let young = young.count();
            if young > 0 {
                let time = spec.min_healthy_time;
                waiting.push_str(&format!(", {young} of them for less than {time}"));
            }
            if let Some(budget) = &ledger.floor().budget {
                waiting.push_str(&format!(" (disruption budget {budget})"));
            }
            Self {
                observed: Observed {
                    replicas: spec.replicas,
                    limit,
                    goal,
                    surge: if once { 0 } else { spec.most_surge() },
                    batch: batch(context, target_owner),
                    allowed: ledger.allowed(),
                    tolerated,
                    // Nothing has to be waited for before the first move.
                    delay: (target.replicas > 0)
                        .then(|| track.delay_left(spec.delay.duration(), now))
                        .flatten(),
                    source,
                    target,
                },
                failures,
                confirmed,
                healthy,
                floor,
                without_progress,
                words: Words { counts, waiting },
            }
        })
    }
}
