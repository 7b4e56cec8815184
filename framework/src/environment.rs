//! Time and chance, handed in rather than taken.
//!
//! Everything in this crate that asks for the time, waits, or draws a random number does so
//! through an [`Environment`]. Production uses [`Environment::system`]; a test gives a clock it
//! moves by hand and a seed, and gets the same run every time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::model::Uid;

/// A source of time.
///
/// [`Clock::now`] is wall time: for display and records, never for a decision about how long
/// something took. [`Clock::monotonic`] only grows and is what intervals are measured with.
pub trait Clock: Send + Sync + 'static {
    /// The wall time.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary start. Never goes back.
    fn monotonic(&self) -> Duration;

    /// Completes once [`Clock::monotonic`] has grown by `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clocks, waiting on tokio's timer.
///
/// Waits follow tokio's time: under `tokio::time::pause` they take no real time, and
/// [`Clock::monotonic`] moves with them.
#[derive(Debug)]
struct SystemClock {
    origin: std::sync::OnceLock<tokio::time::Instant>,
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        let now = tokio::time::Instant::now();
        now.saturating_duration_since(*self.origin.get_or_init(|| now))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { tokio::time::sleep(duration).await })
    }
}

/// Another clock, hurried; wall time is the other's.
#[cfg(any(feature = "testing", feature = "conformance"))]
struct Hurried {
    machine: Arc<dyn Clock>,
    pace: u32,
}

#[cfg(any(feature = "testing", feature = "conformance"))]
impl Clock for Hurried {
    fn now(&self) -> Timestamp {
        self.machine.now()
    }

    fn monotonic(&self) -> Duration {
        self.machine.monotonic() * self.pace
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.machine.sleep(duration / self.pace)
    }
}

/// The clock and the random numbers that a component uses, and what it may know of the process
/// it is in. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Environment {
    clock: Arc<dyn Clock>,
    random: Arc<Mutex<StdRng>>,
    process: u32,
    cores: usize,
}

impl Environment {
    /// The machine's clock and randomness.
    #[must_use]
    pub fn system() -> Self {
        let clock = SystemClock {
            origin: std::sync::OnceLock::new(),
        };
        Self {
            clock: Arc::new(clock),
            random: Arc::new(Mutex::new(StdRng::from_rng(&mut rand::rng()))),
            process: std::process::id(),
            cores: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        }
    }

    /// The machine's environment, with a clock that goes `pace` times as fast: for tests on stores
    /// that are really there, and whose own time goes as ever.
    #[cfg(any(feature = "testing", feature = "conformance"))]
    #[must_use]
    pub fn hurried(pace: u32) -> Self {
        let system = Self::system();
        Self {
            clock: Arc::new(Hurried {
                machine: system.clock.clone(),
                pace,
            }),
            ..system
        }
    }

    /// The given clock, and random numbers that follow from `seed` alone. It says that it is
    /// process 1, on a machine with one core, whatever the machine.
    #[must_use]
    pub fn seeded(clock: Arc<dyn Clock>, seed: u64) -> Self {
        Self {
            clock,
            random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
            process: 1,
            cores: 1,
        }
    }

    /// The process's id, for people: the holder of a claim is named with it.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process
    }

    /// How much can run at once: what a controller's concurrency follows unless it is set.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// The wall time, cut to whole microseconds so that it survives a round trip through JSON.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = self.clock.now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// Time since an arbitrary start; see [`Clock::monotonic`].
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Waits; see [`Clock::sleep`].
    pub async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    /// 64 random bits.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.random
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random()
    }

    /// A duration drawn evenly from `[duration / 2, duration]`: backoff that does not synchronise.
    #[must_use]
    pub fn jitter(&self, duration: Duration) -> Duration {
        let half = duration / 2;
        let share = (self.random_u64() >> 11) as f64 / (1u64 << 53) as f64;
        half + half.mul_f64(share)
    }

    /// A new, random unique id.
    #[must_use]
    pub fn uid(&self) -> Uid {
        Uid::from_bits(self.random_u64(), self.random_u64())
    }

    /// A random name suffix of `length` characters from `a-z0-9` without vowels, so that no
    /// words are formed.
    #[must_use]
    pub fn suffix(&self, length: usize) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz0123456789";
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        (0..length)
            .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
            .collect()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_names() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock {
            origin: std::sync::OnceLock::new(),
        });
        let a = Environment::seeded(clock.clone(), 7);
        let b = Environment::seeded(clock, 7);
        assert_eq!(a.suffix(10), b.suffix(10));
        assert_eq!(a.uid(), b.uid());
    }

    #[test]
    fn jitter_stays_within_the_upper_half() {
        let environment = Environment::system();
        for _ in 0..1000 {
            let drawn = environment.jitter(Duration::from_secs(8));
            assert!((Duration::from_secs(4)..=Duration::from_secs(8)).contains(&drawn));
        }
    }
}
