//! Server, controllers and agent as processes of their own, that meet in a real Consul; and
//! stores that move to it and away from it.

use std::fs;
use std::io::{Read as _, Write as _};

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
    // One that still begins would end without a store, as it should.
    eventually("each part runs again", || {
        let log = fleet.rig.log();
        let twice = |part: &str| log.matches(&format!("platctrl {part} runs")).count() == 2;
        (twice("controllers") && twice("agent")).then_some(())
    });

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

/// What the server of a fleet answers on its socket.
fn asked(fleet: &Fleet, path: &str) -> (u16, serde_json::Value) {
    let socket = fleet.rig.data_dir().join(platctrl::server::SOCKET);
    let mut stream = platctrl::server::connect(&socket).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// The names in a page, what tells of the next one, and the revision.
fn page(list: &serde_json::Value) -> (Vec<String>, String, String) {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().unwrap().iter();
    let metadata = &list["metadata"];
    (
        items.map(|it| text(&it["metadata"]["name"])).collect(),
        text(&metadata["continue"]),
        text(&metadata["resourceVersion"]),
    )
}

#[test]
fn pages_of_a_list_on_consul_are_of_one_revision() {
    let fleet = Fleet::on_consul();
    fleet.initialise();
    let server = fleet.server();
    let apply = |names: &[&str], replicas: u32| {
        for name in names {
            let file = fleet.rig.manifest(replicas, |text| {
                text.replace("name: hello\n", &format!("name: {name}\n"))
            });
            fleet.rig.cli(&["apply", "-f", file.to_str().unwrap()]).ok();
        }
    };
    fleet.rig.quickstart_artifact();
    apply(&["a", "b", "c", "d", "e"], 1);
    let list = "/apis/platctrl.dev/v1/namespaces/default/replicationcontrollers";
    let (code, first) = asked(&fleet, &format!("{list}?limit=2"));
    assert_eq!(code, 200, "{first}");
    let (mut found, mut next, revision) = page(&first);
    assert_eq!(found, ["a", "b"]);

    fleet.rig.cli(&["delete", "rc/d"]).ok();
    apply(&["bb", "c", "f"], 2);
    let (_, now) = asked(&fleet, list);
    assert_eq!(page(&now).0, ["a", "b", "bb", "c", "d", "e", "f"]);
    let ends = |list: &serde_json::Value| {
        let d = list["items"].as_array().unwrap().iter();
        let mut d = d.filter(|it| it["metadata"]["name"] == "d");
        d.next()
            .map(|it| it["metadata"]["deletionTimestamp"].is_string())
    };
    assert_eq!(ends(&now), Some(true));
    let mut replicas = serde_json::Value::Null;
    let mut last = String::new();
    while !next.is_empty() {
        last.clone_from(&next);
        let (code, more) = asked(&fleet, &format!("{list}?limit=2&continue={next}"));
        assert_eq!(code, 200, "{more}");
        let (names, then, at) = page(&more);
        assert_eq!(at, revision);
        assert_ne!(ends(&more), Some(true), "d as it was");
        if names.iter().any(|name| name == "c") {
            replicas = more["items"][0]["spec"]["replicas"].clone();
        }
        found.extend(names);
        next = then;
    }
    assert_eq!(found, ["a", "b", "c", "d", "e"]);
    assert_eq!(replicas, 1, "c as it was");

    // A server that begins anew has that moment no more, and says so.
    server.end(SIGKILL);
    let server = fleet.server();
    let (code, gone) = asked(&fleet, &format!("{list}?limit=2&continue={last}"));
    assert_eq!((code, &gone["reason"]), (410, &"Expired".into()), "{gone}");
    end(&fleet, server);
}

#[test]
fn pages_of_events_on_consul_are_of_one_revision() {
    let fleet = Fleet::on_consul();
    fleet.initialise();
    let server = fleet.server();
    let happens = |slots: std::ops::Range<u32>| {
        for slot in slots {
            let event = serde_json::json!({
                "involvedObject": {"apiVersion": "platctrl.dev/v1", "kind": "Pod",
                    "namespace": "default", "name": format!("pod-{slot}"), "uid": "u"},
                "type": "Normal", "reason": "Started", "message": "it runs", "source": "test",
                "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
                "count": 1, "sequence": slot,
            });
            fleet.store.consul_shell(&format!(
                "consul kv put fleets/test/x/event/w/{slot:03} '{event}'"
            ));
        }
    };
    happens(0..5);
    let list = "/apis/platctrl.dev/v1/namespaces/default/events";
    let (code, first) = asked(&fleet, &format!("{list}?limit=2"));
    assert_eq!(code, 200, "{first}");
    let (mut found, mut next, revision) = page(&first);
    happens(5..7);
    while !next.is_empty() {
        let (code, more) = asked(&fleet, &format!("{list}?limit=2&continue={next}"));
        assert_eq!(code, 200, "{more}");
        let (names, then, at) = page(&more);
        assert_eq!(at, revision);
        found.extend(names);
        next = then;
    }
    let expected: Vec<_> = (0..5)
        .map(|slot| format!("pod-{slot}.w.{slot:03}"))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(page(&asked(&fleet, list).1).0.len(), 7);
    end(&fleet, server);
}

/// Ends a server that was alone on its machine: there is nothing to uninstall.
fn end(fleet: &Fleet, server: crate::fleet::Process) {
    server.end(SIGTERM);
    fs::remove_dir_all(fleet.rig.data_dir()).unwrap();
}
