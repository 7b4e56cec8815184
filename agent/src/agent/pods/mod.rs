//! The workers of a node, by pod.
//!
//! [`reconcile`] gives them their orders from the store, [`told`] keeps what they tell until the
//! store has it. Not every order is given: [`waiting`] holds pods back that may not be begun, and
//! [`retire`] ends them all when the node was given up.

mod reconcile;
mod retire;
mod told;
mod waiting;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use platctrl_framework::controller::Trigger;
use platctrl_framework::model::{KindDefinition, Uid};
use platctrl_kinds::Pod;
use serde_json::Value;

pub(super) use self::told::Told;
use crate::files::FileError;
use crate::host::Host;
use crate::name::PodName;
use crate::plan::Order;
use crate::report::{Observer, Report};
use crate::state::{Found, PodRecord};
use crate::worker::{Control, Worker};

/// The pods of a node.
#[derive(Debug)]
pub(super) struct Pods {
    host: Arc<Host>,
    told: Arc<Told>,
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
        let told = Arc::new(Told::new(host.node.clone()));
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
        self.told.trigger()
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
}
