//! What a reconcile reads: all objects of a cache at one moment, and the questions to it.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use super::edit::EntryChange;
use super::entry::{Entry, Slot, Stored};
use super::index::{By, Found};
use super::options::Index;
use super::reader::Shared;
use super::sorted::Sorted;
use crate::model::{
    GroupPlural, Joined, Object, ObjectKey, RecordError, Resource, Selector, Tree, Uid,
};
use crate::store::{Key, Revision};

/// How new a [`View`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// All of it is the state at this revision.
    Exact(Revision),
    /// Each part is the state at some revision between these two.
    Bounded(Revision, Revision),
}

impl Freshness {
    /// Everything up to this revision is in the view.
    #[must_use]
    pub fn complete_to(self) -> Revision {
        match self {
            Self::Exact(revision) | Self::Bounded(revision, _) => revision,
        }
    }
}

/// The content of a cache. Clones share structure, so a snapshot costs a few reference counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// By the path of their keys, so that a kind, and in it a namespace or node, is a range.
    pub(crate) objects: Sorted<Arc<Entry>>,
    /// What objects are found by besides their keys.
    pub(crate) found: Found,
    /// How many objects there are of each kind.
    pub(crate) counts: Arc<BTreeMap<GroupPlural, usize>>,
    /// Objects' records that cannot be read, by key.
    pub(crate) set_aside: Sorted<(Arc<str>, Arc<RecordError>)>,
    /// Records of known kinds whose keys are no object's, by key.
    pub(crate) malformed: Sorted<(Arc<str>, Arc<RecordError>)>,
    /// Kinds that some source was not read for yet.
    pub(crate) unread: Arc<[GroupPlural]>,
    /// The kinds that are mirrored.
    pub(crate) mirrored: Arc<[GroupPlural]>,
    /// How far each source has come; None before its first list.
    pub(crate) sources: Arc<[Option<Revision>]>,
}

/// A question that a view cannot answer: what it shows instead, nothing, is not to be decided on.
#[derive(Clone, Debug)]
pub(crate) enum InVain {
    /// The kind is not mirrored, or not read yet.
    NotRead(GroupPlural),
    /// One of the owned objects that were asked for cannot be read.
    Unreadable(Arc<RecordError>),
}

/// All objects of a cache at one moment. It does not change; cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    pub(super) state: Arc<State>,
    pub(super) shared: Arc<Shared>,
    /// Where a run's view notes the first question that it could not answer.
    pub(super) asked: Option<Arc<OnceLock<InVain>>>,
}

/// The tree that a key of an object's record is in, the object's path, and a part's writer.
pub(super) fn record_at(key: &Key) -> Option<(Tree, &str, Option<&str>)> {
    let (tree, path) = key.as_str().strip_prefix("o/")?.split_once('/')?;
    let tree = Tree::parse(tree)?;
    if tree == Tree::Part {
        let (path, writer) = path.rsplit_once('/')?;
        return Some((tree, path, Some(writer)));
    }
    Some((tree, path, None))
}

pub(super) fn path_of_kind(kind: &GroupPlural) -> String {
    format!("{}/{}/", kind.group, kind.plural)
}

