//! Simulated agents: they run processes for objects of a kind, as a table and not for real.
//!
//! One task plays the agents of all nodes. An agent claims an object before it starts its process,
//! takes a while for everything, reports what it sees, and stops only what has a tombstone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Order, joined as records};
use super::dice::{Dice, mix};
use super::process::{Process, ProcessPhase};
use super::trace::Actor;
use crate::client::Batch;
use crate::model::{
    Condition, ConditionStatus, Joined, Object, ObjectKey, Phase, RawObject, Resource, Scope,
    Status, Tree,
};
use crate::store::{Key, Prefix};

type Test<K> = Arc<dyn Fn(&Object<K>) -> bool + Send + Sync>;
type Report<K> =
    Arc<dyn Fn(&Object<K>, &Process, &mut Status<<K as Resource>::Status>) + Send + Sync>;

/// Agents that run a simulated process for each object of the kind `K`, on the node that is part
/// of its key. Objects of kinds without a node are all worked on by one agent.
///
/// An agent reports the phase (`Starting`, `Running`, `Crashed`, `Stopping`, `Gone`), the
/// condition `Ready`, and which spec it is about; [`Worker::reports`] adds what else the kind's
/// status holds.
pub struct Worker<K: Resource> {
    report: Option<Report<K>>,
    fails: Option<Test<K>>,
    reaction: Duration,
    start: (Duration, Duration),
    stop: Duration,
}

impl<K: Resource> std::fmt::Debug for Worker<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("kind", &K::KIND)
            .finish_non_exhaustive()
    }
}

impl<K: Resource> Default for Worker<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Resource> Worker<K> {
    /// Agents that notice after 10 ms, start a process in 100 to 300 ms and stop one in 100 ms.
    #[must_use]
    pub fn new() -> Self {
        Self {
            report: None,
            fails: None,
            reaction: Duration::from_millis(10),
            start: (Duration::from_millis(100), Duration::from_millis(300)),
            stop: Duration::from_millis(100),
        }
    }

    /// Fills in the rest of a report: the kind's own status.
    #[must_use]
    pub fn reports(
        mut self,
        report: impl Fn(&Object<K>, &Process, &mut Status<K::Status>) + Send + Sync + 'static,
    ) -> Self {
        self.report = Some(Arc::new(report));
        self
    }

    /// Processes of these objects run and never become healthy.
    #[must_use]
    pub fn fails(mut self, fails: impl Fn(&Object<K>) -> bool + Send + Sync + 'static) -> Self {
        self.fails = Some(Arc::new(fails));
        self
    }

    /// How long an agent takes to notice a change.
    #[must_use]
    pub fn reaction(mut self, reaction: Duration) -> Self {
        self.reaction = reaction;
        self
    }

    /// How long a process takes to start: a time between these two, drawn.
    #[must_use]
    pub fn start_delay(mut self, least: Duration, most: Duration) -> Self {
        self.start = (least, most.max(least));
        self
    }

    /// How long a process takes to stop.
    #[must_use]
    pub fn stop_delay(mut self, stop: Duration) -> Self {
        self.stop = stop;
        self
    }
}

/// A [`Worker`] without its type.
pub(super) trait AnyWorker: Send + Sync {
    /// It works on the object with this path (a key behind `o/<tree>/`).
    fn works_on(&self, path: &str) -> bool;
    fn scope(&self) -> Scope;
    fn intents(&self) -> Prefix;
    fn fails(&self, object: &RawObject) -> bool;
    fn delays(&self) -> Delays;
    /// Adds the report on a process to a batch.
    fn report(&self, batch: &mut Batch, joined: &Joined, seen: Seen<'_>) -> Result<(), String>;
}

#[derive(Clone, Copy)]
pub(super) struct Delays {
    reaction: Duration,
    start: (Duration, Duration),
    stop: Duration,
}

/// What an agent sees of a process.
pub(super) struct Seen<'p> {
    process: &'p Process,
    now: jiff::Timestamp,
}

impl<K: Resource> AnyWorker for Worker<K> {
    fn works_on(&self, path: &str) -> bool {
        let rest = path
            .strip_prefix(K::GROUP)
            .and_then(|rest| rest.strip_prefix('/'));
        let rest = rest.and_then(|rest| rest.strip_prefix(K::PLURAL));
        rest.is_some_and(|rest| rest.starts_with('/'))
    }

