//! A node's artifacts: `cache/sha256/<hex>` as fetched, `installs/sha256-<hex>/` as unpacked, each
//! named by its digest, shared by all pods and never changed.
//!
//! However many pods ask for a digest at once, it is fetched once and unpacked once; a pod that
//! gives up waiting takes nothing from the others.

mod ensure;
mod room;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::FutureExt as _;
use futures::future::{BoxFuture, WeakShared};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::collect::{Collected, Use, Water};
use super::config::Config;
use super::install::{self, Install};
use super::process::Helpers;
use super::source::Source;
use super::{Digest, Error, partial};

/// Transfers at once: enough to fill a link, few enough to be done one after the other.
const FETCHES: usize = 6;
/// Of these from one server: a server that answers nobody must leave room for others.
const FETCHES_OF_ONE: usize = 3;
/// Unpackings at once. Each takes a core.
const UNPACKS: usize = 2;
/// What names of unfinished installs begin with.
const UNFINISHED: &str = ".tmp-";

/// The artifacts of one node. Cheap to clone; all clones are the same store.
///
/// ```no_run
/// use platctrl_agent::hoist::{Config, Digest, Source, Store};
///
/// # async fn example(digest: Digest) -> Result<(), Box<dyn std::error::Error>> {
/// let store = Store::open(Config::new("/var/lib/platctrl"))?;
/// let source = Source::parse("https://artifacts.example/hello_1.2.0.tar.gz")?;
/// let install = store.ensure(&digest, &source).await?;
/// println!("{} is unpacked in {}", install.digest, install.path.display());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

type Outcome = Result<Install, Arc<Error>>;
type Flight = WeakShared<BoxFuture<'static, Outcome>>;

pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) helpers: Helpers,
    /// What is under way, by what was asked for.
    flights: Mutex<HashMap<(Digest, Source), Flight>>,
    /// Held while anything is done to a digest.
    digests: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
    fetches: Semaphore,
    /// The shares of servers that are being asked.
    servers: Mutex<HashMap<String, Weak<Semaphore>>>,
    unpacks: Semaphore,
    /// Holds the lock on the directory.
    _lock: File,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `config.data_dir`, making what is missing and removing what an earlier
    /// process left unfinished. Blocks, briefly.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has it open; [`Error::Io`] and [`Error::NoSpace`].
    pub fn open(config: Config) -> Result<Self, Error> {
        let data_dir = &config.data_dir;
        // Pod users pass through to what they run; only we list what there is.
        for (directory, mode) in [
            ("", 0o711),
            ("cache", 0o700),
            ("cache/sha256", 0o700),
            ("cache/partial", 0o700),
            ("installs", 0o711),
        ] {
            make_directory(&data_dir.join(directory), mode)?;
        }
        let path = data_dir.join("installs/.lock");
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(|e| Error::io("open", &path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::Busy {
                    path: data_dir.clone(),
                });
            }
            Err(fs::TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
        }
        let helpers = Helpers {
            command: config.child.clone(),
            user: config.user,
        };
        let inner = Inner {
            config,
            helpers,
            flights: Mutex::default(),
            digests: Mutex::default(),
            fetches: Semaphore::new(FETCHES),
            servers: Mutex::default(),
            unpacks: Semaphore::new(UNPACKS),
            _lock: lock,
        };
        inner.remove_unfinished()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Makes sure that `digest` is installed, fetching it from `source` and unpacking it if need be.
    ///
    /// May be called for one digest any number of times at once, and may be given up (dropped) at
    /// any time: a fetch that nobody waits for stops, an install that has begun is finished.
    ///
    /// # Errors
    /// Why not; [`Error::is_permanent`] says whether it is worth trying again.
    pub async fn ensure(&self, digest: &Digest, source: &Source) -> Result<Install, Arc<Error>> {
        let flight = {
            let key = (*digest, source.clone());
            let mut flights = lock(&self.inner.flights);
            let under_way = flights.get(&key).and_then(WeakShared::upgrade);
            match under_way {
                Some(flight) => flight,
                None => {
                    flights.retain(|_, flight| flight.upgrade().is_some());
                    let (inner, digest, source) =
                        (Arc::clone(&self.inner), *digest, source.clone());
                    let flight =
                        async move { inner.ensure(digest, source).await.map_err(Arc::new) };
                    let flight = flight.boxed().shared();
                    if let Some(weak) = flight.downgrade() {
                        flights.insert(key, weak);
                    }
                    flight
                }
            }
        };
        flight.await
    }

    /// Whether `digest` is installed, completely.
    #[must_use]
    pub fn is_installed(&self, digest: &Digest) -> bool {
        self.installed(digest).is_some()
    }

    /// The install of `digest`, if it is complete. Blocks for reading one small file.
    #[must_use]
    pub fn installed(&self, digest: &Digest) -> Option<Install> {
        install::installed(&self.inner.install_path(digest), digest)
    }

    /// What of the sandbox of helper processes holds on this machine: a helper enters it and tries
    /// what it must not do. Returns what it could do all the same, which is nothing on a machine
    /// that has every fence, and the fences that it has not.
    ///
    /// # Errors
    /// When the helper cannot be started or does not answer.
    pub async fn prove(&self) -> Result<(Vec<String>, Vec<String>), Error> {
        let inner = Arc::clone(&self.inner);
        let made = move || Ok((inner.make_unfinished()?, inner.make_unfinished()?));
        let ((directory, _), (beside, _)) = blocking(made).await?;
        let (directory, beside) = (directory.path(), beside.path());
        self.inner.helpers.prove(directory, beside).await
    }

    /// The room that artifacts take, and that there is.
    ///
    /// # Errors
    /// [`Error::Io`] when the directories cannot be read.
    pub async fn room(&self) -> Result<Use, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.room(&inner.items()?)).await
    }

    /// When artifacts take more room than `water` allows, removes some: see [`Water`]. Those to
    /// `keep` and those under way stay installed.
    ///
    /// What cannot be removed is logged and left for the next time.
    ///
    /// # Errors
    /// [`Error::Io`] when the directories cannot be read.
    pub async fn collect(&self, keep: &BTreeSet<Digest>, water: Water) -> Result<Collected, Error> {
        let (inner, keep) = (Arc::clone(&self.inner), keep.clone());
        blocking(move || inner.collect(&keep, water)).await
    }
}

