//! What a rolling update does next, from plain data.
//!
//! The core is a formula: of the healthy pods of both controllers, those beyond the floor may be
//! taken away now, less those that something was decided about already and those that are not
//! healthy for long enough yet to be counted on. Pods that are not healthy cost nothing and go
//! first; pods that are missing are made by the controller that the roll goes to.

use std::time::Duration;

use platctrl_framework::model::Uid;
use platctrl_kinds::{Gate, RollingUpdateSpec};

/// Pods that one commit can move on every store: with the records beside them that is within the
/// limits of all of them.
pub const BATCH: usize = 8;

/// What a plan is made from. The roll goes from `source` to `target`: when it rolls back, from
/// the new controller to the old one.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// How many pods both have together.
    pub replicas: u32,
    /// How many the target gets up to the next stop.
    pub limit: u32,
    /// How many it gets in the end.
    pub goal: u32,
    /// How many pods more than `replicas` there may be; 0: they are updated in place.
    pub surge: u32,
    /// Where pods come from.
    pub source: Side,
    /// Where they go.
    pub target: Side,
    /// How many pods one commit may move; at least [`BATCH`].
    pub batch: usize,
    /// Healthy pods that may be taken away, by the ledger.
    pub allowed: u32,
    /// So many unhealthy target pods are no failure.
    pub tolerated: u32,
    /// Time until the next move may be made.
    pub delay: Option<Duration>,
}

/// One of the two controllers.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// How many pods it is to have.
    pub replicas: u32,
    /// Its pods, also those on their way out: all that are not counted in `others`.
    pub pods: Vec<PodFacts>,
    /// The rest of them.
    pub others: Others,
}

/// Pods that a decision needs the number of, and no more. None of them is healthy for less than
/// it has to be, and none is among those that would be taken first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// How many there are.
    pub there: u32,
    /// Those of them that are not on their way out.
    pub live: u32,
    /// Those of them that are healthy for long enough.
    pub confirmed: u32,
}

/// A pod, as far as a plan is about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its uid.
    pub uid: Uid,
    /// Its name.
    pub name: String,
    /// It is recorded as healthy.
    pub healthy: bool,
    /// How long it still has to be healthy before it counts; zero when it does.
    pub unconfirmed: Duration,
    /// It has a tombstone.
    pub leaving: bool,
    /// Something was decided about it, and the effect is not seen yet.
    pub open: bool,
    /// It can stay on its node: the target's selector matches that, and nothing is taken from it.
    pub fits: bool,
    /// Its node is not heard of: nobody can see whether it does its work.
    pub silent: bool,
}

impl PodFacts {
    fn is_confirmed(&self) -> bool {
        self.healthy && self.unconfirmed.is_zero()
    }
}

impl Side {
    fn live(&self) -> impl Iterator<Item = &PodFacts> {
        self.pods.iter().filter(|pod| !pod.leaving)
    }

    fn count(&self) -> u32 {
        count(self.live().count()).saturating_add(self.others.live)
    }

    fn there(&self) -> u32 {
        count(self.pods.len()).saturating_add(self.others.there)
    }

    /// The pods that are healthy for long enough.
    pub(super) fn confirmed(&self) -> u32 {
        let confirmed = self.live().filter(|pod| pod.is_confirmed()).count();
        count(confirmed).saturating_add(self.others.confirmed)
    }

