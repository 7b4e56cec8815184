//! Creating and changing objects. Everything is checked before anything is written, and
//! a dry run goes the same way without the last step.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use platctrl_framework::client::{Batch, Client, Outcome, Patch, merge};
use platctrl_framework::model::{
    FieldError, Joined, KnownKind, MAX_NAME_BYTES, ObjectKey, RawObject, Resource as _, Scope,
    Status, schema,
};
use platctrl_framework::store::StoreError;
use platctrl_kinds::ReplicationController;
use serde_json::{Map, Value, json};

use super::apply::owners_of;
use super::asker::{self, Asker};
use super::claims;
use super::objects::{check, check_change, decode, place, title};
use super::overlay::{overlay, revision_of, scale_of};
use super::ownership::{MANAGED_FIELDS, Owners, Side, Wants};
use super::read::existing;
use super::request::{self, shown};
use super::status::{Failure, Result, json_response, warn};
use super::target::{Part, Target};
use super::validator::{Change, Validator};
use crate::access::{self, Audit, Deed};

/// The content type of a JSON merge patch.
const MERGE_PATCH: &str = "application/merge-patch+json";
/// The content type of a JSON patch: operations that happen all or not at all.
const JSON_PATCH: &str = "application/json-patch+json";
/// The content type of an apply by the command line: the manifest, of which the server remembers
/// what it said, so that a field that is removed from it is told from one that others set.
const APPLY: &str = "application/vnd.platctrl.apply+json";
/// The content type of Kubernetes' server-side apply.
pub(super) const SERVER_SIDE_APPLY: &str = "application/apply-patch+yaml";
/// How often a change that met one by somebody else is decided again.
pub(super) const ATTEMPTS: usize = 5;
/// Characters that complete a `generateName`.
const GENERATED: usize = 5;

/// A request that writes.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    pub(super) client: Client,
    pub(super) target: Target<'a>,
    pub(super) asker: &'a Asker,
    pub(super) audit: &'a Arc<Audit>,
    pub(super) validators: &'a [Arc<dyn Validator>],
    /// What an audit record calls it.
    pub(super) verb: &'static str,
    pub(super) dry_run: bool,
    /// Whether nodes may be created: only by admission.
    pub(super) admission: bool,
    /// Who answers for the fields that are set, as the client says.
    pub(super) manager: Option<String>,
    /// The version that is stored, in whose terms fields are owned.
    pub(super) api_version: String,
    /// Fields that others answer for are taken from them.
    pub(super) force: bool,
    /// What the caller should know though the request was done.
    pub(super) told: Mutex<BTreeSet<String>>,
}

/// Who answers for an object's fields after a change.
pub(super) enum OwnedBy {
    WhoChangedIt,
    These(Owners),
}

pub(super) fn is_node(kind: &KnownKind) -> bool {
    kind.definition.group == platctrl_kinds::GROUP && kind.definition.plural == "nodes"
}

