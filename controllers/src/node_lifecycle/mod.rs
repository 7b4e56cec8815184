//! The life of nodes: who is not heard of any more, who is being drained, who was given up.
//!
//! Agents beat; this controller judges their silence by its own monotonic clock, and says in a
//! part of the node's status what it makes of it: `Alive` is not true as
//! soon as a node is silent, so that the health of its pods counts for nothing; `Lost` is true
//! when it is silent for so long that its pods may be replaced, unless many are
//! ([`judge`](fn@judge)), so many were lately ([`LossRate`]), or it does its work all the same
//! ([`SecondOpinion`]); `Draining` while its pods are to go elsewhere. Whoever keeps pods acts
//! on these, each within the ledger of its workload.
//!
//! A node that a person has retired (its incarnation was raised) and that is not heard of ends
//! here: its pods get tombstones and are reported as gone, under the compare that its agent has
//! not come back. One that is heard of ends its pods itself; what it says is gone gets its
//! tombstone then.

mod beats;
mod drain;
mod judge;
mod look;
mod losses;
mod names;
mod opinion;
mod restarts;
mod say;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platctrl_framework::cache::View;
use platctrl_framework::client::{Batch, Client, ClientError, DeleteOptions};
use platctrl_framework::controller::{Action, Context, Controller, Fence, ReconcileError};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{
    Condition, ConditionStatus, EventType, Joined, Object, ObjectKey, Phase, Reality,
    RealityMetadata, Resource as _, Status, Tree,
};
use platctrl_framework::store::{Compare, Key, Store, Transaction, Write};
use platctrl_kinds::{Node, Pod, PodPhase, ReplicationController};
use serde_json::Map;

pub use drain::{Drain, Fate, fate};
pub use judge::{Limits, Silence, Silences, Verdict, judge};
pub use losses::{LossRate, Losses, TooFast};
pub use opinion::{Answer, OpenPorts, SecondOpinion};

use crate::nodes::Nodes;
use beats::{Beats, Heard, Listened};
use look::Look;
use say::conditions;

/// Whose share of a node's status this is.
const WRITER: &str = "lifecycle";
/// Its agent was not heard of for so long that its pods may be replaced.
pub const LOST: &str = "Lost";
/// Its pods are being moved away.
pub const DRAINING: &str = "Draining";
/// The reason in the status of pods whose node was retired.
pub const NODE_RETIRED: &str = "NodeRetired";

/// The field of the status that says which beat was the last before the node was given up.
const LOST_AFTER_BEAT: &str = "lostAfterBeat";

/// Time between two looks at the beats.
const LOOK: Duration = Duration::from_secs(5);
/// Pods of a retired node that are ended in one commit.
const BATCH: usize = 6;

type RunResult = Result<Action, ReconcileError>;

/// The controller. It reads beats from `store`, and writes its part there.
#[must_use]
pub fn controller(
    store: Arc<dyn Store>,
    environment: Environment,
    limits: Limits,
) -> Controller<Node> {
    let keeper = Keeper {
        beats: Beats::new(store.clone()),
        client: Client::new(store, environment, "nodelifecycle"),
        limits: Arc::new(limits),
        losses: Arc::default(),
        names: Arc::default(),
        look: Arc::default(),
    };
    let (ended, nodes) = (keeper.clone(), Nodes::default());
    Controller::new("nodelifecycle", move |node, context| {
        let keeper = keeper.clone();
        async move { keeper.reconcile(&node, &context).await }
    })
    .on_delete(move |_, context| {
        let keeper = ended.clone();
        async move { keeper.end(&context).await }
    })
    .watches_heads::<Pod>(|pod, _| {
        let node = pod.key().node();
        node.and_then(crate::ledger::node_key).into_iter().collect()
    })
    // Whether the pods of a drained node go is for their controllers to say.
    .watches::<ReplicationController>(move |_, view| {
        let drained = nodes.drained(view);
        let keys = drained.iter().map(|name| crate::ledger::node_key(name));
        keys.flatten().collect()
    })
}

#[derive(Clone, Debug)]
struct Keeper {
    beats: Beats,
    client: Client,
    limits: Arc<Limits>,
    losses: Arc<Mutex<Losses>>,
    names: Arc<names::Names>,
    look: Arc<Mutex<Option<Arc<Look>>>>,
}

