//! The one place that everything of a run passes through: the store's commits, the process table,
//! the replicas, and what is made to go wrong.
//!
//! All of it is behind one lock and nothing waits under it, so that a commit, what goes wrong at
//! it, and the check of the invariants are one step.

mod faults;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dice::{Dice, mix};
use super::failure::Problem;
use super::fault::{Fault, FaultKind, Schedule};
use super::process::{Moment, Outside, Process, ProcessPhase, Table};
use super::simulation::Config;
use super::time::MachineClock;
use super::trace::{Actor, Line, Touched, Trace, What, place};
use crate::controller::RuntimeHandle;
use crate::environment::Environment;
use crate::model::{Intent, Joined, ObjectKey, Reality, Tree, Versioned};
use crate::store::{
    MemoryOptions, MemorySnapshot, MemoryStore, Result, Revision, StoreError, Transaction, Write,
};

/// How long a crashed replica is away.
pub(super) const RESTART: Duration = Duration::from_secs(1);
/// How long people take after a restore.
const AFTER_RESTORE: Duration = Duration::from_secs(5);
/// How long a stale view stays stale.
const STALE: Duration = Duration::from_secs(20);
/// How long a hidden write stays hidden when what should end it does not come.
const HIDDEN: Duration = Duration::from_secs(30);

/// A write to objects, as later runs refer to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WriteInfo {
    pub(super) revision: Revision,
    pub(super) actor: Actor,
    pub(super) touched: Vec<Touched>,
}

/// What was made and ended by controllers: by plural, how many were created and ended.
pub(super) type Work = BTreeMap<String, (u64, u64)>;

pub(super) struct ReplicaState {
    pub(super) incarnation: u32,
    pub(super) alive: bool,
    pub(super) crash: CancellationToken,
    /// It dies at its next call.
    doomed: bool,
    away: u32,
    /// Its views show nothing behind this.
    ceiling: Option<Revision>,
    /// Its next views begin so.
    next_ceiling: Option<Revision>,
    next_delay: Duration,
    pub(super) gate: Arc<Notify>,
    breaks: u64,
    clock: Arc<MachineClock>,
    pub(super) handle: Option<RuntimeHandle>,
}

/// What people, or chance, do to processes and nodes.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Kill(Arc<str>),
    Health(Arc<str>, bool),
    NodeDown(String),
    NodeUp(String),
    AgentCrash(String),
    /// After a restore: look at everything.
    LookAtAll,
}

pub(super) struct State {
    pub(super) trace: Trace,
    pub(super) counting: bool,
    pub(super) writes: Vec<WriteInfo>,
    pub(super) last_activity: Duration,
    faults: Vec<(Fault, bool)>,
    storm: u32,
    hide_until: Option<u32>,
    /// Faults that last and have not ended.
    pub(super) active: u32,
    pub(super) replicas: Vec<ReplicaState>,
    pub(super) table: Table,
    pub(super) dirty: BTreeSet<Arc<str>>,
    pub(super) orders: VecDeque<Order>,
    pub(super) fleet_busy: bool,
    pub(super) problem: Option<Problem>,
    pub(super) work: Work,
    /// Objects that the scenario made: `path` of their keys.
    pub(super) by_scenario: BTreeSet<String>,
    last_by_scenario: u32,
    snapshots: Vec<MemorySnapshot>,
    pub(super) restored: bool,
    dice: Dice,
}

