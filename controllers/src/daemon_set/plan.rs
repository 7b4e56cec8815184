//! What a daemon set does next, from plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use platctrl_framework::model::Selector;

use crate::placement::{Fleet, NodeState, Refusal, Request};

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What pods ask of nodes, with the set's selector and how many pods each node has.
    pub request: Request,
    /// The nodes and what runs on them.
    pub fleet: Arc<Fleet>,
    /// The pods it owns, also those on their way out.
    pub pods: Vec<PodFacts>,
    /// Names of pods that have no owner and wait for this one.
    pub orphans: Vec<String>,
    /// Nothing is to be done.
    pub disabled: bool,
    /// An older set that wants the same app on some of the same nodes, and one of them.
    pub contends: Option<(String, String)>,
    /// How many pods have to stay healthy.
    pub floor: u32,
    /// How many healthy ones may be taken away now.
    pub allowed: u32,
    /// How many pods may be made, changed or taken away now.
    pub rate: u32,
    /// Nodes that get a new template first, and whether the others get it at all.
    pub canary: Option<(Selector, bool)>,
}

/// A pod, as far as a plan is about it. `name` orders pods of the same age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// It is ready, with the spec that is wanted of it now.
    pub ready: bool,
    /// It has a tombstone.
    pub leaving: bool,
    /// Its spec and labels are those of the template.
    pub current: bool,
    /// When it was created, as a number that grows.
    pub created: i64,
    /// Brought to the template, it asks more of its node.
    pub grows: bool,
    /// Why it cannot be brought to the template where it is.
    pub stuck: Option<Refusal>,
    /// It has not been ready for longer than it may.
    pub late: bool,
}

/// Why nothing at all is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// There is no record of any node.
    NoNodes,
    /// No node matches, and there are pods: more likely a mistake than an order.
    NoneChosen {
        /// How many pods there are.
        pods: u32,
    },
    /// An older set wants the same app on the same node.
    Contends {
        /// The other set.
        with: String,
        /// The first node that both want.
        node: String,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNodes => {
                f.write_str("there is no record of any node: nothing is made or taken away")
            }
            Self::NoneChosen { pods } => write!(
                f,
                "no node matches the selector, and there are {pods} pods: they stay until some node matches, or the set is deleted"
            ),
            Self::Contends { with, node } => write!(
                f,
                "daemonset/{with} is older and wants the same app on the same nodes ({node}): change or disable one of them"
            ),
        }
    }
}

/// What the plan waits for before its next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// More pods have to be healthy.
    Healthy {
        /// How many are.
        healthy: u32,
        /// How many have to stay.
        needed: u32,
        /// How many pods wait.
        pods: u32,
    },
    /// The canaries are to be ready.
    Canaries {
        /// How many are.
        ready: u32,
        /// How many there are.
        of: u32,
        /// How many pods wait.
        pods: u32,
    },
    /// Somebody is to let the others follow.
    Others {
        /// How many pods wait.
        pods: u32,
    },
    /// The rate limit.
    Rate {
        /// How many pods wait.
        pods: u32,
    },
    /// Pods are to be ready.
    Ready {
        /// How many are not.
        pods: u32,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy {
                healthy,
                needed,
                pods,
            } => write!(
                f,
                "{pods} get the template when more than {needed} are healthy; {healthy} are"
            ),
            Self::Canaries { ready, of, pods } => write!(
                f,
                "{pods} get the template when all canaries are ready; {ready} of {of} are"
            ),
            Self::Others { pods } => write!(
                f,
                "{pods} keep what they have until spec.canary.only is false"
            ),
            Self::Rate { pods } => write!(f, "{pods} wait for the rate limit"),
            Self::Ready { pods } => write!(f, "{pods} are not ready"),
        }
    }
}

/// A pod that goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its name.
    pub name: String,
    /// Why it.
    pub why: &'static str,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Why nothing is done.
    pub hold: Option<Hold>,
    /// Names of pods to take over.
    pub adopt: Vec<String>,
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<Victim>,
    /// Names of pods to bring to the template, in place.
    pub update: Vec<String>,
    /// Why chosen nodes have no pod, or their pods not the template, by node.
    pub refused: BTreeMap<String, Refusal>,
    /// Chosen nodes.
    pub desired: u32,
    /// Pods on them.
    pub live: u32,
    /// Those with the template.
    pub updated: u32,
    /// Those that are ready with it.
    pub ready: u32,
    /// Those that are ready, whatever they run.
    pub healthy: u32,
    /// Nodes whose pods are not ready for longer than they may.
    pub late: Vec<String>,
    /// What the next step waits for.
    pub wait: Option<Wait>,
}

