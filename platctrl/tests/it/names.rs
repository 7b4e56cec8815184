//! Two pods of one name on two machines, with real agents, programs, controllers and a real etcd.

use serde_json::Value;

use crate::rig::{Rig, eventually, is_alive};
use crate::singletons::Pair;

/// What is told of the pod on this node.
fn pod_on(rig: &Rig, node: &str) -> Option<Value> {
    let mut pods = rig.pods().into_iter();
    pods.find(|pod| pod["spec"]["nodeName"] == *node)
}

fn condition<'p>(pod: &'p Value, kind: &str) -> Option<&'p Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|it| it["type"] == kind)
}

fn pid_on(rig: &Rig, node: &str) -> Option<u32> {
    let pod = pod_on(rig, node)?;
    let ready = condition(&pod, "Ready")?["status"] == "True";
    u32::try_from(pod["status"]["pids"]["web"].as_u64().filter(|_| ready)?).ok()
}

#[test]
fn of_two_pods_of_one_name_on_two_nodes_the_younger_never_starts_while_the_older_lives() {
    let mut pair = Pair::new();
    let started = pair.noted_starts();
    let [a, b] = ["a", "b"].map(|name| format!("{}-{name}", pair.rig().app));
    let manifest = |rig: &Rig, node: &str| {
        let text = format!(
            "apiVersion: platctrl.dev/v1\nkind: Pod\nmetadata: {{name: hello}}\nspec:\n  nodeName: {node}\n  app: {}\n  launchables:\n    web: {{type: hoist, location: hello.tar.gz, stopTimeout: 5s}}\n",
            rig.app
        );
        rig.write("pod.yaml", text);
    };
    manifest(pair.rig(), &a);
    pair.rig().cli(&["apply", "-f", "pod.yaml"]).ok();
    let first = eventually("the first is ready", || pid_on(pair.rig(), &a));

    // The server makes no second one.
    manifest(pair.rig(), &b);
    let said = pair.rig().cli(&["apply", "-f", "pod.yaml"]);
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.err.contains("nodeName"), "{said:#?}");

    // One is written to the store by hand, while its agent is away.
    pair.end_agent(&b);
    let root = pair.rig().app.clone();
    let key =
        |tree: &str, node: &str| format!("{root}/o/{tree}/platctrl.dev/pods/{node}/default/hello");
    let etcd = &pair.fleet.store;
    let read = |key: &str| etcd.etcdctl(&["get", "--print-value-only", key]).unwrap();
    let stored = read(&key("intent", &a));
    let mut intent: Value = serde_json::from_str(&stored).unwrap();
    let older = intent["metadata"]["uid"].as_str().unwrap().to_owned();
    let younger = "00000000-0000-4000-8000-000000000002";
    intent["metadata"]["uid"] = younger.into();
    intent["spec"]["nodeName"] = b.as_str().into();
    let put = ["put", &key("intent", &b), &intent.to_string()];
    etcd.etcdctl(&put).unwrap();
    let verdict = eventually("the controllers' verdict", || {
        serde_json::from_str::<Value>(&read(&key("grant", &b))).ok()
    });
    assert_eq!(verdict["nameTaken"]["node"], *a, "{verdict}");
    assert_eq!(verdict["nameTaken"]["uid"], *older, "{verdict}");

    pair.start(&b);
    let told = eventually("the younger one says why", || {
        let pod = pod_on(pair.rig(), &b)?;
        let held = condition(&pod, "Held")?;
        (held["reason"] == "NameTaken").then_some(pod)
    });
    assert_eq!(told["status"]["phase"], "Pending", "{told:#}");
    assert_eq!(condition(&told, "Ready").unwrap()["reason"], "NameTaken");
    let message = told["status"]["message"].as_str().unwrap();
    assert!(
        message.contains(&a) && message.contains(&older),
        "{message}"
    );
    // The name means the older one.
    let described = pair.rig().cli(&["get", "pod/hello", "-o", "json"]).ok();
    let described: Value = serde_json::from_str(&described).unwrap();
    assert_eq!(described["metadata"]["uid"], *older);
    assert_eq!(started(), format!("{a}\n"));
    assert!(is_alive(first));

    // The older one goes: the younger one has the name.
    let rig = pair.rig();
    rig.cli(&["delete", "pod/hello", "--uid", &older]).ok();
    let second = eventually("the younger one is ready", || pid_on(rig, &b));
    assert!(!is_alive(first), "never both");
    assert_eq!(started(), format!("{a}\n{b}\n"));
    let pod = pod_on(rig, &b).unwrap();
    assert!(condition(&pod, "Held").is_none(), "{pod:#}");
    let said = rig.cli(&["delete", "pod/hello", "--uid", &older]);
    said.fails(5, &["none of the name has that uid"]);
    rig.cli(&["delete", "pod/hello", "--uid", younger]).ok();
    eventually("its end", || {
        (rig.pods().is_empty() && !is_alive(second)).then_some(())
    });
}
