//! Rounds of commits that meet in a pipeline, on a store where anything goes wrong, held against
//! a model that does one thing at a time. The model is shown to catch pipelines that are wrong.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::FutureExt as _;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::*;
use crate::store::Write;

const KEYS: [&str; 4] = ["o/a/1", "o/a/2", "o/b/1", "o/b/2"];
const PREFIXES: [&str; 2] = ["o/a/", "o/b/"];
/// Nobody may write here, in some rounds.
const DENIED: &str = "o/b/";

/// What a commit of a round compares and writes, by positions in [`KEYS`] and [`PREFIXES`].
#[derive(Clone, Debug)]
struct Plan {
    compares: Vec<Condition>,
    /// A put if true.
    writes: BTreeMap<usize, bool>,
    dropped: bool,
}

#[derive(Clone, Copy, Debug)]
enum Condition {
    Absent(usize),
    /// As it was when the round began; else as it never was.
    Unchanged(usize, bool),
    Range(usize, bool),
}

#[derive(Clone, Debug)]
struct Round {
    there: [bool; 4],
    commits: Vec<Plan>,
    faults: Vec<Option<Fault>>,
    deny: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let condition = prop_oneof![
        2 => (0..4_usize).prop_map(Condition::Absent),
        4 => (0..4_usize, prop::bool::weighted(0.8)).prop_map(|(k, now)| Condition::Unchanged(k, now)),
        1 => (0..2_usize, prop::bool::weighted(0.8)).prop_map(|(p, now)| Condition::Range(p, now)),
    ];
    let compares = prop::collection::vec(condition, 0..3);
    let writes = prop::collection::btree_map(0..4_usize, prop::bool::weighted(0.7), 0..3);
    (compares, writes, prop::bool::weighted(0.15)).prop_map(|(compares, writes, dropped)| Plan {
        compares,
        writes,
        dropped,
    })
}

fn round() -> impl Strategy<Value = Round> {
    let fault = prop_oneof![
        12 => Just(None),
        1 => Just(Some(Fault::Applied)),
        1 => Just(Some(Fault::Lost)),
        1 => Just(Some(Fault::Delayed)),
        1 => Just(Some(Fault::Unavailable)),
    ];
    let there = any::<[bool; 4]>();
    let commits = prop::collection::vec(plan(), 2..6);
    let faults = prop::collection::vec(fault, 8);
    (there, commits, faults, prop::bool::weighted(0.25)).prop_map(
        |(there, commits, faults, deny)| Round {
            there,
            commits,
            faults,
            deny,
        },
    )
}

fn key(n: usize) -> Key {
    Key::new(KEYS[n]).unwrap()
}

fn prefix(n: usize) -> Prefix {
    Prefix::new(PREFIXES[n]).unwrap()
}

/// What the keys held when the round began.
type Begin = HashMap<usize, Revision>;

fn transaction(plan: &Plan, at: usize, begin: &Begin, now: Revision) -> Transaction {
    let mut transaction = Transaction::new();
    for condition in &plan.compares {
        transaction = transaction.require(match *condition {
            Condition::Absent(n) => Compare::Absent(key(n)),
            Condition::Unchanged(n, as_it_was) => {
                let never = Revision::new(0, 1 << 40);
                let was = begin.get(&n).copied().filter(|_| as_it_was);
                Compare::Revision(key(n), was.unwrap_or(never))
            }
            Condition::Range(n, true) => Compare::RangeNotNewer(prefix(n), now),
            Condition::Range(n, false) => Compare::RangeNotNewer(prefix(n), Revision::ZERO),
        });
    }
    for (n, put) in &plan.writes {
        transaction = if *put {
            transaction.put(key(*n), format!("{at}"))
        } else {
            transaction.delete(key(*n))
        };
    }
    transaction
}

/// Everything that a round came to.
#[derive(Debug)]
struct Seen {
    transactions: Vec<Transaction>,
    /// None: the caller did not wait for it.
    answers: Vec<Option<Result<Revision>>>,
    begin: BTreeMap<Key, (Bytes, Revision)>,
    end: BTreeMap<Key, Bytes>,
    counts: PipelineCounts,
    /// Whether the store said so to anybody.
    unknown: bool,
    unavailable: bool,
}

