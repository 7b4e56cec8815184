//! What a replication controller does next, from plain data.

mod astray;
mod sums;
mod wait;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use platctrl_kinds::Strategy;

pub use self::astray::{Astray, astray};
use self::astray::{Strays, is_moved, is_out_of_reach, strays_of};
pub use self::sums::{Sums, at_rest, grow};
pub use self::wait::{Shortage, Wait};
use crate::placement::{Fleet, NodeState, Placement, Refusal, Request};

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What pods ask of nodes, with the controller's name and how many pods each node has.
    pub request: Request,
    /// The nodes and what runs on them.
    pub fleet: Arc<Fleet>,
    /// How many pods are wanted.
    pub replicas: u32,
    /// What happens to pods on nodes that are lost or do not match.
    pub strategy: Strategy,
    /// A rolling update says how many pods there are.
    pub claimed: bool,
    /// Nothing is to be done.
    pub disabled: bool,
    /// The pods it owns, also those on their way out.
    pub pods: Vec<PodFacts>,
    /// Names of pods that have no owner and wait for this one.
    pub orphans: Vec<String>,
    /// What a move may take away.
    pub budget: Budget,
}

/// How many healthy pods have to stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// So many; `u32::MAX` while nobody can say.
    pub floor: u32,
    /// Healthy pods that others have decided to take away, which still look healthy.
    pub open: u32,
    /// The disruption budget that says so, if one does.
    pub by: Option<String>,
}

impl Budget {
    /// How many of so many healthy ones may be taken away now.
    #[must_use]
    pub fn allowed(&self, healthy: u32) -> u32 {
        healthy.saturating_sub(self.open).saturating_sub(self.floor)
    }

    /// Why none of so many healthy ones may be taken away.
    fn shortage(&self, healthy: u32) -> Shortage {
        Shortage {
            healthy,
            open: self.open,
            needed: self.floor,
            budget: self.by.clone(),
        }
    }
}

/// A pod, as far as a plan is about it. `name` orders pods of the same age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// It is ready, with the spec that is wanted of it now, and its node is heard of.
    pub ready: bool,
    /// It has a tombstone.
    pub leaving: bool,
    /// It never runs twice at once: nobody takes its place before it is gone.
    pub singleton: bool,
    /// It was to end with its controller, whose end was taken back: so may be the pod's, presently.
    pub taken_back: bool,
    /// Nothing of it is left on its node.
    pub gone: bool,
    /// Its spec and labels are those of the template.
    pub current: bool,
    /// Its spec is that of the template, whatever its labels are: to set these disturbs nothing.
    pub same_spec: bool,
    /// When it was created, as a number that grows.
    pub created: i64,
    /// Brought to the template, it asks more of its node.
    pub grows: bool,
    /// Why it cannot be brought to the template where it is.
    pub stuck: Option<Refusal>,
}

/// A pod that goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its name.
    pub name: String,
    /// Why it, and not another.
    pub why: String,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names of pods to take over.
    pub adopt: Vec<String>,
    /// Nodes to create pods on, one entry for each pod.
    pub create: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<Victim>,
    /// Names of pods to bring to the present template, in place.
    pub update: Vec<String>,
    /// Pods that are wanted and have no place.
    pub unplaced: u32,
    /// Pods that are not of the present template and wait for their turn.
    pub outdated: u32,
    /// Pods that are not where they should be, by name.
    pub astray: BTreeMap<String, Astray>,
    /// How many of them are moved, one at a time.
    pub moved: u32,
    /// Pods that are not on their way out, before this plan.
    pub live: u32,
    /// Those of them that are ready and of the present template.
    pub ready: u32,
    /// What the next step waits for.
    pub wait: Option<Wait>,
}

impl Plan {
    /// Pods that something happens to.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.adopt.len() + self.create.len() + self.delete.len() + self.update.len()
    }

    /// So many new pods, as far as there is a place for them.
    fn make_new(&mut self, wanted: u32, place: impl FnOnce(u32) -> Vec<String>) {
        let now = wanted.min(MOST_NEW);
        self.create = place(now);
        let placed = number(self.create.len());
        if placed < now {
            self.unplaced = wanted - placed;
        }
    }
}

/// New pods that one plan is about: about as many as one run makes of it. The next one goes on.
const MOST_NEW: u32 = 131_072;

