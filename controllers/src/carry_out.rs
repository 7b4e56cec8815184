//! Carries out what was planned for a workload's pods: in commits that fit the store, each with
//! the owner's report, and never on nodes that changed since.

mod abreast;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use platctrl_framework::client::DeleteOptions;
use platctrl_framework::controller::{Changes, CommitError, Context, ReconcileError};
use platctrl_framework::model::{EventType, Object, Propagation, Resource, Status, Tree};
use platctrl_framework::store::{Capabilities, Compare, Revision};
use platctrl_kinds::Pod;

use crate::crew::Made;
use crate::ledger::Ledger;
use crate::placement::Guard;
use crate::template::{Workload, created_at, is_ready};

/// Pods changed or deleted in one commit, at most. Larger work is several commits, each of which
/// leaves the owner in a state that the next run continues from.
const BATCH: usize = 40;

/// New pods in one commit, at most. They are little to compare: a commit of more takes less of
/// everything for each.
const NEW_BATCH: usize = 120;

/// Commits that one run makes of one plan: as many as this, or as there is [time](PLAN_LASTS) for.
/// Making a plan costs as much as there are pods.
const ROUNDS: usize = 64;

/// How long a plan is carried out. Each commit compares the owner's spec and what it decides on
/// itself; what else has happened, the next plan sees.
const PLAN_LASTS: Duration = Duration::from_secs(2);

/// What one commit carries besides pods: the own report, its compares, a claim.
const OWN_OPERATIONS: usize = 6;
/// What a new pod takes: that its node is as it was seen, and its record; where nodes cannot be
/// compared, or are not as they were seen because of ourselves, that neither of its records is
/// there.
const NEW_POD_OPERATIONS: usize = 4;
const NEW_POD_OPERATIONS_BY_NODE: usize = 2;
/// What any other takes: two or three compares, its record, and the guard of its node.
const POD_OPERATIONS: usize = 5;

/// One pod's part of a plan.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A new pod.
    Create { node: String },
    /// A pod goes, and why.
    Delete { pod: Arc<Object<Pod>>, why: String },
    /// A pod gets the template. `grows`: it asks more of its node than before.
    Update { pod: Arc<Object<Pod>>, grows: bool },
    /// A pod without an owner gets one.
    Adopt { pod: Arc<Object<Pod>> },
    /// A pod loses its owner and stays.
    Orphan { pod: Arc<Object<Pod>> },
}

impl Step {
    fn is_new(&self) -> bool {
        matches!(self, Self::Create { .. })
    }

    /// The node whose pods must be as they were seen.
    fn guarded(&self) -> Option<&str> {
        match self {
            Self::Create { node } => Some(node),
            Self::Update { pod, grows: true } => pod.spec.node_name.as_deref(),
            _ => None,
        }
    }

    /// The node whose pods' intents it writes.
    fn touches(&self) -> &str {
        match self {
            Self::Create { node } => node,
            Self::Delete { pod, .. }
            | Self::Update { pod, .. }
            | Self::Adopt { pod }
            | Self::Orphan { pod } => pod.spec.node_name.as_deref().unwrap_or_default(),
        }
    }
}

/// Pods that were created, taken away and so on so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) created: u32,
    pub(crate) deleted: u32,
    pub(crate) updated: u32,
    pub(crate) adopted: u32,
}

impl Done {
    fn count(&mut self, step: &Step) {
        match step {
            Step::Create { .. } => self.created += 1,
            Step::Delete { .. } => self.deleted += 1,
            Step::Update { .. } => self.updated += 1,
            Step::Adopt { .. } => self.adopted += 1,
            Step::Orphan { .. } => {}
        }
    }

    /// All that was done.
    pub(crate) fn all(self) -> u32 {
        self.created + self.deleted + self.updated + self.adopted
    }

    /// Something was done.
    pub(crate) fn any(self) -> bool {
        self != Self::default()
    }
}

