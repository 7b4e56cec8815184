//! One task for each pod: it looks, [plans](crate::plan), does, and tells.
//!
//! A worker is driven by plain data (an [`Order`]) and tells an [`Observer`] what is so; it knows
//! no store. Everything slow happens beside it: downloads in a task that may be given up, stops
//! by the supervisors. So one stuck pod holds up nobody, and a newer order is seen at once.

mod control;
mod prepare;
mod restart;
mod steps;
mod units;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::failpoint;
use platctrl_framework::model::{Digest, EventType, Uid};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::files::FileError;
use crate::host::Host;
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::{Hold, Observed, Order, Step, plan};
use crate::report::{Facts, Observer, PodEvent, Report, Trouble, compose};
use crate::situation::Situation;
use crate::state::{Found, KnownHealth, PodRecord, Position};
use crate::version::{Desired, Version};
pub use control::Control;
use control::Controls;
pub use restart::{AskedRestart, Wish};
use restart::{Restarting, Turn};
use units::Units;

/// Waits between attempts at a step that fails: doubled each time, from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The wait when trying again cannot help unless somebody changes something on the machine.
const RETRY_PERMANENT: Duration = Duration::from_secs(300);
/// Plans carried out in a row before others get their turn.
const ROUNDS: usize = 16;

/// A pod's worker.
#[derive(Debug)]
pub struct Worker {
    orders: watch::Sender<Order>,
    controls: Arc<Controls>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Starts the worker of a pod. It begins by finding out what of the pod is on this node; a
    /// first order of [`Order::Unknown`] keeps that running.
    #[must_use]
    pub fn spawn(
        host: Arc<Host>,
        observer: Arc<dyn Observer>,
        name: PodName,
        order: Order,
    ) -> Self {
        let (orders, receiver) = watch::channel(order);
        let controls = Arc::new(Controls::default());
        let heard = Arc::clone(&controls);
        let task = tokio::spawn(async move {
            loop {
                let observer = Arc::clone(&observer);
                let heard = Arc::clone(&heard);
                let pod = Pod::new(Arc::clone(&host), observer, heard, name.clone());
                match tokio::spawn(pod.run(receiver.clone())).await {
                    Ok(()) => return,
                    // A bug met by one pod costs no other anything, and its programs run on: a new
                    // worker finds them again.
                    Err(error) if error.is_panic() => {
                        tracing::error!(pod = %name, %error, "the pod's worker panicked");
                        tokio::time::sleep(RETRY.1).await;
                    }
                    Err(_) => return,
                }
            }
        });
        Self {
            orders,
            controls,
            task,
        }
    }

    /// Says something that is no order: a grant, or what somebody on the node wants.
    pub fn control(&self, word: Control) {
        self.controls.say(word);
    }

    /// Gives a new order. It replaces one that was not carried out yet.
    pub fn order(&self, order: Order) {
        self.orders.send_if_modified(|known| {
            let changed = *known != order;
            *known = order;
            changed
        });
    }

    /// The pod is gone and the worker has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends the worker and waits until it has; the pod's programs keep running.
    pub async fn leave(self) {
        drop(self.orders);
        // A worker that panicked has ended too.
        let _ = self.task.await;
    }
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Nothing to do until something happens.
    Wait,
    /// The pod is gone.
    Gone,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Done: on to the next.
    Done,
    /// It goes on by itself; look again when something happens.
    Underway,
}

