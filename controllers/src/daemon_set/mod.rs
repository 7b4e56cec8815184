//! Daemon sets: keep one pod of a template on every node that a selector chooses.
//!
//! The decision is [`plan`](fn@plan), a pure function. What takes a healthy pod away is entered in
//! the set's [ledger](crate::ledger), and the rate limit is counted in the set's own status, so
//! that both hold over restarts and changes of who works on it.

mod plan;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use platctrl_framework::cache::View;
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Object, Selector, Uid};
use platctrl_kinds::{DaemonSet, DisruptionBudget, Node, Pod, RateLimit, RateUsed};

pub use plan::{Hold, Observed, Plan, PodFacts, Victim, Wait, floor, plan};

use crate::carry_out::{Done, Step, Work};
use crate::grants;
use crate::ledger::{Ledger, LedgerError};
use crate::placement::{Accounts, Fleet, NodeState, PodNeeds, Request};
use crate::template::{Workload, adopter, created, is_ready};

type RunResult = Result<Action, ReconcileError>;

/// The controller.
#[must_use]
pub fn controller() -> Controller<DaemonSet> {
    let accounts = Accounts::new();
    let waits = Waits::default();
    Controller::new("daemonset", move |object, context| {
        reconcile(object, context, accounts.clone(), waits.clone())
    })
    .on_delete(end)
    .refuses_unknown_fields()
    .owns::<Pod>()
    .watches_heads::<Pod>(|pod, _| adopter::<DaemonSet>(pod).into_iter().collect())
    .watches::<Node>(|_, view| view.list::<DaemonSet>().keys())
    // A set that is gone or disabled makes room for another.
    .watches::<DaemonSet>(|set, view| {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        view.list::<DaemonSet>().in_namespace(namespace).keys()
    })
    .watches::<DisruptionBudget>(|budget, view| {
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        view.list::<DaemonSet>().in_namespace(namespace).keys()
    })
}

/// The pod says that it is ready, and is heard of.
fn is_healthy(pod: &Object<Pod>, fleet: &Fleet) -> bool {
    is_ready(pod) && fleet.is_heard_of(pod.spec.node_name.as_deref().unwrap_or_default())
}

/// Since when pods are not ready, each with its spec of now. It is forgotten with the process:
/// whoever works on the set then begins to wait anew.
#[derive(Clone, Default)]
struct Waits(Arc<Mutex<HashMap<Uid, Since>>>);

/// By pod: its generation, and since when it is not ready.
type Since = BTreeMap<Uid, (u64, Duration)>;

impl Waits {
    /// How long each of a set's pods has not been ready.
    fn note(
        &self,
        set: &Uid,
        pods: &[Arc<Object<Pod>>],
        fleet: &Fleet,
        now: Duration,
    ) -> HashMap<Uid, Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.remove(set).unwrap_or_default();
        let unready = pods.iter().filter(|pod| !is_healthy(pod, fleet));
        let since: Since = unready
            .map(|pod| {
                let generation = pod.metadata.generation;
                let known = before.get(&pod.metadata.uid);
                let since = known.filter(|(of, _)| *of == generation);
                let since = since.map_or(now, |(_, since)| *since);
                (pod.metadata.uid.clone(), (generation, since))
            })
            .collect();
        let waits = since
            .iter()
            .map(|(uid, (_, since))| (uid.clone(), now.saturating_sub(*since)))
            .collect();
        if !since.is_empty() {
            all.insert(set.clone(), since);
        }
        waits
    }
}

/// How many pods may be made, changed or taken away now, and how long until there may be more.
fn rate_left(
    limit: Option<RateLimit>,
    used: Option<RateUsed>,
    now: Timestamp,
) -> (u32, Option<Duration>) {
    let Some(RateLimit { pods, per }) = limit else {
        return (u32::MAX, None);
    };
    let Some(used) = used else {
        return (pods, None);
    };
    // A clock that went back makes the pause longer, by no more than its length.
    let passed = Duration::try_from(now.duration_since(used.at)).unwrap_or_default();
    match per.duration().checked_sub(passed) {
        None | Some(Duration::ZERO) => (pods, None),
        Some(left) => (pods.saturating_sub(used.pods), Some(left)),
    }
}

