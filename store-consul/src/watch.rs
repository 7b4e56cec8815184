//! One watcher: what it is still to be told, and the stream that tells it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use platctrl_framework::store::{
    Change, Key, Prefix, Revision, StoreError, WatchEvent, WatchStream,
};
use tokio::sync::Notify;

use crate::shared::locked;

/// A watcher that leaves more than this unread is told to read everything again.
const MAX_PENDING: usize = 64 << 20;

/// A watcher, as the feed and its stream share it.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) prefix: Prefix,
    pub(crate) after: Revision,
    pending: Mutex<Pending>,
    news: Notify,
    dropped: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    /// The newest state of each key that changed since the stream was last read.
    changes: BTreeMap<Key, Change>,
    bytes: usize,
    revision: Revision,
    told: Revision,
    end: Option<Result<WatchEvent, StoreError>>,
    ended: bool,
}

impl Watcher {
    pub(crate) fn new(prefix: Prefix, after: Revision) -> Self {
        let pending = Pending {
            revision: after,
            told: after,
            ..Pending::default()
        };
        Self {
            prefix,
            after,
            pending: Mutex::new(pending),
            news: Notify::new(),
            dropped: AtomicBool::new(false),
        }
    }

    /// Nobody reads it any more, or it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.dropped.load(Ordering::Acquire) || locked(&self.pending).ended
    }

    /// Everything up to a revision, as far as it is not told yet.
    pub(crate) fn tell(&self, revision: Revision, changes: Vec<Change>) {
        let mut pending = locked(&self.pending);
        if pending.ended {
            return;
        }
        for change in changes {
            let size = size(&change);
            pending.bytes += size;
            let key = change.key().clone();
            if let Some(before) = pending.changes.insert(key, change) {
                pending.bytes = pending.bytes.saturating_sub(self::size(&before));
            }
        }
        pending.revision = pending.revision.max(revision);
        if pending.bytes > MAX_PENDING {
            pending.changes.clear();
            pending.end = Some(reset("this watcher reads too slowly"));
            pending.ended = true;
        }
        drop(pending);
        self.news.notify_one();
    }

    /// Everything has to be read again.
    pub(crate) fn reset(&self, reason: &str) {
        self.end(reset(reason));
    }

    pub(crate) fn fail(&self, error: StoreError) {
        self.end(Err(error));
    }

    fn end(&self, end: Result<WatchEvent, StoreError>) {
        let mut pending = locked(&self.pending);
        if !pending.ended {
            pending.end = Some(end);
            pending.ended = true;
        }
        drop(pending);
        self.news.notify_one();
    }

    /// What is next for the stream; the inner None is its end.
    fn take(&self) -> Option<Option<Result<WatchEvent, StoreError>>> {
        let mut pending = locked(&self.pending);
        if !pending.changes.is_empty() {
            pending.bytes = 0;
            pending.told = pending.revision;
            let changes = std::mem::take(&mut pending.changes).into_values().collect();
            let revision = pending.revision;
            return Some(Some(Ok(WatchEvent::Changes { revision, changes })));
        }
        if let Some(end) = pending.end.take() {
            return Some(Some(end));
        }
        if pending.ended {
            return Some(None);
        }
        if pending.revision > pending.told {
            pending.told = pending.revision;
            return Some(Some(Ok(WatchEvent::Progress(pending.revision))));
        }
        None
    }

    async fn next(&self) -> Option<Result<WatchEvent, StoreError>> {
        loop {
            let news = self.news.notified();
            if let Some(next) = self.take() {
                return next;
            }
            news.await;
        }
    }
}

fn reset(reason: &str) -> Result<WatchEvent, StoreError> {
    Ok(WatchEvent::Reset {
        reason: reason.to_owned(),
    })
}

fn size(change: &Change) -> usize {
    let value = match change {
        Change::Put(record) => record.value.len(),
        Change::Delete { .. } => 0,
    };
    value + change.key().as_str().len() + 64
}

struct Reader(Arc<Watcher>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Release);
    }
}

/// The stream of a watcher.
pub(crate) fn stream(watcher: Arc<Watcher>) -> WatchStream {
    futures::stream::unfold(Reader(watcher), |reader| async move {
        let event = reader.0.next().await?;
        Some((event, reader))
    })
    .boxed()
}
