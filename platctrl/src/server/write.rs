//! Creating and changing objects. Everything is checked before anything is written, and
//! a dry run goes the same way without the last step.

use std::sync::OnceLock;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode};
use platctrl_framework::client::{
    Batch, Client, ClientError, Outcome, Patch, applied, first_applied, merge,
};
use platctrl_framework::model::{
    FieldError, Intent, Joined, KnownKind, MAX_NAME_BYTES, ObjectKey, RawObject, Reality, Scope,
    Status, Tree, Versioned, schema,
};
use platctrl_framework::store::{Record, Revision, StoreError, Write};
use serde_json::{Map, Value, json};

use super::claims;
use super::objects::{check, check_change, decode, place, title};
use super::read::{existing, locate};
use super::request::{self, shown};
use super::status::{Failure, Result, json_response, warn};
use super::target::{Part, Target};

/// The content type of a JSON merge patch.
const MERGE_PATCH: &str = "application/merge-patch+json";
/// The content type of a JSON patch: operations that happen all or not at all.
const JSON_PATCH: &str = "application/json-patch+json";
/// The content type of an apply by the command line: the manifest, of which the server remembers
/// what it said, so that a field that is removed from it is told from one that others set. It is
/// not Kubernetes' server-side apply: there is no ownership of fields.
const APPLY: &str = "application/vnd.platctrl.apply+json";
/// Says what an apply came to: `created`, `configured` or `unchanged`.
const OUTCOME: &str = "platctrl-outcome";
/// How often a change that met one by somebody else is decided again.
pub(super) const ATTEMPTS: usize = 5;
/// Characters that complete a `generateName`.
const GENERATED: usize = 5;

/// A request that writes.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    pub(super) client: Client,
    pub(super) target: Target<'a>,
    pub(super) dry_run: bool,
    /// Whether nodes may be created: only by admission.
    pub(super) admission: bool,
    /// What the caller should know though the request was done.
    pub(super) told: OnceLock<String>,
}

pub(super) fn is_node(kind: &KnownKind) -> bool {
    kind.definition.group == platctrl_kinds::GROUP && kind.definition.plural == "nodes"
}

pub(super) fn answer(code: StatusCode, object: &RawObject) -> Response {
    json_response(code, &object.to_api())
}

