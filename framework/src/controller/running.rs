//! A runtime that runs: its mirror of the store, and the controllers that work on it, which may
//! come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::budget::Budget;
use super::builder::Registered;
use super::context::Setting;
use super::engine::Engine;
use super::enrol::Refused;
use super::event::EventRecorder;
use super::outcome::panic_text;
use super::posts::Posts;
use super::runtime::RunError;
use super::sharding::Sharding;
use super::status::RuntimeStatus;
use super::unrest::Writers;
use crate::cache::{Feed, Reader, SourceState, View, Writer};
use crate::environment::Environment;
use crate::failsafe::Safeguards;
use crate::model::{GroupPlural, KindDefinition, Kinds, Tree, check_name};
use crate::observe::MeteredStore;
use crate::store::{Compare, Prefix, Revision, Store};

/// How often parked keys are looked at.
const PARKED_CHECK: Duration = Duration::from_secs(2);
/// A key that waits longer than this for the view is reported, and its source read afresh.
const PARKED_TOO_LONG: Duration = Duration::from_secs(10);

/// The sources that tell of a kind.
fn sources_of(kind: &GroupPlural, prefixes: &[Prefix]) -> BTreeSet<usize> {
    let trees = Tree::ALL.map(|tree| kind.prefix(tree));
    let tells = |prefix: &Prefix| trees.iter().any(|tree| tree.overlaps(prefix));
    let sources = prefixes.iter().enumerate();
    sources
        .filter(|(_, prefix)| tells(prefix))
        .map(|(source, _)| source)
        .collect()
}

/// Tells the mirror that the kinds are others now.
pub(super) struct NewKinds {
    kinds: Arc<Kinds>,
    /// Once these are read, `loaded` is told.
    wanted: Vec<GroupPlural>,
    loaded: oneshot::Sender<()>,
}

/// A controller with the tasks that it consists of.
struct Crew {
    engine: Arc<Engine>,
    workers: JoinSet<()>,
    /// Dropped with the crew.
    others: JoinSet<()>,
}

/// The controllers that run, and the kinds that are mirrored besides theirs.
#[derive(Default)]
pub(super) struct Crews {
    all: Vec<Crew>,
    /// The engines of all crews.
    engines: Arc<[Arc<Engine>]>,
    /// Mirrored whether a controller names them or not.
    base: Kinds,
}

impl Crews {
    pub(super) fn new(base: Kinds) -> Self {
        Self {
            base,
            ..Self::default()
        }
    }

    fn changed(&mut self) {
        self.engines = self.all.iter().map(|crew| crew.engine.clone()).collect();
    }

    /// What is mirrored.
    fn kinds(&self) -> Kinds {
        let mut kinds = self.base.clone();
        for crew in &self.all {
            kinds.define_all(crew.engine.kinds());
        }
        kinds
    }
}

/// What a runtime is made of while it runs.
pub(super) struct Running {
    pub(super) name: String,
    /// What `store` is.
    pub(super) metered: MeteredStore,
    pub(super) store: Arc<dyn Store>,
    pub(super) environment: Environment,
    pub(super) reader: Reader,
    pub(super) prefixes: Vec<Prefix>,
    pub(super) sources: Arc<[Arc<SourceState>]>,
    pub(super) posts: Arc<Posts>,
    /// With leader election, holding the claim is told.
    pub(super) elects: bool,
    pub(super) sharding: Option<Sharding>,
    pub(super) recorder: EventRecorder,
    pub(super) grace: Duration,
    pub(super) mirror: mpsc::UnboundedSender<NewKinds>,
    pub(super) failed: mpsc::UnboundedSender<RunError>,
    pub(super) guards: Arc<Safeguards>,
    /// Who of the controllers wrote what last.
    pub(super) writers: Arc<Writers>,
    pub(super) crews: Mutex<Crews>,
    /// Takes kinds to register; None where another program does that.
    pub(super) enrols: Option<mpsc::UnboundedSender<KindDefinition>>,
    /// Kinds that this program could not register.
    pub(super) refused: Refused,
}

/// Reports a task that ended though it must not.
pub(super) async fn must_not_end(
    task: &'static str,
    failed: mpsc::UnboundedSender<RunError>,
    work: impl Future<Output = ()>,
) {
    let reason = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(()) => "it returned".to_owned(),
        Err(panic) => panic_text(&*panic),
    };
    let _ = failed.send(RunError::Internal { task, reason });
}

