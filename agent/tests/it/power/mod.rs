//! The power fails at each step: what was not flushed is gone, and what comes after the boot goes
//! on from what was.

mod ends;
mod node;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use platctrl_agent::hoist::Digest;
use platctrl_agent::{Order, Position};
use serde_json::Value;

use crate::rig::{eventually, name, tombstone, want};
use crate::updates::{LAUNCHING, LEAVING, PREPARING};
use node::Node;

/// A program that writes down what it finds, and runs on.
const LAUNCH: &str = "#!/bin/sh\necho \"launch $(cat \"$LAUNCHABLE_ROOT/version\") $VERSION $PORT_HTTP $(id -u) $(cat \"$CONFIG_PATH\")\" >> \"$TRACE\"\nwhile :; do sleep 1000; done\n";

/// The same as a script that ends.
const NOTE: &str = "#!/bin/sh\necho \"${0##*/} $(cat \"$LAUNCHABLE_ROOT/version\") $VERSION $PORT_HTTP $(id -u) $(cat \"$CONFIG_PATH\")\" >> \"$TRACE\"\n";

/// A version with every script and so many further files.
fn version(node: &Node, version: &str, files: usize) -> Value {
    let noise: Vec<_> = (0..files)
        .map(|i| {
            (
                format!("share/{}/{i}", i % 7),
                format!("{i} {version} ").repeat(50 * i),
            )
        })
        .collect();
    let mut all = vec![
        ("bin/launch", Some(LAUNCH)),
        ("bin/disable", Some(NOTE)),
        ("bin/post-activate", Some(NOTE)),
        ("bin/enable", Some(NOTE)),
        ("version", Some(version)),
    ];
    all.extend(
        noise
            .iter()
            .map(|(path, text)| (path.as_str(), Some(text.as_str()))),
    );
    node.spec(version, &node.rig.pack(version, &all))
}

/// What was promised of a version when it began to run.
#[derive(Clone, Debug, PartialEq)]
struct Promised {
    port: u16,
    uid: u32,
}

/// What the disk promises of the version that runs.
fn promised(node: &Node) -> Option<Promised> {
    let running = node.pod()?.running?;
    Some(Promised {
        port: running.ports["http"],
        uid: running.run_as.uid,
    })
}

/// The pod runs this version, once, and nothing about it is half done.
fn converged(node: &Node, version: &str, generation: u64, what: &str) -> Promised {
    converged_but(node, version, generation, what, false)
}

/// The same; of a pod that had never run, the record may have been half written.
fn converged_but(
    node: &Node,
    version: &str,
    generation: u64,
    what: &str,
    damaged: bool,
) -> Promised {
    let pod = eventually("the pod to settle", || {
        let pod = node.pod()?;
        let settled = pod.position == Position::Settled
            && pod.running_generation == Some(generation)
            && pod.wanted_generation == Some(generation);
        settled.then_some(pod)
    });
    let promised = promised(node).unwrap();
    assert_eq!(node.programs().len(), 1, "{what}: {pod:#?}");
    let paths = node.rig.layout().pod(&name());
    let now = generation.to_string();
    assert_eq!(
        fs::read_link(paths.current()).unwrap(),
        Path::new("generations").join(&now),
        "{what}"
    );
    for directory in ["generations", "config", "env"] {
        eventually(&format!("{what}: {directory} of {now} alone"), || {
            (names(&paths.home().join(directory)) == [now.as_str()]).then_some(())
        });
    }
    eventually(&format!("{what}: no script or hook to be left"), || {
        names(&paths.once()).is_empty().then_some(())
    });
    let config = fs::read_to_string(paths.config(generation).join("config.yaml")).unwrap();
    assert_eq!(config.trim(), format!("greeting: {version}"), "{what}");
    let shown = fs::read_to_string(paths.current().join("web/version")).unwrap();
    assert_eq!(shown, version, "{what}");
    let aside = paths.record().with_extension("json.damaged");
    assert!(damaged || !aside.exists(), "{what}: a record was damaged");
    promised
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// Puts a hook on the node that writes down what it finds.
fn hook(node: &Node) {
    let trace = node.rig.artifacts().join("trace");
    let note = format!(
        "echo \"hook $HOOK_EVENT $(cat \"$HOOKED_CONFIG_PATH\")\" >> {}",
        trace.display()
    );
    crate::updates::hook(&node.rig, "10-note", &note);
    node.flush();
}

/// All that was written down is of a version as it was packed and configured.
fn consistent(trace: &[String], promised: &Promised, version: &str, what: &str) {
    for line in trace {
        let words: Vec<_> = line.split(' ').collect();
        if words[0] == "hook" {
            let config = words[2..].join(" ");
            let installs = words[1].ends_with("_install");
            assert!(
                installs || config == format!("greeting: {version}"),
                "{what}: {line:?} in {trace:#?}"
            );
            continue;
        }
        let [_, version, env, port, uid, "greeting:", config] = words[..] else {
            panic!("{what}: {line:?} in {trace:#?}");
        };
        assert_eq!((env, config), (version, version), "{what}: {line:?}");
        assert_eq!(port, promised.port.to_string(), "{what}: {line:?}");
        assert_eq!(uid, promised.uid.to_string(), "{what}: {line:?}");
    }
}

/// How often each script ran, and for which version.
fn counted(trace: &[String]) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for line in trace {
        let words: Vec<_> = line.splitn(3, ' ').collect();
        *counted
            .entry(format!("{} {}", words[0], words[1]))
            .or_default() += 1;
    }
    counted
}

