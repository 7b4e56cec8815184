//! Processes that have one part of platctrl each, for more than one machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_agent::health::ProbeFiles;
use platctrl_agent::{BootGates, DeployRules, HostConfig, hoist};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::check_name;
use platctrl_framework::model::identity::{self, AnchorState, IdentityError};
use platctrl_framework::root::RootedStore;
use platctrl_framework::store::Store;

use super::link::LinkFlags;
use super::listen::{ListenFlags, Missing};
use super::{Parts, Signals, admission, kinds};
use crate::cli::Setting;
use crate::error::{Code, Failure, Result};
use crate::server::ServerConfig;
use crate::store::{StoreFlags, StoreUrl};
use crate::{output, place};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    listen: ListenFlags,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ControllersArgs {
    #[command(flatten)]
    store: StoreFlags,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// The name that this machine was admitted under [default: the host name]
    #[arg(long)]
    node: Option<String>,
    /// The address that pods' ports are reached under
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    #[command(flatten)]
    link: LinkFlags,
    #[command(flatten)]
    begin: BeginFlags,
    // Last: its heading is that of all that follows.
    #[command(flatten)]
    store: StoreFlags,
}

/// What holds for an agent, alone or in `up`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BeginFlags {
    /// A directory that `file:` locations may lie under; may be repeated
    #[arg(long, value_name = "DIR")]
    file_dir: Vec<PathBuf>,
    /// The directory of this node's hooks [default: hooks in the data directory]
    #[arg(long, value_name = "DIR")]
    hooks: Option<PathBuf>,
    /// Where pods' secrets come from: NAMESPACE/FILE in it, which only root may touch
    #[arg(long, value_name = "DIR", default_value = "/etc/platctrl/secrets")]
    secrets_dir: PathBuf,
    /// Begin no pod while this file is missing; what runs goes on
    #[arg(long, value_name = "FILE")]
    require_file: Option<PathBuf>,
    /// While this file is there and not empty, begin only the pods in it: one NAMESPACE/NAME a line
    #[arg(long, value_name = "FILE")]
    pod_whitelist: Option<PathBuf>,
    /// Have this `runsv` of runit supervise pods that are new here, not platctrl-shim
    #[arg(long, value_name = "FILE")]
    runsv: Option<PathBuf>,
    /// The authorities that HTTPS checks of pods believe (PEM) [default: anybody]
    #[arg(long, value_name = "FILE")]
    health_ca: Option<PathBuf>,
    /// The certificate that HTTPS checks of pods show (PEM)
    #[arg(long, value_name = "FILE", requires = "health_key")]
    health_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "health_cert")]
    health_key: Option<PathBuf>,
    /// The node's own rules of what may run on it; whatever none allows is refused
    #[arg(long, value_name = "FILE", env = "PLATCTRL_DEPLOY_RULES")]
    deploy_rules: Option<PathBuf>,
}

impl BeginFlags {
    /// What the flags say of a node.
    pub(crate) fn set(&self, host: &mut HostConfig) {
        host.file_dirs.clone_from(&self.file_dir);
        host.hooks.clone_from(&self.hooks);
        host.secrets_dir.clone_from(&self.secrets_dir);
        host.probes = self.probes();
        host.runsv.clone_from(&self.runsv);
        if let Some(file) = &self.deploy_rules {
            host.authority = Arc::new(DeployRules::in_file(file));
        }
    }

    pub(crate) fn gates(&self) -> BootGates {
        BootGates {
            require_file: self.require_file.clone(),
            whitelist: self.pod_whitelist.clone(),
        }
    }

    /// Files that were named have to be there: without them the agent would do less than it was
    /// told to, and nobody would notice.
    pub(crate) fn check(&self) -> Result<()> {
        named_directory("--hooks", self.hooks.as_deref())?;
        for dir in &self.file_dir {
            named_directory("--file-dir", Some(dir))?;
        }
        let named = [
            ("--health-ca", &self.health_ca),
            ("--health-cert", &self.health_cert),
            ("--health-key", &self.health_key),
            ("--deploy-rules", &self.deploy_rules),
        ];
        for (flag, file) in named {
            let Some(file) = file else { continue };
            std::fs::File::open(file).map_err(|error| {
                Failure::failed(format!("{flag} {}: {error}", file.display()))
                    .hint(format!("put the file there, or leave {flag} out"))
            })?;
        }
        Ok(())
    }

    fn probes(&self) -> ProbeFiles {
        ProbeFiles {
            ca: self.health_ca.clone(),
            identity: self.health_cert.clone().zip(self.health_key.clone()),
        }
    }
}

/// A directory that a flag names has to be one.
fn named_directory(flag: &str, dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    std::fs::read_dir(dir).map(drop).map_err(|error| {
        Failure::failed(format!("{flag} {}: {error}", dir.display()))
            .hint(format!("make the directory, or leave {flag} out"))
    })
}

