//! An agent that dies at each step, and the one after it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use platctrl_agent::Order;
use serde_json::Value;

use crate::rig::{Rig, agent_under_test, get, is_alive, name, tombstone, want};

/// What is said to the agent under test, for it to carry out this order.
pub(crate) fn words(rig: &Rig, order: &Order) -> [PathBuf; 4] {
    let desired = match order {
        Order::Want(desired) => serde_json::to_string(desired).unwrap(),
        Order::Missing | Order::Unknown => String::new(),
    };
    let file = rig.artifacts().join("order");
    std::fs::write(&file, format!("{} {desired}", name())).unwrap();
    ["pod".into(), rig.data_dir(), rig.artifacts(), file]
}

/// An agent in a process of its own.
pub(crate) struct Subject {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Subject {
    /// With a failpoint the agent dies there.
    pub(crate) fn start(rig: &Rig, order: &Order, failpoint: Option<&str>) -> Self {
        let point = failpoint.map(|point| format!("agent.{point}=abort"));
        Self::with(rig, order, point)
    }

    /// An agent that stands still at that point, once this returns. It goes on when the file is
    /// removed.
    pub(crate) fn held(rig: &Rig, order: &Order, point: &str, file: &std::path::Path) -> Self {
        let point = format!("agent.{point}=hold:{}", file.display());
        let subject = Self::with(rig, order, Some(point));
        crate::rig::eventually("the point to be reached", || file.exists().then_some(()));
        subject
    }

    fn with(rig: &Rig, order: &Order, failpoint: Option<String>) -> Self {
        let mut command = Command::new(agent_under_test());
        command.args(words(rig, order));
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(point) = failpoint {
            command.env("PLATCTRL_FAILPOINTS", point);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next report that is as wanted.
    pub(crate) fn wait(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self
                .lines
                .next()
                .unwrap_or_else(|| panic!("it ended before {what}"));
            let report: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if wanted(&report) {
                return report;
            }
        }
    }

    pub(crate) fn ready(&mut self, generation: u64) -> Value {
        self.wait("a ready pod", |it| {
            it["ready"] == true && it["generation"] == generation
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Dies by the failpoint.
    pub(crate) fn dies(mut self, point: &str) {
        let status = self.child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(6),
            "agent.{point} was not reached: {status}"
        );
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn pid(report: &Value) -> u32 {
    u32::try_from(report["status"]["pids"]["web"].as_u64().unwrap()).unwrap()
}

pub(crate) fn port(report: &Value) -> u16 {
    u16::try_from(report["status"]["ports"]["http"].as_u64().unwrap()).unwrap()
}

#[test]
fn a_pod_starts_wherever_the_agent_died_before() {
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let points = [
        "fetch",
        "fetch.done",
        "configure",
        "configure.done",
        "flip",
        "flip.done",
        "start",
        "start.done",
        "prune",
        "prune.done",
    ];
    for point in points {
        Subject::start(&rig, &want(1, &spec), Some(point)).dies(point);
        let mut again = Subject::start(&rig, &want(1, &spec), None);
        let report = again.ready(1);
        assert_eq!(get(port(&report), "/version"), "one", "{point}");
        drop(again);
        Subject::start(&rig, &tombstone(1, &spec), None)
            .wait("the end", |it| it["phase"] == "Gone");
        assert!(!is_alive(pid(&report)), "{point}");
    }
}

#[test]
fn an_update_ends_with_the_new_version_wherever_the_agent_died() {
    let rig = Rig::new();
    let (old, new) = (rig.spec(&rig.app("one")), rig.spec(&rig.app("two")));
    let points = [
        "fetch",
        "fetch.done",
        "configure",
        "configure.done",
        "stop",
        "flip",
        "flip.done",
        "start",
        "start.done",
        "prune",
        "prune.done",
    ];
    for point in points {
        let mut first = Subject::start(&rig, &want(1, &old), None);
        let before = first.ready(1);
        drop(first);
        Subject::start(&rig, &want(2, &new), Some(point)).dies(point);
        let early = ["fetch", "fetch.done", "configure", "configure.done", "stop"].contains(&point);
        assert_eq!(
            is_alive(pid(&before)),
            early,
            "the old version runs until it is stopped: {point}"
        );
        let mut again = Subject::start(&rig, &want(2, &new), None);
        let after = again.ready(2);
        assert_eq!(get(port(&after), "/version"), "two", "{point}");
        assert!(!is_alive(pid(&before)), "{point}");
        assert_eq!(port(&before), port(&after));
        drop(again);
        Subject::start(&rig, &tombstone(2, &new), None).wait("the end", |it| it["phase"] == "Gone");
    }
}

#[test]
fn an_end_is_finished_wherever_the_agent_died() {
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    for point in ["stop", "remove", "remove.done"] {
        let mut first = Subject::start(&rig, &want(1, &spec), None);
        let before = first.ready(1);
        drop(first);
        Subject::start(&rig, &tombstone(1, &spec), Some(point)).dies(point);
        Subject::start(&rig, &tombstone(1, &spec), None)
            .wait("the end", |it| it["phase"] == "Gone");
        assert!(!is_alive(pid(&before)), "{point}");
        assert_eq!(rig.layout().pods().unwrap(), [], "{point}");
    }
}
