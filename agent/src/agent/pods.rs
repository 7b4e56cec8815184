//! The workers of a node, by pod: their orders from the store, and what they told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use platctrl_framework::controller::{Absent, Action, Context, ReconcileError, Trigger};
use platctrl_framework::model::{
    Condition, ConditionStatus, Conditions, Digest, Intent, KindDefinition, Object, ObjectKey,
    Phase, Resource as _, Status, Tree, Uid, schema,
};
use platctrl_kinds::{Grant, Pod, PodPhase, PodSpec, PodStatus, condition};
use serde_json::Value;
use tokio::sync::Notify;

use super::node::Fence;
use super::waiting;
use crate::files::FileError;
use crate::host::Host;
use crate::name::PodName;
use crate::plan::Order;
use crate::report::{Observer, PodEvent, Report};
use crate::state::{Found, PodRecord};
use crate::version::{Desired, Tombstone};
use crate::worker::{Control, Worker};

/// Events of one pod that wait to be recorded; of more, the oldest are lost.
const EVENTS: usize = 64;
/// The reason in the status of pods that ended because their node was given up.
const NODE_RETIRED: &str = "NodeRetired";

#[derive(Debug, Default)]
pub(super) struct Known {
    worker: Option<Worker>,
    /// Whose programs and files are here.
    occupant: Uid,
    /// What was wanted last.
    wanted: Option<Box<Desired>>,
    report: Option<Report>,
    events: Vec<PodEvent>,
}

impl Known {
    /// Somebody looks after it.
    fn works(&self) -> bool {
        let worker = self.worker.as_ref();
        worker.is_some_and(|worker| !worker.is_finished())
    }
}

/// Hears the workers.
#[derive(Debug)]
pub(super) struct Told {
    node: String,
    trigger: Trigger,
    known: Mutex<BTreeMap<PodName, Known>>,
    /// Something was told.
    news: Notify,
}

impl Told {
    pub(super) fn reports(&self) -> Vec<Report> {
        self.known()
            .values()
            .filter_map(|known| known.report.clone())
            .collect()
    }

    /// Waits until something is told that was not when this was last called.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn known(&self) -> MutexGuard<'_, BTreeMap<PodName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, name: &PodName) -> Option<ObjectKey> {
        ObjectKey::on_node(
            Pod::GROUP,
            Pod::PLURAL,
            &self.node,
            name.namespace(),
            name.name(),
        )
        .ok()
    }

    fn fire(&self, name: &PodName, reason: &str) {
        if let Some(key) = self.key(name) {
            self.trigger.fire(key, reason);
        }
    }
}

impl Observer for Told {
    fn report(&self, report: Report) {
        let name = report.name.clone();
        {
            let mut known = self.known();
            let pod = known.entry(name.clone()).or_default();
            pod.occupant = if report.phase == PodPhase::Gone {
                Uid::default()
            } else {
                report.uid.clone()
            };
            pod.report = Some(report);
        }
        self.news.notify_one();
        self.fire(&name, "the pod's state on the node changed");
    }

    fn event(&self, event: PodEvent) {
        let name = event.name.clone();
        {
            let mut known = self.known();
            let events = &mut known.entry(name.clone()).or_default().events;
            if events.len() == EVENTS {
                events.remove(0);
            }
            events.push(event);
        }
        self.fire(&name, "something happened to the pod on the node");
    }
}

/// The pods of a node.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) host: Arc<Host>,
    pub(super) told: Arc<Told>,
    /// Everything here is being ended: no orders until that is done.
    retiring: AtomicBool,
    /// What was ended for that reason.
    retired: Mutex<BTreeSet<Uid>>,
    /// The schema of a pod's spec: what this agent knows of it.
    schema: Value,
}

impl Pods {
    /// Starts a worker for each pod that is on the node. Without an order they keep running what
    /// runs.
    pub(super) fn start(host: Arc<Host>) -> Result<Arc<Self>, FileError> {
        let schema = KindDefinition::of::<Pod>().schema;
        let schema = schema
            .pointer("/properties/spec")
            .cloned()
            .unwrap_or(Value::Null);
        let told = Arc::new(Told {
            node: host.node.clone(),
            trigger: Trigger::new(),
            known: Mutex::default(),
            news: Notify::new(),
        });
        let pods = Arc::new(Self {
            host,
            told,
            schema,
            retiring: AtomicBool::new(false),
            retired: Mutex::default(),
        });
        for name in pods.host.layout.pods()? {
            let paths = pods.host.layout.pod(&name);
            // Whose it is has to be known before anything of that name is claimed.
            if let Found::Whole(record) = PodRecord::read(&name, &paths.record(), &[])?
                && !record.is_blank()
            {
                pods.told.known().entry(name.clone()).or_default().occupant = record.uid;
            }
            pods.order(&name, Order::Unknown);
        }
        Ok(pods)
    }

