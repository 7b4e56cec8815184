//! How programs and scripts ended before the power failed, or by it, and what is made again that
//! went with it.

use std::fs;

use platctrl_agent::Order;
use platctrl_shim_lib::{Phase, read_exits, read_state};
use serde_json::Value;

use super::node::Node;
use super::{consistent, converged, hook, version};
use crate::rig::{eventually, name, want};

#[test]
fn how_a_program_ended_and_how_long_it_waits_outlive_a_power_cut() {
    let Some(mut node) = Node::new() else { return };
    let failing = "#!/bin/sh\nexit 3\n";
    let artifact = node.rig.pack("failing", &[("bin/launch", Some(failing))]);
    let mut spec = node.spec("failing", &artifact);
    spec["health"] = Value::Null;
    let order = want(1, &spec);
    node.agent(&order);
    let report = node.wait("its ends", |it| {
        let exits = it["status"]["exits"].as_array();
        // How long it waits is on the disk, too, by the time that it is told to wait.
        let waits = it["status"]
            .to_string()
            .contains("is started again after a while");
        exits.is_some_and(|exits| exits.len() >= 2) && it["status"]["restarts"] == 1 && waits
    });
    node.cut();
    let dir = node.rig.layout().pod(&name()).shim("web");
    let exits = read_exits(&dir).unwrap();
    let numbers: Vec<_> = exits.iter().map(|exit| exit.seq).collect();
    assert!(
        numbers.iter().copied().eq(1..=exits.len() as u64),
        "{numbers:?}"
    );
    for told in report["status"]["exits"].as_array().unwrap() {
        assert_eq!(told["code"], 3);
        let at: jiff::Timestamp = told["at"].as_str().unwrap().parse().unwrap();
        let at = u64::try_from(at.as_millisecond()).unwrap();
        let known = exits.iter().any(|exit| exit.ended_unix_ms == at);
        assert!(known, "what was told is on the disk: {told} {exits:#?}");
    }
    let before = read_state(&dir).unwrap().unwrap();
    assert!(before.failures >= 2, "{before:?}");
    // It is started at once after the boot; from then on it waits as long as it would have.
    node.agent(&Order::Unknown);
    let state = eventually("its next wait", || {
        let state = read_state(&dir).ok()??;
        let waits = state.phase == Phase::Backoff && state.failures == before.failures + 1;
        (waits && state.boot_id != before.boot_id).then_some(state)
    });
    let ended = read_exits(&dir).unwrap().last().unwrap().ended_boot_ms;
    let wait = state.next_start_boot_ms.unwrap() - ended;
    let full = 1000 << (before.failures - 1);
    assert!(wait >= full * 4 / 5, "{wait} ms of {full}");

    // One that ran when the power failed ended in a way that nobody saw.
    let spec = version(&node, "v2", 1);
    node.agent(&want(2, &spec));
    node.ready(2);
    converged(&node, "v2", 2, "the second");
    node.cut();
    node.agent(&Order::Unknown);
    let report = node.wait("its end", |it| {
        let exits = it["status"]["exits"].as_array();
        let last = exits.and_then(|exits| exits.last());
        it["ready"] == true && last.is_some_and(|it| it["code"].is_null())
    });
    let exits = report["status"]["exits"].as_array().unwrap();
    assert!(exits.last().unwrap()["signal"].is_null(), "{exits:#?}");
    assert_eq!(node.programs().len(), 1);
}

