//! Replication controllers: keep so many pods of one template on the nodes a selector chooses.
//!
//! The decision is [`plan`](fn@plan), a pure function; the rest reads the view, commits in one
//! transaction what the plan says together with the new status, and explains itself by events
//! and conditions. A pod belongs to a controller by the uid in its owner reference: several
//! controllers of one app never touch each other's pods.

mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use platctrl_framework::client::DeleteOptions;
use platctrl_framework::controller::{Action, Changes, Context, Controller, ReconcileError};
use platctrl_framework::model::{
    Condition, ConditionStatus, EventType, Metadata, Object, Propagation, Resource, Selector,
    Status, Tree,
};
use platctrl_framework::store::Compare;
use platctrl_kinds::{
    Node, Pod, PodSpec, PodTemplate, ReplicationController, ReplicationControllerStatus, condition,
};

pub use plan::{NodeFacts, Observed, Plan, PodFacts, plan};

use crate::placement::{Placement, Spread};

/// Pods created, changed or deleted in one commit. Larger work is several commits, each of which
/// leaves the controller in a state that the next run continues from.
const BATCH: usize = 32;

/// Commits that one run makes of one plan, at most: making a plan costs as much as there are pods.
const ROUNDS: usize = 64;

/// Letters and digits behind the controller's name in a pod's.
const SUFFIX: usize = 10;

type RunResult = Result<Action, ReconcileError>;

/// The controller, with the default [`Placement`].
#[must_use]
pub fn controller() -> Controller<ReplicationController> {
    with_placement(Spread)
}

/// The controller, placing pods as `placement` says.
#[must_use]
pub fn with_placement(placement: impl Placement) -> Controller<ReplicationController> {
    let placement: Arc<dyn Placement> = Arc::new(placement);
    Controller::new("replicationcontroller", move |object, context| {
        reconcile(object, context, placement.clone())
    })
    .on_delete(end)
    .owns::<Pod>()
    .watches::<Node>(|_, view| view.list::<ReplicationController>().keys())
}

/// A pod's spec and labels as its controller's template wants them on a node.
pub(crate) fn wanted_spec(owner: &Object<ReplicationController>, node: &str) -> PodSpec {
    let template = &owner.spec.template;
    PodSpec {
        node_name: Some(node.to_owned()),
        app: Some(
            template
                .spec
                .app
                .clone()
                .unwrap_or_else(|| owner.metadata.name.clone()),
        ),
        ..template.spec.clone()
    }
}

fn is_current(owner: &Object<ReplicationController>, pod: &Object<Pod>) -> bool {
    let PodTemplate { metadata, .. } = &owner.spec.template;
    let node = pod.spec.node_name.as_deref().unwrap_or_default();
    // Labels and annotations that others added to a pod stay.
    let has = |own: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>| {
        wanted
            .iter()
            .all(|(name, value)| own.get(name) == Some(value))
    };
    pod.spec == wanted_spec(owner, node)
        && has(&pod.metadata.labels, &metadata.labels)
        && has(&pod.metadata.annotations, &metadata.annotations)
}

fn is_ready(pod: &Object<Pod>) -> bool {
    pod.status.conditions.is_true(condition::READY)
}

fn observe(
    owner: &Object<ReplicationController>,
    selector: &Selector,
    context: &Context,
) -> Observed {
    let view = context.view();
    let pods: Vec<PodFacts> = view
        .list::<Pod>()
        .owned_by(&owner.metadata.uid)
        .into_iter()
        .map(|pod| PodFacts {
            name: pod.metadata.name.clone(),
            node: pod.spec.node_name.clone().unwrap_or_default(),
            ready: is_ready(&pod),
            leaving: pod.metadata.is_deleted(),
            current: is_current(owner, &pod),
            created: pod
                .metadata
                .creation_timestamp
                .map_or(0, jiff::Timestamp::as_microsecond),
        })
        .collect();
    // Counting every pod of the fleet is worth it only when some are to be placed.
    let mut running: HashMap<String, u32> = HashMap::new();
    if pods.iter().filter(|pod| !pod.leaving).count() < owner.spec.replicas as usize {
        for key in view.list::<Pod>().keys() {
            let node = key.node().unwrap_or_default().to_owned();
            *running.entry(node).or_default() += 1;
        }
    }
    let eligible = view
        .list::<Node>()
        .into_iter()
        .filter(|node| selector.matches(&node.metadata.labels))
        .map(|node| {
            let facts = NodeFacts {
                schedulable: !node.spec.unschedulable && !node.metadata.is_deleted(),
                pods: running.get(&node.metadata.name).copied().unwrap_or(0),
            };
            (node.metadata.name.clone(), facts)
        })
        .collect();
    Observed {
        owner: format!(
            "{}/{}",
            owner.metadata.namespace.as_deref().unwrap_or_default(),
            owner.metadata.name
        ),
        replicas: owner.spec.replicas,
        max_per_node: owner.spec.max_per_node,
        pods,
        eligible,
    }
}