    /// The pods that are healthy, and not for long enough.
    pub(super) fn young(&self) -> impl Iterator<Item = &PodFacts> {
        self.live().filter(|pod| pod.healthy && !pod.is_confirmed())
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What happens to a pod of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// It stays where it is, with the target's template and owner.
    InPlace(Uid),
    /// It is ended, and the target makes another one elsewhere.
    Elsewhere(Uid),
    /// It is ended, because there are more than wanted.
    Remove(Uid),
}

/// What a roll waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For nothing: it acts.
    No,
    /// For more healthy pods.
    Health,
    /// For the least time between two moves.
    Delay,
    /// For pods that were moved to be healthy, at the end of a step or of all.
    Confirmation,
    /// For somebody to let it pass a step.
    Gate,
    /// All is done.
    Finished,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What happens to pods.
    pub moves: Vec<Move>,
    /// How many pods the source has then.
    pub source: u32,
    /// How many pods the target has then.
    pub target: u32,
    /// What it waits for.
    pub wait: Wait,
    /// Something changes by itself after this time.
    pub look_again: Option<Duration>,
}

/// How many pods the target gets up to the next stop. `settled`: all that it has are healthy.
#[must_use]
pub fn limit(spec: &RollingUpdateSpec, target: u32, settled: bool) -> u32 {
    let (mut gates, goal) = (0, spec.goal());
    for step in &spec.steps {
        let up_to = step.up_to.rounded_up(spec.replicas).min(goal);
        match step.gate {
            Gate::Manual => {
                gates += 1;
                if gates > spec.promoted {
                    return up_to;
                }
            }
            Gate::Auto => {
                if target < up_to || (target == up_to && !settled) {
                    return up_to;
                }
            }
        }
    }
    goal
}

/// All pods that the target is to have are there and were healthy for long enough, but for so
/// many as are tolerated.
#[must_use]
pub fn is_settled(target: &Side, tolerated: u32) -> bool {
    target.count() == target.replicas && target.confirmed() + tolerated >= target.replicas
}

/// How many pods of the target can only be seen to be healthy once their nodes are heard of
/// again, if they are all that it waits for.
#[must_use]
pub(super) fn waits_for_nodes(target: &Side, tolerated: u32) -> u32 {
    let unseen = count(target.live().filter(|pod| pod.silent).count());
    let rest_is_settled = target.count() == target.replicas
        && target.confirmed() + tolerated + unseen >= target.replicas;
    match rest_is_settled && !is_settled(target, tolerated) {
        true => unseen,
        false => 0,
    }
}

/// Decides what to do next.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let Observed { source, target, .. } = observed;
    let batch = observed.batch.max(BATCH);
    let mut plan = Plan {
        moves: Vec::new(),
        source: source.replicas,
        target: target.replicas,
        wait: Wait::No,
        look_again: None,
    };
    let unconfirmed: Vec<Duration> = target.young().map(|pod| pod.unconfirmed).collect();
    plan.look_again = unconfirmed.iter().min().copied();
    // What has just become healthy is not counted on yet.
    let mut room = observed.allowed.saturating_sub(count(unconfirmed.len()));

    let settled = is_settled(target, observed.tolerated);
    let total = source.replicas.saturating_add(target.replicas);
    let is_done = target.replicas == observed.goal && total == observed.replicas;
    if is_done && settled && source.count() == source.replicas {
        plan.wait = Wait::Finished;
        plan.look_again = None;
        return plan;
    }
    if let Some(delay) = observed.delay {
        let soonest = plan.look_again.map_or(delay, |other| other.min(delay));
        plan.look_again = Some(soonest);
        plan.wait = Wait::Delay;
        return plan;
    }

    let mut wants_room = false;
    // More than wanted: the surplus goes, old ones first.
    let mut surplus = total.saturating_sub(observed.replicas);
    for (side, replicas) in [(source, &mut plan.source), (target, &mut plan.target)] {
        let most = surplus.min(*replicas);
        let missing = replicas.saturating_sub(side.count());
        let batch = batch - plan.moves.len();
        let taken = take(side, (missing, most), &mut room, batch, true);
        wants_room |= taken.short_of_room;
        let done = taken.missing + count(taken.pods.len());
        plan.moves.extend(
            taken
                .pods
                .into_iter()
                .map(|pod| Move::Remove(pod.uid.clone())),
        );
        *replicas -= done;
        surplus -= done;
        if surplus > 0 && *replicas > 0 {
            // The rest of these first.
            break;
        }
    }

    // Fewer than there may be: more are made, new ones as far as the next stop.
    let remaining = observed.limit.saturating_sub(target.replicas);
    let there = source.there().saturating_add(target.there());
    let most = observed.replicas.saturating_add(observed.surge);
    let free = most.saturating_sub(total.max(there));
    let grown = if total <= most {
        remaining.min(free)
    } else {
        0
    };
    plan.target += grown;
    if remaining == 0 && total < observed.replicas {
        plan.source += observed.replicas - total;
    }

    // And the rest changes hands, where that is how it is done.
    let mut left = remaining - grown;
    if observed.surge == 0 && surplus == 0 && plan.moves.is_empty() && left > 0 {
        // It may have more pods than replicas: those are its own to take away.
        let most = left.min(plan.source);
        // Those that are no more wanted are not missing any more.
        let missing = plan.source.saturating_sub(source.count());
        let taken = take(source, (missing, most), &mut room, batch, false);
        wants_room |= taken.short_of_room;
        let done = taken.missing + count(taken.pods.len());
        plan.moves
            .extend(taken.pods.into_iter().map(|pod| match pod.fits {
                true => Move::InPlace(pod.uid.clone()),
                false => Move::Elsewhere(pod.uid.clone()),
            }));
        plan.source -= done;
        plan.target += done;
        left -= done;
    }

    let acts =
        !plan.moves.is_empty() || (plan.source, plan.target) != (source.replicas, target.replicas);
    plan.wait = match (acts, wants_room) {
        (true, _) => Wait::No,
        (false, true) => Wait::Health,
        (false, false) if !settled || left > 0 => Wait::Confirmation,
        (false, false) if observed.limit < observed.goal => Wait::Gate,
        (false, false) => Wait::Confirmation,
    };
    plan
}

