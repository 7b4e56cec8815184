//! Events: what happened to an object and why, for people.
//!
//! Each writer keeps a ring of at most 256 event records; the oldest is overwritten. Nothing
//! decides by events, and losing them loses nothing else.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uid;

/// One thing that happened, or several alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The object it happened to.
    pub involved_object: ObjectReference,
    /// Whether somebody should look.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// One word in camel case for programs.
    pub reason: String,
    /// For people: what happened, why, with the numbers that decided it.
    pub message: String,
    /// Who says so, as `agent/web1` or `replicationcontroller`.
    pub source: String,
    /// When it first happened.
    pub first_timestamp: Timestamp,
    /// When it last happened.
    pub last_timestamp: Timestamp,
    /// How often.
    pub count: u64,
    /// Counts this writer's events, so that the ring has an order.
    #[serde(default)]
    pub sequence: u64,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Something is not as it should be.
    Warning,
}

/// Names an object in an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    /// `group/version`.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The namespace; None when cluster-scoped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The uid.
    #[serde(default, skip_serializing_if = "Uid::is_empty")]
    pub uid: Uid,
}