/// A version that is being fetched.
#[derive(Debug)]
struct Fetching {
    digest: Digest,
    task: JoinHandle<Result<Version, Trouble>>,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Pod {
    host: Arc<Host>,
    observer: Arc<dyn Observer>,
    name: PodName,
    paths: PodPaths,
    record: PodRecord,
    /// Only the directories of the pod are known.
    unidentified: bool,
    units: Units,
    fetching: Option<Fetching>,
    /// The version whose files were written by this process.
    configured: Option<u64>,
    /// Files of older generations may be there.
    stale: bool,
    trouble: Option<Trouble>,
    attempts: u32,
    /// When to look again even if nothing happens.
    wake: Option<Instant>,
    hold: Option<Hold>,
    told: Option<Report>,
    gone: bool,
    /// Something was heard that is not on disk yet.
    unsaved: bool,
    controls: Arc<Controls>,
    /// What is so on the node.
    situation: watch::Receiver<Situation>,
    /// It was restarted without a grant, and has not come to life yet.
    turn: Option<Turn>,
    /// When to look whether a restart may be done.
    look: Option<Instant>,
    /// How often the kernel had ended a process of a program for want of memory.
    oom_kills: ByProgram<u64>,
}

impl Pod {
    fn new(
        host: Arc<Host>,
        observer: Arc<dyn Observer>,
        controls: Arc<Controls>,
        name: PodName,
    ) -> Self {
        let paths = host.layout.pod(&name);
        Self {
            record: PodRecord::new(name.clone()),
            units: Units::new(Arc::clone(&host), paths.clone()),
            situation: host.circumstances.watch(),
            controls,
            turn: None,
            look: None,
            host,
            observer,
            name,
            paths,
            unidentified: false,
            fetching: None,
            configured: None,
            stale: true,
            trouble: None,
            attempts: 0,
            wake: None,
            hold: None,
            told: None,
            gone: false,
            unsaved: false,
            oom_kills: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut orders: watch::Receiver<Order>) {
        while let Err(error) = self.meet().await {
            tracing::error!(pod = %self.name, %error, "cannot look at the pod's files");
            tokio::select! {
                () = tokio::time::sleep(RETRY.1) => {}
                changed = orders.changed() => if changed.is_err() { return },
            }
        }
        loop {
            let order = orders.borrow_and_update().clone();
            while let Some(word) = self.controls.take() {
                self.controlled(word);
            }
            // What is told is remembered first.
            self.keep_news().await;
            let flow = self.pass(&order).await;
            self.tell(&order);
            if flow == Flow::Gone {
                return;
            }
            let (wake, look) = (self.wake, self.look);
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Somebody changed something: what failed is tried again at once.
                    self.attempts = 0;
                    self.wake = None;
                }
                event = self.units.next() => self.heard(event),
                result = fetched(&mut self.fetching) => self.take_fetched(result).await,
                () = self.controls.heard() => {}
                // The sender is the host's, which this pod keeps.
                _ = self.situation.changed() => {}
                () = sleep_until(wake) => self.wake = None,
                () = sleep_until(look) => self.look = None,
            }
            // What came together is dealt with together.
            while let Some(event) = self.units.try_next() {
                self.heard(event);
            }
        }
    }

    /// Finds out what is on this node of the pod.
    async fn meet(&mut self) -> Result<(), FileError> {
        let (name, paths) = (self.name.clone(), self.paths.clone());
        let look = move || {
            let programs = paths.programs()?;
            let found = steps::read_record(&name, &paths, &programs)?;
            Ok((programs, found))
        };
        let result = tokio::task::spawn_blocking(look).await;
        let (programs, found) = match result {
            Ok(result) => result?,
            Err(panic) => {
                return Err(FileError::new(
                    "read",
                    self.paths.state(),
                    std::io::Error::other(panic),
                ));
            }
        };
        match found {
            Found::Nothing => {}
            Found::Whole(record) => self.record = *record,
            Found::Damaged { record, reason } => {
                self.unidentified = record.current.is_none() && !programs.is_empty();
                self.record = *record;
                let message = format!(
                    "the pod's record on the node was damaged ({reason}); it was set aside and made again from what runs"
                );
                self.event(EventType::Warning, "RecordDamaged", message);
            }
        }
        for version in self.record.current.iter().chain(&self.record.next) {
            self.host
                .ports
                .set(&self.name, version.ports.values().copied());
        }
        for program in programs {
            self.oom_kills
                .insert(program.clone(), self.host.oom_kills(&self.name, &program));
            let seen = self.record.seen_exits.get(&program).copied().unwrap_or(0);
            self.units.watch(&program, self.paths.shim(&program), seen);
        }
        for event in self.units.introductions().await {
            self.heard(event);
        }
        let pids = self.units.pids();
        let known = |known: &Option<KnownHealth>| {
            let same = known.clone().filter(|known| known.pids == pids);
            same.map(|known| known.state)
        };
        let (health, liveness) = (known(&self.record.health), known(&self.record.liveness));
        let current = self.record.current.as_ref();
        self.units.check(current, health, liveness);
        Ok(())
    }

