//! What is wanted of a pod, and one version of it as this node runs it: plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::model::{Digest, Uid};
use platctrl_kinds::{Launchable, PodSpec, Span};
use serde::{Deserialize, Serialize};

/// What somebody wants of a pod on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Which pod of that name.
    pub uid: Uid,
    /// Counts changes of the spec.
    pub generation: u64,
    /// The digest of the canonical spec, which reports name.
    pub digest: Digest,
    /// What to run. Whoever has the same order shares it: specs are most of what is known of a
    /// pod.
    pub spec: Arc<PodSpec>,
    /// Shown to the programs in the file POD_LABELS_PATH.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The order to end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<Tombstone>,
    /// A field of the spec that this agent does not know, and so must not ignore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
}

/// The order to end a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// How long an orderly end may take, where whoever gave the order said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,
    /// Who gave it.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Desired {
    /// The first thing that is wrong with the spec by itself, if anything is.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let mut errors = Vec::new();
        self.spec.validate("spec", &mut errors);
        errors.first().map(ToString::to_string)
    }

    /// The app: what users and policies are named after.
    #[must_use]
    pub fn app<'a>(&'a self, pod: &'a str) -> &'a str {
        self.spec.app.as_deref().unwrap_or(pod)
    }
}

/// A user that programs run as, as it was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunAs {
    /// The user's name.
    pub name: String,
    /// Its id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its further groups.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// A program of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// The launchable it belongs to.
    pub launchable: String,
    /// Where it is in the install: `bin/launch`, or `bin/launch/<name>`.
    pub entry: String,
}

/// An artifact as installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// The artifact's digest.
    pub digest: Digest,
    /// The shared install.
    pub path: PathBuf,
}

/// One version of a pod, resolved: everything that is needed to start it, also without the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The generation whose limits are in force, if that is not the one whose programs run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjusted: Option<u64>,
    /// The generation that it was made of; names its directories.
    pub generation: u64,
    /// The digest of its spec.
    pub digest: Digest,
    /// Its spec.
    pub spec: Arc<PodSpec>,
    /// Whom it runs as.
    pub run_as: RunAs,
    /// The numbers of its ports.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    /// Its artifacts, by launchable.
    pub installs: BTreeMap<String, Installed>,
    /// Its programs: `web`, or `web/a` and `web/b` for a launchable with a directory of them.
    pub programs: BTreeMap<String, Program>,
    /// The scripts of its artifacts, by launchable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scripts: BTreeMap<String, Scripts>,
}

/// Which scripts an artifact has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Scripts {
    /// `bin/disable`: run before its programs are stopped.
    pub disable: bool,
    /// `bin/post-activate`: run when the version was made the current one.
    pub post_activate: bool,
    /// `bin/enable`: run when its programs were started.
    pub enable: bool,
}

/// How long a program may take to end when the manifest does not say.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a version may take to do its work when the manifest does not say.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How long an orderly end of a pod may take when the manifest does not say.
const TERMINATION_GRACE: Duration = Duration::from_secs(30);

impl Version {
    /// The generation that this is of, as far as anybody else is concerned.
    #[must_use]
    pub fn observed_generation(&self) -> u64 {
        self.adjusted.unwrap_or(self.generation)
    }

    /// How long a program of an unknown version may take to end.
    pub(crate) const LONGEST_STOP: Duration = TERMINATION_GRACE;

    /// Which scripts any of its artifacts has.
    #[must_use]
    pub fn scripts(&self) -> Scripts {
        self.scripts
            .values()
            .fold(Scripts::default(), |all, one| Scripts {
                disable: all.disable || one.disable,
                post_activate: all.post_activate || one.post_activate,
                enable: all.enable || one.enable,
            })
    }

    /// Whether an update to this version leaves a process of the program alone.
    #[must_use]
    pub fn leaves_alone(&self, program: &str) -> bool {
        self.launchable(program)
            .is_some_and(|launchable| launchable.no_halt_on_update)
    }

    /// How long it may take from its start until it does its work.
    #[must_use]
    pub fn start_timeout(&self) -> Duration {
        self.spec
            .start_timeout
            .map_or(START_TIMEOUT, Span::duration)
    }

    /// How long its `bin/disable` may take.
    #[must_use]
    pub fn disable_timeout(&self) -> Duration {
        self.spec
            .termination_grace_period
            .map_or(TERMINATION_GRACE, Span::duration)
    }

    /// The launchable that a program belongs to.
    #[must_use]
    pub fn launchable(&self, program: &str) -> Option<&Launchable> {
        let name = &self.programs.get(program)?.launchable;
        self.spec.launchables.get(name).map(|it| &**it)
    }

    /// How long a program may take to end after SIGTERM: its own time, within the pod's.
    #[must_use]
    pub fn stop_timeout(&self, program: &str, grace: Option<Duration>) -> Duration {
        let own = self
            .launchable(program)
            .and_then(|launchable| launchable.stop_timeout);
        let pod = self.spec.termination_grace_period;
        let grace = grace.unwrap_or_else(|| pod.map_or(TERMINATION_GRACE, Span::duration));
        own.map_or(STOP_TIMEOUT, Span::duration).min(grace)
    }

    /// How long to wait, not ready, before it is stopped.
    #[must_use]
    pub fn drain_delay(&self) -> Duration {
        self.spec.drain_delay.map_or(Duration::ZERO, Span::duration)
    }
}