impl Writing<'_> {
    pub(super) fn kind(&self) -> &KnownKind {
        self.target.kind
    }

    fn title(&self, name: &str) -> String {
        title(self.kind(), name)
    }

    /// Commits, unless this is a dry run, and returns the object as it is then.
    pub(super) async fn finish(&self, joined: Joined, batch: Batch) -> Result<Joined, ClientError> {
        let writes = batch.transaction().writes.clone();
        let revision = if self.dry_run {
            None
        } else {
            self.client.commit(batch).await?
        };
        // The commit compared all that was read: this is what the store holds now.
        overlay(joined, writes, revision)
    }

    /// Decides on what is stored and commits; again, if somebody else was faster.
    async fn change<T>(
        &self,
        mut decide: impl FnMut(&Joined, &mut Batch) -> Result<T>,
    ) -> Result<(RawObject, T)> {
        for _ in 0..ATTEMPTS {
            let joined = existing(&self.client, &self.target).await?;
            let mut batch = Batch::new();
            let decided = decide(&joined, &mut batch)?;
            match self.finish(joined, batch).await {
                Err(ClientError::Store(StoreError::Conflict { .. })) => {}
                Err(error) => return Err(error.into()),
                Ok(joined) => {
                    let gone = || Failure::conflict("it has been removed meanwhile");
                    return Ok((joined.object().ok_or_else(gone)?, decided));
                }
            }
        }
        Err(Failure::conflict(
            "others kept changing it: read it again and repeat",
        ))
    }

    /// `POST` on a collection.
    pub(super) async fn create(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let mut object = request::object(headers, body).await?;
        place(
            self.kind(),
            self.target.namespace.as_deref(),
            None,
            &mut object,
        )?;
        check(self.kind(), &object)?;
        let named = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .is_some_and(|name| !name.is_empty());
        let prefix = object
            .pointer("/metadata/generateName")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned);
        let mut raw = decode(self.kind(), object)?;
        if named {
            return Ok(answer(StatusCode::CREATED, &self.insert(raw).await?));
        }
        let mut prefix = prefix.unwrap_or_default();
        prefix.truncate(prefix.floor_char_boundary(MAX_NAME_BYTES - GENERATED));
        let mut attempts = 0..ATTEMPTS;
        loop {
            let suffix = self.client.environment().suffix(GENERATED);
            raw.metadata.name = format!("{prefix}{suffix}");
            platctrl_framework::model::check_name("name", &raw.metadata.name).map_err(|error| {
                let errors = vec![FieldError::new("metadata.generateName", error.to_string())];
                Failure::invalid(self.title(&prefix), errors)
            })?;
            attempts.next();
            match self.insert(raw.clone()).await {
                Err(failure) if failure.is_taken() && !attempts.is_empty() => {}
                done => return Ok(answer(StatusCode::CREATED, &done?)),
            }
        }
    }

    fn key(&self, raw: &RawObject) -> Result<ObjectKey> {
        let definition = &self.kind().definition;
        let node = self.kind().node(&raw.spec);
        ObjectKey::of_scope(
            &definition.group_plural(),
            definition.scope,
            node.as_deref(),
            raw.metadata.namespace.as_deref(),
            &raw.metadata.name,
        )
        .map_err(|error| Failure::bad_request(error.to_string()))
    }

    async fn insert(&self, raw: RawObject) -> Result<RawObject> {
        if is_node(self.kind()) && !self.admission {
            return Err(Failure::forbidden(
                "a node is admitted, not created: start `platctrl up` or an agent on the machine",
            ));
        }
        let key = self.key(&raw)?;
        if self.kind().definition.scope == Scope::Node {
            let namespace = raw.metadata.namespace.as_deref();
            let found = locate(&self.client, self.kind(), namespace, &raw.metadata.name).await?;
            if let Some(found) = found {
                return Err(ClientError::exists(&self.client.joined(&found).await?).into());
            }
        }
        if !self.dry_run {
            return Ok(self.client.create_raw(&key, raw).await?);
        }
        let joined = self.client.joined(&key).await?;
        if joined.intent.is_some() || joined.reality.is_some() {
            return Err(ClientError::exists(&joined).into());
        }
        Ok(Batch::new().create(self.client.environment(), &key, raw)?)
    }

    /// `PUT` on an object or one of its parts.
    pub(super) async fn replace(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let response = self.replaced(headers, body).await?;
        Ok(self.with_told(response))
    }

    /// `PATCH`.
    pub(super) async fn patch(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let response = self.patched(headers, body).await?;
        Ok(self.with_told(response))
    }

    fn with_told(&self, mut response: Response) -> Response {
        if let Some(text) = self.told.get() {
            warn(&mut response, text);
        }
        response
    }

    async fn replaced(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let object = request::object(headers, body).await?;
        let (object, _) = match self.target.part {
            Part::Status => self.put_status(object).await?,
            Part::Scale => return self.put_scale(&object).await,
            _ => self.put(object).await?,
        };
        Ok(answer(StatusCode::OK, &object))
    }

    async fn put(&self, mut object: Value) -> Result<(RawObject, Outcome)> {
        self.place(&mut object)?;
        self.change(|joined, batch| self.update(joined, batch, object.clone()))
            .await
    }

    fn place(&self, object: &mut Value) -> Result<()> {
        let target = &self.target;
        place(
            target.kind,
            target.namespace.as_deref(),
            target.name.as_deref(),
            object,
        )
    }

    /// Decides on the whole object that a client wants.
    fn update(&self, joined: &Joined, batch: &mut Batch, mut object: Value) -> Result<Outcome> {
        let before = joined
            .object()
            .map(|before| before.to_api())
            .unwrap_or_default();
        if let Some(kept) = claims::keep(self.kind(), &before, &mut object) {
            // Decided again, it is told once.
            let _ = self.told.set(kept);
        }
        check_change(self.kind(), &before, &object)?;
        let raw = decode(self.kind(), object)?;
        if self.kind().definition.scope == Scope::Node
            && self.kind().node(&raw.spec).as_deref() != joined.key.node()
        {
            let text = "cannot change: it is not moved, delete it and create another";
            let errors = vec![FieldError::new("spec.nodeName", text)];
            return Err(Failure::invalid(self.title(joined.key.name()), errors));
        }
        Ok(batch.update(joined, raw, self.kind().checks.as_ref())?)
    }

    async fn put_status(&self, mut object: Value) -> Result<(RawObject, Outcome)> {
        self.place(&mut object)?;
        let seen = revision_of(&object)?;
        let uid = object
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned);
        let status = object
            .get_mut("status")
            .map_or_else(|| json!({}), Value::take);
        self.change(|joined, batch| {
            let changed = joined
                .reality
                .as_ref()
                .is_some_and(|it| seen.is_some_and(|seen| it.modified > seen));
            let intent = joined.intent.as_ref();
            let other = intent.is_some_and(|it| {
                uid.as_deref()
                    .is_some_and(|uid| !uid.is_empty() && uid != it.value.metadata.uid.as_str())
            });
            if changed || other {
                return Err(Failure::conflict(
                    "its status has changed since it was read: read it again and repeat",
                ));
            }
            self.report(joined, batch, status.clone())
        })
        .await
    }

    fn report(&self, joined: &Joined, batch: &mut Batch, status: Value) -> Result<Outcome> {
        let schema = self.kind().definition.schema.pointer("/properties/status");
        let errors = schema
            .map(|schema| schema::check(&status, schema, "status"))
            .unwrap_or_default();
        let invalid = |errors| Failure::invalid(self.title(joined.key.name()), errors);
        if !errors.is_empty() {
            return Err(invalid(errors));
        }
        let status: Status<Map<String, Value>> = serde_json::from_value(status)
            .map_err(|error| invalid(vec![FieldError::new("status", error.to_string())]))?;
        Ok(batch.report(joined, status)?)
    }

    /// `GET` on `/scale`.
    pub(super) async fn scale(&self) -> Result<Response> {
        let joined = existing(&self.client, &self.target).await?;
        let object = joined
            .object()
            .ok_or_else(|| Failure::not_found("it has been removed"))?;
        Ok(json_response(StatusCode::OK, &scale_of(&object)))
    }

    async fn put_scale(&self, scale: &Value) -> Result<Response> {
        let replicas = scale
            .pointer("/spec/replicas")
            .cloned()
            .unwrap_or(Value::Null);
        if !replicas.is_u64() {
            let text = "is how many are wanted: a whole number";
            let errors = vec![FieldError::new("spec.replicas", text)];
            return Err(Failure::invalid("Scale", errors));
        }
        let joined = existing(&self.client, &self.target).await?;
        let object = joined
            .object()
            .ok_or_else(|| Failure::not_found("it has been removed"))?;
        if let Some(claimant) = claims::claimant(self.kind(), &object.to_api()) {
            let (client, dry_run) = (&self.client, self.dry_run);
            let told = claims::forward(client, &joined, claimant, &replicas, dry_run).await?;
            let _ = self.told.set(told);
            let scale = claims::scaled(scale_of(&object), &replicas);
            return Ok(json_response(StatusCode::OK, &scale));
        }
        let seen = scale.pointer("/metadata/resourceVersion").cloned();
        let patch = json!({"metadata": {"resourceVersion": seen}, "spec": {"replicas": replicas}});
        let (object, _) = self.merge(&patch).await?;
        Ok(json_response(StatusCode::OK, &scale_of(&object)))
    }

    async fn patched(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let kind = request::media_type(headers);
        let apply = match (kind, self.target.part) {
            (MERGE_PATCH, _) => false,
            (APPLY, Part::Whole) => true,
            (JSON_PATCH, _) => {
                let body = request::read(headers, body).await?;
                return self.json_patch(&body).await;
            }
            (other, _) => {
                return Err(Failure::media_type(format!(
                    "patches are read as {MERGE_PATCH}, {JSON_PATCH} or {APPLY}, not `{}`",
                    shown(other)
                )));
            }
        };
        let patch = request::parse(&request::read(headers, body).await?)?;
        if apply {
            return self.apply(patch).await;
        }
        match self.target.part {
            Part::Scale => self.put_scale(&patch).await,
            Part::Status => {
                let status = patch.get("status").cloned().unwrap_or_else(|| json!({}));
                let seen = revision_of(&patch)?;
                let (object, _) = self
                    .change(|joined, batch| {
                        let reality = joined.own_reality();
                        if reality.is_some_and(|it| seen.is_some_and(|seen| it.modified > seen)) {
                            return Err(Failure::conflict(
                                "its status has changed since it was read",
                            ));
                        }
                        let mut merged = match reality {
                            Some(reality) => {
                                serde_json::to_value(&reality.value.status).unwrap_or_default()
                            }
                            None => json!({}),
                        };
                        merge(&mut merged, &status);
                        self.report(joined, batch, merged)
                    })
                    .await?;
                Ok(answer(StatusCode::OK, &object))
            }
            _ => {
                let (object, _) = self.merge(&patch).await?;
                Ok(answer(StatusCode::OK, &object))
            }
        }
    }

    /// Operations on an object or one of its parts. What they say of the resource version or the
    /// uid is a condition, as in a merge patch.
    async fn json_patch(&self, body: &[u8]) -> Result<Response> {
        let value = serde_json::from_slice(body)
            .map_err(|error| Failure::bad_request(format!("the body is not JSON: {error}")))?;
        let patch = Patch::json(value).map_err(|error| Failure::bad_request(error.to_string()))?;
        let patched = |document: &Value| {
            let done = patch.apply(document);
            done.map_err(|error| Failure::unprocessable(error.to_string()))
        };
        let of = |joined: &Joined| joined.object().map(|it| it.to_api()).unwrap_or_default();
        if self.target.part == Part::Scale {
            let joined = existing(&self.client, &self.target).await?;
            let object = joined
                .object()
                .ok_or_else(|| Failure::not_found("it has been removed"))?;
            return self.put_scale(&patched(&scale_of(&object))?).await;
        }
        let status = self.target.part == Part::Status;
        let (object, _) = self
            .change(|joined, batch| {
                let mut wanted = patched(&of(joined))?;
                if status {
                    let status = wanted.get_mut("status").map(Value::take);
                    return self.report(joined, batch, status.unwrap_or_else(|| json!({})));
                }
                self.place(&mut wanted)?;
                self.update(joined, batch, wanted)
            })
            .await?;
        Ok(answer(StatusCode::OK, &object))
    }

    async fn merge(&self, patch: &Value) -> Result<(RawObject, Outcome)> {
        let named = |field: &str| {
            patch
                .pointer(&format!("/metadata/{field}"))
                .is_some_and(|value| !value.is_null())
        };
        self.change(|joined, batch| {
            let stored = joined.object().map(|object| object.to_api());
            let mut wanted = stored.unwrap_or_default();
            if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
                // Only what the patch itself names is a condition.
                metadata.remove("resourceVersion");
                metadata.remove("uid");
            }
            merge(&mut wanted, patch);
            if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|field, _| {
                    !matches!(field.as_str(), "resourceVersion" | "uid") || named(field)
                });
            }
            self.place(&mut wanted)?;
            self.update(joined, batch, wanted)
        })
        .await
    }

    async fn apply(&self, mut manifest: Value) -> Result<Response> {
        self.place(&mut manifest)?;
        check(self.kind(), &manifest)?;
        let raw = decode(self.kind(), manifest)?;
        let (object, outcome) = self.applied(raw).await?;
        let (code, text) = match outcome {
            Outcome::Created => (StatusCode::CREATED, "created"),
            Outcome::Configured => (StatusCode::OK, "configured"),
            Outcome::Unchanged => (StatusCode::OK, "unchanged"),
        };
        let mut response = answer(code, &object);
        response
            .headers_mut()
            .insert(OUTCOME, HeaderValue::from_static(text));
        Ok(response)
    }

    async fn applied(&self, raw: RawObject) -> Result<(RawObject, Outcome)> {
        let (namespace, name) = (raw.metadata.namespace.clone(), raw.metadata.name.clone());
        for _ in 0..ATTEMPTS {
            let key = locate(&self.client, self.kind(), namespace.as_deref(), &name).await?;
            let joined = match key {
                Some(key) => Some(self.client.joined(&key).await?),
                None => None,
            };
            let Some((joined, live)) = joined
                .and_then(|joined| Some((joined.object()?, joined)))
                .map(|(live, joined)| (joined, live))
            else {
                match self.insert(first_applied(raw.clone())?).await {
                    Err(failure) if failure.is_taken() => {
                        // Somebody created it just now, or it may not be created at all.
                        let key =
                            locate(&self.client, self.kind(), namespace.as_deref(), &name).await?;
                        let there = match key {
                            Some(key) => self.client.joined(&key).await?.intent.is_some(),
                            None => false,
                        };
                        if there {
                            continue;
                        }
                        return Err(failure);
                    }
                    done => return Ok((done?, Outcome::Created)),
                }
            };
            if live.metadata.is_deleted() {
                return Err(ClientError::exists(&joined).into());
            }
            let stated = raw.metadata.resource_version;
            let changed = joined
                .intent
                .as_ref()
                .is_some_and(|it| stated.is_some_and(|seen| it.modified > seen));
            let uid = &raw.metadata.uid;
            if changed || !uid.is_empty() && *uid != live.metadata.uid {
                return Err(Failure::conflict(
                    "it has changed since the manifest's resourceVersion or uid: remove them from the manifest",
                ));
            }
            let next = applied(&live, &raw)?.to_api();
            let mut batch = Batch::new();
            let outcome = self.update(&joined, &mut batch, next)?;
            match self.finish(joined, batch).await {
                Err(ClientError::Store(StoreError::Conflict { .. })) => {}
                Err(error) => return Err(error.into()),
                Ok(joined) => return Ok((joined.object().unwrap_or(live), outcome)),
            }
        }
        Err(Failure::conflict("others kept changing it: try again"))
    }
}

