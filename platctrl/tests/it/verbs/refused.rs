//! Wrong kinds and names, nobody there, nobody who may.

use super::{Does, Ground, Objects, ROWS, is_told, with_a_server, with_objects};
use crate::rig::{Said, eventually};

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// An editor that changes something.
const EDITOR: &str = "sed -i s/maxPerNode:.*/maxPerNode:\\ 7/";

impl Ground {
    fn run(&self, arguments: &[String]) -> Said {
        let mut command = self.rig().command(&words(arguments));
        command
            .env("EDITOR", EDITOR)
            .env("TMPDIR", self.rig().path(""))
            .output()
            .unwrap()
            .into()
    }

    /// The same over the network, as whoever has the token.
    fn run_as(&self, token: &str, arguments: &[String]) -> Said {
        let mut command = self.server.elsewhere(&words(arguments));
        command
            .env("EDITOR", EDITOR)
            .env("TMPDIR", self.rig().path(""))
            .env("PLATCTRL_TOKEN", token);
        // Whoever shows so many bad tokens as this test has to wait for the next answer.
        eventually("an answer to who may ask again", || {
            let said = Said::from(command.output().unwrap());
            (!said.err.contains("tries too often")).then_some(said)
        })
    }
}

#[test]
fn a_wrong_kind_a_wrong_name_and_an_ambiguous_beginning_change_nothing_and_are_told() {
    let ground = Ground::new();
    let before = ground.everything();
    let objects = |controller: &str, pod: &str, node: &str| Objects {
        controller: controller.into(),
        pod: pod.into(),
        node: node.into(),
    };
    for row in with_objects() {
        let wrong = objects("podz/hello", "podz/hello", "podz/hello");
        let said = ground.run(&ground.arguments(row, &wrong));
        is_told(row, &said);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{row:?}: {said:#?}"
        );

        let wrong = objects("rc/nope", "pod/nope", "nope");
        let said = ground.run(&ground.arguments(row, &wrong));
        is_told(row, &said);
        let code = if row.any_name { 0 } else { 5 };
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(code), ""),
            "{row:?}: {said:#?}"
        );

        if row.any_name || row.arguments.contains("NODE") {
            continue;
        }
        let wrong = objects("rc/hel", "pod/hel", "-");
        let said = ground.run(&ground.arguments(row, &wrong));
        is_told(row, &said);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{row:?}: {said:#?}"
        );
        let lists = ["is the beginning of", "begins several names"];
        assert!(
            lists.iter().any(|part| said.err.contains(part)),
            "{row:?}: {said:#?}"
        );
    }
    assert_eq!(ground.everything(), before);
}

#[test]
fn where_nobody_answers_every_verb_that_asks_says_so() {
    let ground = Ground::new();
    let objects = ground.objects();
    let nobody = ["--server".to_owned(), "unix:/nowhere/at/all".to_owned()];
    for row in with_a_server() {
        let arguments = [&nobody[..], &ground.arguments(row, &objects)].concat();
        let said = ground.run(&arguments);
        is_told(row, &said);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(3), ""),
            "{row:?}: {said:#?}"
        );
    }
    // The others work.
    for row in ROWS.iter().filter(|row| row.does == Does::Alone) {
        if matches!(row.verb, "kubeconfig" | "version" | "doctor") {
            continue;
        }
        let arguments = [&nobody[..], &ground.arguments(row, &objects)].concat();
        let said = ground.run(&arguments);
        is_told(row, &said);
        let code = said.code.unwrap();
        assert!(row.well.contains(&code), "{row:?}: {said:#?}");
    }
    let version = ground.run(
        &["version".to_owned()]
            .into_iter()
            .chain(nobody)
            .collect::<Vec<_>>(),
    );
    assert_eq!(version.code, Some(3), "{version:#?}");
    assert!(version.out.starts_with("platctrl "), "{version:#?}");
    // Programs that stay say what they miss, too.
    let misses = |role: &str| {
        // An agent that has pods would look after them all the same.
        let fresh = ground.rig().path(&format!("fresh-{role}"));
        let store = ["--store", "etcd://127.0.0.1:1/x", "--data-dir"];
        let said = ground
            .rig()
            .cli(&[&[role][..], &store, &[fresh.to_str().unwrap()]].concat());
        said.fails(3, &["127.0.0.1:1", "hint:"]);
    };
    // Each tries for a while.
    std::thread::scope(|scope| {
        for role in ["server", "controllers", "agent"] {
            scope.spawn(|| misses(role));
        }
    });
    let second = ground.rig().cli(&["up"]);
    second.fails(1, &["runs on", "already", "hint:"]);
}

