//! When a watch speaks though nothing has changed, and when it ends.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Asked;
use crate::server::App;

/// How often a bookmark is sent to those who want them.
const BOOKMARKS: Duration = Duration::from_secs(30);

/// The time of one watch, and its place among all that the server takes.
pub(super) struct Pace {
    next_bookmark: Option<Instant>,
    until: Option<Instant>,
    stopping: CancellationToken,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Pace {
    pub(super) fn new(app: &App, asked: &Asked, permit: OwnedSemaphorePermit) -> Self {
        // Watches that were opened together do not all speak at once.
        let first = Instant::now() + app.config.environment.jitter(BOOKMARKS);
        Self {
            next_bookmark: asked.bookmarks.then_some(first),
            until: asked.until,
            stopping: app.stopping.clone(),
            ended: false,
            _permit: permit,
        }
    }

    /// Nothing is told after what is told now.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// True when a bookmark is to be sent now; the next one is due later.
    pub(super) fn bookmark(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next_bookmark.is_some_and(|next| next <= now);
        if due {
            self.next_bookmark = Some(now + BOOKMARKS);
        }
        due
    }

    /// Waits until a bookmark is to be sent: for ever where nobody wants any.
    pub(super) async fn bookmark_due(&self) {
        reached(self.next_bookmark).await;
    }

    /// Waits until the watch has lasted as long as asked, or the server stops.
    pub(super) async fn over(&self) {
        tokio::select! {
            () = reached(self.until) => {}
            () = self.stopping.cancelled() => {}
        }
    }
}

async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