/// Opens a store that is in use elsewhere too, and checks that it is one.
async fn open(flags: &StoreFlags, environment: &Environment) -> Result<Arc<dyn Store>> {
    let url = flags.url()?;
    if let StoreUrl::Embedded(_) = url {
        return Err(Failure::usage(format!(
            "{url} is open in one process at a time, so nobody else could work on it"
        ))
        .hint("`platctrl up` has everything in one process; for several use etcd or Consul"));
    }
    let store = flags.open(environment).await?;
    let (anchor, _) = identity::open(&*store).await.map_err(|error| match error {
        IdentityError::Uninitialised => Failure::new(Code::Unreachable, error.to_string())
            .hint(format!("`platctrl store init {url}`")),
        IdentityError::Store(_) => Failure::new(Code::Unreachable, error.to_string()),
        error => Failure::failed(error),
    })?;
    if anchor.state == AnchorState::Sealed {
        return Err(Failure::failed(format!(
            "the store {} is sealed: it was copied elsewhere",
            anchor.store_id
        ))
        .hint(format!(
            "use the copy; or, if that is not in use, `platctrl store unseal {url}`"
        )));
    }
    output::note(format_args!("store {} at {url}", anchor.store_id));
    Ok(Arc::new(RootedStore::new(store)))
}

/// The data directory of a process that stays, where it also writes what it says.
fn data_dir(setting: &Setting, process: &str) -> Result<PathBuf> {
    let dir = crate::up::make_data_dir(&setting.data_dir()?)?;
    crate::log::to_file(&dir, process);
    Ok(dir)
}

/// Runs until a signal, or until a part ends.
async fn attend(mut parts: Parts, mut signals: Signals, what: &str) -> Result<()> {
    output::note(format_args!(
        "platctrl {what} runs: process {}",
        std::process::id()
    ));
    let outcome = tokio::select! {
        () = signals.any() => Ok(()),
        failure = parts.ended() => Err(failure),
    };
    tokio::select! {
        () = parts.stop() => {}
        // Asked twice: at once.
        () = signals.any() => {}
        () = tokio::time::sleep(crate::up::PATIENCE) => {
            tracing::warn!("not everything ended in order");
        }
    }
    output::note(format_args!("platctrl {what} stopped"));
    outcome
}

pub(crate) async fn server(args: &ServerArgs, setting: &Setting) -> Result<()> {
    let signals = Signals::new()?;
    let environment = Environment::system();
    let store = open(&args.store, &environment).await?;
    admission::register(&*store, &kinds()).await?;
    let data_dir = data_dir(setting, "server")?;
    let listen = &args.listen;
    let network = listen.open(&data_dir, &store, &environment, Missing::Refuse);
    let network = network.await?;
    let mut parts = Parts::new();
    let mut config = ServerConfig::new(store, kinds(), &data_dir);
    config.environment = environment;
    config.max_rate = listen.max_rate;
    parts.server(&data_dir, config, network)?;
    let outcome = attend(parts, signals, "server").await;
    let _ = std::fs::remove_file(place::socket(&data_dir));
    outcome
}

pub(crate) async fn controllers(args: &ControllersArgs, setting: &Setting) -> Result<()> {
    let signals = Signals::new()?;
    let environment = Environment::system();
    let store = open(&args.store, &environment).await?;
    admission::register(&*store, &kinds()).await?;
    let mut parts = Parts::new();
    let data_dir = data_dir(setting, "controllers")?;
    let runtime = parts.controllers(store, environment, &data_dir);
    parts.insight(&data_dir, runtime);
    attend(parts, signals, "controllers").await
}

pub(crate) async fn agent(args: &AgentArgs, setting: &Setting) -> Result<()> {
    let signals = Signals::new()?;
    let environment = Environment::system();
    let node = match &args.node {
        Some(node) => node.clone(),
        None => crate::up::host_name()?,
    };
    check_name("node name", &node).map_err(|error| Failure::usage(error.to_string()))?;
    args.begin.check()?;
    let data_dir = crate::up::make_data_dir(&setting.data_dir()?)?;
    // Before the store is asked: that may take for ever, and another agent may be at work here.
    let _lock = crate::up::take(&data_dir)?;
    crate::log::to_file(&data_dir, "agent");
    let store = agent_store(&args.store, &environment, &data_dir).await?;
    let mut host = HostConfig::new(&data_dir, node);
    host.environment = environment;
    host.host_ip.clone_from(&args.address);
    host.server = Some(artifacts_from(setting, &data_dir)?);
    let mut parts = Parts::new();
    args.begin.set(&mut host);
    let link = args.link.config(&host.node, setting, &data_dir)?;
    let environment = host.environment.clone();
    let agent = parts.agent(host, Arc::clone(&store), args.begin.gates());
    let agent = agent.await?;
    parts.link(&agent, link, store, environment);
    attend(parts, signals, "agent").await
}

/// The server that artifacts are fetched from: the one that was named, else this machine's.
fn artifacts_from(setting: &Setting, data_dir: &Path) -> Result<hoist::Server> {
    if setting.given_server().is_some_and(crate::cli::is_remote)
        && let Some(remote) = setting.remote()?
    {
        let token = remote.token.map(|token| token.reveal().to_owned());
        let server = hoist::TlsServer::new(&remote.host, remote.port, remote.ca, token);
        return Ok(hoist::Server::Tls(server));
    }
    let socket = place::server(setting.given_server(), Some(data_dir))?;
    Ok(hoist::Server::Unix(socket))
}

/// The store of an agent. An agent that has pods looks after them also while nobody answers.
async fn agent_store(
    flags: &StoreFlags,
    environment: &Environment,
    data_dir: &Path,
) -> Result<Arc<dyn Store>> {
    match open(flags, environment).await {
        Err(failure) if failure.code == Code::Unreachable && crate::up::has_pods(data_dir) => {
            output::note(format_args!(
                "warning: {failure}; the pods of this machine are kept running meanwhile"
            ));
            Ok(Arc::new(RootedStore::new(flags.open_later(environment)?)))
        }
        opened => opened,
    }
}
