//! Server, controllers and agent as processes of their own, that meet in a real Consul; and
//! stores that move to it and away from it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::rig::{Pod, Rig, eventually, is_alive, kill, processes_of};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// A process that ends with its test.
struct Process(Child);

impl Process {
    fn end(mut self, signal: i32) {
        kill(self.0.id(), signal);
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
        let output = Command::new(script).arg("consul").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/tools consul: {said}");
        let dir = String::from_utf8(output.stdout).unwrap();
        Path::new(dir.trim_end()).join("consul")
    })
}

/// An address of the loopback network that nobody else uses.
fn address() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let number = RandomState::new().hash_one(std::process::id());
    let byte = |shift: u32| ((number >> shift) & 0xff).clamp(1, 254);
    format!("127.{}.{}.{}", byte(0), byte(8), byte(16))
}

/// One server of Consul, with its files in a test's directory.
struct Consul {
    address: String,
    config: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Consul {
    fn start_for(rig: &Rig) -> Self {
        let address = address();
        let config = serde_json::json!({
            "server": true,
            "bootstrap_expect": 1,
            "node_name": "consul",
            "data_dir": rig.path("consul"),
            "bind_addr": address,
            "advertise_addr": address,
            "client_addr": address,
            "disable_update_check": true,
            "disable_host_node_id": true,
            "performance": {"raft_multiplier": 1},
            "ports": {"dns": -1, "grpc": -1, "serf_wan": -1},
        });
        let mut consul = Self {
            address,
            config: rig.write("consul.json", config.to_string()),
            log: rig.path("consul.log"),
            process: None,
        };
        consul.start();
        consul
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let process = Command::new(program())
            .arg("agent")
            .arg(format!("-config-file={}", self.config.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(Process(process));
        eventually("Consul to take writes", || {
            let put = self.command(&["kv", "put", "ready", "x"]).output().unwrap();
            put.status.success().then_some(())
        });
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.end(SIGKILL);
        }
        assert!(
            TcpStream::connect((self.address.as_str(), 8500)).is_err(),
            "nobody listens"
        );
    }

    /// Consul's own command line.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env_clear()
            .env("CONSUL_HTTP_ADDR", format!("{}:8500", self.address))
            .stdin(Stdio::null());
        command
    }

    fn url(&self, root: &str) -> String {
        format!("consul://{}:8500/{root}", self.address)
    }
}

struct Fleet {
    // Dropped first: what uninstalls the pods needs no store.
    rig: Rig,
    url: String,
    consul: Consul,
}

impl Fleet {
    /// A root with this machine as its only node.
    fn new() -> Self {
        let rig = Rig::new();
        let consul = Consul::start_for(&rig);
        let url = consul.url("fleets/test");
        Self { rig, url, consul }
    }

    fn initialise(&self) {
        self.rig.cli(&["store", "init", &self.url]).ok();
        let node = self.rig.app.clone();
        self.rig
            .cli(&["node", "admit", &node, "--store", &self.url])
            .ok();
    }

    /// Starts one of platctrl's processes.
    fn start(&self, role: &str, more: &[&str]) -> Process {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.rig.path("up.log"))
            .unwrap();
        let mut args = vec![role, "--store", &self.url];
        args.extend(more);
        let mut command = self.rig.command(&args);
        let command = command.stdout(log.try_clone().unwrap()).stderr(log);
        Process(command.spawn().unwrap())
    }

    fn agent(&self) -> Process {
        self.start("agent", &["--node", &self.rig.app])
    }

    fn server(&self) -> Process {
        let server = self.start("server", &[]);
        self.answers();
        server
    }