/// Those of the points that are gone through: these, or all of them at full scale.
fn some<'a>(points: &[&'a str], these: &[&str]) -> Vec<&'a str> {
    let all = std::env::var("PLATCTRL_TEST_SCALE").as_deref() == Ok("full");
    let chosen = points.iter().copied();
    let chosen: Vec<_> = chosen.filter(|it| all || these.contains(it)).collect();
    assert!(all || chosen.len() == these.len(), "{these:?}");
    chosen
}

#[test]
fn where_the_power_fails_while_a_version_is_got_ready_the_update_ends_after_the_boot() {
    let these = ["authorise.done", "verify.done", "unpack.done", "fetch.done"];
    walk(&some(&PREPARING, &these));
}

#[test]
fn where_the_power_fails_while_the_old_version_leaves_the_update_ends_after_the_boot() {
    let these = ["configure.done", "disable", "stop", "stop.done", "flip"];
    walk(&some(&LEAVING, &these));
}

#[test]
fn where_the_power_fails_while_the_new_version_is_launched_it_runs_after_the_boot() {
    let these = [
        "flip.done",
        "post-activate.done",
        "start.done",
        "healthy.done",
        "prune",
    ];
    walk(&some(&LAUNCHING, &these));
}

/// Walks through an update for each of these points, where the power fails.
fn walk(points: &[&str]) {
    let Some(mut node) = Node::new() else { return };
    hook(&node);
    let mut generation = 1;
    let mut current = version(&node, "v0", 3);
    node.agent(&want(generation, &current));
    node.ready(generation);
    let mut before = converged(&node, "v0", generation, "the first");
    let mut lost = 0;
    for (index, point) in points.iter().enumerate() {
        let (old, new) = (format!("v{index}"), format!("v{}", index + 1));
        node.trace();
        let old_generation = generation;
        generation += 1;
        // Every other one has so many files that they are flushed together.
        current = version(&node, &new, 3 + 70 * (index % 2));
        let order = want(generation, &current);
        node.held(&order, point);
        lost += node.cut().len();
        let left = node.pod().expect("its record");
        assert_eq!(promised(&node), Some(before.clone()), "{point}");
        installs_are_whole(&node, point);
        if index % 3 != 2 {
            // The store is away: one of the two versions runs again, as far as it had come.
            node.agent(&Order::Unknown);
            let forward =
                left.position.is_stopping() || left.running_generation == Some(generation);
            let expected = if forward { generation } else { old_generation };
            // One that was about to be stopped is not sent work to.
            let leaving = left.position.is_leaving();
            node.wait("the pod to run", |it| {
                it["generation"] == expected
                    && it["status"]["pids"]["web"].is_number()
                    && (it["ready"] == true || leaving)
            });
            let programs = eventually("a program", || {
                Some(node.programs()).filter(|it| !it.is_empty())
            });
            assert_eq!(programs.len(), 1, "{point}");
        }
        node.agent(&order);
        node.ready(generation);
        let after = converged(&node, &new, generation, point);
        assert_eq!(after, before, "{point}");
        let trace = node.trace();
        consistent(&trace, &after, &new, point);
        let counted = counted(&trace);
        for script in [
            format!("disable {old}"),
            format!("post-activate {new}"),
            format!("enable {new}"),
        ] {
            // Once, and once more where the power failed in it.
            let times = counted.get(&script).copied().unwrap_or_default();
            assert!((1..=2).contains(&times), "{point}: {script} in {trace:#?}");
        }
        before = after;
    }
    assert!(lost > 0, "nothing of the agent's was ever lost");
    node.agent(&tombstone(generation, &current));
    node.wait("the end", |it| it["phase"] == "Gone");
    nothing_is_left(&node, "the end");
}