impl Running {
    fn crews(&self) -> MutexGuard<'_, Crews> {
        self.crews.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engines(&self) -> Arc<[Arc<Engine>]> {
        self.crews().engines.clone()
    }

    /// Ends every controller where it stands.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.crews()).all;
        drop(all);
    }

    /// Mirrors further kinds. Completes once they are read.
    pub(super) fn mirror_also(&self, kinds: &Kinds) -> oneshot::Receiver<()> {
        self.enrol(kinds);
        let all = {
            let mut crews = self.crews();
            crews.base.define_all(kinds);
            crews.kinds()
        };
        self.tell_kinds(all, kinds)
    }

    /// Does not mirror a kind for its own sake any more; controllers that name it keep it.
    pub(super) fn forget(&self, kind: &GroupPlural) {
        let all = {
            let mut crews = self.crews();
            crews.base.remove(kind);
            crews.kinds()
        };
        drop(self.tell_kinds(all, &Kinds::new()));
    }

    /// Has kinds registered, where this program does that.
    pub(super) fn enrol(&self, kinds: &Kinds) {
        for kind in kinds.iter().map(|known| known.definition.clone()) {
            if let Some(enrols) = &self.enrols {
                // Without who registers them everything is about to end.
                let _ = enrols.send(kind);
            }
        }
    }

    fn tell_kinds(&self, kinds: Kinds, wanted: &Kinds) -> oneshot::Receiver<()> {
        let (loaded, told) = oneshot::channel();
        let wanted = wanted.iter().map(|kind| kind.definition.group_plural());
        let order = NewKinds {
            kinds: Arc::new(kinds),
            wanted: wanted.collect(),
            loaded,
        };
        // Without a mirror everything is about to end.
        let _ = self.mirror.send(order);
        told
    }

    /// Some source tells of each kind.
    ///
    /// # Errors
    /// `NotWatched`.
    pub(super) fn must_tell_of(&self, who: &str, kinds: &Kinds) -> Result<(), RunError> {
        for kind in kinds.iter() {
            let kind = kind.definition.group_plural();
            if sources_of(&kind, &self.prefixes).is_empty() {
                let (who, kind) = (who.to_owned(), kind.to_string());
                return Err(RunError::NotWatched { who, kind });
            }
        }
        Ok(())
    }

    /// Begins with a controller. Must be called on the runtime's executor.
    ///
    /// # Errors
    /// A name that is taken, or cannot be that of a part; a kind that no source tells of.
    pub(super) fn add(&self, controller: Registered) -> Result<(), RunError> {
        let name = controller.name.clone();
        let mut crews = self.crews();
        if crews.engines.iter().any(|engine| engine.name() == &*name) {
            let name = name.to_string();
            return Err(RunError::DuplicateController { name });
        }
        self.must_tell_of(&format!("the controller `{name}`"), &controller.kinds)?;
        if self.reader.is_projected(&controller.group_plural) {
            let (controller, kind) = (name.to_string(), controller.group_plural.to_string());
            return Err(RunError::Projected { controller, kind });
        }
        if let Some(writer) = &controller.part {
            check_name("writer", writer)?;
        }
        let mut needs = BTreeSet::new();
        let declared = controller.kinds.clone();
        // The reaper works on what there is, and looks itself whether all of it is read.
        let also = (declared.iter().next().is_some()).then(|| crews.base.clone());
        for kind in declared.iter().chain(also.iter().flat_map(Kinds::iter)) {
            let kind = kind.definition.group_plural();
            needs.extend(sources_of(&kind, &self.prefixes));
        }
        let setting = Arc::new(Setting {
            controller: name,
            api_version: controller.api_version.clone(),
            kind: controller.kind.clone(),
            store: self.store.clone(),
            environment: self.environment.clone(),
            recorder: self.recorder.with_source(&controller.name),
            guards: self.guards.clone(),
            kinds: declared.clone(),
            reports_while_frozen: controller.reports_while_frozen,
            part: controller.part.clone(),
            budget: controller
                .writes_per_second
                .map(|writes| Budget::new(writes, &self.environment)),
            writers: self.writers.clone(),
        });
        let engine = Engine::new(
            controller,
            setting,
            self.reader.clone(),
            needs.into_iter().collect(),
            self.posts.held().len(),
        );
        let mut others = JoinSet::new();
        let timers = engine.clone();
        let failed = self.failed.clone();
        others.spawn(must_not_end("timer", failed, async move {
            timers.run_timers().await;
        }));
        let mut workers = JoinSet::new();
        for _ in 0..engine.concurrency() {
            let (worker, failed) = (engine.clone(), self.failed.clone());
            workers.spawn(async move {
                if let Err(panic) = AssertUnwindSafe(worker.work()).catch_unwind().await {
                    let reason = panic_text(&*panic);
                    let task = "worker";
                    let _ = failed.send(RunError::Internal { task, reason });
                }
            });
        }
        crews.all.push(Crew {
            engine: engine.clone(),
            workers,
            others,
        });
        crews.changed();
        self.enrol(&declared);
        let loaded = self.tell_kinds(crews.kinds(), &declared);
        let (held, sources) = (self.posts.subscribe(), self.sources.clone());
        let failed = self.failed.clone();
        let crew = crews.all.last_mut().expect("pushed above");
        crew.others
            .spawn(must_not_end("follower", failed, async move {
                engine.follow(held, &sources, loaded).await;
            }));
        Ok(())
    }

    /// Ends a controller in order: no new runs, those that have begun are finished within the
    /// grace time. The future need not be awaited where the runtime runs.
    ///
    /// # Errors
    /// There is none of this name.
    pub(super) fn remove(
        &self,
        name: &str,
    ) -> Result<impl Future<Output = ()> + Send + use<>, RunError> {
        let (mut crew, kinds) = {
            let mut crews = self.crews();
            let place = crews.all.iter().position(|crew| crew.engine.name() == name);
            let Some(place) = place else {
                let name = name.to_owned();
                return Err(RunError::NoController { name });
            };
            let crew = crews.all.remove(place);
            crews.changed();
            (crew, crews.kinds())
        };
        crew.engine.retire();
        drop(self.tell_kinds(kinds, &Kinds::new()));
        let (grace, environment) = (self.grace, self.environment.clone());
        Ok(async move {
            let all = async { while crew.workers.join_next().await.is_some() {} };
            tokio::select! {
                biased;
                () = all => {}
                () = environment.sleep(grace) => {
                    let controller = crew.engine.name();
                    tracing::warn!(controller, ?grace, "runs were ended where they waited");
                    crew.workers.shutdown().await;
                }
            }
        })
    }

    /// The claim that commits for the whole runtime compare: None while another process speaks
    /// for it, `Some(None)` where there is no claim.
    pub(super) fn speaks(&self) -> Option<Option<Compare>> {
        if !self.elects && self.sharding.is_none() {
            return Some(None);
        }
        // Of several shards, whoever has the first.
        let held = self.posts.held();
        let fence = held.first()?.as_ref()?.fence.as_ref();
        let fence = fence.filter(|fence| fence.is_held())?;
        Some(Some(fence.compare()))
    }

    pub(super) fn is_synced(&self) -> bool {
        self.reader.sources().iter().all(Option::is_some)
    }

    pub(super) fn status(&self) -> RuntimeStatus {
        let now = self.environment.monotonic();
        let view = self.is_synced().then(|| self.reader.view());
        let posts = self.posts.held();
        let holds = |post: &super::posts::Post| {
            let fence = post.fence.as_ref();
            fence.is_some_and(super::claim::Fence::is_held)
        };
        let engines = self.engines();
        RuntimeStatus {
            name: self.name.clone(),
            sources: self
                .sources
                .iter()
                .map(|source| source.status(now))
                .collect(),
            newest: self.metered.newest(),
            freshness: view.as_ref().map(View::freshness),
            leads: self
                .elects
                .then(|| posts.iter().flatten().any(|post| holds(post))),
            shards: self.sharding.as_ref().map(Sharding::status),
            controllers: engines
                .iter()
                .map(|engine| engine.status(&self.prefixes))
                .collect(),
            set_aside: view.map_or(0, |view| view.set_aside().len()),
            failsafe: self.guards.view(),
            unregistered: {
                let refused = self.refused.lock();
                refused.unwrap_or_else(PoisonError::into_inner).clone()
            },
        }
    }
}

