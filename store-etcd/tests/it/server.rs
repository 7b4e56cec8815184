//! Real etcd clusters: each member a process on an address of its own, killed when the test ends
//! in whatever way.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use platctrl_store_etcd::{Credentials, EtcdStore, Location, Options, Tls};
use platctrl_test_support::certificates::Authority;
pub(crate) use platctrl_test_support::processes::{address, random, root, wait_until};
use platctrl_test_support::processes::{directory, spawn, tool};
use platctrl_test_support::slow_disk::SlowDisk;
use rustix::process::{Pid, Signal, kill_process};

/// Which etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    V3_4,
    V3_5,
    /// 3.5.30 or newer, which confines its users.
    Next,
}

impl Release {
    /// The directory of its programs.
    pub(crate) fn programs(self) -> PathBuf {
        static PLACES: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
        let (place, name) = match self {
            Self::V3_4 => (&PLACES[0], "etcd-3.4"),
            Self::V3_5 => (&PLACES[1], "etcd-3.5"),
            Self::Next => (&PLACES[2], "etcd-next"),
        };
        place.get_or_init(|| tool(name)).clone()
    }
}

/// How a cluster is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) release: Release,
    pub(crate) members: usize,
    pub(crate) tls: bool,
    pub(crate) auth: bool,
    /// Further arguments of each member.
    pub(crate) arguments: &'static [&'static str],
}

impl Plan {
    pub(crate) fn one(release: Release) -> Self {
        Self {
            release,
            members: 1,
            tls: false,
            auth: false,
            arguments: &[],
        }
    }

    pub(crate) fn three(release: Release) -> Self {
        Self {
            members: 3,
            ..Self::one(release)
        }
    }

    pub(crate) fn with_tls(self) -> Self {
        Self { tls: true, ..self }
    }

    pub(crate) fn with_auth(self) -> Self {
        Self { auth: true, ..self }
    }

    pub(crate) fn with_arguments(self, arguments: &'static [&'static str]) -> Self {
        Self { arguments, ..self }
    }
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) members: Vec<Member>,
    pub(crate) authority: Authority,
    /// The token that the cluster was made with.
    pub(crate) token: String,
    dir: tempfile::TempDir,
}

/// One member.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    arguments: Vec<String>,
    program: PathBuf,
    process: Option<Child>,
    log: PathBuf,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    pub(crate) fn pid(&self) -> Pid {
        let process = self.process.as_ref().expect("it runs");
        Pid::from_child(process)
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
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

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}:2379", self.address)
    }

    /// Makes its disk slow.
    pub(crate) fn slow_disk(&self, delay: Duration) -> SlowDisk {
        let pid = self.process.as_ref().expect("it runs").id();
        SlowDisk::of(pid, delay, self.log.with_file_name("synced"))
    }
}

impl Cluster {
    pub(crate) fn start(plan: Plan) -> Self {
        let addresses: Vec<String> = (0..plan.members).map(|_| address()).collect();
        let places = addresses.into_iter().map(|address| (address, Vec::new()));
        Self::start_at(plan, places.collect())
    }

