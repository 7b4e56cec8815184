//! One watch: the server's events made into the store's, each once and in order.

use std::sync::Arc;

use platctrl_framework::store::{Change, Prefix, Result, Revision, StoreError, WatchEvent};
use tokio::time::Instant;

use super::feed::Feed;
use crate::read::record;
use crate::shared::{Shared, revision};
use crate::wire;

/// Where a watch stands with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not asked for.
    Idle,
    /// Asked for under this number.
    Asked(i64),
    /// Confirmed under this number.
    Live(Live),
    /// Waits for its reader.
    Paused,
}

/// A confirmed watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    /// Its number on the stream.
    pub(crate) wire: i64,
    /// How many watches had been confirmed on the stream, itself included.
    pub(crate) confirmed: u64,
    /// The store's revision when it was confirmed.
    pub(crate) at: i64,
}

/// What became of a watch with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Fine,
    /// Its reader is too far behind.
    Full,
    /// The server told something that cannot be: what the reader knows must be read again.
    Broken(String),
}

/// A watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) prefix: Prefix,
    /// Asked for from here.
    pub(crate) after: Revision,
    pub(crate) feed: Arc<Feed>,
    pub(crate) stage: Stage,
    /// The newest revision that was told as a change, or that the stream began behind.
    told: i64,
    /// Everything up to here was told.
    pub(crate) reached: i64,
    /// The revision whose changes are still coming, and those that have come.
    partial: Option<(i64, Vec<Change>)>,
    /// Since when it is not live.
    pub(crate) waiting: Instant,
    /// A check whether its prefix is quiet is under way.
    pub(crate) probed: bool,
    /// When the last one began.
    pub(crate) probed_at: Option<Instant>,
    /// Since when checks find changes that the stream does not bring.
    pub(crate) missing: Option<Instant>,
}

impl Watcher {
    pub(crate) fn new(prefix: Prefix, after: Revision, feed: Arc<Feed>) -> Self {
        Self {
            prefix,
            after,
            feed,
            stage: Stage::Idle,
            told: 0,
            reached: -1,
            partial: None,
            waiting: Instant::now(),
            probed: false,
            probed_at: None,
            missing: None,
        }
    }

    /// Whether it was asked for before.
    pub(crate) fn is_resolved(&self) -> bool {
        self.reached >= 0
    }

    /// Sets where it stands, in etcd's numbers.
    pub(crate) fn resolve(&mut self) {
        let counter = i64::try_from(self.after.counter()).unwrap_or(i64::MAX - 1);
        self.told = counter;
        self.reached = counter;
    }

    /// It is not on a stream any more, and will begin again where it is.
    pub(crate) fn park(&mut self, stage: Stage) {
        self.stage = stage;
        self.partial = None;
        self.missing = None;
        self.told = self.reached;
        self.waiting = Instant::now();
    }

    pub(crate) fn live(&self) -> Option<Live> {
        match self.stage {
            Stage::Live(live) => Some(live),
            _ => None,
        }
    }

    /// No transaction of it is half told.
    pub(crate) fn is_whole(&self) -> bool {
        self.partial.is_none()
    }

    /// Takes events, which may end in the middle of a transaction.
    pub(crate) fn take(
        &mut self,
        shared: &Shared,
        events: Vec<wire::Event>,
        fragment: bool,
    ) -> Outcome {
        for event in events {
            let Some(kv) = event.kv else { continue };
            let at = kv.mod_revision;
            if at <= self.told {
                // Old, from a member that had not reached where this watch began; or twice.
                continue;
            }
            if at <= self.reached {
                return Outcome::Broken(format!(
                    "revision {at} was told after the store had said that everything up \
                     to {} was",
                    self.reached
                ));
            }
            if self
                .partial
                .as_ref()
                .is_some_and(|(coming, _)| *coming != at)
            {
                match self.finish() {
                    Outcome::Fine => {}
                    other => return other,
                }
                if at <= self.told {
                    continue;
                }
            }
            self.missing = None;
            let (_, changes) = self.partial.get_or_insert_with(|| (at, Vec::new()));
            changes.extend(change(shared, event.kind, &kv));
        }
        if fragment {
            return Outcome::Fine;
        }
        self.finish()
    }

    /// Tells the transaction that has come whole.
    fn finish(&mut self) -> Outcome {
        let Some((at, mut changes)) = self.partial.take() else {
            return Outcome::Fine;
        };
        self.told = at;
        self.reached = at;
        if changes.is_empty() {
            // Foreign keys alone.
            self.feed.progress(revision(at));
            return Outcome::Fine;
        }
        changes.sort_by(|one, other| one.key().cmp(other.key()));
        if self.feed.changes(revision(at), changes) {
            Outcome::Fine
        } else {
            Outcome::Full
        }
    }

    /// Nothing under its prefix changed up to here.
    pub(crate) fn progress(&mut self, at: i64) {
        self.missing = None;
        if at > self.reached && self.is_whole() {
            self.reached = at;
            self.feed.progress(revision(at));
        }
    }

