//! The store on real servers.

// A helper that fails ends its test.
#![allow(clippy::unwrap_used)]
// Helpers of tests to come.
#![allow(dead_code)]

mod certificates;
mod conformance;
mod proxy;
mod server;
