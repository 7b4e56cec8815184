//! How long to wait after failures in a row.

use std::time::Duration;

use crate::environment::Environment;

/// Exponential growth between two bounds, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) most: Duration,
}

impl Backoff {
    /// For reading a store again: in step with what client-go and kube-rs do, so that nobody is
    /// surprised by the load.
    pub(crate) const SOURCE: Self = Self {
        first: Duration::from_millis(800),
        most: Duration::from_secs(30),
    };

    /// For a key whose run failed.
    pub(crate) const KEY: Self = Self {
        first: Duration::from_millis(50),
        most: Duration::from_secs(300),
    };

    /// The wait after `failures` failures in a row, which is at least one.
    pub(crate) fn delay(self, failures: u32, environment: &Environment) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        let full = self.first.saturating_mul(1 << doublings).min(self.most);
        environment.jitter(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most() {
        let environment = Environment::system();
        let backoff = Backoff::SOURCE;
        for (failures, full) in [
            (1, 800),
            (2, 1600),
            (5, 12800),
            (7, 30000),
            (u32::MAX, 30000),
        ] {
            let full = Duration::from_millis(full);
            let drawn = backoff.delay(failures, &environment);
            assert!(drawn >= full / 2 && drawn <= full, "{failures}: {drawn:?}");
        }
    }
}
