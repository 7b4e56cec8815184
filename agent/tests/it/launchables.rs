//! Several launchables and entry points in one pod, programs that an update leaves alone, and
//! pods that run to an end.

use platctrl_agent::Control;
use serde_json::json;

use crate::rig::{Rig, eventually, get, is_alive, kill, name, want};
use crate::updates::lines;

const SLEEP: Option<&str> = Some("#!/bin/sh\necho $0\nexec sleep 1000\n");

#[test]
fn the_entry_points_of_an_artifact_are_one_process_each() {
    let rig = Rig::new();
    let artifact = rig.pack(
        "many",
        &[
            ("bin/launch", SLEEP),
            ("bin/worker", SLEEP),
            ("bin/jobs/a", SLEEP),
            ("bin/jobs/b", SLEEP),
        ],
    );
    let mut spec = rig.spec(&artifact);
    spec["launchables"]["web"]["entryPoints"] = json!(["bin/worker", "bin/jobs"]);
    spec["launchables"]["one"] = spec["launchables"]["web"].clone();
    spec["launchables"]["one"]["entryPoints"] = json!(["bin/worker"]);
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let report = told.ready();
    assert_eq!(
        report.status.pids.keys().collect::<Vec<_>>(),
        ["one", "web/a", "web/b", "web/worker"]
    );
    // One that is not there is refused before anything is stopped.
    spec["launchables"]["one"]["entryPoints"] = json!(["bin/nobody"]);
    worker.order(want(2, &spec));
    let refused = told.wait("a refusal", |it| it.status.reason == "LaunchInvalid");
    assert_eq!(refused.status.pids, report.status.pids);
    let said = &refused.status.message;
    assert!(
        said.contains("bin/nobody is missing; what is started"),
        "{said}"
    );
}

#[test]
fn each_launchable_has_its_own_environment_and_restart_policy() {
    let rig = Rig::new();
    let script = "#!/bin/sh\necho \"$LAUNCHABLE_ID $WHO $USER\" >> \"$HOME/trace\"\nexit $CODE\n";
    let artifact = rig.pack("jobs", &[("bin/launch", Some(script))]);
    let mut spec = rig.spec(&artifact);
    let job = |policy: &str, code: &str, who: &str| {
        let mut job = spec["launchables"]["web"].clone();
        job["restart"] = json!({"policy": policy});
        job["env"] = json!({"CODE": code, "WHO": who, "USER": "replaced"});
        job
    };
    let launchables = json!({
        "never": job("Never", "5", "a"),
        "well": job("OnFailure", "0", "b"),
        "again": job("OnFailure", "6", "c"),
    });
    spec["launchables"] = launchables;
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let report = told.wait("a second run of the one that failed", |it| {
        it.status.restarts > 0 && it.status.exits.len() > 3
    });
    let trace = lines(&rig.layout().pod(&name()).data().join("trace"));
    let runs = |line: &str| trace.iter().filter(|it| *it == line).count();
    assert_eq!(runs("never a replaced"), 1, "{trace:?}");
    assert_eq!(runs("well b replaced"), 1, "{trace:?}");
    assert!(runs("again c replaced") > 1, "{trace:?}");
    let code = |program: &str| {
        let exit = report
            .status
            .exits
            .iter()
            .find(|it| it.launchable == program);
        exit.map(|exit| exit.code)
    };
    assert_eq!(code("again"), Some(Some(6)));
    assert_ne!(report.phase.as_str(), "Succeeded");
}

#[test]
fn the_exit_status_of_a_pod_that_ran_to_its_end_is_kept_and_it_is_not_run_again() {
    let mut rig = Rig::new();
    let script = "#!/bin/sh\necho ran >> \"$HOME/trace\"\nexit 7\n";
    let mut spec = rig.spec(&rig.pack("job", &[("bin/launch", Some(script))]));
    spec["launchables"]["web"]["restart"] = json!({"policy": "Never"});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let failed = told.wait("its end", |it| it.phase.as_str() == "Failed");
    assert_eq!(failed.status.exits[0].code, Some(7));
    drop((worker, host));
    rig.crash();
    // A reboot: its supervisor is gone, too.
    let dir = rig.layout().pod(&name()).shim("web");
    let state = platctrl_shim_lib::read_state(&dir).unwrap().unwrap();
    kill(state.shim.unwrap().pid);
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let again = told.wait("the same end", |it| it.phase.as_str() == "Failed");
    assert_eq!(again.status.exits, failed.status.exits);
    let trace = rig.layout().pod(&name()).data().join("trace");
    assert_eq!(lines(&trace), ["ran"]);
}