impl View {
    /// How new the view is.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        let revisions = || {
            let sources = self.state.sources.iter();
            sources.map(|source| source.unwrap_or(Revision::ZERO))
        };
        let low = revisions().min().unwrap_or(Revision::ZERO);
        let high = revisions().max().unwrap_or(Revision::ZERO);
        if self.state.sources.len() == 1 {
            Freshness::Exact(low)
        } else {
            Freshness::Bounded(low, high)
        }
    }

    /// Everything up to this revision is in the view.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.freshness().complete_to()
    }

    /// Everything of one kind up to this revision is in the view.
    #[must_use]
    pub fn revision_of<K: Resource>(&self) -> Revision {
        let trees = Tree::ALL.map(|tree| K::group_plural().prefix(tree));
        let sources = self.shared.prefixes.iter().zip(self.state.sources.iter());
        let tell = sources.filter(|(prefix, _)| trees.iter().any(|tree| tree.overlaps(prefix)));
        tell.map(|(_, read)| read.unwrap_or(Revision::ZERO))
            .min()
            .unwrap_or(Revision::ZERO)
    }

    /// There is no record of an object.
    pub(crate) fn is_nothing(&self, key: &ObjectKey) -> bool {
        self.entry(key).is_none()
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.state.objects.len()
    }

    pub(crate) fn entry(&self, key: &ObjectKey) -> Option<&Arc<Entry>> {
        self.state.objects.get(key.path())
    }

    /// The object at `key`. None when it has no intent, or one that cannot be read, which
    /// [`View::unreadable`] tells.
    #[must_use]
    pub fn get<K: Resource>(&self, key: &ObjectKey) -> Option<Arc<Object<K>>> {
        self.ask::<K>();
        self.typed(self.entry(key)?)?.ok()
    }

    pub(crate) fn typed<K: Resource>(
        &self,
        entry: &Entry,
    ) -> Option<Result<Arc<Object<K>>, Arc<RecordError>>> {
        self.noted(entry, entry.object::<K>(true)?)
    }

    /// As [`View::typed`], for the one reconcile that is about the object.
    pub(crate) fn typed_once<K: Resource>(
        &self,
        entry: &Entry,
    ) -> Option<Result<Arc<Object<K>>, Arc<RecordError>>> {
        self.noted(entry, entry.object::<K>(false)?)
    }

    fn noted<T>(
        &self,
        entry: &Entry,
        object: Result<T, Arc<RecordError>>,
    ) -> Option<Result<T, Arc<RecordError>>> {
        if let Err(error) = &object {
            self.shared.note_unreadable(entry, error);
        }
        Some(object)
    }

    /// All records of one object, decoded on each call. Without any record, an empty one.
    ///
    /// # Errors
    /// The intent cannot be read.
    pub fn joined(&self, key: &ObjectKey) -> Result<Joined, RecordError> {
        match self.entry(key) {
            Some(entry) => entry.joined(),
            None => Ok(Joined::empty(key.clone())),
        }
    }

    /// The value of an object's record in one of the trees, as stored.
    #[must_use]
    pub fn record(&self, key: &ObjectKey, tree: Tree) -> Option<(bytes::Bytes, Revision)> {
        let stored = self.entry(key)?.stored(&Slot::of(tree, None))?;
        Some((
            bytes::Bytes::from_owner(stored.value.clone()),
            stored.modified,
        ))
    }

    /// The objects of a kind that have an intent.
    #[must_use]
    pub fn list<K: Resource>(&self) -> Query<'_, K> {
        self.ask::<K>();
        Query {
            view: self,
            path: path_of_kind(&K::group_plural()),
            node: None,
            namespace: None,
            owner: None,
            selector: None,
            indexed: None,
            kind: PhantomData,
        }
    }

    /// Key, revision and value of the intents of a kind, in the order of their keys, also of
    /// those that cannot be read: for who keeps an account of many objects by what changed.
    pub fn intents<K: Resource>(&self) -> impl Iterator<Item = (&ObjectKey, Revision, &[u8])> {
        self.ask::<K>();
        self.intents_below(&path_of_kind(&K::group_plural()))
    }

    /// As [`View::intents`], of those alone that a node works on.
    pub fn intents_on<K: Resource>(
        &self,
        node: &str,
    ) -> impl Iterator<Item = (&ObjectKey, Revision, &[u8])> {
        self.ask::<K>();
        self.intents_below(&format!("{}{node}/", path_of_kind(&K::group_plural())))
    }

    fn intents_below(
        &self,
        path: &str,
    ) -> impl Iterator<Item = (&ObjectKey, Revision, &[u8])> + use<'_> {
        let entries = self.entries(path).into_iter();
        entries.filter_map(|entry| {
            let stored = entry.stored(&Slot::Intent)?;
            Some((&*entry.key, stored.modified, &*stored.value))
        })
    }

    /// The keys of the objects of a kind that are not in this view as in an `earlier` one, in
    /// their order. Costs about as much as there are changes between the two, so that who keeps
    /// an account of many objects need not look at all of them again.
    #[must_use]
    pub fn changed_since<K: Resource>(&self, earlier: &Self) -> Vec<ObjectKey> {
        self.ask::<K>();
        let mut changed = Vec::new();
        self.differences::<K>(earlier, |was, is| {
            changed.extend(is.or(was).map(|entry| (*entry.key).clone()));
        });
        changed
    }

    /// What of a kind is not as in an `earlier` view, in the order of keys.
    pub(super) fn differences<K: Resource>(
        &self,
        earlier: &Self,
        mut each: impl FnMut(Option<&Arc<Entry>>, Option<&Arc<Entry>>),
    ) {
        let objects = &self.state.objects;
        objects.differences(&earlier.state.objects, Arc::ptr_eq, |(was, is)| {
            let kind = is.or(was).map(|entry| entry.key.kind());
            if kind.is_some_and(|kind| *kind.plural == *K::PLURAL && *kind.group == *K::GROUP) {
                each(was, is);
            }
        });
    }

    /// All there is of a kind, in the order of keys.
    pub(super) fn each_entry<K: Resource>(&self, each: impl FnMut(&Arc<Entry>)) {
        let path = path_of_kind(&K::group_plural());
        self.state.objects.below(&path).for_each(each);
    }

    /// The same view, which notes no questions.
    pub(super) fn silent(self) -> Self {
        Self {
            asked: None,
            ..self
        }
    }

    /// Notes that a question was not answered.
    pub(super) fn note_in_vain(&self, why: InVain) {
        if let Some(asked) = &self.asked {
            // The first one stays.
            let _ = asked.set(why);
        }
    }

    /// The objects of a kind that are reported on though their intent is missing and nobody
    /// ordered their end.
    pub fn unexplained<K: Resource>(&self) -> impl Iterator<Item = Joined> + '_ {
        self.entries(&path_of_kind(&K::group_plural()))
            .into_iter()
            .filter(|entry| !entry.has_intent())
            .filter_map(|entry| entry.joined().ok())
            .filter(Joined::is_unexplained)
    }

    /// The intents of a kind that cannot be read. They are in no list: a plan that counts
    /// objects of this kind does not know how many there are.
    #[must_use]
    pub fn unreadable<K: Resource>(&self) -> Vec<Arc<RecordError>> {
        let path = path_of_kind(&K::group_plural());
        // What nobody has read yet may be unreadable, too.
        for entry in self.entries(&path) {
            if !entry.is_readable() {
                self.typed_once::<K>(entry);
            }
        }
        let prefix = format!("o/intent/{path}");
        let set_aside = self.set_aside();
        let of_kind = |error: &Arc<RecordError>| error.key.starts_with(&prefix);
        set_aside.into_iter().filter(of_kind).collect()
    }

    /// A view that notes the first question that it cannot answer.
    pub(crate) fn asking(self) -> Self {
        let asked = Some(Arc::default());
        Self { asked, ..self }
    }

    pub(crate) fn asked_in_vain(&self) -> Option<InVain> {
        self.asked.as_ref()?.get().cloned()
    }

    pub(super) fn ask<K: Resource>(&self) {
        let Some(asked) = &self.asked else {
            return;
        };
        let is = |kind: &GroupPlural| *kind.plural == *K::PLURAL && *kind.group == *K::GROUP;
        if !self.state.mirrored.iter().any(is) || self.state.unread.iter().any(is) {
            let _ = asked.set(InVain::NotRead(K::group_plural()));
        }
    }

    fn stored_at(&self, key: &Key) -> Option<&Stored> {
        let (tree, path, writer) = record_at(key)?;
        let entry = self.state.objects.get(path)?;
        entry.records.iter().find(|stored| match &stored.slot {
            Slot::Part(part) => writer == Some(part),
            slot => slot.tree() == tree,
        })
    }

    /// The value under a key, if it is an object's record that is mirrored.
    pub(crate) fn value(&self, key: &Key) -> Option<Arc<[u8]>> {
        Some(self.stored_at(key)?.value.clone())
    }

    /// Something is known that cannot be read.
    pub(crate) fn has_unreadable(&self) -> bool {
        !self.state.set_aside.is_empty() || self.shared.has_unreadable()
    }

    /// Looks at some objects of a kind, spread over all of them, and says so if so many of them
    /// cannot be read that no plan may count on the kind: a schema that does not fit, rather than
    /// a few bad records.
    pub(crate) fn check<K: Resource>(&self) -> Option<String> {
        const LOOKED_AT: usize = 200;
        let entries = self.entries(&path_of_kind(&K::group_plural()));
        let stride = entries.len().div_ceil(LOOKED_AT).max(1);
        let (mut looked, mut bad, mut last) = (0, 0, None);
        for entry in entries.into_iter().step_by(stride) {
            match self.typed::<K>(entry) {
                None => continue,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    bad += 1;
                    last = Some(error);
                }
            }
            looked += 1;
        }
        let error = last.filter(|_| bad >= 5 && bad * 10 >= looked * 3)?;
        Some(format!(
            "of {looked} {} that were looked at, {bad} cannot be read: {error}",
            K::PLURAL
        ))
    }

    /// Every object as if it had just come.
    pub(crate) fn all_as_changes(&self) -> impl Iterator<Item = EntryChange> {
        self.state.objects.iter().map(|entry| EntryChange {
            before: None,
            after: Some(entry.clone()),
            revision: entry.revision(),
        })
    }

    /// Every source that tells of the kind was read.
    pub(crate) fn is_read(&self, kind: &GroupPlural) -> bool {
        let trees = Tree::ALL.map(|tree| kind.prefix(tree));
        let sources = self.shared.prefixes.iter().zip(self.state.sources.iter());
        let mut tell = sources.filter(|(prefix, _)| trees.iter().any(|t| t.overlaps(prefix)));
        tell.all(|(_, read)| read.is_some())
    }

    /// Every record that is known to be unreadable: whose metadata cannot be read, or whose rest
    /// could not when somebody tried. Objects that a controller reconciles are always tried.
    #[must_use]
    pub fn set_aside(&self) -> Vec<Arc<RecordError>> {
        let records = self.state.set_aside.iter();
        let records = records.chain(self.state.malformed.iter());
        let mut errors: Vec<_> = records.map(|(_, error)| error.clone()).collect();
        for error in self.shared.unreadable(&self.state) {
            if self.state.set_aside.get(error.key.as_str()).is_none() {
                errors.push(error);
            }
        }
        errors
    }

    /// The keys of all objects of a kind that have any record.
    pub(crate) fn keys_of(&self, kind: &GroupPlural) -> Vec<Arc<ObjectKey>> {
        let entries = self.entries(&path_of_kind(kind)).into_iter();
        entries.map(|entry| entry.key.clone()).collect()
    }

    /// How many objects of a kind have any record.
    pub(crate) fn count_of(&self, group: &str, plural: &str) -> usize {
        let mut counts = self.state.counts.iter();
        counts
            .find(|(kind, _)| *kind.plural == *plural && *kind.group == *group)
            .map_or(0, |(_, count)| *count)
    }

    fn entries(&self, path: &str) -> Vec<&Arc<Entry>> {
        self.state.objects.below(path).collect()
    }

    /// Some record is shown under this key.
    pub(crate) fn shows(&self, key: &Key) -> bool {
        self.stored_at(key).is_some()
    }

    /// How far each source has come.
    pub(crate) fn reached(&self) -> Vec<Revision> {
        let sources = self.state.sources.iter();
        sources
            .map(|source| source.unwrap_or(Revision::ZERO))
            .collect()
    }

    /// The sources that a key is read by.
    pub(crate) fn sources_of(&self, key: &Key) -> impl Iterator<Item = usize> + '_ {
        let prefixes = self.shared.prefixes.iter().enumerate();
        let key = key.clone();
        prefixes
            .filter(move |(_, prefix)| key.is_under(prefix))
            .map(|(index, _)| index)
    }
}