/// What is used of the rate limit after so many more.
fn rate_used(
    limit: Option<RateLimit>,
    used: Option<RateUsed>,
    more: u32,
    now: Timestamp,
) -> Option<RateUsed> {
    let limit = limit?;
    if more == 0 {
        return used;
    }
    let before = match rate_left(Some(limit), used, now) {
        (_, None) => 0,
        (_, Some(_)) => used.map_or(0, |used| used.pods),
    };
    Some(RateUsed {
        at: now,
        pods: before.saturating_add(more),
    })
}

/// An older set that wants the same app on some of the same nodes, and the first of these.
fn contends(set: &Object<DaemonSet>, view: &View, fleet: &Fleet) -> Option<(String, String)> {
    let app = |set: &Object<DaemonSet>| {
        let app = set.spec.template.spec.app.clone();
        app.unwrap_or_else(|| set.metadata.name.clone())
    };
    let age = |set: &Object<DaemonSet>| (set.metadata.creation_timestamp, set.metadata.uid.clone());
    let own: Selector = set.spec.node_selector.parse().ok()?;
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    for other in view.list::<DaemonSet>().in_namespace(namespace) {
        let same = other.metadata.uid == set.metadata.uid;
        if same || other.spec.disabled || other.metadata.is_deleted() || app(&other) != app(set) {
            continue;
        }
        if age(&other) > age(set) {
            continue;
        }
        let Ok(selector) = other.spec.node_selector.parse::<Selector>() else {
            continue;
        };
        let both = fleet.nodes().iter().find(|node| {
            node.state != NodeState::Leaving
                && own.matches(&node.labels)
                && selector.matches(&node.labels)
        });
        if let Some(node) = both {
            return Some((other.metadata.name.clone(), node.name.to_string()));
        }
    }
    None
}

/// The pods of a set that are on nodes it chooses, and how many nodes these are.
fn chosen(
    set: &Object<DaemonSet>,
    selector: &Selector,
    view: &View,
) -> (Vec<Arc<Object<Pod>>>, u32) {
    let nodes = view.list::<Node>().into_iter();
    let matching: HashSet<String> = nodes
        .filter(|node| NodeState::of(node) != NodeState::Leaving)
        .filter(|node| selector.matches(&node.metadata.labels))
        .map(|node| node.metadata.name.clone())
        .collect();
    let owned = view.list::<Pod>().owned_by(&set.metadata.uid).to_vec();
    let is_here = |pod: &Arc<Object<Pod>>| {
        let node = pod.spec.node_name.as_deref().unwrap_or_default();
        matching.contains(node)
    };
    let here = owned.into_iter().filter(is_here).collect();
    (here, u32::try_from(matching.len()).unwrap_or(u32::MAX))
}

/// The ledger of a set; None if its selector cannot be read.
pub(crate) fn ledger(view: &View, set: &Object<DaemonSet>) -> Option<Result<Ledger, LedgerError>> {
    let selector: Selector = set.spec.node_selector.parse().ok()?;
    let key = set.key().ok()?;
    let (here, desired) = chosen(set, &selector, view);
    let floor = floor(set.spec.minimum_healthy, desired);
    Some(Ledger::open(view, key, &here, desired, Some(floor)))
}

/// What one run works with.
struct Seen {
    observed: Observed,
    pods: HashMap<String, Arc<Object<Pod>>>,
    ledger: Result<Ledger, LedgerError>,
    /// How long until a pod that is not ready is late.
    until_late: Option<Duration>,
    until_rate: Option<Duration>,
}

