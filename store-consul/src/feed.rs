//! One task per store that finds out what changed, for all of its watchers.
//!
//! It waits on the clock with one blocking read, however many watchers there are. Woken, it looks
//! which scopes changed and reads those that somebody watches (`search`). What it tells is always
//! one moment of the store: it reads until nothing that it needs has changed between its first
//! read and its last. A second blocking read waits for leases that end (`burial`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::store::{Prefix, Revision, StoreError, WatchStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::Wake;
use crate::burial::Burial;
use crate::layout::{CLOCK, Scope};
use crate::probe::Probe;
use crate::search::{Search, Seeker};
use crate::shared::{Shared, locked};
use crate::watch::{Watcher, stream};
use crate::wire::Pair;

/// Rounds that may follow each other at once, and how long it takes to earn another one: a busy
/// store is read a hundred times a second, not once for each commit.
const BURST: u32 = 16;
const ROUND: Duration = Duration::from_millis(10);
/// Watchers are told nothing of failures that pass within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// The store is asked at least this often, so that a lost right or another history shows.
const TICK: Duration = Duration::from_secs(20);
/// How long the feed goes on without watchers: a new one comes soon, as a rule.
const LINGER: Duration = Duration::from_secs(30);
/// Reads until a moment is found, before watchers are told to read everything.
const READS: usize = 60;

/// The watchers of a store.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Not yet seen by the feed's task.
    new: Vec<Arc<Watcher>>,
    /// The task that runs, by its number.
    running: Option<u64>,
    tasks: u64,
    closed: bool,
}

impl Feed {
    /// The store is gone: so are its watches.
    pub(crate) fn close(&self) {
        locked(&self.state).closed = true;
        self.news.notify_one();
    }
}

/// Begins a watch.
pub(crate) fn watch(shared: &Arc<Shared>, prefix: Prefix, after: Revision) -> WatchStream {
    let watcher = Arc::new(Watcher::new(prefix, after));
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        watcher.fail(StoreError::Invalid {
            reason: "a watch on Consul needs a tokio runtime around it".to_owned(),
        });
        return stream(watcher);
    };
    let mut state = locked(&shared.feed.state);
    state.new.push(Arc::clone(&watcher));
    if state.running.is_none() {
        state.tasks += 1;
        state.running = Some(state.tasks);
        let running = Running(Arc::clone(shared), state.tasks);
        runtime.spawn(async move {
            let mut task = Task::new(Arc::clone(&running.0));
            task.run().await;
            drop(running);
        });
    }
    drop(state);
    shared.feed.news.notify_one();
    stream(watcher)
}

/// Says that the task runs, until it ends in whatever way.
struct Running(Arc<Shared>, u64);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = locked(&self.0.feed.state);
        if state.running != Some(self.1) {
            // It ended in order, and another one may run by now.
            return;
        }
        state.running = None;
        for watcher in state.new.drain(..) {
            watcher.fail(StoreError::unavailable("the watch of the store ended"));
        }
    }
}

/// A watcher with how far it has come.
#[derive(Debug)]
struct Followed {
    watcher: Arc<Watcher>,
    /// The only bucket that has anything for it; None: any may have.
    bucket: Option<u8>,
    /// Everything up to this index was told. None before the first round.
    at: Option<u64>,
}

impl Followed {
    fn new(watcher: Arc<Watcher>) -> Self {
        Self {
            bucket: Scope::around(&watcher.prefix).map(|scope| scope.bucket()),
            watcher,
            at: None,
        }
    }

    fn seeker(&self) -> Option<Seeker<'_>> {
        Some(Seeker {
            prefix: &self.watcher.prefix,
            bucket: self.bucket,
            at: self.at?,
        })
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Whoever still reads it when the feed ends is told so.
        self.watcher
            .fail(StoreError::unavailable("the watch of the store ended"));
    }
}

struct Task {
    shared: Arc<Shared>,
    followed: Vec<Followed>,
    /// Where the next blocking read waits; never zero, which would not wait.
    index: u64,
    failing: Option<(Instant, u32)>,
    tokens: u32,
    earned: Instant,
    idle_since: Option<Instant>,
    probe: Probe,
}

