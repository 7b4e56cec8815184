//! The leader is killed, and a warm standby goes on.

use std::time::{Duration, Instant};

use platctrl_bench::{Goal, Result, ratio, raw, runs};

use crate::rig::{Controllers, Fleet, executor, wanted};

const NODES: usize = 100;
/// How long a claim holds that nobody renews.
const TTL: Duration = Duration::from_secs(10);
/// A run takes its time.
const MOST_RUNS: usize = 3;

pub(crate) fn measure() -> Result<()> {
    let mut seconds = Vec::new();
    for _ in 0..runs().min(MOST_RUNS) {
        seconds.push(executor()?.block_on(run())?);
    }
    let seconds = raw(
        "a killed leader to the first pod of its standby",
        "s",
        &seconds,
    );
    let beyond = seconds - TTL.as_secs_f64();
    ratio(
        "scale.failover.seconds-beyond-ttl",
        beyond,
        Goal::AtMost(2.0),
    );
    Ok(())
}

async fn run() -> Result<f64> {
    let fleet = Fleet::new(NODES).await?;
    let mut agents = fleet.agents().await?;
    let mut leader = Controllers::start(&fleet.server)?;
    fleet
        .create(&wanted("before", 10, 1, "artifact:one")?)
        .await?;
    fleet.until_ready("before", 10, &mut agents).await?;
    let standby = Controllers::start(&fleet.server)?;
    leader.kill()?;
    let begun = Instant::now();
    fleet
        .create(&wanted("after", 1, 1, "artifact:one")?)
        .await?;
    fleet.until_ready("after", 1, &mut agents).await?;
    let seconds = begun.elapsed().as_secs_f64();
    drop(standby);
    Ok(seconds)
}