async fn reconcile(
    owner: Arc<Object<ReplicationController>>,
    context: Context,
    placement: Arc<dyn Placement>,
) -> RunResult {
    let selector: Selector = owner
        .spec
        .node_selector
        .parse()
        .map_err(ReconcileError::terminal)?;
    let observed = observe(&owner, &selector, &context);
    let plan = plan(&observed, &*placement);
    let touched: HashSet<&String> = plan.delete.iter().chain(&plan.update).collect();
    let mut pods: HashMap<String, Arc<Object<Pod>>> = HashMap::new();
    // Of 100,000 pods it is worth to go through all only for those that something happens to.
    if !touched.is_empty() {
        let owned = context.view().list::<Pod>();
        let owned = owned.owned_by(&owner.metadata.uid).into_iter();
        let touched = owned.filter(|pod| touched.contains(&pod.metadata.name));
        pods.extend(touched.map(|pod| (pod.metadata.name.clone(), pod)));
    }

    let counts = format!(
        "{} of {} there, {} ready",
        plan.live, owner.spec.replicas, plan.ready
    );
    let creates = plan.create.iter().map(|node| Step::Create(node));
    let with_pod = |name: &String| pods.get(name);
    let deletes = plan.delete.iter().filter_map(with_pod).map(Step::Delete);
    let updates = plan.update.iter().filter_map(with_pod).map(Step::Update);
    let steps: Vec<Step<'_>> = creates.chain(deletes).chain(updates).collect();
    let mut done = Done::default();
    let (mut next, mut rest) = steps.split_at(steps.len().min(BATCH));
    for round in 0..ROUNDS {
        let mut changes = context.changes();
        let mut notes: Vec<(&str, String)> = Vec::new();
        for step in next {
            let (reason, what) = take(*step, &owner, &observed, &context, &mut changes)?;
            done.count(*step);
            notes.push((reason, format!("{what}: {counts}")));
        }
        if round > 0 {
            // The view is not as new as the last commit: whoever changed their mind is heard.
            require_same_intent(&context, &mut changes);
            let message = format!("{} more pods after that: {counts}", next.len());
            notes = vec![("Continued", message)];
        }
        let status = status(&owner, &plan, &observed, &context, done);
        changes.report::<ReplicationController>(&status)?;
        changes.commit().await?;
        for (reason, message) in notes {
            context.event(EventType::Normal, reason, message);
        }
        if rest.is_empty() {
            break;
        }
        (next, rest) = rest.split_at(rest.len().min(BATCH));
    }
    let told = owner.status.conditions.get(condition::SCHEDULED);
    let is_news =
        told.is_none_or(|told| told.message != unplaced_message(&owner, &plan, &observed));
    if plan.unplaced > 0 && is_news {
        context.event(
            EventType::Warning,
            "Unplaced",
            unplaced_message(&owner, &plan, &observed),
        );
    }
    Ok(Action::await_change())
}