    fn scope(&self) -> Scope {
        K::SCOPE
    }

    fn intents(&self) -> Prefix {
        K::group_plural().prefix(Tree::Intent)
    }

    fn fails(&self, object: &RawObject) -> bool {
        let Some(fails) = &self.fails else {
            return false;
        };
        object.typed::<K>().is_ok_and(|object| fails(&object))
    }

    fn delays(&self) -> Delays {
        Delays {
            reaction: self.reaction,
            start: self.start,
            stop: self.stop,
        }
    }

    fn report(&self, batch: &mut Batch, joined: &Joined, seen: Seen<'_>) -> Result<(), String> {
        let raw = joined.object().ok_or("there is no intent")?;
        let object = raw.typed::<K>().map_err(|error| error.to_string())?;
        let Seen { process, now } = seen;
        let mut status = object.status.clone();
        status.phase = match process.phase {
            ProcessPhase::Starting => Phase::new("Starting"),
            ProcessPhase::Running => Phase::new("Running"),
            ProcessPhase::Crashed => Phase::new("Crashed"),
            ProcessPhase::Stopping => Phase::new("Stopping"),
        };
        status.observed_generation = Some(process.generation);
        status.observed_spec = Some(process.digest);
        let (holds, reason) = match (process.phase, process.healthy) {
            (ProcessPhase::Running, true) => (ConditionStatus::True, "Healthy"),
            (ProcessPhase::Running, false) => (ConditionStatus::False, "Unhealthy"),
            _ => (ConditionStatus::False, "NotRunning"),
        };
        let ready = Condition::new("Ready", holds, reason, "");
        status.conditions.set(ready, process.generation, now);
        if let Some(report) = &self.report {
            report(&object, process, &mut status);
        }
        batch
            .report_typed::<K>(joined, &status)
            .map_err(|error| error.to_string())?;
        Ok(())
    }
}

enum Timer {
    Look(Arc<str>),
    Started(Arc<str>),
    Stopped(Arc<str>),
}

impl Timer {
    fn path(&self) -> &Arc<str> {
        match self {
            Self::Look(path) | Self::Started(path) | Self::Stopped(path) => path,
        }
    }
}

/// The agents of all nodes.
pub(super) struct Fleet {
    core: Arc<Core>,
    timers: BTreeMap<(Duration, u64), Timer>,
    sequence: u64,
    down: BTreeSet<String>,
    dice: Dice,
}

