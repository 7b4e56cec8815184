//! Was there an order in which these calls, one at a time, would have given these answers?
//!
//! Calls that overlapped may have happened either way round; calls that did not, happened in
//! their order. The search tries what may have come first, applies it to a model, and goes on
//! from there, never twice from the same point (after Wing and Gong, with Lowe's memory of
//! points that led nowhere). It is exponential in the overlap, so histories are kept short, and
//! calls on unrelated keys are searched apart.

use std::collections::{HashMap, HashSet};

use crate::store::Revision;

/// The most calls that one search takes.
pub(super) const MAX_OPERATIONS: usize = 128;

/// A value, unique in its history.
pub(super) type Value = u64;

/// What a key holds.
pub(super) type Held = Option<(Revision, Value)>;

/// A call on the store. Keys are numbers.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Get(Vec<usize>),
    Commit {
        compares: Vec<(usize, Option<Revision>)>,
        writes: Vec<(usize, Option<Value>)>,
    },
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Read {
        held: Vec<Held>,
        revision: Revision,
    },
    Committed(Revision),
    Conflict(Vec<usize>),
    /// It did not happen.
    Refused,
    /// It may have happened at any time since, or may never.
    Unknown,
}

/// A call, its answer, and when it began and ended.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) began: u64,
    pub(super) ended: u64,
    pub(super) call: Call,
    pub(super) answer: Answer,
}

impl Operation {
    fn keys(&self) -> Vec<usize> {
        match &self.call {
            Call::Get(keys) => keys.clone(),
            Call::Commit { compares, writes } => {
                let compared = compares.iter().map(|(key, _)| *key);
                compared.chain(writes.iter().map(|(key, _)| *key)).collect()
            }
        }
    }

    fn is_unknown(&self) -> bool {
        matches!(self.answer, Answer::Unknown)
    }
}

/// The store as one that does one thing at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Model {
    held: Vec<Held>,
    newest: Revision,
    /// Commits may have their revision in common, though never two of one key.
    shared: bool,
}

impl Model {
    fn failing(&self, compares: &[(usize, Option<Revision>)]) -> Vec<usize> {
        let fails = |(key, expected): &(usize, Option<Revision>)| {
            self.held[*key].map(|(revision, _)| revision) != *expected
        };
        let positions = compares.iter().enumerate();
        positions
            .filter(|(_, compare)| fails(compare))
            .map(|(position, _)| position)
            .collect()
    }

    /// Whether all that is written was last written before a revision.
    fn older(&self, writes: &[(usize, Option<Value>)], revision: Revision) -> bool {
        writes
            .iter()
            .all(|(key, _)| self.held[*key].is_none_or(|(written, _)| written < revision))
    }

    fn write(&mut self, writes: &[(usize, Option<Value>)], at: impl Fn(Value) -> Revision) {
        for (key, value) in writes {
            self.held[*key] = value.map(|value| (at(value), value));
        }
    }

    /// The model after the operation, if the answer is the model's.
    fn after(&self, operation: &Operation, told: &HashMap<Value, Revision>) -> Option<Self> {
        let mut next = self.clone();
        match (&operation.call, &operation.answer) {
            (Call::Get(keys), Answer::Read { held, revision }) => {
                let same = keys
                    .iter()
                    .zip(held)
                    .all(|(key, held)| self.held[*key] == *held);
                next.newest = *revision;
                (same && *revision >= self.newest).then_some(next)
            }
            (Call::Commit { compares, writes }, Answer::Committed(revision)) => {
                next.write(writes, |_| *revision);
                next.newest = *revision;
                // Deletes of absent keys alone need no revision of their own.
                let grown = *revision > self.newest
                    || next.held == self.held
                    || (self.shared && *revision == self.newest && self.older(writes, *revision));
                (grown && self.failing(compares).is_empty()).then_some(next)
            }
            (Call::Commit { compares, .. }, Answer::Conflict(named)) => {
                let failing = self.failing(compares);
                let all_named = failing.iter().all(|position| named.contains(position));
                (!failing.is_empty() && all_named).then_some(next)
            }
            (Call::Commit { compares, writes }, Answer::Unknown) => {
                // Nobody was told its revision; a later read may have shown it.
                let never_seen = |value| Revision::from_u64(u64::MAX - value);
                next.write(writes, |value| {
                    told.get(&value)
                        .copied()
                        .unwrap_or_else(|| never_seen(value))
                });
                self.failing(compares).is_empty().then_some(next)
            }
            (_, Answer::Refused | Answer::Unknown) => Some(next),
            _ => None,
        }
    }
}

