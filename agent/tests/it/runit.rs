//! The same pods under the real runit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_agent::launch::Runit;
use platctrl_agent::{Control, Host, LogQuery, LogReader};
use serde_json::json;

use crate::logs::text;
use crate::rig::{Rig, eventually, get, is_alive, kill, name, tombstone, want};
use crate::updates::lines;

fn runsv() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
    let output = std::process::Command::new(script)
        .arg("runit")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/tools runit: {said}");
    let dir = String::from_utf8(output.stdout).unwrap();
    Path::new(dir.trim()).join("runsv").canonicalize().unwrap()
}

fn host(rig: &Rig) -> Arc<Host> {
    let mut config = rig.host_config();
    config.supervisor = Some(Arc::new(Runit::new(runsv(), rig.helper())));
    Arc::new(Host::open(config).unwrap())
}

fn runsv_of(rig: &Rig) -> u32 {
    let dir = rig.layout().pod(&name()).shim("web");
    let pid = std::fs::read_to_string(dir.join("runsv.pid")).unwrap();
    let pid = pid.parse().unwrap();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(program.ends_with("runsv"), "{}", program.display());
    pid
}

/// Kills what is left of runit whatever happens: the rig knows shims alone.
struct Ends(PathBuf);

impl Drop for Ends {
    fn drop(&mut self) {
        let pods = std::fs::read_dir(self.0.join("state/pods"));
        let shims = pods.into_iter().flatten().flatten();
        let units = shims.flat_map(|pod| std::fs::read_dir(pod.path().join("shim")));
        for unit in units.flatten().flatten() {
            let pid = std::fs::read_to_string(unit.path().join("runsv.pid"));
            let pid: Option<u32> = pid.ok().and_then(|pid| pid.parse().ok());
            let program = |pid| std::fs::read_link(format!("/proc/{pid}/exe"));
            if let Some(pid) = pid
                && program(pid).is_ok_and(|program| program.ends_with("runsv"))
            {
                kill(pid);
            }
        }
    }
}

