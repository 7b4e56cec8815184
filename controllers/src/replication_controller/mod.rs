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
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use platctrl_framework::cache::{Owners, View};
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Object, Resource, Selector, Uid};
use platctrl_framework::store::Revision;
use platctrl_kinds::{
    DisruptionBudget, Node, Pod, PodSpec, ReplicationController, RollingUpdate, Span, Strategy,
};

pub use plan::{
    Astray, Budget, Observed, Plan, PodFacts, Shortage, Sums, Victim, Wait, astray, at_rest, grow,
    plan,
};

use crate::carry_out::{Done, Step, Work};
use crate::crew::{Brief, Crew, Kept, Made, Shape};
use crate::end::ended_with_owner;
use crate::grants;
use crate::ledger::{self, Ledger, LedgerError};
use crate::nodes::Nodes;
use crate::placement::{Accounts, Fleet, NodeState, Placement, PodNeeds, Request, Spread};
use crate::template::{Workload, adopter};

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
    .watches_heads::<Pod>(|pod, _| adopter::<ReplicationController>(pod).into_iter().collect())
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
    pods: Owners<Pod, Kept>,
    nodes: Nodes,
}

/// What can be told without looking at each pod.
struct Glance {
    sums: Sums,
    /// Those whose agents ask for a restart.
    asking: Vec<Arc<Object<Pod>>>,
}

impl Memory {
    fn glance(
        &self,
        owner: &Object<ReplicationController>,
        workload: &Workload,
        view: &View,
    ) -> Glance {
        let homes = self.nodes.homes(view, &owner.spec.node_selector);
        let silent = self.nodes.silent(view);
        self.pods.of(view, &owner.metadata.uid, |kept| {
            let astray = kept.astray(&homes);
            let crew = kept.crew();
            let current = crew.alike().filter(|alike| workload.wants(&alike.shape));
            let (live, ready) = current.fold((0, 0), |(live, ready), alike| {
                (live + alike.live, ready + alike.ready)
            });
            // What was last said of these counts for nothing.
            let unseen = silent.iter().flat_map(|node| crew.on_node(node));
            let unseen = unseen
                .filter(|pod| pod.ready && !pod.leaving && workload.wants(&pod.shape))
                .count();
            let with_owner =
                ended_with_owner(ReplicationController::SINGULAR, &owner.metadata.name);
            let holds_its_place = |pod: &Brief| {
                pod.shape.spec.singleton || pod.end_reason.as_deref() == Some(&*with_owner)
            };
            let asking = crew.asking();
            let asking = asking.filter_map(|pod| view.get::<Pod>(&pod.key));
            Glance {
                sums: Sums {
                    live: u32::try_from(crew.live()).unwrap_or(u32::MAX),
                    ready: ready.saturating_sub(u32::try_from(unseen).unwrap_or(u32::MAX)),
                    current: live,
                    astray: u32::try_from(astray).unwrap_or(u32::MAX),
                    ending: crew.ending().any(holds_its_place),
                },
                asking: asking.collect(),
            }
        })
    }

    fn crew(&self, view: &View, owner: &Uid) -> Arc<Crew> {
        self.pods.of(view, owner, |kept| kept.crew().clone())
    }

    /// Takes in new pods that no view shows yet.
    fn expect(
        &self,
        owner: &Object<ReplicationController>,
        view: &View,
        made: Vec<Made>,
        put: Revision,
        shape: &Arc<Shape>,
    ) {
        let namespace = shape.namespace.as_deref().unwrap_or_default();
        let needs = PodNeeds::of(namespace, &owner.metadata.name, &shape.spec);
        let keys = made.iter().map(|made| &*made.key);
        self.accounts.expect(keys, put, &needs);
        let seen = view.revision_of::<Pod>();
        (self.pods).tell(&owner.metadata.uid, |kept| {
            kept.expect(made, shape, put, seen);
        });
    }

    fn ledger(
        &self,
        view: &View,
        owner: &Object<ReplicationController>,
    ) -> Result<Ledger, LedgerError> {
        let silent = self.nodes.silent(view);
        Ledger::of_controller_with(view, owner, |uid| self.crew(view, uid), &silent)
    }
}

/// What one run works with.
struct Seen {
    observed: Observed,
    /// If pods may have to go.
    ledger: Option<Result<Ledger, LedgerError>>,
}

