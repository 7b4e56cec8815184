//! How a run ended, and when its key runs again.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use super::action::Action;
use super::context::{Cause, Context, Notes};
use super::engine::Engine;
use super::error::{ErrorClass, ReconcileError};
use super::status::Counters;
use super::unrest::Slowed;
use crate::backoff::Backoff;
use crate::model::{EventType, ObjectKey};
use crate::observe::Ending;
use crate::queue::{Done, Next, Priority};

/// Conflicts in a row that are repeated at once; further ones wait as failures do.
const QUICK_CONFLICTS: u32 = 3;

/// A key whose last run failed.
#[derive(Debug)]
pub(super) struct Failing {
    pub(super) failures: u32,
    pub(super) error: String,
}

/// A run that has ended.
pub(super) struct Ran<'r> {
    pub(super) context: &'r Context,
    pub(super) notes: &'r Notes,
    /// Failures and conflicts in a row before it.
    pub(super) failures: u32,
    pub(super) conflicts: u32,
    /// Nothing but what the run before it wrote asked for it.
    pub(super) echo: bool,
    /// When it had ended.
    pub(super) now: Duration,
}

/// How a run ended.
pub(super) enum Ended {
    Returned(Result<Action, ReconcileError>),
    Panicked(String),
    TimedOut,
    /// Its post was left before it returned.
    Cut,
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// What follows from how a run ended.
pub(super) struct Judged {
    /// When its key runs again.
    pub(super) done: Done<Cause>,
    pub(super) ending: Ending,
    /// What was wrong.
    pub(super) error: Option<Box<str>>,
}

impl Judged {
    fn new(done: Done<Cause>, ending: Ending) -> Self {
        Self {
            done,
            ending,
            error: None,
        }
    }
}

impl Engine {
    /// Decides when the key runs again, and says how the run ended.
    pub(super) fn judge(&self, key: &Arc<ObjectKey>, ended: Ended, run: &Ran<'_>) -> Judged {
        let &Ran {
            context,
            notes,
            failures,
            conflicts,
            echo,
            now,
        } = run;
        let environment = &self.setting.environment;
        if !matches!(ended, Ended::Cut) {
            Counters::add(&self.counters.runs);
        }
        let (counter, ending, error, wait) = match ended {
            Ended::Returned(Ok(action)) => {
                self.ended_well(key);
                let mut next = action
                    .after()
                    .map(|after| Next::at(now + after, Priority::Sync, Cause::Requeued));
                tracing::debug!(?action, "done");
                let hot = self.unrest.note(key, echo, &notes.wrote, environment);
                if let Some(slowed) = &hot {
                    next = Some(Next::backoff(now + slowed.delay, Cause::Slowed));
                }
                if let Some(slowed) = &notes.contested {
                    self.unrest.hold(key, slowed, now);
                }
                for slowed in hot.iter().chain(&notes.contested) {
                    self.tell(context, slowed);
                }
                let ending = match next {
                    Some(_) => Ending::Requeued,
                    None => Ending::Done,
                };
                return Judged::new(Done { next, ..Done::ok() }, ending);
            }
            // The claim is lost, and whoever holds it looks at everything.
            Ended::Returned(Err(error))
                if context.fence().is_some_and(|fence| !fence.is_held()) =>
            {
                tracing::debug!(%error, "the claim was lost meanwhile");
                return Judged::new(Done::ok(), Ending::Cut);
            }
            Ended::Returned(Err(error)) => {
                if notes.conflict || error.class() == ErrorClass::Conflict {
                    Counters::add(&self.counters.conflicts);
                    tracing::debug!(%error, "repeated on a newer view");
                    let conflicts = conflicts.saturating_add(1);
                    let next = if conflicts > QUICK_CONFLICTS {
                        let delay = Backoff::KEY.delay(conflicts - QUICK_CONFLICTS, environment);
                        Next::backoff(now + delay, Cause::Conflict)
                    } else {
                        Next::now(Priority::Retry, Cause::Conflict)
                    };
                    let done = Done {
                        next: Some(next),
                        failures,
                        conflicts,
                        ..Done::ok()
                    };
                    return Judged::new(done, Ending::Conflict);
                }
                let wait = match error.class() {
                    ErrorClass::Terminal => None,
                    ErrorClass::RetryAfter(after) => Some(after),
                    _ if error.is_store_away() => {
                        Some(Backoff::SOURCE.delay(failures.saturating_add(1), environment))
                    }
                    _ => Some(Backoff::KEY.delay(failures.saturating_add(1), environment)),
                };
                let ending = match wait {
                    Some(_) => Ending::Error,
                    None => Ending::Terminal,
                };
                (&self.counters.errors, ending, error.to_string(), wait)
            }
            // Nobody waits for it any more, and whoever comes next looks at everything.
            Ended::Cut => return Judged::new(Done::ok(), Ending::Cut),
            Ended::Panicked(text) => {
                let wait = Backoff::KEY.delay(failures.saturating_add(1), environment);
                let text = format!("the reconcile panicked: {text}");
                (&self.counters.panics, Ending::Panic, text, Some(wait))
            }
            Ended::TimedOut => {
                let wait = Backoff::KEY.delay(failures.saturating_add(1), environment);
                let text = format!(
                    "the reconcile did not return within {:?}",
                    self.controller.timeout
                );
                (&self.counters.timeouts, Ending::Timeout, text, Some(wait))
            }
        };
        Counters::add(counter);
        let failures = failures.saturating_add(1);
        tracing::warn!(failures, retry_after = ?wait, "{error}");
        let told = Some(error.as_str().into());
        let failing = Failing { failures, error };
        self.failing().insert(key.clone(), failing);
        let next = wait.map(|wait| Next::backoff(now + wait, Cause::Failed));
        let done = Done {
            next,
            failures,
            ..Done::ok()
        };
        Judged {
            done,
            ending,
            error: told,
        }
    }

    /// Names unrest to people.
    fn tell(&self, context: &Context, slowed: &Slowed) {
        Counters::add(&self.counters.slowed);
        if slowed.tell {
            let message = slowed.shown.message(self.name(), slowed.delay);
            tracing::warn!("{message}");
            context.event(EventType::Warning, slowed.shown.reason(), message);
        }
    }
}