pub(super) struct Core {
    pub(super) store: MemoryStore,
    pub(super) environment: Environment,
    pub(super) config: Arc<Config>,
    pub(super) schedule: Schedule,
    pub(super) outside: Outside,
    origin: Instant,
    state: Mutex<State>,
    /// Something is wrong: the run need not go on.
    pub(super) over: Notify,
    /// The agents have something to do.
    pub(super) fleet: Notify,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

/// What a replica may do now.
pub(super) enum Admission {
    Go(Duration),
    Away,
    Dead,
}

/// What a replica's views may show now.
pub(super) struct Gate {
    pub(super) alive: bool,
    pub(super) away: bool,
    pub(super) ceiling: Option<Revision>,
    pub(super) breaks: u64,
}

/// The records of one object.
pub(super) fn joined(store: &MemoryStore, key: &ObjectKey) -> Joined {
    let mut joined = Joined::empty(key.clone());
    let record = |tree| store.peek(&key.store_key(tree));
    joined.intent =
        record(Tree::Intent).and_then(|record| Versioned::<Intent>::from_record(key, &record).ok());
    joined.reality = record(Tree::Reality)
        .and_then(|record| Versioned::<Reality>::from_record(key, &record).ok());
    joined
}

/// What a runtime holds back it lists in an object of its own, which is no part of the story.
pub(super) fn is_failsafe(key: &str) -> bool {
    key.contains("/platctrl.dev/failsafes/")
}

fn writes_objects(transaction: &Transaction) -> bool {
    let objects = |write: &Write| {
        let key = write.key().as_str();
        key.starts_with("o/") && !is_failsafe(key)
    };
    transaction.writes.iter().any(objects)
}

impl Core {
    /// The world of one run. Must be made on the run's own runtime.
    pub(super) fn new(config: &Arc<Config>, schedule: &Schedule) -> Arc<Self> {
        let origin = Instant::now();
        let clock = Arc::new(MachineClock::new(origin));
        let environment = Environment::seeded(clock, mix(schedule.seed ^ 0x77));
        let known = MemoryOptions::default();
        let options = MemoryOptions {
            limits: config.limits.unwrap_or(known.limits),
            history: if config.keep_history {
                usize::MAX
            } else {
                10_000
            },
            history_bytes: if config.keep_history {
                usize::MAX
            } else {
                256 << 20
            },
            ..known
        };
        let replica = |_| ReplicaState {
            incarnation: 0,
            alive: false,
            crash: CancellationToken::new(),
            doomed: false,
            away: 0,
            ceiling: None,
            next_ceiling: None,
            next_delay: RESTART,
            gate: Arc::new(Notify::new()),
            breaks: 0,
            clock: Arc::new(MachineClock::new(origin)),
            handle: None,
        };
        let outside = config.outside.as_ref().map(|make| make());
        Arc::new(Self {
            store: MemoryStore::with_options(environment.clone(), options),
            environment,
            schedule: schedule.clone(),
            outside,
            origin,
            state: Mutex::new(State {
                trace: Trace::default(),
                counting: false,
                writes: Vec::new(),
                last_activity: Duration::ZERO,
                faults: schedule
                    .faults
                    .iter()
                    .map(|fault| (*fault, false))
                    .collect(),
                storm: 0,
                hide_until: None,
                active: 0,
                replicas: (0..config.replicas).map(replica).collect(),
                table: Table::new(),
                dirty: BTreeSet::new(),
                orders: VecDeque::new(),
                fleet_busy: false,
                problem: None,
                work: Work::new(),
                by_scenario: BTreeSet::new(),
                last_by_scenario: 0,
                snapshots: Vec::new(),
                restored: false,
                dice: Dice::new(schedule.seed),
            }),
            config: config.clone(),
            over: Notify::new(),
            fleet: Notify::new(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.origin)
    }

    /// Ends the run; the first problem counts.
    pub(super) fn fail(&self, problem: Problem) {
        self.fail_in(&mut self.state(), problem);
    }

    fn fail_in(&self, state: &mut State, problem: Problem) {
        state.problem.get_or_insert(problem);
        self.over.notify_one();
    }

    pub(super) fn note(&self, actor: Actor, text: impl Into<String>) {
        let what = What::Note(text.into());
        self.line(&mut self.state(), actor, what);
    }

    fn line(&self, state: &mut State, actor: Actor, what: What) {
        if self.config.keep_history {
            let at = self.now();
            state.trace.lines.push(Line { at, actor, what });
        }
    }

    // --- Replicas ---

    fn is_alive(state: &State, actor: &Actor) -> bool {
        match actor {
            Actor::Replica(index, incarnation) => {
                let replica = &state.replicas[*index];
                replica.alive && replica.incarnation == *incarnation
            }
            _ => true,
        }
    }

    pub(super) fn admit(self: &Arc<Self>, actor: &Actor) -> Admission {
        let mut state = self.state();
        let Actor::Replica(index, _) = actor else {
            return Admission::Go(Duration::ZERO);
        };
        if !Self::is_alive(&state, actor) {
            return Admission::Dead;
        }
        if state.replicas[*index].doomed {
            self.crash_in(&mut state, *index);
            return Admission::Dead;
        }
        if state.replicas[*index].away > 0 {
            return Admission::Away;
        }
        let latency = match self.schedule.jitter {
            true => Duration::from_millis(1 + u64::from(state.dice.below(30))),
            false => self.config.latency,
        };
        Admission::Go(latency)
    }

    pub(super) fn gate(&self, actor: &Actor) -> Gate {
        let state = self.state();
        let open = Gate {
            alive: true,
            away: false,
            ceiling: None,
            breaks: 0,
        };
        let Actor::Replica(index, _) = actor else {
            return open;
        };
        let replica = &state.replicas[*index];
        Gate {
            alive: Self::is_alive(&state, actor),
            away: replica.away > 0,
            ceiling: replica.ceiling,
            breaks: replica.breaks,
        }
    }

    fn crash_in(&self, state: &mut State, index: usize) {
        let replica = &mut state.replicas[index];
        if !replica.alive {
            return;
        }
        replica.alive = false;
        replica.doomed = false;
        replica.ceiling = None;
        replica.crash.cancel();
        replica.gate.notify_waiters();
        let actor = Actor::Replica(index, replica.incarnation);
        state.last_activity = self.now();
        self.line(state, actor, What::Note("is dead".to_owned()));
    }

    pub(super) fn crash(&self, index: usize) {
        self.crash_in(&mut self.state(), index);
    }

    pub(super) fn crash_all(&self, ceiling: Option<Revision>) {
        let mut state = self.state();
        for index in 0..state.replicas.len() {
            state.replicas[index].next_ceiling = ceiling;
            self.crash_in(&mut state, index);
        }
    }

    /// A replica begins: who it is, its environment, and what tells of its end.
    pub(super) fn begin(self: &Arc<Self>, index: usize) -> (Actor, Environment, CancellationToken) {
        let mut state = self.state();
        state.last_activity = self.now();
        let seed = self.schedule.seed;
        let replica = &mut state.replicas[index];
        replica.incarnation += 1;
        replica.alive = true;
        replica.crash = CancellationToken::new();
        replica.ceiling = replica.next_ceiling.take();
        let (stale, incarnation) = (replica.ceiling, replica.incarnation);
        let who = (index as u64) << 32 | u64::from(incarnation);
        let environment = Environment::seeded(replica.clock.clone(), mix(seed ^ mix(who + 1)));
        let crash = replica.crash.clone();
        let actor = Actor::Replica(index, incarnation);
        let text = match stale {
            Some(revision) => format!("begins, on the view as of revision {revision}"),
            None => "begins".to_owned(),
        };
        self.line(&mut state, actor.clone(), What::Note(text));
        if stale.is_some() {
            self.later(&mut state, STALE, move |core, state| {
                core.lift(state, Some(index), "sees everything again");
            });
        }
        (actor, environment, crash)
    }

    /// How long a replica that ended is away.
    pub(super) fn delay_of(&self, index: usize) -> Duration {
        std::mem::replace(&mut self.state().replicas[index].next_delay, RESTART)
    }

    /// Lets views show everything: of one replica, or of all.
    fn lift(&self, state: &mut State, only: Option<usize>, text: &str) {
        for index in 0..state.replicas.len() {
            let replica = &mut state.replicas[index];
            if only.is_none_or(|only| only == index) && replica.ceiling.take().is_some() {
                replica.gate.notify_waiters();
                let actor = Actor::Replica(index, replica.incarnation);
                self.line(state, actor, What::Note(text.to_owned()));
            }
        }
    }

    /// Does something after a time, during which the run is not settled.
    fn later(
        self: &Arc<Self>,
        state: &mut State,
        after: Duration,
        action: impl FnOnce(&Arc<Self>, &mut State) + Send + 'static,
    ) {
        state.active += 1;
        let core = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let mut state = core.state();
            action(&core, &mut state);
            state.active -= 1;
            state.last_activity = core.now();
        });
    }

