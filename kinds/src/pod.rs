//! Pods: programs that run together on one node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use platctrl_framework::model::{Digest, FieldError, Phase, Resource, check_name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::confine::Secrets;
use crate::{
    Bytes, Cpu, Health, Io, LivenessOffline, LogLimits, OnFailedStart, PodPlacement, Rlimits, Span,
};

/// Programs that run together on one node.
///
/// The node is part of the object's key and never changes: a pod is not moved, it is replaced.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "Pod",
    short("po"),
    scope = "Node",
    node = node_name,
    status = PodStatus,
    validate = validate,
    validate_update = validate_update,
    column(name = "Ready", path = ".status.conditions.Ready"),
    column(name = "Phase", path = ".status.phase"),
    column(name = "Restarts", path = ".status.restarts"),
    column(name = "Node", path = ".spec.nodeName"),
    column(name = "Ports", path = ".status.ports"),
    column(name = "Reason", path = ".status.reason", wide)
)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The node that runs the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Names the unix user and what deploy policy speaks of. The object's name when left out;
    /// a controller's name for the pods it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// An existing unix user to run as, instead of one made for the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// The programs, by name.
    // Boxed: a map has room for eleven from its first on, and most pods have one.
    pub launchables: BTreeMap<String, Box<Launchable>>,
    /// Written as YAML to the file that CONFIG_PATH names.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub config: Value,
    /// Ports by name, exported as `PORT_<NAME>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, Port>,
    /// How to see that the pod can do its work. Without it a running pod is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How to see that the pod still lives. One that does not is not ready, and is restarted once
    /// a controller grants it, so that not all pods of a workload are restarted at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Health>,
    /// What happens to a pod that does not live while the store is away: `hold` it, or `restart`
    /// one at a time. Default hold.
    #[serde(default, skip_serializing_if = "LivenessOffline::is_hold")]
    pub liveness_offline: LivenessOffline,
    /// How long an orderly end of the whole pod may take. Default 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_period: Option<Span>,
    /// How long to wait, not ready, before the pod is stopped or replaced, so that whoever sends
    /// it work notices. Default 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_delay: Option<Span>,
    /// What an update does when the new version fails to start. Default Revert.
    #[serde(default, skip_serializing_if = "OnFailedStart::is_default")]
    pub on_failed_start: OnFailedStart,
    /// How long a new version may take from its start until it does its work before it counts as
    /// failed. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<Span>,
    /// Files that only the pod's user can read, in memory alone. The secret `DB` is in the file
    /// that `SECRET_DB` names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: Secrets,
    /// Its programs see the machine's `/tmp` and `/var/tmp` instead of the pod's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_tmp: bool,
    /// Keep the pod's `data/` directory when it is removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_data: bool,
    /// Which apps the pod runs beside, and which never. Its agent does not look at it.
    #[serde(default, skip_serializing_if = "PodPlacement::is_empty")]
    pub placement: PodPlacement,
    /// The pod never runs twice at once, not even while its node is out of reach: another one is
    /// made only when this one is gone, or its node was retired. An agent that has just begun
    /// does not start it before the store has said that it is still wanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub singleton: bool,
}

/// A program of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Launchable {
    /// How it is packed.
    #[serde(rename = "type", default)]
    pub launchable_type: LaunchableType,
    /// Where the artifact is: `artifact:sha256:…` on the server, or `file:` and a path under a
    /// directory that the node's operator allows. In a manifest also a path relative to it,
    /// which `apply` uploads and rewrites.
    pub location: String,
    /// The artifact's digest; `apply` fills it in for local files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Environment variables for this program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What it may use.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// What the kernel limits of each of its processes.
    #[serde(default, skip_serializing_if = "Rlimits::is_empty")]
    pub rlimits: Rlimits,
    /// The permissions that files it makes do not get, in octal. Default 022.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<String>,
    /// What happens when it ends.
    #[serde(default)]
    pub restart: Restart,
    /// How long it may take to end after SIGTERM before it is killed. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<Span>,
    /// What of the artifact is started: files, or directories of files, relative to it. Default
    /// `bin/launch`. One file is the program `web` of a launchable `web`; of several files, or of
    /// a directory, each is a program `web/<file>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entry_points: Vec<String>,
    /// An update leaves its process alone: the new version is used from its next start on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_halt_on_update: bool,
    /// How much of its output is kept.
    #[serde(default, skip_serializing_if = "LogLimits::is_empty")]
    pub logs: LogLimits,
}

