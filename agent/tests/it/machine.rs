//! What a pod gets of the machine, and what it cannot do to it.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use platctrl_agent::{PodName, launch_local};
use platctrl_framework::model::RawObject;
use platctrl_test_support::needs;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::rig::{Recorder, Rig, eventually, get, is_alive, name, tombstone, want};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_pod_runs_as_its_apps_user_in_a_cgroup_of_its_own_and_leaves_neither() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["launchables"]["web"]["resources"] = json!({"memory": "64Mi", "pids": 64});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let report = told.ready();
    let pid = report.status.pids["web"];
    let user = format!("pc-{}", rig.app);
    let passwd = || std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd()
        .lines()
        .find(|line| line.starts_with(&format!("{user}:")))
        .map(str::to_owned);
    let uid: u32 = line
        .expect("a user for the app")
        .split(':')
        .nth(2)
        .unwrap()
        .parse()
        .unwrap();
    let who = get(report.status.ports["http"], "/who");
    let field = |name: &str| {
        let line = who.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![uid.to_string(); 4]);
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("CapBnd:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains("platctrl-"), "{groups}");
    // The home is root's, the data directory the app's, and neither is open to others.
    let paths = rig.layout().pod(&name());
    let owner = |path: &std::path::Path| {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner(paths.home()), (0, 0o711));
    assert_eq!(owner(&paths.data()), (uid, 0o700));
    assert_eq!(owner(&paths.config(1)), (0, 0o750));
    assert_eq!(owner(&paths.config(1).join("config.yaml")), (0, 0o640));
    assert_eq!(owner(paths.state()), (0, 0o700));

    worker.order(tombstone(1, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    drop((worker, host, told));
    drop(rig);
    assert!(
        !passwd().contains(&user),
        "the user was removed with the node"
    );
    let group = groups
        .lines()
        .find_map(|line| line.split(':').nth(2).filter(|it| it.contains("platctrl-")));
    let base = group
        .unwrap()
        .split('/')
        .find(|part| part.starts_with("platctrl-"))
        .unwrap();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(
            !hierarchy.path().join(base).exists(),
            "{}",
            hierarchy.path().display()
        );
    }
}

#[test]
fn links_in_an_apps_data_are_never_followed() {
    let rig = Rig::new();
    let canary = rig.artifacts().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "alive").unwrap();
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    told.ready();
    let data = rig.layout().pod(&name()).data();
    symlink(&canary, data.join("link")).unwrap();
    symlink("/", data.join("root")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        data.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    worker.order(tombstone(1, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert_eq!(
        std::fs::read_to_string(canary.join("file")).unwrap(),
        "alive"
    );
}

#[test]
fn a_fixed_port_in_use_is_refused_before_anything_is_stopped_or_started() {
    let rig = Rig::new();
    let taken = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let mut spec = rig.spec(&rig.app("one"));
    spec["ports"]["http"]["port"] = taken.local_addr().unwrap().port().into();
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let report = told.wait("a refusal", |report| {
        report.status.reason == "PortUnavailable"
    });
    assert!(
        report.status.message.contains("in use by"),
        "{}",
        report.status.message
    );
    assert!(report.status.pids.is_empty());
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_after_its_grace() {
    let rig = Rig::new();
    let script = Some("#!/bin/sh\ntrap '' TERM\necho up\nwhile :; do sleep 1; done\n");
    let mut spec = rig.spec(&rig.pack("stubborn", &[("bin/launch", script)]));
    spec["launchables"]["web"]["stopTimeout"] = "300ms".into();
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let pid = told.ready().status.pids["web"];
    let log = rig.layout().pod(&name()).log().join("web.log");
    eventually("its trap", || {
        std::fs::read_to_string(&log)
            .is_ok_and(|it| it == "up\n")
            .then_some(())
    });
    worker.order(tombstone(1, &spec));
    let gone = told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(!is_alive(pid));
    assert_eq!(gone.status.exits.last().unwrap().signal, Some(9));
}

#[test]
fn a_manifest_runs_without_any_store_until_it_is_stopped() {
    let rig = Rig::new();
    let (location, _) = rig.app("one");
    let file = std::path::Path::new(location.strip_prefix("file:").unwrap())
        .file_name()
        .unwrap();
    let manifest: RawObject = serde_json::from_value(json!({
        "apiVersion": "platctrl.dev/v1",
        "kind": "ReplicationController",
        "metadata": {"name": "hello"},
        "spec": {"replicas": 2, "nodeSelector": "*", "template": {"spec": {
            "app": rig.app,
            "launchables": {"web": {"location": file.to_str().unwrap()}},
            "ports": {"http": {}},
        }}},
    }))
    .unwrap();
    let told = Arc::new(Recorder::default());
    let shutdown = CancellationToken::new();
    let (config, observer, stop) = (rig.host_config(), Arc::clone(&told), shutdown.clone());
    let (base, object) = (rig.artifacts(), manifest.clone());
    let task = rig.spawn(async move { launch_local(config, &object, &base, observer, stop).await });
    let report = told.ready();
    assert_eq!(get(report.status.ports["http"], "/version"), "one");
    shutdown.cancel();
    rig.block_on(task).unwrap().unwrap();
    assert!(!is_alive(report.status.pids["web"]));
    assert_eq!(rig.layout().pods().unwrap(), Vec::<PodName>::new());
    // A misspelt field is named.
    let mut wrong = manifest;
    wrong.spec["template"]["spec"]["lunchables"] = json!({});
    let (config, base) = (rig.host_config(), rig.artifacts());
    let refused = rig.block_on(launch_local(
        config,
        &wrong,
        &base,
        told,
        CancellationToken::new(),
    ));
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("spec.template.spec.lunchables"),
        "{refused}"
    );
}

#[test]
fn without_root_everything_runs_as_the_current_user() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["launchables"]["web"]["resources"] = json!({"memory": "64Mi"});
    let order = rig.artifacts().join("order");
    let mut desired = crate::rig::desired(1, &spec);
    let text = |desired: &platctrl_agent::Desired| {
        format!("{} {}", name(), serde_json::to_string(desired).unwrap())
    };
    std::fs::write(&order, text(&desired)).unwrap();
    let data_dir = rig.scratch("unprivileged");
    let start = || {
        let mut command = Command::new(rig.helper());
        command
            .arg("pod")
            .arg(&data_dir)
            .arg(rig.artifacts())
            .arg(&order);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        if is_root() {
            std::os::unix::fs::chown(&data_dir, Some(65_534), Some(65_534)).unwrap();
            command.uid(65_534).gid(65_534);
        }
        let mut child = command.spawn().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        (child, out)
    };
    let wait = |out: &mut dyn std::io::BufRead, wanted: &dyn Fn(&serde_json::Value) -> bool| loop {
        let mut line = String::new();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended");
        let report: serde_json::Value = serde_json::from_str(&line).unwrap();
        if wanted(&report) {
            return report;
        }
    };
    let (mut child, mut out) = start();
    let report = wait(&mut out, &|it| it["ready"] == true);
    let port = u16::try_from(report["status"]["ports"]["http"].as_u64().unwrap()).unwrap();
    let who = get(port, "/who");
    let uid = if is_root() {
        65_534
    } else {
        rustix::process::geteuid().as_raw()
    };
    assert!(who.contains(&format!("Uid:\t{uid}\t{uid}")), "{who}");
    child.kill().unwrap();
    child.wait().unwrap();
    desired.tombstone = Some(platctrl_agent::Tombstone {
        grace: None,
        by: "test".into(),
        reason: None,
    });
    std::fs::write(&order, text(&desired)).unwrap();
    let (mut child, mut out) = start();
    wait(&mut out, &|it| it["phase"] == "Gone");
    child.wait().unwrap();
}
