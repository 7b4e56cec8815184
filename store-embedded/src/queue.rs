//! What waits for the writer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use platctrl_framework::store::{LeaseId, Result, Revision, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How many jobs may wait; further callers wait before they are queued.
const CAPACITY: usize = 4_096;

/// At most this many jobs, or this many bytes, share one write to disk.
const BATCH_JOBS: usize = 1_024;
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// So many jobs are taken into a write under way at once, where more are expected.
const TOGETHER: usize = 8;

pub(crate) type Reply = oneshot::Sender<Result<Revision>>;

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) reply: Reply,
    /// Keeps the job's place in the queue's capacity until it is answered.
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(crate) enum Work {
    Commit(Transaction),
    EndLease(LeaseId),
    /// Forgets the history before a revision, which stays readable.
    Forget(Revision),
    /// Rewrites the file without its holes.
    Compact,
}

impl Work {
    fn bytes(&self) -> usize {
        use platctrl_framework::store::Write;
        match self {
            Self::Commit(transaction) => transaction
                .writes
                .iter()
                .map(|write| match write {
                    Write::Put { key, value, .. } => key.as_str().len() + value.len(),
                    Write::Delete { key } => key.as_str().len(),
                })
                .sum(),
            Self::EndLease(_) | Self::Forget(_) | Self::Compact => 0,
        }
    }
}

/// What the writer is to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// These, in this order. May be empty: somebody asked the writer to look around.
    Batch(Batch),
    /// Nothing came for a while.
    Idle,
    /// The store was closed and everything is answered.
    Closed,
}

/// Jobs that share one write to disk.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) jobs: Vec<Job>,
    bytes: usize,
}

impl Batch {
    /// Takes what fits, in the order in which it came. False when there was nothing.
    fn fill(&mut self, waiting: &mut VecDeque<Job>) -> bool {
        let before = self.jobs.len();
        while self.jobs.len() < BATCH_JOBS
            && self.bytes < BATCH_BYTES
            && !self.is_compaction()
            && let Some(job) = waiting.pop_front_if(|job| {
                // The file is compacted between two writes, never in one.
                self.jobs.is_empty() || !matches!(job.work, Work::Compact)
            })
        {
            self.bytes += job.work.bytes();
            self.jobs.push(job);
        }
        self.jobs.len() > before
    }

    /// It is a compaction, and nothing else.
    pub(crate) fn is_compaction(&self) -> bool {
        matches!(
            self.jobs[..],
            [Job {
                work: Work::Compact,
                ..
            }]
        )
    }
}

#[derive(Debug, Default)]
struct Inner {
    jobs: VecDeque<Job>,
    poked: bool,
    closed: bool,
    /// The writer sleeps until so many jobs wait.
    awaited: usize,
}

#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    arrived: Condvar,
    places: Arc<Semaphore>,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner::default()),
            arrived: Condvar::new(),
            places: Arc::new(Semaphore::new(CAPACITY)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues work; None once the store is closed.
    pub(crate) async fn push(&self, work: Work) -> Option<oneshot::Receiver<Result<Revision>>> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let (reply, answer) = oneshot::channel();
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        inner.jobs.push_back(Job {
            work,
            reply,
            _place: place,
        });
        let wake = inner.awaited > 0 && inner.jobs.len() >= inner.awaited;
        drop(inner);
        if wake {
            self.arrived.notify_one();
        }
        Some(answer)
    }

    /// Makes the writer look around.
    pub(crate) fn poke(&self) {
        self.lock().poked = true;
        self.arrived.notify_one();
    }

    /// Takes no more work. What is queued is still served.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.places.close();
        self.arrived.notify_one();
    }

    /// Drops what is queued, which tells the callers that nobody will answer.
    pub(crate) fn clear(&self) {
        self.lock().jobs.clear();
    }

    /// Waits for work.
    pub(crate) fn take(&self, idle_after: Option<Duration>) -> Next {
        let mut inner = self.lock();
        let idle_since = Instant::now();
        while inner.jobs.is_empty() && !inner.poked && !inner.closed {
            inner.awaited = 1;
            inner = match idle_after {
                None => self
                    .arrived
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let left = limit.saturating_sub(idle_since.elapsed());
                    if left.is_zero() {
                        inner.awaited = 0;
                        return Next::Idle;
                    }
                    self.arrived
                        .wait_timeout(inner, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        inner.awaited = 0;
        if inner.jobs.is_empty() && inner.closed {
            return Next::Closed;
        }
        inner.poked = false;
        let mut batch = Batch::default();
        batch.fill(&mut inner.jobs);
        Next::Batch(batch)
    }

    /// Waits for more jobs to share the write of a batch that is under way, until `expected` of
    /// them came in all or it is `until`: callers that were answered together come back together.
    /// False when nothing came that fits.
    pub(crate) fn join(&self, batch: &mut Batch, expected: usize, until: Instant) -> bool {
        let missing = expected.min(BATCH_JOBS).saturating_sub(batch.jobs.len());
        if missing == 0 {
            return false;
        }
        let mut inner = self.lock();
        while inner.jobs.is_empty() && !inner.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // A few at a time: to be woken for each costs more than it brings.
            inner.awaited = missing.min(TOGETHER);
            inner = self
                .arrived
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.awaited = 0;
        batch.fill(&mut inner.jobs)
    }
}
