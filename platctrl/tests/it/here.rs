//! Verbs about the pods of this machine, and restarts through the real controllers.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::rig::{Rig, eventually, is_alive, kill};

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

fn only_pod(rig: &Rig) -> String {
    let name = &rig.pods()[0]["metadata"]["name"];
    name.as_str().unwrap().to_owned()
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

#[test]
fn what_is_on_the_machine_is_told_whole_also_while_nothing_of_platctrl_runs() {
    let mut rig = Rig::running();
    sleepers(&rig, 1);
    eventually("a pod", || all_ready(&rig, 1));
    let pod = only_pod(&rig);
    let pid = pids(&rig).first().copied().unwrap();
    let said = eventually("all of it", || {
        let said = rig.json(&["node", "inspect"]);
        (said["items"][0]["state"] == "as wanted").then_some(said)
    });
    let node = &said["node"];
    assert_eq!(node["agent"], "takes orders");
    assert!(!node["storeId"].as_str().unwrap().is_empty(), "{node}");
    assert!(node["diskFree"].as_u64() > Some(0), "{node}");
    let one = &said["items"][0];
    assert_eq!(one["name"], format!("default/{pod}"));
    // What is wanted, what runs, its processes, its room, and what the store says.
    assert_eq!(one["intent"]["spec"]["app"], rig.app.as_str());
    assert_eq!(one["running"]["generation"], one["wantedGeneration"]);
    assert!(
        one["running"]["artifacts"]["web"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert_eq!(one["programs"][0]["pid"], pid);
    assert!(one["programs"][0]["supervisor"].as_u64().is_some());
    assert!(one["disk"]["installs"].as_u64() > Some(0));
    assert_eq!(one["stored"]["uid"], one["uid"]);
    assert_eq!(one["stored"]["status"]["phase"], "Running");
    // Without a server and an agent it is told from the disk alone.
    rig.end_up(15);
    let said = rig.json(&["node", "inspect"]);
    assert_eq!(said["node"]["agent"], "does not run");
    let one = &said["items"][0];
    assert_eq!(one["programs"][0]["pid"], pid);
    assert_eq!(one["intent"]["spec"]["app"], rig.app.as_str());
    assert!(one.get("stored").is_none(), "{one}");
}

#[test]
fn the_log_of_the_run_before_and_of_a_time_is_asked_for_by_the_command_line() {
    let rig = Rig::running();
    rig.script_artifact("hello", "#!/bin/sh\necho \"I am $$\"\nexec sleep 1000\n");
    rig.manifest(1, |text| {
        let lines = text.lines().filter(|line| {
            let line = line.trim_start();
            !line.starts_with("health:") && !line.starts_with("ports:")
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    eventually("a pod", || all_ready(&rig, 1));
    let pod = only_pod(&rig);
    let first = pids(&rig).first().copied().unwrap();
    rig.cli(&["logs", "-p", &pod])
        .fails(1, &["no run of web before"]);
    kill(u32::try_from(first).unwrap(), 9);
    let second = eventually("another process", || {
        let now = pids(&rig).first().copied()?;
        (now != first).then_some(now)
    });
    eventually("its word", || {
        let said = rig.cli(&["logs", &pod]).ok();
        (said == format!("I am {first}\nI am {second}\n")).then_some(())
    });
    let said = rig.cli(&["logs", "--previous", &pod]).ok();
    assert_eq!(said, format!("I am {first}\n"));
    let said = rig.cli(&["logs", "--since", "1h", &pod]).ok();
    assert_eq!(said, format!("I am {first}\nI am {second}\n"));
    let said = rig.cli(&["logs", "--since-time", "2100-01-01T00:00:00Z", &pod]);
    assert_eq!(said.ok(), "");
    rig.cli(&[
        "logs",
        "--since",
        "1h",
        "--since-time",
        "2100-01-01T00:00:00Z",
        &pod,
    ])
    .fails(2, &["--since"]);
    rig.cli(&["logs", "-p", "-f", &pod]).fails(2, &["--follow"]);
}

#[test]
fn hooks_are_called_by_hand_for_a_pod_of_the_machine() {
    let rig = Rig::running();
    sleepers(&rig, 1);
    eventually("a pod", || all_ready(&rig, 1));
    let pod = only_pod(&rig);
    let hook = |name: &str, script: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = rig.path("hooks");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let trace = rig.path("trace");
    let script = format!(
        "#!/bin/sh\necho \"$HOOK_EVENT $HOOKED_POD_NAME\" >> {}\n",
        trace.display()
    );
    hook("look", &script);
    let hooks = rig.path("hooks");
    let hooks = hooks.to_str().unwrap();
    let said = rig
        .cli(&["run-hooks", &pod, "after_launch", "--hooks", hooks])
        .ok();
    assert_eq!(said, format!("pod/{pod}: 1 hook of after_launch called\n"));
    let traced = std::fs::read_to_string(&trace).unwrap();
    assert_eq!(traced, format!("after_launch {pod}\n"));
    rig.cli(&["run-hooks", "nobody", "after_launch", "--hooks", hooks])
        .fails(5, &["nobody"]);
    rig.cli(&["run-hooks", &pod, "at_noon", "--hooks", hooks])
        .fails(2, &["at_noon"]);
}

#[test]
fn uninstall_leaves_no_user_no_group_no_mount_and_no_word_of_itself_on_the_machine() {
    let mut rig = Rig::running();
    sleepers(&rig, 1);
    eventually("a pod", || all_ready(&rig, 1));
    let pid = pids(&rig).first().copied().unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    // Below what this test is in itself.
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own: BTreeSet<&str> = own.lines().collect();
    let places: Vec<(String, String)> = groups
        .lines()
        .filter(|line| !own.contains(line))
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        })
        .collect();
    let there = |places: &[(String, String)]| -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mut found = Vec::new();
        for mount in mounts.lines() {
            let fields: Vec<&str> = mount.split(' ').collect();
            for (controllers, path) in places {
                let is = match controllers.is_empty() {
                    true => fields[2] == "cgroup2",
                    false => fields[2] == "cgroup" && fields[3].contains(controllers.as_str()),
                };
                let path = PathBuf::from(format!("{}{path}", fields[1]));
                if is && path.is_dir() {
                    found.push(path);
                }
            }
        }
        found
    };
    if rustix::process::geteuid().is_root() {
        assert!(!there(&places).is_empty(), "{groups}");
    }
    let dir = rig.data_dir().canonicalize().unwrap();
    rig.cli(&["uninstall", "--yes"]).ok();
    assert!(rig.await_end().success());
    assert_eq!(there(&places), Vec::<PathBuf>::new());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
    for file in ["/etc/passwd", "/etc/group"] {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(!text.contains(&rig.app), "{file}");
    }
    let said = rig.cli(&["node", "inspect"]);
    said.fails(1, &["data"]);
}
