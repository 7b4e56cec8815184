//! An object as it is mirrored: its records, as the bytes they are stored as.

use platctrl_framework::model::{
    Intent, Joined, ObjectKey, RawObject, Reality, RecordError, Versioned,
};
use platctrl_framework::store::{Record, Revision};

/// Which of an object's records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Intent,
    Reality,
    Part(String),
}

/// An object's records.
#[derive(Clone, Debug)]
pub(in crate::server) struct Item {
    pub(super) key: ObjectKey,
    /// In the order of their slots, and in no more room than they need: there are hundreds of
    /// thousands of them, with two records as a rule.
    records: Vec<(Slot, Record)>,
}

impl Item {
    pub(super) fn new(key: ObjectKey) -> Self {
        Self {
            key,
            records: Vec::new(),
        }
    }

    fn place(&self, slot: &Slot) -> Result<usize, usize> {
        self.records.binary_search_by(|(there, _)| there.cmp(slot))
    }

    pub(super) fn get(&self, slot: &Slot) -> Option<&Record> {
        let (_, record) = self.records.get(self.place(slot).ok()?)?;
        Some(record)
    }

    pub(super) fn has_intent(&self) -> bool {
        self.get(&Slot::Intent).is_some()
    }

    pub(super) fn put(&mut self, slot: Slot, record: Record) {
        match self.place(&slot) {
            Ok(place) => {
                if let Some((_, there)) = self.records.get_mut(place) {
                    *there = record;
                }
            }
            Err(place) => {
                self.records.reserve_exact(1);
                self.records.insert(place, (slot, record));
            }
        }
    }

    pub(super) fn remove(&mut self, slot: &Slot) {
        if let Ok(place) = self.place(slot) {
            self.records.remove(place);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What tells one state of it from another: how many records, and the newest of them.
    pub(super) fn state(&self) -> (usize, Option<Revision>) {
        let revisions = self.records.iter().map(|(_, record)| record.modified);
        (self.records.len(), revisions.max())
    }

    pub(super) fn bytes(&self) -> usize {
        let bytes = |(_, record): &(Slot, Record)| record.value.len() + 128;
        self.records.iter().map(bytes).sum()
    }

    /// Its records together, without those that cannot be read, of which `unreadable` is told.
    pub(super) fn joined(&self, mut unreadable: impl FnMut(RecordError)) -> Joined {
        let mut joined = Joined::empty(self.key.clone());
        for (slot, record) in &self.records {
            match slot {
                Slot::Intent => {
                    let intent = Versioned::<Intent>::from_record(&self.key, record);
                    joined.intent = intent.map_err(&mut unreadable).ok();
                }
                Slot::Reality => {
                    let reality = Versioned::<Reality>::from_record(&self.key, record);
                    joined.reality = reality.map_err(&mut unreadable).ok();
                }
                Slot::Part(writer) => {
                    let part = Versioned::<Reality>::from_record(&self.key, record);
                    if let Ok(part) = part.map_err(&mut unreadable) {
                        joined.parts.insert(writer.clone(), part);
                    }
                }
            }
        }
        joined
    }

    /// The object as it is shown; None without a readable intent.
    pub(super) fn object(&self) -> Option<RawObject> {
        // An unreadable record is told by lists; here it says nothing.
        self.joined(|_| {}).object()
    }
}
