//! Checks of pods beside those over HTTP: by a command, and by a connection.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use platctrl_test_support::needs;
use serde_json::json;

use crate::rig::{Rig, name, want};

#[test]
fn a_command_checks_a_pod_as_its_user_in_its_groups_and_decides_whether_it_is_ready() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    let script = "id -u > $HOME/by.new; cat /proc/self/cgroup > $HOME/in; mv $HOME/by.new $HOME/by; \
                  test -e $HOME/well || { echo not well yet >&2; exit 3; }";
    spec["health"] = json!({
        "exec": {"command": ["sh", "-c", script]},
        "interval": "20ms", "timeout": "30s", "failureThreshold": 1, "grace": "1ms",
    });
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let sick = told.wait("its failure", |it| it.status.reason == "Unhealthy");
    assert!(!sick.is_ready());
    let message = &sick.status.message;
    assert!(message.contains("not well yet"), "{message}");
    let data = rig.layout().pod(&name()).data();
    fs::write(data.join("well"), "").unwrap();
    let well = told.ready();
    assert_eq!(well.condition("Ready").unwrap().reason, "Healthy");
    assert_eq!(well.status.pids, sick.status.pids, "it restarted nothing");
    let by = fs::read_to_string(data.join("by")).unwrap();
    assert_eq!(by.trim(), fs::metadata(&data).unwrap().uid().to_string());
    if needs::root() {
        assert_ne!(by.trim(), "0");
        let within = fs::read_to_string(data.join("in")).unwrap();
        let pid = well.status.pids["web"];
        let its = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(within, its, "it counts as a part of the pod");
    }
    fs::remove_file(data.join("well")).unwrap();
    told.wait("its failure", |it| !it.is_ready());
}

#[test]
fn whoever_accepts_connections_is_ready_by_a_check_over_tcp() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["health"] = json!({"tcp": {"port": "http"}, "interval": "20ms", "timeout": "30s"});
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let ready = told.ready();
    assert_eq!(ready.condition("Ready").unwrap().reason, "Healthy");
}
