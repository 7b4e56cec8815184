//! What it costs an agent to start a helper process, with little memory and with a lot of it: what
//! is forked copies the map of all of it first.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use platctrl_agent::hoist::{Config, Store};
use platctrl_bench::{Goal, Result, ratio, raw, runs};

/// As much as an agent beside an embedded store may have.
const BALLAST: usize = 1 << 30;
const PAGE: usize = 4096;

/// The seconds of each of some starts, up to the helper's answer from within its sandbox.
fn starts(store: &Store) -> Result<Vec<f64>> {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut times = Vec::new();
    for _ in 0..10 * runs() {
        let begun = Instant::now();
        let (allowed, _) = executor.block_on(store.prove())?;
        times.push(begun.elapsed().as_secs_f64());
        if !allowed.is_empty() {
            println!("spawn: the sandbox of this machine allows {allowed:?}");
        }
    }
    Ok(times)
}

pub(crate) fn spawn() -> Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("platctrl-bench-")
        .tempdir()?;
    // The helper's user passes through.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let store = Store::open(Config::new(dir.path().join("data")))?;
    let light = starts(&store)?;
    let mut ballast = vec![0_u8; BALLAST];
    ballast.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    let heavy = starts(&store)?;
    let held = ballast.iter().step_by(PAGE).filter(|byte| **byte == 1);
    println!("spawn: with {} pages of ballast", held.count());
    let light = raw("spawn: a helper, from a small agent", "s", &light);
    let heavy = raw("spawn: a helper, from an agent of 1 GiB", "s", &heavy);
    ratio("agent.spawn.ballast", heavy / light, Goal::AtMost(1.5));
    Ok(())
}
