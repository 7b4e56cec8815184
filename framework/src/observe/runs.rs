//! How runs end, in the words of metrics and explanations.

use serde::Serialize;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Ending {
    /// It had nothing more to ask for.
    Done,
    /// It asked to run again after a time.
    Requeued,
    /// What it was decided on was not so any more; it is repeated.
    Conflict,
    /// It failed, and is repeated.
    Error,
    /// It failed, and nothing is done until something changes.
    Terminal,
    /// It panicked.
    Panic,
    /// It did not return in time.
    Timeout,
    /// This process lost its claim before the run returned.
    Cut,
}

impl Ending {
    pub(crate) const ALL: [Self; 8] = [
        Self::Done,
        Self::Requeued,
        Self::Conflict,
        Self::Error,
        Self::Terminal,
        Self::Panic,
        Self::Timeout,
        Self::Cut,
    ];

    /// It did what it was to do.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Done | Self::Requeued)
    }

    /// One word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Requeued => "requeued",
            Self::Conflict => "conflict",
            Self::Error => "error",
            Self::Terminal => "terminal",
            Self::Panic => "panic",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
        }
    }
}
