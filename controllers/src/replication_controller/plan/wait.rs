//! What a plan waits for before its next step, in words.

use std::fmt;

/// What the plan waits for before its next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Pods are to be ready before the next one gets the template.
    Ready {
        /// How many are.
        ready: u32,
        /// How many have to be.
        needed: u32,
    },
    /// A replacement is to be ready before a pod goes.
    Replacement {
        /// The new pod.
        pod: String,
        /// The one that goes then.
        instead_of: String,
    },
    /// More pods have to be healthy before a pod may go.
    Budget {
        /// The pod.
        pod: String,
        /// Why it stays.
        until: Shortage,
    },
    /// More pods have to be healthy before a pod may get the template.
    Spare {
        /// The pod.
        pod: String,
        /// Why it stays as it is.
        until: Shortage,
    },
    /// A pod that went is not gone yet.
    Leaving {
        /// The pod.
        pod: String,
    },
    /// Nobody knows whether a pod that never runs twice still runs.
    Retirement {
        /// The pod.
        pod: String,
        /// Its node, which is not heard of.
        node: String,
    },
    /// There is no place for a replacement.
    Place {
        /// The pod that it would be for.
        instead_of: String,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { ready, needed } => write!(
                f,
                "the next pod gets the template when {needed} pods are ready; {ready} are"
            ),
            Self::Replacement { pod, instead_of } => {
                write!(f, "{instead_of} goes when its replacement {pod} is ready")
            }
            Self::Budget { pod, until } => write!(f, "{pod} goes when {until}"),
            Self::Spare { pod, until } => write!(f, "{pod} gets the template when {until}"),
            Self::Leaving { pod } => write!(f, "the next pod is moved when {pod} is gone"),
            Self::Retirement { pod, node } => write!(
                f,
                "{pod} never runs twice, and may run on {node}, which is not heard of: it is replaced when {node} is back, or retired by `platctrl node retire {node}`"
            ),
            Self::Place { instead_of } => {
                write!(f, "{instead_of} is moved when there is a place for another")
            }
        }
    }
}

/// Why no healthy pod may be taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// How many are healthy.
    pub healthy: u32,
    /// Those of them that something was decided about already.
    pub open: u32,
    /// How many have to stay; `u32::MAX` while nobody can say.
    pub needed: u32,
    /// The disruption budget that says so, if one does.
    pub budget: Option<String>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.needed == u32::MAX {
            return f.write_str("its ledger can be used");
        }
        write!(
            f,
            "more than {} pods are healthy; {} are",
            self.needed, self.healthy
        )?;
        if self.open > 0 {
            write!(f, ", {} of them on their way out", self.open)?;
        }
        match &self.budget {
            Some(budget) => write!(f, " (disruption budget {budget})"),
            None => Ok(()),
        }
    }
}