/// How many of these steps fit into one commit.
fn batch(capabilities: &Capabilities, workload: &Workload, steps: &[Step]) -> usize {
    let limits = &capabilities.limits;
    let (for_a_pod, most) = match steps.iter().all(Step::is_new) {
        true if capabilities.group_compare => (NEW_POD_OPERATIONS_BY_NODE, NEW_BATCH),
        true => (NEW_POD_OPERATIONS, BATCH),
        false => (POD_OPERATIONS, BATCH),
    };
    // Each pod carries the template, and what is said about it besides.
    let bytes = serde_json::to_vec(&workload.template).map_or(0, |bytes| bytes.len()) + 2048;
    let operations = limits.max_operations.saturating_sub(OWN_OPERATIONS) / for_a_pod;
    let compares = limits.max_compares.saturating_sub(OWN_OPERATIONS) / (for_a_pod - 1);
    let writes = limits.max_writes.saturating_sub(2);
    // Room for the own report.
    let bytes = (limits.max_transaction_bytes / 4 * 3) / bytes;
    let least = [operations, compares, writes, bytes].into_iter().min();
    least.unwrap_or(1).clamp(1, most)
}

/// What is being done, for people: `creating 2 pods, deleting 1 pod`.
pub(crate) fn told(create: usize, update: usize, delete: usize, adopt: usize) -> Vec<String> {
    let steps = [
        (create, "creating"),
        (update, "updating in place"),
        (delete, "deleting"),
        (adopt, "taking over"),
    ];
    let steps = steps.into_iter().filter(|(count, _)| *count > 0);
    let told = steps.map(|(count, what)| match count {
        1 => format!("{what} 1 pod"),
        _ => format!("{what} {count} pods"),
    });
    told.collect()
}

/// What steps are carried out for, and with what.
pub(crate) struct Work<'w, K: Resource> {
    context: &'w Context,
    workload: &'w Workload,
    /// The owner's status after so much was done.
    status: &'w (dyn Fn(Done) -> Status<K::Status> + Send + Sync),
    /// What events say behind each step: `2 of 3 there, 1 ready`.
    counts: &'w str,
    books: Books,
    /// What the owner's intent says has to be the same with each commit.
    same_intent: bool,
    /// Commits of new pods may be under way together: what the status says matters to nobody
    /// before the last of them.
    abreast: bool,
    /// Is told of new pods that were committed.
    made: Option<&'w (dyn Fn(Vec<Made>, Revision) + Send + Sync)>,
}

/// Where what takes a healthy pod away is entered.
enum Books {
    /// Nowhere: all of them are to go, because their owner goes.
    None,
    /// It cannot be used: nothing healthy is taken away.
    Closed,
    Open(Box<Ledger>),
}

/// What came of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The ledger was made, and what it is for can be done now.
    pub(crate) again: bool,
}

impl<'w, K: Resource> Work<'w, K> {
    pub(crate) fn new(
        context: &'w Context,
        workload: &'w Workload,
        status: &'w (dyn Fn(Done) -> Status<K::Status> + Send + Sync),
        counts: &'w str,
    ) -> Self {
        Self {
            context,
            workload,
            status,
            counts,
            books: Books::None,
            same_intent: false,
            abreast: false,
            made: None,
        }
    }

    /// Commits of new pods may be under way together, so that the status tells of them at the end
    /// alone; and `made` is told of new pods and the revision that they were put at.
    pub(crate) fn abreast(self, made: &'w (dyn Fn(Vec<Made>, Revision) + Send + Sync)) -> Self {
        Self {
            abreast: true,
            made: Some(made),
            ..self
        }
    }

    /// Nothing is done once the owner's intent is another one: its end was taken back.
    pub(crate) fn while_intent_is_the_same(self) -> Self {
        Self {
            same_intent: true,
            ..self
        }
    }

    /// Enters into this ledger what takes healthy pods away. None: nothing may be.
    pub(crate) fn with_ledger(self, ledger: Option<Ledger>) -> Self {
        let books = ledger.map_or(Books::Closed, |ledger| Books::Open(Box::new(ledger)));
        Self { books, ..self }
    }

    /// The step takes a healthy pod away.
    fn disrupts(&self, step: &Step) -> bool {
        match step {
            Step::Delete { pod, .. } => is_ready(pod),
            // Other labels are no other spec.
            Step::Update { pod, .. } => is_ready(pod) && !self.workload.wants_spec(&pod.spec),
            _ => false,
        }
    }

