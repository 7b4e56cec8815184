//! The queue's logic: states of keys, their order, and what lets a key run.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use crate::store::Revision;

/// Which work goes first. Within a class it is first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// Something changed.
    Change = 0,
    /// The last run failed.
    Retry = 1,
    /// Initial sync, and what a reconcile asked to be looked at again later.
    Sync = 2,
}

const CLASSES: usize = 3;

/// A class is passed over at most this many times in a row while it has work.
const MAX_PASSED_OVER: u32 = 8;

/// The most causes kept for one run; further ones are counted.
const MAX_CAUSES: usize = 16;

/// A wish for a run of a key.
#[derive(Debug)]
pub(crate) struct Request<C> {
    /// Not before this time; None is now.
    pub(crate) at: Option<Duration>,
    pub(crate) priority: Priority,
    pub(crate) cause: C,
    /// The revision of the change that asks.
    pub(crate) revision: Option<Revision>,
}

impl<C> Request<C> {
    /// A run as soon as possible.
    pub(crate) fn now(priority: Priority, cause: C) -> Self {
        Self {
            at: None,
            priority,
            cause,
            revision: None,
        }
    }

    /// A run as soon as possible, because of a change at `revision`.
    pub(crate) fn change(priority: Priority, cause: C, revision: Revision) -> Self {
        Self {
            revision: Some(revision),
            ..Self::now(priority, cause)
        }
    }

    /// A run not before `at`.
    #[cfg(test)]
    pub(crate) fn at(at: Duration, priority: Priority, cause: C) -> Self {
        Self {
            at: Some(at),
            ..Self::now(priority, cause)
        }
    }
}

/// A key that may run now.
#[derive(Debug, PartialEq)]
pub(crate) struct Job<K, C> {
    pub(crate) key: K,
    pub(crate) causes: Vec<C>,
    /// Causes beyond those kept.
    pub(crate) more_causes: u32,
    /// Failures in a row before this run.
    pub(crate) failures: u32,
    /// Conflicts in a row before this run.
    pub(crate) conflicts: u32,
    /// How long the key was ready before it was taken.
    pub(crate) waited: Duration,
}

/// A later run of a key that was just given back.
#[derive(Debug)]
pub(crate) struct Next<C> {
    at: Option<Duration>,
    priority: Priority,
    cause: C,
    backoff: bool,
}

impl<C> Next<C> {
    /// A run asked for by a run that succeeded.
    pub(crate) fn at(at: Duration, priority: Priority, cause: C) -> Self {
        Self {
            at: Some(at),
            priority,
            cause,
            backoff: false,
        }
    }

    /// A run as soon as the view allows.
    pub(crate) fn now(priority: Priority, cause: C) -> Self {
        Self {
            at: None,
            priority,
            cause,
            backoff: false,
        }
    }

    /// A run after a failure. The failed run's own writes do not bring it forward.
    pub(crate) fn backoff(at: Duration, cause: C) -> Self {
        Self {
            at: Some(at),
            priority: Priority::Retry,
            cause,
            backoff: true,
        }
    }
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Done<C> {
    pub(crate) next: Option<Next<C>>,
    pub(crate) failures: u32,
    pub(crate) conflicts: u32,
    /// For each source, the revision that it must show before the key runs again.
    pub(crate) must_see: Vec<(usize, Revision)>,
    /// The revisions that the run itself wrote.
    pub(crate) own_writes: Vec<Revision>,
}

impl<C> Done<C> {
    /// A run that succeeded and wrote nothing.
    pub(crate) fn ok() -> Self {
        Self {
            next: None,
            failures: 0,
            conflicts: 0,
            must_see: Vec::new(),
            own_writes: Vec::new(),
        }
    }

    /// A run that asks for another.
    #[cfg(test)]
    pub(crate) fn next(next: Next<C>) -> Self {
        Self {
            next: Some(next),
            ..Self::ok()
        }
    }
}

/// A key that waits for the view.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parked<K> {
    pub(crate) key: K,
    /// The source that lags.
    pub(crate) source: usize,
    /// The revision it has to reach.
    pub(crate) revision: Revision,
    /// Since when.
    pub(crate) waited: Duration,
}

/// How many keys are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) ready: usize,
    pub(crate) waiting: usize,
    pub(crate) parked: usize,
    pub(crate) running: usize,
    /// How long the oldest ready key waits.
    pub(crate) oldest_ready: Duration,
}

