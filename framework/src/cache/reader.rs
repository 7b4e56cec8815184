//! Readers of a cache, as many as are wanted, and what they share with its writer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::entry::Entry;
use super::options::{KindOptions, Options};
use super::view::{State, View};
use crate::model::{GroupPlural, RecordError};
use crate::store::{Prefix, Revision};

/// Errors with the revision of the object that they were found in, by path.
type Unreadable = HashMap<Arc<str>, (Revision, Arc<RecordError>)>;

/// What writer and readers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) prefixes: Box<[Prefix]>,
    pub(super) options: Options,
    state: Mutex<Arc<State>>,
    /// Objects whose types do not fit, found when somebody read them, by path.
    unreadable: Mutex<Unreadable>,
    moved: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new(prefixes: Vec<Prefix>, options: Options, state: State) -> Self {
        Self {
            prefixes: prefixes.into(),
            options,
            state: Mutex::new(Arc::new(state)),
            unreadable: Mutex::default(),
            moved: watch::Sender::new(()),
        }
    }

    /// Shows this state from now on.
    pub(super) fn publish(&self, state: State) {
        let state = Arc::new(state);
        // The old state is dropped outside of the lock.
        let old = std::mem::replace(&mut *self.state(), state.clone());
        self.moved.send_replace(());
        drop(old);
        self.unreadable_ones().retain(|path, (revision, _)| {
            let entry = state.objects.get(path);
            entry.is_some_and(|entry| entry.revision() == *revision)
        });
    }

    fn unreadable_ones(&self) -> MutexGuard<'_, Unreadable> {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Arc<State>> {
        // States are only ever replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels that objects of a kind are found by.
    pub(crate) fn label_indexes(&self, kind: &GroupPlural) -> &[Box<str>] {
        self.options
            .get(kind)
            .map_or(&[], |options| &options.labels)
    }

    pub(crate) fn has_index(&self, kind: &GroupPlural, name: &str) -> bool {
        let options = self.options.get(kind);
        options.is_some_and(|options| options.indexes.iter().any(|(known, _)| *known == name))
    }

    pub(crate) fn note_unreadable(&self, entry: &Entry, error: &Arc<RecordError>) {
        let path = entry.key.shared_path().clone();
        let found = (entry.revision(), error.clone());
        self.unreadable_ones().insert(path, found);
    }

    pub(crate) fn has_unreadable(&self) -> bool {
        !self.unreadable_ones().is_empty()
    }

    /// Those that `state` still holds as they were found.
    pub(crate) fn unreadable(&self, state: &State) -> Vec<Arc<RecordError>> {
        let unreadable = self.unreadable_ones();
        let still = |path: &Arc<str>, revision| {
            let entry = state.objects.get(path);
            entry.is_some_and(|entry| entry.revision() == revision)
        };
        let found = unreadable.iter();
        found
            .filter(|(path, (revision, _))| still(path, *revision))
            .map(|(_, (_, error))| error.clone())
            .collect()
    }
}

/// Reads a cache that a runtime keeps up to date. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

impl Reader {
    /// Everything at this moment.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            state: self.shared.state().clone(),
            shared: self.shared.clone(),
            asked: None,
        }
    }

    /// Tells whenever the view has changed.
    pub(crate) fn moved(&self) -> watch::Receiver<()> {
        self.shared.moved.subscribe()
    }

    /// Of objects of this kind only some fields are kept.
    pub(crate) fn is_projected(&self, kind: &GroupPlural) -> bool {
        let options = self.shared.options.get(kind);
        options.is_some_and(KindOptions::is_projected)
    }

    pub(crate) fn sources(&self) -> Arc<[Option<Revision>]> {
        self.shared.state().sources.clone()
    }

    async fn until(&self, mut holds: impl FnMut(&[Option<Revision>]) -> bool) {
        let mut moved = self.shared.moved.subscribe();
        while !holds(&self.sources()) {
            if moved.changed().await.is_err() {
                // Cannot happen while `self.shared` lives; waiting is right either way.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until every source was read once.
    pub async fn synced(&self) {
        self.until(|sources| sources.iter().all(Option::is_some))
            .await;
    }

    /// Waits until the view shows everything up to `revision`.
    pub async fn reached(&self, revision: Revision) {
        let reached = |source: &Option<Revision>| source.is_some_and(|at| at >= revision);
        self.until(|sources| sources.iter().all(reached)).await;
    }
}
