//! Objects of one kind by their types: read from the store, or from a mirror of it.

use std::marker::PhantomData;
use std::sync::Arc;

use super::patch::Patch;
use super::{Batch, Client, ClientError, DeleteOptions, Outcome, Result};
use crate::cache::{Query, Reader, View};
use crate::model::{
    FieldError, Joined, KindChecks, KindDefinition, Object, ObjectKey, RawObject, RecordError,
    Resource, Scope, Selector, Tree, schema,
};
use crate::store::{Revision, StoreError};

/// The namespace of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// Which objects of a kind a handle is about.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// None: those of all namespaces.
    pub(super) namespace: Option<String>,
    pub(super) node: Option<String>,
    pub(super) labels: Option<Selector>,
}

impl Selection {
    fn new() -> Self {
        Self {
            namespace: Some(DEFAULT_NAMESPACE.to_owned()),
            node: None,
            labels: None,
        }
    }

    fn key<K: Resource>(&self, name: &str) -> Result<ObjectKey> {
        let (node, namespace) = (self.node.as_deref(), self.namespace.as_deref());
        let kind = K::group_plural();
        Ok(ObjectKey::of_scope(&kind, K::SCOPE, node, namespace, name)?)
    }

    /// The object, in this namespace if it names none.
    pub(super) fn placed<K: Resource>(&self, object: &Object<K>) -> Object<K> {
        let mut object = object.clone();
        if object.metadata.namespace.is_none() && K::SCOPE != Scope::Cluster {
            object.metadata.namespace.clone_from(&self.namespace);
        }
        object
    }

    pub(super) fn fits<K: Resource>(&self, object: &Object<K>) -> bool {
        let labels = self.labels.as_ref();
        labels.is_none_or(|labels| labels.matches(&object.metadata.labels))
    }
}

/// The objects of one kind, read from the store itself: what it says is never older than any
/// commit that was acknowledged before. It is also the way to write them, because changes are
/// decided on what the store holds. Cheap to clone.
///
/// It is about the namespace `default` unless [`namespace`](Self::namespace) says otherwise.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
///
/// use platctrl_framework::client::{Client, DeleteOptions, Patch};
/// use platctrl_framework::environment::Environment;
/// use platctrl_framework::model::{Metadata, Object, Resource};
/// use platctrl_framework::store::MemoryStore;
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// /// A web site.
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// #[resource(group = "example.dev", version = "v1", kind = "Site")]
/// pub struct SiteSpec { pages: u32 }
///
/// let environment = Environment::system();
/// let store = Arc::new(MemoryStore::new(environment.clone()));
/// let sites = Client::new(store, environment, "docs").fresh::<Site>();
///
/// sites.create(&Object::new(Metadata::named("home"), SiteSpec { pages: 1 })).await?;
/// sites.patch("home", &Patch::merge(serde_json::json!({"spec": {"pages": 2}}))).await?;
/// let home = sites.get("home").await?;
/// assert_eq!((home.spec.pages, home.metadata.generation), (2, 2));
///
/// let more = sites.entry("home").and_modify(|site| site.spec.pages += 1);
/// let home = more.or_insert(|| Object::new(Metadata::default(), SiteSpec { pages: 1 })).await?;
/// assert_eq!(home.spec.pages, 3);
///
/// sites.delete("home", &DeleteOptions::default()).await?;
/// assert!(sites.get("home").await.unwrap_err().is_not_found());
/// # Ok::<(), platctrl_framework::client::ClientError>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Fresh<K> {
    pub(super) client: Client,
    pub(super) selection: Selection,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Fresh<K> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            selection: self.selection.clone(),
            kind: PhantomData,
        }
    }
}

/// Objects of a kind at one revision.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ObjectList<K: Resource> {
    /// The objects, in the order of their keys.
    pub objects: Vec<Object<K>>,
    /// The revision they were read at.
    pub revision: Revision,
    /// What could not be read. A plan that counts objects does not know how many there are.
    pub set_aside: Vec<RecordError>,
}

impl Client {
    /// The objects of a kind, read from the store itself.
    #[must_use]
    pub fn fresh<K: Resource>(&self) -> Fresh<K> {
        Fresh {
            client: self.clone(),
            selection: Selection::new(),
            kind: PhantomData,
        }
    }

