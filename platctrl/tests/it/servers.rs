//! Real servers of stores: an etcd and a Consul, each for anybody, or asking who anybody is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use platctrl_test_support::processes::{address, directory, spawn, tool};

use crate::rig::eventually;

/// The password of etcd's user `root`, and Consul's token that may do everything.
const HUSH: &str = "5f0d0e06-9c3d-4b8e-8a5e-0123456789ab";

/// A server that ends with its test, and its files.
pub(crate) struct Server {
    process: Option<Child>,
    program: PathBuf,
    arguments: Vec<String>,
    /// Host and port of its clients.
    pub(crate) at: String,
    programs: PathBuf,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let from = log.len().saturating_sub(4_000);
            eprintln!(
                "--- the server said last:\n{}",
                log.get(from..).unwrap_or(&log)
            );
        }
    }
}

impl Server {
    fn of(
        name: &str,
        program: &str,
        at: String,
        arguments: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let programs = tool(name);
        let dir = directory("platctrl-server-");
        let mut server = Self {
            process: None,
            program: programs.join(program),
            arguments: arguments(dir.path()),
            at,
            programs,
            dir,
        };
        server.launch();
        server
    }

    fn launch(&mut self) {
        let mut options = fs::OpenOptions::new();
        let log = options.create(true).append(true);
        let log = log.open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(spawn(command));
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again with what it kept, and waits until it works.
    pub(crate) fn start(&mut self) {
        self.launch();
        self.answers();
    }

    /// Somebody listens where it is.
    pub(crate) fn listens(&self) -> bool {
        TcpStream::connect(&self.at).is_ok()
    }

    fn answers(&self) {
        if self.program.ends_with("etcd") {
            eventually("an answer of etcd", || self.etcdctl(&["get", "x"]).ok());
            return;
        }
        eventually("a write of Consul", || {
            let (status, _) = self.ask(HUSH, "PUT", "/v1/kv/ready", "x")?;
            (status == 200).then_some(())
        });
    }

    /// An etcd of a release that asks nobody who he is.
    pub(crate) fn open_etcd(release: &str) -> Self {
        let address = address();
        let (client, peer) = (
            format!("http://{address}:2379"),
            format!("http://{address}:2380"),
        );
        let server = Self::of(release, "etcd", format!("{address}:2379"), |dir| {
            vec![
                format!("--data-dir={}", dir.join("data").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--bcrypt-cost=4".to_owned(),
                "--log-level=warn".to_owned(),
            ]
        });
        server.answers();
        server
    }

    /// An etcd of a release whose users are asked who they are.
    pub(crate) fn etcd(release: &str) -> Self {
        let server = Self::open_etcd(release);
        for command in [
            &["user", "add", &format!("root:{HUSH}")][..],
            &["user", "grant-role", "root", "root"],
            &["auth", "enable"],
        ] {
            server.etcdctl(command).unwrap();
        }
        server
    }

    /// A Consul that asks nobody who he is.
    pub(crate) fn open_consul() -> Self {
        Self::consul_with(serde_json::Value::Null)
    }

    /// A Consul whose tokens may do nothing unless told.
    pub(crate) fn consul() -> Self {
        Self::consul_with(serde_json::json!({
            "enabled": true, "default_policy": "deny",
            "token_ttl": "0s", "policy_ttl": "0s",
            "tokens": {"master": HUSH, "agent": HUSH},
        }))
    }

    fn consul_with(acl: serde_json::Value) -> Self {
        let address = address();
        let at = format!("{address}:8500");
        let server = Self::of("consul", "consul", at, |dir| {
            let mut config = serde_json::json!({
                "server": true, "bootstrap_expect": 1, "datacenter": "dc1",
                "node_name": "one", "data_dir": dir.join("data"),
                "bind_addr": address, "client_addr": address,
                "disable_update_check": true, "disable_host_node_id": true,
                "performance": {"raft_multiplier": 1, "leave_drain_time": "0s"},
                "ports": {"http": 8500, "dns": -1, "grpc": -1, "serf_wan": -1},
            });
            if !acl.is_null() {
                config["acl"] = acl;
            }
            let file = dir.join("config.json");
            fs::write(&file, config.to_string()).unwrap();
            vec![
                "agent".to_owned(),
                format!("-config-file={}", file.display()),
            ]
        });
        server.answers();
        server
    }

    /// What may do everything, as a file.
    pub(crate) fn hush(&self) -> PathBuf {
        let file = self.dir.path().join("hush");
        fs::write(&file, HUSH).unwrap();
        file
    }

    /// Runs etcdctl with the rights of root, once there is one.
    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> Result<String, String> {
        let enabled = self.dir.path().join("enabled");
        let user = if enabled.exists() {
            format!("root:{HUSH}")
        } else {
            String::new()
        };
        let outcome = self.etcdctl_as(&user, arguments);
        if outcome.is_ok() && arguments == ["auth", "enable"] {
            fs::write(enabled, "").unwrap();
        }
        outcome
    }

    pub(crate) fn etcdctl_as(&self, user: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("etcdctl"));
        command
            .env_clear()
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.at));
        if !user.is_empty() {
            command.arg(format!("--user={user}"));
        }
        let output = command.args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Runs a script in which `consul` is Consul's own program, with every right.
    pub(crate) fn consul_shell(&self, script: &str) -> String {
        let path = format!("{}:/usr/bin:/bin", self.programs.display());
        let output = Command::new("sh")
            .args(["-euc", script])
            .env_clear()
            .env("PATH", path)
            .env("CONSUL_HTTP_ADDR", &self.at)
            .env("CONSUL_HTTP_TOKEN", HUSH)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A request of Consul's HTTP API: status and body; None when nobody answers.
    pub(crate) fn ask(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.at).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .ok()?;
        // At once: a server that answers before it has all of a request may cut the answer off.
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: consul\r\nX-Consul-Token: {token}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    }
}
