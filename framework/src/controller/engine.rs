//! One controller at work: from changes to keys, and from keys to runs.
//!
//! The engine runs keys under the posts that this process holds. It takes a post up by itself,
//! once the sources that its controller needs show what the post's claim was won at, so that a
//! source that is slow or broken holds only those who asked for it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use super::builder::{Registered, Target};
use super::claim::Fence;
use super::context::{Begin, Cause, Context, Setting};
use super::outcome::{Ended, Failing, Ran, panic_text};
use super::posts::{self, Duty, Held, Post};
use super::rare::{Rare, Rarely};
use super::status::{ControllerStatus, Counters, FailingKey, ParkedKey};
use super::unrest::Unrest;
use crate::cache::{EntryChange, Reader, SourceState, View};
use crate::model::ObjectKey;
use crate::observe::{Convergence, Finished, Journal};
use crate::queue::{Done, Job, Next, Priority, Queue, Request, Ticket};
use crate::store::{Prefix, Revision};

const MAX_SHOWN: usize = 100;
/// Keys that are queued together when everything is looked at.
const RESYNC_BATCH: usize = 256;
/// After winning a claim, the view gets this long to show the revision it was won at by itself.
const CATCH_UP: Duration = Duration::from_millis(300);
/// How often the kinds of a controller are looked at for records that cannot be read.
const HEALTH_CHECK: Duration = Duration::from_secs(2);

/// Whether keys may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Closed,
    Open,
    /// The controller is removed.
    Over,
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(super) controller: Registered,
    pub(super) setting: Arc<Setting>,
    pub(super) reader: Reader,
    pub(super) queue: Queue<Arc<ObjectKey>, Cause>,
    pub(super) counters: Counters,
    pub(super) journal: Journal,
    pub(super) convergence: Convergence,
    /// When it began, on the environment's clock.
    pub(super) begun: Duration,
    failing: Rare<BTreeMap<Arc<ObjectKey>, Failing>>,
    runs: AtomicU64,
    /// The sources without which nothing runs.
    pub(super) needs: Box<[usize]>,
    /// The posts that are taken up: a view of theirs may be decided on.
    live: RwLock<Held>,
    gate: watch::Sender<Gate>,
    pub(super) unrest: Unrest,
    /// A kind that cannot be read as a whole: nothing runs meanwhile.
    pub(super) unreadable: Mutex<Option<String>>,
}

/// Gives a key back even if its worker is dropped.
struct Taken<'e> {
    engine: &'e Engine,
    ticket: Ticket,
    failures: u32,
    back: bool,
}

impl Taken<'_> {
    /// Gives the key back, and takes the next one if there is one now and `more` is wanted.
    fn turn(mut self, done: Done<Cause>, more: bool) -> Option<Job<Arc<ObjectKey>, Cause>> {
        self.back = true;
        self.engine.queue.turn(self.ticket, done, more)
    }

    /// The run did not come to an end.
    fn not_run(&self) -> Done<Cause> {
        Done {
            next: Some(Next::now(Priority::Retry, Cause::Failed)),
            failures: self.failures,
            ..Done::ok()
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.back {
            self.engine.queue.done(self.ticket, self.not_run());
        }
    }
}

