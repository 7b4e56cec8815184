//! A node that can lose its power: its data directory on a disk of its own, and everything that
//! runs on it in a machine of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

use platctrl_agent::{InspectedPod, Order};
use platctrl_framework::model::Digest;
use platctrl_test_support::power_cut::Disk;
use serde_json::{Value, json};

use crate::crash::words;
use crate::rig::{Rig, SOON, agent_under_test, eventually, is_alive, kill, name};

/// Megabytes. The supervisor's program, with all that debuggers want, takes a quarter of it.
const SIZE: u32 = 512;

/// What is taken away in this order, whatever happens.
pub(crate) struct Node {
    boot: Option<Boot>,
    pub(crate) rig: Rig,
    disk: Disk,
    _area: Area,
}

/// Where the node is. It cannot be removed with the node, while the disk is mounted in it.
struct Area(PathBuf);

impl Drop for Area {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A machine from its boot to its end.
struct Boot {
    process: Child,
    orders: Option<ChildStdin>,
    /// What is said in it.
    lines: mpsc::Receiver<Value>,
    init: u32,
    agents: u64,
}

impl Node {
    /// None where there can be no such disk.
    pub(crate) fn new() -> Option<Self> {
        let rig = Rig::new();
        fs::create_dir(rig.data_dir()).unwrap();
        let area = Area(rig.data_dir().parent().unwrap().to_owned());
        let disk = Disk::mount(&rig.data_dir(), SIZE)?;
        fs::write(rig.artifacts().join("trace"), "").unwrap();
        let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(rig.artifacts().join("trace"), anybody).unwrap();
        Some(Self {
            boot: None,
            rig,
            disk,
            _area: area,
        })
    }

    /// Flushes all that was written so far: it was there before the test.
    pub(crate) fn flush(&self) {
        let directory = fs::File::open(self.rig.data_dir()).unwrap();
        rustix::fs::syncfs(directory).unwrap();
    }

    /// Starts an agent with this order, in place of the one before. The machine boots if it is down.
    pub(crate) fn agent(&mut self, order: &Order) {
        self.agent_until(order, "");
    }

    /// The same, up to this point, where it stands still once this returns.
    pub(crate) fn held(&mut self, order: &Order, point: &str) {
        let hold = self.rig.artifacts().join("hold");
        let _ = fs::remove_file(&hold);
        self.agent_until(order, &format!("agent.{point}=hold:{}", hold.display()));
        eventually(&format!("agent.{point}"), || hold.exists().then_some(()));
    }

    fn agent_until(&mut self, order: &Order, failpoints: &str) {
        let words = words(&self.rig, order);
        let words = words.map(|word| word.to_str().unwrap().to_owned());
        let boot = self.boot.get_or_insert_with(|| Boot::new(&self.rig));
        boot.order(&format!("{failpoints}\t{}", words.join("\t")));
    }

    /// The next report that is as wanted.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.boot.as_ref().unwrap().wait(what, wanted)
    }

    pub(crate) fn ready(&self, generation: u64) -> Value {
        self.wait("a ready pod", |it| {
            it["ready"] == true && it["generation"] == generation
        })
    }

    /// The power fails. Returns what was not on the disk yet.
    pub(crate) fn cut(&mut self) -> Vec<PathBuf> {
        let groups = self.groups();
        drop(self.boot.take());
        assert_eq!(self.processes(), [], "nothing survives");
        // They are memory, too.
        groups.iter().for_each(|group| remove_groups(group));
        self.disk.cut()
    }

