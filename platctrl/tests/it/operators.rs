//! What operators and deployers of a machine meet when they say too little, or something wrong, and
//! what they are told to do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use serde_json::{Value, json};

use crate::rig::{Rig, Said, eventually};

/// A pod of this machine with these launchables, all of one script.
fn pod(rig: &Rig, name: &str, launchables: Value) -> Value {
    rig.script_artifact(
        "hello",
        "#!/bin/sh\necho here\n[ -z \"$CODE\" ] || exit $CODE\nexec sleep 1000\n",
    );
    let mut launchables = launchables;
    for launchable in launchables.as_object_mut().unwrap().values_mut() {
        launchable["location"] = "hello.tar.gz".into();
    }
    json!({
        "apiVersion": "platctrl.dev/v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": rig.app, "app": rig.app, "launchables": launchables},
    })
}

fn apply(rig: &Rig, pod: &Value) {
    rig.write("pod.yaml", pod.to_string());
    rig.cli(&["apply", "-f", "pod.yaml"]).ok();
}

/// Waits until a pod's status names this reason or phase.
fn said_of(rig: &Rig, pod: &str, word: &str) -> Value {
    eventually(word, || {
        let pod = rig.json(&["get", "pod", pod]);
        let status = &pod["status"];
        (status["phase"] == word || status["reason"] == word).then(|| pod.clone())
    })
}

fn inspected(rig: &Rig, pod: &str) -> Value {
    let said = rig.json(&["node", "inspect"]);
    let items = said["items"].as_array().unwrap();
    let name = format!("default/{pod}");
    items.iter().find(|it| it["name"] == name).unwrap().clone()
}

#[test]
fn of_a_pod_with_several_programs_logs_and_exec_ask_for_one() {
    let rig = Rig::running();
    apply(&rig, &pod(&rig, "two", json!({"web": {}, "side": {}})));
    said_of(&rig, "two", "Running");
    let hint = [
        "has several programs: side, web",
        "hint: name one with --launchable",
    ];
    eventually("two logs", || {
        let said = rig.cli(&["logs", "two"]);
        said.err.contains(hint[0]).then_some(())
    });
    rig.cli(&["logs", "two"]).fails(2, &hint);
    rig.cli(&["exec", "two", "--", "true"]).fails(2, &hint);
    rig.cli(&["exec", "two", "--launchable", "nobody", "--", "true"])
        .fails(5, &["has no program `nobody`: it has side, web"]);
    let said = rig.cli(&[
        "exec",
        "two",
        "--launchable",
        "side",
        "--",
        "printenv",
        "LAUNCHABLE_ID",
    ]);
    assert_eq!(said.ok(), "side\n");
}

#[test]
fn node_inspect_says_how_pods_are_also_from_the_disk_alone() {
    let mut rig = Rig::running();
    let never = json!({"web": {"restart": {"policy": "Never"}, "env": {"CODE": "0"}}});
    apply(&rig, &pod(&rig, "job", never));
    let never = json!({"web": {"restart": {"policy": "Never"}, "env": {"CODE": "7"}}});
    apply(&rig, &pod(&rig, "bad", never));
    let mut changed = pod(
        &rig,
        "changed",
        json!({"web": {"resources": {"pids": 100}}}),
    );
    apply(&rig, &changed);
    let mut back = pod(&rig, "back", json!({"web": {}}));
    apply(&rig, &back);
    said_of(&rig, "job", "Succeeded");
    said_of(&rig, "bad", "Failed");
    said_of(&rig, "changed", "Running");
    // Only what has shown that it works is gone back to.
    eventually("a version that works", || {
        (inspected(&rig, "back")["position"] == "Settled").then_some(())
    });
    changed["spec"]["launchables"]["web"]["resources"]["pids"] = 90.into();
    apply(&rig, &changed);
    back["spec"]["launchables"]["web"]["env"] = json!({"CODE": "3"});
    apply(&rig, &back);
    said_of(&rig, "back", "Reverted");
    eventually("the change", || {
        let pod = rig.json(&["get", "pod", "changed"]);
        (pod["status"]["observedGeneration"] == 2).then_some(())
    });
    let told = |rig: &Rig| {
        let of = |pod| {
            let pod = inspected(rig, pod);
            (pod["phase"].clone(), pod["state"].clone())
        };
        assert_eq!(of("job"), (json!("Succeeded"), json!("as wanted")));
        assert_eq!(of("bad"), (json!("Failed"), json!("as wanted")));
        assert_eq!(of("changed"), (json!("Running"), json!("as wanted")));
        let (phase, state) = of("back");
        assert_eq!(phase, "Running");
        let state = state.as_str().unwrap();
        assert!(
            state.starts_with("went back to the version before: ")
                && state.contains("exited with code 3"),
            "{state}"
        );
    };
    told(&rig);
    rig.end_up(15);
    told(&rig);
}