#[derive(Debug)]
struct Pending {
    at: Option<Duration>,
    priority: Priority,
    /// Revisions of the changes that asked during the run.
    revisions: Vec<Revision>,
    /// Something other than a change with a revision asked.
    unconditional: bool,
}

#[derive(Debug)]
enum State {
    /// Kept for its failures or for what it must see.
    Idle,
    Ready {
        priority: Priority,
        since: Duration,
    },
    Waiting {
        at: Duration,
        priority: Priority,
        backoff: bool,
    },
    /// Would be ready, but the view does not show its own writes yet.
    Parked {
        priority: Priority,
        since: Duration,
    },
    Running(Option<Pending>),
}

#[derive(Debug)]
struct Entry<C> {
    state: State,
    /// Tells the one valid place in `ready`, `waiting` or `parked` from those left behind.
    stamp: u64,
    causes: Vec<C>,
    more_causes: u32,
    failures: u32,
    conflicts: u32,
    must_see: Vec<(usize, Revision)>,
    own_writes: Vec<Revision>,
}

/// An item ordered by all but its key.
#[derive(Debug)]
struct Item<O, K>(O, u64, K);

impl<O: Ord, K> PartialEq for Item<O, K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<O: Ord, K> Eq for Item<O, K> {}
impl<O: Ord, K> PartialOrd for Item<O, K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<O: Ord, K> Ord for Item<O, K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.0, self.1).cmp(&(&other.0, other.1))
    }
}

/// Keys and when they run. A key is in one state at a time; places it left behind in the queues
/// carry an old stamp and are dropped when they come up, so that every operation is O(1) but for
/// the heaps of those that wait.
#[derive(Debug)]
pub(crate) struct Schedule<K, C> {
    entries: HashMap<K, Entry<C>>,
    ready: [VecDeque<(K, u64)>; CLASSES],
    passed_over: [u32; CLASSES],
    waiting: BinaryHeap<Reverse<Item<Duration, K>>>,
    parked: Vec<BinaryHeap<Reverse<Item<Revision, K>>>>,
    reached: Vec<Revision>,
    stamp: u64,
    deadline_moved: bool,
}

