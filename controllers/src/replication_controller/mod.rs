//! Replication controllers: keep so many pods of one template on the nodes a selector chooses.
//!
//! The decision is [`plan`](fn@plan), a pure function; the rest reads the view, commits what the
//! plan says together with the new status, and explains itself by events and conditions. A pod
//! belongs to a controller by the uid in its owner reference: several controllers of one app
//! never touch each other's pods. A pod that was orphaned says whose it was, and is taken over by
//! a later controller of that name.

mod plan;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::cache::Owners;
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Object, Resource, Selector};
use platctrl_kinds::{
    DisruptionBudget, Node, Pod, PodPhase, PodSpec, ReplicationController, RollingUpdate, Span,
    Strategy,
};

pub use plan::{Astray, Budget, Observed, Plan, PodFacts, Victim, Wait, astray, plan};

use crate::carry_out::{Done, Step, Work};
use crate::end::ended_with_owner;
use crate::grants;
use crate::ledger::{self, Ledger, LedgerError};
use crate::placement::{Accounts, NodeState, Placement, PodNeeds, Request, Spread};
use crate::template::{Workload, adopter, created, is_ready};

type RunResult = Result<Action, ReconcileError>;

/// How long nothing may move before a controller says that it is stalled, unless it says so itself.
const PROGRESS_DEADLINE: Span = Span::from_secs(600);

/// The controller, with the default [`Placement`].
#[must_use]
pub fn controller() -> Controller<ReplicationController> {
    with_placement(Spread)
}

/// The controller, placing pods as `placement` says.
#[must_use]
pub fn with_placement(placement: impl Placement) -> Controller<ReplicationController> {
    let placement: Arc<dyn Placement> = Arc::new(placement);
    let memory = Memory::default();
    Controller::new("replicationcontroller", move |object, context| {
        reconcile(object, context, placement.clone(), memory.clone())
    })
    .on_delete(end)
    .refuses_unknown_fields()
    .owns::<Pod>()
    .watches::<Pod>(|pod, _| adopter::<ReplicationController>(pod).into_iter().collect())
    .watches::<Node>(|_, view| view.list::<ReplicationController>().keys())
    .watches::<DisruptionBudget>(|budget, view| {
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let all = view.list::<ReplicationController>();
        all.in_namespace(namespace).keys()
    })
    .watches::<RollingUpdate>(|roll, _| {
        let namespace = roll.metadata.namespace.as_deref().unwrap_or_default();
        let sides = [&roll.spec.from, &roll.spec.to].into_iter();
        let key = |name: &String| ledger::replication_controller_key(namespace, name);
        sides.filter_map(key).collect()
    })
}

/// A pod's spec as its controller's template wants it on a node.
pub(crate) fn wanted_spec(owner: &Object<ReplicationController>, node: &str) -> PodSpec {
    Workload::of(owner, &owner.spec.template).spec(node)
}

/// What is remembered from run to run, so that a run costs what has changed.
#[derive(Clone, Debug, Default)]
struct Memory {
    accounts: Accounts,
    pods: Owners<Pod>,
}

/// What one run works with.
struct Seen {
    observed: Observed,
    /// Those that wait for it, and those it owns.
    pods: Vec<Arc<Object<Pod>>>,
    /// If pods may have to go.
    ledger: Option<Result<Ledger, LedgerError>>,
}

fn observe(
    owner: &Object<ReplicationController>,
    workload: &Workload,
    selector: Selector,
    context: &Context,
    memory: &Memory,
) -> Seen {
    let view = context.view();
    let owned = memory.pods.owned(view, &owner.metadata.uid);
    let is_current = |pod: &Arc<Object<Pod>>| workload.is_current(pod);
    let current: Vec<bool> = owned.iter().map(is_current).collect();
    let both = owned.iter().zip(&current);
    let live = both.clone().filter(|(pod, _)| !pod.metadata.is_deleted());
    let all_current = live.clone().all(|(_, current)| *current);
    let live = live.count();
    let needs = workload.needs();
    let fleet = memory.accounts.fleet(view);
    let dynamic = owner.spec.strategy == Strategy::Dynamic;
    let moves = owned.iter().any(|pod| {
        let node = fleet.node(pod.spec.node_name.as_deref().unwrap_or_default());
        match node {
            None => dynamic,
            Some(node) if node.state == NodeState::Draining && node.moves_static => true,
            Some(node) => dynamic && !(node.keeps_pods() && selector.matches(&node.labels)),
        }
    });
    // What takes nothing away needs no ledger, and reading it costs as much as there are pods.
    let takes_away = live > owner.spec.replicas as usize || !all_current || moves;
    let ledger = takes_away.then(|| Ledger::of_controller(view, owner));
    let with_owner = ended_with_owner(ReplicationController::SINGULAR, &owner.metadata.name);
    let facts = both.map(|(pod, &current)| {
        let node = pod.spec.node_name.clone().unwrap_or_default();
        let leaving = pod.metadata.is_deleted();
        let (mut grows, mut stuck) = (false, None);
        if !current && !leaving {
            let from = PodNeeds::of_pod(pod);
            grows = needs.asks_more_than(&from);
            stuck = match fleet.node(&node) {
                Some(_) => fleet.refuses_change(&node, &from, &needs),
                None => None,
            };
        }
        PodFacts {
            name: pod.metadata.name.clone(),
            node,
            ready: is_ready(pod),
            leaving,
            singleton: pod.spec.singleton,
            taken_back: pod
                .metadata
                .deletion
                .as_ref()
                .and_then(|end| end.reason.as_deref())
                == Some(&*with_owner),
            gone: PodPhase::of(&pod.status.phase) == Some(PodPhase::Gone),
            current,
            created: created(pod),
            grows,
            stuck,
        }
    });
    let facts: Vec<PodFacts> = facts.collect();
    let own = on_each_node(&facts);
    let orphans = workload.orphans(view);
    let named = |pod: &Arc<Object<Pod>>| pod.metadata.name.clone();
    let (mut pods, orphans) = (orphans.clone(), orphans.iter().map(named).collect());
    pods.extend(owned);
    let request = Request {
        needs,
        per_node: owner.spec.max_per_node,
        own,
        spread_over: owner.spec.spread_over.clone(),
        ..Request::new(workload.path(), selector)
    };
    let observed = Observed {
        request,
        fleet,
        replicas: owner.spec.replicas,
        strategy: owner.spec.strategy,
        // How many pods there are, and which go, is the roll's to say.
        claimed: owner.spec.claimed_by.is_some(),
        disabled: owner.spec.disabled,
        pods: facts,
        orphans,
        budget: match &ledger {
            Some(Ok(ledger)) => Budget {
                floor: ledger.floor().pods,
                open: ledger.account().going(),
            },
            // Nothing healthy is taken away.
            None | Some(Err(_)) => Budget {
                floor: u32::MAX,
                open: 0,
            },
        },
    };
    Seen {
        observed,
        pods,
        ledger,
    }
}