struct Taken<'s> {
    /// Replicas of which there is no pod.
    missing: u32,
    pods: Vec<&'s PodFacts>,
    /// More would be taken if more were healthy.
    short_of_room: bool,
}

/// Who is taken first: those that are not healthy, then those that have to leave their nodes. Last
/// those that stay where nobody sees what becomes of them: they tell nothing of the new version.
fn order(one: &PodFacts, other: &PodFacts, ending: bool) -> std::cmp::Ordering {
    let unseen = |pod: &PodFacts| pod.silent && pod.fits && !ending;
    let rank = |pod: &PodFacts| (unseen(pod), pod.healthy, !(ending || pod.fits));
    let ranks = rank(one).cmp(&rank(other));
    ranks.then_with(|| one.name.cmp(&other.name))
}

/// At most so many replicas of a side: those `missing` that have no pod, then pods that are not
/// healthy, then as many healthy ones as there is room for.
fn take<'s>(
    side: &'s Side,
    (missing, most): (u32, u32),
    room: &mut u32,
    batch: usize,
    ending: bool,
) -> Taken<'s> {
    let missing = missing.min(most);
    let mut taken = Taken {
        missing,
        pods: Vec::new(),
        short_of_room: false,
    };
    let mut candidates: Vec<&PodFacts> = side.live().filter(|pod| !pod.open).collect();
    if candidates.len() > batch + 1 {
        // No more than these are looked at, of perhaps very many.
        candidates.select_nth_unstable_by(batch, |one, other| order(one, other, ending));
        candidates.truncate(batch + 1);
    }
    candidates.sort_unstable_by(|one, other| order(one, other, ending));
    for pod in candidates {
        if taken.pods.len() == batch || count(taken.pods.len()) == most - missing {
            break;
        }
        if pod.healthy {
            if *room == 0 {
                taken.short_of_room = true;
                break;
            }
            *room -= 1;
        }
        taken.pods.push(pod);
    }
    taken
}

