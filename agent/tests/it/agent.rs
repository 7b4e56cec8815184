//! One program that is whatever the tests of this package need as a process of its own: a shim, a
//! helper that fetches or unpacks, a pod's program, an agent that may be killed, or a machine.

#![allow(
    clippy::unwrap_used,
    reason = "this is a part of tests: what goes wrong is a failure"
)]

mod boot;
mod subject;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(first) = args.next() else {
        return ExitCode::from(2);
    };
    match first.to_str() {
        Some(platctrl_agent::hoist::child::SUBCOMMAND) => platctrl_agent::hoist::child::main(args),
        Some("pod") => subject::pod(args),
        Some("boot") => boot::boot(args),
        Some(boot::INIT) => boot::init(args),
        // The only argument of a shim is its directory.
        _ => match u8::try_from(platctrl_shim_lib::main()) {
            Ok(code) => ExitCode::from(code),
            Err(_) => ExitCode::FAILURE,
        },
    }
}
