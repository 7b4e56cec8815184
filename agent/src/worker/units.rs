//! The units of a pod: who watches over them, what was heard of them, and whether they are fit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use platctrl_kinds::{Health, Scheme};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::ByProgram;
use crate::health::{Beside, HealthState, Probe, Target, Verdict};
use crate::host::Host;
use crate::launch::{Activity, Unit, UnitEvent};
use crate::layout::PodPaths;
use crate::report::{Fitness, UnitFacts};
use crate::version::Version;

/// How long a supervisor may take to introduce itself. One that does not is stuck: it is not
/// waited for, but what it says later is heard.
const INTRODUCTION: Duration = Duration::from_secs(2);
/// News of all units that wait to be taken.
const QUEUE: usize = 256;

/// Something heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// From the supervisor of a program, with the number of the watch it came by.
    Unit(String, u64, UnitEvent),
    /// The pod's health changed.
    Health(Box<HealthState>),
    /// Whether the pod lives changed.
    Liveness(Box<HealthState>),
}

#[derive(Debug)]
struct Watched {
    unit: Unit,
    /// Tells this watch from an earlier one of the same unit.
    number: u64,
    /// A supervisor is there, as far as is known.
    supervised: bool,
    /// It was asked to stop.
    stopping: bool,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
pub(super) struct Units {
    host: Arc<Host>,
    /// Boxed, as the facts are: a map has room for eleven.
    watched: ByProgram<Box<Watched>>,
    facts: ByProgram<Box<UnitFacts>>,
    sender: mpsc::Sender<Heard>,
    receiver: mpsc::Receiver<Heard>,
    watches: u64,
    paths: PodPaths,
    health: Option<Check>,
    liveness: Option<Check>,
    /// Programs that run on and use this generation from their next start on.
    handed: ByProgram<u64>,
}

/// A check that is made, and what it tells.
#[derive(Debug)]
struct Check {
    states: watch::Receiver<HealthState>,
    _probe: Probe,
}

impl Units {
    pub(super) fn new(host: Arc<Host>, paths: PodPaths) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self {
            host,
            watched: BTreeMap::new(),
            facts: BTreeMap::new(),
            sender,
            receiver,
            watches: 0,
            paths,
            health: None,
            liveness: None,
            handed: BTreeMap::new(),
        }
    }

    /// Listens to the supervisor of a program, from the last end that was seen on, which is told
    /// once more.
    pub(super) fn watch(&mut self, program: &str, dir: PathBuf, seen: u64) {
        let unit = Unit {
            program: program.to_owned(),
            dir,
        };
        let mut events = self.host.supervisor.watch(&unit, seen.saturating_sub(1));
        self.watches += 1;
        let (number, sender, name) = (self.watches, self.sender.clone(), program.to_owned());
        let task = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if sender
                    .send(Heard::Unit(name.clone(), number, event))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        let watched = Watched {
            unit,
            number,
            supervised: true,
            stopping: false,
            task,
        };
        self.watched.insert(program.to_owned(), Box::new(watched));
        // What was heard by an earlier watch is about an earlier supervisor.
        self.facts.entry(program.to_owned()).or_default().state = None;
    }

