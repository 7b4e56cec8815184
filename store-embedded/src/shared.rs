//! What callers, watchers and the writer of one open store share.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Result, StoreError};
use tokio::sync::Notify;

use crate::engine::{Engine, Site, View};
use crate::error::ReadError;
use crate::feed::Feed;
use crate::lease::Leases;
use crate::options::Options;
use crate::queue::Queue;

/// Callers are told to wait this long while the store cannot write.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    pub(crate) site: Site,
    pub(crate) options: Options,
    pub(crate) environment: Environment,
    /// None while the file cannot be opened, and once the store is closed. Readers and the writer
    /// hold it shared; exclusively it is held only to open the file again, compact or close it.
    pub(crate) engine: RwLock<Option<Engine>>,
    pub(crate) queue: Queue,
    pub(crate) feed: Feed,
    pub(crate) leases: Mutex<Leases>,
    /// Why the store does not write now.
    trouble: Mutex<Option<String>>,
    /// A reader met a failed engine; the writer is to open the file again.
    pub(crate) suspect: std::sync::atomic::AtomicBool,
    /// Tells the clerk that there may be something new to wait for.
    pub(crate) alarm: Arc<Notify>,
    pub(crate) clerk_runs: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        site: Site,
        options: Options,
        environment: Environment,
        engine: Engine,
        state: crate::codec::State,
    ) -> Self {
        let alarm = Arc::new(Notify::new());
        Self {
            site,
            environment,
            engine: RwLock::new(Some(engine)),
            queue: Queue::new(),
            feed: Feed::new(
                state.revision,
                state.oldest,
                options.recent_bytes,
                Arc::clone(&alarm),
            ),
            leases: Mutex::new(Leases::new(state.opens)),
            trouble: Mutex::new(None),
            suspect: std::sync::atomic::AtomicBool::new(false),
            alarm,
            clerk_runs: Mutex::new(false),
            options,
        }
    }

    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.leases)
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Notes why the store does not write, or that it does again.
    pub(crate) fn set_trouble(&self, now: Option<String>) {
        let path = self.site.path.display();
        let mut trouble = lock(&self.trouble);
        match (&*trouble, &now) {
            (None, Some(reason)) => tracing::error!(%path, %reason, "the store does not write"),
            (Some(_), None) => tracing::info!(%path, "the store writes again"),
            _ => {}
        }
        *trouble = now;
    }

    pub(crate) fn unavailable(&self, reason: impl fmt::Display) -> StoreError {
        StoreError::Unavailable {
            reason: format!("{}: {reason}", self.site.path.display()),
            retry_after: Some(RETRY_AFTER),
        }
    }

    pub(crate) fn closed(&self) -> StoreError {
        StoreError::unavailable(format!("{}: the store is closed", self.site.path.display()))
    }

    /// Runs a read on its own snapshot, on a thread where it may block. It waits for no commit.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&View) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || shared.read_blocking(work));
        task.await
            .unwrap_or_else(|_| Err(self.unavailable("the runtime is shutting down")))
    }

    pub(crate) fn read_blocking<T>(
        &self,
        work: impl FnOnce(&View) -> Result<T, ReadError>,
    ) -> Result<T> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        let Some(engine) = engine.as_ref() else {
            self.queue.poke();
            return Err(match self.trouble() {
                Some(reason) => self.unavailable(reason),
                None => self.closed(),
            });
        };
        // A damaged file can make the engine trip over itself; that is this read's trouble alone.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&View::new(engine)?)));
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ReadError::Store(error))) => Err(error),
            Ok(Err(ReadError::Engine(error))) => {
                self.suspect
                    .store(true, std::sync::atomic::Ordering::Release);
                self.queue.poke();
                Err(self.unavailable(error))
            }
            Err(_) => Err(self.unavailable("the file is damaged: the engine cannot walk it")),
        }
    }

    /// Starts the task that ends leases and wakes quiet watchers, on the runtime of the caller,
    /// unless it runs already.
    pub(crate) fn ensure_clerk(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if std::mem::replace(&mut *lock(&self.clerk_runs), true) {
            return;
        }
        let clerk = Clerk {
            shared: Arc::downgrade(self),
            environment: self.environment.clone(),
            alarm: Arc::clone(&self.alarm),
        };
        runtime.spawn(clerk.run());
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("path", &self.site.path)
            .field("trouble", &self.trouble())
            .finish_non_exhaustive()
    }
}

/// Does what must happen at a time, when nobody calls the store.
struct Clerk {
    shared: Weak<Shared>,
    environment: Environment,
    alarm: Arc<Notify>,
}

impl Clerk {
    async fn run(self) {
        loop {
            let next = {
                let Some(shared) = self.shared.upgrade() else {
                    return;
                };
                let now = self.environment.monotonic();
                let (ended, expiry) = {
                    let mut leases = shared.leases();
                    (leases.expire(now), leases.next_expiry())
                };
                let retry = ended.then(|| {
                    shared.queue.poke();
                    now + RETRY_AFTER
                });
                let progress = shared.feed.sweep(now);
                let next = progress.into_iter().chain(expiry).chain(retry).min();
                next.map(|deadline| deadline.saturating_sub(now))
            };
            match next {
                None => self.alarm.notified().await,
                Some(wait) => tokio::select! {
                    () = self.environment.sleep(wait) => {}
                    () = self.alarm.notified() => {}
                },
            }
        }
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        // Its runtime ended: the next lease or watch starts another one.
        if let Some(shared) = self.shared.upgrade() {
            *lock(&shared.clerk_runs) = false;
        }
    }
}
