//! Getting an artifact onto the node: fetched unless it is in the cache, unpacked, made an install.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;

use platctrl_framework::failpoint;

use super::{Inner, UNFINISHED, blocking};
use crate::hoist::install::{self, Install, Told};
use crate::hoist::partial::Alone;
use crate::hoist::source::Source;
use crate::hoist::{Digest, Error, fetch};

impl Inner {
    pub(super) async fn ensure(
        self: Arc<Self>,
        digest: Digest,
        source: Source,
    ) -> Result<Install, Error> {
        // With the store, which is open for as long as somebody works in it.
        let guard = self.digest_lock(&digest).lock_owned().await;
        let alone: Alone = Arc::new((guard, Arc::clone(&self)));
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
                fetch::fetch(&self, &digest, &source, &alone).await?;
                drop(permits);
                fresh = true;
                continue;
            };
            // In a task of its own: once it has begun, giving up must not leave half of it.
            let alone = Alone::clone(&alone);
            let task = tokio::spawn(Arc::clone(&self).install(digest, artifact, alone));
            let outcome = task
                .await
                .map_err(|e| Error::io("install", digest.to_string(), io::Error::other(e)))?;
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
        _alone: Alone,
    ) -> Result<Install, Error> {
        let _permit = self.unpacks.acquire().await;
        Arc::clone(&self).install_alone(digest, artifact).await
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
    pub(super) fn make_unfinished(&self) -> Result<(tempfile::TempDir, OwnedFd), Error> {
        let installs = self.installs();
        let io = |e| Error::io("make a directory in", &installs, e);
        let directory = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&installs)
            .map_err(io)?;
        if let Some(user) = self.config.user {
            chown(directory.path(), Some(user.uid), Some(user.gid)).map_err(io)?;
        }
        let open = install::open_directory(directory.path())?;
        Ok((directory, open))
    }

    /// Frees the name of an install that is not one: something without a marker.
    pub(super) fn set_aside(&self, path: &Path) -> Result<(), Error> {
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
}

fn open_cached(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", path, e)),
    }
}