/// How a launchable is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LaunchableType {
    /// A tar.gz with `bin/launch`.
    #[default]
    Hoist,
}

/// Limits of a program. What is left out is not limited, except processes. They can be changed
/// while it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Processor time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processes and threads. Default 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// The disk that the node keeps its pods on.
    #[serde(default, skip_serializing_if = "Io::is_empty")]
    pub io: Io,
}

impl Resources {
    /// Nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens when a program ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// When it is started again.
    #[serde(default)]
    pub policy: RestartPolicy,
}

/// When a program is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// Whenever it ended.
    #[default]
    Always,
    /// When it ended by a signal or with a code other than 0.
    OnFailure,
    /// Never.
    Never,
}

/// A port of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// A fixed number. Left out, the agent picks a free one and keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// What a pod's agent reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// The numbers of the pod's ports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// The process of each program; `web/a` is program `a` of the launchable `web` that has a
    /// directory of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pids: BTreeMap<String, u32>,
    /// How often programs of the pod were started again.
    #[serde(default)]
    pub restarts: u64,
    /// How programs last ended, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<Exit>,
    /// The agent asks whether it may restart the pod's programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_request: Option<RestartRequest>,
    /// One word in camel case: why the pod is in its phase.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same for people, with the way out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The node that reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// The address that the pod's ports are reached under.
    #[serde(default, rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// An agent asks whether it may restart a pod. One that does not live is not ready by then; one
/// that somebody on the node wants restarted may be. The answer is the pod's [`Grant`](crate::Grant),
/// which names the same `id`; when the request is gone, the pod is not ready until it has started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestartRequest {
    /// Tells this request from others for the same pod.
    pub id: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Which program.
    pub launchable: String,
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What is known beyond that, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The phases of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodPhase {
    /// Known, nothing done yet.
    Pending,
    /// Artifacts are being fetched.
    Fetching,
    /// Artifacts are being unpacked.
    Installing,
    /// Programs are being started.
    Starting,
    /// Programs run.
    Running,
    /// Programs are being stopped.
    Stopping,
    /// Every program ended well and none is to be started again.
    Succeeded,
    /// It cannot run, or a program ended badly and is not to be started again.
    Failed,
    /// Nothing of it is left on the node.
    Gone,
}

impl PodPhase {
    const ALL: [Self; 9] = [
        Self::Pending,
        Self::Fetching,
        Self::Installing,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Succeeded,
        Self::Failed,
        Self::Gone,
    ];

    /// The phase as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Fetching => "Fetching",
            Self::Installing => "Installing",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Gone => "Gone",
        }
    }

    /// The phase that a status names, if it is one of a pod's.
    #[must_use]
    pub fn of(phase: &Phase) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == phase.as_str())
    }
}

impl From<PodPhase> for Phase {
    fn from(phase: PodPhase) -> Self {
        Self::new(phase.as_str())
    }
}

/// The types of a pod's conditions.
pub mod condition {
    /// The pod can do its work.
    pub const READY: &str = "Ready";
    /// A node was found for it.
    pub const SCHEDULED: &str = "Scheduled";
    /// Its artifacts are on the node, verified.
    pub const INSTALLED: &str = "Installed";
    /// Something that should be done is not done, for safety.
    pub const HELD: &str = "Held";
}

fn node_name(spec: &PodSpec) -> Option<&str> {
    spec.node_name.as_deref()
}

