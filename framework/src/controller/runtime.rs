//! The runtime: a view of the store, controllers on it, and how many processes share the work.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::builder::{Controller, Registered};
use super::claim::TTL;
use super::enrol::{Enrolment, Refused};
use super::event::EventRecorder;
use super::lead::{Division, Lead};
use super::narrow::{feed_anchored, prefixes_of};
use super::posts::Posts;
use super::reaper;
use super::running::{Crews, Running, mirror, must_not_end, watch_eased, watch_parked};
use super::sharding::Sharding;
use super::status::RuntimeStatus;
use crate::cache::{self, Cached, Reader, Source, SourceState, View, cache, feed};
use crate::environment::Environment;
use crate::failsafe::{Failsafes, Safeguards, Warden};
use crate::model::{InvalidName, Kinds, ObjectKey, Resource};
use crate::observe::{Explanation, MeteredStore, Metrics, RuntimeFacts};
use crate::root::RootedStore;
use crate::store::{Pipeline, Prefix, Store};

/// Messages from sources that may wait.
const FEED_BACKLOG: usize = 64;
/// How long the last events are waited for.
const FLUSH: Duration = Duration::from_secs(2);

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
    /// There is no such controller.
    #[error("no controller is named `{name}`")]
    NoController {
        /// The name.
        name: String,
    },
    /// None of the prefixes that the runtime watches can hold objects of a kind.
    #[error(
        "{who} works with {kind}, of which no watched prefix tells: add one with `Runtime::watch`, or watch everything, without it and without `Runtime::watch_declared`"
    )]
    NotWatched {
        /// Who: a controller, or the runtime itself.
        who: String,
        /// The kind.
        kind: String,
    },
    /// The work cannot be divided like that.
    #[error("{count} shards: there must be at least 1, and at most {most}")]
    Shards {
        /// The number asked for.
        count: usize,
        /// The most there can be.
        most: usize,
    },
    /// The runtime does not run, so nothing can be added to it or removed.
    #[error("the runtime does not run: add controllers and kinds to it before it does")]
    NotRunning,
    /// A name cannot be part of a key.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A controller's own objects are not kept whole.
    #[error(
        "the controller `{controller}` cannot work on {kind} of which only some fields are kept: leave out `projected`, or declare another type for the narrow view"
    )]
    Projected {
        /// The controller.
        controller: String,
        /// The kind.
        kind: String,
    },
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
    watches_declared: bool,
    kinds: Kinds,
    options: cache::Options,
    controllers: Vec<Registered>,
    division: Division,
    shutdown: Option<BoxFuture<'static, ()>>,
    grace: Duration,
    failsafes: Failsafes,
    registers: bool,
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

/// Where a runtime that runs is found, and how it is told.
type Slot = Arc<Mutex<Option<(Arc<Running>, mpsc::UnboundedSender<Order>)>>>;

/// What a handle asks of a runtime that runs.
enum Order {
    Add(Box<Registered>, oneshot::Sender<Result<(), RunError>>),
    Remove(String, oneshot::Sender<Result<(), RunError>>),
}

fn set(slot: &Slot, running: Option<(Arc<Running>, mpsc::UnboundedSender<Order>)>) {
    let old = std::mem::replace(
        &mut *slot.lock().unwrap_or_else(PoisonError::into_inner),
        running,
    );
    if let Some((running, _)) = &old {
        running.end();
    }
    drop(old);
}

/// Empties the slot when the runtime ends, so that handles keep nothing of it alive.
struct InSlot(Slot);

impl Drop for InSlot {
    fn drop(&mut self) {
        set(&self.0, None);
    }
}

