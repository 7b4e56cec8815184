//! Describing a simulation: the world, the controllers, what people do, and what must hold.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::explore;
use super::failure::Failure;
use super::fault::{FaultKind, ParseScheduleError, Schedule};
use super::process::{Moment, Verdict};
use super::worker::{AnyWorker, Worker};
use super::world::{Replica, ScenarioError, World};
use crate::controller::Runtime;
use crate::model::{ObjectKey, RawObject, Resource};
use crate::store::Limits;

type Factory = Arc<dyn Fn(Replica) -> Runtime + Send + Sync>;
pub(super) type Scenario =
    Arc<dyn Fn(World) -> BoxFuture<'static, Result<(), ScenarioError>> + Send + Sync>;
type Invariant = Arc<dyn Fn(&Moment<'_>) -> Result<(), String> + Send + Sync>;
type MakeOutside = Arc<dyn Fn() -> Arc<dyn Any + Send + Sync> + Send + Sync>;
type NodeObject = Arc<dyn Fn(&str) -> Option<(ObjectKey, RawObject)> + Send + Sync>;

/// Everything about a simulation that is the same in all its runs.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) nodes: Vec<String>,
    pub(super) node_object: Option<NodeObject>,
    pub(super) workers: Vec<Arc<dyn AnyWorker>>,
    pub(super) replicas: usize,
    pub(super) factory: Option<Factory>,
    pub(super) scenario: Option<Scenario>,
    pub(super) invariants: Vec<(String, Invariant)>,
    pub(super) outside: Option<MakeOutside>,
    pub(super) ignored: Vec<String>,
    pub(super) any_node: bool,
    pub(super) history_matters: bool,
    pub(super) work_may_repeat: bool,
    pub(super) orphans_may_stay: bool,
    pub(super) without: Vec<FaultKind>,
    pub(super) quiet: Duration,
    pub(super) deadline: Duration,
    pub(super) max_writes: u32,
    pub(super) latency: Duration,
    pub(super) limits: Option<Limits>,
    /// Keep what it takes to explain a run and to show old views.
    pub(super) keep_history: bool,
    pub(super) built_by: String,
}

/// A world, controllers in it, what people do to it, and what must hold: see the
/// [module](super).
#[derive(Clone)]
#[must_use = "nothing runs before `exhaustive`, `random`, `run` or `replay`"]
pub struct Simulation {
    config: Config,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("nodes", &self.config.nodes)
            .field("replicas", &self.config.replicas)
            .finish_non_exhaustive()
    }
}

impl Default for Simulation {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs in which nothing was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explored {
    /// How many runs.
    pub runs: usize,
    /// Writes to objects in the undisturbed run.
    pub writes: usize,
    /// How often something was made to go wrong, and did.
    pub faults: usize,
}

/// One run in which nothing was wrong.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Run {
    /// What happened, a line for each thing.
    pub timeline: Vec<String>,
    /// Everything, byte for byte: two runs of one schedule have the same.
    pub trace: String,
    /// Writes to objects.
    pub writes: usize,
    /// Virtual time from the beginning to when everything was settled.
    pub settled: Duration,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("timeline", &self.timeline)
            .field("writes", &self.writes)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

impl Simulation {
    /// An empty world: no nodes, no agents, one replica of no controllers.
    pub fn new() -> Self {
        Self {
            config: Config {
                nodes: Vec::new(),
                node_object: None,
                workers: Vec::new(),
                replicas: 1,
                factory: None,
                scenario: None,
                invariants: Vec::new(),
                outside: None,
                ignored: Vec::new(),
                any_node: false,
                history_matters: false,
                work_may_repeat: false,
                orphans_may_stay: false,
                without: Vec::new(),
                quiet: Duration::from_secs(60),
                deadline: Duration::from_secs(4 * 3600),
                max_writes: 5_000,
                latency: Duration::from_millis(1),
                limits: None,
                keep_history: true,
                built_by: "simulation()".to_owned(),
            },
        }
    }

    /// So many machines, named `n1`, `n2`, …
    pub fn nodes(mut self, count: usize) -> Self {
        self.config.nodes = (1..=count).map(|number| format!("n{number}")).collect();
        self
    }

    /// The object that each machine is admitted with, before anything begins.
    pub fn admitted<K: Resource>(
        mut self,
        node: impl Fn(&str) -> crate::model::Object<K> + Send + Sync + 'static,
    ) -> Self {
        self.config.node_object = Some(Arc::new(move |name| {
            let object = node(name);
            Some((object.key().ok()?, object.to_raw().ok()?))
        }));
        self
    }

    /// Adds agents that run objects of a kind.
    pub fn worker<K: Resource>(mut self, worker: Worker<K>) -> Self {
        self.config.workers.push(Arc::new(worker));
        self
    }

    /// How many replicas of the controllers run at once; one unless set. With more of them the
    /// runtime has to elect a leader, as anywhere.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.config.replicas = replicas.max(1);
        self
    }

    /// The controllers under test. Called for each replica, and again each time one begins after
    /// it died; [`Replica::runtime`] is where to begin. What it keeps must come from the replica:
    /// what a closure captures is shared by all runs.
    pub fn controllers(
        mut self,
        factory: impl Fn(Replica) -> Runtime + Send + Sync + 'static,
    ) -> Self {
        self.config.factory = Some(Arc::new(factory));
        self
    }

