//! A watch: a position that moves along the recent changes or the history on disk.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::Stream;
use platctrl_framework::store::{Prefix, Result, Revision, StoreError, WatchEvent};
use tokio::sync::Notify;

use crate::error::ReadError;
use crate::feed::Next;
use crate::read::{self, Changed};
use crate::shared::Shared;

/// How many changes are read from disk at once.
const STRETCH: usize = 256;

pub(crate) struct Watcher {
    shared: Arc<Shared>,
    prefix: Prefix,
    /// Everything up to here was delivered.
    cursor: Revision,
    changed: Option<Arc<Notify>>,
    /// Read from disk and not yet delivered; then the position moves to `caught_up`.
    backlog: VecDeque<Changed>,
    caught_up: Revision,
    ended: bool,
}

impl Watcher {
    pub(crate) fn new(shared: Arc<Shared>, prefix: Prefix, after: Revision) -> Self {
        Self {
            shared,
            prefix,
            cursor: after,
            changed: None,
            backlog: VecDeque::new(),
            caught_up: Revision::ZERO,
            ended: false,
        }
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<WatchEvent>> + Send {
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
        let changed = match &self.changed {
            Some(changed) => Arc::clone(changed),
            None => {
                self.shared.ensure_clerk();
                let changed = self.shared.feed.join(&self.prefix);
                self.changed = Some(Arc::clone(&changed));
                changed
            }
        };
        loop {
            if let Some(event) = self.next_of_backlog() {
                return Some(Ok(event));
            }
            let woken = changed.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            match self.shared.feed.next(&self.prefix, self.cursor) {
                Next::Changes(commit) => {
                    self.cursor = commit.revision;
                    return Some(Ok(WatchEvent::Changes {
                        revision: commit.revision,
                        changes: commit.under(&self.prefix).to_vec(),
                    }));
                }
                Next::Progress(revision) => {
                    self.cursor = revision;
                    return Some(Ok(WatchEvent::Progress(revision)));
                }
                Next::Wait => woken.await,
                Next::Behind => match self.read_history().await {
                    Ok(()) => {}
                    Err(StoreError::Compacted { requested, oldest }) => {
                        return Some(Ok(self.reset(requested, oldest, oldest)));
                    }
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                },
                Next::Outside { oldest, newest } => {
                    return Some(Ok(self.reset(self.cursor, oldest, newest)));
                }
                Next::Closed => {
                    self.ended = true;
                    return Some(Err(self.shared.closed()));
                }
            }
        }
    }

    fn next_of_backlog(&mut self) -> Option<WatchEvent> {
        let Some(Changed { revision, changes }) = self.backlog.pop_front() else {
            // What was read and does not concern this watcher counts as seen.
            self.cursor = self.cursor.max(self.caught_up);
            return None;
        };
        self.cursor = revision;
        Some(WatchEvent::Changes { revision, changes })
    }

    async fn read_history(&mut self) -> Result<()> {
        let (prefix, after) = (self.prefix.clone(), self.cursor);
        let stretch = self
            .shared
            .read(move |view| {
                // The engine's failures are told apart from "no longer kept" by the caller.
                read::changes_after(view, &prefix, after, STRETCH).map_err(|error| match error {
                    ReadError::Store(StoreError::Invalid { reason }) => {
                        ReadError::Store(StoreError::unavailable(reason))
                    }
                    other => other,
                })
            })
            .await?;
        self.caught_up = stretch.until;
        self.backlog = stretch.changed.into();
        Ok(())
    }

    fn reset(&mut self, cursor: Revision, oldest: Revision, newest: Revision) -> WatchEvent {
        self.ended = true;
        let reason = if cursor < oldest {
            format!("revision {cursor} is no longer kept; the oldest is {oldest}")
        } else {
            format!("revision {cursor} is ahead of the store's {newest}: it is of another history")
        };
        WatchEvent::Reset { reason }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.changed.is_some() {
            self.shared.feed.leave(&self.prefix);
        }
    }
}