#[test]
fn whoever_is_not_let_in_changes_nothing_and_is_told() {
    let ground = Ground::new();
    let rig = ground.rig();
    let objects = ground.objects();
    let made = rig.cli(&[
        "token",
        "create",
        "late",
        "--role",
        "admin",
        "--lifetime",
        "1s",
    ]);
    let expired = made.ok().trim().to_owned();
    let viewer = ground.server.token("ann", "viewer");
    let nobody = ground.server.token("bob", "bound");
    let list = ["get", "rc", "-o", "name"].map(str::to_owned);
    eventually("the token's end", || {
        (ground.run_as(&expired, &list).code == Some(4)).then_some(())
    });
    // What follows is refused because of who asks, and for nothing else.
    ground.run_as(&viewer, &list).ok();
    let before = ground.everything();
    for row in with_a_server() {
        let arguments = ground.arguments(row, &objects);
        let said = ground.run_as(&expired, &arguments);
        is_told(row, &said);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(4), ""),
            "{row:?}: {said:#?}"
        );

        let said = ground.run_as(&nobody, &arguments);
        is_told(row, &said);
        // Which kinds there are, and what is held, is nobody's secret.
        let open = matches!(row.verb, "explain" | "failsafe list");
        let is_refused = said.code == Some(4) && said.out.is_empty();
        assert!(
            is_refused || (open && said.code == Some(0)),
            "{row:?}: {said:#?}"
        );

        if row.does == Does::Orders {
            let said = ground.run_as(&viewer, &arguments);
            is_told(row, &said);
            // What is wrong for other reasons may be found first.
            let is_refused =
                said.code == Some(4) || said.code == Some(row.well[0]) && row.well[0] != 0;
            assert!(is_refused, "{row:?}: {said:#?}");
            assert_eq!(said.out, "", "{row:?}: {said:#?}");
        }
    }
    assert_eq!(ground.everything(), before);
    assert!(!rig.path("saved").exists(), "a backup that was refused");
}

#[test]
fn what_somebody_else_changed_is_not_written_over() {
    let ground = Ground::new();
    let rig = ground.rig();
    rig.cli(&["label", "rc/help", "team=a"]).ok();
    rig.cli(&["label", "rc/help", "team=b"])
        .fails(6, &["team=a already", "--overwrite", "hint:"]);
    rig.cli(&["annotate", "rc/help", "note=a"]).ok();
    rig.cli(&["annotate", "rc/help", "note=b"])
        .fails(6, &["note=a already", "hint:"]);
    // The revision that a manifest was made of is over.
    let stale = rig.cli(&["get", "rc/help", "-o", "yaml"]).ok();
    rig.cli(&["label", "rc/help", "team=b", "--overwrite"]).ok();
    rig.write(
        "stale.yaml",
        stale.replace("maxPerNode: 200", "maxPerNode: 3"),
    );
    for verb in ["apply", "diff"] {
        let said = rig.cli(&[verb, "-f", "stale.yaml"]);
        assert!(
            said.code != Some(0) && said.err.contains("hint:"),
            "{verb}: {said:#?}"
        );
    }
    // Somebody else is quicker than the editor.
    let editor = format!(
        "{EDITOR} \"$1\" && {} --data-dir {} label rc/help team=c --overwrite #",
        env!("CARGO_BIN_EXE_platctrl"),
        rig.data_dir().display()
    );
    let mut command = rig.command(&["edit", "rc/help"]);
    command.env("EDITOR", editor).env("TMPDIR", rig.path(""));
    let said = Said::from(command.output().unwrap());
    assert_eq!(said.code, Some(6), "{said:#?}");
    assert!(
        said.err.contains("hint:") && said.err.contains("platctrl-edit-"),
        "{said:#?}"
    );
    let help = rig.json(&["get", "rc/help"]);
    assert_eq!(
        (
            &help["spec"]["maxPerNode"],
            &help["metadata"]["labels"]["team"]
        ),
        (&200.into(), &"c".into())
    );
    for (arguments, part) in [
        (
            &["rollout", "start", "rc/hello", "-f", "new.yaml"][..],
            "is under way",
        ),
        (&["rollout", "promote", "rc/hello"], "no step left"),
        (&["token", "create", "ann", "--role", "viewer"], "already"),
        (&["ca", "init"], "has an authority already"),
        (&["node", "retire", &rig.app], "is heard of"),
    ] {
        if arguments[0] == "token" {
            ground.server.token("ann", "viewer");
        }
        rig.cli(arguments).fails(6, &[part, "hint:"]);
    }
    let own = format!("embedded:{}", rig.path("own").display());
    rig.cli(&["store", "init", &own]).ok();
    rig.cli(&["store", "init", &own])
        .fails(6, &["not empty", "hint:"]);
}
