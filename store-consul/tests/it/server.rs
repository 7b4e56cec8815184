//! Real Consul servers: each a process on an address of its own, killed when the test ends in
//! whatever way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_store_consul::{Address, ConsulStore, Options, TlsOptions};
use platctrl_test_support::certificates::Authority;
use platctrl_test_support::processes::{address, directory, spawn, tool};
pub(crate) use platctrl_test_support::processes::{random, root, wait_until};
use platctrl_test_support::slow_disk::SlowDisk;

/// The token that may do everything.
pub(crate) const ROOT_TOKEN: &str = "5f0d0e06-9c3d-4b8e-8a5e-0123456789ab";

/// The program, unpacked if need be.
fn program() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| tool("consul").join("consul"))
}

/// How a cluster is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) servers: usize,
    pub(crate) acl: bool,
    pub(crate) tls: bool,
    /// How long a leader goes without the others, times Consul's fastest.
    pub(crate) raft_multiplier: u32,
}

impl Plan {
    pub(crate) fn one() -> Self {
        Self {
            servers: 1,
            acl: false,
            tls: false,
            raft_multiplier: 1,
        }
    }

    pub(crate) fn three() -> Self {
        Self {
            servers: 3,
            ..Self::one()
        }
    }

    pub(crate) fn with_acl(self) -> Self {
        Self { acl: true, ..self }
    }

    pub(crate) fn with_tls(self) -> Self {
        Self { tls: true, ..self }
    }
}

/// A running cluster. Its sessions may be as short as 250 ms; all else is as Consul has it.
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) servers: Vec<Server>,
    pub(crate) authority: Authority,
    dir: tempfile::TempDir,
}

/// One server or client agent.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: String,
    dir: PathBuf,
    config: PathBuf,
    /// What runs it: a network namespace, for example.
    within: Vec<String>,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let mut words: Vec<String> = self.within.clone();
        words.push(program().display().to_string());
        words.push("agent".to_owned());
        words.push(format!("-config-file={}", self.config.display()));
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("GOMAXPROCS", "2")
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

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.process.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Makes its disk slow.
    pub(crate) fn slow_disk(&self, delay: Duration) -> SlowDisk {
        SlowDisk::of(self.pid(), delay, self.dir.join("synced"))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Asks over plain HTTP with the token that may do everything: status and body.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        self.ask_as(ROOT_TOKEN, method, path, body)
    }

    pub(crate) fn ask_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let (status, body) = self.ask_bytes(token, method, path, body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    pub(crate) fn ask_bytes(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, Vec<u8>)> {
        let address = format!("{}:8500", self.address).parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let token = if token.is_empty() {
            String::new()
        } else {
            format!("X-Consul-Token: {token}\r\n")
        };
        // At once: a server that answers before it has all of a request may cut the answer off.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: consul\r\n{token}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = head.map_or(Vec::new(), |head| answer.split_off(head + 4));
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.unwrap_or(0), body))
    }

    /// Asks for what must be granted.
    pub(crate) fn must(&self, method: &str, path: &str, body: &str) -> String {
        let (status, answer) = self.ask(method, path, body).unwrap();
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }

    fn takes_writes(&self) -> bool {
        let path = "/v1/kv/ready";
        self.ask("PUT", path, "x")
            .is_ok_and(|(status, _)| status == 200)
    }

    /// It takes itself for the leader.
    pub(crate) fn is_leader(&self) -> bool {
        self.process.is_some()
            && self
                .ask("GET", "/v1/agent/self", "")
                .is_ok_and(|(_, body)| body.contains("\"leader\":\"true\""))
    }
}

impl Cluster {
    pub(crate) fn start(plan: Plan) -> Self {
        let places = (0..plan.servers).map(|_| (address(), Vec::new())).collect();
        Self::start_at(plan, places)
    }