/// Some of the objects of a kind in a [`View`].
#[derive(Debug)]
pub struct Query<'v, K: Resource> {
    view: &'v View,
    path: String,
    node: Option<String>,
    namespace: Option<String>,
    owner: Option<Uid>,
    selector: Option<Selector>,
    /// An index, and the value that it has to say.
    indexed: Option<(Index<K>, String)>,
    kind: PhantomData<fn() -> K>,
}

impl<'v, K: Resource> Query<'v, K> {
    /// Only those that this node works on.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Only those in this namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Only those that name this uid as an owner. If one of them cannot be read, a reconcile that
    /// asked for them as objects commits nothing: it does not know what is missing.
    #[must_use]
    pub fn owned_by(mut self, uid: &Uid) -> Self {
        self.owner = Some(uid.clone());
        self
    }

    /// Only those whose labels the selector matches. An object that cannot be read matches none.
    #[must_use]
    pub fn matching(mut self, selector: &Selector) -> Self {
        self.selector = Some(selector.clone());
        self
    }

    /// Only those of which the index says this value. It is right also where the index was not
    /// declared with [`Cached::index`](super::Cached::index), but then looks at all objects.
    #[must_use]
    pub fn indexed(mut self, index: &Index<K>, value: &str) -> Self {
        self.indexed = Some((*index, value.to_owned()));
        self
    }

