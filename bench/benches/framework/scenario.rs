//! One run of one side, in a process of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use platctrl_bench::{Result, median, p99, proc_bytes, process_cpu};
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError, Runtime};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Object, identity};
use platctrl_framework::store::{MemoryOptions, MemoryStore, Store};
use platctrl_store_embedded::EmbeddedStore;
use tokio::task::JoinSet;

use crate::hand;
use crate::load::{self, Load};
use crate::widget::{Tally, Widget};

/// Objects of the storm and of the initial sync.
const MANY: usize = 100_000;
/// How often each is changed in the storm.
const ROUNDS: u64 = 2;
/// Objects of the pace, and how many of them are changed.
const SOME: usize = 10_000;
const CHANGES: usize = 3_000;
/// Reconciles at once.
const CONCURRENCY: usize = 16;

/// Whose loop runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Side {
    Ours,
    Hand,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "framework",
            Self::Hand => "by-hand",
        }
    }

    /// Starts the loop; it ends when the set is dropped.
    fn start(self, store: Arc<dyn Store>, tally: Arc<Tally>) -> JoinSet<Result<()>> {
        let mut tasks = JoinSet::new();
        match self {
            Self::Ours => {
                let reconcile = move |widget: Arc<Object<Widget>>, _: Context| {
                    let tally = Arc::clone(&tally);
                    async move {
                        tally.saw(&widget.spec);
                        Ok::<Action, ReconcileError>(Action::await_change())
                    }
                };
                let controller = Controller::new("widgets", reconcile).concurrency(CONCURRENCY);
                let runtime = Runtime::new(store, Environment::system()).controller(controller);
                tasks.spawn(async move { Ok(runtime.run().await?) });
            }
            Self::Hand => {
                tasks.spawn(hand::run(store, tally, CONCURRENCY));
            }
        }
        tasks
    }
}

fn executor() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

/// Makes the store that `sync` reads.
pub(crate) fn fill(dir: &Path) -> Result<()> {
    let environment = Environment::system();
    let store = EmbeddedStore::open(dir, environment.clone())?;
    executor()?.block_on(async {
        identity::initialise(&store, &environment).await?;
        load::create(&store, &load::keys(MANY)?).await
    })
}

/// Runs a scenario and prints its figures.
pub(crate) fn child(scenario: &str, side: &str, rest: &[String]) -> Result<()> {
    let side = match side {
        "framework" => Side::Ours,
        "by-hand" => Side::Hand,
        other => return Err(format!("there is no side {other}").into()),
    };
    executor()?.block_on(async {
        match (scenario, rest) {
            ("storm", []) => storm(side).await,
            ("pace", []) => pace(side).await,
            ("sync", [dir]) => sync(side, Path::new(dir)).await,
            _ => Err(format!("there is no scenario {scenario} of {} words", rest.len()).into()),
        }
    })
}

/// Waits until all that was expected was seen, or the loop failed.
async fn complete(tally: &Tally, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    tokio::select! {
        () = tally.complete.notified() => Ok(()),
        Some(ended) = tasks.join_next() => {
            ended??;
            Err("the loop ended".into())
        }
    }
}

fn print(name: &str, value: f64) {
    println!("{name} {value}");
}

/// A memory store with `objects`, seen by a loop that has reconciled all of them once.
async fn synced(
    side: Side,
    objects: usize,
) -> Result<(Arc<dyn Store>, Arc<Tally>, JoinSet<Result<()>>)> {
    let environment = Environment::system();
    let mut options = MemoryOptions::default();
    options.history = 4 * MANY;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_options(environment.clone(), options));
    identity::initialise(&*store, &environment).await?;
    load::create(&*store, &load::keys(objects)?).await?;
    let tally = Arc::new(Tally::new(objects));
    let mut tasks = side.start(Arc::clone(&store), Arc::clone(&tally));
    complete(&tally, &mut tasks).await?;
    Ok((store, tally, tasks))
}

async fn storm(side: Side) -> Result<()> {
    let (store, tally, mut tasks) = synced(side, MANY).await?;
    let reconciles = tally.reconciles();
    let keys = load::keys(MANY)?;
    tally.expect(ROUNDS, MANY);
    let (begun, cpu) = (Instant::now(), process_cpu());
    let load = Load::Storm { rounds: ROUNDS };
    let writer = load::start(load, store, keys, Arc::clone(&tally));
    complete(&tally, &mut tasks).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process_cpu() - cpu;
    let writer = writer.join().map_err(|_| "the writer panicked")??;
    let cpu = cpu.saturating_sub(writer).as_secs_f64();
    let events = ROUNDS as f64 * MANY as f64;
    let reconciles = (tally.reconciles() - reconciles) as f64;
    print("events", events);
    print("reconciles", reconciles);
    print("checksum", tally.checksum() as f64);
    print("events-per-second", events / seconds);
    print("cpu-us-per-event", cpu * 1e6 / events);
    print("reconciles-per-cpu-second", reconciles / cpu);
    Ok(())
}

async fn pace(side: Side) -> Result<()> {
    let (store, tally, mut tasks) = synced(side, SOME).await?;
    tally.expect(1, CHANGES);
    let load = Load::Pace { changes: CHANGES };
    let writer = load::start(load, store, load::keys(SOME)?, Arc::clone(&tally));
    complete(&tally, &mut tasks).await?;
    writer.join().map_err(|_| "the writer panicked")??;
    let latencies = tally.latencies();
    print("events", latencies.len() as f64);
    print("checksum", tally.checksum() as f64);
    print("p50", median(&latencies));
    print("p99", p99(&latencies));
    Ok(())
}

async fn sync(side: Side, dir: &Path) -> Result<()> {
    let resident = || proc_bytes("/proc/self/status", "VmRSS:");
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir, Environment::system())?);
    let tally = Arc::new(Tally::new(MANY));
    let (before, begun, cpu) = (resident()?, Instant::now(), process_cpu());
    let mut tasks = side.start(store, Arc::clone(&tally));
    complete(&tally, &mut tasks).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process_cpu() - cpu;
    let grown = resident()?.saturating_sub(before) as f64;
    print("objects", MANY as f64);
    print("reconciles", tally.reconciles() as f64);
    print("checksum", tally.checksum() as f64);
    print("seconds", seconds);
    print("cpu-seconds", cpu.as_secs_f64());
    print("rss-per-object", grown / MANY as f64);
    Ok(())
}
