//! What a hook of platctrl is told, read from its environment.
//!
//! ```no_run
//! use hook::{Call, Event};
//!
//! # fn main() -> Result<(), hook::HookError> {
//! let call = Call::from_env()?;
//! if call.event != Event::BeforeInstall {
//!     return Ok(());
//! }
//! let pod = call.pod()?;
//! println!("{} is about to come to {}", pod.name, call.node);
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};

use serde_json::Value;

/// No manifest is larger.
const MAX_MANIFEST: u64 = 1 << 20;

/// Why a hook does not know what it was called for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// A variable is missing: it was not called by an agent, or at an event without a pod.
    #[error("{0} is not set: is this called by platctrl, at an event of a pod?")]
    Missing(&'static str),
    /// The event is one that came later.
    #[error("`{0}` is an event that this hook does not know")]
    UnknownEvent(String),
    /// The manifest cannot be read.
    #[error("cannot read the manifest {}: {problem}", path.display())]
    Manifest {
        /// Where it should be.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
}

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The agent starts. There is no pod.
    PreparerInit,
    /// A version is about to be fetched.
    BeforeInstall,
    /// It is unpacked.
    AfterInstall,
    /// A pod is stopped, and about to be removed.
    BeforeUninstall,
    /// The old version is stopped, the new one not started yet.
    BeforeLaunch,
    /// The new version does its work.
    AfterLaunch,
    /// What is wanted may not run on this node.
    AfterAuthFail,
}

impl Event {
    /// The event of this name.
    ///
    /// # Errors
    /// [`HookError::UnknownEvent`].
    pub fn parse(name: &str) -> Result<Self, HookError> {
        Ok(match name {
            "preparer_init" => Self::PreparerInit,
            "before_install" => Self::BeforeInstall,
            "after_install" => Self::AfterInstall,
            "before_uninstall" => Self::BeforeUninstall,
            "before_launch" => Self::BeforeLaunch,
            "after_launch" => Self::AfterLaunch,
            "after_auth_fail" => Self::AfterAuthFail,
            other => return Err(HookError::UnknownEvent(other.chars().take(60).collect())),
        })
    }
}

/// One call of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// The hook's own name.
    pub hook: String,
    /// When it is called.
    pub event: Event,
    /// The node.
    pub node: String,
    /// The directory that all pods' homes are in.
    pub pod_root: PathBuf,
}

/// The pod that a hook is called for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pod {
    /// The app.
    pub app: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tells it from an earlier pod of that name.
    pub unique_key: String,
    /// Its home.
    pub home: PathBuf,
    /// The file of its manifest.
    pub manifest: PathBuf,
    /// The file of its configuration; there from `before_launch` on.
    pub config: PathBuf,
    /// The directory of its environment; there from `before_launch` on.
    pub env: PathBuf,
}

impl Call {
    /// What the environment of this process says.
    ///
    /// # Errors
    /// [`HookError`].
    pub fn from_env() -> Result<Self, HookError> {
        Ok(Self {
            hook: variable("HOOK")?,
            event: Event::parse(&variable("HOOK_EVENT")?)?,
            node: variable("HOOKED_NODE")?,
            pod_root: variable("HOOKED_SYSTEM_POD_ROOT")?.into(),
        })
    }

    /// The pod, at every event but [`Event::PreparerInit`].
    ///
    /// # Errors
    /// [`HookError::Missing`].
    pub fn pod(&self) -> Result<Pod, HookError> {
        Ok(Pod {
            app: variable("HOOKED_POD_ID")?,
            namespace: variable("HOOKED_POD_NAMESPACE")?,
            name: variable("HOOKED_POD_NAME")?,
            unique_key: variable("HOOKED_POD_UNIQUE_KEY")?,
            home: variable("HOOKED_POD_HOME")?.into(),
            manifest: variable("HOOKED_POD_MANIFEST")?.into(),
            config: variable("HOOKED_CONFIG_PATH")?.into(),
            env: variable("HOOKED_ENV_PATH")?.into(),
        })
    }
}

impl Pod {
    /// Its manifest, as it was ordered.
    ///
    /// # Errors
    /// [`HookError::Manifest`].
    pub fn read_manifest(&self) -> Result<Value, HookError> {
        let failed = |problem: String| HookError::Manifest {
            path: self.manifest.clone(),
            problem,
        };
        let text = read(&self.manifest).map_err(|error| failed(error.to_string()))?;
        serde_saphyr::from_str(&text).map_err(|error| failed(error.to_string()))
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_MANIFEST)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn variable(name: &'static str) -> Result<String, HookError> {
    std::env::var(name).map_err(|_| HookError::Missing(name))
}
