//! A machine's clocks on virtual time: they move with the runtime's paused time, and can be made
//! to jump, each machine's apart.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::environment::Clock;

/// When every simulation begins: 2026-01-01T00:00:00Z.
const BEGINNING: i64 = 1_767_225_600;

/// The clocks of one machine.
#[derive(Debug)]
pub(super) struct MachineClock {
    origin: Instant,
    /// How far the wall clock is off, in seconds.
    wall: AtomicI64,
    /// How far the monotonic clock was moved on, in milliseconds.
    leap: AtomicU64,
}

impl MachineClock {
    /// Clocks that begin now. Must be made on the simulation's own runtime.
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            origin,
            wall: AtomicI64::new(0),
            leap: AtomicU64::new(0),
        }
    }

    /// The wall clock jumps, as when somebody sets it.
    pub(super) fn set_wall(&self, seconds: i64) {
        self.wall.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The monotonic clock jumps on, as when the machine slept; timers do not know.
    pub(super) fn leap(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.leap.fetch_add(millis, Ordering::Relaxed);
    }

    fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.origin)
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        let beginning = Timestamp::from_second(BEGINNING).unwrap_or_default();
        let off = SignedDuration::from_secs(self.wall.load(Ordering::Relaxed));
        let elapsed = SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::ZERO);
        let shown = beginning.checked_add(elapsed + off);
        shown.unwrap_or(beginning)
    }

    fn monotonic(&self) -> Duration {
        self.elapsed() + Duration::from_millis(self.leap.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