fn observe(
    owner: &Object<ReplicationController>,
    workload: &Workload,
    selector: Selector,
    orphans: &[Arc<Object<Pod>>],
    view: &View,
    memory: &Memory,
) -> Seen {
    let crew = memory.crew(view, &owner.metadata.uid);
    let mut wanted = HashMap::new();
    for alike in crew.alike() {
        wanted.insert(Arc::as_ptr(&alike.shape), workload.wants(&alike.shape));
    }
    let is_current = |pod: &Brief| wanted.get(&Arc::as_ptr(&pod.shape)) == Some(&true);
    let needs = workload.needs();
    let fleet = memory.accounts.fleet(view);
    let dynamic = owner.spec.strategy == Strategy::Dynamic;
    let has_to_move = |node: &str| match fleet.node(node) {
        None => dynamic,
        Some(node) if node.state == NodeState::Draining && node.moves_static => true,
        Some(node) => dynamic && !(node.keeps_pods() && selector.matches(&node.labels)),
    };
    let with_owner = ended_with_owner(ReplicationController::SINGULAR, &owner.metadata.name);
    let (mut moves, mut all_current) = (false, true);
    let mut facts = Vec::with_capacity(crew.len());
    let mut last = "";
    for pod in crew.pods() {
        let (node, current) = (pod.node(), is_current(pod));
        // Those of one node come one after the other.
        if node != last || facts.is_empty() {
            moves |= has_to_move(node);
            last = node;
        }
        let (mut grows, mut stuck) = (false, None);
        let same_spec = current || workload.wants_spec_of(&pod.shape);
        if !current && !pod.leaving {
            all_current = false;
            let from = pod.needs();
            grows = needs.asks_more_than(&from);
            stuck = match fleet.node(node) {
                Some(_) => fleet.refuses_change(node, &from, &needs),
                None => None,
            };
        }
        facts.push(PodFacts {
            name: pod.name().to_owned(),
            node: node.to_owned(),
            ready: pod.ready && fleet.is_heard_of(node),
            leaving: pod.leaving,
            singleton: pod.shape.spec.singleton,
            taken_back: pod.end_reason.as_deref() == Some(&*with_owner),
            gone: pod.gone,
            current,
            same_spec,
            created: pod.created,
            grows,
            stuck,
        });
    }
    // What takes nothing away needs no ledger.
    let takes_away = crew.live() > owner.spec.replicas as usize || !all_current || moves;
    let ledger = takes_away.then(|| memory.ledger(view, owner));
    let observed = Observed {
        pods: facts,
        orphans: (orphans.iter())
            .map(|pod| pod.metadata.name.clone())
            .collect(),
        budget: match &ledger {
            Some(Ok(ledger)) => Budget {
                floor: ledger.floor().pods,
                open: ledger.account().going(),
                by: ledger.floor().budget.clone(),
            },
            None | Some(Err(_)) => nothing_goes(),
        },
        ..without_pods(owner, request_of(owner, workload, selector, &crew), fleet)
    };
    Seen { observed, ledger }
}

/// Nothing healthy is taken away.
fn nothing_goes() -> Budget {
    Budget {
        floor: u32::MAX,
        ..Budget::default()
    }
}

/// What is observed besides the pods.
fn without_pods(
    owner: &Object<ReplicationController>,
    request: Request,
    fleet: Arc<Fleet>,
) -> Observed {
    Observed {
        request,
        fleet,
        replicas: owner.spec.replicas,
        strategy: owner.spec.strategy,
        // How many pods there are, and which go, is the roll's to say.
        claimed: owner.spec.claimed_by.is_some(),
        disabled: owner.spec.disabled,
        pods: Vec::new(),
        orphans: Vec::new(),
        budget: nothing_goes(),
    }
}

fn request_of(
    owner: &Object<ReplicationController>,
    workload: &Workload,
    selector: Selector,
    crew: &Crew,
) -> Request {
    Request {
        needs: workload.needs(),
        per_node: owner.spec.max_per_node,
        own: on_each_node(crew),
        spread_over: owner.spec.spread_over.clone(),
        ..Request::new(workload.path(), selector)
    }
}

/// How many pods each node has. Those of one node come one after the other.
fn on_each_node(crew: &Crew) -> BTreeMap<String, u32> {
    let mut counts = Vec::<(&str, u32)>::new();
    for node in crew.pods().map(Brief::node) {
        match counts.last_mut() {
            Some((last, count)) if *last == node => *count += 1,
            _ => counts.push((node, 1)),
        }
    }
    let counts = counts.into_iter();
    counts
        .map(|(node, count)| (node.to_owned(), count))
        .collect()
}