/// Searches for an order that explains the history. `shared`: commits may have their revision in
/// common.
///
/// # Errors
/// The calls that no order explains, as text.
pub(super) fn explain(operations: &[Operation], keys: usize, shared: bool) -> Result<(), String> {
    for part in split(operations, keys) {
        search(&part, keys, shared)?;
    }
    Ok(())
}

/// Parts that share no key.
fn split(operations: &[Operation], keys: usize) -> Vec<Vec<Operation>> {
    // Each key points at one it is connected with, in the end at its part's first.
    let mut parent: Vec<usize> = (0..keys).collect();
    fn root(parent: &[usize], mut key: usize) -> usize {
        while parent[key] != key {
            key = parent[key];
        }
        key
    }
    for operation in operations {
        for pair in operation.keys().windows(2) {
            let (a, b) = (root(&parent, pair[0]), root(&parent, pair[1]));
            parent[a.max(b)] = a.min(b);
        }
    }
    let mut parts = vec![Vec::new(); keys];
    for operation in operations {
        if let Some(key) = operation.keys().first() {
            parts[root(&parent, *key)].push(operation.clone());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn search(operations: &[Operation], keys: usize, shared: bool) -> Result<(), String> {
    if operations.len() > MAX_OPERATIONS {
        return Err(format!(
            "{} operations are too many to search",
            operations.len()
        ));
    }
    let mut told = HashMap::new();
    for operation in operations {
        if let Answer::Read { held, .. } = &operation.answer {
            told.extend(
                held.iter()
                    .flatten()
                    .map(|(revision, value)| (*value, *revision)),
            );
        }
    }
    let needed = operations
        .iter()
        .enumerate()
        .filter(|(_, operation)| !operation.is_unknown())
        .fold(0_u128, |mask, (at, _)| mask | 1 << at);
    let start = Model {
        held: vec![None; keys],
        newest: Revision::ZERO,
        shared,
    };
    let mut visited = HashSet::new();
    let mut open = vec![(0_u128, start)];
    let mut furthest = 0_u128;
    while let Some((done, model)) = open.pop() {
        if done & needed == needed {
            return Ok(());
        }
        if done.count_ones() > furthest.count_ones() {
            furthest = done;
        }
        let waiting = |at: usize| done & (1 << at) == 0;
        // What began after another, undone call had ended cannot come before it.
        let first_end = operations
            .iter()
            .enumerate()
            .filter(|(at, operation)| waiting(*at) && !operation.is_unknown())
            .map(|(_, operation)| operation.ended)
            .min()
            .unwrap_or(u64::MAX);
        for (at, operation) in operations.iter().enumerate() {
            if !waiting(at) || operation.began > first_end {
                continue;
            }
            if let Some(next) = model.after(operation, &told) {
                let point = (done | 1 << at, next);
                if visited.insert(point.clone()) {
                    open.push(point);
                }
            }
        }
    }
    let stuck: Vec<&Operation> = operations
        .iter()
        .enumerate()
        .filter(|(at, _)| furthest & (1 << at) == 0)
        .map(|(_, operation)| operation)
        .collect();
    Err(format!(
        "no order of the {} calls explains their answers; the longest leaves {stuck:#?}",
        operations.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(operations: &[Operation], keys: usize) -> Result<(), String> {
        super::explain(operations, keys, false)
    }

    fn at(n: u64) -> Revision {
        Revision::new(0, n)
    }

    fn put(began: u64, ended: u64, key: usize, value: Value, answer: Answer) -> Operation {
        let call = Call::Commit {
            compares: Vec::new(),
            writes: vec![(key, Some(value))],
        };
        Operation {
            began,
            ended,
            call,
            answer,
        }
    }

    fn get(began: u64, ended: u64, held: &[Held], revision: u64) -> Operation {
        Operation {
            began,
            ended,
            call: Call::Get((0..held.len()).collect()),
            answer: Answer::Read {
                held: held.to_vec(),
                revision: at(revision),
            },
        }
    }

    #[test]
    fn overlapping_calls_may_have_happened_either_way_round() {
        let write = put(0, 10, 0, 7, Answer::Committed(at(1)));
        let old = get(1, 2, &[None], 0);
        let new = get(3, 4, &[Some((at(1), 7))], 1);
        assert!(explain(&[write.clone(), old.clone(), new.clone()], 1).is_ok());
        // New, then old, is no order.
        let late_old = get(5, 6, &[None], 0);
        assert!(explain(&[write, new, late_old], 1).is_err());
    }

    #[test]
    fn a_stale_read_has_no_explanation() {
        let write = put(0, 1, 0, 7, Answer::Committed(at(1)));
        assert!(explain(&[write, get(2, 3, &[None], 0)], 1).is_err());
    }

    #[test]
    fn an_unknown_commit_may_land_late_or_never_but_not_twice() {
        let unknown = put(0, 1, 0, 7, Answer::Unknown);
        let none = get(2, 3, &[None], 0);
        let seen = get(4, 5, &[Some((at(1), 7))], 1);
        assert!(explain(&[unknown.clone(), none.clone()], 1).is_ok());
        assert!(explain(&[unknown.clone(), none, seen.clone()], 1).is_ok());
        let over = put(6, 7, 0, 8, Answer::Committed(at(2)));
        let again = get(8, 9, &[Some((at(1), 7))], 3);
        assert!(explain(&[unknown, seen, over, again], 1).is_err());
    }

    #[test]
    fn a_commit_that_was_refused_but_happened_has_no_explanation() {
        let refused = put(0, 1, 0, 7, Answer::Refused);
        let seen = get(2, 3, &[Some((at(1), 7))], 1);
        assert!(explain(&[refused, seen], 1).is_err());
    }

    #[test]
    fn write_skew_has_no_explanation() {
        let skew = |compared: usize, written: usize, revision| Operation {
            began: 0,
            ended: 10,
            call: Call::Commit {
                compares: vec![(compared, None)],
                writes: vec![(written, Some(revision))],
            },
            answer: Answer::Committed(at(revision)),
        };
        assert!(explain(&[skew(0, 1, 1)], 2).is_ok());
        assert!(explain(&[skew(0, 1, 1), skew(1, 0, 2)], 2).is_err());
    }

    #[test]
    fn only_where_revisions_are_shared_two_commits_have_one_and_never_of_one_key() {
        let both = [
            put(0, 9, 0, 7, Answer::Committed(at(1))),
            put(0, 9, 1, 8, Answer::Committed(at(1))),
            get(10, 11, &[Some((at(1), 7)), Some((at(1), 8))], 1),
        ];
        assert!(explain(&both, 2).is_err());
        assert!(super::explain(&both, 2, true).is_ok());
        let one_key = [
            put(0, 9, 0, 7, Answer::Committed(at(1))),
            put(0, 9, 0, 8, Answer::Committed(at(1))),
        ];
        assert!(super::explain(&one_key, 1, true).is_err());
    }

    #[test]
    fn unrelated_keys_are_searched_apart() {
        let operations: Vec<_> = (0..200)
            .map(|n| put(0, 1000, n, n as u64, Answer::Committed(at(n as u64 + 1))))
            .collect();
        assert!(explain(&operations, 200).is_ok());
    }
}