    pub(crate) fn reset(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::info!(prefix = %self.prefix, %reason, "watch reset");
        self.feed.end(Ok(WatchEvent::Reset { reason }));
    }

    pub(crate) fn fail(&self, error: StoreError) {
        let error: Result<WatchEvent> = Err(error);
        self.feed.end(error);
    }
}

fn change(shared: &Shared, kind: i32, kv: &wire::KeyValue) -> Option<Change> {
    match kind {
        0 => record(shared, kv).map(Change::Put),
        1 => Some(Change::Delete {
            key: shared.keys.parse(&kv.key)?,
            revision: revision(kv.mod_revision),
        }),
        // Neither a put nor a delete is known today.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{FutureExt, StreamExt};

    use super::super::feed::Reader;
    use super::*;
    use crate::options::Options;

    struct Bench {
        shared: Shared,
        watcher: Watcher,
        reader: Reader,
    }

    impl Bench {
        fn new(after: u64, buffer: usize) -> Self {
            let location = "etcd://localhost/r".parse().unwrap();
            let feed = Arc::new(Feed::new(buffer));
            let mut watcher = Watcher::new(
                Prefix::new("o/").unwrap(),
                Revision::new(0, after),
                Arc::clone(&feed),
            );
            watcher.resolve();
            let (hub, _) = tokio::sync::mpsc::unbounded_channel();
            Self {
                shared: Shared::new(location, Options::default()).unwrap(),
                watcher,
                reader: Reader { feed, hub, id: 1 },
            }
        }

        fn take(&mut self, events: &[(i64, &str)], fragment: bool) -> Outcome {
            let events = events.iter().map(|(revision, key)| wire::Event {
                kind: 0,
                kv: Some(wire::KeyValue {
                    key: Bytes::from(format!("r/{key}")),
                    mod_revision: *revision,
                    ..wire::KeyValue::default()
                }),
            });
            self.watcher.take(&self.shared, events.collect(), fragment)
        }

        /// What the reader has been told: revisions with their keys, or progress.
        fn told(&mut self) -> Vec<String> {
            let mut told = Vec::new();
            while let Some(Some(item)) = self.reader.next().now_or_never() {
                told.push(match item.unwrap() {
                    WatchEvent::Changes { revision, changes } => {
                        let keys: Vec<_> =
                            changes.iter().map(|change| change.key().as_str()).collect();
                        format!("{revision} {}", keys.join(" "))
                    }
                    WatchEvent::Progress(revision) => format!("{revision}"),
                    WatchEvent::Reset { reason } => reason,
                });
            }
            told
        }
    }

    #[test]
    fn a_transaction_split_over_fragments_is_told_whole() {
        let mut bench = Bench::new(4, 1 << 20);
        bench.take(&[(5, "o/b"), (6, "o/c")], true);
        assert_eq!(bench.told(), ["5 o/b"]);
        assert!(!bench.watcher.is_whole());
        bench.take(&[(6, "o/a")], true);
        assert!(bench.told().is_empty());
        bench.take(&[(6, "o/d"), (7, "o/a")], false);
        assert_eq!(bench.told(), ["6 o/a o/c o/d", "7 o/a"]);
    }

    #[test]
    fn old_events_of_a_member_that_lags_are_left_out() {
        let mut bench = Bench::new(10, 1 << 20);
        assert_eq!(bench.take(&[(8, "o/a"), (10, "o/b")], false), Outcome::Fine);
        assert_eq!(bench.take(&[(11, "o/c")], false), Outcome::Fine);
        assert_eq!(bench.take(&[(11, "o/c")], false), Outcome::Fine);
        assert_eq!(bench.told(), ["11 o/c"]);
    }

    #[test]
    fn an_event_that_a_progress_had_denied_breaks_the_watch() {
        let mut bench = Bench::new(10, 1 << 20);
        bench.watcher.progress(15);
        let outcome = bench.take(&[(13, "o/a")], false);
        assert!(matches!(outcome, Outcome::Broken(_)), "{outcome:?}");
    }

    #[test]
    fn a_reader_that_does_not_read_pauses_its_watch_and_loses_nothing() {
        let mut bench = Bench::new(0, 1000);
        let mut full_at = None;
        for revision in 1..20 {
            if bench.take(&[(revision, "o/a")], false) == Outcome::Full {
                full_at = Some(revision);
                break;
            }
        }
        let full_at = full_at.unwrap();
        assert_eq!(bench.watcher.reached, full_at);
        assert_eq!(bench.told().len(), usize::try_from(full_at).unwrap());
    }

    #[test]
    fn keys_that_somebody_else_wrote_are_set_aside() {
        let mut bench = Bench::new(0, 1000);
        bench.take(&[(1, "o/Not A Key"), (2, "o/a"), (2, "o/B")], false);
        assert_eq!(bench.told(), ["1", "2 o/a"]);
    }

    #[test]
    fn progress_that_was_not_read_is_told_once() {
        let mut bench = Bench::new(0, 1000);
        for revision in [3, 5, 4, 9] {
            bench.watcher.progress(revision);
        }
        assert_eq!(bench.told(), ["9"]);
    }
}
