//! A store in front of a store, in which commits that are in flight together share transactions.
//!
//! Where each transaction costs a round of consensus, many small ones cost more than one that
//! holds them all. A [`Pipeline`] sends a commit at once while there is room, and what arrives
//! while the store is busy goes together when it is free again: no timer, and nothing is slower
//! when there is nothing to share.
//!
//! A commit that fills most of a transaction by itself is sent at once: it would share with few, and
//! those who make many of them decide how many are under way.
//!
//! Nobody can tell, but by the revision that some commits then have in common: only commits none
//! of which compares or writes a key that another one writes are sent together (`draft`), and
//! whatever is refused is sent again apart, so that one's conflict, missing right or ended lease
//! is nobody else's (`settle`). See `docs/decisions/0011`.

mod draft;
mod settle;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{
    Capabilities, Key, Lease, LeaseId, Limits, ListRequest, Page, Prefix, Result, Revision,
    Snapshot, Store, StoreError, Transaction, WatchStream,
};
use draft::Draft;
use settle::{Settled, settle};

/// Waiting commits that are looked at for one transaction.
const LOOK_AHEAD: usize = 512;
/// Writes of a commit that may be sent by itself.
const LARGE: usize = 32;
/// Transactions at once by which a refused one is sent again in parts.
const APART_AT_ONCE: usize = 8;

/// A store whose independent commits share transactions.
///
/// A commit that is dropped while it waits is not sent; one that was sent may happen. Dropping it
/// changes nothing for those that share its transaction.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
///
/// use platctrl_framework::environment::Environment;
/// use platctrl_framework::store::{Key, MemoryStore, Pipeline, Store, Transaction};
///
/// let memory = Arc::new(MemoryStore::new(Environment::system()));
/// let store = Pipeline::new(memory.clone()).in_flight(1);
/// let put = |n: u32| store.commit(Transaction::new().put(Key::new(format!("o/{n}")).unwrap(), "x"));
/// futures::future::try_join_all((0..10).map(put)).await.unwrap();
/// assert_eq!(memory.dump().len(), 10);
/// // The first one went at once, the others together behind it.
/// assert_eq!(store.counts().transactions, 2);
/// # });
/// ```
#[derive(Clone)]
pub struct Pipeline {
    shared: Arc<Shared>,
}

/// What a [`Pipeline`] did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipelineCounts {
    /// Commits that were sent.
    pub commits: u64,
    /// Transactions that they were sent in, those sent again among them.
    pub transactions: u64,
    /// Commits that were sent again because a transaction they shared was refused.
    pub again: u64,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    transactions: AtomicU64,
    again: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// How it is decided what goes together, and what outcomes mean.
#[derive(Clone, Copy)]
struct Rules {
    join: fn(&mut Draft, &Transaction) -> bool,
    settle: fn(&Result<Revision>, &[Vec<usize>]) -> Settled,
}

struct Shared {
    inner: Arc<dyn Store>,
    limits: Limits,
    in_flight: usize,
    rules: Rules,
    counters: Counters,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Member>,
    in_flight: usize,
}

/// A commit whose caller waits.
struct Member {
    transaction: Transaction,
    reply: oneshot::Sender<Result<Revision>>,
}

impl Pipeline {
    /// A pipeline in front of a store, with two transactions in flight at most.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        let rules = Rules {
            join: Draft::join,
            settle,
        };
        Self::with_rules(inner, 2, rules)
    }

    /// The store with a pipeline in front if it says that this
    /// [helps](Capabilities::sharing_helps), else as it is.
    #[must_use]
    pub fn where_it_helps(inner: Arc<dyn Store>) -> Arc<dyn Store> {
        if inner.capabilities().sharing_helps {
            Arc::new(Self::new(inner))
        } else {
            inner
        }
    }

    /// At most so many transactions in flight, one at least. With more of them a commit waits
    /// less, with fewer it shares with more others. A transaction that was refused is sent again
    /// in up to eight parts at once in its place.
    #[must_use]
    pub fn in_flight(self, most: usize) -> Self {
        let shared = &self.shared;
        Self::with_rules(shared.inner.clone(), most.max(1), shared.rules)
    }

    fn with_rules(inner: Arc<dyn Store>, in_flight: usize, rules: Rules) -> Self {
        let limits = inner.capabilities().limits;
        Self {
            shared: Arc::new(Shared {
                inner,
                limits,
                in_flight,
                rules,
                counters: Counters::default(),
                state: Mutex::default(),
            }),
        }
    }

    /// What it did.
    #[must_use]
    pub fn counts(&self) -> PipelineCounts {
        let counters = &self.shared.counters;
        PipelineCounts {
            commits: counters.commits.load(Ordering::Relaxed),
            transactions: counters.transactions.load(Ordering::Relaxed),
            again: counters.again.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("store", &self.shared.inner)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hardly another commit fits beside it.
    fn is_large(&self, transaction: &Transaction) -> bool {
        transaction.writes.len() >= LARGE.max(self.limits.max_writes / 2)
    }

    /// Sends what waits while there is room. Each transaction has a task of its own, so that no
    /// caller that stops asking for its answer holds up another.
    fn send_waiting(self: &Arc<Self>, handle: &Handle) {
        loop {
            let group = {
                let mut state = self.state();
                if state.in_flight >= self.in_flight {
                    return;
                }
                let Some(group) = Group::take(&mut state.waiting, self.limits, self.rules) else {
                    return;
                };
                state.in_flight += 1;
                group
            };
            let slot = Slot {
                shared: Some(self.clone()),
            };
            handle.spawn(async move {
                if let Some(shared) = &slot.shared {
                    shared.carry_out(group).await;
                }
                slot.finish();
            });
        }
    }

    /// Commits a group, and whatever of it is refused again in parts.
    async fn carry_out(&self, group: Group) {
        count(&self.counters.commits, group.members.len());
        let mut parts = VecDeque::from([group]);
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < APART_AT_ONCE
                && let Some(mut part) = parts.pop_front()
            {
                count(&self.counters.transactions, 1);
                running.push(async {
                    let transaction = std::mem::take(&mut part.transaction);
                    let outcome = self.inner.commit(transaction).await;
                    (part, outcome)
                });
            }
            let Some((part, outcome)) = running.next().await else {
                return;
            };
            match (self.rules.settle)(&outcome, &part.compares_of) {
                Settled::Same => part.answer(&outcome),
                Settled::Again { alone, together } => {
                    count(&self.counters.again, part.members.len());
                    parts.extend(part.split(&alone, &together, self.limits));
                }
            }
        }
    }
}