async fn play(round: &Round, rules: Rules) -> Seen {
    let mut options = MemoryOptions::default();
    options.limits.max_compares = 6;
    options.limits.max_writes = 6;
    let memory = MemoryStore::with_options(Environment::system(), options);
    let mut begin = Begin::new();
    for n in (0..4).filter(|n| round.there[*n]) {
        let put = Transaction::new().put(key(n), "begin");
        begin.insert(n, memory.commit(put).await.unwrap());
    }
    let snapshot = memory.dump();
    let now = memory.revision();
    if round.deny {
        memory.faults().deny_writes(Prefix::new(DENIED).unwrap());
    }
    let rough = Rough::new(&memory, round.faults.clone());
    let pipeline = Pipeline::with_rules(rough.clone(), 1, rules);
    let plug = Transaction::new().put(Key::new("x/plug").unwrap(), "x");
    let mut plug = pipeline.commit(plug);
    assert!((&mut plug).now_or_never().is_none());
    let transactions: Vec<Transaction> = (round.commits.iter().enumerate())
        .map(|(at, plan)| transaction(plan, at, &begin, now))
        .collect();
    let commits = transactions
        .iter()
        .zip(&round.commits)
        .map(|(commit, plan)| {
            let mut commit = pipeline.commit(commit.clone());
            let first = (&mut commit).now_or_never();
            assert!(first.is_none(), "nothing is answered before it was sent");
            let dropped = plan.dropped;
            async move {
                // Some go away while they wait, some when they were sent.
                if dropped {
                    drop(commit);
                    return None;
                }
                // A caller that never learns what came of it is a failure, not a test that hangs.
                let patience = Duration::from_secs(3600);
                Some(
                    tokio::time::timeout(patience, commit)
                        .await
                        .expect("an answer"),
                )
            }
        });
    // Nothing is polled before all of them wait.
    let commits: Vec<_> = commits.collect();
    let mut answers = Vec::new();
    for commit in commits {
        answers.push(commit.await);
    }
    plug.await.unwrap();
    memory.faults().allow_all();
    let delayed = std::mem::take(&mut *rough.delayed.lock().unwrap());
    for transaction in delayed {
        let _ = memory.commit(transaction).await;
    }
    let objects = |record: &crate::store::Record| record.key.as_str().starts_with("o/");
    let value = |record: crate::store::Record| (record.key, (record.value, record.modified));
    let end = memory.dump().into_iter().filter(objects).map(value);
    Seen {
        transactions,
        answers,
        begin: snapshot.into_iter().map(value).collect(),
        end: end.map(|(key, (value, _))| (key, value)).collect(),
        counts: pipeline.counts(),
        unknown: rough.unknown.load(Ordering::Relaxed) > 0,
        unavailable: rough.unavailable.load(Ordering::Relaxed) > 0,
    }
}

/// The store as one that does one thing at a time. What was written in the round has no revision
/// that anybody could compare.
#[derive(Clone)]
struct Model(BTreeMap<Key, (Bytes, Option<Revision>)>);

impl Model {
    fn failing(&self, transaction: &Transaction) -> Vec<usize> {
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !self.0.contains_key(key),
            Compare::Revision(key, revision) => {
                self.0.get(key).and_then(|(_, at)| *at) == Some(*revision)
            }
            Compare::RangeNotNewer(range, revision) => (self.0.iter())
                .filter(|(key, _)| key.is_under(range))
                .all(|(_, (_, at))| at.is_some_and(|at| at <= *revision)),
            Compare::ClaimHeld { .. } => unreachable!("no round has one"),
        };
        let compares = transaction.compares.iter().enumerate();
        compares
            .filter(|(_, compare)| !holds(compare))
            .map(|(at, _)| at)
            .collect()
    }

    fn write(&mut self, transaction: &Transaction) {
        for write in &transaction.writes {
            match write {
                Write::Put { key, value, .. } => {
                    self.0.insert(key.clone(), (value.clone(), None));
                }
                Write::Delete { key } => {
                    self.0.remove(key);
                }
            }
        }
    }
}

/// Is there an order, one commit after the other, that gives these answers and this end?
fn is_explained(seen: &Seen, model: &Model, open: &mut Vec<usize>) -> bool {
    let done = |at: &usize| {
        !matches!(
            seen.answers[*at],
            None | Some(Err(StoreError::Unknown { .. }))
        )
    };
    if !open.iter().any(done) {
        let end: BTreeMap<_, _> = (model.0.iter())
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .collect();
        if end == seen.end {
            return true;
        }
    }
    for place in 0..open.len() {
        let at = open.remove(place);
        let transaction = &seen.transactions[at];
        let failing = model.failing(transaction);
        let next = match &seen.answers[at] {
            Some(Ok(_)) | None | Some(Err(StoreError::Unknown { .. })) => {
                failing.is_empty().then(|| {
                    let mut next = model.clone();
                    next.write(transaction);
                    next
                })
            }
            Some(Err(StoreError::Conflict { failed })) => {
                (*failed == failing && !failing.is_empty()).then(|| model.clone())
            }
            Some(Err(StoreError::Denied { .. })) => {
                let denied = |write: &Write| write.key().as_str().starts_with(DENIED);
                transaction.writes.iter().any(denied).then(|| model.clone())
            }
            Some(Err(StoreError::Unavailable { .. })) => Some(model.clone()),
            Some(Err(_)) => None,
        };
        let found = next.is_some_and(|next| is_explained(seen, &next, open));
        open.insert(place, at);
        if found {
            return true;
        }
    }
    false
}

