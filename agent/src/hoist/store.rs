//! A node's artifacts: `cache/sha256/<hex>` as fetched, `installs/sha256-<hex>/` as unpacked, each
//! named by its digest, shared by all pods and never changed.
//!
//! However many pods ask for a digest at once, it is fetched once and unpacked once; a pod that
//! gives up waiting takes nothing from the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::{BoxFuture, WeakShared};
use platctrl_framework::failpoint;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore};

use super::child::{ChildCommand, ChildUser};
use super::collect::{self, Collected, Item, Removal, Use, Water};
use super::install::{self, Install, Told};
use super::process::Helpers;
use super::server::Server;
use super::source::Source;
use super::{Digest, Error, Limits, Network, fetch, partial};

/// Transfers at once: enough to fill a link, few enough to be done one after the other.
const FETCHES: usize = 6;
/// Of these from one server: a server that answers nobody must leave room for others.
const FETCHES_OF_ONE: usize = 3;
/// Unpackings at once. Each takes a core.
const UNPACKS: usize = 2;
/// What names of unfinished installs begin with.
const UNFINISHED: &str = ".tmp-";

/// How a node keeps its artifacts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The data directory; `cache/` and `installs/` in it are the store's.
    pub data_dir: PathBuf,
    /// The directories `file:` locations may lie under. None by default.
    pub allowed_directories: Vec<PathBuf>,
    /// Where `artifact:` locations are fetched from. None by default.
    pub server: Option<Server>,
    /// What an artifact may ask for.
    pub limits: Limits,
    /// How long a fetch may take.
    pub timeouts: Timeouts,
    /// How servers of artifacts are reached.
    pub network: Network,
    /// How helper processes are started: by default this program with its hidden subcommand.
    pub child: ChildCommand,
    /// Whom helper processes run as: by default [`ChildUser::default`] when root, else the same
    /// user (`None`, the only choice then).
    pub user: Option<ChildUser>,
}

/// How long a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Without a byte: 30 s.
    pub stall: Duration,
    /// Altogether: 30 minutes. What was fetched by then is gone on with where the server can.
    pub total: Duration,
    /// Bytes a second, on average over each time of `stall`, below which a sender counts as
    /// silent: 1,024.
    pub least_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            total: Duration::from_secs(30 * 60),
            least_rate: 1024,
        }
    }
}

impl Config {
    /// The defaults for this data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            allowed_directories: Vec::new(),
            server: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            network: Network::default(),
            child: ChildCommand::this_program(),
            user: rustix::process::geteuid()
                .is_root()
                .then(ChildUser::default),
        }
    }
}

