//! The work queue of a controller: which key runs next.
//!
//! The queue holds keys, never events, each at most once; what asked for a run is kept beside the
//! key as causes. [`Schedule`] is the whole logic as a plain structure that is told the time;
//! [`Queue`] lets tasks wait on it. Work that is ready never passes through a timer.

mod schedule;
mod slots;

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

pub(crate) use schedule::{
    Causes, Done, Job, Look, Next, Parked, Place, Priority, Request, Schedule, Sizes, Ticket,
};

use crate::environment::Environment;
use crate::store::Revision;

/// A [`Schedule`] that tasks can wait on.
#[derive(Debug)]
pub(crate) struct Queue<K, C> {
    schedule: Mutex<Schedule<K, C>>,
    ready: Notify,
    timer: Notify,
    environment: Environment,
}

impl<K, C> Queue<K, C>
where
    K: Clone + Eq + Hash + Debug,
    C: PartialEq + Debug,
{
    /// An empty queue for a view of `sources` sources.
    pub(crate) fn new(sources: usize, environment: Environment) -> Self {
        Self {
            schedule: Mutex::new(Schedule::new(sources)),
            ready: Notify::new(),
            timer: Notify::new(),
            environment,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Schedule<K, C>> {
        // A panic under this lock could only come from an allocation or a key's own `Hash`.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever can act on what changed.
    fn wake(&self, schedule: &mut Schedule<K, C>) {
        if schedule.has_ready() {
            self.ready.notify_one();
        }
        if schedule.take_deadline_moved() {
            self.timer.notify_one();
        }
    }

    /// Asks for runs.
    pub(crate) fn push(&self, requests: impl IntoIterator<Item = (K, Request<C>)>) {
        let now = self.environment.monotonic();
        let mut schedule = self.lock();
        for (key, request) in requests {
            schedule.push(key, request, now);
        }
        self.wake(&mut schedule);
    }

    /// The next key to run, as soon as there is one. It is not handed out again until
    /// [`Queue::done`].
    pub(crate) async fn next(&self) -> Job<K, C> {
        loop {
            let notified = self.ready.notified();
            {
                let now = self.environment.monotonic();
                let mut schedule = self.lock();
                let job = schedule.pop(now);
                // One notification may stand for several ready keys: pass it on.
                self.wake(&mut schedule);
                if let Some(job) = job {
                    return job;
                }
            }
            notified.await;
        }
    }

    /// Gives a key back, and takes the next one if there is one now and `more` is wanted.
    pub(crate) fn turn(&self, ticket: Ticket, done: Done<C>, more: bool) -> Option<Job<K, C>> {
        let now = self.environment.monotonic();
        let mut schedule = self.lock();
        schedule.done(ticket, done, now);
        let job = if more { schedule.pop(now) } else { None };
        self.wake(&mut schedule);
        job
    }

    /// Gives a key back.
    pub(crate) fn done(&self, ticket: Ticket, done: Done<C>) {
        let now = self.environment.monotonic();
        let mut schedule = self.lock();
        schedule.done(ticket, done, now);
        self.wake(&mut schedule);
    }

    /// Tells how far each source of the view has come.
    pub(crate) fn reached(&self, revisions: &[Revision]) {
        let now = self.environment.monotonic();
        let mut schedule = self.lock();
        schedule.reached(revisions, now);
        self.wake(&mut schedule);
    }

    /// See [`Schedule::begin_history`].
    pub(crate) fn begin_history(&self) {
        let now = self.environment.monotonic();
        let mut schedule = self.lock();
        schedule.begin_history(now);
        self.wake(&mut schedule);
    }

    /// Makes keys ready when their time comes. Runs until dropped; a queue without it only
    /// serves what is ready at once.
    pub(crate) async fn run_timers(&self) {
        loop {
            let notified = self.timer.notified();
            let wait = {
                let now = self.environment.monotonic();
                let mut schedule = self.lock();
                schedule.promote(now);
                let deadline = schedule.deadline();
                schedule.take_deadline_moved();
                self.wake(&mut schedule);
                deadline.map(|deadline| deadline.saturating_sub(now))
            };
            match wait {
                None => notified.await,
                Some(wait) => tokio::select! {
                    biased;
                    () = notified => {}
                    () = self.environment.sleep(wait.max(Duration::from_micros(1))) => {}
                },
            }
        }
    }

    /// How many keys are in which state, and how long the oldest waits.
    pub(crate) fn sizes(&self) -> Sizes {
        self.lock().sizes(self.environment.monotonic())
    }

    /// Where a key is; None for one that nothing is known of.
    pub(crate) fn look(&self, key: &K) -> Option<Look> {
        self.lock().look(key, self.environment.monotonic())
    }

    /// The key that has waited longest for the view to show its own writes.
    pub(crate) fn longest_parked(&self) -> Option<Parked<K>> {
        self.lock().longest_parked(self.environment.monotonic())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_hundred_busy_keys_share_two_workers_evenly() {
        let environment = Environment::system();
        let queue: Arc<Queue<u32, ()>> = Arc::new(Queue::new(1, environment.clone()));
        queue.push((0..200).map(|key| (key, Request::now(Priority::Change, ()))));
        let runs = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
        let timers = tokio::spawn({
            let queue = queue.clone();
            async move { queue.run_timers().await }
        });
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, runs) = (queue.clone(), runs.clone());
                let environment = environment.clone();
                tokio::spawn(async move {
                    while runs.lock().unwrap().values().sum::<u32>() < 3000 {
                        let job = queue.next().await;
                        *runs.lock().unwrap().entry(job.key).or_default() += 1;
                        environment.sleep(Duration::from_millis(2)).await;
                        let at = environment.monotonic() + Duration::from_millis(25);
                        queue.done(job.ticket, Done::next(Next::at(at, Priority::Sync, ())));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        timers.abort();
        let runs = runs.lock().unwrap();
        assert_eq!(runs.len(), 200);
        for (key, count) in runs.iter() {
            assert!((14..=16).contains(count), "key {key} ran {count} times");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_never_waits_for_a_timer() {
        let environment = Environment::system();
        let queue: Arc<Queue<u32, ()>> = Arc::new(Queue::new(1, environment.clone()));
        let timers = tokio::spawn({
            let queue = queue.clone();
            async move { queue.run_timers().await }
        });
        let start = environment.monotonic();
        // One that waits long, so that a timer is set.
        let late = start + Duration::from_secs(3600);
        queue.push([(0, Request::at(late, Priority::Sync, ()))]);
        for key in 1..1000 {
            let next = tokio::spawn({
                let queue = queue.clone();
                async move { queue.next().await }
            });
            tokio::task::yield_now().await;
            queue.push([(key, Request::now(Priority::Change, ()))]);
            let job = next.await.unwrap();
            assert_eq!((job.key, job.waited), (key, Duration::ZERO));
            queue.done(job.ticket, Done::ok());
        }
        // Virtual time moves only when everybody waits for a timer: nobody did.
        assert_eq!(environment.monotonic(), start);
        timers.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_key_runs_at_its_time_and_a_sooner_one_wins() {
        let environment = Environment::system();
        let queue: Arc<Queue<&str, ()>> = Arc::new(Queue::new(1, environment.clone()));
        let timers = tokio::spawn({
            let queue = queue.clone();
            async move { queue.run_timers().await }
        });
        let start = environment.monotonic();
        let after = |ms| Request::at(start + Duration::from_millis(ms), Priority::Sync, ());
        queue.push([("a", after(500)), ("b", after(300))]);
        queue.push([("a", after(100)), ("b", after(900))]);
        assert_eq!(queue.next().await.key, "a");
        assert_eq!(
            environment.monotonic().saturating_sub(start).as_millis(),
            100
        );
        assert_eq!(queue.next().await.key, "b");
        assert_eq!(
            environment.monotonic().saturating_sub(start).as_millis(),
            300
        );
        timers.abort();
    }
}
