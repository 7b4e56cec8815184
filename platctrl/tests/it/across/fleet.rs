//! The machines, what runs on them, and clients elsewhere.

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use platctrl_test_support::network::Network;
use platctrl_test_support::processes::{directory, spawn, tool};
use serde_json::Value;
use tempfile::TempDir;

use crate::network::secure;
use crate::rig::{Rig, Said, eventually, fed, kill};

/// Where the server listens on its machine.
pub(super) const PORT: u16 = 7654;
const ETCD: u16 = 2379;

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

/// A machine: its address, its namespace, and what it has on disk.
struct Machine {
    address: String,
    namespace: String,
    rig: Rig,
    data: PathBuf,
}

impl Machine {
    /// A command as it runs on this machine, with its view of control groups.
    fn on(&self, command: &Command) -> Command {
        let mut there = Command::new("nsenter");
        there
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            there.current_dir(directory);
        }
        there
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.rig.command(args);
        command.env("PLATCTRL_DATA_DIR", &self.data);
        command
    }

    fn cli(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    fn start(&self, args: &[&str]) -> Process {
        let mut options = fs::OpenOptions::new();
        let log = options.create(true).append(true);
        let log = log.open(self.rig.path("up.log")).unwrap();
        let mut command = self.on(&self.command(args));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Process(spawn(command))
    }
}

/// Packs a program that says on which node it begins, and from then on whatever is fed to it.
pub(super) fn feeder(rig: &Rig) {
    let script = "#!/bin/sh\necho \"begin on $NODE_NAME\"\ntouch \"$HOME/feed\"\nexec tail -f \"$HOME/feed\"\n";
    rig.script_artifact("feeder", script);
}

/// One pod of it on the nodes that a selector chooses.
pub(super) fn manifest(rig: &Rig, name: &str, label: &str, selector: &str) -> String {
    format!(
        "\
apiVersion: platctrl.dev/v1
kind: ReplicationController
metadata:
  name: {name}
spec:
  replicas: 1
  nodeSelector: \"{selector}\"
  template:
    metadata: {{ labels: {{ app: {label} }} }}
    spec:
      app: {}
      launchables:
        web:
          type: hoist
          location: feeder.tar.gz
          stopTimeout: 1s
",
        rig.app
    )
}

/// The fleet. What runs is dropped first, what is on disk next, and the network last.
pub(super) struct Fleet {
    agents: [RefCell<Option<Process>>; 2],
    server: RefCell<Option<Process>>,
    controllers: RefCell<Option<Process>>,
    _etcd: Process,
    machines: Vec<Machine>,
    pub(super) network: Network,
    _data: TempDir,
}

impl Fleet {
    /// All three machines at work; None where nobody may make networks.
    pub(super) fn new() -> Option<Self> {
        let network = Network::new(3)?;
        let machines = network.places().into_iter().enumerate();
        let machines = machines.map(|(number, (address, within))| {
            let namespace = within.last().unwrap().clone();
            let rig = Rig::new();
            // Where no agent works there is nothing to uninstall.
            let data = match number {
                0 => rig.path("server"),
                _ => rig.data_dir(),
            };
            Machine {
                address,
                namespace,
                rig,
                data,
            }
        });
        let machines: Vec<_> = machines.collect();
        let data = directory("platctrl-across-");
        let etcd = etcd(&machines[0], &data);
        let fleet = Self {
            agents: Default::default(),
            server: RefCell::default(),
            controllers: RefCell::default(),
            _etcd: etcd,
            machines,
            network,
            _data: data,
        };
        let url = fleet.store();
        eventually("etcd", || {
            let said = fleet.machines[0].cli(&["store", "init", &url]);
            (said.code == Some(0)).then_some(())
        });
        let tls = fleet.path("tls");
        fleet.admin(&["ca", "init", "--tls-dir", &tls]);
        fleet.start_server();
        let controllers = fleet.machines[0].start(&["controllers", "--store", &url]);
        fleet.controllers.replace(Some(controllers));
        for number in [1, 2] {
            let node = fleet.node(number).to_owned();
            fleet.token(&node, "node");
            fleet.admit(number);
            fleet.hand_over(number);
            fleet.start_agent(number, &[]);
        }
        Some(fleet)
    }

    fn store(&self) -> String {
        format!("etcd://{}:{ETCD}/fleet", self.machines[0].address)
    }

