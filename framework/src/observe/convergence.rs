//! How long it takes from a wish to its fulfilment, as reports tell it.
//!
//! A wish is a new intent of an object of the controller's own kind, or its tombstone. It is
//! fulfilled when its reality says that it observed that generation and `Ready`, if it speaks of
//! that, is `True`; a tombstone when the object's records are gone. A newer wish takes the place
//! of the one before, whose time goes on: what counts is how long people wait.
//!
//! Records are looked into only where a wish and a report meet.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use super::histogram::Histogram;
use crate::model::ObjectKey;
use crate::store::Revision;

/// Wishes that are timed at once; more are not.
const MAX_OPEN: usize = 16 * 1024;

/// The records of an object, as they matter here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen<'r> {
    pub(crate) intent: Option<(&'r [u8], Revision)>,
    pub(crate) reality: Option<(&'r [u8], Revision)>,
    /// The intent has a tombstone.
    pub(crate) ending: bool,
}

#[derive(Deserialize)]
struct IntentHead<'r> {
    #[serde(borrow)]
    metadata: Head<'r>,
}

#[derive(Deserialize)]
struct RealityHead<'r> {
    #[serde(borrow)]
    metadata: Head<'r>,
    #[serde(borrow, default)]
    status: Report<'r>,
}

#[derive(Deserialize)]
struct Head<'r> {
    #[serde(borrow, default)]
    uid: Cow<'r, str>,
    #[serde(default)]
    generation: u64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report<'r> {
    #[serde(default)]
    observed_generation: Option<u64>,
    #[serde(borrow, default)]
    conditions: Vec<Stated<'r>>,
}

#[derive(Deserialize)]
struct Stated<'r> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'r, str>,
    #[serde(borrow)]
    status: Cow<'r, str>,
}

impl Seen<'_> {
    /// What is reported is what is wanted.
    fn is_fulfilled(&self) -> bool {
        let (Some((intent, _)), Some((reality, _)), false) =
            (self.intent, self.reality, self.ending)
        else {
            return false;
        };
        let Ok(IntentHead { metadata: wanted }) = serde_json::from_slice(intent) else {
            return false;
        };
        let Ok(RealityHead { metadata, status }) = serde_json::from_slice(reality) else {
            return false;
        };
        let ready = status
            .conditions
            .iter()
            .find(|stated| stated.kind == "Ready");
        let ready = ready.map(|stated| stated.status == "True");
        let observed = match status.observed_generation {
            Some(observed) => observed >= wanted.generation && ready != Some(false),
            None => ready == Some(true),
        };
        metadata.uid == wanted.uid && observed
    }
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Arc<ObjectKey>, Duration>,
    took: Histogram,
}

/// Times the wishes of one controller's kind.
#[derive(Debug, Default)]
pub(crate) struct Convergence {
    state: Mutex<State>,
    /// As many as are open, so that most changes need no lock.
    open: AtomicUsize,
}

/// What is known of wishes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timed {
    pub(crate) took: Histogram,
    pub(crate) open: usize,
    /// How long the oldest open one waits.
    pub(crate) oldest: Duration,
}

impl Convergence {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a change of one object.
    pub(crate) fn changed(
        &self,
        key: &Arc<ObjectKey>,
        before: Seen<'_>,
        after: Seen<'_>,
        now: Duration,
    ) {
        let revision = |record: Option<(&[u8], Revision)>| record.map(|(_, revision)| revision);
        let open = self.open.load(Ordering::Relaxed);
        if after.intent.is_none() {
            if open > 0 {
                self.fulfilled(key, now);
            }
        } else if revision(before.intent) != revision(after.intent) {
            if after.is_fulfilled() {
                // Something else than the spec was changed, or all came at once.
                self.fulfilled(key, now);
            } else if open < MAX_OPEN {
                let mut state = self.state();
                state.open.entry(key.clone()).or_insert(now);
                self.open.store(state.open.len(), Ordering::Relaxed);
            }
        } else if open > 0
            && revision(before.reality) != revision(after.reality)
            && self.since(key).is_some()
            && after.is_fulfilled()
        {
            self.fulfilled(key, now);
        }
    }

    fn fulfilled(&self, key: &ObjectKey, now: Duration) {
        let mut state = self.state();
        if let Some(since) = state.open.remove(key) {
            state.took.observe(now.saturating_sub(since));
            self.open.store(state.open.len(), Ordering::Relaxed);
        }
    }