impl Engine {
    pub(crate) fn new(
        controller: Registered,
        setting: Arc<Setting>,
        reader: Reader,
        needs: Box<[usize]>,
        shards: usize,
    ) -> Arc<Self> {
        let queue = Queue::new(reader.sources().len(), setting.environment.clone());
        let engine = Arc::new(Self {
            controller,
            begun: setting.environment.monotonic(),
            journal: Journal::new(),
            convergence: Convergence::default(),
            setting,
            reader,
            queue,
            counters: Counters::default(),
            failing: Rare::default(),
            runs: AtomicU64::new(0),
            needs,
            live: RwLock::new(vec![None; shards].into()),
            gate: watch::Sender::new(Gate::Closed),
            unrest: Unrest::default(),
            unreadable: Mutex::default(),
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

    pub(crate) fn kinds(&self) -> &crate::model::Kinds {
        &self.controller.kinds
    }

    pub(crate) fn concurrency(&self) -> usize {
        let unset = || self.setting.environment.cores() * 4;
        self.controller.concurrency.unwrap_or_else(unset)
    }

    pub(super) fn failing(&self) -> Rarely<'_, BTreeMap<Arc<ObjectKey>, Failing>> {
        self.failing.lock()
    }

    /// The key's last run, if it failed, is not the last any more.
    pub(super) fn ended_well(&self, key: &Arc<ObjectKey>) {
        if !self.failing.is_empty() {
            self.failing().remove(key);
        }
    }

    fn live(&self) -> Held {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.clone()
    }

    /// The key is this process's to work on.
    pub(super) fn holds(&self, key: &ObjectKey) -> bool {
        posts::holds(&self.live(), key)
    }

    /// Takes note of what changed.
    pub(crate) fn offer(&self, changes: &[EntryChange], view: &View, initial: bool) {
        let live = self.live();
        let any = live.iter().any(Option::is_some);
        if initial && !any {
            // Everything is looked at when a post is taken up.
            return;
        }
        if !initial {
            self.time_wishes(changes);
        }
        let mut requests = Vec::with_capacity(changes.len());
        for change in changes {
            self.map(change, view, initial, &mut requests);
        }
        // What belongs to others is theirs to run, and is looked at when it becomes ours.
        requests.retain(|(key, _)| posts::holds(&live, key));
        if !requests.is_empty() {
            self.queue.push(requests);
        }
    }

    /// Adds the runs that one change asks for.
    fn map(
        &self,
        change: &EntryChange,
        view: &View,
        initial: bool,
        requests: &mut Vec<(Arc<ObjectKey>, Request<Cause>)>,
    ) {
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

    /// Asks for a run of every key of the shards in `posts`, by looking at everything there is.
    fn resync(&self, posts: &[Arc<Post>]) {
        let view = self.reader.view();
        let mut own = vec![None; self.live().len()];
        for post in posts {
            own[post.shard] = Some(post.clone());
        }
        let mut requests = Vec::new();
        for change in view.all_as_changes() {
            self.map(&change, &view, true, &mut requests);
            // So many at once that they are worth a lock, so few that the runs begin.
            if requests.len() >= RESYNC_BATCH {
                requests.retain(|(key, _)| posts::holds(&own, key));
                self.queue.push(requests.drain(..));
            }
        }
        requests.retain(|(key, _)| posts::holds(&own, key));
        if !requests.is_empty() {
            self.queue.push(requests);
        }
    }

    /// Takes posts up and leaves them as this process wins and loses them, until dropped.
    /// Nothing begins before `loaded`.
    pub(crate) async fn follow(
        &self,
        mut held: watch::Receiver<Held>,
        sources: &[Arc<SourceState>],
        loaded: oneshot::Receiver<()>,
    ) {
        // Its other end is kept until the kinds are read, or everything ends.
        let _ = loaded.await;
        loop {
            let now = held.borrow_and_update().clone();
            self.keep_only(&now);
            let live = self.live();
            let taken_up = |post: &Arc<Post>| live[post.shard].is_some();
            let waiting = now.iter().flatten().filter(|post| !taken_up(post));
            let waiting: Vec<_> = waiting.cloned().collect();
            let environment = &self.setting.environment;
            tokio::select! {
                biased;
                changed = held.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.take_up(&waiting, sources), if !waiting.is_empty() => {}
                () = environment.sleep(HEALTH_CHECK), if live.iter().any(Option::is_some) => {
                    if self.is_kind_unreadable(true) {
                        self.set_live(vec![None; live.len()].into());
                    }
                }
            }
        }
    }

    /// Leaves the posts that are not held any more.
    fn keep_only(&self, held: &Held) {
        let live = self.live();
        let kept = live.iter().zip(held.iter()).map(|(live, held)| {
            let same =
                |live: &&Arc<Post>| held.as_ref().is_some_and(|held| Arc::ptr_eq(live, held));
            live.as_ref().filter(same).cloned()
        });
        self.set_live(kept.collect());
    }

    fn set_live(&self, live: Held) {
        let gate = if live.iter().any(Option::is_some) {
            Gate::Open
        } else {
            Gate::Closed
        };
        let old = {
            let mut place = self.live.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *place, live)
        };
        drop(old);
        self.gate.send_if_modified(|old| {
            let changes = *old != Gate::Over && *old != gate;
            if changes {
                *old = gate;
            }
            changes
        });
    }

    /// Waits until some of `waiting` may be worked under, and begins with them.
    async fn take_up(&self, waiting: &[Arc<Post>], sources: &[Arc<SourceState>]) {
        let environment = &self.setting.environment;
        let mut moved = self.reader.moved();
        let patience = environment.sleep(CATCH_UP);
        tokio::pin!(patience);
        let mut asked = false;
        loop {
            moved.borrow_and_update();
            let reached = |post: &&Arc<Post>| self.lags_behind(post).next().is_none();
            let ready: Vec<_> = waiting.iter().filter(reached).cloned().collect();
            if !ready.is_empty() {
                if self.is_kind_unreadable(false) {
                    environment.sleep(HEALTH_CHECK).await;
                    continue;
                }
                let mut live = self.live().to_vec();
                for post in &ready {
                    live[post.shard] = Some(post.clone());
                }
                self.set_live(live.into());
                self.resync(&ready);
                return;
            }
            tokio::select! {
                biased;
                changed = moved.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = &mut patience, if !asked => {
                    asked = true;
                    // A claim is outside of what is watched, so nothing may tell that nothing
                    // changed. What was never read is being read.
                    let known = self.reader.sources();
                    for source in waiting.iter().flat_map(|post| self.lags_behind(post)) {
                        if known[source].is_some() {
                            sources[source].read_again();
                        }
                    }
                }
            }
        }
    }

    /// The needed sources that do not show what the post's claim was won at.
    fn lags_behind(&self, post: &Post) -> impl Iterator<Item = usize> {
        let epoch = post.fence.as_ref().map_or(Revision::ZERO, Fence::epoch);
        let known = self.reader.sources();
        let lags = move |source: &usize| known[*source].is_none_or(|at| at < epoch);
        self.needs.iter().copied().filter(lags)
    }

    /// A kind of this controller cannot be read as a whole, so that no plan may count on it. With
    /// `suspected`, only if something was found that cannot be read.
    fn is_kind_unreadable(&self, suspected: bool) -> bool {
        let view = self.reader.view();
        let found = if suspected && !view.has_unreadable() {
            None
        } else {
            let mut checks = self.controller.checks.iter();
            checks.find_map(|check| check(&view))
        };
        let mut unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *unreadable != found {
            if let Some(found) = &found {
                tracing::error!(controller = self.name(), "nothing runs: {found}");
            }
            unreadable.clone_from(&found);
        }
        found.is_some()
    }

    pub(crate) fn reached(&self, revisions: &[Revision]) {
        self.queue.reached(revisions);
    }

    /// Another history is taken from here on.
    pub(crate) fn begin_history(&self) {
        self.queue.begin_history();
    }

    /// Looks at everything again, because something that was held back is not any more.
    pub(crate) fn look_again(&self) {
        let posts: Vec<_> = self.live().iter().flatten().cloned().collect();
        self.resync(&posts);
    }

    pub(crate) async fn run_timers(&self) {
        self.queue.run_timers().await;
    }

    /// Lets no run begin any more; workers end when they have done theirs.
    pub(crate) fn retire(&self) {
        self.gate.send_replace(Gate::Over);
    }

    /// Runs keys until retired.
    pub(crate) async fn work(&self) {
        let mut gate = self.gate.subscribe();
        // What is ready when a key is given back is taken without setting up a wait, up to what
        // tokio lets one task do at once.
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None => {
                    let open = match *gate.borrow_and_update() {
                        Gate::Over => return,
                        Gate::Open => true,
                        Gate::Closed => false,
                    };
                    tokio::select! {
                        biased;
                        changed = gate.changed() => {
                            if changed.is_err() {
                                return;
                            }
                            continue;
                        }
                        job = self.queue.next(), if open => job,
                    }
                }
            };
            let (taken, done) = self.run(job).await;
            tokio::task::coop::consume_budget().await;
            let open = *gate.borrow() == Gate::Open;
            next = taken.turn(done, open);
        }
    }