#[test]
fn a_restart_by_hand_runs_again_what_had_ended_and_what_was_stopped() {
    let rig = Rig::new();
    let job = rig.pack(
        "job",
        &[(
            "bin/launch",
            Some("#!/bin/sh\necho ran >> \"$HOME/trace\"\nexit ${CODE:-0}\n"),
        )],
    );
    let mut spec = rig.spec(&job);
    spec["ports"] = json!({});
    spec["launchables"]["web"]["restart"] = json!({"policy": "OnFailure"});
    spec["launchables"]["bad"] = spec["launchables"]["web"].clone();
    spec["launchables"]["bad"]["restart"] = json!({"policy": "Never"});
    spec["launchables"]["bad"]["env"] = json!({"CODE": "7"});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let ended = told.wait("its end", |it| it.phase.as_str() == "Failed");
    assert_eq!(ended.status.exits.len(), 2);
    let trace = rig.layout().pod(&name()).data().join("trace");
    assert_eq!(lines(&trace).len(), 2);
    let restart = || Control::Restart {
        by: "test".into(),
        now: true,
    };
    worker.control(restart());
    let again = told.wait("its end", |it| {
        it.phase.as_str() == "Failed" && it.status.exits.len() == 4
    });
    assert_eq!(lines(&trace).len(), 4);
    assert_eq!(again.status.exits[3].message, "");
    assert_eq!(told.events("Started").len(), 4);
    // Also when it was stopped meanwhile.
    worker.control(Control::Stop {
        by: "test".into(),
        now: true,
    });
    told.wait("a stopped pod", |it| it.status.reason == "Stopped");
    worker.control(restart());
    told.wait("its end", |it| {
        it.phase.as_str() == "Failed" && it.status.restarts == 4
    });
    assert_eq!(lines(&trace).len(), 6);
}

#[test]
fn a_program_that_no_update_halts_runs_on_and_uses_the_new_version_from_its_next_start() {
    let mut rig = Rig::new();
    let spec_of = |rig: &Rig, version: &str| {
        let mut spec = rig.spec(&rig.app(version));
        spec["launchables"]["web"]["noHaltOnUpdate"] = true.into();
        let other = rig.pack(&format!("other-{version}"), &[("bin/launch", SLEEP)]);
        spec["launchables"]["other"] = json!({"location": other.0, "digest": other.1});
        spec
    };
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec_of(&rig, "one")));
    let first = told.ready();
    worker.order(want(2, &spec_of(&rig, "two")));
    let second = told.wait("the new version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    let (web, port) = (first.status.pids["web"], first.status.ports["http"]);
    assert_eq!(second.status.pids["web"], web, "it runs on");
    assert_ne!(second.status.pids["other"], first.status.pids["other"]);
    assert_eq!(told.events("LeftRunning").len(), 1);
    let settled = |rig: &Rig| {
        eventually("the pod to settle", || {
            let pods = platctrl_agent::inspect(&rig.data_dir()).unwrap();
            (pods[0].position == platctrl_agent::Position::Settled).then_some(())
        });
    };
    settled(&rig);
    assert_eq!(get(port, "/version"), "one", "its files are still there");
    assert!(get(port, "/config").contains('{') || rig.layout().pod(&name()).config(1).exists());
    // Also for an agent that starts anew.
    drop((worker, host));
    rig.crash();
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(2, &spec_of(&rig, "two")));
    let found = told.ready();
    assert_eq!(found.status.pids, second.status.pids);
    assert!(is_alive(web));
    kill(web);
    told.wait("its next start", |it| {
        it.is_ready() && it.status.pids["web"] != web
    });
    assert_eq!(get(port, "/version"), "two");
}

#[test]
fn the_output_of_a_program_is_kept_in_as_many_files_as_its_manifest_says() {
    let rig = Rig::new();
    let script = "#!/bin/sh\ni=0; while [ $i -lt 3000 ]; do echo line number $i; i=$((i+1)); done\necho done > \"$HOME/done\"\nexec sleep 1000\n";
    let mut spec = rig.spec(&rig.pack("chatty", &[("bin/launch", Some(script))]));
    spec["launchables"]["web"]["logs"] = json!({"maxSize": "4Ki", "maxFiles": 3, "maxAge": "1h"});
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    told.ready();
    let found = eventually("all its output", || {
        let logs = platctrl_agent::logs(&rig.data_dir(), &name()).unwrap();
        let log = logs.into_iter().next()?;
        lines(&log.current)
            .last()
            .is_some_and(|line| line == "line number 2999")
            .then_some(log)
    });
    assert_eq!(found.files.len(), 3);
    for file in &found.files {
        assert!(std::fs::metadata(file).unwrap().len() <= 4096);
    }
}