    /// What people do. The run goes on until everything is settled behind it. Steps that are to
    /// be taken one by one have [`World::settled`] between them.
    pub fn scenario<F, Fut>(mut self, scenario: F) -> Self
    where
        F: Fn(World) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), ScenarioError>> + Send + 'static,
    {
        self.config.scenario = Some(Arc::new(move |world| Box::pin(scenario(world))));
        self
    }

    /// What must hold at every moment: checked after every commit and every change of a process,
    /// on what really is and not on what anybody reports. A restored store suspends it: nobody
    /// can count what a restore has lost.
    pub fn invariant<V: Verdict>(
        mut self,
        name: &str,
        holds: impl Fn(&Moment<'_>) -> V + Send + Sync + 'static,
    ) -> Self {
        let holds: Invariant = Arc::new(move |moment| holds(moment).verdict());
        self.config.invariants.push((name.to_owned(), holds));
        self
    }

    /// Makes something anew for each run, for controllers that have effects outside of the store
    /// and of processes: a fake of what they talk to.
    pub fn outside<T: Any + Send + Sync>(
        mut self,
        make: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.config.outside = Some(Arc::new(move || Arc::new(make())));
        self
    }

    /// Leaves a field out when ends are compared, as `status.restarts` or `spec.nodeName`, or
    /// `ledger`, the whole record of that tree, which tells of what was decided on the way. Times,
    /// generations and revisions are never compared; names and uids that a controller draws are
    /// compared only by who refers to whom.
    pub fn ignoring(mut self, field: &str) -> Self {
        self.config.ignored.push(field.to_owned());
        self
    }

    /// Which node something is on does not matter when ends are compared.
    pub fn on_any_node(mut self) -> Self {
        self.config.any_node = true;
        self
    }

    /// The end may depend on the way there. Otherwise what people wanted last is also applied
    /// alone to an empty world, and must come to the same.
    pub fn history_matters(mut self) -> Self {
        self.config.history_matters = true;
        self
    }

    /// Controllers may create and end more objects than in the undisturbed run when something
    /// goes wrong.
    pub fn work_may_repeat(mut self) -> Self {
        self.config.work_may_repeat = true;
        self
    }

    /// Objects may stay that name an owner which is gone.
    pub fn orphans_may_stay(mut self) -> Self {
        self.config.orphans_may_stay = true;
        self
    }

    /// Leaves out a kind of fault.
    pub fn without(mut self, kind: FaultKind) -> Self {
        self.config.without.push(kind);
        self
    }

    /// How long nothing may happen before a run counts as settled; a minute unless set. Longer
    /// than whatever the controllers wait for before they act.
    pub fn quiet(mut self, quiet: Duration) -> Self {
        self.config.quiet = quiet;
        self
    }

    /// When a run that does not settle is given up, in virtual time: four hours unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.config.deadline = deadline;
        self
    }

    /// After how many writes a run that does not settle is given up; 5,000 unless set.
    pub fn at_most_writes(mut self, writes: u32) -> Self {
        self.config.max_writes = writes;
        self
    }

    /// How long each call on the store takes; a millisecond unless set.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.config.latency = latency;
        self
    }

    /// What the store takes in one transaction; as etcd does unless set. With little, work that
    /// is one commit elsewhere is several.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = Some(limits);
        self
    }

    /// Keeps neither a timeline nor old states, for worlds too large for it. Only
    /// [`Simulation::run`] is meant for that.
    pub fn without_history(mut self) -> Self {
        self.config.keep_history = false;
        self.config.max_writes = u32::MAX;
        self
    }

    /// The expression that builds this simulation, for the test that a failure prints;
    /// `simulation()` unless set.
    pub fn built_by(mut self, expression: &str) -> Self {
        self.config.built_by = expression.to_owned();
        self
    }

    fn config(self) -> Arc<Config> {
        Arc::new(self.config)
    }

    /// Runs once, with nothing going wrong.
    ///
    /// # Errors
    /// What is wrong even so.
    pub fn run(self, seed: u64) -> Result<Run, Box<Failure>> {
        explore::once(&self.config(), &Schedule::undisturbed(seed))
    }

    /// Runs undisturbed, and then for every write once with each thing that can go wrong there:
    /// a crash right after it or before its acknowledgement, a lost acknowledgement, a restart on
    /// a stale view, an intermediate state that is never seen, a lost claim.
    ///
    /// # Errors
    /// Of all that is wrong, what takes the least to show.
    pub fn exhaustive(self) -> Result<Explored, Box<Failure>> {
        explore::exhaustive(&self.config())
    }

    /// Runs once for each seed, with several drawn things going wrong: also conflict storms, lost
    /// history, partitions, clocks that jump, restored stores, processes and machines that die.
    ///
    /// # Errors
    /// What the first seed that failed takes at least to show its problem.
    pub fn random(self, seeds: impl IntoIterator<Item = u64>) -> Result<Explored, Box<Failure>> {
        let seeds: Vec<u64> = seeds.into_iter().collect();
        explore::random(&self.config(), &seeds)
    }

    /// Runs one schedule, as a failure printed it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn replay(self, schedule: &str) -> Result<Run, ReplayError> {
        let schedule: Schedule = schedule.parse()?;
        Ok(explore::replay(&self.config(), &schedule)?)
    }
}

/// Why a replay has no good end.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The text is no schedule.
    #[error(transparent)]
    Schedule(#[from] ParseScheduleError),
    /// It shows a problem.
    #[error(transparent)]
    Failed(#[from] Box<Failure>),
}

impl fmt::Debug for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
