//! A pod that never runs twice, on two machines of which one dies and comes back, with real
//! agents, programs and a real etcd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fleet::{Fleet, Process, SIGKILL, SIGTERM};
use crate::rig::{Rig, eventually, is_alive, kill};

/// A node is given up for silent after 40 s; on a busy machine that takes longer.
const SILENCE: Duration = Duration::from_secs(120);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(200);

/// The machine that the pod is ready on, and its process.
fn where_it_runs(rig: &Rig) -> Option<(String, u32)> {
    let pods = rig.pods();
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
        conditions.is_some_and(|all| all.iter().any(ready))
    };
    let pod = pods.iter().find(is_ready)?;
    let pid = u32::try_from(pod["status"]["pids"]["web"].as_u64()?).ok()?;
    Some((pod["spec"]["nodeName"].as_str()?.to_owned(), pid))
}

/// The supervisors whose directories are below this one.
fn supervisors(data_dir: &Path) -> Vec<u32> {
    let wanted = format!("{}/", data_dir.display());
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        let program = line.split('\0').next()?;
        (program.contains("shim") && line.contains(&wanted) && is_alive(pid)).then_some(pid)
    });
    processes.collect()
}

/// Two machines, which are both this one.
pub(crate) struct Pair {
    agents: Vec<(String, Process)>,
    _parts: [Process; 2],
    // Last: it clears both data directories away.
    pub(crate) fleet: Fleet,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let fleet = Fleet::on_etcd();
        let rig = &fleet.rig;
        rig.cli(&["store", "init", &fleet.url]).ok();
        let names = ["a", "b"].map(|name| format!("{}-{name}", rig.app));
        for node in &names {
            rig.cli(&["node", "admit", node, "--store", &fleet.url])
                .ok();
        }
        let parts = [fleet.server(), fleet.start("controllers", &[])];
        let mut pair = Self {
            agents: Vec::new(),
            _parts: parts,
            fleet,
        };
        fs::create_dir(pair.rig().path("local")).unwrap();
        for node in names {
            pair.start(&node);
        }
        pair
    }

    pub(crate) fn rig(&self) -> &Rig {
        &self.fleet.rig
    }

    pub(crate) fn data_dir(&self, node: &str) -> PathBuf {
        if node.ends_with("-a") {
            self.rig().data_dir()
        } else {
            self.rig().path("local")
        }
    }

    pub(crate) fn start(&mut self, node: &str) {
        let socket = self.rig().data_dir().join("platctrl.sock");
        let (dir, server) = (self.data_dir(node), format!("unix:{}", socket.display()));
        let dir = dir.to_str().unwrap();
        let more = ["--node", node, "--data-dir", dir, "--server", &server];
        let agent = self.fleet.start("agent", &more);
        self.agents.push((node.to_owned(), agent));
    }

    /// Ends the agent of a machine in order; what it started runs on.
    pub(crate) fn end_agent(&mut self, node: &str) {
        let index = self.agents.iter().position(|(name, _)| name == node);
        let (_, agent) = self.agents.remove(index.unwrap());
        agent.end(SIGTERM);
    }

    /// Makes the artifact of a program that writes down each start where every machine can, and
    /// returns what was written.
    pub(crate) fn noted_starts(&self) -> impl Fn() -> String + use<> {
        let starts = self.rig().write("starts", "");
        fs::set_permissions(&starts, fs::Permissions::from_mode(0o666)).unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$NODE_NAME\" >> {}\nexec sleep 1000\n",
            starts.display()
        );
        self.rig().script_artifact("hello", &script);
        move || fs::read_to_string(&starts).unwrap()
    }

    /// The machine dies: its agent, its supervisors and this program.
    fn dies(&mut self, node: &str, program: u32) {
        let index = self.agents.iter().position(|(name, _)| name == node);
        let (_, agent) = self.agents.remove(index.unwrap());
        agent.end(SIGKILL);
        let there = supervisors(&self.data_dir(node));
        assert!(!there.is_empty(), "there was one");
        for pid in there.iter().chain([&program]) {
            kill(*pid, SIGKILL);
        }
        eventually("it is dead", || (!is_alive(program)).then_some(()));
        eventually("its supervisors are", || {
            supervisors(&self.data_dir(node)).is_empty().then_some(())
        });
    }
}

#[test]
fn a_singleton_is_replaced_only_after_retirement_and_not_started_when_its_machine_is_back() {
    let mut pair = Pair::new();
    let started = pair.noted_starts();
    pair.rig().manifest(1, |text| {
        let until = text.find("      ports:").unwrap();
        format!("{}      singleton: true\n", &text[..until])
    });
    pair.rig().cli(&["apply", "-f", "hello.yaml"]).ok();
    let (first, program) = eventually("the pod is ready", || where_it_runs(pair.rig()));
    assert_eq!(started(), format!("{first}\n"));
    pair.dies(&first, program);

    // It is not given up before somebody says that it is off.
    let deadline = Instant::now() + SILENCE;
    loop {
        let said = pair.rig().cli(&["node", "retire", &first]);
        assert_eq!(said.code, Some(6), "{said:#?}");
        if said.err.contains("never run twice") {
            assert!(said.err.contains("--machine-is-off"), "{said:#?}");
            break;
        }
        assert!(said.err.contains("is heard of"), "{said:#?}");
        assert!(Instant::now() < deadline, "{}", pair.rig().log());
        std::thread::sleep(LOOK);
    }
    assert_eq!(started(), format!("{first}\n"), "nobody took its place");
    let retired = (pair.rig()).cli(&["node", "retire", &first, "--machine-is-off"]);
    assert!(
        retired.err.contains("store policy URL --role agent"),
        "{retired:#?}"
    );
    retired.ok();
    let (now, program) = eventually("another one is ready", || where_it_runs(pair.rig()));
    assert_ne!(now, first);
    assert_eq!(started(), format!("{first}\n{now}\n"));

    // The machine is back: what it had is stopped for good, and is not started for that.
    pair.start(&first);
    eventually("its agent works under the new incarnation", || {
        let node = pair.rig().json(&["get", &format!("node/{first}")]);
        (node["status"]["incarnation"] == 1).then_some(())
    });
    eventually("nothing is left of the old one", || {
        supervisors(&pair.data_dir(&first)).is_empty().then_some(())
    });
    assert_eq!(started(), format!("{first}\n{now}\n"));
    assert!(is_alive(program));

    // Both machines have the app's user in common: it ends before either goes.
    let rig = pair.rig();
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || {
        (rig.pods().is_empty() && !is_alive(program)).then_some(())
    });
}
