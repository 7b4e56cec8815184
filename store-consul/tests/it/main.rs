//! The store on real servers.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod access;
mod certificates;
mod conformance;
mod faults;
mod helpers;
mod input;
mod proxy;
mod server;
