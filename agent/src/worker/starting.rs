//! Starting the programs of the version that is current, each under a supervisor of its own.

use std::sync::Arc;

use platctrl_framework::model::EventType;

use super::steps::Outcome;
use super::{Pod, Progress};
use crate::blocking::blocking;
use crate::cgroup::CgroupError;
use crate::launch::{self, Surroundings, Unit, UnitSpec};
use crate::layout::PodPaths;
use crate::plan::Step;
use crate::report::Trouble;
use crate::version::Version;

impl Pod {
    pub(super) async fn start(&mut self) -> Outcome {
        let Some(current) = self.record.current.clone() else {
            return Ok(Progress::Done);
        };
        let current = self.renew_ports(&current).await?;
        self.restore().await?;
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
            Some(message) => Err(Trouble::passing(Step::Start, "StartFailed", message)),
        }
    }

    async fn start_program(&mut self, current: &Version, program: &str) -> Result<(), String> {
        let unit = Unit {
            program: program.to_owned(),
            dir: self.paths.shim(program),
        };
        let spec = self.unit_spec(current, program).await?;
        let supervisor = Arc::clone(&self.host.supervisor);
        supervisor
            .start(&unit, &spec)
            .await
            .map_err(|error| error.to_string())?;
        self.started(current, unit);
        Ok(())
    }

    /// Listens to a program that was started, and tells it.
    pub(super) fn started(&mut self, current: &Version, unit: Unit) {
        let program = unit.program;
        let seen = self.record.seen_exits.get(&program).copied().unwrap_or(0);
        self.units.watch(&program, unit.dir, seen);
        let message = format!("{program} of generation {} started", current.generation);
        self.event(EventType::Normal, "Started", message);
    }

    /// A process that the update left alone runs on, and the new version is used from its next
    /// start on.
    async fn hand_over(&mut self, current: &Version, program: &str) -> Result<(), String> {
        let unit = Unit {
            program: program.to_owned(),
            dir: self.paths.shim(program),
        };
        let spec = self.unit_spec(current, program).await?;
        let supervisor = Arc::clone(&self.host.supervisor);
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
        let root = self.paths.install(&launch::install_name(installed));
        let groups = {
            let (host, name) = (Arc::clone(&self.host), self.name.clone());
            let (program, resources) = (program.to_owned(), launchable.resources.clone());
            blocking(move || {
                let group = host.group(&name, &program, &resources)?;
                Ok::<_, CgroupError>((group, host.cgroups.supervisors()?))
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
            env: launch::environment(current, program, surroundings),
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
        launch::confine(&mut spec, launchable, tmp);
        Ok(spec)
    }
}