    fn answers(&self) {
        eventually("an answer of the server", || {
            (self.rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
        });
    }

    /// Scales to nothing, and waits for the pod's end.
    fn end_of(&self, pod: &Pod) {
        eventually("the order is taken", || {
            let said = self.rig.cli(&["scale", "rc/hello", "--replicas", "0"]);
            (said.code == Some(0)).then_some(())
        });
        eventually("the pod's end", || self.rig.pods().is_empty().then_some(()));
        assert!(!is_alive(pod.pid));
    }
}

#[test]
fn server_controllers_and_agent_meet_in_consul_and_survive_it_and_each_other() {
    let mut fleet = Fleet::new();
    for role in ["server", "controllers", "agent"] {
        fleet
            .rig
            .cli(&[role, "--store", &fleet.url])
            .fails(3, &["no anchor", "store init consul://"]);
    }
    fleet.initialise();
    let about = fleet.rig.cli(&["store", "info", &fleet.url]).ok();
    assert!(about.contains("active"), "{about}");
    let server = fleet.server();
    let controllers = fleet.start("controllers", &[]);
    let agent = fleet.agent();
    let pod = fleet.rig.quickstart(1).remove(0);
    pod.answer().unwrap();
    // What we write, a person can read.
    let read = fleet
        .consul
        .command(&[
            "kv",
            "get",
            "fleets/test/o/intent/platctrl.dev/replicationcontrollers/default/hello",
        ])
        .output()
        .unwrap();
    let record: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(record["spec"]["replicas"], 1);

    // Nobody but the shim is needed for it to serve.
    for process in [server, controllers, agent] {
        process.end(SIGKILL);
    }
    assert!(is_alive(pod.pid));
    pod.answer().unwrap();
    let _server = fleet.server();
    let _controllers = fleet.start("controllers", &[]);
    let _agent = fleet.agent();
    assert_eq!(fleet.rig.ready(1).remove(0).pid, pod.pid);

    // Consul itself goes, and comes back with what it was told.
    fleet.consul.kill();
    pod.answer().unwrap();
    let said = fleet.rig.cli(&["scale", "rc/hello", "--replicas", "0"]);
    assert_ne!(
        said.code,
        Some(0),
        "nothing is promised meanwhile: {said:?}"
    );
    fleet.consul.start();
    fleet.answers();
    let found = fleet.rig.ready(1).remove(0);
    assert_eq!((&found.name, found.pid), (&pod.name, pod.pid));
    fleet.end_of(&pod);
}

#[test]
fn an_agent_that_boots_while_consul_is_away_runs_what_it_last_knew() {
    let mut fleet = Fleet::new();
    fleet.initialise();
    let server = fleet.server();
    let controllers = fleet.start("controllers", &[]);
    let agent = fleet.agent();
    let pod = fleet.rig.quickstart(1).remove(0);

    // Power is cut, and comes back on this machine alone.
    for process in [server, controllers, agent] {
        process.end(SIGKILL);
    }
    fleet.consul.kill();
    let data = fleet.rig.data_dir();
    eventually("the end of everything", || {
        let left = processes_of(&data);
        left.iter().for_each(|pid| kill(*pid, SIGKILL));
        left.is_empty().then_some(())
    });
    assert!(pod.answer().is_none(), "nothing runs any more");
    let _agent = fleet.agent();
    eventually("the pod serves again", || pod.answer());

    // Consul comes later: from then on the agent does what it is told.
    fleet.consul.start();
    let _server = fleet.server();
    let _controllers = fleet.start("controllers", &[]);
    let found = eventually("the new process is reported", || {
        let found = fleet.rig.ready(1).remove(0);
        (found.pid != pod.pid && is_alive(found.pid)).then_some(found)
    });
    assert_eq!(found.name, pod.name);
    fleet.end_of(&found);
}

#[test]
fn a_store_moves_to_consul_between_its_roots_and_away_from_it() {
    let mut rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);
    assert!(rig.end_up(SIGTERM).success());
    let consul = Consul::start_for(&rig);
    let first = format!("embedded:{}", rig.data_dir().join("store").display());
    let stations = [
        first.clone(),
        consul.url("one"),
        consul.url("two"),
        format!("embedded:{}", rig.path("last").display()),
    ];
    for (n, step) in stations.windows(2).enumerate() {
        let copied = rig.cli(&["store", "copy", &step[0], &step[1]]);
        assert!(copied.err.contains("is sealed"), "{}", copied.err);
        let told = format!("in epoch {}", n + 1);
        assert!(copied.ok().contains(&told), "{n}");
        // Nobody works on a source any more, and nothing is copied over what is there.
        let about = rig.cli(&["store", "info", &step[0]]).ok();
        assert!(about.contains("sealed"), "{about}");
        rig.cli(&["store", "copy", &step[0], &step[1]])
            .fails(6, &["not empty"]);
    }
    rig.cli(&["server", "--store", &stations[1]])
        .fails(1, &["sealed", "store unseal"]);
    rig.cli(&["store", "unseal", &stations[1]]).ok();
    let about = rig.cli(&["store", "info", &stations[1]]).ok();
    assert!(about.contains("active"), "{about}");

    // The pod never noticed, and goes on under the last copy.
    assert!(is_alive(pod.pid));
    fs::rename(rig.data_dir().join("store"), rig.path("old")).unwrap();
    fs::rename(rig.path("last"), rig.data_dir().join("store")).unwrap();
    rig.up();
    let found = rig.ready(1).remove(0);
    assert_eq!((&found.name, found.pid), (&pod.name, pod.pid));
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || rig.pods().is_empty().then_some(()));
}
