//! Watches of the memory store: positions in the shared history, woken by prefix.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::Notify;

use super::super::{Change, Key, Prefix, Result, Revision, StoreError, WatchEvent};
use super::data::{Data, HistoryEntry};
use super::{MemoryStore, Shared, State};

/// With at most this many watchers, every commit wakes those it does not concern at once.
const EAGER_WATCHERS: usize = 64;

/// With more of them, all are woken at most this often, or as often as takes them a tenth of a
/// processor at about 10 µs each.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const PROGRESS_PER_WATCHER: Duration = Duration::from_micros(100);

/// All watchers of one prefix.
#[derive(Debug)]
struct Group {
    /// Revisions after this one that changed the prefix are in `revisions`.
    since: Revision,
    revisions: VecDeque<Revision>,
    watchers: usize,
    changed: Arc<Notify>,
}

/// The watched prefixes.
#[derive(Debug)]
pub(super) struct Groups {
    /// Tells the driver that a sweep is wanted.
    alarm: Arc<Notify>,
    by_prefix: BTreeMap<String, Group>,
    watchers: usize,
    /// Up to where groups know what changed.
    published: Revision,
    sweep_wanted: bool,
    last_sweep: Option<Duration>,
}

/// The texts of every prefix that covers a key.
fn ancestors(key: &Key) -> impl Iterator<Item = &str> {
    let text = key.as_str();
    let slashes = text.match_indices('/').map(|(at, _)| at + 1);
    let ends = std::iter::once(0).chain(slashes).chain([text.len()]);
    ends.map(|end| &text[..end])
}

impl Groups {
    pub(super) fn new(alarm: Arc<Notify>) -> Self {
        Self {
            alarm,
            by_prefix: BTreeMap::new(),
            watchers: 0,
            published: Revision::ZERO,
            sweep_wanted: false,
            last_sweep: None,
        }
    }

    /// Notes what newer revisions changed and wakes those concerned.
    pub(super) fn publish(&mut self, data: &Data) {
        if self.published == data.revision() {
            return;
        }
        let from = self.published.max(data.oldest());
        for entry in data.entries_after(from) {
            self.publish_entry(entry);
        }
        self.published = data.revision();
        if self.watchers <= EAGER_WATCHERS {
            self.wake_all();
        } else {
            self.sweep_wanted = true;
            self.alarm.notify_one();
        }
    }

    fn publish_entry(&mut self, entry: &HistoryEntry) {
        for change in entry.changes.iter() {
            for prefix in ancestors(change.key()) {
                if let Some(group) = self.by_prefix.get_mut(prefix)
                    && group.revisions.back() != Some(&entry.revision)
                {
                    group.revisions.push_back(entry.revision);
                    group.changed.notify_waiters();
                }
            }
        }
    }

    /// Forgets revisions that left the history.
    pub(super) fn forget(&mut self, entries: &[HistoryEntry]) {
        for entry in entries {
            for prefix in entry
                .changes
                .iter()
                .flat_map(|change| ancestors(change.key()))
            {
                if let Some(group) = self.by_prefix.get_mut(prefix) {
                    while group
                        .revisions
                        .front()
                        .is_some_and(|r| *r <= entry.revision)
                    {
                        group.revisions.pop_front();
                    }
                }
            }
        }
    }

    /// Starts again: the history is another one.
    pub(super) fn restart(&mut self, revision: Revision) {
        self.published = revision;
        for group in self.by_prefix.values_mut() {
            group.revisions.clear();
            group.since = revision;
        }
        self.wake_all();
    }

    pub(super) fn wake_all(&self) {
        for group in self.by_prefix.values() {
            group.changed.notify_waiters();
        }
    }

    /// Tells quiet watchers of progress if it is time to; else says when it will be.
    pub(super) fn sweep(&mut self, now: Duration) -> Option<Duration> {
        if !self.sweep_wanted {
            return None;
        }
        let watchers = u32::try_from(self.watchers).unwrap_or(u32::MAX);
        let interval = PROGRESS_INTERVAL.max(PROGRESS_PER_WATCHER * watchers);
        let due = self.last_sweep.map_or(now, |last| last + interval);
        if now < due {
            return Some(due);
        }
        self.sweep_wanted = false;
        self.last_sweep = Some(now);
        self.wake_all();
        None
    }

    fn join(&mut self, prefix: &Prefix, revision: Revision) -> Arc<Notify> {
        self.watchers += 1;
        let group = self.by_prefix.entry(prefix.as_str().to_owned());
        let group = group.or_insert_with(|| Group {
            since: revision,
            revisions: VecDeque::new(),
            watchers: 0,
            changed: Arc::new(Notify::new()),
        });
        group.watchers += 1;
        Arc::clone(&group.changed)
    }

