//! Verbs about pods of this machine, which need no server: `restart`, `stop`, `start` ask the
//! agent, `exec` runs beside a pod's program on this terminal.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use http::Method;
use platctrl_agent::{BesideError, InspectedPod, PodName};

use super::exec::ExecArgs;
use super::{NamespaceFlag, Setting};
use crate::api::{Api, segment};
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::place::Pointer;
use crate::roles::desk;

#[derive(Debug, clap::Args)]
pub(crate) struct ControlArgs {
    /// A pod on this machine: pod/NAME or NAME; the beginning of a name will do
    #[arg(value_name = "pod/NAME")]
    pod: String,
    #[command(flatten)]
    namespace: NamespaceFlag,
    /// Do not wait until the controllers grant it: fewer pods than promised may be healthy
    #[arg(long)]
    now: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// A pod on this machine: pod/NAME or NAME; the beginning of a name will do
    #[arg(value_name = "pod/NAME")]
    pod: String,
    #[command(flatten)]
    namespace: NamespaceFlag,
}

/// The data directory that is meant: the one that was named, else that of the `up` that runs here.
pub(super) fn data_dir(setting: &Setting) -> Result<PathBuf> {
    match (setting.given_data_dir(), Pointer::read()) {
        (None, Some(running)) => Ok(running.data_dir),
        _ => setting.data_dir(),
    }
}

/// What is on this machine.
pub(super) fn pods(data_dir: &Path) -> Result<Vec<InspectedPod>> {
    let other = "name the data directory of this machine's agent with --data-dir";
    match std::fs::symlink_metadata(data_dir.join("state")) {
        Err(error) if error.kind() == ErrorKind::NotFound && data_dir.is_dir() => {
            let message = format!("no agent has worked in {}", data_dir.display());
            return Err(Failure::failed(message).hint(other));
        }
        _ => {}
    }
    platctrl_agent::inspect(data_dir).map_err(|error| {
        let failure = Failure::failed(&error);
        match error.is_denied() {
            true => failure.hint("be root, or the user that the agent runs as: use sudo"),
            false => failure.hint(other),
        }
    })
}

/// The pod that a word names.
pub(super) fn find(data_dir: &Path, word: &str, namespace: &str) -> Result<PodName> {
    let name = match word.split_once('/') {
        None => word,
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => {
            return Err(Failure::usage(format!("`{kind}` has no programs: pods do")));
        }
    };
    let all = pods(data_dir)?;
    let here = all.iter().map(|pod| &pod.name);
    let here: Vec<_> = here.filter(|pod| pod.namespace() == namespace).collect();
    if let Some(exact) = here.iter().find(|pod| pod.name() == name) {
        return Ok((*exact).clone());
    }
    let begin: Vec<_> = here
        .iter()
        .filter(|pod| pod.name().starts_with(name))
        .collect();
    match begin.as_slice() {
        [one] => Ok((**one).clone()),
        [] => Err(Failure::new(
            Code::NotFound,
            format!("pod {namespace}/{name} is not on this machine"),
        )
        .hint("`platctrl get pods -A` says which node each is on; `platctrl node inspect` what is here")),
        several => {
            let names: Vec<_> = several.iter().map(|pod| pod.name()).collect();
            Err(Failure::usage(format!(
                "`{name}` begins several names: {}",
                names.join(", ")
            )))
        }
    }
}

async fn ask(
    setting: &Setting,
    pod: &str,
    namespace: &str,
    verb: &str,
    now: bool,
) -> Result<PodName> {
    let data_dir = data_dir(setting)?;
    let pod = find(&data_dir, pod, namespace)?;
    let (namespace, name) = (segment(pod.namespace()), segment(pod.name()));
    let path = format!("/pods/{namespace}/{name}/{verb}?now={now}");
    let agent = Api::unix(desk::socket(&data_dir));
    agent.call(Method::POST, &path, None).await?;
    Ok(pod)
}

pub(crate) async fn restart(args: &ControlArgs, setting: &Setting) -> Result<()> {
    let pod = ask(
        setting,
        &args.pod,
        &args.namespace.namespace,
        "restart",
        args.now,
    )
    .await?;
    told(&pod, args.now, "restarts", "restart")
}

pub(crate) async fn stop(args: &ControlArgs, setting: &Setting) -> Result<()> {
    let pod = ask(
        setting,
        &args.pod,
        &args.namespace.namespace,
        "stop",
        args.now,
    )
    .await?;
    told(&pod, args.now, "stops", "stop")
}

fn told(pod: &PodName, now: bool, does: &str, verb: &str) -> Result<()> {
    if now {
        return output::print(format_args!("pod/{} {does}\n", pod.name()));
    }
    output::note(format_args!(
        "hint: it is done once the controllers grant it, so that no more pods are away than may be; `platctrl describe pod/{0}` tells, and `platctrl {verb} --now pod/{0}` does not wait",
        pod.name()
    ));
    output::print(format_args!("pod/{} asked\n", pod.name()))
}

pub(crate) async fn start(args: &StartArgs, setting: &Setting) -> Result<()> {
    let pod = ask(setting, &args.pod, &args.namespace.namespace, "start", true).await?;
    output::print(format_args!("pod/{} starts\n", pod.name()))
}

/// The pod of exactly this name, if it is here.
pub(super) fn exactly(data_dir: &Path, word: &str, namespace: &str) -> Option<PodName> {
    let name = word.split_once('/').map_or(word, |(_, name)| name);
    let all = pods(data_dir).ok()?;
    let mut here = all.into_iter().map(|pod| pod.name);
    here.find(|pod| pod.namespace() == namespace && pod.name() == name)
}

/// Becomes the command; returns only when that fails.
pub(super) fn exec(data_dir: &Path, pod: &PodName, args: &ExecArgs) -> Result<()> {
    let program = args.launchable.as_deref();
    let beside = platctrl_agent::beside(data_dir, pod, program, &args.command);
    let (shim, arguments) = beside.map_err(|error| match &error {
        BesideError::Several { .. } => {
            Failure::usage(error.to_string()).hint("name one with --launchable")
        }
        BesideError::NoProgram { .. } => Failure::new(Code::NotFound, error.to_string())
            .hint("name one of these with --launchable"),
        BesideError::NoPod { .. } => Failure::failed(&error).hint(format!(
            "`platctrl describe pod/{}` tells why it has not started",
            pod.name()
        )),
        _ => Failure::failed(&error),
    })?;
    let mut command = Command::new(&shim);
    if !args.stdin && !args.tty {
        command.stdin(Stdio::null());
    }
    let error = command.args(arguments).exec();
    Err(Failure::failed(format!(
        "cannot execute {}: {error}",
        shim.display()
    )))
}
