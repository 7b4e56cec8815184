//! The objects of a kind by whom they were made for, brought from view to view.
//!
//! A controller that looks up what its object owns pays for each of them in each run, however few
//! have changed. [`Owners`] remembers them, and pays for what is different between the view that
//! it was asked about last and the one that it is asked about now.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::entry::Entry;
use super::view::{InVain, View};
use crate::model::{Object, RecordError, Resource, Uid};

/// Remembers which objects of the kind `K` each owner has. Clones share what is remembered.
///
/// What it keeps alive is the last view that it was asked about, so whoever is done with it for a
/// longer time should [forget](Owners::forget) that.
pub struct Owners<K: Resource> {
    known: Arc<Mutex<Known<K>>>,
}

type OfOwner<K> = BTreeMap<Arc<str>, Result<Arc<Object<K>>, Arc<RecordError>>>;

struct Known<K: Resource> {
    /// The view that `owned` is of.
    view: Option<View>,
    /// By the owner's uid, by the path of their keys.
    owned: HashMap<Uid, OfOwner<K>>,
}

impl<K: Resource> fmt::Debug for Owners<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners")
            .field("kind", &K::KIND)
            .finish_non_exhaustive()
    }
}

impl<K: Resource> Clone for Owners<K> {
    fn clone(&self) -> Self {
        Self {
            known: self.known.clone(),
        }
    }
}

impl<K: Resource> Default for Known<K> {
    fn default() -> Self {
        Self {
            view: None,
            owned: HashMap::new(),
        }
    }
}

impl<K: Resource> Default for Owners<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Resource> Owners<K> {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            known: Arc::default(),
        }
    }

    /// The objects that name this uid as an owner, in the order of their keys: what
    /// `view.list::<K>().owned_by(uid).to_vec()` returns. As there, a reconcile that asked for
    /// them commits nothing if one of them cannot be read.
    #[must_use]
    pub fn owned(&self, view: &View, owner: &Uid) -> Vec<Arc<Object<K>>> {
        view.ask::<K>();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.bring_to(view);
        let Some(owned) = known.owned.get(owner) else {
            return Vec::new();
        };
        let readable = |object: &Result<Arc<Object<K>>, _>| match object {
            Ok(object) => Some(object.clone()),
            Err(error) => {
                view.note_in_vain(InVain::Unreadable(Arc::clone(error)));
                None
            }
        };
        owned.values().filter_map(readable).collect()
    }

    /// Forgets everything, and begins anew when it is asked.
    pub fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *known);
        drop(known);
        drop(old);
    }
}

impl<K: Resource> Known<K> {
    fn bring_to(&mut self, view: &View) {
        // A view that notes questions notes them for its own run.
        let seen = self.view.replace(view.clone().silent());
        match seen {
            Some(earlier) => view.differences::<K>(&earlier, |was, is| self.change(view, was, is)),
            None => view.each_entry::<K>(|entry| self.change(view, None, Some(entry))),
        }
    }

    fn change(&mut self, view: &View, was: Option<&Arc<Entry>>, is: Option<&Arc<Entry>>) {
        for owner in was.iter().flat_map(|was| was.owners()) {
            if let Some(owned) = self.owned.get_mut(&owner.uid) {
                owned.remove(was.map_or("", |was| was.key.path()));
                if owned.is_empty() {
                    self.owned.remove(&owner.uid);
                }
            }
        }
        let Some(entry) = is.filter(|entry| !entry.owners().is_empty()) else {
            return;
        };
        let Some(object) = view.typed::<K>(entry) else {
            return;
        };
        for owner in entry.owners() {
            let owned = self.owned.entry(owner.uid.clone()).or_default();
            owned.insert(entry.key.shared_path().clone(), object.clone());
        }
    }
}
