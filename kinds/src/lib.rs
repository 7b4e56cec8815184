//! The kinds of `platctrl.dev/v1`: what people write and what agents and controllers report.
//!
//! They live apart from the framework, which knows nothing of pods, and from the agent and the
//! controllers, which both need them and not each other. Only plain data is here: types, their
//! defaults, and what about a spec is wrong by itself.
//!
//! A field is added here when something obeys it, never before: what is not here is refused by
//! name instead of being silently ignored.

mod amount;
mod confine;
mod daemon_set;
mod disruption_budget;
mod duration;
mod health;
mod node;
mod placement;
mod pod;
mod quantity;
mod replication_controller;
mod role;
mod rolling_update;
mod start;
mod template;

pub use amount::{Amount, InvalidAmount};
pub use confine::{Io, Rlimits, SecretSource, umask};
pub use daemon_set::{Canary, DaemonSet, DaemonSetSpec, DaemonSetStatus, RateLimit, RateUsed};
pub use disruption_budget::{
    DisruptionBudget, DisruptionBudgetSpec, DisruptionBudgetStatus, default_floor,
};
pub use duration::{InvalidDuration, Span};
pub use health::{
    ExecCheck, Grant, Health, HttpCheck, LivenessOffline, NameTaken, Scheme, TcpCheck,
};
pub use node::{Capacity, Node, NodeSpec, NodeStatus, Prefetch, node_condition};
pub use placement::{PodPlacement, app_matches};
pub use pod::{
    Exit, Launchable, LaunchableType, Pod, PodPhase, PodSpec, PodStatus, Port, Resources, Restart,
    RestartPolicy, RestartRequest, condition,
};
pub use quantity::{Bytes, Cpu, InvalidQuantity};
pub use replication_controller::{
    Progress, ReplicationController, ReplicationControllerSpec, ReplicationControllerStatus,
    Strategy,
};
pub use role::{
    Grants, Role, RoleBinding, RoleBindingSpec, RoleSpec, fits_any, fits_location, fits_pattern,
};
pub use rolling_update::{
    Gate, OnFailure, RollPhase, RollingUpdate, RollingUpdateSpec, RollingUpdateStatus, Step, line,
};
pub use start::{LogLimits, OnFailedStart};
pub use template::{PodTemplate, TemplateMetadata};

/// The API group of these kinds.
pub const GROUP: &str = "platctrl.dev";

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";
