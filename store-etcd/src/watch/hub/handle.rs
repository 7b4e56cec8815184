//! How watches are asked for, and how the task that serves them is started, again if need be.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platctrl_framework::store::{Prefix, Revision, StoreError, WatchStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::Hub;
use crate::link::Link;
use crate::shared::{Shared, lock};
use crate::watch::feed::{Feed, Reader};

/// What the hub is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Join {
        id: u64,
        prefix: Prefix,
        after: Revision,
        feed: Arc<Feed>,
    },
    Leave(u64),
    /// The reader of a paused watch has taken all.
    CaughtUp(u64),
    /// Open the stream anew.
    Reopen,
}

/// What watches are asked for with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

struct Inner {
    /// Where the hub that works now, or worked last, is asked.
    commands: Mutex<UnboundedSender<Command>>,
    link: Arc<Link>,
    reads: Arc<Link>,
    next: AtomicU64,
}

impl Handle {
    pub(crate) fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        let inner = &self.0;
        let id = inner.next.fetch_add(1, Ordering::Relaxed);
        let feed = Arc::new(Feed::new(inner.link.shared.options.watch_buffer));
        let commands = self.commands();
        let join = Command::Join {
            id,
            prefix,
            after,
            feed: Arc::clone(&feed),
        };
        if commands.send(join).is_err() {
            feed.end(Err(ended(&inner.link.shared)));
        }
        let hub = commands;
        Reader { feed, hub, id }.boxed()
    }

    /// Where a hub takes commands. One that ended before its store, because the runtime it was
    /// started on has ended, is followed by another one on the caller's runtime.
    fn commands(&self) -> UnboundedSender<Command> {
        let inner = &self.0;
        let mut commands = lock(&inner.commands);
        let lost = commands.is_closed() && !inner.link.shared.closed.is_cancelled();
        if lost && tokio::runtime::Handle::try_current().is_ok() {
            tracing::warn!("the task of the watches had ended, and is started again");
            *commands = spawn(&inner.link, &inner.reads);
        }
        commands.clone()
    }

    /// Opens the stream anew when it is called.
    pub(crate) fn reopener(&self) -> impl Fn() + Send + use<> {
        let handle = self.clone();
        move || {
            let _ = handle.commands().send(Command::Reopen);
        }
    }
}

/// Why watches end with their hub.
pub(super) fn ended(shared: &Shared) -> StoreError {
    StoreError::unavailable(if shared.closed.is_cancelled() {
        "the store was closed"
    } else {
        "the task of the store's watches ended: its runtime was stopped, or it broke"
    })
}

/// Starts the hub on the current runtime. `link` carries the stream, `reads` everything else, so
/// that large answers do not hold events up.
pub(crate) fn start(link: Arc<Link>, reads: Arc<Link>) -> Handle {
    let commands = Mutex::new(spawn(&link, &reads));
    Handle(Arc::new(Inner {
        commands,
        link,
        reads,
        next: AtomicU64::new(1),
    }))
}

fn spawn(link: &Arc<Link>, reads: &Arc<Link>) -> UnboundedSender<Command> {
    let (sender, commands) = unbounded_channel();
    let hub = Hub {
        shared: Arc::clone(&link.shared),
        link: Arc::clone(link),
        reads: Arc::clone(reads),
        commands,
        watchers: HashMap::new(),
        checks: FuturesUnordered::new(),
        cluster: 0,
        next_tick: Instant::now(),
        failures: 0,
    };
    tokio::spawn(hub.run());
    sender
}
