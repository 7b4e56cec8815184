//! The node agent of platctrl: turns pod intent into running processes.
//!
//! Each pod has a [`Worker`], which carries out an [`Order`] and tells an [`Observer`]; it knows no
//! store. What to do next is decided by [`plan`] over plain data, and done in steps that may be
//! interrupted anywhere. An [`Agent`] carries orders from a store to the workers of a node and
//! their reports back; [`launch_local`] does with one manifest and no store. Programs run under
//! supervisors ([`launch`]) that outlive the agent.
//!
//! ```no_run
//! use platctrl_agent::{Agent, AgentConfig, HostConfig};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn run(store: std::sync::Arc<dyn platctrl_framework::store::Store>) -> Result<(), platctrl_agent::AgentError> {
//! let host = HostConfig::new("/var/lib/platctrl", "web1");
//! let agent = Agent::new(AgentConfig::new(host, store)).await?;
//! let shutdown = CancellationToken::new();
//! agent.run(shutdown).await // pods keep running afterwards
//! # }
//! ```

mod agent;
mod allocator;
mod artifacts;
pub mod auth;
mod authority;
mod beside;
mod blocking;
pub mod cgroup;
mod collect;
mod deploy_rules;
mod disk;
mod files;
pub mod health;
pub mod hoist;
pub mod hooks;
mod host;
mod inspect;
pub mod launch;
mod layout;
mod local;
mod logs;
mod name;
#[cfg(test)]
mod odd_files;
mod pages;
mod plan;
mod port_book;
pub mod ports;
mod report;
mod secrets;
mod situation;
mod state;
mod uninstall;
mod usage;
mod version;
mod worker;

pub use agent::{Agent, AgentConfig, AgentError, AgentHandle, BootGates, watched_prefixes};
pub use allocator::keep_little_memory;
pub use artifacts::{ArtifactError, Artifacts};
pub use authority::{AnyDeployment, Authority, Denied, Deployment};
pub use beside::{BesideError, beside};
pub use deploy_rules::DeployRules;
pub use files::FileError;
pub use host::{Host, HostConfig, HostError};
pub use inspect::{
    InspectedDisk, InspectedNode, InspectedPod, InspectedProgram, InspectedVersion, inspect,
    inspect_node,
};
pub use layout::{Layout, LayoutError, PodPaths};
pub use local::{LocalError, launch_local};
pub use logs::{LogError, LogFiles, LogQuery, LogReader, logs};
pub use name::PodName;
pub use plan::{Hold, HookedEvents, Observed, Order, Plan, Row, Step, UPDATE, plan, update_table};
pub use report::{Observer, PodEvent, Report};
pub use secrets::SecretError;
pub use situation::{Gate, Granter, Situation};
pub use state::{
    DrainStart, Found, KnownHealth, PodRecord, Position, Preparation, Prepared, Quarantined,
};
pub use uninstall::{UninstallError, Uninstalled, uninstall};
pub use usage::{NodeUsage, Usage, UsageSample};
pub use version::{Desired, Installed, Program, RunAs, Scripts, Tombstone, Version};
pub use worker::{AskedRestart, Control, Wish, Worker};
