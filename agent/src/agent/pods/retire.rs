//! The end of all that was started under an incarnation of the node that was given up.
//!
//! Whoever gave it up has replaced its pods, so nothing of it is begun again here, and until it has
//! ended nothing new is begun beside it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use platctrl_framework::controller::ReconcileError;
use platctrl_framework::model::{Condition, ConditionStatus, Uid};
use platctrl_kinds::{PodPhase, PodStatus, condition};

use super::Pods;
use super::told::Known;
use crate::name::PodName;
use crate::plan::Order;
use crate::report::Report;
use crate::state::{Found, PodRecord};
use crate::version::{Desired, Tombstone};

/// The reason in the status of pods that ended because their node was given up.
const NODE_RETIRED: &str = "NodeRetired";

impl Pods {
    /// From now on nothing is begun or changed here. Returns what is here, or was about to be.
    pub(in crate::agent) fn stop_taking_orders(&self) -> Vec<Uid> {
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
    pub(in crate::agent) fn set_retired(&self, pods: BTreeSet<Uid>) {
        *self.retired.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    /// Ends all that was started under an incarnation that was given up.
    pub(in crate::agent) fn retire(&self) {
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
    pub(in crate::agent) fn has_retired(&self) -> bool {
        let empty = self.is_empty();
        if empty {
            self.retiring.store(false, Ordering::Release);
        }
        empty
    }

    pub(super) fn check_not_retiring(&self) -> Result<(), ReconcileError> {
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

    /// It was ended because the node was given up.
    pub(super) fn was_retired(&self, uid: &Uid) -> bool {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.contains(uid)
    }

    /// What is told of such a pod.
    pub(super) fn gone_for_good(&self, name: &PodName, desired: &Desired) -> Report {
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
}
