//! The embedded store on real files and real processes.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod backup;
mod conformance;
mod crash;
mod failsafe;
mod full_disk;
mod helpers;
mod leases;
mod model;
mod opening;
mod read_only;
mod reads;
mod watches;
