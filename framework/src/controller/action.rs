//! What a reconcile asks for when it has done its work.

use std::time::Duration;

/// When to look at the object again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    after: Option<Duration>,
}

impl Action {
    /// The longest time an object can be left alone for.
    const MOST: Duration = Duration::from_secs(30 * 24 * 3600);

    /// When something changes: the object, what it owns, or what else the controller watches.
    #[must_use]
    pub const fn await_change() -> Self {
        Self { after: None }
    }

    /// After this time, or sooner when something changes.
    #[must_use]
    pub fn requeue_after(after: Duration) -> Self {
        Self {
            after: Some(after.min(Self::MOST)),
        }
    }

    pub(crate) const fn after(self) -> Option<Duration> {
        self.after
    }
}