/// Plays a round and holds it against the model.
fn check(round: &Round, rules: Rules) -> std::result::Result<PipelineCounts, TestCaseError> {
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        executor.block_on(play(round, rules))
    }))
    .map_err(|_| TestCaseError::fail("a commit was never answered"))?;
    for answer in seen.answers.iter().flatten() {
        match answer {
            Err(StoreError::Unknown { .. }) => prop_assert!(seen.unknown, "made up: {seen:#?}"),
            Err(StoreError::Unavailable { .. }) => {
                prop_assert!(seen.unavailable, "made up: {seen:#?}");
            }
            _ => {}
        }
    }
    let begin = (seen.begin.iter())
        .map(|(key, (value, at))| (key.clone(), (value.clone(), Some(*at))))
        .collect();
    let mut open = (0..seen.answers.len()).collect();
    prop_assert!(
        is_explained(&seen, &Model(begin), &mut open),
        "no order explains {seen:#?}"
    );
    Ok(seen.counts)
}

const GOOD: Rules = Rules {
    join: Draft::join,
    settle,
};

#[test]
fn every_outcome_is_that_of_some_order_whatever_goes_wrong() {
    let config = Config {
        cases: 3_000,
        failure_persistence: None,
        ..Config::default()
    };
    let (shared, again) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&round(), |round| {
        let counts = check(&round, GOOD)?;
        let saved = counts.commits + counts.again > counts.transactions;
        shared.fetch_add(usize::from(saved), Ordering::Relaxed);
        again.fetch_add(usize::from(counts.again > 0), Ordering::Relaxed);
        Ok(())
    });
    outcome.unwrap();
    let (shared, again) = (shared.into_inner(), again.into_inner());
    assert!(
        shared > 500 && again > 200,
        "{shared} rounds shared, {again} split"
    );
}

/// Whether some round shows that these rules are wrong.
fn is_caught(rules: Rules) {
    let config = Config {
        cases: 20_000,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(config, random);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = runner.run(&round(), |round| check(&round, rules).map(drop));
    std::panic::set_hook(hook);
    assert!(
        matches!(outcome, Err(TestError::Fail(..))),
        "not caught: {outcome:?}"
    );
}

#[test]
fn a_pipeline_that_shares_dependent_commits_is_caught() {
    is_caught(Rules {
        join: |draft, commit| {
            let may =
                draft.is_empty() || (draft.writes_apart_from(commit) && draft.has_room_for(commit));
            may.then(|| draft.add(commit)).is_some()
        },
        ..GOOD
    });
}

#[test]
fn a_pipeline_that_does_not_see_range_compares_is_caught() {
    is_caught(Rules {
        join: |draft, commit| {
            let mut blind = commit.clone();
            let range = |compare: &Compare| matches!(compare, Compare::RangeNotNewer(..));
            blind.compares.retain(|compare| !range(compare));
            let may =
                draft.is_empty() || (draft.is_independent_of(&blind) && draft.has_room_for(commit));
            may.then(|| {
                draft.add(commit);
                draft.ranges.clear();
            })
            .is_some()
        },
        ..GOOD
    });
}

#[test]
fn a_pipeline_that_tells_everybody_of_ones_conflict_is_caught() {
    is_caught(Rules {
        settle: |_, _| Settled::Same,
        ..GOOD
    });
}

#[test]
fn a_pipeline_that_repeats_what_may_have_happened_is_caught() {
    is_caught(Rules {
        settle: |outcome, compares_of| match outcome {
            Err(StoreError::Unknown { .. }) if compares_of.len() > 1 => Settled::Again {
                alone: (0..compares_of.len()).collect(),
                together: Vec::new(),
            },
            _ => settle(outcome, compares_of),
        },
        ..GOOD
    });
}

#[test]
fn a_pipeline_that_forgets_the_members_nobody_named_is_caught() {
    is_caught(Rules {
        settle: |outcome, compares_of| match settle(outcome, compares_of) {
            Settled::Again { alone, .. } => Settled::Again {
                alone,
                together: Vec::new(),
            },
            same => same,
        },
        ..GOOD
    });
}

#[test]
fn a_pipeline_that_tells_everybody_what_one_may_not_do_is_caught() {
    is_caught(Rules {
        settle: |outcome, compares_of| match outcome {
            Err(StoreError::Denied { .. }) => Settled::Same,
            _ => settle(outcome, compares_of),
        },
        ..GOOD
    });
}
