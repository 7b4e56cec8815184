//! A large fleet in one process: a replication controller from nothing to converged.
//!
//! The agents are simulated, on virtual time: what is measured is the work of the controllers,
//! the cache and the memory store, and nothing that waits.

use std::time::{Duration, Instant};

use platctrl_bench::{Goal, Result, proc_bytes, ratio, raw};
use platctrl_controllers::{cached_pods, replication_controller, testing};
use platctrl_framework::model::{Metadata, Object};
use platctrl_framework::testing::World;
use platctrl_kinds::ReplicationController;

const PODS_PER_NODE: usize = 10;

pub(crate) fn measure() -> Result<()> {
    let nodes = crate::nodes();
    let pods = nodes * PODS_PER_NODE;
    let begun = Instant::now();
    testing::fleet(nodes)
        .without_history()
        .orphans_may_stay()
        // What a commit takes on a store that is really there.
        .latency(Duration::from_millis(5))
        .controllers(|replica| {
            let controller = replication_controller::controller();
            replica
                .runtime()
                .controller(controller)
                .cached(cached_pods())
                .reap()
                .elect_leader("controllers")
        })
        .scenario(move |world| async move {
            world.create(&wanted(pods)?).await?;
            world.settled().await?;
            converged(&world, pods)
        })
        .run(1)?;
    let seconds = begun.elapsed().as_secs_f64();
    let seconds = raw(
        &format!("{nodes} nodes, {pods} pods: from nothing to converged"),
        "s",
        &[seconds],
    );
    let peak = proc_bytes("/proc/self/status", "VmHWM:")? as f64 / f64::from(1 << 20);
    raw("peak memory, agents and store included", "MiB", &[peak]);
    ratio(
        &format!("scale.converge-seconds.{pods}-pods"),
        seconds,
        Goal::AtMost(60.0),
    );
    Ok(())
}

fn wanted(pods: usize) -> Result<Object<ReplicationController>> {
    let spec = serde_json::json!({
        "replicas": pods,
        "nodeSelector": "role=web",
        "maxPerNode": PODS_PER_NODE,
        "template": { "spec": { "launchables": { "web": { "location": "artifact:one" } } } },
    });
    let metadata = Metadata {
        namespace: Some("default".into()),
        ..Metadata::named("hello")
    };
    Ok(Object::new(metadata, serde_json::from_value(spec)?))
}

/// That all is as it was wanted, by what runs and by what is reported.
fn converged(world: &World, pods: usize) -> Result<()> {
    let healthy = world
        .processes()
        .iter()
        .filter(|process| process.is_healthy())
        .count();
    let reported: Vec<u32> = world
        .objects::<ReplicationController>()
        .iter()
        .map(|controller| controller.status.detail.ready_replicas)
        .collect();
    if healthy == pods && reported == [u32::try_from(pods)?] {
        return Ok(());
    }
    Err(format!("{healthy} of {pods} pods run, {reported:?} are reported ready").into())
}
