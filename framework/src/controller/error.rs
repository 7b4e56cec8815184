//! How a reconcile can fail, told apart by what is to be done about it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::client::ClientError;
use crate::store::StoreError;

/// What is to be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Try again, later after each failure in a row.
    Transient,
    /// Try again after this time.
    RetryAfter(Duration),
    /// Trying again is useless until something changes.
    Terminal,
    /// Somebody else was faster. Nothing is wrong: the run is repeated on a newer view.
    Conflict,
}

/// A reconcile's failure. Every error becomes one through `?`: conflicts, times to wait that a
/// store named, and objects that can never be written (a name that breaks the rules, a record
/// that is too large) are recognised, everything else is [`ErrorClass::Transient`].
pub struct ReconcileError {
    class: ErrorClass,
    /// The store was not reachable: no fault of the object's.
    store: bool,
    error: Box<dyn Error + Send + Sync>,
}

impl ReconcileError {
    /// An error that trying again does not mend.
    pub fn terminal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            class: ErrorClass::Terminal,
            store: false,
            error: error.into(),
        }
    }

    /// An error after which to wait for `after`.
    pub fn retry_after(after: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            class: ErrorClass::RetryAfter(after),
            store: false,
            error: error.into(),
        }
    }

    /// An error to try again after.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            class: ErrorClass::Transient,
            store: false,
            error: error.into(),
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    pub(crate) fn is_store_away(&self) -> bool {
        self.store
    }
}

/// What this crate's own errors say about what to do.
fn known(error: &(dyn Error + 'static)) -> Option<Known> {
    // Transparent errors hide what they wrap from `source`, so they are looked through here.
    if let Some(error) = error.downcast_ref::<CommitError>() {
        return match error {
            CommitError::Conflict { .. } => Some(Known::Conflict),
            CommitError::Undecided => Some(Known::StoreAway(None)),
            CommitError::Fenced { .. } | CommitError::NotRead { .. } => None,
            // It runs again when that changes.
            CommitError::Unreadable { .. } => Some(Known::Terminal),
            CommitError::Held { retry_after, .. } => Some(Known::Wait(*retry_after)),
            CommitError::Client(error) => known(error),
            CommitError::Store(error) => known(error),
        };
    }
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return match error {
            ClientError::Store(error) => known(error),
            ClientError::Invalid { .. } | ClientError::Name(_) | ClientError::Encode(_) => {
                Some(Known::Terminal)
            }
            error => error.is_conflict().then_some(Known::Conflict),
        };
    }
    match error.downcast_ref::<StoreError>()? {
        StoreError::Conflict { .. } => Some(Known::Conflict),
        StoreError::Unavailable { retry_after, .. } => Some(Known::StoreAway(*retry_after)),
        StoreError::Unknown { .. } => Some(Known::StoreAway(None)),
        StoreError::TooLarge { .. } | StoreError::Invalid { .. } => Some(Known::Terminal),
        _ => None,
    }
}

enum Known {
    Conflict,
    Wait(Duration),
    StoreAway(Option<Duration>),
    /// What was asked for can never be done.
    Terminal,
}

fn find(error: &(dyn Error + 'static)) -> Option<Known> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(known) = known(error) {
            return Some(known);
        }
        next = error.source();
    }
    None
}

impl<E: Error + Send + Sync + 'static> From<E> for ReconcileError {
    fn from(error: E) -> Self {
        let known = find(&error);
        let class = match known {
            Some(Known::Conflict) => ErrorClass::Conflict,
            Some(Known::Terminal) => ErrorClass::Terminal,
            Some(Known::StoreAway(Some(after)) | Known::Wait(after)) => {
                ErrorClass::RetryAfter(after)
            }
            Some(Known::StoreAway(None)) | None => ErrorClass::Transient,
        };
        Self {
            class,
            store: matches!(known, Some(Known::StoreAway(_))),
            error: Box::new(error),
        }
    }
}

impl fmt::Display for ReconcileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut shown = self.error.to_string();
        let mut next = self.error.source();
        while let Some(source) = next {
            let text = source.to_string();
            // Transparent errors repeat what they wrap.
            if text != shown {
                write!(f, ": {text}")?;
            }
            shown = text;
            next = source.source();
        }
        Ok(())
    }
}

impl fmt::Debug for ReconcileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.class)
    }
}

/// Why a reconcile's changes were not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Something is no longer as the reconcile saw it. Nothing was written.
    #[error("{key}: what the run was decided on has changed meanwhile")]
    Conflict {
        /// The object that was reconciled.
        key: crate::model::ObjectKey,
        /// The compares that did not hold; a store that only learns that one of several did not
        /// names all that may have.
        failed: Vec<crate::store::Compare>,
    },
    /// This process does not hold the claim any more, or cannot be sure. Nothing was written.
    #[error("the claim `{claim}` is not held any more")]
    Fenced {
        /// The claim.
        claim: String,
    },
    /// A failsafe holds it back, or everything is frozen. Nothing was written.
    #[error("{why}")]
    Held {
        /// What holds it, with the numbers that decided it.
        why: String,
        /// Do not ask again sooner; when the hold ends, the object runs at once.
        retry_after: Duration,
    },
    /// The run asked its view for objects of a kind that this runtime does not mirror, or has not
    /// read yet: what it saw, nothing, may be wrong, so nothing it decided is written.
    #[error(
        "the run looked for {kind}, which is not read yet or not mirrored at all: declare the kind with `owns`, `watches` or `Runtime::kind`"
    )]
    NotRead {
        /// The kind.
        kind: crate::model::GroupPlural,
    },
    /// Something that the object owns cannot be read, so that the run does not know what is
    /// missing: nothing it decided is written.
    #[error("{key} owns something that cannot be read, so it is left as it is: {error}")]
    Unreadable {
        /// The object that was reconciled.
        key: crate::model::ObjectKey,
        /// What cannot be read.
        error: std::sync::Arc<crate::model::RecordError>,
    },
    /// It is not known whether an earlier commit of this run happened; nothing can be decided
    /// before it is.
    #[error("an earlier commit of this run was not confirmed: return, and the run is repeated")]
    Undecided,
    /// A change cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_found_however_deep() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] ClientError);
        let conflict = StoreError::Conflict { failed: vec![0] };
        let error = ReconcileError::from(Outer(ClientError::Store(conflict)));
        assert_eq!(error.class(), ErrorClass::Conflict);
        let conflict = StoreError::Conflict { failed: vec![0] };
        let error = ReconcileError::from(CommitError::Client(ClientError::Store(conflict)));
        assert_eq!(error.class(), ErrorClass::Conflict);
        let error = ReconcileError::from(std::io::Error::other("disk"));
        assert_eq!(error.class(), ErrorClass::Transient);
    }

    #[test]
    fn a_store_that_says_when_to_come_back_is_obeyed() {
        let after = Duration::from_secs(7);
        let error = StoreError::Unavailable {
            reason: "busy".into(),
            retry_after: Some(after),
        };
        assert_eq!(
            ReconcileError::from(error).class(),
            ErrorClass::RetryAfter(after)
        );
    }
}
