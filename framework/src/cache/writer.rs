//! A cache's one writer: takes in what its sources tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::edit::{Edit, Editor, EntryChange, Place, record_key, set_aside_malformed};
use super::entry::{Entry, Slot};
use super::labels::LabelSets;
use super::options::{KindOptions, Options};
use super::reader::{Reader, Shared};
use super::source::{Feed, FirstPage};
use super::view::{State, path_of_kind, record_at};
use crate::model::{GroupPlural, Kinds, Tree};
use crate::store::{Change, Prefix, Record, Revision};

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
    editor: Editor,
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
    let shared = Arc::new(Shared::new(prefixes, options, state));
    let reader = Reader {
        shared: shared.clone(),
    };
    let editor = Editor {
        shared,
        kinds,
        labels: LabelSets::default(),
    };
    let writer = Writer {
        editor,
        begun: BTreeMap::new(),
    };
    (writer, reader)
}

impl Writer {
    /// Mirrors these kinds from now on, and returns those that it did not before: their objects
    /// are in the view when every source was read again. Objects of other kinds are forgotten.
    pub(crate) fn set_kinds(&mut self, kinds: Arc<Kinds>) -> Vec<GroupPlural> {
        let (old, new) = (names(&self.editor.kinds), names(&kinds));
        self.editor.kinds = kinds;
        let mut state = State::clone(&self.editor.shared.state());
        for kind in old.difference(&new) {
            forget(&mut state, kind, self.editor.shared.options.get(kind));
        }
        state.mirrored = new.iter().cloned().collect();
        *self.editor.shared.state() = Arc::new(state);
        for begun in self.begun.values_mut() {
            for kind in old.difference(&new) {
                forget(&mut begun.state, kind, self.editor.shared.options.get(kind));
            }
        }
        new.difference(&old).cloned().collect()
    }

    /// The kinds that are mirrored.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = GroupPlural> {
        names(&self.editor.kinds).into_iter()
    }

    /// Says which kinds are not read whole yet.
    pub(crate) fn set_unread(&mut self, kinds: Vec<GroupPlural>) {
        Arc::make_mut(&mut *self.editor.shared.state()).unread = kinds.into();
    }

    /// Takes in what a source told. All of it is seen at once. None for what is seen only later.
    pub(crate) fn take(&mut self, told: Feed) -> Option<Taken> {
        let mut state = State::clone(&self.editor.shared.state());
        let (mut initial, mut listed) = (false, None);
        let changes = match told {
            Feed::Page(source, page) => {
                self.page(source, page);
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
        self.editor.shared.publish(state);
        Some(Taken {
            changes,
            initial,
            listed,
        })
    }

    /// Takes in a page of a source's first list, which nobody sees before it is complete.
    fn page(&mut self, source: usize, page: FirstPage) {
        let mut begun = self.begun.remove(&source).unwrap_or_default();
        if page.begins {
            begun = Begun::default();
        }
        let Begun { state, elsewhere } = &mut begun;
        self.editor.fill(state, page.records, elsewhere);
        self.begun.insert(source, begun);
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
        let prefix = self.editor.shared.prefixes[source].clone();
        let Begun {
            state: begun,
            mut elsewhere,
        } = self.begun.remove(&source).unwrap_or_default();
        records.append(&mut elsewhere);
        let aside = state.malformed.iter().map(|(key, _)| key.clone());
        let aside = aside.filter(|key| prefix.covers(key));
        for key in aside.collect::<Vec<_>>() {
            state.malformed.remove(&key);
        }
        for malformed in begun.malformed.iter() {
            state.malformed.insert(malformed.clone());
        }
        let edits = self.editor.edits_of(state, records, revision);
        let mut changes = Vec::new();
        if state.objects.is_empty() && edits.is_empty() {
            // The first list of the first source: what was begun is what there is.
            let appeared = begun.objects.iter().map(|entry| EntryChange {
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
        for entry in begun.objects.iter() {
            let before = state.objects.get(entry.key.path());
            edits.extend(entry.records.iter().map(|stored| Edit {
                key: before.map_or(&entry.key, |before| &before.key).clone(),
                before: before.cloned(),
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
                        key: entry.key.clone(),
                        before: Some(entry.clone()),
                        slot: held.slot.clone(),
                        value: None,
                        revision,
                    });
                }
            }
        }
        drop(listed);
        edits.append(&mut gone);
        self.editor.edit_all(state, edits)
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
            match (self.editor.place(state, change.key()), change) {
                (Place::Object(key, before, slot), change) => {
                    let held = before.as_ref().and_then(|entry| entry.stored(&slot));
                    // Delivered again, or older than what a list showed.
                    if held.is_some_and(|held| held.modified >= at) {
                        continue;
                    }
                    edits.push(match change {
                        Change::Put(record) => self.editor.put((key, before, slot), &record, at),
                        Change::Delete { .. } => Edit {
                            key,
                            before,
                            slot,
                            value: None,
                            revision: at,
                        },
                    });
                }
                (Place::Malformed, Change::Put(record)) => set_aside_malformed(state, &record),
                (Place::Malformed, Change::Delete { key, .. }) => {
                    state.malformed.remove(key.as_str());
                }
                (Place::Elsewhere, _) => {}
            }
        }
        let changes = self.editor.edit_all(state, edits);
        reached(state, source, revision);
        changes
    }
}

fn reached(state: &mut State, source: usize, revision: Revision) {
    let mut sources = state.sources.to_vec();
    sources[source] = sources[source].max(Some(revision));
    state.sources = sources.into();
}

fn names(kinds: &Kinds) -> BTreeSet<GroupPlural> {
    let names = kinds.iter().map(|kind| kind.definition.group_plural());
    names.collect()
}

/// Removes all objects of a kind.
fn forget(state: &mut State, kind: &GroupPlural, options: Option<&KindOptions>) {
    let path = path_of_kind(kind);
    let entries: Vec<_> = state.objects.below(&path).cloned().collect();
    for entry in entries {
        state.found.replace(Some(&entry), None, options);
        for error in entry.unreadable() {
            state.set_aside.remove(error.key.as_str());
        }
        state.objects.remove(entry.key.path());
    }
    Arc::make_mut(&mut state.counts).remove(kind);
    let of_kind = Tree::ALL.map(|tree| kind.prefix(tree));
    let malformed = state.malformed.iter().map(|(key, _)| key.clone());
    let malformed = malformed.filter(|key| of_kind.iter().any(|prefix| prefix.covers(key)));
    for key in malformed.collect::<Vec<_>>() {
        state.malformed.remove(&key);
    }
}

/// The entries that may have records under a prefix.
fn known_under(state: &State, prefix: &Prefix) -> Vec<Arc<Entry>> {
    if let Some(key) = prefix.as_key() {
        // A part lies below the path of its object.
        let path = record_at(&key).map_or("", |(_, path, _)| path);
        return state.objects.get(path).cloned().into_iter().collect();
    }
    // `o/<tree>/<path…>`: what is behind the tree is a path; shorter prefixes cover all.
    let path = prefix.as_str().splitn(3, '/').nth(2).unwrap_or("");
    state.objects.below(path).cloned().collect()
}

#[cfg(test)]
mod tests;
