//! Deletes that are taken back while pods run, with real agents: nothing is restarted.

use crate::rig::{Rig, eventually, is_alive};

fn ends(rig: &Rig) -> usize {
    let pods = rig.pods();
    let ending = |pod: &&serde_json::Value| pod["metadata"]["deletionTimestamp"].is_string();
    pods.iter().filter(ending).count()
}

#[test]
fn a_cascading_delete_is_taken_back_within_its_grace_and_no_pod_notices() {
    let rig = Rig::running();
    let mut before = rig.quickstart(2);
    rig.cli(&["delete", "rc/hello", "--cascade", "--grace", "3600"])
        .ok();
    eventually("it says how it is taken back", || {
        let told = rig.cli(&["describe", "rc/hello"]).ok();
        told.contains("platctrl undelete replicationcontroller/hello")
            .then_some(())
    });
    let dry = rig.cli(&["undelete", "rc/hello", "--dry-run"]).ok();
    assert!(
        dry.contains("undeleted (dry run)") && dry.matches(": runs on").count() == 2,
        "{dry}"
    );
    let there = rig.json(&["get", "rc/hello"]);
    assert!(
        there["metadata"]["deletionTimestamp"].is_string(),
        "a dry run changes nothing"
    );

    let said = rig.cli(&["undelete", "rc/hello"]).ok();
    assert!(
        said.ends_with("replicationcontroller/hello undeleted\n"),
        "{said}"
    );
    let mut after = rig.ready(2);
    before.sort();
    after.sort();
    assert_eq!(after, before, "the same pods, processes and ports");
    rig.cli(&["undelete", "rc/hello"])
        .fails(6, &["is not being deleted"]);
    // It works as before.
    rig.cli(&["scale", "rc/hello", "--replicas", "3"]).ok();
    rig.ready(3);
    rig.cli(&["undelete", "rc/none"])
        .fails(5, &["replicationcontroller/none", "get pods --orphans"]);
}

#[test]
fn pods_that_still_run_when_a_delete_is_taken_back_are_kept() {
    let rig = Rig::running();
    rig.quickstart_artifact().manifest(2, |text| {
        text.replace("      ports:", "      drainDelay: 1h\n      ports:")
    });
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let mut before = rig.ready(2);
    rig.cli(&["delete", "rc/hello", "--cascade"]).ok();
    eventually("both are to end, and run", || {
        (ends(&rig) == 2).then_some(())
    });
    eventually("their agent knows", || {
        let told = rig.cli(&["get", "pods"]).ok();
        (told.matches("Stopping").count() == 2).then_some(())
    });
    assert!(before.iter().all(|pod| is_alive(pod.pid)));
    let said = rig.cli(&["undelete", "rc/hello"]).ok();
    assert_eq!(said.matches(": runs on").count(), 2, "{said}");
    let mut after = rig.ready(2);
    before.sort();
    after.sort();
    assert_eq!(after, before);
    assert_eq!(ends(&rig), 0);
}

#[test]
fn a_pod_is_deleted_by_a_person_as_far_as_its_workload_can_spare_it() {
    let rig = Rig::running();
    let pods = rig.quickstart(2);
    rig.write(
        "budget.yaml",
        "apiVersion: platctrl.dev/v1\nkind: DisruptionBudget\nmetadata: { name: all }\nspec: { podSelector: \"*\", minimumHealthy: 100% }\n",
    );
    rig.cli(&["apply", "-f", "budget.yaml"]).ok();
    let first = format!("po/{}", pods[0].name);
    eventually("nobody may go", || {
        let said = rig.cli(&["delete", &first]);
        (said.code == Some(6)
            && said.err.contains("2 have to stay")
            && said.err.contains("--force"))
        .then_some(())
    });
    assert!(pods.iter().all(|pod| is_alive(pod.pid)));
    rig.cli(&["delete", "db/all"]).ok();
    rig.cli(&["delete", &first]).ok();
    let now = rig.ready(2);
    assert!(now.iter().any(|pod| pod.pid == pods[1].pid));
    assert!(now.iter().all(|pod| pod.pid != pods[0].pid));
}

#[test]
fn pods_that_lost_their_owner_are_listed_until_a_controller_of_that_name_takes_them_over() {
    let rig = Rig::running();
    let mut before = rig.quickstart(2);
    let orphans = || {
        let listed = rig.cli(&["get", "pods", "--orphans", "-o", "name"]).ok();
        listed.lines().count()
    };
    assert_eq!(orphans(), 0);
    rig.cli(&["delete", "rc/hello"]).ok();
    eventually("both are listed", || (orphans() == 2).then_some(()));
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    eventually("both have an owner again", || {
        (orphans() == 0).then_some(())
    });
    let mut after = rig.ready(2);
    before.sort();
    after.sort();
    assert_eq!(after, before, "the same pods, processes and ports");
}
