//! From nothing to 100,000 intents, against the same bytes from a bare loop.

use std::collections::HashSet;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt, stream};
use platctrl_bench::etcd::Bare;
use platctrl_bench::{Goal, Result, ratio, raw, runs, same};
use platctrl_framework::store::{Change, WatchEvent};

use crate::rig::{Controllers, Fleet, executor, pods, wanted};

const PODS_PER_NODE: usize = 10;
/// What the bare loop puts in one transaction, and how many it has under way: what etcd takes at
/// most, and what it is fastest with.
const BATCH: usize = 128;
const AT_ONCE: usize = 8;
/// A run takes its time.
const MOST_RUNS: usize = 3;

pub(crate) fn measure() -> Result<()> {
    let nodes = crate::nodes();
    let (mut ours, mut bare, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs().min(MOST_RUNS) {
        let run = executor()?.block_on(run(nodes))?;
        ours.push(run.ours);
        bare.push(run.bare);
        cpu.push(run.cpu);
    }
    let pods = nodes * PODS_PER_NODE;
    let ours = raw(
        &format!("{pods} pods on etcd: controllers"),
        "pods/s",
        &ours,
    );
    let bare = raw("the same bytes in batches: bare loop", "keys/s", &bare);
    raw("processor time of the controllers for a pod", "us", &cpu);
    let name = format!("scale.create-vs-batched-writes.{pods}-pods");
    ratio(&name, ours / bare, Goal::AtLeast(0.5));
    Ok(())
}

struct Run {
    ours: f64,
    bare: f64,
    cpu: f64,
}

async fn run(nodes: usize) -> Result<Run> {
    let count = nodes * PODS_PER_NODE;
    let fleet = Fleet::new(nodes).await?;
    let mut controllers = Controllers::start(&fleet.server)?;
    let after = fleet.store.get(&[]).await?.revision;
    let mut watch = fleet.store.watch(pods(), after);
    let before = controllers.used()?;
    let begun = Instant::now();
    fleet
        .create(&wanted("hello", count, PODS_PER_NODE, "artifact:one")?)
        .await?;
    let (mut seen, mut bytes) = (HashSet::new(), 0);
    while seen.len() < count {
        let event = watch.next().await.ok_or("the watch ended")??;
        let WatchEvent::Changes { changes, .. } = event else {
            continue;
        };
        for change in changes {
            if let Change::Put(record) = change
                && seen.insert(record.key.clone())
            {
                bytes += record.value.len();
            }
        }
    }
    let ours = begun.elapsed().as_secs_f64();
    let cpu = (controllers.used()?.cpu - before.cpu).as_secs_f64();
    drop(controllers);
    same("pods", &count, &seen.len())?;
    let each = bytes / count;
    println!("{count} pods of {each} B in {ours:.2} s");

    let client = Bare::connect(&fleet.server.endpoint, "bare").await?;
    let begun = Instant::now();
    let keys: Vec<String> = seen.iter().map(|key| key.as_str().to_owned()).collect();
    let batches = stream::iter(keys.chunks(BATCH)).map(|keys| {
        let client = client.clone();
        let puts: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(place, key)| (key.clone(), platctrl_bench::text(place as u64, each)))
            .collect();
        async move { client.put(&puts).await }
    });
    batches
        .buffer_unordered(AT_ONCE)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    let bare = begun.elapsed().as_secs_f64();
    Ok(Run {
        ours: count as f64 / ours,
        bare: count as f64 / bare,
        cpu: cpu * 1e6 / count as f64,
    })
}
