//! Applying manifests: the command line's way, which remembers the last manifest in an annotation,
//! and Kubernetes' server-side apply, which remembers who answers for which field.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode};
use platctrl_framework::client::{Batch, ClientError, Outcome, applied, first_applied};
use platctrl_framework::model::{FieldError, Joined, RawObject};
use serde_json::{Map, Value, json};

use super::objects::{check, decode};
use super::overlay::revision_of;
use super::ownership::{self, Conflict, MANAGED_FIELDS, Owners, Refused, Side};
use super::read::{existing, locate};
use super::request;
use super::status::{Failure, Result};
use super::target::Part;
use super::write::{ATTEMPTS, OwnedBy, Writing};

/// Says what an apply came to: `created`, `configured` or `unchanged`.
const OUTCOME: &str = "platctrl-outcome";
/// What is stored of owners beside a status, in the record's metadata.
const STATUS_OWNERS: &str = MANAGED_FIELDS;

fn answered(object: &Value, outcome: Outcome) -> Response {
    let (code, text) = match outcome {
        Outcome::Created => (StatusCode::CREATED, "created"),
        Outcome::Configured => (StatusCode::OK, "configured"),
        Outcome::Unchanged => (StatusCode::OK, "unchanged"),
    };
    let mut response = super::status::json_response(code, object);
    response
        .headers_mut()
        .insert(OUTCOME, HeaderValue::from_static(text));
    response
}

/// Fields that others answer for, as a failure.
fn refused(refused: Refused) -> Failure {
    match refused {
        Refused::TooMany => Failure::unprocessable(
            "as many apply this object as it remembers: let some of them apply an empty manifest",
        ),
        Refused::Conflicts(conflicts) => {
            let told = |it: &Conflict| format!("{} by \"{}\"", it.path, it.owner);
            let told: Vec<_> = conflicts.iter().take(20).map(told).collect();
            let message = format!(
                "conflict: {} of its fields are managed by others: {}; leave them out of the manifest, or take them over with force",
                conflicts.len(),
                told.join(", ")
            );
            let causes = conflicts
                .into_iter()
                .map(|it| FieldError::new(it.path, format!("conflict with \"{}\"", it.owner)));
            Failure::owned_by_others(message, causes.collect())
        }
    }
}