    /// Starts each member at an address, within a command where there is one.
    pub(crate) fn start_at(plan: Plan, places: Vec<(String, Vec<String>)>) -> Self {
        let dir = directory("platctrl-etcd-");
        let authority = Authority::new("the cluster's authority");
        let scheme = if plan.tls { "https" } else { "http" };
        let token = root();
        let initial: Vec<String> = places
            .iter()
            .enumerate()
            .map(|(n, (address, _))| format!("m{n}=http://{address}:2380"))
            .collect();
        let initial = initial.join(",");
        let mut members = Vec::new();
        for (n, (address, within)) in places.into_iter().enumerate() {
            let name = format!("m{n}");
            let own = dir.path().join(&name);
            std::fs::create_dir(&own).unwrap();
            let mut arguments: Vec<String> = [
                ("name", name.clone()),
                ("data-dir", own.join("data").display().to_string()),
                ("listen-client-urls", format!("{scheme}://{address}:2379")),
                (
                    "advertise-client-urls",
                    format!("{scheme}://{address}:2379"),
                ),
                ("listen-peer-urls", format!("http://{address}:2380")),
                (
                    "initial-advertise-peer-urls",
                    format!("http://{address}:2380"),
                ),
                ("initial-cluster", initial.clone()),
                ("initial-cluster-token", token.clone()),
                ("bcrypt-cost", "4".to_owned()),
                ("log-level", "warn".to_owned()),
                ("logger", "zap".to_owned()),
            ]
            .into_iter()
            .map(|(flag, value)| format!("--{flag}={value}"))
            .collect();
            arguments.extend(plan.arguments.iter().map(|&argument| argument.to_owned()));
            if plan.tls {
                let names = vec![address.clone(), "etcd.test".to_owned()];
                let (certificate, key) = authority.issue("server", names).write(&own, "server");
                let ca = authority.write(&own);
                arguments.push(format!("--cert-file={}", certificate.display()));
                arguments.push(format!("--key-file={}", key.display()));
                arguments.push(format!("--trusted-ca-file={}", ca.display()));
                arguments.push("--client-cert-auth".to_owned());
            }
            let mut program = plan.release.programs().join("etcd");
            if let [first, rest @ ..] = &within[..] {
                let etcd = std::mem::replace(&mut program, PathBuf::from(first));
                let words = rest.iter().cloned().chain([etcd.display().to_string()]);
                arguments.splice(0..0, words);
            }
            members.push(Member {
                name,
                address,
                arguments,
                program,
                process: None,
                log: own.join("log"),
            });
        }
        for member in &mut members {
            member.start();
        }
        let cluster = Self {
            plan,
            members,
            authority,
            token,
            dir,
        };
        cluster.wait_until_ready();
        if plan.auth {
            for command in [
                &["user", "add", "root:hush"][..],
                &["user", "grant-role", "root", "root"],
                &["auth", "enable"],
            ] {
                cluster.ctl(command);
            }
        }
        cluster
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the only member's data by a snapshot's. It is to be started again.
    pub(crate) fn restore(&mut self, snapshot: &str, token: &str, arguments: &[&str]) {
        self.members[0].kill();
        let data = self.dir().join("m0/data");
        let before = self.dir().join(format!("m0/before{:x}", random()));
        std::fs::rename(&data, before).unwrap();
        let peer = format!("http://{}:2380", self.members[0].address);
        let fixed = [
            "--name=m0".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--initial-cluster=m0={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster-token={token}"),
        ];
        let mut all = vec!["snapshot", "restore", snapshot];
        all.extend(fixed.iter().map(String::as_str));
        all.extend(arguments);
        self.ctl(&all);
    }

    /// Waits until the cluster answers a read.
    pub(crate) fn wait_until_ready(&self) {
        wait_until(Duration::from_secs(30), "the cluster answers", || {
            self.try_ctl(&["get", "nothing"]).is_ok()
        });
    }

    /// Runs etcdctl with the rights of root.
    pub(crate) fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let endpoints: Vec<String> = self.members.iter().map(Member::endpoint).collect();
        self.try_ctl_at(&endpoints.join(","), arguments)
    }

    pub(crate) fn try_ctl_at(&self, endpoints: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.plan.release.programs().join("etcdctl"));
        command
            .env_clear()
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={endpoints}"))
            .arg("--command-timeout=4s")
            .arg("--dial-timeout=2s");
        if self.plan.auth && self.is_auth_enabled() {
            command.arg("--user=root:hush");
        }
        if self.plan.tls {
            let (certificate, key) = self.client_certificate("etcdctl");
            let ca = self.authority.write(self.dir.path());
            command
                .arg(format!("--cacert={}", ca.display()))
                .arg(format!("--cert={}", certificate.display()))
                .arg(format!("--key={}", key.display()));
        }
        let output = command.args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            if arguments == ["auth", "enable"] {
                std::fs::write(self.dir.path().join("auth"), "").unwrap();
            }
            return Ok(text(&output.stdout));
        }
        Err(text(&output.stderr) + &text(&output.stdout))
    }

    fn is_auth_enabled(&self) -> bool {
        self.dir.path().join("auth").exists()
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let outcome = self.try_ctl(arguments);
        outcome.unwrap_or_else(|said| panic!("etcdctl {arguments:?}: {said}"))
    }

    /// A client's certificate and key, written once.
    pub(crate) fn client_certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        let stem = format!("client-{name}");
        let paths = (
            self.dir.path().join(format!("{stem}.pem")),
            self.dir.path().join(format!("{stem}.key")),
        );
        if paths.0.exists() && paths.1.exists() {
            return paths;
        }
        // No common name: it would be the user, and passwords are used here.
        self.authority
            .issue("", vec!["client.test".to_owned()])
            .write(self.dir.path(), &stem)
    }

    pub(crate) fn location(&self, root: &str) -> Location {
        let endpoints: Vec<String> = self.members.iter().map(Member::endpoint).collect();
        format!("etcd://{}/{root}", endpoints.join(","))
            .parse()
            .unwrap()
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options::default();
        if self.plan.tls {
            let ca = self.authority.write(self.dir.path());
            let (certificate, key) = self.client_certificate("store");
            options.tls = Some(Tls::new(ca).with_client_certificate(certificate, key));
        }
        if self.plan.auth {
            options.credentials = Some(Credentials::new("root", "hush"));
        }
        options
    }

    pub(crate) async fn store(&self, root: &str) -> EtcdStore {
        EtcdStore::connect(self.location(root), self.options())
            .await
            .unwrap()
    }

    /// Whether a member says that it leads.
    pub(crate) fn leads(&self, member: usize) -> bool {
        let member = &self.members[member];
        let ask = ["endpoint", "status", "--write-out=json"];
        member.process.is_some()
            && self
                .try_ctl_at(&member.endpoint(), &ask)
                .is_ok_and(|status| {
                    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                    let status = &status[0]["Status"];
                    status["leader"] == status["header"]["member_id"]
                })
    }

    /// The position of the leader.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|member| self.leads(*member))
    }

    pub(crate) fn logs(&self) -> String {
        let logs = self.members.iter().map(|member| {
            let log = std::fs::read_to_string(&member.log).unwrap_or_default();
            format!("== {}\n{log}", member.name)
        });
        logs.collect()
    }
}
