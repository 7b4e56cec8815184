//! Keeps the room that artifacts take within bounds, and fetches what is wanted in advance.
//!
//! What is installed for a pod is kept as long as anything of the pod names it: the version that
//! runs, the one that follows, the one before. That is read from the disk, so that it holds for
//! pods whose worker is stuck or not there yet. When a part of it cannot be read, nothing goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::model::Digest;
use platctrl_kinds::{Launchable, Prefetch};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::artifacts::ArtifactError;
use crate::files::{self, FileError};
use crate::hoist::{self, Collected, Install, Water};
use crate::host::Host;
use crate::layout::{Layout, PodPaths};

/// Between two looks at the room that is taken.
const EVERY: Duration = Duration::from_secs(60);
/// Before what could not be fetched in advance is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// No record is larger.
const RECORD_BYTES: u64 = 8 << 20;

/// What is wanted in advance, and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Advance {
    wanted: watch::Sender<Vec<Prefetch>>,
    state: watch::Sender<BTreeMap<String, String>>,
}

impl Advance {
    /// Replaces what is wanted.
    pub(crate) fn want(&self, wanted: &[Prefetch]) {
        self.wanted.send_if_modified(|known| {
            let changed = known.as_slice() != wanted;
            if changed {
                *known = wanted.to_vec();
            }
            changed
        });
    }

    /// What became of each, by digest: `Installed`, or why not.
    pub(crate) fn state(&self) -> BTreeMap<String, String> {
        self.state.borrow().clone()
    }

    fn digests(&self) -> BTreeSet<Digest> {
        self.wanted.borrow().iter().map(|it| it.digest).collect()
    }
}

/// Works until it is stopped; what is being removed then is removed first, so that nothing here
/// works in the data directory any more when this has ended.
pub(crate) async fn run(host: Arc<Host>, stop: CancellationToken) {
    let fetching = stop.run_until_cancelled(fetch_in_advance(&host));
    tokio::join!(keep_room(&host, &stop), fetching);
}

async fn keep_room(host: &Arc<Host>, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = collect(host, host.water).await {
            tracing::warn!(%error, "cannot look after the room that artifacts take");
        }
        stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
    }
}

/// Makes sure that a launchable's artifact is installed; when the disk is full, at the cost of all
/// that nobody uses.
pub(crate) async fn ensure(
    host: &Arc<Host>,
    launchable: &Launchable,
) -> Result<Install, ArtifactError> {
    let first = host.artifacts.ensure(launchable).await;
    let full = |error: &ArtifactError| matches!(error, ArtifactError::Hoist(it) if matches!(**it, hoist::Error::NoSpace { .. }));
    if !first.as_ref().is_err_and(full) {
        return first;
    }
    match collect(host, Water::none()).await {
        Ok(collected) if collected.freed > 0 => host.artifacts.ensure(launchable).await,
        _ => first,
    }
}

/// Removes what nobody uses, as far as there is too much of it.
pub(crate) async fn collect(host: &Arc<Host>, water: Water) -> Result<Collected, FileError> {
    let keep = {
        let host = Arc::clone(host);
        crate::blocking::blocking(move || {
            let mut keep = in_use(&host.layout)?;
            keep.extend(host.advance.digests());
            Ok::<_, FileError>(keep)
        })
    };
    let home = host.layout.homes();
    let keep = keep
        .await
        .map_err(|panic| FileError::new("read", &home, std::io::Error::other(panic)))??;
    let collected = host.artifacts.collect(&keep, water).await;
    let collected = collected
        .map_err(|error| FileError::new("collect in", &home, std::io::Error::other(error)))?;
    if collected != Collected::default() {
        tracing::info!(
            installs = collected.installs.len(),
            cached = collected.cached.len(),
            freed = collected.freed,
            short = collected.short,
            "artifacts that nobody uses were removed"
        );
    }
    Ok(collected)
}