    pub(super) fn trigger(&self) -> &Trigger {
        &self.told.trigger
    }

    /// What is told, for as long as somebody wants to know; it keeps nothing else.
    pub(super) fn told(&self) -> Arc<Told> {
        Arc::clone(&self.told)
    }

    pub(super) fn count(&self) -> u64 {
        self.told
            .known()
            .values()
            .filter(|known| known.worker.is_some())
            .count() as u64
    }

    /// Makes every pod be looked at: also those of which the store knows nothing.
    pub(super) fn wake_all(&self) {
        let names: Vec<_> = self.told.known().keys().cloned().collect();
        for name in names {
            self.told.fire(&name, "the agent started");
        }
    }

    /// From now on nothing is begun or changed here. Returns what is here, or was about to be.
    pub(super) fn stop_taking_orders(&self) -> Vec<Uid> {
        let known = self.told.known();
        self.retiring.store(true, Ordering::Release);
        let here = known.values().filter_map(|pod| match &pod.wanted {
            _ if !pod.occupant.is_empty() => Some(pod.occupant.clone()),
            Some(wanted) if pod.works() => Some(wanted.uid.clone()),
            _ => None,
        });
        here.collect()
    }

    /// What was ended because the node was given up, and is never begun again.
    pub(super) fn set_retired(&self, pods: BTreeSet<Uid>) {
        *self.retired.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    /// Ends all that was started under an incarnation that was given up.
    pub(super) fn retire(&self) {
        let occupied: Vec<_> = {
            let known = self.told.known();
            let working = known.iter().filter(|(_, pod)| pod.works());
            working
                .map(|(name, pod)| (name.clone(), pod.wanted.clone()))
                .collect()
        };
        for (name, wanted) in occupied {
            let paths = self.host.layout.pod(&name);
            let record = match PodRecord::read(&name, &paths.record(), &[]) {
                Ok(Found::Whole(record)) => Some(record),
                Ok(_) => None,
                Err(error) => {
                    tracing::error!(pod = %name, %error, "cannot read what to stop");
                    continue;
                }
            };
            let on_disk = record.and_then(|record| {
                let uid = record.uid;
                record.last.filter(|last| last.uid == uid)
            });
            // What is about to be begun has left nothing on disk yet.
            let Some(mut last) = on_disk.or(wanted.map(|wanted| *wanted)) else {
                continue;
            };
            last.tombstone = Some(Tombstone {
                grace: None,
                by: "node retirement".into(),
                reason: Some("the node was given up and its pods were replaced".into()),
            });
            self.order(&name, Order::Want(Box::new(last)));
        }
    }

    /// Whether nothing is left of what was to be ended; from then on orders are taken again.
    pub(super) fn has_retired(&self) -> bool {
        let empty = self.is_empty();
        if empty {
            self.retiring.store(false, Ordering::Release);
        }
        empty
    }

    fn check_not_retiring(&self) -> Result<(), ReconcileError> {
        if self.retiring.load(Ordering::Acquire) {
            let why = "the node's pods of an older incarnation are being stopped";
            return Err(ReconcileError::retry_after(Duration::from_secs(1), why));
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        let nothing = |pod: &Known| pod.occupant.is_empty() && pod.wanted.is_none();
        let known = self.told.known();
        known.values().all(|pod| nothing(pod) || !pod.works())
    }

    /// Ends all workers; programs keep running.
    pub(super) async fn leave(&self) {
        let workers: Vec<_> = {
            let mut known = self.told.known();
            known
                .values_mut()
                .filter_map(|known| known.worker.take())
                .collect()
        };
        for worker in workers {
            worker.leave().await;
        }
    }

    pub(super) fn order(&self, name: &PodName, order: Order) {
        let mut known = self.told.known();
        if let Order::Want(wanted) = &order
            && wanted.tombstone.is_none()
            && self.retiring.load(Ordering::Acquire)
        {
            // Decided on before everything here was to end.
            return;
        }
        let pod = known.entry(name.clone()).or_default();
        pod.wanted = match &order {
            Order::Want(wanted) => Some(wanted.clone()),
            Order::Missing | Order::Unknown => pod.wanted.take(),
        };
        match &pod.worker {
            Some(worker) if !worker.is_finished() => worker.order(order),
            _ => {
                let observer = Arc::clone(&self.told) as Arc<dyn Observer>;
                let host = Arc::clone(&self.host);
                pod.worker = Some(Worker::spawn(host, observer, name.clone(), order));
            }
        }
    }

    /// Says something to a pod's worker. False when there is none.
    pub(super) fn control(&self, name: &PodName, word: Control) -> bool {
        let known = self.told.known();
        let worker = known.get(name).and_then(|pod| pod.worker.as_ref());
        let worker = worker.filter(|worker| !worker.is_finished());
        if let Some(worker) = worker {
            worker.control(word);
        }
        worker.is_some()
    }

    /// Passes on that the restart which the pod asks for is granted.
    fn pass_grant(&self, name: &PodName, uid: &Uid, context: &Context) {
        let Some((value, _)) = context.view().record(context.key(), Tree::Grant) else {
            return;
        };
        match serde_json::from_slice::<Grant>(&value) {
            // One for an earlier pod of the name is nobody's; which request it is for, the worker
            // looks at.
            Ok(grant) if grant.uid == *uid && !grant.request.is_empty() => {
                let request = grant.request;
                self.control(name, Control::Grant { request });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(pod = %name, %error, "a grant cannot be read"),
        }
    }

    /// Another pod of this name has its programs here, and nobody ordered its end.
    fn is_taken(&self, name: &PodName, uid: &Uid) -> bool {
        let known = self.told.known();
        known
            .get(name)
            .is_some_and(|pod| !pod.occupant.is_empty() && pod.occupant != *uid)
    }

    /// Nothing of a pod of this name is here.
    pub(super) fn is_new(&self, name: &PodName) -> bool {
        let known = self.told.known();
        known.get(name).is_none_or(|pod| pod.worker.is_none())
    }

    /// The report on this uid, if there is one.
    pub(super) fn report_on(&self, name: &PodName, uid: &Uid) -> Option<Report> {
        let known = self.told.known();
        known
            .get(name)?
            .report
            .clone()
            .filter(|report| report.uid == *uid)
    }

    /// It was ended because the node was given up.
    fn was_retired(&self, uid: &Uid) -> bool {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.contains(uid)
    }

    /// What is told of such a pod.
    fn gone_for_good(&self, name: &PodName, desired: &Desired) -> Report {
        let message = "the node was given up and what ran on it was ended";
        let told = self.report_on(name, &desired.uid);
        let mut ready = Condition::new(
            condition::READY,
            ConditionStatus::False,
            NODE_RETIRED,
            message,
        );
        ready.observed_generation = desired.generation;
        Report {
            name: name.clone(),
            uid: desired.uid.clone(),
            observed_generation: desired.generation,
            observed_spec: Some(desired.digest),
            phase: PodPhase::Gone,
            conditions: vec![ready],
            status: PodStatus {
                exits: told.map(|told| told.status.exits).unwrap_or_default(),
                reason: NODE_RETIRED.to_owned(),
                message: message.to_owned(),
                node_name: self.host.node.clone(),
                ..PodStatus::default()
            },
        }
    }

    pub(super) fn record_events(&self, name: &PodName, context: &Context) {
        let events = {
            let mut known = self.told.known();
            known
                .get_mut(name)
                .map(|pod| std::mem::take(&mut pod.events))
                .unwrap_or_default()
        };
        for event in events {
            context.event(event.event_type, event.reason, event.message);
        }
    }

    /// Gives the worker its order and the store the worker's report.
    pub(super) async fn reconcile(
        &self,
        object: &Object<Pod>,
        context: &Context,
        fence: &Fence,
    ) -> Result<Action, ReconcileError> {
        let Some((name, intent)) =
            name_of(context.key()).and_then(|name| Some((name, context.joined().intent?.value)))
        else {
            return Ok(Action::await_change());
        };
        self.check_not_retiring()?;
        let desired = self.desired(&name, object, &intent);
        let ends = desired.tombstone.is_some();
        let uid = desired.uid.clone();
        if context.is_frozen() {
            // What runs goes on and is reported; nothing new is begun, changed or ended.
            self.record_events(&name, context);
            if let Some(report) = self.report_on(&name, &uid) {
                self.publish(context, &report, fence).await?;
            }
            return Ok(Action::await_change());
        }
        if self.is_taken(&name, &uid) {
            // Held by the worker. The reality is the other's, and stays.
            self.order(&name, Order::Want(Box::new(desired)));
            self.record_events(&name, context);
            return Ok(Action::await_change());
        }
        let is_told = is_gone(context);
        if !ends && (is_told || self.was_retired(&uid)) {
            // Whoever heard of its end has perhaps made another one: it is not begun again,
            // whatever its intent says.
            self.record_events(&name, context);
            if !is_told {
                let report = self.gone_for_good(&name, &desired);
                self.publish(context, &report, fence).await?;
            }
            return Ok(Action::await_change());
        }
        let taken = waiting::name_taken(context, &uid);
        if !ends && let Some(why) = self.may_not_begin(&name, &desired, taken.as_ref()) {
            return self.hold_back(&name, &desired, &why, context, fence).await;
        }
        if !ends {
            context.claim().await?;
        }
        let gone = |report: &Report| report.phase == PodPhase::Gone;
        let report = self.report_on(&name, &uid);
        // What is gone is not looked for again.
        if !(ends && report.as_ref().is_some_and(gone)) {
            self.order(&name, Order::Want(Box::new(desired)));
        }
        self.record_events(&name, context);
        self.pass_grant(&name, &uid, context);
        if let Some(mut report) = report {
            if let Some(why) = taken.filter(|_| !ends) {
                waiting::hold(&mut report, &why);
            }
            self.publish(context, &report, fence).await?;
        }
        Ok(Action::await_change())
    }

    /// Somebody's record is missing: what runs keeps running and says so.
    pub(super) async fn missing(
        &self,
        absent: &Absent<Pod>,
        context: &Context,
        fence: &Fence,
    ) -> Result<Action, ReconcileError> {
        let Some(name) = name_of(&absent.key) else {
            return Ok(Action::await_change());
        };
        self.check_not_retiring()?;
        let (lives, report) = {
            let mut known = self.told.known();
            let Some(pod) = known.get(&name) else {
                return Ok(Action::await_change());
            };
            let lives = pod
                .worker
                .as_ref()
                .is_some_and(|worker| !worker.is_finished());
            let report = pod.report.clone();
            if !lives {
                // It was ended in order, and its records are removed.
                known.remove(&name);
            }
            (lives, report)
        };
        if !lives {
            return Ok(Action::await_change());
        }
        if !context.is_frozen() {
            self.order(&name, Order::Missing);
        }
        self.record_events(&name, context);
        if let (Some(report), Some(reality)) = (report, &absent.reality)
            && reality.value.metadata.uid == report.uid
        {
            self.publish(context, &report, fence).await?;
        }
        Ok(Action::await_change())
    }

    pub(super) async fn publish(
        &self,
        context: &Context,
        report: &Report,
        fence: &Fence,
    ) -> Result<(), ReconcileError> {
        let Some(compare) = fence.compare() else {
            // The name is not ours yet, or not any more.
            return Err(ReconcileError::retry_after(
                Duration::from_secs(1),
                "the node's own record is not written yet",
            ));
        };
        let joined = context.joined();
        let stored = joined
            .reality
            .map(|reality| reality.value.status)
            .unwrap_or_default();
        let now = context.environment().now();
        let status = status(report, &stored.conditions, now);
        let mut changes = context.changes();
        changes.report::<Pod>(&status)?;
        if !changes.batch().is_empty() {
            changes.require(compare);
            changes.commit().await?;
        }
        Ok(())
    }

    /// The spec of this digest, where it is known already.
    fn known_spec(&self, name: &PodName, digest: Digest) -> Option<Arc<PodSpec>> {
        let known = self.told.known();
        let wanted = known.get(name)?.wanted.as_ref()?;
        (wanted.digest == digest).then(|| Arc::clone(&wanted.spec))
    }

    fn desired(&self, name: &PodName, object: &Object<Pod>, intent: &Intent) -> Desired {
        let metadata = &intent.metadata;
        let tombstone = metadata
            .deletion
            .as_ref()
            .filter(|it| it.uid == metadata.uid);
        let unknown = schema::unknown_fields(&intent.spec, &self.schema, "spec");
        let digest = intent.spec_digest();
        let spec = self.known_spec(name, digest);
        Desired {
            uid: metadata.uid.clone(),
            generation: metadata.generation,
            digest,
            spec: spec.unwrap_or_else(|| Arc::new(object.spec.clone())),
            labels: metadata.labels.clone(),
            tombstone: tombstone.map(|deletion| Tombstone {
                grace: deletion
                    .grace_seconds
                    .map(|it| Duration::from_secs(u64::from(it))),
                by: deletion.by.clone(),
                reason: deletion.reason.clone(),
            }),
            unsupported: unknown.into_iter().next(),
        }
    }
}

/// The store says that nothing of the pod is left.
fn is_gone(context: &Context) -> bool {
    let joined = context.joined();
    let told = joined.own_reality();
    told.is_some_and(|it| it.value.status.phase == Phase::GONE)
}

fn name_of(key: &ObjectKey) -> Option<PodName> {
    PodName::new(key.namespace()?, key.name()).ok()
}

/// The status that a report makes of what is stored: times of conditions move with their status.
fn status(report: &Report, stored: &Conditions, now: jiff::Timestamp) -> Status<PodStatus> {
    let mut conditions = stored.clone();
    for kind in ["Ready", "Installed", "Held"] {
        if report.condition(kind).is_none() {
            conditions.remove(kind);
        }
    }
    for condition in &report.conditions {
        conditions.set(condition.clone(), condition.observed_generation, now);
    }
    // Nothing but a generation or a text may have changed: then the stored time stays.
    Status {
        phase: report.phase.into(),
        observed_generation: Some(report.observed_generation),
        observed_spec: report.observed_spec,
        conditions,
        detail: report.status.clone(),
    }
}
