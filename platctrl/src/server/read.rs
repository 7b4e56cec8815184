//! Reading objects: one, or a list that is sent while it is read.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};
use platctrl_framework::client::Client;
use platctrl_framework::model::{
    Intent, Joined, KnownKind, ObjectKey, RawObject, Reality, RecordError, Scope, Tree, Versioned,
    identity,
};
use platctrl_framework::store::{Key, ListRequest, Prefix, Record, Revision, Store, StoreError};
use serde_json::{Value, json};

use super::request::{Query, shown};
use super::selection::Selection;
use super::status::{Failure, Result};
use super::table::Form;
use super::target::Target;
use super::version::Shown;

/// Bytes that are sent at once.
const CHUNK: usize = 64 * 1024;

/// Where the object of this name is; None when there is none.
///
/// The node of a kind scoped by node is in its keys and not in the path, so nodes are asked one
/// after the other. Of two live objects of one name the older one is it.
pub(super) async fn locate(
    client: &Client,
    kind: &KnownKind,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<ObjectKey>> {
    let definition = &kind.definition;
    let group_plural = definition.group_plural();
    let key = |node: Option<&str>| {
        ObjectKey::of_scope(&group_plural, definition.scope, node, namespace, name)
            .map_err(|error| Failure::bad_request(error.to_string()))
    };
    if definition.scope != Scope::Node {
        return key(None).map(Some);
    }
    let store = client.store();
    let mut found: Option<(Revision, ObjectKey)> = None;
    let mut consider = |object: ObjectKey, created: Revision| {
        if found.as_ref().is_none_or(|(oldest, _)| created < *oldest) {
            found = Some((created, object));
        }
    };
    let mut candidates = Vec::new();
    for node in nodes(store.as_ref()).await? {
        candidates.push(key(Some(&node))?);
    }
    let at_once = store.capabilities().limits.max_operations.clamp(1, 128);
    for candidates in candidates.chunks(at_once) {
        let keys: Vec<_> = candidates
            .iter()
            .map(|key| key.store_key(Tree::Intent))
            .collect();
        let records = store.get(&keys).await?.records;
        for (object, record) in candidates.iter().zip(records) {
            if let Some(record) = record {
                consider(object.clone(), record.created);
            }
        }
    }
    if found.is_none() {
        // On a node that has no record.
        let mut pages = Pages::new(store.clone(), group_plural.prefix(Tree::Intent), None);
        while let Some(record) = pages.next().await? {
            let parsed = ObjectKey::parse(&record.key, |_, _| Some(definition.scope));
            let object = parsed.map(|(_, object, _)| object);
            let is_it =
                |object: &ObjectKey| object.name() == name && object.namespace() == namespace;
            if let Some(object) = object.filter(is_it)
                && found
                    .as_ref()
                    .is_none_or(|(oldest, _)| record.created < *oldest)
            {
                found = Some((record.created, object));
            }
        }
    }
    Ok(found.map(|(_, object)| object))
}

/// The names of the nodes that have a record.
async fn nodes(store: &dyn Store) -> Result<Vec<String>> {
    let prefix = platctrl_framework::model::GroupPlural::new(platctrl_kinds::GROUP, "nodes");
    let mut request = ListRequest::new(prefix.prefix(Tree::Intent));
    let mut names = Vec::new();
    loop {
        let page = store.list(&request).await?;
        request.after = page.records.last().map(|record| record.key.clone());
        let keys = page
            .records
            .iter()
            .filter_map(|record| record.key.as_str().rsplit('/').next());
        names.extend(
            keys.filter(|name| !name.starts_with('.'))
                .map(ToOwned::to_owned),
        );
        if !page.more || request.after.is_none() {
            return Ok(names);
        }
    }
}

/// All records of the object that a path names.
pub(super) async fn existing(client: &Client, target: &Target<'_>) -> Result<Joined> {
    let name = target.name.as_deref().unwrap_or_default();
    let definition = &target.kind.definition;
    let missing = || Failure::no_object(&definition.group, &definition.plural, name);
    let namespace = target.namespace.as_deref();
    let key = locate(client, target.kind, namespace, name)
        .await?
        .ok_or_else(missing)?;
    let joined = client.joined(&key).await?;
    if joined.intent.is_none() {
        return Err(missing());
    }
    Ok(joined)
}

/// The object that a path names.
pub(super) async fn get(client: &Client, target: &Target<'_>) -> Result<RawObject> {
    let joined = existing(client, target).await?;
    let definition = &target.kind.definition;
    joined
        .object()
        .ok_or_else(|| Failure::no_object(&definition.group, &definition.plural, joined.key.name()))
}

/// The records of a prefix, page by page.
#[derive(Debug)]
struct Pages {
    store: Arc<dyn Store>,
    request: ListRequest,
    buffer: VecDeque<Record>,
    finished: bool,
    /// That of the first page.
    revision: Option<Revision>,
}

impl Pages {
    fn new(store: Arc<dyn Store>, prefix: Prefix, at: Option<Revision>) -> Self {
        let pinned = store.capabilities().pinned_reads;
        let mut request = ListRequest::new(prefix);
        request.at = at.filter(|_| pinned);
        Self {
            store,
            request,
            buffer: VecDeque::new(),
            finished: false,
            revision: None,
        }
    }

    async fn peek(&mut self) -> Result<Option<&Record>, StoreError> {
        while self.buffer.is_empty() && !self.finished {
            let page = self.store.list(&self.request).await?;
            self.revision.get_or_insert(page.revision);
            // A store that cannot pin may have it still, and says so if it has not.
            self.request.at = Some(page.revision);
            self.finished = !page.more;
            match page.records.last() {
                Some(last) => self.request.after = Some(last.key.clone()),
                None => self.finished = true,
            }
            self.buffer = page.records.into();
        }
        Ok(self.buffer.front())
    }

    async fn next(&mut self) -> Result<Option<Record>, StoreError> {
        self.peek().await?;
        Ok(self.buffer.pop_front())
    }
}

/// Reads the objects of a kind in the order of their keys, at one revision where the store can.
#[derive(Debug)]
pub(super) struct Objects {
    scope: Scope,
    intents: Pages,
    realities: Pages,
    /// Few, and in another order than the rest.
    parts: BTreeMap<ObjectKey, Vec<(String, Record)>>,
    pub(super) revision: Revision,
    /// Records that cannot be read.
    pub(super) unreadable: Vec<RecordError>,
}

/// What is behind `o/<tree>/` in a key.
fn suffix(key: &Key, tree: Tree) -> &str {
    let rest = key.as_str().strip_prefix("o/").unwrap_or_default();
    let rest = rest.strip_prefix(tree.as_str()).unwrap_or_default();
    rest.strip_prefix('/').unwrap_or_default()
}

impl Objects {
    /// Begins to read: behind `after`, as of `at`, where they are given.
    pub(super) async fn open(
        store: &Arc<dyn Store>,
        kind: &KnownKind,
        selection: &Selection,
        after: Option<&str>,
        at: Option<Revision>,
    ) -> Result<Self> {
        let definition = &kind.definition;
        let mut below = String::new();
        let node = selection.required("spec.nodeName");
        let segments = match definition.scope {
            Scope::Cluster => [None, None],
            Scope::Namespaced => [selection.namespace.as_deref(), None],
            Scope::Node => [
                node,
                selection.namespace.as_deref().filter(|_| node.is_some()),
            ],
        };
        for segment in segments.into_iter().flatten() {
            below.push_str(segment);
            below.push('/');
        }
        let group_plural = definition.group_plural();
        let range = |tree| {
            let kind = group_plural.prefix(tree);
            // A name that no key can have narrows nothing; the selection then finds nothing.
            Prefix::new(format!("{kind}{below}")).unwrap_or(kind)
        };
        let pages = |tree, at| -> Result<Pages> {
            let mut pages = Pages::new(store.clone(), range(tree), at);
            if let Some(after) = after {
                let key = Key::new(format!("o/{}/{after}", tree.as_str())).ok();
                let key = key.filter(|key| key.is_under(&pages.request.prefix));
                let foreign = || Failure::bad_request("`continue` is of another list");
                pages.request.after = Some(key.ok_or_else(foreign)?);
            }
            Ok(pages)
        };
        let mut intents = pages(Tree::Intent, at)?;
        let empty = intents.peek().await?.is_none();
        let revision = intents.revision.unwrap_or(Revision::ZERO);
        if empty && after.is_none() {
            // An answer without its anchor is an error, and no empty fleet.
            identity::open(store.as_ref()).await?;
        }
        let mut realities = pages(Tree::Reality, Some(revision))?;
        realities.peek().await?;
        let mut parts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut all = Pages::new(store.clone(), range(Tree::Part), Some(revision));
        while let Some(record) = all.next().await? {
            let parsed = ObjectKey::parse(&record.key, |_, _| Some(definition.scope));
            if let Some((_, key, Some(writer))) = parsed {
                let writer = writer.to_owned();
                parts.entry(key).or_default().push((writer, record));
            }
        }
        Ok(Self {
            scope: definition.scope,
            intents,
            realities,
            parts,
            revision,
            unreadable: Vec::new(),
        })
    }

    /// The next object that has an intent, with the suffix of its keys.
    pub(super) async fn next(&mut self) -> Result<Option<(String, Joined)>, StoreError> {
        loop {
            let Some(record) = self.intents.next().await? else {
                return Ok(None);
            };
            let parsed = ObjectKey::parse(&record.key, |_, _| Some(self.scope));
            let Some((_, key, _)) = parsed else {
                continue;
            };
            let path = suffix(&record.key, Tree::Intent).to_owned();
            let mut joined = Joined::empty(key.clone());
            joined.intent = match Versioned::<Intent>::from_record(&key, &record) {
                Ok(intent) => Some(intent),
                Err(error) => {
                    self.unreadable.push(error);
                    continue;
                }
            };
            joined.reality = self.reality(&key, &path).await?;
            for (writer, record) in self.parts.remove(&key).unwrap_or_default() {
                match Versioned::<Reality>::from_record(&key, &record) {
                    Ok(part) => {
                        joined.parts.insert(writer, part);
                    }
                    Err(error) => self.unreadable.push(error),
                }
            }
            return Ok(Some((path, joined)));
        }
    }

    /// The reality of an object. Realities before it have no intent.
    async fn reality(
        &mut self,
        key: &ObjectKey,
        path: &str,
    ) -> Result<Option<Versioned<Reality>>, StoreError> {
        loop {
            let Some(record) = self.realities.peek().await? else {
                return Ok(None);
            };
            match suffix(&record.key, Tree::Reality).cmp(path) {
                Ordering::Greater => return Ok(None),
                Ordering::Less => {}
                Ordering::Equal => {
                    let reality = Versioned::<Reality>::from_record(key, record);
                    return Ok(reality.map_err(|error| self.unreadable.push(error)).ok());
                }
            }
            self.realities.next().await?;
        }
    }
}

/// A place in a list: the revision it is read at, and the last object that was sent.
#[derive(Debug)]
struct Continue {
    revision: Revision,
    after: String,
}

impl Continue {
    fn parse(text: &str) -> Result<Self> {
        let refuse = || Failure::bad_request("`continue` is not what this server gave out");
        let (revision, after) = text.split_once('~').ok_or_else(refuse)?;
        Ok(Self {
            revision: revision.parse().map_err(|_| refuse())?,
            after: after.to_owned(),
        })
    }
}

/// The revision that a list is asked to be at or behind.
async fn asked_revision(store: &dyn Store, query: &Query) -> Result<Option<Revision>> {
    let Some(text) = query.get("resourceVersion").filter(|text| *text != "0") else {
        return Ok(None);
    };
    let revision: Revision = text
        .parse()
        .map_err(|error| Failure::bad_request(format!("resourceVersion: {error}")))?;
    match query.get("resourceVersionMatch") {
        Some("Exact") => Ok(Some(revision)),
        Some("NotOlderThan") | None => {
            // The newest state is never older than one that was seen, on the same history.
            let now = store.get(&[identity::anchor_key()]).await?.revision;
            if revision > now {
                return Err(Failure::expired(format!(
                    "resource version {revision} is ahead of the store, which is at {now}: it is of another history; list again without it"
                )));
            }
            Ok(None)
        }
        Some(other) => Err(Failure::bad_request(format!(
            "resourceVersionMatch is Exact or NotOlderThan, not `{}`",
            shown(other)
        ))),
    }
}

/// A list being sent.
struct Sending {
    objects: Objects,
    selection: Selection,
    limit: Option<u64>,
    sent: u64,
    last: String,
    head: Option<String>,
    shown: Shown,
    form: Form,
    now: jiff::Timestamp,
    finished: bool,
}

/// Answers a list. It is sent while it is read, so its size costs no memory.
pub(super) async fn list(
    store: &Arc<dyn Store>,
    target: &Target<'_>,
    selection: Selection,
    query: &Query,
    (form, now): (Form, jiff::Timestamp),
) -> Result<Response> {
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let (at, after) = match query.get("continue") {
        Some(text) => {
            let place = Continue::parse(text)?;
            (Some(place.revision), Some(place.after))
        }
        None => (asked_revision(store.as_ref(), query).await?, None),
    };
    let objects = Objects::open(store, target.kind, &selection, after.as_deref(), at).await?;
    let definition = &target.face.definition;
    let head = match &form {
        Form::Table(table) => table.head(),
        Form::Objects => format!(
            "{{\"kind\":{},\"apiVersion\":{},\"items\":[",
            json!(format!("{}List", definition.kind)),
            json!(definition.api_version()),
        ),
    };
    let sending = Sending {
        objects,
        selection,
        limit,
        sent: 0,
        last: String::new(),
        head: Some(head),
        shown: target.shown(),
        form,
        now,
        finished: false,
    };
    let body = stream::try_unfold(sending, |mut sending| async move {
        if sending.finished {
            return Ok::<_, StoreError>(None);
        }
        let chunk = sending.chunk().await?;
        Ok(Some((chunk, sending)))
    });
    let mut response = Response::new(Body::from_stream(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

impl Sending {
    async fn chunk(&mut self) -> Result<Bytes, StoreError> {
        let mut chunk = self.head.take().unwrap_or_default().into_bytes();
        while chunk.len() < CHUNK {
            let Some((path, joined)) = self.objects.next().await? else {
                self.end(&mut chunk, None);
                break;
            };
            let Some(object) = joined
                .object()
                .filter(|object| self.selection.matches(object))
            else {
                continue;
            };
            if self.limit.is_some_and(|limit| self.sent >= limit) {
                let place = format!("{}~{}", self.objects.revision, self.last);
                self.end(&mut chunk, Some(place));
                break;
            }
            if self.sent > 0 {
                chunk.push(b',');
            }
            let object = self.shown.show(object).to_api();
            let sent = match &self.form {
                Form::Objects => object,
                Form::Table(table) => table.row(&object, self.now),
            };
            chunk.extend_from_slice(sent.to_string().as_bytes());
            self.sent += 1;
            self.last = path;
        }
        Ok(chunk.into())
    }

    /// The metadata comes last: only now is it known.
    fn end(&mut self, chunk: &mut Vec<u8>, place: Option<String>) {
        let mut metadata = json!({"resourceVersion": self.objects.revision});
        if let Some(place) = place {
            metadata["continue"] = place.into();
        }
        if !self.objects.unreadable.is_empty() {
            let errors = self.objects.unreadable.iter().map(ToString::to_string);
            metadata["unreadable"] = errors.take(100).collect::<Value>();
        }
        chunk.extend_from_slice(format!("],\"metadata\":{metadata}}}\n").as_bytes());
        self.finished = true;
    }
}