/// Every artifact that some pod on this node names.
fn in_use(layout: &Layout) -> Result<BTreeSet<Digest>, FileError> {
    let mut used = BTreeSet::new();
    for pod in layout.pods()? {
        let paths = layout.pod(&pod);
        used.extend(linked(&paths.home().join("installs"))?);
        used.extend(recorded(&paths)?);
    }
    Ok(used)
}

/// The installs that a pod's home links to.
fn linked(directory: &Path) -> Result<Vec<Digest>, FileError> {
    let failed = |error| FileError::new("read", directory, error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut digests = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let hex = name.to_str().and_then(|name| name.strip_prefix("sha256-"));
        digests.extend(hex.and_then(|hex| Digest::from_hex(hex).ok()));
    }
    Ok(digests)
}

/// The installs of every version that a pod's record names, also in forms of newer agents.
fn recorded(paths: &PodPaths) -> Result<Vec<Digest>, FileError> {
    let mut digests = Vec::new();
    for path in [paths.record(), paths.record_copy()] {
        let Some(bytes) = files::read(&path, RECORD_BYTES)? else {
            continue;
        };
        // One that is damaged names nothing; its pod's links still do.
        let record: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let versions = record.as_object().into_iter().flatten();
        for (_, version) in versions {
            let installs = version.get("installs").and_then(Value::as_object);
            for installed in installs.into_iter().flat_map(serde_json::Map::values) {
                let digest = installed.get("digest").and_then(Value::as_str);
                digests.extend(digest.and_then(|digest| digest.parse::<Digest>().ok()));
            }
        }
    }
    Ok(digests)
}

/// One after the other: pods that need something now come first.
async fn fetch_in_advance(host: &Arc<Host>) {
    let mut wanted = host.advance.wanted.subscribe();
    'look: loop {
        let list = wanted.borrow_and_update().clone();
        let mut state = BTreeMap::new();
        let mut all = true;
        for one in &list {
            let outcome = host.artifacts.ensure_at(&one.location, Some(one.digest));
            let outcome = tokio::select! {
                outcome = outcome => outcome,
                // Nobody waits for what is not wanted any more.
                changed = wanted.changed() => match changed {
                    Ok(()) => continue 'look,
                    Err(_) => return,
                },
            };
            all &= outcome.is_ok();
            let text = match outcome {
                Ok(_) => "Installed".to_owned(),
                Err(error) => error.to_string(),
            };
            state.insert(one.digest.to_string(), text);
            let _ = host.advance.state.send_replace(state.clone());
        }
        host.advance.state.send_if_modified(|known| {
            let changed = *known != state;
            *known = state;
            changed
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !all => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::name::PodName;

    #[test]
    fn what_any_version_of_a_pod_names_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::prepare(dir.path()).unwrap();
        let paths = layout.pod(&PodName::new("default", "hello").unwrap());
        let digest = |name: &str| Digest::of(name);
        let links = paths.home().join("installs");
        std::fs::create_dir_all(&links).unwrap();
        symlink(
            "/x",
            links.join(format!("sha256-{}", digest("linked").hex())),
        )
        .unwrap();
        paths.make_state().unwrap();
        let version = |name: &str| {
            let digest = digest(name);
            serde_json::json!({"installs": {"web": {"digest": digest, "path": "/x"}}})
        };
        let record = serde_json::json!({
            "current": version("current"),
            "next": version("next"),
            "previous": version("previous"),
            "seenExits": {"web": 3},
            "uid": "u",
        });
        std::fs::write(paths.record(), record.to_string()).unwrap();
        let used = in_use(&layout).unwrap();
        let names = ["linked", "current", "next", "previous"];
        assert_eq!(used, names.map(digest).into_iter().collect());
        // A record that is damaged does not cost the pod what it links to.
        std::fs::write(paths.record(), "{").unwrap();
        assert_eq!(in_use(&layout).unwrap(), BTreeSet::from([digest("linked")]));
        // What cannot be read at all stops everything.
        std::fs::remove_dir_all(&links).unwrap();
        std::fs::write(&links, "").unwrap();
        in_use(&layout).unwrap_err();
    }
}
