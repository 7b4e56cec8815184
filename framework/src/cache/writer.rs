//! The two ends of a cache: the one writer, and readers as many as are wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::entry::{Entry, Slot, Stored};
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
    state: Mutex<State>,
    /// Objects whose types do not fit, found when somebody read them, by path.
    unreadable: Mutex<Unreadable>,
    moved: watch::Sender<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // States are only ever replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_unreadable(&self, entry: &Entry, error: &Arc<RecordError>) {
        let mut unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unreadable.insert(entry.path.clone(), (entry.revision(), error.clone()));
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

/// A cache's exclusive writer.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    kinds: Arc<Kinds>,
}

/// Reads a cache that a runtime keeps up to date. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// A cache of the objects of `kinds` under `prefixes`, each of which is one source.
pub(crate) fn cache(kinds: Arc<Kinds>, prefixes: Vec<Prefix>) -> (Writer, Reader) {
    let state = State {
        sources: vec![None; prefixes.len()].into(),
        ..State::default()
    };
    let shared = Arc::new(Shared {
        prefixes: prefixes.into(),
        state: Mutex::new(state),
        unreadable: Mutex::default(),
        moved: watch::Sender::new(()),
    });
    let reader = Reader {
        shared: shared.clone(),
    };
    (Writer { shared, kinds }, reader)
}

