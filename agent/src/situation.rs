//! What is so for all pods of a node: who grants restarts, and which pods may be begun.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::name::PodName;

/// Who may grant the restart of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Granter {
    /// Nobody is there to ask: the agent restarts by itself.
    #[default]
    Nobody,
    /// Controllers, through the store.
    Store,
    /// Controllers, and the store is away.
    Away,
}

/// Which pods may be begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    /// All.
    #[default]
    Open,
    /// These alone.
    Only(BTreeSet<String>),
    /// None, and why.
    Shut(String),
}

impl Gate {
    /// Why a pod may not be begun; None: it may.
    #[must_use]
    pub(crate) fn refuses(&self, pod: &PodName) -> Option<String> {
        match self {
            Self::Open => None,
            Self::Only(pods) if pods.contains(&pod.to_string()) => None,
            Self::Only(_) => Some("it is not on the list of those that may be begun now".into()),
            Self::Shut(why) => Some(why.clone()),
        }
    }
}

/// Why a pod is not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// One word in camel case.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// What is so now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Situation {
    /// Who grants restarts.
    pub(crate) granter: Granter,
    /// Which pods may be begun.
    pub(crate) gate: Gate,
    /// Why no further pods are taken in, while none are. Those that are here go on, get their
    /// new versions, and are started again.
    pub(crate) full: Option<String>,
}

/// The situation, and who hears of its changes.
#[derive(Debug)]
pub(crate) struct Circumstances {
    now: watch::Sender<Situation>,
    /// One pod at a time is restarted without a grant.
    pub(crate) unasked: Arc<Semaphore>,
}

impl Default for Circumstances {
    fn default() -> Self {
        Self {
            now: watch::Sender::default(),
            unasked: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Circumstances {
    pub(crate) fn watch(&self) -> watch::Receiver<Situation> {
        self.now.subscribe()
    }

    pub(crate) fn granter(&self, granter: Granter) {
        self.now.send_if_modified(|now| {
            let changed = now.granter != granter;
            now.granter = granter;
            changed
        });
    }

    /// Whether that is news.
    pub(crate) fn gate(&self, gate: Gate) -> bool {
        self.now.send_if_modified(|now| {
            let changed = now.gate != gate;
            now.gate = gate;
            changed
        })
    }

    /// Whether that is news.
    pub(crate) fn full(&self, full: Option<String>) -> bool {
        self.now.send_if_modified(|now| {
            let changed = now.full != full;
            now.full = full;
            changed
        })
    }

    /// Why a pod may not be begun; `new`: nothing of it is here.
    pub(crate) fn refuses(&self, pod: &PodName, new: bool) -> Option<Refusal> {
        let now = self.now.borrow();
        let full = now.full.clone().filter(|_| new);
        let gate = now.gate.refuses(pod).map(|message| ("NotYet", message));
        let (reason, message) = gate.or_else(|| full.map(|message| ("DiskPressure", message)))?;
        Some(Refusal { reason, message })
    }
}
