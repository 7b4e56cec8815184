//! How what goes wrong becomes the trouble of a step.

use tokio::task::JoinError;

use crate::artifacts::ArtifactError;
use crate::files::FileError;
use crate::hoist;
use crate::plan::Step;
use crate::report::Trouble;

impl Trouble {
    /// One that may pass: the step is tried again soon.
    pub(super) fn passing(step: Step, reason: &str, message: String) -> Self {
        Self {
            step,
            reason: reason.into(),
            message,
            permanent: false,
        }
    }

    /// One that only a change on the machine, or another version, ends: it is tried again rarely.
    pub(super) fn lasting(step: Step, reason: &str, message: String) -> Self {
        Self {
            permanent: true,
            ..Self::passing(step, reason, message)
        }
    }

    /// A file could not be read or written.
    pub(super) fn file(step: Step, error: &FileError) -> Self {
        if !error.is_full() {
            return Self::passing(step, "FileError", error.to_string());
        }
        let message = format!(
            "no space left at {}: free some, or move the data directory",
            error.path.display()
        );
        Self::passing(step, "NoSpace", message)
    }

    /// The work of a step panicked: a bug, told with the step that met it.
    pub(super) fn panicked(step: Step, panic: &JoinError) -> Self {
        Self::passing(
            step,
            "AgentError",
            format!("{} was cut off: {panic}", step.name()),
        )
    }

    /// An artifact could not be had, or is refused.
    pub(super) fn artifact(launchable: &str, error: &ArtifactError) -> Self {
        Self {
            step: match error {
                ArtifactError::Hoist(error) => match **error {
                    hoist::Error::DigestMismatch { .. } => Step::Verify,
                    hoist::Error::Refused(_) | hoist::Error::LaunchInvalid { .. } => Step::Unpack,
                    _ => Step::Fetch,
                },
                _ => Step::Fetch,
            },
            reason: error.reason().into(),
            message: format!("launchable `{launchable}`: {error}"),
            permanent: error.is_permanent(),
        }
    }
}

/// Does something with the node's own files for a step.
pub(super) async fn blocking<T: Send + 'static>(
    step: Step,
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let done = crate::blocking::blocking(work).await;
    done.unwrap_or_else(|panic| Err(Trouble::panicked(step, &panic)))
}

/// The same where all that can go wrong is a file.
pub(super) async fn with_files<T: Send + 'static>(
    step: Step,
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, Trouble> {
    blocking(step, move || {
        work().map_err(|error| Trouble::file(step, &error))
    })
    .await
}

/// Does something for a step that others may keep waiting.
pub(super) async fn waiting<T: Send + 'static>(
    step: Step,
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let done = crate::blocking::waiting(work).await;
    done.unwrap_or_else(|panic| Err(Trouble::panicked(step, &panic)))
}
