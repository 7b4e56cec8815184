//! `launch --local`: one pod of a manifest, without any store, until told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_framework::model::KindDefinition;
use platctrl_framework::model::{Digest, FieldError, RawObject, Resource as _, schema};
use platctrl_kinds::{
    DEFAULT_NAMESPACE, Pod, PodPhase, PodSpec, PodTemplate, ReplicationController,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::host::{Host, HostConfig, HostError};
use crate::name::PodName;
use crate::plan::Order;
use crate::report::{Observer, PodEvent, Report};
use crate::version::{Desired, Tombstone};
use crate::worker::Worker;

/// Why a manifest cannot be run here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// It is of a kind that has no programs.
    #[error(
        "a {kind} cannot be launched: give the manifest of a Pod or of a ReplicationController, of which one pod is run"
    )]
    Kind {
        /// The manifest's kind.
        kind: String,
    },
    /// Something is wrong in it.
    #[error("{}", join(.0))]
    Invalid(Vec<FieldError>),
    /// This machine cannot run pods.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A local artifact cannot be read.
    #[error("cannot read the artifact {}: {source}", path.display())]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

fn join(errors: &[FieldError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn invalid(path: &str, problem: impl std::fmt::Display) -> LocalError {
    LocalError::Invalid(vec![FieldError::new(path, problem.to_string())])
}

/// Runs the pod of a manifest (or one of a replication controller's template) until `shutdown`,
/// then stops it and removes what was made for it. `base` is the directory that artifacts given by
/// a relative path lie in. What happens is told to `observer`.
///
/// ```no_run
/// use std::path::Path;
/// use std::sync::Arc;
///
/// use platctrl_agent::{HostConfig, Observer, PodEvent, Report, launch_local};
/// use platctrl_framework::model::RawObject;
/// use tokio_util::sync::CancellationToken;
///
/// #[derive(Debug)]
/// struct Printer;
///
/// impl Observer for Printer {
///     fn report(&self, report: Report) {
///         println!("{} is {}", report.name, report.phase.as_str());
///     }
///
///     fn event(&self, event: PodEvent) {
///         println!("{}: {}", event.reason, event.message);
///     }
/// }
///
/// # async fn try_it(manifest: &RawObject) -> Result<(), platctrl_agent::LocalError> {
/// let node = HostConfig::new("/tmp/try", "here");
/// let shutdown = CancellationToken::new();
/// launch_local(node, manifest, Path::new("."), Arc::new(Printer), shutdown).await
/// # }
/// ```
///
/// # Errors
/// [`LocalError`]; a pod that does not start is told to `observer` and tried again.
pub async fn launch_local(
    mut config: HostConfig,
    manifest: &RawObject,
    base: &Path,
    observer: Arc<dyn Observer>,
    shutdown: CancellationToken,
) -> Result<(), LocalError> {
    let (name, mut spec, labels) = pod_of(manifest)?;
    spec.node_name = Some(config.node.clone());
    config
        .file_dirs
        .extend(resolve_artifacts(&mut spec, base).await?);
    let json = serde_json::to_value(&spec).map_err(|error| invalid("spec", error))?;
    let desired = Desired {
        uid: config.environment.uid(),
        generation: 1,
        digest: Digest::of_json(&json),
        spec: Arc::new(spec),
        labels,
        tombstone: None,
        unsupported: None,
    };
    let host = tokio::task::spawn_blocking(move || Host::open(config))
        .await
        .map_err(|panic| invalid("manifest", panic))??;
    let (sender, mut gone) = tokio::sync::watch::channel(false);
    let listener = Arc::new(Listener {
        observer,
        gone: sender,
    });
    // What an earlier launch left behind, when it was killed, is ended first.
    let host = Arc::new(host);
    end_leftover(&host, &listener, &name, &mut gone).await;
    let want = Order::Want(Box::new(desired.clone()));
    let worker = Worker::spawn(Arc::clone(&host), Arc::clone(&listener) as _, name, want);
    shutdown.cancelled().await;
    worker.order(tombstone(desired));
    // Its sender lives as long as the listener does.
    let _ = gone.wait_for(|gone| *gone).await;
    worker.leave().await;
    Ok(())
}

fn tombstone(mut desired: Desired) -> Order {
    let by = "launch --local".to_owned();
    desired.tombstone = Some(Tombstone {
        grace: None,
        by,
        reason: None,
    });
    Order::Want(Box::new(desired))
}

/// Ends the pod of that name that an earlier launch started in this data directory.
async fn end_leftover(
    host: &Arc<Host>,
    listener: &Arc<Listener>,
    name: &PodName,
    gone: &mut tokio::sync::watch::Receiver<bool>,
) {
    let paths = host.layout().pod(name);
    let Some(last) = crate::state::PodRecord::look(&paths.record()).and_then(|record| record.last)
    else {
        return;
    };
    let worker = Worker::spawn(
        Arc::clone(host),
        Arc::clone(listener) as _,
        name.clone(),
        tombstone(last),
    );
    let _ = gone.wait_for(|gone| *gone).await;
    worker.leave().await;
    listener.gone.send_replace(false);
}

#[derive(Debug)]
struct Listener {
    observer: Arc<dyn Observer>,
    gone: tokio::sync::watch::Sender<bool>,
}

impl Observer for Listener {
    fn report(&self, report: Report) {
        let gone = report.phase == PodPhase::Gone;
        self.observer.report(report);
        if gone {
            self.gone.send_replace(true);
        }
    }

    fn event(&self, event: PodEvent) {
        self.observer.event(event);
    }
}

type Labels = std::collections::BTreeMap<String, String>;

/// The pod that a manifest describes.
fn pod_of(manifest: &RawObject) -> Result<(PodName, PodSpec, Labels), LocalError> {
    let metadata = &manifest.metadata;
    let (pointer, path, definition) = match manifest.kind.as_str() {
        Pod::KIND => ("", "spec", KindDefinition::of::<Pod>()),
        ReplicationController::KIND => (
            "/template/spec",
            "spec.template.spec",
            KindDefinition::of::<ReplicationController>(),
        ),
        kind => {
            return Err(LocalError::Kind {
                kind: kind.to_owned(),
            });
        }
    };
    let known = definition
        .schema
        .pointer("/properties/spec")
        .cloned()
        .unwrap_or(Value::Null);
    let unknown = schema::unknown_fields(&manifest.spec, &known, "spec");
    if !unknown.is_empty() {
        let errors = unknown
            .into_iter()
            .map(|field| FieldError::new(field, "is not a field that is known"));
        return Err(LocalError::Invalid(errors.collect()));
    }
    let (spec, labels) = if pointer.is_empty() {
        let spec =
            serde_json::from_value(manifest.spec.clone()).map_err(|error| invalid(path, error))?;
        (spec, metadata.labels.clone())
    } else {
        let template = manifest
            .spec
            .get("template")
            .cloned()
            .unwrap_or(Value::Null);
        let template: PodTemplate =
            serde_json::from_value(template).map_err(|error| invalid("spec.template", error))?;
        (template.spec, template.metadata.labels)
    };
    let spec: PodSpec = spec;
    let mut errors = Vec::new();
    spec.validate(path, &mut errors);
    if !errors.is_empty() {
        return Err(LocalError::Invalid(errors));
    }
    let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let name =
        PodName::new(namespace, &metadata.name).map_err(|error| invalid("metadata.name", error))?;
    Ok((name, spec, labels))
}

/// Turns paths relative to the manifest into `file:` locations and fills in missing digests.
/// Returns the directories that the artifacts are in.
async fn resolve_artifacts(spec: &mut PodSpec, base: &Path) -> Result<Vec<PathBuf>, LocalError> {
    let mut directories = Vec::new();
    for launchable in spec.launchables.values_mut() {
        let path = match launchable.location.split_once(':') {
            Some(("file", path)) => PathBuf::from(path.strip_prefix("//").unwrap_or(path)),
            Some((scheme, _)) if !scheme.contains('/') => continue,
            _ => base.join(&launchable.location),
        };
        let failed = |source| LocalError::Artifact {
            path: path.clone(),
            source,
        };
        let path = tokio::fs::canonicalize(&path).await.map_err(failed)?;
        if launchable.digest.is_none() {
            let file = path.clone();
            let digest =
                tokio::task::spawn_blocking(move || Digest::of_reader(std::fs::File::open(file)?));
            let digest = digest
                .await
                .map_err(std::io::Error::other)
                .and_then(|result| result);
            let (digest, _) = digest.map_err(failed)?;
            launchable.digest = Some(digest);
        }
        launchable.location = format!("file:{}", path.display());
        directories.extend(path.parent().map(Path::to_owned));
    }
    Ok(directories)
}
