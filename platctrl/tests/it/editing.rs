//! `diff`, `edit`, `annotate`, `explain`, and the outputs of `get`: against a running server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::rig::{Rig, Said};

/// A server with two controllers that want no pods.
fn served() -> Rig {
    let mut rig = Rig::new();
    rig.quickstart_artifact().manifest(0, |text| text);
    rig.up();
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let other = fs::read_to_string(rig.path("hello.yaml")).unwrap();
    let other = other
        .replace("name: hello", "name: another")
        .replace("app: hello", "app: another");
    rig.write("another.yaml", other);
    rig.cli(&["apply", "-f", "another.yaml"]).ok();
    rig
}

/// Runs `edit` with a script for an editor.
fn edit(rig: &Rig, script: &str) -> Said {
    let editor = rig.write("editor", format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = rig.command(&["edit", "rc/hello"]);
    command
        .env("PLATCTRL_EDITOR", &editor)
        .env("TMPDIR", rig.path(""));
    command.output().unwrap().into()
}

fn drafts(rig: &Rig) -> Vec<String> {
    let entries = fs::read_dir(rig.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("platctrl-edit-"))
        .collect()
}

fn max_per_node(rig: &Rig) -> serde_json::Value {
    rig.json(&["get", "rc/hello"])["spec"]["maxPerNode"].clone()
}

#[test]
fn diff_shows_what_apply_would_change_and_changes_nothing() {
    let rig = served();
    let said = rig.cli(&["diff", "-f", "hello.yaml"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""), "{said:#?}");

    rig.manifest(0, |text| text.replace("maxPerNode: 200", "maxPerNode: 7"));
    let said = rig.cli(&["diff", "-f", "hello.yaml", "-f", "another.yaml"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert_eq!(said.err, "");
    assert!(
        said.out
            .starts_with("--- replicationcontroller/hello as it is\n"),
        "{said:#?}"
    );
    assert!(
        said.out
            .contains("\n-  maxPerNode: 200\n+  maxPerNode: 7\n"),
        "{said:#?}"
    );
    assert!(!said.out.contains("another"), "{said:#?}");
    assert_eq!(max_per_node(&rig), 200);

    rig.manifest(0, |text| text.replace("name: hello\n", "name: newcomer\n"));
    let said = rig.cli(&["diff", "-f", "hello.yaml"]);
    assert!(said.out.contains("\n+  name: newcomer\n"), "{said:#?}");
    rig.cli(&["get", "rc/newcomer"]).fails(5, &["newcomer"]);

    rig.manifest(0, |text| text.replace("maxPerNode: 200", "maxPerNod: 7"));
    rig.cli(&["diff", "-f", "hello.yaml"])
        .fails(2, &["hello.yaml:8", "spec.maxPerNod"]);
}

#[test]
fn an_object_is_changed_in_an_editor() {
    let rig = served();
    let said = edit(&rig, r#"sed -i 's/maxPerNode: 200/maxPerNode: 9/' "$1""#);
    assert_eq!(said.ok(), "replicationcontroller/hello edited\n");
    assert_eq!(max_per_node(&rig), 9);

    // Without a change there is none, and an empty file is no order to end the object.
    for script in ["true", r#": > "$1""#] {
        let said = edit(&rig, script);
        assert_eq!(
            (said.code, said.err.as_str()),
            (Some(0), "nothing was changed\n"),
            "{said:#?}"
        );
    }
    // An editor that failed changed nothing.
    let said = edit(
        &rig,
        r#"sed -i 's/maxPerNode: 9/maxPerNode: 10/' "$1"; exit 3"#,
    );
    said.fails(1, &["exit status: 3", "nothing was changed"]);
    assert_eq!(max_per_node(&rig), 9);
    assert_eq!(drafts(&rig), Vec::<String>::new());
}

#[test]
fn an_edit_that_is_wrong_is_shown_again_with_the_reason_and_kept_when_given_up() {
    let rig = served();
    // The first time it is wrong, the second time the reason is there and it is corrected.
    let script = r##"
if grep -q '^# This is not right:' "$1"; then
  grep -q 'spec.maxPerNode' "$1" || exit 9
  sed -i 's/maxPerNode: lots/maxPerNode: 11/' "$1"
else
  sed -i 's/maxPerNode: 200/maxPerNode: lots/' "$1"
fi"##;
    edit(&rig, script).ok();
    assert_eq!(max_per_node(&rig), 11);

    let said = edit(&rig, r#"sed -i 's/maxPerNode: 11/maxPerNode: lots/' "$1""#);
    said.fails(1, &["still not right", "spec.maxPerNode", "kept in"]);
    let kept = drafts(&rig);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let path = rig.path(&kept[0]);
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .contains("maxPerNode: lots")
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    fs::remove_file(&path).unwrap();

    // Somebody else was faster: theirs stays, and so does the text.
    let program = env!("CARGO_BIN_EXE_platctrl");
    let script = format!(
        r#"{program} label rc/hello faster=yes >/dev/null && sed -i 's/maxPerNode: 11/maxPerNode: 12/' "$1""#
    );
    edit(&rig, &script).fails(6, &["kept in"]);
    assert_eq!(max_per_node(&rig), 11);
}

#[test]
fn without_a_terminal_and_an_editor_edit_says_so() {
    let rig = served();
    let mut command = rig.command(&["edit", "rc/hello"]);
    command.env_remove("EDITOR").env_remove("VISUAL");
    let said: Said = command.output().unwrap().into();
    said.fails(2, &["no terminal", "EDITOR"]);
}

#[test]
fn annotations_are_set_changed_and_removed() {
    let rig = served();
    let of = |rig: &Rig| rig.json(&["get", "rc/hello"])["metadata"]["annotations"].clone();
    let said = rig.cli(&["annotate", "rc/hello", "team=web tier", "note=a"]);
    assert_eq!(said.ok(), "replicationcontroller/hello annotated\n");
    assert_eq!(of(&rig)["team"], "web tier");
    rig.cli(&["annotate", "rc/hello", "team=db"])
        .fails(6, &["annotation team=web tier", "--overwrite"]);
    rig.cli(&["annotate", "rc", "hello", "team=db", "note-", "--overwrite"])
        .ok();
    assert_eq!(of(&rig)["team"], "db");
    assert!(of(&rig)["note"].is_null());
    let said = rig.cli(&["annotate", "rc/hello", "team=db"]);
    assert_eq!(said.ok(), "replicationcontroller/hello unchanged\n");
}

#[test]
fn fields_are_explained_from_the_schemas() {
    let rig = served();
    let text = rig.cli(&["explain", "rc.spec.replicas"]).ok();
    assert!(text.contains("FIELD:    spec.replicas <integer>"), "{text}");
    let text = rig.cli(&["explain", "po", "--recursive"]).ok();
    assert!(text.contains("launchables <map of object>"), "{text}");
    rig.cli(&["explain", "rc.spec.replica"])
        .fails(5, &["`replica`", "did you mean `spec.replicas`?"]);
    rig.cli(&["explain", "zebra"])
        .fails(2, &["no kind `zebra`"]);
}

#[test]
fn get_fills_templates_sorts_and_leaves_headings_out() {
    let rig = served();
    rig.cli(&["scale", "rc/another", "--replicas", "0"]).ok();
    rig.cli(&["label", "rc/another", "rank=b"]).ok();
    rig.cli(&["label", "rc/hello", "rank=a"]).ok();
    let names = |args: &[&str]| {
        let args: Vec<&str> = ["get", "rc"].iter().chain(args).copied().collect();
        rig.cli(&args).ok()
    };
    let template = "jsonpath={range .items[*]}{.metadata.name} {.spec.maxPerNode}{\"\\n\"}{end}";
    assert_eq!(names(&["-o", template]), "another 200\nhello 200\n");
    assert_eq!(
        names(&[
            "--sort-by",
            ".metadata.labels.rank",
            "-o",
            "jsonpath={..metadata.name}"
        ]),
        "hello another"
    );
    let table = names(&["--no-headers", "--sort-by={.metadata.name}"]);
    assert!(
        table.starts_with("another ") && table.lines().count() == 2,
        "{table}"
    );
    let one = rig.cli(&[
        "get",
        "rc/hello",
        "-o",
        "jsonpath={.metadata.labels['rank']}",
    ]);
    assert_eq!(one.ok(), "a");
    rig.cli(&["get", "rc", "-o", "jsonpath={.a["])
        .fails(2, &["] is missing"]);
    rig.cli(&["get", "rc", "-o", "xml"])
        .fails(2, &["jsonpath=TEMPLATE"]);
}
