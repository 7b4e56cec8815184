//! Pods that are not begun, or not yet: their status says why, though no worker has them.
//!
//! A boot gate keeps back what it does not name, a full disk whatever is new here, an older pod of
//! the same name on another node whatever was not started, and a record that is for another node
//! is not carried out at all. What runs goes on in each case.

use platctrl_framework::controller::{Action, Context, ReconcileError};
use platctrl_framework::model::{Condition, ConditionStatus, EventType, Tree, Uid};
use platctrl_kinds::{Grant, PodPhase, PodStatus, condition};

use super::Pods;
use crate::agent::node::Fence;
use crate::name::PodName;
use crate::plan::Order;
use crate::report::Report;
use crate::situation::Refusal;
use crate::version::Desired;

/// Another pod has the name.
const NAME_TAKEN: &str = "NameTaken";

/// What controllers say of another pod that has the name of this one.
pub(super) fn name_taken(context: &Context, uid: &Uid) -> Option<Refusal> {
    let (value, _) = context.view().record(context.key(), Tree::Grant)?;
    // One that cannot be read says nothing, and is told where grants are passed on.
    let grant: Grant = serde_json::from_slice(&value).ok()?;
    let other = grant.name_taken.filter(|_| grant.uid == *uid)?;
    Some(Refusal {
        reason: NAME_TAKEN,
        message: format!(
            "an older pod of this name is on node {} ({}): of two the older one has the name; this one is begun when the other is gone, `platctrl delete --uid` ends either",
            other.node, other.uid
        ),
    })
}

/// Adds that something is not done, unless more is wrong already.
pub(super) fn hold(report: &mut Report, why: &Refusal) {
    if report.condition(condition::HELD).is_some() {
        return;
    }
    let message = why.message.clone();
    let mut held = Condition::new(
        condition::HELD,
        ConditionStatus::True,
        why.reason,
        message.clone(),
    );
    held.observed_generation = report.observed_generation;
    report.conditions.push(held);
    why.reason.clone_into(&mut report.status.reason);
    report.status.message = message;
}

/// Programs of it were started.
fn is_begun(report: &Report) -> bool {
    match report.phase {
        PodPhase::Starting | PodPhase::Running | PodPhase::Stopping | PodPhase::Succeeded => true,
        PodPhase::Failed => !report.status.exits.is_empty(),
        _ => false,
    }
}

impl Pods {
    /// Why a pod is not begun now, if it is not.
    pub(super) fn may_not_begin(
        &self,
        name: &PodName,
        desired: &Desired,
        taken: Option<&Refusal>,
    ) -> Option<Refusal> {
        if let Some(refusal) = self.is_for_another_node(desired) {
            return Some(refusal);
        }
        let report = self.report_on(name, &desired.uid);
        let taken = taken.filter(|_| !report.is_some_and(|it| is_begun(&it)));
        let refused = || self.host.circumstances.refuses(name, self.is_new(name));
        taken.cloned().or_else(refused)
    }

    /// The key of a record says which node it is for, and so does what is in it. Whoever copied one
    /// of another node here meant something else.
    fn is_for_another_node(&self, desired: &Desired) -> Option<Refusal> {
        let node = desired.spec.node_name.as_ref();
        let other = node.filter(|node| **node != self.host.node)?;
        Some(Refusal {
            reason: "Invalid",
            message: format!(
                "its record is among those of node {}, and its spec.nodeName says {other}: it was copied or written by hand, and is not carried out; what runs keeps running",
                self.host.node
            ),
        })
    }

    /// A pod that may not be begun now: what runs of it goes on and is reported.
    pub(super) async fn hold_back(
        &self,
        name: &PodName,
        desired: &Desired,
        why: &Refusal,
        context: &Context,
        fence: &Fence,
    ) -> Result<Action, ReconcileError> {
        // So that it is looked at when more may be begun.
        self.told.known().entry(name.clone()).or_default();
        self.record_events(name, context);
        let report = if self.is_new(name) {
            self.tell_once(why, context);
            Some(self.not_begun(name, desired, why))
        } else {
            if why.reason == NAME_TAKEN {
                // What is being got ready is left there.
                self.order(name, Order::Unknown);
            }
            let report = self.report_on(name, &desired.uid);
            report.map(|mut report| {
                let is_as_wanted = report.observed_spec == Some(desired.digest);
                if !(is_begun(&report) && is_as_wanted) {
                    hold(&mut report, why);
                }
                report
            })
        };
        if let Some(report) = report {
            self.publish(context, &report, fence).await?;
        }
        Ok(Action::await_change())
    }

    /// An event for what the pod's status does not say yet.
    fn tell_once(&self, why: &Refusal, context: &Context) {
        let joined = context.joined();
        let told = joined.own_reality();
        let held = told.and_then(|it| it.value.status.conditions.get(condition::HELD));
        if held.is_some_and(|held| held.reason == why.reason && held.message == why.message) {
            return;
        }
        let (kind, reason) = match why.reason {
            "NotYet" | "DiskPressure" => (EventType::Normal, "NotYet"),
            reason => (EventType::Warning, reason),
        };
        context.event(kind, reason, why.message.clone());
    }

    /// What is told of a pod of which nothing is here.
    fn not_begun(&self, name: &PodName, desired: &Desired, why: &Refusal) -> Report {
        let mut ready = Condition::new(
            condition::READY,
            ConditionStatus::False,
            why.reason,
            why.message.clone(),
        );
        ready.observed_generation = desired.generation;
        let mut report = Report {
            name: name.clone(),
            uid: desired.uid.clone(),
            observed_generation: desired.generation,
            observed_spec: Some(desired.digest),
            phase: PodPhase::Pending,
            conditions: vec![ready],
            status: PodStatus {
                node_name: self.host.node.clone(),
                host_ip: self.host.host_ip.clone(),
                ..PodStatus::default()
            },
        };
        hold(&mut report, why);
        report
    }
}
