//! The names deleted last from a scope of many keys.
//!
//! Whoever deletes rewrites the list under compare, so that it lacks nothing since its `floor`.
//! A list cannot know the index of the commit that writes it: its newest names stand without
//! one, and have that of the list itself.

use serde::{Deserialize, Serialize};

/// As many names as a list keeps; more than one commit can add.
const KEPT: usize = 48;

/// The list as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gone {
    /// Deletes up to this index may be missing.
    floor: u64,
    /// Names below the scope with the index of their delete, oldest first.
    names: Vec<(u64, String)>,
}

impl Gone {
    /// A list that knows nothing up to an index.
    pub(crate) fn from(floor: u64) -> Self {
        Self {
            floor,
            names: Vec::new(),
        }
    }

    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain records are written as JSON")
    }

    /// The list after one more commit, when it stood at `index` before.
    pub(crate) fn and(mut self, index: u64, deleted: impl IntoIterator<Item = String>) -> Self {
        self.stamp(index);
        self.names.extend(deleted.into_iter().map(|name| (0, name)));
        let over = self.names.len().saturating_sub(KEPT);
        for (index, _) in self.names.drain(..over) {
            self.floor = self.floor.max(index);
        }
        self
    }

    fn stamp(&mut self, index: u64) {
        for (at, _) in &mut self.names {
            if *at == 0 {
                *at = index;
            }
        }
    }

    /// What was deleted after an index, when the list stands at `index`; None when the list does
    /// not go back so far.
    pub(crate) fn since(mut self, index: u64, after: u64) -> Option<Vec<(u64, String)>> {
        self.stamp(index);
        if self.floor > after {
            return None;
        }
        self.names.retain(|(at, _)| *at > after);
        Some(self.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_delete_gets_the_index_of_its_commit() {
        let first = Gone::default().and(0, ["a".to_owned()]);
        let second = first.and(10, ["b".to_owned(), "c".to_owned()]);
        let all = vec![
            (10, "a".to_owned()),
            (20, "b".to_owned()),
            (20, "c".to_owned()),
        ];
        assert_eq!(second.clone().since(20, 0), Some(all.clone()));
        assert_eq!(second.clone().since(20, 10), Some(all[1..].to_vec()));
        assert_eq!(second.since(20, 20), Some(Vec::new()));
    }

    #[test]
    fn a_list_that_forgot_says_so() {
        let mut gone = Gone::default();
        for n in 0..200_u64 {
            gone = gone.and(n, [format!("k{n}")]);
        }
        assert_eq!(gone.clone().since(200, 0), None);
        let kept = gone.clone().since(200, 190).unwrap();
        assert_eq!(kept.len(), 10);
        assert_eq!(kept[9], (200, "k199".to_owned()));
        assert_eq!(Gone::read(&gone.write()), Some(gone));
    }
}
