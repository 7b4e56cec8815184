//! The controllers on a runtime, on the memory store and virtual time, with a fake agent, and in
//! the simulator.

#![expect(clippy::unwrap_used, reason = "tests")]

mod abreast;
mod bad_input;
mod bites;
mod cells;
mod daemon_set;
mod dynamic;
mod ends;
mod failsafe;
mod failure_budget;
mod grants;
mod lost_nodes;
mod names;
mod node_lifecycle;
mod race;
mod replication_controller;
mod restarts;
mod rolling_update;
mod rolls;
mod sets;
mod simulation;
mod singletons;
mod spread;
mod world;
