//! Controllers: what runs a reconcile, and what it gets without asking.

mod action;
mod builder;
mod claim;
mod context;
mod engine;
mod error;
mod event;
mod reaper;
mod runtime;
mod status;

pub use action::Action;
pub use builder::{Absent, Controller, Trigger};
pub use claim::Fence;
pub use context::{Cause, Changes, Claimed, Context};
pub use error::{CommitError, ErrorClass, ReconcileError};
pub use event::EventRecorder;
pub use runtime::{RunError, Runtime, RuntimeHandle};
pub use status::{ControllerStatus, FailingKey, ParkedKey, RuntimeStatus};
