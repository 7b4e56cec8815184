//! What is found out about watches beside the stream: by reading, where the stream says nothing or
//! cannot be trusted.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{Hub, Left};
use crate::error::{About, Failure, Refusal};
use crate::grpc::CallError;
use crate::watch::session::Session;

/// Checks of quiet prefixes under way at once.
const PROBES: usize = 16;
/// The pause between one lot of checks and the next.
const PROBE_PAUSE: Duration = Duration::from_millis(5);
/// Changes that a check finds and the stream does not bring by then are lost to the stream.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// Something that was found out about a watch beside the stream.
pub(super) enum Checked {
    /// The store's newest revision, for a watch that begins behind what its member knows.
    Newest(Result<i64, Failure>),
    /// Whether its prefix may be read, for a watch that was denied.
    Readable(Result<i64, Failure>),
    /// Whether its prefix is as it was at a revision, and as of which.
    Quiet(i64, Result<(bool, i64), Failure>),
}

pub(super) type Check = BoxFuture<'static, (u64, Option<i64>, Checked)>;

impl Hub {
    pub(super) fn checked(
        &mut self,
        session: &mut Session,
        id: u64,
        wire: Option<i64>,
        checked: Checked,
    ) -> Option<Left> {
        let root = self.shared.location.root();
        let watcher = self.watchers.get_mut(&id)?;
        let current = watcher.live().map(|live| live.wire);
        match checked {
            Checked::Newest(_) | Checked::Quiet(..) if wire != current => None,
            Checked::Newest(Ok(newest)) => {
                if newest < watcher.reached {
                    self.shared.rewind(newest);
                    let reason = format!(
                        "the store is at revision {newest}, and {} was reached before: another \
                         history",
                        watcher.reached
                    );
                    self.end_with_reset(session, id, &reason);
                }
                None
            }
            Checked::Newest(Err(failure)) => {
                Some(self.broken(session, &CallError::Broken(format!("{failure:?}"))))
            }
            Checked::Readable(Err(failure)) if failure.is_refused_as(Refusal::Denied) => {
                let what = format!("watch {root}/{}", watcher.prefix);
                watcher.fail(failure.into_store_error(About {
                    what,
                    ..About::default()
                }));
                self.watchers.remove(&id);
                None
            }
            Checked::Readable(outcome) => {
                tracing::debug!(
                    ?outcome,
                    "denied, but readable: the stream's login has ended"
                );
                self.shared.forget(session.token.as_ref());
                Some(self.broken(
                    session,
                    &CallError::Broken("the stream's login has ended".to_owned()),
                ))
            }
            Checked::Quiet(from, outcome) => {
                watcher.probed = false;
                self.found(session, id, from, outcome);
                self.probe_next();
                None
            }
        }
    }

    /// What a check of a quiet prefix found.
    fn found(
        &mut self,
        session: &mut Session,
        id: u64,
        from: i64,
        outcome: Result<(bool, i64), Failure>,
    ) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        if watcher.reached != from || !watcher.is_whole() {
            return;
        }
        match outcome {
            Ok((true, revision)) => watcher.progress(revision),
            Ok((false, _)) => {
                let since = *watcher.missing.get_or_insert_with(Instant::now);
                if since.elapsed() > LOST_AFTER {
                    let reason = format!(
                        "the prefix has changed since revision {from}, and the server's watch \
                         does not tell"
                    );
                    self.end_with_reset(session, id, &reason);
                }
            }
            Err(failure) if failure.is_refused_as(Refusal::Compacted) => {
                let reason = format!("the history behind revision {from} was compacted");
                self.end_with_reset(session, id, &reason);
            }
            Err(_) => {}
        }
    }

    /// Goes on with the checks once there is room for as many as are done at once.
    fn probe_next(&mut self) {
        if self.checks.is_empty() && self.lags() {
            self.next_tick = self.next_tick.min(Instant::now() + PROBE_PAUSE);
        }
    }

    /// Checks quiet prefixes by reading, where the server's word does not come in order: those
    /// first that were checked longest ago.
    pub(super) fn probe(&mut self) {
        let newest = self.shared.newest();
        let interval = self.shared.options.progress_interval;
        let mut due: Vec<(Option<Instant>, u64)> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| {
                let rested = |when: Instant| when.elapsed() >= interval;
                let is_due = watcher.reached < newest || watcher.probed_at.is_none_or(rested);
                is_due && watcher.live().is_some() && !watcher.probed && watcher.is_whole()
            })
            .map(|(id, watcher)| (watcher.probed_at, *id))
            .collect();
        due.sort_unstable();
        due.truncate(PROBES.saturating_sub(self.checks.len()));
        for (_, id) in due {
            let Some(watcher) = self.watchers.get_mut(&id) else {
                continue;
            };
            watcher.probed = true;
            watcher.probed_at = Some(Instant::now());
            let wire = watcher.live().map(|live| live.wire);
            let from = watcher.reached;
            let (reads, prefix) = (Arc::clone(&self.reads), watcher.prefix.clone());
            self.checks.push(Box::pin(async move {
                let outcome = reads.is_quiet_since(&prefix, from).await;
                (id, wire, Checked::Quiet(from, outcome))
            }));
        }
    }
}
