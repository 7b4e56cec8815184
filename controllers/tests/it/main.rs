//! The controllers on a runtime, on the memory store and virtual time, with a fake agent.

#![expect(clippy::unwrap_used, reason = "tests")]

mod replication_controller;
mod world;
