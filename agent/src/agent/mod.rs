//! The agent of a node: carries the store's orders to the workers and their reports back.
//!
//! Pods run without it: workers go on from their records on disk, and what cannot be reported now
//! is reported when the store is back. An object that nothing on this node was done for is claimed
//! in the store first, so that no crash can make its end be forgotten.

mod gate;
mod machine;
mod memory;
mod metrics;
mod node;
mod pods;

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use platctrl_framework::controller::{Action, Controller, RunError, Runtime, RuntimeHandle};
use platctrl_framework::model::{GroupPlural, InvalidName, Resource as _, Tree, check_name};
use platctrl_framework::store::{Prefix, Store};
use platctrl_kinds::Pod;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::files::FileError;
use crate::host::{Host, HostConfig, HostError};
use crate::name::PodName;
use crate::situation::Granter;
use crate::worker::Control;
pub use gate::BootGates;
use memory::Memory;
use node::{Fence, Keeper, NodeError};
use pods::{Pods, Told};

/// The name that claims and events give.
pub(crate) const CONTROLLER: &str = "agent";
/// How long reports that wait to be written may take when the agent stops.
const GRACE: Duration = Duration::from_secs(2);
/// So long after something happened to a pod, memory that was needed for it is given back.
const TIDY: Duration = Duration::from_secs(1);
/// How often it is looked whether what is required is there.
const GATES: Duration = Duration::from_secs(1);

/// How an agent works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgentConfig {
    /// How the node runs pods.
    pub host: HostConfig,
    /// Where orders come from.
    pub store: Arc<dyn Store>,
    /// What has to be so before pods are begun.
    pub gates: BootGates,
}

impl AgentConfig {
    /// An agent of this node on that store.
    pub fn new(host: HostConfig, store: Arc<dyn Store>) -> Self {
        Self {
            host,
            store,
            gates: BootGates::default(),
        }
    }
}

/// Why an agent cannot work, or does not any more. Pods keep running in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The node cannot run pods.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The node's name cannot be one.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Another agent works under the node's name.
    #[error(
        "another agent works as node `{node}` ({other}): this one stops; give each machine a name of its own with --node"
    )]
    NameInUse {
        /// The node.
        node: String,
        /// What is known of the other one.
        other: String,
    },
    /// The agent's memory on disk cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The runtime ended.
    #[error(transparent)]
    Runtime(#[from] RunError),
}

/// What the controller's functions hold.
#[derive(Clone, Debug)]
struct Link {
    pods: Weak<Pods>,
    fence: Fence,
}

/// The agent of a node.
#[derive(Debug)]
pub struct Agent {
    host: Arc<Host>,
    store: Arc<dyn Store>,
    pods: Arc<Pods>,
    keeper: Keeper,
    runtime: Runtime,
    gates: BootGates,
}

/// Looks into an agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    runtime: RuntimeHandle,
    told: Arc<Told>,
    pods: Weak<Pods>,
    waits: watch::Receiver<Option<String>>,
    instance: Arc<str>,
}

impl AgentHandle {
    /// The agent's view of the store.
    #[must_use]
    pub fn runtime(&self) -> &RuntimeHandle {
        &self.runtime
    }

    /// What the pods' workers told last.
    #[must_use]
    pub fn reports(&self) -> Vec<crate::Report> {
        self.told.reports()
    }

    /// Says something to a pod's worker: what somebody on this node wants of it. False when the pod
    /// is not here.
    #[must_use]
    pub fn control(&self, pod: &PodName, word: Control) -> bool {
        let pods = self.pods.upgrade();
        pods.is_some_and(|pods| pods.control(pod, word))
    }

    /// What tells this run of the agent from all others: the node's reality says which one has its
    /// name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Why the agent takes no orders at the moment, while it does not: the store is away, or
    /// another one, or the node is not admitted. Pods keep running.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.waits.borrow().clone()
    }
}

/// The prefixes that an agent watches. Each needs an anchor, which admitting a node writes
/// ([`write_prefix_anchor`](platctrl_framework::cache::write_prefix_anchor)).
///
/// # Errors
/// When `node` is no valid name.
pub fn watched_prefixes(node: &str) -> Result<[Prefix; 3], InvalidName> {
    check_name("node name", node)?;
    let kind: GroupPlural = Pod::group_plural();
    Ok([Tree::Intent, Tree::Reality, Tree::Grant].map(|tree| {
        let prefix = format!("{}{node}/", kind.prefix(tree));
        Prefix::new(prefix).expect("a checked name makes a valid prefix")
    }))
}

impl Agent {
    /// Takes the data directory, and starts to look after the pods that are on the node. Nothing
    /// is asked of the store yet.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn new(config: AgentConfig) -> Result<Self, AgentError> {
        let AgentConfig { host, store, gates } = config;
        let prefixes = watched_prefixes(&host.node)?;
        let environment = host.environment.clone();
        let (host, memory) = tokio::task::spawn_blocking(move || {
            let host = Host::open(host)?;
            let memory = Memory::open(&host)?;
            Ok::<_, AgentError>((Arc::new(host), memory))
        })
        .await
        .map_err(|panic| RunError::Internal {
            task: "start",
            reason: panic.to_string(),
        })??;

