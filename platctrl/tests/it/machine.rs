//! What the machine does to pods, and what platctrl does to the machine.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::rig::{Rig, Said, eventually, processes_of};

/// Waits until the only pod says this, in its status and in its description.
#[track_caller]
fn told(rig: &Rig, what: &str) -> Value {
    let pod = eventually(what, || {
        rig.pods().into_iter().find(|pod| {
            pod["status"]["message"]
                .as_str()
                .unwrap_or_default()
                .contains(what)
        })
    });
    let name = pod["metadata"]["name"].as_str().unwrap();
    let described = rig.cli(&["describe", "pod", name]).ok();
    assert!(described.contains(what), "{what} is not in {described}");
    pod
}

#[test]
fn a_port_that_is_taken_is_told_on_the_pod() {
    let rig = Rig::running();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    rig.quickstart_artifact().manifest(1, |text| {
        text.replace("http: {}", &format!("http: {{ port: {port} }}"))
    });
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    told(&rig, &port.to_string());
    drop(taken);
    let pod = rig.ready(1).remove(0);
    assert_eq!(pod.port, port);
    pod.answer().unwrap();
}

#[test]
fn a_health_check_that_hangs_is_told_on_the_pod() {
    let rig = Rig::running();
    // Takes connections and never answers.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hangs.local_addr().unwrap().port();
    rig.script_artifact("hello", "#!/bin/sh\nexec sleep 1000\n");
    rig.manifest(1, |text| {
        text.replace("http: {}", &format!("http: {{ port: {port} }}"))
            .replace("timeout: 1s", "timeout: 100ms, grace: 100ms")
    });
    drop(hangs);
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let pod = eventually("a pod that runs", || {
        rig.pods()
            .into_iter()
            .find(|pod| pod["status"]["phase"] == "Running")
    });
    // Only now: before, the agent would have found the port taken.
    let _hangs = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let told = eventually("the hanging check", || {
        let pod = rig.json(&["get", "pod", pod["metadata"]["name"].as_str().unwrap()]);
        let ready = pod["status"]["conditions"]
            .as_array()?
            .iter()
            .find(|it| it["type"] == "Ready")?
            .clone();
        let message = ready["message"].as_str()?.to_owned();
        (ready["status"] == "False" && message.contains("100ms")).then_some(message)
    });
    let described = rig
        .cli(&["describe", "pod", pod["metadata"]["name"].as_str().unwrap()])
        .ok();
    assert!(described.contains(&told), "{described}");
}

#[test]
fn a_data_directory_that_pod_users_cannot_reach_is_refused_by_name() {
    let rig = Rig::new();
    let closed = rig.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let dir = closed.join("data");
    rig.cli(&["up", "--data-dir", dir.to_str().unwrap()]).fails(
        1,
        &[
            &format!("{} cannot be entered by pod users", closed.display()),
            "chmod o+x",
        ],
    );
    assert!(!dir.exists(), "nothing was begun");
}

#[test]
fn a_second_up_names_the_first() {
    let mut rig = Rig::running();
    let pid = rig.up_pid().to_string();
    rig.cli(&["up"]).fails(1, &["already", &pid]);
    assert!(rig.end_up(15).success());
    assert!(!rig.data_dir().join("platctrl.sock").exists());
}

#[test]
fn a_lost_store_is_no_order_to_stop_anything() {
    let mut rig = Rig::running();
    let pods = rig.quickstart(1);
    rig.end_up(15);
    fs::remove_dir_all(rig.data_dir().join("store")).unwrap();
    rig.cli(&["up"])
        .fails(3, &["its store is gone", "store init"]);
    assert!(pods[0].answer().is_some());
}

#[test]
fn uninstall_stops_up_and_leaves_nothing() {
    let mut rig = Rig::running();
    let pods = rig.quickstart(2);
    let dir = rig.data_dir();
    rig.cli(&["uninstall"]).fails(2, &["--yes"]);
    rig.cli(&["uninstall", "--yes"]).ok();
    assert!(rig.await_end().success());
    assert!(!dir.exists());
    assert!(pods.iter().all(|pod| pod.answer().is_none()));
    assert_eq!(processes_of(&dir), Vec::<u32>::new());
    let users = fs::read_to_string("/etc/passwd").unwrap();
    assert!(!users.contains(&rig.app));
    rig.cli(&["uninstall", "--yes"]).ok();
    // What is not ours is not touched.
    fs::create_dir(rig.path("home")).unwrap();
    rig.write("home/thesis", "precious");
    rig.cli(&["uninstall", "--yes", "--data-dir", "home"])
        .fails(2, &["no data directory"]);
    assert!(rig.path("home/thesis").exists());
}

#[test]
fn uninstall_also_removes_what_controllers_remember() {
    let mut rig = Rig::running();
    rig.end_up(15);
    // It is written now and then, and perhaps not yet.
    let memory = rig.data_dir().join("failsafe/controllers.json");
    if !memory.exists() {
        rig.write("data/failsafe/controllers.json", "{}");
    }
    rig.cli(&["uninstall", "--yes"]).ok();
    assert!(!rig.data_dir().exists());
}

#[test]
fn a_user_without_rights_runs_pods_as_itself() {
    let mut rig = Rig::of_user(64_999);
    rig.up();
    let pods = rig.quickstart(2);
    for pod in &pods {
        assert!(pod.answer().is_some());
        let status = fs::read_to_string(format!("/proc/{}/status", pod.pid)).unwrap();
        assert!(
            status.lines().any(|line| line.starts_with("Uid:\t64999")),
            "{status}"
        );
    }
    assert!(
        rig.log().contains("not root: pods run as the current user"),
        "{}",
        rig.log()
    );
    // Without being told where: the one that runs is found.
    let mut found = rig.command(&["get", "nodes", "-o", "name"]);
    let found = found.env_remove("PLATCTRL_DATA_DIR").output().unwrap();
    assert_eq!(Said::from(found).ok(), format!("node/{}\n", rig.app));
    rig.cli(&["uninstall", "--yes"]).ok();
    assert!(rig.await_end().success());
    assert!(!rig.data_dir().exists());
    assert!(pods.iter().all(|pod| pod.answer().is_none()));
}

#[test]
fn the_programs_say_how_they_are_used() {
    let rig = Rig::new();
    let help = rig.cli(&["--help"]).ok();
    for verb in [
        "up",
        "get",
        "describe",
        "apply",
        "delete",
        "scale",
        "label",
        "logs",
        "events",
        "wait",
        "store",
        "hoist",
        "launch",
        "uninstall",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(verb)),
            "{verb} is not in {help}"
        );
    }
    assert!(rig.cli(&["version"]).ok().starts_with("platctrl "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(rig.cli(&["completion", shell]).ok().contains("platctrl"));
    }
    rig.cli(&["get", "pods"])
        .fails(3, &["no platctrl runs", "platctrl up"]);
}
