//! Reading objects: both records of one, or all of a range.

use std::collections::BTreeMap;

use super::objects::Selection;
use super::{Client, Result};
use crate::model::{
    GroupPlural, Intent, Joined, KindDefinition, ObjectKey, RawObject, Reality, RecordError,
    Resource, Scope, Tree, Versioned, check_name,
};
use crate::store::{ListRequest, Prefix, Record, Revision};

/// Objects of one kind at one revision.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct List {
    /// The objects, in the order of their keys. Among them are those without an intent.
    pub objects: Vec<Joined>,
    /// The revision they were read at.
    pub revision: Revision,
    /// Records that could not be read.
    pub set_aside: Vec<RecordError>,
}

impl List {
    /// The objects as clients are shown them.
    pub fn shown(&self) -> impl Iterator<Item = RawObject> + '_ {
        self.objects.iter().filter_map(Joined::object)
    }
}

/// The range of a kind's records in one tree, on a node or in a namespace if these are given and
/// keys begin with them.
pub(super) fn range_of(
    kind: &GroupPlural,
    scope: Scope,
    (node, namespace): (Option<&str>, Option<&str>),
    tree: Tree,
) -> Result<Prefix> {
    let mut prefix = kind.prefix(tree).as_str().to_owned();
    let begins_with = match scope {
        Scope::Cluster => vec![],
        Scope::Namespaced => vec![("namespace", namespace)],
        Scope::Node => vec![("node name", node), ("namespace", namespace)],
    };
    // A namespace behind any node is no range.
    for (what, name) in begins_with {
        let Some(name) = name else { break };
        check_name(what, name)?;
        prefix.push_str(name);
        prefix.push('/');
    }
    let prefix = Prefix::new(prefix).map_err(|error| crate::store::StoreError::Invalid {
        reason: error.to_string(),
    })?;
    Ok(prefix)
}

impl Client {
    /// Reads all records of one object.
    ///
    /// # Errors
    /// `Unreadable` when a record is damaged; the store's.
    pub async fn joined(&self, key: &ObjectKey) -> Result<Joined> {
        let keys = [key.store_key(Tree::Intent), key.store_key(Tree::Reality)];
        let mut records = self.store.get(&keys).await?.records.into_iter();
        let mut joined = Joined::empty(key.clone());
        joined.intent = records
            .next()
            .flatten()
            .map(|record| Versioned::<Intent>::from_record(key, &record))
            .transpose()?;
        joined.reality = records
            .next()
            .flatten()
            .map(|record| Versioned::<Reality>::from_record(key, &record))
            .transpose()?;
        let parts = self.all(&key.parts(), None).await?.0;
        for record in parts {
            let writer = record
                .key
                .as_str()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            joined
                .parts
                .insert(writer, Versioned::<Reality>::from_record(key, &record)?);
        }
        Ok(joined)
    }

    /// Reads the objects of a kind, of one namespace or of all.
    ///
    /// # Errors
    /// The store's. Records that cannot be read are in [`List::set_aside`].
    pub async fn list(&self, kind: &KindDefinition, namespace: Option<&str>) -> Result<List> {
        let place = (None, namespace);
        self.list_ranges(&kind.group_plural(), kind.scope, place)
            .await
    }

    /// As [`Client::list`], for a kind known by its types.
    pub(super) async fn list_selected<K: Resource>(&self, selection: &Selection) -> Result<List> {
        let place = (selection.node.as_deref(), selection.namespace.as_deref());
        self.list_ranges(&K::group_plural(), K::SCOPE, place).await
    }

    async fn list_ranges(
        &self,
        kind: &GroupPlural,
        scope: Scope,
        place: (Option<&str>, Option<&str>),
    ) -> Result<List> {
        let range = |tree| range_of(kind, scope, place, tree);
        let namespace = place.1.filter(|_| scope != Scope::Cluster);
        let (intents, revision) = self.all(&range(Tree::Intent)?, None).await?;
        let (realities, _) = self.all(&range(Tree::Reality)?, Some(revision)).await?;
        let (parts, _) = self.all(&range(Tree::Part)?, Some(revision)).await?;
        let mut objects: BTreeMap<ObjectKey, Joined> = BTreeMap::new();
        let mut set_aside = Vec::new();
        for record in intents.into_iter().chain(realities).chain(parts) {
            let Some((tree, key, writer)) = ObjectKey::parse(&record.key, |_, _| Some(scope))
            else {
                continue;
            };
            if namespace.is_some() && key.namespace() != namespace {
                continue;
            }
            let writer = writer.map(ToOwned::to_owned);
            let joined = objects
                .entry(key.clone())
                .or_insert_with(|| Joined::empty(key.clone()));
            let read = match tree {
                Tree::Intent => Versioned::<Intent>::from_record(&key, &record)
                    .map(|value| joined.intent = Some(value)),
                Tree::Reality => Versioned::<Reality>::from_record(&key, &record)
                    .map(|value| joined.reality = Some(value)),
                _ => Versioned::<Reality>::from_record(&key, &record).map(|value| {
                    joined.parts.insert(writer.unwrap_or_default(), value);
                }),
            };
            if let Err(error) = read {
                set_aside.push(error);
            }
        }
        Ok(List {
            objects: objects.into_values().collect(),
            revision,
            set_aside,
        })
    }

    /// All records of a range, and the revision of the read.
    pub(super) async fn all(
        &self,
        prefix: &Prefix,
        at: Option<Revision>,
    ) -> Result<(Vec<Record>, Revision)> {
        let mut request = ListRequest::new(prefix.clone());
        request.at = at.filter(|_| self.store.capabilities().pinned_reads);
        let mut records = Vec::new();
        loop {
            let page = self.store.list(&request).await?;
            records.extend(page.records);
            if self.store.capabilities().pinned_reads {
                request.at = Some(page.revision);
            }
            if !page.more {
                return Ok((records, page.revision));
            }
            request.after = records.last().map(|record| record.key.clone());
        }
    }
}
