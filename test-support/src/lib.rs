//! What the tests of several crates share: real processes and the faults that befall them.
//!
//! A dependency of tests alone. It knows the framework and no backend: a test hands in how its
//! own store is opened.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

pub mod certificates;
pub mod failsafe;
pub mod fencing;
pub mod needs;
pub mod network;
pub mod power_cut;
pub mod processes;
pub mod slow_disk;
