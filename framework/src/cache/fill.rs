//! Taking in a first list, which is most of what a start costs.
//!
//! A list comes in the order of keys, so that nearly every record is the first of an object that
//! lies behind all others: nothing has to be looked for, compared or moved to make room for it.
//! Whatever is in the least otherwise (the second tree, a part, another order) goes the way of
//! any change.

use std::sync::Arc;

use super::edit::{Edit, Editor, Place, set_aside_malformed};
use super::entry::{Entry, Records, Slot, Stored};
use super::options::KindOptions;
use super::view::{State, record_at};
use crate::model::{GroupPlural, ObjectKey, Scope};
use crate::store::{Key, Record, Revision};

/// The kind of the record before, which is mostly that of the next one.
struct Recent<'o> {
    kind: GroupPlural,
    scope: Scope,
    options: Option<&'o KindOptions>,
    /// Objects of it that were added and are not counted yet.
    added: usize,
}

impl Recent<'_> {
    fn count_in(&mut self, state: &mut State) {
        let added = std::mem::take(&mut self.added);
        if added > 0 {
            let counts = Arc::make_mut(&mut state.counts);
            *counts.entry(self.kind.clone()).or_default() += added;
        }
    }
}

/// The key of a record that may be the first of an object behind all that are known.
fn behind_all(state: &State, key: &Key) -> bool {
    record_at(key).is_some_and(|(_, path, _)| state.objects.is_behind(path))
}

impl Editor {
    /// Adds a page of a first list. Records of kinds that are not known go to `elsewhere`.
    pub(super) fn fill(
        &mut self,
        state: &mut State,
        records: Vec<Record>,
        elsewhere: &mut Vec<Record>,
    ) {
        let shared = self.shared.clone();
        let mut recent: Option<Recent<'_>> = None;
        let mut edits: Vec<Edit> = Vec::new();
        for record in records {
            let behind_all = behind_all(state, &record.key);
            let known = |group: &str, plural: &str| {
                let same = |recent: &&mut Recent<'_>| {
                    *recent.kind.plural == *plural && *recent.kind.group == *group
                };
                if let Some(recent) = recent.as_mut().filter(same) {
                    return Some((recent.kind.clone(), recent.scope));
                }
                let (kind, scope) = self.kinds.known(group, plural)?;
                if let Some(recent) = &mut recent {
                    recent.count_in(state);
                }
                recent = Some(Recent {
                    options: shared.options.get(&kind),
                    kind: kind.clone(),
                    scope,
                    added: 0,
                });
                Some((kind, scope))
            };
            if behind_all
                && let Some((tree, key, writer)) = ObjectKey::parse_known(&record.key, known)
                && let Some(recent) = &mut recent
            {
                recent.added += 1;
                let slot = Slot::of(tree, writer);
                self.append(state, key, slot, &record, recent.options);
                continue;
            }
            match self.place(state, &record.key) {
                Place::Object(key, before, slot) => {
                    edits.push(self.put((key, before, slot), &record, Revision::ZERO));
                }
                Place::Malformed => set_aside_malformed(state, &record),
                Place::Elsewhere => elsewhere.push(record),
            }
        }
        if let Some(recent) = &mut recent {
            recent.count_in(state);
        }
        if !edits.is_empty() {
            self.edit_all(state, edits);
        }
    }

    fn append(
        &mut self,
        state: &mut State,
        key: ObjectKey,
        slot: Slot,
        record: &Record,
        options: Option<&KindOptions>,
    ) {
        let records = Records::One([Stored::new(slot, record, options)]);
        let entry = Entry::new(Arc::new(key), records, None, &mut self.labels, options);
        state.found.replace(None, Some(&entry), options);
        for error in entry.unreadable() {
            let key = error.key.as_str().into();
            state.set_aside.insert((key, error.clone()));
        }
        state.objects.append(Arc::new(entry));
    }
}