/// A node, and what is made of its silence.
struct Judged {
    verdict: Verdict,
    silent_for: Duration,
    /// The last beat that was heard; None: there never was one.
    beat: Option<Heard>,
    pods: Vec<Arc<Object<Pod>>>,
    drain: Drain,
}

impl Keeper {
    /// What the last look at the beats shows.
    fn look(&self, view: &View, listened: &Listened) -> Arc<Look> {
        let mut last = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_ref().filter(|look| look.is_of(listened)) {
            Some(look) => look.clone(),
            None => {
                let look = Arc::new(Look::new(view, listened, &self.limits));
                last.insert(look).clone()
            }
        }
    }

    /// A node that would be given up: what speaks against it.
    async fn second_thoughts(
        &self,
        node: &Object<Node>,
        context: &Context,
        look: &Look,
        pods: &[Arc<Object<Pod>>],
    ) -> Verdict {
        let limits = &self.limits;
        let several = look.fleet.silent() >= limits.opinion_from;
        if let Some(opinion) = limits.second_opinion.as_ref().filter(|_| several)
            && let Some(seen) = opinion.on(node, pods).await
        {
            return Verdict::Doubted { seen };
        }
        let environment = context.environment();
        let (now, wall) = (environment.monotonic(), environment.now());
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, zone, since) in &look.lost {
            // What the one before has given up counts as well.
            let ago = Duration::try_from(wall.duration_since(*since)).unwrap_or_default();
            if ago < limits.rate.window {
                losses.remember(name, zone, now.saturating_sub(ago));
            }
        }
        let name = &node.metadata.name;
        let zone = look.fleet.get(name).map_or("", |it| it.zone.as_str());
        match losses.give_up(name, zone, now, limits.rate) {
            Ok(()) => Verdict::Lost,
            Err(TooFast { lost, zone }) => Verdict::Paced { lost, zone },
        }
    }

    async fn judged(
        &self,
        node: &Object<Node>,
        context: &Context,
    ) -> Result<Judged, ReconcileError> {
        let name = &node.metadata.name;
        let environment = context.environment();
        let epoch = context.fence().map(Fence::epoch);
        let listened = self.beats.heard(environment, epoch, LOOK).await;
        let listened = listened.map_err(ReconcileError::transient)?;
        let look = self.look(context.view(), &listened);
        let pods = context.view().list::<Pod>().on_node(name).to_vec();
        let mut verdict = judge(&look.fleet, name, &self.limits);
        if verdict == Verdict::Lost && !node.status.conditions.is_true(LOST) {
            verdict = self.second_thoughts(node, context, &look, &pods).await;
        }
        let drain = match node.spec.drain {
            true => Drain::of(context.view(), node, &pods),
            false => Drain::default(),
        };
        Ok(Judged {
            verdict,
            silent_for: (look.fleet.get(name)).map_or(Duration::ZERO, |it| it.silent_for),
            beat: listened.heard.get(name).cloned(),
            pods,
            drain,
        })
    }

    async fn reconcile(&self, node: &Arc<Object<Node>>, context: &Context) -> RunResult {
        let judged = self.judged(node, context).await?;
        let Judged { verdict, pods, .. } = &judged;
        if let Some(message) = self.tell(node, context, &judged).await? {
            let event = match verdict.is_silent() {
                true => EventType::Warning,
                false => EventType::Normal,
            };
            context.event(event, "NodeLifecycle", message);
        }
        if is_retired(node) && verdict.is_silent() {
            self.end_pods(node, context, &judged).await?;
        } else {
            self.bury(context, pods).await?;
        }
        let now = context.environment().now();
        if let Some((batch, pod)) = restarts::grant(context.view(), pods, now)? {
            self.commit(batch.into_transaction(), context).await?;
            let message = format!(
                "pod {pod} may restart: no controller keeps it, and no other such pod of this node is being restarted"
            );
            context.event(EventType::Normal, "RestartGranted", message);
        }
        let (store, view) = (&**self.client.store(), context.view());
        let name = &node.metadata.name;
        let judged = self.names.judge(store, view, name, pods, now).await;
        let judged = judged.map_err(|error| ReconcileError::retry_after(LOOK, error))?;
        if let Some((transaction, message)) = judged {
            self.commit(transaction, context).await?;
            context.event(EventType::Warning, "NameTaken", message);
        }
        Ok(Action::requeue_after(LOOK))
    }

    /// Writes the part of the node's status that is about its life. Returns what is new in it.
    async fn tell(
        &self,
        node: &Object<Node>,
        context: &Context,
        judged: &Judged,
    ) -> Result<Option<String>, ReconcileError> {
        let joined = context.joined();
        let Some(intent) = &joined.intent else {
            return Ok(None);
        };
        let uid = intent.value.metadata.uid.clone();
        let before = joined.parts.get(WRITER);
        let mine = before.filter(|part| part.value.metadata.uid == uid);
        let mut status: Status<Map<String, serde_json::Value>> = mine
            .map(|part| part.value.status.clone())
            .unwrap_or_default();
        let (now, generation) = (context.environment().now(), node.metadata.generation);
        let said = status.clone();
        status.observed_generation = Some(generation);
        match (&judged.verdict, &judged.beat) {
            (Verdict::Lost, Some(beat)) => {
                let digest = beat.digest().to_string();
                status
                    .detail
                    .insert(LOST_AFTER_BEAT.to_owned(), digest.into());
            }
            (Verdict::Lost | Verdict::Open, _) => {}
            _ => drop(status.detail.remove(LOST_AFTER_BEAT)),
        }
        for condition in conditions(node, judged, &self.limits) {
            let old = status.conditions.get(&condition.kind);
            // How long it is silent is no news each time; how far a drain is, is.
            let says_more = matches!(
                condition.kind.as_str(),
                "Progressing" | "Stalled" | DRAINING
            );
            if old.is_none_or(|old| {
                (old.status, &old.reason) != (condition.status, &condition.reason)
                    || says_more && old.message != condition.message
            }) {
                status.conditions.set(condition, generation, now);
            }
        }
        if status == said {
            return Ok(None);
        }
        let part = Reality {
            api_version: Node::api_version(),
            kind: Node::KIND.to_owned(),
            metadata: RealityMetadata {
                name: node.metadata.name.clone(),
                uid,
                ..RealityMetadata::default()
            },
            status,
            other: Map::new(),
        };
        self.write(&joined, &part, context).await?;
        let news = part.status.conditions.iter();
        let news = news.filter(|new| {
            let old = said.conditions.get(&new.kind);
            old.map(|old| old.status) != Some(new.status) && !new.message.is_empty()
        });
        let news: Vec<_> = news.map(|new| new.message.clone()).collect();
        Ok((!news.is_empty()).then(|| news.join("; ")))
    }

    /// The node is to end: nothing more is said of its life.
    async fn end(&self, context: &Context) -> RunResult {
        let joined = context.joined();
        if let Some(part) = joined.parts.get(WRITER)
            && part.value.status.phase != Phase::GONE
        {
            let mut gone = part.value.clone();
            gone.status.phase = Phase::GONE;
            self.write(&joined, &gone, context).await?;
        }
        Ok(Action::await_change())
    }

    async fn write(
        &self,
        joined: &Joined,
        part: &Reality,
        context: &Context,
    ) -> Result<(), ReconcileError> {
        let key = joined.key.part(WRITER).map_err(ReconcileError::terminal)?;
        let intent = joined.key.store_key(Tree::Intent);
        let mut transaction = Transaction::new()
            .require(match joined.parts.get(WRITER) {
                Some(part) => Compare::Revision(key.clone(), part.modified),
                None => Compare::Absent(key.clone()),
            })
            // Not a late word on a node that has gone meanwhile.
            .require(match &joined.intent {
                Some(stored) => Compare::Revision(intent, stored.modified),
                None => Compare::Absent(intent),
            });
        transaction.writes.push(Write::Put {
            key,
            value: serde_json::to_vec(part).map_err(ClientError::from)?.into(),
            lease: None,
        });
        self.commit(transaction, context).await
    }

    async fn commit(
        &self,
        mut transaction: Transaction,
        context: &Context,
    ) -> Result<(), ReconcileError> {
        if let Some(fence) = context.fence() {
            transaction = transaction.require(fence.compare());
        }
        let done = self.client.store().commit(transaction).await;
        // A conflict is news that is on its way.
        done.map(|_| ())
            .map_err(|error| ReconcileError::retry_after(Duration::from_secs(1), error))
    }

    /// Ends the pods of a node that was retired and is not heard of: nobody else will.
    async fn end_pods(
        &self,
        node: &Object<Node>,
        context: &Context,
        judged: &Judged,
    ) -> Result<(), ReconcileError> {
        let left = judged.pods.iter().filter(|pod| !is_gone(pod));
        let left: Vec<_> = left.take(BATCH).collect();
        if left.is_empty() {
            return self.bury(context, &judged.pods).await;
        }
        let mut batch = Batch::new();
        // The agent compares its node's report with each of its own: one that comes back now finds
        // another, and the order to stop what it has.
        batch.bump(&context.joined())?;
        for pod in &left {
            let joined = end(&mut batch, pod, context)?;
            let at = context.environment().now();
            let mut status = pod.status.clone();
            status.phase = PodPhase::Gone.into();
            NODE_RETIRED.clone_into(&mut status.detail.reason);
            status.detail.message = format!(
                "the node was retired as incarnation {} began; an agent that comes back stops it",
                node.spec.incarnation
            );
            let gone = Condition::new("Ready", ConditionStatus::False, NODE_RETIRED, "");
            status.conditions.set(gone, pod.metadata.generation, at);
            batch.report_typed::<Pod>(&joined, &status)?;
        }
        // One that came back a moment ago has reported by now, and takes orders once it has beaten:
        // it was judged by an earlier beat, so this comes to nothing.
        let key = Key::new(format!("x/beat/{}", node.metadata.name));
        let key = key.map_err(ReconcileError::terminal)?;
        let transaction = batch.into_transaction().require(match &judged.beat {
            Some(beat) => Compare::Revision(key, beat.at),
            None => Compare::Absent(key),
        });
        self.commit(transaction, context).await?;
        let message = format!(
            "{} pods of the retired node are reported as gone and may be replaced",
            left.len()
        );
        context.event(EventType::Normal, "Retired", message);
        Ok(())
    }

    /// Pods that their agent has ended because the node was given up, and of which nobody has
    /// ordered the end: it is ordered now, so that their records go and others take their places.
    async fn bury(
        &self,
        context: &Context,
        pods: &[Arc<Object<Pod>>],
    ) -> Result<(), ReconcileError> {
        let dead = pods
            .iter()
            .filter(|pod| is_gone(pod) && !pod.metadata.is_deleted());
        let dead: Vec<_> = dead.take(BATCH).collect();
        if dead.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for pod in &dead {
            end(&mut batch, pod, context)?;
        }
        self.commit(batch.into_transaction(), context).await?;
        let message = format!(
            "{} pods that the retired node has ended may be replaced",
            dead.len()
        );
        context.event(EventType::Normal, "Retired", message);
        Ok(())
    }
}

/// A person gave the node up, and its agent has not begun anew since.
fn is_retired(node: &Object<Node>) -> bool {
    node.spec.incarnation > node.status.detail.incarnation
}

fn is_gone(pod: &Arc<Object<Pod>>) -> bool {
    PodPhase::of(&pod.status.phase) == Some(PodPhase::Gone)
}

/// Adds the tombstone of a pod whose node was retired, and returns what is recorded of it.
fn end(batch: &mut Batch, pod: &Object<Pod>, context: &Context) -> Result<Joined, ReconcileError> {
    let key: ObjectKey = pod.key().map_err(ReconcileError::terminal)?;
    let joined: Joined = (context.view())
        .joined(&key)
        .map_err(ReconcileError::terminal)?;
    let node = pod.spec.node_name.as_deref().unwrap_or_default();
    let mut options = DeleteOptions::default();
    options.uid = Some(pod.metadata.uid.clone());
    options.reason = Some(format!("node {node} was retired"));
    let at = context.environment().now();
    batch.delete(&joined, &options, "nodelifecycle", at)?;
    Ok(joined)
}
