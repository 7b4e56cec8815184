//! How a cache keeps objects of a kind, and what it finds them by.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::entry::Entry;
use crate::model::{Digest, GroupPlural, Metadata, Object, Resource};

/// Which objects of a kind a cache keeps in decoded form besides their bytes. A decoded object
/// takes about one and a half times the memory of its bytes, and decoding 1 KiB takes two or
/// three microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keep {
    /// None: each read decodes. For kinds of which there are very many.
    Bytes,
    /// Those that were read from a view. The object that a reconcile is called with is decoded
    /// for it and not kept, because it is seldom read twice before it changes.
    #[default]
    Read,
    /// All that were decoded for any reason.
    Decoded,
}

/// Finds objects of a kind by what a function says of them. Declared with [`Cached::index`],
/// asked with [`Query::indexed`](super::Query::indexed).
///
/// ```
/// use platctrl_framework::cache::Index;
/// # use platctrl_framework::model::Resource;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// # #[resource(group = "example.dev", version = "v1", kind = "Site")]
/// # struct SiteSpec { domain: String }
/// static BY_DOMAIN: Index<Site> = Index::new("domain", |site| vec![site.spec.domain.clone()]);
/// ```
pub struct Index<K: Resource> {
    pub(super) name: &'static str,
    pub(super) values: fn(&Object<K>) -> Vec<String>,
}

impl<K: Resource> Index<K> {
    /// An index by the values that `values` returns for an object. The name tells indexes of one
    /// kind apart.
    #[must_use]
    pub const fn new(name: &'static str, values: fn(&Object<K>) -> Vec<String>) -> Self {
        Self { name, values }
    }
}

impl<K: Resource> Clone for Index<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: Resource> Copy for Index<K> {}

impl<K: Resource> fmt::Debug for Index<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("name", &self.name).finish()
    }
}

type Values = Arc<dyn Fn(&Entry) -> Vec<String> + Send + Sync>;
type Project = fn(&[u8]) -> Option<(Vec<u8>, Digest)>;

/// What is kept of one kind.
#[derive(Clone, Default)]
pub(crate) struct KindOptions {
    pub(super) keep: Keep,
    pub(super) labels: Vec<Box<str>>,
    pub(super) indexes: Vec<(&'static str, Values)>,
    pub(super) project: Option<Project>,
}

impl fmt::Debug for KindOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindOptions")
            .field("keep", &self.keep)
            .field("labels", &self.labels)
            .field("projected", &self.project.is_some())
            .finish_non_exhaustive()
    }
}

impl KindOptions {
    pub(crate) fn is_projected(&self) -> bool {
        self.project.is_some()
    }
}

/// The options of the kinds that have any.
pub(crate) type Options = BTreeMap<GroupPlural, KindOptions>;

/// How objects of the kind `K` are cached.
///
/// Every cache finds objects by key, namespace, node and owner. Selectors look at the labels of
/// each object of a kind, without decoding it; with [`Cached::label`] they look at those alone
/// that have the label.
#[derive(Debug)]
pub struct Cached<K> {
    options: KindOptions,
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource> Default for Cached<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    bound = "S: Serialize + serde::de::DeserializeOwned"
)]
struct Projected<S> {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: S,
}

#[derive(Deserialize)]
struct WholeSpec {
    #[serde(default)]
    spec: Value,
}

impl<K: Resource> Cached<K> {
    /// As kinds are cached about which nothing is said.
    #[must_use]
    pub fn new() -> Self {
        Self {
            options: KindOptions::default(),
            kind: PhantomData,
        }
    }

    /// Which objects are kept decoded.
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Self {
        self.options.keep = keep;
        self
    }

    /// Finds objects by this label: for selectors that name it with `=` or `in`.
    #[must_use]
    pub fn label(mut self, name: &str) -> Self {
        self.options.labels.push(name.into());
        self
    }

    /// Finds objects by this index. They are decoded when they change.
    #[must_use]
    pub fn index(mut self, index: &Index<K>) -> Self {
        let values = index.values;
        let of_entry = move |entry: &Entry| match entry.object::<K>(false) {
            Some(Ok(object)) => values(&object),
            _ => Vec::new(),
        };
        self.options.indexes.push((index.name, Arc::new(of_entry)));
        self
    }

    /// Keeps of each spec only the fields that the types of `K` have, which may be fewer than
    /// others write: for programs that look at a small part of large objects. Objects of this
    /// kind can be read and not written: what was left out would be lost. A runtime refuses a
    /// controller of such a kind.
    #[must_use]
    pub fn projected(mut self) -> Self {
        self.options.project = Some(|whole| {
            let mut object: Projected<K::Spec> = serde_json::from_slice(whole).ok()?;
            let WholeSpec { spec } = serde_json::from_slice(whole).ok()?;
            object.metadata.annotations.clear();
            object.metadata.other = Map::new();
            Some((serde_json::to_vec(&object).ok()?, Digest::of_json(&spec)))
        });
        self
    }

    pub(crate) fn into_options(self) -> (GroupPlural, KindOptions) {
        (K::group_plural(), self.options)
    }
}
