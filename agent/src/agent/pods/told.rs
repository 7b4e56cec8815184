//! What the workers of a node told, by pod, until the store has it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use platctrl_framework::controller::Trigger;
use platctrl_framework::model::{ObjectKey, Resource as _, Uid};
use platctrl_kinds::{Pod, PodPhase};
use tokio::sync::Notify;

use crate::name::PodName;
use crate::report::{Observer, PodEvent, Report};
use crate::version::Desired;
use crate::worker::Worker;

/// Events of one pod that wait to be recorded; of more, the oldest are lost.
const EVENTS: usize = 64;

/// A pod, as far as it was ordered and told.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) worker: Option<Worker>,
    /// Whose programs and files are here.
    pub(super) occupant: Uid,
    /// What was wanted last.
    pub(super) wanted: Option<Box<Desired>>,
    pub(super) report: Option<Report>,
    pub(super) events: Vec<PodEvent>,
}

impl Known {
    /// Somebody looks after it.
    pub(super) fn works(&self) -> bool {
        let worker = self.worker.as_ref();
        worker.is_some_and(|worker| !worker.is_finished())
    }
}

/// Hears the workers.
#[derive(Debug)]
pub(in crate::agent) struct Told {
    node: String,
    trigger: Trigger,
    known: Mutex<BTreeMap<PodName, Known>>,
    /// Something was told.
    news: Notify,
}

impl Told {
    /// Of the pods of this node, nothing yet.
    pub(super) fn new(node: String) -> Self {
        Self {
            node,
            trigger: Trigger::new(),
            known: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Makes the controller look at a pod of which something is told.
    pub(super) fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    pub(in crate::agent) fn reports(&self) -> Vec<Report> {
        self.known()
            .values()
            .filter_map(|known| known.report.clone())
            .collect()
    }

    /// Waits until something is told that was not when this was last called.
    pub(in crate::agent) async fn news(&self) {
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

    pub(super) fn fire(&self, name: &PodName, reason: &str) {
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
