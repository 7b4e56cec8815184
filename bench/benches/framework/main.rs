//! The framework against kube-runtime and against a loop written by hand, and its queue against a
//! set and a list.
//!
//! Each run is two processes: a server that holds the objects and changes them, and one side's
//! loop, whose processor time and memory are its alone. This program starts itself again for
//! both: `server <objects>` and `child <scenario> <side> <port>`. All sides read the same server
//! over loopback, get the same bytes, decode them to typed objects, and call the same function
//! with each: what it saw is counted and summed, and compared.
//!
//! - `storm`: 100,000 objects, then 200,000 changes, never more than 10,000 ahead of the loop, so
//!   that no two of a key are merged.
//! - `pace`: 10,000 objects, then 1,000 changes a second; from before the change is sent to its
//!   reconcile. `hot` is the same with every second change to one object, which alone is timed.
//! - `steady`: the rate is raised until a hundredth of the reconciles is later than 10 ms.
//! - `sync`: 100,000 objects, from the start to the last reconcile, and what the process grew.

mod api;
mod hand;
mod scenario;
mod server;
mod store;
mod tally;
mod widget;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

use platctrl_bench::{Goal, Result, queue, ratio, raw, runs, same};

use scenario::{MANY, SOME, Side};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["server", objects] => objects.parse().map_err(Into::into).and_then(server::serve),
        ["child", scenario, side, port] => scenario::child(scenario, side, port),
        _ => {
            // `cargo bench -- storm pace` runs those alone; cargo adds `--bench` by itself.
            let only: Vec<&str> = words.into_iter().filter(|w| !w.starts_with('-')).collect();
            let wanted = |name: &str| only.is_empty() || only.contains(&name);
            return platctrl_bench::target("framework", || measure(wanted));
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn measure(wanted: impl Fn(&str) -> bool) -> Result<()> {
    type Part = (&'static str, fn() -> Result<()>);
    let parts: [Part; 6] = [
        ("queue", queue_alone),
        ("storm", storm),
        ("sync", sync),
        ("pace", || pace("pace")),
        ("hot", || pace("hot")),
        ("steady", steady),
    ];
    let mut parts = parts.into_iter().filter(|(name, _)| wanted(name));
    parts.try_for_each(|(_, part)| part())
}

fn queue_alone() -> Result<()> {
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut slower = Vec::new();
    for keys in [1_000, 1_000_000] {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..runs() {
            ours.push(executor.block_on(queue::queue(keys))?);
            floor.push(queue::floor(keys)?);
        }
        let ours = raw(&format!("queue, {keys} keys"), "keys/cpu-s", &ours);
        let floor = raw(&format!("set and list, {keys} keys"), "keys/cpu-s", &floor);
        let goal = Goal::AtLeast(1e6);
        ratio(
            &format!("framework.queue.add-get-done-per-second.{keys}-keys"),
            ours,
            goal,
        );
        slower.push((ours, floor));
    }
    if let [(few, few_floor), (many, many_floor)] = slower.as_slice() {
        // What the processor's caches make of a thousand times as many keys, without a queue.
        raw(
            "set and list, 1000000 keys per 1000 keys",
            "",
            &[many_floor / few_floor],
        );
        raw("queue, 1000000 keys per 1000 keys", "", &[many / few]);
    }
    Ok(())
}

/// The server's process; it ends when this is dropped.
struct Server {
    process: Child,
    port: String,
}

impl Server {
    fn start(objects: usize) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["server", &objects.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut port = String::new();
        let said = process.stdout.take().ok_or("the server is silent")?;
        BufReader::new(said).read_line(&mut port)?;
        let port = port.trim().to_owned();
        Ok(Self { process, port })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with its standard input; if that fails, it is ended.
        drop(self.process.stdin.take());
        if self.process.wait().is_err() {
            let _: std::io::Result<()> = self.process.kill();
        }
    }
}

/// The figures of one run, as the process printed them: `name value` on each line.
type Figures = BTreeMap<String, f64>;

fn start(scenario: &str, side: Side, objects: usize) -> Result<Figures> {
    let server = Server::start(objects)?;
    let output = Command::new(std::env::current_exe()?)
        .args(["child", scenario, side.name(), &server.port])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{scenario} {}: {}", side.name(), output.status).into());
    }
    let mut figures = Figures::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let (name, value) = line.split_once(' ').ok_or("a line without a value")?;
        figures.insert(name.to_owned(), value.parse()?);
    }
    Ok(figures)
}

