//! Reading one object.

use platctrl_framework::client::Client;
use platctrl_framework::model::{Joined, KnownKind, ObjectKey, RawObject, Scope, Tree, Uid};
use platctrl_framework::store::{ListRequest, Record, Revision, Store};

use super::scan::Pages;
use super::status::{Failure, Result};
use super::target::Target;

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
    if definition.scope != Scope::Node {
        let key = ObjectKey::of_scope(&group_plural, definition.scope, None, namespace, name);
        return key
            .map(Some)
            .map_err(|error| Failure::bad_request(error.to_string()));
    }
    let mut found: Option<(Revision, ObjectKey)> = None;
    let mut consider = |object: ObjectKey, created: Revision| {
        if found.as_ref().is_none_or(|(oldest, _)| created < *oldest) {
            found = Some((created, object));
        }
    };
    for (object, record) in namesakes(client, kind, namespace, name).await? {
        consider(object, record.created);
    }
    if found.is_none() {
        // On a node that has no record.
        let prefix = group_plural.prefix(Tree::Intent);
        let mut pages = Pages::new(client.store().clone(), prefix, None);
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

/// The intents of one name on all nodes that have a record.
async fn namesakes(
    client: &Client,
    kind: &KnownKind,
    namespace: Option<&str>,
    name: &str,
) -> Result<Vec<(ObjectKey, Record)>> {
    let (definition, store) = (&kind.definition, client.store());
    let group_plural = definition.group_plural();
    let mut candidates = Vec::new();
    for node in nodes(store.as_ref()).await? {
        let key = ObjectKey::of_scope(
            &group_plural,
            definition.scope,
            Some(&node),
            namespace,
            name,
        );
        candidates.push(key.map_err(|error| Failure::bad_request(error.to_string()))?);
    }
    let mut found = Vec::new();
    let at_once = store.capabilities().limits.max_operations.clamp(1, 128);
    for candidates in candidates.chunks(at_once) {
        let keys: Vec<_> = candidates
            .iter()
            .map(|key| key.store_key(Tree::Intent))
            .collect();
        let records = store.get(&keys).await?.records;
        let there = candidates.iter().zip(records);
        found.extend(there.filter_map(|(key, record)| Some((key.clone(), record?))));
    }
    Ok(found)
}

/// The names of the nodes that have a record.
pub(super) async fn nodes(store: &dyn Store) -> Result<Vec<String>> {
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

/// As [`existing`], of the object with this uid, which is perhaps not the one that has the name.
pub(super) async fn existing_of(
    client: &Client,
    target: &Target<'_>,
    uid: Option<&Uid>,
) -> Result<Joined> {
    let found = existing(client, target).await?;
    let is_it = |joined: &Joined| {
        let intent = joined.intent.as_ref();
        intent.is_some_and(|intent| uid.is_none_or(|uid| intent.value.metadata.uid == *uid))
    };
    if is_it(&found) || target.kind.definition.scope != Scope::Node {
        return Ok(found);
    }
    let (namespace, name) = (found.key.namespace(), found.key.name());
    for (key, _) in namesakes(client, target.kind, namespace, name).await? {
        if let Ok(other) = client.joined(&key).await
            && is_it(&other)
        {
            return Ok(other);
        }
    }
    Ok(found)
}

/// The object that a path names.
pub(super) async fn get(client: &Client, target: &Target<'_>) -> Result<RawObject> {
    let joined = existing(client, target).await?;
    let definition = &target.kind.definition;
    joined
        .object()
        .ok_or_else(|| Failure::no_object(&definition.group, &definition.plural, joined.key.name()))
}
