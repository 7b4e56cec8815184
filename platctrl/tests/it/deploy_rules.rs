//! A node's own rules of what may run on it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::rig::{Rig, eventually};

fn allow(file: &Path, rules: &str) {
    fs::write(file, format!("rules: [{rules}]\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn what_no_rule_of_the_node_allows_is_not_run_whatever_the_store_says() {
    let mut rig = Rig::new();
    let rules = rig.path("rules.yaml");
    allow(&rules, "{namespaces: [default], apps: [bank]}");
    rig.up_with(&["--deploy-rules", rules.to_str().unwrap()]);
    rig.quickstart_artifact().manifest(1, |text| text);
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let said = eventually("the pod is refused", || {
        let pod = rig.pods().pop()?;
        let status = &pod["status"];
        let refused = status["reason"] == "NotAuthorised";
        refused.then(|| status["message"].as_str().unwrap().to_owned())
    });
    assert!(said.contains(&format!("the app `{}`", rig.app)), "{said}");
    allow(
        &rules,
        &format!("{{namespaces: [default], apps: [{}]}}", rig.app),
    );
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the refused pod's end", || {
        rig.pods().is_empty().then_some(())
    });
    rig.cli(&["scale", "rc/hello", "--replicas", "1"]).ok();
    rig.ready(1).remove(0).answer().unwrap();
}
