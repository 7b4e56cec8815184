//! Every verb of the command line, with everything that can be wrong around it. A verb that is in
//! no row of the table is a failure: so is one that is added and forgotten.

mod broken;
mod refused;
mod strange;
mod table;

use crate::network::Listening;
use crate::rig::{Rig, Said};
use table::{Does, ROWS, Row};

/// A server with what the rows of the table speak of.
struct Ground {
    server: Listening,
    pod: String,
}

impl Ground {
    fn new() -> Self {
        let server = Listening::new();
        let rig = &server.rig;
        let pod = rig.quickstart(2).remove(0).name;
        // Beginnings of names that are ambiguous.
        for name in ["hello-b", "help"] {
            rig.manifest(0, |text| {
                text.replacen("name: hello", &format!("name: {name}"), 1)
            });
            rig.cli(&["apply", "-f", "hello.yaml"]).ok();
        }
        let other = rig.manifest(0, |text| text.replacen("name: hello", "name: doomed", 1));
        rig.cli(&["apply", "-f", other.to_str().unwrap()]).ok();
        std::fs::rename(other, rig.path("doomed.yaml")).unwrap();
        // A new version, for `rollout start`, and a roll that waits for somebody.
        rig.manifest(2, |text| text.replace("greeting: hi", "greeting: servus"));
        std::fs::rename(rig.path("hello.yaml"), rig.path("new.yaml")).unwrap();
        rig.write(
            "roll.yaml",
            "apiVersion: platctrl.dev/v1\nkind: RollingUpdate\nmetadata: { name: waits }\nspec: { from: hello, to: hello-b, replicas: 2, minimumHealthy: 1, paused: true }\n",
        );
        rig.cli(&["apply", "-f", "roll.yaml"]).ok();
        rig.write("odd.yaml", "kind: [");
        rig.write("trusted.asc", "no key\n");
        rig.cli(&[
            "config",
            "set",
            "here",
            "--server",
            &format!("unix:{}", rig.data_dir().join("platctrl.sock").display()),
        ])
        .ok();
        Self { server, pod }
    }

    fn rig(&self) -> &Rig {
        &self.server.rig
    }

    /// A row's arguments, with what stands for objects replaced.
    fn arguments(&self, row: &Row, objects: &Objects) -> Vec<String> {
        let words = row.verb.split(' ').chain(row.arguments.split(' '));
        let words = words.filter(|word| !word.is_empty());
        words
            .map(|word| match word {
                "RC" => objects.controller.clone(),
                "POD" => objects.pod.clone(),
                "NODE" => objects.node.clone(),
                "DIR" => self.rig().path("").display().to_string(),
                word => word.replace("AREA", &self.rig().path("").display().to_string()),
            })
            .collect()
    }

    /// The objects that there are.
    fn objects(&self) -> Objects {
        Objects {
            controller: "rc/hello".into(),
            pod: format!("pod/{}", self.pod),
            node: self.rig().app.clone(),
        }
    }

    /// Every object there is, and which revision it has: what is not changed says the same.
    fn everything(&self) -> String {
        let mut all = String::new();
        for kind in [
            "replicationcontrollers",
            "rollingupdates",
            "disruptionbudgets",
            "roles",
            "rolebindings",
        ] {
            let path = "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.generation} {.metadata.uid} {.metadata.labels} {.spec}{\"\\n\"}{end}";
            all.push_str(&self.rig().cli(&["get", kind, "-A", "-o", path]).ok());
        }
        let node = "jsonpath={range .items[*]}{.metadata.name} {.spec}{end}";
        all.push_str(&self.rig().cli(&["get", "nodes", "-o", node]).ok());
        all.push_str(&self.rig().cli(&["failsafe", "list", "-o", "json"]).ok());
        all.push_str(&self.rig().cli(&["token", "list"]).ok());
        all
    }
}

/// What stands for the objects in a row.
#[derive(Clone)]
struct Objects {
    controller: String,
    pod: String,
    node: String,
}

/// Nothing that a person is told may be a crash, or a riddle.
#[track_caller]
fn is_told(row: &Row, said: &Said) {
    let what = || format!("{}: {said:#?}", row.verb);
    assert!(said.code.is_some(), "killed: {}", what());
    assert!(
        !said.err.contains("panicked") && !said.err.contains("RUST_BACKTRACE"),
        "{}",
        what()
    );
    // What is no text is for no terminal.
    let out = if row.verb == "debug bundle" {
        ""
    } else {
        said.out.as_str()
    };
    for text in [out, said.err.as_str()] {
        assert!(
            !text.contains('\u{1b}'),
            "colours without a terminal: {}",
            what()
        );
    }
    if !matches!(said.code, Some(0)) && !row.tells_by_its_code() {
        assert!(
            said.err.contains("hint:")
                || said.err.contains("tip:")
                || said.err.contains("try '--help'"),
            "no way out: {}",
            what()
        );
    }
}

fn with_objects() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(|row| row.names_an_object())
}

fn with_a_server() -> impl Iterator<Item = &'static Row> {
    ROWS.iter()
        .filter(|row| matches!(row.does, Does::Asks | Does::Orders))
}

#[test]
fn every_verb_has_a_row() {
    let verbs: Vec<String> = platctrl::verbs()
        .iter()
        .map(|words| words.join(" "))
        .collect();
    assert!(verbs.len() > 50, "{verbs:?}");
    for verb in &verbs {
        assert!(
            ROWS.iter().any(|row| row.verb == verb) || table::STAY.contains(&verb.as_str()),
            "`platctrl {verb}` is in no row of tests/it/verbs/table.rs: add it, so that it is tried with everything that can be wrong"
        );
    }
    for row in ROWS {
        assert!(
            verbs.iter().any(|verb| verb == row.verb),
            "`platctrl {}` is in a row, and no verb any more",
            row.verb
        );
    }
}
