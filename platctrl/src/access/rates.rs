//! How often somebody may ask: each has a bucket that fills with time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Buckets that are kept.
const KEPT: usize = 4_096;

/// Limits how often each of many may do something. It keeps a bounded number of names.
#[derive(Debug)]
pub(crate) struct Rates {
    each_second: f64,
    at_once: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Duration,
}

impl Rates {
    /// So many a second, and so many at once by whoever has asked nothing for a while.
    pub(crate) fn new(each_second: u32, at_once: u32) -> Self {
        Self {
            each_second: f64::from(each_second.max(1)),
            at_once: f64::from(at_once.max(1)),
            buckets: Mutex::default(),
        }
    }

    /// Takes one; or says how long to wait for the next.
    pub(crate) fn take(&self, name: &str, now: Duration) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Bucket {
            left: self.at_once,
            at: now,
        };
        let mut bucket = buckets.get(name).copied().unwrap_or(full);
        let since = now.saturating_sub(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * self.each_second).min(self.at_once);
        bucket.at = bucket.at.max(now);
        let enough = bucket.left >= 1.0;
        if enough {
            bucket.left -= 1.0;
        }
        let wait = (1.0 - bucket.left).max(0.0) / self.each_second;
        if buckets.len() >= KEPT && !buckets.contains_key(name) {
            self.forget(&mut buckets, now);
        }
        buckets.insert(name.to_owned(), bucket);
        match enough {
            true => Ok(()),
            false => Err(Duration::from_secs_f64(wait)),
        }
    }

    /// Forgets who has a full bucket again; if nobody has, the one that is fullest.
    fn forget(&self, buckets: &mut HashMap<String, Bucket>, now: Duration) {
        let left = |bucket: &Bucket| {
            let since = now.saturating_sub(bucket.at).as_secs_f64();
            bucket.left + since * self.each_second
        };
        buckets.retain(|_, bucket| left(bucket) < self.at_once);
        if buckets.len() >= KEPT {
            let fullest = buckets
                .iter()
                .max_by(|a, b| left(a.1).total_cmp(&left(b.1)));
            if let Some(name) = fullest.map(|(name, _)| name.clone()) {
                buckets.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_asks_too_often_waits_and_others_do_not() {
        let rates = Rates::new(2, 3);
        for _ in 0..3 {
            assert_eq!(rates.take("a", SECOND), Ok(()));
        }
        let wait = rates.take("a", SECOND).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= SECOND / 2, "{wait:?}");
        assert_eq!(rates.take("b", SECOND), Ok(()));
        assert_eq!(rates.take("a", SECOND + wait), Ok(()));
        // Time that goes back gives nothing.
        assert!(rates.take("a", Duration::ZERO).is_err());
    }

    #[test]
    fn any_number_of_names_takes_bounded_room() {
        let rates = Rates::new(1, 2);
        for count in 0..2 * KEPT {
            rates.take(&count.to_string(), SECOND).unwrap();
        }
        assert!(rates.buckets.lock().unwrap().len() <= KEPT);
        let late = SECOND * 100;
        rates.take("x", late).unwrap();
        assert_eq!(rates.buckets.lock().unwrap().len(), 1);
    }
}