impl Reader {
    /// Everything at this moment.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            state: self.shared.state().clone(),
            shared: self.shared.clone(),
        }
    }

    /// Tells whenever the view has changed.
    pub(crate) fn moved(&self) -> watch::Receiver<()> {
        self.shared.moved.subscribe()
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

/// The new records of one object; None removes.
type Edits = Vec<(Slot, Option<Stored>)>;

fn stored(slot: Slot, record: Record) -> Stored {
    Stored {
        slot,
        value: record.value,
        created: record.created,
        modified: record.modified,
    }
}

impl Writer {
    /// Mirrors these kinds from now on, and returns those that it did not before: their objects
    /// are in the view when every source was read again. Objects of other kinds are forgotten.
    pub(crate) fn set_kinds(&mut self, kinds: Arc<Kinds>) -> Vec<GroupPlural> {
        let names = |kinds: &Kinds| -> BTreeSet<GroupPlural> {
            let names = kinds.iter().map(|kind| kind.definition.group_plural());
            names.collect()
        };
        let (old, new) = (names(&self.kinds), names(&kinds));
        self.kinds = kinds;
        let mut state = self.shared.state().clone();
        for kind in old.difference(&new) {
            forget(&mut state, kind);
        }
        *self.shared.state() = state;
        new.difference(&old).cloned().collect()
    }

    fn place(&self, key: &Key) -> Place {
        let scope = |group: &str, plural: &str| self.kinds.scope(group, plural);
        if let Some((tree, object, writer)) = ObjectKey::parse(key, scope) {
            let slot = Slot::of(tree, writer);
            return Place::Object(object, slot);
        }
        let mut segments = key.as_str().split('/').skip(2);
        let known = match (segments.next(), segments.next()) {
            (Some(group), Some(plural)) => self.kinds.scope(group, plural).is_some(),
            _ => false,
        };
        let anchor = key.as_str().ends_with(&format!("/{PREFIX_ANCHOR}"));
        if known && !anchor {
            Place::Malformed
        } else {
            Place::Elsewhere
        }
    }

    /// Replaces all that is known under a source's prefix by what a list returned, and says what
    /// is different, what vanished included.
    pub(crate) fn replace(
        &mut self,
        source: usize,
        records: Vec<Record>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        let mut state = self.shared.state().clone();
        let prefix = self.shared.prefixes[source].clone();
        let mut edits = BTreeMap::<String, (ObjectKey, Edits)>::new();
        let mut malformed = Vec::new();
        for record in records {
            match self.place(&record.key) {
                Place::Object(key, slot) => {
                    let path = super::view::path_of(&key);
                    let (_, edits) = edits.entry(path).or_insert_with(|| (key, Vec::new()));
                    edits.push((slot.clone(), Some(stored(slot, record))));
                }
                Place::Malformed => malformed.push(record),
                Place::Elsewhere => {}
            }
        }
        // What is known and was not listed is gone.
        for (path, entry) in known_under(&state, &prefix) {
            for held in &entry.records {
                let key = record_key(&path, &held.slot);
                if !prefix.covers(&key) {
                    continue;
                }
                let (_, edits) = edits
                    .entry(path.to_string())
                    .or_insert_with(|| ((*entry.key).clone(), Vec::new()));
                if !edits.iter().any(|(slot, _)| *slot == held.slot) {
                    edits.push((held.slot.clone(), None));
                }
            }
        }
        let aside: Vec<_> = state
            .malformed
            .keys()
            .filter(|key| prefix.covers(key))
            .cloned()
            .collect();
        for key in aside {
            state.malformed.remove_mut(&key);
        }
        for record in malformed {
            set_aside_malformed(&mut state, &record);
        }
        let mut changes = Vec::new();
        for (path, (key, edits)) in edits {
            let before = state.objects.get(path.as_str()).cloned();
            changes.extend(edit(&mut state, &path, key, before, edits, revision));
        }
        // A list is never older than what its source told before, unless a person accepted that.
        let mut sources = state.sources.to_vec();
        sources[source] = None;
        state.sources = sources.into();
        self.publish(state, source, revision);
        changes
    }

    /// Applies what a watch told: all changes at once, or none is seen.
    pub(crate) fn apply(
        &mut self,
        source: usize,
        changes: Vec<Change>,
        revision: Revision,
    ) -> Vec<EntryChange> {
        let mut state = self.shared.state().clone();
        let mut edits = BTreeMap::<String, (ObjectKey, Edits, Revision)>::new();
        for change in changes {
            let at = change.revision();
            match self.place(change.key()) {
                Place::Object(key, slot) => {
                    let path = super::view::path_of(&key);
                    let held = state.objects.get(path.as_str());
                    let held = held.and_then(|entry| entry.stored(&slot));
                    // Delivered again, or older than what a list showed.
                    if held.is_some_and(|held| held.modified >= at) {
                        continue;
                    }
                    let value = match change {
                        Change::Put(record) => Some(stored(slot.clone(), record)),
                        Change::Delete { .. } => None,
                    };
                    let (_, edits, last) = edits
                        .entry(path)
                        .or_insert_with(|| (key, Vec::new(), Revision::ZERO));
                    edits.push((slot, value));
                    *last = at.max(*last);
                }
                Place::Malformed => match change {
                    Change::Put(record) => set_aside_malformed(&mut state, &record),
                    Change::Delete { key, .. } => {
                        state.malformed.remove_mut(key.as_str());
                    }
                },
                Place::Elsewhere => {}
            }
        }
        let mut out = Vec::new();
        for (path, (key, edits, at)) in edits {
            let before = state.objects.get(path.as_str()).cloned();
            out.extend(edit(&mut state, &path, key, before, edits, at));
        }
        self.publish(state, source, revision);
        out
    }

    /// Nothing changed under a source's prefix up to this revision.
    pub(crate) fn progress(&mut self, source: usize, revision: Revision) {
        let state = self.shared.state().clone();
        self.publish(state, source, revision);
    }

    fn publish(&mut self, mut state: State, source: usize, revision: Revision) {
        let mut sources = state.sources.to_vec();
        sources[source] = sources[source].max(Some(revision));
        state.sources = sources.into();
        // The old state is dropped outside of the lock.
        let old = std::mem::replace(&mut *self.shared.state(), state);
        self.shared.moved.send_replace(());
        drop(old);
        let mut unreadable = self
            .shared
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !unreadable.is_empty() {
            let state = self.shared.state().clone();
            unreadable.retain(|path, (revision, _)| {
                let entry = state.objects.get(path);
                entry.is_some_and(|entry| entry.revision() == *revision)
            });
        }
    }
}

fn record_key(path: &str, slot: &Slot) -> String {
    match slot {
        Slot::Part(writer) => format!("o/{}/{path}/{writer}", slot.tree().as_str()),
        _ => format!("o/{}/{path}", slot.tree().as_str()),
    }
}

/// Removes all objects of a kind.
fn forget(state: &mut State, kind: &GroupPlural) {
    let all = range(&format!("{}/{}/", kind.group, kind.plural));
    let entries = state.objects.range(all);
    let entries: Vec<_> = entries.map(|(_, entry)| entry.clone()).collect();
    for entry in entries {
        for owner in &entry.owners {
            let index = format!("{}/{}", owner.uid, entry.path);
            state.owned.remove_mut(index.as_str());
        }
        for error in &entry.unreadable {
            state.set_aside.remove_mut(error.key.as_str());
        }
        state.objects.remove_mut(&entry.path);
    }
    let of_kind = Tree::ALL.map(|tree| kind.prefix(tree));
    let malformed = state.malformed.keys().cloned();
    let malformed = malformed.filter(|key| of_kind.iter().any(|prefix| prefix.covers(key)));
    for key in malformed.collect::<Vec<_>>() {
        state.malformed.remove_mut(&key);
    }
}

/// The entries that may have records under a prefix.
fn known_under(state: &State, prefix: &Prefix) -> Vec<(Arc<str>, Arc<Entry>)> {
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
    entries
        .map(|(path, entry)| (path.clone(), entry.clone()))
        .collect()
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

/// Puts an object's new records in place. None when nothing is different.
fn edit(
    state: &mut State,
    path: &str,
    key: ObjectKey,
    before: Option<Arc<Entry>>,
    edits: Edits,
    revision: Revision,
) -> Option<EntryChange> {
    let mut records: Vec<Stored> = before.iter().flat_map(|e| e.records.to_vec()).collect();
    let mut different = false;
    for (slot, new) in edits {
        let old = records.iter().position(|held| held.slot == slot);
        match (old, new) {
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
    records.sort_by(|a, b| a.slot.cmp(&b.slot));
    if let Some(before) = &before {
        for owner in &before.owners {
            state
                .owned
                .remove_mut(format!("{}/{path}", owner.uid).as_str());
        }
        for error in &before.unreadable {
            state.set_aside.remove_mut(error.key.as_str());
        }
    }
    let (shared_key, shared_path) = match &before {
        Some(before) => (before.key.clone(), before.path.clone()),
        None => (Arc::new(key), Arc::from(path)),
    };
    let after = (!records.is_empty()).then(|| {
        Arc::new(Entry::new(
            shared_key,
            shared_path,
            records,
            before.as_deref(),
        ))
    });
    match &after {
        Some(entry) => {
            for owner in &entry.owners {
                let index = format!("{}/{path}", owner.uid);
                state.owned.insert_mut(index.into(), entry.path.clone());
            }
            for error in &entry.unreadable {
                state
                    .set_aside
                    .insert_mut(error.key.as_str().into(), error.clone());
            }
            state.objects.insert_mut(entry.path.clone(), entry.clone());
        }
        None => {
            state.objects.remove_mut(path);
        }
    }
    Some(EntryChange {
        before,
        after,
        revision,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
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
        json!({"metadata": {"name": name, "namespace": "d", "uid": "u", "ownerReferences": owners}})
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
            for stored in &entry.records {
                let key = record_key(&entry.path, &stored.slot);
                seen.insert(key, (stored.value.clone(), stored.modified));
            }
            for owner in &entry.owners {
                let index = format!("{}/{}", owner.uid, entry.path);
                assert!(view.state.owned.contains_key(index.as_str()), "{index}");
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
        let owned: usize = view.state.objects.values().map(|e| e.owners.len()).sum();
        assert_eq!(view.state.owned.size(), owned, "no index is left behind");
        let broken = model.records.values().any(|record| record.value == "{");
        assert_eq!(!view.set_aside().is_empty(), broken);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn lists_and_watches_lead_to_what_the_store_holds_and_every_change_follows_the_last(steps in prop::collection::vec(step(), 0..60)) {
            let (mut writer, reader) = cache(kinds(), vec![Prefix::new("o/").unwrap()]);
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
                    let before = objects.get(&entry.path).map(Arc::as_ptr);
                    prop_assert_eq!(before, change.before.as_ref().map(Arc::as_ptr), "a change follows the last one");
                    match &change.after {
                        Some(after) => objects.insert(after.path.clone(), after.clone()),
                        None => objects.remove(&entry.path),
                    };
                }
                check(&model, &reader);
                prop_assert_eq!(reader.view().revision(), newest);
            }
        }
    }

    #[test]
    fn a_held_view_does_not_change_and_a_node_is_not_its_longer_namesake() {
        let (mut writer, reader) = cache(kinds(), vec![Prefix::new("o/").unwrap()]);
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