#[test]
fn what_goes_down_with_the_machine_is_run_again_and_no_version_is_blamed() {
    let Some(mut node) = Node::new() else { return };
    let config = "hooks: {10-note: {events: [before_launch], required: true}}";
    let trace = node.rig.artifacts().join("trace");
    let artifacts = node.rig.artifacts();
    let go = |name: &str| artifacts.join(format!("{name}.go"));
    let slow = |name: &str| {
        let (trace, go) = (trace.display(), go(name));
        let go = go.display();
        format!("#!/bin/sh\necho 'begun {name}' >> {trace}\n[ -e {go} ] || sleep 1000\n")
    };
    let slow_hook = slow("before_launch").replace("#!/bin/sh", "");
    crate::updates::hook(&node.rig, "10-note", &slow_hook);
    crate::updates::hook_config(&node.rig, config);
    node.flush();
    let let_pass = |name: &str| fs::write(go(name), "").unwrap();
    let_pass("before_launch");
    let first = version(&node, "v0", 1);
    node.agent(&want(1, &first));
    node.ready(1);
    converged(&node, "v0", 1, "the first");
    fs::remove_file(go("before_launch")).unwrap();
    for (index, what) in ["before_launch", "post-activate", "enable"]
        .into_iter()
        .enumerate()
    {
        let generation = index as u64 + 2;
        let new = format!("v{}", index + 1);
        let script = slow(what);
        let mut files = vec![
            ("bin/launch", Some(super::LAUNCH)),
            ("version", Some(new.as_str())),
        ];
        let path = format!("bin/{what}");
        if what != "before_launch" {
            files.push((&path, Some(&script)));
        }
        let spec = node.spec(&new, &node.rig.pack(&new, &files));
        let order = want(generation, &spec);
        node.trace();
        node.agent(&order);
        let begun = format!("begun {what}");
        eventually(&begun, || {
            crate::updates::lines(&trace).contains(&begun).then_some(())
        });
        node.cut();
        let_pass(what);
        node.agent(&order);
        node.ready(generation);
        converged(&node, &new, generation, what);
        let times = node.trace().iter().filter(|line| **line == begun).count();
        assert_eq!(times, 2, "{what}");
    }
}

/// Files and directories that nobody flushes, in the home and in what the agent keeps of the pod.
const LOST: [&str; 12] = [
    "home/config",
    "home/env",
    "home/labels",
    "home/current",
    "home/generations",
    "home/installs",
    "home/log",
    "home/tmp",
    "state/pod.flip.json",
    "state/hooks",
    "state/once",
    "state/shim/web/out",
];

#[test]
fn what_nobody_flushes_may_be_lost_or_empty_and_is_made_again() {
    let Some(mut node) = Node::new() else { return };
    hook(&node);
    let mut generation = 1;
    for number in 0..2 {
        generation = number + 1;
        let spec = version(&node, &format!("v{number}"), 3);
        node.agent(&want(generation, &spec));
        node.ready(generation);
    }
    let promised = converged(&node, "v1", generation, "the second");
    let paths = node.rig.layout().pod(&name());
    fs::write(paths.data().join("own"), "the app's").unwrap();
    node.flush();
    let full = std::env::var("PLATCTRL_TEST_SCALE").as_deref() == Ok("full");
    let each = LOST.iter().map(|lost| vec![*lost]).filter(|_| full);
    let sets: Vec<_> = [LOST.to_vec()].into_iter().chain(each).collect();
    for (lost, emptied) in sets.iter().flat_map(|lost| [(lost, false), (lost, true)]) {
        node.trace();
        node.cut();
        let what = format!("{lost:?}, emptied: {emptied}");
        for lost in lost {
            let (root, path) = lost.split_once('/').unwrap();
            let root = match root {
                "home" => paths.home(),
                _ => paths.state(),
            };
            lose(&root.join(path), emptied);
        }
        node.agent(&Order::Unknown);
        node.ready(generation);
        let again = converged(&node, "v1", generation, &what);
        assert_eq!(again, promised, "{what}");
        node.launched();
        let trace = node.trace();
        consistent(&trace, &again, "v1", &what);
        let own = fs::read_to_string(paths.data().join("own")).unwrap();
        assert_eq!(own, "the app's", "{what}");
    }
}

/// Removes what is there, or leaves of files their names and of links and directories nothing.
fn lose(path: &std::path::Path, emptied: bool) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    if metadata.is_dir() && emptied {
        for entry in fs::read_dir(path).unwrap() {
            lose(&entry.unwrap().path(), true);
        }
    } else if metadata.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else if emptied && metadata.is_file() {
        fs::write(path, "").unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}
