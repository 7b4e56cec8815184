//! The task that looks after a runtime's failsafes: checks the chain each minute, hears what
//! people say, writes down what is held, and remembers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;

use super::baseline::Baseline;
use super::chain::{self, History};
use super::control::{self, EXPECTED_FOR, parse_freeze};
use super::guards::Safeguards;
use super::history::{parse, told_keys};
use super::record::{Failsafe, FailsafeSpec, FailsafeStatus, Recall};
use super::switch::Safeguard;
use crate::cache::{Reader, SourceState};
use crate::client::{Batch, Client, ClientError};
use crate::model::identity::{Anchor, anchor_key};
use crate::model::{Deletion, Intent, Metadata, Object, ObjectKey, Propagation, Status, Tree};
use crate::store::{Compare, Key, Store, StoreError, Transaction, WatchEvent};

/// How often the chain is checked and, by the one who keeps it, grows.
const MINUTE: Duration = Duration::from_secs(60);
/// How long holds are collected before they are written down.
const COLLECT: Duration = Duration::from_millis(200);
/// Before a broken watch is begun again.
const PAUSE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 4;
/// Missing intents that are listed.
const LISTED: usize = 100;

/// What the task needs.
pub(crate) struct Warden {
    pub(crate) guards: Arc<Safeguards>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sources: Arc<[Arc<SourceState>]>,
    pub(crate) reader: Reader,
    /// Whether this process speaks for its program, and the claim that its commits then compare.
    pub(crate) speaks: Box<dyn Fn() -> Option<Option<Compare>> + Send + Sync>,
}

impl fmt::Debug for Warden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warden")
            .field("guards", &self.guards)
            .finish_non_exhaustive()
    }
}

/// What a person wants of this program.
#[derive(Debug, serde::Deserialize)]
struct Told {
    #[serde(default)]
    spec: FailsafeSpec,
}

