//! `run-hooks`: calls a node's hooks for one of its pods by hand.

use std::path::PathBuf;

use platctrl_agent::PodName;
use platctrl_agent::hooks::{HookEvent, HookOutcome, Hooks, RunHooksError, run_hooks};

use super::{NamespaceFlag, Setting};
use crate::error::{Code, Failure, Result};
use crate::{output, place};

#[derive(Debug, clap::Args)]
pub(crate) struct RunHooksArgs {
    /// The pod, which has to be on this machine
    pod: String,
    /// The event: before_install, after_install, before_launch, after_launch, before_uninstall,
    /// after_auth_fail or preparer_init
    event: HookEvent,
    #[command(flatten)]
    namespace: NamespaceFlag,
    /// The directory of the hooks [default: hooks in the data directory]
    #[arg(long, value_name = "DIR")]
    hooks: Option<PathBuf>,
}

pub(crate) async fn run(args: &RunHooksArgs, setting: &Setting) -> Result<()> {
    let data_dir = match (setting.given_data_dir(), place::Pointer::read()) {
        (None, Some(pointer)) => pointer.data_dir,
        _ => setting.data_dir()?,
    };
    let name = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
    let pod = PodName::new(&args.namespace.namespace, name)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let dir = args.hooks.clone();
    let hooks = Hooks::new(dir.unwrap_or_else(|| data_dir.join("hooks")));
    let called = std::cell::Cell::new(0);
    let tell = |outcome: &HookOutcome| {
        called.set(called.get() + 1);
        output::note(output::plain(&outcome.message()));
    };
    let went_well = run_hooks(&data_dir, &hooks, &pod, args.event, tell).await;
    let went_well = went_well.map_err(|error| match error {
        RunHooksError::NoPod(_) => Failure::new(Code::NotFound, error.to_string())
            .hint("name another --data-dir, or run this on the pod's node"),
        error => Failure::failed(error),
    })?;
    if !went_well {
        return Err(Failure::failed("a required hook failed"));
    }
    let called = called.get();
    let hooks = if called == 1 { "hook" } else { "hooks" };
    output::print(format_args!(
        "pod/{name}: {called} {hooks} of {} called\n",
        args.event
    ))
}
