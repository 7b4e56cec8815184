//! The store on real servers.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod certificates;
mod conformance;
mod proxy;
mod server;