/// The plan where pods are missing and nothing else is to be done, made without a look at each of
/// those that are there.
fn grown(
    owner: &Object<ReplicationController>,
    workload: &Workload,
    selector: &Selector,
    sums: &Sums,
    view: &View,
    memory: &Memory,
    placement: &dyn Placement,
) -> Option<(Seen, Plan)> {
    let mut observed = None;
    let plan = plan::grow(sums, owner.spec.replicas, |count| {
        let crew = memory.crew(view, &owner.metadata.uid);
        let request = request_of(owner, workload, selector.clone(), &crew);
        let fleet = memory.accounts.fleet(view);
        let chosen = placement.place(&fleet, &request, count);
        observed = Some(without_pods(owner, request, fleet));
        chosen
    })?;
    let seen = Seen {
        observed: observed?,
        ledger: None,
    };
    Some((seen, plan))
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
    let view = context.view();
    let Glance { sums, asking } = memory.glance(&owner, &workload, view);
    if !owner.spec.disabled {
        let ledger = || memory.ledger(view, &owner);
        if let Some(next) = grants::answer(&context, &asking, ledger, &workload.title()).await? {
            return Ok(next);
        }
    }
    let orphans = workload.orphans(view);
    // What apps run beside one another has to be looked at node by node.
    let by_sums = orphans.is_empty() && workload.template.spec.placement.with.is_empty();
    let at_rest = plan::at_rest(&sums, owner.spec.replicas).filter(|_| by_sums);
    let (plan, steps, news, ledger) = match at_rest {
        Some(plan) => {
            memory.accounts.pass(view);
            let news = report::News::of(&owner, &plan, None, memory.nodes.are_none(view));
            (plan, Vec::new(), news, None)
        }
        None => {
            let grown = (by_sums && !owner.spec.disabled).then(|| {
                grown(
                    &owner,
                    &workload,
                    &selector,
                    &sums,
                    view,
                    &memory,
                    &*placement,
                )
            });
            let (seen, plan) = match grown.flatten() {
                Some(grown) => grown,
                None => {
                    let seen = observe(&owner, &workload, selector, &orphans, view, &memory);
                    let plan = plan(&seen.observed, &*placement);
                    (seen, plan)
                }
            };
            let Seen { observed, ledger } = seen;
            let no_nodes = observed.fleet.nodes().is_empty();
            let news = report::News::of(&owner, &plan, Some(&observed), no_nodes);
            let pods = pods_of(&plan, &owner, view, &memory, &orphans);
            let steps = steps(&plan, &observed, &pods);
            (plan, steps, news, ledger)
        }
    };
    let counts = format!(
        "{} of {} there, {} ready",
        plan.live, owner.spec.replicas, plan.ready
    );
    let (ledger, unusable) = match ledger {
        None => (None, None),
        Some(Ok(ledger)) => (Some(ledger), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let status =
        |done: Done| report::status(&owner, &plan, &news, &context, done, unusable.clone());
    let shape = OnceLock::new();
    let made = |made: Vec<Made>, put: Revision| {
        let shape = shape.get_or_init(|| Arc::new(workload.shape()));
        memory.expect(&owner, view, made, put, shape);
    };
    let work = Work::<ReplicationController>::new(&context, &workload, &status, &counts)
        .with_ledger(ledger)
        .abreast(&made);
    let carried = match work.carry_out(steps).await {
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

/// The pods that a plan does something with.
fn pods_of(
    plan: &Plan,
    owner: &Object<ReplicationController>,
    view: &View,
    memory: &Memory,
    orphans: &[Arc<Object<Pod>>],
) -> HashMap<String, Arc<Object<Pod>>> {
    let deleted = plan.delete.iter().map(|victim| &victim.name);
    let about = plan.update.iter().chain(deleted);
    let about: HashSet<&str> = about.map(String::as_str).collect();
    let mut pods = HashMap::new();
    if !plan.adopt.is_empty() {
        let named = orphans
            .iter()
            .map(|pod| (pod.metadata.name.clone(), pod.clone()));
        pods.extend(named);
    }
    if !about.is_empty() {
        let crew = memory.crew(view, &owner.metadata.uid);
        let named = crew.pods().filter(|pod| about.contains(pod.name()));
        let named = named.filter_map(|pod| Some((pod.name().to_owned(), view.get(&pod.key)?)));
        pods.extend(named);
    }
    pods
}

fn steps(plan: &Plan, observed: &Observed, pods: &HashMap<String, Arc<Object<Pod>>>) -> Vec<Step> {
    let pod = |name: &String| pods.get(name).cloned();
    let growing: HashSet<&String> = observed
        .pods
        .iter()
        .filter(|pod| pod.grows)
        .map(|pod| &pod.name)
        .collect();
    let adopt = plan.adopt.iter().filter_map(pod);
    let adopt = adopt.map(|pod| Step::Adopt { pod });
    let create = plan::node_by_node(&plan.create);
    let create = create.into_iter().map(|node| Step::Create { node });
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
