//! The first controller is as short as it is said to be, and it works.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use platctrl_framework::client::Client;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Metadata, Object, Resource, identity};
use platctrl_store_embedded::EmbeddedStore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The same kind, as another program would have it.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site")]
struct SiteSpec {
    pages: u32,
}

/// The program, ended when the test is.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(dir: &Path) -> Self {
        let program = env!("CARGO_BIN_EXE_first-controller");
        let mut command = Command::new(program);
        let mut child = command
            .current_dir(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Asks it to end, as an init system does.
    fn end(&mut self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "it ends in order");
    }
}

#[test]
fn a_first_controller_takes_at_most_thirty_lines() {
    let source = include_str!("../../src/main.rs");
    // What is written: the kind, the reconcile and the main. Imports an editor writes.
    let (_, written) = source.split_once("/// So many pages.").unwrap();
    let counts = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    assert!(written.lines().filter(counts).count() <= 30);
    // Six concepts: a kind, a store, a controller, its context, its action, a runtime.
    for concept in [
        "Resource",
        "Store",
        "Controller",
        "Context",
        "Action",
        "Runtime",
    ] {
        assert!(source.contains(concept), "{concept}");
    }
}

#[tokio::test]
async fn it_sees_a_site_reports_it_and_ends_when_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::system();
    let open = || EmbeddedStore::open(dir.path().join("sites"), environment.clone()).unwrap();
    let client = |store| Client::new(Arc::new(store), environment.clone(), "test");
    let metadata = Metadata {
        namespace: Some("default".to_owned()),
        ..Metadata::named("a")
    };
    let site = Object::<Site>::new(metadata, SiteSpec { pages: 3 });
    {
        let store = open();
        identity::initialise(&store, &environment).await.unwrap();
        client(store).create(&site).await.unwrap();
    }
    let mut running = Running::start(dir.path());
    let line = running.lines.next().unwrap().unwrap();
    assert_eq!(line, "a wants 3 pages");
    // Asked to end, it finishes what it has begun.
    running.end();
    let stored = client(open())
        .get::<Site>(&site.key().unwrap())
        .await
        .unwrap();
    assert_eq!(stored.status.phase.as_str(), "Seen");
    // Nothing is left to do, and it begins again where it was.
    Running::start(dir.path());
}
