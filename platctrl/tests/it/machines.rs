//! Server, controllers and agent as processes of their own, that meet in a real etcd.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::rig::{Rig, eventually, is_alive, kill};

/// A process that ends with its test.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn end(mut self, signal: i32) {
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

fn etcd_program() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
        let output = Command::new(script).arg("etcd-3.5").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/tools etcd-3.5: {said}");
        let dir = String::from_utf8(output.stdout).unwrap();
        Path::new(dir.trim_end()).join("etcd")
    })
}

/// Two ports that were free a moment ago.
fn ports() -> [u16; 2] {
    let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|it| it.local_addr().unwrap().port())
}

pub(crate) struct Fleet {
    // Dropped first: what uninstalls the pods needs no store.
    pub(crate) rig: Rig,
    pub(crate) url: String,
    _etcd: Process,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let rig = Rig::new();
        // Another test may have taken a port in between.
        let (etcd, port) = (0..5)
            .find_map(|_| {
                let [client, peer] = ports();
                let dir = rig.path(&format!("etcd-{client}"));
                let log = fs::File::create(rig.path("etcd.log")).unwrap();
                let (client_url, peer_url) = (
                    format!("http://127.0.0.1:{client}"),
                    format!("http://127.0.0.1:{peer}"),
                );
                let child = Command::new(etcd_program())
                    .args(["--data-dir", dir.to_str().unwrap(), "--log-level", "error"])
                    .args(["--listen-client-urls", &client_url])
                    .args(["--advertise-client-urls", &client_url])
                    .args(["--listen-peer-urls", &peer_url])
                    .args(["--initial-advertise-peer-urls", &peer_url])
                    .args(["--initial-cluster", &format!("default={peer_url}")])
                    .stdin(Stdio::null())
                    .stdout(log.try_clone().unwrap())
                    .stderr(log)
                    .spawn()
                    .unwrap();
                let mut etcd = Process(child);
                eventually("etcd to listen, or to end", || {
                    if etcd.0.try_wait().unwrap().is_some() {
                        return Some(false);
                    }
                    TcpStream::connect(("127.0.0.1", client)).ok().map(|_| true)
                })
                .then_some((etcd, client))
            })
            .expect("an etcd");
        let url = format!("etcd://127.0.0.1:{port}/{}", rig.app);
        Self {
            rig,
            url,
            _etcd: etcd,
        }
    }

    /// Starts one of platctrl's processes.
    pub(crate) fn start(&self, role: &str, more: &[&str]) -> Process {
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

    pub(crate) fn server(&self) -> Process {
        let server = self.start("server", &[]);
        eventually("an answer of the server", || {
            (self.rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
        });
        server
    }
}

#[test]
fn server_controllers_and_agent_meet_in_etcd_and_survive_each_other() {
    let fleet = Fleet::new();
    let (rig, node) = (&fleet.rig, fleet.rig.app.clone());
    for role in ["server", "controllers", "agent"] {
        rig.cli(&[role, "--store", &fleet.url])
            .fails(3, &["no anchor", "store init etcd://"]);
    }
    rig.cli(&["store", "init", &fleet.url]).ok();
    let about = rig.cli(&["store", "info", &fleet.url]).ok();
    assert!(about.contains("active"), "{about}");
    rig.cli(&[
        "node", "admit", &node, "--store", &fleet.url, "--labels", "role=web",
    ])
    .ok();
    let again = rig
        .cli(&["node", "admit", &node, "--store", &fleet.url])
        .ok();
    assert_eq!(again, format!("node/{node} unchanged\n"));

    let server = fleet.server();
    let mut controllers = vec![
        fleet.start("controllers", &[]),
        fleet.start("controllers", &[]),
    ];
    let agent = fleet.start("agent", &["--node", &node]);
    let pod = rig.quickstart(1).remove(0);
    pod.answer().unwrap();
    let nodes = rig
        .cli(&["get", "nodes", "-l", "role=web", "-o", "name"])
        .ok();
    assert_eq!(nodes, format!("node/{node}\n"));

    // Nobody but the shim is needed for it to serve.
    server.end(9);
    agent.end(9);
    controllers.remove(0).end(9);
    assert!(is_alive(pod.pid));
    pod.answer().unwrap();

    // Whichever of the controllers led, one does now.
    let _server = fleet.server();
    let _agent = fleet.start("agent", &["--node", &node]);
    let found = rig.ready(1).remove(0);
    assert_eq!(found.pid, pod.pid);
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || rig.pods().is_empty().then_some(()));
    assert!(!is_alive(pod.pid));
}