    pub(super) fn server_url(&self) -> String {
        format!("https://{}:{PORT}", self.machines[0].address)
    }

    /// The address of the network that is this process's own.
    pub(super) fn own_address(&self) -> String {
        let (net, _) = self.machines[0].address.rsplit_once('.').unwrap();
        format!("{net}.1")
    }

    pub(super) fn node(&self, number: usize) -> &str {
        &self.machines[number].rig.app
    }

    /// A path among the files of whoever looks after the fleet.
    pub(super) fn path(&self, name: &str) -> String {
        let path = self.machines[0].rig.path(name);
        path.to_str().unwrap().to_owned()
    }

    pub(super) fn write(&self, name: &str, text: &str) -> String {
        self.machines[0].rig.write(name, text);
        self.path(name)
    }

    /// What whoever looks after the fleet does, on the server's machine.
    pub(super) fn admin(&self, args: &[&str]) -> String {
        self.machines[0].cli(args).ok()
    }

    pub(super) fn admin_on_store(&self, args: &[&str]) -> String {
        let url = self.store();
        self.admin(&[args, &["--store", &url]].concat())
    }

    /// Makes a token, and keeps it for clients.
    pub(super) fn token(&self, name: &str, role: &str) {
        let token = self.admin(&["token", "create", name, "--role", role]);
        self.write(&format!("{name}.token"), &token);
    }

    pub(super) fn issue(&self, name: &str, role: &str) {
        let (tls, keys) = (self.path("tls"), self.path("keys"));
        fs::create_dir_all(&keys).unwrap();
        let issue = ["ca", "issue", name, "--role", role, "--tls-dir", &tls];
        self.admin(&[&issue[..], &["-o", &keys]].concat());
    }

    /// Admits a node, or gives it another certificate.
    pub(super) fn admit(&self, number: usize) {
        let node = self.node(number);
        let (tls, keys) = (self.path("tls"), self.path("keys"));
        let label = format!("name={node}");
        let admit = ["node", "admit", node, "--labels", &label];
        let signed = ["--tls-dir", &tls, "--output", &keys];
        self.admin_on_store(&[&admit[..], &signed].concat());
    }

    /// Brings the certificate that a node was given to its machine.
    pub(super) fn hand_over(&self, number: usize) {
        for end in ["crt", "key"] {
            let from = self.path(&format!("keys/{}.{end}", self.node(number)));
            let to = self.machines[number].rig.path(&format!("node.{end}"));
            fs::copy(from, to).unwrap();
        }
    }

    /// Keeps a certificate under another name.
    pub(super) fn keep_identity(&self, node: &str, name: &str) {
        for end in ["crt", "key"] {
            let of = |name: &str| self.path(&format!("keys/{name}.{end}"));
            fs::copy(of(node), of(name)).unwrap();
        }
    }

    pub(super) fn start_server(&self) {
        let (url, tls) = (self.store(), self.path("tls"));
        let first = &self.machines[0];
        let listen = format!("{}:{PORT}", first.address);
        let args = ["server", "--store", &url, "--listen", &listen];
        let args = [&args[..], &["--tls-dir", &tls]].concat();
        self.server.replace(Some(first.start(&args)));
        eventually("an answer of the server", || {
            let listens = TcpStream::connect(&listen).is_ok();
            (listens && first.cli(&["get", "nodes"]).code == Some(0)).then_some(())
        });
    }

    pub(super) fn end_server(&self, signal: i32) {
        self.server.take().unwrap().end(signal);
    }

    pub(super) fn start_agent(&self, number: usize, more: &[&str]) {
        let machine = &self.machines[number];
        let node = machine.rig.app.clone();
        let here = |name: &str| machine.rig.path(name).to_str().unwrap().to_owned();
        let (certificate, key) = (here("node.crt"), here("node.key"));
        let (store, server, ca) = (self.store(), self.server_url(), self.path("tls/ca.crt"));
        let token = self.path(&format!("{node}.token"));
        let args = [
            &["agent", "--store", &store, "--node", &node][..],
            &["--address", &machine.address, "--server", &server],
            &["--ca", &ca, "--token-file", &token],
            &["--certificate", &certificate, "--key", &key],
            more,
        ];
        self.agents[number - 1].replace(Some(machine.start(&args.concat())));
    }

    pub(super) fn end_agent(&self, number: usize, signal: i32) {
        self.agents[number - 1].take().unwrap().end(signal);
    }

