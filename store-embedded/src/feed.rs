//! The newest changes, shared by all watchers, and who is woken by them.
//!
//! A watcher has no queue of its own: it is a position, in the changes kept here or, once it has
//! fallen behind them, in the history on disk. The writer never waits for one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use platctrl_framework::store::{Change, Key, Prefix, Revision};
use tokio::sync::Notify;

/// With at most this many watchers, every commit wakes those it does not concern at once.
const EAGER_WATCHERS: usize = 64;

/// With more of them, this is how often they are woken.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What one revision changed, in key order.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<Change>,
}

impl Commit {
    fn bytes(&self) -> usize {
        let size = |change: &Change| match change {
            Change::Put(record) => record.key.as_str().len() + record.value.len() + 96,
            Change::Delete { key, .. } => key.as_str().len() + 96,
        };
        self.changes.iter().map(size).sum()
    }

    /// The changes under a prefix, which are neighbours in key order.
    pub(crate) fn under(&self, prefix: &Prefix) -> &[Change] {
        let text = prefix.as_str();
        let start = self
            .changes
            .partition_point(|change| change.key().as_str() < text);
        let rest = &self.changes[start..];
        &rest[..rest.partition_point(|change| change.key().is_under(prefix))]
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Every revision in `(kept_after, newest]`.
    recent: VecDeque<Arc<Commit>>,
    bytes: usize,
    kept_after: Revision,
    newest: Revision,
    oldest: Revision,
    groups: HashMap<String, Group>,
    watchers: usize,
    sweep_wanted: bool,
    last_sweep: Option<Duration>,
    closed: bool,
}

#[derive(Debug)]
struct Group {
    watchers: usize,
    changed: Arc<Notify>,
}

/// Where a watcher stands.
#[derive(Debug)]
pub(crate) enum Next {
    /// The next revision that concerns it.
    Changes(Arc<Commit>),
    /// Nothing concerned it up to here.
    Progress(Revision),
    /// It is up to date.
    Wait,
    /// It must read the history on disk.
    Behind,
    /// It asks for what is not kept, or for what is not there yet.
    Outside { oldest: Revision, newest: Revision },
    /// The store is closed.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Feed {
    inner: Mutex<Inner>,
    max_bytes: usize,
    /// Tells the clerk that a sweep is wanted.
    alarm: Arc<Notify>,
}

fn ancestors(key: &Key) -> impl Iterator<Item = &str> {
    let text = key.as_str();
    let slashes = text.match_indices('/').map(|(at, _)| at + 1);
    let ends = std::iter::once(0).chain(slashes).chain([text.len()]);
    ends.map(|end| &text[..end])
}

impl Feed {
    pub(crate) fn new(
        newest: Revision,
        oldest: Revision,
        max_bytes: usize,
        alarm: Arc<Notify>,
    ) -> Self {
        let inner = Inner {
            kept_after: newest,
            newest,
            oldest,
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
            max_bytes,
            alarm,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of durable commits.
    pub(crate) fn publish(&self, commits: Vec<Commit>, newest: Revision, oldest: Revision) {
        let mut inner = self.lock();
        let eager = inner.watchers <= EAGER_WATCHERS;
        if !eager {
            for change in commits.iter().flat_map(|commit| &commit.changes) {
                for prefix in ancestors(change.key()) {
                    if let Some(group) = inner.groups.get(prefix) {
                        group.changed.notify_waiters();
                    }
                }
            }
        }
        for commit in commits {
            inner.bytes += commit.bytes();
            inner.recent.push_back(Arc::new(commit));
        }
        while inner.bytes > self.max_bytes {
            let Some(commit) = inner.recent.pop_front() else {
                break;
            };
            inner.bytes -= commit.bytes();
            inner.kept_after = commit.revision;
        }
        inner.newest = newest;
        inner.oldest = oldest;
        if eager {
            inner.wake_all();
        } else {
            inner.sweep_wanted = true;
            self.alarm.notify_one();
        }
    }

    /// The file turned out to be further than was published: watchers read what they missed
    /// from the history on disk.
    pub(crate) fn jump(&self, newest: Revision, oldest: Revision) {
        let mut inner = self.lock();
        inner.recent.clear();
        inner.bytes = 0;
        inner.kept_after = newest;
        inner.newest = newest;
        inner.oldest = oldest;
        inner.wake_all();
    }

    /// Ends every watch.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.wake_all();
    }

    /// Wakes quiet watchers if it is time to; else says when it will be.
    pub(crate) fn sweep(&self, now: Duration) -> Option<Duration> {
        let mut inner = self.lock();
        if !inner.sweep_wanted {
            return None;
        }
        let due = inner
            .last_sweep
            .map_or(now, |last| last + PROGRESS_INTERVAL);
        if now < due {
            return Some(due);
        }
        inner.sweep_wanted = false;
        inner.last_sweep = Some(now);
        inner.wake_all();
        None
    }

    pub(crate) fn join(&self, prefix: &Prefix) -> Arc<Notify> {
        let mut inner = self.lock();
        inner.watchers += 1;
        let group = inner.groups.entry(prefix.as_str().to_owned());
        let group = group.or_insert_with(|| Group {
            watchers: 0,
            changed: Arc::new(Notify::new()),
        });
        group.watchers += 1;
        Arc::clone(&group.changed)
    }

    pub(crate) fn leave(&self, prefix: &Prefix) {
        let mut inner = self.lock();
        inner.watchers -= 1;
        if let Some(group) = inner.groups.get_mut(prefix.as_str()) {
            group.watchers -= 1;
            if group.watchers == 0 {
                inner.groups.remove(prefix.as_str());
            }
        }
    }

    /// What a watcher that has seen everything up to `cursor` gets next.
    pub(crate) fn next(&self, prefix: &Prefix, cursor: Revision) -> Next {
        let inner = self.lock();
        let (oldest, newest) = (inner.oldest, inner.newest);
        if inner.closed {
            return Next::Closed;
        }
        if cursor < oldest || cursor > newest {
            return Next::Outside { oldest, newest };
        }
        if cursor < inner.kept_after {
            return Next::Behind;
        }
        let seen = inner
            .recent
            .partition_point(|commit| commit.revision <= cursor);
        let mut rest = inner.recent.range(seen..);
        match rest.find(|commit| !commit.under(prefix).is_empty()) {
            Some(commit) => Next::Changes(Arc::clone(commit)),
            None if cursor < newest => Next::Progress(newest),
            None => Next::Wait,
        }
    }
}

impl Inner {
    fn wake_all(&self) {
        for group in self.groups.values() {
            group.changed.notify_waiters();
        }
    }
}
