//! A rolling update with 100 pods in flight, over fleets of different sizes.

use std::time::Instant;

use platctrl_bench::{Goal, Result, ratio, raw};
use platctrl_framework::model::Object;
use platctrl_kinds::{RollPhase, RollingUpdate};
use serde_json::json;

use crate::rig::{Controllers, Fleet, executor, named, wanted};

/// Pods that may be away at once.
const IN_FLIGHT: usize = 100;

pub(crate) fn measure() -> Result<()> {
    let most = crate::nodes();
    let mut each = Vec::new();
    for nodes in [most / 100, most / 10, most] {
        let (cpu, seconds) = executor()?.block_on(run(nodes))?;
        let cpu = raw(
            &format!("a roll over {nodes} nodes: processor time for a pod"),
            "us",
            &[cpu],
        );
        raw(&format!("a roll over {nodes} nodes"), "s", &[seconds]);
        each.push(cpu);
    }
    if let [small, .., large] = each.as_slice() {
        let name = format!("scale.roll.cpu-per-pod.{most}-nodes-vs-{}", most / 100);
        ratio(&name, large / small, Goal::AtMost(1.5));
    }
    Ok(())
}

async fn run(nodes: usize) -> Result<(f64, f64)> {
    let fleet = Fleet::new(nodes).await?;
    let mut agents = fleet.agents().await?;
    let mut controllers = Controllers::start(&fleet.server)?;
    fleet
        .create(&wanted("hello-1", nodes, 1, "artifact:one")?)
        .await?;
    fleet.until_ready("hello-1", nodes, &mut agents).await?;
    fleet
        .create(&wanted("hello-2", 0, 1, "artifact:two")?)
        .await?;
    let spec = json!({
        "from": "hello-1", "to": "hello-2", "replicas": nodes,
        "minimumHealthy": nodes.saturating_sub(IN_FLIGHT), "minHealthyTime": "0s",
    });
    let roll: Object<RollingUpdate> = Object::new(named("hello-2"), serde_json::from_value(spec)?);
    let before = controllers.used()?;
    let begun = Instant::now();
    fleet.create(&roll).await?;
    fleet
        .until::<RollingUpdate>("hello-2", &mut agents, |roll| {
            RollPhase::is_final(&roll.status.phase)
        })
        .await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (controllers.used()?.cpu - before.cpu).as_secs_f64();
    fleet.until_ready("hello-2", nodes, &mut agents).await?;
    Ok((cpu * 1e6 / nodes as f64, seconds))
}
