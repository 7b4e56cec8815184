//! One task for each pod: it looks, [plans](crate::plan), does, and tells.
//!
//! A worker is driven by plain data (an [`Order`]) and tells an [`Observer`] what is so; it knows
//! no store. Everything slow happens beside it: downloads, hooks and scripts in errands that may be
//! given up, stops by the supervisors. So one stuck pod holds up nobody, and a newer order is seen
//! at once.
//!
//! The loop is here. It [meets](meet) the pod once; then each turn takes in what was
//! [heard](news), [looks](look), goes through the [steps] of the plan, [remembers](memory) how far
//! it came and [tells](tell).

mod adjust;
mod control;
mod errands;
mod handle;
mod lane;
mod launching;
mod look;
mod meet;
mod memory;
mod news;
mod port_check;
mod prepare;
mod removing;
mod restart;
mod starting;
mod steps;
mod stopping;
mod tell;
mod trouble;
mod underway;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use platctrl_framework::failpoint;
use platctrl_framework::model::Digest;
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::control::Control;
use self::control::Controls;
pub use self::handle::Worker;
use self::lane::{Lane, RETRY, Which};
pub use self::restart::{AskedRestart, Wish};
use self::restart::{Restarting, Turn};
use self::units::Units;
use crate::host::Host;
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::{Hold, Order, Step, plan};
use crate::report::{Observer, Report};
use crate::situation::Situation;
use crate::state::PodRecord;

/// Plans carried out in a row before others get their turn.
const ROUNDS: usize = 16;

/// The units of a pod by program.
type ByProgram<T> = BTreeMap<String, T>;

/// A pod, as its worker knows it.
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
    /// The generations whose files were written by this process.
    configured: BTreeSet<u64>,
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
            configured: BTreeSet::new(),
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

    // Boxed: a task would have room for it twice, as it is given and where it is used.
    async fn run(mut self: Box<Self>, mut orders: watch::Receiver<Order>) {
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
            if flow == Flow::Gone || self.wait(&mut orders).await == Waited::Left {
                return;
            }
        }
    }

    /// Waits until something happens, and takes it in.
    async fn wait(&mut self, orders: &mut watch::Receiver<Order>) -> Waited {
        let wakes = [self.wake, self.prepare.wake, self.main.wake];
        let (wake, look) = (wakes.into_iter().flatten().min(), self.look);
        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() {
                    return Waited::Left;
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
        Waited::News
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

/// What waiting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// Something happened, or it was time to look again.
    News,
    /// Nobody gives orders any more.
    Left,
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