impl Warden {
    /// Works until dropped.
    pub(crate) async fn run(self) {
        let environment = self.guards.environment.clone();
        let mut moved = self.guards.subscribe();
        let mut written = FailsafeStatus::default();
        let mut saved = None;
        let mut minute = environment.monotonic() + environment.jitter(MINUTE);
        let mut turns = 0;
        loop {
            let after = self.listen().await;
            let mut pause = if after.is_some() {
                Duration::ZERO
            } else {
                PAUSE
            };
            let mut stream = match after {
                Some(after) => self.store.watch(control::prefix(), after),
                None => futures::stream::pending().boxed(),
            };
            // Until the watch breaks, or could not be begun.
            loop {
                let left = minute.saturating_sub(environment.monotonic());
                tokio::select! {
                    biased;
                    () = environment.sleep(pause), if !pause.is_zero() => break,
                    event = stream.next() => match event {
                        Some(Ok(WatchEvent::Progress(_))) => {}
                        Some(Ok(WatchEvent::Changes { .. })) => {
                            if self.listen().await.is_none() {
                                break;
                            }
                        }
                        // Not allowed to hear it at once: asked each minute.
                        Some(Err(StoreError::Denied { .. })) => {
                            pause = MINUTE;
                            stream = futures::stream::pending().boxed();
                        }
                        Some(Ok(WatchEvent::Reset { .. }) | Err(_)) | None => {
                            pause = PAUSE;
                            stream = futures::stream::pending().boxed();
                        }
                    },
                    changed = moved.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        environment.sleep(COLLECT).await;
                        self.follow(&mut turns);
                        self.write_down(&mut written).await;
                    }
                    () = environment.sleep(left) => {
                        minute = environment.monotonic() + MINUTE;
                        self.each_minute(&mut turns, &mut saved).await;
                        let heard = self.listen().await;
                        self.write_down(&mut written).await;
                        if heard.is_none() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Reads everything again when the history has turned.
    fn follow(&self, turns: &mut u64) {
        let now = self.guards.state().turns;
        if std::mem::replace(turns, now) != now {
            self.read_again();
        }
    }

    fn read_again(&self) {
        for source in &*self.sources {
            source.read_again();
        }
    }

    async fn each_minute(&self, turns: &mut u64, saved: &mut Option<Baseline>) {
        match self.guards.verify(&*self.store).await {
            Ok(_) => self.follow(turns),
            Err(error) => tracing::debug!(%error, "the chain cannot be checked"),
        }
        if self.guards.setup.keep_chain
            && let Some(fence) = (self.speaks)()
        {
            self.append(fence).await;
        }
        let synced = self.reader.sources().iter().all(Option::is_some);
        if let (Some(file), true) = (&self.guards.setup.file, synced)
            && let Some(baseline) = self.guards.to_remember(&self.reader.view())
            && saved.as_ref() != Some(&baseline)
        {
            let (file, kept) = (file.clone(), baseline.clone());
            let outcome = tokio::task::spawn_blocking(move || kept.save(&file)).await;
            match outcome {
                Ok(Ok(())) => *saved = Some(baseline),
                Ok(Err(error)) => {
                    let file = self.guards.setup.file.as_deref();
                    tracing::warn!(?file, %error, "what was seen cannot be remembered");
                }
                Err(error) => tracing::warn!(%error, "what was seen cannot be remembered"),
            }
        }
    }

    async fn append(&self, fence: Option<Compare>) {
        let environment = &self.guards.environment;
        let remembered = self.guards.state().link.clone();
        let appended = async {
            let shown = chain::read(&*self.store, remembered.as_ref()).await?;
            let other = self.guards.state().other_history.is_some();
            if !self.guards.is_on(Safeguard::HistoryLinks) {
                return chain::append(&*self.store, environment, &shown, fence)
                    .await
                    .map(Some);
            }
            if other
                || matches!(
                    chain::compare(remembered.as_ref(), &shown),
                    History::Other(_)
                )
            {
                // A link would make the other history look like the one that is remembered.
                return Ok(None);
            }
            let link = chain::append(&*self.store, environment, &shown, fence).await?;
            Ok::<_, StoreError>(Some(link))
        };
        match appended.await {
            Ok(Some(link)) => self.guards.appended(link),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "no link was appended to the chain"),
        }
    }

    /// Hears what everybody, and what this program, was told. None while it cannot be read.
    async fn listen(&self) -> Option<crate::store::Revision> {
        let holder = self.guards.holder_key();
        let snapshot = match self.store.get(&told_keys(holder.as_ref())).await {
            Ok(snapshot) => snapshot,
            Err(StoreError::Denied { .. }) => {
                self.guards.hear_nothing();
                // Asked again each minute.
                return Some(self.reader.view().revision());
            }
            Err(error) => {
                tracing::debug!(%error, "what people say cannot be read");
                return None;
            }
        };
        let mut records = snapshot.records.into_iter();
        let freeze = parse_freeze(records.next().flatten().as_ref());
        let expected = parse(records.next().flatten().as_ref());
        self.guards.hear(freeze, expected);
        if let Some(told) = parse::<Told>(records.next().flatten().as_ref()) {
            let (done, read_again) = self.guards.reset(&told.spec.reset);
            if !done.is_empty() {
                tracing::warn!(?done, "a person reset what was held");
            }
            if read_again {
                for source in &*self.sources {
                    source.accept_history();
                }
                self.read_again();
            }
            if (self.speaks)().is_some() {
                for recall in &told.spec.adopt {
                    self.recall(recall, false).await;
                }
                for recall in &told.spec.remove {
                    self.recall(recall, true).await;
                }
            }
        }
        Some(snapshot.revision)
    }

    /// Writes a lost intent again, as it was or with a tombstone.
    async fn recall(&self, order: &Recall, end: bool) {
        let environment = &self.guards.environment;
        let age = environment.now().duration_since(order.at).unsigned_abs();
        let Ok(key) = Key::new(&order.key) else {
            return;
        };
        let mark = (format!("{end} {}", order.key), order.at);
        let was = {
            let state = self.guards.state();
            let withheld = state.withheld.get(&order.key).map(|it| it.was.clone());
            let was = withheld.or_else(|| state.lost.get(&order.key).cloned());
            was.filter(|_| age < EXPECTED_FOR && !state.resets.contains(&mark))
        };
        let Some(mut was) = was else {
            return;
        };
        if end {
            let Ok(mut intent) = serde_json::from_slice::<Intent>(&was) else {
                return;
            };
            intent.metadata.deletion = Some(Deletion {
                uid: intent.metadata.uid.clone(),
                at: environment.now(),
                by: order.by.clone(),
                propagation: Propagation::Orphan,
                grace_seconds: None,
                reason: Some("its intent was lost, and a person ordered its end".to_owned()),
                declared: true,
            });
            let Ok(value) = serde_json::to_vec(&intent) else {
                return;
            };
            was = value.into();
        }
        let put = Transaction::new().require_absent(key.clone()).put(key, was);
        match self.store.commit(put).await {
            Ok(_) => {
                tracing::warn!(key = order.key, end, by = order.by, "a lost intent is back");
                let mut state = self.guards.state();
                state.resets.insert(mark);
                state.lost.remove(&order.key);
            }
            Err(error) => {
                tracing::warn!(key = order.key, %error, "a lost intent cannot be written again");
            }
        }
    }

    /// Writes down what is held, where `platctrl failsafe list` finds it.
    async fn write_down(&self, written: &mut FailsafeStatus) {
        let Some(fence) = (self.speaks)() else {
            return;
        };
        let status = self.status(written);
        if status == *written {
            return;
        }
        for _ in 0..ATTEMPTS {
            match self.report(&status, fence.clone()).await {
                Ok(()) => {
                    *written = status;
                    return;
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => {
                    tracing::debug!(%error, "what is held cannot be written down");
                    return;
                }
            }
        }
    }

    fn status(&self, written: &FailsafeStatus) -> FailsafeStatus {
        let view = self.guards.view();
        let mut status = FailsafeStatus {
            held: u32::try_from(view.holds.len()).unwrap_or(u32::MAX),
            frozen: view.frozen.is_some(),
            ..FailsafeStatus::default()
        };
        let ids: Vec<&str> = view.holds.iter().map(|hold| hold.id.as_str()).collect();
        status.summary = ids.join(", ");
        status.holds = view.holds;
        if !self.reader.sources().iter().all(Option::is_some) {
            status.baseline.clone_from(&written.baseline);
            return status;
        }
        let (seen, kinds) = (self.reader.view(), self.guards.kinds());
        let lost: Vec<String> = self.guards.state().lost.keys().cloned().collect();
        let missing = lost.into_iter().filter(|key| {
            let key = Key::new(key).ok();
            let scope = |group: &str, plural: &str| kinds.scope(group, plural);
            let object = key.as_ref().and_then(|key| ObjectKey::parse(key, scope));
            object.is_some_and(|(_, object, _)| seen.record(&object, Tree::Intent).is_none())
        });
        status.unexplained = missing.take(LISTED).collect();
        if self.guards.setup.keep_chain {
            let baseline = self.guards.to_remember(&seen);
            // Links and revisions move all the time: that alone is not worth a write.
            status.baseline = match (&written.baseline, baseline) {
                (Some(old), Some(new)) if !new.differs_much(old) => Some(old.clone()),
                (Some(old), None) => Some(old.clone()),
                (_, new) => new,
            };
        }
        status
    }

    async fn report(
        &self,
        status: &FailsafeStatus,
        fence: Option<Compare>,
    ) -> Result<(), ClientError> {
        let Some(key) = self.guards.holder_key() else {
            return Ok(());
        };
        // Nothing is written into a store that is not this program's.
        let known = self.guards.state().store_id.clone();
        let records = self.store.get(&[anchor_key()]).await?.records;
        let Some(anchor) = records.into_iter().next().flatten() else {
            return Ok(());
        };
        let id = parse::<Anchor>(Some(&anchor)).map(|anchor| anchor.store_id);
        if !known.is_empty() && id.as_ref() != Some(&known) {
            return Ok(());
        }
        let here = Compare::Revision(anchor.key, anchor.modified);
        let environment = self.guards.environment.clone();
        let client = Client::new(
            self.store.clone(),
            environment,
            self.guards.setup.holder.as_str(),
        );
        let mut joined = client.joined(&key).await?;
        if joined.intent.is_none() && joined.reality.is_none() {
            let metadata = Metadata::named(self.guards.setup.holder.as_str());
            let object = Object::<Failsafe>::new(metadata, FailsafeSpec::default());
            let mut batch = Batch::new();
            batch.create_typed(client.environment(), &object)?;
            batch.require(here.clone());
            if let Some(fence) = &fence {
                batch.require(fence.clone());
            }
            client.commit(batch).await?;
            joined = client.joined(&key).await?;
        }
        let mut batch = Batch::new();
        let full = Status {
            detail: status.clone(),
            observed_generation: joined
                .intent
                .as_ref()
                .map(|it| it.value.metadata.generation),
            ..Status::default()
        };
        batch.report_typed::<Failsafe>(&joined, &full)?;
        if batch.is_empty() {
            return Ok(());
        }
        batch.require(here);
        if let Some(fence) = fence {
            batch.require(fence);
        }
        client.commit(batch).await?;
        Ok(())
    }
}
