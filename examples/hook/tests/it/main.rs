//! The example as an agent calls it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::process::{Command, Output};

fn call(event: &str, config: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("manifest.yaml");
    let text = format!("kind: Pod\nmetadata: {{name: hello}}\nspec:\n  config: {config}\n");
    std::fs::write(&manifest, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_greet-hook"));
    command.env_clear();
    for (name, value) in [
        ("HOOK", "greet-hook"),
        ("HOOK_EVENT", event),
        ("HOOKED_NODE", "web1"),
        ("HOOKED_SYSTEM_POD_ROOT", "/pods"),
        ("HOOKED_POD_ID", "hello"),
        ("HOOKED_POD_NAMESPACE", "default"),
        ("HOOKED_POD_NAME", "hello"),
        ("HOOKED_POD_UNIQUE_KEY", "u1"),
        ("HOOKED_POD_HOME", "/pods/default.hello"),
        ("HOOKED_CONFIG_PATH", "/c"),
        ("HOOKED_ENV_PATH", "/e"),
    ] {
        command.env(name, value);
    }
    command.env("HOOKED_POD_MANIFEST", &manifest);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_pod_that_somebody_owns_may_come_and_another_one_may_not() {
    let owned = call("before_install", "{owner: team-a}");
    assert!(owned.status.success());
    assert_eq!(text(&owned.stdout), "hello of team-a may come to web1\n");
    let nobodys = call("before_install", "{}");
    assert!(!nobodys.status.success());
    assert!(text(&nobodys.stderr).contains("config.owner"));
}

#[test]
fn other_events_are_none_of_its_business_and_unknown_ones_are_named() {
    let after = call("after_launch", "{}");
    assert_eq!(text(&after.stdout), "hello runs on web1\n");
    let quiet = call("before_uninstall", "{}");
    assert!(quiet.status.success() && quiet.stdout.is_empty());
    let unknown = call("after_lunch", "{}");
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("after_lunch"));
}

#[test]
fn without_an_agent_it_says_so() {
    let alone = Command::new(env!("CARGO_BIN_EXE_greet-hook"))
        .env_clear()
        .output()
        .unwrap();
    assert!(!alone.status.success() && text(&alone.stderr).contains("HOOK is not set"));
}
