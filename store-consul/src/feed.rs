//! One task per store that finds out what changed, for all of its watchers.
//!
//! It waits on the top of the generations with one blocking read, however many watchers there
//! are. Woken, it looks which scopes changed and reads those that somebody watches. What it
//! tells is always one moment of the store: it reads until nothing that it needs has changed
//! between its first read and its last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::store::{Change, Key, LeaseId, Prefix, Revision, StoreError, WatchStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::Wake;
use crate::gone::Gone;
use crate::layout::{CLOCK, GENERATIONS, MANY, Place, Scope, TOP, bucket_of, lease_of};
use crate::probe::Probe;
use crate::shared::{PROBE, Shared, Wanted, locked};
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
/// Buckets and scopes that one read asks for, within Consul's 64 operations.
const BUCKETS: usize = 17;
const SCOPES: usize = 20;
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
    /// Everything up to this index was told. None before the first round.
    at: Option<u64>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Whoever still reads it when the feed ends is told so.
        self.watcher
            .fail(StoreError::unavailable("the watch of the store ended"));
    }
}

/// The index of each bucket; zero before its first change. Cheap to clone.
#[derive(Clone, Debug)]
struct Buckets(Arc<[u64; 256]>);

impl Default for Buckets {
    fn default() -> Self {
        Self(Arc::new([0; 256]))
    }
}

/// The top of the generations at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Top {
    pub(crate) clock: u64,
    many: u64,
    buckets: Buckets,
    ended_leases: Vec<LeaseId>,
}

impl Top {
    fn of<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> Self {
        let mut top = Self::default();
        for pair in pairs {
            if pair.key == CLOCK {
                top.clock = pair.modified;
            } else if pair.key == MANY {
                top.many = pair.modified;
            } else if let Some(bucket) = bucket_of(&pair.key) {
                Arc::make_mut(&mut top.buckets.0)[usize::from(bucket)] = pair.modified;
            } else if let Some(lease) = lease_of(&pair.key)
                && pair.session.is_none()
            {
                top.ended_leases.push(LeaseId(lease));
            }
        }
        top
    }
}

/// What a scope held at a moment.
#[derive(Debug)]
struct Content {
    clock: u64,
    pairs: Vec<Pair>,
    gone: Option<(u64, Gone)>,
}

