//! The store of a data directory, and whose node it is.

use std::path::Path;
use std::sync::Arc;

use platctrl_framework::cache::write_prefix_anchor;
use platctrl_framework::client::Client;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, AnchorState, IdentityError};
use platctrl_framework::model::{KindDefinition, check_name};
use platctrl_framework::store::{Prefix, Store};
use platctrl_kinds::Node;
use platctrl_store_embedded::EmbeddedStore;

use crate::error::{Code, Failure, Result};
use crate::place;

/// Opens the store of a data directory; makes it in a new one.
pub(super) async fn open_store(
    data_dir: &Path,
    environment: &Environment,
) -> Result<Arc<EmbeddedStore>> {
    let dir = place::store(data_dir);
    let is_new = !dir.exists();
    if is_new && has_pods(data_dir) {
        // Pods are here and nobody knows what was wanted of them: an empty store is no answer.
        let message = format!("{} has pods, and its store is gone", data_dir.display());
        return Err(Failure::new(Code::Unreachable, message).hint(format!(
            "put a copy of {0} back; or begin anew with `platctrl store init embedded:{0}`; or remove everything with `platctrl uninstall --data-dir {1} --yes`",
            dir.display(),
            data_dir.display()
        )));
    }
    let (path, clock) = (dir.clone(), environment.clone());
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(path, clock)).await;
    let store = opened.map_err(Failure::failed)?.map_err(Failure::failed)?;
    match identity::open(&store).await {
        Ok((anchor, _)) if anchor.state == AnchorState::Sealed => {
            let message = format!(
                "the store {} is sealed: it was copied elsewhere",
                anchor.store_id
            );
            return Err(Failure::failed(message).hint(format!(
                "use the copy; or, if that is not in use, `platctrl store unseal embedded:{}`",
                dir.display()
            )));
        }
        Ok(_) => {}
        // One that was begun and never finished is as good as new.
        Err(IdentityError::Uninitialised) if is_new || !has_pods(data_dir) => {
            identity::initialise(&store, environment)
                .await
                .map_err(|error| uninitialised(&error, &dir))?;
        }
        Err(error) => return Err(uninitialised(&error, &dir)),
    }
    let objects = Prefix::new("o/").expect("a constant that is a valid prefix");
    write_prefix_anchor(&store, &objects)
        .await
        .map_err(Failure::failed)?;
    Ok(Arc::new(store))
}

fn uninitialised(error: &IdentityError, dir: &Path) -> Failure {
    match error {
        IdentityError::Uninitialised => Failure::new(Code::Unreachable, error.to_string())
            .hint(format!("`platctrl store init embedded:{}`", dir.display())),
        _ => Failure::failed(error),
    }
}

pub(crate) fn has_pods(data_dir: &Path) -> bool {
    let entries = |dir: &str| std::fs::read_dir(data_dir.join(dir));
    ["pods", "state/pods"]
        .into_iter()
        .any(|dir| entries(dir).is_ok_and(|mut it| it.next().is_some()))
}

/// The name of this machine's node: what it was before, else what was given, else the host name.
pub(super) async fn node_name(
    store: &Arc<dyn Store>,
    environment: &Environment,
    given: Option<&str>,
) -> Result<String> {
    if let Some(given) = given {
        check_name("node name", given).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let client = Client::new(Arc::clone(store), environment.clone(), "platctrl up");
    let nodes = client
        .list(&KindDefinition::of::<Node>(), None)
        .await
        .map_err(Failure::failed)?;
    let mut known = nodes.shown().map(|node| node.metadata.name);
    // This store is this machine's alone, so its node is this machine whatever its host name is now.
    match (known.next(), given) {
        (Some(known), Some(given)) if known != given => Err(Failure::failed(format!(
            "this data directory belongs to node `{known}`, not `{given}`"
        ))
        .hint("leave --node out, or choose another --data-dir")),
        (Some(known), _) => Ok(known),
        (None, Some(given)) => Ok(given.to_owned()),
        (None, None) => host_name(),
    }
}

pub(crate) fn host_name() -> Result<String> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();
    check_name("node name", &name).map_err(|error| {
        Failure::usage(format!("the host name cannot be a node's name: {error}"))
            .hint("give it one with --node NAME")
    })?;
    Ok(name)
}
