//! The process table: what really runs, whoever says what about it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::model::{Digest, Object, ObjectKey, RawObject, Resource, Tree, Uid};
use crate::store::{MemoryStore, Record};

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ProcessPhase {
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It ended, and is started again soon.
    Crashed,
    /// It is being stopped.
    Stopping,
}

/// A simulated process: what an agent runs for one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub(super) key: ObjectKey,
    pub(super) uid: Uid,
    pub(super) generation: u64,
    pub(super) digest: Digest,
    pub(super) spec: Arc<Value>,
    pub(super) phase: ProcessPhase,
    pub(super) healthy: bool,
    pub(super) restarts: u64,
    pub(super) since: Duration,
}

impl Process {
    /// The object it runs for.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The uid of that object.
    #[must_use]
    pub fn uid(&self) -> &Uid {
        &self.uid
    }

    /// The node it runs on; empty for kinds that have no node.
    #[must_use]
    pub fn node(&self) -> &str {
        self.key.node().unwrap_or_default()
    }

    /// The generation of the object that it was started for.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The spec that it was started with; None if it is of another kind.
    #[must_use]
    pub fn spec<K: Resource>(&self) -> Option<K::Spec> {
        if *self.key.kind() != K::group_plural() {
            return None;
        }
        serde_json::from_value((*self.spec).clone()).ok()
    }

    /// What it does.
    #[must_use]
    pub fn phase(&self) -> ProcessPhase {
        self.phase
    }

    /// It is there: it runs, or is being started or stopped.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.phase != ProcessPhase::Crashed
    }

    /// It runs and can do its work.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.phase == ProcessPhase::Running && self.healthy
    }

    /// How often it was started again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Since when it is in its phase.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }
}

/// All processes, by the path of their objects' keys.
pub(super) type Table = BTreeMap<Arc<str>, Process>;

/// One moment of a run, as it really is: what invariants are checked on.
pub struct Moment<'m> {
    pub(super) table: &'m Table,
    pub(super) store: &'m MemoryStore,
    pub(super) time: Duration,
    pub(super) outside: &'m Outside,
}

/// What the user keeps beside the store in each run.
pub(super) type Outside = Option<Arc<dyn Any + Send + Sync>>;

impl Moment<'_> {
    /// Every process, in the order of their keys.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.table.values()
    }

    /// How many processes can do their work.
    #[must_use]
    pub fn healthy(&self) -> usize {
        self.processes()
            .filter(|process| process.is_healthy())
            .count()
    }

    /// The objects of a kind as the store has them, those on their way out too.
    #[must_use]
    pub fn objects<K: Resource>(&self) -> Vec<Object<K>> {
        objects_of::<K>(self.store)
    }

    /// Time since the run began.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// What [`Simulation::outside`](super::Simulation::outside) made for this run. None if it is
    /// of another type.
    #[must_use]
    pub fn outside<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        outside(self.outside)
    }
}

pub(super) fn outside<T: Any + Send + Sync>(outside: &Outside) -> Option<Arc<T>> {
    outside.clone()?.downcast().ok()
}

pub(super) fn objects_of<K: Resource>(store: &MemoryStore) -> Vec<Object<K>> {
    let records = store.dump_under(&K::group_plural().prefix(Tree::Intent));
    let object = |record: &Record| {
        let (_, key, _) = ObjectKey::parse(&record.key, |_, _| Some(K::SCOPE))?;
        let raw: RawObject = super::core::joined(store, &key).object()?;
        raw.typed().ok()
    };
    records.iter().filter_map(object).collect()
}

impl fmt::Debug for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moment")
            .field("time", &self.time)
            .field("processes", &self.table.len())
            .finish_non_exhaustive()
    }
}

/// What an invariant says: that it holds, or what is wrong.
pub trait Verdict {
    /// What is wrong; `Ok` when nothing is.
    ///
    /// # Errors
    /// What is wrong, in words; empty when there is nothing to say beyond that it does not hold.
    fn verdict(self) -> Result<(), String>;
}

impl Verdict for bool {
    fn verdict(self) -> Result<(), String> {
        if self { Ok(()) } else { Err(String::new()) }
    }
}

impl<E: fmt::Display> Verdict for Result<(), E> {
    fn verdict(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}
