//! The life of a pod: start, crash, update, end.

use std::time::Duration;

use crate::rig::{Rig, eventually, get, is_alive, kill, name, tombstone, want};

const GRACE: Duration = Duration::from_secs(1);

#[test]
fn a_pod_starts_and_answers_over_http() {
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (_worker, told) = rig.attend(want(1, &spec));
    let report = told.ready();
    assert_eq!(report.phase.as_str(), "Running");
    assert_eq!(get(report.status.ports["http"], "/version"), "one");
    assert!(is_alive(report.status.pids["web"]));
}

#[test]
fn a_killed_program_is_back_and_its_end_is_told() {
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (_worker, told, first) = rig.attend_ready(&spec);
    kill(first.status.pids["web"]);
    let again = told.wait("another process", |report| {
        report.is_ready() && report.status.pids["web"] != first.status.pids["web"]
    });
    assert_eq!(again.status.restarts, 1);
    let exits = told
        .wait("its end", |report| !report.status.exits.is_empty())
        .status
        .exits;
    assert_eq!(
        (exits[0].signal, exits[0].launchable.as_str()),
        (Some(9), "web")
    );
    assert!(told.events("Exited")[0].contains("signal 9"));
}

#[test]
fn an_agent_that_comes_back_finds_the_same_processes() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (worker, _, first) = rig.attend_ready(&spec);
    drop(worker);
    rig.crash();
    assert!(is_alive(first.status.pids["web"]));
    let (_worker, told) = rig.attend(want(1, &spec));
    let again = told.ready();
    assert_eq!(again.status.pids, first.status.pids);
    assert_eq!(again.status.ports, first.status.ports);
    assert!(told.events("Started").is_empty());
}

#[test]
fn a_tombstone_stops_the_pod_and_leaves_nothing() {
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (worker, told, first) = rig.attend_ready(&spec);
    let pid = first.status.pids["web"];
    worker.order(tombstone(1, &spec));
    let gone = told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(!gone.is_ready());
    assert!(!is_alive(pid));
    assert_eq!(rig.layout().pods().unwrap(), []);
}

#[test]
fn an_update_keeps_the_old_version_until_the_new_one_is_verified() {
    let rig = Rig::new();
    let old = rig.spec(&rig.app("one"));
    let (worker, told, first) = rig.attend_ready(&old);
    // Its digest is not that of the file: nothing may be stopped for it.
    let mut bad = rig.app("two");
    bad.1 = platctrl_framework::model::Digest::of("something else");
    worker.order(want(2, &rig.spec(&bad)));
    let refused = told.wait("a refusal", |report| {
        report.status.reason == "DigestMismatch"
    });
    assert_eq!(refused.status.pids, first.status.pids);
    assert_eq!(
        (refused.observed_generation, refused.phase.as_str()),
        (1, "Running")
    );
    assert!(refused.is_ready(), "the old version still does its work");
    let installed = refused.condition("Installed").unwrap();
    assert_eq!(format!("{:?}", installed.status), "False");
    // The right one takes over, on the same port.
    let new = rig.spec(&rig.app("two"));
    worker.order(want(3, &new));
    let second = told.wait("the new version", |it| {
        it.is_ready() && it.observed_generation == 3
    });
    assert_ne!(second.status.pids, first.status.pids);
    assert_eq!(second.status.ports, first.status.ports);
    assert_eq!(get(second.status.ports["http"], "/version"), "two");
    assert!(!is_alive(first.status.pids["web"]));
    let home = rig.layout().pod(&name()).home().to_owned();
    eventually("the old generation's files to go", || {
        (!home.join("config/1").exists()).then_some(())
    });
    let current = std::fs::read_link(home.join("current")).unwrap();
    assert_eq!(current, std::path::Path::new("generations/3"));
}

#[test]
fn a_launchable_with_a_directory_of_programs_is_one_process_each() {
    let rig = Rig::new();
    let script = Some("#!/bin/sh\necho hello\nexec sleep 1000\n");
    let artifact = rig.pack("dir", &[("bin/launch/a", script), ("bin/launch/b", script)]);
    let (_worker, told) = rig.attend(want(1, &rig.spec(&artifact)));
    let report = told.ready();
    assert_eq!(
        report.status.pids.keys().collect::<Vec<_>>(),
        ["web/a", "web/b"]
    );
    let logs = eventually("both logs", || {
        let logs = platctrl_agent::logs(&rig.data_dir(), &name()).unwrap();
        (logs.len() == 2).then_some(logs)
    });
    assert_eq!(
        (logs[0].program.as_str(), logs[1].program.as_str()),
        ("web/a", "web/b")
    );
    eventually("its output", || {
        (std::fs::read_to_string(&logs[0].current).unwrap() == "hello\n").then_some(())
    });
}

#[test]
fn a_program_gets_the_documented_environment_and_nothing_else() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["launchables"]["web"]["env"] = serde_json::json!({"GREETING": "hi there", "HOME2": "x"});
    spec["config"] = serde_json::json!({"greeting": "hi"});
    let (_worker, told) = rig.attend(want(1, &spec));
    let port = told.ready().status.ports["http"];
    let env = get(port, "/env");
    let mut names: Vec<_> = env
        .lines()
        .map(|line| line.split('=').next().unwrap())
        .collect();
    names.sort_unstable();
    let mut expected = [
        "CONFIG_PATH",
        "ENTRY_POINT",
        "GREETING",
        "HOME",
        "HOME2",
        "LAUNCHABLE_ID",
        "LAUNCHABLE_ROOT",
        "NODE_NAME",
        "PATH",
        "PLATFORM_CONFIG_PATH",
        "POD_HOME",
        "POD_ID",
        "POD_LABELS_PATH",
        "POD_NAME",
        "POD_NAMESPACE",
        "POD_UNIQUE_KEY",
        "PORT_HTTP",
        "RESOURCE_LIMIT_PATH",
        "RESTART_TIMEOUT",
        "USER",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert!(get(port, "/config").contains("greeting: hi"));
    let labels = std::fs::read_to_string(rig.layout().pod(&name()).labels()).unwrap();
    assert_eq!(labels, "app=\"hello\"\n");
}

