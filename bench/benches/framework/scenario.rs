//! One run of one side, in a process of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::{controller, watcher};
use platctrl_bench::{Result, median, p99, proc_bytes, process_cpu};
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError, Runtime};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::Object;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::hand;
use crate::store::{ApiStore, PAGE};
use crate::tally::Tally;
use crate::widget::{KubeWidget, Widget};

/// Objects of the storm and of the initial sync.
pub(crate) const MANY: usize = 100_000;
/// Changes of the storm: each object twice.
const STORM: u64 = 2 * MANY as u64;
/// Objects of what is timed, and how many changes.
pub(crate) const SOME: usize = 10_000;
const CHANGES: u64 = 3_000;
/// Reconciles at once.
const CONCURRENCY: usize = 16;
/// The slowest of a hundred reconciles at the highest steady rate, in milliseconds.
const STEADY_P99: f64 = 10.0;

/// Whose loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Ours,
    Kube,
    Hand,
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Kube, Self::Hand];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "framework",
            Self::Kube => "kube-runtime",
            Self::Hand => "by-hand",
        }
    }

    fn start(self, port: u16, tally: &Arc<Tally>) -> Result<JoinSet<Result<()>>> {
        let tally = Arc::clone(tally);
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
                let store = Arc::new(ApiStore::new(port));
                let controller = Controller::new("widgets", reconcile).concurrency(CONCURRENCY);
                let runtime = Runtime::new(store, Environment::system()).controller(controller);
                tasks.spawn(async move { Ok(runtime.run().await?) });
            }
            Self::Kube => {
                let reconcile = |widget: Arc<KubeWidget>, tally: Arc<Tally>| async move {
                    tally.saw(&widget.spec);
                    Ok::<_, Infallible>(controller::Action::await_change())
                };
                let failed = |_: Arc<KubeWidget>, _: &Infallible, _: Arc<Tally>| {
                    controller::Action::await_change()
                };
                let url = format!("http://127.0.0.1:{port}").parse()?;
                let client = kube::Client::try_from(kube::Config::new(url))?;
                let watching = watcher::Config::default().page_size(PAGE as u32);
                let config = controller::Config::default().concurrency(CONCURRENCY as u16);
                let all = kube::runtime::Controller::new(kube::Api::all(client), watching)
                    .with_config(config)
                    .run(reconcile, failed, tally);
                tasks.spawn(async move {
                    let mut all = std::pin::pin!(all);
                    while let Some(ran) = all.next().await {
                        ran?;
                    }
                    Ok(())
                });
            }
            Self::Hand => {
                tasks.spawn(hand::run(port, tally, CONCURRENCY));
            }
        }
        Ok(tasks)
    }
}

/// Runs a scenario and prints its figures.
pub(crate) fn child(scenario: &str, side: &str, port: &str) -> Result<()> {
    let side = Side::ALL.into_iter().find(|known| known.name() == side);
    let side = side.ok_or("there is no such side")?;
    let port = port.parse()?;
    let mut executor = tokio::runtime::Builder::new_multi_thread();
    let executor = executor.worker_threads(2).enable_all().build()?;
    let outcome = executor.block_on(async {
        match scenario {
            "sync" => sync(side, port).await,
            "storm" => storm(side, port).await,
            "pace" => pace(side, port, false).await,
            "hot" => pace(side, port, true).await,
            "steady" => steady(side, port).await,
            _ => Err(format!("there is no scenario {scenario}").into()),
        }
    });
    // What still runs is not waited for: some do not bear the end of their executor.
    executor.shutdown_background();
    outcome
}

fn print(name: &str, value: f64) {
    println!("{name} {value}");
}

/// A loop that is running, and what it has seen.
struct Loop {
    port: u16,
    tally: Arc<Tally>,
    tasks: JoinSet<Result<()>>,
    expected: u64,
}

impl Loop {
    fn start(side: Side, port: u16, objects: usize, timed: Option<usize>) -> Result<Self> {
        let tally = Arc::new(Tally::new(objects, timed));
        let tasks = side.start(port, &tally)?;
        Ok(Self {
            port,
            tally,
            tasks,
            expected: 0,
        })
    }

