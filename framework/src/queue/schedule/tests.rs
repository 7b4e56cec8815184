//! The schedule against a model, and its promises one by one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn change(cause: u32) -> Request<u32> {
    Request::now(Priority::Change, cause)
}

fn pop(schedule: &mut Schedule<u8, u32>, now: Duration) -> Option<u8> {
    schedule.pop(now).map(|job| job.key)
}

/// Gives back a key that runs.
fn finish(schedule: &mut Schedule<u8, u32>, key: u8, done: Done<u32>, now: Duration) {
    let ticket = Ticket(schedule.slot(key));
    schedule.done(ticket, done, now);
}

#[test]
fn causes_are_merged_and_a_key_is_queued_once() {
    let mut schedule = Schedule::new(1);
    for cause in [1, 2, 1] {
        schedule.push(7u8, change(cause), ms(0));
    }
    let job = schedule.pop(ms(0)).unwrap();
    assert_eq!((job.key, job.causes.as_slice()), (7, &[1, 2][..]));
    assert_eq!(schedule.pop(ms(0)), None);
}

#[test]
fn a_key_that_is_pushed_while_it_runs_runs_once_more() {
    let mut schedule = Schedule::new(1);
    schedule.push(1u8, change(1), ms(0));
    assert_eq!(pop(&mut schedule, ms(0)), Some(1));
    schedule.push(1, change(2), ms(0));
    schedule.push(1, change(3), ms(0));
    assert_eq!(pop(&mut schedule, ms(0)), None);
    finish(&mut schedule, 1, Done::ok(), ms(0));
    assert_eq!(schedule.pop(ms(0)).unwrap().causes.as_slice(), [2, 3]);
    finish(&mut schedule, 1, Done::ok(), ms(0));
    assert_eq!(schedule.len(), 0);
}

#[test]
fn a_key_waits_until_the_view_shows_what_it_wrote() {
    let mut schedule = Schedule::new(2);
    let revision = |n| Revision::new(0, n);
    schedule.push(1u8, change(1), ms(0));
    pop(&mut schedule, ms(0));
    let done = Done {
        must_see: vec![(0, revision(9)), (1, revision(5))],
        ..Done::ok()
    };
    finish(&mut schedule, 1, done, ms(0));
    schedule.push(1, change(2), ms(1));
    assert_eq!(pop(&mut schedule, ms(1)), None);
    assert_eq!(schedule.longest_parked(ms(20)).unwrap().waited, ms(19));
    schedule.reached(&[revision(9), revision(4)], ms(2));
    assert_eq!(pop(&mut schedule, ms(2)), None);
    schedule.reached(&[revision(9), revision(5)], ms(3));
    assert_eq!(pop(&mut schedule, ms(3)), Some(1));
    finish(&mut schedule, 1, Done::ok(), ms(3));
    assert_eq!(schedule.len(), 0);
}

#[test]
fn a_key_that_nothing_asks_for_is_forgotten_once_its_writes_are_seen() {
    let mut schedule = Schedule::new(1);
    schedule.push(1u8, change(1), ms(0));
    pop(&mut schedule, ms(0));
    let done = Done {
        must_see: vec![(0, Revision::new(0, 9))],
        ..Done::ok()
    };
    finish(&mut schedule, 1, done, ms(0));
    assert_eq!(schedule.len(), 1);
    schedule.reached(&[Revision::new(0, 9)], ms(0));
    assert_eq!(schedule.len(), 0);
}

#[test]
fn a_failing_run_is_not_brought_forward_by_its_own_writes() {
    let mut schedule = Schedule::new(1);
    let own = Revision::new(0, 9);
    let echo = || Request::change(Priority::Change, 2, own);
    schedule.push(1u8, change(1), ms(0));
    pop(&mut schedule, ms(0));
    schedule.push(1, echo(), ms(0));
    let done = Done {
        next: Some(Next::backoff(ms(100), 3)),
        failures: 1,
        own_writes: vec![own],
        ..Done::ok()
    };
    finish(&mut schedule, 1, done, ms(0));
    schedule.push(1, echo(), ms(1));
    assert_eq!(pop(&mut schedule, ms(99)), None);
    schedule.push(
        1,
        Request::change(Priority::Change, 4, Revision::new(0, 10)),
        ms(99),
    );
    let job = schedule.pop(ms(99)).unwrap();
    assert_eq!((job.failures, job.causes.as_slice()), (1, &[2, 3, 4][..]));
}