fn observe(
    set: &Object<DaemonSet>,
    workload: &Workload,
    context: &Context,
    accounts: &Accounts,
    waits: &Waits,
) -> Result<Seen, ReconcileError> {
    let view = context.view();
    let parse = |text: &str| text.parse::<Selector>().map_err(ReconcileError::terminal);
    let selector = parse(&set.spec.node_selector)?;
    let canary = match &set.spec.canary {
        Some(canary) => Some((parse(&canary.node_selector)?, canary.only)),
        None => None,
    };
    let owned = view.list::<Pod>().owned_by(&set.metadata.uid).to_vec();
    let fleet = accounts.fleet(view);
    let needs = workload.needs();
    let environment = context.environment();
    let waited = waits.note(&set.metadata.uid, &owned, &fleet, environment.monotonic());
    let timeout = set.spec.timeout.duration();
    let mut until_late: Option<Duration> = None;
    let mut own: BTreeMap<String, u32> = BTreeMap::new();
    let mut pods = Vec::new();
    for pod in &owned {
        let node = pod.spec.node_name.clone().unwrap_or_default();
        *own.entry(node.clone()).or_default() += 1;
        let current = workload.is_current(pod);
        let leaving = pod.metadata.is_deleted();
        let (mut grows, mut stuck) = (false, None);
        if !current && !leaving && fleet.node(&node).is_some() {
            let from = PodNeeds::of_pod(pod);
            grows = needs.asks_more_than(&from);
            stuck = fleet.refuses_change(&node, &from, &needs);
        }
        let waited = waited.get(&pod.metadata.uid).filter(|_| !leaving);
        if let Some(left) = waited.and_then(|waited| timeout.checked_sub(*waited))
            && !left.is_zero()
        {
            until_late = Some(until_late.map_or(left, |least| least.min(left)));
        }
        pods.push(PodFacts {
            name: pod.metadata.name.clone(),
            ready: is_healthy(pod, &fleet),
            node,
            leaving,
            current,
            created: created(pod),
            grows,
            stuck,
            late: waited.is_some_and(|waited| *waited >= timeout),
        });
    }
    let (here, desired) = chosen(set, &selector, view);
    let floor = floor(set.spec.minimum_healthy, desired);
    let ledger = Ledger::open(view, context.key().clone(), &here, desired, Some(floor));
    let limit = set.spec.rate_limit;
    let (rate, until_rate) = rate_left(limit, set.status.detail.rate, environment.now());
    let orphans = workload.orphans(view);
    let contends = contends(set, view, &fleet);
    let observed = Observed {
        contends,
        request: Request {
            needs,
            own,
            also_cordoned: true,
            ..Request::new(workload.path(), selector)
        },
        fleet,
        pods,
        orphans: orphans
            .iter()
            .map(|pod| pod.metadata.name.clone())
            .collect(),
        disabled: set.spec.disabled,
        floor: ledger.as_ref().map_or(floor, |ledger| ledger.floor().pods),
        allowed: match &ledger {
            // It is made before anything is taken away.
            Ok(ledger) if ledger.is_missing() => ledger.account().allowed(),
            Ok(ledger) => ledger.allowed(),
            Err(_) => 0,
        },
        rate,
        canary,
    };
    let named = |pod: Arc<Object<Pod>>| (pod.metadata.name.clone(), pod);
    Ok(Seen {
        observed,
        pods: owned.into_iter().chain(orphans).map(named).collect(),
        ledger,
        until_late,
        until_rate,
    })
}