#[test]
fn a_program_that_runs_to_completion_succeeds_or_fails() {
    for (code, phase) in [("0", "Succeeded"), ("3", "Failed")] {
        let rig = Rig::new();
        let mut spec = rig.spec(&rig.app("one"));
        spec["launchables"]["web"]["restart"] = serde_json::json!({"policy": "Never"});
        spec["launchables"]["web"]["env"] = serde_json::json!({"EXIT_WITH": code});
        let (_worker, told) = rig.attend(want(1, &spec));
        let report = told.wait(phase, |report| report.phase.as_str() == phase);
        assert!(!report.is_ready());
        assert_eq!(report.status.exits[0].code, code.parse().ok());
    }
}

#[test]
fn a_killed_supervisor_is_replaced() {
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (_worker, told) = rig.attend(want(1, &spec));
    let first = told.ready().status.pids["web"];
    let dir = rig.layout().pod(&name()).shim("web");
    let shim = platctrl_shim_lib::read_state(&dir)
        .unwrap()
        .unwrap()
        .shim
        .unwrap();
    kill(shim.pid);
    let again = told.wait("another process", |report| {
        report.is_ready() && report.status.pids["web"] != first
    });
    assert!(!is_alive(first), "there are never two");
    assert!(is_alive(again.status.pids["web"]));
    assert_eq!(told.events("SupervisorLost").len(), 1);
}

#[test]
fn a_damaged_record_costs_no_restart() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (worker, _, first) = rig.attend_ready(&spec);
    drop(worker);
    rig.crash();
    let record = rig.layout().pod(&name()).record();
    std::fs::write(&record, b"{\"format\":1,\"name\":\"def").unwrap();
    let (_worker, told) = rig.attend(want(1, &spec));
    let again = told.ready();
    assert_eq!(again.status.pids, first.status.pids);
    assert_eq!(told.events("RecordDamaged").len(), 1);
}

#[test]
fn a_pod_drains_before_it_is_stopped() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["drainDelay"] = "500ms".into();
    spec["keepData"] = true.into();
    let (worker, told, first) = rig.attend_ready(&spec);
    let pid = first.status.pids["web"];
    let data = rig.layout().pod(&name()).data();
    std::fs::write(data.join("precious"), "x").unwrap();
    worker.order(tombstone(1, &spec));
    let draining = told.wait("draining", |report| {
        report
            .condition("Ready")
            .is_some_and(|ready| ready.reason == "Draining")
    });
    assert!(
        is_alive(pid) && draining.status.pids["web"] == pid,
        "it is not stopped yet"
    );
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(!is_alive(pid));
    assert!(data.join("precious").exists(), "keepData");
    assert!(!rig.layout().pod(&name()).record().exists());
}

#[test]
fn a_missing_artifact_is_named_with_the_way_out() {
    let rig = Rig::new();
    let mut artifact = rig.app("one");
    artifact.0 = format!("file:{}/nothing.tar.gz", rig.artifacts().display());
    let (_worker, told) = rig.attend(want(1, &rig.spec(&artifact)));
    let report = told.wait("a refusal", |report| {
        report.status.reason == "ArtifactNotFound"
    });
    assert_eq!(report.phase.as_str(), "Fetching");
    assert!(
        report.status.message.contains("nothing.tar.gz"),
        "{}",
        report.status.message
    );
}

#[test]
fn no_supervisor_or_program_of_an_uninstalled_node_is_left() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let (worker, _, first) = rig.attend_ready(&spec);
    let pid = first.status.pids["web"];
    let running = rig.block_on(platctrl_agent::uninstall(&rig.data_dir(), GRACE));
    assert!(matches!(
        running,
        Err(platctrl_agent::UninstallError::Running { .. })
    ));
    drop(worker);
    rig.crash();
    let removed = rig
        .block_on(platctrl_agent::uninstall(&rig.data_dir(), GRACE))
        .unwrap();
    assert_eq!(removed.pods, [name()]);
    assert!(!is_alive(pid) && !rig.data_dir().exists());
    rig.block_on(platctrl_agent::uninstall(&rig.data_dir(), GRACE))
        .unwrap();
}

#[test]
fn readiness_follows_the_health_check_and_is_kept_over_a_restart_of_the_agent() {
    let mut rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["health"] = serde_json::json!({
        "http": {"port": "http"}, "interval": "20ms", "failureThreshold": 2, "grace": "20s",
    });
    let (worker, told) = rig.attend(want(1, &spec));
    let ready = told.ready();
    assert_eq!(ready.condition("Ready").unwrap().reason, "Healthy");
    let unhealthy = rig.layout().pod(&name()).data().join("unhealthy");
    std::fs::write(&unhealthy, "").unwrap();
    let sick = told.wait("sickness", |report| !report.is_ready());
    assert_eq!(sick.status.reason, "Unhealthy");
    assert!(
        sick.status.message.contains("503"),
        "{}",
        sick.status.message
    );
    assert_eq!(
        sick.status.pids, ready.status.pids,
        "readiness alone restarts nothing"
    );
    std::fs::remove_file(&unhealthy).unwrap();
    told.ready();
    drop(worker);
    rig.crash();
    let (_worker, told) = rig.attend(want(1, &spec));
    let first = told.wait("any report", |_| true);
    assert!(first.is_ready(), "{first:?}");
}