    /// Starts servers at these addresses, each within the command named.
    pub(crate) fn start_at(plan: Plan, places: Vec<(String, Vec<String>)>) -> Self {
        let dir = directory("platctrl-consul-");
        let authority = Authority::new("the cluster's authority");
        let all: Vec<String> = places.iter().map(|(address, _)| address.clone()).collect();
        let mut servers = Vec::new();
        for (n, (address, within)) in places.into_iter().enumerate() {
            let name = format!("s{n}");
            let own = dir.path().join(&name);
            std::fs::create_dir(&own).unwrap();
            let mut config = serde_json::json!({
                "server": true,
                "bootstrap_expect": plan.servers,
                "retry_join": all,
                "retry_interval": "1s",
                "skip_leave_on_interrupt": true,
            });
            common(&mut config, plan, &name, &address, &own);
            if plan.tls {
                let names = vec![address.clone(), "server.dc1.consul".to_owned()];
                let (certificate, key) = authority.issue("server", names).write(&own, "server");
                config["ports"]["https"] = 8501.into();
                config["cert_file"] = certificate.display().to_string().into();
                config["key_file"] = key.display().to_string().into();
                config["ca_file"] = authority.write(&own).display().to_string().into();
                config["verify_incoming_https"] = true.into();
            }
            servers.push(server(name, address, own, within, &config));
        }
        for server in &mut servers {
            server.start();
        }
        let cluster = Self {
            plan,
            servers,
            authority,
            dir,
        };
        cluster.wait_until_ready();
        cluster
    }

    /// Starts a client agent, which keeps no data and forwards to the servers.
    pub(crate) fn start_agent(&self) -> Server {
        self.start_agent_at(address(), Vec::new())
    }

    /// Starts a client agent at an address, within a command.
    pub(crate) fn start_agent_at(&self, address: String, within: Vec<String>) -> Server {
        let name = format!("agent-{:08x}", random() as u32);
        let own = self.dir.path().join(&name);
        std::fs::create_dir(&own).unwrap();
        let all: Vec<&str> = self
            .servers
            .iter()
            .map(|server| server.address.as_str())
            .collect();
        let mut config = serde_json::json!({
            "retry_join": all,
            "retry_interval": "1s",
        });
        common(&mut config, self.plan, &name, &address, &own);
        let mut agent = server(name, address, own, within, &config);
        agent.start();
        wait_until(Duration::from_secs(30), "the agent answers", || {
            agent.takes_writes()
        });
        agent
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until every server that runs takes writes.
    pub(crate) fn wait_until_ready(&self) {
        for server in self
            .servers
            .iter()
            .filter(|server| server.process.is_some())
        {
            wait_until(Duration::from_secs(60), "the servers take writes", || {
                server.takes_writes()
            });
        }
    }

    /// A server that runs.
    pub(crate) fn any(&self) -> &Server {
        let mut running = self
            .servers
            .iter()
            .filter(|server| server.process.is_some());
        running.next().unwrap()
    }

    /// The position of the leader.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.servers.iter().position(Server::is_leader)
    }

    pub(crate) fn address(&self, n: usize, root: &str) -> Address {
        let port = if self.plan.tls { 8501 } else { 8500 };
        let host = &self.servers[n].address;
        format!("consul://{host}:{port}/{root}").parse().unwrap()
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options::default();
        options.min_lease = Duration::from_millis(250);
        if self.plan.tls {
            let mut tls = TlsOptions::with_ca(self.authority.write(self.dir.path()));
            let pair = self
                .authority
                .issue("client", vec!["client.test".to_owned()]);
            tls.client = Some(pair.write(self.dir.path(), &root()));
            tls.server_name = Some("server.dc1.consul".to_owned());
            options.tls = Some(tls);
        }
        if self.plan.acl {
            options.token_file = Some(self.token_file(ROOT_TOKEN));
        }
        options
    }