    /// Has one pod run on each of the two nodes; their names.
    pub(super) fn pods(&self) -> Vec<String> {
        for (number, name) in [(1, "one"), (2, "two")] {
            let machine = &self.machines[number];
            feeder(&machine.rig);
            let selector = format!("name={}", machine.rig.app);
            let text = manifest(&machine.rig, name, name, &selector);
            let file = machine.rig.write("feeder.yaml", text);
            self.admin(&["apply", "-f", file.to_str().unwrap()]);
        }
        let pod = |name: &str| {
            eventually("a pod", || {
                let get = ["get", "pods", "-l", &format!("app={name}"), "-o", "json"];
                let list = self.machines[0].cli(&get);
                let list: Value = serde_json::from_str(&list.out).ok()?;
                let pod = &list["items"][0];
                let name = pod["metadata"]["name"].as_str()?;
                (pod["status"]["phase"] == "Running").then(|| name.to_owned())
            })
        };
        let pods = ["one", "two"].map(pod);
        let client = self.client("admin");
        for pod in &pods {
            eventually("the stream", || {
                (client.cli(&["exec", pod, "--", "true"]).code == Some(0)).then_some(())
            });
        }
        pods.into()
    }

    /// Somebody on the third machine, who has a token and the authority's certificate.
    pub(super) fn client(&self, name: &str) -> Client<'_> {
        let token = match name {
            "admin" => self.path("server/token"),
            name => self.path(&format!("{name}.token")),
        };
        Client {
            machine: &self.machines[2],
            server: self.server_url(),
            ca: self.path("tls/ca.crt"),
            token,
        }
    }

    /// Asks for a node's stream with somebody's certificate: the answer's code and its text.
    pub(super) fn calls_as(&self, node: &str, identity: Option<&str>) -> (u16, String) {
        self.asks_as(&format!("/stream/nodes/{node}"), identity)
    }

    pub(super) fn asks_as(&self, path: &str, identity: Option<&str>) -> (u16, String) {
        let host = &self.machines[0].address;
        let of = |name: &str, end: &str| self.path(&format!("keys/{name}.{end}")).into();
        let identity = identity.map(|name| (of(name, "crt"), of(name, "key")));
        let ca = self.path("tls/ca.crt");
        let mut stream = secure(&format!("{host}:{PORT}"), host, ca.as_ref(), identity);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: platctrl-node\r\nplatctrl-instance: somebody\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 4_096]);
        // A `Status` is the whole body.
        while !answer.ends_with(b"}") {
            match stream.read(&mut piece) {
                Ok(read) if read > 0 => answer.extend_from_slice(&piece[..read]),
                _ => break,
            }
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in &self.machines {
                eprintln!("--- {} said:\n{}", machine.rig.app, machine.rig.log());
            }
        }
    }
}

fn etcd(machine: &Machine, data: &TempDir) -> Process {
    let (address, dir) = (&machine.address, data.path().display());
    let (client, peer) = (
        format!("http://{address}:{ETCD}"),
        format!("http://{address}:2380"),
    );
    let mut command = Command::new(tool("etcd-3.5").join("etcd"));
    command.args([
        format!("--data-dir={dir}/data"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--log-level=error".to_owned(),
    ]);
    let mut command = machine.on(&command);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Process(spawn(command))
}

/// Somebody with nothing of a server's but where it is and a token.
pub(super) struct Client<'f> {
    machine: &'f Machine,
    server: String,
    ca: String,
    token: String,
}

impl Client<'_> {
    pub(super) fn command(&self, args: &[&str]) -> Command {
        self.machine
            .on(&self.prepared(self.machine.rig.command(args)))
    }

    /// Another program, with the same environment.
    pub(super) fn on(&self, words: &[&str]) -> Command {
        let ours = self.prepared(self.machine.rig.command(&[]));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        for (name, value) in ours.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.machine.on(&command)
    }

    fn prepared(&self, mut command: Command) -> Command {
        let token = fs::read_to_string(&self.token).unwrap();
        command
            .env("PLATCTRL_DATA_DIR", self.machine.rig.path("elsewhere"))
            .env("PLATCTRL_SERVER", &self.server)
            .env("PLATCTRL_CA", &self.ca)
            .env("PLATCTRL_TOKEN", token.trim());
        command
    }

    pub(super) fn cli(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    pub(super) fn cli_with(&self, args: &[&str], input: &[u8]) -> Said {
        fed(self.command(args), input)
    }
}