    /// Plans and does until something has to be waited for.
    async fn pass(&mut self, order: &Order) -> Flow {
        self.give_up_unwanted_fetch(order);
        for _ in 0..ROUNDS {
            match self.restart(order).await {
                Ok(Restarting::No) => {}
                Ok(Restarting::Underway) => return Flow::Wait,
                Err(trouble) => {
                    self.failed(trouble);
                    return Flow::Wait;
                }
            }
            let plan = plan(order, &self.observe(order));
            self.note_hold(plan.hold);
            if plan.steps.is_empty() {
                self.settle(order).await;
                return Flow::Wait;
            }
            for step in plan.steps {
                let waits = self.wake.is_some()
                    && self
                        .trouble
                        .as_ref()
                        .is_some_and(|trouble| trouble.step == step);
                if waits {
                    return Flow::Wait;
                }
                failpoint!(&format!("agent.{}", step.name()));
                match self.step(step, order).await {
                    Ok(Progress::Done) => {}
                    Ok(Progress::Underway) => return Flow::Wait,
                    Err(trouble) => {
                        self.failed(trouble);
                        return Flow::Wait;
                    }
                }
                failpoint!(&format!("agent.{}.done", step.name()));
                if self
                    .trouble
                    .as_ref()
                    .is_some_and(|trouble| trouble.step == step)
                {
                    self.trouble = None;
                    self.attempts = 0;
                }
                if self.gone {
                    return Flow::Gone;
                }
                // What is slow to do is worth telling in between.
                self.tell(order);
            }
        }
        // Something changes as fast as it is done: others first.
        self.wake = Some(Instant::now() + RETRY.0);
        Flow::Wait
    }

    /// Remembers what was heard, so that ends are told once and health outlives the agent.
    async fn keep_news(&mut self) {
        if std::mem::take(&mut self.unsaved)
            && let Err(trouble) = self.save(Step::Start).await
        {
            tracing::warn!(pod = %self.name, message = trouble.message, "cannot remember what was heard");
        }
    }

    fn observe(&self, order: &Order) -> Observed {
        let record = &self.record;
        let seen = record.last.as_ref().filter(|last| last.uid == record.uid);
        Observed {
            uid: record.uid.clone(),
            unidentified: self.unidentified,
            seen: seen.map(|last| (last.generation, last.digest)),
            current: record.current.as_ref().map(|version| version.digest),
            next: record.next.as_ref().map(|version| version.digest),
            position: record.position,
            drained: self.drain_left(order).is_zero(),
            at_rest: self.units.at_rest(),
            missing: self.may_begin()
                && record.current.as_ref().is_some_and(|current| {
                    let generation = current.generation;
                    current
                        .programs
                        .keys()
                        .any(|it| self.units.needs_start(it, generation))
                }),
            stale: self.stale && record.current.is_some(),
            singleton: (record.current.iter().chain(&record.next))
                .any(|version| version.spec.singleton),
        }
    }

    /// Whether programs that do not run may be started.
    fn may_begin(&self) -> bool {
        !self.is_held_down() && self.situation.borrow().gate.refuses(&self.name).is_none()
    }

    /// How much of the drain delay is left.
    fn drain_left(&self, _order: &Order) -> Duration {
        let Some(current) = &self.record.current else {
            return Duration::ZERO;
        };
        let delay = current.drain_delay();
        match self
            .record
            .draining
            .as_ref()
            .map(crate::state::DrainStart::elapsed)
        {
            Some(Some(elapsed)) => delay.saturating_sub(elapsed),
            Some(None) => Duration::ZERO,
            None => delay,
        }
    }