/// One pod's part of a plan.
#[derive(Clone, Copy)]
enum Step<'p> {
    Create(&'p str),
    Delete(&'p Arc<Object<Pod>>),
    Update(&'p Arc<Object<Pod>>),
}

/// Pods that this run created and deleted so far.
#[derive(Clone, Copy, Default)]
struct Done {
    created: u32,
    deleted: u32,
}

impl Done {
    fn count(&mut self, step: Step<'_>) {
        match step {
            Step::Create(_) => self.created += 1,
            Step::Delete(_) => self.deleted += 1,
            Step::Update(_) => {}
        }
    }
}

/// Adds a step to the changes, and says what it is.
fn take(
    step: Step<'_>,
    owner: &Object<ReplicationController>,
    observed: &Observed,
    context: &Context,
    changes: &mut Changes<'_>,
) -> Result<(&'static str, String), ReconcileError> {
    match step {
        Step::Create(node) => {
            let created = changes.create(&new_pod(owner, node, context))?;
            let name = &created.metadata.name;
            Ok(("Created", format!("created pod {name} on node {node}")))
        }
        Step::Delete(pod) => {
            let mut options = DeleteOptions::default();
            options.uid = Some(pod.metadata.uid.clone());
            options.reason = Some(format!(
                "{} wants {} pods",
                owner.metadata.name, owner.spec.replicas
            ));
            changes.delete(&pod.key()?, &options)?;
            let (name, why) = (&pod.metadata.name, why_this(observed, pod));
            Ok(("Deleted", format!("deleted pod {name}, {why}")))
        }
        Step::Update(pod) => {
            changes.update(&brought_to_template(owner, pod))?;
            let name = &pod.metadata.name;
            Ok(("Updated", format!("updated pod {name} in place")))
        }
    }
}

/// A change of the controller's own spec ends what was planned for the old one.
fn require_same_intent(context: &Context, changes: &mut Changes<'_>) {
    if let Some(intent) = context.joined().intent {
        let key = context.key().store_key(Tree::Intent);
        changes.require(Compare::Revision(key, intent.modified));
    }
}

fn new_pod(owner: &Object<ReplicationController>, node: &str, context: &Context) -> Object<Pod> {
    let template = &owner.spec.template;
    // A pod's name is a key segment of at most 63 bytes; the controller's may be cut for it.
    let stem: String = owner.metadata.name.chars().take(63 - SUFFIX - 1).collect();
    let metadata = Metadata {
        name: format!("{stem}-{}", context.environment().suffix(SUFFIX)),
        namespace: owner.metadata.namespace.clone(),
        labels: template.metadata.labels.clone(),
        annotations: template.metadata.annotations.clone(),
        owner_references: vec![owner.owner_reference()],
        ..Metadata::default()
    };
    Object::new(metadata, wanted_spec(owner, node))
}

fn brought_to_template(owner: &Object<ReplicationController>, pod: &Object<Pod>) -> Object<Pod> {
    let template = &owner.spec.template;
    let mut pod = pod.clone();
    pod.spec = wanted_spec(owner, pod.spec.node_name.as_deref().unwrap_or_default());
    pod.metadata.labels.extend(template.metadata.labels.clone());
    pod.metadata
        .annotations
        .extend(template.metadata.annotations.clone());
    pod
}

fn why_this(observed: &Observed, pod: &Object<Pod>) -> &'static str {
    let node = pod.spec.node_name.as_deref().unwrap_or_default();
    if !is_ready(pod) {
        "which is not ready"
    } else if !observed.eligible.contains_key(node) {
        "whose node does not match"
    } else {
        "the newest"
    }
}

fn unplaced_message(
    owner: &Object<ReplicationController>,
    plan: &Plan,
    observed: &Observed,
) -> String {
    let selector = &owner.spec.node_selector;
    let pods = counted(plan.unplaced as usize, "pod");
    if observed.eligible.is_empty() {
        return format!("no place for {pods}: no node matches `{selector}`");
    }
    let open = observed.eligible.values().filter(|facts| facts.schedulable);
    format!(
        "no place for {pods}: {} `{selector}`, {} new pods, each at most {} of this controller (maxPerNode)",
        match observed.eligible.len() {
            1 => "1 node matches".to_owned(),
            count => format!("{count} nodes match"),
        },
        match open.count() {
            1 => "1 takes".to_owned(),
            count => format!("{count} take"),
        },
        owner.spec.max_per_node
    )
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn status(
    owner: &Object<ReplicationController>,
    plan: &Plan,
    observed: &Observed,
    context: &Context,
    done: Done,
) -> Status<ReplicationControllerStatus> {
    let (now, generation) = (context.environment().now(), owner.metadata.generation);
    let joined = context.joined();
    let mut status = owner.status.clone();
    status.observed_generation = Some(generation);
    status.observed_spec = joined
        .intent
        .as_ref()
        .map(|intent| intent.value.spec_digest());
    status.detail.replicas = plan.live + done.created - done.deleted;
    status.detail.ready_replicas = plan.ready;
    let wanted = owner.spec.replicas;
    let is = |holds: bool| {
        if holds {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        }
    };
    let available = plan.ready >= wanted;
    let message = format!("{} of {wanted} pods are ready", plan.ready);
    let reason = if available { "AllReady" } else { "TooFewReady" };
    let mut set = |condition| status.conditions.set(condition, generation, now);
    set(Condition::new("Available", is(available), reason, message));
    let placed = plan.unplaced == 0;
    let (reason, message) = match placed {
        true => ("AllPlaced", String::new()),
        false => ("NoPlace", unplaced_message(owner, plan, observed)),
    };
    set(Condition::new(
        condition::SCHEDULED,
        is(placed),
        reason,
        message,
    ));
    let moving = plan.update.len() + plan.create.len() + plan.delete.len();
    let waiting = plan.outdated as usize;
    let (reason, message) = match (moving, waiting) {
        (0, 0) => ("Settled", String::new()),
        (0, _) => (
            "Waiting",
            format!(
                "{waiting} pods have an earlier template; the next one is updated when all are ready"
            ),
        ),
        _ => (
            "Acting",
            format!(
                "{moving} pods are being created, updated or deleted, {waiting} wait for their turn"
            ),
        ),
    };
    set(Condition::new(
        "Progressing",
        is(moving + waiting > 0),
        reason,
        message,
    ));
    let (reason, message) = match plan.ineligible {
        0 => ("AllEligible", String::new()),
        count => (
            "Ineligible",
            format!(
                "{count} pods run on nodes that do not match `{}`; they stay (Static)",
                owner.spec.node_selector
            ),
        ),
    };
    set(Condition::new(
        "Eligible",
        is(plan.ineligible == 0),
        reason,
        message,
    ));
    status
}

/// Ends a controller: its pods are ended too, or lose their owner and stay, as the tombstone says.
async fn end(owner: Arc<Object<ReplicationController>>, context: Context) -> RunResult {
    let propagation = owner
        .metadata
        .deletion
        .as_ref()
        .map(|deletion| deletion.propagation);
    let pods = context
        .view()
        .list::<Pod>()
        .owned_by(&owner.metadata.uid)
        .to_vec();
    let mut changes = context.changes();
    let mut notes = Vec::new();
    match propagation {
        Some(Propagation::Cascade) => {
            for pod in pods
                .iter()
                .filter(|pod| !pod.metadata.is_deleted())
                .take(BATCH)
            {
                let mut options = DeleteOptions::default();
                options.uid = Some(pod.metadata.uid.clone());
                options.propagation = Some(Propagation::Cascade);
                options.reason = Some(format!(
                    "{} {} was deleted",
                    ReplicationController::SINGULAR,
                    owner.metadata.name
                ));
                changes.delete(&pod.key()?, &options)?;
                notes.push((
                    "Deleted",
                    format!(
                        "deleted pod {}, because its controller is deleted",
                        pod.metadata.name
                    ),
                ));
            }
        }
        _ => {
            for pod in pods.iter().take(BATCH) {
                let mut orphan = Object::clone(pod);
                orphan
                    .metadata
                    .owner_references
                    .retain(|reference| reference.uid != owner.metadata.uid);
                changes.update(&orphan)?;
                notes.push((
                    "Orphaned",
                    format!("pod {} stays and has no owner any more", pod.metadata.name),
                ));
            }
        }
    }
    if pods.is_empty() {
        changes.report_gone()?;
    }
    changes.commit().await?;
    for (reason, message) in notes {
        context.event(EventType::Normal, reason, message);
    }
    Ok(Action::await_change())
}