#[test]
fn a_restart_by_hand_runs_a_job_again_and_a_stopped_pod_says_that_it_is() {
    let rig = Rig::running();
    let never = json!({"web": {"restart": {"policy": "Never"}, "env": {"CODE": "7"}}});
    apply(&rig, &pod(&rig, "job", never));
    said_of(&rig, "job", "Failed");
    rig.cli(&["restart", "--now", "job"]).ok();
    eventually("another run", || {
        let pod = rig.json(&["get", "pod", "job"]);
        let exits = pod["status"]["exits"].as_array()?.len();
        (exits == 2 && pod["status"]["phase"] == "Failed").then_some(())
    });
    apply(&rig, &pod(&rig, "stays", json!({"web": {}})));
    said_of(&rig, "stays", "Running");
    rig.cli(&["stop", "--now", "stays"]).ok();
    said_of(&rig, "stays", "Stopped");
    let told = rig.cli(&["describe", "pod/stays"]).ok();
    assert!(told.contains("  stopped: somebody stopped it"), "{told}");
}

#[test]
fn what_was_named_for_an_agent_has_to_be_there() {
    let rig = Rig::new();
    let file = rig.path("nothing");
    let file = file.to_str().unwrap();
    for flag in ["--hooks", "--health-ca", "--deploy-rules"] {
        rig.cli(&["up", flag, file])
            .fails(1, &[&format!("{flag} {file}: No such file"), "leave "]);
    }
    let store = ["agent", "--store", "etcd://127.0.0.1:1/x"];
    let agent = |more: &[&str]| rig.cli(&[&store[..], more].concat());
    agent(&["--file-dir", file]).fails(1, &["--file-dir ", "make the directory"]);
    agent(&["--node", "Not_A_Name"]).fails(2, &["node name", "Not_A_Name"]);
    assert!(!rig.data_dir().exists(), "nothing was begun");
}

#[test]
fn the_help_of_an_agent_tells_its_own_flags_from_those_of_the_store() {
    let rig = Rig::new();
    for verb in [&["agent"][..], &["node", "admit"]] {
        let help = rig.cli(&[verb, &["--help"]].concat()).ok();
        let (own, store) = help.split_once("Reaching the store:").unwrap();
        let flag = if verb == ["agent"] {
            "--secrets-dir"
        } else {
            "--labels"
        };
        assert!(own.contains(flag) && !store.contains(flag), "{help}");
        assert!(store.contains("--store-ca"), "{help}");
    }
    let help = rig.cli(&["up", "--help"]).ok();
    assert!(
        help.contains("--secrets-dir") && help.contains("--file-dir"),
        "{help}"
    );
}

#[test]
fn a_second_agent_of_a_data_directory_is_told_whose_it_is_also_while_no_store_answers() {
    let mut rig = Rig::running();
    let pid = rig.up_pid();
    let args = [
        "agent",
        "--store",
        "etcd://127.0.0.1:1/x",
        "--node",
        &rig.app,
    ];
    rig.cli(&args).fails(
        1,
        &[
            &format!("already: process {pid}"),
            "choose another --data-dir",
        ],
    );
    let local = rig.data_dir();
    let manifest = pod(&rig, "one", json!({"web": {}}));
    rig.write("pod.yaml", manifest.to_string());
    rig.cli(&[
        "launch",
        "--local",
        "pod.yaml",
        "--data-dir",
        local.to_str().unwrap(),
    ])
    .fails(1, &[&format!("already: process {pid}")]);
    rig.end_up(15);
}

