//! One of the two sequences of steps that a pod is in: what is under way in it, and what failed.

use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::Digest;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::plan::Step;
use crate::report::Trouble;
use crate::version::Version;

/// Waits between attempts at a step that fails: doubled each time, from the first to the second.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The wait when trying again cannot help unless somebody changes something on the machine.
const RETRY_PERMANENT: Duration = Duration::from_secs(300);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Getting a version ready.
    Prepare,
    /// What is done with the one that runs.
    Main,
}

/// What a step that runs beside the worker came to.
#[derive(Debug)]
pub(super) enum Finding {
    /// It is done.
    Nothing,
    /// A version is on the node.
    Version(Box<Version>),
}

/// A step that runs beside the worker, which goes on listening.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) step: Step,
    /// The version it is about.
    pub(super) digest: Option<Digest>,
    pub(super) task: JoinHandle<Result<Finding, Trouble>>,
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) errand: Option<Errand>,
    pub(super) trouble: Option<Trouble>,
    attempts: u32,
    /// When to look again even if nothing happens.
    pub(super) wake: Option<Instant>,
}

impl Lane {
    /// A step failed and is not to be tried again yet.
    pub(super) fn waits(&self) -> bool {
        self.trouble.is_some() && self.wake.is_some()
    }

    /// Somebody changed something: what failed is tried again at once.
    pub(super) fn retry_now(&mut self) {
        (self.attempts, self.wake) = (0, None);
    }

    /// What was wrong is not any more.
    pub(super) fn clear(&mut self) {
        self.trouble = None;
        self.retry_now();
    }

    /// A step was done: if it was the one that had failed, it has not any more.
    pub(super) fn done(&mut self, step: Step) {
        let failed = self.trouble.as_ref().map(|trouble| trouble.step);
        let parts = matches!(failed, Some(Step::Verify | Step::Unpack)) && step == Step::Fetch;
        if failed == Some(step) || parts {
            self.clear();
        }
    }

    /// A step failed: it is tried again after a while. Whether that is news.
    pub(super) fn fail(&mut self, trouble: Trouble, environment: &Environment) -> bool {
        let wait = if trouble.permanent {
            RETRY_PERMANENT
        } else {
            let doubled = 2_u32.saturating_pow(self.attempts.min(16));
            environment.jitter(RETRY.0.saturating_mul(doubled).min(RETRY.1))
        };
        self.attempts = self.attempts.saturating_add(1);
        self.wake = Some(Instant::now() + wait);
        let news = self.trouble.as_ref() != Some(&trouble);
        self.trouble = Some(trouble);
        news
    }

    /// The time to wake has come.
    pub(super) fn wake_up(&mut self, now: Instant) {
        if self.wake.is_some_and(|wake| wake <= now) {
            self.wake = None;
        }
    }

    /// Waits for the errand; for ever when there is none.
    pub(super) async fn finished(&mut self) -> (Step, Result<Finding, Trouble>) {
        let Some(errand) = &mut self.errand else {
            return std::future::pending().await;
        };
        let step = errand.step;
        let result = (&mut errand.task)
            .await
            .unwrap_or_else(|panic| Err(Trouble::panicked(step, &panic)));
        self.errand = None;
        (step, result)
    }
}