    /// The objects of a kind, read from what a runtime mirrors: at once and without any load, but
    /// behind the store by the time that changes take to arrive.
    #[must_use]
    pub fn cached<K: Resource>(&self, reader: &Reader) -> Cached<K> {
        Cached {
            reader: reader.clone(),
            selection: Selection::new(),
            kind: PhantomData,
        }
    }
}

impl<K: Resource> Fresh<K> {
    /// The objects of this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.selection.namespace = Some(namespace.to_owned());
        self
    }

    /// The objects of all namespaces, for lists and watches.
    #[must_use]
    pub fn all_namespaces(mut self) -> Self {
        self.selection.namespace = None;
        self
    }

    /// The objects that this node works on, for kinds that are scoped by node.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.selection.node = Some(node.to_owned());
        self
    }

    /// Only objects whose labels the selector matches, in lists and watches.
    #[must_use]
    pub fn matching(mut self, labels: &Selector) -> Self {
        self.selection.labels = Some(labels.clone());
        self
    }

    /// The key of an object of this name.
    ///
    /// # Errors
    /// `Name` when it breaks the rules for names.
    pub fn key(&self, name: &str) -> Result<ObjectKey> {
        self.selection.key::<K>(name)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// `NotFound`, `Unreadable`, `Name`, the store's.
    pub async fn get(&self, name: &str) -> Result<Object<K>> {
        self.client.get(&self.key(name)?).await
    }

    /// Reads the objects, at one revision where the backend can.
    ///
    /// # Errors
    /// `Name`, the store's. What cannot be read is in [`ObjectList::set_aside`].
    pub async fn list(&self) -> Result<ObjectList<K>> {
        let list = self.client.list_selected::<K>(&self.selection).await?;
        let mut set_aside = list.set_aside;
        let mut objects = Vec::with_capacity(list.objects.len());
        for joined in &list.objects {
            match typed_object::<K>(joined) {
                Some(Ok(object)) if self.selection.fits(&object) => objects.push(object),
                Some(Err(error)) => set_aside.push(error),
                Some(Ok(_)) | None => {}
            }
        }
        Ok(ObjectList {
            objects,
            revision: list.revision,
            set_aside,
        })
    }

    /// Creates an object, in this namespace if it names none, and returns it as stored.
    ///
    /// # Errors
    /// `Invalid` when the kind's own checks refuse it; see [`Client::create_raw`].
    pub async fn create(&self, object: &Object<K>) -> Result<Object<K>> {
        let object = self.selection.placed(object);
        check(&object)?;
        self.client.create(&object).await
    }

    /// Replaces labels, annotations, owners and spec of an object. With its `resourceVersion`, it
    /// must not have changed since; with its uid, it must be the same one. What the types do not
    /// know stays as stored.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, the store's.
    pub async fn update(&self, object: &Object<K>) -> Result<Object<K>> {
        let object = self.selection.placed(object);
        let key = object.key()?;
        let joined = self.client.joined(&key).await?;
        check_change(&joined, &object)?;
        let mut batch = Batch::new();
        batch.update_typed(&joined, &object)?;
        self.client.commit_read(batch, &key).await?;
        self.client.get(&key).await
    }

    /// Replaces the status of an object, as the one who does the work. `resourceVersion` and uid
    /// are conditions as for [`update`](Self::update), the former on the status alone.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, the store's.
    pub async fn update_status(&self, object: &Object<K>) -> Result<Object<K>> {
        self.client
            .update_status(&self.selection.placed(object))
            .await
    }

    /// Creates the object, or changes what it says and nothing else: fields that it said when it
    /// was last applied and says no more are removed, those that others set stay.
    ///
    /// # Errors
    /// `AlreadyExists` while the object of that name is being deleted, `Invalid`, `Conflict` when
    /// others keep changing it, the store's.
    pub async fn apply(&self, object: &Object<K>) -> Result<(Object<K>, Outcome)> {
        let object = self.selection.placed(object);
        check(&object)?;
        let key = object.key()?;
        let checks = KindChecks::of::<K>();
        let applied = self.client.apply(&key, object.to_raw()?, Some(&checks));
        let (raw, outcome) = applied.await?;
        Ok((super::typed(&key, &raw)?, outcome))
    }

    /// Changes metadata and spec of an object by a patch of its JSON. The status in it is left as
    /// it is: see [`patch_status`](Self::patch_status).
    ///
    /// # Errors
    /// `NotFound`, `Patch`, `Invalid`; `Conflict` if the patch names another `resourceVersion` or
    /// uid, or others keep changing the object; the store's.
    pub async fn patch(&self, name: &str, patch: &Patch) -> Result<Object<K>> {
        let key = self.key(name)?;
        let kind = KindChecks::of::<K>();
        let definition = KindDefinition::shared::<K>();
        let spec_schema = definition.schema.pointer("/properties/spec");
        let unknown = |raw: &RawObject| {
            let unknown = |schema| schema::unknown_fields(&raw.spec, schema, "spec");
            spec_schema.map_or_else(Vec::new, unknown)
        };
        let checked = |joined: &Joined, before: &RawObject, raw: &RawObject| {
            // Whoever wrote what these types do not know keeps it; this patch adds no such thing.
            let known = unknown(before);
            let mut added = unknown(raw);
            added.retain(|path| !known.contains(path));
            let error = |path| FieldError::new(path, "unknown field");
            refuse(&key, added.into_iter().map(error).collect())?;
            check_change(joined, &super::typed::<K>(&key, raw)?)
        };
        let patched = self.client.patch_checked(&key, patch, Some(&kind), checked);
        let (raw, _) = patched.await?;
        super::typed(&key, &raw)
    }

    /// Changes the status of an object by a patch of its JSON, of which only `status` counts.
    ///
    /// # Errors
    /// See [`patch`](Self::patch).
    pub async fn patch_status(&self, name: &str, patch: &Patch) -> Result<Object<K>> {
        let key = self.key(name)?;
        let raw = self.client.patch_status_raw(&key, patch).await?;
        super::typed(&key, &raw)
    }

    /// Asks for an object's end: see [`Batch::delete`]. What becomes of what it owns is the
    /// object's own policy unless the options say.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, the store's.
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Object<K>> {
        let key = self.key(name)?;
        let before = self.client.get::<K>(&key).await?;
        let mut options = options.clone();
        options.policy = K::deletion_policy(&before.spec);
        let deleted = self.client.delete(&key, &options).await?;
        super::typed(&key, &deleted)
    }
}