#[test]
fn somebody_else_is_told_to_be_root_and_not_to_look_elsewhere() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let rig = Rig::running();
    let as_nobody = |args: &[&str]| -> Said {
        let mut command = rig.command(args);
        command.uid(65534).gid(65534);
        command.output().unwrap().into()
    };
    let hint = ["Permission denied", "use sudo"];
    as_nobody(&["node", "inspect"]).fails(1, &hint);
    as_nobody(&["restart", "one"]).fails(1, &hint);
    as_nobody(&["up"]).fails(1, &["Permission denied", "belongs to another user"]);
    // A directory that is nobody's.
    let other = rig.path("other");
    fs::create_dir(&other).unwrap();
    rig.cli(&["node", "inspect", "--data-dir", other.to_str().unwrap()])
        .fails(1, &["no agent has worked in", "--data-dir"]);
}

#[test]
fn what_is_wrong_with_an_artifact_comes_with_what_to_do_about_it() {
    let rig = Rig::new();
    rig.write("not.tar.gz", "text");
    rig.cli(&["hoist", "verify", "not.tar.gz"]).fails(
        1,
        &["not a tar.gz", "hint: `platctrl hoist build DIR -o FILE`"],
    );
    fs::create_dir(rig.path("empty")).unwrap();
    rig.cli(&["hoist", "build", "empty", "-o", "x.tar.gz"])
        .fails(1, &["bin/launch is missing", "hint: put it right"]);
    rig.cli(&["hoist", "verify", "nothing.tar.gz"])
        .fails(1, &["does not exist", "hint: name a file"]);
    rig.script_artifact("hello", "#!/bin/sh\n");
    let digest = format!("sha256:{}", "0".repeat(64));
    rig.cli(&["hoist", "verify", "hello.tar.gz", "--digest", &digest])
        .fails(1, &["has the digest", "hint: this is not the file"]);
}

#[test]
fn a_pod_that_runs_to_its_end_ends_its_launch_and_shows_what_it_said() {
    let rig = Rig::new();
    let dir = rig.path("local");
    let dir = dir.to_str().unwrap();
    let run = |pod: &Value| {
        rig.write("pod.yaml", pod.to_string());
        rig.cli(&["launch", "--local", "pod.yaml", "--data-dir", dir])
    };
    let launch = |code: &str| {
        let job = json!({"web": {"restart": {"policy": "Never"}, "env": {"CODE": code}}});
        run(&pod(&rig, "job", job))
    };
    assert_eq!(launch("0").ok(), "here\n");
    let failed = launch("7");
    assert_eq!((failed.code, failed.out.as_str()), (Some(1), "here\n"));
    assert!(
        failed.err.contains("error: web exited with code 7"),
        "{}",
        failed.err
    );
    // One that cannot be run is not tried for ever.
    let mut broken = pod(&rig, "job", json!({"web": {}}));
    broken["spec"]["launchables"]["web"]["entryPoints"] = json!(["bin/other"]);
    run(&broken).fails(
        1,
        &["bin/other is missing; what is started is an executable file"],
    );
}

#[test]
fn uninstall_leaves_what_operators_put_there_and_has_done_its_work() {
    let mut rig = Rig::running();
    let hooks = rig.data_dir().join("hooks");
    fs::create_dir(&hooks).unwrap();
    fs::set_permissions(&hooks, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(hooks.join("README"), "").unwrap();
    let said = rig.cli(&["uninstall", "--yes"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("stays: hooks"), "{said:?}");
    assert!(rig.await_end().success());
    let left: Vec<_> = fs::read_dir(rig.data_dir()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1);
    fs::remove_dir_all(rig.data_dir()).unwrap();
}
