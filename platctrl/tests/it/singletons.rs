//! A pod that never runs twice, on two machines of which one dies and comes back, with real
//! agents, programs and a real etcd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::machines::{Fleet, Process};
use crate::rig::{Rig, eventually, is_alive, kill};

/// A node is given up for silent after 40 s; on a busy machine that takes longer.
const SILENCE: Duration = Duration::from_secs(240);

/// The machine that a pod of hello is ready on, and its process.
fn where_it_runs(rig: &Rig) -> Option<(String, u32)> {
    let pods = rig.pods();
    let ready = |pod: &&serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let is = |it: &serde_json::Value| it["type"] == "Ready" && it["status"] == "True";
        conditions.is_some_and(|all| all.iter().any(is))
    };
    let pod = pods.iter().find(ready)?;
    let pid = u32::try_from(pod["status"]["pids"]["web"].as_u64()?).ok()?;
    Some((pod["spec"]["nodeName"].as_str()?.to_owned(), pid))
}

/// The shims of a data directory, by their command lines.
fn shims(data_dir: &Path) -> Vec<u32> {
    let wanted = data_dir.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        let program = line.split('\0').next()?;
        (program.contains("shim") && line.contains(wanted)).then_some(pid)
    });
    processes.collect()
}

#[test]
fn a_singleton_is_replaced_only_after_retirement_and_not_started_when_its_machine_is_back() {
    let fleet = Fleet::new();
    let rig = &fleet.rig;
    rig.cli(&["store", "init", &fleet.url]).ok();
    let (one, two) = (format!("{}-a", rig.app), format!("{}-b", rig.app));
    for node in [&one, &two] {
        rig.cli(&["node", "admit", node, "--store", &fleet.url])
            .ok();
    }
    let _server = fleet.server();
    let _controllers = fleet.start("controllers", &[]);
    let socket = format!("unix:{}", rig.data_dir().join("platctrl.sock").display());
    let second = rig.path("local");
    fs::create_dir(&second).unwrap();
    let place = |node: &str| match node == one {
        true => rig.data_dir(),
        false => second.clone(),
    };
    let agent = |node: &str| -> Process {
        let dir = place(node);
        let dir = dir.to_str().unwrap();
        fleet.start(
            "agent",
            &["--node", node, "--data-dir", dir, "--server", &socket],
        )
    };
    let mut agents = vec![(one.clone(), agent(&one)), (two.clone(), agent(&two))];

    // Each start of the program is written down where every machine can.
    let starts = rig.write("starts", "");
    fs::set_permissions(&starts, fs::Permissions::from_mode(0o666)).unwrap();
    let started = || fs::read_to_string(&starts).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$NODE_NAME\" >> {}\nexec sleep 1000\n",
        starts.display()
    );
    rig.script_artifact("hello", &script);
    rig.manifest(1, |text| {
        let until = text.find("      ports:").unwrap();
        format!("{}      singleton: true\n", &text[..until])
    });
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let (first, pid) = eventually("the pod is ready", || where_it_runs(rig));
    assert_eq!(started(), format!("{first}\n"));

    // The machine dies: agent, supervisor and program.
    let index = agents.iter().position(|(node, _)| *node == first).unwrap();
    let (_, dead) = agents.remove(index);
    dead.end(9);
    let supervisors = shims(&place(&first));
    assert!(!supervisors.is_empty(), "there was one");
    supervisors.iter().for_each(|pid| kill(*pid, 9));
    kill(pid, 9);
    eventually("it is dead", || (!is_alive(pid)).then_some(()));

    // It is not given up before somebody says that it is off.
    let deadline = Instant::now() + SILENCE;
    loop {
        let said = rig.cli(&["node", "retire", &first]);
        assert_eq!(said.code, Some(6), "{said:#?}");
        if said.err.contains("never run twice") {
            assert!(said.err.contains("--machine-is-off"), "{said:#?}");
            break;
        }
        assert!(said.err.contains("is heard of"), "{said:#?}");
        assert!(Instant::now() < deadline, "{}", rig.log());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(started(), format!("{first}\n"), "nobody took its place");
    let retired = rig.cli(&["node", "retire", &first, "--machine-is-off"]);
    assert!(
        retired.err.contains("store policy URL --role agent"),
        "{retired:#?}"
    );
    retired.ok();
    let other = agents[0].0.clone();
    let (now, pid) = eventually("another one is ready", || where_it_runs(rig));
    assert_eq!(now, other);
    assert_eq!(started(), format!("{first}\n{other}\n"));

    // The machine is back: what it had is stopped for good, and was not started first.
    let back = agent(&first);
    eventually("its agent works under the new incarnation", || {
        let node = rig.json(&["get", &format!("node/{first}")]);
        (node["status"]["incarnation"] == 1).then_some(())
    });
    eventually("nothing is left of the old one", || {
        shims(&place(&first)).is_empty().then_some(())
    });
    assert_eq!(started(), format!("{first}\n{other}\n"));
    assert!(is_alive(pid));

    // Both machines are this one, and have the app's user in common: it ends before either goes.
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || {
        (rig.pods().is_empty() && !is_alive(pid)).then_some(())
    });
    drop(back);
}