/// How many pods each node has. Those of one node mostly come one after the other.
fn on_each_node(pods: &[PodFacts]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for some in pods.chunk_by(|one, other| one.node == other.node) {
        if let Some(first) = some.first() {
            let count = u32::try_from(some.len()).unwrap_or(u32::MAX);
            *counts.entry(first.node.clone()).or_default() += count;
        }
    }
    counts
}

async fn reconcile(
    owner: Arc<Object<ReplicationController>>,
    context: Context,
    placement: Arc<dyn Placement>,
    memory: Memory,
) -> RunResult {
    let selector: Selector = owner
        .spec
        .node_selector
        .parse()
        .map_err(ReconcileError::terminal)?;
    let workload = Workload::of(&*owner, &owner.spec.template);
    if !owner.spec.disabled {
        let view = context.view();
        let pods = memory.pods.owned(view, &owner.metadata.uid);
        let ledger = || Ledger::of_controller(view, &owner);
        if let Some(next) = grants::answer(&context, &pods, ledger, &workload.title()).await? {
            return Ok(next);
        }
    }
    let Seen {
        observed,
        pods,
        ledger,
    } = observe(&owner, &workload, selector, &context, &memory);
    let plan = plan(&observed, &*placement);
    let counts = format!(
        "{} of {} there, {} ready",
        plan.live, owner.spec.replicas, plan.ready
    );
    let news = report::News::of(&owner, &plan, &observed);
    let (ledger, unusable) = match ledger {
        None => (None, None),
        Some(Ok(ledger)) => (Some(ledger), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let status =
        |done: Done| report::status(&owner, &plan, &news, &context, done, unusable.clone());
    let work = Work::<ReplicationController>::new(&context, &workload, &status, &counts)
        .with_ledger(ledger);
    let carried = match work.carry_out(steps(&plan, &observed, &pods)).await {
        Ok(carried) => carried,
        Err(unfinished) => {
            if let Some(why) = unfinished.held {
                report_hold(&owner, &plan, &news, &context, why).await;
            }
            return Err(unfinished.error);
        }
    };
    news.tell(&owner, &context);
    if carried.again {
        return Ok(Action::requeue_after(Duration::from_millis(1)));
    }
    report::next_look(&owner, &plan, &news, &context)
}

fn steps(plan: &Plan, observed: &Observed, pods: &[Arc<Object<Pod>>]) -> Vec<Step> {
    // Most plans are about new pods alone, or about nothing.
    let about = plan.adopt.len() + plan.delete.len() + plan.update.len();
    let pods = if about == 0 { &[] } else { pods };
    let by_name = pods.iter().map(|pod| (pod.metadata.name.as_str(), pod));
    let by_name: HashMap<&str, &Arc<Object<Pod>>> = by_name.collect();
    let pod = |name: &String| by_name.get(name.as_str()).map(|pod| Arc::clone(pod));
    let growing: HashSet<&String> = observed
        .pods
        .iter()
        .filter(|pod| pod.grows)
        .map(|pod| &pod.name)
        .collect();
    let adopt = plan.adopt.iter().filter_map(pod);
    let adopt = adopt.map(|pod| Step::Adopt { pod });
    let create = plan.create.iter().cloned();
    let create = create.map(|node| Step::Create { node });
    let delete = plan.delete.iter().filter_map(|victim| {
        Some(Step::Delete {
            pod: pod(&victim.name)?,
            why: victim.why.clone(),
        })
    });
    let update = plan.update.iter().filter_map(|name| {
        Some(Step::Update {
            pod: pod(name)?,
            grows: growing.contains(name),
        })
    });
    adopt.chain(create).chain(delete).chain(update).collect()
}

/// Says on the controller that a failsafe holds back what it would do.
async fn report_hold(
    owner: &Object<ReplicationController>,
    plan: &Plan,
    news: &report::News,
    context: &Context,
    why: String,
) {
    let mut changes = context.changes();
    let status = report::status(owner, plan, news, context, Done::default(), Some(why));
    if changes.report::<ReplicationController>(&status).is_ok() {
        // A freeze refuses this, too; the failsafe's own record says so then.
        let _ = changes.commit().await;
    }
}

/// Ends a controller: its pods are ended too, or lose their owner and stay, as the tombstone says.
async fn end(owner: Arc<Object<ReplicationController>>, context: Context) -> RunResult {
    let spec = &owner.spec;
    crate::end::end(&*owner, &spec.template, spec.deletion_grace, &context).await
}
