//! A whole agent: what it weighs with many pods, how soon many come up, and what it costs at rest.
//!
//! The agent is a process of its own, this program again, with a store in its memory: what is
//! measured of it includes that store. It obeys what it reads, one line each: see [`Site::obey`].

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use platctrl_agent::{
    Agent, AgentConfig, AgentHandle, HostConfig, Report, hoist, watched_prefixes,
};
use platctrl_bench::{Goal, Result, proc_bytes, ratio, raw};
use platctrl_framework::cache::write_prefix_anchor;
use platctrl_framework::client::{Client, DeleteOptions};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Metadata, Object, ObjectKey, identity};
use platctrl_framework::store::{MemoryOptions, MemoryStore, Store};
use platctrl_kinds::{Node, NodeSpec, Pod};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NODE: &str = "bench";
const SHIM: &str = env!("CARGO_BIN_EXE_platctrl-bench-shim");
/// The words that make this program an agent, or a pod's program.
pub(crate) const AGENT: &str = "bench-agent";
pub(crate) const PROGRAM: &str = "bench-program";
const SOON: Duration = Duration::from_secs(120);
/// What is done once after a start is done by then.
const SETTLED: Duration = Duration::from_secs(15);
/// What pods cost at rest is looked at for so long.
const REST: Duration = Duration::from_secs(40);
/// Revisions that the store in the agent's process keeps.
const HISTORY: usize = 500;
const MANY: usize = 500;
const SOME: usize = 200;

/// The program of a pod: answers each connection with 200.
pub(crate) fn program() -> ExitCode {
    let port = std::env::var("PORT_HTTP")
        .ok()
        .and_then(|it| it.parse().ok());
    let Some(listener) = port.and_then(|port: u16| TcpListener::bind(("127.0.0.1", port)).ok())
    else {
        return ExitCode::FAILURE;
    };
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = stream.read(&mut [0; 1024]);
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    ExitCode::SUCCESS
}