    fn entries(&self) -> Vec<&'v Arc<Entry>> {
        let namespace = self.namespace.as_deref();
        let mut path = self.path.clone();
        if let Some(node) = &self.node {
            path.push_str(node);
            path.push('/');
        }
        let fits = |entry: &&'v Arc<Entry>| {
            namespace.is_none_or(|namespace| entry.key.namespace() == Some(namespace))
        };
        // The narrowest of the ways to find them; what the others ask is asked of each.
        let state = &self.view.state;
        let found = if let Some(owner) = &self.owner {
            Some(state.found.by(&By::Owner(owner.as_str()), &path))
        } else if let Some((index, value)) = &self.indexed
            && self.view.shared.has_index(&K::group_plural(), index.name)
        {
            Some(state.found.by(&By::Index(index.name, value), &path))
        } else if let Some(selector) = &self.selector {
            let labels = self.view.shared.label_indexes(&K::group_plural());
            let label = selector.requirements().iter().find_map(|requirement| {
                let values = requirement.values()?;
                let known = labels.iter().any(|label| **label == *requirement.key());
                known.then_some((requirement.key(), values))
            });
            label.map(|(label, values)| {
                let mut found: Vec<_> = values
                    .iter()
                    .flat_map(|value| state.found.by(&By::Label(label, value), &path))
                    .collect();
                found.sort_by_key(|key| key.path());
                found
            })
        } else {
            None
        };
        if let Some(found) = found {
            let found = found.into_iter();
            return found
                .filter_map(|key| state.objects.get(key.path()))
                .filter(fits)
                .filter(|entry| self.may_match(entry))
                .collect();
        }
        if let (None, Some(namespace), crate::model::Scope::Namespaced) =
            (&self.node, namespace, K::SCOPE)
        {
            path.push_str(namespace);
            path.push('/');
        }
        let entries = self.view.entries(&path).into_iter().filter(fits);
        entries.filter(|entry| self.may_match(entry)).collect()
    }

    /// What can be said without decoding.
    fn may_match(&self, entry: &Entry) -> bool {
        let none = BTreeMap::new();
        let labels = entry.labels.as_deref().unwrap_or(&none);
        let owner = self.owner.as_ref();
        self.selector
            .as_ref()
            .is_none_or(|selector| selector.matches(labels))
            && owner.is_none_or(|uid| entry.owners().iter().any(|owner| owner.uid == *uid))
    }

    /// The objects' keys, in their order, also of those that cannot be read.
    #[must_use]
    pub fn keys(&self) -> Vec<ObjectKey> {
        let key = |entry: &Arc<Entry>| (*entry.key).clone();
        let entries = self.entries().into_iter();
        match (&self.selector, &self.indexed) {
            (None, None) => entries
                .filter(|entry| entry.has_intent())
                .map(key)
                .collect(),
            _ => entries
                .filter(|entry| self.selected(entry).is_some())
                .map(key)
                .collect(),
        }
    }

    fn selected(&self, entry: &Entry) -> Option<Arc<Object<K>>> {
        let object = match self.view.typed::<K>(entry)? {
            Ok(object) => object,
            Err(error) => {
                // Whoever counts what is owned would make it once more.
                if let (Some(_), Some(asked)) = (&self.owner, &self.view.asked) {
                    let _ = asked.set(InVain::Unreadable(error));
                }
                return None;
            }
        };
        let selector = self.selector.as_ref();
        let indexed = self.indexed.as_ref();
        let matches = selector.is_none_or(|selector| selector.matches(&object.metadata.labels))
            && indexed.is_none_or(|(index, value)| (index.values)(&object).contains(value));
        matches.then_some(object)
    }

    /// The objects, in the order of their keys.
    #[must_use]
    pub fn to_vec(&self) -> Vec<Arc<Object<K>>> {
        let entries = self.entries().into_iter();
        entries.filter_map(|entry| self.selected(entry)).collect()
    }
}

impl<K: Resource> IntoIterator for Query<'_, K> {
    type Item = Arc<Object<K>>;
    type IntoIter = std::vec::IntoIter<Arc<Object<K>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.to_vec().into_iter()
    }
}
