//! Cases with many clients at once, on several threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::history::{Answer, Call, Held, MAX_OPERATIONS, Operation, explain};
use super::kit::{Check, Hook, Stop, Subject, ensure, key, prefix};
use crate::store::{
    Compare, Key, LeaseId, ListRequest, Record, Revision, Store, StoreError, Transaction,
};

/// Clients at once.
const CLIENTS: usize = 5;

fn number(record: &Record) -> u64 {
    let text = std::str::from_utf8(&record.value).unwrap_or_default();
    text.parse().unwrap_or(u64::MAX)
}

/// Steps aside now and then, so that clients interleave on one thread as well.
async fn pause(random: &mut StdRng) {
    for _ in 0..random.random_range(0..3) {
        tokio::task::yield_now().await;
    }
}

/// Runs one future per client and gathers what they return.
async fn clients<T, F>(count: usize, client: impl Fn(usize) -> F) -> Check<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Check<T>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for number in 0..count {
        running.spawn(client(number));
    }
    let mut answers = Vec::new();
    while let Some(answer) = running.join_next().await {
        answers.push(answer??);
    }
    Ok(answers)
}

pub(super) async fn a_get_of_many_keys_is_never_torn(subject: Subject) -> Check {
    let most = subject.store.capabilities().limits.max_writes.min(8);
    let keys: Vec<Key> = (0..most)
        .map(|n| key(format!("o/{n}")))
        .collect::<Result<_, _>>()?;
    let store = &subject.store;
    clients(CLIENTS, |client| {
        let (store, keys) = (Arc::clone(store), keys.clone());
        async move {
            let mut random = StdRng::seed_from_u64(client as u64);
            for n in 0..60 {
                pause(&mut random).await;
                if client % 2 == 0 {
                    let value = format!("{client}-{n}");
                    let mut transaction = Transaction::new();
                    for key in &keys {
                        transaction = transaction.put(key.clone(), value.clone());
                    }
                    store.commit(transaction).await?;
                    continue;
                }
                let snapshot = store.get(&keys).await?;
                let page = store.list(&ListRequest::new(prefix("o/")?)).await?;
                let listed = page.records.into_iter().map(Some).collect();
                for (how, records, revision) in [
                    ("get", snapshot.records, snapshot.revision),
                    ("list", listed, page.revision),
                ] {
                    let state = |record: &Option<Record>| {
                        record
                            .as_ref()
                            .map(|record| (record.modified, record.value.clone()))
                    };
                    let one = records
                        .windows(2)
                        .all(|pair| state(&pair[0]) == state(&pair[1]));
                    ensure!(one, "a {how} at {revision} is torn: {records:?}");
                }
            }
            Ok(())
        }
    })
    .await?;
    Ok(())
}

pub(super) async fn concurrent_commits_have_revisions_of_their_own(subject: Subject) -> Check {
    if subject.store.capabilities().shared_revisions {
        return Err(Stop::does_not_apply("commits may share a revision"));
    }
    let store = &subject.store;
    let revisions = clients(CLIENTS, |client| {
        let store = Arc::clone(store);
        async move {
            let mut revisions = Vec::new();
            for n in 0..40 {
                let put = Transaction::new().put(key(format!("o/{client}/{n}"))?, "x");
                let revision = store.commit(put).await?;
                ensure!(
                    revisions.last().is_none_or(|last| *last < revision),
                    "{revision} after {revisions:?}"
                );
                revisions.push(revision);
            }
            Ok(revisions)
        }
    })
    .await?;
    let mut all = revisions.concat();
    all.sort();
    let count = all.len();
    all.dedup();
    ensure!(
        all.len() == count,
        "{} revisions for {count} commits",
        all.len()
    );
    Ok(())
}

