//! Large fleets.
//!
//! - `place`: one decision, 1,000 pods on 10,000 nodes.
//! - `converge`: a replication controller of 100,000 pods in the simulator, on the memory store.
//! - `create`: the same on a real etcd until all intents are written, against the same bytes
//!   written by a bare loop in large batches.
//! - `roll`: a rolling update over 100, 1,000 and 10,000 nodes with 100 pods in flight.
//! - `steady`: 100,000 pods, of which a hundredth is replaced each minute.
//! - `failover`: the leader is killed, and a standby goes on.
//!
//! Except in the first two, etcd and the controllers are processes of their own: what controllers
//! take is what their process takes. The agents of all nodes are played by this one, which
//! reports each pod ready as soon as it is told of it. `cargo bench --bench scale -- roll steady`
//! runs single parts; `PLATCTRL_BENCH_SCALE_NODES` asks for another number of nodes.

mod converge;
mod create;
mod failover;
mod placement;
mod rig;
mod roll;
mod steady;

use std::process::ExitCode;

use platctrl_bench::Result;

/// The nodes of a large fleet: 10,000 unless the environment says otherwise.
fn nodes() -> usize {
    let nodes = std::env::var("PLATCTRL_BENCH_SCALE_NODES").ok();
    nodes.and_then(|nodes| nodes.parse().ok()).unwrap_or(10_000)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["controllers", endpoint] = words.as_slice() {
        return match rig::controllers(endpoint) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("controllers: {error}");
                ExitCode::FAILURE
            }
        };
    }
    // Cargo adds `--bench` by itself.
    let only: Vec<&str> = words.into_iter().filter(|w| !w.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.contains(&name);
    platctrl_bench::target("scale", || measure(wanted))
}

fn measure(wanted: impl Fn(&str) -> bool) -> Result<()> {
    type Part = (&'static str, fn() -> Result<()>);
    let parts: [Part; 6] = [
        ("place", placement::measure),
        ("converge", converge::measure),
        ("create", create::measure),
        ("roll", roll::measure),
        ("steady", steady::measure),
        ("failover", failover::measure),
    ];
    let mut parts = parts.into_iter().filter(|(name, _)| wanted(name));
    parts.try_for_each(|(_, part)| part())
}