    /// Since when the wish about this object waits.
    pub(crate) fn since(&self, key: &ObjectKey) -> Option<Duration> {
        self.state().open.get(key).copied()
    }

    pub(crate) fn timed(&self, now: Duration) -> Timed {
        let state = self.state();
        let oldest = state.open.values().min();
        Timed {
            took: state.took.clone(),
            open: state.open.len(),
            oldest: oldest.map_or(Duration::ZERO, |&since| now.saturating_sub(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Arc<ObjectKey> {
        Arc::new(ObjectKey::namespaced("example.dev", "things", "default", "a").unwrap())
    }

    fn intent(generation: u64) -> Vec<u8> {
        format!(r#"{{"metadata":{{"uid":"u","generation":{generation}}},"spec":{{"x":[1]}}}}"#)
            .into()
    }

    fn report(uid: &str, observed: u64, ready: &str) -> Vec<u8> {
        format!(
            r#"{{"metadata":{{"uid":"{uid}"}},"status":{{"observedGeneration":{observed},"conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#
        )
        .into()
    }

    fn at<'r>(intent: &'r [u8], reality: &'r [u8], revisions: (u64, u64)) -> Seen<'r> {
        let record = |bytes: &'r [u8], revision| {
            (!bytes.is_empty()).then_some((bytes, Revision::from_u64(revision)))
        };
        Seen {
            intent: record(intent, revisions.0),
            reality: record(reality, revisions.1),
            ending: false,
        }
    }

    #[test]
    fn a_wish_is_timed_until_it_is_reported_as_fulfilled() {
        let convergence = Convergence::default();
        let (key, second) = (key(), Duration::from_secs);
        let (first, later) = (intent(1), intent(2));
        let (unready, other) = (report("u", 1, "False"), report("v", 2, "True"));
        let (old, done) = (report("u", 1, "True"), report("u", 2, "True"));
        let steps = [
            (10, at(&first, b"", (1, 0))),
            (11, at(&first, &unready, (1, 2))),
            // A newer wish before the first was fulfilled: people wait since the first.
            (12, at(&later, &unready, (3, 2))),
            (13, at(&later, &old, (3, 4))),
            (14, at(&later, &other, (3, 5))),
        ];
        let mut before = Seen::default();
        for (now, after) in steps {
            convergence.changed(&key, before, after, second(now));
            assert_eq!(convergence.since(&key), Some(second(10)), "{now}");
            before = after;
        }
        assert_eq!(convergence.timed(second(15)).oldest, second(5));
        let after = at(&later, &done, (3, 6));
        convergence.changed(&key, before, after, second(16));
        let timed = convergence.timed(second(20));
        assert_eq!((timed.open, timed.took.count()), (0, 1));
        assert!((timed.took.sum_seconds() - 6.0).abs() < 1e-9);
        // A report that goes and comes back is no wish, nor is an edit that leaves the spec.
        let away = at(&later, &unready, (3, 7));
        convergence.changed(&key, after, away, second(30));
        let back = at(&later, &done, (3, 8));
        convergence.changed(&key, away, back, second(31));
        convergence.changed(&key, back, at(&later, &done, (9, 8)), second(32));
        let timed = convergence.timed(second(40));
        assert_eq!((timed.open, timed.took.count()), (0, 1));
    }

    #[test]
    fn a_tombstone_is_fulfilled_when_the_records_are_gone() {
        let convergence = Convergence::default();
        let (key, second) = (key(), Duration::from_secs);
        let (wanted, done) = (intent(1), report("u", 1, "True"));
        let before = at(&wanted, &done, (1, 2));
        let ending = Seen {
            ending: true,
            ..at(&wanted, &done, (3, 2))
        };
        convergence.changed(&key, before, ending, second(1));
        assert_eq!(convergence.timed(second(2)).open, 1);
        convergence.changed(&key, ending, Seen::default(), second(4));
        let timed = convergence.timed(second(9));
        assert_eq!((timed.open, timed.took.count()), (0, 1));
        assert!((timed.took.sum_seconds() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn wishes_beyond_the_bound_are_not_timed() {
        let convergence = Convergence::default();
        let wanted = intent(1);
        for number in 0..MAX_OPEN + 10 {
            let name = format!("n{number}");
            let key = ObjectKey::namespaced("example.dev", "things", "default", &name).unwrap();
            let after = at(&wanted, b"", (1, 0));
            convergence.changed(&Arc::new(key), Seen::default(), after, Duration::ZERO);
        }
        assert_eq!(convergence.timed(Duration::ZERO).open, MAX_OPEN);
    }
}
