//! An app whose user is hostile, and a machine on which others change things.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use platctrl_test_support::needs;

use crate::rig::{Rig, eventually, get, is_alive, kill, name, tombstone, want};

/// Everything below a directory: kind, mode, owner, names, content.
pub(crate) fn picture(root: &Path) -> Vec<String> {
    let mut picture = Vec::new();
    let mut at = vec![root.to_owned()];
    while let Some(path) = at.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = match metadata.is_file() {
            true => fs::read_to_string(&path).unwrap(),
            false => String::new(),
        };
        picture.push(format!(
            "{} {:o} {}:{} {content}",
            path.display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid()
        ));
        if metadata.is_dir() {
            at.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
        }
    }
    picture.sort();
    picture
}

/// What the app's user does to whatever it can reach. Every line is tried, most fail.
const TRICKS: &str = r#"#!/bin/sh
try() { "$@" 2>/dev/null; }
cd "$HOME"
for at in "$HOME" /tmp /var/tmp; do
  try ln -s "$CANARY" "$at/link"
  try ln -s / "$at/root"
  try ln -s "$CANARY/open" "$at/file"
  try ln "$CANARY/open" "$at/hard"
  try mkfifo "$at/fifo"
  try mkdir -p "$at/deep/er" && try ln -s "$CANARY" "$at/deep/er/link"
  try mkdir "$at/closed" && try touch "$at/closed/x" && try chmod 0 "$at/closed"
done
try mv "$POD_HOME/data" "$POD_HOME/data.moved"
for own in config env log installs generations current labels; do
  try mv "$POD_HOME/$own" "$POD_HOME/$own.moved"
  try rm -rf "$POD_HOME/$own"
  try ln -s "$CANARY" "$POD_HOME/$own"
done
try ln -sf "$CANARY/open" "$POD_HOME/log/web.log"
try rm -f "$POD_HOME/log/web.log"
try mkfifo "$POD_HOME/log/web.log.1"
try ln -sf "$CANARY" "$POD_HOME/config/2"
try ln -sf "$CANARY" "$POD_HOME/env/2"
try chmod 777 "$POD_HOME"
try sh -c "echo bad > $LAUNCHABLE_ROOT/bin/launch"
try rmdir "$HOME"; try mv "$HOME" "$HOME.gone"
echo end
exec sleep 1000
"#;

#[test]
fn root_follows_nothing_that_a_hostile_app_left_in_its_home() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let canary = rig.scratch("canary");
    fs::write(canary.join("secret"), "secret").unwrap();
    fs::write(canary.join("open"), "open").unwrap();
    // Also what the app's user may link to.
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(canary.join("open"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(canary.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = picture(&canary);
    let mut spec = rig.script("tricks", TRICKS);
    spec["launchables"]["web"]["env"] = serde_json::json!({"CANARY": canary.display().to_string()});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    rig.said("end");
    let paths = rig.layout().pod(&name());
    let planted = fs::symlink_metadata(paths.data().join("link")).unwrap();
    assert!(planted.is_symlink(), "the tricks were played");
    assert!(fs::symlink_metadata(paths.tmp().join("fifo")).is_ok());
    assert_eq!(picture(&canary), before);
    // Each path that root goes: a restart, another version, the end.
    kill(first.status.pids["web"]);
    told.wait("another process", |it| {
        it.is_ready() && it.status.pids["web"] != first.status.pids["web"]
    });
    spec["launchables"]["web"]["env"]["AGAIN"] = "1".into();
    spec["config"] = serde_json::json!({"a": 1});
    worker.order(want(2, &spec));
    told.wait("the next version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    eventually("the older version to go", || {
        (!paths.config(1).exists()).then_some(())
    });
    let config = fs::symlink_metadata(paths.config(2)).unwrap();
    assert!(config.is_dir() && config.uid() == 0);
    assert_eq!(picture(&canary), before);
    worker.order(tombstone(2, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(!paths.home().exists());
    assert_eq!(picture(&canary), before);
}

#[test]
fn a_user_that_was_deleted_costs_no_restart_and_is_made_again_with_its_number() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let mut spec = rig.script("idle", "#!/bin/sh\nid -u\necho end\nexec sleep 1000\n");
    let user = format!("pc-{}", rig.app);
    // A number that nobody on this machine is given unasked: it stays free while the user is gone.
    let uid = rand::random_range(40_000..50_000).to_string();
    let note = format!(
        r#"{{"users":{{"{user}":{{"app":"{}","uid":{uid}}}}}}}"#,
        rig.app
    );
    let host = rig.host();
    fs::write(rig.data_dir().join("users.json"), note).unwrap();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    assert_eq!(rig.said("end").remove(0), uid);
    let passwd = || fs::read_to_string("/etc/passwd").unwrap();
    let line = format!("{user}:");
    assert!(passwd().lines().any(|it| it.starts_with(&line)));
    // As userdel does when it is forced: the process runs on.
    let deleted = Command::new("userdel")
        .args(["-f", &user])
        .output()
        .unwrap();
    assert!(
        !passwd().lines().any(|it| it.starts_with(&line)),
        "{deleted:?}"
    );
    kill(first.status.pids["web"]);
    told.wait("another process", |it| {
        it.is_ready() && it.status.pids["web"] != first.status.pids["web"]
    });
    spec["config"] = serde_json::json!({"a": 1});
    worker.order(want(2, &spec));
    told.wait("the next version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    assert!(
        passwd().lines().any(|it| it.starts_with(&line)),
        "it was made again"
    );
    let said = eventually("three starts", || {
        let said = rig.said("end");
        (said.iter().filter(|line| *line != "end").count() == 3).then_some(said)
    });
    assert!(
        said.iter().all(|line| *line == uid || line == "end"),
        "{said:?}"
    );
}

#[test]
fn a_group_that_was_removed_is_made_again_and_the_program_started() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let spec = rig.script("idle", "#!/bin/sh\nexec sleep 1000\n");
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let pid = told.ready().status.pids["web"];
    let groups = groups_of(pid);
    if groups.is_empty() {
        needs::lacks("control groups");
        return;
    }
    // Somebody moves the process out and removes its groups.
    for group in &groups {
        let root = group.ancestors().find(|it| {
            it.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("platctrl-"))
        });
        let root = root.unwrap().parent().unwrap();
        fs::write(root.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::remove_dir(group).unwrap();
    }
    assert!(is_alive(pid), "it does not mind");
    kill(pid);
    let again = told.wait("another process", |it| {
        it.is_ready() && it.status.pids.get("web").is_some_and(|it| *it != pid)
    });
    let mut now = groups_of(again.status.pids["web"]);
    now.sort();
    let mut groups = groups;
    groups.sort();
    assert_eq!(now, groups);
}

/// The directories of the groups of ours that a process is in.
fn groups_of(pid: u32) -> Vec<std::path::PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mounts: Vec<_> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|it| it.unwrap().path())
        .chain(["/sys/fs/cgroup".into()])
        .collect();
    let mut found = Vec::new();
    for line in text.lines() {
        let path = line.splitn(3, ':').nth(2).unwrap();
        if !path.contains("/platctrl-") {
            continue;
        }
        for mount in &mounts {
            let directory = mount.join(&path[1..]);
            let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            if procs.lines().any(|line| line == pid.to_string()) && !found.contains(&directory) {
                found.push(directory);
            }
        }
    }
    found
}