impl Inner {
    pub(super) fn cached(&self, digest: &Digest) -> PathBuf {
        self.config.data_dir.join("cache/sha256").join(digest.hex())
    }

    pub(super) fn partial_directory(&self) -> PathBuf {
        self.config.data_dir.join("cache/partial")
    }

    fn installs(&self) -> PathBuf {
        self.config.data_dir.join("installs")
    }

    /// Without the digest's colon: an app may want to put its directory in a search path.
    fn install_path(&self, digest: &Digest) -> PathBuf {
        self.installs().join(format!("sha256-{}", digest.hex()))
    }

    fn digest_lock(&self, digest: &Digest) -> Arc<AsyncMutex<()>> {
        let mut digests = lock(&self.digests);
        if let Some(there) = digests.get(digest).and_then(Weak::upgrade) {
            return there;
        }
        digests.retain(|_, lock| lock.strong_count() > 0);
        let new = Arc::default();
        digests.insert(*digest, Arc::downgrade(&new));
        new
    }

    fn share(&self, server: String) -> Arc<Semaphore> {
        let mut servers = lock(&self.servers);
        if let Some(there) = servers.get(&server).and_then(Weak::upgrade) {
            return there;
        }
        servers.retain(|_, share| share.strong_count() > 0);
        let new = Arc::new(Semaphore::new(FETCHES_OF_ONE));
        servers.insert(server, Arc::downgrade(&new));
        new
    }

    fn remove_unfinished(&self) -> Result<(), Error> {
        for name in names(&self.installs())? {
            if name.starts_with(UNFINISHED) {
                remove_tree(&self.installs().join(name))?;
            }
        }
        let partial = self.partial_directory();
        partial::sweep(&partial, &names(&partial)?)
    }
}

/// Nothing panics while it holds one of these, and a half-done change of the map would be harmless.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match crate::blocking::waiting(work).await {
        Ok(outcome) => outcome,
        Err(e) => Err(Error::io(
            "work in",
            "the artifact store",
            io::Error::other(e),
        )),
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    let io = |e| Error::io("make directory", path, e);
    match DirBuilder::new().recursive(true).mode(mode).create(path) {
        Ok(()) => {}
        Err(e) => return Err(io(e)),
    }
    // The umask may have taken something away; what an operator opened further stays so.
    let there = fs::symlink_metadata(path).map_err(io)?.permissions().mode();
    if there & mode != mode {
        fs::set_permissions(path, fs::Permissions::from_mode((there | mode) & 0o7777))
            .map_err(io)?;
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let io = |e| Error::io("read", directory, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        if let Ok(name) = entry.map_err(io)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes a tree, following no links. A writer that outlived its agent for a moment may still add
/// to it: then once more.
fn remove_tree(path: &Path) -> Result<(), Error> {
    let mut attempts = 0;
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && attempts < 10 => {
                attempts += 1;
            }
            Err(e) => return Err(Error::io("remove", path, e)),
        }
    }
}
