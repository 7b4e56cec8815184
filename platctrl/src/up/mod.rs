//! `platctrl up`: server, controllers and agent in one process on one machine.
//!
//! They meet only in the store, as they would on many machines. When one of them ends, all end;
//! pods run on in any case, held by their supervisors, and are found again by the next `up`.

mod admission;
mod progress;

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use platctrl_agent::{AgentHandle, HostConfig, hoist};
use platctrl_framework::environment::Environment;
use platctrl_framework::root::RootedStore;
use platctrl_framework::store::Store;

use crate::api::Api;
use crate::cli::Setting;
use crate::error::{Failure, Result};
use crate::output;
use crate::place::{self, Lock, Pointer};
use crate::roles::admission::Admitted;
use crate::roles::listen::{ListenFlags, Missing};
use crate::roles::{self, BeginFlags, Parts, Signals};
use crate::server::ServerConfig;

pub(crate) use admission::{has_pods, host_name};

/// How long an orderly end may take before what is left is cut off.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long the last look at the pods may take.
const GLANCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// The name of this machine's node [default: the host name]
    #[arg(long)]
    node: Option<String>,
    /// Manifests to apply once it runs: a file, a directory of files, or - for standard input
    #[arg(short, long, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Say when everything is ready (with --filename: everything in it), and where it answers
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    begin: BeginFlags,
    #[command(flatten)]
    listen: ListenFlags,
}

pub(crate) fn run(args: &UpArgs, setting: &Setting) -> Result<()> {
    let data_dir = setting.data_dir()?;
    // Wrong manifests are found before anything is set up.
    if !args.filename.is_empty() && !args.filename.iter().any(|name| name.as_os_str() == "-") {
        crate::manifest::Manifests::read(&args.filename)?.check()?;
    }
    args.begin.check()?;
    let data_dir = make_data_dir(&data_dir)?;
    let lock = take(&data_dir)?;
    platctrl_agent::keep_little_memory();
    crate::log::to_file(&data_dir, "up");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(up(args, &data_dir));
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    outcome
}

/// Takes a data directory for this process alone.
pub(crate) fn take(data_dir: &Path) -> Result<Lock> {
    Lock::take(data_dir)
        .map_err(|error| unusable(data_dir, &error))?
        .map_err(|busy| in_use(data_dir, busy.pid))
}

fn unusable(data_dir: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::failed(format!("cannot use {}: {error}", data_dir.display()));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => failure
            .hint("it belongs to another user: be that one, or choose another with --data-dir"),
        _ => failure.hint("choose another with --data-dir"),
    }
}

fn in_use(data_dir: &Path, pid: Option<u32>) -> Failure {
    let who = pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    );
    Failure::failed(format!(
        "platctrl runs on {} already: {who}",
        data_dir.display()
    ))
    .hint(format!(
        "talk to it with `platctrl --data-dir {0} get pods`, or choose another --data-dir",
        data_dir.display()
    ))
}

/// Makes the data directory, when pod users can get to it.
pub(crate) fn make_data_dir(data_dir: &Path) -> Result<PathBuf> {
    let failed = |error: std::io::Error| unusable(data_dir, &error);
    if rustix::process::geteuid().is_root() {
        let closed = |parent: &&Path| {
            std::fs::metadata(parent).is_ok_and(|it| it.permissions().mode() & 0o001 == 0)
        };
        if let Some(closed) = data_dir.ancestors().skip(1).filter(closed).last() {
            let message = format!(
                "{} cannot be entered by pod users, and the data directory {} lies below it",
                closed.display(),
                data_dir.display()
            );
            return Err(Failure::failed(message).hint(format!(
                "`chmod o+x {}`, or choose another --data-dir, as /var/lib/platctrl",
                closed.display()
            )));
        }
    }
    if let Some(parent) = data_dir.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::DirBuilder::new().mode(0o711).create(data_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed)?,
    }
    // One name for it everywhere, whatever links led here.
    data_dir.canonicalize().map_err(failed)
}

