//! Nodes: the machines that pods run on.

use std::collections::BTreeMap;

use platctrl_framework::model::{Digest, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Cpu};

/// A machine that runs pods.
///
/// The record is written when the machine is admitted, never by its agent: labels attract pods,
/// and a stolen machine must not attract other teams' pods.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "Node",
    short("no"),
    scope = "Cluster",
    status = NodeStatus,
    column(name = "Ready", path = ".status.conditions.Ready"),
    column(name = "Alive", path = ".status.conditions.Alive"),
    column(name = "Takes-Pods", path = ".status.conditions.Available"),
    column(name = "Pods", path = ".status.pods"),
    column(name = "Version", path = ".status.agentVersion", wide)
)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// No new pods are placed here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// Its pods are to go elsewhere, as far as what keeps them can move them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
    /// With `drain`: also pods of controllers whose strategy is Static.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain_static: bool,
    /// Raised when the node was given up and its pods replaced: an agent that finds a number
    /// above its own stops what it started before.
    #[serde(default)]
    pub incarnation: u64,
    /// The addresses that the node's pods may be reached under.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// What pods may use of the machine. What is left out is what its agent reports of it; the
    /// number of pods is then not limited.
    #[serde(default, skip_serializing_if = "Capacity::is_empty")]
    pub capacity: Capacity,
    /// Artifacts that its agent fetches in advance, and keeps as long as they are named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefetch: Vec<Prefetch>,
}

/// An artifact that is to be on a node before anything there needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Prefetch {
    /// Where it is, as in a launchable.
    pub location: String,
    /// Its digest.
    pub digest: Digest,
}

/// What the pods of a node may use, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Processor time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// How many pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<u32>,
}

impl Capacity {
    /// Nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The types of a node's conditions that say whether pods may be put on it.
pub mod node_condition {
    /// Its agent was not heard of for so long that its pods may be replaced.
    pub const LOST: &str = "Lost";
    /// Its pods are being moved away.
    pub const DRAINING: &str = "Draining";
    /// Little space, or few file names, are left where pods are kept.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// Little memory is available.
    pub const MEMORY_PRESSURE: &str = "MemoryPressure";
    /// Its clock was set, or differs from the controllers'.
    pub const CLOCK_SKEW: &str = "ClockSkew";
}

/// What a node's agent reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Facts about the machine, as `attr.os` and `attr.cpus`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// The incarnation that the agent works under.
    #[serde(default)]
    pub incarnation: u64,
    /// Pods that the agent knows of.
    #[serde(default)]
    pub pods: u64,
    /// What became of each artifact to be fetched in advance, by digest: `Installed`, or why not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefetched: BTreeMap<String, String>,
    /// The digest of the last sign of life before the node was given up, written by who gave it
    /// up: whoever judges it next sees whether there was one since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_after_beat: Option<Digest>,
}