fn revision_of(object: &Value) -> Result<Option<Revision>> {
    let text = object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str);
    let parsed = text
        .filter(|text| !text.is_empty())
        .map(str::parse)
        .transpose();
    parsed.map_err(|error| {
        let error: platctrl_framework::store::ParseRevisionError = error;
        Failure::bad_request(format!("metadata.resourceVersion: {error}"))
    })
}

fn scale_of(object: &RawObject) -> Value {
    let api = object.to_api();
    let of = |path: &str| api.pointer(path).cloned().unwrap_or(Value::Null);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": of("/metadata/name"),
            "namespace": of("/metadata/namespace"),
            "uid": of("/metadata/uid"),
            "resourceVersion": of("/metadata/resourceVersion"),
            "creationTimestamp": of("/metadata/creationTimestamp"),
        },
        "spec": {"replicas": of("/spec/replicas")},
        "status": {"replicas": api.pointer("/status/replicas").cloned().unwrap_or(json!(0))},
    })
}

/// What was read with what was written: the present state without reading it again. Without a
/// revision nothing was written, and the versions stay as they were.
fn overlay(
    mut joined: Joined,
    writes: Vec<Write>,
    revision: Option<Revision>,
) -> Result<Joined, ClientError> {
    let intent_key = joined.key.store_key(Tree::Intent);
    let reality_key = joined.key.store_key(Tree::Reality);
    for write in writes {
        match write {
            Write::Delete { key } if key == intent_key => joined.intent = None,
            Write::Put { key, value, .. } if key == intent_key => {
                let before = joined.intent.as_ref().map(|it| (it.created, it.modified));
                let record = record(key, value, before, revision);
                joined.intent = Some(Versioned::<Intent>::from_record(&joined.key, &record)?);
            }
            Write::Put { key, value, .. } if key == reality_key => {
                let before = joined.reality.as_ref().map(|it| (it.created, it.modified));
                let record = record(key, value, before, revision);
                joined.reality = Some(Versioned::<Reality>::from_record(&joined.key, &record)?);
            }
            _ => {}
        }
    }
    Ok(joined)
}

fn record(
    key: platctrl_framework::store::Key,
    value: bytes::Bytes,
    before: Option<(Revision, Revision)>,
    revision: Option<Revision>,
) -> Record {
    let (created, modified) = before.unwrap_or_default();
    Record {
        key,
        value,
        created: if before.is_some() {
            created
        } else {
            revision.unwrap_or(created)
        },
        modified: revision.unwrap_or(modified),
        lease: None,
    }
}
