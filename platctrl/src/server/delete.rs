//! Deleting objects: what a client asks, and what becomes of what an object owns.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use platctrl_controllers::ledger::{DeleteError, enter_delete};
use platctrl_framework::client::{Batch, DeleteOptions};
use platctrl_framework::model::{KnownKind, ObjectKey, Propagation, Resource as _, Uid};
use platctrl_framework::store::Revision;
use platctrl_kinds::Pod;
use serde_json::{Value, json};

use super::read::existing_of;
use super::request::{self, shown};
use super::status::{Failure, Result, json_response};
use super::write::{ATTEMPTS, Writing, is_node};

/// How often the health of a workload is waited for, and how long each time.
const PATIENCE: usize = 30;
const PAUSE: Duration = Duration::from_millis(100);

fn is_pod(kind: &KnownKind) -> bool {
    kind.definition.group_plural() == Pod::group_plural()
}

/// A body for a `DELETE`, in Kubernetes' shape.
#[derive(Debug, Default)]
struct DeleteBody {
    propagation: Option<Propagation>,
    uid: Option<Uid>,
    resource_version: Option<Revision>,
    grace_seconds: Option<u32>,
    reason: Option<String>,
    dry_run: bool,
    /// Also a pod that its workload cannot spare now.
    anyway: bool,
}

/// What a delete came to.
#[derive(Debug)]
pub(super) struct Deleted {
    pub(super) response: Response,
    /// The object, if those it owns stay.
    pub(super) orphans_of: Option<Uid>,
}

/// `DELETE` on an object.
pub(super) async fn delete(
    mut writing: Writing<'_>,
    headers: &HeaderMap,
    query: &request::Query,
    body: Body,
) -> Result<Deleted> {
    if is_node(writing.kind()) {
        return Err(Failure::forbidden(
            "a node is not deleted: its pods would be left without anybody who answers for them; mark it unschedulable and remove its pods instead",
        ));
    }
    let bytes = request::read(headers, body).await?;
    let body = if bytes.is_empty() {
        json!({})
    } else {
        request::parse(&bytes)?
    };
    let asked = DeleteBody::parse(&body, query)?;
    writing.dry_run |= asked.dry_run;
    let mut patience = PATIENCE;
    let mut attempts = ATTEMPTS;
    while attempts > 0 {
        attempts -= 1;
        let joined = existing_of(&writing.client, &writing.target, asked.uid.as_ref()).await?;
        let definition = &writing.kind().definition;
        let (name, key) = (joined.key.name().to_owned(), joined.key.clone());
        let Some(intent) = &joined.intent else {
            return Err(Failure::no_object(
                &definition.group,
                &definition.plural,
                &name,
            ));
        };
        let uid = intent.value.metadata.uid.clone();
        let mut options = DeleteOptions::default();
        options.propagation = asked.propagation;
        options.policy = writing.kind().deletion_policy(&intent.value.spec);
        options.uid = asked.uid.clone();
        options.resource_version = asked.resource_version;
        options.grace_seconds = asked.grace_seconds;
        options.reason = asked.reason.clone();
        let orphans = options.propagation.unwrap_or(options.policy) == Propagation::Orphan
            && !intent.value.metadata.is_deleted();
        let mut batch = Batch::for_store(&writing.client.store().capabilities());
        let now = writing.client.environment().now();
        batch.delete(&joined, &options, writing.client.actor(), now)?;
        if is_pod(writing.kind()) && !intent.value.metadata.is_deleted() {
            let (client, by) = (&writing.client, writing.client.actor());
            match enter_delete(client, &joined, &mut batch, by, now, asked.anyway).await {
                Ok(()) => {}
                Err(DeleteError::Client(error)) => return Err(error.into()),
                Err(DeleteError::Behind { .. }) if patience > 0 => {
                    // Its controller is about to say how it is.
                    client.environment().sleep(PAUSE).await;
                    (patience, attempts) = (patience - 1, attempts + 1);
                    continue;
                }
                Err(error) => {
                    return Err(Failure::too_many(format!(
                        "{error}; wait until others are healthy, or delete it all the same with --force (gracePeriodSeconds: 0)"
                    )));
                }
            }
        }
        let Some(joined) = writing.finish(joined, batch).await? else {
            continue;
        };
        let response = match joined.object() {
            Some(object) => writing.answer(StatusCode::OK, object),
            None => removed(&key, &uid),
        };
        return Ok(Deleted {
            response,
            orphans_of: orphans.then_some(uid),
        });
    }
    Err(Failure::conflict("others kept changing it: try again"))
}

/// Nobody had begun to work on it: it is gone.
fn removed(key: &ObjectKey, uid: &Uid) -> Response {
    let details = json!({
        "group": key.kind().group, "kind": key.kind().plural, "name": key.name(), "uid": uid,
    });
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    json_response(StatusCode::OK, &status)
}

impl DeleteBody {
    fn parse(body: &Value, query: &request::Query) -> Result<Self> {
        let text = |path: &str, parameter: &str| -> Option<String> {
            let text = body
                .pointer(path)
                .and_then(Value::as_str)
                .or_else(|| query.get(parameter));
            text.filter(|text| !text.is_empty()).map(ToOwned::to_owned)
        };
        let propagation = match text("/propagationPolicy", "propagationPolicy").as_deref() {
            // Kubernetes' default: here the object's own policy decides.
            None | Some("Background") => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Foreground") => Some(Propagation::Cascade),
            Some(other) => {
                return Err(Failure::bad_request(format!(
                    "propagationPolicy is Background, Orphan or Foreground, not `{}`",
                    shown(other)
                )));
            }
        };
        let grace = match body.get("gracePeriodSeconds").filter(|it| !it.is_null()) {
            Some(seconds) => Some(seconds.as_u64().unwrap_or(u64::MAX)),
            None => query.number("gracePeriodSeconds")?,
        };
        let grace = grace.map(|seconds| {
            u32::try_from(seconds).map_err(|_| {
                Failure::bad_request(
                    "gracePeriodSeconds is a number of seconds from 0 to 4294967295",
                )
            })
        });
        let resource_version = text("/preconditions/resourceVersion", "").map(|text| {
            text.parse().map_err(|error| {
                Failure::bad_request(format!("preconditions.resourceVersion: {error}"))
            })
        });
        let dry_run = match body.get("dryRun") {
            None | Some(Value::Null) => false,
            Some(Value::Array(all)) if all.is_empty() => false,
            Some(Value::Array(all)) if all.iter().all(|it| it == "All") => true,
            // Whatever it means, it does not mean that something may be deleted.
            Some(_) => return Err(Failure::bad_request("dryRun is [\"All\"] or empty")),
        };
        Ok(Self {
            dry_run,
            propagation,
            uid: text("/preconditions/uid", "").map(Uid::from),
            resource_version: resource_version.transpose()?,
            anyway: matches!(grace, Some(Ok(0))) || body["force"] == true,
            grace_seconds: grace.transpose()?,
            reason: text("/reason", "reason").map(|reason| reason.chars().take(1024).collect()),
        })
    }
}
