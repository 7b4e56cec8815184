//! Sets of labels, each kept once however many objects have it: those that one controller made
//! have the same.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use super::header::Labels;

/// The labels of objects.
pub(super) type LabelSet = Arc<BTreeMap<String, String>>;

/// The sets in use.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    hasher: RandomState,
    sets: HashTable<LabelSet>,
    /// From this many sets on, those that nobody uses are dropped.
    sweep_at: usize,
}

const FEWEST: usize = 64;

impl LabelSets {
    fn hash<'p>(hasher: &RandomState, pairs: impl Iterator<Item = (&'p str, &'p str)>) -> u64 {
        hasher.hash_one(pairs.collect::<Vec<_>>())
    }

    fn hash_set(hasher: &RandomState, set: &LabelSet) -> u64 {
        Self::hash(hasher, set.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }

    /// The set of these labels; None of none.
    pub(super) fn get(&mut self, labels: &Labels<'_>) -> Option<LabelSet> {
        let pairs = || labels.0.iter().map(|(k, v)| (&*k.0, &*v.0));
        if labels.0.is_empty() {
            return None;
        }
        let hash = Self::hash(&self.hasher, pairs());
        let same = |set: &LabelSet| {
            let mut both = set.iter().zip(&labels.0);
            set.len() == labels.0.len()
                && both.all(|((name, value), label)| *name == label.0.0 && *value == label.1.0)
        };
        if let Some(set) = self.sets.find(hash, same) {
            return Some(set.clone());
        }
        if self.sets.len() >= self.sweep_at.max(FEWEST) {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.sweep_at = self.sets.len() * 2;
        }
        let owned = pairs().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let set: LabelSet = Arc::new(owned.collect());
        let hasher = &self.hasher;
        let rehash = |set: &LabelSet| Self::hash_set(hasher, set);
        self.sets.insert_unique(hash, set.clone(), rehash);
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(json: &str) -> Labels<'_> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_same_labels_are_one_set_and_those_that_nobody_uses_are_dropped() {
        let mut sets = LabelSets::default();
        assert_eq!(sets.get(&labels("{}")), None);
        let one = sets.get(&labels(r#"{"a":"1","b":"2"}"#)).unwrap();
        let same = sets.get(&labels(r#"{"b":"2","a":"1"}"#)).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        for n in 0..1000 {
            let text = format!(r#"{{"a":"{n}"}}"#);
            let set = sets.get(&labels(&text)).unwrap();
            assert_eq!(set["a"], n.to_string());
        }
        assert!(sets.sets.len() <= 2 * FEWEST, "{}", sets.sets.len());
        let again = sets.get(&labels(r#"{"a":"1","b":"2"}"#)).unwrap();
        assert!(Arc::ptr_eq(&one, &again), "a set in use stays");
    }
}
