//! Pods on a real node: real artifacts, helper processes, shims, programs and sockets.

#![allow(
    clippy::unwrap_used,
    reason = "this is a part of tests: what goes wrong is a failure"
)]

mod cells;
mod checks;
mod clock;
mod crash;
mod faults;
mod fence;
mod full;
mod grants;
mod hooks;
mod hostile;
mod hostile_app;
mod isolation;
mod launchables;
mod logs;
mod machine;
mod names;
mod node;
mod overlay;
mod pods;
mod power;
mod pressure;
mod rig;
mod runit;
mod store;
mod updates;
