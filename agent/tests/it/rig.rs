//! A node of its own for one test, taken away whatever happens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use platctrl_agent::UninstallError;
use platctrl_agent::{
    Desired, Host, HostConfig, Layout, Observer, Order, PodEvent, PodName, Report, Tombstone,
    Worker, hoist,
};
use platctrl_framework::environment::{Clock, Environment};
use platctrl_framework::model::Digest;
pub(crate) use platctrl_test_support::processes::{SOON, eventually};
use serde_json::{Value, json};

/// Remembers what it is told.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    told: Mutex<Told>,
    news: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) reports: Vec<Report>,
    pub(crate) events: Vec<PodEvent>,
}

impl Observer for Recorder {
    fn report(&self, report: Report) {
        self.told.lock().unwrap().reports.push(report);
        self.news.notify_all();
    }

    fn event(&self, event: PodEvent) {
        self.told.lock().unwrap().events.push(event);
        self.news.notify_all();
    }
}

impl Recorder {
    /// Waits until the last report is as wanted, and returns it.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        self.wait_for(what, |told| {
            told.reports.last().filter(|report| wanted(report)).cloned()
        })
    }

    /// Waits until something was told.
    pub(crate) fn wait_for<T>(&self, what: &str, wanted: impl Fn(&Told) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        let mut told = self.told.lock().unwrap();
        loop {
            if let Some(found) = wanted(&told) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what} did not come: {:#?}\n{:#?}",
                told.reports.last(),
                told.events
            );
            told = self.news.wait_timeout(told, left).unwrap().0;
        }
    }

    pub(crate) fn ready(&self) -> Report {
        self.wait("a ready pod", Report::is_ready)
    }

    pub(crate) fn events(&self, reason: &str) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let events = told.events.iter().filter(|event| event.reason == reason);
        events.map(|event| event.message.clone()).collect()
    }
}

/// A data directory, a directory of artifacts, and a runtime for workers.
pub(crate) struct Rig {
    area: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    /// Tells this test's apps from all others.
    pub(crate) app: String,
    pub(crate) environment: Environment,
}

/// A worker, and the opened node that it works on.
pub(crate) struct Attendant {
    worker: Worker,
    _host: Arc<Host>,
}

impl std::ops::Deref for Attendant {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.worker
    }
}

/// A clock on which waits are a hundredth of what they say.
struct Hasty(std::time::Instant);

impl Clock for Hasty {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed() * 100
    }

    fn sleep(&self, duration: Duration) -> futures::future::BoxFuture<'static, ()> {
        // The waits of whoever has this clock, not of a test.
        Box::pin(async move { tokio::time::sleep(duration / 100).await })
    }
}

pub(crate) fn hasty() -> Environment {
    Environment::seeded(Arc::new(Hasty(Instant::now())), rand::random())
}

pub(crate) fn agent_under_test() -> PathBuf {
    env!("CARGO_BIN_EXE_agent-under-test").into()
}

