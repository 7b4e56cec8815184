//! The effects of the steps. Each may be interrupted anywhere and done again.

use std::io;

use platctrl_framework::model::EventType;
use platctrl_kinds::Exit;

use super::prepare::{self, Configure};
use super::units::Heard;
use super::{Fetching, Pod, Progress};
use crate::files::{self, FileError};
use crate::health::{HealthState, Verdict};
use crate::launch::{Activity, Surroundings, Unit, UnitEvent, UnitExit, UnitSpec, UnitState};
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::{Order, Step};
use crate::report::{Trouble, ended};
use crate::state::{DrainStart, Found, KnownHealth, PodRecord, Position};
use crate::version::Version;

type Outcome = Result<Progress, Trouble>;

/// The record of a pod; when it is damaged, what the copy made at the last flip tells.
pub(super) fn read_record(
    name: &PodName,
    paths: &PodPaths,
    programs: &[String],
) -> Result<Found, FileError> {
    let found = PodRecord::read(name, &paths.record(), programs)?;
    if let Found::Damaged { reason, .. } = found {
        let record = match PodRecord::read(name, &paths.record_copy(), programs)? {
            Found::Whole(copy) => copy,
            Found::Damaged { record, .. } => record,
            Found::Nothing => Box::new(PodRecord::new(name.clone())),
        };
        return Ok(Found::Damaged { record, reason });
    }
    Ok(found)
}

impl Pod {
    pub(super) async fn step(&mut self, step: Step, order: &Order) -> Outcome {
        match step {
            Step::Fetch => self.fetch(order).await,
            Step::Configure => self.configure(),
            Step::Drain => self.drain(order).await,
            Step::Stop => self.stop(order).await,
            Step::Flip => self.flip().await,
            Step::Start => self.start().await,
            Step::Prune => self.prune(),
            Step::Discard => self.discard().await,
            Step::Remove => self.remove().await,
        }
    }

