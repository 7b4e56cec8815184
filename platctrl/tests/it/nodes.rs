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
