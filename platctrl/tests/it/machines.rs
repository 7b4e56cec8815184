//! Server, controllers and agent as processes of their own, that meet in a real etcd.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::fleet::{self, Fleet, SIGKILL, SIGTERM};
use crate::insight::asked;
use crate::rig::{Rig, eventually, is_alive};

#[test]
fn server_controllers_and_agent_meet_in_etcd_and_survive_each_other() {
    let fleet = Fleet::on_etcd();
    let (rig, node) = (&fleet.rig, fleet.rig.app.clone());
    for role in ["server", "controllers", "agent"] {
        rig.cli(&[role, "--store", &fleet.url])
            .fails(3, &["no anchor", "store init etcd://"]);
    }
    rig.cli(&["store", "init", &fleet.url]).ok();
    let about = rig.cli(&["store", "info", &fleet.url]).ok();
    assert!(about.contains("active"), "{about}");
    rig.cli(&[
        "node", "admit", &node, "--store", &fleet.url, "--labels", "role=web",
    ])
    .ok();
    let again = rig
        .cli(&["node", "admit", &node, "--store", &fleet.url])
        .ok();
    assert_eq!(again, format!("node/{node} unchanged\n"));

    let server = fleet.server();
    let mut controllers = vec![
        fleet.start("controllers", &[]),
        fleet.start("controllers", &[]),
    ];
    let agent = fleet.agent();
    let pod = rig.quickstart(1).remove(0);
    pod.answer().unwrap();
    let nodes = rig
        .cli(&["get", "nodes", "-l", "role=web", "-o", "name"])
        .ok();
    assert_eq!(nodes, format!("node/{node}\n"));
    // One of the two tells of itself, without a server.
    let socket = rig.data_dir().join("controllers.sock");
    for (path, part) in [
        ("/readyz", "200 OK"),
        ("/metrics", "controller=\""),
        ("/statusz", "runtime controllers"),
    ] {
        eventually("an answer of controllers", || {
            asked(&socket, path)?.contains(part).then_some(())
        });
    }

    // Nobody but the shim is needed for it to serve.
    server.end(SIGKILL);
    agent.end(SIGKILL);
    controllers.remove(0).end(SIGKILL);
    assert!(is_alive(pod.pid));
    pod.answer().unwrap();

    // Whichever of the controllers led, one does now.
    let _server = fleet.server();
    let _agent = fleet.agent();
    let found = rig.ready(1).remove(0);
    assert_eq!(found.pid, pod.pid);
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || rig.pods().is_empty().then_some(()));
    assert!(!is_alive(pod.pid));
}

