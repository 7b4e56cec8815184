//! The node agent's parts against what does the same without them: `tar`, and a bare spawn.
//!
//! This program is also the helper that unpacks, as `platctrl` is: see [`child`]. Run as root, it
//! measures what an agent does as root (the helper is another user, the result becomes root's).

mod shim;
mod unpack;

use std::process::ExitCode;

use platctrl_agent::hoist::child;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == child::SUBCOMMAND) {
        return child::main(args);
    }
    platctrl_bench::target("agent", || {
        unpack::unpack()?;
        shim::latency()?;
        shim::memory()
    })
}
