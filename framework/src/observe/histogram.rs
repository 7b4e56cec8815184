//! How long things take, counted in buckets.

use std::time::Duration;

/// The upper bounds of all buckets but the last, in nanoseconds. Fine where a view in memory and
/// a store nearby are, and up to the minutes that a stuck rollout takes.
const BOUNDS: [u64; 20] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
];

/// Counts of durations. Whoever keeps it locks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: u64,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Histogram {
    pub(crate) fn observe(&mut self, duration: Duration) {
        let nanos = nanos(duration);
        let bucket = BOUNDS.partition_point(|&bound| bound < nanos);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(nanos);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (count, other) in self.counts.iter_mut().zip(other.counts) {
            *count += other;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many were counted.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, in seconds.
    pub(crate) fn sum_seconds(&self) -> f64 {
        Duration::from_nanos(self.sum).as_secs_f64()
    }

    /// The bounds in seconds with the counts between them, as an encoder wants them.
    pub(crate) fn buckets(&self) -> [(f64, u64); BOUNDS.len() + 1] {
        std::array::from_fn(|index| {
            let bound = BOUNDS.get(index);
            let seconds = bound.map_or(f64::INFINITY, |&nanos| {
                Duration::from_nanos(nanos).as_secs_f64()
            });
            (seconds, self.counts[index])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_is_not_below_it() {
        let mut histogram = Histogram::default();
        for micros in [0, 50, 51, 1_000, 400_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut twice = histogram.clone();
        twice.add(&histogram);
        assert_eq!((histogram.count(), twice.count()), (5, 10));
        let filled = histogram.buckets();
        let filled = filled.iter().filter(|(_, count)| *count > 0);
        let filled: Vec<_> = filled.copied().collect();
        assert_eq!(
            filled,
            [(0.000_05, 2), (0.0001, 1), (0.001, 1), (f64::INFINITY, 1)]
        );
        assert!((histogram.sum_seconds() - 400.001_101).abs() < 1e-9);
    }
}
