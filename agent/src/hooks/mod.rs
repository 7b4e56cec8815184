//! Hooks: programs of the node's operator that are called when something happens to a pod.
//!
//! They lie in one directory, which is the agent's user's alone, and are called one after the
//! other in the order of their names. The file `hooks.yaml` beside them says when each is called,
//! whether the pod waits for it, and how long it may take:
//!
//! ```yaml
//! hooks:
//!   10-user: { events: [before_install], required: true, timeout: 30s }
//! ```
//!
//! A program that the file does not name is called at every event and never waited for beyond its
//! end. A hook runs as the agent's user, in a session and a group of its own under a supervisor:
//! when it ends, or takes too long, all that it started ends with it.

mod config;
mod run;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use config::{Hook, Hooks, HooksError};
pub use run::{HookOutcome, RunHooksError, run_hooks};
pub(crate) use run::{Subject, begin, call};

/// When hooks are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HookEvent {
    /// The agent starts, and has not taken an order yet.
    PreparerInit,
    /// A version is about to be fetched.
    BeforeInstall,
    /// It is unpacked.
    AfterInstall,
    /// A pod is stopped and about to be removed.
    BeforeUninstall,
    /// The old version is stopped, and the new one is about to be made the current one.
    BeforeLaunch,
    /// The new version does its work.
    AfterLaunch,
    /// What is wanted may not run on this node.
    AfterAuthFail,
}

impl HookEvent {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PreparerInit,
        Self::BeforeInstall,
        Self::AfterInstall,
        Self::BeforeUninstall,
        Self::BeforeLaunch,
        Self::AfterLaunch,
        Self::AfterAuthFail,
    ];

    /// Its name, as hooks find it in HOOK_EVENT.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreparerInit => "preparer_init",
            Self::BeforeInstall => "before_install",
            Self::AfterInstall => "after_install",
            Self::BeforeUninstall => "before_uninstall",
            Self::BeforeLaunch => "before_launch",
            Self::AfterLaunch => "after_launch",
            Self::AfterAuthFail => "after_auth_fail",
        }
    }
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no such event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no event that hooks are called at: use {}", names())]
pub struct UnknownEvent {
    given: String,
}

fn names() -> String {
    HookEvent::ALL.map(HookEvent::as_str).join(", ")
}

impl FromStr for HookEvent {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let event = Self::ALL.into_iter().find(|event| event.as_str() == text);
        event.ok_or_else(|| UnknownEvent {
            given: text.chars().take(60).collect(),
        })
    }
}