    /// What of the ledger goes into a commit of these steps: those that it does not allow are
    /// taken out. Returns the ledger as it is after the commit, and whether it is only made.
    fn enter(&self, books: &Books, steps: &mut Vec<Step>) -> (Option<Box<Ledger>>, bool) {
        let is_wanted = steps.iter().any(|step| self.disrupts(step));
        if !is_wanted {
            return (None, false);
        }
        let ledger = match books {
            Books::None => return (None, false),
            Books::Closed => None,
            Books::Open(ledger) => Some(ledger),
        };
        let Some(ledger) = ledger.filter(|ledger| !ledger.is_missing()) else {
            steps.retain(|step| !self.disrupts(step));
            return (ledger.cloned(), ledger.is_some());
        };
        let mut ledger = ledger.clone();
        let by = self.workload.title();
        let now = self.context.environment().now();
        let view = self.context.view();
        steps.retain(|step| {
            if !self.disrupts(step) {
                return true;
            }
            let entered = match step {
                Step::Delete { pod, .. } => ledger.delete(pod, &by, now),
                Step::Update { pod, .. } => {
                    let spec = self.workload.brought(pod).spec;
                    ledger.replace(view, pod, &spec, &by, now)
                }
                _ => Ok(()),
            };
            entered.is_ok()
        });
        (Some(ledger), false)
    }

    /// Carries out the steps, and reports also when there are none.
    ///
    /// A node that was changed since it was seen costs only the steps on it: the others are
    /// committed, and the run ends with the conflict, so that it is repeated on a newer view.
    pub(crate) async fn carry_out(mut self, steps: Vec<Step>) -> Result<Carried, Unfinished> {
        let context = self.context;
        let mut books = std::mem::replace(&mut self.books, Books::None);
        let mut carried = Carried::default();
        let capabilities = context.capabilities();
        let size = batch(&capabilities, self.workload, &steps);
        let compares = capabilities.limits.max_compares;
        let room = (size, compares.saturating_sub(OWN_OPERATIONS));
        let mut guard = Guard::new(context.view().revision_of::<Pod>(), &capabilities);
        if self.goes_abreast(&steps, size) {
            return self.carry_out_abreast(&steps, room, guard).await;
        }
        let mut done = Done::default();
        let mut lost = None;
        let mut rest = steps.as_slice();
        let clock = context.environment();
        let until = clock.monotonic() + PLAN_LASTS;
        let mut round = 0;
        let mut next: Vec<Step> = take_some(&mut rest, room, &guard);
        let mut ready: Option<Draft<'_>> = None;
        loop {
            let before = done;
            let (ledger, made) = self.enter(&books, &mut next);
            let draft = match ready.take() {
                Some(draft) => draft,
                None => self.draft(&next, &guard)?,
            };
            let entry = ledger.as_deref().map(|ledger| (ledger, made));
            let goes_on = round + 1 < ROUNDS || clock.monotonic() < until;
            let mut following = None;
            let commit = self.commit(draft, &next, round, &mut done, entry);
            // While it is on its way, the next one is written.
            let ahead = async {
                if goes_on && self.may_be_ahead(&next, rest, room.0) {
                    let mut left = rest;
                    let steps = take_some(&mut left, room, &guard);
                    let draft = self.draft(&steps, &guard);
                    following = Some((steps, left, draft));
                }
            };
            let (outcome, ()) = join(commit, ahead).await;
            match outcome? {
                Outcome::Done(revision) => {
                    guard.put(next.iter().map(Step::touches), revision);
                    carried.again |= made;
                    books = match (books, ledger) {
                        // It is decided on again when the view shows it.
                        (Books::Open(_), Some(_)) if made => Books::Closed,
                        (Books::Open(_), Some(mut ledger)) => {
                            ledger.written(revision);
                            Books::Open(ledger)
                        }
                        (books, _) => books,
                    };
                }
                Outcome::Moved(nodes) => {
                    done = before;
                    // Each time fewer are left.
                    next.retain(|step| !nodes.iter().any(|node| node == step.touches()));
                    lost = Some(conflict(context));
                    if !next.is_empty() {
                        continue;
                    }
                }
            }
            round += 1;
            if rest.is_empty() || !goes_on {
                break;
            }
            match following {
                Some((steps, left, draft)) => {
                    (next, rest, ready) = (steps, left, Some(draft?));
                }
                None => next = take_some(&mut rest, room, &guard),
            }
        }
        lost.map_or(Ok(carried), |error| Err(error.into()))
    }

