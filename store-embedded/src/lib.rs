//! The durable store of one process: one directory, no server.
//!
//! [`EmbeddedStore`] is a [`Store`] over one file. A commit is answered once it is on disk;
//! commits that wait at the same time share one write. Reads run on their own snapshots and wait
//! for no commit. Watchers get every transaction at its own revision, resume from any revision
//! that the history still holds (also across a restart), and never slow the writer. Lists can be
//! read at any such revision.
//!
//! One process has a directory open at a time; opening it ends the leases of the process before.
//! The methods of the store are called on a tokio runtime; [`EmbeddedStore::open`] is not.
//!
//! When the disk is full or fails, commits are refused with
//! [`StoreError::Unavailable`], nothing is half applied, reads go on, and commits work again once
//! the disk does.
//!
//! ```
//! # let dir = tempfile::tempdir().unwrap();
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use platctrl_framework::environment::Environment;
//! use platctrl_framework::store::{Key, Store, Transaction};
//! use platctrl_store_embedded::EmbeddedStore;
//!
//! let key = Key::new("o/intent/a").unwrap();
//! let store = EmbeddedStore::open(dir.path(), Environment::system()).unwrap();
//! let revision = store.commit(Transaction::new().put(key.clone(), "1")).await.unwrap();
//! drop(store);
//!
//! let store = EmbeddedStore::open(dir.path(), Environment::system()).unwrap();
//! let found = store.get(&[key]).await.unwrap();
//! assert_eq!(found.records[0].as_ref().unwrap().modified, revision);
//! # });
//! ```

mod backup;
mod batch;
mod codec;
mod engine;
mod error;
mod feed;
mod lease;
mod lock;
mod options;
mod queue;
mod read;
mod shared;
mod upgrade;
mod watch;
mod writer;

#[cfg(test)]
mod faults;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision, Snapshot,
    Store, StoreError, Transaction, WatchStream,
};

pub use backup::{Report, check, check_backup, restore};
pub use error::OpenError;
pub use options::Options;

use engine::{FILE, Medium, Site};
use lock::DirectoryLock;
use queue::Work;
use shared::Shared;
use writer::Writer;

/// A store in a directory. See [the crate](crate).
///
/// Dropping it finishes what was asked, closes the file and frees the directory; it blocks for
/// as long as that takes (one write, usually). Watches of it end with an error.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    dir: PathBuf,
    writer: Option<JoinHandle<()>>,
    _lock: DirectoryLock,
}

/// Whether a store writes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It does.
    Writing,
    /// It refuses commits, for this reason, until the cause is gone.
    Refusing(String),
}

impl EmbeddedStore {
    /// Opens the store in `dir`, or makes an empty one there, and ends the leases of the process
    /// before. Takes milliseconds after an orderly end, and up to seconds per GiB after a crash
    /// in the middle of heavy writing.
    ///
    /// # Errors
    /// [`OpenError`]: another process has it open, the file is damaged or of a newer version, or
    /// the file system refuses.
    pub fn open(
        dir: impl AsRef<Path>,
        environment: Environment,
    ) -> std::result::Result<Self, OpenError> {
        Self::open_with(dir, environment, Options::default())
    }

