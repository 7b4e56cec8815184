//! Putting records in their places: what lists and watches tell becomes entries.

use std::sync::Arc;

use super::entry::{Entry, Records, Slot, Stored};
use super::labels::LabelSets;
use super::reader::Shared;
use super::view::{State, record_at};
use crate::model::identity::PREFIX_ANCHOR;
use crate::model::{Kinds, ObjectKey, RecordError, Tree};
use crate::store::{Key, Record, Revision};

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

/// Where a key belongs.
pub(super) enum Place {
    /// To a record of an object of a known kind, which may be there already.
    Object(Arc<ObjectKey>, Option<Arc<Entry>>, Slot),
    /// To nothing that is looked at here: an anchor, or a kind that nobody declared.
    Elsewhere,
    /// To a known kind, but no object can have this key.
    Malformed,
}

/// A record of an object that is put, or removed if there is no value.
pub(super) struct Edit {
    pub(super) key: Arc<ObjectKey>,
    /// The object as it is.
    pub(super) before: Option<Arc<Entry>>,
    pub(super) slot: Slot,
    pub(super) value: Option<Stored>,
    pub(super) revision: Revision,
}

/// Makes entries of records.
#[derive(Debug)]
pub(super) struct Editor {
    pub(super) shared: Arc<Shared>,
    pub(super) kinds: Arc<Kinds>,
    pub(super) labels: LabelSets,
}

impl Editor {
    pub(super) fn place(&self, state: &State, key: &Key) -> Place {
        // Most changes are of objects that are there: their keys need no second look.
        if let Some((tree, path, writer)) = record_at(key)
            && let Some(entry) = state.objects.get(path)
        {
            let slot = Slot::of(tree, writer);
            return Place::Object(entry.key.clone(), Some(entry.clone()), slot);
        }
        let known = |group: &str, plural: &str| self.kinds.known(group, plural);
        if let Some((tree, object, writer)) = ObjectKey::parse_known(key, known) {
            return Place::Object(Arc::new(object), None, Slot::of(tree, writer));
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

    /// Puts a record in its place.
    pub(super) fn put(
        &self,
        (key, before, slot): (Arc<ObjectKey>, Option<Arc<Entry>>, Slot),
        record: &Record,
        revision: Revision,
    ) -> Edit {
        let options = self.shared.options.get(key.kind());
        let value = Some(Stored::new(slot.clone(), record, options));
        Edit {
            key,
            before,
            slot,
            value,
            revision,
        }
    }

    /// What puts these records in their places. Those of kinds that are not known are left out.
    pub(super) fn edits_of(
        &self,
        state: &mut State,
        records: Vec<Record>,
        revision: Revision,
    ) -> Vec<Edit> {
        let mut edits = Vec::with_capacity(records.len());
        for record in records {
            match self.place(state, &record.key) {
                Place::Object(key, before, slot) => {
                    edits.push(self.put((key, before, slot), &record, revision));
                }
                Place::Malformed => set_aside_malformed(state, &record),
                Place::Elsewhere => {}
            }
        }
        edits
    }

    /// Puts new records in place, object by object, and says what is different.
    pub(super) fn edit_all(&mut self, state: &mut State, mut edits: Vec<Edit>) -> Vec<EntryChange> {
        // Records come in the order of trees: those of one object are apart.
        if !edits.is_sorted_by(|a, b| a.key.path() <= b.key.path()) {
            edits.sort_by(|a, b| a.key.path().cmp(b.key.path()));
        }
        let mut changes = Vec::with_capacity(edits.len());
        let mut edits = edits.into_iter().peekable();
        while let Some(first) = edits.next() {
            let mut more = Vec::new();
            while let Some(next) = edits.next_if(|next| next.key == first.key) {
                more.push(next);
            }
            changes.extend(self.edit(state, first, more));
        }
        changes
    }

    /// Puts an object's new records in place. None when nothing is different.
    fn edit(&mut self, state: &mut State, first: Edit, more: Vec<Edit>) -> Option<EntryChange> {
        let (key, before) = (first.key.clone(), first.before.clone());
        let revisions = more.iter().map(|edit| edit.revision);
        let revision = revisions.fold(first.revision, Revision::max);
        let records = merge(before.as_deref(), first, more)?;
        let options = self.shared.options.get(key.kind());
        if let Some(before) = &before {
            for error in before.unreadable() {
                state.set_aside.remove(error.key.as_str());
            }
        }
        let after = records.map(|records| {
            let (key, before) = (key.clone(), before.as_deref());
            Arc::new(Entry::new(key, records, before, &mut self.labels, options))
        });
        state
            .found
            .replace(before.as_deref(), after.as_deref(), options);
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
                for error in entry.unreadable() {
                    let key = error.key.as_str().into();
                    state.set_aside.insert((key, error.clone()));
                }
                state.objects.insert(entry.clone());
            }
            None => {
                state.objects.remove(key.path());
            }
        }
        Some(EntryChange {
            before,
            after,
            revision,
        })
    }
}

/// An object's records after its edits; `Some(None)` when none are left, None when they are what
/// they were.
fn merge(before: Option<&Entry>, first: Edit, more: Vec<Edit>) -> Option<Option<Records>> {
    let differs =
        |old: &Stored, new: &Stored| old.modified != new.modified || old.value != new.value;
    let held: &[Stored] = before.map_or(&[], |before| &before.records);
    if more.is_empty() {
        // The only record of an object, as most are.
        match (held, first.value) {
            ([], Some(new)) => return Some(Some(Records::One([new]))),
            ([], None) => return None,
            ([old], Some(new)) if old.slot == new.slot => {
                return differs(old, &new).then_some(Some(Records::One([new])));
            }
            ([old], None) if old.slot == first.slot => return Some(None),
            (_, value) => return merge_all(held, [Edit { value, ..first }], differs),
        }
    }
    merge_all(held, std::iter::once(first).chain(more), differs)
}

fn merge_all(
    held: &[Stored],
    edits: impl IntoIterator<Item = Edit>,
    differs: impl Fn(&Stored, &Stored) -> bool,
) -> Option<Option<Records>> {
    let mut records = held.to_vec();
    let mut different = false;
    for edit in edits {
        let old = records.iter().position(|held| held.slot == edit.slot);
        match (old, edit.value) {
            (Some(old), Some(new)) => {
                different |= differs(&records[old], &new);
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
    different.then(|| (!records.is_empty()).then(|| Records::new(records)))
}

pub(super) fn record_key(path: &str, slot: &Slot) -> String {
    match slot {
        Slot::Part(writer) => format!("o/{}/{path}/{writer}", Tree::Part.as_str()),
        _ => format!("o/{}/{path}", slot.tree().as_str()),
    }
}

pub(super) fn set_aside_malformed(state: &mut State, record: &Record) {
    let error = RecordError {
        key: record.key.to_string(),
        revision: record.modified,
        reason: "no object of this kind can have this key".to_owned(),
    };
    state
        .malformed
        .insert((record.key.as_str().into(), Arc::new(error)));
}