/// Decides what to do next.
///
/// - Pods without an owner that wait for this one are taken over before anything is counted.
/// - Too few pods: new ones where [`Placement`] says. Pods on their way out hold their places.
/// - Too many: first those not ready, then those that are not where they should be, then the
///   newest.
/// - Pods of an earlier template are updated in place: those not ready at once, since nothing is
///   lost by it; of those ready one at a time, and only while every other pod is ready, so that a
///   template that does not work costs one pod.
/// - Pods that are not where they should be stay ([`Strategy::Static`]), or are moved one at a
///   time ([`Strategy::Dynamic`], or because a drain says so): another one is created, and when
///   it is ready the old one goes, if the budget allows it.
/// - When the controller's own end was taken back, pods that were to end with it are replaced when
///   they are gone: till then theirs may be taken back as well.
/// - A pod that never runs twice goes first, and another one is made when it is gone. On a node
///   that is not heard of it stays until it is known to be gone. While a roll says how many pods
///   there are, one on a node that is drained or given up goes first as well.
#[must_use]
pub fn plan(observed: &Observed, placement: &dyn Placement) -> Plan {
    let live: Vec<&PodFacts> = observed.pods.iter().filter(|pod| !pod.leaving).collect();
    let count = number(live.len());
    let mut plan = Plan {
        live: count,
        ready: number(live.iter().filter(|pod| pod.ready && pod.current).count()),
        ..Plan::default()
    };
    let strays = strays_of(observed, &live);
    plan.astray.clone_from(&strays);
    plan.outdated = number(live.iter().filter(|pod| !pod.current).count());
    if observed.disabled {
        return plan;
    }
    if !observed.orphans.is_empty() {
        plan.adopt.clone_from(&observed.orphans);
        return plan;
    }
    let movable: Strays = observed
        .pods
        .iter()
        .filter_map(|pod| Some((pod, strays.get(&pod.name)?)))
        .filter(|(pod, why)| is_moved(observed, pod, why))
        .map(|(pod, why)| (pod.name.clone(), why.clone()))
        .collect();
    plan.moved = number(movable.len());
    let moves = !movable.is_empty() && !observed.claimed;
    // Such a pod may still run: it holds its place among the replicas until it is gone.
    let holds_its_place =
        |pod: &&PodFacts| pod.singleton || (pod.taken_back && !is_out_of_reach(observed, pod));
    let ending: Vec<&PodFacts> = observed
        .pods
        .iter()
        .filter(|pod| pod.leaving && !pod.gone)
        .filter(holds_its_place)
        .collect();
    let there = count.saturating_add(number(ending.len()));
    let mut kept = live;
    if there < observed.replicas {
        let place = |count| placement.place(&observed.fleet, &observed.request, count);
        plan.make_new(observed.replicas - there, place);
    } else if count > observed.replicas {
        take_away(observed, &mut plan, &mut kept, (&strays, &movable), moves);
    } else if let Some(pod) = ending.first() {
        plan.wait = Some(wait_for_end(observed, pod));
    } else if !movable.is_empty() {
        begin_move(observed, &mut plan, &movable, placement);
        kept.retain(|pod| plan.delete.iter().all(|gone| gone.name != pod.name));
    }
    update(observed, &mut plan, &kept);
    plan
}

/// The same nodes with all entries of one node one after the other: what several pods of a node
/// compare is compared once if they are in one commit. The nodes come in the order of their first
/// turns, so that wherever it is cut off, zones have about as many pods each.
pub(super) fn node_by_node(chosen: &[String]) -> Vec<String> {
    let mut turns: HashMap<&str, usize> = HashMap::new();
    for node in chosen {
        let next = turns.len();
        turns.entry(node).or_insert(next);
    }
    let mut sorted = chosen.to_vec();
    sorted.sort_by_key(|node| turns.get(node.as_str()).copied());
    sorted
}

fn wait_for_end(observed: &Observed, pod: &PodFacts) -> Wait {
    let name = pod.name.clone();
    match is_out_of_reach(observed, pod) {
        true => Wait::Retirement {
            pod: name,
            node: pod.node.clone(),
        },
        false => Wait::Leaving { pod: name },
    }
}

/// The first in this order go first.
fn sort(pods: &mut [&PodFacts], strays: &Strays) {
    pods.sort_by_key(|pod| {
        let strays = strays.contains_key(&pod.name);
        (pod.ready, !strays, Reverse((pod.created, pod.name.clone())))
    });
}

fn take_away(
    observed: &Observed,
    plan: &mut Plan,
    kept: &mut Vec<&PodFacts>,
    (strays, movable): (&Strays, &Strays),
    moves: bool,
) {
    let victim = |pod: &PodFacts| Victim {
        name: pod.name.clone(),
        why: why(strays, pod),
    };
    let surplus = kept.len().saturating_sub(observed.replicas as usize);
    sort(kept, strays);
    let is_stray = |pod: &&PodFacts| match moves {
        true => movable.contains_key(&pod.name),
        false => strays.contains_key(&pod.name),
    };
    // The newest of the pods that are where they should be replaces one that is not.
    let newest = |pods: &[&PodFacts]| {
        let placed = pods.iter().filter(|pod| !is_stray(pod));
        placed
            .max_by_key(|pod| (pod.created, pod.name.clone()))
            .map(|pod| pod.name.clone())
    };
    let replacement = newest(kept).filter(|_| moves);
    let Some(replacement) = replacement else {
        let gone: Vec<Victim> = kept.drain(..surplus).map(victim).collect();
        plan.delete = gone;
        return;
    };
    // All that are too many but one; the replacement is not among them.
    let mut gone = Vec::new();
    while gone.len() + 1 < surplus {
        let Some(next) = kept.iter().position(|pod| pod.name != replacement) else {
            break;
        };
        gone.push(victim(kept.remove(next)));
    }
    let next = kept.iter().position(is_stray);
    match next {
        // Those that were astray are among those that went.
        None => gone.push(victim(kept.remove(0))),
        Some(stray) => {
            let new = kept.iter().find(|pod| pod.name == replacement);
            let is_there = new.is_some_and(|pod| pod.ready && pod.current);
            let healthy = number(kept.iter().filter(|pod| pod.ready).count());
            let old = kept[stray];
            if !is_there {
                plan.wait = Some(Wait::Replacement {
                    pod: replacement,
                    instead_of: old.name.clone(),
                });
            } else if old.ready && observed.budget.allowed(healthy) == 0 {
                plan.wait = Some(Wait::Budget {
                    pod: old.name.clone(),
                    until: observed.budget.shortage(healthy),
                });
            } else {
                gone.push(victim(kept.remove(stray)));
            }
        }
    }
    plan.delete = gone;
}

