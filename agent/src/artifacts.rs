//! From a launchable's `location` and `digest` to an install on this node.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use platctrl_kinds::Launchable;

use crate::hoist::{self, Install, Source};

/// The artifacts of a node, and which of them may run.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    store: hoist::Store,
    allow_unverified: bool,
}

/// Why an artifact is not there.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ArtifactError {
    /// Nobody said which bytes are meant.
    #[error(
        "`{location}` has no digest: write `digest: sha256:…` beside it (`platctrl hoist inspect FILE` prints it, `apply` fills it in for local files), or have the operator allow unverified artifacts"
    )]
    NoDigest {
        /// The location.
        location: String,
    },
    /// The digest and the location name different artifacts.
    #[error("digest {digest} is not that of the location, artifact:{named}: correct one of them")]
    Contradiction {
        /// The digest field.
        digest: hoist::Digest,
        /// The location's.
        named: hoist::Digest,
    },
    /// It could not be fetched, checked or unpacked.
    #[error(transparent)]
    Hoist(Arc<hoist::Error>),
}

impl From<hoist::Error> for ArtifactError {
    fn from(error: hoist::Error) -> Self {
        Self::Hoist(Arc::new(error))
    }
}

impl ArtifactError {
    /// The cause in one word of camel case.
    #[must_use]
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoDigest { .. } => "DigestRequired",
            Self::Contradiction { .. } => "DigestMismatch",
            Self::Hoist(error) => error.reason(),
        }
    }

    /// Trying again without a change can only fail again.
    #[must_use]
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::NoDigest { .. } | Self::Contradiction { .. } => true,
            Self::Hoist(error) => error.is_permanent(),
        }
    }
}

impl Artifacts {
    /// The artifacts in `store`. With `allow_unverified`, a `file:` location needs no digest:
    /// whatever is there runs.
    #[must_use]
    pub(crate) fn new(store: hoist::Store, allow_unverified: bool) -> Self {
        Self {
            store,
            allow_unverified,
        }
    }

    /// Makes sure that a launchable's artifact is installed: fetched, verified, unpacked.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub(crate) async fn ensure(&self, launchable: &Launchable) -> Result<Install, ArtifactError> {
        let (location, digest) = (&launchable.location, launchable.digest);
        self.ensure_at(location, digest).await
    }

    /// The same for an artifact that no launchable names.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub(crate) async fn ensure_at(
        &self,
        location: &str,
        stated: Option<hoist::Digest>,
    ) -> Result<Install, ArtifactError> {
        let source = Source::parse(location)?;
        let digest = match (&source, stated) {
            (Source::Artifact(named), Some(digest)) if digest != *named => {
                return Err(ArtifactError::Contradiction {
                    digest,
                    named: *named,
                });
            }
            (Source::Artifact(named), _) => *named,
            (_, Some(digest)) => digest,
            (Source::File(path), None) if self.allow_unverified => digest_of(path.clone()).await?,
            (_, None) => {
                return Err(ArtifactError::NoDigest {
                    location: source.to_string(),
                });
            }
        };
        self.store
            .ensure(&digest, &source)
            .await
            .map_err(ArtifactError::Hoist)
    }

    /// Removes what nobody uses, as [`hoist::Store::collect`].
    ///
    /// # Errors
    /// When the directories cannot be read.
    pub(crate) async fn collect(
        &self,
        keep: &BTreeSet<hoist::Digest>,
        water: hoist::Water,
    ) -> Result<hoist::Collected, hoist::Error> {
        self.store.collect(keep, water).await
    }
}

/// What is at a path right now. Only its digest leaves this function: the bytes that run are read
/// again by the unprivileged fetch user, and have to have this digest.
async fn digest_of(path: std::path::PathBuf) -> Result<hoist::Digest, ArtifactError> {
    let read = move || -> Result<hoist::Digest, hoist::Error> {
        let file = open_plain(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => hoist::Error::NotFound {
                location: format!("file:{}", path.display()),
                hint: String::new(),
            },
            _ => hoist::Error::Io {
                doing: "read",
                path: path.clone(),
                source,
            },
        })?;
        let (digest, _) = hoist::Digest::of_reader(file).map_err(|source| hoist::Error::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        Ok(digest)
    };
    let result = crate::blocking::waiting(read).await;
    Ok(result.map_err(|panic| hoist::Error::Io {
        doing: "read",
        path: "the artifact".into(),
        source: std::io::Error::other(panic),
    })??)
}

fn open_plain(path: &Path) -> std::io::Result<File> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::other("it is not a regular file"))
}
