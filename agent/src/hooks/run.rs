//! Calling hooks: what they find, and what came of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use platctrl_framework::model::Resource as _;
use platctrl_kinds::{Bytes, LogLimits, Pod, Resources};
use serde_json::json;

use super::{Hook, HookEvent, Hooks};
use crate::cgroup::{self, Cgroups};
use crate::files::{self, Access, FileError};
use crate::host::Host;
use crate::launch::{FIXED_PATH, Shims, Supervisor, Unit, UnitSpec, once};
use crate::layout::{Layout, LayoutError};
use crate::name::PodName;
use crate::state::PodRecord;
use crate::version::Desired;

/// What hooks are called for: a pod, or the node itself.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// The agent's own directory for it.
    state: PathBuf,
    /// Whose control groups theirs are among.
    group: String,
    /// What tells one call from another.
    run: Vec<String>,
    env: Vec<(String, String)>,
    manifest: Option<String>,
}

/// What came of calling one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HookOutcome {
    /// The event.
    pub event: HookEvent,
    /// The hook.
    pub hook: String,
    /// The pod waits for it.
    pub required: bool,
    /// How long it took.
    pub took: Duration,
    /// What went wrong, if anything did.
    pub problem: Option<String>,
}

impl HookOutcome {
    /// In one line.
    #[must_use]
    pub fn message(&self) -> String {
        let Self {
            event, hook, took, ..
        } = self;
        match &self.problem {
            None => format!(
                "{event}: hook `{hook}` succeeded in {} ms",
                took.as_millis()
            ),
            Some(problem) if self.required => {
                format!("{event}: required hook `{hook}`: {problem}")
            }
            Some(problem) => format!("{event}: hook `{hook}`: {problem}"),
        }
    }
}

/// A required hook did not succeed, or it is not known which there are.
#[derive(Clone, Debug)]
pub(crate) struct HookBlocked {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Subject {
    /// The node itself.
    pub(crate) fn node(layout: &Layout, node: &str) -> Self {
        Self {
            state: layout.node_hooks(),
            group: "node".into(),
            run: vec![format!("{:?}", std::time::SystemTime::now())],
            env: vec![
                ("HOOKED_NODE".into(), node.to_owned()),
                ("HOOKED_SYSTEM_POD_ROOT".into(), text(&layout.homes())),
            ],
            manifest: None,
        }
    }

    /// A pod, and the version of it that is wanted, or ended.
    pub(crate) fn pod(layout: &Layout, node: &str, name: &PodName, desired: &Desired) -> Self {
        let paths = layout.pod(name);
        let generation = desired.generation;
        let config = paths.config(generation);
        let manifest = json!({
            "apiVersion": format!("{}/{}", Pod::GROUP, Pod::VERSION),
            "kind": Pod::KIND,
            "metadata": {
                "namespace": name.namespace(),
                "name": name.name(),
                "uid": desired.uid,
                "generation": generation,
                "labels": desired.labels,
            },
            "spec": desired.spec,
        });
        let env = [
            ("HOOKED_NODE", node.to_owned()),
            ("HOOKED_POD_ID", desired.app(name.name()).to_owned()),
            ("HOOKED_POD_NAME", name.name().to_owned()),
            ("HOOKED_POD_NAMESPACE", name.namespace().to_owned()),
            ("HOOKED_POD_UNIQUE_KEY", desired.uid.to_string()),
            ("HOOKED_POD_HOME", text(paths.home())),
            ("HOOKED_POD_MANIFEST", text(&manifest_path(paths.state()))),
            ("HOOKED_CONFIG_PATH", text(&config.join("config.yaml"))),
            ("HOOKED_CONFIG_DIR_PATH", text(&config)),
            ("HOOKED_ENV_PATH", text(&paths.env(generation))),
            ("HOOKED_SYSTEM_POD_ROOT", text(&layout.homes())),
            // Artifacts are sealed: nobody but root can change what runs.
            ("HOOKED_POD_READ_ONLY", "true".to_owned()),
        ];
        Self {
            group: name.directory(),
            run: vec![
                desired.uid.to_string(),
                generation.to_string(),
                desired.digest.to_string(),
            ],
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            // JSON is YAML, too; this is how people write it.
            manifest: serde_saphyr::to_string(&manifest).ok(),
            state: paths.state().to_owned(),
        }
    }