    /// Watched prefixes and watchers.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.by_prefix.len(), self.watchers)
    }

    fn leave(&mut self, prefix: &Prefix) {
        self.watchers -= 1;
        if let Some(group) = self.by_prefix.get_mut(prefix.as_str()) {
            group.watchers -= 1;
            if group.watchers == 0 {
                self.by_prefix.remove(prefix.as_str());
            }
        }
    }

    /// The first revision after `cursor` that changed the prefix.
    fn next(&self, data: &Data, prefix: &Prefix, cursor: Revision) -> Option<Revision> {
        let group = self.by_prefix.get(prefix.as_str())?;
        if cursor < group.since {
            let before = data
                .entries_after(cursor)
                .take_while(|entry| entry.revision <= group.since)
                .find(|entry| !entry.under(prefix).is_empty());
            if let Some(entry) = before {
                return Some(entry.revision);
            }
        }
        let behind = group.revisions.partition_point(|r| *r <= cursor);
        group.revisions.get(behind).copied()
    }
}

/// How a watch stands.
enum Step {
    Deliver(WatchEvent),
    End(Result<WatchEvent>),
    Wait,
}

pub(super) struct Watcher {
    shared: Arc<Shared>,
    prefix: Prefix,
    /// Everything up to here was delivered.
    cursor: Revision,
    joined: Option<Joined>,
    ended: bool,
}

struct Joined {
    changed: Arc<Notify>,
    /// The number of forced ends when this watch began.
    breaks: u64,
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, prefix: Prefix, after: Revision) -> Self {
        Self {
            shared,
            prefix,
            cursor: after,
            joined: None,
            ended: false,
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<WatchEvent>> + Send {
        futures::stream::unfold(self, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((event, watcher))
        })
    }

    async fn next(&mut self) -> Option<Result<WatchEvent>> {
        if self.ended {
            return None;
        }
        tokio::task::coop::consume_budget().await;
        let (changed, breaks) = match self.join() {
            Ok(joined) => (Arc::clone(&joined.changed), joined.breaks),
            Err(error) => {
                self.ended = true;
                return Some(Err(error));
            }
        };
        loop {
            let woken = changed.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let step = self.step(&mut self.shared.current(), breaks);
            match step {
                Step::Deliver(event) => {
                    if let WatchEvent::Changes { revision, .. } | WatchEvent::Progress(revision) =
                        event
                    {
                        self.cursor = revision;
                    }
                    return Some(Ok(event));
                }
                Step::End(last) => {
                    self.ended = true;
                    return Some(last);
                }
                Step::Wait => woken.await,
            }
        }
    }

    fn join(&mut self) -> Result<&Joined> {
        if self.joined.is_none() {
            MemoryStore::ensure_driver(&self.shared);
            let mut state = self.shared.current();
            state.faults.check_available("watch")?;
            state.faults.check_read(self.prefix.as_str())?;
            let revision = state.data.revision();
            self.joined = Some(Joined {
                changed: state.groups.join(&self.prefix, revision),
                breaks: state.faults.watch_breaks,
            });
        }
        Ok(self.joined.as_ref().expect("set above"))
    }

    fn step(&self, state: &mut State, breaks: u64) -> Step {
        if state.faults.watch_breaks != breaks {
            return Step::End(state.faults.watch_end.clone());
        }
        if state.faults.is_held(&self.prefix) {
            return Step::Wait;
        }
        let (newest, oldest) = (state.data.revision(), state.data.oldest());
        let cursor = self.cursor;
        if cursor < oldest {
            let reason = format!("revision {cursor} is no longer kept; the oldest is {oldest}");
            return Step::End(Ok(WatchEvent::Reset { reason }));
        }
        if cursor > newest {
            let reason = format!(
                "revision {cursor} is ahead of the store's {newest}: it is of another history"
            );
            return Step::End(Ok(WatchEvent::Reset { reason }));
        }
        let Some(first) = state.groups.next(&state.data, &self.prefix, cursor) else {
            return if cursor < newest {
                Step::Deliver(WatchEvent::Progress(newest))
            } else {
                Step::Wait
            };
        };
        let exact = self.shared.options.exact_watch && !state.faults.coalesce;
        let (revision, changes) = if exact {
            let entry = state.data.entry(first);
            let changes = entry.map(|entry| entry.under(&self.prefix).to_vec());
            (first, changes.unwrap_or_default())
        } else {
            (newest, merged(&state.data, &self.prefix, cursor))
        };
        Step::Deliver(WatchEvent::Changes { revision, changes })
    }
}

/// The last change of every key that changed after `cursor`.
fn merged(data: &Data, prefix: &Prefix, cursor: Revision) -> Vec<Change> {
    let mut last = BTreeMap::new();
    for entry in data.entries_after(cursor) {
        for change in entry.under(prefix) {
            last.insert(change.key(), change);
        }
    }
    last.into_values().cloned().collect()
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.joined.is_some() {
            self.shared.lock().groups.leave(&self.prefix);
        }
    }
}

/// The error of a watch whose connection broke.
pub(super) fn broken() -> StoreError {
    StoreError::unavailable("memory: the watch's connection broke")
}