        // Whoever grants restarts is in the store, which nobody has heard of yet.
        host.circumstances.granter(Granter::Away);
        host.circumstances.gate(gates.look());
        let pods = Pods::start(Arc::clone(&host))?;
        let keeper = Keeper::new(
            Arc::clone(&host),
            Arc::clone(&store),
            memory,
            Arc::clone(&pods),
        );
        let mut runtime = Runtime::new(Arc::clone(&store), environment)
            .name(&host.node)
            // A node's credential may not: the controllers do.
            .without_registration()
            .grace(GRACE);
        for prefix in prefixes {
            runtime = runtime.watch(prefix);
        }
        // A handle of the runtime may outlive the agent, and must not keep the data directory.
        let link = Link {
            pods: Arc::downgrade(&pods),
            fence: keeper.fence(),
        };
        let (wanted, ended, absent) = (link.clone(), link.clone(), link);
        let controller = Controller::<Pod>::new(CONTROLLER, move |object, context| {
            let link = wanted.clone();
            async move {
                match link.pods.upgrade() {
                    Some(pods) => pods.reconcile(&object, &context, &link.fence).await,
                    None => Ok(Action::await_change()),
                }
            }
        })
        .on_delete(move |object, context| {
            let link = ended.clone();
            async move {
                match link.pods.upgrade() {
                    Some(pods) => pods.reconcile(&object, &context, &link.fence).await,
                    None => Ok(Action::await_change()),
                }
            }
        })
        .on_absent(move |object, context| {
            let link = absent.clone();
            async move {
                match link.pods.upgrade() {
                    Some(pods) => pods.missing(&object, &context, &link.fence).await,
                    None => Ok(Action::await_change()),
                }
            }
        })
        .triggered_by(pods.trigger())
        .reports_while_frozen();
        let runtime = runtime.controller(controller);
        Ok(Self {
            host,
            store,
            pods,
            keeper,
            runtime,
            gates,
        })
    }

    /// Looks into the agent, also while it runs.
    #[must_use]
    pub fn handle(&self) -> AgentHandle {
        AgentHandle {
            runtime: self.runtime.handle(),
            told: self.pods.told(),
            pods: Arc::downgrade(&self.pods),
            waits: self.keeper.waits(),
            instance: self.keeper.instance().into(),
        }
    }

    /// Works until `shutdown`; pods keep running afterwards.
    ///
    /// # Errors
    /// [`AgentError::NameInUse`] when another agent took the node's name.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let Self {
            host,
            store,
            pods,
            keeper,
            runtime,
            gates,
        } = self;
        let stopped = shutdown.clone();
        let handle = runtime.handle();
        let runtime = runtime.shutdown_on(async move { stopped.cancelled().await });
        let work = async {
            // Pods run on meanwhile, under their workers.
            tokio::select! {
                () = crate::hooks::begin(&host) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            // Orders are believed only from the store that this node belongs to, under its name.
            let begun = tokio::select! {
                begun = keeper.begin() => begun,
                () = shutdown.cancelled() => return Ok(()),
            };
            begun.map_err(|error| error.into_agent_error(&host.node))?;
            pods.wake_all();
            let mut running = std::pin::pin!(runtime.run());
            tokio::select! {
                result = &mut running => result.map_err(AgentError::from),
                error = keeper.run() => {
                    // The other agent has the name: what this one has to say counts no more.
                    handle.stop();
                    let _ = running.await;
                    Err(error.into_agent_error(&host.node))
                }
            }
        };
        let done = CancellationToken::new();
        let collecting = crate::collect::run(host.clone(), done.clone());
        let mut collecting = AbortOnDropHandle::new(tokio::spawn(collecting));
        let tidying = AbortOnDropHandle::new(tokio::spawn(tidy(pods.told())));
        let result = tokio::select! {
            result = work => result,
            never = attend(&host, &pods, &gates) => match never {},
        };
        drop(tidying);
        done.cancel();
        // Whoever comes next can have the directory when this has returned.
        let _ = tokio::time::timeout(GRACE, &mut collecting).await;
        drop(store);
        pods.leave().await;
        result
    }
}

/// Gives back what the start needed, and what each burst of work did.
async fn tidy(told: Arc<Told>) {
    loop {
        tokio::time::sleep(TIDY).await;
        let give_back = || {
            crate::allocator::give_back();
            crate::pages::give_back();
        };
        // One that panics has nothing to say.
        let _ = tokio::task::spawn_blocking(give_back).await;
        told.news().await;
    }
}

/// Keeps what may be begun up to date. For the pods that may be from now on, their orders are
/// looked at anew.
async fn attend(host: &Host, pods: &Pods, gates: &BootGates) -> Infallible {
    if gates.is_empty() {
        return std::future::pending().await;
    }
    loop {
        host.environment.sleep(GATES).await;
        let files = gates.clone();
        let looked = tokio::task::spawn_blocking(move || files.look()).await;
        if let Ok(gate) = looked
            && host.circumstances.gate(gate)
        {
            tracing::info!(node = host.node, "what may be begun on this node changed");
            pods.wake_all();
        }
    }
}

impl NodeError {
    fn into_agent_error(self, node: &str) -> AgentError {
        let Self::NameInUse { other } = self;
        AgentError::NameInUse {
            node: node.to_owned(),
            other,
        }
    }
}
