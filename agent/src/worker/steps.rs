//! The effects of the steps. Each may be interrupted anywhere and done again.

use std::io;

use platctrl_framework::model::EventType;

use super::lane::{Finding, Which};
use super::prepare::{self, Configure};
use super::{Pod, Progress};
use crate::blocking::{blocking, waiting};
use crate::files::{self, FileError};
use crate::hooks::HookEvent;
use crate::launch::{Surroundings, Unit, UnitSpec};
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::{Order, Step};
use crate::report::Trouble;
use crate::secrets::Secrets;
use crate::state::{DrainStart, Found, PodRecord, Position, Preparation, Prepared};
use crate::version::{Desired, Version};

pub(super) type Outcome = Result<Progress, Trouble>;

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
            Step::Authorise => self.authorise(order).await,
            Step::BeforeInstall => self.call(step, HookEvent::BeforeInstall, order),
            // Verified and unpacked in one go with it.
            Step::Fetch | Step::Verify | Step::Unpack => self.fetch(order),
            Step::AfterInstall => self.call(step, HookEvent::AfterInstall, order),
            Step::Configure => self.configure().await,
            Step::Drain => self.drain(order).await,
            Step::Disable => self.disable(order).await,
            Step::Stop => self.stop(order).await,
            Step::BeforeLaunch => self.call(step, HookEvent::BeforeLaunch, order),
            Step::Flip => self.flip().await,
            Step::PostActivate => self.run_scripts(step, order),
            Step::Start => self.start().await,
            Step::Enable => self.enable(order).await,
            Step::Healthy => self.healthy().await,
            Step::AfterLaunch => self.call(step, HookEvent::AfterLaunch, order),
            Step::Adjust => self.adjust(order).await,
            Step::Prune => self.prune(),
            Step::Abandon => self.abandon().await,
            Step::Revert => Ok(Progress::Done),
            Step::Discard => self.discard().await,
            Step::BeforeUninstall => self.call(step, HookEvent::BeforeUninstall, order),
            Step::Remove => self.remove().await,
        }
    }

    /// Calls hooks beside the worker: for the version that a step is about.
    fn call(&mut self, step: Step, event: HookEvent, order: &Order) -> Outcome {
        let Some(desired) = self.hooked_for(step, order) else {
            return Ok(Progress::Done);
        };
        let which = if step.prepares() {
            Which::Prepare
        } else {
            Which::Main
        };
        let errand = self.sender().hooks(step, event, desired);
        Ok(self.send(which, step, order, errand))
    }

    /// The version that hooks are told of.
    fn hooked_for(&self, step: Step, order: &Order) -> Option<Desired> {
        let wanted = match order {
            Order::Want(desired) => Some((**desired).clone()),
            Order::Missing | Order::Unknown => self.record.last.clone(),
        };
        let version = match step {
            Step::BeforeLaunch => self.record.next.as_ref(),
            Step::AfterLaunch | Step::BeforeUninstall => self.record.current.as_ref(),
            _ => return wanted,
        };
        let (version, mut desired) = (version?, wanted?);
        desired.generation = version.generation;
        desired.digest = version.digest;
        desired.spec = version.spec.clone();
        Some(desired)
    }

    /// Runs scripts of the version that runs, beside the worker.
    pub(super) fn run_scripts(&mut self, step: Step, order: &Order) -> Outcome {
        let Some(current) = self.record.current.clone() else {
            return Ok(Progress::Done);
        };
        let errand = self.sender().scripts(step, current);
        Ok(self.send(Which::Main, step, order, errand))
    }

    /// Writes the record; after this its effects may begin. Nobody waits for the disk while
    /// nothing ran yet: a power cut takes nothing then that the order does not say again.
    pub(super) async fn save(&mut self, step: Step) -> Result<(), Trouble> {
        let (record, path) = (self.record.clone(), self.paths.record());
        let durable = record.current.is_some() || record.position != Position::Settled;
        self.blocking(step, move || record.write(&path, durable))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        step: Step,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Trouble> {
        match blocking(work).await {
            Ok(result) => result.map_err(|error| Trouble::file(step, &error)),
            Err(panic) => {
                let error = FileError::new("write", self.paths.state(), io::Error::other(panic));
                Err(Trouble::file(step, &error))
            }
        }
    }

    /// Notes what is ordered, and asks whether it may run here.
    async fn authorise(&mut self, order: &Order) -> Outcome {
        let Order::Want(desired) = order else {
            return Ok(Progress::Done);
        };
        // From here on there is something of this uid on the node.
        let paths = self.paths.clone();
        self.blocking(Step::Authorise, move || paths.make_state())
            .await?;
        if self.foreign(&desired.uid) {
            self.record = PodRecord::new(self.name.clone());
        }
        self.record.uid = desired.uid.clone();
        self.record.last = Some((**desired).clone());
        self.record.next = None;
        self.record.quarantined = None;
        self.record.prepared = Some(Prepared {
            digest: desired.digest,
            preparation: Preparation::Begun,
        });
        self.save(Step::Authorise).await?;
        let news = self.refused.replace(desired.digest) != Some(desired.digest);
        let errand = self.sender().authorise((**desired).clone(), news);
        Ok(self.send(Which::Prepare, Step::Authorise, order, errand))
    }

    fn fetch(&mut self, order: &Order) -> Outcome {
        let Order::Want(desired) = order else {
            return Ok(Progress::Done);
        };
        let current = self.record.current.as_ref();
        let previous = current
            .map(|current| current.ports.clone())
            .unwrap_or_default();
        let (host, name) = (std::sync::Arc::clone(&self.host), self.name.clone());
        let desired = (**desired).clone();
        let errand = async move {
            let version = prepare::resolve(host, name, desired, previous).await?;
            Ok(Finding::Version(Box::new(version)))
        };
        Ok(self.send(Which::Prepare, Step::Fetch, order, errand))
    }

    pub(super) fn configure_of(&self, version: &Version) -> Configure {
        let last = self.record.last.as_ref();
        Configure {
            paths: self.paths.clone(),
            name: self.name.clone(),
            uid: self.record.uid.clone(),
            node: self.host.node.clone(),
            secrets: self.host.secrets.clone(),
            version: version.clone(),
            labels: last.map(|last| last.labels.clone()).unwrap_or_default(),
        }
    }

    async fn configure(&mut self) -> Outcome {
        let Some(next) = &self.record.next else {
            return Ok(Progress::Done);
        };
        if self.configured == Some(next.generation) {
            return Ok(Progress::Done);
        }
        let (generation, what) = (next.generation, self.configure_of(next));
        prepare::blocking(move || prepare::configure(&what)).await?;
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
        self.main.wake = Some(tokio::time::Instant::now() + self.drain_left(order));
        Ok(Progress::Underway)
    }

    async fn disable(&mut self, order: &Order) -> Outcome {
        if self.record.position != Position::Disabling {
            self.record.position = Position::Disabling;
            self.save(Step::Disable).await?;
        }
        self.run_scripts(Step::Disable, order)
    }

    async fn stop(&mut self, order: &Order) -> Outcome {
        if !self.record.position.is_stopping() {
            self.record.position = Position::Stopping;
            let paths = self.paths.clone();
            self.blocking(Step::Stop, move || paths.make_state())
                .await?;
            self.save(Step::Stop).await?;
        }
        if !self.stop_told {
            self.stop_told = true;
            self.tell_why_it_stops(order);
        }
        self.units.check_health(None, None);
        let grace = match order {
            Order::Want(desired) => desired.tombstone.as_ref().and_then(|it| it.grace),
            _ => None,
        };
        let mut trouble = None;
        for program in self.units.programs() {
            let rests = self.units.is_at_rest(&program) || self.is_left_alone(&program, order);
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
        if !self
            .units
            .at_rest(|program| !self.is_left_alone(program, order))
        {
            return Ok(Progress::Underway);
        }
        self.record.position = Position::Stopped;
        self.save(Step::Stop).await?;
        self.stop_told = false;
        Ok(Progress::Done)
    }

    fn tell_why_it_stops(&self, order: &Order) {
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
        let (paths, generation) = (self.paths.clone(), next.generation);
        let before = self
            .record
            .current
            .as_ref()
            .map(|current| current.generation);
        self.take_over(next);
        let record = self.record.clone();
        self.blocking(Step::Flip, move || {
            // The record alone has to be on disk. An agent that finds nothing running makes the
            // link again before it starts anything, and the copy is for a record that is damaged
            // later.
            prepare::make_current(&paths, generation)?;
            record.write(&paths.record_copy(), false)?;
            record.write(&paths.record(), true)
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
        let current = self.renew_ports(&current).await?;
        if self.configured != Some(current.generation) {
            let what = self.configure_of(&current);
            prepare::blocking(move || prepare::configure_current(&what)).await?;
            self.configured = Some(current.generation);
        }
        let mut failure = None;
        let mut started = false;
        for program in current.programs.keys() {
            if !self.units.needs_start(program, current.generation) || !self.may_begin() {
                continue;
            }
            let result = if current.leaves_alone(program) && self.units.is_active(program) {
                self.hand_over(&current, program).await
            } else {
                started = true;
                self.start_program(&current, program).await
            };
            failure = result.err().or(failure);
        }
        if started || !self.units.is_checked() {
            self.units.check_health(Some(&current), None);
        }
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
        let spec = self.unit_spec(current, program).await?;
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

    /// A process that the update left alone runs on, and the new version is used from its next
    /// start on.
    async fn hand_over(&mut self, current: &Version, program: &str) -> Result<(), String> {
        let unit = Unit {
            program: program.to_owned(),
            dir: self.paths.shim(program),
        };
        let spec = self.unit_spec(current, program).await?;
        let supervisor = std::sync::Arc::clone(&self.host.supervisor);
        let there = supervisor.hand(&unit, &spec).await;
        if !there.map_err(|error| error.to_string())? {
            return self.start_program(current, program).await;
        }
        self.units.mark_handed(program, current.generation);
        let message = format!(
            "{program} runs on; generation {} is used from its next start on",
            current.generation
        );
        self.event(EventType::Normal, "LeftRunning", message);
        Ok(())
    }

    async fn unit_spec(&self, current: &Version, program: &str) -> Result<UnitSpec, String> {
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
        let groups = {
            let (host, name) = (std::sync::Arc::clone(&self.host), self.name.clone());
            let (program, resources) = (program.to_owned(), launchable.resources.clone());
            blocking(move || {
                let group = host.group(&name, &program, &resources)?;
                Ok::<_, crate::cgroup::CgroupError>((group, host.cgroups.supervisors()?))
            })
        };
        let groups = groups.await.map_err(|panic| panic.to_string())?;
        let (group, supervisor_cgroups) = groups.map_err(|error| error.to_string())?;
        if !group.unenforced.is_empty() {
            let message = format!("{program}: {}", group.unenforced.join("; "));
            self.event(EventType::Warning, "LimitsNotEnforced", message);
        }
        let surroundings = Surroundings {
            node: &self.host.node,
            pod: &self.name,
            uid: &self.record.uid,
            paths: &self.paths,
        };
        let mut spec = UnitSpec {
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
            logs: launchable.logs.clone(),
            may_gain_rights: false,
            restart: launchable.restart.policy,
            stop_timeout: current.stop_timeout(program, None),
            ..UnitSpec::new("", self.paths.log(), String::new())
        };
        let tmp = self.host.private_tmp(current).then(|| self.paths.tmp());
        crate::launch::confine(&mut spec, launchable, tmp);
        Ok(spec)
    }

    fn prune(&mut self) -> Outcome {
        let keep: Vec<_> = self
            .record
            .current
            .iter()
            .chain(&self.record.next)
            .chain(self.record.previous.iter().filter(|_| self.record.unproven))
            .collect();
        let (trash, running) = (self.host.layout.trash(), self.units.generations());
        if let Err(error) = prepare::prune(&self.paths, &trash, &keep, &running) {
            // Nothing needs it gone: the next change tries again.
            tracing::warn!(pod = %self.name, %error, "cannot remove an older generation");
        }
        self.stale = false;
        Ok(Progress::Done)
    }

    async fn discard(&mut self) -> Outcome {
        self.forget_next();
        self.stale = true;
        self.save(Step::Discard).await?;
        Ok(Progress::Done)
    }

    async fn remove(&mut self) -> Outcome {
        self.give_up_errand(Which::Prepare).await;
        let once = self.paths.once();
        let ended = crate::launch::once::end_all(&*self.host.errands, &once, "").await;
        ended.map_err(|error| Trouble {
            step: Step::Remove,
            reason: "StillAlive".into(),
            message: error.to_string(),
            permanent: false,
        })?;
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
        let removed = waiting(move || host.remove_groups(&name)).await;
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
}

/// Removes the files of a pod; its record last, so that until then it is known what is left to do.
fn remove_files(
    paths: &PodPaths,
    trash: &std::path::Path,
    keep_data: bool,
) -> Result<(), FileError> {
    Secrets::take_back(paths, |_| false)?;
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