    /// Waits while nothing may run: everything is frozen, say. False when no run may begin here
    /// any more.
    async fn may_run(&self, duty: &posts::Duty) -> bool {
        let mut gate = self.gate.subscribe();
        let reports = self.controller.reports_while_frozen;
        tokio::select! {
            biased;
            () = self.setting.guards.runs_allowed(reports) => true,
            () = duty.closed() => false,
            _ = gate.wait_for(|gate| matches!(gate, Gate::Over)) => false,
        }
    }

    /// Runs a key, and says what is to be done with it then.
    async fn run(&self, job: Job<Arc<ObjectKey>, Cause>) -> (Taken<'_>, Done<Cause>) {
        let taken = Taken {
            engine: self,
            ticket: job.ticket,
            failures: job.failures,
            back: false,
        };
        let Some(duty) = self.enter(&job.key) else {
            return (taken, Done::ok());
        };
        let environment = &self.setting.environment;
        let mut begun = job.taken;
        let guards = &self.setting.guards;
        if !guards.are_runs_allowed(self.controller.reports_while_frozen) {
            if !self.may_run(&duty).await {
                let done = taken.not_run();
                return (taken, done);
            }
            begun = environment.monotonic();
        }
        if let Some(until) = self.unrest.held_until(&job.key, begun) {
            let done = Done {
                next: Some(Next::backoff(until, Cause::Slowed)),
                failures: job.failures,
                conflicts: job.conflicts,
                ..Done::ok()
            };
            return (taken, done);
        }
        if !self.afford(&duty).await {
            return (taken, Done::ok());
        }
        let echo = self.unrest.is_echo(&job.key, job.causes.as_slice());
        let view = self.reader.view().asking();
        let id = self.runs.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!(
            "reconcile",
            controller = self.name(),
            key = %job.key,
            id,
            causes = ?job.causes.as_slice(),
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
            post: duty.post().clone(),
        };
        let context = Context::new(self.setting.clone(), begin);
        let run = context.clone();
        let run = AssertUnwindSafe(async move { (self.controller.run)(run).await }).catch_unwind();
        let ended = async {
            tokio::select! {
                biased;
                outcome = run => match outcome {
                    Ok(outcome) => Ended::Returned(outcome),
                    Err(panic) => Ended::Panicked(panic_text(&*panic)),
                },
                () = self.time_is_up(&context) => Ended::TimedOut,
                () = duty.cut() => Ended::Cut,
            }
        }
        .instrument(span.clone())
        .await;
        let notes = context.take_notes();
        if let Some(budget) = &self.setting.budget
            && notes.wrote.is_empty()
        {
            budget.give_back(environment.monotonic());
        }
        let own_writes = notes.wrote.iter().map(|written| written.revision).collect();
        let must_see = if notes.wrote.is_empty() && notes.unsure.is_empty() {
            Vec::new()
        } else {
            self.must_see(&context, &notes, &duty).await
        };
        let now = environment.monotonic();
        let run = Ran {
            context: &context,
            notes: &notes,
            failures: job.failures,
            conflicts: job.conflicts,
            echo,
            now,
        };
        let judged = span.in_scope(|| self.judge(&job.key, ended, &run));
        span.record("outcome", judged.ending.as_str());
        self.journal.note(Finished {
            path: job.key.path().into(),
            id,
            begun,
            took: now.saturating_sub(begun),
            waited: job.waited,
            causes: context.all_causes().clone(),
            more_causes: job.more_causes,
            wrote: notes.wrote.iter().map(|written| written.revision).max(),
            ending: judged.ending,
            error: judged.error,
        });
        let done = Done {
            must_see,
            own_writes,
            ..judged.done
        };
        (taken, done)
    }

