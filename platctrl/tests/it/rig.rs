//! A `platctrl up` of its own for one test, taken away whatever happens.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Long enough for a busy machine; nothing here takes that long.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: it did not happen");
        std::thread::sleep(LOOK);
    }
}

/// Eight random letters and digits.
fn random() -> String {
    let mut bytes = [0_u8; 8];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
        .map(|byte| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(byte) % 32]))
        .iter()
        .collect()
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// It ended well; what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// It ended with this code and said all of this on standard error, and nothing on standard
    /// output.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.out, "", "a failure has no result");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in {self:#?}");
        }
        self
    }
}

pub(crate) struct Rig {
    area: PathBuf,
    pub(crate) app: String,
    up: Option<Child>,
    uid: Option<u32>,
}

/// Runs a command with something on standard input.
pub(crate) fn fed(mut command: Command, input: &[u8]) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have seen enough before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

impl Rig {
    /// A directory that pod users can pass through, and nothing running yet.
    pub(crate) fn new() -> Self {
        let app = format!("pct{}", random());
        let area = Path::new("/tmp").join(&app);
        fs::create_dir(&area).unwrap();
        fs::set_permissions(&area, fs::Permissions::from_mode(0o711)).unwrap();
        Self {
            area,
            app,
            up: None,
            uid: None,
        }
    }

    /// The same for a user without rights.
    pub(crate) fn of_user(uid: u32) -> Self {
        let mut rig = Self::new();
        rig.uid = Some(uid);
        std::os::unix::fs::chown(&rig.area, Some(uid), Some(uid)).unwrap();
        rig
    }

