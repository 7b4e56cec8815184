//! What runs beside a pod's worker: questions that may take long, hooks, scripts of artifacts.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::model::{EventType, Uid};

use super::lane::Finding;
use super::trouble::waiting;
use crate::authority::Deployment;
use crate::hooks::{self, HookEvent, Subject};
use crate::host::Host;
use crate::launch::{Surroundings, Unit, UnitSpec, install_name, once, script_environment};
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::Step;
use crate::report::{Observer, PodEvent, Trouble, ended};
use crate::version::{Desired, Scripts, Version};

/// How long `bin/post-activate` and `bin/enable` may take.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// What every errand of a pod knows.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) host: Arc<Host>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) name: PodName,
    pub(super) uid: Uid,
    pub(super) paths: PodPaths,
}

type Done = Result<Finding, Trouble>;

impl Sender {
    fn event(&self, event_type: EventType, reason: &'static str, message: String) {
        self.observer.event(PodEvent {
            name: self.name.clone(),
            uid: self.uid.clone(),
            event_type,
            reason,
            message,
        });
    }

    /// Asks whether it may run here. `tell_hooks`: they were not told that it may not.
    pub(super) async fn authorise(self, desired: Desired, tell_hooks: bool) -> Done {
        let denied = {
            let (host, name, desired) = (self.host.clone(), self.name.clone(), desired.clone());
            waiting(Step::Authorise, move || {
                Ok(check(&host, &name, &desired).err())
            })
            .await?
        };
        let Some(denied) = denied else {
            return Ok(Finding::Nothing);
        };
        if tell_hooks {
            // Whatever they say, it does not run.
            let _ = self
                .call_hooks(Step::Authorise, HookEvent::AfterAuthFail, &desired)
                .await;
        }
        Err(denied)
    }

    /// Calls the hooks of an event for a version.
    pub(super) async fn hooks(self, step: Step, event: HookEvent, desired: Desired) -> Done {
        self.call_hooks(step, event, &desired).await?;
        Ok(Finding::Nothing)
    }

    async fn call_hooks(
        &self,
        step: Step,
        event: HookEvent,
        desired: &Desired,
    ) -> Result<(), Trouble> {
        let host = &self.host;
        let subject = Subject::pod(&host.layout, &host.node, &self.name, desired);
        let tell = |outcome: &hooks::HookOutcome| {
            let (event_type, reason) = match outcome.problem {
                None => (EventType::Normal, "HookSucceeded"),
                Some(_) => (EventType::Warning, "HookFailed"),
            };
            self.event(event_type, reason, outcome.message());
        };
        let called = hooks::call(host, event, &subject, tell).await;
        called.map_err(|blocked| Trouble::passing(step, blocked.reason, blocked.message))
    }

    /// Runs one of a version's scripts in each of its artifacts that has it.
    pub(super) async fn scripts(self, step: Step, version: Version) -> Done {
        for (launchable, scripts) in &version.scripts {
            let Some(script) = script(step, *scripts) else {
                continue;
            };
            match self.run_script(step, &version, launchable, script).await {
                Ok(()) => {
                    let message = format!("{script} of {launchable} has run");
                    self.event(EventType::Normal, "ScriptSucceeded", message);
                }
                // What is broken must not keep what is to replace it from doing so.
                Err(trouble) if step == Step::Disable => {
                    self.event(EventType::Warning, "DisableFailed", trouble.message);
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(Finding::Nothing)
    }

    async fn run_script(
        &self,
        step: Step,
        version: &Version,
        launchable: &str,
        script: &'static str,
    ) -> Result<(), Trouble> {
        let trouble = |reason: &str, problem: String| {
            Trouble::passing(step, reason, format!("{script} of {launchable}: {problem}"))
        };
        let unit = Unit {
            program: format!("{script} of {launchable}"),
            dir: self
                .paths
                .once()
                .join(format!("{}:{launchable}", step.name())),
        };
        let within = match step {
            Step::Disable => version.disable_timeout(),
            _ => SCRIPT_TIMEOUT,
        };
        let spec = self
            .script_spec(version, launchable, script)
            .map_err(|problem| trouble("ScriptNotRun", problem))?;
        let errands = &*self.host.errands;
        let problem = match once::run(errands, &unit, &spec, within).await {
            Ok(exit) if exit.code == Some(0) => return Ok(()),
            Ok(exit) => ended(&exit),
            Err(error @ once::OnceError::TimedOut { .. }) => error.to_string(),
            Err(error) => return Err(trouble("ScriptNotRun", error.to_string())),
        };
        // It is run again, and what it wrote is whole once its supervisor has left.
        if let Err(error) = once::end(errands, &unit).await {
            tracing::warn!(pod = %self.name, %error, "a script's supervisor does not end");
        }
        let words = once::last_words(&spec.log_dir, &spec.log_name);
        let said = if words.is_empty() {
            String::new()
        } else {
            format!("; its last words: {words}")
        };
        Err(trouble(step.failure(), format!("{problem}{said}")))
    }

    fn script_spec(
        &self,
        version: &Version,
        launchable: &str,
        script: &str,
    ) -> Result<UnitSpec, String> {
        let host = &self.host;
        let missing = || format!("{launchable} is not in generation {}", version.generation);
        let installed = version.installs.get(launchable).ok_or_else(missing)?;
        let wanted = version
            .spec
            .launchables
            .get(launchable)
            .ok_or_else(missing)?;
        let root = self.paths.install(&install_name(installed));
        let program = format!("{launchable}/{script}");
        let mut spec = UnitSpec::new(
            root.join(script),
            self.paths.log(),
            PodPaths::log_name(&program),
        );
        let generation = version.generation.to_string();
        let digest = version.digest.to_string();
        spec.generation =
            once::run_number(&[&self.uid.to_string(), &generation, &digest, &program]);
        let surroundings = Surroundings {
            node: &host.node,
            pod: &self.name,
            uid: &self.uid,
            paths: &self.paths,
        };
        spec.env = script_environment(version, launchable, script, surroundings);
        spec.cwd = root;
        spec.user = rustix::process::geteuid()
            .is_root()
            .then(|| version.run_as.clone());
        let cgroups = |error: crate::cgroup::CgroupError| error.to_string();
        let group = host
            .group(&self.name, &program, &wanted.resources)
            .map_err(cgroups)?;
        spec.tracking = group.tracking;
        spec.cgroups = group.join;
        spec.supervisor_cgroups = host.cgroups.supervisors().map_err(cgroups)?;
        spec.logs = wanted.logs.clone();
        let tmp = host.private_tmp(version).then(|| self.paths.tmp());
        crate::launch::confine(&mut spec, wanted, tmp);
        Ok(spec)
    }
}

/// The script that a step runs, if an artifact has it.
fn script(step: Step, scripts: Scripts) -> Option<&'static str> {
    let (there, script) = match step {
        Step::Disable => (scripts.disable, "bin/disable"),
        Step::PostActivate => (scripts.post_activate, "bin/post-activate"),
        Step::Enable => (scripts.enable, "bin/enable"),
        _ => return None,
    };
    there.then_some(script)
}

fn check(host: &Host, name: &PodName, desired: &Desired) -> Result<(), Trouble> {
    host.authority
        .check(&Deployment::of(name, desired))
        .map_err(|why| {
            let message = format!("it may not run on this node: {why}");
            Trouble::lasting(Step::Authorise, "NotAuthorised", message)
        })?;
    let user = host.users.check(desired.spec.run_as.as_deref());
    user.map_err(|error| Trouble::lasting(Step::Authorise, "UserRefused", error.to_string()))
}