/// `bench-agent DATA_DIR ARTIFACTS`: an agent that obeys lines.
pub(crate) fn agent(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut path = || PathBuf::from(args.next().unwrap_or_default());
    let (data_dir, artifacts) = (path(), path());
    platctrl_agent::keep_little_memory();
    let runtime = tokio::runtime::Runtime::new().map_err(Into::into);
    match runtime.and_then(|runtime| runtime.block_on(run(data_dir, artifacts))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(data_dir: PathBuf, artifacts: PathBuf) -> Result<()> {
    let environment = Environment::system();
    // An agent has its store elsewhere: what this one remembers of the past is not its own.
    let mut options = MemoryOptions::default();
    options.history = HISTORY;
    let store = MemoryStore::with_options(environment.clone(), options);
    let store: Arc<dyn Store> = Arc::new(store);
    identity::initialise(&*store, &environment).await?;
    for prefix in watched_prefixes(NODE)? {
        write_prefix_anchor(&*store, &prefix).await?;
    }
    let client = Client::new(Arc::clone(&store), environment.clone(), "bench");
    let node = Object::<Node>::new(Metadata::named(NODE), NodeSpec::default());
    client.create(&node).await?;
    let mut host = HostConfig::new(data_dir, NODE);
    host.environment = environment;
    host.shim = Some(SHIM.into());
    host.file_dirs = vec![artifacts.clone()];
    host.allow_unverified = true;
    let agent = Agent::new(AgentConfig::new(host, store)).await?;
    let site = Site {
        client,
        handle: agent.handle(),
        artifacts,
        app: format!("b{:x}", std::process::id()),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(agent.run(stop.clone()));
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut read = std::io::stdin().lines().map_while(std::io::Result::ok);
        read.try_for_each(|line| sender.send(line))
    });
    println!("ok 0");
    while let Some(line) = lines.recv().await {
        println!("ok {}", site.obey(&line).await?);
    }
    stop.cancel();
    running.await??;
    Ok(())
}

struct Site {
    client: Client,
    handle: AgentHandle,
    artifacts: PathBuf,
    app: String,
}

impl Site {
    /// - `pods FIRST COUNT` starts so many, and answers how many milliseconds that took;
    /// - `want NAME LOCATION` orders a pod of a location and waits for nothing;
    /// - `delete NAME` orders its end and waits for nothing;
    /// - `pid NAME` answers its program's number;
    /// - `phase NAME WORD` answers once the agent reports that.
    async fn obey(&self, line: &str) -> Result<f64> {
        let begun = Instant::now();
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["pods", first, count] => self.start(first.parse()?, count.parse()?).await?,
            ["want", name, location] => {
                let digest = format!("sha256:{}", "0".repeat(64));
                let launchable = match location.starts_with("file:") {
                    true => json!({"location": location}),
                    false => json!({"location": location, "digest": digest}),
                };
                // Without a port its program ends at once.
                let spec = json!({
                    "nodeName": NODE, "app": self.app, "launchables": {"web": launchable},
                    "ports": {"http": {}},
                });
                self.create((*name).to_owned(), spec).await?;
            }
            ["delete", name] => {
                let key = ObjectKey::on_node("platctrl.dev", "pods", NODE, "default", name)?;
                self.client.delete(&key, &DeleteOptions::default()).await?;
            }
            ["pid", name] => {
                let pid = |report: &Report| report.status.pids.get("web").copied();
                return Ok(f64::from(self.until(name, pid).await?));
            }
            ["phase", name, phase] => {
                let is = |report: &Report| (report.phase.as_str() == *phase).then_some(());
                self.until(name, is).await?;
            }
            _ => return Err(format!("not understood: {line}").into()),
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    async fn create(&self, name: String, spec: Value) -> Result<()> {
        let mut metadata = Metadata::named(name);
        metadata.namespace = Some("default".into());
        let pod = Object::<Pod>::new(metadata, serde_json::from_value(spec)?);
        self.client.create(&pod).await?;
        Ok(())
    }

    async fn start(&self, first: usize, count: usize) -> Result<()> {
        let location = format!("file:{}/program.tar.gz", self.artifacts.display());
        for number in first..first + count {
            let spec = json!({
                "nodeName": NODE, "app": self.app,
                "launchables": {"web": {"location": location}},
                "ports": {"http": {}},
                "health": {"http": {"port": "http"}, "interval": "10s"},
            });
            self.create(format!("pod-{number}"), spec).await?;
        }
        let names: std::collections::BTreeSet<_> = (first..first + count)
            .map(|number| format!("pod-{number}"))
            .collect();
        // To look is work, too: at hundreds of reports less often than at a few.
        let pause = Duration::from_millis(if count > 10 { 50 } else { 1 });
        let deadline = Instant::now() + SOON;
        loop {
            let reports = self.handle.reports();
            let ready = reports.iter();
            let ready = ready.filter(|it| it.is_ready() && names.contains(it.name.name()));
            if ready.count() == count {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{count} pods are not ready").into());
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn until<T>(&self, name: &str, found: impl Fn(&Report) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + SOON;
        loop {
            let reports = self.handle.reports();
            let report = reports.iter().find(|it| it.name.name() == name);
            if let Some(found) = report.and_then(&found) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(format!("what is asked of {name} does not come: {report:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An agent in a process of its own; everything it made goes with it.
pub(crate) struct Machine {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    area: tempfile::TempDir,
}

impl Machine {
    /// Starts it, with these hooks: name and script, called before anything is installed.
    pub(crate) fn new(hooks: &[(&str, &str)]) -> Result<Self> {
        let area = tempfile::Builder::new()
            .prefix("platctrl-bench-")
            .tempdir()?;
        let executable =
            |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755));
        executable(area.path())?;
        let artifacts = area.path().join("artifacts");
        let package = area.path().join("package/bin");
        for directory in [&artifacts, &package] {
            std::fs::create_dir_all(directory)?;
        }
        let own = std::env::current_exe()?;
        std::fs::copy(&own, package.join("program"))?;
        let script = format!("#!/bin/sh\nexec \"$LAUNCHABLE_ROOT/bin/program\" {PROGRAM}\n");
        std::fs::write(package.join("launch"), script)?;
        for file in ["launch", "program"] {
            executable(&package.join(file))?;
        }
        hoist::build(
            area.path().join("package"),
            artifacts.join("program.tar.gz"),
        )?;
        let data = area.path().join("data");
        let called = data.join("hooks");
        std::fs::create_dir_all(&called)?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o711))?;
        executable(&called)?;
        for (name, script) in hooks {
            std::fs::write(called.join(name), script)?;
            executable(&called.join(name))?;
        }
        let config = hooks
            .iter()
            .map(|(name, _)| format!("  {name}: {{events: [before_install]}}\n"));
        if !hooks.is_empty() {
            let config = format!("hooks:\n{}", config.collect::<String>());
            std::fs::write(called.join("hooks.yaml"), config)?;
        }
        let mut child = Command::new(&own)
            .arg(AGENT)
            .arg(data)
            .arg(&artifacts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or("it has no output")?;
        let lines = BufReader::new(out).lines();
        let mut machine = Self { child, lines, area };
        machine.answer()?;
        Ok(machine)
    }

    fn answer(&mut self) -> Result<f64> {
        let line = self.lines.next().ok_or("the agent ended")??;
        let took = line
            .strip_prefix("ok ")
            .ok_or_else(|| format!("it said: {line}"))?;
        Ok(took.parse()?)
    }

    /// Has a line obeyed; see [`Site::obey`].
    pub(crate) fn tell(&mut self, line: &str) -> Result<f64> {
        let stdin = self.child.stdin.as_mut().ok_or("it does not listen")?;
        writeln!(stdin, "{line}")?;
        self.answer()
    }

    pub(crate) fn artifact(&self) -> String {
        let file = self.area.path().join("artifacts/program.tar.gz");
        format!("file:{}", file.display())
    }

    fn resident(&self) -> Result<f64> {
        self.memory("VmRSS:")
    }

    fn peak(&self) -> Result<f64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> Result<f64> {
        let status = format!("/proc/{}/status", self.child.id());
        Ok(proc_bytes(&status, field)? as f64 / f64::from(1 << 20))
    }

    /// The supervisors: their programs are copies in the data directory.
    fn supervisors(&self) -> Result<Vec<u32>> {
        let mine = self.area.path().join("data/shim");
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|it| it.parse().ok());
            let program = std::fs::read_link(entry.path().join("exe"));
            if let (Some(number), Ok(program)) = (number, program)
                && program.starts_with(&mine)
            {
                found.push(number);
            }
        }
        Ok(found)
    }
}

/// Processor time of a process so far, in seconds.
fn processor(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(f64::from(ticks) / 100.0)
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        let data = self.area.path().join("data");
        // Not the agent's: it would be left where it is, and said.
        let _ = std::fs::remove_dir_all(data.join("hooks"));
        let Ok(runtime) = tokio::runtime::Runtime::new() else {
            return;
        };
        let removed = runtime.block_on(platctrl_agent::uninstall(&data, Duration::from_secs(5)));
        if let Err(error) = removed {
            eprintln!("the bench's pods were not removed: {error}");
        }
    }
}

pub(crate) fn node() -> Result<()> {
    let mut machine = Machine::new(&[])?;
    let alone = machine.resident()?;
    let some = machine.tell(&format!("pods 0 {SOME}"))?;
    let ready = machine.resident()?;
    std::thread::sleep(SETTLED);
    let resident = machine.resident()?;
    raw(&format!("{SOME} pods from intent to ready"), "ms", &[some]);
    raw("memory of the agent without pods", "MiB", &[alone]);
    raw("the moment that all are ready", "MiB", &[ready]);
    raw("the most that it ever was", "MiB", &[machine.peak()?]);
    ratio("agent.node.rss-mib.200-pods", resident, Goal::AtMost(25.0));
    drop(machine);

    let mut machine = Machine::new(&[])?;
    let many = machine.tell(&format!("pods 0 {MANY}"))?;
    ratio(
        "agent.node.start-s.500-pods",
        many / 1e3,
        Goal::AtMost(60.0),
    );
    std::thread::sleep(SETTLED);
    let supervisors = machine.supervisors()?;
    platctrl_bench::same("the supervisors", &MANY, &supervisors.len())?;
    let all = |pids: &[u32]| -> Result<f64> { pids.iter().map(|pid| processor(*pid)).sum() };
    let (agent, shims, begun) = (
        processor(machine.child.id())?,
        all(&supervisors)?,
        Instant::now(),
    );
    std::thread::sleep(REST);
    let percent = |before: f64, after: f64| (after - before) / begun.elapsed().as_secs_f64() * 1e2;
    let share = percent(agent, processor(machine.child.id())?);
    let theirs = percent(shims, all(&supervisors)?);
    raw("of a core at rest, all supervisors of 500", "%", &[theirs]);
    let resident = machine.resident()?;
    raw("memory of the agent with 500 pods", "MiB", &[resident]);
    ratio("agent.node.idle-percent.500-pods", share, Goal::AtMost(2.0));
    Ok(())
}