/// A program that another user may execute wherever the tests were built.
fn public_copy(program: &str, area: &Path, name: &str) -> PathBuf {
    let copy = area.join(name);
    if !copy.exists() {
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Environment::system())
    }

    pub(crate) fn with(environment: Environment) -> Self {
        Self::under(&std::env::temp_dir(), environment)
    }

    /// A node whose directories are below `parent`.
    pub(crate) fn under(parent: &Path, environment: Environment) -> Self {
        let area = tempfile::Builder::new()
            .prefix("agent")
            .tempdir_in(parent)
            .unwrap();
        fs::set_permissions(area.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["artifacts", "packages"] {
            fs::create_dir(area.path().join(directory)).unwrap();
        }
        let app = format!("t{:08x}", rand::random::<u32>());
        Self {
            area,
            runtime: Some(Self::runtime()),
            app,
            environment,
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.area.path().join("data")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.area.path().join("artifacts")
    }

    /// A program that runs this script, without ports.
    pub(crate) fn script(&self, name: &str, script: &str) -> Value {
        let artifact = self.pack(name, &[("bin/launch", Some(script))]);
        let mut spec = self.spec(&artifact);
        spec["ports"] = json!({});
        spec
    }

    /// What the program `web` has said, once it says `end` on a line of its own.
    pub(crate) fn said(&self, end: &str) -> Vec<String> {
        let log = self.layout().pod(&name()).log().join("web.log");
        eventually(end, || {
            let text = fs::read_to_string(&log).ok()?;
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            let at = lines.iter().rposition(|line| line == end)?;
            Some(lines[..at].to_vec())
        })
    }

    /// A directory for the test's own use.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.area.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// The agent under test, where any user may execute it.
    pub(crate) fn helper(&self) -> PathBuf {
        public_copy(
            env!("CARGO_BIN_EXE_agent-under-test"),
            self.area.path(),
            "helper",
        )
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::open(&self.data_dir()).unwrap()
    }

    pub(crate) fn host_config(&self) -> HostConfig {
        let mut config = HostConfig::new(self.data_dir(), "node-under-test");
        config.environment = self.environment.clone();
        config.file_dirs = vec![self.artifacts()];
        let helper = self.helper();
        config.shim = Some(helper.clone());
        config.helper = Some(hoist::ChildCommand::new(helper, [hoist::child::SUBCOMMAND]));
        config
    }

    /// Opens the node, as a starting agent does. The one before has to be gone.
    pub(crate) fn host(&self) -> Arc<Host> {
        Arc::new(Host::open(self.host_config()).unwrap())
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.as_ref().unwrap().spawn(future)
    }

    /// Starts a worker for the pod `default/hello`.
    pub(crate) fn worker(&self, host: &Arc<Host>, order: Order) -> (Worker, Arc<Recorder>) {
        self.worker_of(host, &name(), order)
    }

    /// Starts a worker for another pod.
    pub(crate) fn worker_of(
        &self,
        host: &Arc<Host>,
        pod: &PodName,
        order: Order,
    ) -> (Worker, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let _guard = self.runtime.as_ref().unwrap().enter();
        let observer = Arc::clone(&recorder) as _;
        let worker = Worker::spawn(Arc::clone(host), observer, pod.clone(), order);
        (worker, recorder)
    }

    /// Opens the node and starts a worker for the pod `default/hello`.
    pub(crate) fn attend(&self, order: Order) -> (Attendant, Arc<Recorder>) {
        let host = self.host();
        let (worker, told) = self.worker(&host, order);
        let attendant = Attendant {
            worker,
            _host: host,
        };
        (attendant, told)
    }

    /// The same with a first generation, once that is ready.
    pub(crate) fn attend_ready(&self, spec: &Value) -> (Attendant, Arc<Recorder>, Report) {
        let (worker, told) = self.attend(want(1, spec));
        let first = told.ready();
        (worker, told, first)
    }

    /// Kills every supervisor and program of this node, as when the machine goes down.
    pub(crate) fn kill_all(&self) {
        for pod in self.layout().pods().unwrap() {
            let paths = self.layout().pod(&pod);
            for program in paths.programs().unwrap() {
                let Some(state) = platctrl_shim_lib::read_state(&paths.shim(&program)).unwrap()
                else {
                    continue;
                };
                for process in state.shim.iter().chain(&state.child) {
                    if is_alive(process.pid) {
                        kill(process.pid);
                    }
                    eventually("its end", || (!is_alive(process.pid)).then_some(()));
                }
            }
        }
    }

    /// Ends everything of the agent in this process, at once, as a crash would.
    pub(crate) fn crash(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(SOON);
        }
        self.runtime = Some(Self::runtime());
    }

    /// Packs an artifact with these files; `None` is the test's program.
    pub(crate) fn pack(&self, name: &str, files: &[(&str, Option<&str>)]) -> (String, Digest) {
        let dir = self.area.path().join("packages").join(name);
        for (path, content) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => drop(fs::copy(env!("CARGO_BIN_EXE_app-under-test"), &path).unwrap()),
            }
            let executable = path.strip_prefix(&dir).unwrap().starts_with("bin");
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let file = self.artifacts().join(format!("{name}.tar.gz"));
        let built = hoist::build(&dir, &file).unwrap();
        (
            format!("file:{}", file.display()),
            built.digest.to_string().parse().unwrap(),
        )
    }

    /// The program that serves HTTP, as this version.
    pub(crate) fn app(&self, version: &str) -> (String, Digest) {
        self.pack(version, &[("bin/launch", None), ("version", Some(version))])
    }

    /// A spec with the launchable `web` of this artifact and the port `http`.
    pub(crate) fn spec(&self, artifact: &(String, Digest)) -> Value {
        json!({
            "nodeName": "node-under-test",
            "app": self.app,
            "launchables": {"web": {
                "location": artifact.0,
                "digest": artifact.1,
                "stopTimeout": "5s",
            }},
            "ports": {"http": {}},
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(SOON);
        }
        // A process that another test is starting at this moment may still share the agent's lock.
        let deadline = Instant::now() + SOON;
        let result = loop {
            let result = Self::runtime().block_on(platctrl_agent::uninstall(
                &self.data_dir(),
                Duration::from_millis(100),
            ));
            match result {
                Err(UninstallError::Running { .. }) if Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                result => break result,
            }
        };
        let Err(error) = result else { return };
        // Whatever happens nothing is left on the machine.
        for pod in self.layout().pods().unwrap_or_default() {
            let paths = self.layout().pod(&pod);
            for program in paths.programs().unwrap_or_default() {
                let Ok(Some(state)) = platctrl_shim_lib::read_state(&paths.shim(&program)) else {
                    continue;
                };
                let shim = state.shim.filter(|_| platctrl_shim_lib::is_alive(&state));
                for process in shim
                    .into_iter()
                    .chain(state.child.filter(|_| shim.is_some()))
                {
                    kill(process.pid);
                }
            }
        }
        assert!(
            std::thread::panicking(),
            "the node was not left clean: {error}"
        );
    }
}

pub(crate) fn name() -> PodName {
    PodName::new("default", "hello").unwrap()
}

pub(crate) fn desired(generation: u64, spec: &Value) -> Desired {
    Desired {
        uid: "uid-1".into(),
        generation,
        digest: Digest::of_json(spec),
        spec: serde_json::from_value(spec.clone()).unwrap(),
        labels: BTreeMap::from([("app".into(), "hello".into())]),
        tombstone: None,
        unsupported: None,
    }
}

pub(crate) fn want(generation: u64, spec: &Value) -> Order {
    Order::Want(Box::new(desired(generation, spec)))
}

pub(crate) fn tombstone(generation: u64, spec: &Value) -> Order {
    let mut desired = desired(generation, spec);
    desired.tombstone = Some(Tombstone {
        grace: None,
        by: "test".into(),
        reason: None,
    });
    Order::Want(Box::new(desired))
}

/// Asks over HTTP; None when there is no answer.
pub(crate) fn try_get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

pub(crate) fn get(port: u16, path: &str) -> String {
    eventually("an HTTP answer", || try_get(port, path))
}

pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim()
            .starts_with('Z')
    })
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
