//! What is mostly empty: while it is, looking into it takes no lock.
//!
//! Every run looks whether its key failed before, echoes, or is held off, and hardly any does. A
//! key is run once at a time, so whoever looks for a key sees what the runs of that key did.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something that can be empty.
pub(super) trait Emptiable {
    fn is_empty(&self) -> bool;
}

impl<K, V> Emptiable for BTreeMap<K, V> {
    fn is_empty(&self) -> bool {
        BTreeMap::is_empty(self)
    }
}

impl<K, V, S> Emptiable for HashMap<K, V, S> {
    fn is_empty(&self) -> bool {
        HashMap::is_empty(self)
    }
}

/// A collection that is mostly empty.
#[derive(Debug, Default)]
pub(super) struct Rare<T> {
    some: AtomicBool,
    held: Mutex<T>,
}

impl<T: Emptiable> Rare<T> {
    /// There was nothing in it when it was last let go.
    pub(super) fn is_empty(&self) -> bool {
        !self.some.load(Ordering::Acquire)
    }

    pub(super) fn lock(&self) -> Rarely<'_, T> {
        Rarely {
            some: &self.some,
            held: self.held.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// The collection, locked.
#[derive(Debug)]
pub(super) struct Rarely<'r, T: Emptiable> {
    some: &'r AtomicBool,
    held: MutexGuard<'r, T>,
}

impl<T: Emptiable> Deref for Rarely<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T: Emptiable> DerefMut for Rarely<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held
    }
}

impl<T: Emptiable> Drop for Rarely<'_, T> {
    fn drop(&mut self) {
        self.some.store(!self.held.is_empty(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whether_something_is_in_it() {
        let rare = Rare::<BTreeMap<u32, u32>>::default();
        assert!(rare.is_empty());
        rare.lock().insert(1, 2);
        assert!(!rare.is_empty());
        assert_eq!(rare.lock().get(&1), Some(&2));
        rare.lock().remove(&1);
        assert!(rare.is_empty());
    }
}
