//! The store on real servers.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod conformance;
mod failsafe;
mod faults;
mod fencing;
mod proxy;
mod refusals;
mod restores;
mod runtimes;
mod server;
mod workload;
