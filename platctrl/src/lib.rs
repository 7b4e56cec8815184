//! The platctrl distribution: one binary that is server, controllers, agent and command line.
//!
//! [`main`] is the whole program. `platctrl up` runs everything in one process on one machine;
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
    let mut args = std::env::args_os().skip(1);
    if args
        .next()
        .is_some_and(|first| first == platctrl_agent::hoist::child::SUBCOMMAND)
    {
        return platctrl_agent::hoist::child::main(args);
    }
    cli::run()
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
