//! What the queue is asked for, what it hands out, and what it is told of a run.

use std::time::Duration;

use super::SlotId;
use crate::store::Revision;

/// Which work goes first. Within a class it is first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// Something changed.
    Change = 0,
    /// The last run failed.
    Retry = 1,
    /// Initial sync, and what a reconcile asked to be looked at again later.
    Sync = 2,
}

/// A wish for a run of a key.
#[derive(Debug)]
pub(crate) struct Request<C> {
    /// Not before this time; None is now.
    pub(crate) at: Option<Duration>,
    pub(crate) priority: Priority,
    pub(crate) cause: C,
    /// The revision of the change that asks.
    pub(crate) revision: Option<Revision>,
}

impl<C> Request<C> {
    /// A run as soon as possible.
    pub(crate) fn now(priority: Priority, cause: C) -> Self {
        Self {
            at: None,
            priority,
            cause,
            revision: None,
        }
    }

    /// A run as soon as possible, because of a change at `revision`.
    pub(crate) fn change(priority: Priority, cause: C, revision: Revision) -> Self {
        Self {
            revision: Some(revision),
            ..Self::now(priority, cause)
        }
    }

    /// A run not before `at`.
    #[cfg(test)]
    pub(crate) fn at(at: Duration, priority: Priority, cause: C) -> Self {
        Self {
            at: Some(at),
            ..Self::now(priority, cause)
        }
    }
}

/// Why a key runs. Most runs have one cause, which needs no memory of its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Causes<C> {
    None,
    One(C),
    Many(Vec<C>),
}

impl<C> Causes<C> {
    pub(crate) fn as_slice(&self) -> &[C] {
        match self {
            Self::None => &[],
            Self::One(cause) => std::slice::from_ref(cause),
            Self::Many(causes) => causes,
        }
    }

    pub(super) fn push(&mut self, cause: C) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(cause),
            Self::One(first) => Self::Many(vec![first, cause]),
            Self::Many(mut causes) => {
                causes.push(cause);
                Self::Many(causes)
            }
        };
    }

    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::None)
    }
}

/// A key that may run now.
#[derive(Debug, PartialEq)]
pub(crate) struct Job<K, C> {
    pub(crate) key: K,
    /// Names the run when the key is given back.
    pub(crate) ticket: Ticket,
    pub(crate) causes: Causes<C>,
    /// Causes beyond those kept.
    pub(crate) more_causes: u32,
    /// Failures in a row before this run.
    pub(crate) failures: u32,
    /// Conflicts in a row before this run.
    pub(crate) conflicts: u32,
    /// How long the key was ready before it was taken.
    pub(crate) waited: Duration,
    /// When it was taken.
    pub(crate) taken: Duration,
}

/// Names a run of a key until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(pub(super) SlotId);

/// A later run of a key that was just given back.
#[derive(Debug)]
pub(crate) struct Next<C> {
    pub(super) at: Option<Duration>,
    pub(super) priority: Priority,
    pub(super) cause: C,
    pub(super) backoff: bool,
}

impl<C> Next<C> {
    /// A run asked for by a run that succeeded.
    pub(crate) fn at(at: Duration, priority: Priority, cause: C) -> Self {
        Self {
            at: Some(at),
            priority,
            cause,
            backoff: false,
        }
    }

    /// A run as soon as the view allows.
    pub(crate) fn now(priority: Priority, cause: C) -> Self {
        Self {
            at: None,
            priority,
            cause,
            backoff: false,
        }
    }

    /// A run after a failure. The failed run's own writes do not bring it forward.
    pub(crate) fn backoff(at: Duration, cause: C) -> Self {
        Self {
            at: Some(at),
            priority: Priority::Retry,
            cause,
            backoff: true,
        }
    }
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Done<C> {
    pub(crate) next: Option<Next<C>>,
    pub(crate) failures: u32,
    pub(crate) conflicts: u32,
    /// For each source, the revision that it must show before the key runs again.
    pub(crate) must_see: Vec<(usize, Revision)>,
    /// The revisions that the run itself wrote.
    pub(crate) own_writes: Vec<Revision>,
}

impl<C> Done<C> {
    /// A run that succeeded and wrote nothing.
    pub(crate) fn ok() -> Self {
        Self {
            next: None,
            failures: 0,
            conflicts: 0,
            must_see: Vec::new(),
            own_writes: Vec::new(),
        }
    }

    /// A run that asks for another.
    #[cfg(test)]
    pub(crate) fn next(next: Next<C>) -> Self {
        Self {
            next: Some(next),
            ..Self::ok()
        }
    }
}

/// A key that waits for the view.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parked<K> {
    pub(crate) key: K,
    /// The source that lags.
    pub(crate) source: usize,
    /// The revision it has to reach.
    pub(crate) revision: Revision,
    /// Since when.
    pub(crate) waited: Duration,
}
