//! The one thread that writes.
//!
//! It takes all transactions that wait, writes them in one go with one durable commit of the
//! engine, and then answers them. Those that come while it writes, and before it commits, join. After a failure it opens the file again, which tells what of
//! the failed write is there, and writes nothing more until a small trial write succeeds.

use std::fs::File;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use platctrl_framework::failpoint;
use platctrl_framework::store::{Result as Answer, Revision, StoreError};

use crate::batch::{Batch, Outcome};
use crate::codec::State;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::options::Options;
use crate::queue::{self, Next, Work};
use crate::shared::Shared;

/// After so long without work the engine notes what it needs to open at once after a crash.
const SETTLE_AFTER: Duration = Duration::from_millis(200);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    state: State,
    /// The engine's last commit left it able to open without a repair.
    settled: bool,
    last_work: Instant,
    /// How many jobs came together last time, and how long writing them took.
    last_jobs: usize,
    last_took: Duration,
}

type Answers = Vec<Answer<Revision>>;

/// How writing a batch failed.
struct Failure {
    error: EngineError,
    may_have_happened: bool,
    /// What is to be told should it have happened.
    prepared: Option<Box<(Outcome, Answers)>>,
}

impl<E: Into<EngineError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            may_have_happened: false,
            prepared: None,
        }
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, state: State) -> Self {
        Self {
            shared,
            state,
            settled: false,
            last_work: Instant::now(),
            last_jobs: 0,
            last_took: Duration::ZERO,
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            let idle = (!self.settled).then_some(SETTLE_AFTER);
            match self.shared.queue.take(idle) {
                Next::Batch(batch) => self.serve(batch),
                Next::Idle => self.settle(),
                Next::Closed => break,
            }
        }
    }

    fn engine_slot(&self) -> std::sync::RwLockWriteGuard<'_, Option<Engine>> {
        self.shared
            .engine
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&mut self, batch: queue::Batch) {
        if let Err(reason) = self.make_ready() {
            self.shared.set_trouble(Some(reason.clone()));
            for job in batch.jobs {
                let _ = job.reply.send(Err(self.shared.unavailable(&reason)));
            }
            return;
        }
        if batch.is_compaction() {
            let answer = self.compact();
            for job in batch.jobs {
                let _ = job.reply.send(answer.clone());
            }
        } else {
            self.write(batch);
        }
    }

    fn write(&mut self, mut batch: queue::Batch) {
        let ended = self.shared.leases().has_ended();
        if batch.jobs.is_empty() && !ended {
            return;
        }
        let started = Instant::now();
        // Under load the note would cost a third of the speed; then it comes with the quiet.
        let settle = self.last_work.elapsed() >= SETTLE_AFTER;
        let attempt = catch_unwind(AssertUnwindSafe(|| self.attempt(&mut batch, settle)));
        let jobs = batch.jobs;
        self.last_jobs = jobs.len();
        let attempt = attempt.unwrap_or_else(|_| {
            Err(Failure {
                error: EngineError::damaged("the engine cannot walk the file"),
                may_have_happened: true,
                prepared: None,
            })
        });
        let answers = match attempt {
            Ok((outcome, answers)) => {
                self.settled = settle || (self.settled && !outcome.changed);
                self.publish(outcome);
                self.shared.set_trouble(None);
                answers
            }
            Err(failure) => self.recover(failure, jobs.len()),
        };
        for (job, answer) in jobs.into_iter().zip(answers) {
            // A caller that went away does not want to know.
            let _ = job.reply.send(answer);
        }
        self.last_work = Instant::now();
        self.last_took = started.elapsed();
    }

    fn attempt(
        &self,
        queued: &mut queue::Batch,
        settle: bool,
    ) -> std::result::Result<(Outcome, Answers), Failure> {
        let engine = self
            .shared
            .engine
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let engine = engine
            .as_ref()
            .ok_or_else(|| EngineError::damaged("the file is not open"))?;
        let mut transaction = engine.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(settle);
        let now = self.shared.environment.now().as_millisecond();
        let mut batch = Batch::new(&transaction, self.state, now)?;
        let ended = self.shared.leases().ended();
        for lease in ended {
            batch.end_lease(lease)?;
        }
        let patience =
            (self.last_took / 4).clamp(Duration::from_micros(50), Duration::from_millis(1));
        let until = Instant::now() + patience;
        let mut answers: Answers = Vec::with_capacity(queued.jobs.len().max(self.last_jobs));
        loop {
            for job in &queued.jobs[answers.len()..] {
                answers.push(self.judge(&mut batch, &job.work)?);
            }
            if !self.shared.queue.join(queued, self.last_jobs, until) {
                break;
            }
        }
        let outcome = batch.finish(&self.shared.options)?;
        if outcome.changed {
            failpoint!("store.embedded.before-commit");
            if let Err(error) = transaction.commit() {
                return Err(Failure {
                    error: error.into(),
                    may_have_happened: true,
                    prepared: Some(Box::new((outcome, answers))),
                });
            }
            failpoint!("store.embedded.after-commit");
        } else {
            transaction.abort()?;
        }
        Ok((outcome, answers))
    }

    fn judge(
        &self,
        batch: &mut Batch<'_>,
        work: &Work,
    ) -> std::result::Result<Answer<Revision>, EngineError> {
        let is_live = |lease| self.shared.leases().is_live(lease);
        match work {
            Work::Commit(transaction) => batch.commit(transaction, is_live),
            Work::EndLease(lease) if !is_live(*lease) => {
                Ok(Err(StoreError::LeaseNotFound { lease: *lease }))
            }
            Work::EndLease(lease) => batch.end_lease(*lease).map(Ok),
            Work::Forget(before) => batch.forget(*before).map(Ok),
            // Served outside of batches.
            Work::Compact => Ok(Ok(self.state.revision)),
        }
    }

    fn publish(&mut self, outcome: Outcome) {
        self.state = outcome.state;
        if !outcome.ended.is_empty() {
            let mut leases = self.shared.leases();
            for lease in &outcome.ended {
                leases.forget(*lease);
            }
        }
        if outcome.changed {
            self.shared.feed.publish(
                outcome.commits,
                outcome.state.revision,
                outcome.state.oldest,
            );
        }
    }

    /// Opens the file again, which tells what is there, and answers accordingly.
    fn recover(&mut self, failure: Failure, jobs: usize) -> Answers {
        let reason = failure.error.to_string();
        self.shared.set_trouble(Some(reason.clone()));
        let before = self.state.revision;
        let answer = match self.reopen() {
            Ok(()) if self.state.revision == before => self.shared.unavailable(&reason),
            Ok(()) => match failure.prepared {
                // It was durable before the engine failed.
                Some(prepared) if prepared.0.state == self.state => {
                    let (outcome, answers) = *prepared;
                    self.publish(outcome);
                    return answers;
                }
                _ => StoreError::Unknown {
                    reason: format!("{}: {reason}", self.shared.site.path.display()),
                },
            },
            Err(_) if !failure.may_have_happened => self.shared.unavailable(&reason),
            Err(error) => StoreError::Unknown {
                reason: format!("{reason}; and then: {error}"),
            },
        };
        if self.state.revision != before {
            // What watchers were not told of is in the history on disk.
            self.shared
                .feed
                .jump(self.state.revision, self.state.oldest);
        }
        vec![Err(answer); jobs]
    }

    fn reopen(&mut self) -> std::result::Result<(), String> {
        let mut slot = self.engine_slot();
        self.shared.suspect.store(false, Ordering::Release);
        *slot = None;
        let opened = self.shared.site.open();
        let (engine, state) = opened.map_err(|error| error.to_string())?;
        *slot = Some(engine);
        drop(slot);
        self.settled = false;
        self.state = state;
        Ok(())
    }

    /// After a failure: opens the file if it is not open, and tries whether the disk takes
    /// anything at all.
    fn make_ready(&mut self) -> std::result::Result<(), String> {
        let is_open = self
            .shared
            .engine
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        let suspect = self.shared.suspect.load(Ordering::Acquire);
        if is_open && !suspect && self.shared.trouble().is_none() {
            return Ok(());
        }
        if !is_open || suspect {
            let before = self.state.revision;
            self.reopen()?;
            if self.state.revision != before {
                self.shared
                    .feed
                    .jump(self.state.revision, self.state.oldest);
            }
        }
        let path = self.shared.site.path.with_extension("trial");
        let tried = try_to_write(&path);
        // The trial's file is only in the way if it stays.
        let _ = std::fs::remove_file(&path);
        tried.map_err(|error| {
            format!("the disk takes no writes ({error}): free some space, or mend the file system")
        })?;
        self.shared.set_trouble(None);
        Ok(())
    }

    /// An empty commit that notes where the file's free space is.
    fn settle(&mut self) {
        self.settled = true;
        if self.shared.trouble().is_some() {
            return;
        }
        let attempt = catch_unwind(AssertUnwindSafe(
            || -> std::result::Result<(), EngineError> {
                let engine = self
                    .shared
                    .engine
                    .read()
                    .unwrap_or_else(PoisonError::into_inner);
                let Some(engine) = engine.as_ref() else {
                    return Ok(());
                };
                let mut transaction = engine.database.begin_write()?;
                transaction.set_two_phase_commit(true);
                transaction.set_quick_repair(true);
                transaction.commit()?;
                Ok(())
            },
        ));
        let failure = match attempt {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => EngineError::damaged("the engine cannot walk the file"),
        };
        self.recover(failure.into(), 0);
    }

    /// Rewrites the file without its holes. Reads and commits wait meanwhile.
    fn compact(&mut self) -> Answer<Revision> {
        let path = self.shared.site.path.display().to_string();
        let started = Instant::now();
        let before = std::fs::metadata(&self.shared.site.path).map_or(0, |data| data.len());
        let compacted = {
            let mut slot = self.engine_slot();
            match slot.as_mut() {
                None => Ok(false),
                Some(engine) => catch_unwind(AssertUnwindSafe(|| engine.database.compact()))
                    .unwrap_or(Ok(false))
                    .map_err(EngineError::from),
            }
        };
        match compacted {
            Ok(_) => {
                let after = std::fs::metadata(&self.shared.site.path).map_or(0, |data| data.len());
                let took = started.elapsed();
                tracing::info!(path, before, after, ?took, "compacted the store's file");
                self.settled = false;
                Ok(self.state.revision)
            }
            Err(error) => {
                let reason = error.to_string();
                self.recover(error.into(), 0);
                Err(self.shared.unavailable(reason))
            }
        }
    }
}

/// Writes about as much as a batch may need.
fn try_to_write(path: &std::path::Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let chunk = vec![0xa5; 64 * 1024];
    for _ in 0..16 {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// Ends the leases of the process before, and counts this opening.
pub(crate) fn begin(
    engine: &Engine,
    state: State,
    time: i64,
    options: &Options,
) -> std::result::Result<State, EngineError> {
    let mut transaction = engine.database.begin_write()?;
    transaction.set_two_phase_commit(true);
    let mut batch = Batch::new(&transaction, state, time)?;
    batch.end_all_leases()?;
    batch.count_opening();
    let outcome = batch.finish(options)?;
    transaction.commit()?;
    Ok(outcome.state)
}
