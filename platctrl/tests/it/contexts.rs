//! Several fleets: contexts, and where each setting comes from.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::rig::{Rig, Said};

/// A command of somebody who says nothing but what is in the file of contexts.
fn as_configured(rig: &Rig, args: &[&str]) -> Said {
    let mut command = rig.command(args);
    command.env_remove("PLATCTRL_DATA_DIR");
    command.output().unwrap().into()
}

#[test]
fn a_context_says_which_server_and_which_namespace() {
    let mut rig = Rig::new();
    rig.quickstart_artifact().manifest(0, |text| text);
    rig.up();
    let server = format!("unix:{}", rig.data_dir().join("platctrl.sock").display());

    let said = as_configured(
        &rig,
        &["config", "set", "here", "--server", &server, "-n", "web"],
    );
    assert_eq!(said.ok(), "context/here created\n");
    as_configured(
        &rig,
        &["config", "set", "gone", "--server", "unix:/nowhere.sock"],
    )
    .ok();
    let file = rig.path("config/platctrl/config.yaml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0);

    // The first one made is used; what names no namespace is in its.
    let node = as_configured(&rig, &["get", "nodes", "-o", "name"]).ok();
    assert_eq!(node, format!("node/{}\n", rig.app));
    as_configured(&rig, &["apply", "-f", "hello.yaml"]).ok();
    assert_eq!(
        as_configured(&rig, &["get", "rc", "-o", "name"]).ok(),
        "replicationcontroller/hello\n"
    );
    assert_eq!(
        as_configured(&rig, &["get", "rc", "-n", "default", "-o", "name"]).ok(),
        ""
    );
    let namespace = "jsonpath={.items[0].metadata.namespace}";
    assert_eq!(
        as_configured(&rig, &["get", "rc", "-A", "-o", namespace]).ok(),
        "web"
    );

    // A flag and the environment win over the file.
    as_configured(&rig, &["get", "nodes", "--context", "gone"]).fails(3, &["/nowhere.sock"]);
    as_configured(&rig, &["get", "nodes", "--context", "her"])
        .fails(5, &["`her`", "did you mean `here`?"]);
    as_configured(&rig, &["config", "use", "gone"]).ok();
    as_configured(&rig, &["get", "nodes"]).fails(3, &["/nowhere.sock"]);
    as_configured(&rig, &["get", "nodes", "--server", &server]).ok();
    rig.cli(&["get", "nodes"]).ok();

    let contexts = as_configured(&rig, &["config", "contexts"]).ok();
    assert!(
        contexts.contains("* ") && contexts.contains("unix:/nowhere.sock"),
        "{contexts}"
    );
    let shown = as_configured(&rig, &["config", "show", "--context", "here"]).ok();
    for part in ["--context", "context here in", &server, "web"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let shown = rig.cli(&["config", "show"]).ok();
    assert!(shown.contains("PLATCTRL_DATA_DIR"), "{shown}");

    as_configured(&rig, &["config", "delete", "gone"]).ok();
    as_configured(&rig, &["config", "use", "gone"]).fails(5, &["`gone`"]);
}

#[test]
fn a_token_is_shown_to_nobody_but_its_own_server() {
    let rig = Rig::new();
    rig.write("token", "platctrl-secret-of-prod");
    as_configured(
        &rig,
        &[
            "config",
            "set",
            "prod",
            "--server",
            "https://a.example:1",
            "--token-file",
            "token",
        ],
    )
    .ok();
    let shown = as_configured(&rig, &["config", "show"]).ok();
    assert!(!shown.contains("secret"), "{shown}");
    assert!(
        shown.contains(&rig.path("token").display().to_string()),
        "{shown}"
    );
    // Another server was named: nothing of the context is for it.
    let shown = as_configured(&rig, &["config", "show", "--server", "https://b.example:1"]).ok();
    assert!(
        !shown.contains(&rig.path("token").display().to_string()),
        "{shown}"
    );
    assert!(shown.contains("https://b.example:1"), "{shown}");
}

#[test]
fn a_broken_file_is_named_and_stops_no_one_who_does_not_need_it() {
    let rig = Rig::new();
    rig.write("config/platctrl/config.yaml", "contexts: {a: {sever: x}}");
    as_configured(&rig, &["get", "nodes"]).fails(2, &["config.yaml", "sever"]);
    as_configured(&rig, &["version"]).ok();
    as_configured(&rig, &["completion", "bash"]).ok();
}