fn validate(spec: &PodSpec, errors: &mut Vec<FieldError>) {
    if spec.node_name.is_none() {
        errors.push(FieldError::new("spec.nodeName", "is required: name the node that runs the pod, or let a ReplicationController make the pod"));
    }
    spec.validate("spec", errors);
}

fn validate_update(old: &PodSpec, new: &PodSpec, errors: &mut Vec<FieldError>) {
    if old.node_name != new.node_name {
        errors.push(FieldError::new(
            "spec.nodeName",
            "cannot change: a pod is not moved, delete it and create another",
        ));
    }
}

const MAX_LAUNCHABLES: usize = 32;
const MAX_PORTS: usize = 64;

impl PodSpec {
    /// Adds what is wrong with a spec that lies at `path` of some object: also used for the
    /// templates of controllers, which name no node.
    pub fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        let placement = format!("{path}.placement");
        self.placement.validate(&placement, errors);
        let mut wrong = |field: String, problem: String| {
            errors.push(FieldError::new(format!("{path}.{field}"), problem));
        };
        if let Some(app) = &self.app
            && let Err(error) = check_name("app", app)
        {
            wrong("app".into(), error.to_string());
        }
        if self.launchables.is_empty() {
            wrong(
                "launchables".into(),
                "is empty: a pod has at least one program".into(),
            );
        }
        if self.launchables.len() > MAX_LAUNCHABLES {
            wrong(
                "launchables".into(),
                format!("has more than {MAX_LAUNCHABLES} programs"),
            );
        }
        for (name, launchable) in &self.launchables {
            if let Err(error) = check_name("launchable name", name) {
                wrong(format!("launchables.{name}"), error.to_string());
            }
            if launchable.location.is_empty() {
                wrong(
                    format!("launchables.{name}.location"),
                    "is empty: say where the artifact is".into(),
                );
            }
            launchable.validate_start(name, &mut wrong);
            launchable.validate_confinement(name, &mut wrong);
            for (variable, value) in &launchable.env {
                let field = format!("launchables.{name}.env.{variable}");
                if !is_variable(variable) {
                    wrong(
                        field,
                        "is not a name for a variable: use letters, digits and `_`, no digit first"
                            .into(),
                    );
                } else if value.contains('\0') {
                    wrong(field, "holds a NUL character".into());
                }
            }
            if launchable
                .resources
                .memory
                .is_some_and(|memory| memory.get() < 1 << 20)
            {
                wrong(
                    format!("launchables.{name}.resources.memory"),
                    "is below 1Mi: no program starts in that".into(),
                );
            }
            if launchable
                .resources
                .cpu
                .is_some_and(|cpu| cpu.millis() == 0)
            {
                wrong(
                    format!("launchables.{name}.resources.cpu"),
                    "is 0: no program runs on that".into(),
                );
            }
            if launchable.resources.pids == Some(0) {
                wrong(
                    format!("launchables.{name}.resources.pids"),
                    "is 0: no program starts with that".into(),
                );
            }
        }
        self.validate_secrets(&mut wrong);
        if self.ports.len() > MAX_PORTS {
            wrong("ports".into(), format!("has more than {MAX_PORTS} ports"));
        }
        let mut numbers = BTreeMap::new();
        for (name, port) in &self.ports {
            if let Err(error) = check_name("port name", name) {
                wrong(format!("ports.{name}"), error.to_string());
            }
            if let Some(number) = port.port
                && let Some(other) = numbers.insert(number, name)
            {
                wrong(
                    format!("ports.{name}.port"),
                    format!("{number} is also that of the port `{other}`"),
                );
            }
        }
        for (field, check) in [("health", &self.health), ("liveness", &self.liveness)] {
            if let Some(check) = check {
                let path = format!("{path}.{field}");
                check.validate(&path, &self.ports, &self.launchables, errors);
            }
        }
    }
}

pub(crate) fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