#[test]
fn an_agent_is_a_program_of_its_own_and_without_it_it_is_said_what_to_install() {
    let fleet = Fleet::on_etcd();
    let (rig, node) = (&fleet.rig, fleet.rig.app.clone());
    rig.cli(&["store", "init", &fleet.url]).ok();
    rig.cli(&["node", "admit", &node, "--store", &fleet.url])
        .ok();
    let agent = fleet.agent();
    let program = Path::new("/proc").join(agent.id().to_string()).join("exe");
    let beside = Path::new(env!("CARGO_BIN_EXE_platctrl")).with_file_name("platctrl-agent");
    eventually("the agent's program", || {
        (fs::read_link(&program).ok()? == beside).then_some(())
    });
    drop(agent);

    let alone = rig.path("platctrl");
    fs::copy(env!("CARGO_BIN_EXE_platctrl"), &alone).unwrap();
    let refused = Command::new(&alone)
        .args(["agent", "--store", &fleet.url])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("install platctrl-agent beside"), "{said}");
    // What is wrong with the arguments is said first, and by whoever is asked.
    let usage = Command::new(&alone).arg("agent").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn an_agent_elsewhere_fetches_artifacts_over_tls_with_a_token_that_lets_it_do_nothing_else() {
    let fleet = Fleet::on_etcd();
    let (rig, node) = (&fleet.rig, fleet.rig.app.clone());
    rig.cli(&["store", "init", &fleet.url]).ok();
    rig.cli(&["node", "admit", &node, "--store", &fleet.url])
        .ok();
    let tls = rig.path("tls");
    let tls = tls.to_str().unwrap();
    rig.cli(&["ca", "init", "--tls-dir", tls]).ok();
    // The server's machine, which is not the agent's.
    let there = rig.path("there");
    let there = there.to_str().unwrap();
    let here = ["--data-dir", there];
    let on_server = |args: &[&str]| rig.cli(&[args, &here].concat());
    let listen = [&here[..], &["--listen", "127.0.0.1:0", "--tls-dir", tls]].concat();
    let _server = fleet.start("server", &listen);
    let url = eventually("the server to listen", || {
        fs::read_to_string(Path::new(there).join("listens")).ok()
    });
    eventually("an answer of the server", || {
        (on_server(&["get", "nodes"]).code == Some(0)).then_some(())
    });
    let _controllers = fleet.start("controllers", &here);
    let token = on_server(&["token", "create", "web1", "--role", "node"]).ok();
    let token = rig.write("web1.token", token);
    let ca = format!("{tls}/ca.crt");
    let over_tls = [
        "--server",
        url.as_str(),
        "--ca",
        &ca,
        "--token-file",
        token.to_str().unwrap(),
    ];
    let _agent = fleet.start("agent", &[&over_tls[..], &["--node", &node]].concat());

    rig.quickstart_artifact().manifest(1, |text| text);
    on_server(&["apply", "-f", "hello.yaml"]).ok();
    let pod = eventually("a pod", || {
        let list = on_server(&["get", "pods", "-o", "json"]).ok();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let pod = list["items"].get(0)?.clone();
        let ready = pod["status"]["conditions"].as_array()?;
        let is_ready = |it: &serde_json::Value| it["type"] == "Ready" && it["status"] == "True";
        ready.iter().any(is_ready).then_some(pod)
    });
    assert_eq!(pod["status"]["nodeName"], node.as_str());

    // What a stolen machine has lets nobody read or change objects.
    let stolen = |args: &[&str]| rig.cli(&[args, &over_tls].concat());
    stolen(&["get", "pods"]).fails(4, &["web1", "takes the role viewer"]);
    on_server(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || {
        (on_server(&["get", "pods", "-o", "name"]).ok().is_empty()).then_some(())
    });
}

#[test]
fn a_store_moves_from_one_machine_to_etcd() {
    let fleet = Fleet::on_etcd();
    let mut rig = Rig::running();
    let node = rig.app.clone();
    let pod = rig.quickstart(1).remove(0);
    assert!(rig.end_up(SIGTERM).success());
    let embedded = format!("embedded:{}", rig.data_dir().join("store").display());
    let copied = rig.cli(&["store", "copy", &embedded, &fleet.url]);
    assert!(copied.ok().contains("in epoch 1"));

    let start = |role: &str, more: &[&str]| fleet::start(&rig, &fleet.url, role, more);
    let _server = start("server", &[]);
    let _controllers = start("controllers", &[]);
    let _agent = start("agent", &["--node", &node]);
    eventually("an answer of the server", || {
        (rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
    });
    let found = rig.ready(1).remove(0);
    assert_eq!((found.name, found.pid), (pod.name, pod.pid));
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pod's end", || rig.pods().is_empty().then_some(()));

    rig.cli(&["server", "--store", &embedded])
        .fails(2, &["one process at a time", "platctrl up"]);
}

#[test]
fn a_store_that_cannot_be_reached_is_named() {
    let rig = Rig::new();
    // Free a moment ago, so that nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("etcd://127.0.0.1:{port}/fleet");
    rig.cli(&["store", "info", &url])
        .fails(3, &[&format!("127.0.0.1:{port}")]);
    let consul = format!("consul://127.0.0.1:{port}/fleet");
    rig.cli(&["store", "info", &consul])
        .fails(3, &[&format!("127.0.0.1:{port}")]);
    rig.cli(&["store", "info", "consul://127.0.0.1"])
        .fails(2, &["consul://"]);
    rig.cli(&["store", "info", "etcd://127.0.0.1"])
        .fails(2, &["etcd://"]);
    rig.cli(&["store", "check", &url])
        .fails(2, &["its own tools"]);
    rig.cli(&["store", "--store-user", "me", "info", &url])
        .fails(2, &["--store-password-file"]);
}