impl Plan {
    /// Pods that something happens to.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.adopt.len() + self.create.len() + self.delete.len() + self.update.len()
    }
}

/// A count, or a share of the nodes of which one may always be changed.
#[must_use]
pub fn floor(minimum: platctrl_kinds::Amount, desired: u32) -> u32 {
    match minimum {
        platctrl_kinds::Amount::Count(count) => count,
        share => share.rounded_up(desired).min(desired.saturating_sub(1)),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Decides what to do next.
///
/// - A chosen node without a pod gets one, if it has a place for it. A cordoned node does, too; one
///   that is lost or drained does not.
/// - A pod on a node that does not match any more goes, and of two pods on a node the worse one. A
///   node whose record is gone is no order: its pod stays.
/// - Pods get a new template in place: those not ready at once, of those ready as many as may be
///   missing; where there are canaries, these first.
/// - All together no faster than the rate limit allows.
/// - Where no node matches at all, or an older set wants the same, nothing is done.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let fleet = &observed.fleet;
    let selector = &observed.request.selector;
    let chosen: BTreeSet<&str> = fleet
        .nodes()
        .iter()
        .filter(|node| node.state != NodeState::Leaving && selector.matches(&node.labels))
        .map(|node| &*node.name)
        .collect();
    let live = || observed.pods.iter().filter(|pod| !pod.leaving);
    let here: Vec<&PodFacts> = live()
        .filter(|pod| chosen.contains(pod.node.as_str()))
        .collect();
    let count = |is: &dyn Fn(&&&PodFacts) -> bool| number(here.iter().filter(is).count());
    let mut plan = Plan {
        desired: number(chosen.len()),
        live: number(here.len()),
        updated: count(&|pod| pod.current),
        ready: count(&|pod| pod.current && pod.ready),
        healthy: count(&|pod| pod.ready),
        late: (here.iter().filter(|pod| pod.late))
            .map(|pod| pod.node.clone())
            .collect(),
        ..Plan::default()
    };
    if observed.disabled {
        return plan;
    }
    plan.hold = hold(observed, live().count(), chosen.len());
    if plan.hold.is_some() {
        return plan;
    }
    if !observed.orphans.is_empty() {
        plan.adopt.clone_from(&observed.orphans);
        return plan;
    }
    let mut rate = observed.rate as usize;
    let mut limited = 0;
    let mut within = |wanted: &mut dyn FnMut(), rate: &mut usize| {
        if *rate > 0 {
            *rate -= 1;
            wanted();
        } else {
            limited += 1;
        }
    };
    let taken: BTreeSet<&str> = observed.pods.iter().map(|pod| pod.node.as_str()).collect();
    for node in chosen.iter().filter(|node| !taken.contains(**node)) {
        match fleet.refusal(node, &observed.request) {
            Some(refusal) => {
                plan.refused.insert((*node).to_owned(), refusal);
            }
            None => within(&mut || plan.create.push((*node).to_owned()), &mut rate),
        }
    }
    let doubles = doubles(&here);
    let (first, then, wait) = outdated(observed, &mut plan, &here, &doubles);
    plan.wait = wait;
    for pod in first {
        within(&mut || plan.update.push(pod.name.clone()), &mut rate);
    }
    let waiting = number(then.len()).saturating_sub(observed.allowed);
    for pod in then.iter().take(observed.allowed as usize) {
        within(&mut || plan.update.push(pod.name.clone()), &mut rate);
    }
    for (pod, why) in leaving(observed, &chosen, &doubles) {
        let name = pod.name.clone();
        let victim = Victim { name, why };
        within(&mut || plan.delete.push(victim.clone()), &mut rate);
    }
    if limited > 0 {
        plan.wait = Some(Wait::Rate { pods: limited });
    } else if waiting > 0 {
        plan.wait = Some(Wait::Healthy {
            healthy: plan.healthy,
            needed: observed.floor,
            pods: waiting,
        });
    } else if plan.wait.is_none() && plan.ready < plan.live {
        plan.wait = Some(Wait::Ready {
            pods: plan.live - plan.ready,
        });
    }
    plan
}

fn hold(observed: &Observed, pods: usize, chosen: usize) -> Option<Hold> {
    if observed.fleet.nodes().is_empty() {
        return Some(Hold::NoNodes);
    }
    if chosen == 0 && pods > 0 {
        return Some(Hold::NoneChosen { pods: number(pods) });
    }
    let (with, node) = observed.contends.clone()?;
    Some(Hold::Contends { with, node })
}

/// Of several pods on a node all but the best.
fn doubles<'p>(here: &[&'p PodFacts]) -> BTreeSet<&'p str> {
    let mut best: BTreeMap<&str, &PodFacts> = BTreeMap::new();
    let mut doubles = BTreeSet::new();
    let rank = |pod: &PodFacts| (!pod.ready, !pod.current, pod.created, pod.name.clone());
    for &pod in here {
        match best.get_mut(pod.node.as_str()) {
            None => {
                best.insert(&pod.node, pod);
            }
            Some(kept) if rank(pod) < rank(kept) => {
                doubles.insert(kept.name.as_str());
                *kept = pod;
            }
            Some(_) => {
                doubles.insert(pod.name.as_str());
            }
        }
    }
    doubles
}

