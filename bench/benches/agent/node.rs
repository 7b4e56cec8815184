//! A whole agent: what it weighs with many pods, how soon many come up, and what it costs at rest.
//!
//! The agent is `platctrl agent`, as it is shipped, on a real etcd. This program orders pods in
//! etcd and sees there what becomes of them.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use platctrl_agent::hoist;
use platctrl_bench::etcd::Server;
use platctrl_bench::{Goal, Result, proc_bytes, ratio, raw};
use platctrl_framework::client::{Client, DeleteOptions};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{ConditionStatus, Metadata, Object};
use platctrl_framework::root::RootedStore;
use platctrl_framework::store::Pipeline;
use platctrl_kinds::{Pod, condition};
use platctrl_store_etcd::{EtcdStore, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const NODE: &str = "bench";
/// Where everything is below etcd.
const ROOT: &str = "agent";
const CLI: &str = env!("CARGO_BIN_EXE_platctrl-bench-cli");
const AGENT: &str = env!("CARGO_BIN_EXE_platctrl-bench-agent");
const SHIM: &str = env!("CARGO_BIN_EXE_platctrl-bench-shim");
/// The word that makes this program a pod's program.
pub(crate) const PROGRAM: &str = "bench-program";
const SOON: Duration = Duration::from_secs(120);
/// What is done once after a start is done by then.
const SETTLED: Duration = Duration::from_secs(15);
/// What pods cost at rest is looked at for so long.
const REST: Duration = Duration::from_secs(40);
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

/// A machine with an agent and an etcd of its own; everything that they made goes with it.
pub(crate) struct Machine {
    agent: Child,
    _server: Server,
    executor: tokio::runtime::Runtime,
    client: Client,
    artifact: Value,
    app: String,
    area: tempfile::TempDir,
}

impl Machine {
    /// Starts it, with these hooks: name and script, called before anything is installed.
    pub(crate) fn new(hooks: &[(&str, &str)]) -> Result<Self> {
        let area = tempfile::Builder::new()
            .prefix("platctrl-bench-")
            .tempdir()?;
        executable(area.path())?;
        let artifact = package(area.path())?;
        hang_up(&area.path().join("data"), hooks)?;
        let programs = area.path().join("bin");
        fs::create_dir(&programs)?;
        let cli = programs.join("platctrl");
        for (from, name) in [
            (CLI, "platctrl"),
            (AGENT, "platctrl-agent"),
            (SHIM, "platctrl-shim"),
        ] {
            install(Path::new(from), &programs.join(name))?;
        }

        let server = Server::start()?;
        let location = format!("etcd://{}/{ROOT}", server.endpoint);
        let executor = tokio::runtime::Runtime::new()?;
        let store = EtcdStore::connect(location.parse()?, Options::default());
        let store = Arc::new(executor.block_on(store)?);
        run(&cli, &["store", "init", &location])?;
        run(&cli, &["node", "admit", NODE, "--store", &location])?;
        let store = {
            // What it passes on is passed on by tasks of its own.
            let _guard = executor.enter();
            Arc::new(Pipeline::new(RootedStore::around(store)))
        };
        let client = Client::new(store, Environment::system(), "bench");
        let log = File::create(area.path().join("agent.log"))?;
        let agent = Command::new(&cli)
            .args(["agent", "--node", NODE, "--store", &location, "--data-dir"])
            .arg(area.path().join("data"))
            .arg("--file-dir")
            .arg(area.path().join("artifacts"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let machine = Self {
            agent,
            _server: server,
            executor,
            client,
            artifact,
            app: format!("b{:x}", std::process::id()),
            area,
        };
        Ok(machine)
    }

    /// The location of the pods' program.
    pub(crate) fn artifact(&self) -> &Value {
        &self.artifact
    }

    /// Starts so many pods with checks, and says how many milliseconds it took until the last one
    /// was said to be ready.
    pub(crate) fn start(&self, first: usize, count: usize) -> Result<f64> {
        let begun = Instant::now();
        for number in first..first + count {
            self.create(
                &format!("pod-{number}"),
                json!({
                    "nodeName": NODE, "app": self.app,
                    "launchables": {"web": self.artifact},
                    "ports": {"http": {}},
                    "health": {"http": {"port": "http"}, "interval": "10s"},
                }),
            )?;
        }
        // To look is work, too: at hundreds of pods less often than at a few.
        let pause = Duration::from_millis(if count > 10 { 100 } else { 1 });
        let names: std::collections::BTreeSet<_> = (first..first + count)
            .map(|number| format!("pod-{number}"))
            .collect();
        let done = || -> Result<Option<()>> {
            let ready = match count {
                1 => usize::from(is_ready(&self.pod(&format!("pod-{first}"))?)),
                _ => {
                    let pods = self.client.fresh::<Pod>().node(NODE);
                    let pods = self.executor.block_on(pods.list())?.objects;
                    let ready = pods.iter().filter(|it| is_ready(it));
                    ready.filter(|it| names.contains(&it.metadata.name)).count()
                }
            };
            Ok((ready == count).then_some(()))
        };
        until(pause, "all pods are ready", done)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// Orders a pod, and waits for nothing.
    pub(crate) fn want(&self, name: &str, launchable: &Value) -> Result<()> {
        // Without a port its program ends at once.
        let spec = json!({
            "nodeName": NODE, "app": self.app, "launchables": {"web": launchable},
            "ports": {"http": {}},
        });
        self.create(name, spec)
    }

    /// Orders the end of a pod, and waits for nothing.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        let pods = self.client.fresh::<Pod>().node(NODE);
        self.executor
            .block_on(pods.delete(name, &DeleteOptions::default()))?;
        Ok(())
    }

    /// The number of a pod's process, once it has one.
    pub(crate) fn pid(&self, name: &str) -> Result<u32> {
        let pid = || Ok(self.pod(name)?.status.detail.pids.get("web").copied());
        until(Duration::from_millis(5), "the pod runs", pid)
    }

    /// Waits until the agent says that a pod is in this phase.
    pub(crate) fn phase(&self, name: &str, phase: &str) -> Result<()> {
        let is = || Ok((self.pod(name)?.status.phase.as_str() == phase).then_some(()));
        until(Duration::from_millis(5), phase, is)
    }

    fn pod(&self, name: &str) -> Result<Object<Pod>> {
        let pods = self.client.fresh::<Pod>().node(NODE);
        Ok(self.executor.block_on(pods.get(name))?)
    }

    fn create(&self, name: &str, spec: Value) -> Result<()> {
        let mut metadata = Metadata::named(name);
        metadata.namespace = Some("default".into());
        let pod = Object::<Pod>::new(metadata, serde_json::from_value(spec)?);
        self.executor.block_on(self.client.create(&pod))?;
        Ok(())
    }

    /// Waits until the agent looks after the node.
    fn at_work(&self) -> Result<()> {
        let socket = self.area.path().join("data/agent.sock");
        let is_there = || Ok(socket.exists().then_some(()));
        until(Duration::from_millis(20), "the agent is there", is_there)
    }

    fn resident(&self) -> Result<f64> {
        self.memory("VmRSS:")
    }

    /// A line of what the kernel says of the agent's memory, in MiB.
    fn memory(&self, field: &str) -> Result<f64> {
        let status = format!("/proc/{}/status", self.agent.id());
        Ok(proc_bytes(&status, field)? as f64 / f64::from(1 << 20))
    }

    /// The supervisors: their programs are copies in the data directory.
    fn supervisors(&self) -> Result<Vec<u32>> {
        let mine = self.area.path().join("data/shim");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|it| it.parse().ok());
            let program = fs::read_link(entry.path().join("exe"));
            if let (Some(number), Ok(program)) = (number, program)
                && program.starts_with(&mine)
            {
                found.push(number);
            }
        }
        Ok(found)
    }
}

fn executable(path: &Path) -> std::io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Copies a program so that it has to be read from the disk, as after a boot: of a file that was
/// just written the kernel has large pieces in memory, and maps such a piece as a whole.
fn install(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)?;
    let file = File::open(to)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Runs a command of the command line to its end.
fn run(cli: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new(cli).args(arguments).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

/// Makes the artifact of the pods' program, which is this one, and returns it as a launchable.
fn package(area: &Path) -> Result<Value> {
    let (artifacts, package) = (area.join("artifacts"), area.join("package"));
    let programs = package.join("bin");
    for directory in [&artifacts, &programs] {
        fs::create_dir_all(directory)?;
    }
    fs::copy(std::env::current_exe()?, programs.join("program"))?;
    let script = format!("#!/bin/sh\nexec \"$LAUNCHABLE_ROOT/bin/program\" {PROGRAM}\n");
    fs::write(programs.join("launch"), script)?;
    for file in ["launch", "program"] {
        executable(&programs.join(file))?;
    }
    let file = artifacts.join("program.tar.gz");
    let built = hoist::build(package, &file)?;
    let location = format!("file:{}", file.display());
    Ok(json!({"location": location, "digest": built.digest}))
}

/// Has the agent of this data directory call hooks.
fn hang_up(data: &Path, hooks: &[(&str, &str)]) -> Result<()> {
    let called = data.join("hooks");
    fs::create_dir_all(&called)?;
    fs::set_permissions(data, Permissions::from_mode(0o711))?;
    executable(&called)?;
    for (name, script) in hooks {
        fs::write(called.join(name), script)?;
        executable(&called.join(name))?;
    }
    let config = hooks
        .iter()
        .map(|(name, _)| format!("  {name}: {{events: [before_install]}}\n"));
    if !hooks.is_empty() {
        let config = format!("hooks:\n{}", config.collect::<String>());
        fs::write(called.join("hooks.yaml"), config)?;
    }
    Ok(())
}

fn is_ready(pod: &Object<Pod>) -> bool {
    let conditions = &pod.status.conditions;
    let ready = conditions.iter().find(|it| it.kind == condition::READY);
    ready.is_some_and(|it| it.status == ConditionStatus::True)
}

fn until<T>(pause: Duration, what: &str, found: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = found()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("it does not come to this: {what}").into());
        }
        std::thread::sleep(pause);
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
        if let Ok(number) = i32::try_from(self.agent.id())
            && let Some(agent) = Pid::from_raw(number)
        {
            let _ = kill_process(agent, Signal::TERM);
        }
        let _ = self.agent.wait();
        let data = self.area.path().join("data");
        // Not the agent's: it would be left where it is, and said.
        let _ = fs::remove_dir_all(data.join("hooks"));
        let removed = platctrl_agent::uninstall(&data, Duration::from_secs(5));
        if let Err(error) = self.executor.block_on(removed) {
            eprintln!("the bench's pods were not removed: {error}");
        }
    }
}

