//! The store on real servers.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod access;
mod conformance;
mod failsafe;
mod faults;
mod fencing;
mod helpers;
mod input;
mod later;
mod partitions;
mod proxy;
mod relay;
mod rotation;
mod server;
mod sizes;
mod work;