    /// Like [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(
        dir: impl AsRef<Path>,
        environment: Environment,
        options: Options,
    ) -> std::result::Result<Self, OpenError> {
        Self::open_on(dir.as_ref(), environment, options, engine::plain_medium())
    }

    fn open_on(
        dir: &Path,
        environment: Environment,
        options: Options,
        medium: Medium,
    ) -> std::result::Result<Self, OpenError> {
        make_directory(dir)?;
        let lock = DirectoryLock::take(dir)?;
        let site = Site {
            path: dir.join(FILE),
            cache_bytes: options.cache_bytes,
            medium,
        };
        let exists = site
            .path
            .try_exists()
            .map_err(OpenError::io("look at", &site.path))?;
        if !exists {
            site.create()?;
        }
        let now = environment.now().as_millisecond();
        let (engine, state) = site.guarded(|| {
            let (engine, state) = site.open()?;
            let state = writer::begin(&engine, state, now, &options)
                .map_err(|error| site.explain(error))?;
            Ok((engine, state))
        })?;
        let shared = Arc::new(Shared::new(site, options, environment, engine, state));
        let writer = Writer::new(Arc::clone(&shared), state);
        let closing = Closing(Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                let _closing = closing;
                writer.run();
            })
            .map_err(OpenError::io("start the writer of", dir))?;
        Ok(Self {
            shared,
            dir: dir.to_owned(),
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the store writes, and if not, why.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.shared.trouble() {
            None => Health::Writing,
            Some(reason) => Health::Refusing(reason),
        }
    }

    /// The bytes that the file takes, used or not.
    ///
    /// # Errors
    /// What the file system says.
    pub fn file_bytes(&self) -> std::io::Result<u64> {
        Ok(std::fs::metadata(self.dir.join(FILE))?.len())
    }

    /// Writes a consistent copy of the newest state, with its history, to the file `path`, which
    /// must not exist; commits go on meanwhile. [`restore`] makes a store of it.
    ///
    /// # Errors
    /// [`OpenError`]: `path` exists, or the file system refuses; nothing is left there then.
    pub async fn backup(&self, path: impl AsRef<Path>) -> std::result::Result<Report, OpenError> {
        let (shared, path) = (Arc::clone(&self.shared), path.as_ref().to_owned());
        let at = path.clone();
        let copy = tokio::task::spawn_blocking(move || backup::backup(&shared, &path));
        copy.await.unwrap_or_else(|_| {
            let source = std::io::Error::other("the runtime is shutting down");
            Err(OpenError::io("write", at)(source))
        })
    }

    /// Gives the file's unused space back to the file system. Reads and commits wait while it
    /// runs: seconds per GiB.
    ///
    /// # Errors
    /// `Unavailable` when the disk does not take it; nothing is lost then.
    pub async fn compact(&self) -> Result<()> {
        self.ask(Work::Compact).await.map(|_| ())
    }

    /// Forgets the history before a revision, which itself stays readable, ahead of what
    /// [`Options`] say; returns the oldest revision that is readable then.
    ///
    /// # Errors
    /// As for a commit.
    pub async fn forget_history_before(&self, revision: Revision) -> Result<Revision> {
        self.ask(Work::Forget(revision)).await
    }

    async fn ask(&self, work: Work) -> Result<Revision> {
        let answer = self.shared.queue.push(work).await;
        let answer = answer.ok_or_else(|| self.shared.closed())?;
        answer.await.unwrap_or_else(|_| {
            Err(StoreError::Unknown {
                reason: format!("{}: the store's writer ended", self.dir.display()),
            })
        })
    }
}

fn make_directory(dir: &Path) -> std::result::Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(OpenError::io("create", dir))
}

/// Closes everything when the writer ends, in whatever way.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.queue.close();
        self.0.queue.clear();
        self.0.feed.close();
        // Waits for reads that are under way. Dropping the engine closes the file in order.
        let mut engine = self
            .0
            .engine
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *engine = None;
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(dir = %self.dir.display(), "the store's writer ended by a panic");
        }
        self.shared.alarm.notify_one();
    }
}

impl Store for EmbeddedStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(self.shared.options.limits);
        capabilities.pinned_reads = true;
        capabilities.range_compare = true;
        capabilities.group_compare = true;
        capabilities.exact_watch = true;
        capabilities.durable = true;
        capabilities
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(async move {
            let limit = self.shared.options.limits.max_operations;
            if keys.len() > limit {
                let reason = format!(
                    "{} keys in one get; the store takes {limit}: ask in several calls",
                    keys.len()
                );
                return Err(StoreError::Invalid { reason });
            }
            let keys = keys.to_vec();
            self.shared.read(move |view| read::get(view, &keys)).await
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        let request = request.clone();
        Box::pin(async move {
            self.shared
                .read(move |view| read::list(view, &request))
                .await
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            self.shared.options.limits.check(&transaction)?;
            self.ask(Work::Commit(transaction)).await
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        watch::Watcher::new(Arc::clone(&self.shared), prefix, after)
            .into_stream()
            .boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            self.shared.ensure_clerk();
            let now = self.shared.environment.monotonic();
            let lease = self.shared.leases().grant(ttl, now);
            self.shared.alarm.notify_one();
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.ensure_clerk();
            let now = self.shared.environment.monotonic();
            self.shared.leases().keep_alive(lease, now)
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.ask(Work::EndLease(lease)).await.map(|_| ()) })
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("dir", &self.dir)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}