    /// Writes the record; after this its effects may begin.
    pub(super) async fn save(&mut self, step: Step) -> Result<(), Trouble> {
        let (record, path) = (self.record.clone(), self.paths.record());
        self.blocking(step, move || record.write(&path)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        step: Step,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Trouble> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|error| Trouble::file(step, &error)),
            Err(panic) => {
                let error = FileError::new("write", self.paths.state(), io::Error::other(panic));
                Err(Trouble::file(step, &error))
            }
        }
    }

    async fn fetch(&mut self, order: &Order) -> Outcome {
        let Order::Want(desired) = order else {
            return Ok(Progress::Done);
        };
        if self.fetching.is_some() {
            return Ok(Progress::Underway);
        }
        // From here on there is something of this uid on the node.
        let paths = self.paths.clone();
        self.blocking(Step::Fetch, move || paths.make_state())
            .await?;
        if self.foreign(&desired.uid) {
            self.record = PodRecord::new(self.name.clone());
        }
        self.record.uid = desired.uid.clone();
        self.record.last = Some((**desired).clone());
        self.record.next = None;
        self.save(Step::Fetch).await?;
        let current = self.record.current.as_ref();
        let previous = current
            .map(|current| current.ports.clone())
            .unwrap_or_default();
        let (host, name) = (std::sync::Arc::clone(&self.host), self.name.clone());
        let resolve = prepare::resolve(host, name, (**desired).clone(), previous);
        self.fetching = Some(Fetching {
            digest: desired.digest,
            task: tokio::spawn(resolve),
        });
        Ok(Progress::Underway)
    }

    fn configure_of(&self, version: &Version) -> Configure {
        let last = self.record.last.as_ref();
        Configure {
            paths: self.paths.clone(),
            name: self.name.clone(),
            uid: self.record.uid.clone(),
            node: self.host.node.clone(),
            version: version.clone(),
            labels: last.map(|last| last.labels.clone()).unwrap_or_default(),
        }
    }

    fn configure(&mut self) -> Outcome {
        let Some(next) = &self.record.next else {
            return Ok(Progress::Done);
        };
        if self.configured == Some(next.generation) {
            return Ok(Progress::Done);
        }
        let generation = next.generation;
        prepare::configure(&self.configure_of(next))?;
        self.configured = Some(generation);
        Ok(Progress::Done)
    }

    async fn drain(&mut self, order: &Order) -> Outcome {
        let delay = self.drain_left(order);
        if delay.is_zero() {
            return Ok(Progress::Done);
        }
        if self.record.draining.is_none() {
            self.record.draining = Some(DrainStart::now());
            self.record.position = Position::Draining;
            self.save(Step::Drain).await?;
            let message = format!("not ready any more; stopped in {delay:?}");
            self.event(EventType::Normal, "Draining", message);
        }
        self.wake = Some(tokio::time::Instant::now() + self.drain_left(order));
        Ok(Progress::Underway)
    }

    async fn stop(&mut self, order: &Order) -> Outcome {
        if self.record.position < Position::Stopping {
            self.record.position = Position::Stopping;
            let paths = self.paths.clone();
            self.blocking(Step::Stop, move || paths.make_state())
                .await?;
            self.save(Step::Stop).await?;
            let why = match (order, &self.record.next) {
                (Order::Want(desired), _) if desired.tombstone.is_some() => {
                    let tombstone = desired.tombstone.as_ref();
                    let by = tombstone.map(|it| it.by.as_str()).unwrap_or_default();
                    let reason = tombstone.and_then(|it| it.reason.as_deref());
                    let reason = reason
                        .map(|reason| format!(": {reason}"))
                        .unwrap_or_default();
                    format!("its end was ordered by {by}{reason}")
                }
                (_, Some(next)) => format!("generation {} takes over", next.generation),
                _ => "it is not wanted any more".to_owned(),
            };
            self.event(EventType::Normal, "Stopping", why);
        }
        self.units.check_health(None, None);
        let grace = match order {
            Order::Want(desired) => desired.tombstone.as_ref().and_then(|it| it.grace),
            _ => None,
        };
        let mut trouble = None;
        for program in self.units.programs() {
            let rests = self.units.is_at_rest(&program);
            if rests || self.units.is_stopping(&program) {
                continue;
            }
            let Some(unit) = self.units.unit(&program) else {
                continue;
            };
            let current = self.record.current.as_ref();
            let timeout =
                current.map_or(Version::LONGEST_STOP, |it| it.stop_timeout(&program, grace));
            let supervised = self.units.is_supervised(&program);
            match self.host.supervisor.stop(&unit, timeout).await {
                // It had no supervisor and has none now: nothing of it is there.
                Ok(false) => self.units.forget(&program),
                Ok(true) => {
                    if !supervised {
                        let seen = self.record.seen_exits.get(&program).copied().unwrap_or(0);
                        self.units.watch(&program, unit.dir, seen);
                    }
                    self.units.mark_stopping(&program, true);
                }
                Err(error) => trouble = Some(error),
            }
        }
        if let Some(error) = trouble {
            return Err(Trouble {
                step: Step::Stop,
                reason: "StopFailed".into(),
                message: error.to_string(),
                permanent: false,
            });
        }
        if !self.units.at_rest() {
            return Ok(Progress::Underway);
        }
        self.record.position = Position::Stopped;
        self.save(Step::Stop).await?;
        Ok(Progress::Done)
    }

    async fn flip(&mut self) -> Outcome {
        let Some(next) = self.record.next.clone() else {
            return Ok(Progress::Done);
        };
        // Supervisors of programs that the new version does not have are not needed any more.
        for program in self.units.programs() {
            if !next.programs.contains_key(&program) {
                self.forget(&program, Step::Flip).await?;
            }
        }
        let paths = self.paths.clone();
        let target = std::path::Path::new("generations").join(next.generation.to_string());
        let before = self
            .record
            .current
            .as_ref()
            .map(|current| current.generation);
        self.record.current = Some(next);
        self.record.next = None;
        // What was asked of the old version is void.
        self.record.restart = None;
        self.record.position = Position::Settled;
        self.record.draining = None;
        let record = self.record.clone();
        self.blocking(Step::Flip, move || {
            files::link(&paths.current(), &target)?;
            record.write(&paths.record_copy())?;
            record.write(&paths.record())
        })
        .await?;
        self.stale = before.is_some();
        self.unidentified = false;
        if let Some(current) = &self.record.current {
            self.host
                .ports
                .set(&self.name, current.ports.values().copied());
        }
        Ok(Progress::Done)
    }

    async fn start(&mut self) -> Outcome {
        let Some(current) = self.record.current.clone() else {
            return Ok(Progress::Done);
        };
        if self.configured != Some(current.generation) {
            prepare::configure(&self.configure_of(&current))?;
            self.configured = Some(current.generation);
        }
        let mut failure = None;
        for program in current.programs.keys() {
            if !self.units.needs_start(program, current.generation) {
                continue;
            }
            if let Err(message) = self.start_program(&current, program).await {
                failure = Some(message);
            }
        }
        self.units.check_health(Some(&current), None);
        match failure {
            None => Ok(Progress::Done),
            Some(message) => Err(Trouble {
                step: Step::Start,
                reason: "StartFailed".into(),
                message,
                permanent: false,
            }),
        }
    }

    async fn start_program(&mut self, current: &Version, program: &str) -> Result<(), String> {
        let unit = Unit {
            program: program.to_owned(),
            dir: self.paths.shim(program),
        };
        let spec = self.unit_spec(current, program)?;
        let supervisor = std::sync::Arc::clone(&self.host.supervisor);
        supervisor
            .start(&unit, &spec)
            .await
            .map_err(|error| error.to_string())?;
        let seen = self.record.seen_exits.get(program).copied().unwrap_or(0);
        self.units.watch(program, unit.dir, seen);
        let message = format!("{program} of generation {} started", current.generation);
        self.event(EventType::Normal, "Started", message);
        Ok(())
    }

    fn unit_spec(&self, current: &Version, program: &str) -> Result<UnitSpec, String> {
        let missing = || {
            format!(
                "{program} is no program of generation {}",
                current.generation
            )
        };
        let known = current.programs.get(program).ok_or_else(missing)?;
        let launchable = current.launchable(program).ok_or_else(missing)?;
        let installed = current
            .installs
            .get(&known.launchable)
            .ok_or_else(missing)?;
        let root = self.paths.install(&crate::launch::install_name(installed));
        let cgroups = |error: crate::cgroup::CgroupError| error.to_string();
        let group = self
            .host
            .group(&self.name, program, &launchable.resources)
            .map_err(cgroups)?;
        if !group.unenforced.is_empty() {
            let message = format!("{program}: {}", group.unenforced.join("; "));
            self.event(EventType::Warning, "LimitsNotEnforced", message);
        }
        let supervisor_cgroups = self.host.cgroups.supervisors().map_err(cgroups)?;
        let surroundings = Surroundings {
            node: &self.host.node,
            pod: &self.name,
            uid: &self.record.uid,
            paths: &self.paths,
        };
        Ok(UnitSpec {
            generation: current.generation,
            program: root.join(&known.entry),
            env: crate::launch::environment(current, program, surroundings),
            cwd: root,
            user: rustix::process::geteuid()
                .is_root()
                .then(|| current.run_as.clone()),
            tracking: group.tracking,
            cgroups: group.join,
            supervisor_cgroups,
            log_dir: self.paths.log(),
            log_name: PodPaths::log_name(program),
            restart: launchable.restart.policy,
            stop_timeout: current.stop_timeout(program, None),
        })
    }

    fn prune(&mut self) -> Outcome {
        let keep: Vec<_> = self
            .record
            .current
            .iter()
            .chain(&self.record.next)
            .collect();
        if let Err(error) = prepare::prune(&self.paths, &self.host.layout.trash(), &keep) {
            // Nothing needs it gone: the next change tries again.
            tracing::warn!(pod = %self.name, %error, "cannot remove an older generation");
        }
        self.stale = false;
        Ok(Progress::Done)
    }

    async fn discard(&mut self) -> Outcome {
        self.fetching = None;
        self.record.next = None;
        self.record.position = Position::Settled;
        self.record.draining = None;
        if let Some(current) = &self.record.current {
            self.host
                .ports
                .set(&self.name, current.ports.values().copied());
        }
        self.stale = true;
        self.save(Step::Discard).await?;
        Ok(Progress::Done)
    }

    async fn remove(&mut self) -> Outcome {
        self.fetching = None;
        self.units.check_health(None, None);
        for program in self.units.programs() {
            self.forget(&program, Step::Remove).await?;
        }
        let version = self.record.current.as_ref().or(self.record.next.as_ref());
        let last = self.record.last.as_ref();
        let keep_data = version
            .map(|version| &version.spec)
            .or(last.map(|last| &last.spec))
            .is_some_and(|spec| spec.keep_data);
        let (host, name) = (std::sync::Arc::clone(&self.host), self.name.clone());
        let removed = tokio::task::spawn_blocking(move || host.remove_groups(&name)).await;
        let problem = match removed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic.to_string()),
        };
        if let Some(message) = problem {
            let reason = "StillAlive".into();
            return Err(Trouble {
                step: Step::Remove,
                reason,
                message,
                permanent: false,
            });
        }
        let (paths, trash) = (self.paths.clone(), self.host.layout.trash());
        self.blocking(Step::Remove, move || {
            remove_files(&paths, &trash, keep_data)
        })
        .await?;
        self.host.ports.set(&self.name, []);
        self.gone = true;
        let message = if keep_data {
            "stopped and removed; its data directory is kept".to_owned()
        } else {
            "stopped and removed".to_owned()
        };
        self.event(EventType::Normal, "Removed", message);
        Ok(Progress::Done)
    }

    async fn forget(&mut self, program: &str, step: Step) -> Result<(), Trouble> {
        let Some(unit) = self.units.unit(program) else {
            return Ok(());
        };
        let supervisor = std::sync::Arc::clone(&self.host.supervisor);
        supervisor.forget(&unit).await.map_err(|error| Trouble {
            step,
            reason: "StopFailed".into(),
            message: error.to_string(),
            permanent: false,
        })?;
        self.units.forget(program);
        self.record.seen_exits.remove(program);
        Ok(())
    }

    /// Takes in what was heard.
    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Health(state) => self.heard_health(state),
            Heard::Liveness(state) => {
                self.heard_liveness(&state);
                let pids = self.units.pids();
                self.record.liveness = Some(KnownHealth { pids, state });
                self.unsaved = true;
            }
            Heard::Unit(program, number, event) => {
                if !self.units.is_current(&program, number) {
                    return;
                }
                match event {
                    UnitEvent::State(state) => self.heard_state(&program, state),
                    UnitEvent::Exit(exit) => self.heard_exit(&program, exit),
                    UnitEvent::Lost => self.heard_lost(&program),
                }
            }
        }
    }

    fn heard_health(&mut self, state: HealthState) {
        let before = self
            .record
            .health
            .as_ref()
            .map(|known| &known.state.verdict);
        match (&state.verdict, before) {
            (Verdict::Healthy, Some(Verdict::Healthy)) | (Verdict::Unknown, _) => {}
            (Verdict::Unhealthy { .. }, Some(Verdict::Unhealthy { .. })) => {}
            (Verdict::Healthy, _) => {
                self.event(
                    EventType::Normal,
                    "Healthy",
                    "its health check passes".into(),
                );
            }
            (Verdict::Unhealthy { reason }, _) => {
                self.event(EventType::Warning, "Unhealthy", reason.clone());
            }
        }
        self.record.health = Some(KnownHealth {
            pids: self.units.pids(),
            state,
        });
        self.unsaved = true;
    }

    fn heard_state(&mut self, program: &str, state: UnitState) {
        let Some(facts) = self.units.facts_of(program) else {
            return;
        };
        let restarted = facts.state.as_ref().is_some_and(|old| {
            state.activity == Activity::Running && old.pid.is_some() && old.pid != state.pid
        });
        facts.state = Some(state);
        if restarted && !self.is_stopping() {
            // What the check said was about a process that is gone.
            let current = self.record.current.clone();
            self.units.check_health(current.as_ref(), None);
            self.withdraw("its program was started anew");
        }
    }

    fn heard_exit(&mut self, program: &str, mut exit: UnitExit) {
        if exit.signal == Some(9) && !exit.requested {
            let kills = self.host.oom_kills(&self.name, program);
            if self
                .oom_kills
                .insert(program.to_owned(), kills)
                .unwrap_or(0)
                < kills
            {
                exit.message = "out of memory: raise resources.memory, or make it need less".into();
            }
        }
        let noted = Exit {
            launchable: program.to_owned(),
            at: exit.at,
            code: exit.code,
            signal: exit.signal,
            message: exit.message.clone(),
        };
        let news = self.record.note_exit(program, exit.number, noted);
        if news {
            self.unsaved = true;
            let (event_type, reason) = match (exit.requested, exit.code) {
                (true, _) => (EventType::Normal, "Stopped"),
                (false, Some(0)) => (EventType::Normal, "Exited"),
                (false, _) => (EventType::Warning, "Exited"),
            };
            self.event(event_type, reason, format!("{program} {}", ended(&exit)));
        }
        if let Some(facts) = self.units.facts_of(program) {
            facts.last_exit = Some(exit);
        }
    }

    fn heard_lost(&mut self, program: &str) {
        if self.units.is_supervised(program)
            && self
                .units
                .facts()
                .get(program)
                .is_some_and(|facts| facts.state.is_some())
        {
            let message = format!("the supervisor of {program} is gone; another one takes over");
            self.event(EventType::Warning, "SupervisorLost", message);
        }
        self.units.lost(program);
    }
}

/// Removes the files of a pod; its record last, so that until then it is known what is left to do.
fn remove_files(
    paths: &PodPaths,
    trash: &std::path::Path,
    keep_data: bool,
) -> Result<(), FileError> {
    if keep_data && paths.data().exists() {
        let entries = std::fs::read_dir(paths.home())
            .map_err(|error| FileError::new("read", paths.home(), error))?;
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_name() != "data")
        {
            files::remove_tree(&entry.path(), trash)?;
        }
    } else {
        files::remove_tree(paths.home(), trash)?;
    }
    files::remove_tree(paths.state(), trash)
}
