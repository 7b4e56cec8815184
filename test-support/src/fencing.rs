//! Two processes that elect a leader: one that is stopped until the other took over writes
//! nothing when it goes on.
//!
//! The processes are the test binary, run again with an environment variable set that says where
//! the store is.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use platctrl_framework::client::Client;
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError, Runtime};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Metadata, Object, Resource, identity};
use platctrl_framework::store::{Change, Prefix, Revision, Store, WatchEvent, WatchStream};
use rustix::process::{Pid, Signal, kill_process};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::processes::{is_stopped, spawn, wait_until};

const LOCATION: &str = "PLATCTRL_TEST_STORE";

/// Where the store is, in a process that is to write.
#[must_use]
pub fn told_to_write() -> Option<String> {
    std::env::var(LOCATION).ok()
}

/// A page, who wrote it last, and how often each has. Consul may leave states out of what it
/// tells; no write can be left out of the counts.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Page")]
struct PageSpec {
    by: u32,
    times: BTreeMap<u32, u64>,
}

/// Writes again as soon as it sees what it wrote.
async fn write(page: Arc<Object<Page>>, context: Context) -> Result<Action, ReconcileError> {
    let mut page = (*page).clone();
    page.spec.by = std::process::id();
    *page.spec.times.entry(page.spec.by).or_default() += 1;
    let mut changes = context.changes();
    changes.update(&page)?;
    changes.commit().await?;
    Ok(Action::requeue_after(Duration::from_millis(5)))
}

/// Writes for ever, whenever it leads.
///
/// # Panics
/// The runtime ends.
pub async fn write_while_leading(store: Arc<dyn Store>) {
    Runtime::new(store, Environment::system())
        .controller(Controller::new("pages", write))
        .elect_leader("pages")
        .run()
        .await
        .unwrap();
}

struct Writer(std::process::Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Writer {
    fn start(location: &str, child: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([child, "--exact", "--nocapture"])
            .env(LOCATION, location)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(spawn(command))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

/// The states of the page.
struct Seen {
    watch: WatchStream,
    states: Vec<(Revision, PageSpec)>,
}

impl Seen {
    async fn next(&mut self) -> u32 {
        loop {
            let item = tokio::time::timeout(Duration::from_secs(60), self.watch.next()).await;
            let item = item.expect("somebody writes").unwrap().unwrap();
            let (revision, changes) = match item {
                WatchEvent::Changes { revision, changes } => (revision, changes),
                WatchEvent::Progress(_) => continue,
                WatchEvent::Reset { reason } => panic!("{reason}"),
            };
            let Some(Change::Put(record)) = changes.first() else {
                continue;
            };
            let value: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            let state: PageSpec = serde_json::from_value(value["spec"].clone()).unwrap();
            let by = state.by;
            self.states.push((revision, state));
            return by;
        }
    }
}

/// Lets two processes lead in turn. They run the test named `child`, which opens the store at
/// `location` and calls [`write_while_leading`].
///
/// # Panics
/// One writes after the other took over, or nobody writes.
pub async fn a_stopped_leader_writes_nothing(store: Arc<dyn Store>, location: &str, child: &str) {
    let environment = Environment::system();
    identity::initialise(&*store, &environment).await.unwrap();
    let client = Client::new(store.clone(), environment, "test");
    let metadata = Metadata {
        namespace: Some("default".to_owned()),
        ..Metadata::named("a")
    };
    let page = Object::<Page>::new(metadata, PageSpec::default());
    client.create(&page).await.unwrap();
    let at = store.get(&[]).await.unwrap().revision;
    let mut seen = Seen {
        watch: store.watch(Prefix::new("o/intent/example.dev/pages/").unwrap(), at),
        states: Vec::new(),
    };
    let writers = [
        Writer::start(location, child),
        Writer::start(location, child),
    ];
    let leader = seen.next().await;
    while seen.states.len() < 20 {
        assert_eq!(seen.next().await, leader, "there are two leaders");
    }
    let is_leader = |writer: &&Writer| writer.0.id() == leader;
    let stopped = writers.iter().find(is_leader).expect("one of them");
    stopped.signal(Signal::STOP);
    wait_until(Duration::from_secs(30), "it is stopped", || {
        is_stopped(leader)
    });
    // What it had sent may still come; then nothing, until another takes over.
    let other = loop {
        let by = seen.next().await;
        if by != leader {
            break by;
        }
    };
    let took_over = seen.states.len();
    stopped.signal(Signal::CONT);
    // Long enough for the one that goes on to have finished what it was about, and to see that
    // another leads.
    let until = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < until {
        seen.next().await;
    }
    let count = |place: usize| seen.states[place].1.times[&leader];
    let late: Vec<_> = (took_over..seen.states.len())
        .filter(|place| count(*place) != count(took_over - 1) || seen.states[*place].1.by != other)
        .collect();
    assert!(
        late.is_empty(),
        "{leader} wrote after {other} took over: {:?}",
        seen.states.last()
    );
    assert!(seen.states.len() > took_over + 20);
    assert!(!is_stopped(leader), "it goes on");
}
