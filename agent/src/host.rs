//! What all pods of a node share: where things are, and who does what for them.

use std::path::PathBuf;
use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_kinds::Resources;

use crate::artifacts::Artifacts;
use crate::auth::{UserPolicy, Users};
use crate::authority::{AnyDeployment, Authority};
use crate::cgroup::{self, CgroupError, Cgroups, Group};
use crate::collect::Advance;
use crate::files::FileError;
use crate::health::{ProbeFiles, Prober};
use crate::hoist;
use crate::hooks::Hooks;
use crate::launch::{Mixed, Shims, Supervisor};
use crate::layout::{Layout, LayoutError};
use crate::name::PodName;
use crate::port_book::PortBook;
use crate::secrets::Secrets;
use crate::situation::Circumstances;
use crate::state::PodRecord;
use crate::version::Version;

/// How many processes and threads a program may have that says nothing about it: a fork bomb must
/// not take the machine with it.
const PIDS: u32 = 4096;

/// How a node runs pods.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostConfig {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The node's name.
    pub node: String,
    /// The address that pods' ports are reached under.
    pub host_ip: String,
    /// Time and chance.
    pub environment: Environment,
    /// The supervisor's program: by default `platctrl-shim` beside the running program.
    pub shim: Option<PathBuf>,
    /// Where `artifact:` locations are fetched from.
    pub server: Option<hoist::Server>,
    /// The directories that `file:` locations may lie under.
    pub file_dirs: Vec<PathBuf>,
    /// How servers of artifacts are reached.
    pub network: hoist::Network,
    /// When artifacts that nobody uses are removed.
    pub water: hoist::Water,
    /// Where pods' secrets come from: `<namespace>/<file>` in it, which only root may touch. By
    /// default `/etc/platctrl/secrets`.
    pub secrets_dir: PathBuf,
    /// Run artifacts that come without a digest.
    pub allow_unverified: bool,
    /// Which users pods may run as.
    pub users: UserPolicy,
    /// What checks over TLS show and believe.
    pub probes: ProbeFiles,
    /// Where the node's hooks are, which has to be there: by default `hooks` in the data directory,
    /// if there is one.
    pub hooks: Option<PathBuf>,
    /// What decides what may run here, beyond the users it may run as: by default everything that
    /// the store says.
    pub authority: Arc<dyn Authority>,
    /// runit's `runsv`, which then supervises the programs of pods that are new on this node. By
    /// default a shim does. Programs that are here stay with what has them.
    pub runsv: Option<PathBuf>,
    /// What supervises programs, in place of both.
    pub supervisor: Option<Arc<dyn Supervisor>>,
    /// How the helper processes that fetch and unpack are started: by default this program, which
    /// has to hand [`hoist::child::SUBCOMMAND`] to [`hoist::child::main`].
    pub helper: Option<hoist::ChildCommand>,
}

impl HostConfig {
    /// The defaults: no server, no directories, digests required.
    pub fn new(data_dir: impl Into<PathBuf>, node: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            node: node.into(),
            host_ip: "127.0.0.1".into(),
            environment: Environment::system(),
            shim: None,
            server: None,
            file_dirs: Vec::new(),
            network: hoist::Network::default(),
            water: hoist::Water::default(),
            secrets_dir: "/etc/platctrl/secrets".into(),
            allow_unverified: false,
            users: UserPolicy::default(),
            probes: ProbeFiles::default(),
            hooks: None,
            authority: Arc::new(AnyDeployment),
            runsv: None,
            supervisor: None,
            helper: None,
        }
    }
}

