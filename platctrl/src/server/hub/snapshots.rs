//! Lists at one revision from the server's own mirror, for stores that cannot read an old one.
//!
//! A snapshot is the objects of a range as the mirror holds them, by reference. One that has more
//! pages to come is kept for a while, so that the next page shows the same moment. What that costs
//! is what has been replaced since, and is bounded: the oldest goes first, and its next page is
//! told to begin again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use platctrl_framework::model::{Joined, RecordError, Tree};
use platctrl_framework::store::{Prefix, Revision};
use tokio::time::Instant;

use super::{Hub, Item, State};

/// Lists whose next page may come.
const MOST: usize = 32;
/// Bytes of replaced records that they may hold together.
const REPLACED: u64 = 64 * 1024 * 1024;
/// How long a list waits for its next page.
const PATIENCE: Duration = Duration::from_secs(300);

/// The objects of a range at one revision, in the order of their keys.
#[derive(Clone, Debug)]
pub(in crate::server) struct Snapshot {
    pub(in crate::server) revision: Revision,
    range: Prefix,
    items: Arc<[Arc<Item>]>,
    /// Which history it is of, and what [`State`] had taken in and replaced when it was made.
    history: u64,
    taken: u64,
    replaced: u64,
}

impl Snapshot {
    /// The place of the first object behind a key of an intent.
    pub(in crate::server) fn behind(&self, after: &str) -> usize {
        let is_before = |item: &Arc<Item>| item.key.store_key(Tree::Intent).as_str() <= after;
        self.items.partition_point(is_before)
    }

    /// The records at a place, without those that cannot be read; None behind the last.
    pub(in crate::server) fn joined(
        &self,
        place: usize,
        unreadable: impl FnMut(RecordError),
    ) -> Option<Joined> {
        Some(self.items.get(place)?.joined(unreadable))
    }
}

/// Snapshots whose next page may come, the one that was used last at the end.
#[derive(Debug, Default)]
pub(super) struct Kept(VecDeque<(Snapshot, Instant)>);

impl Kept {
    fn put(&mut self, snapshot: Snapshot) {
        let same = |it: &Snapshot| it.revision == snapshot.revision && it.range == snapshot.range;
        self.0.retain(|(kept, _)| !same(kept));
        self.0.push_back((snapshot, Instant::now()));
    }

    /// Lets the oldest go until the rest hold little enough, now that so much was replaced.
    pub(super) fn bound(&mut self, replaced: u64) {
        let too_much = |(snapshot, used): &(Snapshot, Instant)| {
            replaced - snapshot.replaced > REPLACED || used.elapsed() > PATIENCE
        };
        self.0.retain(|kept| !too_much(kept));
        while self.0.len() > MOST {
            self.0.pop_front();
        }
    }
}

impl State {
    fn has_reached(&self, least: Revision, store_id: &str, generation: u64) -> bool {
        let least = least.max(self.whole_from);
        self.revision.is_some_and(|revision| revision >= least)
            && self.generation >= generation
            && self.store_id.as_deref() == Some(store_id)
    }

    fn snapshot(&self, range: &Prefix) -> Option<Snapshot> {
        let revision = self.revision.filter(|at| *at >= self.whole_from)?;
        let kept = self.kept.0.iter().map(|(snapshot, _)| snapshot);
        // Nothing has changed since: only the revision has.
        let mut same = kept.filter(|it| it.taken == self.taken && it.range == *range);
        let items = match same.next() {
            Some(same) => same.items.clone(),
            None => {
                let items = self.objects.range(range.as_str().to_owned()..);
                let items = items.take_while(|(path, _)| path.starts_with(range.as_str()));
                items.map(|(_, item)| item.clone()).collect()
            }
        };
        Some(Snapshot {
            revision,
            range: range.clone(),
            items,
            history: self.history,
            taken: self.taken,
            replaced: self.replaced,
        })
    }
}

impl Hub {
    /// Waits until the mirror is one moment of the store, not before `least`, of the history of
    /// this store, and of all kinds that are known by now.
    pub(in crate::server) async fn reach(&self, least: Revision, store_id: &str) {
        let generation = self.inner.generation.load(Ordering::Acquire);
        let mut moved = self.subscribe();
        loop {
            moved.mark_unchanged();
            let reached = self.state().has_reached(least, store_id, generation);
            if reached || moved.changed().await.is_err() {
                return;
            }
        }
    }

    /// The objects of a range as they are now; None while the mirror is no moment of the store.
    pub(in crate::server) fn snapshot(&self, range: &Prefix) -> Option<Snapshot> {
        self.state().snapshot(range)
    }

    /// The objects of a range as they were at a revision; None if nobody knows any more.
    pub(in crate::server) fn snapshot_at(&self, range: &Prefix, at: Revision) -> Option<Snapshot> {
        let mut state = self.state();
        let replaced = state.replaced;
        state.kept.bound(replaced);
        let mut kept = state.kept.0.iter_mut();
        if let Some((snapshot, used)) = kept.find(|(it, _)| it.revision == at && it.range == *range)
        {
            *used = Instant::now();
            return Some(snapshot.clone());
        }
        // Another server gave it out, or this one before it began anew: what has not changed since
        // is what it was.
        let unchanged = state.whole_from.max(state.changed) <= at && Some(at) <= state.revision;
        let snapshot = state.snapshot(range).filter(|_| unchanged)?;
        Some(Snapshot {
            revision: at,
            ..snapshot
        })
    }

    /// Remembers a snapshot of which there is more to come.
    pub(in crate::server) fn keep(&self, snapshot: &Snapshot) {
        let mut state = self.state();
        // What is of another history is worth nothing any more.
        if state.history == snapshot.history {
            state.kept.put(snapshot.clone());
            let replaced = state.replaced;
            state.kept.bound(replaced);
        }
    }
}
