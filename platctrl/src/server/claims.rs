//! Replication controllers that a rolling update claims: how many pods they have is its to say.
//!
//! An old manifest that is applied again must not start a second fleet beside the new one, and
//! whoever scales in the middle of a roll means both controllers together.

use platctrl_framework::client::Batch;
use platctrl_framework::model::{Joined, KnownKind, ObjectKey, Resource as _};
use platctrl_framework::store::StoreError;
use platctrl_kinds::{ReplicationController, RollPhase, RollingUpdate};
use serde_json::{Value, json};

use super::status::{Failure, Result};
use super::write::{ATTEMPTS, Writing};

fn is_controller(kind: &KnownKind) -> bool {
    let definition = &kind.definition;
    definition.group == ReplicationController::GROUP
        && definition.plural == ReplicationController::PLURAL
}

/// Who claims a stored object.
pub(super) fn claimant<'o>(kind: &KnownKind, object: &'o Value) -> Option<&'o str> {
    let claimant = is_controller(kind).then(|| object.pointer("/spec/claimedBy"))?;
    claimant?.as_str()
}

/// Keeps in what is wanted what only a roll may change. Says so when something else was wanted.
pub(super) fn keep(kind: &KnownKind, before: &Value, wanted: &mut Value) -> Option<String> {
    if !is_controller(kind) {
        return None;
    }
    let claimant = claimant(kind, before);
    let spec = wanted.get_mut("spec")?.as_object_mut()?;
    let Some(claimant) = claimant else {
        spec.remove("claimedBy");
        return None;
    };
    spec.insert("claimedBy".into(), claimant.into());
    let is = before.pointer("/spec/replicas")?;
    let asked = spec.insert("replicas".into(), is.clone());
    asked.filter(|asked| asked != is).map(|_| {
        format!(
            "replicas stays {is}: it is for rollingupdate/{claimant} to say; `platctrl scale rollingupdate/{claimant}` changes how many there are of old and new together"
        )
    })
}

/// Changes how many pods the roll has that claims a controller.
pub(super) async fn forward(
    writing: &Writing<'_>,
    joined: &Joined,
    claimant: &str,
    replicas: &Value,
) -> Result<String> {
    let client = &writing.client;
    let namespace = joined.key.namespace().unwrap_or_default();
    let name = joined.key.name();
    let gone = || {
        Failure::conflict(format!(
            "replication controller {name} is claimed by rollingupdate/{claimant}, which is not there: `platctrl rollout status rc/{name}` says more"
        ))
    };
    let (group, plural) = (RollingUpdate::GROUP, RollingUpdate::PLURAL);
    let key = ObjectKey::namespaced(group, plural, namespace, claimant).map_err(|_| gone())?;
    for _ in 0..ATTEMPTS {
        let roll = client.joined(&key).await?;
        let Some(mut object) = roll.object() else {
            return Err(gone());
        };
        if RollPhase::is_final(&object.status.phase) {
            let (from, to) = (&object.spec["from"], &object.spec["to"]);
            let new = if from.as_str() == Some(name) {
                to
            } else {
                from
            };
            let new = new.as_str().unwrap_or_default();
            return Err(Failure::conflict(format!(
                "replication controller {name} was replaced by {new}: scale rc/{new}"
            )));
        }
        object.spec["replicas"] = replicas.clone();
        // What was read is compared by the commit itself.
        object.metadata.resource_version = None;
        let kinds = crate::roles::kinds();
        let checks = kinds.get(key.kind()).and_then(|it| it.checks);
        if let Some(checks) = &checks {
            let errors = checks.validate(&object.spec);
            if !errors.is_empty() {
                let title = format!("RollingUpdate \"{claimant}\"");
                return Err(Failure::invalid(title, errors));
            }
        }
        let mut batch = Batch::new();
        batch.update(&roll, object, checks.as_ref())?;
        if writing.dry_run || batch.is_empty() {
            return Ok(told(claimant));
        }
        let mut deed = writing.deed(&key);
        deed.changes = vec![format!("spec.replicas: → {replicas}")];
        let transaction = writing.audit.beside(&deed, batch.into_transaction());
        match client.store().commit(transaction).await {
            Ok(_) => return Ok(told(claimant)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::conflict("others kept changing it: try again"))
}

fn told(claimant: &str) -> String {
    format!("the number is for old and new together: it was given to rollingupdate/{claimant}")
}

/// The answer to a scale that was forwarded.
pub(super) fn scaled(mut scale: Value, replicas: &Value) -> Value {
    scale["spec"] = json!({ "replicas": replicas });
    scale
}