/// Why a node cannot run pods.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The artifact store cannot be used; another process may have it.
    #[error(transparent)]
    Artifacts(#[from] hoist::Error),
    /// There is no supervisor to start.
    #[error("the supervisor `platctrl-shim` is not at {}: install it beside the program that runs the agent", path.display())]
    NoShim {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is no `runsv`.
    #[error("{} is no program: name runit's runsv by its whole path, or let shims supervise", path.display())]
    NoRunsv {
        /// Where it was to be.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What all workers of a node share.
#[derive(Debug)]
pub struct Host {
    pub(crate) layout: Layout,
    pub(crate) node: String,
    pub(crate) host_ip: String,
    pub(crate) environment: Environment,
    pub(crate) artifacts: Artifacts,
    pub(crate) users: Users,
    pub(crate) cgroups: Cgroups,
    pub(crate) supervisor: Arc<dyn Supervisor>,
    /// What runs scripts and hooks, which end.
    pub(crate) errands: Arc<dyn Supervisor>,
    pub(crate) hooks: Hooks,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) secrets: Secrets,
    pub(crate) ports: PortBook,
    pub(crate) water: hoist::Water,
    /// What is to be there in advance.
    pub(crate) advance: Advance,
    pub(crate) prober: Prober,
    /// The supervisor's program, which also runs commands beside a pod's programs.
    pub(crate) shim: PathBuf,
    pub(crate) circumstances: Circumstances,
}

impl Host {
    /// Prepares the data directory and takes it for this process. Blocks, briefly.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn open(config: HostConfig) -> Result<Self, HostError> {
        let layout = Layout::prepare(&config.data_dir)?;
        let mut store = hoist::Config::new(layout.data_dir());
        store.allowed_directories = config.file_dirs;
        store.server = config.server;
        store.network = config.network;
        if let Some(helper) = config.helper {
            store.child = helper;
        }
        // Takes the lock: from here on no other agent works in this directory.
        let store = hoist::Store::open(store)?;
        let shim = config.shim.map_or_else(shim_beside_this_program, Ok)?;
        if !shim.is_file() {
            return Err(HostError::NoShim { path: shim });
        }
        let runsv = config.runsv.as_deref();
        if let Some(path) = runsv.filter(|path| !path.is_absolute() || !path.is_file()) {
            return Err(HostError::NoRunsv { path: path.into() });
        }
        let shim = layout.install_shim(&shim)?;
        let shims: Arc<dyn Supervisor> = Arc::new(Shims::new(shim.clone()));
        let supervisor = config
            .supervisor
            .unwrap_or_else(|| Arc::new(Mixed::new(&shim, runsv)));
        let hooks = match config.hooks {
            Some(named) => Hooks::named(named),
            None => Hooks::new(layout.data_dir().join("hooks")),
        };
        Ok(Self {
            users: Users::open(layout.data_dir(), config.users),
            cgroups: Cgroups::detect(&cgroup::tag(layout.data_dir()))
                .with_disk_of(layout.data_dir()),
            secrets: Secrets::new(config.secrets_dir, &layout),
            artifacts: Artifacts::new(store, config.allow_unverified),
            supervisor,
            errands: shims,
            hooks,
            authority: config.authority,
            ports: known_ports(&layout)?,
            prober: Prober::new(config.environment.clone()).with_tls(config.probes),
            shim,
            circumstances: Circumstances::default(),
            water: config.water,
            advance: Advance::default(),
            node: config.node,
            host_ip: config.host_ip,
            environment: config.environment,
            layout,
        })
    }

    /// Where everything is.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes the cgroups of a program and sets its limits.
    pub(crate) fn group(
        &self,
        name: &PodName,
        program: &str,
        resources: &Resources,
    ) -> Result<Group, CgroupError> {
        let mut limits = resources.clone();
        limits.pids.get_or_insert(PIDS);
        let pod = name.directory();
        let mut group = self.cgroups.create(&pod, program, &limits)?;
        // Nobody asked for that one.
        if resources.pids.is_none() {
            group.unenforced.retain(|why| !why.starts_with("pids:"));
        }
        Ok(group)
    }

    /// Whether the programs of this version get a `/tmp` of their own: only root can give it.
    pub(crate) fn private_tmp(&self, version: &Version) -> bool {
        use rustix::thread::{CapabilitySet, capabilities};
        let may = || {
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
        };
        !version.spec.shared_tmp && rustix::process::geteuid().is_root() && may()
    }

    /// How often the kernel ended a process of a program for want of memory.
    pub(crate) fn oom_kills(&self, name: &PodName, program: &str) -> u64 {
        self.cgroups
            .oom_kills(&self.cgroups.group(&name.directory(), program))
    }

    /// Removes the cgroups of a pod. Blocks until nothing lives in them, for some seconds at most.
    pub(crate) fn remove_groups(&self, name: &PodName) -> Result<(), CgroupError> {
        self.cgroups.remove_pod(&name.directory())
    }
}

/// The ports that pods on this node have. Known before any pod is looked after: so none is given
/// away that another pod, whose turn comes later, had before the machine went down.
fn known_ports(layout: &Layout) -> Result<PortBook, FileError> {
    let book = PortBook::default();
    for pod in layout.pods()? {
        if let Some(record) = PodRecord::look(&layout.pod(&pod).record()) {
            let versions = record.current.iter().chain(&record.next);
            book.set(&pod, versions.flat_map(|it| it.ports.values().copied()));
        }
    }
    Ok(book)
}

fn shim_beside_this_program() -> Result<PathBuf, HostError> {
    let failed = |error| FileError::new("find", std::path::Path::new("/proc/self/exe"), error);
    let program = std::env::current_exe().map_err(failed)?;
    Ok(program.with_file_name("platctrl-shim"))
}
