//! Why something that seems to be wanted is not done.

use platctrl_framework::model::Uid;

/// Why something that seems to be wanted is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Hold {
    /// The intent is missing without a tombstone.
    Unexplained,
    /// The intent is of another uid, and nobody ordered the end of the one that runs.
    UidChanged {
        /// The one that runs.
        running: Uid,
        /// The one that is wanted.
        wanted: Uid,
    },
    /// The intent is older than what was wanted before.
    WentBack {
        /// The newest generation that was seen.
        seen: u64,
        /// The one wanted now.
        wanted: u64,
    },
    /// The same generation had another spec before.
    Rewritten {
        /// The generation.
        generation: u64,
    },
    /// The spec cannot be right.
    Invalid {
        /// What is wrong with it.
        problem: String,
    },
    /// The spec has a field that this agent does not know.
    Unsupported {
        /// Its path.
        field: String,
    },
    /// The version failed to start, and the one before it runs again.
    Reverted {
        /// What it failed of.
        why: String,
    },
}

impl Hold {
    /// One word in camel case.
    #[must_use]
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Unexplained => "Unexplained",
            Self::UidChanged { .. } => "UidChanged",
            Self::WentBack { .. } => "GenerationWentBack",
            Self::Rewritten { .. } => "GenerationRewritten",
            Self::Invalid { .. } => "Invalid",
            Self::Unsupported { .. } => "Unsupported",
            Self::Reverted { .. } => "Reverted",
        }
    }

    /// What is held, why, and the way out.
    #[must_use]
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Unexplained => "the pod's intent is missing and nobody ordered its end: what runs keeps running; `platctrl failsafe adopt` writes the intent again, `platctrl failsafe remove` ends the pod".into(),
            Self::UidChanged { running, wanted } => format!("the pod that runs is {running}, the one wanted is {wanted}, and nobody ordered the end of the first: it keeps running; `platctrl failsafe remove` ends it"),
            Self::WentBack { seen, wanted } => format!("generation {wanted} is wanted after generation {seen} was: the store seems to have been restored; what runs keeps running until a newer generation is applied"),
            Self::Rewritten { generation } => format!("generation {generation} has another spec than it had: the store seems to have been restored or written by hand; what runs keeps running until a newer generation is applied"),
            Self::Invalid { problem } => format!("the spec cannot be carried out: {problem}; what runs keeps running"),
            Self::Reverted { why } => format!("the new version failed to start and the one before it is used again: {why}; it is not tried again until the spec changes"),
            Self::Unsupported { field } => format!("Unsupported({field}): this agent does not know the field and must not ignore it; what runs keeps running; upgrade the agent, or leave the field out"),
        }
    }
}
