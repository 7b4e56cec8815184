//! Hooks on a real node: what they find, when they are called, and that nothing of them is left.

use std::collections::BTreeSet;

use platctrl_agent::hooks::{HookEvent, Hooks, run_hooks};
use platctrl_agent::{Authority, Denied, Deployment};
use serde_json::{Value, json};

use crate::rig::{Rig, eventually, is_alive, name, tombstone, want};
use crate::updates::{hook, hook_config, lines, settled};

#[test]
fn a_hook_finds_the_documented_environment_and_nothing_else() {
    let rig = Rig::new();
    let seen = rig.artifacts().join("seen");
    let script = format!(
        "cp \"$HOOKED_POD_MANIFEST\" {0}.manifest; env > {0}.new; mv {0}.new {0}.$HOOK_EVENT",
        seen.display()
    );
    hook(&rig, "look", &script);
    let host = rig.host();
    let spec = rig.spec(&rig.app("one"));
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    told.ready();
    let env = eventually("the last hook", || {
        std::fs::read_to_string(rig.artifacts().join("seen.after_launch")).ok()
    });
    let variables: Vec<_> = env
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !["PWD", "SHLVL", "_"].contains(name))
        .collect();
    let names: BTreeSet<_> = variables.iter().map(|(name, _)| *name).collect();
    let documented = [
        "PATH",
        "HOOK",
        "HOOK_EVENT",
        "HOOKED_NODE",
        "HOOKED_POD_ID",
        "HOOKED_POD_NAME",
        "HOOKED_POD_NAMESPACE",
        "HOOKED_POD_UNIQUE_KEY",
        "HOOKED_POD_HOME",
        "HOOKED_POD_MANIFEST",
        "HOOKED_CONFIG_PATH",
        "HOOKED_CONFIG_DIR_PATH",
        "HOOKED_ENV_PATH",
        "HOOKED_SYSTEM_POD_ROOT",
        "HOOKED_POD_READ_ONLY",
    ];
    assert_eq!(names, BTreeSet::from(documented));
    let value = |name: &str| variables.iter().find(|it| it.0 == name).unwrap().1;
    assert_eq!(
        (value("HOOK"), value("HOOK_EVENT")),
        ("look", "after_launch")
    );
    assert_eq!(value("HOOKED_POD_ID"), rig.app);
    assert!(std::path::Path::new(value("HOOKED_CONFIG_PATH")).is_file());
    assert!(std::path::Path::new(value("HOOKED_ENV_PATH")).is_dir());
    let manifest = rig.artifacts().join("seen.manifest");
    let manifest: Value = serde_json::to_value(
        serde_saphyr::from_str::<Value>(&std::fs::read_to_string(manifest).unwrap()).unwrap(),
    )
    .unwrap();
    assert_eq!(manifest["kind"], "Pod");
    assert_eq!(manifest["metadata"]["name"], "hello");
    assert_eq!(manifest["spec"]["app"], rig.app.as_str());
}

