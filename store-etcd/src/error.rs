//! What a failed call means: etcd's statuses and broken connections, as the store's outcomes.

use std::time::Duration;

use platctrl_framework::store::{LeaseId, Revision, StoreError};

use crate::grpc::{Code, Status};

/// Why a store could not be opened or reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The options cannot work: a file is missing or no certificate.
    #[error("cannot reach {location}: {reason}")]
    Options {
        /// The store.
        location: String,
        /// What is wrong.
        reason: String,
    },
    /// No member could be used now; a later time may do.
    #[error("cannot reach {location}: {reason}")]
    Unavailable {
        /// The store.
        location: String,
        /// Each member with what came of it.
        reason: String,
    },
    /// The members answer, and somebody must change something first: the certificate is not
    /// trusted or has expired, the port is another service's, the two sides disagree about TLS.
    #[error("cannot use {location}: {reason}")]
    Misconfigured {
        /// The store.
        location: String,
        /// Each member with what came of it.
        reason: String,
    },
    /// The members refuse the user, the password or the certificate.
    #[error("{location} denies access: {reason}")]
    Denied {
        /// The store.
        location: String,
        /// Each member with what came of it.
        reason: String,
    },
}

/// What a status says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It did not happen; another member, or the same one later, may take it.
    Again,
    /// It did not happen: the token is no longer good.
    Login,
    /// It did not happen: users or roles were changed while it was under way. The same request
    /// may be taken now; a token that says what it was made for needs a new login.
    Stale,
    /// It may have happened, or may still.
    Unclear,
    /// It did not happen and will not by asking again.
    Refused(Refusal),
}

/// Why a request will not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Denied,
    TooLarge,
    Invalid,
    Compacted,
    Future,
    LeaseNotFound,
    NoSpace,
    /// There is no such role or user.
    Missing,
    /// There is such a role or user.
    Exists,
}

/// Judges a status by etcd's texts, which have been the same since 3.0; what is not known to be
/// a refusal is taken for one that may have happened.
pub(crate) fn judge(status: &Status) -> Verdict {
    let text = status.message.as_str();
    let says = |words: &str| text.contains(words);
    match status.code {
        Code::Unauthenticated => Verdict::Login,
        Code::InvalidArgument if says("revision of auth store is old") => Verdict::Stale,
        Code::PermissionDenied => Verdict::Refused(Refusal::Denied),
        Code::InvalidArgument if says("user name is empty") || says("authentication failed") => {
            Verdict::Refused(Refusal::Denied)
        }
        Code::InvalidArgument if says("too large") || says("too many operations") => {
            Verdict::Refused(Refusal::TooLarge)
        }
        Code::InvalidArgument => Verdict::Refused(Refusal::Invalid),
        Code::ResourceExhausted if says("database space exceeded") => {
            Verdict::Refused(Refusal::NoSpace)
        }
        Code::ResourceExhausted if says("message larger than max") => {
            Verdict::Refused(Refusal::TooLarge)
        }
        Code::ResourceExhausted if says("too many requests") => Verdict::Again,
        Code::OutOfRange if says("future revision") => Verdict::Refused(Refusal::Future),
        Code::OutOfRange if says("compacted") => Verdict::Refused(Refusal::Compacted),
        Code::NotFound if says("lease not found") => Verdict::Refused(Refusal::LeaseNotFound),
        Code::Unimplemented => Verdict::Refused(Refusal::Invalid),
        Code::FailedPrecondition if says("role name not found") || says("user name not found") => {
            Verdict::Refused(Refusal::Missing)
        }
        Code::FailedPrecondition if says("name already exists") => {
            Verdict::Refused(Refusal::Exists)
        }
        // Both are said before anything is proposed.
        Code::Unavailable if says("etcdserver: no leader") || says("not capable") => Verdict::Again,
        _ => Verdict::Unclear,
    }
}

/// How a call ended, when not with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It did not happen and will not.
    Refused { refusal: Refusal, said: String },
    /// It did not happen; a later time may do.
    Unavailable(String),
    /// It may have happened.
    Unknown(String),
    /// The answer was too large to read. The request happened.
    TooLong(usize),
}

/// What a call was about, for the errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    /// The operation and the key or prefix.
    pub(crate) what: String,
    /// The bytes of the request.
    pub(crate) size: usize,
    /// The revision that was asked for, and the oldest that is kept.
    pub(crate) history: Option<(Revision, Revision)>,
    /// The lease that was named.
    pub(crate) lease: Option<LeaseId>,
}

impl Failure {
    pub(crate) fn is_refused_as(&self, expected: Refusal) -> bool {
        matches!(self, Self::Refused { refusal, .. } if *refusal == expected)
    }

    pub(crate) fn into_store_error(self, about: About) -> StoreError {
        let what = about.what;
        match self {
            Self::Unavailable(reason) => StoreError::unavailable(format!("{what}: {reason}")),
            Self::Unknown(reason) => StoreError::Unknown {
                reason: format!("{what}: {reason}"),
            },
            Self::TooLong(size) => StoreError::TooLarge {
                what: format!("{what}: the answer in bytes"),
                size,
                limit: crate::grpc::MAX_MESSAGE,
            },
            Self::Refused { refusal, said } => match refusal {
                Refusal::Denied => StoreError::Denied {
                    what: format!("{what} ({said})"),
                },
                Refusal::TooLarge => StoreError::TooLarge {
                    what: format!("{what} ({said}): the request in bytes"),
                    size: about.size,
                    limit: about.size.saturating_sub(1),
                },
                Refusal::NoSpace => StoreError::Unavailable {
                    reason: format!(
                        "{what}: {said}: compact and defragment the servers, then disarm the alarm"
                    ),
                    retry_after: Some(Duration::from_secs(5)),
                },
                Refusal::LeaseNotFound => StoreError::LeaseNotFound {
                    lease: about.lease.unwrap_or(LeaseId(0)),
                },
                Refusal::Compacted => match about.history {
                    Some((requested, oldest)) => StoreError::Compacted { requested, oldest },
                    None => StoreError::Invalid {
                        reason: format!("{what}: {said}"),
                    },
                },
                Refusal::Future | Refusal::Invalid | Refusal::Missing | Refusal::Exists => {
                    StoreError::Invalid {
                        reason: format!("{what}: {said}"),
                    }
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, message: &str) -> Status {
        Status {
            code,
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_status_that_does_not_say_it_was_refused_may_have_happened() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Other(1), "context canceled"),
            (Code::Other(2), "anything"),
            (Code::Other(4), "deadline exceeded"),
            (Code::Other(13), "internal"),
            (Code::ResourceExhausted, "something else"),
            (Code::FailedPrecondition, "something else"),
        ] {
            assert_eq!(judge(&status(code, message)), Verdict::Unclear, "{message}");
        }
    }

    #[test]
    fn statuses_that_refuse_are_told_apart() {
        for (code, message, verdict) in [
            (Code::Unavailable, "etcdserver: no leader", Verdict::Again),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                Verdict::Again,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                Verdict::Login,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                Verdict::Stale,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Verdict::Refused(Refusal::NoSpace),
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                Verdict::Refused(Refusal::Compacted),
            ),
            (
                Code::InvalidArgument,
                "etcdserver: request is too large",
                Verdict::Refused(Refusal::TooLarge),
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
                Verdict::Refused(Refusal::Invalid),
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                Verdict::Refused(Refusal::LeaseNotFound),
            ),
        ] {
            assert_eq!(judge(&status(code, message)), verdict, "{message}");
        }
    }
}