impl Task {
    fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let probe = Probe::new(now + shared.options.probe_interval);
        Self {
            shared,
            followed: Vec::new(),
            index: 1,
            failing: None,
            tokens: BURST,
            earned: now,
            idle_since: None,
            probe,
        }
    }

    async fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        let _burial = Burial::begin(&shared);
        let mut tick = Instant::now() + TICK;
        let mut clock: Option<Pair> = None;
        let mut look = false;
        let mut waiting: Option<BoxFuture<'static, Result<Wake, StoreError>>> = None;
        loop {
            let newcomers = {
                let mut state = locked(&shared.feed.state);
                if state.closed {
                    return;
                }
                let new = std::mem::take(&mut state.new);
                let any = !new.is_empty();
                self.followed.extend(new.into_iter().map(Followed::new));
                self.followed.retain(|followed| !followed.watcher.is_over());
                any
            };
            if self.followed.is_empty() {
                let since = *self.idle_since.get_or_insert_with(Instant::now);
                let mut state = locked(&shared.feed.state);
                if since.elapsed() > LINGER && state.new.is_empty() {
                    state.running = None;
                    return;
                }
            } else {
                self.idle_since = None;
                let due = Instant::now() >= tick;
                look |= newcomers || due || self.failing.is_some();
                if look || clock.is_some() {
                    self.pace().await;
                    let outcome = self.round(clock.take(), look).await;
                    look = false;
                    self.outcome(outcome).await;
                    if due {
                        tick = Instant::now() + TICK;
                    }
                }
                if self.failing.is_none() && self.probe.is_due() {
                    self.probe().await;
                }
            }
            let api = Arc::clone(&self.shared);
            let index = self.index;
            let blocking = waiting.get_or_insert_with(|| {
                Box::pin(async move { api.api.wait_for(CLOCK, index).await })
            });
            let until = tick.min(self.probe.due()).min(Instant::now() + LINGER);
            tokio::select! {
                biased;
                () = self.shared.feed.news.notified() => {}
                wake = blocking => {
                    waiting = None;
                    match wake {
                        Ok(wake) => {
                            // Backwards is another history, or tombstones that were reaped. And a
                            // restore ends the wait with what was there before it: the same
                            // index again means as little. The leader knows.
                            look |= wake.index <= self.index;
                            let backwards = wake.index < self.index;
                            self.index = if backwards { 1 } else { wake.index.max(1) };
                            clock = wake.pairs.into_iter().next();
                            // None was set yet, or it was taken away, or it may not be read.
                            look |= clock.is_none();
                        }
                        Err(error) => {
                            self.index = 1;
                            self.outcome(Err(error)).await;
                        }
                    }
                }
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Waits until another round may begin.
    async fn pace(&mut self) {
        let earned = u32::try_from(self.earned.elapsed().as_micros() / ROUND.as_micros());
        let earned = earned.unwrap_or(BURST);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.earned = Instant::now();
        }
        if self.tokens == 0 {
            tokio::time::sleep(ROUND).await;
            self.earned = Instant::now();
        } else {
            self.tokens -= 1;
        }
    }

    async fn outcome(&mut self, outcome: Result<(), StoreError>) {
        let Err(error) = outcome else {
            self.failing = None;
            return;
        };
        let (since, count) = *self.failing.get_or_insert_with(|| (Instant::now(), 0));
        if !error.is_transient() || since.elapsed() > PATIENCE {
            tracing::debug!(%error, watchers = self.followed.len(), "watches of Consul end");
            for followed in self.followed.drain(..) {
                followed.watcher.fail(error.clone());
            }
            self.failing = None;
        } else {
            self.failing = Some((since, count.saturating_add(1)));
        }
        let most = Duration::from_millis(50) * 2_u32.pow(count.min(5));
        let pause = self.shared.environment.jitter(most);
        tokio::time::sleep(pause.max(Duration::from_millis(10))).await;
    }

    /// Brings all watchers to one moment, not before that of the clock that was seen. They are there
    /// already when nothing is newer than it, unless they are to `look` anyway.
    async fn round(&mut self, seen: Option<Pair>, look: bool) -> Result<(), StoreError> {
        let mut search = Search::default();
        if let Some(clock) = seen {
            let is_behind = |followed: &Followed| followed.at < Some(clock.modified);
            if !look && !self.followed.iter().any(is_behind) {
                return Ok(());
            }
            search.hear(clock.modified, &clock.value);
        }
        for _ in 0..READS {
            let step = search.step(&self.seekers());
            let view = self.shared.view(&step.wanted()).await?;
            let clock = view.clock;
            search.take(&step, view);
            self.place_newcomers(clock).await?;
            if search.is_complete(&step, &self.seekers()) {
                self.tell(&search, clock);
                return Ok(());
            }
        }
        for followed in &self.followed {
            followed
                .watcher
                .reset("so much changes that only reading everything is quick enough");
        }
        Ok(())
    }

    fn seekers(&self) -> Vec<Seeker<'_>> {
        self.followed.iter().filter_map(Followed::seeker).collect()
    }

    /// Finds out where newcomers stand, and who is of another history.
    async fn place_newcomers(&mut self, clock: u64) -> Result<(), StoreError> {
        let epoch = self.shared.epoch();
        for followed in &mut self.followed {
            let at = match followed.at {
                Some(at) => at,
                None if followed.watcher.after.epoch() == epoch => followed.watcher.after.counter(),
                None if followed.watcher.after == Revision::ZERO => 0,
                None => {
                    followed
                        .watcher
                        .reset("the revision is of another epoch of the store");
                    continue;
                }
            };
            if at > clock {
                // What somebody wrote around the store may have moved it on beyond its clock.
                let begin = followed.watcher.prefix.as_str();
                let index = self.shared.api.index_of(begin).await?;
                if at > index {
                    followed.watcher.reset(
                        "the store has not reached the revision: it is another history of it",
                    );
                    continue;
                }
            }
            followed.at = Some(at);
        }
        self.followed.retain(|followed| !followed.watcher.is_over());
        Ok(())
    }

    /// Tells every watcher what the moment found holds for it.
    fn tell(&mut self, search: &Search, clock: u64) {
        for followed in &mut self.followed {
            let Some(seeker) = followed.seeker().filter(|seeker| seeker.at < clock) else {
                continue;
            };
            match search.changes(&self.shared, seeker) {
                Some((changes, newest)) => {
                    let reached = clock.max(newest);
                    followed.at = Some(reached);
                    followed
                        .watcher
                        .tell(self.shared.revision(reached), changes);
                }
                None => followed
                    .watcher
                    .reset("more was deleted since than the store remembers"),
            }
        }
    }

    /// Looks for what somebody wrote around the store.
    async fn probe(&mut self) {
        let prefixes: Vec<Prefix> = self
            .followed
            .iter()
            .map(|followed| followed.watcher.prefix.clone())
            .collect();
        let interval = self.shared.options.probe_interval;
        match self.probe.run(&self.shared, &prefixes, interval).await {
            Ok(foreign) => {
                for foreign in foreign {
                    for followed in &self.followed {
                        let watcher = &followed.watcher;
                        let unseen = watcher.after.counter() < foreign.index;
                        if unseen && watcher.prefix.overlaps(&foreign.range) {
                            watcher.reset("somebody wrote there without platctrl");
                        }
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "no look for foreign writes"),
        }
    }
}