impl Fleet {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let dice = Dice::new(mix(core.schedule.seed ^ 0xf1ee7));
        Self {
            core,
            timers: BTreeMap::new(),
            sequence: 0,
            down: BTreeSet::new(),
            dice,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let (orders, dirty) = {
                let mut state = self.core.state();
                (
                    std::mem::take(&mut state.orders),
                    std::mem::take(&mut state.dirty),
                )
            };
            for order in orders {
                self.obey(order);
            }
            for path in dirty {
                if let Some(worker) = self.worker(&path) {
                    self.after(worker.delays().reaction, Timer::Look(path));
                }
            }
            let now = self.core.now();
            while let Some(first) = self.timers.first_entry()
                && first.key().0 <= now
            {
                let timer = first.remove();
                self.ring(timer);
            }
            let next = self.timers.first_key_value().map(|((at, _), _)| *at);
            self.core.state().fleet_busy = next.is_some();
            match next {
                None => self.core.fleet.notified().await,
                Some(at) => tokio::select! {
                    biased;
                    () = self.core.fleet.notified() => {}
                    () = tokio::time::sleep(at.saturating_sub(now)) => {}
                },
            }
        }
    }

    fn worker(&self, path: &str) -> Option<Arc<dyn AnyWorker>> {
        let workers = &self.core.config.workers;
        workers.iter().find(|worker| worker.works_on(path)).cloned()
    }

    fn key(&self, worker: &dyn AnyWorker, path: &str) -> Option<ObjectKey> {
        let key = Key::new(format!("o/intent/{path}")).ok()?;
        Some(ObjectKey::parse(&key, |_, _| Some(worker.scope()))?.1)
    }

    fn after(&mut self, delay: Duration, timer: Timer) {
        self.sequence += 1;
        let at = self.core.now() + delay;
        self.timers.insert((at, self.sequence), timer);
    }

    fn process(&self, path: &str) -> Option<Process> {
        self.core.state().table.get(path).cloned()
    }

    fn set(&self, path: &Arc<str>, mut process: Process, phase: ProcessPhase) {
        process.phase = phase;
        process.since = self.core.now();
        self.core.set_process(path, Some(process));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Kill(path) => self.kill(&path),
            Order::Health(path, healthy) => {
                if let Some(mut process) = self.process(&path) {
                    process.healthy = healthy;
                    let phase = process.phase;
                    self.set(&path, process, phase);
                    self.after(Duration::ZERO, Timer::Look(path));
                }
            }
            Order::NodeDown(node) => {
                self.core
                    .note(Actor::Agent(node.as_str().into()), "the node is down");
                self.timers.retain(|_, timer| node_of(timer.path()) != node);
                self.down.insert(node.clone());
                let table = self.core.state().table.clone();
                for (path, process) in table
                    .into_iter()
                    .filter(|(_, process)| process.node() == node)
                {
                    self.set(&path, process, ProcessPhase::Crashed);
                }
            }
            Order::NodeUp(node) => {
                self.core
                    .note(Actor::Agent(node.as_str().into()), "the node is up");
                self.down.remove(&node);
                self.look_at_all(Some(&node));
            }
            Order::AgentCrash(node) => {
                self.core
                    .note(Actor::Agent(node.as_str().into()), "the agent begins again");
                self.timers.retain(|_, timer| node_of(timer.path()) != node);
                self.look_at_all(Some(&node));
            }
            Order::LookAtAll => self.look_at_all(None),
        }
    }

    fn kill(&mut self, path: &Arc<str>) {
        let Some(mut process) = self.process(path) else {
            return;
        };
        if process.phase == ProcessPhase::Running {
            process.restarts += 1;
            self.set(path, process, ProcessPhase::Crashed);
            self.after(Duration::from_millis(10), Timer::Look(path.clone()));
        }
    }

    /// What an agent does that has just begun.
    fn look_at_all(&mut self, node: Option<&str>) {
        let mut paths: BTreeSet<Arc<str>> = self.core.state().table.keys().cloned().collect();
        for worker in self.core.config.workers.clone() {
            for record in self.core.store.dump_under(&worker.intents()) {
                paths.insert(record.key.as_str().trim_start_matches("o/intent/").into());
            }
        }
        for path in paths {
            if node.is_none_or(|node| node_of(&path) == node || !has_node(self, &path)) {
                self.after(Duration::from_millis(10), Timer::Look(path));
            }
        }
    }

    fn ring(&mut self, timer: Timer) {
        if self.down.contains(node_of(timer.path())) {
            return;
        }
        match timer {
            Timer::Look(path) => self.look(&path),
            Timer::Started(path) => {
                if let Some(process) = self.process(&path)
                    && process.phase == ProcessPhase::Starting
                {
                    self.set(&path, process, ProcessPhase::Running);
                    self.look(&path);
                }
            }
            Timer::Stopped(path) => {
                if let Some(process) = self.process(&path)
                    && process.phase == ProcessPhase::Stopping
                {
                    self.core.set_process(&path, None);
                    self.look(&path);
                }
            }
        }
    }

    /// Compares what is wanted with what runs, and does the next step.
    fn look(&mut self, path: &Arc<str>) {
        let Some(worker) = self.worker(path) else {
            return;
        };
        let Some(key) = self.key(&*worker, path) else {
            return;
        };
        let mut joined = records(&self.core.store, &key);
        let process = self.process(path);
        let Some(object) = joined.object() else {
            // An absent intent is no order.
            return;
        };
        let metadata = &object.metadata;
        let ended = metadata
            .deletion
            .as_ref()
            .is_some_and(|end| end.uid == metadata.uid);
        match process {
            Some(process) if ended || process.uid != metadata.uid => {
                if process.phase != ProcessPhase::Stopping {
                    self.set(path, process, ProcessPhase::Stopping);
                    self.after(worker.delays().stop, Timer::Stopped(path.clone()));
                    self.report(&*worker, path, &joined);
                }
            }
            None if ended => {
                if joined
                    .own_reality()
                    .is_some_and(|own| own.value.status.phase != Phase::GONE)
                {
                    let mut batch = Batch::new();
                    if batch.report_gone(&joined).is_ok() {
                        self.commit(path, batch);
                    }
                }
            }
            None => self.start(&*worker, path, &joined, &object, None),
            Some(process) if process.phase == ProcessPhase::Crashed => {
                self.start(&*worker, path, &joined, &object, Some(process));
            }
            Some(process) => {
                let Some(intent) = &joined.intent else {
                    return;
                };
                if process.digest == intent.value.spec_digest() {
                    // Also an agent that begins again goes on where it was.
                    if process.phase == ProcessPhase::Starting && !self.is_starting(path) {
                        self.after(worker.delays().start.1, Timer::Started(path.clone()));
                    }
                    // A restored store may not know who works on it.
                    if self.claim(path, &joined) {
                        joined = records(&self.core.store, &key);
                        self.report(&*worker, path, &joined);
                    }
                } else {
                    self.start(&*worker, path, &joined, &object, Some(process));
                }
            }
        }
    }

    /// Lets the store know who works on an object. False if it could not be told.
    fn claim(&mut self, path: &Arc<str>, joined: &Joined) -> bool {
        let own = joined.own_reality();
        if own.is_some_and(|own| own.value.metadata.claim.is_some()) {
            return true;
        }
        let mut batch = Batch::new();
        batch.claim(joined, "agent").is_ok() && self.commit(path, batch)
    }

    fn is_starting(&self, path: &Arc<str>) -> bool {
        let starts = |timer: &Timer| matches!(timer, Timer::Started(other) if other == path);
        self.timers.values().any(starts)
    }

    /// Starts a process, after the store knows who does.
    fn start(
        &mut self,
        worker: &dyn AnyWorker,
        path: &Arc<str>,
        joined: &Joined,
        object: &RawObject,
        before: Option<Process>,
    ) {
        if !self.claim(path, joined) {
            return;
        }
        let Some(intent) = &joined.intent else {
            return;
        };
        let process = Process {
            key: joined.key.clone(),
            uid: object.metadata.uid.clone(),
            generation: object.metadata.generation,
            digest: intent.value.spec_digest(),
            spec: Arc::new(intent.value.spec.clone()),
            phase: ProcessPhase::Starting,
            healthy: !worker.fails(object),
            restarts: before.map_or(0, |before| before.restarts),
            since: self.core.now(),
        };
        self.core.set_process(path, Some(process));
        let (least, most) = worker.delays().start;
        let span = u32::try_from((most - least).as_millis()).unwrap_or(u32::MAX);
        let drawn = Duration::from_millis(u64::from(self.dice.below(span.saturating_add(1))));
        self.after(least + drawn, Timer::Started(path.clone()));
    }

    fn report(&mut self, worker: &dyn AnyWorker, path: &Arc<str>, joined: &Joined) {
        let Some(process) = self.process(path) else {
            return;
        };
        let mut batch = Batch::new();
        let seen = Seen {
            process: &process,
            now: self.core.environment.now(),
        };
        // A status that cannot be written is the kind's own fault and shows as no report.
        if worker.report(&mut batch, joined, seen).is_ok() && !batch.is_empty() {
            self.commit(path, batch);
        }
    }

    fn commit(&mut self, path: &Arc<str>, batch: Batch) -> bool {
        let actor = Actor::Agent(node_of(path).into());
        let done = self.core.commit(&actor, &batch.into_transaction());
        if matches!(done, Some(Ok(_))) {
            return true;
        }
        self.after(Duration::from_millis(20), Timer::Look(path.clone()));
        false
    }
}

fn has_node(fleet: &Fleet, path: &str) -> bool {
    fleet
        .worker(path)
        .is_some_and(|worker| worker.scope() == Scope::Node)
}

/// The node in a path `group/plural/node/namespace/name`; empty for kinds without.
fn node_of(path: &str) -> &str {
    let mut segments = path.split('/');
    match (segments.nth(2), segments.count()) {
        (Some(node), 2) => node,
        _ => "",
    }
}