    pub(crate) fn token_file(&self, token: &str) -> PathBuf {
        let path = self.dir.path().join(format!("token-{:016x}", random()));
        std::fs::write(&path, format!("{token}\n")).unwrap();
        path
    }

    pub(crate) async fn store(&self, root: &str) -> ConsulStore {
        self.store_at(0, root).await
    }

    pub(crate) async fn store_at(&self, n: usize, root: &str) -> ConsulStore {
        ConsulStore::open(
            &self.address(n, root),
            self.options(),
            Environment::system(),
        )
        .await
        .unwrap()
    }

    /// Makes a token with these rules; returns the policy's and the token's id, and the token.
    pub(crate) fn token(&self, rules: &str) -> Token {
        let name = format!("p-{:016x}", random());
        let policy = serde_json::json!({"Name": name, "Rules": rules}).to_string();
        let policy = self.any().must("PUT", "/v1/acl/policy", &policy);
        let policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
        let token = serde_json::json!({"Policies": [{"Name": name}]}).to_string();
        let token = self.any().must("PUT", "/v1/acl/token", &token);
        let token: serde_json::Value = serde_json::from_str(&token).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Token {
            policy: text(&policy["ID"]),
            name,
            accessor: text(&token["AccessorID"]),
            secret: text(&token["SecretID"]),
        }
    }

    /// Runs Consul's own command line.
    pub(crate) fn consul(&self, arguments: &[&str]) -> String {
        let output = Command::new(program())
            .args(arguments)
            .env_clear()
            .env("CONSUL_HTTP_ADDR", format!("{}:8500", self.any().address))
            .env("CONSUL_HTTP_TOKEN", ROOT_TOKEN)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "consul {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn logs(&self) -> String {
        let log = |server: &Server| format!("== {}\n{}", server.name, server.log());
        self.servers.iter().map(log).collect()
    }
}

/// A token of Consul's access control.
pub(crate) struct Token {
    policy: String,
    name: String,
    accessor: String,
    pub(crate) secret: String,
}

impl Token {
    /// Gives its policy other rules.
    pub(crate) fn change(&self, cluster: &Cluster, rules: &str) {
        let body = serde_json::json!({"ID": self.policy, "Name": self.name, "Rules": rules});
        let path = format!("/v1/acl/policy/{}", self.policy);
        cluster.any().must("PUT", &path, &body.to_string());
    }

    pub(crate) fn delete(&self, cluster: &Cluster) {
        let path = format!("/v1/acl/token/{}", self.accessor);
        cluster.any().must("DELETE", &path, "");
    }
}

fn common(config: &mut serde_json::Value, plan: Plan, name: &str, address: &str, own: &Path) {
    let more = serde_json::json!({
        "node_name": format!("{name}-{:08x}", random() as u32),
        "data_dir": own.join("data"),
        "bind_addr": address,
        "advertise_addr": address,
        "client_addr": address,
        "datacenter": "dc1",
        "disable_update_check": true,
        "disable_host_node_id": true,
        "log_level": "info",
        "session_ttl_min": "250ms",
        "performance": {"raft_multiplier": plan.raft_multiplier, "leave_drain_time": "0s"},
        "ports": {"http": 8500, "https": -1, "dns": -1, "grpc": -1, "serf_wan": -1},
    });
    let config = config.as_object_mut().unwrap();
    config.extend(more.as_object().unwrap().clone());
    if plan.acl {
        config.insert(
            "acl".to_owned(),
            serde_json::json!({
                "enabled": true,
                "default_policy": "deny",
                "token_ttl": "0s",
                "policy_ttl": "0s",
                "tokens": {"master": ROOT_TOKEN, "agent": ROOT_TOKEN},
            }),
        );
    }
}

fn server(
    name: String,
    address: String,
    dir: PathBuf,
    within: Vec<String>,
    config: &serde_json::Value,
) -> Server {
    let path = dir.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    Server {
        name,
        address,
        config: path,
        dir,
        within,
        process: None,
    }
}
