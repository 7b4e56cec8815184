//! Tests of a real shim with real launchables.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod hostile;
mod identity;
mod logs;
mod recovery;
mod restart;
mod rig;
mod stop;
mod versions;