/// Commits that go in one transaction.
struct Group {
    transaction: Transaction,
    compares_of: Vec<Vec<usize>>,
    members: Vec<Member>,
}

impl Group {
    /// The commit that waits longest and those behind it that may go with it. None when nobody
    /// waits.
    fn take(waiting: &mut VecDeque<Member>, limits: Limits, rules: Rules) -> Option<Self> {
        let mut draft = Draft::new(limits);
        let mut members = Vec::new();
        let mut at = 0;
        for _ in 0..LOOK_AHEAD {
            let Some(next) = waiting.get(at) else { break };
            if next.reply.is_closed() {
                waiting.remove(at);
            } else if (rules.join)(&mut draft, &next.transaction) {
                members.extend(waiting.remove(at));
            } else {
                at += 1;
            }
        }
        if members.is_empty() && !waiting.is_empty() {
            // All that was looked at had been given up.
            return Self::take(waiting, limits, rules);
        }
        Self::of(draft, members)
    }

    fn of(draft: Draft, mut members: Vec<Member>) -> Option<Self> {
        let (mut transaction, compares_of) = draft.finish();
        match members.as_mut_slice() {
            [] => return None,
            // As its author wrote it: an outcome names compares by their positions.
            [only] => transaction = std::mem::take(&mut only.transaction),
            _ => {}
        }
        Some(Self {
            transaction,
            compares_of,
            members,
        })
    }

    /// One group for each member that goes alone, one for all that go together.
    fn split(self, alone: &[usize], together: &[usize], limits: Limits) -> Vec<Self> {
        let mut members: Vec<Option<Member>> = self.members.into_iter().map(Some).collect();
        let mut group = |positions: &[usize]| {
            let mut draft = Draft::new(limits);
            let chosen = positions.iter().filter_map(|at| members[*at].take());
            let chosen: Vec<Member> = chosen.collect();
            // They were independent and within the limits before.
            chosen
                .iter()
                .for_each(|member| draft.add(&member.transaction));
            Self::of(draft, chosen)
        };
        let apart = alone.iter().map(std::slice::from_ref);
        apart.chain([together]).filter_map(&mut group).collect()
    }

    fn answer(self, outcome: &Result<Revision>) {
        for member in self.members {
            // A caller that went away does not want to know.
            let _ = member.reply.send(outcome.clone());
        }
    }
}

/// The right to have a transaction in flight.
struct Slot {
    shared: Option<Arc<Shared>>,
}

impl Slot {
    fn finish(mut self) {
        if let Some(shared) = self.shared.take() {
            shared.state().in_flight -= 1;
            shared.send_waiting(&Handle::current());
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        shared.state().in_flight -= 1;
        if std::thread::panicking() {
            // The store below did: whose commits were sent learns `Unknown`, the others go on.
            if let Ok(handle) = Handle::try_current() {
                return shared.send_waiting(&handle);
            }
        }
        // The executor ends, and nothing is sent any more.
        let waiting = std::mem::take(&mut shared.state().waiting);
        for member in waiting {
            let error = StoreError::unavailable("the program ends; the commit was not sent");
            let _ = member.reply.send(Err(error));
        }
    }
}

impl Store for Pipeline {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.shared.inner.capabilities();
        capabilities.shared_revisions = true;
        capabilities.sharing_helps = false;
        capabilities
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        self.shared.inner.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        self.shared.inner.list(request)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            let shared = &self.shared;
            let executor = Handle::try_current();
            let (Ok(executor), Ok(())) = (executor, shared.limits.check(&transaction)) else {
                // The store itself says what is wrong with it, and to its author alone.
                return shared.inner.commit(transaction).await;
            };
            if shared.is_large(&transaction) {
                count(&shared.counters.commits, 1);
                count(&shared.counters.transactions, 1);
                return shared.inner.commit(transaction).await;
            }
            let (reply, answer) = oneshot::channel();
            let member = Member { transaction, reply };
            shared.state().waiting.push_back(member);
            shared.send_waiting(&executor);
            answer.await.unwrap_or_else(|_| {
                let reason = "the task that sent the commit ended without an answer".to_owned();
                Err(StoreError::Unknown { reason })
            })
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.shared.inner.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: std::time::Duration) -> BoxFuture<'_, Result<Lease>> {
        self.shared.inner.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.shared.inner.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.shared.inner.revoke_lease(lease)
    }
}

#[cfg(test)]
mod tests;