impl Writing<'_> {
    /// Manifests are applied in the version that is stored: what another one says of fields that
    /// it does not have cannot be told.
    fn check_version(&self) -> Result<()> {
        if !self.target.is_converted() {
            return Ok(());
        }
        let version = self.kind().definition.api_version();
        Err(Failure::bad_request(format!(
            "objects of this kind are applied as {version}: change the manifest's apiVersion"
        )))
    }

    /// The command line's apply.
    pub(super) async fn apply(&self, mut manifest: Value) -> Result<Response> {
        self.check_version()?;
        self.place(&mut manifest)?;
        check(self.kind(), &manifest)?;
        let raw = decode(self.kind(), manifest)?;
        let (object, outcome) = self.applied(raw).await?;
        Ok(answered(&self.shown(object), outcome))
    }

    async fn applied(&self, raw: RawObject) -> Result<(RawObject, Outcome)> {
        let (namespace, name) = (raw.metadata.namespace.clone(), raw.metadata.name.clone());
        for _ in 0..ATTEMPTS {
            let Some((joined, live)) = self.live(namespace.as_deref(), &name).await? else {
                match self.insert(first_applied(raw.clone())?).await {
                    Err(failure) if failure.is_taken() => {
                        // Somebody created it just now, or it may not be created at all.
                        if self.live(namespace.as_deref(), &name).await?.is_some() {
                            continue;
                        }
                        return Err(failure);
                    }
                    done => return Ok((done?, Outcome::Created)),
                }
            };
            check_stated(&joined, &live, &raw)?;
            let next = self.shown(applied(&live, &raw)?);
            let mut batch = Batch::new();
            let outcome = self.update(&joined, &mut batch, next, OwnedBy::WhoChangedIt)?;
            if let Some(joined) = self.finish(joined, batch).await? {
                return Ok((joined.object().unwrap_or(live), outcome));
            }
        }
        Err(Failure::conflict("others kept changing it: try again"))
    }

    /// The object of a name, if there is one.
    async fn live(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<(Joined, RawObject)>> {
        let Some(key) = locate(&self.client, self.kind(), namespace, name).await? else {
            return Ok(None);
        };
        let joined = self.client.joined(&key).await?;
        Ok(joined.object().map(|live| (joined, live)))
    }

    /// Kubernetes' server-side apply.
    pub(super) async fn server_side(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        self.check_version()?;
        if let Err(problem) = ownership::check_name(self.manager.as_deref().unwrap_or_default()) {
            let errors = vec![FieldError::new("fieldManager", problem)];
            return Err(Failure::invalid("the apply", errors));
        }
        let mut config = request::manifest(&request::read(headers, body).await?)?;
        let managed = config.pointer("/metadata/managedFields");
        if managed.is_some_and(|it| !it.is_null() && *it != json!([])) {
            return Err(Failure::bad_request(
                "metadata.managedFields is the server's to say: leave it out of what is applied",
            ));
        }
        if let Some(config) = config.as_object_mut() {
            // The path says the rest.
            config.entry("metadata").or_insert_with(|| json!({}));
        }
        self.place(&mut config)?;
        match self.target.part {
            Part::Status => self.apply_status(&config).await,
            Part::Whole => self.apply_whole(config).await,
            _ => Err(Failure::media_type(
                "a scale is not applied: patch it, or apply the object",
            )),
        }
    }

    async fn apply_whole(&self, config: Value) -> Result<Response> {
        let said = Side::Intent.of(&config);
        let namespace = config
            .pointer("/metadata/namespace")
            .and_then(Value::as_str);
        let name = self.target.name.as_deref().unwrap_or_default();
        for _ in 0..ATTEMPTS {
            let Some((joined, live)) = self.live(namespace, name).await? else {
                let (_, owners) = Owners::default()
                    .apply(self.wants(), &json!({}), &said, true)
                    .map_err(refused)?;
                match self.first(&config, &owners).await {
                    Err(failure)
                        if failure.is_taken() && self.live(namespace, name).await?.is_some() => {}
                    done => return Ok(answered(&self.shown(done?), Outcome::Created)),
                }
                continue;
            };
            let before = self.shown(live.clone());
            self.check_condition(&joined, &live, &config)?;
            let owners = owners_of(before.pointer("/metadata/managedFields"));
            let side = Side::Intent.of(&before);
            let (result, owners) = owners
                .apply(self.wants(), &side, &said, self.force)
                .map_err(refused)?;
            let mut wanted = before;
            put_side(&mut wanted, &result);
            for field in ["apiVersion", "kind"] {
                wanted[field] = config[field].clone();
            }
            let mut batch = Batch::new();
            let outcome = self.update(&joined, &mut batch, wanted, OwnedBy::These(owners))?;
            if let Some(joined) = self.finish(joined, batch).await? {
                let object = joined.object().unwrap_or(live);
                return Ok(answered(&self.shown(object), outcome));
            }
        }
        Err(Failure::conflict("others kept changing it: try again"))
    }

    /// Creates what is applied for the first time.
    async fn first(&self, config: &Value, owners: &Owners) -> Result<RawObject> {
        let uid = config.pointer("/metadata/uid").and_then(Value::as_str);
        if uid.is_some_and(|uid| !uid.is_empty()) {
            return Err(Failure::conflict(
                "the manifest has the uid of an object that is not there: leave it out to create another",
            ));
        }
        check(self.kind(), config)?;
        let mut raw = decode(self.kind(), config.clone())?;
        raw.metadata.resource_version = None;
        if !owners.is_empty() {
            let owners = owners.to_json(Side::Intent);
            raw.metadata.other.insert(MANAGED_FIELDS.to_owned(), owners);
        }
        self.insert(raw).await
    }

    /// What a manifest says of the revision or the uid is a condition.
    fn check_condition(&self, joined: &Joined, live: &RawObject, config: &Value) -> Result<()> {
        let mut stated = live.clone();
        stated.metadata.resource_version = revision_of(config)?;
        let uid = config.pointer("/metadata/uid").and_then(Value::as_str);
        stated.metadata.uid = uid.unwrap_or_default().into();
        check_stated(joined, live, &stated)
    }

    async fn apply_status(&self, config: &Value) -> Result<Response> {
        let said = Side::Status.of(config);
        for _ in 0..ATTEMPTS {
            let joined = existing(&self.client, &self.target).await?;
            let own = joined.own_reality().map(|own| &own.value);
            let stated = revision_of(config)?;
            let changed = joined
                .reality
                .as_ref()
                .is_some_and(|it| stated.is_some_and(|seen| it.modified > seen));
            if changed {
                return Err(Failure::conflict(
                    "its status has changed since it was read",
                ));
            }
            let live = own.map_or_else(
                || Ok(json!({})),
                |own| serde_json::to_value(&own.status).map(|status| json!({ "status": status })),
            );
            let live = live.map_err(|error| Failure::internal(error.to_string()))?;
            let owners = owners_of(own.and_then(|own| own.metadata.other.get(STATUS_OWNERS)));
            let (mut result, owners) = owners
                .apply(self.wants(), &Side::Status.of(&live), &said, self.force)
                .map_err(refused)?;
            let status = result
                .get_mut("status")
                .map_or_else(|| json!({}), Value::take);
            let note = match owners.is_empty() {
                true => Value::Null,
                false => owners.to_json(Side::Status),
            };
            let mut batch = Batch::new();
            self.report(&joined, &mut batch, status, Some((STATUS_OWNERS, note)))?;
            if let Some(joined) = self.finish(joined, batch).await? {
                let gone = || Failure::conflict("it has been removed meanwhile");
                let object = joined.object().ok_or_else(gone)?;
                return Ok(self.answer(StatusCode::OK, object));
            }
        }
        Err(Failure::conflict("others kept changing it: try again"))
    }
}

/// Whether what a manifest says of the revision or the uid still holds.
fn check_stated(joined: &Joined, live: &RawObject, stated: &RawObject) -> Result<()> {
    if live.metadata.is_deleted() {
        return Err(ClientError::exists(joined).into());
    }
    let seen = stated.metadata.resource_version;
    let changed = joined
        .intent
        .as_ref()
        .is_some_and(|it| seen.is_some_and(|seen| it.modified > seen));
    let uid = &stated.metadata.uid;
    if changed || !uid.is_empty() && *uid != live.metadata.uid {
        return Err(Failure::conflict(
            "it has changed since the manifest's resourceVersion or uid: remove them from the manifest",
        ));
    }
    Ok(())
}

/// The owners that are stored; nobody, where that cannot be read.
pub(super) fn owners_of(stored: Option<&Value>) -> Owners {
    stored.and_then(Owners::parse).unwrap_or_default()
}

/// Puts what can be owned back into the object that it was taken from.
fn put_side(object: &mut Value, side: &Value) {
    object["spec"] = side.get("spec").cloned().unwrap_or_else(|| json!({}));
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["labels", "annotations", "ownerReferences"] {
            metadata.remove(field);
        }
        let said = side.get("metadata").and_then(Value::as_object);
        metadata.extend(said.cloned().unwrap_or_else(Map::new));
    }
}
