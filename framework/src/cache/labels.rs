//! Sets of labels, each kept once however many objects have it: those that one controller made
//! have the same.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
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
        let mut hash = hasher.build_hasher();
        pairs.for_each(|pair| pair.hash(&mut hash));
        hash.finish()
    }

    fn hash_set(hasher: &RandomState, set: &LabelSet) -> u64 {
        Self::hash(hasher, set.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }

    /// The set of these labels; None of none. Mostly it is the one that the object had `before`.
    pub(super) fn get(
        &mut self,
        labels: &Labels<'_>,
        before: Option<&LabelSet>,
    ) -> Option<LabelSet> {
        let pairs = || labels.0.iter().map(|(k, v)| (&*k.0, &*v.0));
        if labels.0.is_empty() {
            return None;
        }
        let same = |set: &LabelSet| {
            let mut both = set.iter().zip(&labels.0);
            set.len() == labels.0.len()
                && both.all(|((name, value), label)| *name == label.0.0 && *value == label.1.0)
        };
        if let Some(before) = before.filter(|before| same(before)) {
            return Some(before.clone());
        }
        let hash = Self::hash(&self.hasher, pairs());
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
        assert_eq!(sets.get(&labels("{}"), None), None);
        let one = sets.get(&labels(r#"{"a":"1","b":"2"}"#), None).unwrap();
        let same = sets.get(&labels(r#"{"b":"2","a":"1"}"#), None).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        for n in 0..1000 {
            let text = format!(r#"{{"a":"{n}"}}"#);
            let set = sets.get(&labels(&text), None).unwrap();
            assert_eq!(set["a"], n.to_string());
        }
        assert!(sets.sets.len() <= 2 * FEWEST, "{}", sets.sets.len());
        let again = sets.get(&labels(r#"{"a":"1","b":"2"}"#), None).unwrap();
        assert!(Arc::ptr_eq(&one, &again), "a set in use stays");
    }
}
