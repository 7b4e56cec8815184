//! Server, controllers and agent as processes of their own, that meet in a real Consul; and
//! stores that move to it and away from it.

use std::fs;

use crate::fleet::{Fleet, SIGKILL, SIGTERM};
use crate::rig::{Rig, eventually, is_alive, kill, processes_of};
use crate::servers::Server;

#[test]
fn server_controllers_and_agent_meet_in_consul_and_survive_it_and_each_other() {
    let mut fleet = Fleet::on_consul();
    for role in ["server", "controllers", "agent"] {
        fleet
            .rig
            .cli(&[role, "--store", &fleet.url])
            .fails(3, &["no anchor", "store init consul://"]);
    }
    fleet.initialise();
    let about = fleet.rig.cli(&["store", "info", &fleet.url]).ok();
    assert!(about.contains("active"), "{about}");
    let server = fleet.server();
    let controllers = fleet.start("controllers", &[]);
    let agent = fleet.agent();
    let pod = fleet.rig.quickstart(1).remove(0);
    pod.answer().unwrap();
    // What we write, a person can read.
    let read = fleet.store.consul_shell(
        "consul kv get fleets/test/o/intent/platctrl.dev/replicationcontrollers/default/hello",
    );
    let record: serde_json::Value = serde_json::from_str(&read).unwrap();
    assert_eq!(record["spec"]["replicas"], 1);

    // Nobody but the shim is needed for it to serve.
    for process in [server, controllers, agent] {
        process.end(SIGKILL);
    }
    assert!(is_alive(pod.pid));
    pod.answer().unwrap();
    let _server = fleet.server();
    let _controllers = fleet.start("controllers", &[]);
    let _agent = fleet.agent();
    assert_eq!(fleet.rig.ready(1).remove(0).pid, pod.pid);

    // Consul itself goes, and comes back with what it was told.
    fleet.store.kill();
    assert!(!fleet.store.listens(), "nobody listens");
    pod.answer().unwrap();
    let said = fleet.rig.cli(&["scale", "rc/hello", "--replicas", "0"]);
    assert_ne!(
        said.code,
        Some(0),
        "nothing is promised meanwhile: {said:?}"
    );
    fleet.store.start();
    fleet.answers();
    let found = fleet.rig.ready(1).remove(0);
    assert_eq!((&found.name, found.pid), (&pod.name, pod.pid));
    fleet.end_of(&pod);
}

#[test]
fn an_agent_that_boots_while_consul_is_away_runs_what_it_last_knew() {
    let mut fleet = Fleet::on_consul();
    fleet.initialise();
    let server = fleet.server();
    let controllers = fleet.start("controllers", &[]);
    let agent = fleet.agent();
    let pod = fleet.rig.quickstart(1).remove(0);

    // Power is cut, and comes back on this machine alone.
    for process in [server, controllers, agent] {
        process.end(SIGKILL);
    }
    fleet.store.kill();
    assert!(!fleet.store.listens(), "nobody listens");
    let data = fleet.rig.data_dir();
    eventually("the end of everything", || {
        let left = processes_of(&data);
        left.iter().for_each(|pid| kill(*pid, SIGKILL));
        left.is_empty().then_some(())
    });
    assert!(pod.answer().is_none(), "nothing runs any more");
    let _agent = fleet.agent();
    eventually("the pod serves again", || pod.answer());

    // Consul comes later: from then on the agent does what it is told.
    fleet.store.start();
    let _server = fleet.server();
    let _controllers = fleet.start("controllers", &[]);
    let found = eventually("the new process is reported", || {
        let found = fleet.rig.ready(1).remove(0);
        (found.pid != pod.pid && is_alive(found.pid)).then_some(found)
    });
    assert_eq!(found.name, pod.name);
    fleet.end_of(&found);
}

#[test]
fn a_store_moves_to_consul_between_its_roots_and_away_from_it() {
    let mut rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);
    assert!(rig.end_up(SIGTERM).success());
    let consul = Server::open_consul();
    let at = |root: &str| format!("consul://{}/{root}", consul.at);
    let first = format!("embedded:{}", rig.data_dir().join("store").display());
    let stations = [
        first.clone(),
        at("one"),
        at("two"),
        format!("embedded:{}", rig.path("last").display()),
    ];
    for (n, step) in stations.windows(2).enumerate() {
        let copied = rig.cli(&["store", "copy", &step[0], &step[1]]);
        assert!(copied.err.contains("is sealed"), "{}", copied.err);
        let told = format!("in epoch {}", n + 1);
        assert!(copied.ok().contains(&told), "{n}");
        // Nobody works on a source any more, and nothing is copied over what is there.
        let about = rig.cli(&["store", "info", &step[0]]).ok();
        assert!(about.contains("sealed"), "{about}");
        rig.cli(&["store", "copy", &step[0], &step[1]])
            .fails(6, &["not empty"]);
    }
    rig.cli(&["server", "--store", &stations[1]])
        .fails(1, &["sealed", "store unseal"]);
    rig.cli(&["store", "unseal", &stations[1]]).ok();
    let about = rig.cli(&["store", "info", &stations[1]]).ok();
    assert!(about.contains("active"), "{about}");

    // The pod never noticed, and goes on under the last copy.
    assert!(is_alive(pod.pid));
    fs::rename(rig.data_dir().join("store"), rig.path("old")).unwrap();
    fs::rename(rig.path("last"), rig.data_dir().join("store")).unwrap();
    rig.up();
    let found = rig.ready(1).remove(0);
    assert_eq!((&found.name, found.pid), (&pod.name, pod.pid));
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || rig.pods().is_empty().then_some(()));
}