    // --- Commits ---

    /// Commits for somebody. None: whoever asked is dead and is never answered.
    pub(super) fn commit(
        self: &Arc<Self>,
        actor: &Actor,
        transaction: &Transaction,
    ) -> Option<Result<Revision>> {
        let mut guard = self.state();
        let state = &mut *guard;
        if !Self::is_alive(state, actor) {
            return None;
        }
        let replica = matches!(actor, Actor::Replica(..));
        let counted = state.counting && writes_objects(transaction);
        let next = u32::try_from(state.writes.len() + 1).unwrap_or(u32::MAX);
        let touched = Touched::by(transaction, |key| self.store.peek(key));
        if counted && !state.faults.is_empty() && self.store.would_commit(transaction) {
            for kind in self.due(state, next, actor, &touched, true) {
                match kind.kind {
                    FaultKind::LoseClaim => self.lose_claims(),
                    FaultKind::Storm => state.storm = kind.which,
                    _ => return Some(Err(unconfirmed())),
                }
            }
        }
        if state.storm > 0 && replica && counted && self.touch(state, transaction) {
            state.storm -= 1;
        }
        let outcome = self.store.commit_now(transaction);
        let revision = match outcome {
            Ok(revision) => revision,
            Err(error) => {
                if error.is_conflict() {
                    self.line(state, actor.clone(), What::Refused { touched });
                }
                return Some(Err(error));
            }
        };
        let write = counted.then_some(next);
        self.note_changes(state, actor, &touched, counted);
        if counted {
            if self.config.keep_history {
                let (actor, touched) = (actor.clone(), touched.clone());
                state.writes.push(WriteInfo {
                    revision,
                    actor,
                    touched,
                });
            }
            if self.schedule.has(FaultKind::is_restore) {
                state.snapshots.push(self.store.snapshot());
            }
        }
        self.line(
            state,
            actor.clone(),
            What::Commit {
                write,
                revision,
                touched: touched.clone(),
            },
        );
        self.check(state);
        if counted {
            if state.hide_until.is_some_and(|until| next >= until) {
                state.hide_until = None;
                self.lift(state, None, "sees everything, what came in between merged");
            }
            if next > self.config.max_writes {
                self.fail_in(
                    state,
                    Problem::restless(format!("{next} writes and no end")),
                );
            }
            for fault in self.due(state, next, actor, &touched, false) {
                if let Some(answer) = self.strike(state, &fault, actor, revision) {
                    return answer;
                }
            }
        }
        Some(Ok(revision))
    }

