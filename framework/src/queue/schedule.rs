//! The queue's logic: states of keys, their order, and what lets a key run.

mod look;
#[cfg(test)]
mod tests;
mod work;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use hashbrown::HashTable;

pub(crate) use self::look::{Look, Place, Sizes};
pub(crate) use self::work::{Causes, Done, Job, Next, Parked, Priority, Request, Ticket};
use super::slots::{List, SlotId, Slots};
use crate::store::Revision;

const CLASSES: usize = 3;

/// A class is passed over at most this many times in a row while it has work.
const MAX_PASSED_OVER: u32 = 8;

/// Room that is kept when nothing is known any more.
const FEW: usize = 1024;

/// The most causes kept for one run; further ones are counted.
const MAX_CAUSES: usize = 16;

#[derive(Debug)]
struct Pending {
    at: Option<Duration>,
    priority: Priority,
    /// Revisions of the changes that asked during the run.
    revisions: Vec<Revision>,
    /// Something other than a change with a revision asked.
    unconditional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
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
    Running {
        since: Duration,
    },
}

/// What most keys have nothing of: kept apart, so that the keys lie close together.
#[derive(Debug, Default)]
struct Memory {
    more_causes: u32,
    failures: u32,
    conflicts: u32,
    must_see: Vec<(usize, Revision)>,
    own_writes: Vec<Revision>,
    /// What asked while the key runs.
    pending: Option<Pending>,
}

impl Memory {
    fn is_empty(&self) -> bool {
        self.failures == 0
            && self.conflicts == 0
            && self.more_causes == 0
            && self.must_see.is_empty()
            && self.own_writes.is_empty()
            && self.pending.is_none()
    }
}

#[derive(Debug)]
struct Entry<K, C> {
    key: K,
    hash: u64,
    state: State,
    /// Tells the one valid place in `waiting` or `parked` from those left behind.
    stamp: u64,
    causes: Causes<C>,
    memory: Option<Box<Memory>>,
}

impl<K, C> Entry<K, C> {
    fn must_see(&self) -> &[(usize, Revision)] {
        self.memory.as_ref().map_or(&[], |memory| &memory.must_see)
    }

    fn wrote(&self, revision: Revision) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|memory| memory.own_writes.contains(&revision))
    }
}

/// A place in a heap: ordered by time or revision, then by age.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item<O>(O, u64, SlotId);

/// Keys and when they run.
///
/// A key has one slot, found by its hash once when it is pushed and named by its number from then
/// on. Ready keys are linked through their slots, so that every operation is O(1) but for the
/// heaps of those that wait; places left behind there carry an old stamp and are dropped when
/// they come up.
#[derive(Debug)]
pub(crate) struct Schedule<K, C> {
    hasher: RandomState,
    places: HashTable<SlotId>,
    slots: Slots<Entry<K, C>>,
    ready: [List; CLASSES],
    passed_over: [u32; CLASSES],
    waiting: BinaryHeap<Reverse<Item<Duration>>>,
    parked: Vec<BinaryHeap<Reverse<Item<Revision>>>>,
    reached: Vec<Revision>,
    stamp: u64,
    running: usize,
    deadline_moved: bool,
    adds: u64,
}