pub(super) async fn concurrent_increments_lose_nothing(subject: Subject) -> Check {
    subject.put("o/counter", "0").await?;
    let store = &subject.store;
    let won = clients(CLIENTS, |client| {
        let store = Arc::clone(store);
        async move {
            let mut random = StdRng::seed_from_u64(client as u64);
            let counter = key("o/counter")?;
            let mut won = 0_u64;
            for _ in 0..40 {
                let snapshot = store.get(std::slice::from_ref(&counter)).await?;
                let Some(Some(record)) = snapshot.records.first() else {
                    return Err(Stop::failed("o/counter is missing"));
                };
                pause(&mut random).await;
                let increment = Transaction::new()
                    .require_unchanged(counter.clone(), Some(record.modified))
                    .put(counter.clone(), (number(record) + 1).to_string());
                match store.commit(increment).await {
                    Ok(_) => won += 1,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(won)
        }
    })
    .await?;
    let won: u64 = won.iter().sum();
    let counted = number(&subject.existing("o/counter").await?);
    ensure!(
        counted == won,
        "{won} increments were acknowledged, {counted} counted"
    );
    ensure!(won > 0, "no increment won");
    Ok(())
}

pub(super) async fn write_skew_is_impossible(subject: Subject) -> Check {
    subject.put("o/a", "x").await?;
    subject.put("o/b", "x").await?;
    for round in 0..100 {
        // Both saw the same state; each relies on what the other changes.
        let keys = [key("o/a")?, key("o/b")?];
        let snapshot = subject.store.get(&keys).await?;
        let seen: Vec<Option<Revision>> = snapshot
            .records
            .iter()
            .map(|record| record.as_ref().map(|record| record.modified))
            .collect();
        let store = &subject.store;
        let (keys, seen) = (&keys, &seen);
        let won = clients(2, |client| {
            let store = Arc::clone(store);
            let other = 1 - client;
            let transaction = Transaction::new()
                .require_unchanged(keys[other].clone(), seen[other])
                .put(keys[client].clone(), round.to_string());
            async move {
                match store.commit(transaction).await {
                    Ok(_) => Ok(1),
                    Err(StoreError::Conflict { .. }) => Ok(0),
                    Err(error) => Err(error.into()),
                }
            }
        })
        .await?;
        let won: u32 = won.iter().sum();
        ensure!(
            won == 1,
            "{won} of two that exclude each other were committed"
        );
    }
    Ok(())
}

/// A claim as it was won.
#[derive(Clone, Copy, Debug)]
struct Won {
    epoch: Revision,
    lease: LeaseId,
}

pub(super) async fn no_two_holders_pass_the_claim_compare(subject: Subject) -> Check {
    let store = &subject.store;
    let claimed = clients(CLIENTS, |client| {
        let store = Arc::clone(store);
        async move { hold_and_lose(store.as_ref(), client).await }
    })
    .await?;
    let mut epochs = Vec::new();
    let mut writes = Vec::new();
    let mut refused = 0;
    for (won, written, lost) in claimed {
        epochs.extend(won);
        writes.extend(written);
        refused += lost;
    }
    epochs.sort();
    for (revision, epoch) in &writes {
        let behind = epochs.partition_point(|won| won <= revision);
        let holder = behind.checked_sub(1).map(|at| epochs[at]);
        ensure!(
            holder == Some(*epoch),
            "at {revision} the claim of {epoch} passed, when that of {holder:?} held"
        );
    }
    ensure!(
        !writes.is_empty() && refused > 0 && epochs.len() > CLIENTS,
        "{} writes under {} claims, {refused} refused: too few to tell",
        writes.len(),
        epochs.len()
    );
    Ok(())
}

/// One contender, who also goes on writing under every claim it has lost. Returns the epochs it
/// won, its writes that passed with their claim's epoch, and how many were refused.
async fn hold_and_lose(
    store: &dyn Store,
    client: usize,
) -> Check<(Vec<Revision>, Vec<(Revision, Revision)>, usize)> {
    let mut random = StdRng::seed_from_u64(client as u64);
    let claim = key("x/lease/c")?;
    let mut all: Vec<Won> = Vec::new();
    let (mut epochs, mut writes, mut refused) = (Vec::new(), Vec::new(), 0);
    let mut lease = store.grant_lease(Duration::from_secs(600)).await?.id;
    for round in 0..60 {
        pause(&mut random).await;
        let win = Transaction::new()
            .require_absent(claim.clone())
            .put_with_lease(claim.clone(), client.to_string(), lease);
        match store.commit(win).await {
            Ok(epoch) => {
                epochs.push(epoch);
                all.push(Won { epoch, lease });
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        for Won { epoch, lease } in all.iter().rev().take(4) {
            let write = Transaction::new()
                .require(Compare::ClaimHeld {
                    key: claim.clone(),
                    epoch: *epoch,
                    lease: *lease,
                })
                .put(key("o/guarded")?, format!("{client}-{round}"));
            match store.commit(write).await {
                Ok(revision) => writes.push((revision, *epoch)),
                Err(StoreError::Conflict { .. }) => refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let held = all.last().is_some_and(|won| won.lease == lease);
        match random.random_range(0..4) {
            // The lease ends, the claim with it.
            0 if held => {
                store.revoke_lease(lease).await?;
                lease = store.grant_lease(Duration::from_secs(600)).await?.id;
            }
            // The claim is given up; the next one may hang on the same lease.
            1 if held => {
                let give_up = Transaction::new()
                    .require(Compare::ClaimHeld {
                        key: claim.clone(),
                        epoch: all.last().map_or(Revision::ZERO, |won| won.epoch),
                        lease,
                    })
                    .delete(claim.clone());
                match store.commit(give_up).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            _ => {}
        }
    }
    if all.iter().any(|won| won.lease == lease) {
        // Leave the claim to the others.
        store.revoke_lease(lease).await?;
    }
    Ok((epochs, writes, refused))
}

/// What a recorded run looks like.
#[derive(Clone, Copy)]
struct Load {
    keys: usize,
    keys_per_call: usize,
    calls: usize,
    rounds: u64,
}

pub(super) async fn commits_to_single_keys_are_linearizable(subject: Subject) -> Check {
    let load = Load {
        keys: 4,
        keys_per_call: 1,
        calls: 16,
        rounds: 20,
    };
    record_and_explain(&subject, load, None).await
}

pub(super) async fn transactions_over_several_keys_are_linearizable(subject: Subject) -> Check {
    let load = Load {
        keys: 3,
        keys_per_call: 3,
        calls: 8,
        rounds: 40,
    };
    record_and_explain(&subject, load, None).await
}

pub(super) async fn lost_answers_leave_the_history_linearizable(subject: Subject) -> Check {
    let load = Load {
        keys: 3,
        keys_per_call: 2,
        calls: 6,
        rounds: 40,
    };
    let lose = subject.lost_answers()?;
    record_and_explain(&subject, load, Some(lose)).await
}

async fn record_and_explain(subject: &Subject, load: Load, lose: Option<Hook<(), ()>>) -> Check {
    for round in 0..load.rounds {
        let keys: Vec<Key> = (0..load.keys)
            .map(|n| key(format!("o/{round}/{n}")))
            .collect::<Result<_, _>>()?;
        let clock = Arc::new(AtomicU64::new(0));
        let histories = clients(CLIENTS, |client| {
            let recorder = Recorder {
                store: Arc::clone(&subject.store),
                clock: Arc::clone(&clock),
                keys: keys.clone(),
                seen: vec![None; load.keys],
                random: StdRng::seed_from_u64(round * 1000 + client as u64),
                next_value: (client as u64 + 1) * 1_000_000,
                lose: lose.clone(),
                tolerant: false,
            };
            recorder.run(load)
        })
        .await?;
        let history = histories.concat();
        ensure!(
            history.len() <= MAX_OPERATIONS || load.keys_per_call == 1,
            "{} calls are too many",
            history.len()
        );
        let shared = subject.store.capabilities().shared_revisions;
        explain(&history, load.keys, shared)
            .map_err(|why| Stop::failed(format!("round {round}: {why}")))?;
    }
    Ok(())
}

/// A client that calls at random and keeps what it asked and was told.
struct Recorder {
    store: Arc<dyn Store>,
    clock: Arc<AtomicU64>,
    keys: Vec<Key>,
    /// What it last saw of each key, which its compares go by.
    seen: Vec<Option<Revision>>,
    random: StdRng,
    next_value: u64,
    lose: Option<Hook<(), ()>>,
    /// A read may be refused as well.
    tolerant: bool,
}

impl Recorder {
    async fn run(mut self, load: Load) -> Check<Vec<Operation>> {
        let mut operations = Vec::new();
        for _ in 0..load.calls {
            pause(&mut self.random).await;
            let call = self.draw(load);
            let lose = self.lose.clone().filter(|_| self.random.random_bool(0.2));
            if let Some(lose) = lose {
                lose(()).await;
            }
            let began = self.clock.fetch_add(1, Ordering::SeqCst);
            let answer = self.ask(&call).await?;
            let ended = self.clock.fetch_add(1, Ordering::SeqCst);
            operations.push(Operation {
                began,
                ended,
                call,
                answer,
            });
        }
        Ok(operations)
    }

    fn draw(&mut self, load: Load) -> Call {
        let first = self.random.random_range(0..load.keys);
        let count = self.random.random_range(1..=load.keys_per_call);
        let keys: Vec<usize> = (0..count).map(|n| (first + n) % load.keys).collect();
        if self.random.random_bool(0.4) {
            return Call::Get(keys);
        }
        let mut compares = Vec::new();
        let mut writes = Vec::new();
        for key in keys {
            if self.random.random_bool(0.6) {
                compares.push((key, self.seen[key]));
            }
            if self.random.random_bool(0.7) || writes.is_empty() {
                self.next_value += 1;
                let put = self.random.random_bool(0.8).then_some(self.next_value);
                writes.push((key, put));
            }
        }
        Call::Commit { compares, writes }
    }

    async fn ask(&mut self, call: &Call) -> Check<Answer> {
        match call {
            Call::Get(keys) => {
                let names: Vec<Key> = keys.iter().map(|key| self.keys[*key].clone()).collect();
                let snapshot = match self.store.get(&names).await {
                    Err(StoreError::Unavailable { .. }) if self.tolerant => {
                        return Ok(Answer::Refused);
                    }
                    outcome => outcome?,
                };
                let held: Vec<Held> = snapshot
                    .records
                    .iter()
                    .map(|record| {
                        record
                            .as_ref()
                            .map(|record| (record.modified, number(record)))
                    })
                    .collect();
                for (key, held) in keys.iter().zip(&held) {
                    self.seen[*key] = held.map(|(revision, _)| revision);
                }
                Ok(Answer::Read {
                    held,
                    revision: snapshot.revision,
                })
            }
            Call::Commit { compares, writes } => {
                let mut transaction = Transaction::new();
                for (key, revision) in compares {
                    transaction = transaction.require_unchanged(self.keys[*key].clone(), *revision);
                }
                for (key, value) in writes {
                    let name = self.keys[*key].clone();
                    transaction = match value {
                        Some(value) => transaction.put(name, value.to_string()),
                        None => transaction.delete(name),
                    };
                }
                match self.store.commit(transaction).await {
                    Ok(revision) => {
                        for (key, value) in writes {
                            self.seen[*key] = value.map(|_| revision);
                        }
                        Ok(Answer::Committed(revision))
                    }
                    Err(StoreError::Conflict { failed }) => Ok(Answer::Conflict(failed)),
                    Err(StoreError::Unavailable { .. }) => Ok(Answer::Refused),
                    Err(StoreError::Unknown { .. }) => Ok(Answer::Unknown),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// What clients were told while something else went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// Calls that were answered.
    pub answered: usize,
    /// Calls that were refused because the store was unavailable.
    pub unavailable: usize,
    /// Commits of which it is not known whether they happened.
    pub unknown: usize,
}

/// Calls a store from several clients at once, below `o/record/`, for as long as `going_on` says,
/// and checks every few calls that there is an order that explains the answers. For tests that
/// break the store's surroundings meanwhile: calls may be refused as unavailable or end unknown.
///
/// # Errors
/// The calls that no order explains, or an error that tells of something else than that the
/// store is unavailable.
pub async fn record_while(
    store: &Arc<dyn Store>,
    going_on: impl Fn() -> bool,
) -> Result<Recorded, String> {
    const LOAD: Load = Load {
        keys: 3,
        keys_per_call: 2,
        calls: 4,
        rounds: u64::MAX,
    };
    let told = |stop: Stop| match stop {
        Stop::Failed { what, .. } | Stop::DoesNotApply(what) => what,
    };
    let shared = store.capabilities().shared_revisions;
    let mut recorded = Recorded::default();
    let mut round: u64 = 0;
    while going_on() {
        round += 1;
        let names = (0..LOAD.keys).map(|n| key(format!("o/record/{round}/{n}")));
        let keys: Vec<Key> = names
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let clock = Arc::new(AtomicU64::new(0));
        let histories = clients(CLIENTS, |client| {
            let recorder = Recorder {
                store: Arc::clone(store),
                clock: Arc::clone(&clock),
                keys: keys.clone(),
                seen: vec![None; LOAD.keys],
                random: StdRng::seed_from_u64(round * 1000 + client as u64),
                next_value: (client as u64 + 1) * 1_000_000,
                lose: None,
                tolerant: true,
            };
            recorder.run(LOAD)
        });
        let history = histories.await.map_err(told)?.concat();
        for operation in &history {
            *match operation.answer {
                Answer::Refused => &mut recorded.unavailable,
                Answer::Unknown => &mut recorded.unknown,
                _ => &mut recorded.answered,
            } += 1;
        }
        explain(&history, LOAD.keys, shared).map_err(|why| format!("round {round}: {why}"))?;
    }
    Ok(recorded)
}
