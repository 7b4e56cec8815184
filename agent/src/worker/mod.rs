//! One task for each pod: it looks, [plans](crate::plan), does, and tells.
//!
//! A worker is driven by plain data (an [`Order`]) and tells an [`Observer`] what is so; it knows
//! no store. Everything slow happens beside it: downloads, hooks and scripts in errands that may be
//! given up, stops by the supervisors. So one stuck pod holds up nobody, and a newer order is seen
//! at once.

mod adjust;
mod control;
mod errands;
mod lane;
mod launching;
mod look;
mod news;
mod port_check;
mod prepare;
mod restart;
mod steps;
mod units;

use std::collections::BTreeMap;
use std::sync::Arc;

use platctrl_framework::failpoint;
use platctrl_framework::model::{Digest, EventType, Uid};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::blocking::blocking;
use crate::files::FileError;
use crate::host::Host;
use crate::launch::once;
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::{Hold, Order, Step, UPDATE, plan};
use crate::report::{Facts, Observer, PodEvent, Report, Trouble, compose};
use crate::situation::Situation;
use crate::state::{Found, KnownHealth, PodRecord, Preparation};
use crate::version::Version;
pub use control::Control;
use control::Controls;
use errands::Sender;
use lane::{Errand, Finding, Lane, RETRY, Which};
pub use restart::{AskedRestart, Wish};
use restart::{Restarting, Turn};
use units::Units;

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
        // Not in the task that watches over it, which would be as large.
        let begin = move |name: &PodName| {
            let (host, observer) = (Arc::clone(&host), Arc::clone(&observer));
            let pod = Pod::new(host, observer, Arc::clone(&heard), name.clone());
            tokio::spawn(pod.run(receiver.clone()))
        };
        let task = tokio::spawn(async move {
            loop {
                match begin(&name).await {
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

    /// Waits until the pod is gone and the worker has ended.
    pub async fn finished(&mut self) {
        // A worker that panicked has ended too.
        let _ = (&mut self.task).await;
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

/// What going through a lane's steps came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// There were none.
    Idle,
    /// One has to be waited for.
    Blocked,
    /// All were done, and more may follow.
    Through,
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
    prepare: Lane,
    main: Lane,
    /// The hooks were told that this version may not run here.
    refused: Option<Digest>,
    /// Since when these processes have run.
    steady: Option<(ByProgram<u32>, Instant)>,
    /// The version whose files were written by this process.
    configured: Option<u64>,
    /// Files of older generations may be there.
    stale: bool,
    /// It was told why programs are stopped.
    stop_told: bool,
    /// Nothing that ran once is left of an earlier agent.
    tidy: bool,
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
            prepare: Lane::default(),
            main: Lane::default(),
            refused: None,
            steady: None,
            configured: None,
            stale: true,
            stop_told: false,
            tidy: false,
            wake: None,
            hold: None,
            told: None,
            gone: false,
            unsaved: false,
            oom_kills: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut orders: watch::Receiver<Order>) {
        while let Err(error) = Box::pin(self.meet()).await {
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
            // What is told is remembered first. What is done is large, what waits is not to be.
            Box::pin(self.keep_news()).await;
            let flow = Box::pin(self.pass(&order)).await;
            self.tell(&order);
            if flow == Flow::Gone {
                return;
            }
            let wakes = [self.wake, self.prepare.wake, self.main.wake];
            let (wake, look) = (wakes.into_iter().flatten().min(), self.look);
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.prepare.retry_now();
                    self.main.retry_now();
                    self.wake = None;
                }
                event = self.units.next() => self.heard(event),
                (step, result) = self.prepare.finished() => {
                    Box::pin(self.take(Which::Prepare, step, result)).await;
                }
                (step, result) = self.main.finished() => {
                    Box::pin(self.take(Which::Main, step, result)).await;
                }
                () = self.controls.heard() => {}
                // The sender is the host's, which this pod keeps.
                _ = self.situation.changed() => {}
                () = sleep_until(wake) => self.wake_up(),
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
        let (programs, found) = match blocking(look).await {
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

    fn wake_up(&mut self) {
        let now = Instant::now();
        if self.wake.is_some_and(|wake| wake <= now) {
            self.wake = None;
        }
        self.prepare.wake_up(now);
        self.main.wake_up(now);
    }

    /// Plans and does until something has to be waited for.
    async fn pass(&mut self, order: &Order) -> Flow {
        for _ in 0..ROUNDS {
            match self.restart(order).await {
                Ok(Restarting::No) => {}
                Ok(Restarting::Underway) => return Flow::Wait,
                Err(trouble) => {
                    self.failed(Which::Main, trouble).await;
                    return Flow::Wait;
                }
            }
            let plan = plan(order, &self.observe(order));
            self.note_hold(plan.hold);
            self.note_order(order).await;
            let prepared = self.walk(Which::Prepare, &plan.prepare, order).await;
            let went = self.walk(Which::Main, &plan.steps, order).await;
            if self.gone {
                return Flow::Gone;
            }
            if (prepared, went) == (Walk::Idle, Walk::Idle) && !self.tidy {
                // What an agent that died did not get to forget.
                self.end_all_runs().await;
                self.tidy = true;
            }
            if prepared != Walk::Through && went != Walk::Through {
                return Flow::Wait;
            }
        }
        // Something changes as fast as it is done: others first.
        self.wake = Some(Instant::now() + RETRY.0);
        Flow::Wait
    }

    /// Goes through the steps of one lane.
    async fn walk(&mut self, which: Which, steps: &[Step], order: &Order) -> Walk {
        if steps.is_empty() {
            // A version that is being got ready goes on while nobody says otherwise.
            let goes_on = which == Which::Prepare && !matches!(order, Order::Want(_));
            if !goes_on {
                self.give_up_errand(which).await;
                self.lane(which).clear();
            }
            return Walk::Idle;
        }
        for step in steps.iter().copied() {
            if self.lane(which).waits() {
                return Walk::Blocked;
            }
            let digest = self.subject_of(step, order);
            if let Some(errand) = &self.lane(which).errand {
                if errand.step == step && errand.digest == digest {
                    return Walk::Blocked;
                }
                self.give_up_errand(which).await;
            }
            failpoint!(&format!("agent.{}", step.name()));
            match self.step(step, order).await {
                Ok(Progress::Done) => {}
                Ok(Progress::Underway) => return Walk::Blocked,
                Err(trouble) => {
                    self.failed(which, trouble).await;
                    return Walk::Blocked;
                }
            }
            failpoint!(&format!("agent.{}.done", step.name()));
            self.lane(which).done(step);
            if self.gone {
                return Walk::Through;
            }
            // What is slow to do is worth telling in between.
            self.tell(order);
        }
        Walk::Through
    }

    fn lane(&mut self, which: Which) -> &mut Lane {
        match which {
            Which::Prepare => &mut self.prepare,
            Which::Main => &mut self.main,
        }
    }

    /// The version that a step is about.
    fn subject_of(&self, step: Step, order: &Order) -> Option<Digest> {
        let version = match step {
            step if step.prepares() => {
                return match order {
                    Order::Want(desired) => Some(desired.digest),
                    Order::Missing | Order::Unknown => None,
                };
            }
            Step::BeforeLaunch => self.record.next.as_ref(),
            _ => self.record.current.as_ref(),
        };
        version.map(|version| version.digest)
    }

    /// Lets a step go on beside the worker.
    fn send(
        &mut self,
        which: Which,
        step: Step,
        order: &Order,
        errand: impl Future<Output = Result<Finding, Trouble>> + Send + 'static,
    ) -> Progress {
        let digest = self.subject_of(step, order);
        self.lane(which).errand = Some(Errand {
            step,
            digest,
            task: tokio::spawn(errand),
        });
        Progress::Underway
    }

    fn sender(&self) -> Sender {
        Sender {
            host: Arc::clone(&self.host),
            observer: Arc::clone(&self.observer),
            name: self.name.clone(),
            uid: self.record.uid.clone(),
            paths: self.paths.clone(),
        }
    }

    /// What is under way is not wanted any more: it ends, with all that it started.
    async fn give_up_errand(&mut self, which: Which) {
        if let Some(errand) = self.lane(which).errand.take() {
            let step = errand.step;
            drop(errand);
            self.end_runs(step).await;
        }
    }

    /// Ends and forgets the supervised runs of a step.
    async fn end_runs(&self, step: Step) {
        if let Some(prefix) = step.runs() {
            self.end_runs_of(step.name(), prefix).await;
        }
    }

    /// Ends and forgets all supervised runs, but those that somebody made by hand.
    async fn end_all_runs(&self) {
        for row in UPDATE {
            self.end_runs(row.step).await;
        }
    }

    async fn end_runs_of(&self, step: &str, prefix: &str) {
        let ended = once::end_all(&*self.host.errands, &self.paths.once(), prefix).await;
        if let Err(error) = ended {
            tracing::warn!(pod = %self.name, step, %error, "what a step started does not end");
        }
    }

    /// Remembers what was heard, so that ends are told once and health outlives the agent.
    async fn keep_news(&mut self) {
        if std::mem::take(&mut self.unsaved)
            && let Err(trouble) = self.save(Step::Start).await
        {
            tracing::warn!(pod = %self.name, message = trouble.message, "cannot remember what was heard");
        }
    }

    /// The version that runs is the one that is wanted: remember the order and show the newest
    /// labels.
    async fn note_order(&mut self, order: &Order) {
        let Some(desired) = self.accepted(order).cloned() else {
            return;
        };
        let Some(current) = &self.record.current else {
            return;
        };
        if current.digest != desired.digest || desired.tombstone.is_some() {
            return;
        }
        if self.record.last.as_ref() == Some(&desired) {
            return;
        }
        let labels = self.record.last.as_ref().map(|last| &last.labels) != Some(&desired.labels);
        if labels
            && let Err(error) = prepare::write_labels(&self.paths, &desired.labels, &current.run_as)
        {
            self.failed(Which::Main, Trouble::file(Step::Configure, &error))
                .await;
            return;
        }
        self.record.last = Some(desired);
        // Should what failed be wanted again after this, it is another try.
        self.record.quarantined = None;
        if let Err(trouble) = self.save(Step::Configure).await {
            self.failed(Which::Main, trouble).await;
        }
    }

    /// A step that went on beside the worker has ended.
    async fn take(&mut self, which: Which, step: Step, result: Result<Finding, Trouble>) {
        let outcome = match result {
            Ok(finding) => self.finish(step, finding).await,
            Err(trouble) => Err(trouble),
        };
        match outcome {
            Ok(()) => {
                failpoint!(&format!("agent.{}.done", step.name()));
                self.lane(which).done(step);
            }
            Err(trouble) => self.failed(which, trouble).await,
        }
    }

    /// Notes what a step came to that went on beside the worker.
    async fn finish(&mut self, step: Step, finding: Finding) -> Result<(), Trouble> {
        match (step, finding) {
            (Step::Authorise, _) => self.set_preparation(Preparation::Authorised),
            (Step::BeforeInstall, _) => self.set_preparation(Preparation::Hooked),
            (Step::AfterInstall, _) => self.set_preparation(Preparation::Ready),
            (_, Finding::Version(version)) => self.fetched(*version),
            (step, Finding::Nothing) => self.launched_further(step),
        }
        // What is noted is noted: authorising alone changed nothing yet.
        if step != Step::Authorise {
            self.save(step).await?;
        }
        self.end_runs(step).await;
        Ok(())
    }

    fn set_preparation(&mut self, preparation: Preparation) {
        if let Some(prepared) = &mut self.record.prepared {
            prepared.preparation = preparation;
        }
    }

    fn fetched(&mut self, version: Version) {
        self.host.ports.set(&self.name, self.all_ports(&version));
        let names: Vec<_> = version.installs.keys().cloned().collect();
        let message = format!(
            "generation {}: {} of {} fetched, verified and unpacked",
            version.generation,
            if names.len() == 1 {
                "the artifact"
            } else {
                "the artifacts"
            },
            names.join(", "),
        );
        self.record.next = Some(version);
        self.set_preparation(Preparation::Fetched);
        self.event(EventType::Normal, "Installed", message);
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

    /// A step failed: it is tried again after a while, or the version before is gone back to.
    async fn failed(&mut self, which: Which, trouble: Trouble) {
        let Some(trouble) = self.go_back(trouble).await else {
            return;
        };
        let environment = self.host.environment.clone();
        let (reason, message) = (trouble.step.failure(), trouble.message.clone());
        if self.lane(which).fail(trouble, &environment) {
            self.event(EventType::Warning, reason, message);
        }
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
            fetching: self.prepare.errand.is_some(),
            trouble: self.main.trouble.as_ref().or(self.prepare.trouble.as_ref()),
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
        self.record.position.is_stopping()
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