    /// Takes note of what a commit changed.
    fn note_changes(&self, state: &mut State, actor: &Actor, touched: &[Touched], counted: bool) {
        for touched in touched {
            let Some((tree, _)) = place(&touched.key) else {
                continue;
            };
            // Behind `o/<tree>/`.
            let path = &touched.key.as_str()[3 + tree.len()..];
            let by_agent = matches!(actor, Actor::Agent(_));
            if (tree == "intent" || (tree == "reality" && !by_agent))
                && self
                    .config
                    .workers
                    .iter()
                    .any(|worker| worker.works_on(path))
            {
                state.dirty.insert(path.into());
                self.fleet.notify_one();
            }
            if !counted || tree != "intent" {
                continue;
            }
            if *actor == Actor::Scenario {
                state.by_scenario.insert(path.to_owned());
            }
            if matches!(actor, Actor::Replica(..)) && self.config.keep_history {
                let plural = path.split('/').nth(1).unwrap_or_default();
                let work = state.work.entry(plural.to_owned()).or_default();
                let ended = |value: &bytes::Bytes| {
                    let value = serde_json::from_slice::<serde_json::Value>(value);
                    value.is_ok_and(|value| value["metadata"].get("deletion").is_some())
                };
                match (&touched.before, &touched.after) {
                    (None, Some(_)) => work.0 += 1,
                    (Some(before), after) if !ended(before) && after.as_ref().is_none_or(ended) => {
                        work.1 += 1;
                    }
                    _ => {}
                }
            }
        }
        if counted {
            state.last_activity = self.now();
            if *actor == Actor::Scenario {
                state.last_by_scenario = state.writes.len() as u32 + 1;
            }
        }
    }

    // --- Processes ---

    pub(super) fn order(&self, state: &mut State, order: Order) {
        state.orders.push_back(order);
        state.last_activity = self.now();
        self.fleet.notify_one();
    }

    /// Sets or removes a process.
    pub(super) fn set_process(&self, path: &Arc<str>, process: Option<Process>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let before = state.table.get(path);
        let phase =
            |process: Option<&Process>| process.map(|process| (process.phase, process.healthy));
        let (old, new) = (phase(before), phase(process.as_ref()));
        let node = process
            .as_ref()
            .or(before)
            .map(|process| process.node().into());
        match process {
            Some(process) => {
                state.table.insert(path.clone(), process);
            }
            None => {
                state.table.remove(path);
            }
        }
        if old != new {
            let name = path.splitn(3, '/').nth(2).unwrap_or(path);
            let text = match new {
                None => format!("process of {name} is gone"),
                Some((ProcessPhase::Running, false)) => {
                    format!("process of {name} runs, not healthy")
                }
                Some((phase, _)) => {
                    format!(
                        "process of {name} is {}",
                        format!("{phase:?}").to_lowercase()
                    )
                }
            };
            state.last_activity = self.now();
            self.line(
                state,
                Actor::Agent(node.unwrap_or_default()),
                What::Note(text),
            );
            self.check(state);
        }
    }

    /// Checks the invariants, now.
    fn check(&self, state: &mut State) {
        if state.problem.is_some() || state.restored {
            return;
        }
        let moment = Moment {
            table: &state.table,
            store: &self.store,
            time: self.now(),
            outside: &self.outside,
        };
        for (name, holds) in &self.config.invariants {
            let verdict = std::panic::catch_unwind(AssertUnwindSafe(|| holds(&moment)));
            let detail = match verdict {
                Ok(Ok(())) => continue,
                Ok(Err(detail)) => detail,
                Err(_) => "the check itself panicked".to_owned(),
            };
            let problem = Problem::Broken {
                invariant: name.clone(),
                detail,
            };
            let text = problem.to_string();
            self.line(state, Actor::World, What::Fault(text));
            self.fail_in(state, problem);
            return;
        }
    }
}

impl State {
    /// Every fault was met.
    pub(super) fn unmet(&self) -> usize {
        let unmet = |(fault, met): &&(Fault, bool)| !met && fault.kind != FaultKind::TravelBack;
        self.faults.iter().filter(unmet).count()
    }
}

fn unconfirmed() -> StoreError {
    StoreError::Unknown {
        reason: "simulated: the answer was lost".to_owned(),
    }
}
