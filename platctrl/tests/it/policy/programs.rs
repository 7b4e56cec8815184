//! Server, controllers and agent at work, each with its own credential alone.

use std::fs;
use std::path::PathBuf;

use platctrl_framework::store::Transaction;

use super::{Place, key, run};
use crate::fleet::SIGKILL;
use crate::rig::{eventually, is_alive};

/// Server, controllers and agent, each with its own credential and no other.
fn programs_work(place: &Place) {
    let (rig, node) = (&place.rig, place.rig.app.clone());
    place.store(&["init", &place.url]).ok();
    let flags = place.flags("root", &place.server.hush());
    let mut admit = vec!["node", "admit", &node, "--store", &place.url];
    admit.extend(flags.iter().map(String::as_str));
    rig.cli(&admit).ok();
    let agent = place.credential(&["--role", "agent", "--node", &node], "agent");
    let controllers = place.credential(&["--role", "controllers"], "controllers");
    let server = place.credential(&["--role", "server"], "server");

    let _server = place.start("server", &server, &[]);
    eventually("an answer of the server", || {
        (rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
    });
    let leader = place.start("controllers", &controllers, &[]);
    let _agent = place.start("agent", &agent, &["--node", &node]);
    let pod = rig.quickstart(1).remove(0);
    pod.answer().unwrap();
    // The node's own record, its signs of life and its events are written, too.
    eventually("a node that is ready", || {
        let node = rig.json(&["get", "node", &node]);
        let conditions = node["status"]["conditions"].as_array()?;
        let ready = |it: &serde_json::Value| it["type"] == "Ready" && it["status"] == "True";
        conditions.iter().any(ready).then_some(())
    });
    eventually("an event of the agent", || {
        let said = rig.cli(&["events"]);
        said.out
            .contains(&format!("pod/{}", pod.name))
            .then_some(())
    });
    let admin = run(place.open_all(&node));
    let beat = key(&format!("x/beat/{node}"));
    let beats = || {
        run(admin.get(std::slice::from_ref(&beat)))
            .unwrap()
            .records
            .remove(0)
    };
    assert!(beats().is_some(), "the agent does not beat");

    // A leader that is killed leaves its lease behind; the agent may not clear it away, and
    // goes on hearing.
    leader.end(SIGKILL);
    let _next = place.start("controllers", &controllers, &[]);
    rig.cli(&["scale", "rc/hello", "--replicas", "2"]).ok();
    rig.ready(2);

    // An agent hears a freeze ...
    rig.cli(&["freeze", "--reason", "a test"]).ok();
    let holder = key(&format!("o/reality/platctrl.dev/failsafes/{node}"));
    let told = |text: &str| {
        let held = run(admin.get(std::slice::from_ref(&holder)))
            .unwrap()
            .records
            .remove(0);
        held.filter(|held| String::from_utf8_lossy(&held.value).contains(text))
            .map(|_| ())
    };
    eventually("the agent's word that it is frozen", || {
        told("\"frozen\":true")
    });
    rig.cli(&["thaw"]).ok();
    eventually("the agent's word that it is not", || {
        told("\"frozen\":false")
    });
    // ... and says which order is lost. What runs goes on.
    let intent = key(&format!(
        "o/intent/platctrl.dev/pods/{node}/default/{}",
        pod.name
    ));
    let lost = run(admin.get(std::slice::from_ref(&intent)))
        .unwrap()
        .records
        .remove(0)
        .unwrap();
    run(admin.commit(Transaction::new().delete(intent.clone()))).unwrap();
    eventually("the agent's word of what is missing", || {
        told(intent.as_str())
    });
    assert!(is_alive(pod.pid));
    run(admin.commit(Transaction::new().put(intent, lost.value))).unwrap();
    rig.ready(2);

    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pods' end", || rig.pods().is_empty().then_some(()));
    assert!(!is_alive(pod.pid));

    // Given up, the node's agent may do nothing any more, whoever has its credential.
    let anchor = |who: &(String, PathBuf)| {
        let flags = place.flags(&who.0, &who.1);
        let mut all = vec!["store"];
        all.extend(flags.iter().map(String::as_str));
        all.extend(["info", &place.url]);
        rig.cli(&all).code
    };
    assert_eq!(anchor(&agent), Some(0));
    let mut retire = vec![
        "node",
        "retire",
        &node,
        "--force",
        "--revoke-in",
        &place.url,
    ];
    retire.extend(flags.iter().map(String::as_str));
    let said = rig.cli(&retire).ok();
    assert!(
        said.contains("removed") && said.contains("retired: incarnation 1 begins"),
        "{said}"
    );
    eventually("the credential is good for nothing", || {
        anchor(&agent).is_some_and(|code| code != 0).then_some(())
    });
    assert_eq!(anchor(&controllers), Some(0), "others have theirs");

    let log = fs::read_to_string(rig.path("up.log")).unwrap();
    let secret = fs::read_to_string(&agent.1).unwrap();
    assert!(!log.contains(secret.trim_end()), "a credential is in a log");
}

#[test]
fn programs_work_with_their_own_credentials_on_etcd() {
    programs_work(&Place::etcd("etcd-next"));
}

#[test]
fn programs_work_with_their_own_credentials_on_consul() {
    programs_work(&Place::consul());
}