    /// Begins a run of a key that is this process's to work on.
    fn enter(&self, key: &ObjectKey) -> Option<Duty> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        posts::enter(&live, key)
    }

    /// Waits until the write budget has something for a run; false when the run may not begin any
    /// more.
    async fn afford(&self, duty: &Duty) -> bool {
        let Some(budget) = &self.setting.budget else {
            return true;
        };
        let environment = &self.setting.environment;
        while let Err(wait) = budget.take(environment.monotonic()) {
            tokio::select! {
                biased;
                () = duty.closed() => return false,
                () = environment.sleep(wait) => {}
            }
        }
        true
    }

    /// Completes when a run took longer than it may, what it waited for the budget not counted.
    async fn time_is_up(&self, context: &Context) {
        let mut counted = Duration::ZERO;
        let mut left = self.controller.timeout;
        while !left.is_zero() {
            self.setting.environment.sleep(left).await;
            let waited = context.waited();
            left = waited.saturating_sub(counted);
            counted = waited;
        }
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
        let known = self.reader.sources();
        let unread = self.needs.iter().filter(|&&source| known[source].is_none());
        let unreadable = self.unreadable.lock();
        let mut status = ControllerStatus {
            name: self.name().to_owned(),
            waits_for: unread.map(|&source| prefixes[source].clone()).collect(),
            unreadable: unreadable.unwrap_or_else(PoisonError::into_inner).clone(),
            ready: sizes.ready.iter().sum(),
            waiting: sizes.waiting,
            parked: sizes.parked,
            running: sizes.running,
            oldest_ready: sizes.oldest_ready,
            longest_parked: self.longest_parked(prefixes).map(|(_, parked)| parked),
            ..ControllerStatus::default()
        };
        self.counters.fill(&mut status);
        let now = self.setting.environment.monotonic();
        status.restless = self.unrest.shown(MAX_SHOWN, now);
        let budget = self.setting.budget.as_ref();
        status.over_budget = budget.and_then(|budget| budget.wait(now));
        let failing = self.failing();
        let shown = failing.iter().take(MAX_SHOWN);
        status.failing = shown
            .map(|(key, failing)| FailingKey {
                key: (**key).clone(),
                failures: failing.failures,
                error: failing.error.clone(),
            })
            .collect();
        status
    }
}
