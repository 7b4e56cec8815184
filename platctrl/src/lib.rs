//! The platctrl distribution: server, controllers, agent and command line.
//!
//! [`main`] is the whole program, [`agent`] that of a machine's agent alone. `platctrl up` runs everything in one process on one machine;
//! every other verb is a client of the API that it serves.

mod access;
mod api;
mod cli;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod log;
mod manifest;
mod output;
mod place;
mod rights;
mod roles;
pub mod server;
mod store;
mod tls;
mod up;

use std::process::ExitCode;

/// The whole program, on the arguments of this process.
pub fn main() -> ExitCode {
    helper().unwrap_or_else(cli::run)
}

/// The program `platctrl-agent`, which `platctrl agent` turns into: the agent without the rest.
pub fn agent() -> ExitCode {
    helper().unwrap_or_else(cli::run_agent)
}

/// Fetches or unpacks, when an agent started this program for that.
fn helper() -> Option<ExitCode> {
    use platctrl_agent::hoist::child;

    let mut args = std::env::args_os().skip(1);
    let asked = args.next().is_some_and(|first| first == child::SUBCOMMAND);
    asked.then(|| child::main(args))
}

/// Whether the program takes these arguments, the first of which is its name; else why not. For
/// the tests of what documents show.
///
/// # Errors
/// What the program would say.
#[doc(hidden)]
pub fn takes(arguments: &[String]) -> Result<(), String> {
    cli::takes(arguments)
}

/// Every verb of the command line with its own verbs, word by word. For the tests that look at
/// each of them.
#[doc(hidden)]
#[must_use]
pub fn verbs() -> Vec<Vec<String>> {
    cli::verbs()
}
