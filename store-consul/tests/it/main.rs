//! The store on real servers.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod access;
mod certificates;
mod conformance;
mod failsafe;
mod faults;
mod fencing;
mod helpers;
mod input;
mod later;
mod network;
mod partitions;
mod proxy;
mod rotation;
mod server;
mod sizes;
mod work;
