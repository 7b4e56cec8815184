//! The loop as one would write it by hand: a channel, a map, sets of keys, a set of tasks.
//!
//! It has no deletes, reconnects, retries, requeues, timeouts, leadership or tracing: it is what
//! remains when everything is left out that a controller needs in production.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use platctrl_bench::Result;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::Connection;
use crate::store::PAGE;
use crate::tally::Tally;
use crate::widget::WidgetSpec;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "decoded because a reconcile would read it")]
struct Metadata {
    name: Arc<str>,
    namespace: Box<str>,
    uid: Box<str>,
    resource_version: Box<str>,
    generation: u64,
    creation_timestamp: Box<str>,
    labels: BTreeMap<Box<str>, Box<str>>,
}

#[derive(Deserialize)]
struct Widget {
    metadata: Metadata,
    spec: WidgetSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<Widget>,
}

#[derive(Deserialize)]
struct Event {
    object: Widget,
}

/// Lists, then watches.
async fn feed(port: u16, feed: mpsc::Sender<Vec<Widget>>) -> Result<()> {
    let mut connection = Connection::open(port).await?;
    let mut after: Option<String> = None;
    let version = loop {
        let page = connection.page(PAGE, after.as_deref()).await?;
        let list: List = serde_json::from_slice(&page)?;
        feed.send(list.items).await?;
        if list.metadata.r#continue.is_empty() {
            break list.metadata.resource_version.parse()?;
        }
        after = Some(list.metadata.r#continue);
    };
    let mut lines = connection.watch(version).await?;
    while let Some(batch) = lines.next().await? {
        feed.send(decode(&batch)?).await?;
    }
    Err("the watch ended".into())
}

fn decode(batch: &Bytes) -> Result<Vec<Widget>> {
    let events = serde_json::Deserializer::from_slice(batch).into_iter::<Event>();
    Ok(events
        .map(|event| event.map(|event| event.object))
        .collect::<Result<_, _>>()?)
}

/// Runs until dropped.
pub(crate) async fn run(port: u16, tally: Arc<Tally>, most: usize) -> Result<()> {
    let (sender, mut records) = mpsc::channel(64);
    let mut feeding = JoinSet::new();
    feeding.spawn(feed(port, sender));
    let mut objects: HashMap<Arc<str>, Arc<Widget>> = HashMap::new();
    let mut ready: VecDeque<Arc<str>> = VecDeque::new();
    let (mut queued, mut again): (HashSet<Arc<str>>, HashSet<Arc<str>>) = Default::default();
    let mut running: HashSet<Arc<str>> = HashSet::new();
    let mut tasks: JoinSet<Arc<str>> = JoinSet::new();
    loop {
        while running.len() < most
            && let Some(key) = ready.pop_front()
        {
            queued.remove(&key);
            let Some(widget) = objects.get(&key).cloned() else {
                continue;
            };
            running.insert(key.clone());
            let tally = Arc::clone(&tally);
            tasks.spawn(async move {
                tally.saw(&widget.spec);
                key
            });
        }
        tokio::select! {
            Some(batch) = records.recv() => for widget in batch {
                let key = widget.metadata.name.clone();
                objects.insert(key.clone(), Arc::new(widget));
                if running.contains(&key) {
                    again.insert(key);
                } else if queued.insert(key.clone()) {
                    ready.push_back(key);
                }
            },
            Some(key) = tasks.join_next(), if !running.is_empty() => {
                let key = key?;
                running.remove(&key);
                if again.remove(&key) && queued.insert(key.clone()) {
                    ready.push_back(key);
                }
            }
            Some(ended) = feeding.join_next() => return ended?,
        }
    }
}
