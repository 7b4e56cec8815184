//! What a watcher was told and its reader has not taken yet.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::Stream;
use futures::task::AtomicWaker;
use platctrl_framework::store::{Change, Result, Revision, WatchEvent};
use tokio::sync::mpsc::UnboundedSender;

use super::hub::Command;
use crate::shared::lock;

/// What one event takes beside its keys and values, roughly.
const EVENT_BYTES: usize = 200;

/// The queue between the hub and one reader.
#[derive(Debug)]
pub(crate) struct Feed {
    state: Mutex<State>,
    waker: AtomicWaker,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(Result<WatchEvent>, usize)>,
    bytes: usize,
    /// The hub waits for the reader.
    paused: bool,
    ended: bool,
}

fn size(changes: &[Change]) -> usize {
    let sizes = changes.iter().map(|change| {
        let value = match change {
            Change::Put(record) => record.value.len(),
            Change::Delete { .. } => 0,
        };
        EVENT_BYTES + value + change.key().as_str().len()
    });
    sizes.sum()
}

impl Feed {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            limit,
        }
    }

    /// Adds an event. False when the reader is so far behind that no more should come until it
    /// has taken all: it then asks for more.
    pub(crate) fn changes(&self, revision: Revision, changes: Vec<Change>) -> bool {
        let size = size(&changes);
        let mut state = lock(&self.state);
        state.bytes += size;
        let event = WatchEvent::Changes { revision, changes };
        state.queue.push_back((Ok(event), size));
        state.paused = state.bytes > self.limit;
        let room = !state.paused;
        drop(state);
        self.waker.wake();
        room
    }

    /// Tells how far the store is; the newest is enough.
    pub(crate) fn progress(&self, revision: Revision) {
        let mut state = lock(&self.state);
        let event = Ok(WatchEvent::Progress(revision));
        match state.queue.back_mut() {
            Some((Ok(WatchEvent::Progress(known)), _)) => *known = revision,
            _ => state.queue.push_back((event, 0)),
        }
        drop(state);
        self.waker.wake();
    }

    /// Adds the last item.
    pub(crate) fn end(&self, item: Result<WatchEvent>) {
        let mut state = lock(&self.state);
        if !state.ended {
            state.ended = true;
            state.paused = false;
            state.queue.push_back((item, 0));
        }
        drop(state);
        self.waker.wake();
    }
}

/// The reader's end.
pub(crate) struct Reader {
    pub(crate) feed: Arc<Feed>,
    pub(crate) hub: UnboundedSender<Command>,
    pub(crate) id: u64,
}

impl Stream for Reader {
    type Item = Result<WatchEvent>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.feed.waker.register(context.waker());
        let mut state = lock(&self.feed.state);
        if let Some((item, size)) = state.queue.pop_front() {
            state.bytes -= size;
            return Poll::Ready(Some(item));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut state.paused) {
            // When the hub is gone it has ended the feed, which shows at the next poll.
            let _ = self.hub.send(Command::CaughtUp(self.id));
        }
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.hub.send(Command::Leave(self.id));
    }
}
