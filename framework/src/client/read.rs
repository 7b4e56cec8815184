//! Reading objects: both records of one, or all of a range.

use std::collections::BTreeMap;

use super::{Client, ClientError, Result};
use crate::model::{
    Intent, Joined, KindDefinition, ObjectKey, RawObject, Reality, RecordError, Tree, Versioned,
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
        let group_plural = kind.group_plural();
        let range = |tree| match namespace {
            Some(namespace) if kind.scope == crate::model::Scope::Namespaced => {
                let prefix = format!("{}{namespace}/", group_plural.prefix(tree));
                Prefix::new(prefix).map_err(|_| ClientError::Invalid {
                    key: group_plural.to_string(),
                    errors: vec![crate::model::FieldError::new(
                        "metadata.namespace",
                        "is not a valid name",
                    )],
                })
            }
            _ => Ok(group_plural.prefix(tree)),
        };
        let (intents, revision) = self.all(&range(Tree::Intent)?, None).await?;
        let (realities, _) = self.all(&range(Tree::Reality)?, Some(revision)).await?;
        let (parts, _) = self.all(&range(Tree::Part)?, Some(revision)).await?;
        let mut objects: BTreeMap<ObjectKey, Joined> = BTreeMap::new();
        let mut set_aside = Vec::new();
        for record in intents.into_iter().chain(realities).chain(parts) {
            let Some((tree, key, writer)) = ObjectKey::parse(&record.key, |_, _| Some(kind.scope))
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
    async fn all(&self, prefix: &Prefix, at: Option<Revision>) -> Result<(Vec<Record>, Revision)> {
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