impl<K, C> Schedule<K, C>
where
    K: Clone + Eq + Hash + Debug,
    C: PartialEq + Debug,
{
    pub(crate) fn new(sources: usize) -> Self {
        Self {
            entries: HashMap::new(),
            ready: Default::default(),
            passed_over: [0; CLASSES],
            waiting: BinaryHeap::new(),
            parked: (0..sources).map(|_| BinaryHeap::new()).collect(),
            reached: vec![Revision::ZERO; sources],
            stamp: 0,
            deadline_moved: false,
        }
    }

    /// Asks for a run. A waiting key keeps the sooner time and the higher class; a running one
    /// runs once more when it is given back; causes are added up.
    pub(crate) fn push(&mut self, key: &K, request: Request<C>, now: Duration) {
        let Request {
            at,
            priority,
            cause,
            revision,
        } = request;
        let at = at.filter(|&at| at > now);
        let entry = match self.entries.entry(key.clone()) {
            Slot::Occupied(occupied) => occupied.into_mut(),
            Slot::Vacant(vacant) => vacant.insert(Entry {
                state: State::Idle,
                stamp: 0,
                causes: Vec::new(),
                more_causes: 0,
                failures: 0,
                conflicts: 0,
                must_see: Vec::new(),
                own_writes: Vec::new(),
            }),
        };
        if entry.causes.contains(&cause) {
            // Nothing new to tell.
        } else if entry.causes.len() < MAX_CAUSES {
            entry.causes.push(cause);
        } else {
            entry.more_causes = entry.more_causes.saturating_add(1);
        }
        match &mut entry.state {
            State::Running(pending) => {
                let pending = pending.get_or_insert(Pending {
                    at,
                    priority,
                    revisions: Vec::new(),
                    unconditional: false,
                });
                pending.at = match (pending.at, at) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    _ => None,
                };
                pending.priority = pending.priority.min(priority);
                match revision {
                    Some(revision) if pending.revisions.len() < MAX_CAUSES => {
                        pending.revisions.push(revision);
                    }
                    _ => pending.unconditional = true,
                }
            }
            State::Idle => match at {
                None => self.make_ready(key, priority, now),
                Some(at) => self.make_waiting(key, at, priority, false),
            },
            &mut State::Ready {
                priority: old,
                since,
            }
            | &mut State::Parked {
                priority: old,
                since,
            } => {
                if at.is_none() && priority < old {
                    self.make_ready(key, priority, since);
                }
            }
            &mut State::Waiting {
                at: old_at,
                priority: old,
                backoff,
            } => {
                let echo = revision.is_some_and(|revision| entry.own_writes.contains(&revision));
                if backoff && echo {
                    return;
                }
                let priority = priority.min(old);
                match at {
                    None => self.make_ready(key, priority, now),
                    Some(at) if at < old_at => self.make_waiting(key, at, priority, backoff),
                    Some(_) => {}
                }
            }
        }
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    fn unmet(reached: &[Revision], must_see: &[(usize, Revision)]) -> Option<(usize, Revision)> {
        must_see
            .iter()
            .copied()
            .find(|&(source, revision)| reached.get(source).is_some_and(|&at| at < revision))
    }

    fn make_ready(&mut self, key: &K, priority: Priority, since: Duration) {
        let stamp = self.next_stamp();
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.stamp = stamp;
        if let Some((source, revision)) = Self::unmet(&self.reached, &entry.must_see) {
            entry.state = State::Parked { priority, since };
            self.parked[source].push(Reverse(Item(revision, stamp, key.clone())));
            return;
        }
        entry.state = State::Ready { priority, since };
        self.ready[priority as usize].push_back((key.clone(), stamp));
    }

    fn make_waiting(&mut self, key: &K, at: Duration, priority: Priority, backoff: bool) {
        let stamp = self.next_stamp();
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.stamp = stamp;
        entry.state = State::Waiting {
            at,
            priority,
            backoff,
        };
        if self
            .waiting
            .peek()
            .is_none_or(|Reverse(first)| at < first.0)
        {
            self.deadline_moved = true;
        }
        self.waiting.push(Reverse(Item(at, stamp, key.clone())));
    }

    /// Makes the keys ready whose time has come.
    pub(crate) fn promote(&mut self, now: Duration) {
        while let Some(Reverse(first)) = self.waiting.peek()
            && first.0 <= now
        {
            let Some(Reverse(Item(at, stamp, key))) = self.waiting.pop() else {
                return;
            };
            let entry = self.entries.get(&key).filter(|entry| entry.stamp == stamp);
            if let Some(&State::Waiting { priority, .. }) = entry.map(|entry| &entry.state) {
                self.make_ready(&key, priority, at);
            }
        }
    }

    /// When [`Schedule::promote`] has something to do next.
    pub(crate) fn deadline(&mut self) -> Option<Duration> {
        while let Some(Reverse(Item(at, stamp, key))) = self.waiting.peek() {
            if self.entries.get(key).is_some_and(|e| e.stamp == *stamp) {
                return Some(*at);
            }
            self.waiting.pop();
        }
        None
    }

    pub(crate) fn take_deadline_moved(&mut self) -> bool {
        std::mem::take(&mut self.deadline_moved)
    }

    fn drop_left_behind(&mut self) {
        for class in &mut self.ready {
            while let Some((key, stamp)) = class.front() {
                if self.entries.get(key).is_some_and(|e| e.stamp == *stamp) {
                    break;
                }
                class.pop_front();
            }
        }
    }

    /// Some key can be popped.
    pub(crate) fn has_ready(&mut self) -> bool {
        self.drop_left_behind();
        self.ready.iter().any(|class| !class.is_empty())
    }

    /// The next key: the highest class first, but none is passed over for ever.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Job<K, C>> {
        self.promote(now);
        self.drop_left_behind();
        let top = (0..CLASSES).find(|&class| !self.ready[class].is_empty())?;
        let mut chosen = top;
        for class in (top + 1)..CLASSES {
            if self.ready[class].is_empty() {
                self.passed_over[class] = 0;
            } else if chosen == top && self.passed_over[class] >= MAX_PASSED_OVER {
                chosen = class;
            } else {
                self.passed_over[class] += 1;
            }
        }
        self.passed_over[chosen] = 0;
        let (key, _) = self.ready[chosen].pop_front()?;
        let entry = self.entries.get_mut(&key)?;
        let waited = match entry.state {
            State::Ready { since, .. } => now.saturating_sub(since),
            _ => Duration::ZERO,
        };
        entry.state = State::Running(None);
        entry.must_see.clear();
        entry.own_writes.clear();
        Some(Job {
            causes: std::mem::take(&mut entry.causes),
            more_causes: std::mem::take(&mut entry.more_causes),
            failures: entry.failures,
            conflicts: entry.conflicts,
            key,
            waited,
        })
    }

    /// Gives a key back with what became of its run.
    pub(crate) fn done(&mut self, key: &K, done: Done<C>, now: Duration) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let State::Running(pending) = std::mem::replace(&mut entry.state, State::Idle) else {
            return;
        };
        entry.failures = done.failures;
        entry.conflicts = done.conflicts;
        entry.must_see = done.must_see;
        entry.own_writes = done.own_writes;
        // A failed run that saw only its own writes come back keeps its backoff.
        let backoff = done.next.as_ref().is_some_and(|next| next.backoff);
        let pending = pending.filter(|pending| {
            let foreign = |revision| !entry.own_writes.contains(revision);
            !backoff || pending.unconditional || pending.revisions.iter().any(foreign)
        });
        let mut wish: Option<(Option<Duration>, Priority, bool)> = None;
        if let Some(next) = done.next {
            if !entry.causes.contains(&next.cause) && entry.causes.len() < MAX_CAUSES {
                entry.causes.push(next.cause);
            }
            wish = Some((next.at, next.priority, next.backoff));
        }
        if let Some(pending) = pending {
            wish = Some(match wish {
                Some((at, priority, backoff)) => {
                    let sooner = match (at, pending.at) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        _ => None,
                    };
                    (sooner, priority.min(pending.priority), backoff)
                }
                None => (pending.at, pending.priority, false),
            });
        }
        match wish {
            Some((Some(at), priority, backoff)) if at > now => {
                self.make_waiting(key, at, priority, backoff);
            }
            Some((_, priority, _)) => self.make_ready(key, priority, now),
            None => self.rest(key),
        }
    }

    /// Keeps an entry that nothing asks for only as long as it has something to remember.
    fn rest(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if let Some((source, revision)) = Self::unmet(&self.reached, &entry.must_see) {
            self.stamp += 1;
            entry.stamp = self.stamp;
            self.parked[source].push(Reverse(Item(revision, self.stamp, key.clone())));
        } else if entry.failures == 0 && entry.conflicts == 0 {
            self.entries.remove(key);
        }
    }

    /// The sources of the view have come this far.
    pub(crate) fn reached(&mut self, revisions: &[Revision], now: Duration) {
        for (source, &revision) in revisions.iter().enumerate().take(self.reached.len()) {
            if revision <= self.reached[source] {
                continue;
            }
            self.reached[source] = revision;
            while let Some(Reverse(first)) = self.parked[source].peek()
                && first.0 <= revision
            {
                let Some(Reverse(Item(_, stamp, key))) = self.parked[source].pop() else {
                    break;
                };
                let entry = self.entries.get(&key).filter(|entry| entry.stamp == stamp);
                match entry.map(|entry| &entry.state) {
                    Some(&State::Parked { priority, since }) => {
                        self.make_ready(&key, priority, since.min(now));
                    }
                    Some(State::Idle) => self.rest(&key),
                    _ => {}
                }
            }
        }
    }

    /// Another history is taken from here on: nobody waits for what the one before would have
    /// shown.
    pub(crate) fn begin_history(&mut self, now: Duration) {
        for entry in self.entries.values_mut() {
            entry.must_see.clear();
        }
        let sources = self.reached.len();
        self.reached(&vec![Revision::from_u64(u64::MAX); sources], now);
        self.reached.fill(Revision::ZERO);
    }

    pub(crate) fn sizes(&self, now: Duration) -> Sizes {
        let mut sizes = Sizes::default();
        for entry in self.entries.values() {
            match &entry.state {
                State::Idle => {}
                State::Ready { since, .. } => {
                    sizes.ready += 1;
                    sizes.oldest_ready = sizes.oldest_ready.max(now.saturating_sub(*since));
                }
                State::Waiting { .. } => sizes.waiting += 1,
                State::Parked { .. } => sizes.parked += 1,
                State::Running(_) => sizes.running += 1,
            }
        }
        sizes
    }

    pub(crate) fn longest_parked(&self, now: Duration) -> Option<Parked<K>> {
        // The heaps hold parked keys only, so that this does not walk all entries.
        self.parked
            .iter()
            .enumerate()
            .flat_map(|(source, heap)| heap.iter().map(move |item| (source, &item.0)))
            .filter_map(|(source, Item(revision, stamp, key))| {
                let entry = self.entries.get(key).filter(|e| e.stamp == *stamp)?;
                let State::Parked { since, .. } = entry.state else {
                    return None;
                };
                Some(Parked {
                    key: key.clone(),
                    source,
                    revision: *revision,
                    waited: now.saturating_sub(since),
                })
            })
            .max_by_key(|parked| parked.waited)
    }
}

#[cfg(test)]
mod tests;