/// The objects of one kind in a mirror. Each call reads the newest state that has arrived. Cheap
/// to clone.
///
/// It is about the namespace `default` unless [`namespace`](Self::namespace) says otherwise.
#[derive(Debug)]
pub struct Cached<K> {
    reader: Reader,
    selection: Selection,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Cached<K> {
    fn clone(&self) -> Self {
        Self {
            reader: self.reader.clone(),
            selection: self.selection.clone(),
            kind: PhantomData,
        }
    }
}

impl<K: Resource> Cached<K> {
    /// The objects of this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.selection.namespace = Some(namespace.to_owned());
        self
    }

    /// The objects of all namespaces, for lists.
    #[must_use]
    pub fn all_namespaces(mut self) -> Self {
        self.selection.namespace = None;
        self
    }

    /// The objects that this node works on, for kinds that are scoped by node.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.selection.node = Some(node.to_owned());
        self
    }

    /// Only objects whose labels the selector matches, in lists.
    #[must_use]
    pub fn matching(mut self, labels: &Selector) -> Self {
        self.selection.labels = Some(labels.clone());
        self
    }

    /// Waits until the mirror shows everything up to a revision, such as that of the caller's
    /// own write; [`Revision::ZERO`] waits until everything was read once. There is no end to it
    /// while the store is away.
    pub async fn at_least(&self, revision: Revision) {
        self.reader.reached(revision).await;
    }

    /// An object; None when there is none, or it cannot be read.
    ///
    /// # Errors
    /// `Name` when the name breaks the rules.
    pub fn get(&self, name: &str) -> Result<Option<Arc<Object<K>>>> {
        let key = self.selection.key::<K>(name)?;
        Ok(self.reader.view().get::<K>(&key))
    }

    /// The objects, in the order of their keys.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Object<K>>> {
        self.query(&self.reader.view()).to_vec()
    }

    fn query<'v>(&self, view: &'v View) -> Query<'v, K> {
        let mut query = view.list::<K>();
        if let Some(node) = &self.selection.node {
            query = query.on_node(node);
        }
        if let (Some(namespace), true) = (&self.selection.namespace, K::SCOPE != Scope::Cluster) {
            query = query.in_namespace(namespace);
        }
        if let Some(labels) = &self.selection.labels {
            query = query.matching(labels);
        }
        query
    }
}

