//! Updates with everything that can be part of one: hooks at every event, every script, a drain.
//! The agent dies at each step of the table; the one after it ends with the new version.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use platctrl_agent::{Position, UPDATE};
use platctrl_framework::model::Digest;
use serde_json::{Value, json};

use crate::crash::{Subject, pid, port};
use crate::rig::{Recorder, Rig, eventually, get, is_alive, name, tombstone, want};

/// A script of an artifact that notes that it ran, for which version, and with whose environment.
const NOTE: &str = "#!/bin/sh\necho \"${ENTRY_POINT##*/} $(cat \"$LAUNCHABLE_ROOT/version\") $GENERATION_OF_ENV $(basename \"$(dirname \"$CONFIG_PATH\")\")\" >> \"$HOME/trace\"\n";

/// An artifact with every script.
pub(crate) fn scripted(rig: &Rig, version: &str) -> (String, Digest) {
    rig.pack(
        version,
        &[
            ("bin/launch", None),
            ("bin/disable", Some(NOTE)),
            ("bin/post-activate", Some(NOTE)),
            ("bin/enable", Some(NOTE)),
            ("version", Some(version)),
        ],
    )
}

/// Puts a hook there that does this.
pub(crate) fn hook(rig: &Rig, name: &str, script: &str) -> PathBuf {
    let dir = rig.data_dir().join("hooks");
    std::fs::create_dir_all(&dir).unwrap();
    for (path, mode) in [(rig.data_dir(), 0o711), (dir.clone(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub(crate) fn hook_config(rig: &Rig, config: &str) {
    std::fs::write(rig.data_dir().join("hooks/hooks.yaml"), config).unwrap();
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn spec(rig: &Rig, version: &str) -> Value {
    let mut spec = rig.spec(&scripted(rig, version));
    spec["launchables"]["web"]["env"] = json!({"GENERATION_OF_ENV": format!("env-of-{version}")});
    spec["drainDelay"] = "50ms".into();
    spec
}

/// The pod's position once nothing is under way, and what its record says of the rest.
pub(crate) fn settled(rig: &Rig) {
    eventually("the pod to settle", || {
        let pods = platctrl_agent::inspect(&rig.data_dir()).unwrap();
        let pod = pods.iter().find(|pod| pod.name == name())?;
        (pod.position == Position::Settled && pod.running_generation == pod.wanted_generation)
            .then_some(())
    });
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Agent,
    AgentAndSupervisors,
    Supervisors,
}

/// Walks through an update for each of these places to be killed at.
fn walk(points: &[&str], victim: Victim) {
    let rig = Rig::new();
    let calls = rig.artifacts().join("calls");
    let call = format!(
        "echo \"$HOOK_EVENT $(sed -n 's/^ *generation: //p' \"$HOOKED_POD_MANIFEST\")\" >> {}",
        calls.display()
    );
    hook(&rig, "10-note", &call);
    let mut current = spec(&rig, "v0");
    let mut generation = 1;
    let mut first = Subject::start(&rig, &want(generation, &current), None);
    let mut before = first.ready(generation);
    settled(&rig);
    drop(first);
    let trace = rig.layout().pod(&name()).data().join("trace");
    for (index, point) in points.iter().enumerate() {
        let (old, new) = (format!("v{index}"), format!("v{}", index + 1));
        for file in [&calls, &trace] {
            let _ = std::fs::remove_file(file);
        }
        current = spec(&rig, &new);
        let old_generation = generation;
        generation += 1;
        let hold = rig.artifacts().join("hold");
        let order = want(generation, &current);
        let alive = match victim {
            Victim::Supervisors => Some(Subject::held(&rig, &order, point, &hold)),
            Victim::Agent | Victim::AgentAndSupervisors => {
                Subject::start(&rig, &order, Some(point)).dies(point);
                None
            }
        };
        let place = |step: &str| UPDATE.iter().position(|row| row.step.name() == step);
        let position = place(point.trim_end_matches(".done"));
        let old_runs = position < place("stop") || *point == "stop";
        assert_eq!(
            is_alive(pid(&before)),
            old_runs,
            "the old version runs until it is stopped: {point}"
        );
        if victim != Victim::Agent {
            let killed = kill_supervisors(&rig);
            let new_runs = position > place("start") || *point == "start.done";
            assert!(
                killed > 0 || !(old_runs || new_runs),
                "none was there: {point}"
            );
        }
        let mut again = match alive {
            Some(agent) => {
                std::fs::remove_file(&hold).unwrap();
                agent
            }
            None => Subject::start(&rig, &order, None),
        };
        let after = again.ready(generation);
        settled(&rig);
        assert_eq!(get(port(&after), "/version"), new, "{point}");
        assert_eq!(port(&before), port(&after), "{point}");
        assert!(!is_alive(pid(&before)), "{point}");
        let once = rig.layout().pod(&name()).once();
        eventually("no script or hook to be left", || {
            (std::fs::read_dir(&once).unwrap().count() == 0).then_some(())
        });
        drop(again);
        // Each script ran, the old version's with the old environment; and none more often than
        // a crash explains.
        let ran = counted(&lines(&trace));
        let expected = [
            format!("disable {old} env-of-{old} {old_generation}"),
            format!("post-activate {new} env-of-{new} {generation}"),
            format!("enable {new} env-of-{new} {generation}"),
        ];
        let called = counted(&lines(&calls));
        let events = [
            "before_install",
            "after_install",
            "before_launch",
            "after_launch",
        ];
        let events = events.map(|event| format!("{event} {generation}"));
        for (ran, expected) in [(&ran, &expected[..]), (&called, &events[..])] {
            let mut names: Vec<_> = ran.keys().cloned().collect();
            let mut wanted = expected.to_vec();
            names.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(names, wanted, "{point}");
            assert!(ran.values().all(|times| *times <= 2), "{point}: {ran:?}");
        }
        before = after;
    }
    Subject::start(&rig, &tombstone(generation, &current), None)
        .wait("the end", |it| it["phase"] == "Gone");
    assert!(lines(&calls).contains(&format!("before_uninstall {generation}")));
    assert_eq!(rig.layout().pods().unwrap(), []);
}

/// Kills every supervisor of the pod that lives; returns how many.
fn kill_supervisors(rig: &Rig) -> usize {
    let pods = platctrl_agent::inspect(&rig.data_dir()).unwrap();
    let programs = pods.iter().flat_map(|pod| &pod.programs);
    let shims: Vec<_> = programs.filter_map(|program| program.supervisor).collect();
    for shim in &shims {
        crate::rig::kill(*shim);
        eventually("a supervisor to die", || (!is_alive(*shim)).then_some(()));
    }
    shims.len()
}

fn counted(lines: &[String]) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for line in lines {
        *counted.entry(line.clone()).or_default() += 1;
    }
    counted
}

pub(crate) const PREPARING: [&str; 13] = [
    "authorise",
    "authorise.done",
    "before-install",
    "before-install.done",
    "fetch",
    "verify",
    "verify.done",
    "unpack",
    "unpack.done",
    "fetch.done",
    "after-install",
    "after-install.done",
    "configure",
];
pub(crate) const LEAVING: [&str; 9] = [
    "configure.done",
    "drain",
    "disable",
    "disable.done",
    "stop",
    "stop.done",
    "before-launch",
    "before-launch.done",
    "flip",
];
pub(crate) const LAUNCHING: [&str; 13] = [
    "flip.done",
    "post-activate",
    "post-activate.done",
    "start",
    "start.done",
    "enable",
    "enable.done",
    "healthy",
    "healthy.done",
    "after-launch",
    "after-launch.done",
    "prune",
    "prune.done",
];

#[test]
fn an_agent_that_dies_while_it_gets_a_version_ready_is_followed_by_one_that_does() {
    walk(&PREPARING, Victim::Agent);
}

#[test]
fn an_agent_that_dies_while_the_old_version_leaves_is_followed_by_one_that_starts_the_new() {
    walk(&LEAVING, Victim::Agent);
}

#[test]
fn an_agent_that_dies_while_the_new_version_is_launched_is_followed_by_one_that_ends_it() {
    walk(&LAUNCHING, Victim::Agent);
}

#[test]
fn an_agent_that_dies_with_its_supervisors_while_it_gets_a_version_ready_leaves_no_second_copy() {
    walk(&PREPARING, Victim::AgentAndSupervisors);
}

#[test]
fn an_agent_that_dies_with_its_supervisors_while_the_old_version_leaves_leaves_no_second_copy() {
    walk(&LEAVING, Victim::AgentAndSupervisors);
}

#[test]
fn an_agent_that_dies_with_its_supervisors_while_the_new_version_is_launched_leaves_no_second_copy()
{
    walk(&LAUNCHING, Victim::AgentAndSupervisors);
}

#[test]
fn supervisors_that_die_while_a_version_is_got_ready_are_replaced_and_the_update_ends() {
    walk(&PREPARING, Victim::Supervisors);
}

#[test]
fn supervisors_that_die_while_the_old_version_leaves_do_not_stop_the_update() {
    walk(&LEAVING, Victim::Supervisors);
}

#[test]
fn supervisors_that_die_while_the_new_version_is_launched_are_replaced_and_it_stays() {
    walk(&LAUNCHING, Victim::Supervisors);
}

#[test]
fn every_row_of_the_table_is_a_place_where_the_agent_was_killed() {
    let points = PREPARING.iter().chain(&LEAVING).chain(&LAUNCHING);
    let points: Vec<_> = points.copied().collect();
    for row in UPDATE {
        assert!(points.contains(&row.step.name()), "{:?}", row.step);
        // A drain has no end of its own: what follows it begins.
        let done = format!("{}.done", row.step.name());
        assert!(
            points.contains(&done.as_str()) || row.step.name() == "drain",
            "{done}"
        );
    }
}

/// Waits until the version before runs again, and the other is quarantined.
fn reverted(told: &Recorder, generation: u64) -> platctrl_agent::Report {
    told.wait("the version before", |report| {
        report.is_ready()
            && report.observed_generation == generation
            && report
                .condition("Held")
                .is_some_and(|held| held.reason == "Reverted")
    })
}

#[test]
fn a_version_that_crashes_again_and_again_is_replaced_by_the_one_before() {
    let mut rig = Rig::new();
    let good = rig.spec(&rig.app("one"));
    let (worker, told, _) = rig.attend_ready(&good);
    settled(&rig);
    let mut bad = rig.spec(&rig.app("two"));
    bad["launchables"]["web"]["env"] = json!({"EXIT_WITH": "3"});
    worker.order(want(2, &bad));
    let report = reverted(&told, 1);
    assert_eq!(get(report.status.ports["http"], "/version"), "one");
    assert!(
        report.status.message.contains("exited with code 3"),
        "{}",
        report.status.message
    );
    assert_eq!(told.events("Reverted").len(), 1);
    // An agent that starts anew does not try it again, either.
    drop(worker);
    rig.crash();
    let (worker, told) = rig.attend(want(2, &bad));
    let again = reverted(&told, 1);
    assert_eq!(again.status.pids, report.status.pids);
    assert!(told.events("Installed").is_empty() && told.events("Started").is_empty());
    // A changed spec is another version.
    bad["launchables"]["web"]["env"] = json!({});
    worker.order(want(3, &bad));
    let fixed = told.wait("the fixed version", |it| {
        it.is_ready() && it.observed_generation == 3 && it.condition("Held").is_none()
    });
    assert_eq!(get(fixed.status.ports["http"], "/version"), "two");
}

#[test]
fn a_version_that_is_to_stay_stays_although_it_fails() {
    let rig = Rig::new();
    let good = rig.spec(&rig.app("one"));
    let (worker, told, _) = rig.attend_ready(&good);
    settled(&rig);
    let mut bad = rig.spec(&rig.app("two"));
    bad["onFailedStart"] = "Stay".into();
    bad["launchables"]["web"]["restart"] = json!({"policy": "Never"});
    bad["launchables"]["web"]["env"] = json!({"EXIT_WITH": "3"});
    worker.order(want(2, &bad));
    let failed = told.wait("its failure", |report| report.phase.as_str() == "Failed");
    assert_eq!(failed.observed_generation, 2);
    assert_eq!(failed.status.exits.last().unwrap().code, Some(3));
    // What replaces it does so at once.
    worker.order(want(3, &rig.spec(&rig.app("three"))));
    let third = told.wait("the third", |it| {
        it.is_ready() && it.observed_generation == 3
    });
    assert_eq!(get(third.status.ports["http"], "/version"), "three");
    assert!(told.events("Reverted").is_empty());
}

#[test]
fn a_version_that_is_not_healthy_in_time_is_replaced_by_the_one_before() {
    let rig = Rig::new();
    let mut good = rig.spec(&rig.app("one"));
    let health = json!({"http": {"port": "http"}, "interval": "20ms", "grace": "20s"});
    good["health"] = health.clone();
    let (worker, told, _) = rig.attend_ready(&good);
    settled(&rig);
    let mut bad = rig.spec(&rig.app("two"));
    bad["health"] = health;
    bad["health"]["http"]["path"] = "/crash".into();
    bad["startTimeout"] = "2s".into();
    bad["launchables"]["web"]["restart"] = json!({"policy": "Always"});
    worker.order(want(2, &bad));
    let report = reverted(&told, 1);
    assert_eq!(get(report.status.ports["http"], "/version"), "one");
}

#[test]
fn a_script_that_fails_brings_back_the_version_before_and_says_what_it_wrote() {
    let rig = Rig::new();
    let good = spec(&rig, "one");
    let (worker, told, _) = rig.attend_ready(&good);
    settled(&rig);
    for (generation, script) in [(2, "bin/post-activate"), (3, "bin/enable")] {
        let version = format!("bad-{generation}");
        let broken = rig.pack(
            &version,
            &[
                ("bin/launch", None),
                (script, Some("#!/bin/sh\necho no licence today\nexit 4\n")),
                ("version", Some(&version)),
            ],
        );
        worker.order(want(generation, &rig.spec(&broken)));
        let report = told.wait("the version before", |report| {
            report.is_ready()
                && report.observed_generation == 1
                && report.status.message.contains(script)
        });
        let message = &report.status.message;
        assert!(
            message.contains("exited with code 4") && message.contains("no licence today"),
            "{message}"
        );
        settled_on(&rig, 1);
        assert_eq!(get(report.status.ports["http"], "/version"), "one");
    }
    let trace = lines(&rig.layout().pod(&name()).data().join("trace"));
    let enabled = trace.iter().filter(|line| line.starts_with("enable one"));
    assert_eq!(enabled.count(), 3, "it is in use again: {trace:?}");
}

fn settled_on(rig: &Rig, generation: u64) {
    eventually("the pod to settle", || {
        let pods = platctrl_agent::inspect(&rig.data_dir()).unwrap();
        let pod = pods.iter().find(|pod| pod.name == name())?;
        (pod.position == Position::Settled && pod.running_generation == Some(generation))
            .then_some(())
    });
}