    /// The order, if it is one that the record may follow.
    fn accepted<'a>(&self, order: &'a Order) -> Option<&'a Desired> {
        match order {
            Order::Want(desired) if self.hold.is_none() => Some(desired),
            _ => None,
        }
    }

    /// All is as it should be: remember the order and show the newest labels.
    async fn settle(&mut self, order: &Order) {
        if self.trouble.take().is_some() {
            self.attempts = 0;
            self.wake = None;
        }
        let Some(desired) = self.accepted(order).cloned() else {
            return;
        };
        if self.record.last.as_ref() == Some(&desired) {
            return;
        }
        let labels = self.record.last.as_ref().map(|last| &last.labels) != Some(&desired.labels);
        if labels
            && let Some(current) = &self.record.current
            && let Err(error) = prepare::write_labels(&self.paths, &desired.labels, &current.run_as)
        {
            self.failed(Trouble::file(Step::Configure, &error));
            return;
        }
        self.record.last = Some(desired);
        if let Err(trouble) = self.save(Step::Configure).await {
            self.failed(trouble);
        }
    }

    fn give_up_unwanted_fetch(&mut self, order: &Order) {
        let wanted = match order {
            Order::Want(desired) if desired.tombstone.is_none() => Some(desired.digest),
            // Nobody says otherwise: it may go on.
            Order::Missing | Order::Unknown => return,
            Order::Want(_) => None,
        };
        if self
            .fetching
            .as_ref()
            .is_some_and(|fetching| Some(fetching.digest) != wanted)
        {
            self.fetching = None;
        }
    }

    async fn take_fetched(&mut self, result: Result<Version, Trouble>) {
        self.fetching = None;
        let outcome = match result {
            Ok(version) => {
                self.host.ports.set(&self.name, self.all_ports(&version));
                let message = format!(
                    "generation {}: {} of {} fetched, verified and unpacked",
                    version.generation,
                    if version.installs.len() == 1 {
                        "the artifact"
                    } else {
                        "the artifacts"
                    },
                    version
                        .installs
                        .keys()
                        .cloned()
                        .collect::<Vec<_>>()
                        .join(", "),
                );
                self.record.next = Some(version);
                self.event(EventType::Normal, "Installed", message);
                self.save(Step::Fetch).await
            }
            Err(trouble) => Err(trouble),
        };
        failpoint!("agent.fetch.done");
        match outcome {
            Ok(()) => {
                self.trouble = None;
                self.attempts = 0;
                self.wake = None;
            }
            Err(trouble) => self.failed(trouble),
        }
    }

    /// The ports of the version that runs and of the one that follows.
    fn all_ports(&self, next: &Version) -> Vec<u16> {
        let current = self
            .record
            .current
            .iter()
            .flat_map(|current| current.ports.values());
        current.chain(next.ports.values()).copied().collect()
    }

    /// A step failed: it is tried again after a while.
    fn failed(&mut self, trouble: Trouble) {
        let wait = if trouble.permanent {
            RETRY_PERMANENT
        } else {
            let doubled = 2_u32.saturating_pow(self.attempts.min(16));
            self.host
                .environment
                .jitter(RETRY.0.saturating_mul(doubled).min(RETRY.1))
        };
        self.attempts = self.attempts.saturating_add(1);
        self.wake = Some(Instant::now() + wait);
        if self.trouble.as_ref() != Some(&trouble) {
            let reason = match trouble.step {
                Step::Fetch => "FetchFailed",
                Step::Start => "StartFailed",
                Step::Stop => "StopFailed",
                Step::Remove => "RemoveFailed",
                _ => "StepFailed",
            };
            self.event(EventType::Warning, reason, trouble.message.clone());
        }
        self.trouble = Some(trouble);
    }

    fn note_hold(&mut self, hold: Option<Hold>) {
        if let Some(hold) = &hold
            && self.hold.as_ref() != Some(hold)
        {
            self.event(EventType::Warning, hold.reason(), hold.message());
        }
        self.hold = hold;
    }

    fn event(&self, event_type: EventType, reason: &'static str, message: String) {
        let uid = self.record.uid.clone();
        self.observer.event(PodEvent {
            name: self.name.clone(),
            uid,
            event_type,
            reason,
            message,
        });
    }

    /// Tells what is so, if it is news.
    fn tell(&mut self, order: &Order) {
        let desired = match order {
            Order::Want(desired) if !self.foreign(&desired.uid) => Some(&**desired),
            _ => self.record.last.as_ref(),
        };
        let facts = Facts {
            record: &self.record,
            desired,
            units: self.units.facts(),
            fitness: &self.units.fitness(),
            fetching: self.fetching.is_some(),
            trouble: self.trouble.as_ref(),
            hold: self.hold.as_ref(),
            gone: self.gone,
            node: &self.host.node,
            host_ip: &self.host.host_ip,
        };
        let report = compose(&facts);
        // Of nothing there is nothing to tell.
        if report.uid.is_empty() || self.told.as_ref() == Some(&report) {
            return;
        }
        report.phase.as_str().clone_into(&mut self.record.phase);
        self.told = Some(report.clone());
        self.observer.report(report);
    }

    /// Another pod of this name has its programs here.
    fn foreign(&self, uid: &Uid) -> bool {
        !self.record.uid.is_empty() && self.record.uid != *uid
    }

    /// Programs are being stopped, or about to be.
    fn is_stopping(&self) -> bool {
        self.record.position >= Position::Stopping
    }
}

async fn fetched(fetching: &mut Option<Fetching>) -> Result<Version, Trouble> {
    match fetching {
        Some(fetching) => (&mut fetching.task).await.unwrap_or_else(|panic| {
            Err(Trouble {
                step: Step::Fetch,
                reason: "AgentError".into(),
                message: format!("fetching was cut off: {panic}"),
                permanent: false,
            })
        }),
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// The units of a pod by program, for reports.
type ByProgram<T> = BTreeMap<String, T>;
