//! A program that can be an agent's helper process: hand the arguments to `hoist::child::main`,
//! before anything else has run. (`platctrl` does so for its hidden subcommand; the tests use this.)

use std::process::ExitCode;

fn main() -> ExitCode {
    platctrl_agent::hoist::child::main(std::env::args_os().skip(1))
}
