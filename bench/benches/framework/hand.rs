//! The loop as one would write it by hand: a channel, a map, sets of keys, a set of tasks.
//!
//! It has no deletes, reconnects, retries, requeues, timeouts, leadership or tracing: it is what
//! remains when everything is left out that a controller needs in production.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use platctrl_bench::Result;
use platctrl_framework::model::Metadata;
use platctrl_framework::store::{Change, Key, ListRequest, Prefix, Record, Store, WatchEvent};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::widget::{Tally, WidgetSpec};

#[derive(Deserialize)]
struct Widget {
    /// Decoded because a reconcile would read it.
    #[serde(rename = "metadata")]
    _metadata: Metadata,
    spec: WidgetSpec,
}

/// Lists, then watches.
async fn feed(store: Arc<dyn Store>, feed: mpsc::Sender<Vec<Record>>) -> Result<()> {
    let mut request = ListRequest::new(Prefix::new("o/intent/bench.dev/")?);
    let revision = loop {
        let page = store.list(&request).await?;
        request.at = Some(page.revision);
        request.after = page.records.last().map(|record| record.key.clone());
        feed.send(page.records).await?;
        if !page.more {
            break page.revision;
        }
    };
    let mut watch = store.watch(request.prefix, revision);
    while let Some(event) = watch.next().await {
        match event? {
            WatchEvent::Changes { changes, .. } => {
                let puts = changes.into_iter().filter_map(|change| match change {
                    Change::Put(record) => Some(record),
                    Change::Delete { .. } => None,
                });
                feed.send(puts.collect()).await?;
            }
            WatchEvent::Progress(_) => {}
            WatchEvent::Reset { reason } => return Err(reason.into()),
        }
    }
    Ok(())
}

/// Runs until dropped.
pub(crate) async fn run(store: Arc<dyn Store>, tally: Arc<Tally>, most: usize) -> Result<()> {
    let (sender, mut records) = mpsc::channel(64);
    let mut feeding = JoinSet::new();
    feeding.spawn(feed(store, sender));
    let mut objects: HashMap<Key, Arc<Widget>> = HashMap::new();
    let mut ready: VecDeque<Key> = VecDeque::new();
    let (mut queued, mut again): (HashSet<Key>, HashSet<Key>) = Default::default();
    let mut running: HashSet<Key> = HashSet::new();
    let mut tasks: JoinSet<Key> = JoinSet::new();
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
            Some(batch) = records.recv() => for record in batch {
                let widget: Widget = serde_json::from_slice(&record.value)?;
                objects.insert(record.key.clone(), Arc::new(widget));
                if running.contains(&record.key) {
                    again.insert(record.key);
                } else if queued.insert(record.key.clone()) {
                    ready.push_back(record.key);
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