/// Pods that go: on nodes that do not match, and doubles.
fn leaving<'p>(
    observed: &'p Observed,
    chosen: &BTreeSet<&str>,
    doubles: &BTreeSet<&str>,
) -> Vec<(&'p PodFacts, &'static str)> {
    let live = observed.pods.iter().filter(|pod| !pod.leaving);
    live.filter_map(|pod| {
        if doubles.contains(pod.name.as_str()) {
            return Some((pod, "because its node has another"));
        }
        let node = observed.fleet.node(&pod.node)?;
        // A node that is retired ends its pods by itself.
        let left = node.state != NodeState::Leaving && !chosen.contains(pod.node.as_str());
        left.then_some((pod, "because its node does not match any more"))
    })
    .collect()
}

/// Pods that get the template: those that cost no health, those that do, and what the rest waits
/// for.
fn outdated<'p>(
    observed: &Observed,
    plan: &mut Plan,
    here: &[&'p PodFacts],
    doubles: &BTreeSet<&str>,
) -> (Vec<&'p PodFacts>, Vec<&'p PodFacts>, Option<Wait>) {
    let is_canary = |pod: &PodFacts| {
        let node = observed.fleet.node(&pod.node);
        let canary = observed.canary.as_ref().zip(node);
        canary.is_some_and(|((selector, _), node)| selector.matches(&node.labels))
    };
    let mut old: Vec<&PodFacts> = Vec::new();
    for &pod in here {
        if pod.current || doubles.contains(pod.name.as_str()) {
            continue;
        }
        match &pod.stuck {
            Some(refusal) => {
                plan.refused.insert(pod.node.clone(), refusal.clone());
            }
            None => old.push(pod),
        }
    }
    old.sort_by_key(|pod| (!is_canary(pod), pod.ready, pod.created, pod.name.clone()));
    let mut wait = None;
    if let Some((_, only)) = &observed.canary {
        let canaries: Vec<&&PodFacts> = here.iter().filter(|pod| is_canary(pod)).collect();
        let ready = number(
            canaries
                .iter()
                .filter(|pod| pod.current && pod.ready)
                .count(),
        );
        let of = number(canaries.len());
        let others = number(old.iter().filter(|pod| !is_canary(pod)).count());
        if *only || ready < of || of == 0 {
            old.retain(|pod| is_canary(pod));
            if others > 0 {
                wait = Some(match *only && ready == of {
                    true => Wait::Others { pods: others },
                    false => Wait::Canaries {
                        ready,
                        of,
                        pods: others,
                    },
                });
            }
        }
    }
    let (then, first) = old.into_iter().partition(|pod| pod.ready);
    (first, then, wait)
}

#[cfg(test)]
mod rules;
#[cfg(test)]
mod tests;