    /// The steps behind `these` can be written before it is known what came of these: they are
    /// new pods on other nodes.
    fn may_be_ahead(&self, these: &[Step], behind: &[Step], most: usize) -> bool {
        let behind = &behind[..behind.len().min(most)];
        if behind.is_empty() || !these.iter().chain(behind).all(Step::is_new) {
            return false;
        }
        let nodes: HashSet<&str> = these.iter().map(Step::touches).collect();
        !behind.iter().any(|step| nodes.contains(step.touches()))
    }

    /// What steps write, without the owner's report.
    fn draft(&self, steps: &[Step], guard: &Guard) -> Result<Draft<'w>, Unfinished> {
        let mut draft = Draft {
            changes: self.context.changes(),
            notes: Vec::new(),
            made: Vec::new(),
        };
        let mut last = ("", None);
        for step in steps {
            let as_seen = step.guarded().and_then(|node| {
                if node != last.0 {
                    last = (node, guard.compare(node));
                }
                last.1.clone()
            });
            self.take(step, as_seen, &mut draft)?;
        }
        Ok(draft)
    }

    async fn commit(
        &self,
        draft: Draft<'_>,
        steps: &[Step],
        round: usize,
        done: &mut Done,
        ledger: Option<(&Ledger, bool)>,
    ) -> Result<Outcome, Unfinished> {
        let context = self.context;
        let Draft {
            mut changes,
            mut notes,
            made,
        } = draft;
        steps.iter().for_each(|step| done.count(step));
        if round > 0 || self.same_intent {
            // The view is not as new as the last commit: whoever changed their mind is heard.
            require_same_intent(context, &mut changes);
        }
        if round > 0 {
            let message = format!("{} more pods after that", steps.len());
            notes = vec![("Continued", message)];
        }
        match ledger {
            Some((ledger, true)) => ledger.establish(&mut changes),
            Some((ledger, false)) => ledger.write(&mut changes),
            None => Ok(()),
        }
        .map_err(ReconcileError::from)?;
        (changes.report::<K>(&(self.status)(*done))).map_err(ReconcileError::from)?;
        let at = match changes.commit().await {
            Ok(revision) => revision,
            Err(error) => return moved(error),
        };
        self.tell_made(made, at);
        for (reason, message) in notes {
            let message = format!("{message}: {}", self.counts);
            context.event(EventType::Normal, reason, message);
        }
        Ok(Outcome::Done(at))
    }

    fn tell_made(&self, made: Vec<Made>, at: Revision) {
        if let Some(tell) = self.made.filter(|_| !made.is_empty()) {
            tell(made, at);
        }
    }

    /// Adds a step to a draft, and says what it is.
    fn take(
        &self,
        step: &Step,
        as_seen: Option<Compare>,
        draft: &mut Draft<'_>,
    ) -> Result<(), ReconcileError> {
        let workload = self.workload;
        let Draft {
            changes,
            notes,
            made,
        } = draft;
        let note = match step {
            Step::Create { node } => {
                let pod = workload.new_pod(node, self.context);
                let metadata = match as_seen {
                    Some(as_seen) => changes.create_in(as_seen, &pod)?,
                    None => changes.create(&pod)?.metadata,
                };
                if self.made.is_some() {
                    made.push(Made {
                        key: Arc::new(pod.key()?),
                        created: created_at(&metadata),
                        uid: metadata.uid,
                    });
                }
                let name = &pod.metadata.name;
                ("Created", format!("created pod {name} on node {node}"))
            }
            Step::Delete { pod, why } => {
                let mut options = DeleteOptions::default();
                options.uid = Some(pod.metadata.uid.clone());
                options.propagation = Some(Propagation::Cascade);
                options.reason = Some(format!(
                    "{} {}: {why}",
                    workload.kind, workload.metadata.name
                ));
                changes.delete(&pod.key()?, &options)?;
                let name = &pod.metadata.name;
                ("Deleted", format!("deleted pod {name}, {why}"))
            }
            Step::Update { pod, .. } => {
                as_seen.into_iter().for_each(|it| changes.require(it));
                changes.update(&workload.brought(pod))?;
                let name = &pod.metadata.name;
                ("Updated", format!("updated pod {name} in place"))
            }
            Step::Adopt { pod } => {
                changes.update(&workload.adopted(pod))?;
                let name = &pod.metadata.name;
                (
                    "Adopted",
                    format!("took over pod {name}, which had no owner"),
                )
            }
            Step::Orphan { pod } => {
                changes.update(&workload.orphaned(pod))?;
                let name = &pod.metadata.name;
                (
                    "Orphaned",
                    format!("pod {name} stays and has no owner any more"),
                )
            }
        };
        notes.push(note);
        Ok(())
    }
}