/// The mirror's account of kinds that came late: which sources have still to be read for them.
#[derive(Default)]
struct Loading {
    missing: BTreeMap<GroupPlural, BTreeSet<usize>>,
    waiting: Vec<(Vec<GroupPlural>, oneshot::Sender<()>)>,
}

impl Loading {
    fn tell(&mut self) {
        let missing = &self.missing;
        let waiting = std::mem::take(&mut self.waiting);
        for (wanted, loaded) in waiting {
            if wanted.iter().any(|kind| missing.contains_key(kind)) {
                self.waiting.push((wanted, loaded));
            } else {
                // Who asked may be gone.
                let _ = loaded.send(());
            }
        }
    }

    fn read(&mut self, source: usize) {
        self.missing.retain(|_, sources| {
            sources.remove(&source);
            !sources.is_empty()
        });
        self.tell();
    }
}

/// Keeps the cache up to date and tells the controllers.
pub(super) async fn mirror(
    mut writer: Writer,
    running: Arc<Running>,
    mut feed: mpsc::Receiver<Feed>,
    mut orders: mpsc::UnboundedReceiver<NewKinds>,
) {
    let mut loading = Loading::default();
    let guards = running.guards.clone();
    let mut synced = false;
    for kind in writer.kinds() {
        let sources = sources_of(&kind, &running.prefixes);
        loading.missing.insert(kind, sources);
    }
    loop {
        let told = tokio::select! {
            biased;
            Some(order) = orders.recv() => {
                let NewKinds { kinds, wanted, loaded } = order;
                guards.set_kinds(kinds.clone());
                for kind in writer.set_kinds(kinds) {
                    let sources = sources_of(&kind, &running.prefixes);
                    // Those that were not read yet will be, with these kinds.
                    let read = running.reader.sources();
                    for &source in sources.iter().filter(|&&source| read[source].is_some()) {
                        running.sources[source].read_again();
                    }
                    loading.missing.insert(kind, sources);
                }
                loading.missing.retain(|_, sources| !sources.is_empty());
                writer.set_unread(loading.missing.keys().cloned().collect());
                loading.waiting.push((wanted, loaded));
                loading.tell();
                continue;
            }
            told = feed.recv() => told,
        };
        let mut older = false;
        let told = match told {
            None => return,
            Some(Feed::List(source, records, revision)) => {
                let known = running.reader.sources()[source];
                older = known.is_some_and(|known| known > revision);
                let view = running.reader.view();
                let records = guards.gate_list(source, known.is_none(), records, revision, &view);
                Feed::List(source, records, revision)
            }
            Some(Feed::Changes(source, changes, revision)) => {
                let changes = guards.gate_changes(source, changes, revision, &running.reader);
                Feed::Changes(source, changes, revision)
            }
            Some(told @ (Feed::Page(..) | Feed::Progress(..))) => told,
        };
        let Some(taken) = writer.take(told) else {
            continue;
        };
        if older {
            // A person has accepted it.
            running
                .engines()
                .iter()
                .for_each(|engine| engine.begin_history());
        }
        if let Some(source) = taken.listed {
            loading.read(source);
            writer.set_unread(loading.missing.keys().cloned().collect());
        }
        let view = running.reader.view();
        if !synced && running.is_synced() {
            synced = true;
            guards.synced(&view);
        }
        let reached: Vec<Revision> = view.reached();
        for engine in &*running.engines() {
            engine.offer(&taken.changes, &view, taken.initial);
            engine.reached(&reached);
        }
    }
}

/// Lets everything be looked at again when something that was held back is not any more.
pub(super) async fn watch_eased(running: Arc<Running>) {
    loop {
        running.guards.eased().await;
        running
            .engines()
            .iter()
            .for_each(|engine| engine.look_again());
    }
}

/// Reports keys that wait too long for the view, and has their source read afresh.
pub(super) async fn watch_parked(running: Arc<Running>) {
    let environment = &running.environment;
    // A key may wait for several sources, one after the other.
    let mut last_read = BTreeMap::new();
    loop {
        environment.sleep(PARKED_CHECK).await;
        for engine in &*running.engines() {
            let Some((source, parked)) = engine.longest_parked(&running.prefixes) else {
                continue;
            };
            if parked.waited <= PARKED_TOO_LONG {
                continue;
            }
            tracing::warn!(
                controller = engine.name(),
                key = %parked.key,
                source = %parked.source,
                revision = %parked.revision,
                waited = ?parked.waited,
                "the view does not show what was written"
            );
            let now = environment.monotonic();
            let again = |last: &Duration| now.saturating_sub(*last) > PARKED_TOO_LONG;
            if last_read.get(&source).is_none_or(again) {
                last_read.insert(source, now);
                running.sources[source].read_again();
            }
        }
    }
}
