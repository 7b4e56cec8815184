//! Rolling hello from one version to the next, with real agents and pods, while somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::rig::{Pod, Rig, eventually, http};

/// Asks all of these pods in turn, without a pause, until it is dropped: one of them always
/// answers.
struct Asker {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<Vec<String>>>,
}

impl Asker {
    fn of(pods: &[Pod]) -> Self {
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let ports: Vec<u16> = pods.iter().map(|pod| pod.port).collect();
        let (stopped, count) = (stop.clone(), asked.clone());
        let ask = move || {
            let mut without_answer = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                // Whom a balancer would ask next when one does not answer.
                if !ports.iter().any(|port| http(*port, "/").is_some()) {
                    without_answer.push(format!("nobody of {ports:?} answered"));
                }
                count.fetch_add(1, Ordering::Release);
            }
            without_answer
        };
        let thread = Some(thread::spawn(ask));
        Self {
            stop,
            asked,
            thread,
        }
    }

    fn end(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Release);
        let problems = self.thread.take().unwrap().join().unwrap();
        (self.asked.load(Ordering::Acquire), problems)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn greetings(rig: &Rig) -> Vec<String> {
    let pods = rig.pods();
    let greeting = |pod: &serde_json::Value| {
        pod["spec"]["config"]["greeting"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    pods.iter().map(greeting).collect()
}

fn new_version(rig: &Rig, greeting: &str) {
    rig.manifest(3, |text| {
        text.replace("greeting: hi", &format!("greeting: {greeting}"))
    });
    std::fs::rename(rig.path("hello.yaml"), rig.path("new.yaml")).unwrap();
}

#[test]
fn hello_is_rolled_while_somebody_asks_and_back_again() {
    let rig = Rig::running();
    let before = rig.quickstart(3);
    new_version(&rig, "servus");
    let asker = Asker::of(&before);
    let said = rig.cli(&[
        "rollout",
        "start",
        "rc/hello",
        "-f",
        "new.yaml",
        "--min-healthy-time",
        "100ms",
        "--minimum-healthy",
        "2",
        "--cause",
        "friendlier",
        "--wait",
    ]);
    let out = said.ok();
    for part in [
        "replicationcontroller/hello-2 created\n",
        "rollingupdate/hello-2 created: hello to hello-2\n",
        "3 of 3 moved; complete: hello-2 has all 3 pods",
    ] {
        assert!(out.contains(part), "{part:?} is not in {out}");
    }
    let (asked, problems) = asker.end();
    assert!(
        asked > 0 && problems.is_empty(),
        "of {asked} questions: {problems:?}"
    );
    assert_eq!(greetings(&rig), ["servus"; 3]);
    let mut after = rig.ready(3);
    let mut names: Vec<_> = before.iter().map(|pod| &pod.name).collect();
    names.sort();
    after.sort();
    assert_eq!(after.iter().map(|pod| &pod.name).collect::<Vec<_>>(), names);
    assert!(
        after
            .iter()
            .all(|pod| pod.answer().unwrap().starts_with("servus"))
    );

    let history = rig.cli(&["rollout", "history", "rc/hello"]).ok();
    let lines: Vec<&str> = history.lines().collect();
    assert_eq!(lines.len(), 3, "{history}");
    assert!(
        lines[1].starts_with('1') && lines[1].contains("hello"),
        "{history}"
    );
    for part in [
        "2",
        "hello-2",
        "friendlier",
        "rollingupdate/hello-2 Complete",
        "web=",
    ] {
        assert!(lines[2].contains(part), "{part:?} is not in {history}");
    }
    // The old manifest does not start a second fleet beside the new one.
    rig.manifest(3, |text| text);
    let again = rig.cli(&["apply", "-f", "hello.yaml"]);
    assert!(again.err.contains("replicas stays 0"), "{again:#?}");
    again.ok();
    let scaled = rig.cli(&["scale", "rc/hello", "--replicas", "5"]);
    scaled.fails(6, &["was replaced by hello-2"]);

    let undone = rig.cli(&["rollout", "undo", "rc/hello"]).ok();
    assert!(undone.contains("hello-2 goes back to hello"), "{undone}");
    rig.cli(&["rollout", "status", "rc/hello"]).ok();
    assert_eq!(greetings(&rig), ["hi"; 3]);
    let described = rig.cli(&["describe", "rc/hello"]).ok();
    assert!(described.contains("3 of 3 pods are ready"), "{described}");
}

#[test]
fn a_roll_is_stepped_paused_scaled_and_given_up() {
    let rig = Rig::running();
    rig.quickstart(2);
    new_version(&rig, "servus");
    let start = [
        "rollout",
        "start",
        "rc/hello",
        "-f",
        "new.yaml",
        "--min-healthy-time",
        "0s",
        "--step",
        "1",
        "--step",
        "50%",
    ];
    rig.cli(&[&start[..], &["--dry-run"]].concat()).ok();
    rig.cli(&["get", "ru/hello-2"]).fails(5, &[]);
    rig.cli(&[&start[..], &["--wait"]].concat()).ok();
    let now = rig.cli(&["rollout", "status", "rc/hello", "--now"]).ok();
    assert!(now.contains("1 of 2 moved; at a gate"), "{now}");
    rig.cli(&start)
        .fails(6, &["rollingupdate/hello-2 is under way"]);
    // How many there are is for the roll to say.
    let scaled = rig.cli(&["scale", "rc/hello", "--replicas", "3"]);
    assert!(
        scaled.err.contains("given to rollingupdate/hello-2"),
        "{scaled:#?}"
    );
    scaled.ok();
    eventually("three pods", || (rig.pods().len() == 3).then_some(()));
    rig.cli(&["rollout", "pause", "ru/hello-2"]).ok();
    eventually("it is paused", || {
        let now = rig.cli(&["rollout", "status", "rc/hello", "--now"]).ok();
        now.contains("paused").then_some(())
    });
    rig.cli(&["rollout", "resume", "rc/hello"]).ok();
    let said = rig.cli(&["rollout", "promote", "rc/hello"]).ok();
    assert!(said.contains("promoted past step 1 of 2"), "{said}");
    rig.cli(&["rollout", "status", "rc/hello"]).ok();
    assert_eq!(rig.json(&["get", "ru/hello-2"])["status"]["updated"], 2);
    let described = rig.cli(&["describe", "ru/hello-2"]).ok();
    for part in [
        "next:",
        "at a gate with 2 of 3",
        "Moved",
        "goes over to hello-2",
    ] {
        assert!(described.contains(part), "{part:?} is not in {described}");
    }
    rig.cli(&["rollout", "cancel", "rc/hello"]).ok();
    eventually("the roll is gone", || {
        (rig.cli(&["get", "ru/hello-2"]).code == Some(5)).then_some(())
    });
    let left = |name: &str| {
        rig.json(&["get", name])["spec"]["replicas"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((left("rc/hello"), left("rc/hello-2")), (1, 2));
    rig.cli(&["rollout", "undo", "rc/hello"])
        .fails(5, &["no version of hello before"]);
}

#[test]
fn a_version_that_does_not_work_is_told_and_rolled_back() {
    let rig = Rig::running();
    rig.quickstart(2);
    rig.script_artifact("broken", "#!/bin/sh\nexec sleep 600\n");
    let said = rig.cli(&[
        "rollout",
        "start",
        "rc/hello",
        "--location",
        "broken.tar.gz",
        "--min-healthy-time",
        "0s",
        "--progress-deadline",
        "15s",
        "--rollback-on-failure",
        "--wait",
    ]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(
        said.err
            .contains("was rolled back: nothing got further for 15s"),
        "{said:#?}"
    );
    let pods = rig.ready(2);
    assert!(pods.iter().all(|pod| pod.answer().is_some()));
    assert_eq!(rig.json(&["get", "rc/hello"])["spec"]["replicas"], 2);
}

#[test]
fn a_roll_that_could_never_work_is_refused_before_anything_is_written() {
    let rig = Rig::running();
    rig.quickstart(2);
    new_version(&rig, "servus");
    let start = ["rollout", "start", "rc/hello", "-f", "new.yaml"];
    rig.cli(&[&start[..], &["--minimum-healthy", "2"]].concat())
        .fails(1, &["spec.minimumHealthy", "spec.surge to 1"]);
    rig.cli(&[&start[..], &["--minimum-healthy", "110%"]].concat())
        .fails(2, &["0% to 100%"]);
    rig.cli(&["rollout", "start", "rc/hullo", "-f", "new.yaml"])
        .fails(5, &["did you mean replicationcontroller/hello?"]);
    rig.cli(&["rollout", "status", "rc/hello"])
        .fails(5, &["no roll of hello"]);
    rig.cli(&["get", "rc/hello-2"]).fails(5, &[]);
}