#[test]
fn a_required_hook_holds_the_update_until_it_succeeds_and_another_one_only_warns() {
    let rig = Rig::new();
    let host = rig.host();
    let old = rig.spec(&rig.app("one"));
    let (worker, told) = rig.worker(&host, want(1, &old));
    let first = told.ready();
    let allowed = rig.artifacts().join("allowed");
    let gate = format!("echo not yet; test -e {}", allowed.display());
    hook(&rig, "10-gate", &gate);
    hook(&rig, "20-clumsy", "echo oh no; exit 9");
    hook_config(
        &rig,
        "hooks:\n  10-gate: {events: [after_install], required: true}\n  20-clumsy: {events: [before_install, after_launch]}\n",
    );
    worker.order(want(2, &rig.spec(&rig.app("two"))));
    let held = told.wait("the hook to hold it", |it| it.status.reason == "HookFailed");
    assert_eq!(held.status.pids, first.status.pids, "the old version runs");
    assert!(held.is_ready());
    let message = &held.status.message;
    assert!(
        message.contains("required hook `10-gate`") && message.contains("not yet"),
        "{message}"
    );
    std::fs::write(&allowed, "").unwrap();
    told.wait("the new version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    let events = |reason: &str| told.events(reason).join("\n");
    eventually("the last hook", || {
        events("HookFailed")
            .contains("after_launch: hook `20-clumsy`: exited with code 9")
            .then_some(())
    });
    assert!(events("HookFailed").contains("before_install: hook `20-clumsy`"));
    assert!(events("HookSucceeded").contains("after_install: hook `10-gate`"));
}

#[test]
fn a_required_hook_before_the_launch_that_fails_brings_the_old_version_back() {
    let rig = Rig::new();
    let host = rig.host();
    let old = rig.spec(&rig.app("one"));
    let (worker, told) = rig.worker(&host, want(1, &old));
    let first = told.ready();
    hook(&rig, "no", "exit 1");
    hook_config(
        &rig,
        "hooks: {no: {events: [before_launch], required: true}}",
    );
    worker.order(want(2, &rig.spec(&rig.app("two"))));
    let back = told.wait("the old version", |it| {
        it.is_ready()
            && it.status.pids.get("web") != first.status.pids.get("web")
            && it
                .condition("Held")
                .is_some_and(|it| it.reason == "Reverted")
    });
    assert_eq!(back.observed_generation, 1);
    assert_eq!(
        crate::rig::get(back.status.ports["http"], "/version"),
        "one"
    );
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_all_that_it_started() {
    let rig = Rig::new();
    let pids = rig.artifacts().join("pids");
    // One child in its session, one in a session of its own, both deaf to SIGTERM.
    let script = format!(
        "trap '' TERM\nsleep 1000 & echo $! >> {0}\nsetsid sh -c 'trap \"\" TERM; echo $$ >> {0}; while :; do sleep 1; done' &\necho $$ >> {0}\nwhile :; do sleep 1; done",
        pids.display()
    );
    hook(&rig, "slow", &script);
    hook_config(
        &rig,
        "hooks: {slow: {events: [before_install], required: true, timeout: 1s}}",
    );
    let host = rig.host();
    let spec = rig.spec(&rig.app("one"));
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let held = told.wait("its end", |it| it.status.reason == "HookFailed");
    let message = &held.status.message;
    assert!(message.contains("took longer than 1s"), "{message}");
    // It may have been called again since.
    let started: Vec<u32> = eventually("three processes", || {
        let started: Vec<u32> = lines(&pids)
            .iter()
            .map(|pid| pid.parse().unwrap())
            .collect();
        (started.len() >= 3).then_some(started)
    });
    for pid in &started[..3] {
        eventually("its processes to be gone", || {
            (!is_alive(*pid)).then_some(())
        });
    }
    worker.order(tombstone(1, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    for pid in lines(&pids) {
        assert!(!is_alive(pid.parse().unwrap()), "{pid}");
    }
}

#[test]
fn what_a_hook_leaves_behind_ends_with_it() {
    let rig = Rig::new();
    let pid = rig.artifacts().join("pid");
    // Forked away from it: another session, another parent, its output kept open.
    let script = format!(
        "setsid sh -c 'setsid sh -c \"echo \\$\\$ > {0}.new; mv {0}.new {0}; exec sleep 1000\" & ' &\nwhile [ ! -e {0} ]; do sleep 0.01; done",
        pid.display()
    );
    hook(&rig, "daemon", &script);
    hook_config(
        &rig,
        "hooks: {daemon: {events: [before_install], required: true}}",
    );
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &rig.spec(&rig.app("one"))));
    told.ready();
    let left: u32 = lines(&pid)[0].parse().unwrap();
    eventually("it to be gone", || (!is_alive(left)).then_some(()));
}

#[test]
fn an_agent_that_dies_in_a_hook_waits_for_the_same_run_afterwards() {
    let mut rig = Rig::new();
    let (calls, go) = (rig.artifacts().join("calls"), rig.artifacts().join("go"));
    let script = format!(
        "echo $$ >> {}; while [ ! -e {} ]; do sleep 0.01; done",
        calls.display(),
        go.display()
    );
    hook(&rig, "wait", &script);
    hook_config(
        &rig,
        "hooks: {wait: {events: [before_install], required: true}}",
    );
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let pid: u32 = eventually("the hook", || lines(&calls).first()?.parse().ok());
    drop((worker, told, host));
    rig.crash();
    assert!(is_alive(pid), "a hook outlives the agent");
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    std::fs::write(&go, "").unwrap();
    told.ready();
    assert_eq!(lines(&calls).len(), 1, "it was not called again");
}

#[test]
fn hooks_that_are_not_understood_hold_what_they_might_be_called_for() {
    let rig = Rig::new();
    let host = rig.host();
    let old = rig.spec(&rig.app("one"));
    let (worker, told) = rig.worker(&host, want(1, &old));
    let first = told.ready();
    hook(&rig, "a", "exit 0");
    hook_config(&rig, "hooks: {a: {event: [before_install]}}");
    worker.order(want(2, &rig.spec(&rig.app("two"))));
    let held = told.wait("it to be held", |it| it.status.reason == "HooksInvalid");
    assert_eq!(held.status.pids, first.status.pids);
    assert!(held.status.message.contains("hooks.yaml"));
    hook_config(&rig, "hooks: {a: {events: [before_install]}}");
    told.wait("the new version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
}

#[derive(Debug)]
struct OnlyVersionOne;

impl Authority for OnlyVersionOne {
    fn check(&self, deployment: &Deployment<'_>) -> Result<(), Denied> {
        let fine = |(location, digest): &(&str, _)| {
            location.contains("one.tar") && Option::is_some(digest)
        };
        if deployment.artifacts.iter().all(fine) {
            return Ok(());
        }
        Err(Denied("only the first version may run here".into()))
    }
}

#[test]
fn what_may_not_run_is_not_fetched_and_hooks_are_told() {
    let rig = Rig::new();
    let calls = rig.artifacts().join("calls");
    hook(
        &rig,
        "tell",
        &format!("echo $HOOK_EVENT >> {}", calls.display()),
    );
    hook_config(&rig, "hooks: {tell: {events: [after_auth_fail]}}");
    let mut config = rig.host_config();
    config.authority = std::sync::Arc::new(OnlyVersionOne);
    let host = std::sync::Arc::new(platctrl_agent::Host::open(config).unwrap());
    let (worker, told) = rig.worker(&host, want(1, &rig.spec(&rig.app("one"))));
    let first = told.ready();
    assert!(!calls.exists());
    worker.order(want(2, &rig.spec(&rig.app("two"))));
    let denied = told.wait("a refusal", |it| it.status.reason == "NotAuthorised");
    assert_eq!(denied.status.pids, first.status.pids);
    assert!(denied.status.message.contains("only the first version"));
    assert_eq!(told.events("Installed").len(), 1, "nothing was fetched");
    assert_eq!(lines(&calls), ["after_auth_fail"]);
}

#[test]
fn hooks_are_called_by_hand_beside_a_running_agent() {
    let rig = Rig::new();
    let calls = rig.artifacts().join("calls");
    hook(
        &rig,
        "10-note",
        &format!("echo $HOOKED_POD_NAME >> {}", calls.display()),
    );
    hook(&rig, "20-no", "echo because; exit 2");
    hook(
        &rig,
        "30-never",
        &format!("echo never >> {}", calls.display()),
    );
    hook_config(
        &rig,
        "hooks:\n  10-note: {events: [after_launch]}\n  20-no: {events: [after_launch], required: true}\n  30-never: {events: [after_launch]}\n",
    );
    let host = rig.host();
    let mut spec = rig.spec(&rig.app("one"));
    spec["config"] = json!({"a": 1});
    hook_config(
        &rig,
        "hooks: {10-note: {events: []}, 20-no: {events: []}, 30-never: {events: []}}",
    );
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    told.ready();
    // The agent itself calls none any more for this version.
    settled(&rig);
    hook_config(
        &rig,
        "hooks:\n  10-note: {events: [after_launch]}\n  20-no: {events: [after_launch], required: true}\n  30-never: {events: [after_launch]}\n",
    );
    let hooks = Hooks::new(rig.data_dir().join("hooks"));
    let outcomes = std::sync::Mutex::new(Vec::new());
    let tell = |outcome: &platctrl_agent::hooks::HookOutcome| {
        outcomes.lock().unwrap().push(outcome.clone());
    };
    let (data_dir, pod) = (rig.data_dir(), name());
    let run = run_hooks(&data_dir, &hooks, &pod, HookEvent::AfterLaunch, tell);
    assert!(!rig.block_on(run).unwrap(), "a required one failed");
    let outcomes = outcomes.into_inner().unwrap();
    let told: Vec<_> = outcomes
        .iter()
        .map(|it| (&*it.hook, it.problem.is_none()))
        .collect();
    assert_eq!(told, [("10-note", true), ("20-no", false)]);
    assert!(
        outcomes[1].message().contains("because"),
        "{}",
        outcomes[1].message()
    );
    assert_eq!(lines(&calls), ["hello"]);
    let once = rig.layout().pod(&name()).once();
    assert_eq!(std::fs::read_dir(once).unwrap().count(), 0);
}
