//! The node agent's parts against what does the same without them: `tar`, and a bare spawn.
//!
//! This program is also the helper that unpacks, as `platctrl` is: see [`child`]. Run as root, it
//! measures what an agent does as root (the helper is another user, the result becomes root's).

mod node;
mod pods;
mod shim;
mod spawn;
mod stuck;
mod unpack;

use std::process::ExitCode;

use platctrl_agent::hoist::child;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_ref().is_some_and(|word| word == child::SUBCOMMAND) {
        return child::main(args);
    }
    if first.as_ref().is_some_and(|word| word == node::PROGRAM) {
        return node::program();
    }
    if first.as_ref().is_some_and(|word| word == pods::LINES) {
        return match pods::write_lines(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    // Words choose parts; `--bench` is cargo's.
    let chosen: Vec<_> = first.into_iter().chain(args).collect();
    let chosen: Vec<_> = chosen
        .iter()
        .filter_map(|word| word.to_str())
        .filter(|word| !word.starts_with('-'))
        .collect();
    type Part = fn() -> platctrl_bench::Result<()>;
    let parts: [(&str, Part); 8] = [
        ("unpack", unpack::unpack),
        ("spawn", spawn::spawn),
        ("latency", shim::latency),
        ("intent", pods::intent),
        ("logging", pods::logging),
        ("memory", shim::memory),
        ("node", node::node),
        ("stuck", stuck::stuck),
    ];
    platctrl_bench::target("agent", || {
        let parts = parts.into_iter();
        let mut parts = parts.filter(|(name, _)| chosen.is_empty() || chosen.contains(name));
        parts.try_for_each(|(_, part)| part())
    })
}