    /// Every process of this node, with its words.
    fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let area = self.rig.data_dir();
        let area = area.to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if words.contains(area) && is_alive(pid) {
                found.push((pid, words.split('\0').map(str::to_owned).collect()));
            }
        }
        found
    }

    /// The pods' programs that run.
    pub(crate) fn programs(&self) -> Vec<u32> {
        let homes = self.rig.data_dir().join("pods");
        let is_program = |word: &String| {
            Path::new(word).starts_with(&homes) && Path::new(word).ends_with("bin/launch")
        };
        let mut programs = self.processes();
        programs.retain(|(_, words)| words.iter().take(2).any(is_program));
        let pids: Vec<_> = programs.into_iter().map(|(pid, _)| pid).collect();
        // A shell that looks something up has a copy of itself for a moment.
        let is_first = |pid: &u32| !parent(*pid).is_some_and(|it| pids.contains(&it));
        pids.iter().copied().filter(is_first).collect()
    }

    /// The control groups of this node.
    fn groups(&self) -> Vec<PathBuf> {
        let mut names = Vec::new();
        for pid in self.programs() {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let parts = text.split(['/', '\n']);
            names.extend(
                parts
                    .filter(|it| it.starts_with("platctrl-"))
                    .map(str::to_owned),
            );
        }
        names.sort_unstable();
        names.dedup();
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let hierarchies: Vec<_> = hierarchies.map(|it| it.path()).collect();
        let parents = hierarchies.iter().map(PathBuf::as_path).chain([root]);
        let groups = parents.flat_map(|parent| names.iter().map(|name| parent.join(name)));
        groups.filter(|group| group.is_dir()).collect()
    }

    /// What the disk says of the pod.
    pub(crate) fn pod(&self) -> Option<InspectedPod> {
        let pods = platctrl_agent::inspect(&self.rig.data_dir()).unwrap();
        pods.into_iter().find(|pod| pod.name == name())
    }

    /// Waits until a program has written down that it runs: being ready, it need not have yet.
    pub(crate) fn launched(&self) {
        let path = self.rig.artifacts().join("trace");
        eventually("a program's word", || {
            let lines = crate::updates::lines(&path);
            lines
                .iter()
                .any(|it| it.starts_with("launch"))
                .then_some(())
        });
    }

    /// What was written by programs, scripts and hooks since this was last asked.
    pub(crate) fn trace(&self) -> Vec<String> {
        let path = self.rig.artifacts().join("trace");
        let lines = crate::updates::lines(&path);
        fs::write(path, "").unwrap();
        lines
    }

    /// A spec with this artifact, whose programs write down that they run.
    pub(crate) fn spec(&self, version: &str, artifact: &(String, Digest)) -> Value {
        let trace = self.rig.artifacts().join("trace");
        let mut spec = self.rig.spec(artifact);
        spec["sharedTmp"] = true.into();
        spec["drainDelay"] = "50ms".into();
        spec["config"] = json!({"greeting": version});
        spec["launchables"]["web"]["env"] = json!({"TRACE": trace, "VERSION": version});
        spec["health"] = json!({
            "exec": {"command": ["/bin/sh", "-c", "true"]}, "interval": "1s", "grace": "30s",
        });
        spec
    }
}

impl Boot {
    fn new(rig: &Rig) -> Self {
        let id = rig.artifacts().join("boot");
        let random = format!("{:032x}\n", rand::random::<u128>());
        // The machine before may still have the old one mounted.
        let _ = fs::remove_file(&id);
        fs::write(&id, random).unwrap();
        let mut command = Command::new(agent_under_test());
        command.arg("boot").arg(id);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut boot = Self {
            orders: process.stdin.take(),
            process,
            lines,
            init: 0,
            agents: 0,
        };
        let said = boot.wait("a boot", |line| line["init"].is_number());
        boot.init = u32::try_from(said["init"].as_u64().unwrap()).unwrap();
        boot
    }

    fn order(&mut self, line: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{line}").unwrap();
        self.agents += 1;
        let agents = self.agents;
        self.wait("an agent", |line| line["agent"] == agents);
    }

    fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        loop {
            let line = self.lines.recv_timeout(SOON);
            let line = line.unwrap_or_else(|_| panic!("{what} did not come: {last:#}"));
            if wanted(&line) {
                return line;
            }
            last = line;
        }
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        if self.init > 0 && is_alive(self.init) {
            // All at once, as when the power fails.
            kill(self.init);
        }
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')')
        .next()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
