//! From intent to a running program, and a program that logs while nobody but its shim looks.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use platctrl_agent::{
    Desired, Host, HostConfig, Observer, Order, PodEvent, PodName, Report, Tombstone, Worker, hoist,
};
use platctrl_bench::{Goal, Result, full_scale, p99, ratio, raw, same};
use platctrl_framework::model::Digest;
use platctrl_shim_lib::{Phase, Request, RestartPolicy, Spec, spawn, write_spec};
use serde_json::json;

const SHIM: &str = env!("CARGO_BIN_EXE_platctrl-bench-shim");
const SOON: Duration = Duration::from_secs(60);
const PODS: usize = 100;

/// The word by which this program writes lines: `lines SECONDS BYTES_PER_SECOND REPORT`.
pub(crate) const LINES: &str = "lines";

#[derive(Debug)]
struct Listener(Mutex<mpsc::Sender<(Instant, Report)>>);

impl Observer for Listener {
    fn report(&self, report: Report) {
        let now = Instant::now();
        if let Ok(sender) = self.0.lock() {
            // Nobody listens any more at the end.
            let _ = sender.send((now, report));
        }
    }

    fn event(&self, _: PodEvent) {}
}

/// How long from the order until the program was executed, with the artifact in the cache.
pub(crate) fn intent() -> Result<()> {
    let area = tempfile::Builder::new()
        .prefix("platctrl-bench-")
        .tempdir()?;
    fs::set_permissions(area.path(), fs::Permissions::from_mode(0o755))?;
    let (package, data) = (area.path().join("package"), area.path().join("data"));
    fs::create_dir_all(package.join("bin"))?;
    let launch = package.join("bin/launch");
    fs::write(&launch, "#!/bin/sh\nexec sleep 3600\n")?;
    fs::set_permissions(&launch, fs::Permissions::from_mode(0o755))?;
    let file = area.path().join("bench.tar.gz");
    let built = hoist::build(&package, &file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut config = HostConfig::new(&data, "bench");
    config.file_dirs = vec![area.path().to_owned()];
    config.shim = Some(PathBuf::from(SHIM));
    let host = Arc::new(Host::open(config)?);
    let spec = json!({
        "nodeName": "bench",
        "app": format!("bench{:05}", std::process::id() % 100_000),
        "launchables": {"web": {
            "location": format!("file:{}", file.display()),
            "digest": built.digest,
            "stopTimeout": "1s",
        }},
    });
    let mut took = Vec::new();
    // The first one fetches and makes the user.
    for number in 0..=PODS {
        let desired = Desired {
            uid: format!("uid-{number}").as_str().into(),
            generation: 1,
            digest: Digest::of_json(&spec),
            spec: serde_json::from_value(spec.clone())?,
            labels: std::collections::BTreeMap::new(),
            tombstone: None,
            unsupported: None,
        };
        let (sender, receiver) = mpsc::channel();
        let listener = Arc::new(Listener(Mutex::new(sender)));
        let name = PodName::new("default", format!("bench-{number}"))?;
        let _guard = runtime.enter();
        let begun = Instant::now();
        let order = Order::Want(Box::new(desired.clone()));
        let worker = Worker::spawn(Arc::clone(&host), listener, name, order);
        let ran = until(&receiver, |report| !report.status.pids.is_empty())?;
        if number > 0 {
            took.push(ran.duration_since(begun).as_secs_f64() * 1e3);
        }
        let tombstone = Tombstone {
            grace: None,
            by: "bench".into(),
            reason: None,
        };
        worker.order(Order::Want(Box::new(Desired {
            tombstone: Some(tombstone),
            ..desired
        })));
        until(&receiver, |report| report.phase.as_str() == "Gone")?;
        runtime.block_on(worker.leave());
    }
    drop(host);
    runtime.block_on(platctrl_agent::uninstall(&data, Duration::from_secs(1)))?;
    let median = raw("order to program running, artifact cached", "ms", &took);
    ratio("agent.intent-to-exec-ms.p50", median, Goal::AtMost(20.0));
    ratio(
        "agent.intent-to-exec-ms.p99",
        p99(&took),
        Goal::AtMost(20.0),
    );
    Ok(())
}

fn until(
    receiver: &mpsc::Receiver<(Instant, Report)>,
    wanted: impl Fn(&Report) -> bool,
) -> Result<Instant> {
    loop {
        let (at, report) = receiver.recv_timeout(SOON)?;
        if wanted(&report) {
            return Ok(at);
        }
    }
}

/// How long a program that logs 10 MB/s ever waits, with a shim and without an agent.
pub(crate) fn logging() -> Result<()> {
    const RATE: u64 = 10_000_000;
    let seconds: u64 = if full_scale() { 60 } else { 10 };
    let dir = tempfile::Builder::new()
        .prefix("platctrl-bench-")
        .tempdir()?;
    let (logs, own) = (dir.path().join("log"), dir.path().join("shim"));
    fs::create_dir(&logs)?;
    let report = dir.path().join("report");
    let me = std::env::current_exe()?;
    let arguments = [LINES.to_owned(), seconds.to_string(), RATE.to_string()];
    let mut argv = vec![me.into_os_string()];
    argv.extend(arguments.map(Into::into));
    argv.push(report.clone().into_os_string());
    let mut spec = Spec::new(argv, dir.path(), &logs, "bench");
    spec.restart.policy = RestartPolicy::Never;
    (spec.log.max_bytes, spec.log.max_files) = (64 << 20, 100);
    write_spec(&own, &spec)?;
    let mut client = spawn(Path::new(SHIM), &own)?;
    let within = Duration::from_secs(seconds) + SOON;
    client.wait_until(within, |state| state.phase == Phase::Exited)?;
    client.request(Request::Quit)?;
    while let Ok(Some(_)) = client.next_event(SOON) {}
    let told = fs::read_to_string(&report)?;
    let mut words = told.split_whitespace();
    let lines: u64 = words.next().ok_or("no count")?.parse()?;
    let longest: f64 = words.next().ok_or("no time")?.parse()?;
    let mut next = 0_u64;
    for number in (0..100).rev() {
        let name = match number {
            0 => "bench.log".to_owned(),
            n => format!("bench.log.{n}"),
        };
        let Ok(text) = fs::read_to_string(logs.join(name)) else {
            continue;
        };
        for line in text.lines() {
            let number: u64 = line.split(' ').next().ok_or("an empty line")?.parse()?;
            same("the number of a line", &next, &number)?;
            next += 1;
        }
    }
    same("the lines in the log", &lines, &next)?;
    raw("lines written", "", &[lines as f64]);
    ratio("agent.log.longest-wait-ms", longest, Goal::AtMost(100.0));
    Ok(())
}

/// Writes numbered lines at a rate; notes how many, and the longest time that one took, in ms.
pub(crate) fn write_lines(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<()> {
    let mut word = || -> Result<String> {
        let word = args.next().ok_or("an argument is missing")?;
        Ok(word.to_string_lossy().into_owned())
    };
    let (seconds, rate): (u64, u64) = (word()?.parse()?, word()?.parse()?);
    let report = PathBuf::from(word()?);
    let mut out = fs::File::options().append(true).open("/dev/stdout")?;
    let (begun, mut written, mut number) = (Instant::now(), 0_u64, 0_u64);
    let mut longest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let due = begun.elapsed().as_secs_f64() * rate as f64;
        if written as f64 > due {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let line = format!("{number} {:>90}\n", "x");
        let at = Instant::now();
        out.write_all(line.as_bytes())?;
        longest = longest.max(at.elapsed());
        written += line.len() as u64;
        number += 1;
    }
    fs::write(report, format!("{number} {}", longest.as_secs_f64() * 1e3))?;
    Ok(())
}
