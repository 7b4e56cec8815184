//! Taking a delete back, as long as somebody still works on the object's end.
//!
//! The object gets its order to end taken away; so do its pods that were to end with it and still
//! run: those that are not being stopped yet go on as if nothing had been. Pods that lost their
//! owner meanwhile are taken over again by it.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use platctrl_controllers::{ORPHAN_KIND, ORPHAN_OF, ended_with_owner};
use platctrl_framework::client::Batch;
use platctrl_framework::model::{Joined, KindDefinition, Metadata, Uid};
use platctrl_kinds::{Pod, PodPhase};
use serde_json::{Map, Value, json};

use super::read::existing;
use super::request;
use super::status::{Failure, Result, json_response};
use super::write::{ATTEMPTS, Writing};

/// What became of a pod of the object.
struct Pods {
    /// They run on.
    kept: Vec<String>,
    /// They lost their owner and are taken over again.
    taken_over: Vec<String>,
    /// They have stopped.
    late: Vec<String>,
}

/// `POST` on `/undelete`.
pub(super) async fn undelete(
    mut writing: Writing<'_>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response> {
    let bytes = request::read(headers, body).await?;
    let asked = match bytes.is_empty() {
        true => json!({}),
        false => request::parse(&bytes)?,
    };
    writing.dry_run |= asked["dryRun"] == json!(["All"]);
    let wanted = asked.pointer("/preconditions/uid").and_then(Value::as_str);
    for _ in 0..ATTEMPTS {
        let joined = existing(&writing.client, &writing.target).await?;
        let (key, definition) = (joined.key.clone(), &writing.kind().definition);
        let Some(intent) = &joined.intent else {
            let (group, plural) = (&definition.group, &definition.plural);
            return Err(Failure::no_object(group, plural, key.name()));
        };
        let metadata = intent.value.metadata.clone();
        if wanted.is_some_and(|wanted| wanted != metadata.uid.as_str()) {
            return Err(Failure::conflict(
                "it was deleted and created again since it was read",
            ));
        }
        if !metadata.is_deleted() {
            return Err(Failure::conflict(format!(
                "{} \"{}\" is not being deleted",
                definition.kind,
                key.name()
            )));
        }
        let mut batch = Batch::for_store(&writing.client.store().capabilities());
        batch.restore(&joined)?;
        if writing.finish(joined, batch).await?.is_none() {
            continue;
        }
        let singular = definition.kind.to_lowercase();
        let pods = restore_pods(&writing, &metadata, &singular).await?;
        let details = json!({
            "group": definition.group, "kind": definition.plural, "name": key.name(),
            "uid": metadata.uid, "causes": causes(&pods),
        });
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "message": told(&pods), "details": details,
        });
        return Ok(json_response(StatusCode::OK, &status));
    }
    Err(Failure::conflict("others kept changing it: try again"))
}

fn owns(uid: &Uid, pod: &Metadata) -> bool {
    pod.owner_references.iter().any(|owner| owner.uid == *uid)
}

/// Nothing of it runs any more.
fn has_stopped(pod: &Joined) -> bool {
    let Some(own) = pod.own_reality() else {
        return false;
    };
    let status = &own.value.status;
    let pids = status.detail.get("pids").and_then(Value::as_object);
    match PodPhase::of(&status.phase) {
        Some(PodPhase::Gone) => true,
        Some(PodPhase::Stopping) => pids.is_none_or(Map::is_empty),
        _ => false,
    }
}

/// Takes back what the end of an owner did to its pods.
async fn restore_pods(writing: &Writing<'_>, owner: &Metadata, singular: &str) -> Result<Pods> {
    let mut pods = Pods {
        kept: Vec::new(),
        taken_over: Vec::new(),
        late: Vec::new(),
    };
    let Some(namespace) = owner.namespace.as_deref() else {
        return Ok(pods);
    };
    let kind = KindDefinition::of::<Pod>();
    let listed = writing.client.list(&kind, Some(namespace)).await?;
    let reason = ended_with_owner(singular, &owner.name);
    for joined in listed.objects {
        let Some(metadata) = joined.intent.as_ref().map(|it| &it.value.metadata) else {
            continue;
        };
        let name = metadata.name.clone();
        let label = |name: &str| metadata.labels.get(name).map(String::as_str);
        let of_kind = label(ORPHAN_KIND).is_none_or(|kind| kind == singular);
        if metadata.owner_references.is_empty()
            && label(ORPHAN_OF) == Some(&owner.name)
            && of_kind
            && !metadata.is_deleted()
        {
            pods.taken_over.push(name);
            continue;
        }
        let ordered = metadata.deletion.as_ref();
        let with_owner = ordered.is_some_and(|end| end.reason.as_deref() == Some(&*reason));
        if !owns(&owner.uid, metadata) {
            continue;
        }
        match (metadata.is_deleted(), with_owner) {
            (false, _) => pods.kept.push(name),
            (true, true) if restore_pod(writing, joined).await? => pods.kept.push(name),
            (true, true) => pods.late.push(name),
            // It was to end before.
            (true, false) => {}
        }
    }
    Ok(pods)
}

/// False when it is too late.
async fn restore_pod(writing: &Writing<'_>, mut pod: Joined) -> Result<bool> {
    for _ in 0..ATTEMPTS {
        if has_stopped(&pod) {
            return Ok(false);
        }
        let key = pod.key.clone();
        let mut batch = Batch::for_store(&writing.client.store().capabilities());
        match batch.restore(&pod) {
            Err(error) if error.is_conflict() || error.is_not_found() => return Ok(false),
            done => {
                done?;
            }
        }
        // Else its agent reported something meanwhile.
        if writing.finish(pod, batch).await?.is_some() {
            return Ok(true);
        }
        pod = writing.client.joined(&key).await?;
    }
    Ok(false)
}

fn causes(pods: &Pods) -> Vec<Value> {
    let each = |reason: &'static str, message: &'static str, names: &[String]| {
        let cause = move |name: &String| json!({"reason": reason, "field": format!("pod/{name}"), "message": message});
        names.iter().map(cause).collect::<Vec<Value>>()
    };
    let mut all = each("Kept", "runs on", &pods.kept);
    all.extend(each(
        "TakenOver",
        "lost its owner, which takes it over again",
        &pods.taken_over,
    ));
    all.extend(each(
        "TooLate",
        "has stopped: another one takes its place",
        &pods.late,
    ));
    all
}

fn told(pods: &Pods) -> String {
    format!(
        "{} pods run on, {} are taken over again, {} had stopped already",
        pods.kept.len(),
        pods.taken_over.len(),
        pods.late.len()
    )
}
