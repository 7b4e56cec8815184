//! The node agent of platctrl: turns pod intent into running processes.
//!
//! An [`Agent`] looks after the pods of one node: it carries out what a store says of them, and
//! reports there what is so. Pods run without it. Their programs are supervised by small processes
//! of their own ([`launch`]), so that an agent may crash, be upgraded or lose its store, and finds
//! them again when it is back. Artifacts are taken for hostile until they have been checked
//! ([`hoist`]); the node's operator is asked before anything runs ([`Authority`]) and told of each
//! step ([`hooks`]).
//!
//! # An agent in a program of your own
//!
//! Its store is anything that implements [`Store`](platctrl_framework::store::Store). The node has
//! to be admitted there: an anchor in each of [`watched_prefixes`], and a record of the node.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use platctrl_agent::{Agent, AgentConfig, AgentError, HostConfig, hoist, keep_little_memory};
//! use platctrl_framework::environment::Environment;
//! use platctrl_framework::store::{MemoryStore, Store};
//! use tokio_util::sync::CancellationToken;
//!
//! fn main() -> ExitCode {
//!     keep_little_memory();
//!     // What fetches and unpacks artifacts is this program once more, unprivileged and sandboxed.
//!     let mut args = std::env::args_os().skip(1).peekable();
//!     if args.next_if(|arg| arg == hoist::child::SUBCOMMAND).is_some() {
//!         return hoist::child::main(args);
//!     }
//!     match run() {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => {
//!             eprintln!("{error}");
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//!
//! fn run() -> Result<(), Box<dyn std::error::Error>> {
//!     // In its place the one that your controllers work on.
//!     let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Environment::system()));
//!     let runtime = tokio::runtime::Runtime::new()?;
//!     Ok(runtime.block_on(look_after(store, CancellationToken::new()))?)
//! }
//!
//! /// Works as node `web1` until `shutdown` is cancelled; pods keep running afterwards.
//! async fn look_after(
//!     store: Arc<dyn Store>,
//!     shutdown: CancellationToken,
//! ) -> Result<(), AgentError> {
//!     let mut host = HostConfig::new("/var/lib/our-platform", "web1");
//!     // `platctrl-shim` supervises each program; by default it lies beside this one.
//!     host.shim = Some("/usr/libexec/platctrl-shim".into());
//!     // The programs in here are called at every step of a pod's life.
//!     host.hooks = Some("/etc/our-platform/hooks".into());
//!     let agent = Agent::new(AgentConfig::new(host, store)).await?;
//!     agent.run(shutdown).await
//! }
//! ```
//!
//! # Without a store
//!
//! [`launch_local`] runs the pod of one manifest, [`Worker`] one pod whose [`Order`]s come from
//! anywhere. [`inspect`](inspect()), [`LogReader`], [`beside`](beside()) and [`UsageSample`] read
//! the files of a data directory, whether its agent runs or not; [`uninstall`](uninstall()) ends
//! all that is in one. Where they say that they block, call them from a thread that may.

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
mod ports;
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
pub use plan::{Order, Row, Step, UPDATE};
pub use report::{Observer, PodEvent, Report};
pub use state::{
    DrainStart, Found, KnownHealth, PodRecord, Position, Preparation, Prepared, Quarantined,
};
pub use uninstall::{UninstallError, Uninstalled, uninstall};
pub use usage::{NodeUsage, Usage, UsageSample};
pub use version::{Desired, Installed, Program, RunAs, Scripts, Tombstone, Version};
pub use worker::{AskedRestart, Control, Wish, Worker};