async fn reconcile(
    set: Arc<Object<DaemonSet>>,
    context: Context,
    accounts: Accounts,
    waits: Waits,
) -> RunResult {
    let workload = Workload::of(&*set, &set.spec.template);
    let seen = observe(&set, &workload, &context, &accounts, &waits)?;
    if !set.spec.disabled {
        let pods: Vec<Arc<Object<Pod>>> = seen.pods.values().cloned().collect();
        let ledger = || seen.ledger.clone();
        if let Some(next) = grants::answer(&context, &pods, ledger, &workload.title()).await? {
            return Ok(next);
        }
    }
    let plan = plan(&seen.observed);
    let counts = format!(
        "{} of {} nodes, {} ready",
        plan.live, plan.desired, plan.ready
    );
    let unreadable = seen.ledger.as_ref().err().map(ToString::to_string);
    let now = context.environment().now();
    let status = |done: Done| {
        let mut status = report::status(&set, &plan, &context, done, unreadable.clone());
        let (limit, used) = (set.spec.rate_limit, set.status.detail.rate);
        status.detail.rate = rate_used(limit, used, done.all(), now);
        status
    };
    let growing: HashSet<&str> = (seen.observed.pods.iter())
        .filter(|pod| pod.grows)
        .map(|pod| pod.name.as_str())
        .collect();
    let steps = steps(&plan, &seen.pods, &growing);
    let work =
        Work::<DaemonSet>::new(&context, &workload, &status, &counts).with_ledger(seen.ledger.ok());
    let carried = match work.carry_out(steps).await {
        Ok(carried) => carried,
        Err(unfinished) => {
            if let Some(why) = unfinished.held {
                let mut changes = context.changes();
                let status = report::status(&set, &plan, &context, Done::default(), Some(why));
                if changes.report::<DaemonSet>(&status).is_ok() {
                    // A freeze refuses this, too; the failsafe's own record says so then.
                    let _ = changes.commit().await;
                }
            }
            return Err(unfinished.error);
        }
    };
    report::tell(&set, &plan, &context);
    if carried.again {
        return Ok(Action::requeue_after(Duration::from_millis(1)));
    }
    let rate = seen.until_rate.or_else(|| {
        let limit = set.spec.rate_limit?;
        Some(limit.per.duration())
    });
    let rate = rate.filter(|_| matches!(plan.wait, Some(Wait::Rate { .. })));
    let next = [rate, seen.until_late].into_iter().flatten().min();
    Ok(match next {
        // A moment later, so that it is over by then.
        Some(next) => Action::requeue_after(next + Duration::from_millis(10)),
        None => Action::await_change(),
    })
}

fn steps(
    plan: &Plan,
    pods: &HashMap<String, Arc<Object<Pod>>>,
    growing: &HashSet<&str>,
) -> Vec<Step> {
    let pod = |name: &String| pods.get(name).cloned();
    let adopt = plan.adopt.iter().filter_map(pod);
    let adopt = adopt.map(|pod| Step::Adopt { pod });
    let create = plan.create.iter().cloned();
    let create = create.map(|node| Step::Create { node });
    let update = plan.update.iter().filter_map(|name| {
        let grows = growing.contains(name.as_str());
        Some(Step::Update {
            pod: pod(name)?,
            grows,
        })
    });
    let delete = plan.delete.iter().filter_map(|victim| {
        Some(Step::Delete {
            pod: pod(&victim.name)?,
            why: victim.why.to_owned(),
        })
    });
    adopt.chain(create).chain(update).chain(delete).collect()
}

/// Ends a set: its pods are ended too, or lose their owner and stay, as the tombstone says.
async fn end(set: Arc<Object<DaemonSet>>, context: Context) -> RunResult {
    let spec = &set.spec;
    crate::end::end(&*set, &spec.template, spec.deletion_grace, &context).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_is_kept_over_any_stretch_of_time() {
        let limit = RateLimit {
            pods: 3,
            per: platctrl_kinds::Span::from_secs(10),
        };
        let mut used = None;
        let mut acts: Vec<Timestamp> = Vec::new();
        for second in 0..200 {
            let now = Timestamp::from_second(1000 + second).unwrap();
            // Sometimes nothing is to be done.
            if second % 7 == 3 {
                continue;
            }
            let (left, _) = rate_left(Some(limit), used, now);
            let done = left.min(2);
            used = rate_used(Some(limit), used, done, now);
            acts.extend((0..done).map(|_| now));
        }
        assert!(acts.len() > 20, "{}", acts.len());
        for (index, first) in acts.iter().enumerate() {
            let within = acts[index..]
                .iter()
                .filter(|at| at.duration_since(*first).as_secs() < 10);
            assert!(within.count() <= 3);
        }
    }
}
