//! Verbs about the pods of this machine, and restarts through the real controllers.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::rig::{Rig, eventually, is_alive};

/// A program that forgets its ailment when it starts, and only lives.
const SLEEPER: &str = "#!/bin/sh\nrm -f \"$HOME/unwell\"\necho up\nexec sleep 1000\n";

fn sleepers(rig: &Rig, replicas: u32) {
    rig.script_artifact("hello", SLEEPER);
    rig.manifest(replicas, |text| {
        let check = "liveness: { exec: { command: [/bin/sh, -c, 'test ! -e \"$HOME/unwell\"'] }, \
                     interval: 100ms, timeout: 20s, failureThreshold: 1, grace: 60s }";
        let lines = text.lines().map(|line| match line.trim_start() {
            line if line.starts_with("health:") => format!("      {check}"),
            line if line.starts_with("ports:") => String::new(),
            _ => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
}

fn pids(rig: &Rig) -> BTreeSet<u64> {
    let pods = rig.pods();
    let pids = pods.iter().map(|pod| pod["status"]["pids"]["web"].as_u64());
    pids.flatten().collect()
}

/// Waits for a first grant: who decides on it takes nothing away in its first half minute.
fn granted(rig: &Rig) {
    eventually("a grant", || {
        let events = rig.cli(&["events"]).ok();
        events.contains("RestartGranted").then_some(())
    });
}

fn all_ready(rig: &Rig, count: usize) -> Option<()> {
    let pods = rig.pods();
    let ready = pods.iter().filter(|pod| {
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
    });
    (ready.count() == count).then_some(())
}

fn data(rig: &Rig, pod: &str) -> PathBuf {
    rig.data_dir()
        .join("pods")
        .join(format!("default.{pod}"))
        .join("data")
}

#[test]
fn pods_that_do_not_live_are_restarted_by_grants_of_the_real_ledger() {
    let rig = Rig::running();
    sleepers(&rig, 3);
    eventually("three pods", || all_ready(&rig, 3));
    let before = pids(&rig);
    assert_eq!(before.len(), 3);
    // Each has passed its check once: until then it may fail.
    let names: Vec<_> = rig
        .pods()
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    eventually("first answers", || {
        let said = rig.cli(&["node", "inspect", "-o", "json"]).ok();
        (said.matches("\"liveness\": \"healthy\"").count() == 3).then_some(())
    });
    for name in &names {
        std::fs::write(data(&rig, name).join("unwell"), "").unwrap();
    }
    granted(&rig);
    eventually("three restarts", || {
        let now = pids(&rig);
        (now.len() == 3 && now.is_disjoint(&before)).then_some(())
    });
    eventually("three pods", || all_ready(&rig, 3));
    let events = rig.cli(&["events"]).ok();
    assert!(
        events.contains("RestartAsked") && events.contains("RestartGranted"),
        "{events}"
    );
}

#[test]
fn a_person_restarts_stops_starts_and_looks_into_pods_of_the_machine() {
    let rig = Rig::running();
    sleepers(&rig, 1);
    eventually("a pod", || all_ready(&rig, 1));
    let pod = rig.pods()[0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let before = pids(&rig);
    // By a beginning of its name, through a grant.
    let said = rig.cli(&["restart", "pod/hello"]).ok();
    assert_eq!(said, format!("pod/{pod} asked\n"));
    granted(&rig);
    eventually("another process", || {
        let now = pids(&rig);
        (now.len() == 1 && now.is_disjoint(&before)).then_some(())
    });
    eventually("a pod", || all_ready(&rig, 1));
    let running = pids(&rig);

    let said = rig.cli(&["exec", &pod, "--", "sh", "-c", "echo $POD_NAME; id -u"]);
    let said = said.ok();
    let lines: Vec<_> = said.lines().collect();
    rig.cli(&["exec", &pod, "--", "sh", "-c", "exit 3"])
        .fails(3, &[]);
    assert_eq!(lines[0], pod);
    if rustix::process::geteuid().is_root() {
        assert_ne!(lines[1], "0", "it is the pod's user");
    }
    rig.cli(&["exec", &pod, "--", "no-such-command"])
        .fails(127, &["no-such-command"]);
    rig.cli(&["exec", "nobody", "--", "true"])
        .fails(5, &["nobody"]);

    rig.cli(&["stop", "--now", &pod]).ok();
    eventually("the end", || {
        let gone = running
            .iter()
            .all(|pid| !is_alive(u32::try_from(*pid).unwrap()));
        gone.then_some(())
    });
    eventually("a pod that is said to be stopped", || {
        let table = rig.cli(&["node", "inspect"]).ok();
        table.contains("stopped here").then_some(())
    });
    rig.cli(&["start", &pod]).ok();
    eventually("a pod", || all_ready(&rig, 1));
    let table = eventually("a pod as wanted", || {
        let table = rig.cli(&["node", "inspect"]).ok();
        table.contains("as wanted").then_some(table)
    });
    assert!(table.contains(&pod) && table.contains("KiB"), "{table}");
    rig.cli(&["restart", "pod/nobody"])
        .fails(5, &["not on this machine"]);
}

#[test]
fn the_agents_socket_tells_metrics_and_is_for_its_owner_alone() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::running();
    let path = rig.data_dir().join("agent.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = |what: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let request = format!("GET {what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    eventually("a ready agent", || {
        ask("/readyz").starts_with("HTTP/1.1 200").then_some(())
    });
    // The agent's runtime has some from when it works.
    let answer = eventually("all metrics", || {
        let answer = ask("/metrics");
        answer
            .contains("controller_runtime_reconcile_total")
            .then_some(answer)
    });
    for name in [
        "platctrl_agent_info{",
        "platctrl_agent_takes_orders 1",
        "platctrl_agent_pods{phase=\"Running\"} 0",
        "process_resident_memory_bytes",
    ] {
        assert!(answer.contains(name), "{name}: {answer}");
    }
    assert!(answer.trim_end().ends_with("# EOF"), "{answer}");
}