    /// Waits until so many more changes were seen, or the loop failed.
    async fn complete(&mut self, more: u64) -> Result<()> {
        self.expected += more;
        tokio::select! {
            () = self.tally.accounted_for(self.expected) => Ok(()),
            Some(ended) = self.tasks.join_next() => {
                ended??;
                Err("the loop ended".into())
            }
            () = tokio::time::sleep(Duration::from_secs(60)) => {
                let seen = self.tally.accounted();
                Err(format!("{seen} changes of {} were seen", self.expected).into())
            }
        }
    }

    /// Has the server make changes, and waits for all of them.
    async fn load(&mut self, load: &str, changes: u64) -> Result<()> {
        let mut control = TcpStream::connect(("127.0.0.1", self.port)).await?;
        control
            .write_all(format!("LOAD {load}\n").as_bytes())
            .await?;
        let (mut told, mut tell) = control.into_split();
        let (tally, before) = (Arc::clone(&self.tally), self.tally.accounted());
        let acknowledge = tokio::spawn(async move {
            loop {
                let done = tally.accounted() - before;
                if tell.write_all(&done.to_le_bytes()).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let outcome = self.complete(changes).await;
        acknowledge.abort();
        // Had it not seen all changes, the server would still wait.
        outcome?;
        let mut written = String::new();
        told.read_to_string(&mut written).await?;
        platctrl_bench::same("changes made", &changes, &written.trim().parse()?)
    }
}

async fn sync(side: Side, port: u16) -> Result<()> {
    let resident = || proc_bytes("/proc/self/status", "VmRSS:");
    let (before, begun, cpu) = (resident()?, Instant::now(), process_cpu());
    let mut running = Loop::start(side, port, MANY, None)?;
    running.complete(MANY as u64).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process_cpu() - cpu;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grown = resident()?.saturating_sub(before) as f64;
    print("objects", running.tally.accounted() as f64);
    print("reconciles", running.tally.reconciles() as f64);
    print("checksum", running.tally.checksum() as f64);
    print("seconds", seconds);
    print("cpu-seconds", cpu.as_secs_f64());
    print("rss-per-object", grown / MANY as f64);
    let peak = proc_bytes("/proc/self/status", "VmHWM:")?;
    print("peak-rss-mib", peak as f64 / f64::from(1 << 20));
    Ok(())
}

async fn storm(side: Side, port: u16) -> Result<()> {
    let mut running = Loop::start(side, port, MANY, None)?;
    running.complete(MANY as u64).await?;
    let reconciles = running.tally.reconciles();
    let (begun, cpu) = (Instant::now(), process_cpu());
    running.load(&STORM.to_string(), STORM).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (process_cpu() - cpu).as_secs_f64();
    let reconciles = (running.tally.reconciles() - reconciles) as f64;
    print("events", STORM as f64);
    print("reconciles", reconciles);
    print("checksum", running.tally.checksum() as f64);
    print("events-per-second", STORM as f64 / seconds);
    print("cpu-us-per-event", cpu * 1e6 / STORM as f64);
    print("reconciles-per-cpu-second", reconciles / cpu);
    Ok(())
}

async fn pace(side: Side, port: u16, hot: bool) -> Result<()> {
    let mut running = Loop::start(side, port, SOME, hot.then_some(0))?;
    running.complete(SOME as u64).await?;
    let load = format!("{CHANGES} 1000 {}", u8::from(hot));
    running.load(&load, CHANGES).await?;
    let latencies = running.tally.take_latencies();
    print("events", CHANGES as f64);
    print("accounted", running.tally.accounted() as f64);
    print("checksum", running.tally.checksum() as f64);
    print("p50", median(&latencies));
    print("p99", p99(&latencies));
    Ok(())
}

/// Raises the rate by a quarter as long as the reconciles keep up: half a second each, twice at
/// most, because a shared machine is slow for a moment now and then.
async fn steady(side: Side, port: u16) -> Result<()> {
    let mut running = Loop::start(side, port, SOME, None)?;
    running.complete(SOME as u64).await?;
    let (mut rate, mut highest) = (8_000, 0);
    'rates: while rate < 500_000 {
        for _ in 0..3 {
            let changes = rate / 2;
            running
                .load(&format!("{changes} {rate} 0"), changes)
                .await?;
            if p99(&running.tally.take_latencies()) < STEADY_P99 {
                highest = rate;
                rate += rate / 4;
                continue 'rates;
            }
        }
        break;
    }
    print("objects", SOME as f64);
    print("rate", highest as f64);
    Ok(())
}