async fn up(args: &UpArgs, data_dir: &Path) -> Result<()> {
    let mut signals = Signals::new()?;
    let environment = Environment::system();
    let embedded = admission::open_store(data_dir, &environment).await?;
    let store: Arc<dyn Store> = Arc::new(RootedStore::new(embedded.clone()));
    let node = admission::node_name(&store, &environment, args.node.as_deref()).await?;
    let kinds = roles::kinds();
    roles::admission::register(&*store, &kinds).await?;
    roles::admission::admit(&store, &environment, &node, Admitted::here()).await?;

    let mut parts = Parts::new();
    // The agent first: it says what is wrong with the machine before anything listens.
    let mut host = HostConfig::new(data_dir, &node);
    host.environment = environment.clone();
    host.server = Some(hoist::Server::Unix(place::socket(data_dir)));
    args.begin.set(&mut host);
    let agent = parts
        .agent(host, Arc::clone(&store), args.begin.gates())
        .await?;
    let mut config = ServerConfig::new(Arc::clone(&store), kinds, data_dir);
    config.environment = environment.clone();
    config.maintained = Some(embedded);
    config.node = Some(node.clone());
    let listen = &args.listen;
    config.max_rate = listen.max_rate;
    let network = listen.open(data_dir, &store, &environment, Missing::Make);
    let network = network.await?;
    config.runtimes = vec![parts.controllers(store.clone(), environment, data_dir)];
    parts.server(data_dir, config, network)?;
    let api = Api::unix(place::socket(data_dir));
    let pointer = Pointer {
        pid: std::process::id(),
        data_dir: data_dir.to_owned(),
        socket: place::socket(data_dir),
        node: node.clone(),
    };
    let other = pointer.write();
    output::note(format_args!(
        "platctrl is up: node {node}, data directory {}, process {}",
        data_dir.display(),
        std::process::id()
    ));
    if let Some(other) = other {
        output::note(format_args!(
            "another platctrl runs on {}: reach this one with --data-dir {}",
            other.data_dir.display(),
            data_dir.display()
        ));
    }
    if !rustix::process::geteuid().is_root() {
        output::note(
            "not root: pods run as the current user, without a user per app and without limits",
        );
    }
    let outcome = tokio::select! {
        () = signals.any() => Ok(()),
        failure = parts.ended() => Err(failure),
        failure = attend(args, &api, &agent) => Err(failure),
    };
    let pods = tokio::time::timeout(GLANCE, progress::running(&api))
        .await
        .ok()
        .flatten();
    let stopped = tokio::select! {
        () = parts.stop() => true,
        // Asked twice: at once.
        () = signals.any() => false,
        () = tokio::time::sleep(PATIENCE) => false,
    };
    if !stopped {
        tracing::warn!("not everything ended in order");
    }
    let _ = std::fs::remove_file(place::socket(data_dir));
    Pointer::remove(data_dir);
    drop(parts);
    say_goodbye(data_dir, pods);
    outcome
}

/// Applies what was given and shows what becomes of it; then only waits. Ends with a failure.
async fn attend(args: &UpArgs, api: &Api, agent: &AgentHandle) -> Failure {
    match progress::follow(api, agent, &args.filename, args.wait).await {
        Ok(()) => {
            output::note("Ctrl-C stops platctrl; pods keep running");
            std::future::pending().await
        }
        Err(failure) => failure,
    }
}

fn say_goodbye(data_dir: &Path, pods: Option<usize>) {
    let dir = data_dir.display();
    let what = match pods {
        Some(0) => "no pods were running".to_owned(),
        Some(1) => "1 pod keeps running".to_owned(),
        Some(count) => format!("{count} pods keep running"),
        None => "pods keep running".to_owned(),
    };
    output::note(format_args!(
        "platctrl stopped; {what}\n  to look after them again:  platctrl up --data-dir {dir}\n  to stop and remove all:    platctrl uninstall --data-dir {dir} --yes"
    ));
}
