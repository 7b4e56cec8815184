//! The runtime: a view of the store, controllers on it, and at most one process that leads.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::builder::{Controller, Registered};
use super::claim::{Campaign, Fence, Held, TTL};
use super::context::Setting;
use super::engine::{Engine, PARKED_CHECK, PARKED_TOO_LONG};
use super::event::EventRecorder;
use super::reaper;
use super::status::RuntimeStatus;
use crate::cache::{Feed, Reader, Source, SourceState, View, Writer, cache, feed};
use crate::environment::Environment;
use crate::model::{InvalidName, Kinds, Resource};
use crate::store::{Pipeline, Prefix, Revision, Store};

/// Messages from sources that may wait.
const FEED_BACKLOG: usize = 64;
/// After winning a claim, the view gets this long to show the revision it was won at by itself.
const CATCH_UP: Duration = Duration::from_millis(300);

/// Why a runtime cannot run, or does not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Two controllers have one name.
    #[error("two controllers are named `{name}`: names tell them apart in events and claims")]
    DuplicateController {
        /// The name.
        name: String,
    },
    /// A name cannot be part of a key.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A task of the runtime itself ended, which is a bug in it.
    #[error("the runtime's {task} ended: {reason}")]
    Internal {
        /// Which task.
        task: &'static str,
        /// How.
        reason: String,
    },
}

/// Runs controllers on a view of a store.
///
/// [`Runtime::run`] is a plain future: nothing happens before it is awaited, and dropping it
/// ends everything.
pub struct Runtime {
    store: Arc<dyn Store>,
    environment: Environment,
    name: String,
    prefixes: Vec<Prefix>,
    kinds: Kinds,
    controllers: Vec<Registered>,
    claim: Option<(String, Duration)>,
    shutdown: Option<BoxFuture<'static, ()>>,
    grace: Duration,
    running: Slot,
    stop: CancellationToken,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("name", &self.name)
            .field("prefixes", &self.prefixes)
            .field("controllers", &self.controllers)
            .finish_non_exhaustive()
    }
}

/// Where a runtime that runs is found.
type Slot = Arc<Mutex<Option<Arc<Running>>>>;

fn set(slot: &Slot, running: Option<Arc<Running>>) {
    let old = std::mem::replace(
        &mut *slot.lock().unwrap_or_else(PoisonError::into_inner),
        running,
    );
    drop(old);
}

/// Empties the slot when the runtime ends, so that handles keep nothing of it alive.
struct InSlot(Slot);

impl Drop for InSlot {
    fn drop(&mut self) {
        set(&self.0, None);
    }
}

struct Running {
    reader: Reader,
    environment: Environment,
    prefixes: Vec<Prefix>,
    sources: Vec<Arc<SourceState>>,
    engines: Vec<Arc<Engine>>,
    fence: Option<tokio::sync::watch::Sender<Option<Fence>>>,
}

/// Looks into a runtime, also while it runs. Cheap to clone.
#[derive(Clone)]
pub struct RuntimeHandle {
    running: Slot,
    stop: CancellationToken,
}

impl fmt::Debug for RuntimeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeHandle").finish_non_exhaustive()
    }
}

impl RuntimeHandle {
    fn running(&self) -> Option<Arc<Running>> {
        let running = self.running.lock();
        running.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the runtime does; None while it does not run.
    #[must_use]
    pub fn status(&self) -> Option<RuntimeStatus> {
        let running = self.running()?;
        let now = running.environment.monotonic();
        let synced = running.reader.sources().iter().all(Option::is_some);
        let view = synced.then(|| running.reader.view());
        Some(RuntimeStatus {
            sources: running
                .sources
                .iter()
                .map(|source| source.status(now))
                .collect(),
            freshness: view.as_ref().map(View::freshness),
            leads: running
                .fence
                .as_ref()
                .map(|fence| fence.borrow().as_ref().is_some_and(Fence::is_held)),
            controllers: running
                .engines
                .iter()
                .map(|engine| engine.status(&running.prefixes))
                .collect(),
            set_aside: view.map_or(0, |view| view.set_aside().len()),
        })
    }

    /// Everything the runtime mirrors; None before every source was read once, and while it does
    /// not run.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let reader = self.reader()?;
        let synced = reader.sources().iter().all(Option::is_some);
        synced.then(|| reader.view())
    }