    /// Where its hooks' supervisors have their directories.
    fn runs(&self) -> PathBuf {
        self.state.join("once")
    }

    fn logs(&self) -> PathBuf {
        self.state.join("hooks")
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn manifest_path(state: &Path) -> PathBuf {
    state.join("hooks").join("manifest.yaml")
}

/// What is needed to call hooks.
struct Caller<'a> {
    hooks: &'a Hooks,
    supervisor: &'a dyn Supervisor,
    cgroups: &'a Cgroups,
    /// Before the names of runs, so that those made by hand are not taken for the agent's.
    prefix: &'static str,
}

/// Calls the hooks of `event`, one after the other, up to the first that is required and fails.
pub(crate) async fn call(
    host: &Host,
    event: HookEvent,
    subject: &Subject,
    tell: impl Fn(&HookOutcome),
) -> Result<(), HookBlocked> {
    let caller = Caller {
        hooks: &host.hooks,
        supervisor: &*host.errands,
        cgroups: &host.cgroups,
        prefix: "",
    };
    caller.call(event, subject, tell).await
}

impl Caller<'_> {
    async fn call(
        &self,
        event: HookEvent,
        subject: &Subject,
        tell: impl Fn(&HookOutcome),
    ) -> Result<(), HookBlocked> {
        let hooks = self.hooks.at(event).map_err(|error| HookBlocked {
            reason: "HooksInvalid",
            message: error.to_string(),
        })?;
        if hooks.is_empty() {
            return Ok(());
        }
        prepare(subject).map_err(|error| HookBlocked {
            reason: "FileError",
            message: error.to_string(),
        })?;
        for hook in hooks {
            let outcome = self.call_one(event, &hook, subject).await;
            tell(&outcome);
            if outcome.required && outcome.problem.is_some() {
                return Err(HookBlocked {
                    reason: "HookFailed",
                    message: outcome.message(),
                });
            }
        }
        Ok(())
    }

    async fn call_one(&self, event: HookEvent, hook: &Hook, subject: &Subject) -> HookOutcome {
        let begun = Instant::now();
        let problem = self.run(event, hook, subject).await.err();
        HookOutcome {
            event,
            hook: hook.name.clone(),
            required: hook.required,
            took: begun.elapsed(),
            problem,
        }
    }

    async fn run(&self, event: HookEvent, hook: &Hook, subject: &Subject) -> Result<(), String> {
        let name = format!("{}{event}:{}", self.prefix, hook.name);
        let unit = Unit {
            program: format!("hook {} at {event}", hook.name),
            dir: subject.runs().join(&name),
        };
        let mut spec = UnitSpec::new(&hook.program, subject.logs(), name);
        let number = [self.prefix, event.as_str(), &hook.name];
        let number = number
            .into_iter()
            .chain(subject.run.iter().map(String::as_str));
        spec.generation = once::run_number(&number.collect::<Vec<_>>());
        spec.env = environment(event, hook, subject);
        spec.may_gain_rights = true;
        spec.logs = LogLimits {
            max_size: Some(Bytes::new(1 << 20)),
            max_files: Some(2),
            ..LogLimits::default()
        };
        let group = format!("hook {event} {}", hook.name);
        let group = self
            .cgroups
            .create(&subject.group, &group, &Resources::default())
            .map_err(|error| error.to_string())?;
        spec.tracking = group.tracking;
        spec.cgroups = group.join;
        spec.supervisor_cgroups = self
            .cgroups
            .supervisors()
            .map_err(|error| error.to_string())?;
        let ended = once::run(self.supervisor, &unit, &spec, hook.timeout).await;
        let problem = match &ended {
            Ok(exit) if exit.code == Some(0) => return Ok(()),
            Ok(exit) => crate::report::ended(exit),
            Err(error) => error.to_string(),
        };
        // It is called again, and what it wrote is whole once its supervisor has left.
        if let Err(error) = once::end(self.supervisor, &unit).await {
            tracing::warn!(hook = hook.name, %error, "a hook's supervisor does not end");
        }
        let words = once::last_words(&spec.log_dir, &spec.log_name);
        Err(if words.is_empty() {
            problem
        } else {
            format!("{problem}; its last words: {words}")
        })
    }
}

/// The environment of a hook: these variables and nothing else.
fn environment(event: HookEvent, hook: &Hook, subject: &Subject) -> Vec<(String, String)> {
    let mut env = vec![
        ("PATH".to_owned(), FIXED_PATH.to_owned()),
        ("HOOK".to_owned(), hook.name.clone()),
        ("HOOK_EVENT".to_owned(), event.to_string()),
    ];
    env.extend(subject.env.iter().cloned());
    env
}

fn prepare(subject: &Subject) -> Result<(), FileError> {
    for dir in [&subject.state, &subject.runs(), &subject.logs()] {
        files::make_dir(dir, Access::mode(0o700))?;
    }
    match &subject.manifest {
        Some(manifest) => files::write(
            &manifest_path(&subject.state),
            manifest.as_bytes(),
            Access::mode(0o600),
            false,
        ),
        None => Ok(()),
    }
}

/// Why hooks could not be called by hand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunHooksError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Nothing of the pod is on this node.
    #[error(
        "there is nothing of pod {0} in this data directory: `platctrl node inspect` lists what is there"
    )]
    NoPod(PodName),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not known which hooks there are.
    #[error("{0}")]
    Hooks(String),
}

