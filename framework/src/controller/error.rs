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

/// A reconcile's failure. Every error becomes one through `?`: conflicts and times to wait that
/// a store named are recognised, everything else is [`ErrorClass::Transient`].
pub struct ReconcileError {
    class: ErrorClass,
    error: Box<dyn Error + Send + Sync>,
}

impl ReconcileError {
    /// An error that trying again does not mend.
    pub fn terminal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            class: ErrorClass::Terminal,
            error: error.into(),
        }
    }

    /// An error after which to wait for `after`.
    pub fn retry_after(after: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            class: ErrorClass::RetryAfter(after),
            error: error.into(),
        }
    }

    /// An error to try again after.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            class: ErrorClass::Transient,
            error: error.into(),
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.class
    }
}

fn class_of(error: &(dyn Error + 'static)) -> ErrorClass {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<StoreError>() {
            match error {
                StoreError::Conflict { .. } => return ErrorClass::Conflict,
                StoreError::Unavailable {
                    retry_after: Some(after),
                    ..
                } => return ErrorClass::RetryAfter(*after),
                _ => {}
            }
        }
        if error
            .downcast_ref::<ClientError>()
            .is_some_and(ClientError::is_conflict)
            || matches!(
                error.downcast_ref::<CommitError>(),
                Some(CommitError::Conflict { .. })
            )
        {
            return ErrorClass::Conflict;
        }
        next = error.source();
    }
    ErrorClass::Transient
}

impl<E: Error + Send + Sync + 'static> From<E> for ReconcileError {
    fn from(error: E) -> Self {
        Self {
            class: class_of(&error),
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
    },
    /// This process does not hold the claim any more, or cannot be sure. Nothing was written.
    #[error("the claim `{claim}` is not held any more")]
    Fenced {
        /// The claim.
        claim: String,
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
