//! Real etcd clusters: each member a process on an address of its own, killed when the test ends
//! in whatever way.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use platctrl_store_etcd::{Credentials, EtcdStore, Location, Options, Tls};
use rustix::process::{Pid, Signal, kill_process};

use crate::certificates::Authority;

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

/// The directory of a tool's programs, unpacked if need be.
fn tool(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
    let output = Command::new(script).arg(name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "scripts/tools {name}: {said}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

/// Makes every write of a process to its disk take this much longer, until it is dropped.
pub(crate) struct SlowDisk {
    tracer: Child,
    log: PathBuf,
}

impl SlowDisk {
    pub(crate) fn of(member: &Member, delay: Duration) -> Self {
        let log = member.log.with_file_name("synced");
        let calls = "fsync,fdatasync";
        let mut command = Command::new(tool("strace").join("strace"));
        command
            .args(["-f", "-qq", "-e", &format!("trace={calls}"), "-e"])
            .arg(format!("inject={calls}:delay_enter={}", delay.as_micros()))
            .arg("-o")
            .arg(&log)
            .arg("-p")
            .arg(member.pid().as_raw_nonzero().to_string())
            .stdin(Stdio::null());
        let tracer = spawn(command);
        Self { tracer, log }
    }

    /// How often something was slow.
    pub(crate) fn count(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.matches("(DELAYED)").count()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // In order, so that it lets the process go.
        let _ = kill_process(Pid::from_child(&self.tracer), Signal::TERM);
        let _ = self.tracer.wait();
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
}

/// Starts a process that dies with this one: from a thread that lasts as long as this process,
/// because the signal comes when the thread that started it ends.
pub(crate) fn spawn(command: Command) -> Child {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                die_with_parent(&mut command);
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).unwrap();
    child.recv().unwrap().unwrap()
}

#[expect(unsafe_code, reason = "pre_exec runs between fork and exec")]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: prctl is a plain system call; nothing is allocated or locked.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// An address of the loopback network that nobody else uses.
pub(crate) fn address() -> String {
    let bytes: [u8; 3] = std::array::from_fn(|_| random() as u8);
    let [a, b, c] = bytes;
    format!("127.{}.{b}.{}", a.clamp(1, 254), c.clamp(1, 254))
}

pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// A root that nobody else uses.
pub(crate) fn root() -> String {
    format!("test-{:016x}", random())
}

/// Where servers keep their data: in memory, because nothing here outlives the machine.
pub(crate) fn directory() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("platctrl-etcd-");
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        builder.tempdir_in(memory).unwrap()
    } else {
        builder.tempdir().unwrap()
    }
}

impl Cluster {
    pub(crate) fn start(plan: Plan) -> Self {
        let addresses: Vec<String> = (0..plan.members).map(|_| address()).collect();
        Self::start_at(plan, addresses, &[])
    }

    /// Starts each member at an address, and in a network namespace where there are any.
    pub(crate) fn start_at(plan: Plan, addresses: Vec<String>, namespaces: &[String]) -> Self {
        let dir = directory();
        let authority = Authority::new("the cluster's authority");
        let scheme = if plan.tls { "https" } else { "http" };
        let token = root();
        let initial: Vec<String> = addresses
            .iter()
            .enumerate()
            .map(|(n, address)| format!("m{n}=http://{address}:2380"))
            .collect();
        let initial = initial.join(",");
        let mut members = Vec::new();
        for (n, address) in addresses.into_iter().enumerate() {
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
            if let Some(namespace) = namespaces.get(n) {
                let etcd = std::mem::replace(&mut program, PathBuf::from("ip"));
                let words = ["netns", "exec", namespace, etcd.to_str().unwrap()];
                arguments.splice(0..0, words.map(str::to_owned));
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

/// Asks until it is true.
pub(crate) fn wait_until(patience: Duration, what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_true() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
