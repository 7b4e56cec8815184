//! The task that owns the stream of watches.

mod checks;
mod handle;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platctrl_framework::store::StoreError;
use rand::RngExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use super::session::{Session, refused};
use super::watcher::{Live, Outcome, Stage, Watcher};
use crate::connection::{Trouble, Unreachable};
use crate::error::{Verdict, judge};
use crate::grpc::CallError;
use crate::link::Link;
use crate::shared::Shared;
use crate::wire::{Header, WatchResponse};
use checks::{Check, Checked};
use handle::ended;
pub(crate) use handle::{Command, Handle, start};

/// How soon watchers that lag behind what this process knows are brought up.
const QUICK: Duration = Duration::from_millis(30);
/// Per watcher, so that many of them are not told all the time.
const QUICK_EACH: Duration = Duration::from_micros(100);
/// The pauses between attempts to open a stream.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A stream that lasted so long was not refused.
const LASTED: Duration = Duration::from_secs(1);

struct Hub {
    shared: Arc<Shared>,
    link: Arc<Link>,
    reads: Arc<Link>,
    commands: UnboundedReceiver<Command>,
    watchers: HashMap<u64, Watcher>,
    checks: FuturesUnordered<Check>,
    /// The cluster's id, which another one does not share.
    cluster: u64,
    next_tick: Instant,
    /// Streams in a row that failed.
    failures: u32,
}

/// Why a stream is left.
enum Left {
    /// The store is closed.
    Closed,
    /// Another one is wanted at once.
    Reopen,
    /// It broke or was refused.
    Broken(Unreachable),
    /// Nobody watches.
    Unused,
}

impl Drop for Hub {
    /// In whatever way the hub ends, nobody is left waiting for it.
    fn drop(&mut self) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.register(command);
        }
        for watcher in self.watchers.values() {
            watcher.fail(ended(&self.shared));
        }
    }
}

impl Hub {
    async fn run(mut self) {
        let closed_by = self.shared.closed.clone();
        loop {
            let left = tokio::select! {
                () = closed_by.cancelled() => Left::Closed,
                left = self.serve() => left,
            };
            match left {
                // What it drops tells its watchers.
                Left::Closed => return,
                Left::Reopen => self.failures = 0,
                Left::Unused => {}
                Left::Broken(why) => self.endure(&why, &closed_by).await,
            }
        }
    }