/// Looks into a runtime and changes it, also while it runs. Cheap to clone.
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
        let running = running.unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|(running, _)| running.clone())
    }

    /// What the runtime does; None while it does not run.
    #[must_use]
    pub fn status(&self) -> Option<RuntimeStatus> {
        Some(self.running()?.status())
    }

    /// Everything the runtime mirrors; None before every source was read once, and while it does
    /// not run.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let running = self.running()?;
        running.is_synced().then(|| running.reader.view())
    }

    /// Reads the runtime's view; None while it does not run.
    #[must_use]
    pub fn reader(&self) -> Option<Reader> {
        Some(self.running()?.reader.clone())
    }

    /// Says why an object is where it is: what its records say, what each controller of this
    /// process did about it lately and why, and what the next run waits for. None while the
    /// runtime does not run.
    #[must_use]
    pub fn explain(&self, key: &ObjectKey) -> Option<Explanation> {
        Some(self.running()?.explain(key))
    }

    /// The runtime's metrics, for `/metrics` or a registry of yours.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::new().runtime(self)
    }

    pub(crate) fn facts(&self) -> Option<RuntimeFacts> {
        Some(self.running()?.facts())
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, RunError>>) -> Order,
    ) -> Result<T, RunError> {
        let (done, answer) = oneshot::channel();
        {
            let running = self.running.lock();
            let running = running.unwrap_or_else(PoisonError::into_inner);
            let (_, orders) = running.as_ref().ok_or(RunError::NotRunning)?;
            orders.send(order(done)).map_err(|_| RunError::NotRunning)?;
        }
        answer.await.map_err(|_| RunError::NotRunning)?
    }

    /// Adds a controller to a runtime that runs. It begins, without holding up any other, once
    /// the kinds that it names are read.
    ///
    /// # Errors
    /// A name that is taken; a kind of which no watched prefix tells; the runtime does not run.
    pub async fn add_controller<K: Resource>(
        &self,
        controller: Controller<K>,
    ) -> Result<(), RunError> {
        let registered = Box::new(controller.register());
        self.order(|done| Order::Add(registered, done)).await
    }

    /// Removes a controller in order, and returns when none of its runs goes on. What it wrote
    /// stays. Kinds that nobody names any more are not mirrored any longer.
    ///
    /// # Errors
    /// There is no such controller; the runtime does not run.
    pub async fn remove_controller(&self, name: &str) -> Result<(), RunError> {
        let name = name.to_owned();
        self.order(|done| Order::Remove(name, done)).await
    }

    /// Mirrors objects of the kind `K` too, and returns when they are read.
    ///
    /// # Errors
    /// No watched prefix tells of the kind; the runtime does not run.
    pub async fn add_kind<K: Resource>(&self) -> Result<(), RunError> {
        let running = self.running().ok_or(RunError::NotRunning)?;
        let kinds = Kinds::new().with::<K>();
        running.must_tell_of("the runtime", &kinds)?;
        let loaded = running.mirror_also(&kinds);
        drop(running);
        loaded.await.map_err(|_| RunError::NotRunning)
    }

    /// Does not mirror objects of the kind `K` any more, unless a controller names it.
    ///
    /// # Errors
    /// The runtime does not run.
    pub fn remove_kind<K: Resource>(&self) -> Result<(), RunError> {
        let running = self.running().ok_or(RunError::NotRunning)?;
        running.forget(&K::group_plural());
        Ok(())
    }

    /// Stops the runtime in order: no new runs, those that have begun are finished within the
    /// grace time, claims are released, events are written.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Runtime {
    /// A runtime on a store, without controllers. Its commits happen only in the root that it
    /// has read: each compares the anchor, as those of a
    /// [`RootedStore`](crate::root::RootedStore), which the store may be already.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, environment: Environment) -> Self {
        Self {
            store,
            environment,
            name: "controllers".to_owned(),
            prefixes: Vec::new(),
            watches_declared: false,
            kinds: Kinds::new(),
            options: cache::Options::new(),
            controllers: Vec::new(),
            division: Division::Alone,
            shutdown: None,
            grace: Duration::from_secs(30),
            failsafes: Failsafes::new(),
            registers: true,
            running: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Names this program: its ring of events is `x/event/<name>/`, where the credential must be
    /// allowed to write, and processes of one name share [shards](Self::shards). `controllers`
    /// unless set.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Mirrors this prefix instead of all objects (`o/`), or [one key alone](Prefix::only); may be
    /// repeated. Each prefix but a single key needs its own anchor: see
    /// [`write_prefix_anchor`](crate::cache::write_prefix_anchor). With several, a view is
    /// [`Bounded`](crate::cache::Freshness::Bounded) and no longer exact, and a prefix that cannot
    /// be read holds only the controllers that work with kinds it tells of.
    #[must_use]
    pub fn watch(mut self, prefix: Prefix) -> Self {
        self.prefixes.push(prefix);
        self
    }

    /// Mirrors the objects of the declared kinds alone, those of the controllers and
    /// [`Runtime::kind`], instead of all objects: for a program with a kind or two in a root that
    /// holds many others'. Its views are [`Bounded`](crate::cache::Freshness::Bounded), and no
    /// kind can be added while it runs. Each prefix gets its anchor when it is first watched.
    #[must_use]
    pub fn watch_declared(mut self) -> Self {
        self.watches_declared = true;
        self
    }

    /// Mirrors objects of the kind `K` too, for every controller to read. Kinds that a controller
    /// names are known without it, to that controller.
    #[must_use]
    pub fn kind<K: Resource>(mut self) -> Self {
        self.kinds = self.kinds.with::<K>();
        self
    }

    /// Mirrors objects of the kind `K` in this way: what is kept, and what finds them.
    #[must_use]
    pub fn cached<K: Resource>(mut self, cached: Cached<K>) -> Self {
        let (kind, options) = cached.into_options();
        self.kinds = self.kinds.with::<K>();
        self.options.insert(kind, options);
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

    /// Sets how the runtime guards itself against records that are wrong.
    #[must_use]
    pub fn failsafes(mut self, failsafes: Failsafes) -> Self {
        self.failsafes = failsafes;
        self
    }

    /// Does not register the kinds that its controllers declare under `x/kinds/`, where every
    /// server finds them: another program does, or this one's credential may not. What it may not
    /// is told in its [status](RuntimeStatus::unregistered) otherwise, and stops nothing.
    #[must_use]
    pub fn without_registration(mut self) -> Self {
        self.registers = false;
        self
    }

    /// Runs controllers only while this process holds the claim `name`, and compares the claim
    /// in each commit. Without it, only one process may run them.
    #[must_use]
    pub fn elect_leader(mut self, name: &str) -> Self {
        let claim = name.to_owned();
        self.division = Division::Leader { claim };
        self
    }

    /// Shares the work among all processes that run a runtime of this [name](Self::name): the
    /// keys are spread over `count` shards, each process holds the claims of about equally many,
    /// and each commit compares the claim of its key's shard. Take a few times as many shards as
    /// there will be processes, at most 256; processes that go by another number wait until all
    /// others have ended.
    #[must_use]
    pub fn shards(mut self, count: usize) -> Self {
        self.division = Division::Shards { count };
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

    /// The kinds of the controllers, and those that are mirrored besides.
    fn declared(&self) -> Kinds {
        let mut kinds = self.kinds.clone();
        for controller in &self.controllers {
            kinds.define_all(&controller.kinds);
        }
        kinds
    }

    /// Runs until stopped. The store need not be there yet: reads are repeated until it answers.
    ///
    /// # Errors
    /// A name that is used twice or cannot be used, and other things that are wrong with how the
    /// runtime was put together; nothing that a store or a controller does.
    pub async fn run(mut self) -> Result<(), RunError> {
        self.store = Pipeline::where_it_helps(RootedStore::around(self.store));
        let chosen = match self.watches_declared {
            true => prefixes_of(&self.declared()),
            false => Vec::new(),
        };
        let given = self.prefixes.len();
        self.prefixes.extend(chosen);
        if self.prefixes.is_empty() {
            self.prefixes
                .push(Prefix::new("o/").expect("a constant that is a valid prefix"));
        }
        let sharding = match &self.division {
            Division::Shards { count } => Some(Sharding::new(&self.name, *count)?),
            _ => None,
        };
        let metered = MeteredStore::new(self.store.clone(), self.environment.clone());
        self.store = Arc::new(metered.clone());
        let recorder = EventRecorder::new(
            self.store.clone(),
            &self.name,
            &self.name,
            self.environment.clone(),
        )?;
        let guards = Safeguards::open(
            self.failsafes.clone().into_setup(&self.name),
            self.environment.clone(),
            self.kinds.clone(),
            &self.prefixes,
            recorder.with_source("failsafe"),
        )
        .await;
        let (writer, reader) = cache(
            Arc::new(self.kinds.clone()),
            self.prefixes.clone(),
            self.options.clone(),
        );
        let states = self.prefixes.iter().cloned().map(SourceState::new);
        let states: Vec<_> = states.map(Arc::new).collect();
        let (mirror_in, mirror_out) = mpsc::unbounded_channel();
        let (failed_in, mut failed) = mpsc::unbounded_channel();
        let (enrol_in, enrol_out) = mpsc::unbounded_channel();
        let running = Arc::new(Running {
            name: self.name.clone(),
            metered,
            store: self.store.clone(),
            environment: self.environment.clone(),
            reader,
            prefixes: self.prefixes.clone(),
            sources: states.clone().into(),
            posts: Arc::new(Posts::new(self.division.shards())),
            elects: matches!(self.division, Division::Leader { .. }),
            sharding,
            recorder: recorder.clone(),
            grace: self.grace,
            mirror: mirror_in,
            failed: failed_in.clone(),
            guards: guards.clone(),
            writers: Arc::default(),
            crews: Mutex::new(Crews::new(self.kinds.clone())),
            enrols: self.registers.then_some(enrol_in),
            refused: Refused::default(),
        });
        let (orders_in, mut orders) = mpsc::unbounded_channel();
        set(&self.running, Some((running.clone(), orders_in)));
        let _in_slot = InSlot(self.running.clone());
        running.must_tell_of("the runtime", &self.kinds)?;
        running.enrol(&self.kinds);
        for controller in std::mem::take(&mut self.controllers) {
            running.add(controller)?;
        }
        // Dropped with the future, and everything in it ends.
        let mut tasks = JoinSet::new();
        let enrolment = Enrolment {
            store: self.store.clone(),
            environment: self.environment.clone(),
            guards: guards.clone(),
            refused: running.refused.clone(),
        };
        tasks.spawn(enrolment.work(enrol_out));
        let (feed_in, feed_out) = mpsc::channel(FEED_BACKLOG);
        let mirror = mirror(writer, running.clone(), feed_out, mirror_out);
        tasks.spawn(must_not_end("mirror", failed_in.clone(), mirror));
        for (index, state) in states.into_iter().enumerate() {
            let source = Source {
                index,
                store: self.store.clone(),
                environment: self.environment.clone(),
                state,
                feed: feed_in.clone(),
                guards: guards.clone(),
            };
            let feeding = match index < given || !self.watches_declared {
                true => feed(source).boxed(),
                false => {
                    let prefix = self.prefixes[index].clone();
                    let (store, environment) = (self.store.clone(), self.environment.clone());
                    feed_anchored(source, prefix, store, environment, guards.clone()).boxed()
                }
            };
            tasks.spawn(must_not_end("source", failed_in.clone(), feeding));
        }
        drop(feed_in);
        let speaker = running.clone();
        let warden = Warden {
            guards,
            store: self.store.clone(),
            sources: running.sources.clone(),
            reader: running.reader.clone(),
            speaks: Box::new(move || speaker.speaks()),
        };
        tasks.spawn(must_not_end("warden", failed_in.clone(), warden.run()));
        let eased = watch_eased(running.clone());
        tasks.spawn(must_not_end("wait for holds", failed_in.clone(), eased));
        let parked = watch_parked(running.clone());
        tasks.spawn(must_not_end("watch of parked keys", failed_in, parked));
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
        let lead = Lead {
            store: self.store.clone(),
            environment: self.environment.clone(),
            name: self.name.clone(),
            ttl: TTL,
            grace: self.grace,
            posts: running.posts.clone(),
            recorder: recorder.clone(),
        };
        let lead = lead.work(&self.division, running.sharding.as_ref(), &stop);
        tokio::pin!(lead, stopped);
        let mut is_stopped = false;
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut lead => break outcome,
                () = &mut stopped, if !is_stopped => {
                    is_stopped = true;
                    stop.cancel();
                }
                Some(error) = failed.recv() => break Err(error),
                Some(order) = orders.recv() => match order {
                    Order::Add(controller, done) => {
                        // Who asked may be gone.
                        let _ = done.send(running.add(*controller));
                    }
                    Order::Remove(name, done) => match running.remove(&name) {
                        Ok(removed) => {
                            tasks.spawn(async move {
                                removed.await;
                                let _ = done.send(Ok(()));
                            });
                        }
                        Err(error) => {
                            let _ = done.send(Err(error));
                        }
                    },
                },
            }
        };
        tokio::select! {
            biased;
            () = recorder.flush() => {}
            () = self.environment.sleep(FLUSH) => {}
        }
        outcome
    }
}
