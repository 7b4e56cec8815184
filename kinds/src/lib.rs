//! The kinds of `platctrl.dev/v1`: what people write and what agents and controllers report.
//!
//! They live apart from the framework, which knows nothing of pods, and from the agent and the
//! controllers, which both need them and not each other. Only plain data is here: types, their
//! defaults, and what about a spec is wrong by itself.
//!
//! A field is added here when something obeys it, never before: what is not here is refused by
//! name instead of being silently ignored.

mod duration;
mod node;
mod pod;
mod quantity;
mod replication_controller;

pub use duration::{InvalidDuration, Span};
pub use node::{Node, NodeSpec, NodeStatus};
pub use pod::{
    Exit, Health, HttpCheck, Launchable, LaunchableType, Pod, PodPhase, PodSpec, PodStatus, Port,
    Resources, Restart, RestartPolicy, condition,
};
pub use quantity::{Bytes, Cpu, InvalidQuantity};
pub use replication_controller::{
    PodTemplate, ReplicationController, ReplicationControllerSpec, ReplicationControllerStatus,
    Strategy, TemplateMetadata,
};

/// The API group of these kinds.
pub const GROUP: &str = "platctrl.dev";

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";