/// The object with its types. A status that they cannot read is left out: the spec still counts.
pub(super) fn typed_object<K: Resource>(
    joined: &Joined,
) -> Option<std::result::Result<Object<K>, RecordError>> {
    let mut raw = joined.object()?;
    let first = raw.typed::<K>();
    Some(first.or_else(|error| {
        raw.status = crate::model::Status::default();
        raw.typed::<K>().map_err(|_| RecordError {
            key: joined.key.store_key(Tree::Intent).to_string(),
            revision: joined.resource_version(),
            reason: error.to_string(),
        })
    }))
}

fn refuse(key: &ObjectKey, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ClientError::Invalid {
        key: key.to_string(),
        errors,
    })
}

/// What the kind's schema and its own checks say of an object.
pub(super) fn check<K: Resource>(object: &Object<K>) -> Result<()> {
    let key = object.key()?;
    let spec = serde_json::to_value(&object.spec)?;
    let definition = KindDefinition::shared::<K>();
    let schema = definition.schema.pointer("/properties/spec");
    let mut errors = schema.map_or_else(Vec::new, |schema| schema::check(&spec, schema, "spec"));
    K::validate(&object.spec, &mut errors);
    refuse(&key, errors)
}

/// The same for a change; what was wrong before and stays as it is is not held against it.
fn check_change<K: Resource>(joined: &Joined, object: &Object<K>) -> Result<()> {
    let Some(Ok(before)) = typed_object::<K>(joined) else {
        return check(object);
    };
    if before.spec == object.spec {
        return Ok(());
    }
    let mut errors = Vec::new();
    K::validate_update(&before.spec, &object.spec, &mut errors);
    match (check(object), check(&before)) {
        (Err(ClientError::Invalid { errors: now, .. }), was) => {
            let known = match was {
                Err(ClientError::Invalid { errors, .. }) => errors,
                _ => Vec::new(),
            };
            errors.extend(now.into_iter().filter(|error| !known.contains(error)));
        }
        (other, _) => other?,
    }
    refuse(&joined.key, errors)
}

impl Client {
    /// Changes an object by a patch; `check` may refuse what it comes to.
    pub(super) async fn patch_checked(
        &self,
        key: &ObjectKey,
        patch: &Patch,
        kind: Option<&KindChecks>,
        check: impl Fn(&Joined, &RawObject, &RawObject) -> Result<()>,
    ) -> Result<(RawObject, Outcome)> {
        for _ in 0..super::ATTEMPTS {
            let joined = self.joined(key).await?;
            let object = joined.object().ok_or_else(|| ClientError::not_found(key))?;
            let object = in_stored_version(key, object, kind)?;
            let wanted = patched(key, &object, patch)?;
            check(&joined, &object, &wanted)?;
            let mut batch = Batch::new();
            let outcome = batch.update(&joined, wanted, kind)?;
            match self.commit(batch).await {
                Ok(_) => {}
                Err(ClientError::Store(StoreError::Conflict { .. })) => continue,
                Err(error) => return Err(error),
            }
            let now = self.joined(key).await?.object();
            return Ok((now.unwrap_or(object), outcome));
        }
        Err(ClientError::conflict(key, "others kept changing it"))
    }

    /// Changes metadata and spec of an object by a patch of its JSON; `kind` adds the kind's own
    /// checks. A change by somebody else in between is taken into account, unless the patch names
    /// a `resourceVersion`.
    ///
    /// # Errors
    /// `NotFound`, `Patch`, `Invalid`, `Conflict`, the store's.
    pub async fn patch_raw(
        &self,
        key: &ObjectKey,
        patch: &Patch,
        kind: Option<&KindChecks>,
    ) -> Result<(RawObject, Outcome)> {
        let checked = |_: &Joined, before: &RawObject, raw: &RawObject| {
            let Some(kind) = kind.filter(|_| raw.spec != before.spec) else {
                return Ok(());
            };
            let known = kind.validate(&before.spec);
            let mut errors = kind.validate(&raw.spec);
            errors.retain(|error| !known.contains(error));
            refuse(key, errors)
        };
        self.patch_checked(key, patch, kind, checked).await
    }