    /// Reads the runtime's view; None while it does not run.
    #[must_use]
    pub fn reader(&self) -> Option<Reader> {
        Some(self.running()?.reader.clone())
    }

    /// Stops the runtime in order: no new runs, those that have begun are finished within the
    /// grace time, claims are released, events are written.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Runtime {
    /// A runtime on a store, without controllers.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, environment: Environment) -> Self {
        Self {
            store,
            environment,
            name: "controllers".to_owned(),
            prefixes: Vec::new(),
            kinds: Kinds::new(),
            controllers: Vec::new(),
            claim: None,
            shutdown: None,
            grace: Duration::from_secs(30),
            running: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Names this program: its ring of events is `x/event/<name>/`, where the credential must be
    /// allowed to write. `controllers` unless set.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Mirrors this prefix instead of all objects (`o/`); may be repeated. Each prefix needs its
    /// own anchor: see [`write_prefix_anchor`](crate::cache::write_prefix_anchor). With several, a
    /// view is [`Bounded`](crate::cache::Freshness::Bounded) and no longer exact.
    #[must_use]
    pub fn watch(mut self, prefix: Prefix) -> Self {
        self.prefixes.push(prefix);
        self
    }

    /// Mirrors objects of the kind `K` too. Kinds that controllers name are known without it.
    #[must_use]
    pub fn kind<K: Resource>(mut self) -> Self {
        self.kinds = self.kinds.with::<K>();
        self
    }

    /// Adds a controller.
    #[must_use]
    pub fn controller<K: Resource>(mut self, controller: Controller<K>) -> Self {
        self.controllers.push(controller.register());
        self
    }

    /// Removes the records of objects that have come to their end, of all kinds that this
    /// runtime knows. One program for each kind has to.
    #[must_use]
    pub fn reap(mut self) -> Self {
        self.controllers.push(reaper::register());
        self
    }

    /// Runs controllers only while this process holds the claim `name`, and compares the claim
    /// in each commit. Without it, only one process may run them.
    #[must_use]
    pub fn elect_leader(mut self, name: &str) -> Self {
        self.claim = Some((name.to_owned(), TTL));
        self
    }

    /// Stops the runtime, as [`RuntimeHandle::stop`] does, when this future completes.
    #[must_use]
    pub fn shutdown_on(mut self, shutdown: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    /// How long runs that have begun may take when the runtime is stopped; 30 seconds unless set.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Looks into the runtime while it runs.
    #[must_use]
    pub fn handle(&self) -> RuntimeHandle {
        RuntimeHandle {
            running: self.running.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Runs until stopped. The store need not be there yet: reads are repeated until it answers.
    ///
    /// # Errors
    /// A name that is used twice or cannot be used; nothing that a store or a controller does.
    pub async fn run(mut self) -> Result<(), RunError> {
        let mut names = HashSet::new();
        for controller in &self.controllers {
            if !names.insert(controller.name.clone()) {
                let name = controller.name.to_string();
                return Err(RunError::DuplicateController { name });
            }
            for kind in controller.kinds.iter() {
                self.kinds.define(kind.definition.clone());
            }
        }
        self.store = Pipeline::where_it_helps(self.store);
        if self.prefixes.is_empty() {
            self.prefixes
                .push(Prefix::new("o/").expect("a constant that is a valid prefix"));
        }
        let recorder = EventRecorder::new(
            self.store.clone(),
            &self.name,
            &self.name,
            self.environment.clone(),
        )?;
        let (writer, reader) = cache(Arc::new(self.kinds.clone()), self.prefixes.clone());
        // Dropped with the future, and everything in it ends.
        let mut tasks = JoinSet::new();
        let (feed_in, feed_out) = mpsc::channel(FEED_BACKLOG);
        let mut sources = Vec::new();
        for (index, prefix) in self.prefixes.iter().enumerate() {
            let state = Arc::new(SourceState::new(prefix.clone()));
            sources.push(state.clone());
            let source = Source {
                index,
                store: self.store.clone(),
                environment: self.environment.clone(),
                state,
                feed: feed_in.clone(),
            };
            tasks.spawn(async move {
                feed(source).await;
                "source"
            });
        }
        drop(feed_in);
        let mut engines = Vec::new();
        for controller in std::mem::take(&mut self.controllers) {
            let setting = Arc::new(Setting {
                controller: controller.name.clone(),
                api_version: controller.api_version.clone(),
                kind: controller.kind.clone(),
                store: self.store.clone(),
                environment: self.environment.clone(),
                recorder: recorder.with_source(&controller.name),
            });
            let engine = Engine::new(controller, setting, reader.clone(), self.prefixes.len());
            engines.push(engine.clone());
            tasks.spawn(async move {
                engine.run_timers().await;
                "timer"
            });
        }
        let mirror = mirror(writer, reader.clone(), engines.clone(), feed_out);
        tasks.spawn(async move {
            mirror.await;
            "mirror"
        });
        let fence = self
            .claim
            .is_some()
            .then(|| tokio::sync::watch::Sender::new(None));
        let running = Arc::new(Running {
            reader,
            environment: self.environment.clone(),
            prefixes: self.prefixes.clone(),
            sources,
            engines,
            fence,
        });
        set(&self.running, Some(running.clone()));
        let _in_slot = InSlot(self.running.clone());
        tasks.spawn(watch_parked(
            running.sources.clone(),
            running.engines.clone(),
            running.prefixes.clone(),
            self.environment.clone(),
        ));
        let shutdown = self.shutdown.take();
        let stop = self.stop.clone();
        let stopped = async move {
            match shutdown {
                Some(shutdown) => tokio::select! {
                    biased;
                    () = shutdown => {}
                    () = stop.cancelled() => {}
                },
                None => stop.cancelled().await,
            }
        };
        let stop = self.stop.clone();
        let terms = Terms {
            store: self.store.clone(),
            environment: self.environment.clone(),
            name: self.name.clone(),
            claim: self.claim.clone(),
            grace: self.grace,
        };
        let lead = terms.lead(&running, &recorder, &stop);
        tokio::pin!(lead);
        let outcome = tokio::select! {
            biased;
            outcome = &mut lead => outcome,
            () = stopped => {
                stop.cancel();
                lead.await
            }
            Some(ended) = tasks.join_next() => Err(match ended {
                Ok(task) => RunError::Internal { task, reason: "it returned".to_owned() },
                Err(error) => RunError::Internal { task: "task", reason: error.to_string() },
            }),
        };
        let flush = recorder.flush();
        tokio::select! {
            biased;
            () = flush => {}
            () = self.environment.sleep(Duration::from_secs(2)) => {}
        }
        outcome
    }
}

/// The times in which this process works.
struct Terms {
    store: Arc<dyn Store>,
    environment: Environment,
    name: String,
    claim: Option<(String, Duration)>,
    grace: Duration,
}

impl Terms {
    /// Works while the claim is held, or always without one.
    async fn lead(
        &self,
        running: &Running,
        recorder: &EventRecorder,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let mut terms = 0_u64;
        loop {
            let held = match &self.claim {
                None => None,
                Some((name, ttl)) => {
                    let campaign = Campaign {
                        store: self.store.clone(),
                        environment: self.environment.clone(),
                        name: name.clone(),
                        holder: format!("{}-{}", self.name, self.environment.process()),
                        ttl: *ttl,
                    };
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        held = campaign.win() => Some(held?),
                    }
                }
            };
            let fence = held.as_ref().map(Held::fence).cloned();
            if let (Some(sender), Some(fence)) = (&running.fence, &fence) {
                tracing::info!(claim = fence.name(), epoch = %fence.epoch(), "this process leads");
                sender.send_replace(Some(fence.clone()));
                recorder.reload();
            }
            let lost = async {
                match &fence {
                    Some(fence) => fence.lost().await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(lost);
            let ready = tokio::select! {
                biased;
                () = stop.cancelled() => false,
                () = &mut lost => false,
                () = caught_up(running, fence.as_ref(), &self.environment) => true,
            };
            if ready {
                if terms > 0 {
                    running.engines.iter().for_each(|engine| engine.resync());
                }
                terms += 1;
                let mut workers = JoinSet::new();
                let no_more = CancellationToken::new();
                for engine in &running.engines {
                    for _ in 0..engine.concurrency() {
                        let (engine, fence) = (engine.clone(), fence.clone());
                        let no_more = no_more.clone();
                        workers.spawn(async move { engine.work(fence.as_ref(), &no_more).await });
                    }
                }
                let grace = tokio::select! {
                    biased;
                    () = stop.cancelled() => self.grace,
                    // Nothing they commit is taken any more.
                    () = &mut lost => self.grace.min(Duration::from_secs(5)),
                };
                no_more.cancel();
                self.finish(workers, grace, &running.engines).await;
            }
            if let (Some(sender), Some(fence)) = (&running.fence, &fence) {
                tracing::info!(claim = fence.name(), "this process does not lead any more");
                sender.send_replace(None);
            }
            if let Some(held) = held {
                held.release().await;
            }
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Lets runs that have begun finish, for as long as `grace`.
    async fn finish(&self, mut workers: JoinSet<()>, grace: Duration, engines: &[Arc<Engine>]) {
        let all = async { while workers.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = all => return,
            () = self.environment.sleep(grace) => {}
        }
        let running: usize = engines.iter().map(|engine| engine.running()).sum();
        tracing::warn!(running, ?grace, "runs were ended where they waited");
        workers.shutdown().await;
    }
}

/// Waits until the view may be decided on.
async fn caught_up(running: &Running, fence: Option<&Fence>, environment: &Environment) {
    running.reader.synced().await;
    let Some(fence) = fence else {
        return;
    };
    tokio::select! {
        biased;
        () = running.reader.reached(fence.epoch()) => return,
        () = environment.sleep(CATCH_UP) => {}
    }
    // The claim is outside of what is watched, so nothing may tell that nothing changed.
    for source in &running.sources {
        source.read_again();
    }
    running.reader.reached(fence.epoch()).await;
}

/// Keeps the cache up to date and tells the controllers.
async fn mirror(
    mut writer: Writer,
    reader: Reader,
    engines: Vec<Arc<Engine>>,
    mut feed: mpsc::Receiver<Feed>,
) {
    while let Some(told) = feed.recv().await {
        let (changes, initial) = match told {
            Feed::List(source, records, revision) => {
                let initial = reader.sources()[source].is_none();
                (writer.replace(source, records, revision), initial)
            }
            Feed::Changes(source, changes, revision) => {
                (writer.apply(source, changes, revision), false)
            }
            Feed::Progress(source, revision) => {
                writer.progress(source, revision);
                (Vec::new(), false)
            }
        };
        let view = reader.view();
        let reached: Vec<Revision> = view.reached();
        for engine in &engines {
            engine.offer(&changes, &view, initial);
            engine.reached(&reached);
        }
    }
}

/// Reports keys that wait too long for the view, and has their source read afresh.
async fn watch_parked(
    sources: Vec<Arc<SourceState>>,
    engines: Vec<Arc<Engine>>,
    prefixes: Vec<Prefix>,
    environment: Environment,
) -> &'static str {
    let mut last_read = environment.monotonic();
    loop {
        environment.sleep(PARKED_CHECK).await;
        for engine in &engines {
            let Some((source, parked)) = engine.longest_parked(&prefixes) else {
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
            if now.saturating_sub(last_read) > PARKED_TOO_LONG {
                last_read = now;
                sources[source].read_again();
            }
        }
    }
}
