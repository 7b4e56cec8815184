//! What a roll sees: its two controllers, their pods, and since when they are healthy.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::cache::{Owners, View};
use platctrl_framework::controller::{Context, Fence};
use platctrl_framework::model::{Object, Uid};
use platctrl_kinds::{Pod, ReplicationController, RollingUpdate};

use super::memory::{Memory, Track};
use super::plan::{self, Observed, Others, PodFacts, Side};
use crate::crew::{Brief, Crew, Kept, News};
use crate::ledger::{Account, Ledger, replication_controller_key};
use crate::nodes::Names;

/// The two controllers of a roll, with their pods.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) from: Arc<Object<ReplicationController>>,
    pub(super) to: Arc<Object<ReplicationController>>,
    pub(super) of_from: Arc<Crew>,
    pub(super) of_to: Arc<Crew>,
}

impl Sides {
    /// Both controllers, or which one is missing.
    pub(super) fn find(
        view: &View,
        roll: &Object<RollingUpdate>,
        pods: &Owners<Pod, Kept>,
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
        let crew = |owner: &Uid| pods.of(view, owner, |kept| kept.crew().clone());
        Ok(Self {
            of_from: crew(&from.metadata.uid),
            of_to: crew(&to.metadata.uid),
            from,
            to,
        })
    }

    pub(super) fn crews(&self) -> [Arc<Crew>; 2] {
        [self.of_from.clone(), self.of_to.clone()]
    }

    /// A pod of one of them.
    pub(super) fn pod(&self, uid: &Uid, view: &View) -> Option<Arc<Object<Pod>>> {
        let pod = self.of_from.get(uid).or_else(|| self.of_to.get(uid))?;
        view.get(&pod.key)
    }

    /// Takes note of since when pods are healthy: of those that changed, or of all.
    fn note_health(
        &self,
        track: &mut Track,
        pods: &Owners<Pod, Kept>,
        view: &View,
        silent: &Names,
        now: Duration,
    ) {
        let as_before = track.looks_on(silent);
        let mut note = |pod: &Brief| {
            let healthy = pod.ready && !pod.leaving && !silent.contains(pod.node());
            track.healthy_for(&pod.uid, pod.generation, healthy, now);
        };
        for (side, crew) in [(&self.from, &self.of_from), (&self.to, &self.of_to)] {
            match pods.of(view, &side.metadata.uid, Kept::news) {
                News::Of(keys) if as_before => {
                    let pods = keys.iter().filter_map(|key| crew.at(key.path()));
                    pods.for_each(&mut note);
                }
                News::All | News::Of(_) => crew.pods().for_each(&mut note),
            }
        }
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
    /// Moved pods that it waits for, and for nothing else, whose nodes are not heard of.
    pub(super) unseen: u32,
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

/// What is asked of each pod of a side.
struct Asked<'s> {
    account: &'s Account,
    /// The nodes that are not heard of.
    silent: &'s Names,
    /// How long pods still have to be healthy.
    unconfirmed: &'s HashMap<Uid, Duration>,
    /// How many one commit moves.
    batch: usize,
}

impl Asked<'_> {
    fn facts(&self, pod: &Brief, misfits: &Names) -> PodFacts {
        let (uid, node) = (&pod.uid, pod.node());
        PodFacts {
            uid: uid.clone(),
            name: pod.name().to_owned(),
            healthy: pod.ready && !pod.leaving && !self.silent.contains(node),
            unconfirmed: self.unconfirmed.get(uid).copied().unwrap_or_default(),
            leaving: pod.leaving,
            open: self.account.is_open(uid),
            // Another one of these is not made before it is gone: its controller sees to that.
            fits: pod.shape.spec.singleton || !misfits.contains(node),
            silent: self.silent.contains(node),
        }
    }

