//! What one process remembers of the rolls that it works on: since when pods are healthy, and when
//! something last moved, by its own monotonic clock.
//!
//! No agent's clock is asked, and no clock that jumps. A process that takes over begins anew: it
//! waits once more until it has seen pods healthy for long enough itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platctrl_framework::cache::Owners;
use platctrl_framework::model::Uid;
use platctrl_framework::store::Revision;
use platctrl_kinds::Pod;

use crate::crew::Kept;
use crate::nodes::{Names, Nodes};

/// What is remembered, by roll.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    tracks: Arc<Mutex<HashMap<Uid, Track>>>,
    /// The pods of the controllers that are rolled.
    pods: Owners<Pod, Kept>,
    nodes: Nodes,
}

/// What is remembered of one roll.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    /// The claim that it was seen under.
    epoch: Option<Revision>,
    /// The generation of the roll's spec.
    generation: u64,
    /// Since when a pod, with its spec of that generation, is healthy.
    healthy: HashMap<Uid, (u64, Duration)>,
    /// Those of them that were not healthy for `counted` when that was looked at last.
    young: BTreeSet<(Duration, Uid)>,
    counted: Duration,
    /// The nodes that were not heard of when health was last looked at; None: it never was.
    silent: Option<Names>,
    /// The furthest that it came, and when.
    progress: Option<(u64, Duration)>,
    moved: Option<Duration>,
}

impl Memory {
    /// Looks at what is remembered of a roll, and changes it.
    pub(super) fn with<T>(&self, roll: &Uid, look: impl FnOnce(&mut Track) -> T) -> T {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        look(tracks.entry(roll.clone()).or_default())
    }

    pub(super) fn pods(&self) -> &Owners<Pod, Kept> {
        &self.pods
    }

    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    pub(super) fn forget(&self, roll: &Uid) {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        tracks.remove(roll);
        if tracks.is_empty() {
            // It may be long until the next one.
            self.pods.forget();
            self.nodes.forget();
        }
    }
}

impl Track {
    /// Begins anew under another claim; another spec is given all its time again.
    pub(super) fn begin(&mut self, epoch: Option<Revision>, generation: u64, now: Duration) {
        if self.epoch != epoch || self.moved.is_none() {
            *self = Self {
                epoch,
                moved: Some(now),
                ..Self::default()
            };
        }
        if self.generation != generation {
            self.generation = generation;
            self.progress = None;
        }
    }

    /// For how long a pod is healthy.
    pub(super) fn healthy_for(
        &mut self,
        pod: &Uid,
        generation: u64,
        healthy: bool,
        now: Duration,
    ) -> Duration {
        if !healthy {
            self.healthy.remove(pod);
            return Duration::ZERO;
        }
        match self.healthy.get(pod) {
            Some((of, since)) if *of == generation => now.saturating_sub(*since),
            _ => {
                self.healthy.insert(pod.clone(), (generation, now));
                self.young.insert((now, pod.clone()));
                Duration::ZERO
            }
        }
    }

    /// Health is to be looked at with these nodes not heard of. False: of all pods anew, and not
    /// only of those that changed.
    pub(super) fn looks_on(&mut self, silent: &Names) -> bool {
        let before = self.silent.replace(silent.clone());
        before.is_some_and(|before| Arc::ptr_eq(&before, silent))
    }

    /// Nobody asks since when pods are healthy, until health is looked at again.
    pub(super) fn looks_away(&mut self) {
        self.healthy.clear();
        self.young.clear();
        self.silent = None;
    }

    /// The pods that are healthy for less than `least`, and how much of it is left.
    pub(super) fn unconfirmed(&mut self, least: Duration, now: Duration) -> HashMap<Uid, Duration> {
        if least > self.counted {
            let since = self.healthy.iter();
            self.young = since
                .map(|(pod, (_, since))| (*since, pod.clone()))
                .collect();
        }
        self.counted = least;
        while let Some((since, _)) = self.young.first()
            && now.saturating_sub(*since) >= least
        {
            self.young.pop_first();
        }
        let (young, healthy) = (&self.young, &self.healthy);
        let still = |since: Duration, pod: &Uid| {
            (healthy.get(pod)).is_some_and(|(_, healthy)| *healthy == since)
        };
        let young = young.iter().filter(|(since, pod)| still(*since, pod));
        young
            .map(|(since, pod)| {
                (
                    pod.clone(),
                    least.saturating_sub(now.saturating_sub(*since)),
                )
            })
            .collect()
    }

    /// Forgets pods that are no more, once it remembers more than there are. No other pod will
    /// have the uid of one that is gone.
    pub(super) fn keep(&mut self, count: usize, is_there: impl Fn(&Uid) -> bool) {
        if self.healthy.len() > count {
            self.healthy.retain(|pod, _| is_there(pod));
        }
        if self.young.len() > count {
            self.young.retain(|(_, pod)| is_there(pod));
        }
    }

    /// For how long it did not come further than this. What came and went is no progress.
    pub(super) fn without_progress(&mut self, mark: u64, now: Duration) -> Duration {
        match self.progress {
            Some((furthest, since)) if mark <= furthest => now.saturating_sub(since),
            _ => {
                self.progress = Some((mark, now));
                Duration::ZERO
            }
        }
    }

    /// It waits for a person: that is nobody's failure.
    pub(super) fn waits_for_a_person(&mut self) {
        self.progress = None;
    }

    pub(super) fn move_was_made(&mut self, now: Duration) {
        self.moved = Some(now);
    }

    /// How much of `delay` since the last move is left.
    pub(super) fn delay_left(&self, delay: Duration, now: Duration) -> Option<Duration> {
        let left = delay.saturating_sub(now.saturating_sub(self.moved?));
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn health_is_counted_anew_for_each_spec_and_each_holder_of_the_claim() {
        let mut track = Track::default();
        track.begin(None, 1, S);
        let pod: Uid = "p".into();
        assert_eq!(track.healthy_for(&pod, 1, true, S), Duration::ZERO);
        assert_eq!(track.healthy_for(&pod, 1, true, 4 * S), 3 * S);
        assert_eq!(track.healthy_for(&pod, 2, true, 5 * S), Duration::ZERO);
        track.healthy_for(&pod, 2, false, 6 * S);
        assert_eq!(track.healthy_for(&pod, 2, true, 7 * S), Duration::ZERO);
        track.begin(Some(Revision::ZERO), 1, 9 * S);
        assert_eq!(track.healthy_for(&pod, 2, true, 9 * S), Duration::ZERO);
        assert_eq!(track.delay_left(2 * S, 10 * S), Some(S));
    }

    #[test]
    fn what_came_and_went_is_no_progress() {
        let mut track = Track::default();
        track.begin(None, 1, S);
        assert_eq!(track.without_progress(3, S), Duration::ZERO);
        assert_eq!(track.without_progress(2, 2 * S), S);
        assert_eq!(track.without_progress(3, 3 * S), 2 * S);
        assert_eq!(track.without_progress(4, 4 * S), Duration::ZERO);
        track.begin(None, 2, 9 * S);
        assert_eq!(track.without_progress(4, 9 * S), Duration::ZERO);
    }
}
