//! The node agent's parts against what does the same without them: `tar`, and a bare spawn.
//!
//! This program is also the helper that unpacks, as `platctrl` is: see [`child`]. Run as root, it
//! measures what an agent does as root (the helper is another user, the result becomes root's).

mod pods;
mod shim;
mod spawn;
mod unpack;

use std::process::ExitCode;

use platctrl_agent::hoist::child;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_ref().is_some_and(|word| word == child::SUBCOMMAND) {
        return child::main(args);
    }
    if first.is_some_and(|word| word == pods::LINES) {
        return match pods::write_lines(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    platctrl_bench::target("agent", || {
        unpack::unpack()?;
        spawn::spawn()?;
        shim::latency()?;
        pods::intent()?;
        pods::logging()?;
        shim::memory()
    })
}
