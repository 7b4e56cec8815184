//! What the outcome of a transaction means for each of the commits in it. Pure.

use crate::store::{Result, Revision, StoreError};

/// What is to become of the members of a transaction, by their positions in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The outcome is each member's own.
    Same,
    /// Nothing was written. These go again by themselves, those together.
    Again {
        alone: Vec<usize>,
        together: Vec<usize>,
    },
}

/// Judges an outcome. `compares_of` tells where each member's compares are.
pub(super) fn settle(outcome: &Result<Revision>, compares_of: &[Vec<usize>]) -> Settled {
    if compares_of.len() < 2 {
        return Settled::Same;
    }
    let all = 0..compares_of.len();
    match outcome {
        // All of it happened, or none, or nobody knows.
        Ok(_) | Err(StoreError::Unavailable { .. } | StoreError::Unknown { .. }) => Settled::Same,
        Err(StoreError::Conflict { failed }) => {
            // A backend may name compares that did hold, so even a named member is not refused
            // before it was judged by itself.
            let named = |member: &usize| compares_of[*member].iter().any(|at| failed.contains(at));
            let (alone, together): (Vec<_>, Vec<_>) = all.clone().partition(named);
            if alone.is_empty() {
                let alone = all.collect();
                return Settled::Again {
                    alone,
                    together: Vec::new(),
                };
            }
            Settled::Again { alone, together }
        }
        // Somebody may not write, has a lease that ended, or is too much: only they shall know.
        Err(_) => Settled::Again {
            alone: all.collect(),
            together: Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_with_a_named_compare_go_alone() {
        let conflict = Err(StoreError::Conflict { failed: vec![1, 4] });
        let compares_of = [vec![0, 1], vec![2], vec![], vec![0, 4]];
        let again = Settled::Again {
            alone: vec![0, 3],
            together: vec![1, 2],
        };
        assert_eq!(settle(&conflict, &compares_of), again);
    }

    #[test]
    fn a_conflict_that_names_nobody_sends_everybody_alone() {
        let conflict = Err(StoreError::Conflict { failed: vec![9] });
        let again = Settled::Again {
            alone: vec![0, 1],
            together: Vec::new(),
        };
        assert_eq!(settle(&conflict, &[vec![0], vec![1]]), again);
    }

    #[test]
    fn a_single_member_has_the_outcome_whatever_it_is() {
        let conflict = Err(StoreError::Conflict { failed: vec![0] });
        assert_eq!(settle(&conflict, &[vec![0]]), Settled::Same);
    }
}