#[test]
fn an_agent_elsewhere_fetches_artifacts_over_tls_with_a_token_that_lets_it_do_nothing_else() {
    let fleet = Fleet::new();
    let (rig, node) = (&fleet.rig, fleet.rig.app.clone());
    rig.cli(&["store", "init", &fleet.url]).ok();
    rig.cli(&["node", "admit", &node, "--store", &fleet.url])
        .ok();
    let tls = rig.path("tls");
    let tls = tls.to_str().unwrap();
    rig.cli(&["ca", "init", "--tls-dir", tls]).ok();
    // The server's machine, which is not the agent's.
    let there = rig.path("there");
    let there = there.to_str().unwrap();
    let here = ["--data-dir", there];
    let on_server = |args: &[&str]| rig.cli(&[args, &here].concat());
    let listen = [&here[..], &["--listen", "127.0.0.1:0", "--tls-dir", tls]].concat();
    let _server = fleet.start("server", &listen);
    let url = eventually("the server to listen", || {
        fs::read_to_string(Path::new(there).join("listens")).ok()
    });
    eventually("an answer of the server", || {
        (on_server(&["get", "nodes"]).code == Some(0)).then_some(())
    });
    let _controllers = fleet.start("controllers", &here);
    let token = on_server(&["token", "create", "web1", "--role", "node"]).ok();
    let token = rig.write("web1.token", token);
    let ca = format!("{tls}/ca.crt");
    let over_tls = [
        "--server",
        url.as_str(),
        "--ca",
        &ca,
        "--token-file",
        token.to_str().unwrap(),
    ];
    let _agent = fleet.start("agent", &[&over_tls[..], &["--node", &node]].concat());

    rig.quickstart_artifact().manifest(1, |text| text);
    on_server(&["apply", "-f", "hello.yaml"]).ok();
    let pod = eventually("a pod", || {
        let list = on_server(&["get", "pods", "-o", "json"]).ok();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let pod = list["items"].get(0)?.clone();
        let ready = pod["status"]["conditions"].as_array()?;
        let is_ready = |it: &serde_json::Value| it["type"] == "Ready" && it["status"] == "True";
        ready.iter().any(is_ready).then_some(pod)
    });
    assert_eq!(pod["status"]["nodeName"], node.as_str());

    // What a stolen machine has lets nobody read or change objects.
    let stolen = |args: &[&str]| rig.cli(&[args, &over_tls].concat());
    stolen(&["get", "pods"]).fails(4, &["web1", "takes the role viewer"]);
    on_server(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || {
        (on_server(&["get", "pods", "-o", "name"]).ok().is_empty()).then_some(())
    });
}

#[test]
fn a_store_moves_from_one_machine_to_etcd() {
    let fleet = Fleet::new();
    let mut rig = Rig::running();
    let node = rig.app.clone();
    let pod = rig.quickstart(1).remove(0);
    assert!(rig.end_up(15).success());
    let embedded = format!("embedded:{}", rig.data_dir().join("store").display());
    let copied = rig.cli(&["store", "copy", &embedded, &fleet.url]);
    assert!(copied.ok().contains("in epoch 1"));

    let start = |role: &str, more: &[&str]| {
        let mut args = vec![role, "--store", &fleet.url];
        args.extend(more);
        let log = fs::OpenOptions::new().append(true).open(rig.path("up.log"));
        Process(rig.command(&args).stderr(log.unwrap()).spawn().unwrap())
    };
    let _server = start("server", &[]);
    let _controllers = start("controllers", &[]);
    let _agent = start("agent", &["--node", &node]);
    eventually("an answer of the server", || {
        (rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
    });
    let found = rig.ready(1).remove(0);
    assert_eq!((found.name, found.pid), (pod.name, pod.pid));
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || rig.pods().is_empty().then_some(()));

    rig.cli(&["server", "--store", &embedded])
        .fails(2, &["one process at a time", "platctrl up"]);
}

#[test]
fn a_store_that_cannot_be_reached_is_named() {
    let rig = Rig::new();
    let [port, _] = ports();
    let url = format!("etcd://127.0.0.1:{port}/fleet");
    rig.cli(&["store", "info", &url])
        .fails(3, &[&format!("127.0.0.1:{port}")]);
    let consul = format!("consul://127.0.0.1:{port}/fleet");
    rig.cli(&["store", "info", &consul])
        .fails(3, &[&format!("127.0.0.1:{port}")]);
    rig.cli(&["store", "info", "consul://127.0.0.1"])
        .fails(2, &["consul://"]);
    rig.cli(&["store", "info", "etcd://127.0.0.1"])
        .fails(2, &["etcd://"]);
    rig.cli(&["store", "check", &url])
        .fails(2, &["its own tools"]);
    rig.cli(&["store", "--store-user", "me", "info", &url])
        .fails(2, &["--store-password-file"]);
}
