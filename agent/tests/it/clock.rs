//! A clock that somebody sets while pods run.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use platctrl_framework::client::DeleteOptions;
use platctrl_framework::environment::{Clock, Environment};
use platctrl_kinds::PodPhase;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde_json::json;

use crate::rig::{Rig, get, is_alive, kill, want};
use crate::store::{Site, key, node_key};

/// The machine's clock, and by how many seconds it was set.
struct SetClock {
    begun: Instant,
    offset: AtomicI64,
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        let offset = SignedDuration::from_secs(self.offset.load(Ordering::Relaxed));
        Timestamp::now().checked_add(offset).unwrap()
    }

    fn monotonic(&self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        // The waits of whoever has this clock: nobody can set those.
        Box::pin(tokio::time::sleep(duration))
    }
}

const YEAR: i64 = 365 * 24 * 3600;

#[test]
fn a_clock_that_is_set_forward_or_back_restarts_nothing_and_delays_nothing() {
    let clock = Arc::new(SetClock {
        begun: Instant::now(),
        offset: AtomicI64::new(0),
    });
    let site = Site::with(Environment::seeded(clock.clone(), rand::random()));
    let mut spec = site.spec();
    let check = json!({"http": {"port": "http"}, "interval": "50ms", "timeout": "10s"});
    spec["health"] = check.clone();
    spec["liveness"] = check;
    site.create(&spec);
    let first = site.ready();
    let mut pid = first.status.detail.pids["web"];
    for (generation, offset) in [(2, YEAR), (3, -10 * YEAR), (4, 0)] {
        clock.offset.store(offset, Ordering::Relaxed);
        // The agent works on, by the clock as it is: it takes an order, and has asked after the
        // pod's health since.
        let mut pod = site.pod().unwrap();
        let millis = 500 + generation;
        pod.spec.launchables.get_mut("web").unwrap().resources =
            serde_json::from_value(json!({"cpu": format!("{millis}m")})).unwrap();
        site.rig.block_on(site.client.update(&pod)).unwrap();
        let adjusted = site.wait("the new limit", || {
            let pod = site.pod()?;
            (pod.status.observed_generation == Some(generation)
                && pod.status.conditions.is_true("Ready"))
            .then_some(pod)
        });
        assert_eq!(adjusted.status.detail.pids["web"], pid, "after {offset} s");
        assert_eq!(adjusted.status.detail.restart_request, None);
        // Delays are counted by a clock that nobody sets: a crash is followed by the next start.
        kill(pid);
        let again = site.wait("another process", || {
            let pod = site.pod()?;
            let now = pod.status.detail.pids.get("web").copied()?;
            (now != pid && pod.status.conditions.is_true("Ready")).then_some(now)
        });
        assert!(!is_alive(pid));
        pid = again;
        // The report of the node goes on, too.
        let node = site
            .rig
            .block_on(site.client.get::<platctrl_kinds::Node>(&node_key()));
        assert!(node.unwrap().status.conditions.is_true("Ready"));
    }
    let port = first.status.detail.ports["http"];
    assert_eq!(get(port, "/version"), "one");
    clock.offset.store(-10 * YEAR, Ordering::Relaxed);
    let (key, options) = (key(), DeleteOptions::default());
    let deleted = site.client.delete(&key, &options);
    site.rig.block_on(deleted).unwrap();
    site.wait("the end", || {
        (site.reality()?.status.phase == PodPhase::Gone.into()).then_some(())
    });
    assert!(!is_alive(pid));
}

/// Sets the machine's own clock, and back when it is dropped.
struct MachineClock(Duration);

impl MachineClock {
    fn set(offset: i64) {
        let now = clock_gettime(ClockId::Realtime);
        let tv_sec = now.tv_sec + offset;
        clock_settime(ClockId::Realtime, Timespec { tv_sec, ..now }).unwrap();
    }

    /// The time since the boot, which nobody sets, and the time of day that belonged to it.
    fn new() -> Self {
        Self(Self::difference())
    }

    fn difference() -> Duration {
        let of = |id| Duration::try_from(clock_gettime(id)).unwrap();
        of(ClockId::Realtime).saturating_sub(of(ClockId::Boottime))
    }
}

impl Drop for MachineClock {
    fn drop(&mut self) {
        let (then, now) = (self.0.as_secs(), Self::difference().as_secs());
        Self::set(then.cast_signed() - now.cast_signed());
    }
}

#[test]
fn supervisors_do_not_mind_that_the_machines_own_clock_is_set() {
    if std::env::var_os("PLATCTRL_TEST_SETS_CLOCK").is_none() {
        eprintln!("LEFT OUT: this machine's clock is not to be set; scripts/vm-cgroup2 has one");
        return;
    }
    let clock = MachineClock::new();
    let rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let mut pid = told.ready().status.pids["web"];
    for offset in [YEAR, -5 * YEAR, YEAR] {
        MachineClock::set(offset);
        assert!(is_alive(pid));
        // The second restart in a row waits, and not for years.
        for _ in 0..2 {
            kill(pid);
            let again = told.wait("another process", |it| {
                it.is_ready() && it.status.pids.get("web").is_some_and(|now| *now != pid)
            });
            pid = again.status.pids["web"];
        }
    }
    drop(clock);
}