fn why(strays: &Strays, pod: &PodFacts) -> String {
    match strays.get(&pod.name) {
        Some(why) => why.to_string(),
        None if !pod.ready => "which is not ready".to_owned(),
        None => "the newest".to_owned(),
    }
}

fn begin_move(observed: &Observed, plan: &mut Plan, strays: &Strays, placement: &dyn Placement) {
    let pods = || observed.pods.iter();
    let reachable = |pod: &&PodFacts| {
        let node = observed.fleet.node(&pod.node);
        node.is_some_and(|node| node.state != NodeState::Lost)
    };
    if let Some(pod) = pods().filter(|pod| pod.leaving).find(reachable) {
        plan.wait = Some(Wait::Leaving {
            pod: pod.name.clone(),
        });
        return;
    }
    let mut moved: Vec<&PodFacts> = pods()
        .filter(|pod| !pod.leaving && strays.contains_key(&pod.name))
        .collect();
    sort(&mut moved, strays);
    let Some(first) = moved.first() else { return };
    if observed.claimed || first.singleton {
        go_first(observed, plan, &moved, strays);
        return;
    }
    plan.create = placement.place(&observed.fleet, &observed.request, 1);
    if plan.create.is_empty() {
        plan.wait = Some(Wait::Place {
            instead_of: first.name.clone(),
        });
    }
}

/// Takes the first pod away of which it will be known that it is gone; another one is made then.
fn go_first(observed: &Observed, plan: &mut Plan, moved: &[&PodFacts], strays: &Strays) {
    let stuck = |pod: &PodFacts| pod.singleton && is_out_of_reach(observed, pod);
    let Some(next) = moved.iter().find(|pod| !stuck(pod)) else {
        plan.wait = moved.first().map(|pod| wait_for_end(observed, pod));
        return;
    };
    let live = observed.pods.iter().filter(|pod| !pod.leaving);
    let healthy = number(live.filter(|pod| pod.ready).count());
    if next.ready && observed.budget.allowed(healthy) == 0 {
        plan.wait = Some(Wait::Budget {
            pod: next.name.clone(),
            until: observed.budget.shortage(healthy),
        });
        return;
    }
    plan.delete = vec![Victim {
        name: next.name.clone(),
        why: why(strays, next),
    }];
}

fn update(observed: &Observed, plan: &mut Plan, kept: &[&PodFacts]) {
    // Growing pods are counted one at a time on a node, and not beside new ones.
    let mut grown = BTreeSet::new();
    let mut has_room =
        |pod: &PodFacts| !pod.grows || (plan.create.is_empty() && grown.insert(pod.node.clone()));
    let outdated = kept
        .iter()
        .filter(|pod| !pod.current && pod.stuck.is_none());
    let (ready, unready): (Vec<&PodFacts>, Vec<&PodFacts>) = outdated.partition(|pod| pod.ready);
    let everybody_is_ready = kept.iter().all(|pod| pod.ready) && plan.create.is_empty();
    let mut updated: Vec<String> = Vec::new();
    for pod in unready {
        if has_room(pod) {
            updated.push(pod.name.clone());
        }
    }
    let calm = everybody_is_ready && plan.delete.is_empty();
    let healthy = number(kept.iter().filter(|pod| pod.ready).count());
    match ready.iter().min_by_key(|pod| (pod.created, &pod.name)) {
        Some(next) if calm && !next.same_spec && observed.budget.allowed(healthy) == 0 => {
            plan.wait.get_or_insert_with(|| Wait::Spare {
                pod: next.name.clone(),
                until: observed.budget.shortage(healthy),
            });
        }
        Some(next) if calm && has_room(next) => updated.push(next.name.clone()),
        Some(_) if !calm && plan.wait.is_none() => {
            plan.wait = Some(Wait::Ready {
                ready: healthy,
                needed: observed.replicas,
            });
        }
        _ => {}
    }
    plan.update = updated;
    let updated = plan.update.iter();
    let deleted = plan.delete.iter().map(|victim| &victim.name);
    let taken: HashSet<&String> = updated.chain(deleted).collect();
    let waiting = observed
        .pods
        .iter()
        .filter(|pod| !pod.leaving && !pod.current && !taken.contains(&pod.name));
    let outdated = number(waiting.count());
    plan.outdated = outdated;
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod order;
#[cfg(test)]
mod tests;
