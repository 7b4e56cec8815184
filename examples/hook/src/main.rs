//! A hook that refuses what nobody owns: a pod whose `config` names no `owner` is not installed.
//!
//! Build it, put it into the node's directory of hooks, and name it in `hooks.yaml`:
//!
//! ```yaml
//! hooks:
//!   greet-hook: { events: [before_install, after_launch], required: true, timeout: 10s }
//! ```

use std::process::ExitCode;

use hook::{Call, Event, HookError};

fn main() -> ExitCode {
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the pod may go on.
fn work() -> Result<bool, HookError> {
    let call = Call::from_env()?;
    match call.event {
        Event::BeforeInstall => {
            let pod = call.pod()?;
            let manifest = pod.read_manifest()?;
            let Some(owner) = manifest["spec"]["config"]["owner"].as_str() else {
                eprintln!("{}: say in config.owner whom to call about it", pod.name);
                return Ok(false);
            };
            println!("{} of {owner} may come to {}", pod.name, call.node);
        }
        Event::AfterLaunch => println!("{} runs on {}", call.pod()?.name, call.node),
        _ => {}
    }
    Ok(true)
}
