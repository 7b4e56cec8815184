//! One controller at work: from changes to keys, from keys to runs, from outcomes to later runs.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::action::Action;
use super::builder::{Registered, Target};
use super::claim::Fence;
use super::context::{Begin, Cause, Context, Notes, Setting, subject};
use super::error::{ErrorClass, ReconcileError};
use super::status::{ControllerStatus, Counters, FailingKey, ParkedKey};
use crate::backoff::Backoff;
use crate::cache::{EntryChange, Reader, View};
use crate::model::{Joined, ObjectKey};
use crate::queue::{Done, Job, Next, Priority, Queue, Request};
use crate::store::{Key, ListRequest, Prefix, Revision, StoreError};

/// Conflicts in a row that are repeated at once; further ones wait as failures do.
const QUICK_CONFLICTS: u32 = 3;
const MAX_FAILING_SHOWN: usize = 100;

#[derive(Debug)]
struct Failing {
    failures: u32,
    error: String,
}

#[derive(Debug)]
pub(crate) struct Engine {
    controller: Registered,
    setting: Arc<Setting>,
    reader: Reader,
    queue: Queue<Arc<ObjectKey>, Cause>,
    counters: Counters,
    failing: Mutex<HashMap<Arc<ObjectKey>, Failing>>,
    runs: AtomicU64,
}

/// How a run ended.
enum Ended {
    Returned(Result<Action, ReconcileError>),
    Panicked(String),
    TimedOut,
}

/// Gives a key back even if its worker is dropped.
struct Taken<'e> {
    engine: &'e Engine,
    key: Arc<ObjectKey>,
    failures: u32,
    back: bool,
}

