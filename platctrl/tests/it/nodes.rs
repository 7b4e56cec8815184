//! What people say about machines that are there: cordon, drain, retire.

use crate::rig::{Rig, eventually};

#[test]
fn a_node_is_cordoned_drained_as_far_as_its_pods_can_go_and_not_retired_while_it_lives() {
    let rig = Rig::running();
    rig.quickstart(2);
    let node = rig.app.as_str();
    let dry = rig.cli(&["node", "drain", node, "--dry-run"]).ok();
    assert!(
        dry.contains("rc/hello is Static") && dry.contains("0 of 2 pods would be moved"),
        "{dry}"
    );
    let spec = || rig.json(&["get", &format!("node/{node}")])["spec"].clone();
    assert!(
        spec()["unschedulable"].is_null(),
        "a dry run changes nothing"
    );

    rig.cli(&["node", "cordon", node]).ok();
    rig.cli(&["scale", "rc/hello", "--replicas", "3"]).ok();
    eventually("the third has no place", || {
        let told = rig.cli(&["describe", "rc/hello"]).ok();
        told.contains("no place for 1 pod").then_some(())
    });
    let drained = rig.cli(&["node", "drain", node]);
    assert_eq!(drained.code, Some(1), "{drained:#?}");
    assert!(drained.err.contains("2 pods are left"), "{drained:#?}");
    eventually("it says that it is drained", || {
        let told = rig.cli(&["describe", &format!("node/{node}")]).ok();
        told.contains("its pods are being moved away").then_some(())
    });
    rig.cli(&["node", "uncordon", node]).ok();
    assert!(spec()["drain"].is_null() && spec()["unschedulable"].is_null());
    rig.ready(3);
    eventually("its agent is heard of", || {
        let told = rig.cli(&["describe", &format!("node/{node}")]).ok();
        told.contains("its agent is heard of").then_some(())
    });
    rig.cli(&["node", "retire", node])
        .fails(6, &["is heard of", "--force"]);
    rig.cli(&["node", "cordon", "nowhere"])
        .fails(5, &["nowhere"]);
}

#[test]
fn a_drain_deletes_what_nothing_keeps_when_it_is_told_to_and_leaves_daemons() {
    let rig = Rig::running();
    rig.quickstart_artifact();
    let node = rig.app.as_str();
    let template = rig.manifest(1, |text| text);
    let text = std::fs::read_to_string(&template).unwrap();
    let spec = text.split("    spec:\n").nth(1).unwrap();
    let outdent = |by: usize| -> String {
        let lines = spec.lines().map(|line| line.get(by..).unwrap_or_default());
        lines.map(|line| format!("{line}\n")).collect()
    };
    rig.write(
        "bare.yaml",
        format!(
            "apiVersion: platctrl.dev/v1\nkind: Pod\nmetadata: {{ name: bare }}\nspec:\n  nodeName: {node}\n{}",
            outdent(4)
        ),
    );
    rig.write(
        "daemon.yaml",
        format!(
            "apiVersion: platctrl.dev/v1\nkind: DaemonSet\nmetadata: {{ name: everywhere }}\nspec:\n  nodeSelector: \"*\"\n  template:\n    spec:\n{spec}"
        ),
    );
    rig.cli(&["apply", "-f", "bare.yaml"]).ok();
    rig.cli(&["apply", "-f", "daemon.yaml"]).ok();
    rig.ready(2);
    let dry = rig.cli(&["node", "drain", node, "--dry-run"]).ok();
    for part in [
        "pod/bare: stays: nothing keeps it that could make another; --delete-bare",
        "ds/everywhere keeps one on each of its nodes",
        "0 of 2 pods would be moved",
    ] {
        assert!(dry.contains(part), "{part:?} is not in {dry}");
    }
    let stays = rig.cli(&["node", "drain", node]);
    assert_eq!(stays.code, Some(1), "{stays:#?}");
    let drained = rig.cli(&["node", "drain", node, "--delete-bare"]);
    assert!(
        drained.err.contains("1 pods of daemon sets stay"),
        "{drained:#?}"
    );
    let out = drained.ok();
    assert!(
        out.contains("pod/bare deleted\n") && out.ends_with("drained\n"),
        "{out}"
    );
    eventually("it is told on the node, too", || {
        let told = rig.cli(&["describe", &format!("node/{node}")]).ok();
        told.contains("1 of daemon sets stay").then_some(())
    });
    assert_eq!(rig.ready(1).len(), 1);
}
