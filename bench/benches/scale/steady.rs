//! A large fleet in which little happens.

use std::time::{Duration, Instant};

use platctrl_bench::{Goal, Result, ratio, raw};
use platctrl_framework::client::DeleteOptions;
use platctrl_framework::model::{ObjectKey, Scope};
use platctrl_framework::store::ListRequest;

use crate::rig::{Controllers, Fleet, executor, pods, wanted};

/// Workloads, each with a pod on so many nodes.
const WORKLOADS: usize = 100;
/// What is measured.
const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn measure() -> Result<()> {
    executor()?.block_on(run(crate::nodes()))
}

async fn run(nodes: usize) -> Result<()> {
    let each = nodes / 10;
    let count = WORKLOADS * each;
    let fleet = Fleet::new(nodes).await?;
    let mut agents = fleet.agents().await?;
    let mut controllers = Controllers::start(&fleet.server)?;
    let begun = Instant::now();
    let name = |index: usize| format!("hello-{index:03}");
    for index in 0..WORKLOADS {
        fleet
            .create(&wanted(&name(index), each, 1, "artifact:one")?)
            .await?;
    }
    for index in 0..WORKLOADS {
        fleet.until_ready(&name(index), each, &mut agents).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    raw(
        &format!("{WORKLOADS} workloads, {count} pods, until ready"),
        "s",
        &[seconds],
    );
    // A process that takes over from there has read what a list says, and nothing else.
    drop(controllers);
    controllers = Controllers::start(&fleet.server)?;
    // The claim of the one before has to run out.
    tokio::time::sleep(Duration::from_secs(20)).await;

    let victims = victims(&fleet, count / 100).await?;
    let before = controllers.used()?;
    let begun = Instant::now();
    let mut most = before.resident;
    for (index, victim) in victims.iter().enumerate() {
        let due = MINUTE.mul_f64(index as f64 / victims.len() as f64);
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        let options = DeleteOptions::default();
        fleet.client.delete(victim, &options).await?;
        if index % 64 == 0 {
            most = most.max(controllers.used()?.resident);
        }
    }
    tokio::time::sleep(MINUTE.saturating_sub(begun.elapsed())).await;
    let after = controllers.used()?;
    let share = (after.cpu - before.cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    for index in 0..WORKLOADS {
        fleet.until_ready(&name(index), each, &mut agents).await?;
    }
    let share = raw(
        &format!(
            "{count} pods, {} replaced in a minute: share of a core",
            victims.len()
        ),
        "%",
        &[share * 100.0],
    );
    ratio(
        &format!("scale.steady.core-percent.{count}-pods"),
        share,
        Goal::AtMost(10.0),
    );
    let most = most.max(after.resident) as f64 / f64::from(1 << 20);
    let resident = raw("resident memory of the controllers", "MiB", &[most]);
    ratio(
        &format!("scale.steady.resident-mb.{count}-pods"),
        resident * 1.048_576,
        Goal::AtMost(600.0),
    );
    Ok(())
}

/// So many pods, spread over all.
async fn victims(fleet: &Fleet, count: usize) -> Result<Vec<ObjectKey>> {
    let mut request = ListRequest::new(pods());
    let mut all = Vec::new();
    loop {
        let page = fleet.store.list(&request).await?;
        let keys = page.records.iter().filter_map(|record| {
            let (_, key, _) = ObjectKey::parse(&record.key, |_, _| Some(Scope::Node))?;
            Some(key)
        });
        all.extend(keys);
        request.at = Some(page.revision);
        request.after = page.records.last().map(|record| record.key.clone());
        if !page.more {
            break;
        }
    }
    let stride = (all.len() / count.max(1)).max(1);
    Ok(all.into_iter().step_by(stride).take(count).collect())
}