impl Taken<'_> {
    fn done(mut self, done: Done<Cause>) {
        self.back = true;
        self.engine.queue.done(&self.key, done);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.back {
            let done = Done {
                next: Some(Next::now(Priority::Retry, Cause::Failed)),
                failures: self.failures,
                ..Done::ok()
            };
            self.engine.queue.done(&self.key, done);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

impl Engine {
    pub(crate) fn new(
        controller: Registered,
        setting: Arc<Setting>,
        reader: Reader,
        sources: usize,
    ) -> Arc<Self> {
        let queue = Queue::new(sources, setting.environment.clone());
        let engine = Arc::new(Self {
            controller,
            setting,
            reader,
            queue,
            counters: Counters::default(),
            failing: Mutex::default(),
            runs: AtomicU64::new(0),
        });
        for trigger in &engine.controller.triggers {
            let weak = Arc::downgrade(&engine);
            let target: Target = Arc::new(move |key, reason| {
                if let Some(engine) = weak.upgrade() {
                    let request = Request::now(Priority::Change, Cause::Triggered(reason));
                    engine.queue.push([(key, request)]);
                }
            });
            trigger.connect(&target);
        }
        engine
    }

    pub(crate) fn name(&self) -> &str {
        &self.controller.name
    }

    pub(crate) fn concurrency(&self) -> usize {
        let unset = || self.setting.environment.cores() * 4;
        self.controller.concurrency.unwrap_or_else(unset)
    }

    fn failing(&self) -> MutexGuard<'_, HashMap<Arc<ObjectKey>, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what changed.
    pub(crate) fn offer(&self, changes: &[EntryChange], view: &View, initial: bool) {
        let mut requests = Vec::new();
        for change in changes {
            let changed = change.after.as_ref().or(change.before.as_ref());
            let mut emit = |key: Arc<ObjectKey>| {
                let own = changed.is_some_and(|entry| entry.key == key);
                let (priority, cause) = match changed {
                    _ if initial => (Priority::Sync, Cause::InitialSync),
                    Some(entry) if !own => {
                        let (key, revision) = (entry.key.clone(), change.revision);
                        (Priority::Change, Cause::Related { key, revision })
                    }
                    _ => {
                        let revision = change.revision;
                        (Priority::Change, Cause::Changed { revision })
                    }
                };
                requests.push((key, Request::change(priority, cause, change.revision)));
            };
            for map in &self.controller.maps {
                // These call functions of the controller's author.
                let mapped = AssertUnwindSafe(|| map(change, view, &mut emit));
                if let Err(panic) = std::panic::catch_unwind(mapped) {
                    Counters::add(&self.counters.panics);
                    let panic = panic_text(&*panic);
                    tracing::error!(controller = self.name(), panic, "a watch's map panicked");
                }
            }
        }
        if !requests.is_empty() {
            self.queue.push(requests);
        }
    }

    /// Makes every object run once, after the claim was won again.
    pub(crate) fn resync(&self) {
        let view = self.reader.view();
        let keys = view.keys_of(&self.controller.group_plural);
        let request = |key| (key, Request::now(Priority::Sync, Cause::InitialSync));
        self.queue.push(keys.into_iter().map(request));
    }

    pub(crate) fn reached(&self, revisions: &[Revision]) {
        self.queue.reached(revisions);
    }

    pub(crate) async fn run_timers(&self) {
        self.queue.run_timers().await;
    }

    /// Runs keys until `stop`; a run that has begun is finished.
    pub(crate) async fn work(&self, fence: Option<&Fence>, stop: &CancellationToken) {
        loop {
            let job = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                job = self.queue.next() => job,
            };
            self.run(job, fence, stop).await;
        }
    }

    async fn run(
        &self,
        job: Job<Arc<ObjectKey>, Cause>,
        fence: Option<&Fence>,
        stop: &CancellationToken,
    ) {
        let taken = Taken {
            engine: self,
            key: job.key.clone(),
            failures: job.failures,
            back: false,
        };
        let environment = &self.setting.environment;
        let view = self.reader.view();
        let entry = view.entry(&job.key).map(|entry| entry.joined());
        // An intent that cannot be read is seen by the run itself.
        let own = entry
            .and_then(Result::ok)
            .unwrap_or_else(|| Joined::empty((*job.key).clone()));
        let id = self.runs.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!(
            "reconcile",
            controller = self.name(),
            key = %job.key,
            id,
            causes = ?job.causes,
            more_causes = job.more_causes,
            waited = ?job.waited,
            outcome = tracing::field::Empty,
        );
        let begin = Begin {
            key: job.key.clone(),
            view,
            causes: job.causes,
            attempt: job.failures,
            id,
            fence: fence.cloned(),
        };
        let context = Context::new(self.setting.clone(), begin, own);
        let run = context.clone();
        let run = AssertUnwindSafe(async move { (self.controller.run)(run).await }).catch_unwind();
        let ended = async {
            tokio::select! {
                biased;
                outcome = run => match outcome {
                    Ok(outcome) => Ended::Returned(outcome),
                    Err(panic) => Ended::Panicked(panic_text(&*panic)),
                },
                () = environment.sleep(self.controller.timeout) => Ended::TimedOut,
            }
        }
        .instrument(span.clone())
        .await;
        let notes = context.take_notes();
        let own_writes = notes.wrote.iter().map(|(_, revision)| *revision).collect();
        let must_see = self.must_see(&context, &notes, stop).await;
        let done =
            span.in_scope(|| self.judge(&job.key, ended, &notes, job.failures, job.conflicts));
        span.record("outcome", done.1);
        taken.done(Done {
            must_see,
            own_writes,
            ..done.0
        });
    }

    /// Decides when the key runs again, and says how the run ended in one word.
    fn judge(
        &self,
        key: &Arc<ObjectKey>,
        ended: Ended,
        notes: &Notes,
        failures: u32,
        conflicts: u32,
    ) -> (Done<Cause>, &'static str) {
        let environment = &self.setting.environment;
        let now = environment.monotonic();
        Counters::add(&self.counters.runs);
        let (counter, word, error, wait) = match ended {
            Ended::Returned(Ok(action)) => {
                self.failing().remove(key);
                let next = action
                    .after()
                    .map(|after| Next::at(now + after, Priority::Sync, Cause::Requeued));
                tracing::debug!(?action, "done");
                return (Done { next, ..Done::ok() }, "done");
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
                    return (done, "conflict");
                }
                let wait = match error.class() {
                    ErrorClass::Terminal => None,
                    ErrorClass::RetryAfter(after) => Some(after),
                    _ if error.is_store_away() => {
                        Some(Backoff::SOURCE.delay(failures.saturating_add(1), environment))
                    }
                    _ => Some(Backoff::KEY.delay(failures.saturating_add(1), environment)),
                };
                (&self.counters.errors, "error", error.to_string(), wait)
            }
            Ended::Panicked(text) => {
                let wait = Backoff::KEY.delay(failures.saturating_add(1), environment);
                let text = format!("the reconcile panicked: {text}");
                (&self.counters.panics, "panic", text, Some(wait))
            }
            Ended::TimedOut => {
                let wait = Backoff::KEY.delay(failures.saturating_add(1), environment);
                let text = format!(
                    "the reconcile did not return within {:?}",
                    self.controller.timeout
                );
                (&self.counters.timeouts, "timeout", text, Some(wait))
            }
        };
        Counters::add(counter);
        let failures = failures.saturating_add(1);
        tracing::warn!(failures, retry_after = ?wait, "{error}");
        let failing = Failing { failures, error };
        self.failing().insert(key.clone(), failing);
        let next = wait.map(|wait| Next::backoff(now + wait, Cause::Failed));
        let done = Done {
            next,
            failures,
            ..Done::ok()
        };
        (done, word)
    }

    /// What each source has to show before the key may run again: what the run wrote, and what
    /// it was wrong or unsure about, read afresh.
    async fn must_see(
        &self,
        context: &Context,
        notes: &Notes,
        stop: &CancellationToken,
    ) -> Vec<(usize, Revision)> {
        let view = context.view();
        let mut must_see = BTreeMap::<usize, Revision>::new();
        let mut see = |key: &Key, revision: Revision| {
            for source in view.sources_of(key) {
                let at = must_see.entry(source).or_insert(revision);
                *at = revision.max(*at);
            }
        };
        for (keys, revision) in &notes.wrote {
            for key in keys {
                see(key, *revision);
            }
        }
        if !notes.unsure.is_empty() {
            let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
            for subject in notes.unsure.iter().filter_map(subject) {
                match subject {
                    Ok(key) if !keys.contains(key) => keys.push(key.clone()),
                    Err(prefix) if !prefixes.contains(prefix) => prefixes.push(prefix.clone()),
                    _ => {}
                }
            }
            let mut failures = 0;
            loop {
                match self.read_afresh(&keys, &prefixes, &mut see).await {
                    Ok(()) => break,
                    Err(error) => {
                        failures += 1;
                        tracing::debug!(key = %context.key(), %error, "cannot find out what happened");
                        let delay = Backoff::SOURCE.delay(failures, &self.setting.environment);
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => break,
                            () = self.setting.environment.sleep(delay) => {}
                        }
                    }
                }
            }
        }
        must_see.into_iter().collect()
    }

    /// Reads what may be different from what the view shows.
    async fn read_afresh(
        &self,
        keys: &[Key],
        prefixes: &[Prefix],
        see: &mut impl FnMut(&Key, Revision),
    ) -> Result<(), StoreError> {
        let store = &self.setting.store;
        let most = store.capabilities().limits.max_operations.max(1);
        let view = self.reader.view();
        for keys in keys.chunks(most) {
            let snapshot = store.get(keys).await?;
            for (key, record) in keys.iter().zip(snapshot.records) {
                match record {
                    Some(record) => see(key, record.modified),
                    // Deleted, and the view does not know it yet.
                    None if view.shows(key) => see(key, snapshot.revision),
                    None => {}
                }
            }
        }
        for prefix in prefixes {
            let mut request = ListRequest::new(prefix.clone());
            loop {
                let page = store.list(&request).await?;
                for record in &page.records {
                    see(&record.key, record.modified);
                }
                request.after = page.records.last().map(|record| record.key.clone());
                if !page.more || request.after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The key that waits longest for the view, with the index of the source that lags.
    pub(crate) fn longest_parked(&self, prefixes: &[Prefix]) -> Option<(usize, ParkedKey)> {
        let parked = self.queue.longest_parked()?;
        let source = prefixes.get(parked.source)?.clone();
        let key = ParkedKey {
            key: (*parked.key).clone(),
            source,
            revision: parked.revision,
            waited: parked.waited,
        };
        Some((parked.source, key))
    }

    pub(crate) fn status(&self, prefixes: &[Prefix]) -> ControllerStatus {
        let sizes = self.queue.sizes();
        let mut status = ControllerStatus {
            name: self.name().to_owned(),
            ready: sizes.ready,
            waiting: sizes.waiting,
            parked: sizes.parked,
            running: sizes.running,
            oldest_ready: sizes.oldest_ready,
            longest_parked: self.longest_parked(prefixes).map(|(_, parked)| parked),
            ..ControllerStatus::default()
        };
        self.counters.fill(&mut status);
        let failing = self.failing();
        let shown = failing.iter().take(MAX_FAILING_SHOWN);
        status.failing = shown
            .map(|(key, failing)| FailingKey {
                key: (**key).clone(),
                failures: failing.failures,
                error: failing.error.clone(),
            })
            .collect();
        status
    }

    /// How long the longest run may still take is not known; whether any runs is.
    pub(crate) fn running(&self) -> usize {
        self.queue.sizes().running
    }
}

/// How often parked keys are looked at.
pub(crate) const PARKED_CHECK: Duration = Duration::from_secs(2);
/// A key that waits longer than this for the view is reported, and its source read afresh.
pub(crate) const PARKED_TOO_LONG: Duration = Duration::from_secs(10);