/// All runs of one scenario, taken in turns, with what must be equal compared.
struct Measured {
    scenario: &'static str,
    runs: BTreeMap<Side, Vec<Figures>>,
}

impl Measured {
    fn new(scenario: &'static str, objects: usize, sides: &[Side], equal: &[&str]) -> Result<Self> {
        let mut all = BTreeMap::<Side, Vec<Figures>>::new();
        for _ in 0..runs() {
            let mut first: Option<Figures> = None;
            for &side in sides {
                let figures = start(scenario, side, objects)?;
                let first = first.get_or_insert_with(|| figures.clone());
                for name in equal {
                    let what = format!("{scenario}: {name} of {}", side.name());
                    same(&what, &first.get(*name), &figures.get(*name))?;
                }
                all.entry(side).or_default().push(figures);
            }
        }
        if let Some(run) = all.values().next().and_then(|runs| runs.last()) {
            let equal: Vec<String> = equal
                .iter()
                .filter_map(|name| Some(format!("{name} {}", run.get(*name)?)))
                .collect();
            println!("{scenario}: all sides {}", equal.join(", "));
        }
        Ok(Self {
            scenario,
            runs: all,
        })
    }

    /// Prints all sides' runs; returns their medians.
    fn figure(&self, name: &str, unit: &str) -> BTreeMap<Side, f64> {
        let median = |(&side, runs): (&Side, &Vec<Figures>)| {
            let runs: Vec<f64> = runs
                .iter()
                .filter_map(|run| run.get(name).copied())
                .collect();
            let title = format!("{}: {}, {name}", self.scenario, side.name());
            (side, raw(&title, unit, &runs))
        };
        self.runs.iter().map(median).collect()
    }

    /// The same, with the ratio of the framework's figure to another side's.
    fn compare(&self, name: &str, unit: &str, goals: &[(Side, Goal)]) {
        let medians = self.figure(name, unit);
        for (side, goal) in goals {
            if let (Some(ours), Some(other)) = (medians.get(&Side::Ours), medians.get(side)) {
                let (scenario, side) = (self.scenario, side.name());
                ratio(
                    &format!("framework.{scenario}.{name}.vs-{side}"),
                    ours / other,
                    *goal,
                );
            }
        }
    }
}

fn storm() -> Result<()> {
    // kube-runtime merges some changes of one object, others do not: each run counts once.
    let equal = ["events", "checksum"];
    let all = Measured::new("storm", MANY, &Side::ALL, &equal)?;
    all.figure("events-per-second", "/s");
    all.figure("cpu-us-per-event", "us");
    let goals = [
        (Side::Kube, Goal::AtLeast(2.0)),
        (Side::Hand, Goal::AtLeast(0.8)),
    ];
    all.compare("reconciles-per-cpu-second", "/s", &goals);
    Ok(())
}

fn sync() -> Result<()> {
    let equal = ["objects", "reconciles", "checksum"];
    let all = Measured::new("sync", MANY, &Side::ALL, &equal)?;
    all.figure("cpu-seconds", "s");
    all.figure("peak-rss-mib", "MiB");
    let seconds = all.figure("seconds", "s");
    if let (Some(ours), Some(kube)) = (seconds.get(&Side::Ours), seconds.get(&Side::Kube)) {
        let name = "framework.sync.speed.vs-kube-runtime";
        ratio(name, kube / ours, Goal::AtLeast(3.0));
    }
    let goals = [(Side::Kube, Goal::AtMost(0.65))];
    all.compare("rss-per-object", "B", &goals);
    Ok(())
}

fn pace(scenario: &'static str) -> Result<()> {
    let equal = ["events", "accounted", "checksum"];
    let all = Measured::new(scenario, SOME, &Side::ALL, &equal)?;
    all.compare("p50", "ms", &[(Side::Kube, Goal::AtMost(0.15))]);
    all.compare("p99", "ms", &[(Side::Kube, Goal::AtMost(0.25))]);
    Ok(())
}

fn steady() -> Result<()> {
    let sides = [Side::Ours, Side::Kube];
    let all = Measured::new("steady", SOME, &sides, &["objects"])?;
    all.compare("rate", "/s", &[(Side::Kube, Goal::AtLeast(1.5))]);
    Ok(())
}