    /// One with `platctrl up`.
    pub(crate) fn running() -> Self {
        let mut rig = Self::new();
        rig.up();
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.area.join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// The program with these arguments, in an environment of its own.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_platctrl"));
        command
            .args(args)
            .current_dir(&self.area)
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PLATCTRL_") {
                command.env_remove(name);
            }
        }
        command
            .env("PLATCTRL_DATA_DIR", self.data_dir())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_RUNTIME_DIR", self.path("run"));
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid).env("HOME", &self.area);
        }
        command
    }

    pub(crate) fn cli(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// The same with something on standard input.
    pub(crate) fn cli_with(&self, args: &[&str], input: &[u8]) -> Said {
        fed(self.command(args), input)
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.cli(&args).ok()).unwrap()
    }

    /// Starts `platctrl up` and waits until it answers.
    pub(crate) fn up(&mut self) -> &mut Self {
        self.up_with(&[])
    }

    pub(crate) fn up_with(&mut self, more: &[&str]) -> &mut Self {
        assert!(self.up.is_none());
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("up.log"))
            .unwrap();
        let args: Vec<&str> = ["up", "--node", &self.app]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let mut command = self.command(&args);
        let command = command.stdout(log.try_clone().unwrap()).stderr(log);
        self.up = Some(command.spawn().unwrap());
        eventually("an answer of platctrl up", || {
            let said = self.cli(&["get", "nodes", "-o", "name"]);
            if let Some(status) = self.up.as_mut().unwrap().try_wait().unwrap() {
                panic!("platctrl up ended with {status}: {}", self.log());
            }
            (said.out.trim() == format!("node/{}", self.app)).then_some(())
        });
        self
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("up.log")).unwrap_or_default()
    }

    pub(crate) fn up_pid(&self) -> u32 {
        self.up.as_ref().unwrap().id()
    }

    /// Sends a signal to `platctrl up` and waits for its end.
    pub(crate) fn end_up(&mut self, signal: i32) -> std::process::ExitStatus {
        let mut up = self.up.take().unwrap();
        kill(up.id(), signal);
        up.wait().unwrap()
    }

    /// Waits for the end of a `platctrl up` that somebody else ordered.
    pub(crate) fn await_end(&mut self) -> std::process::ExitStatus {
        let mut up = self.up.take().unwrap();
        eventually("the end of platctrl up", || up.try_wait().unwrap())
    }

    /// Writes a file into the test's directory.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Packs the quickstart program as `hello.tar.gz`.
    pub(crate) fn quickstart_artifact(&self) -> &Self {
        let program =
            Path::new(env!("CARGO_BIN_EXE_platctrl")).with_file_name("platctrl-quickstart");
        assert!(
            program.is_file(),
            "{} is not there: `cargo build -p platctrl-quickstart` (scripts/test builds it first)",
            program.display()
        );
        self.artifact("hello", |dir| {
            fs::copy(&program, dir.join("launch")).unwrap();
        })
    }

    /// Packs a shell script as `NAME.tar.gz`.
    pub(crate) fn script_artifact(&self, name: &str, script: &str) -> &Self {
        self.artifact(name, |dir| {
            fs::write(dir.join("launch"), script).unwrap();
            fs::set_permissions(dir.join("launch"), fs::Permissions::from_mode(0o755)).unwrap();
        })
    }

    pub(crate) fn artifact(&self, name: &str, fill: impl FnOnce(&Path)) -> &Self {
        let dir = self.path(&format!("{name}.d"));
        fs::create_dir_all(dir.join("bin")).unwrap();
        fill(&dir.join("bin"));
        let file = format!("{name}.tar.gz");
        let built = Command::new(env!("CARGO_BIN_EXE_platctrl"))
            .args(["hoist", "build"])
            .arg(&dir)
            .arg("-o")
            .arg(self.path(&file))
            .output()
            .unwrap();
        Said::from(built).ok();
        self
    }

    /// The quickstart's manifest for this test's app, as `hello.yaml`; `edit` changes its text.
    pub(crate) fn manifest(&self, replicas: u32, edit: impl FnOnce(String) -> String) -> PathBuf {
        let text = format!(
            "\
apiVersion: platctrl.dev/v1
kind: ReplicationController
metadata:
  name: hello
spec:
  replicas: {replicas}
  nodeSelector: \"*\"
  maxPerNode: 200
  template:
    metadata: {{ labels: {{ app: hello }} }}
    spec:
      app: {}
      launchables:
        web:
          type: hoist
          location: hello.tar.gz
          stopTimeout: 5s
      config: {{ greeting: hi }}
      ports: {{ http: {{}} }}
      health: {{ http: {{ port: http, path: /_status }}, interval: 1s, timeout: 1s }}
",
            self.app
        );
        self.write("hello.yaml", edit(text))
    }

    /// Applies the quickstart and waits until all of it is ready.
    #[track_caller]
    pub(crate) fn quickstart(&self, replicas: u32) -> Vec<Pod> {
        self.quickstart_artifact().manifest(replicas, |text| text);
        let said = self.cli(&["apply", "-f", "hello.yaml"]).ok();
        assert_eq!(said, "replicationcontroller/hello created\n");
        self.ready(replicas as usize)
    }

    pub(crate) fn pods(&self) -> Vec<Value> {
        self.json(&["get", "pods"])["items"]
            .as_array()
            .unwrap()
            .clone()
    }

    /// Waits until exactly so many pods are there, all ready.
    #[track_caller]
    pub(crate) fn ready(&self, count: usize) -> Vec<Pod> {
        let mut last = Vec::new();
        let deadline = Instant::now() + SOON;
        loop {
            let pods = self.pods();
            if pods.len() == count
                && let Some(pods) = pods.iter().map(Pod::ready).collect::<Option<Vec<_>>>()
            {
                return pods;
            }
            if Instant::now() > deadline {
                panic!("{count} ready pods did not come: {last:#?}\n{}", self.log());
            }
            last = pods;
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- platctrl up said:\n{}", self.log());
        }
        // As the machine's administrator: a user's own uninstall is a test of its own.
        self.uid = None;
        for dir in ["data", "local"] {
            let dir = self.path(dir);
            if dir.exists() {
                let said = self.cli(&[
                    "uninstall",
                    "--yes",
                    "--grace",
                    "2s",
                    "--data-dir",
                    dir.to_str().unwrap(),
                ]);
                if said.code != Some(0) {
                    eprintln!("--- uninstall: {said:#?}");
                    assert!(std::thread::panicking(), "uninstall failed");
                }
            }
        }
        let _ = fs::remove_dir_all(&self.area);
    }
}

/// A pod that is ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) port: u16,
}

impl Pod {
    fn ready(pod: &Value) -> Option<Self> {
        let conditions = pod["status"]["conditions"].as_array()?;
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready")?;
        if ready["status"] != "True" {
            return None;
        }
        Some(Self {
            name: pod["metadata"]["name"].as_str()?.to_owned(),
            pid: u32::try_from(pod["status"]["pids"]["web"].as_u64()?).ok()?,
            port: u16::try_from(pod["status"]["ports"]["http"].as_u64()?).ok()?,
        })
    }

    /// What the program answers over TCP.
    pub(crate) fn answer(&self) -> Option<String> {
        http(self.port, "/")
    }
}

/// The body of a good answer of a local HTTP server.
pub(crate) fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

pub(crate) fn kill(pid: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}

/// The supervisors and programs of a data directory.
pub(crate) fn processes_of(dir: &Path) -> Vec<u32> {
    let dir = dir.to_str().unwrap();
    let found = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let program = fs::read_link(entry.path().join("exe")).ok()?;
            let ours = String::from_utf8_lossy(&command).contains(dir) || program.starts_with(dir);
            (ours && is_alive(pid) && pid != std::process::id()).then_some(pid)
        });
    found.collect()
}
