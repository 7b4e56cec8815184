//! Random transactions against a simple model, with restarts in between.

use std::collections::BTreeMap;

use platctrl_framework::store::{
    Compare, Prefix, Record, Revision, Store, StoreError, Transaction,
};
use proptest::prelude::*;

use crate::helpers::{dump, key, next_changes, open, prefix};

const NAMES: [&str; 6] = ["a/x", "a/y", "a/z/w", "b/x", "b/y", "c"];

#[derive(Clone, Debug)]
enum Step {
    Commit {
        compares: Vec<(usize, u8)>,
        writes: Vec<(usize, Option<u8>)>,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let compares = prop::collection::vec((0..NAMES.len(), 0u8..4), 0..2);
    let writes = prop::collection::vec((0..NAMES.len(), prop::option::of(any::<u8>())), 0..4);
    prop_oneof![
        15 => (compares, writes).prop_map(|(compares, writes)| Step::Commit { compares, writes }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Debug, Default)]
struct Model {
    records: BTreeMap<String, Record>,
    revision: Revision,
}

impl Model {
    fn transaction(&self, compares: &[(usize, u8)], writes: &[(usize, Option<u8>)]) -> Transaction {
        let mut transaction = Transaction::new();
        for (name, kind) in compares {
            let name = NAMES[*name];
            let modified = self.records.get(name).map(|record| record.modified);
            transaction = match kind {
                0 => transaction.require_absent(key(name)),
                1 => transaction.require_unchanged(key(name), modified),
                2 => transaction.require_unchanged(key(name), Some(self.revision)),
                _ => {
                    let before = Revision::from_u64(self.revision.as_u64().saturating_sub(2));
                    transaction.require(Compare::RangeNotNewer(prefix("a/"), before))
                }
            };
        }
        let mut written = Vec::new();
        for (name, value) in writes {
            if written.contains(name) {
                continue;
            }
            written.push(*name);
            transaction = match value {
                Some(value) => transaction.put(key(NAMES[*name]), vec![*value; 40]),
                None => transaction.delete(key(NAMES[*name])),
            };
        }
        transaction
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Revision, StoreError> {
        use platctrl_framework::store::Write;
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !self.records.contains_key(key.as_str()),
            Compare::Revision(key, at) => self
                .records
                .get(key.as_str())
                .is_some_and(|r| r.modified == *at),
            Compare::RangeNotNewer(prefix, at) => self
                .records
                .values()
                .all(|record| !record.key.is_under(prefix) || record.modified <= *at),
            _ => unreachable!("not drawn"),
        };
        let failed: Vec<usize> = (0..transaction.compares.len())
            .filter(|i| !holds(&transaction.compares[*i]))
            .collect();
        if !failed.is_empty() {
            return Err(StoreError::Conflict { failed });
        }
        let (revision, mut changed) = (self.revision.next(), false);
        for write in &transaction.writes {
            match write {
                Write::Put { key, value, .. } => {
                    let before = self.records.get(key.as_str());
                    let record = Record {
                        key: key.clone(),
                        value: value.clone(),
                        created: before.map_or(revision, |before| before.created),
                        modified: revision,
                        lease: None,
                    };
                    self.records.insert(key.to_string(), record);
                    changed = true;
                }
                Write::Delete { key } => {
                    changed |= self.records.remove(key.as_str()).is_some();
                }
            }
        }
        if changed {
            self.revision = revision;
        }
        Ok(self.revision)
    }
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut model = Model::default();
    let mut states = vec![model.clone()];
    for step in steps {
        match step {
            Step::Reopen => {
                drop(store);
                store = open(dir.path());
            }
            Step::Commit { compares, writes } => {
                let transaction = model.transaction(&compares, &writes);
                let expected = model.commit(&transaction);
                assert_eq!(store.commit(transaction).await, expected);
                if states.last().unwrap().revision < model.revision {
                    states.push(model.clone());
                }
            }
        }
    }
    for state in &states {
        let expected: Vec<Record> = state.records.values().cloned().collect();
        let found = dump(&store, Some(state.revision), 2).await;
        assert_eq!(found, (expected, state.revision));
    }
    for fresh in [false, true] {
        if fresh {
            drop(store);
            store = open(dir.path());
        }
        let mut watch = store.watch(Prefix::all(), Revision::ZERO);
        for pair in states.windows(2) {
            let (revision, changes) = next_changes(&mut watch).await;
            assert_eq!(revision, pair[1].revision);
            let mut expected = Vec::new();
            for (name, record) in &pair[1].records {
                if record.modified == revision {
                    expected.push(format!("{name}={}", crate::helpers::text(record)));
                }
            }
            for name in pair[0].records.keys() {
                if !pair[1].records.contains_key(name) {
                    expected.push(format!("-{name}"));
                }
            }
            expected.sort_by_key(|change| {
                let name = change.strip_prefix('-').unwrap_or(change);
                name.split('=').next().unwrap().to_owned()
            });
            assert_eq!(changes, expected);
        }
    }
}

#[test]
fn random_transactions_and_restarts_match_a_simple_model() {
    let cases = if std::env::var("PLATCTRL_TEST_SCALE").as_deref() == Ok("full") {
        400
    } else {
        24
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&prop::collection::vec(step(), 1..60), |steps| {
            // Values are bytes; those above 127 are no text, so they are cut to text here.
            let steps = steps
                .into_iter()
                .map(|step| match step {
                    Step::Commit { compares, writes } => Step::Commit {
                        compares,
                        writes: writes
                            .into_iter()
                            .map(|(k, v)| (k, v.map(|v| v & 0x7f)))
                            .collect(),
                    },
                    Step::Reopen => Step::Reopen,
                })
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(run(steps));
            Ok(())
        })
        .unwrap();
}
