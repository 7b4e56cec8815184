//! What is to be known of the objects that were made for each owner, brought from view to view.
//!
//! A controller that looks up what its object owns pays for each of them in each run, however few
//! have changed. [`Owners`] keeps a [`Tally`] for each owner, and pays for what is different
//! between the view that it was asked about last and the one that it is asked about now.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::entry::Entry;
use super::view::{InVain, View};
use crate::model::{Object, ObjectKey, RecordError, Resource, Uid};
use crate::store::Revision;

/// What is kept of the objects of one owner: as much of each as is asked for, and sums.
pub trait Tally<K: Resource>: Default + Send + 'static {
    /// An object came, changed, or is not this owner's any more (None).
    fn put(&mut self, key: &Arc<ObjectKey>, object: Option<&Object<K>>);

    /// An object came whose intent was put at this revision, and nobody has reported on it. A tally
    /// that was [told](Owners::tell) what it is takes it in and returns true: then it is not
    /// decoded.
    fn put_known(&mut self, key: &Arc<ObjectKey>, put: Revision) -> bool {
        let _ = (key, put);
        false
    }

    /// It has no object.
    fn is_empty(&self) -> bool;
}

/// Keeps a tally of the objects of the kind `K` for each owner. Clones share it.
///
/// What it keeps alive is the last view that it was asked about, so whoever is done with it for a
/// longer time should [forget](Owners::forget) that.
pub struct Owners<K: Resource, T> {
    known: Arc<Mutex<Known<K, T>>>,
}

struct Known<K: Resource, T> {
    /// The view that `owned` is of.
    view: Option<View>,
    /// By the owner's uid.
    owned: HashMap<Uid, Owned<T>>,
    kind: std::marker::PhantomData<fn() -> K>,
}

struct Owned<T> {
    tally: T,
    /// By the path of their keys.
    unreadable: BTreeMap<Arc<str>, Arc<RecordError>>,
}

impl<K: Resource, T> fmt::Debug for Owners<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners")
            .field("kind", &K::KIND)
            .finish_non_exhaustive()
    }
}

impl<K: Resource, T> Clone for Owners<K, T> {
    fn clone(&self) -> Self {
        Self {
            known: self.known.clone(),
        }
    }
}

impl<K: Resource, T> Default for Known<K, T> {
    fn default() -> Self {
        Self {
            view: None,
            owned: HashMap::new(),
            kind: std::marker::PhantomData,
        }
    }
}

impl<T: Default> Default for Owned<T> {
    fn default() -> Self {
        Self {
            tally: T::default(),
            unreadable: BTreeMap::new(),
        }
    }
}

impl<K: Resource, T: Tally<K>> Default for Owners<K, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Resource, T: Tally<K>> Owners<K, T> {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            known: Arc::default(),
        }
    }

    /// Looks at the tally of the objects that name this uid as an owner, as a view shows them: of
    /// what `view.list::<K>().owned_by(uid)` returns. As there, a reconcile that asked for them
    /// commits nothing if one of them cannot be read.
    pub fn of<R>(&self, view: &View, owner: &Uid, look: impl FnOnce(&mut T) -> R) -> R {
        view.ask::<K>();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.bring_to(view);
        let Some(owned) = known.owned.get_mut(owner) else {
            drop(known);
            return look(&mut T::default());
        };
        if let Some(error) = owned.unreadable.values().next() {
            view.note_in_vain(InVain::Unreadable(error.clone()));
        }
        look(&mut owned.tally)
    }

    /// Tells the tally of an owner what no view shows yet, whether that owner has anything or not.
    pub fn tell(&self, owner: &Uid, tell: impl FnOnce(&mut T)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&mut known.owned.entry(owner.clone()).or_default().tally);
    }

    /// Forgets everything, and begins anew when it is asked.
    pub fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *known);
        drop(known);
        drop(old);
    }
}

impl<K: Resource, T: Tally<K>> Known<K, T> {
    fn bring_to(&mut self, view: &View) {
        // A view that notes questions notes them for its own run.
        let seen = self.view.replace(view.clone().silent());
        match seen {
            Some(earlier) => view.differences::<K>(&earlier, |was, is| self.change(view, was, is)),
            None => view.each_entry::<K>(|entry| self.change(view, None, Some(entry))),
        }
    }

    fn change(&mut self, view: &View, was: Option<&Arc<Entry>>, is: Option<&Arc<Entry>>) {
        let is = is.filter(|entry| !entry.owners().is_empty());
        let stays = |owner: &Uid| {
            let mut now = is.iter().flat_map(|entry| entry.owners());
            now.any(|now| now.uid == *owner)
        };
        for owner in was.iter().flat_map(|was| was.owners()) {
            if !stays(&owner.uid) {
                self.put(was, &owner.uid, None);
            }
        }
        let Some(entry) = is else { return };
        if let [owner] = entry.owners()
            && let Some(put) = entry.only_intent()
            && let Some(owned) = self.owned.get_mut(&owner.uid)
            && owned.tally.put_known(&entry.key, put)
        {
            owned.unreadable.remove(entry.key.path());
            return;
        }
        // It is looked at once: what is kept of it is the tally's to say.
        let object = view.typed_once::<K>(entry);
        for owner in entry.owners() {
            self.put(is, &owner.uid, object.as_ref());
        }
    }

    fn put(
        &mut self,
        entry: Option<&Arc<Entry>>,
        owner: &Uid,
        object: Option<&Result<Arc<Object<K>>, Arc<RecordError>>>,
    ) {
        let Some(entry) = entry else { return };
        let path = entry.key.shared_path();
        let owned = match self.owned.get_mut(owner) {
            Some(owned) => owned,
            None if object.is_none() => return,
            None => self.owned.entry(owner.clone()).or_default(),
        };
        let readable = match object {
            Some(Err(error)) => {
                owned.unreadable.insert(path.clone(), error.clone());
                None
            }
            Some(Ok(object)) => {
                owned.unreadable.remove(path);
                Some(&**object)
            }
            None => {
                owned.unreadable.remove(path);
                None
            }
        };
        owned.tally.put(&entry.key, readable);
        if owned.tally.is_empty() && owned.unreadable.is_empty() {
            self.owned.remove(owner);
        }
    }
}