    /// The first word of each unit. A unit whose supervisor is gone says so at once.
    pub(super) async fn introductions(&mut self) -> Vec<Heard> {
        let mut waiting: BTreeSet<String> = self.watched.keys().cloned().collect();
        let mut heard = Vec::new();
        let deadline = tokio::time::Instant::now() + INTRODUCTION;
        while !waiting.is_empty() {
            let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.receiver.recv()).await
            else {
                break;
            };
            if let Heard::Unit(program, _, UnitEvent::State(_) | UnitEvent::Lost) = &event {
                waiting.remove(program);
            }
            heard.push(event);
        }
        heard
    }

    pub(super) async fn next(&mut self) -> Heard {
        tokio::select! {
            Some(heard) = self.receiver.recv() => heard,
            state = changed(&mut self.health) => Heard::Health(Box::new(state)),
            state = changed(&mut self.liveness) => Heard::Liveness(Box::new(state)),
            else => std::future::pending().await,
        }
    }

    pub(super) fn try_next(&mut self) -> Option<Heard> {
        self.receiver.try_recv().ok()
    }

    /// The event is from the watch that is in force.
    pub(super) fn is_current(&self, program: &str, number: u64) -> bool {
        self.watched
            .get(program)
            .is_some_and(|watched| watched.number == number)
    }

    pub(super) fn facts(&self) -> &ByProgram<Box<UnitFacts>> {
        &self.facts
    }

    pub(super) fn facts_of(&mut self, program: &str) -> Option<&mut UnitFacts> {
        self.facts.get_mut(program).map(|facts| &mut **facts)
    }

    pub(super) fn programs(&self) -> Vec<String> {
        self.watched.keys().cloned().collect()
    }

    pub(super) fn unit(&self, program: &str) -> Option<Unit> {
        self.watched
            .get(program)
            .map(|watched| watched.unit.clone())
    }

    pub(super) fn is_supervised(&self, program: &str) -> bool {
        self.watched
            .get(program)
            .is_some_and(|watched| watched.supervised)
    }

    /// Nobody runs this program of this generation, and nobody will without being asked.
    pub(super) fn needs_start(&self, program: &str, generation: u64) -> bool {
        let state = self
            .facts
            .get(program)
            .and_then(|facts| facts.state.as_ref());
        let waits_for_it = self.handed.get(program) == Some(&generation) && self.is_active(program);
        let idle = state.is_some_and(|state| {
            (state.generation != generation && !waits_for_it) || state.activity == Activity::Stopped
        });
        idle || !self.is_supervised(program)
    }

    /// A process of it runs, or will without being asked.
    pub(super) fn is_active(&self, program: &str) -> bool {
        let facts = self.facts.get(program);
        self.is_supervised(program)
            && facts
                .and_then(|facts| facts.state.as_ref())
                .is_some_and(|state| !state.activity.at_rest())
    }

    /// It was given this generation for its next start.
    pub(super) fn mark_handed(&mut self, program: &str, generation: u64) {
        self.handed.insert(program.to_owned(), generation);
    }

    /// The generations that processes run of.
    pub(super) fn generations(&self) -> BTreeSet<u64> {
        let states = self.facts.values().filter_map(|facts| facts.state.as_ref());
        states
            .filter(|state| !state.activity.at_rest())
            .map(|state| state.generation)
            .collect()
    }

    /// Its health is being checked.
    pub(super) fn is_checked(&self) -> bool {
        self.health.is_some() || self.liveness.is_some()
    }

    pub(super) fn lost(&mut self, program: &str) {
        if let Some(watched) = self.watched.get_mut(program) {
            watched.supervised = false;
            watched.stopping = false;
        }
        if let Some(facts) = self.facts.get_mut(program) {
            facts.state = None;
        }
    }

    /// The unit was asked to stop. Whether that is news.
    pub(super) fn mark_stopping(&mut self, program: &str, stopping: bool) {
        if let Some(watched) = self.watched.get_mut(program) {
            watched.stopping = stopping;
        }
    }

    pub(super) fn is_stopping(&self, program: &str) -> bool {
        self.watched
            .get(program)
            .is_some_and(|watched| watched.stopping)
    }

    /// Nothing of this program runs.
    pub(super) fn is_at_rest(&self, program: &str) -> bool {
        let facts = self.facts.get(program);
        facts
            .and_then(|facts| facts.state.as_ref())
            .is_some_and(|state| state.activity.at_rest())
    }

    /// It has ended, and is not to be started again.
    pub(super) fn is_finished(&self, program: &str) -> bool {
        let facts = self.facts.get(program);
        facts
            .and_then(|facts| facts.state.as_ref())
            .is_some_and(|state| state.activity == Activity::Finished)
    }

    /// Nothing runs of the programs that matter.
    pub(super) fn at_rest(&self, matters: impl Fn(&str) -> bool) -> bool {
        let mut programs = self.watched.keys().filter(|program| matters(program));
        programs.all(|program| self.is_at_rest(program))
    }

    pub(super) fn forget(&mut self, program: &str) {
        self.watched.remove(program);
        self.facts.remove(program);
        self.handed.remove(program);
    }

    pub(super) fn fitness(&self) -> Fitness {
        let Some(health) = &self.health else {
            return Fitness::Unchecked;
        };
        let state = health.states.borrow();
        match &state.verdict {
            Verdict::Unknown => Fitness::Unknown,
            Verdict::Healthy => Fitness::Healthy { stale: state.stale },
            Verdict::Unhealthy { reason } => Fitness::Unhealthy {
                message: match state.stale {
                    true => format!("{reason}, before the agent started again"),
                    false => reason.clone(),
                },
            },
        }
    }

    /// Checks the health of this version from now on, or no more. `previous` is what was known of
    /// the same processes.
    pub(super) fn check_health(
        &mut self,
        version: Option<&Version>,
        previous: Option<HealthState>,
    ) {
        self.check(version, previous, None);
    }

    /// The same with what was known of whether they live.
    pub(super) fn check(
        &mut self,
        version: Option<&Version>,
        health: Option<HealthState>,
        liveness: Option<HealthState>,
    ) {
        (self.health, self.liveness) = (None, None);
        let Some(version) = version else { return };
        let spec = &version.spec;
        self.health = self.probe(version, spec.health.as_ref(), health);
        self.liveness = self.probe(version, spec.liveness.as_ref(), liveness);
    }

    fn probe(
        &self,
        version: &Version,
        check: Option<&Health>,
        previous: Option<HealthState>,
    ) -> Option<Check> {
        let check = check?;
        let target = self.target(version, check)?;
        let probe = self.host.prober.spawn(check.clone(), target, previous);
        Some(Check {
            states: probe.states(),
            _probe: probe,
        })
    }

    /// What a check asks. None when it asks for a port or a program that the version has not,
    /// which no version is made of.
    fn target(&self, version: &Version, check: &Health) -> Option<Target> {
        let address = |port: &String| {
            let port = version.ports.get(port)?;
            Some(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))
        };
        if let Some(http) = &check.http {
            let (address, path) = (address(&http.port)?, http.path.clone());
            return Some(match http.scheme {
                Scheme::Http => Target::Http { address, path },
                Scheme::Https => Target::Https {
                    address,
                    path,
                    name: http.server_name.clone(),
                },
            });
        }
        if let Some(tcp) = &check.tcp {
            return address(&tcp.port).map(Target::Tcp);
        }
        let exec = check.exec.as_ref()?;
        let wanted = |launchable: &String| {
            let named = exec.launchable.as_ref();
            named.is_none_or(|named| named == launchable)
        };
        let mut programs = version.programs.iter();
        let (program, _) = programs.find(|(_, program)| wanted(&program.launchable))?;
        Some(Target::Exec(Beside {
            shim: self.host.shim.clone(),
            dir: self.paths.shim(program),
            command: exec.command.clone(),
        }))
    }

    /// The process of each program, as far as they are known.
    pub(super) fn pids(&self) -> ByProgram<u32> {
        let states = self
            .facts
            .iter()
            .filter_map(|(name, it)| Some((name, it.state.as_ref()?)));
        states
            .filter_map(|(name, state)| Some((name.clone(), state.pid?)))
            .collect()
    }
}

/// The next change of what a check says; never, when there is none.
async fn changed(check: &mut Option<Check>) -> HealthState {
    if let Some(check) = check
        && check.states.changed().await.is_ok()
    {
        return check.states.borrow_and_update().clone();
    }
    std::future::pending().await
}
