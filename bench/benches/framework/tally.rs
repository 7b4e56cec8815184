//! What the reconciles of one side have seen: the function that every side calls.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use platctrl_bench::hash;
use tokio::sync::Notify;

use crate::widget::{FIRST_ROUND, NO_STAMP, WidgetSpec, now};

/// Counts and sums.
pub(crate) struct Tally {
    /// For each object one more than the newest round seen, and a hash of what was seen then.
    seen: Vec<(AtomicU64, AtomicU64)>,
    wanted: AtomicU64,
    complete: Notify,
    reconciles: AtomicU64,
    accounted: AtomicU64,
    latencies: Mutex<Vec<f64>>,
    /// Only changes of this object are timed.
    timed: Option<usize>,
}

impl Tally {
    pub(crate) fn new(objects: usize, timed: Option<usize>) -> Self {
        Self {
            seen: (0..objects).map(|_| Default::default()).collect(),
            wanted: AtomicU64::new(u64::MAX),
            complete: Notify::new(),
            reconciles: AtomicU64::new(0),
            accounted: AtomicU64::new(0),
            latencies: Mutex::default(),
            timed,
        }
    }

    /// Waits until so many rounds were seen, or merged into later ones that were.
    pub(crate) async fn accounted_for(&self, rounds: u64) {
        self.wanted.store(rounds, Ordering::SeqCst);
        while self.accounted() < rounds {
            self.complete.notified().await;
        }
    }

    pub(crate) fn reconciles(&self) -> u64 {
        self.reconciles.load(Ordering::Relaxed)
    }

    /// Rounds seen, or merged into later ones.
    pub(crate) fn accounted(&self) -> u64 {
        self.accounted.load(Ordering::SeqCst)
    }

    /// Of every object's last content; few enough bits for a float to hold.
    pub(crate) fn checksum(&self) -> u64 {
        let hashes = self.seen.iter().map(|seen| seen.1.load(Ordering::Relaxed));
        hashes.fold(0_u64, u64::wrapping_add) & 0xffff_ffff_ffff
    }

    fn latencies(&self) -> MutexGuard<'_, Vec<f64>> {
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Those since the last call, in milliseconds.
    pub(crate) fn take_latencies(&self) -> Vec<f64> {
        std::mem::take(&mut *self.latencies())
    }

    /// The reconcile.
    pub(crate) fn saw(&self, spec: &WidgetSpec) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        let Some((newest, content)) = self.seen.get(spec.index) else {
            return;
        };
        let round = spec.round - FIRST_ROUND + 1;
        let before = newest.fetch_max(round, Ordering::Relaxed);
        if round <= before {
            return;
        }
        if spec.stamp > NO_STAMP && self.timed.is_none_or(|timed| timed == spec.index) {
            let latency = now().saturating_sub(spec.stamp) as f64 / 1e6;
            self.latencies().push(latency);
        }
        let (index, end) = (spec.index.to_le_bytes(), spec.text.len().saturating_sub(16));
        let tail = spec.text.as_bytes().get(end..).unwrap_or_default();
        let seen = hash(&[&index, &round.to_le_bytes(), tail]);
        content.store(seen, Ordering::Relaxed);
        let more = round - before;
        let accounted = self.accounted.fetch_add(more, Ordering::SeqCst) + more;
        let wanted = self.wanted.load(Ordering::SeqCst);
        if accounted >= wanted && accounted - more < wanted {
            self.complete.notify_one();
        }
    }
}