/// Ends the pod before the rig goes.
fn end(worker: &platctrl_agent::Worker, told: &crate::rig::Recorder, spec: &serde_json::Value) {
    worker.order(tombstone(9, spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
}

#[test]
fn a_pod_under_runit_starts_is_updated_and_found_again_by_the_next_agent() {
    let mut rig = Rig::new();
    let _ends = Ends(rig.data_dir());
    let old = rig.spec(&rig.app("one"));
    let first_host = host(&rig);
    let (worker, told) = rig.worker(&first_host, want(1, &old));
    let first = told.ready();
    assert_eq!(get(first.status.ports["http"], "/version"), "one");
    let supervisor = runsv_of(&rig);
    drop((worker, first_host));
    rig.crash();
    let second_host = host(&rig);
    let new = rig.spec(&rig.app("two"));
    let (worker, told) = rig.worker(&second_host, want(1, &old));
    let again = told.ready();
    assert_eq!(again.status.pids, first.status.pids);
    assert_eq!(runsv_of(&rig), supervisor);
    worker.order(want(2, &new));
    let second = told.wait("the new version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    assert_eq!(get(second.status.ports["http"], "/version"), "two");
    assert!(!is_alive(first.status.pids["web"]));
    let log = rig.layout().pod(&name()).log().join("web.log");
    eventually("its output", || {
        (lines(&log) == ["started", "started"]).then_some(())
    });
    end(&worker, &told, &new);
    assert!(!is_alive(second.status.pids["web"]) && !is_alive(supervisor));
}

#[test]
fn a_program_under_runit_that_is_killed_is_back_and_its_end_is_told() {
    let rig = Rig::new();
    let _ends = Ends(rig.data_dir());
    let spec = rig.spec(&rig.app("one"));
    let host = host(&rig);
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    let log = rig.layout().pod(&name()).log().join("web.log");
    eventually("its first words", || {
        (lines(&log) == ["started"]).then_some(())
    });
    kill(first.status.pids["web"]);
    let again = told.wait("another process", |it| {
        it.is_ready() && it.status.pids["web"] != first.status.pids["web"]
    });
    assert_eq!(again.status.restarts, 1);
    assert_eq!(again.status.exits.last().unwrap().signal, Some(9));
    // Each run has its own lines, and nothing but them.
    let mut query = LogQuery::default();
    eventually("its output", || {
        (lines(&log) == ["started", "started"]).then_some(())
    });
    let read = |query| text(LogReader::open(&rig.data_dir(), &name(), query).unwrap());
    assert_eq!(read(query.clone()), "started\nstarted\n");
    query.previous = true;
    assert_eq!(read(query), "started\n");
    end(&worker, &told, &spec);
}

#[test]
fn a_job_under_runit_runs_once_and_a_stubborn_program_is_killed() {
    let rig = Rig::new();
    let _ends = Ends(rig.data_dir());
    let job = "#!/bin/sh\necho ran >> \"$HOME/trace\"\nexit 3\n";
    let stubborn = "#!/bin/sh\ntrap '' TERM\necho up >> \"$HOME/up\"\nwhile :; do sleep 1; done\n";
    let mut spec = rig.spec(&rig.pack("job", &[("bin/launch", Some(job))]));
    spec["launchables"]["web"]["restart"] = json!({"policy": "Never"});
    let other = rig.pack("stubborn", &[("bin/launch", Some(stubborn))]);
    spec["launchables"]["other"] =
        json!({"location": other.0, "digest": other.1, "stopTimeout": "300ms"});
    let host = host(&rig);
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let report = told.wait("the job's end", |it| {
        let exit = it.status.exits.iter().find(|it| it.launchable == "web");
        exit.is_some_and(|exit| exit.code == Some(3)) && it.status.pids.contains_key("other")
    });
    let data = rig.layout().pod(&name()).data();
    eventually("its trap", || data.join("up").exists().then_some(()));
    let pid = report.status.pids["other"];
    assert!(is_alive(pid));
    end(&worker, &told, &spec);
    assert!(!is_alive(pid));
    assert!(
        told.events("Exited")
            .iter()
            .filter(|it| it.contains("web"))
            .count()
            == 1,
        "it ran once"
    );
}

#[test]
fn a_runsv_that_is_killed_is_replaced_and_there_are_never_two_copies() {
    let rig = Rig::new();
    let _ends = Ends(rig.data_dir());
    let spec = rig.spec(&rig.app("one"));
    let host = host(&rig);
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready().status.pids["web"];
    let supervisor = runsv_of(&rig);
    kill(supervisor);
    let again = told.wait("another process", |it| {
        it.is_ready() && it.status.pids.get("web").is_some_and(|pid| *pid != first)
    });
    assert!(!is_alive(first), "there are never two");
    assert_eq!(get(again.status.ports["http"], "/version"), "one");
    let exit = again.status.exits.last().unwrap();
    assert_eq!((exit.code, exit.signal), (None, None));
    end(&worker, &told, &spec);
}

#[test]
fn programs_stay_with_the_supervisor_that_has_them_when_another_is_preferred() {
    let mut rig = Rig::new();
    let _ends = Ends(rig.data_dir());
    let spec = rig.spec(&rig.app("one"));
    let first_host = rig.host();
    let (worker, told) = rig.worker(&first_host, want(1, &spec));
    let shims = told.ready();
    drop((worker, first_host));
    rig.crash();
    // Now `runsv` is preferred.
    let mut config = rig.host_config();
    config.runsv = Some(runsv());
    let second_host = Arc::new(Host::open(config).unwrap());
    let (worker, told) = rig.worker(&second_host, want(1, &spec));
    assert_eq!(told.ready().status.pids, shims.status.pids);
    let dir = rig.layout().pod(&name()).shim("web");
    assert!(!dir.join("service").exists());
    // A new version is the same pod.
    let new = rig.spec(&rig.app("two"));
    worker.order(want(2, &new));
    let second = told.wait("the new version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    assert_eq!(get(second.status.ports["http"], "/version"), "two");
    assert!(!dir.join("service").exists());
    end(&worker, &told, &new);
    drop(worker);
    // A new pod is under runit, and stays there when that is preferred no more.
    let (worker, told) = rig.worker(&second_host, want(1, &spec));
    let under_runit = told.ready();
    let supervisor = runsv_of(&rig);
    drop((worker, second_host));
    rig.crash();
    let third_host = rig.host();
    let (worker, told) = rig.worker(&third_host, want(1, &spec));
    assert_eq!(told.ready().status.pids, under_runit.status.pids);
    assert_eq!(runsv_of(&rig), supervisor);
    end(&worker, &told, &spec);
    assert!(!is_alive(supervisor));
}

#[test]
fn a_runsv_that_is_not_there_is_refused_by_its_path() {
    let rig = Rig::new();
    for path in ["/nowhere/runsv", "runsv"] {
        let mut config = rig.host_config();
        config.runsv = Some(path.into());
        let error = Host::open(config).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}

#[test]
fn under_runit_a_restart_by_hand_runs_again_what_had_ended() {
    let mut rig = Rig::new();
    let _ends = Ends(rig.data_dir());
    let mut spec = rig.script("job", "#!/bin/sh\necho ran >> \"$HOME/trace\"\n");
    spec["launchables"]["web"]["restart"] = json!({"policy": "OnFailure"});
    let first = host(&rig);
    let (worker, told) = rig.worker(&first, want(1, &spec));
    told.wait("its end", |it| it.phase.as_str() == "Succeeded");
    let trace = rig.layout().pod(&name()).data().join("trace");
    let restart = || Control::Restart {
        by: "test".into(),
        now: true,
    };
    worker.control(restart());
    told.wait("its second end", |it| {
        it.phase.as_str() == "Succeeded" && it.status.exits.len() == 2
    });
    assert_eq!(lines(&trace).len(), 2);
    // Also after its supervisor was killed.
    drop((worker, first));
    rig.crash();
    kill(runsv_of(&rig));
    let second = host(&rig);
    let (worker, told) = rig.worker(&second, want(1, &spec));
    told.wait("the same end", |it| it.phase.as_str() == "Succeeded");
    worker.control(restart());
    told.wait("its third end", |it| {
        it.phase.as_str() == "Succeeded" && it.status.exits.len() == 3
    });
    assert_eq!(lines(&trace).len(), 3);
    end(&worker, &told, &spec);
}
