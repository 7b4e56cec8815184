//! What `describe` says of the next step of each kind, and of what it waits for.

use crate::rig::{Rig, eventually};

/// The part of a description about what comes next.
fn next(rig: &Rig, what: &str) -> String {
    let told = rig.cli(&["describe", what]).ok();
    let after = told.split("\nNext:\n").nth(1).unwrap_or_default();
    after.split("\n\n").next().unwrap_or_default().to_owned()
}

#[track_caller]
fn says(rig: &Rig, what: &str, parts: &[&str]) {
    eventually(&format!("{what} says {parts:?}"), || {
        let told = next(rig, what);
        parts.iter().all(|part| told.contains(part)).then_some(())
    });
}

const BUDGET: &str = "\
apiVersion: platctrl.dev/v1
kind: DisruptionBudget
metadata: { name: all }
spec: { podSelector: \"*\", minimumHealthy: 100% }
";

#[test]
fn a_controller_its_pods_their_node_and_a_budget_say_what_is_next() {
    let rig = Rig::running();
    let pods = rig.quickstart(2);
    let node = format!("node/{}", rig.app);
    says(
        &rig,
        "rc/hello",
        &["nothing is to be done: 2 of 2 pods are ready"],
    );
    let pod = format!("po/{}", pods[0].name);
    says(
        &rig,
        &pod,
        &["nothing is to be done: its health check passes"],
    );
    says(&rig, &node, &["nothing is to be done: it takes pods"]);

    // Waiting: nobody may be spared for the new template.
    rig.write("budget.yaml", BUDGET);
    rig.cli(&["apply", "-f", "budget.yaml"]).ok();
    says(
        &rig,
        "db/all",
        &["hello: 2 healthy, 2 needed: none may go until more are healthy"],
    );
    rig.manifest(2, |text| text.replace("greeting: hi", "greeting: servus"));
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    says(
        &rig,
        "rc/hello",
        &[
            "waiting: 0 of 2 ready",
            "gets the template when more than 2 pods are healthy; 2 are (disruption budget all)",
        ],
    );
    rig.cli(&["delete", "db/all"]).ok();
    says(
        &rig,
        "rc/hello",
        &["nothing is to be done: 2 of 2 pods are ready"],
    );

    // Stalled: there is no place for one.
    rig.cli(&["node", "cordon", &rig.app]).ok();
    says(
        &rig,
        &node,
        &["takes no new pods: ", "`platctrl node uncordon` ends that"],
    );
    rig.cli(&["scale", "rc/hello", "--replicas", "3"]).ok();
    says(
        &rig,
        "rc/hello",
        &[
            &format!(
                "stalled: no place for 1 pod: of 1 node 1 is cordoned ({})",
                rig.app
            ),
            "waiting: 2 of 3 ready; 1 pod without a place",
        ],
    );
    // Stalled: what is there stays on a node that is to be empty.
    assert_eq!(rig.cli(&["node", "drain", &rig.app]).code, Some(1));
    says(
        &rig,
        &node,
        &["stalled: 2 stay: ", "rc/hello is Static", "--move-static"],
    );
    // Moved: the replacement has no place.
    let moved = rig.cli(&[
        "node",
        "drain",
        &rig.app,
        "--move-static",
        "--deadline",
        "1s",
    ]);
    assert_eq!(moved.code, Some(7), "{moved:#?}");
    says(
        &rig,
        &node,
        &[
            "2 go, each when its workload's ledger allows it",
            "rc/hello: ",
        ],
    );
}

#[test]
fn a_roll_that_waits_is_paused_or_has_failed_says_so_with_its_numbers() {
    let rig = Rig::running();
    rig.quickstart(2);
    rig.script_artifact("broken", "#!/bin/sh\nexec sleep 600\n");
    let start = [
        "rollout",
        "start",
        "rc/hello",
        "--location",
        "broken.tar.gz",
        "--min-healthy-time",
        "0s",
        "--progress-deadline",
        "8s",
    ];
    rig.cli(&start).ok();
    says(
        &rig,
        "ru/hello-2",
        &["1 of 2 healthy, 1 needed", "1 pods left"],
    );
    says(
        &rig,
        "rc/hello",
        &["rollingupdate/hello-2 says how many pods there are"],
    );
    let new = eventually("the pod that was moved waits", || {
        let pods = rig.pods();
        let moved = pods.iter().find(|pod| {
            let owner = pod["metadata"]["ownerReferences"][0]["name"].as_str();
            owner == Some("hello-2")
        });
        Some(format!("po/{}", moved?["metadata"]["name"].as_str()?))
    });
    says(&rig, &new, &["waiting to be ready: "]);
    says(
        &rig,
        "ru/hello-2",
        &["stalled: nothing got further for 8s: 1 of 2 healthy, 1 needed"],
    );
    says(
        &rig,
        "ru/hello-2",
        &["paused with 1 pods left to move: `platctrl rollout resume` goes on"],
    );
    rig.cli(&["rollout", "undo", "rc/hello"]).ok();
    says(&rig, "ru/hello-2", &["rolled back: hello has all 2 pods"]);
}

#[test]
fn a_daemon_set_that_chooses_no_node_is_held_and_says_why() {
    let rig = Rig::running();
    rig.quickstart_artifact();
    let manifest = |selector: &str| {
        let file = rig.manifest(1, |text| {
            let text = text.replace("ReplicationController", "DaemonSet");
            let text = text
                .replace("  replicas: 1\n", "")
                .replace("  maxPerNode: 200\n", "");
            text.replace(
                "nodeSelector: \"*\"",
                &format!("nodeSelector: \"{selector}\""),
            )
        });
        rig.cli(&["apply", "-f", file.to_str().unwrap()]).ok();
    };
    manifest("*");
    rig.ready(1);
    says(
        &rig,
        "ds/hello",
        &["nothing is to be done: 1 of 1 nodes have a pod that is ready"],
    );
    manifest("role=nowhere");
    says(
        &rig,
        "ds/hello",
        &["held: no node matches the selector, and there are 1 pods"],
    );
    assert_eq!(rig.ready(1).len(), 1);
}

#[test]
fn a_controller_without_a_place_says_of_the_node_why_for_each_reason() {
    let rig = Rig::running();
    rig.script_artifact("sleeper", "#!/bin/sh\nexec sleep 600\n");
    let apply = |name: &str, spec: &str, pod: &str, program: &str| {
        let text = format!(
            "\
apiVersion: platctrl.dev/v1
kind: ReplicationController
metadata: {{ name: {name} }}
spec:
  {spec}
  template:
    spec:
      app: {app}-{name}
      {pod}
      launchables: {{ web: {{ type: hoist, location: sleeper.tar.gz, {program} }} }}
",
            app = rig.app
        );
        let file = rig.write(&format!("{name}.yaml"), text);
        rig.cli(&["apply", "-f", file.to_str().unwrap()]).ok();
    };
    let spec = "replicas: 1\n  nodeSelector: \"*\"".to_owned();
    let nowhere = spec.replace('*', "role=db");
    let two = spec.replace("replicas: 1", "replicas: 2");
    // Whether it is free on this machine makes no difference to who else may have it.
    let port = 20_123;
    let fixed = format!("ports: {{ http: {{ port: {port} }} }}");
    apply("first", &spec, &fixed, "");
    eventually("the first has its place", || {
        (rig.pods().len() == 1).then_some(())
    });

    let (none, app) = ("singleton: false", &rig.app);
    let conflicts = format!("placement: {{ conflicts: [\"{app}-fir*\"] }}");
    let node = format!("({app})");
    let cases = [
        ("labels", &*nowhere, none, "", "1 does not match `role=db`"),
        (
            "cpu",
            &spec,
            none,
            "resources: { cpu: \"500\" }",
            "1 has too little cpu left for 500",
        ),
        (
            "memory",
            &spec,
            none,
            "resources: { memory: 900Gi }",
            "1 has too little memory left for 900Gi",
        ),
        (
            "port",
            &spec,
            &*fixed,
            "",
            &*format!("port {port} is taken {node}"),
        ),
        (
            "beside",
            &spec,
            "placement: { with: [\"db-*\"] }",
            "",
            &*format!("1 does not run `db-*` {node}"),
        ),
        (
            "conflict",
            &spec,
            &*conflicts,
            "",
            &*format!("1 runs {app}-first, which conflicts {node}"),
        ),
        (
            "many",
            &two,
            none,
            "",
            &*format!("1 runs as many of these pods as maxPerNode allows {node}"),
        ),
    ];
    for (name, spec, pod, program, why) in cases {
        apply(name, spec, pod, program);
        let told = format!("stalled: no place for 1 pod: of 1 node {why}");
        let told = told.replace("node port", "node on 1 port");
        says(
            &rig,
            &format!("rc/{name}"),
            &[&told, "1 pod without a place"],
        );
    }
}