#[test]
fn lower_classes_are_served_within_a_bound() {
    let mut schedule = Schedule::new(1);
    schedule.push(200u8, Request::now(Priority::Sync, 0), ms(0));
    schedule.push(201, Request::now(Priority::Retry, 0), ms(0));
    let mut order = Vec::new();
    for key in 0..30 {
        schedule.push(key, change(0), ms(0));
        schedule.push(key + 100, change(0), ms(0));
        order.push(pop(&mut schedule, ms(0)).unwrap());
    }
    let place = |key| order.iter().position(|&k| k == key).unwrap();
    assert!(place(201) <= 8, "{order:?}");
    assert!(place(200) <= 10, "{order:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, Option<u16>, u8),
    Pop,
    Done(Option<u16>, Option<u8>),
    Reach(u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let priority = 0..3u8;
    prop_oneof![
        4 => (0..6u8, prop::option::of(0..50u16), priority).prop_map(|(k, at, p)| Step::Push(k, at, p)),
        4 => Just(Step::Pop),
        3 => (prop::option::of(0..50u16), prop::option::of(0..40u8)).prop_map(|(n, r)| Step::Done(n, r)),
        1 => (0..40u8).prop_map(Step::Reach),
        1 => (0..60u16).prop_map(Step::Pass),
    ]
}

/// What a key is owed, kept as simply as can be.
#[derive(Default, Debug)]
struct Owed {
    /// The earliest time at which it has to run.
    at: Option<u64>,
    /// The revision its next run has to see.
    sees: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_push_is_followed_by_a_run_at_its_time_and_no_key_runs_twice_at_once(steps in prop::collection::vec(step(), 0..120)) {
        let mut schedule = Schedule::<u8, u32>::new(1);
        let mut owed: BTreeMap<u8, Owed> = BTreeMap::new();
        let mut running: Vec<u8> = Vec::new();
        let (mut now, mut view) = (0u64, 0u64);
        let classes = [Priority::Change, Priority::Retry, Priority::Sync];
        for step in steps {
            match step {
                Step::Push(key, after, class) => {
                    let at = after.map(|after| now + u64::from(after));
                    let request = Request { at: at.map(ms), priority: classes[usize::from(class)], cause: 0, revision: None };
                    schedule.push(key, request, ms(now));
                    let owed = owed.entry(key).or_default();
                    let at = at.unwrap_or(now);
                    owed.at = Some(owed.at.map_or(at, |old| old.min(at)));
                }
                Step::Pop => {
                    let may: BTreeSet<u8> = owed.iter()
                        .filter(|(key, owed)| !running.contains(key) && owed.sees <= view && owed.at.is_some_and(|at| at <= now))
                        .map(|(&key, _)| key).collect();
                    match schedule.pop(ms(now)) {
                        None => prop_assert!(may.is_empty(), "{may:?} may run"),
                        Some(job) => {
                            prop_assert!(may.contains(&job.key), "{} may not run, {may:?} may", job.key);
                            owed.insert(job.key, Owed::default());
                            running.push(job.key);
                        }
                    }
                }
                Step::Done(after, wrote) => {
                    if running.is_empty() { continue; }
                    let key = running.remove(0);
                    let next = after.map(|after| now + u64::from(after));
                    let must_see = wrote.map(|n| (0, Revision::new(0, u64::from(n)))).into_iter().collect();
                    let next_run = next.map(|at| Next::at(ms(at), Priority::Sync, 1));
                    finish(&mut schedule, key, Done { next: next_run, must_see, ..Done::ok() }, ms(now));
                    let owed = owed.entry(key).or_default();
                    owed.sees = wrote.map_or(0, u64::from);
                    if let Some(next) = next {
                        owed.at = Some(owed.at.map_or(next, |old| old.min(next)));
                    }
                }
                Step::Reach(revision) => {
                    view = view.max(u64::from(revision));
                    schedule.reached(&[Revision::new(0, u64::from(revision))], ms(now));
                }
                Step::Pass(time) => {
                    now += u64::from(time);
                    schedule.promote(ms(now));
                }
            }
            prop_assert_eq!(schedule.sizes(ms(now)).running, running.len());
        }
    }

    #[test]
    fn keys_of_one_class_run_in_the_order_they_came(keys in prop::collection::vec(0..20u8, 1..60)) {
        let mut schedule = Schedule::<u8, u32>::new(1);
        let mut expected = Vec::new();
        for key in keys {
            schedule.push(key, change(0), ms(0));
            if !expected.contains(&key) { expected.push(key); }
        }
        let served: Vec<u8> = std::iter::from_fn(|| pop(&mut schedule, ms(0))).collect();
        prop_assert_eq!(served, expected);
    }
}