    /// A controller with so many replicas. Of very many pods, those that decide are looked at.
    fn side(&self, crew: &Crew, replicas: u32, misfits: &Names) -> Side {
        if !self.silent.is_empty() || !misfits.is_empty() {
            let pods = crew.pods().map(|pod| self.facts(pod, misfits));
            return Side {
                replicas,
                pods: pods.collect(),
                ..Side::default()
            };
        }
        let free = crew
            .in_order()
            .filter(|pod| !self.account.is_open(&pod.uid));
        let first: Vec<&Brief> = free.take(self.batch.max(plan::BATCH) + 1).collect();
        let listed: HashSet<&Uid> = first.iter().map(|pod| &pod.uid).collect();
        let young = self.unconfirmed.keys().filter(|uid| !listed.contains(uid));
        let young = young.filter_map(|uid| crew.get(uid));
        let listed: Vec<&Brief> = first.iter().copied().chain(young).collect();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let live = listed.iter().filter(|pod| !pod.leaving);
        let (live, ready) = live.fold((0, 0), |(live, ready), pod| {
            (live + 1, ready + u32::from(pod.ready))
        });
        Side {
            replicas,
            others: Others {
                there: number(crew.len() - listed.len()),
                live: number(crew.live()).saturating_sub(live),
                confirmed: crew.ready().saturating_sub(ready),
            },
            pods: (listed.into_iter())
                .map(|pod| self.facts(pod, misfits))
                .collect(),
        }
    }
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
        let target_spec = &target_owner.spec;
        let misfits = (memory.nodes()).left(view, &target_spec.node_selector, target_spec.strategy);
        let silent = memory.nodes().silent(view);
        // What never runs twice is never made beside another.
        let once = target_owner.spec.template.spec.singleton
            || sides.of_from.singletons() + sides.of_to.singletons() > 0;
        let account = ledger.account();
        let least = spec.min_healthy_time.duration();
        let batch = batch(context, target_owner);
        memory.with(&roll.metadata.uid, |track| {
            track.begin(epoch, roll.metadata.generation, now);
            let unconfirmed = if least.is_zero() {
                track.looks_away();
                HashMap::new()
            } else {
                sides.note_health(track, memory.pods(), view, &silent, now);
                track.unconfirmed(least, now)
            };
            let asked = Asked {
                account,
                silent: &silent,
                unconfirmed: &unconfirmed,
                batch,
            };
            let (from, to) = (sides.from.spec.replicas, sides.to.spec.replicas);
            let anywhere = Names::default();
            let (source, target, target_pods) = match spec.rollback {
                true => (
                    asked.side(&sides.of_to, to, &misfits),
                    asked.side(&sides.of_from, from, &anywhere),
                    &sides.of_from,
                ),
                false => (
                    asked.side(&sides.of_from, from, &misfits),
                    asked.side(&sides.of_to, to, &anywhere),
                    &sides.of_to,
                ),
            };
            let is_there =
                |uid: &Uid| sides.of_from.get(uid).is_some() || sides.of_to.get(uid).is_some();
            track.keep(sides.of_from.len() + sides.of_to.len(), is_there);
            let budget = spec.failure_budget.map(|it| it.rounded_down(spec.replicas));
            let tolerated = budget.unwrap_or(0);
            let settled = plan::is_settled(&target, tolerated);
            let (limit, goal) = match spec.rollback {
                true => (spec.replicas, spec.replicas),
                false => (plan::limit(spec, target.replicas, settled), spec.goal()),
            };
            let confirmed = target.confirmed();
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let failed = |pod: &&Brief| pod.failed && !silent.contains(pod.node());
            let failures = match silent.is_empty() {
                true => target_pods.failed(),
                false => count(target_pods.pods().filter(failed).count()),
            };
            let unseen = plan::waits_for_nodes(&target, tolerated);
            let mark = u64::from(target.replicas) + u64::from(confirmed);
            // What happens to nodes is no failure of the new version.
            let waits_for_a_person = spec.paused || (settled && limit < goal) || unseen > 0;
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
            let young = target.young().count();
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
                    batch,
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
                unseen,
                confirmed,
                healthy,
                floor,
                without_progress,
                words: Words { counts, waiting },
            }
        })
    }
}

#[cfg(test)]
mod tests;
