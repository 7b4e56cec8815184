//! From the store to the worker and back: a pod's order, and what its worker reports.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::client::Batch;
use platctrl_framework::controller::{Absent, Action, Context, ReconcileError};
use platctrl_framework::model::{
    Conditions, Digest, Intent, Object, ObjectKey, Phase, Status, Tree, Uid, schema,
};
use platctrl_framework::store::Compare;
use platctrl_kinds::{Grant, Pod, PodPhase, PodSpec, PodStatus};

use super::{Pods, waiting};
use crate::agent::node::Fence;
use crate::name::PodName;
use crate::plan::Order;
use crate::report::Report;
use crate::version::{Desired, Tombstone};
use crate::worker::Control;

impl Pods {
    /// Gives the worker its order and the store the worker's report.
    pub(in crate::agent) async fn reconcile(
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
        let is_told = is_gone(context);
        if context.is_frozen() {
            // What runs goes on and is reported; nothing new is begun, changed or ended. Of what is
            // reported as gone, by whoever gave the node up, nothing else is said.
            self.record_events(&name, context);
            if let Some(report) = self.report_on(&name, &uid).filter(|_| !is_told) {
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
            self.claim(&name, context, fence).await?;
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
    pub(in crate::agent) async fn missing(
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

    /// Makes the store remember that this agent looks after the pod. What is begun here is so only
    /// while the node's record is this agent's: of two agents of one name, one begins it.
    async fn claim(
        &self,
        name: &PodName,
        context: &Context,
        fence: &Fence,
    ) -> Result<(), ReconcileError> {
        if self.is_new(name) {
            let mut batch = Batch::new();
            // Also where it says so already: another agent may have.
            batch.bump(&context.joined())?;
            batch.require(own(fence)?);
            context.commit(batch).await?;
        }
        context.claim().await?;
        Ok(())
    }

    pub(super) async fn publish(
        &self,
        context: &Context,
        report: &Report,
        fence: &Fence,
    ) -> Result<(), ReconcileError> {
        let compare = own(fence)?;
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

/// The compare that the node's record is this agent's.
fn own(fence: &Fence) -> Result<Compare, ReconcileError> {
    // The name is not ours yet, or not any more.
    let why = "the node's own record is not written yet";
    fence
        .compare()
        .ok_or_else(|| ReconcileError::retry_after(Duration::from_secs(1), why))
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