/// The artifacts of one node. Cheap to clone; all clones are the same store.
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
        let (directory, _open) = blocking(move || inner.make_unfinished()).await?;
        self.inner.helpers.prove(directory.path()).await
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

    async fn ensure(self: Arc<Self>, digest: Digest, source: Source) -> Result<Install, Error> {
        let mut guard = self.digest_lock(&digest).lock_owned().await;
        let path = self.install_path(&digest);
        let found = blocking(move || {
            let install = install::installed(&path, &digest);
            install.iter().for_each(install::touch);
            Ok(install)
        });
        if let Some(install) = found.await? {
            return Ok(install);
        }
        let mut fresh = false;
        loop {
            let cached = self.cached(&digest);
            let Some(artifact) = blocking(move || open_cached(&cached)).await? else {
                // Its own share first: who waits for a server holds up nobody else.
                let share = self.share(source.server());
                let permits = (share.acquire().await, self.fetches.acquire().await);
                fetch::fetch(&self, &digest, &source).await?;
                drop(permits);
                fresh = true;
                continue;
            };
            // In a task of its own: once it has begun, giving up must not leave half of it.
            let task = tokio::spawn(Arc::clone(&self).install(digest, artifact, guard));
            let outcome;
            (guard, outcome) = match task.await {
                Ok(done) => done,
                Err(e) => {
                    return Err(Error::io(
                        "install",
                        digest.to_string(),
                        io::Error::other(e),
                    ));
                }
            };
            match outcome {
                // Bytes that were right when they were fetched have changed on the disk since.
                Err(Error::DigestMismatch { actual, .. }) if !fresh => {
                    tracing::warn!(%digest, %actual, "a cached artifact has gone bad: fetching it again");
                    let cached = self.cached(&digest);
                    blocking(move || {
                        fs::remove_file(&cached).map_err(|e| Error::io("remove", &cached, e))
                    })
                    .await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn install(
        self: Arc<Self>,
        digest: Digest,
        artifact: File,
        guard: OwnedMutexGuard<()>,
    ) -> (OwnedMutexGuard<()>, Result<Install, Error>) {
        let permit = self.unpacks.acquire().await;
        let outcome = Arc::clone(&self).install_alone(digest, artifact).await;
        drop(permit);
        (guard, outcome)
    }

    async fn install_alone(
        self: Arc<Self>,
        digest: Digest,
        artifact: File,
    ) -> Result<Install, Error> {
        let inner = Arc::clone(&self);
        let (directory, target) = blocking(move || inner.make_unfinished()).await?;
        let limits = &self.config.limits;
        failpoint!("agent.unpack");
        let unpacked = self.helpers.unpack(artifact, target, &digest, limits).await;
        let inner = Arc::clone(&self);
        blocking(move || {
            // Removed when dropped, unless it has been renamed to its name.
            let directory = directory;
            let unpacked = unpacked?;
            if !unpacked.missing.is_empty() {
                tracing::warn!(missing = ?unpacked.missing, "the unpacking process was not fully sandboxed");
            }
            let to = inner.install_path(&digest);
            inner.set_aside(&to)?;
            let told = Told { digest, entries: unpacked.entries, bytes: unpacked.bytes };
            let (user, limits) = (inner.config.user, &inner.config.limits);
            let install = install::complete(directory.path(), &to, user, told, limits)?;
            let _ = directory.keep();
            failpoint!("agent.unpack.done");
            Ok(install)
        })
        .await
        .map_err(|error| match error {
            // Paths in the tree mean nothing to a reader; the file system that is full does.
            Error::NoSpace { .. } => Error::NoSpace { path: self.installs() },
            other => other,
        })
    }

    /// An empty directory that only the unpacking user may enter.
    fn make_unfinished(&self) -> Result<(tempfile::TempDir, OwnedFd), Error> {
        let installs = self.installs();
        let io = |e| Error::io("make a directory in", &installs, e);
        let directory = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&installs)
            .map_err(io)?;
        if let Some(user) = self.config.user {
            chown(directory.path(), Some(user.uid), Some(user.gid)).map_err(io)?;
        }
        let open = install::open_directory(directory.path())?;
        Ok((directory, open))
    }

    /// Frees the name of an install that is not one: something without a marker.
    fn set_aside(&self, path: &Path) -> Result<(), Error> {
        let aside = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(self.installs())
            .map_err(|e| Error::io("make a directory in", self.installs(), e))?;
        match fs::rename(path, aside.path().join("old")) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("set aside", path, e)),
        }
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

    /// Everything that is there, by digest.
    fn items(&self) -> Result<Vec<Item>, Error> {
        let mut items: BTreeMap<Digest, Item> = BTreeMap::new();
        let mut add = |digest, used, install: Option<u64>, cached: Option<u64>| {
            let item = items.entry(digest).or_insert(Item {
                digest,
                install: None,
                cached: None,
                used,
            });
            item.install = item.install.or(install);
            item.cached = item.cached.or(cached);
            item.used = item.used.max(used);
        };
        for name in names(&self.installs())? {
            let digest = name.strip_prefix("sha256-").map(Digest::from_hex);
            if let Some(Ok(digest)) = digest {
                let (bytes, used) = install::measure(&self.installs().join(name));
                add(digest, used, Some(bytes), None);
            }
        }
        let cache = self.config.data_dir.join("cache/sha256");
        for name in names(&cache)? {
            let metadata = fs::symlink_metadata(cache.join(&name));
            if let (Ok(digest), Ok(metadata)) = (Digest::from_hex(&name), metadata) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                add(digest, used, None, Some(metadata.len()));
            }
        }
        Ok(items.into_values().collect())
    }

    fn room(&self, items: &[Item]) -> Result<Use, Error> {
        let installs = self.installs();
        let disk =
            rustix::fs::statvfs(&installs).map_err(|e| Error::io("measure", &installs, e))?;
        let sum = |of: fn(&Item) -> Option<u64>| items.iter().filter_map(of).sum();
        Ok(Use {
            installs: sum(|item| item.install),
            cached: sum(|item| item.cached),
            // What is kept for root alone is neither free for pods nor used by anybody.
            disk: (disk.f_blocks.saturating_sub(disk.f_bfree))
                .saturating_add(disk.f_bavail)
                .saturating_mul(disk.f_frsize),
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
        })
    }

    fn collect(&self, keep: &BTreeSet<Digest>, water: Water) -> Result<Collected, Error> {
        let items = self.items()?;
        let excess = collect::excess(self.room(&items)?, water);
        let mut collected = Collected::default();
        for removal in collect::candidates(items, keep, water, SystemTime::now()) {
            if collected.freed >= excess {
                break;
            }
            if self.remove_unused(removal, &mut collected) {
                collected.freed = collected.freed.saturating_add(removal.bytes);
            }
        }
        collected.short = excess.saturating_sub(collected.freed);
        Ok(collected)
    }

    fn remove_unused(&self, removal: Removal, collected: &mut Collected) -> bool {
        let digest = removal.digest;
        let lock = self.digest_lock(&digest);
        // Somebody is just installing it.
        let Ok(_guard) = lock.try_lock() else {
            return false;
        };
        let mut remove = || -> Result<(), Error> {
            if removal.install {
                self.set_aside(&self.install_path(&digest))?;
                collected.installs.insert(digest);
            }
            let cached = self.cached(&digest);
            match fs::remove_file(&cached) {
                Ok(()) => drop(collected.cached.insert(digest)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", &cached, e)),
            }
            Ok(())
        };
        match remove() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%digest, %error, "cannot remove an artifact that is not used");
                false
            }
        }
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

fn open_cached(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", path, e)),
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