impl<K, C> Schedule<K, C>
where
    K: Clone + Eq + Hash + Debug,
    C: PartialEq + Debug,
{
    pub(crate) fn new(sources: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            places: HashTable::new(),
            slots: Slots::default(),
            ready: Default::default(),
            passed_over: [0; CLASSES],
            waiting: BinaryHeap::new(),
            parked: (0..sources).map(|_| BinaryHeap::new()).collect(),
            reached: vec![Revision::ZERO; sources],
            stamp: 0,
            running: 0,
            deadline_moved: false,
            adds: 0,
        }
    }

    /// The slot of a key, made if there is none.
    fn slot(&mut self, key: K) -> SlotId {
        let hash = self.hasher.hash_one(&key);
        let slots = &mut self.slots;
        let same = |&id: &SlotId| slots.get(id).is_some_and(|entry| entry.key == key);
        if let Some(&id) = self.places.find(hash, same) {
            return id;
        }
        let id = slots.insert(Entry {
            key,
            hash,
            state: State::Idle,
            stamp: 0,
            causes: Causes::None,
            memory: None,
        });
        let rehash = |&id: &SlotId| slots.get(id).map_or(0, |entry| entry.hash);
        self.places.insert_unique(hash, id, rehash);
        id
    }

    fn forget(&mut self, id: SlotId) {
        if let Some(entry) = self.slots.remove(id)
            && let Ok(place) = self.places.find_entry(entry.hash, |&other| other == id)
        {
            place.remove();
        }
        if self.places.is_empty() && self.places.capacity() > 4 * FEW {
            // A burst is over: what few keys need lies close together.
            self.places.shrink_to(FEW, |_| 0);
        }
    }

    /// How many keys are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Asks for a run. A waiting key keeps the sooner time and the higher class; a running one
    /// runs once more when it is given back; causes are added up.
    pub(crate) fn push(&mut self, key: K, request: Request<C>, now: Duration) {
        let Request {
            at,
            priority,
            cause,
            revision,
        } = request;
        let at = at.filter(|&at| at > now);
        self.adds += 1;
        let id = self.slot(key);
        let Some(entry) = self.slots.get_mut(id) else {
            return;
        };
        let causes = entry.causes.as_slice();
        if causes.contains(&cause) {
            // Nothing new to tell.
        } else if causes.len() < MAX_CAUSES {
            entry.causes.push(cause);
        } else {
            let memory = entry.memory.get_or_insert_default();
            memory.more_causes = memory.more_causes.saturating_add(1);
        }
        match entry.state {
            State::Running { .. } => {
                let memory = entry.memory.get_or_insert_default();
                let pending = memory.pending.get_or_insert(Pending {
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
                None => self.make_ready(id, priority, now),
                Some(at) => self.make_waiting(id, at, priority, false),
            },
            State::Ready {
                priority: old,
                since,
            }
            | State::Parked {
                priority: old,
                since,
            } => {
                if at.is_none() && priority < old {
                    self.make_ready(id, priority, since);
                }
            }
            State::Waiting {
                at: old_at,
                priority: old,
                backoff,
            } => {
                if backoff && revision.is_some_and(|revision| entry.wrote(revision)) {
                    return;
                }
                let priority = priority.min(old);
                match at {
                    None => self.make_ready(id, priority, now),
                    Some(at) if at < old_at => self.make_waiting(id, at, priority, backoff),
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

    /// Gives a key a new state. Its place in a list of ready keys is left, and places in heaps
    /// become old.
    fn enter(&mut self, id: SlotId, state: State) -> u64 {
        let stamp = self.next_stamp();
        if let Some(entry) = self.slots.get_mut(id) {
            entry.stamp = stamp;
            let old = std::mem::replace(&mut entry.state, state);
            if let State::Ready { priority, .. } = old {
                self.slots.unlink(&mut self.ready[priority as usize], id);
            }
        }
        stamp
    }

    fn make_ready(&mut self, id: SlotId, priority: Priority, since: Duration) {
        let must_see = self.slots.get(id).map_or(&[][..], Entry::must_see);
        if let Some((source, revision)) = Self::unmet(&self.reached, must_see) {
            let stamp = self.enter(id, State::Parked { priority, since });
            self.parked[source].push(Reverse(Item(revision, stamp, id)));
            return;
        }
        self.enter(id, State::Ready { priority, since });
        self.slots.link(&mut self.ready[priority as usize], id);
    }

    fn make_waiting(&mut self, id: SlotId, at: Duration, priority: Priority, backoff: bool) {
        let waiting = State::Waiting {
            at,
            priority,
            backoff,
        };
        let stamp = self.enter(id, waiting);
        if self
            .waiting
            .peek()
            .is_none_or(|Reverse(first)| at < first.0)
        {
            self.deadline_moved = true;
        }
        self.waiting.push(Reverse(Item(at, stamp, id)));
    }

    /// The entry that a place in a heap stands for, unless it was left behind.
    fn at_stamp(&self, id: SlotId, stamp: u64) -> Option<&Entry<K, C>> {
        self.slots.get(id).filter(|entry| entry.stamp == stamp)
    }

    /// Makes the keys ready whose time has come.
    pub(crate) fn promote(&mut self, now: Duration) {
        while let Some(Reverse(first)) = self.waiting.peek()
            && first.0 <= now
        {
            let Some(Reverse(Item(at, stamp, id))) = self.waiting.pop() else {
                return;
            };
            let state = self.at_stamp(id, stamp).map(|entry| entry.state);
            if let Some(State::Waiting { priority, .. }) = state {
                self.make_ready(id, priority, at);
            }
        }
    }

    /// When [`Schedule::promote`] has something to do next.
    pub(crate) fn deadline(&mut self) -> Option<Duration> {
        while let Some(Reverse(Item(at, stamp, id))) = self.waiting.peek() {
            if self.at_stamp(*id, *stamp).is_some() {
                return Some(*at);
            }
            self.waiting.pop();
        }
        None
    }

    pub(crate) fn take_deadline_moved(&mut self) -> bool {
        std::mem::take(&mut self.deadline_moved)
    }

    /// Some key can be popped.
    pub(crate) fn has_ready(&self) -> bool {
        self.ready.iter().any(|class| class.first().is_some())
    }

    /// The next key: the highest class first, but none is passed over for ever.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Job<K, C>> {
        self.promote(now);
        let top = (0..CLASSES).find(|&class| self.ready[class].first().is_some())?;
        let mut chosen = top;
        for class in (top + 1)..CLASSES {
            if self.ready[class].first().is_none() {
                self.passed_over[class] = 0;
            } else if chosen == top && self.passed_over[class] >= MAX_PASSED_OVER {
                chosen = class;
            } else {
                self.passed_over[class] += 1;
            }
        }
        self.passed_over[chosen] = 0;
        let id = self.ready[chosen].first()?;
        self.slots.unlink(&mut self.ready[chosen], id);
        self.running += 1;
        let entry = self.slots.get_mut(id)?;
        let waited = match entry.state {
            State::Ready { since, .. } => now.saturating_sub(since),
            _ => Duration::ZERO,
        };
        entry.state = State::Running { since: now };
        let mut job = Job {
            key: entry.key.clone(),
            ticket: Ticket(id),
            causes: entry.causes.take(),
            more_causes: 0,
            failures: 0,
            conflicts: 0,
            waited,
            taken: now,
        };
        if let Some(memory) = entry.memory.take() {
            job.more_causes = memory.more_causes;
            job.failures = memory.failures;
            job.conflicts = memory.conflicts;
        }
        Some(job)
    }

    /// Gives a key back with what became of its run.
    pub(crate) fn done(&mut self, Ticket(id): Ticket, done: Done<C>, now: Duration) {
        let Some(entry) = self.slots.get_mut(id) else {
            return;
        };
        if !matches!(entry.state, State::Running { .. }) {
            return;
        }
        entry.state = State::Idle;
        self.running -= 1;
        // What was kept at the begin was taken by the run: this is what came during it.
        let mut memory = entry
            .memory
            .take()
            .map_or_else(Memory::default, |memory| *memory);
        let pending = memory.pending.take();
        memory.failures = done.failures;
        memory.conflicts = done.conflicts;
        memory.must_see = done.must_see;
        memory.own_writes = done.own_writes;
        // A failed run that saw only its own writes come back keeps its backoff.
        let backoff = done.next.as_ref().is_some_and(|next| next.backoff);
        let pending = pending.filter(|pending| {
            let foreign = |revision| !memory.own_writes.contains(revision);
            !backoff || pending.unconditional || pending.revisions.iter().any(foreign)
        });
        if !memory.is_empty() {
            entry.memory = Some(Box::new(memory));
        }
        let mut wish: Option<(Option<Duration>, Priority, bool)> = None;
        if let Some(next) = done.next {
            let causes = entry.causes.as_slice();
            if !causes.contains(&next.cause) && causes.len() < MAX_CAUSES {
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
                self.make_waiting(id, at, priority, backoff);
            }
            Some((_, priority, _)) => self.make_ready(id, priority, now),
            None => self.rest(id),
        }
    }

    /// Keeps an entry that nothing asks for only as long as it has something to remember.
    fn rest(&mut self, id: SlotId) {
        let Some(entry) = self.slots.get(id) else {
            return;
        };
        if let Some((source, revision)) = Self::unmet(&self.reached, entry.must_see()) {
            let stamp = self.enter(id, State::Idle);
            self.parked[source].push(Reverse(Item(revision, stamp, id)));
            return;
        }
        let memory = entry.memory.as_ref();
        if memory.is_none_or(|memory| memory.failures == 0 && memory.conflicts == 0) {
            self.forget(id);
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
                let Some(Reverse(Item(_, stamp, id))) = self.parked[source].pop() else {
                    break;
                };
                match self.at_stamp(id, stamp).map(|entry| entry.state) {
                    Some(State::Parked { priority, since }) => {
                        self.make_ready(id, priority, since.min(now));
                    }
                    Some(State::Idle) => self.rest(id),
                    _ => {}
                }
            }
        }
    }

    /// Another history is taken from here on: nobody waits for what the one before would have
    /// shown.
    pub(crate) fn begin_history(&mut self, now: Duration) {
        for entry in self.slots.values_mut() {
            if let Some(memory) = &mut entry.memory {
                memory.must_see.clear();
            }
        }
        let sources = self.reached.len();
        self.reached(&vec![Revision::from_u64(u64::MAX); sources], now);
        self.reached.fill(Revision::ZERO);
    }

    pub(crate) fn longest_parked(&self, now: Duration) -> Option<Parked<K>> {
        self.parked
            .iter()
            .enumerate()
            .flat_map(|(source, heap)| heap.iter().map(move |item| (source, &item.0)))
            .filter_map(|(source, Item(revision, stamp, id))| {
                let entry = self.at_stamp(*id, *stamp)?;
                let State::Parked { since, .. } = entry.state else {
                    return None;
                };
                Some(Parked {
                    key: entry.key.clone(),
                    source,
                    revision: *revision,
                    waited: now.saturating_sub(since),
                })
            })
            .max_by_key(|parked| parked.waited)
    }
}
