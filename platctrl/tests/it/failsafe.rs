//! Freezing as an operator does it.

use crate::rig::{Rig, eventually, is_alive, kill};

#[test]
fn frozen_pods_run_on_and_nothing_else_changes_until_it_is_thawed() {
    let rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);
    assert_eq!(
        rig.cli(&["freeze", "--reason", "an incident"]).ok(),
        "frozen\n"
    );
    assert_eq!(rig.cli(&["freeze"]).ok(), "already frozen\n");
    let told = rig.cli(&["get", "pods"]);
    assert!(
        told.err.contains("frozen by") && told.err.contains("an incident"),
        "{told:#?}"
    );
    let listed = rig.cli(&["failsafe", "list"]).ok();
    assert!(listed.contains("an incident"), "{listed}");
    rig.cli(&["delete", "rc/hello", "--cascade"]).ok();
    rig.cli(&["wait", "rc/hello", "--for", "delete", "--timeout", "2s"])
        .fails(8, &["frozen by", "an incident", "platctrl thaw"]);
    assert!(is_alive(pod.pid));
    // What crashes is started again all the same.
    kill(pod.pid, 9);
    eventually("it answers again", || pod.answer());
    assert_eq!(rig.cli(&["thaw"]).ok(), "thawed\n");
    rig.cli(&["wait", "rc/hello", "--for", "delete", "--timeout", "60s"])
        .ok();
    eventually("its pods are gone", || rig.pods().is_empty().then_some(()));
    let events = rig.cli(&["events"]).ok();
    assert!(
        events.contains("Frozen") && events.contains("Thawed"),
        "{events}"
    );
}

#[test]
fn with_nothing_held_there_is_nothing_to_reset() {
    let rig = Rig::running();
    let listed = rig.cli(&["failsafe", "list"]);
    assert!(listed.err.contains("nothing is held"), "{listed:#?}");
    assert_eq!(listed.ok(), "");
    let json = rig.json(&["failsafe", "list"]);
    assert_eq!(json["frozen"], false);
    rig.cli(&["failsafe", "reset", "--all"]).ok();
    rig.cli(&["failsafe", "reset", "vanished-pods"])
        .fails(5, &["there is no hold `vanished-pods`"]);
    rig.cli(&["failsafe", "reset"]).fails(2, &[]);
    rig.cli(&["failsafe", "adopt", "pods/nobody"])
        .fails(5, &["there is no pods `nobody` whose intent is missing"]);
    rig.cli(&["--expect-changes", "0", "get", "pods"])
        .fails(2, &[]);
}