/// What one commit is to write.
struct Draft<'w> {
    changes: Changes<'w>,
    /// What is said when it happened.
    notes: Vec<(&'static str, String)>,
    /// The new pods in it, for who is told of them.
    made: Vec<Made>,
}

/// The next steps that fit into one commit: at most `most`, with so many compares.
fn take_some(rest: &mut &[Step], (most, compares): (usize, usize), guard: &Guard) -> Vec<Step> {
    let mut left = compares;
    let mut nodes = HashSet::new();
    let mut count: usize = 0;
    for step in rest.iter().take(most) {
        let needed = match step {
            Step::Create { node } => {
                // Of each node one, and where that says too little that there is no such pod.
                let group = usize::from(guard.works() && nodes.insert(node.as_str()));
                group + if guard.shows_absence(node) { 0 } else { 2 }
            }
            _ => POD_OPERATIONS - 1,
        };
        if needed > left {
            break;
        }
        left -= needed;
        count += 1;
    }
    // New pods of one node stay together, so that commits are about different nodes.
    if let (Some(Step::Create { node }), Some(Step::Create { node: next })) = (
        count.checked_sub(1).map(|last| &rest[last]),
        rest.get(count),
    ) && node == next
    {
        let is_apart = |step: &Step| !step.is_new() || step.touches() != node;
        let whole = rest[..count].iter().rposition(is_apart);
        count = whole.map_or(count, |last| last + 1);
    }
    // One always may: the store says if it is too much.
    let (some, others) = rest.split_at(count.max(1).min(rest.len()));
    *rest = others;
    some.to_vec()
}

/// Work that did not come to its end.
pub(crate) struct Unfinished {
    pub(crate) error: ReconcileError,
    /// What a failsafe says that holds it back.
    pub(crate) held: Option<String>,
}

impl From<ReconcileError> for Unfinished {
    fn from(error: ReconcileError) -> Self {
        Self { error, held: None }
    }
}

enum Outcome {
    Done(Revision),
    /// Pods of these nodes changed since they were seen; nothing was written.
    Moved(Vec<String>),
}

/// Finds the nodes in a conflict; every other error is passed on.
fn moved(error: CommitError) -> Result<Outcome, Unfinished> {
    let failed = match &error {
        CommitError::Conflict { failed, .. } => failed,
        CommitError::Held { why, .. } => {
            return Err(Unfinished {
                held: Some(why.clone()),
                error: error.into(),
            });
        }
        _ => return Err(ReconcileError::from(error).into()),
    };
    let nodes = failed
        .iter()
        .map(|compare| Guard::node(compare).map(ToOwned::to_owned));
    match nodes.collect::<Option<Vec<String>>>() {
        Some(nodes) if !nodes.is_empty() => Ok(Outcome::Moved(nodes)),
        _ => Err(ReconcileError::from(error).into()),
    }
}

fn conflict(context: &Context) -> ReconcileError {
    CommitError::Conflict {
        key: context.key().clone(),
        failed: Vec::new(),
    }
    .into()
}

/// A change of the owner's own spec ends what was planned for the old one.
pub(crate) fn require_same_intent(context: &Context, changes: &mut Changes<'_>) {
    if let Some(intent) = context.joined().intent {
        let key = context.key().store_key(Tree::Intent);
        changes.require(Compare::Revision(key, intent.modified));
    }
}