/// What is there under an artifact's name is all of it, and as it was packed.
fn installs_are_whole(node: &Node, what: &str) -> usize {
    let mut whole = 0;
    let (data, artifacts) = (node.rig.data_dir(), node.rig.artifacts());
    for file in fs::read_dir(&artifacts).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        let Some(version) = name.strip_suffix(".tar.gz") else {
            continue;
        };
        let bytes = fs::read(file.path()).unwrap();
        let hex = Digest::of(&bytes).hex();
        if let Ok(cached) = fs::read(data.join("cache/sha256").join(&hex)) {
            assert!(cached == bytes, "{what}: {version} in the cache");
        }
        let install = data.join(format!("installs/sha256-{hex}"));
        if !install.exists() {
            continue;
        }
        let packed = artifacts.with_file_name("packages").join(version);
        let mut directories = vec![packed.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let relative = path.strip_prefix(&packed).unwrap();
                let installed = fs::read(install.join(relative)).unwrap_or_default();
                let same = installed == fs::read(&path).unwrap();
                assert!(same, "{what}: {} of {version}", relative.display());
            }
        }
        whole += 1;
    }
    whole
}

/// Nothing of any pod runs or is on the disk.
fn nothing_is_left(node: &Node, what: &str) {
    assert_eq!(node.programs(), [0_u32; 0], "{what}");
    assert_eq!(node.rig.layout().pods().unwrap(), [], "{what}");
    let state = node.rig.data_dir().join("state");
    for directory in ["pods", "trash"] {
        assert_eq!(
            names(&state.join(directory)),
            [""; 0],
            "{what}: {directory}"
        );
    }
}

#[test]
fn where_the_power_fails_while_a_first_version_comes_it_runs_after_the_boot_with_what_was_promised()
{
    let these = [
        "authorise.done",
        "fetch.done",
        "configure.done",
        "flip",
        "flip.done",
        "start",
        "start.done",
        "healthy.done",
    ];
    let points: Vec<_> = [
        &PREPARING[..],
        &["configure.done", "flip"],
        &LAUNCHING[..11],
    ]
    .concat();
    let Some(mut node) = Node::new() else { return };
    hook(&node);
    let mut lost = 0;
    for (index, point) in some(&points, &these).into_iter().enumerate() {
        node.trace();
        let new = format!("v{index}");
        let spec = version(&node, &new, 3 + 70 * (index % 2));
        let order = want(1, &spec);
        node.held(&order, point);
        let ran = node.trace().iter().any(|line| line.starts_with("launch"));
        lost += node.cut().len();
        installs_are_whole(&node, point);
        let promised = promised(&node);
        assert!(promised.is_some() || !ran, "{point}: what ran is known");
        node.agent(&Order::Unknown);
        if promised.is_some() {
            node.ready(1);
            assert_eq!(node.programs().len(), 1, "{point}");
        }
        node.agent(&order);
        node.ready(1);
        let after = converged_but(&node, &new, 1, point, promised.is_none());
        assert!(promised.is_none_or(|it| it == after), "{point}");
        consistent(&node.trace(), &after, &new, point);
        node.agent(&tombstone(1, &spec));
        node.wait("the end", |it| it["phase"] == "Gone");
        nothing_is_left(&node, point);
    }
    assert!(lost > 0, "nothing of the agent's was ever lost");
}

#[test]
fn where_the_power_fails_while_a_pod_is_removed_its_removal_ends_after_the_boot() {
    let points = [
        "drain",
        "disable",
        "disable.done",
        "stop",
        "before-uninstall",
        "before-uninstall.done",
        "remove",
        "remove.done",
    ];
    let these = [
        "disable.done",
        "stop",
        "before-uninstall.done",
        "remove",
        "remove.done",
    ];
    let Some(mut node) = Node::new() else { return };
    hook(&node);
    for point in some(&points, &these) {
        let spec = version(&node, "v0", 3);
        node.agent(&want(1, &spec));
        node.ready(1);
        let promised = converged(&node, "v0", 1, point);
        node.launched();
        node.trace();
        let order = tombstone(1, &spec);
        node.held(&order, point);
        node.cut();
        let left = node.pod();
        // The store is away: what was being stopped is not started again.
        node.agent(&Order::Unknown);
        match &left {
            Some(left) if !left.position.is_stopping() => {
                node.wait("the pod to run", |it| {
                    it["status"]["pids"]["web"].is_number()
                });
                node.launched();
            }
            Some(_) => drop(node.wait("a word about it", |it| it["phase"].is_string())),
            None => {}
        }
        node.agent(&order);
        node.wait("the end", |it| it["phase"] == "Gone");
        nothing_is_left(&node, point);
        let trace = node.trace();
        let launched = trace.iter().any(|line| line.starts_with("launch"));
        let stopping = left.as_ref().is_none_or(|left| left.position.is_stopping());
        assert_eq!(launched, !stopping, "{point}: {trace:#?}");
        consistent(&trace, &promised, "v0", point);
        // What was told is so, whatever happens next.
        node.cut();
        nothing_is_left(&node, "after a cut at the end");
    }
}