pub(crate) fn node() -> Result<()> {
    let machine = Machine::new(&[])?;
    machine.at_work()?;
    std::thread::sleep(SETTLED);
    let alone = machine.resident()?;
    let some = machine.start(0, SOME)?;
    let ready = machine.resident()?;
    std::thread::sleep(SETTLED);
    let resident = machine.resident()?;
    raw(&format!("{SOME} pods from intent to ready"), "ms", &[some]);
    raw("memory of the agent without pods", "MiB", &[alone]);
    raw("the moment that all are ready", "MiB", &[ready]);
    raw(
        "the most that it ever was",
        "MiB",
        &[machine.memory("VmHWM:")?],
    );
    for (what, field) in [("data", "RssAnon:"), ("code", "RssFile:")] {
        let part = machine.memory(field)?;
        raw(
            &format!("memory of the agent with {SOME} pods: {what}"),
            "MiB",
            &[part],
        );
    }
    ratio("agent.node.rss-mib.200-pods", resident, Goal::AtMost(25.0));
    drop(machine);

    let machine = Machine::new(&[])?;
    machine.at_work()?;
    let many = machine.start(0, MANY)?;
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
        processor(machine.agent.id())?,
        all(&supervisors)?,
        Instant::now(),
    );
    std::thread::sleep(REST);
    let percent = |before: f64, after: f64| (after - before) / begun.elapsed().as_secs_f64() * 1e2;
    let share = percent(agent, processor(machine.agent.id())?);
    let theirs = percent(shims, all(&supervisors)?);
    raw("of a core at rest, all supervisors of 500", "%", &[theirs]);
    let resident = machine.resident()?;
    raw("memory of the agent with 500 pods", "MiB", &[resident]);
    ratio("agent.node.idle-percent.500-pods", share, Goal::AtMost(2.0));
    Ok(())
}