/// Calls the hooks of `event` for a pod of this node by hand, as its agent would, beside an agent
/// that may be running. `tell` hears of each; all are called that are not behind a required one
/// that fails. Whether none that is required failed.
///
/// # Errors
/// [`RunHooksError`].
pub async fn run_hooks(
    data_dir: &Path,
    hooks: &Hooks,
    pod: &PodName,
    event: HookEvent,
    tell: impl Fn(&HookOutcome),
) -> Result<bool, RunHooksError> {
    let layout = Layout::open(data_dir)?;
    let paths = layout.pod(pod);
    let record = PodRecord::look(&paths.record());
    let Some(desired) = record.and_then(|record| record.last) else {
        return Err(RunHooksError::NoPod(pod.clone()));
    };
    let node = desired.spec.node_name.clone().unwrap_or_default();
    let mut subject = Subject::pod(&layout, &node, pod, &desired);
    subject
        .run
        .push(format!("{:?}", std::time::SystemTime::now()));
    let supervisor: Arc<dyn Supervisor> = Arc::new(Shims::new(layout.newest_shim()?));
    let cgroups = Cgroups::detect(&cgroup::tag(layout.data_dir()));
    let caller = Caller {
        hooks,
        supervisor: &*supervisor,
        cgroups: &cgroups,
        prefix: "by-hand:",
    };
    let blocked = caller.call(event, &subject, tell).await;
    for hook in hooks.at(event).unwrap_or_default() {
        let name = format!("{}{event}:{}", caller.prefix, hook.name);
        let dir = subject.runs().join(&name);
        let program = name;
        if dir.exists()
            && let Err(error) = once::end(&*supervisor, &Unit { program, dir }).await
        {
            tracing::warn!(hook = hook.name, %error, "a hook's supervisor does not end");
        }
    }
    match blocked {
        Ok(()) => Ok(true),
        Err(blocked) if blocked.reason == "HookFailed" => Ok(false),
        Err(blocked) => Err(RunHooksError::Hooks(blocked.message)),
    }
}

/// Calls the hooks of an agent's start, again and again until those that are required succeed.
pub(crate) async fn begin(host: &Host) {
    let mut wait = Duration::from_secs(1);
    loop {
        let subject = Subject::node(&host.layout, &host.node);
        let tell = |outcome: &HookOutcome| match outcome.problem {
            None => tracing::info!("{}", outcome.message()),
            Some(_) => tracing::warn!("{}", outcome.message()),
        };
        let called = call(host, HookEvent::PreparerInit, &subject, tell).await;
        if let Err(error) = once::end_all(&*host.errands, &subject.runs(), "").await {
            tracing::warn!(%error, "a hook's supervisor does not end");
        }
        let Err(blocked) = called else { return };
        tracing::warn!(
            message = blocked.message,
            "no order is taken until the hooks of the agent's start succeed"
        );
        host.environment.sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(60));
    }
}