impl Writing<'_> {
    pub(super) fn kind(&self) -> &KnownKind {
        self.target.kind
    }

    /// The kind in the version that the client speaks.
    fn face(&self) -> &KnownKind {
        self.target.face
    }

    /// A stored object in the version that the client speaks.
    pub(super) fn shown(&self, object: RawObject) -> Value {
        self.target.shown().show(object).to_api()
    }

    pub(super) fn answer(&self, code: StatusCode, object: RawObject) -> Response {
        json_response(code, &self.shown(object))
    }

    /// What is to be stored of what a client sent, which is checked as that, too.
    fn stored(&self, sent: RawObject, live: Option<&RawObject>) -> Result<RawObject> {
        if !self.target.is_converted() {
            return Ok(sent);
        }
        let title = || self.title(&sent.metadata.name);
        let stored = self.kind().store(&sent, live);
        let stored = stored.map_err(|error| Failure::invalid(title(), vec![error]))?;
        let before = live.map(RawObject::to_api).unwrap_or_default();
        check_change(self.kind(), &before, &stored.to_api())?;
        Ok(stored)
    }

    pub(super) fn title(&self, name: &str) -> String {
        title(self.kind(), name)
    }

    /// Tells the caller something, though the request is done.
    pub(super) fn tell(&self, text: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(text);
    }

    pub(super) fn wants(&self) -> Wants<'_> {
        let name = self.manager.as_deref().unwrap_or_default();
        Wants {
            name: if name.is_empty() { "unknown" } else { name },
            api_version: &self.api_version,
            now: self.client.environment().now(),
        }
    }

    pub(super) fn deed(&self, key: &ObjectKey) -> Deed {
        let to = asker::path(key);
        self.asker.deed(self.audit.now(), self.verb, to)
    }

    /// Whether the caller may do this, and nobody registered to check has anything against it.
    pub(super) async fn permit(
        &self,
        before: Option<&RawObject>,
        after: Option<&RawObject>,
    ) -> Result<()> {
        let kind = self.kind();
        let object = before.or(after);
        let namespace = object.and_then(|object| object.metadata.namespace.as_deref());
        let (old, new) = (before.map(RawObject::to_api), after.map(RawObject::to_api));
        self.asker
            .change(kind, namespace, old.as_ref(), new.as_ref())?;
        if self.asker.is_deployer(kind, namespace) {
            self.permit_moves(old.as_ref(), new.as_ref(), namespace)
                .await?;
        }
        let group_plural = kind.definition.group_plural();
        let change = Change {
            by: &self.asker.name,
            kind: &group_plural,
            before,
            after,
        };
        let mut errors = Vec::new();
        for validator in self.validators {
            let verdict = validator.check(&change);
            errors.extend(verdict.errors);
            verdict
                .warnings
                .into_iter()
                .for_each(|text| self.tell(text));
        }
        if errors.is_empty() {
            return Ok(());
        }
        let name = object.map_or("", |object| object.metadata.name.as_str());
        Err(Failure::invalid(self.title(name), errors))
    }

    /// Whether the controllers that a rolling update moves pods between are the caller's.
    async fn permit_moves(
        &self,
        before: Option<&Value>,
        after: Option<&Value>,
        namespace: Option<&str>,
    ) -> Result<()> {
        let kind = self.kind();
        let group_plural = kind.definition.group_plural();
        let names = |roll: Option<&Value>| {
            let names = roll.and_then(|roll| access::moves_between(&group_plural, roll));
            names.map_or_else(BTreeSet::new, BTreeSet::from)
        };
        let (old, new) = (names(before), names(after));
        let mut controllers = Vec::new();
        for name in old.union(&new) {
            let (group, plural) = (ReplicationController::GROUP, ReplicationController::PLURAL);
            let namespace = namespace.unwrap_or_default();
            let key = ObjectKey::namespaced(group, plural, namespace, name).ok();
            let object = match key {
                Some(key) => self.client.joined(&key).await?.object(),
                None => None,
            };
            let object = object.map(|object| object.to_api());
            controllers.push((object, !old.contains(name)));
        }
        self.asker.moves(kind, namespace, &controllers)
    }

    /// Commits, unless this is a dry run, and returns the object as it is then; None if somebody
    /// else was faster.
    pub(super) async fn finish(&self, joined: Joined, batch: Batch) -> Result<Option<Joined>> {
        let mut transaction = batch.into_transaction();
        let writes = transaction.writes.clone();
        let before = joined.object();
        let after = overlay(joined.clone(), writes.clone(), None)?.object();
        // Objects of other kinds follow from the one that is asked about: its pods, when its end is
        // taken back.
        let is_asked = *joined.key.kind() == self.kind().definition.group_plural();
        if is_asked && self.target.part != Part::Status {
            self.permit(before.as_ref(), after.as_ref()).await?;
        }
        if self.dry_run || writes.is_empty() {
            return Ok(Some(overlay(joined, writes, None)?));
        }
        let shown = |object: Option<&RawObject>| object.map(RawObject::to_api).unwrap_or_default();
        let deed = Deed {
            uid: before
                .as_ref()
                .map(|before| before.metadata.uid.to_string())
                .unwrap_or_default(),
            changes: match &after {
                Some(_) => access::changes(&shown(before.as_ref()), &shown(after.as_ref())),
                None => Vec::new(),
            },
            ..self.deed(&joined.key)
        };
        transaction = self.audit.beside(&deed, transaction);
        let committed = self.client.store().commit(transaction).await;
        self.audit.tidy();
        match committed {
            // The commit compared all that was read: this is what the store holds now.
            Ok(revision) => Ok(Some(overlay(joined, writes, Some(revision))?)),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
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
            if let Some(joined) = self.finish(joined, batch).await? {
                let gone = || Failure::conflict("it has been removed meanwhile");
                return Ok((joined.object().ok_or_else(gone)?, decided));
            }
        }
        Err(Failure::conflict(
            "others kept changing it: read it again and repeat",
        ))
    }

    /// `POST` on a collection.
    pub(super) async fn create(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let response = self.created(headers, body).await?;
        Ok(self.with_told(response))
    }

    async fn created(&self, headers: &HeaderMap, body: Body) -> Result<Response> {
        let mut object = request::object(headers, body).await?;
        place(
            self.kind(),
            self.target.namespace.as_deref(),
            None,
            &mut object,
        )?;
        check(self.face(), &object)?;
        let named = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .is_some_and(|name| !name.is_empty());
        let prefix = object
            .pointer("/metadata/generateName")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned);
        let mut raw = self.stored(decode(self.face(), object)?, None)?;
        if named {
            return Ok(self.answer(StatusCode::CREATED, self.insert(raw).await?));
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
                done => return Ok(self.answer(StatusCode::CREATED, done?)),
            }
        }
    }

    pub(super) fn key(&self, raw: &RawObject) -> Result<ObjectKey> {
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
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for text in told.iter() {
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
        Ok(self.answer(StatusCode::OK, object))
    }

    async fn put(&self, mut object: Value) -> Result<(RawObject, Outcome)> {
        self.place(&mut object)?;
        self.change(|joined, batch| {
            self.update(joined, batch, object.clone(), OwnedBy::WhoChangedIt)
        })
        .await
    }

    pub(super) fn place(&self, object: &mut Value) -> Result<()> {
        let target = &self.target;
        place(
            target.kind,
            target.namespace.as_deref(),
            target.name.as_deref(),
            object,
        )
    }

    /// Decides on the whole object that a client wants.
    pub(super) fn update(
        &self,
        joined: &Joined,
        batch: &mut Batch,
        mut object: Value,
        owned: OwnedBy,
    ) -> Result<Outcome> {
        let live = joined.object();
        let before = live
            .clone()
            .map(|live| self.shown(live))
            .unwrap_or_default();
        if let Some(kept) = claims::keep(self.kind(), &before, &mut object) {
            self.tell(kept);
        }
        check_change(self.face(), &before, &object)?;
        let given = object.pointer("/metadata/managedFields").cloned();
        let mut raw = self.stored(decode(self.face(), object)?, live.as_ref())?;
        let owners = match owned {
            OwnedBy::These(owners) => owners,
            OwnedBy::WhoChangedIt => {
                let before = live.as_ref().map(RawObject::to_api).unwrap_or_default();
                self.owners(&before, &raw.to_api(), given.as_ref())?
            }
        };
        if !owners.is_empty() {
            let owners = owners.to_json(Side::Intent);
            raw.metadata.other.insert(MANAGED_FIELDS.to_owned(), owners);
        }
        if self.kind().definition.scope == Scope::Node
            && self.kind().node(&raw.spec).as_deref() != joined.key.node()
        {
            let text = "cannot change: it is not moved, delete it and create another";
            let errors = vec![FieldError::new("spec.nodeName", text)];
            return Err(Failure::invalid(self.title(joined.key.name()), errors));
        }
        Ok(batch.update(joined, raw, self.kind().checks.as_ref())?)
    }

    /// Who answers for which fields after a change that is no apply.
    fn owners(&self, before: &Value, after: &Value, given: Option<&Value>) -> Result<Owners> {
        let stored = before.pointer("/metadata/managedFields");
        let mut owners = owners_of(stored);
        if let Some(given) = given.filter(|given| !given.is_null() && Some(*given) != stored) {
            // Nothing is remembered of an object that nobody applies.
            if stored.is_some() {
                owners = Owners::parse(given).ok_or_else(|| {
                    let text = "is not what this server said, and not `[]`, which makes it forget";
                    let errors = vec![FieldError::new("metadata.managedFields", text)];
                    Failure::invalid(&self.kind().definition.kind, errors)
                })?;
            }
        }
        owners.changed(
            self.wants(),
            &Side::Intent.of(before),
            &Side::Intent.of(after),
        );
        Ok(owners)
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
            self.report(joined, batch, status.clone(), None)
        })
        .await
    }

    /// Decides on a status, with a note for its record.
    pub(super) fn report(
        &self,
        joined: &Joined,
        batch: &mut Batch,
        status: Value,
        note: Option<(&str, Value)>,
    ) -> Result<Outcome> {
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
        Ok(match note {
            Some((name, note)) => batch.report_with_note(joined, status, name, note)?,
            None => batch.report(joined, status)?,
        })
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
            self.permit(Some(&object), Some(&object)).await?;
            let told = claims::forward(self, &joined, claimant, &replicas).await?;
            self.tell(told);
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
            (SERVER_SIDE_APPLY, _) => return self.server_side(headers, body).await,
            (JSON_PATCH, _) => {
                let body = request::read(headers, body).await?;
                return self.json_patch(&body).await;
            }
            (other, _) => {
                return Err(Failure::media_type(format!(
                    "patches are read as {MERGE_PATCH}, {JSON_PATCH}, {SERVER_SIDE_APPLY} or {APPLY}, not `{}`",
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
                        self.report(joined, batch, merged, None)
                    })
                    .await?;
                Ok(self.answer(StatusCode::OK, object))
            }
            _ => {
                let (object, _) = self.merge(&patch).await?;
                Ok(self.answer(StatusCode::OK, object))
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
        let of = |joined: &Joined| joined.object().map(|it| self.shown(it)).unwrap_or_default();
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
                    return self.report(joined, batch, status.unwrap_or_else(|| json!({})), None);
                }
                self.place(&mut wanted)?;
                self.update(joined, batch, wanted, OwnedBy::WhoChangedIt)
            })
            .await?;
        Ok(self.answer(StatusCode::OK, object))
    }

    async fn merge(&self, patch: &Value) -> Result<(RawObject, Outcome)> {
        let named = |field: &str| {
            patch
                .pointer(&format!("/metadata/{field}"))
                .is_some_and(|value| !value.is_null())
        };
        self.change(|joined, batch| {
            let stored = joined.object().map(|object| self.shown(object));
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
            self.update(joined, batch, wanted, OwnedBy::WhoChangedIt)
        })
        .await
    }
}
