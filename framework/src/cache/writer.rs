//! The two ends of a cache: the one writer, and readers as many as are wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::entry::{Entry, Slot, Stored};
use super::labels::LabelSets;
use super::options::{KindOptions, Options};
use super::source::Feed;
use super::view::{State, View, range};
use crate::model::identity::PREFIX_ANCHOR;
use crate::model::{GroupPlural, Kinds, ObjectKey, RecordError, Tree};
use crate::store::{Change, Key, Prefix, Record, Revision};

/// Errors with the revision of the object that they were found in, by path.
type Unreadable = HashMap<Arc<str>, (Revision, Arc<RecordError>)>;

/// What writer and readers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) prefixes: Box<[Prefix]>,
    options: Options,
    state: Mutex<Arc<State>>,
    /// Objects whose types do not fit, found when somebody read them, by path.
    unreadable: Mutex<Unreadable>,
    moved: watch::Sender<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Arc<State>> {
        // States are only ever replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels that objects of a kind are found by.
    pub(crate) fn label_indexes(&self, kind: &GroupPlural) -> &[Box<str>] {
        self.options
            .get(kind)
            .map_or(&[], |options| &options.labels)
    }

    pub(crate) fn has_index(&self, kind: &GroupPlural, name: &str) -> bool {
        let options = self.options.get(kind);
        options.is_some_and(|options| options.indexes.iter().any(|(known, _)| *known == name))
    }

    pub(crate) fn note_unreadable(&self, entry: &Entry, error: &Arc<RecordError>) {
        let mut unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let path = entry.key.shared_path().clone();
        unreadable.insert(path, (entry.revision(), error.clone()));
    }

    pub(crate) fn has_unreadable(&self) -> bool {
        let unreadable = self.unreadable.lock();
        !unreadable
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Those that `state` still holds as they were found.
    pub(crate) fn unreadable(&self, state: &State) -> Vec<Arc<RecordError>> {
        let unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let still = |path: &Arc<str>, revision| {
            let entry = state.objects.get(path);
            entry.is_some_and(|entry| entry.revision() == revision)
        };
        let found = unreadable.iter();
        found
            .filter(|(path, (revision, _))| still(path, *revision))
            .map(|(_, (_, error))| error.clone())
            .collect()
    }
}

/// What became different in an object.
#[derive(Clone, Debug)]
pub(crate) struct EntryChange {
    /// The object until now: the last that was known of it.
    pub(crate) before: Option<Arc<Entry>>,
    /// The object now; None when it has no records left.
    pub(crate) after: Option<Arc<Entry>>,
    /// The revision of the change.
    pub(crate) revision: Revision,
}

/// What came of something that a source told.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) changes: Vec<EntryChange>,
    /// It was the source's first list.
    pub(crate) initial: bool,
    /// The source that was listed.
    pub(crate) listed: Option<usize>,
}

/// A cache's exclusive writer.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    kinds: Arc<Kinds>,
    labels: LabelSets,
    /// First lists that are not complete, by source: seen by nobody.
    begun: BTreeMap<usize, Begun>,
}

/// What a first list has shown until now.
#[derive(Debug, Default)]
struct Begun {
    state: State,
    /// Records of kinds that are not known, which they may be when the list is complete.
    elsewhere: Vec<Record>,
}

/// Reads a cache that a runtime keeps up to date. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// A cache of the objects of `kinds` under `prefixes`, each of which is one source.
pub(crate) fn cache(
    kinds: Arc<Kinds>,
    prefixes: Vec<Prefix>,
    options: Options,
) -> (Writer, Reader) {
    let state = State {
        mirrored: names(&kinds).into_iter().collect(),
        unread: names(&kinds).into_iter().collect(),
        sources: vec![None; prefixes.len()].into(),
        ..State::default()
    };
    let shared = Arc::new(Shared {
        prefixes: prefixes.into(),
        options,
        state: Mutex::new(Arc::new(state)),
        unreadable: Mutex::default(),
        moved: watch::Sender::new(()),
    });
    let reader = Reader {
        shared: shared.clone(),
    };
    let writer = Writer {
        shared,
        kinds,
        labels: LabelSets::default(),
        begun: BTreeMap::new(),
    };
    (writer, reader)
}

