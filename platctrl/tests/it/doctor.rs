//! `doctor`: a sound machine, and troubles that it names with the way out.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::rig::{Rig, eventually};

fn finding<'a>(all: &'a Value, about: &str) -> &'a Value {
    let findings = all["findings"].as_array().unwrap();
    let found = findings.iter().find(|it| it["about"] == about);
    found.unwrap_or_else(|| panic!("nothing about {about} in {all:#}"))
}

#[test]
fn a_machine_whose_server_runs_is_found_in_order() {
    let rig = Rig::running();
    let all = eventually("a ready node", || {
        let said = rig.cli(&["doctor", "-o", "json"]);
        let all: Value = serde_json::from_str(&said.out).unwrap();
        (finding(&all, "nodes")["verdict"] == "good").then_some(all)
    });
    for about in [
        "user",
        "data directory",
        "disk",
        "control groups",
        "server",
        "nodes",
        "failsafes",
    ] {
        assert_eq!(finding(&all, about)["verdict"], "good", "{all:#}");
    }
    let table = rig.cli(&["doctor"]).ok();
    assert!(table.contains("all 1 are ready"), "{table}");

    rig.cli(&["freeze", "--reason", "a look"]).ok();
    let frozen = rig.json(&["doctor"]);
    let failsafes = finding(&frozen, "failsafes");
    assert_eq!(failsafes["verdict"], "warning");
    assert!(
        failsafes["hint"]
            .as_str()
            .unwrap()
            .contains("platctrl thaw")
    );
    rig.cli(&["thaw"]).ok();
}

#[test]
fn what_will_not_work_is_named_with_the_way_out() {
    let rig = Rig::new();
    let closed = rig.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let place = closed.join("data");
    let said = rig.cli(&["doctor", "--data-dir", &place.display().to_string()]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    let chmod = format!("chmod o+x {}", closed.display());
    assert!(
        said.out.contains("BAD") && said.out.contains(&chmod),
        "{said:#?}"
    );
    assert!(
        said.out.contains("platctrl up"),
        "no server is a warning: {said:#?}"
    );
    assert!(!place.exists(), "it changes nothing");
}

#[test]
fn a_store_that_is_not_ready_is_told_from_one_that_is() {
    let rig = Rig::new();
    let store = format!("embedded:{}", rig.path("store").display());
    rig.cli(&["store", "init", &store]).ok();
    let all = rig.json(&["doctor", "--store", &store]);
    assert_eq!(finding(&all, "store")["verdict"], "good", "{all:#}");
    assert_eq!(finding(&all, "store, speed")["verdict"], "good", "{all:#}");
    let nowhere = format!("embedded:{}", rig.path("nowhere").display());
    let said = rig.cli(&["doctor", "--store", &nowhere, "-o", "json"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    let all: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(finding(&all, "store")["verdict"], "bad", "{all:#}");
    rig.cli(&["doctor", "--store", "ftp://x"])
        .fails(2, &["ftp"]);
}
