//! What platctrl is made of, and the processes that have one part each: `platctrl server`,
//! `platctrl controllers`, `platctrl agent`.
//!
//! The parts meet only in the store. [`up`](crate::up) has all of them in one process.

pub(crate) mod admission;
pub(crate) mod desk;
mod link;
pub(crate) mod listen;
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_agent::{Agent, AgentConfig, AgentHandle, BootGates, HostConfig, hoist};
use platctrl_controllers::{
    daemon_set, disruption_budget, node_lifecycle, replication_controller, rolling_update,
};
use platctrl_framework::controller::{Runtime, RuntimeHandle};
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::{Failsafe, Failsafes};
use platctrl_framework::model::Kinds;
use platctrl_framework::store::Store;
use platctrl_kinds::{
    DaemonSet, DisruptionBudget, Node, Pod, ReplicationController, Role, RoleBinding, RollingUpdate,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Result};
use crate::server::node::link::{Link, Place};
use crate::server::node::{Commands, Node as Answers};
use crate::server::{self, Network, Server, ServerConfig};
use crate::{output, place};
use listen::Listening;

pub(crate) use process::{
    AgentArgs, BeginFlags, ControllersArgs, ServerArgs, agent, controllers, server,
};

/// The kinds that platctrl itself knows.
pub(crate) fn kinds() -> Kinds {
    Kinds::new()
        .with::<Node>()
        .with::<Pod>()
        .with::<ReplicationController>()
        .with::<RollingUpdate>()
        .with::<DisruptionBudget>()
        .with::<DaemonSet>()
        .with::<Failsafe>()
        .with::<Role>()
        .with::<RoleBinding>()
}

/// The signals that end a process in order.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        Self::listen()
            .map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))
    }

    fn listen() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [a, b, c] = kinds.map(signal);
        Ok(Self([a?, b?, c?]))
    }

    pub(crate) async fn any(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

/// Who may ask a node what.
#[derive(Debug)]
pub(crate) struct LinkConfig {
    pub(crate) node: String,
    pub(crate) data_dir: PathBuf,
    /// The servers that it calls.
    pub(crate) places: Vec<Place>,
    pub(crate) commands: Commands,
}

/// What runs in a process.
pub(crate) struct Parts {
    tasks: JoinSet<Result<(), String>>,
    stop: CancellationToken,
}

impl Parts {
    pub(crate) fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    fn run<E: std::fmt::Display>(
        &mut self,
        what: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            let ended = part.await;
            ended.map_err(|error| format!("the {what} ended: {error}"))
        });
    }

    /// Starts to look after the pods of a node.
    pub(crate) async fn agent(
        &mut self,
        mut host: HostConfig,
        store: Arc<dyn Store>,
        gates: BootGates,
    ) -> Result<AgentHandle> {
        host.network = hoist::Network::from_env();
        let data_dir = host.data_dir.clone();
        let mut config = AgentConfig::new(host, store);
        config.gates = gates;
        let agent = Agent::new(config).await.map_err(Failure::failed)?;
        let handle = agent.handle();
        let (desk, told) = (
            desk::bind(&data_dir).map_err(Failure::failed)?,
            handle.clone(),
        );
        let stop = self.stop.clone().cancelled_owned();
        self.run("agent's socket", desk::serve(desk, told, stop));
        let stop = self.stop.clone();
        self.run("agent", async move { agent.run(stop).await });
        Ok(handle)
    }

    /// Lets servers ask this node for logs, commands and what is used.
    pub(crate) fn link(
        &mut self,
        agent: &AgentHandle,
        link: LinkConfig,
        store: Arc<dyn Store>,
        environment: Environment,
    ) {
        let stop = self.stop.clone();
        let LinkConfig {
            node,
            data_dir,
            places,
            commands,
        } = link;
        let answers = Answers::new(data_dir, store, environment.clone(), commands, stop.clone());
        let link = Link {
            node,
            instance: agent.instance().to_owned(),
            answers,
            environment,
        };
        self.run("agent's streams", link.keep(places, stop));
    }

    /// Starts to serve the API on the socket of a data directory, and on the network.
    pub(crate) fn server(
        &mut self,
        data_dir: &Path,
        config: ServerConfig,
        network: Option<(Network, Listening)>,
    ) -> Result<()> {
        let listener = server::bind(&place::socket(data_dir)).map_err(Failure::failed)?;
        let (server, stop) = (Server::new(config), self.stop.clone());
        if let Some((network, listening)) = network {
            let (server, stop) = (server.clone(), stop.clone());
            self.run("API server on the network", async move {
                let served = server.serve_network(network, stop.cancelled_owned()).await;
                drop(listening);
                served
            });
        }
        self.run("API server", async move {
            server.serve(listener, stop.cancelled_owned()).await
        });
        Ok(())
    }

    /// Starts platctrl's controllers. Several processes may: one of them leads.
    /// What they saw is remembered below `data_dir`, where a restored store cannot reach it.
    pub(crate) fn controllers(
        &mut self,
        store: Arc<dyn Store>,
        environment: Environment,
        data_dir: &Path,
    ) -> RuntimeHandle {
        let memory = data_dir.join("failsafe/controllers.json");
        let limits = node_lifecycle::Limits::default();
        let lifecycle = node_lifecycle::controller(store.clone(), environment.clone(), limits);
        let controllers = Runtime::new(store, environment)
            .controller(replication_controller::controller())
            .controller(daemon_set::controller())
            .cached(platctrl_controllers::cached_pods())
            .controller(rolling_update::controller())
            .controller(disruption_budget::controller())
            .controller(lifecycle)
            .kind::<Node>()
            .kind::<Failsafe>()
            .failsafes(Failsafes::new().keep_chain().remember_in(memory))
            .reap()
            .elect_leader("controllers")
            .shutdown_on(self.stop.clone().cancelled_owned());
        let handle = controllers.handle();
        self.run("controllers", controllers.run());
        handle
    }

    /// Tells on a socket of a data directory what controllers do.
    pub(crate) fn insight(&mut self, data_dir: &Path, runtime: RuntimeHandle) {
        let path = place::controllers_socket(data_dir);
        let listener = match server::bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                // Another process of this directory tells of itself there.
                output::note(format_args!("nobody can ask these controllers: {error}"));
                return;
            }
        };
        let stop = self.stop.clone().cancelled_owned();
        self.run("controllers' socket", async move {
            let served = server::serve_insight(listener, runtime, kinds(), stop).await;
            let _ = std::fs::remove_file(path);
            served
        });
    }

    /// Waits until one of them ends, which none should.
    pub(crate) async fn ended(&mut self) -> Failure {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => Failure::failed("a part of platctrl ended by itself"),
            Some(Ok(Err(message))) => Failure::failed(message),
            Some(Err(error)) => Failure::failed(format!("a part of platctrl broke: {error}")),
            None => Failure::failed("nothing runs"),
        }
    }

    /// Ends them all in order.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(message)) => tracing::warn!("{message}"),
                Err(error) => tracing::error!(%error, "a part of platctrl broke"),
            }
        }
    }
}