impl Reader {
    /// Everything at this moment.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            state: self.shared.state().clone(),
            shared: self.shared.clone(),
            asked: None,
        }
    }

    /// Tells whenever the view has changed.
    pub(crate) fn moved(&self) -> watch::Receiver<()> {
        self.shared.moved.subscribe()
    }

    /// Of objects of this kind only some fields are kept.
    pub(crate) fn is_projected(&self, kind: &GroupPlural) -> bool {
        let options = self.shared.options.get(kind);
        options.is_some_and(KindOptions::is_projected)
    }

    pub(crate) fn sources(&self) -> Arc<[Option<Revision>]> {
        self.shared.state().sources.clone()
    }

    async fn until(&self, mut holds: impl FnMut(&[Option<Revision>]) -> bool) {
        let mut moved = self.shared.moved.subscribe();
        while !holds(&self.sources()) {
            if moved.changed().await.is_err() {
                // Cannot happen while `self.shared` lives; waiting is right either way.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until every source was read once.
    pub async fn synced(&self) {
        self.until(|sources| sources.iter().all(Option::is_some))
            .await;
    }

    /// Waits until the view shows everything up to `revision`.
    pub async fn reached(&self, revision: Revision) {
        let reached = |source: &Option<Revision>| source.is_some_and(|at| at >= revision);
        self.until(|sources| sources.iter().all(reached)).await;
    }
}

/// Where a key belongs.
enum Place {
    /// To a record of an object of a known kind.
    Object(ObjectKey, Slot),
    /// To nothing that is looked at here: an anchor, or a kind that nobody declared.
    Elsewhere,
    /// To a known kind, but no object can have this key.
    Malformed,
}

/// A record of an object that is put, or removed if there is no value.
struct Edit {
    key: ObjectKey,
    slot: Slot,
    value: Option<Stored>,
    revision: Revision,
}

impl Writer {
    /// Mirrors these kinds from now on, and returns those that it did not before: their objects
    /// are in the view when every source was read again. Objects of other kinds are forgotten.
    pub(crate) fn set_kinds(&mut self, kinds: Arc<Kinds>) -> Vec<GroupPlural> {
        let (old, new) = (names(&self.kinds), names(&kinds));
        self.kinds = kinds;
        let mut state = State::clone(&self.shared.state());
        for kind in old.difference(&new) {
            forget(&mut state, kind, self.shared.options.get(kind));
        }
        state.mirrored = new.iter().cloned().collect();
        *self.shared.state() = Arc::new(state);
        for begun in self.begun.values_mut() {
            for kind in old.difference(&new) {
                forget(&mut begun.state, kind, self.shared.options.get(kind));
            }
        }
        new.difference(&old).cloned().collect()
    }

    /// The kinds that are mirrored.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = GroupPlural> {
        names(&self.kinds).into_iter()
    }

    /// Says which kinds are not read whole yet.
    pub(crate) fn set_unread(&mut self, kinds: Vec<GroupPlural>) {
        Arc::make_mut(&mut *self.shared.state()).unread = kinds.into();
    }

    fn place(&self, key: &Key) -> Place {
        let known = |group: &str, plural: &str| self.kinds.known(group, plural);
        if let Some((tree, object, writer)) = ObjectKey::parse_known(key, known) {
            let slot = Slot::of(tree, writer);
            return Place::Object(object, slot);
        }
        let mut segments = key.as_str().split('/').skip(2);
        let known = match (segments.next(), segments.next()) {
            (Some(group), Some(plural)) => self.kinds.known(group, plural).is_some(),
            _ => false,
        };
        let name = key.as_str().rsplit('/').next();
        if known && name != Some(PREFIX_ANCHOR) {
            Place::Malformed
        } else {
            Place::Elsewhere
        }
    }

    fn put(&self, key: ObjectKey, slot: Slot, record: &Record, revision: Revision) -> Edit {
        let options = self.shared.options.get(key.kind());
        let value = Some(Stored::new(slot.clone(), record, options));
        Edit {
            key,
            slot,
            value,
            revision,
        }
    }

    /// Takes in what a source told. All of it is seen at once. None for what is seen only later.
    pub(crate) fn take(&mut self, told: Feed) -> Option<Taken> {
        let mut state = State::clone(&self.shared.state());
        let (mut initial, mut listed) = (false, None);
        let changes = match told {
            Feed::Page(source, records, first) => {
                self.page(source, records, first);
                return None;
            }
            Feed::List(source, records, revision) => {
                initial = state.sources[source].is_none();
                listed = Some(source);
                self.replace_in(&mut state, source, records, revision)
            }
            Feed::Changes(source, changes, revision) => {
                self.apply_in(&mut state, source, changes, revision)
            }
            Feed::Progress(source, revision) => {
                reached(&mut state, source, revision);
                Vec::new()
            }
        };
        self.publish(state);
        Some(Taken {
            changes,
            initial,
            listed,
        })
    }

    /// Takes in a page of a source's first list, which nobody sees before it is complete.
    fn page(&mut self, source: usize, records: Vec<Record>, first: bool) {
        let mut begun = self.begun.remove(&source).unwrap_or_default();
        if first {
            begun = Begun::default();
        }
        let mut elsewhere = Vec::new();
        let edits = self.edits_of(
            &mut begun.state,
            records,
            Revision::ZERO,
            Some(&mut elsewhere),
        );
        begun.elsewhere.append(&mut elsewhere);
        self.edit_all(&mut begun.state, edits);
        self.begun.insert(source, begun);
    }

    fn edits_of(
        &self,
        state: &mut State,
        records: Vec<Record>,
        revision: Revision,
        mut elsewhere: Option<&mut Vec<Record>>,
    ) -> Vec<Edit> {
        let mut edits = Vec::with_capacity(records.len());
        for record in records {
            match self.place(&record.key) {
                Place::Object(key, slot) => edits.push(self.put(key, slot, &record, revision)),
                Place::Malformed => set_aside_malformed(state, &record),
                Place::Elsewhere => {
                    if let Some(elsewhere) = &mut elsewhere {
                        elsewhere.push(record);
                    }
                }
            }
        }
        edits
    }

    /// Replaces all that is known under a source's prefix by what a list returned, and says what
    /// is different, what vanished included.
    #[cfg(test)]
    pub(crate) fn replace(
        &mut self,
        source: usize,
        records: Vec<Record>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        let taken = self.take(Feed::List(source, records, revision));
        taken.map_or_else(Vec::new, |taken| taken.changes)
    }

    fn replace_in(
        &mut self,
        state: &mut State,
        source: usize,
        mut records: Vec<Record>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        let prefix = self.shared.prefixes[source].clone();
        let Begun {
            state: begun,
            mut elsewhere,
        } = self.begun.remove(&source).unwrap_or_default();
        records.append(&mut elsewhere);
        let aside: Vec<_> = state
            .malformed
            .keys()
            .filter(|key| prefix.covers(key))
            .cloned()
            .collect();
        for key in aside {
            state.malformed.remove_mut(&key);
        }
        for (key, error) in &begun.malformed {
            state.malformed.insert_mut(key.clone(), error.clone());
        }
        let edits = self.edits_of(state, records, revision, None);
        let mut changes = Vec::new();
        if state.objects.is_empty() && edits.is_empty() {
            // The first list of the first source: what was begun is what there is.
            let appeared = begun.objects.values().map(|entry| EntryChange {
                before: None,
                after: Some(entry.clone()),
                revision,
            });
            changes.extend(appeared);
            state.objects = begun.objects;
            state.found = begun.found;
            state.counts = begun.counts;
            state.set_aside = begun.set_aside;
        } else {
            changes = self.difference(state, &prefix, &begun, edits, revision);
        }
        // A list is never older than what its source told before, unless a person accepted that.
        let mut sources = state.sources.to_vec();
        sources[source] = Some(revision);
        state.sources = sources.into();
        changes
    }

    fn difference(
        &mut self,
        state: &mut State,
        prefix: &Prefix,
        begun: &State,
        mut edits: Vec<Edit>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        for entry in begun.objects.values() {
            edits.extend(entry.records.iter().map(|stored| Edit {
                key: (*entry.key).clone(),
                slot: stored.slot.clone(),
                value: Some(stored.clone()),
                revision,
            }));
        }
        // What is known and was not listed is gone.
        let mut listed: Vec<(&str, &Slot)> = edits
            .iter()
            .map(|edit| (edit.key.path(), &edit.slot))
            .collect();
        listed.sort_unstable();
        let mut gone = Vec::new();
        for entry in known_under(state, prefix) {
            for held in &*entry.records {
                let place = (entry.key.path(), &held.slot);
                if listed.binary_search(&place).is_err()
                    && prefix.covers(&record_key(entry.key.path(), &held.slot))
                {
                    gone.push(Edit {
                        key: (*entry.key).clone(),
                        slot: held.slot.clone(),
                        value: None,
                        revision,
                    });
                }
            }
        }
        drop(listed);
        edits.append(&mut gone);
        self.edit_all(state, edits)
    }

    /// Applies what a watch told: all changes at once, or none is seen.
    #[cfg(test)]
    pub(crate) fn apply(
        &mut self,
        source: usize,
        changes: Vec<Change>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        let taken = self.take(Feed::Changes(source, changes, revision));
        taken.map_or_else(Vec::new, |taken| taken.changes)
    }

    fn apply_in(
        &mut self,
        state: &mut State,
        source: usize,
        changes: Vec<Change>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        let mut edits = Vec::with_capacity(changes.len());
        for change in changes {
            let at = change.revision();
            match (self.place(change.key()), change) {
                (Place::Object(key, slot), change) => {
                    let held = state.objects.get(key.path());
                    let held = held.and_then(|entry| entry.stored(&slot));
                    // Delivered again, or older than what a list showed.
                    if held.is_some_and(|held| held.modified >= at) {
                        continue;
                    }
                    edits.push(match change {
                        Change::Put(record) => self.put(key, slot, &record, at),
                        Change::Delete { .. } => Edit {
                            key,
                            slot,
                            value: None,
                            revision: at,
                        },
                    });
                }
                (Place::Malformed, Change::Put(record)) => set_aside_malformed(state, &record),
                (Place::Malformed, Change::Delete { key, .. }) => {
                    state.malformed.remove_mut(key.as_str());
                }
                (Place::Elsewhere, _) => {}
            }
        }
        let changes = self.edit_all(state, edits);
        reached(state, source, revision);
        changes
    }

    /// Puts new records in place, object by object, and says what is different.
    fn edit_all(&mut self, state: &mut State, mut edits: Vec<Edit>) -> Vec<EntryChange> {
        // Records come in the order of trees: those of one object are apart.
        edits.sort_by(|a, b| a.key.path().cmp(b.key.path()));
        let mut changes = Vec::with_capacity(edits.len());
        let mut edits = edits.into_iter().peekable();
        while let Some(first) = edits.next() {
            let mut of_object = vec![first];
            while let Some(next) = edits.next_if(|next| next.key == of_object[0].key) {
                of_object.push(next);
            }
            changes.extend(self.edit(state, of_object));
        }
        changes
    }

    /// Puts an object's new records in place. None when nothing is different.
    fn edit(&mut self, state: &mut State, edits: Vec<Edit>) -> Option<EntryChange> {
        let key = edits.first()?.key.clone();
        let before = state.objects.get(key.path()).cloned();
        let mut records: Vec<Stored> = before.iter().flat_map(|e| e.records.to_vec()).collect();
        let (mut different, mut revision) = (false, Revision::ZERO);
        for edit in edits {
            revision = revision.max(edit.revision);
            let old = records.iter().position(|held| held.slot == edit.slot);
            match (old, edit.value) {
                (Some(old), Some(new)) => {
                    different |=
                        records[old].modified != new.modified || records[old].value != new.value;
                    records[old] = new;
                }
                (Some(old), None) => {
                    different = true;
                    records.remove(old);
                }
                (None, Some(new)) => {
                    different = true;
                    records.push(new);
                }
                (None, None) => {}
            }
        }
        if !different {
            return None;
        }
        let options = self.shared.options.get(key.kind());
        if let Some(before) = &before {
            state.found.remove(before, options);
            for error in before.unreadable() {
                state.set_aside.remove_mut(error.key.as_str());
            }
        }
        let after = (!records.is_empty()).then(|| {
            let key = match &before {
                Some(before) => before.key.clone(),
                None => Arc::new(key.clone()),
            };
            let before = before.as_deref();
            Arc::new(Entry::new(key, records, before, &mut self.labels, options))
        });
        if before.is_some() != after.is_some() {
            let counts = Arc::make_mut(&mut state.counts);
            let count = counts.entry(key.kind().clone()).or_default();
            *count = if after.is_some() {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        }
        match &after {
            Some(entry) => {
                state.found.insert(entry, options);
                for error in entry.unreadable() {
                    state
                        .set_aside
                        .insert_mut(error.key.as_str().into(), error.clone());
                }
                let path = entry.key.shared_path().clone();
                state.objects.insert_mut(path, entry.clone());
            }
            None => {
                state.objects.remove_mut(key.path());
            }
        }
        Some(EntryChange {
            before,
            after,
            revision,
        })
    }

    fn publish(&mut self, state: State) {
        let state = Arc::new(state);
        // The old state is dropped outside of the lock.
        let old = std::mem::replace(&mut *self.shared.state(), state.clone());
        self.shared.moved.send_replace(());
        drop(old);
        let mut unreadable = self
            .shared
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unreadable.retain(|path, (revision, _)| {
            let entry = state.objects.get(path);
            entry.is_some_and(|entry| entry.revision() == *revision)
        });
    }
}

fn reached(state: &mut State, source: usize, revision: Revision) {
    let mut sources = state.sources.to_vec();
    sources[source] = sources[source].max(Some(revision));
    state.sources = sources.into();
}

fn record_key(path: &str, slot: &Slot) -> String {
    match slot {
        Slot::Part(writer) => format!("o/{}/{path}/{writer}", slot.tree().as_str()),
        _ => format!("o/{}/{path}", slot.tree().as_str()),
    }
}

fn names(kinds: &Kinds) -> BTreeSet<GroupPlural> {
    let names = kinds.iter().map(|kind| kind.definition.group_plural());
    names.collect()
}

/// Removes all objects of a kind.
fn forget(state: &mut State, kind: &GroupPlural, options: Option<&KindOptions>) {
    let all = range(&format!("{}/{}/", kind.group, kind.plural));
    let entries = state.objects.range(all);
    let entries: Vec<_> = entries.map(|(_, entry)| entry.clone()).collect();
    for entry in entries {
        state.found.remove(&entry, options);
        for error in entry.unreadable() {
            state.set_aside.remove_mut(error.key.as_str());
        }
        state.objects.remove_mut(entry.key.path());
    }
    Arc::make_mut(&mut state.counts).remove(kind);
    let of_kind = Tree::ALL.map(|tree| kind.prefix(tree));
    let malformed = state.malformed.keys().cloned();
    let malformed = malformed.filter(|key| of_kind.iter().any(|prefix| prefix.covers(key)));
    for key in malformed.collect::<Vec<_>>() {
        state.malformed.remove_mut(&key);
    }
}

/// The entries that may have records under a prefix.
fn known_under(state: &State, prefix: &Prefix) -> Vec<Arc<Entry>> {
    // `o/<tree>/<path…>`: what is behind the tree is a path; shorter prefixes cover all.
    let path = prefix.as_str().splitn(3, '/').nth(2).unwrap_or("");
    let range = match prefix.as_key() {
        Some(key) => {
            // A part lies below the path of its object.
            let part = key.as_str().starts_with("o/part/");
            let object = path.rsplit_once('/').filter(|_| part);
            let path: Arc<str> = object.map_or(path, |(object, _)| object).into();
            (Bound::Included(path.clone()), Bound::Included(path))
        }
        None => range(path),
    };
    let entries = state.objects.range(range);
    entries.map(|(_, entry)| entry.clone()).collect()
}

fn set_aside_malformed(state: &mut State, record: &Record) {
    let error = RecordError {
        key: record.key.to_string(),
        revision: record.modified,
        reason: "no object of this kind can have this key".to_owned(),
    };
    state
        .malformed
        .insert_mut(record.key.as_str().into(), Arc::new(error));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use bytes::Bytes;

    use super::*;
    use crate::cache::index::By;
    use crate::model::{KindDefinition, Scope};

    fn kinds() -> Arc<Kinds> {
        let definition = |plural: &str, scope: Scope| {
            let json = json!({
                "group": "example.dev", "version": "v1", "kind": plural, "plural": plural,
                "singular": plural, "scope": scope, "schema": {},
            });
            serde_json::from_value::<KindDefinition>(json).unwrap()
        };
        let mut kinds = Kinds::new();
        kinds.define(definition("sites", Scope::Namespaced));
        kinds.define(definition("pods", Scope::Node));
        Arc::new(kinds)
    }

    fn options() -> Options {
        let sites = KindOptions {
            labels: vec!["owner".into()],
            indexes: vec![(
                "parity",
                Arc::new(|entry: &Entry| vec![format!("{}", entry.revision().counter() % 2)]),
            )],
            ..KindOptions::default()
        };
        [(GroupPlural::new("example.dev", "sites"), sites)].into()
    }

    const OWNERS: [&str; 3] = ["u1", "u2", "u3"];

    fn value(key: &str, owner: Option<usize>) -> String {
        let name = if key.starts_with("o/part/") {
            key.rsplit('/').nth(1).unwrap()
        } else {
            key.rsplit('/').next().unwrap()
        };
        let owners: Vec<_> = owner
            .iter()
            .map(|&owner| json!({"apiVersion": "example.dev/v1", "kind": "sites", "name": "x", "uid": OWNERS[owner]}))
            .collect();
        let labels: BTreeMap<_, _> = owner
            .iter()
            .map(|&owner| ("owner", OWNERS[owner]))
            .collect();
        json!({"metadata": {"name": name, "namespace": "d", "uid": "u", "ownerReferences": owners, "labels": labels}})
            .to_string()
    }

    const KEYS: [&str; 9] = [
        "o/intent/example.dev/sites/d/a",
        "o/reality/example.dev/sites/d/a",
        "o/part/example.dev/sites/d/a/dns",
        "o/ledger/example.dev/sites/d/a",
        "o/intent/example.dev/pods/n1/d/p",
        "o/reality/example.dev/pods/n1/d/p",
        "o/intent/example.dev/pods/n10/d/p",
        "o/intent/example.dev/pods/n10/d/broken",
        "o/intent/example.dev/unknown/d/p",
    ];

    #[derive(Clone, Debug)]
    enum Step {
        /// What the store does; None deletes.
        Write(usize, Option<Option<usize>>),
        /// The watch tells everything that is new, from some earlier point on.
        Watch(u64),
        List,
    }

    fn step() -> impl Strategy<Value = Step> {
        let owner = prop::option::of(0..OWNERS.len());
        prop_oneof![
            6 => (0..KEYS.len(), prop::option::of(owner)).prop_map(|(key, put)| Step::Write(key, put)),
            2 => (0..4u64).prop_map(Step::Watch),
            1 => Just(Step::List),
        ]
    }

    #[derive(Default)]
    struct Model {
        records: BTreeMap<&'static str, Record>,
        history: Vec<Change>,
        told: u64,
    }

    impl Model {
        fn write(&mut self, key: &'static str, put: Option<Option<usize>>) {
            let revision = Revision::new(0, self.history.len() as u64 + 1);
            let store_key = Key::new(key).unwrap();
            let change = match put {
                Some(owner) => {
                    let text = if key.ends_with("broken") && owner.is_none() {
                        "{".to_owned()
                    } else {
                        value(key, owner)
                    };
                    let record = Record {
                        key: store_key,
                        value: text.into(),
                        created: revision,
                        modified: revision,
                        lease: None,
                    };
                    self.records.insert(key, record.clone());
                    Change::Put(record)
                }
                None => {
                    self.records.remove(key);
                    Change::Delete {
                        key: store_key,
                        revision,
                    }
                }
            };
            self.history.push(change);
        }
    }

    fn check(model: &Model, reader: &Reader) {
        let view = reader.view();
        let mut seen = BTreeMap::new();
        for entry in view.state.objects.values() {
            for stored in &*entry.records {
                let key = record_key(entry.key.path(), &stored.slot);
                seen.insert(
                    key,
                    (Bytes::from_owner(stored.value.clone()), stored.modified),
                );
            }
        }
        let known = |key: &&str| !key.contains("/unknown/");
        let expected: BTreeMap<_, _> = model
            .records
            .iter()
            .filter(|(key, _)| known(key))
            .map(|(key, record)| ((*key).to_owned(), (record.value.clone(), record.modified)))
            .collect();
        assert_eq!(seen, expected);
        // Two indexes besides the owners.
        let mut found = 0;
        for entry in view.state.objects.values() {
            let sites = GroupPlural::new("example.dev", "sites");
            for owner in entry.owners() {
                let keys = view
                    .state
                    .found
                    .by(&By::Owner(owner.uid.as_str()), "example.dev/");
                assert!(keys.contains(&&entry.key), "{} by {}", entry.key, owner.uid);
                found += 1;
            }
            if let Some(labels) = &entry.labels
                && *entry.key.kind() == sites
            {
                let keys = view
                    .state
                    .found
                    .by(&By::Label("owner", &labels["owner"]), "example.dev/sites/");
                assert!(keys.contains(&&entry.key), "{}", entry.key);
                found += 1;
            }
            if *entry.key.kind() == sites {
                let parity = format!("{}", entry.revision().counter() % 2);
                let keys = view
                    .state
                    .found
                    .by(&By::Index("parity", &parity), "example.dev/sites/");
                assert!(keys.contains(&&entry.key), "{}", entry.key);
                found += 1;
            }
        }
        assert_eq!(view.state.found.len(), found, "no index is left behind");
        for plural in ["sites", "pods"] {
            let kind = GroupPlural::new("example.dev", plural);
            assert_eq!(
                view.count_of("example.dev", plural),
                view.keys_of(&kind).len()
            );
        }
        let broken = model.records.values().any(|record| record.value == "{");
        assert_eq!(!view.set_aside().is_empty(), broken);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn lists_and_watches_lead_to_what_the_store_holds_and_every_change_follows_the_last(steps in prop::collection::vec(step(), 0..60)) {
            let (mut writer, reader) = cache(kinds(), vec![Prefix::new("o/").unwrap()], options());
            let mut model = Model::default();
            let mut objects = BTreeMap::<Arc<str>, Arc<Entry>>::new();
            for step in steps.into_iter().chain([Step::Watch(0)]) {
                let newest = Revision::new(0, model.history.len() as u64);
                let changes = match step {
                    Step::Write(key, put) => {
                        model.write(KEYS[key], put);
                        continue;
                    }
                    Step::Watch(again) => {
                        let from = model.told.saturating_sub(again) as usize;
                        let mut last = BTreeMap::new();
                        for change in &model.history[from..] {
                            last.insert(change.key().clone(), change.clone());
                        }
                        writer.apply(0, last.into_values().collect(), newest)
                    }
                    Step::List => writer.replace(0, model.records.values().cloned().collect(), newest),
                };
                model.told = newest.counter();
                for change in changes {
                    let entry = change.after.as_ref().or(change.before.as_ref()).unwrap();
                    let before = objects.get(entry.key.path()).map(Arc::as_ptr);
                    prop_assert_eq!(before, change.before.as_ref().map(Arc::as_ptr), "a change follows the last one");
                    match &change.after {
                        Some(after) => objects.insert(after.key.shared_path().clone(), after.clone()),
                        None => objects.remove(entry.key.path()),
                    };
                }
                check(&model, &reader);
                prop_assert_eq!(reader.view().revision(), newest);
            }
        }
    }

    #[test]
    fn a_held_view_does_not_change_and_a_node_is_not_its_longer_namesake() {
        let (mut writer, reader) = cache(kinds(), vec![Prefix::new("o/").unwrap()], options());
        let mut model = Model::default();
        for key in &KEYS[..7] {
            model.write(key, Some(None));
        }
        let records: Vec<_> = model.records.values().cloned().collect();
        writer.replace(0, records, Revision::new(0, 7));
        let held = reader.view();
        writer.replace(0, Vec::new(), Revision::new(0, 8));
        let pods = |view: &View| {
            let pods = view.state.objects.range(range("example.dev/pods/"));
            pods.count()
        };
        assert_eq!((pods(&held), pods(&reader.view())), (2, 0));
        let on_node = range("example.dev/pods/n1/");
        assert_eq!(held.state.objects.range(on_node).count(), 1);
    }
}