/// What is known while a moment is looked for.
#[derive(Debug, Default)]
struct Search {
    top: Option<Top>,
    generations: BTreeMap<Scope, u64>,
    buckets: BTreeSet<u8>,
    all: bool,
    contents: HashMap<Scope, Content>,
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
        let mut tick = Instant::now() + TICK;
        let mut top = None;
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
                self.followed.extend(
                    new.into_iter()
                        .map(|watcher| Followed { watcher, at: None }),
                );
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
                if look || top.is_some() {
                    self.pace().await;
                    // What a server that lags behind showed says nothing to newcomers.
                    let top = top.take().filter(|_| !look);
                    look = false;
                    let outcome = self.round(top).await;
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
            let blocking = waiting
                .get_or_insert_with(|| Box::pin(async move { api.api.blocking(TOP, index).await }));
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
                            let seen = Top::of(&wake.pairs);
                            self.bury(&seen).await;
                            top = Some(seen);
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

    /// Deletes what hung on leases that have ended.
    async fn bury(&self, top: &Top) {
        for lease in &top.ended_leases {
            if let Err(error) = self.shared.bury(*lease).await {
                tracing::debug!(lease = lease.0, %error, "what hung on an ended lease is left to others");
            }
        }
    }

    /// Brings all watchers to one moment, not before that of `top`.
    async fn round(&mut self, top: Option<Top>) -> Result<(), StoreError> {
        let mut search = Search {
            top,
            ..Search::default()
        };
        if let Some(top) = &search.top {
            let behind = self
                .followed
                .iter()
                .any(|followed| followed.at < Some(top.clock));
            if !behind {
                return Ok(());
            }
        }
        for _ in 0..READS {
            if let Some(clock) = self.read(&mut search).await? {
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

    /// One read; the moment, once it is found.
    async fn read(&mut self, search: &mut Search) -> Result<Option<u64>, StoreError> {
        if let Some(top) = search.top.clone() {
            self.find_buckets(search, &top);
        }
        let missing = self.missing(search);
        let mut wanted = Wanted::default();
        let asks_top = search.top.is_none();
        if asks_top {
            wanted.trees.push(TOP.to_owned());
            wanted.readable.push(format!("{TOP}{PROBE}"));
        }
        let buckets = search.buckets.clone();
        let all = search.all;
        if all {
            wanted.trees.push(GENERATIONS.to_owned());
        } else {
            let begins = buckets
                .iter()
                .map(|bucket| format!("{GENERATIONS}{bucket:02x}/"));
            wanted.trees.extend(begins);
        }
        if all || !buckets.is_empty() {
            wanted.readable.push(format!("{GENERATIONS}{PROBE}"));
        }
        let scopes: Vec<Scope> = missing.into_iter().take(SCOPES).collect();
        for scope in &scopes {
            match scope.place() {
                Place::Exactly(key) => wanted.exact.push(key),
                Place::Below(begin) => {
                    wanted.readable.push(format!("{begin}{PROBE}"));
                    wanted.trees.push(begin);
                }
            }
        }
        let view = self.shared.view(&wanted).await?;
        let clock = view.clock;
        let found: BTreeMap<String, Pair> = view
            .exact
            .into_iter()
            .flatten()
            .chain(view.trees)
            .map(|pair| (pair.key.clone(), pair))
            .collect();
        let below = |begin: &str| {
            let begin = begin.to_owned();
            found
                .range(begin.clone()..)
                .take_while(move |(key, _)| key.starts_with(&begin))
                .map(|(_, pair)| pair)
        };
        if asks_top {
            let top = Top {
                clock,
                ..Top::of(below(TOP))
            };
            self.place_newcomers(clock).await?;
            search.top = Some(top);
        } else if search.top.as_ref().is_none_or(|top| top.clock != clock) {
            // Something was committed since: what, only the top tells.
            search.top = None;
        }
        if all || !buckets.is_empty() {
            for pair in below(GENERATIONS) {
                if let Some(scope) = Scope::of_generation(&pair.key) {
                    search.generations.insert(scope, pair.modified);
                }
            }
        }
        for scope in scopes {
            let (pairs, gone) = match scope.place() {
                Place::Exactly(key) => (found.get(&key).cloned().into_iter().collect(), None),
                Place::Below(begin) => {
                    let gone = scope.gone().and_then(|key| found.get(&key));
                    let gone = gone.map(|pair| {
                        let list = Gone::read(&pair.value);
                        (
                            pair.modified,
                            list.unwrap_or_else(|| Gone::from(pair.modified)),
                        )
                    });
                    (below(&begin).cloned().collect(), gone)
                }
            };
            search
                .contents
                .insert(scope, Content { clock, pairs, gone });
        }
        let Some(top) = search.top.clone() else {
            return Ok(None);
        };
        self.find_buckets(search, &top);
        let loaded = all || (!search.all && search.buckets.is_subset(&buckets));
        if loaded && self.missing(search).is_empty() {
            return Ok(Some(clock));
        }
        Ok(None)
    }

    /// Which buckets changed since anybody was last told.
    fn find_buckets(&self, search: &mut Search, top: &Top) {
        let at = self.followed.iter().filter_map(|followed| followed.at);
        let base = at.min().unwrap_or(u64::MAX);
        let changed = (0_u8..=255).zip(top.buckets.0.iter());
        let changed = changed.filter(|(_, index)| **index > base);
        search.buckets.extend(changed.map(|(bucket, _)| bucket));
        search.all |= top.many > base || search.buckets.len() > BUCKETS;
    }

    /// The scopes whose content somebody needs and that was not read since it changed.
    fn missing(&self, search: &Search) -> Vec<Scope> {
        let needed = |scope: &Scope, index: u64| {
            self.followed.iter().any(|followed| {
                followed.at.is_some_and(|at| at < index) && scope.meets(&followed.watcher.prefix)
            })
        };
        let read = |scope: &Scope, index: u64| {
            let content = search.contents.get(scope);
            content.is_some_and(|content| content.clock >= index)
        };
        search
            .generations
            .iter()
            .filter(|(scope, index)| !read(scope, **index) && needed(scope, **index))
            .map(|(scope, _)| scope.clone())
            .collect()
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
            let Some(at) = followed.at else { continue };
            if at >= clock {
                continue;
            }
            match changes(&self.shared, search, &followed.watcher.prefix, at) {
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

/// What changed under a prefix after an index, and the newest index among it; None when deletes
/// may be missing.
fn changes(
    shared: &Shared,
    search: &Search,
    prefix: &Prefix,
    at: u64,
) -> Option<(Vec<Change>, u64)> {
    let mut changes = BTreeMap::new();
    let mut newest = 0;
    for (scope, index) in &search.generations {
        if *index <= at || !scope.meets(prefix) {
            continue;
        }
        let Some(content) = search.contents.get(scope) else {
            continue;
        };
        let mut there = BTreeSet::new();
        for pair in &content.pairs {
            there.insert(pair.key.as_str());
            if pair.modified <= at || !prefix.covers(&pair.key) {
                continue;
            }
            if let Some(record) = shared.record(pair.clone()) {
                newest = newest.max(pair.modified);
                changes.insert(record.key.clone(), Change::Put(record));
            }
        }
        let gone = match scope.place() {
            Place::Exactly(key) if there.contains(key.as_str()) => Vec::new(),
            Place::Exactly(key) => vec![(*index, key)],
            Place::Below(begin) => match &content.gone {
                None => Vec::new(),
                Some((list_index, list)) => list
                    .clone()
                    .since(*list_index, at)?
                    .into_iter()
                    .map(|(index, name)| (index, format!("{begin}{name}")))
                    .collect(),
            },
        };
        for (index, key) in gone {
            if there.contains(key.as_str()) || !prefix.covers(&key) {
                continue;
            }
            if let Ok(key) = Key::new(&key) {
                newest = newest.max(index);
                let revision = shared.revision(index);
                changes.insert(key.clone(), Change::Delete { key, revision });
            }
        }
    }
    Some((changes.into_values().collect(), newest))
}