    /// Changes the status of an object by a patch of its JSON, of which only `status` counts.
    ///
    /// # Errors
    /// `NotFound`, `Patch`, `Invalid`, `Conflict`, the store's.
    pub async fn patch_status_raw(&self, key: &ObjectKey, patch: &Patch) -> Result<RawObject> {
        for _ in 0..super::ATTEMPTS {
            let joined = self.joined(key).await?;
            let mut object = joined.object().ok_or_else(|| ClientError::not_found(key))?;
            // What is stored is changed, not what is shown of it.
            let own = joined.own_reality().map(|own| own.value.status.clone());
            object.status = own.unwrap_or_default();
            let wanted = patched(key, &object, patch)?;
            check_seen(&joined, &wanted.metadata)?;
            let mut batch = Batch::new();
            batch.report(&joined, wanted.status)?;
            match self.commit(batch).await {
                Ok(_) => {}
                Err(ClientError::Store(StoreError::Conflict { .. })) => continue,
                Err(error) => return Err(error),
            }
            return self
                .joined(key)
                .await?
                .object()
                .ok_or_else(|| ClientError::not_found(key));
        }
        Err(ClientError::conflict(key, "others kept changing it"))
    }
}

/// An object with its spec in the version that the kind stores, whichever it is stored in.
pub(super) fn in_stored_version(
    key: &ObjectKey,
    mut object: RawObject,
    kind: Option<&KindChecks>,
) -> Result<RawObject> {
    if let Some(kind) = kind {
        let unreadable = |reason| RecordError {
            key: key.store_key(Tree::Intent).to_string(),
            revision: object.metadata.resource_version.unwrap_or(Revision::ZERO),
            reason,
        };
        let stored = kind.in_stored_version(&object.api_version, &object.spec);
        object.spec = stored.map_err(unreadable)?;
        object.api_version = kind.api_version();
    }
    Ok(object)
}

/// Whether a status was decided on what is stored: the same object, and its newest report.
pub(super) fn check_seen(joined: &Joined, seen: &crate::model::Metadata) -> Result<()> {
    let conflict = |reason: &str| Err(ClientError::conflict(&joined.key, reason));
    if let (Some(seen), Some(reality)) = (seen.resource_version, &joined.reality)
        && reality.modified > seen
    {
        return conflict("its status has changed since it was read");
    }
    let uid = joined.intent.iter().map(|it| &it.value.metadata.uid).next();
    if !seen.uid.is_empty() && uid.is_some_and(|uid| *uid != seen.uid) {
        return conflict("it was deleted and created again since it was read");
    }
    Ok(())
}

/// What a patch makes of an object. Its identity stays as it is.
fn patched(key: &ObjectKey, object: &RawObject, patch: &Patch) -> Result<RawObject> {
    let mut document = serde_json::to_value(object)?;
    // Only what the patch itself names is a condition. They are there to be tested, too.
    let patched = patch.apply(&document).map_err(|error| ClientError::Patch {
        key: key.clone(),
        error: Box::new(error),
    })?;
    let invalid = |path: &str, problem: String| ClientError::Invalid {
        key: key.to_string(),
        errors: vec![FieldError::new(path, problem)],
    };
    for (path, field) in [
        ("/apiVersion", "apiVersion"),
        ("/kind", "kind"),
        ("/metadata/name", "metadata.name"),
        ("/metadata/namespace", "metadata.namespace"),
    ] {
        if document.pointer(path) != patched.pointer(path) {
            return Err(invalid(field, "cannot be changed by a patch".to_owned()));
        }
    }
    document = patched;
    let mut raw: RawObject =
        serde_json::from_value(document).map_err(|error| invalid(".", error.to_string()))?;
    if !patch.names("resourceVersion") {
        raw.metadata.resource_version = None;
    }
    if !patch.names("uid") {
        raw.metadata.uid = crate::model::Uid::default();
    }
    Ok(raw)
}