#[test]
fn a_pod_that_comes_back_later_finds_its_ports_still_its_own() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    let port = first.status.ports["http"];
    drop((worker, host));
    rig.crash();
    // Nothing of it runs, as after the machine went down.
    rig.kill_all();
    let host = rig.host();
    let mut greedy = spec.clone();
    greedy["app"] = format!("{}x", rig.app).into();
    greedy["ports"]["http"]["port"] = port.into();
    let other = platctrl_agent::PodName::new("default", "other").unwrap();
    let (_greedy, refused) = rig.worker_of(&host, &other, want(1, &greedy));
    let report = refused.wait("a refusal", |it| it.status.reason == "PortUnavailable");
    assert!(
        report.status.message.contains("the pod default/hello"),
        "{report:?}"
    );
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    assert_eq!(told.ready().status.ports["http"], port);
}

#[test]
fn a_port_that_was_taken_while_nothing_ran_is_refused_or_replaced_before_the_start() {
    let mut rig = Rig::new();
    for fixed in [true, false] {
        let mut spec = rig.spec(&rig.app("one"));
        let host = rig.host();
        let (worker, told) = rig.worker(&host, want(1, &spec));
        let first = told.ready();
        let port = first.status.ports["http"];
        let mut generation = 1;
        if fixed {
            spec["ports"]["http"]["port"] = port.into();
            generation = 2;
            worker.order(want(generation, &spec));
            told.wait("the fixed port", |it| {
                it.is_ready() && it.observed_generation == 2
            });
        }
        drop((worker, host));
        rig.crash();
        rig.kill_all();
        let stranger = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
        let host = rig.host();
        let (worker, told) = rig.worker(&host, want(generation, &spec));
        if fixed {
            let refused = told.wait("a refusal", |it| it.status.reason == "PortUnavailable");
            assert!(refused.status.message.contains("in use by"), "{refused:?}");
            assert!(refused.status.pids.is_empty(), "nothing was started");
            drop(stranger);
            assert_eq!(told.ready().status.ports["http"], port);
        } else {
            let again = told.ready();
            assert_ne!(again.status.ports["http"], port);
            assert_eq!(get(again.status.ports["http"], "/version"), "one");
            assert_eq!(told.events("PortChanged").len(), 1);
        }
        worker.order(tombstone(generation, &spec));
        told.wait("the end", |report| report.phase.as_str() == "Gone");
        drop((worker, host, told));
    }
}