#[cfg(test)]
mod shortage;
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pod(name: &str, healthy: bool) -> PodFacts {
        PodFacts {
            uid: name.into(),
            name: name.into(),
            healthy,
            unconfirmed: Duration::ZERO,
            leaving: false,
            open: false,
            fits: true,
            silent: false,
        }
    }

    fn side(name: &str, healthy: u32, unhealthy: u32) -> Side {
        let pods = (0..healthy + unhealthy).map(|i| pod(&format!("{name}{i}"), i < healthy));
        Side {
            replicas: healthy + unhealthy,
            pods: pods.collect(),
            ..Side::default()
        }
    }

    fn observed(source: Side, target: Side, replicas: u32, floor: u32) -> Observed {
        let pods = source.pods.iter().chain(&target.pods);
        let healthy = count(pods.filter(|pod| pod.healthy && !pod.leaving).count());
        Observed {
            replicas,
            batch: BATCH,
            limit: replicas,
            goal: replicas,
            allowed: healthy.saturating_sub(floor),
            source,
            target,
            ..Observed::default()
        }
    }

    #[test]
    fn as_many_go_over_as_the_floor_leaves() {
        let view = observed(side("old", 10, 0), side("new", 0, 0), 10, 8);
        let next = plan(&view);
        assert_eq!((next.moves.len(), next.source, next.target), (2, 8, 2));
        let view = observed(side("old", 8, 0), side("new", 0, 2), 10, 8);
        let next = plan(&view);
        assert_eq!((next.moves.len(), next.wait), (0, Wait::Health));
    }

    #[test]
    fn what_is_not_healthy_goes_first_and_costs_nothing() {
        let view = observed(side("old", 8, 2), side("new", 0, 0), 10, 8);
        let next = plan(&view);
        let gone = ["old8", "old9"].map(|name| Move::InPlace(name.into()));
        assert_eq!(next.moves, gone);
    }

    #[test]
    fn what_stays_on_a_node_that_is_not_heard_of_goes_last_and_is_not_counted_on() {
        let mut old = side("old", 3, 1);
        old.pods[3].silent = true;
        let mut view = observed(old, side("new", 0, 0), 4, 2);
        // A canary that nobody sees would tell nothing.
        view.limit = 1;
        assert_eq!(plan(&view).moves, [Move::InPlace("old0".into())]);
        // One that is replaced elsewhere tells as much as any other, and costs nothing.
        view.source.pods[3].fits = false;
        assert_eq!(plan(&view).moves, [Move::Elsewhere("old3".into())]);

        let mut last = side("old", 0, 1);
        last.pods[0].silent = true;
        let view = observed(last.clone(), side("new", 3, 0), 4, 3);
        assert_eq!(plan(&view).moves, [Move::InPlace("old0".into())]);
        // All the rest is done: it waits for the node, and says so.
        let mut new = side("new", 3, 1);
        new.pods[3].silent = true;
        assert_eq!((is_settled(&new, 0), waits_for_nodes(&new, 0)), (false, 1));
        assert_eq!(waits_for_nodes(&new, 1), 0, "as many may be unhealthy");
        new.pods[0].healthy = false;
        assert_eq!(waits_for_nodes(&new, 0), 0, "it waits for another one, too");
    }

    #[test]
    fn what_has_just_become_healthy_is_not_counted_on() {
        let mut new = side("new", 2, 0);
        for pod in &mut new.pods {
            pod.unconfirmed = Duration::from_secs(3);
        }
        let mut view = observed(side("old", 8, 0), new, 10, 8);
        let next = plan(&view);
        assert_eq!((next.moves.len(), next.wait), (0, Wait::Health));
        assert_eq!(next.look_again, Some(Duration::from_secs(3)));
        view.target.pods[0].unconfirmed = Duration::ZERO;
        assert_eq!(plan(&view).moves.len(), 1);
    }

    #[test]
    fn with_a_surge_new_ones_are_made_first() {
        let mut view = observed(side("old", 3, 0), side("new", 0, 0), 3, 3);
        view.surge = 1;
        let next = plan(&view);
        assert_eq!((next.moves.len(), next.source, next.target), (0, 3, 1));
        let mut view = observed(side("old", 3, 0), side("new", 1, 0), 3, 3);
        view.surge = 1;
        let next = plan(&view);
        assert_eq!((next.moves.len(), next.source, next.target), (1, 2, 1));
        // One on its way out is one that is there.
        let mut old = side("old", 3, 0);
        old.pods[0].leaving = true;
        old.replicas = 2;
        let mut view = observed(old, side("new", 1, 0), 3, 3);
        view.surge = 1;
        assert_eq!(plan(&view).target, 1);
    }

    #[test]
    fn it_stops_at_gates_and_goes_on_when_promoted() {
        let json = serde_json::json!({"from": "a", "to": "b", "replicas": 10, "promoted": 0,
            "steps": [{"upTo": 1}, {"upTo": "50%", "gate": "Auto"}, {"upTo": 8}]});
        let mut spec: RollingUpdateSpec = serde_json::from_value(json).unwrap();
        assert_eq!(limit(&spec, 0, true), 1);
        spec.promoted = 1;
        assert_eq!(limit(&spec, 1, true), 5);
        assert_eq!((limit(&spec, 5, false), limit(&spec, 5, true)), (5, 8));
        spec.promoted = 2;
        assert_eq!((limit(&spec, 5, false), limit(&spec, 8, false)), (5, 10));
        let mut view = observed(side("old", 9, 0), side("new", 1, 0), 10, 8);
        view.limit = 1;
        assert_eq!(plan(&view).wait, Wait::Gate);
        view.target.pods[0].healthy = false;
        assert_eq!(plan(&view).wait, Wait::Confirmation);
    }

    #[test]
    fn it_is_finished_when_the_last_one_is_healthy_for_long_enough() {
        let mut view = observed(side("old", 0, 0), side("new", 3, 0), 3, 2);
        assert_eq!(plan(&view).wait, Wait::Finished);
        view.target.pods[2].unconfirmed = Duration::from_secs(1);
        assert_eq!(plan(&view).wait, Wait::Confirmation);
        view.target.pods[2].healthy = false;
        assert_eq!(plan(&view).wait, Wait::Confirmation);
        view.tolerated = 1;
        assert_eq!(plan(&view).wait, Wait::Finished);
    }

    #[test]
    fn more_or_fewer_replicas_on_the_way_are_made_up_for() {
        let more = plan(&observed(side("old", 3, 0), side("new", 2, 0), 7, 3));
        assert_eq!((more.source, more.target), (1, 6));
        let mut gated = observed(side("old", 3, 0), side("new", 2, 0), 7, 3);
        gated.limit = 2;
        let gated = plan(&gated);
        assert_eq!((gated.source, gated.target), (5, 2));
        let fewer = plan(&observed(side("old", 3, 0), side("new", 2, 0), 4, 3));
        assert_eq!((fewer.moves.len(), fewer.source, fewer.target), (1, 2, 2));
        let none = plan(&observed(side("old", 1, 0), side("new", 2, 0), 0, 0));
        assert_eq!((none.moves.len(), none.source, none.target), (3, 0, 0));
    }

    /// A fleet whose pods do what a plan says.
    #[derive(Clone, Debug)]
    struct Model {
        replicas: u32,
        floor: u32,
        surge: u32,
        /// By name: whose it is, how many steps until it is healthy, whether it can be, leaving.
        pods: BTreeMap<String, (bool, u32, bool, bool)>,
        source: u32,
        target: u32,
        names: u32,
    }

    impl Model {
        fn healthy(&self) -> u32 {
            count(
                self.pods
                    .values()
                    .filter(|it| it.1 == 0 && it.2 && !it.3)
                    .count(),
            )
        }

        fn observed(&self, reverse: bool) -> Observed {
            let side = |new: bool, replicas: u32| Side {
                replicas,
                pods: (self.pods.iter())
                    .filter(|(_, it)| it.0 == new)
                    .map(|(name, it)| PodFacts {
                        leaving: it.3,
                        ..pod(name, it.1 == 0 && it.2)
                    })
                    .collect(),
                ..Side::default()
            };
            let (mut source, mut target) = (side(false, self.source), side(true, self.target));
            if reverse {
                std::mem::swap(&mut source, &mut target);
            }
            Observed {
                surge: self.surge,
                allowed: self.healthy().saturating_sub(self.floor),
                ..observed(source, target, self.replicas, self.floor)
            }
        }

        fn follow(&mut self, plan: &Plan, reverse: bool) {
            for it in &plan.moves {
                match it {
                    Move::InPlace(uid) => {
                        self.pods
                            .insert(uid.to_string(), (!reverse, 2, true, false));
                    }
                    Move::Elsewhere(uid) | Move::Remove(uid) => {
                        self.pods.get_mut(&uid.to_string()).unwrap().3 = true;
                    }
                }
            }
            (self.source, self.target) = (plan.source, plan.target);
            if reverse {
                std::mem::swap(&mut self.source, &mut self.target);
            }
        }

        /// Time passes; the replication controllers make what is missing.
        fn pass(&mut self) {
            self.pods.retain(|_, it| !it.3);
            for it in self.pods.values_mut() {
                it.1 = it.1.saturating_sub(1);
            }
            for (new, wanted) in [(false, self.source), (true, self.target)] {
                let has = count(self.pods.values().filter(|it| it.0 == new).count());
                for _ in has..wanted {
                    self.names += 1;
                    self.pods
                        .insert(format!("made{}", self.names), (new, 2, true, false));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_roll_keeps_the_floor_and_the_surge_and_comes_to_its_end(
            replicas in 1u32..24, floor in 0u32..24, surge in 0u32..4,
            sick in proptest::collection::vec(any::<bool>(), 24),
            moved in 0u32..24, turn in 0usize..60, rescale in 0u32..24,
        ) {
            let floor = floor.min(if surge == 0 { replicas - 1 } else { replicas });
            let moved = moved.min(replicas);
            let pods = (0..replicas)
                .map(|i| (format!("p{i:02}"), (i < moved, 0, !sick[i as usize], false)))
                .collect();
            let mut model = Model {
                replicas, floor, surge, pods, names: 0,
                source: replicas - moved, target: moved,
            };
            let (mut reverse, mut steps) = (false, 0);
            loop {
                if steps == turn {
                    // Half way somebody changes their mind, and the number of pods.
                    reverse = !reverse;
                    model.replicas = rescale.max(1);
                    model.floor = model.floor.min(if surge == 0 { model.replicas - 1 } else { model.replicas });
                }
                let healthy = model.healthy();
                let next = plan(&model.observed(reverse));
                if next.wait == Wait::Finished && steps > turn {
                    break;
                }
                let before = model.pods.len();
                model.follow(&next, reverse);
                prop_assert!(
                    model.healthy() >= model.floor.min(healthy),
                    "{healthy} were healthy, {} are, {} have to be: {next:?}", model.healthy(), model.floor
                );
                model.pass();
                if steps == turn + 60 {
                    // Who was sick gets well, else those that are not moved never do.
                    model.pods.values_mut().for_each(|it| it.2 = true);
                }
                prop_assert!(
                    count(model.pods.len()) <= (model.replicas + surge).max(count(before)),
                    "{} pods", model.pods.len()
                );
                steps += 1;
                prop_assert!(steps < 600, "it never ends: {model:?}");
            }
            prop_assert_eq!(model.source + model.target, model.replicas);
            prop_assert_eq!(if reverse { model.target } else { model.source }, 0);
        }
    }
}