    /// Waits for a watcher, opens a stream and works on it.
    async fn serve(&mut self) -> Left {
        while self.watchers.is_empty() {
            match self.commands.recv().await {
                None => return Left::Closed,
                Some(command) => self.register(command),
            }
        }
        let opening = Session::open(Arc::clone(&self.link));
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                command = self.commands.recv() => match command {
                    None => return Left::Closed,
                    Some(command) => self.register(command),
                },
            }
        };
        let mut session = match opened {
            Ok(session) => session,
            Err(why) => return Left::Broken(why),
        };
        self.checks.clear();
        self.begin(&mut session);
        let left = self.work(&mut session).await;
        for watcher in self.watchers.values_mut() {
            watcher.probed = false;
            if watcher.stage != Stage::Paused {
                watcher.park(Stage::Idle);
            }
        }
        if session.opened.elapsed() > LASTED {
            self.failures = 0;
        }
        left
    }

    /// Tells those who cannot be served, or have waited long enough, and waits a little.
    async fn endure(&mut self, why: &Unreachable, closed_by: &tokio_util::sync::CancellationToken) {
        tracing::debug!(reason = %why.reason, "the stream of watches broke");
        let patience = self.shared.options.watch_patience;
        let error = |watcher: &Watcher| {
            let what = format!("watch {}/{}", self.shared.location.root(), watcher.prefix);
            if why.kind == Trouble::Rights {
                return Some(StoreError::Denied {
                    what: format!("{what} ({})", why.reason),
                });
            }
            let late = watcher.waiting.elapsed() > patience;
            late.then(|| StoreError::unavailable(format!("{what}: {}", why.reason)))
        };
        self.watchers.retain(|_, watcher| match error(watcher) {
            Some(error) => {
                watcher.fail(error);
                false
            }
            None => true,
        });
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(10));
        let pause = pause.min(LONGEST_PAUSE);
        self.failures += 1;
        let jitter = rand::rng().random_range(0.5..1.0);
        let until = Instant::now() + pause.mul_f64(jitter);
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                () = closed_by.cancelled() => return,
                command = self.commands.recv() => match command {
                    None => return,
                    Some(command) => self.register(command),
                },
            }
        }
    }

    /// Takes a command while there is no stream.
    fn register(&mut self, command: Command) {
        match command {
            Command::Join {
                id,
                prefix,
                after,
                feed,
            } => {
                self.watchers.insert(id, Watcher::new(prefix, after, feed));
            }
            Command::Leave(id) => {
                self.watchers.remove(&id);
            }
            Command::CaughtUp(id) => {
                if let Some(watcher) = self.watchers.get_mut(&id) {
                    watcher.park(Stage::Idle);
                }
            }
            Command::Reopen => {}
        }
    }

    /// Asks for all watches on a new stream.
    fn begin(&mut self, session: &mut Session) {
        let ids: Vec<u64> = self.watchers.keys().copied().collect();
        for id in ids {
            self.ask(session, id);
        }
        self.next_tick = Instant::now() + self.quick();
    }

    fn reset_all(&mut self, reason: &str) {
        self.watchers.retain(|_, watcher| {
            if watcher.is_resolved() {
                watcher.reset(reason);
            }
            !watcher.is_resolved()
        });
    }

    /// Asks for a watch, from where it is.
    fn ask(&mut self, session: &mut Session, id: u64) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        if watcher.stage != Stage::Idle {
            return;
        }
        if !watcher.is_resolved() {
            if watcher.after.epoch() != 0 {
                watcher.reset(format!(
                    "revision {} is none of etcd's: it is of another history",
                    watcher.after
                ));
                self.watchers.remove(&id);
                return;
            }
            watcher.resolve();
        }
        let (key, range_end) = self.shared.keys.range(&watcher.prefix);
        let start = watcher.reached.saturating_add(1);
        watcher.stage = Stage::Asked(session.create(id, key, range_end, start));
    }

    async fn work(&mut self, session: &mut Session) -> Left {
        loop {
            let shared = Arc::clone(&self.shared);
            let left = tokio::select! {
                command = self.commands.recv() => match command {
                    None => Some(Left::Closed),
                    Some(command) => self.command(session, command),
                },
                answer = session.answers.next() => match answer {
                    Ok(Some(answer)) => self.answer(session, answer),
                    Ok(None) => Some(self.broken(session, &CallError::Broken(
                        "the server ended the stream".to_owned(),
                    ))),
                    Err(error) => Some(self.broken(session, &error)),
                },
                Some((id, wire, checked)) = self.checks.next(), if !self.checks.is_empty() => {
                    self.checked(session, id, wire, checked)
                }
                () = shared.grown.notified() => {
                    self.next_tick = self.next_tick.min(Instant::now() + self.quick());
                    None
                }
                () = sleep_until(self.next_tick) => {
                    self.tick(session);
                    None
                }
            };
            if let Some(left) = left {
                return left;
            }
        }
    }

    fn broken(&self, session: &Session, error: &CallError) -> Left {
        self.link.give_up(&session.connection);
        if let CallError::Status(status) = error
            && matches!(judge(status), Verdict::Login | Verdict::Stale)
        {
            self.shared.forget(session.token.as_ref());
        }
        Left::Broken(refused(&session.connection, error))
    }

    fn command(&mut self, session: &mut Session, command: Command) -> Option<Left> {
        match command {
            Command::Join { id, .. } | Command::CaughtUp(id) => {
                self.register(command);
                self.ask(session, id);
                self.next_tick = self.next_tick.min(Instant::now() + self.quick());
            }
            Command::Leave(id) => {
                self.withdraw(session, id);
                self.watchers.remove(&id);
                if self.watchers.is_empty() {
                    return Some(Left::Unused);
                }
            }
            Command::Reopen => return Some(Left::Reopen),
        }
        None
    }

    /// Ends a watch at the server.
    fn withdraw(&mut self, session: &mut Session, id: u64) {
        let stage = self.watchers.get(&id).map(|watcher| watcher.stage);
        if let Some(Stage::Asked(wire) | Stage::Live(Live { wire, .. })) = stage {
            session.cancel(wire);
        }
    }

    fn end_with_reset(&mut self, session: &mut Session, id: u64, reason: &str) {
        self.withdraw(session, id);
        if let Some(watcher) = self.watchers.remove(&id) {
            watcher.reset(reason);
        }
    }

    fn answer(&mut self, session: &mut Session, answer: WatchResponse) -> Option<Left> {
        let header = answer.header.unwrap_or_default();
        if let Some(left) = self.same_cluster(&header) {
            return Some(left);
        }
        self.shared.saw(header.revision);
        if answer.created {
            let live = session.confirm(&answer)?;
            let id = *session.watches.get(&live.wire)?;
            if answer.canceled {
                session.watches.remove(&live.wire);
                return self.canceled(session, id, &answer);
            }
            self.confirmed(id, live);
            return None;
        }
        let Some(id) = session.watches.get(&answer.watch_id).copied() else {
            if answer.watch_id < 0 && answer.events.is_empty() && !answer.canceled {
                self.progress(session, header.revision);
            }
            return None;
        };
        if answer.canceled {
            session.watches.remove(&answer.watch_id);
            return self.canceled(session, id, &answer);
        }
        let watcher = self.watchers.get_mut(&id)?;
        match watcher.take(&self.shared, answer.events, answer.fragment) {
            Outcome::Fine => {}
            Outcome::Full => {
                watcher.park(Stage::Paused);
                session.cancel(answer.watch_id);
            }
            Outcome::Broken(reason) => self.end_with_reset(session, id, &reason),
        }
        None
    }

    /// Another cluster than before has another history.
    fn same_cluster(&mut self, header: &Header) -> Option<Left> {
        if self.cluster == 0 {
            self.cluster = header.cluster_id;
        }
        if header.cluster_id == self.cluster || header.cluster_id == 0 {
            return None;
        }
        let (before, now) = (self.cluster, header.cluster_id);
        self.cluster = now;
        self.shared.rewind(header.revision);
        self.reset_all(&format!(
            "cluster {now:x} answers, where it was {before:x}: another history"
        ));
        Some(Left::Reopen)
    }

    fn confirmed(&mut self, id: u64, live: Live) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        watcher.stage = Stage::Live(live);
        if watcher.reached < self.shared.newest() {
            self.next_tick = self.next_tick.min(Instant::now() + self.quick());
        }
        let Some(watcher) = self.watchers.get(&id) else {
            return;
        };
        if live.at < watcher.reached {
            // The member lags, or the whole store is at an older revision: then the watch would
            // be silent for as long as it takes to get there again.
            let (reads, prefix) = (Arc::clone(&self.reads), watcher.prefix.clone());
            self.checks.push(Box::pin(async move {
                let newest = reads.newest_of(&prefix).await;
                (id, Some(live.wire), Checked::Newest(newest))
            }));
        }
    }

    fn canceled(&mut self, session: &Session, id: u64, answer: &WatchResponse) -> Option<Left> {
        let compacted = answer.compact_revision;
        let watcher = self.watchers.get_mut(&id)?;
        if compacted > 0 {
            watcher.reset(format!(
                "the history up to revision {compacted} was compacted, and revision {} was \
                 asked for",
                watcher.reached
            ));
            self.watchers.remove(&id);
            return None;
        }
        if answer.cancel_reason.contains("permission denied") {
            // Or the token is not known any more that the stream was opened with.
            watcher.park(Stage::Idle);
            let (reads, prefix) = (Arc::clone(&self.reads), watcher.prefix.clone());
            self.checks.push(Box::pin(async move {
                let readable = reads.newest_of(&prefix).await;
                (id, None, Checked::Readable(readable))
            }));
            return None;
        }
        let reason = match answer.cancel_reason.as_str() {
            "" => "the server ended a watch",
            reason => reason,
        };
        Some(self.broken(session, &CallError::Broken(reason.to_owned())))
    }

    fn quick(&self) -> Duration {
        let watchers = u32::try_from(self.watchers.len()).unwrap_or(u32::MAX);
        QUICK.max(QUICK_EACH.saturating_mul(watchers))
    }

    fn lags(&self) -> bool {
        let newest = self.shared.newest();
        self.watchers
            .values()
            .any(|watcher| watcher.live().is_some() && watcher.reached < newest)
    }

    /// Finds out how far the store is, for the watchers that do not know.
    fn tick(&mut self, session: &mut Session) {
        if self.shared.trusts_progress() {
            session.ask_progress();
        } else {
            self.probe();
        }
        let now = Instant::now();
        self.shared.sleeping.store(true, Ordering::Release);
        if self.lags() {
            self.shared.sleeping.store(false, Ordering::Release);
            self.next_tick = now + self.quick();
        } else {
            self.next_tick = now + self.shared.options.progress_interval;
        }
    }

    fn progress(&mut self, session: &mut Session, revision: i64) {
        if !self.shared.trusts_progress() {
            return;
        }
        let is_about = session.progress(revision);
        for watcher in self.watchers.values_mut() {
            if watcher.live().is_some_and(&is_about) {
                watcher.progress(revision);
            }
        }
    }
}
