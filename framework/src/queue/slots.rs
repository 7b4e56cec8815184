//! Numbered places that values are kept at, and lists that are linked through them.
//!
//! What is added one after the other lies one after the other, a list needs no memory of its own,
//! and a value leaves a list from anywhere in it without a search.

use std::num::NonZeroU32;

/// The number of a slot, from 1. It is given again once its value is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SlotId(NonZeroU32);

impl SlotId {
    fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
struct Slot<T> {
    before: Option<SlotId>,
    after: Option<SlotId>,
    /// None while the slot is free; `after` is the next free one then.
    value: Option<T>,
}

/// Values by number.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Option<SlotId>,
    used: usize,
}

/// The ends of a list of slots. A slot is in one list at most.
#[derive(Debug, Default)]
pub(super) struct List {
    first: Option<SlotId>,
    last: Option<SlotId>,
}

impl List {
    pub(super) fn first(&self) -> Option<SlotId> {
        self.first
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: None,
            used: 0,
        }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, value: T) -> SlotId {
        self.used += 1;
        let slot = Slot {
            before: None,
            after: None,
            value: Some(value),
        };
        match self.free {
            Some(id) => {
                self.free = std::mem::replace(&mut self.slots[id.place()], slot).after;
                id
            }
            None => {
                self.slots.push(slot);
                let number = u32::try_from(self.slots.len()).ok();
                let number = number.and_then(NonZeroU32::new);
                SlotId(number.expect("four thousand million keys do not fit into memory"))
            }
        }
    }

    /// Removes a value, which must be in no list any more.
    pub(super) fn remove(&mut self, id: SlotId) -> Option<T> {
        let slot = self.slots.get_mut(id.place())?;
        let value = slot.value.take()?;
        slot.after = self.free.replace(id);
        self.used -= 1;
        if self.used == 0 {
            // Give back what a burst needed, and begin with neighbours again.
            self.free = None;
            self.slots.clear();
            self.slots.shrink_to(1024);
        }
        Some(value)
    }

    pub(super) fn get(&self, id: SlotId) -> Option<&T> {
        self.slots.get(id.place())?.value.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        self.slots.get_mut(id.place())?.value.as_mut()
    }

    /// All values, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.value.as_mut())
    }

    /// Appends a slot to a list.
    pub(super) fn link(&mut self, list: &mut List, id: SlotId) {
        let before = list.last.replace(id);
        match before {
            Some(before) => self.slots[before.place()].after = Some(id),
            None => list.first = Some(id),
        }
        let slot = &mut self.slots[id.place()];
        (slot.before, slot.after) = (before, None);
    }

    /// Takes a slot out of the list that it is in.
    pub(super) fn unlink(&mut self, list: &mut List, id: SlotId) {
        let slot = &mut self.slots[id.place()];
        let (before, after) = (slot.before.take(), slot.after.take());
        match before {
            Some(before) => self.slots[before.place()].after = after,
            None => list.first = after,
        }
        match after {
            Some(after) => self.slots[after.place()].before = before,
            None => list.last = before,
        }
    }

    /// The values of a list, in order.
    pub(super) fn iter<'s>(&'s self, list: &List) -> impl Iterator<Item = &'s T> + 's {
        let next = |id: SlotId| self.slots[id.place()].after;
        let ids = std::iter::successors(list.first, move |&id| next(id));
        ids.filter_map(|id| self.get(id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Add(bool),
        /// Takes out the one at this place, counted round.
        Remove(bool, usize),
        /// To the other list's end.
        Move(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<bool>().prop_map(Step::Add),
            2 => (any::<bool>(), 0..50usize).prop_map(|(list, place)| Step::Remove(list, place)),
            1 => (0..50usize).prop_map(Step::Move),
        ]
    }

    proptest! {
        #[test]
        fn lists_hold_what_queues_would_and_numbers_are_given_again(steps in prop::collection::vec(step(), 0..200)) {
            let mut slots = Slots::default();
            let mut lists = [List::default(), List::default()];
            let mut model: [VecDeque<(SlotId, u32)>; 2] = Default::default();
            let mut most = 0;
            for (number, step) in (0u32..).zip(steps) {
                match step {
                    Step::Add(list) => {
                        let id = slots.insert(number);
                        slots.link(&mut lists[usize::from(list)], id);
                        model[usize::from(list)].push_back((id, number));
                    }
                    Step::Remove(list, place) => {
                        let list = usize::from(list);
                        if model[list].is_empty() { continue; }
                        let (id, value) = model[list].remove(place % model[list].len()).unwrap();
                        slots.unlink(&mut lists[list], id);
                        prop_assert_eq!(slots.remove(id), Some(value));
                        prop_assert_eq!(slots.get(id), None);
                    }
                    Step::Move(place) => {
                        if model[0].is_empty() { continue; }
                        let moved = model[0].remove(place % model[0].len()).unwrap();
                        let [one, other] = &mut lists;
                        slots.unlink(one, moved.0);
                        slots.link(other, moved.0);
                        model[1].push_back(moved);
                    }
                }
                most = most.max(model[0].len() + model[1].len());
                for (list, model) in lists.iter().zip(&model) {
                    let held: Vec<u32> = slots.iter(list).copied().collect();
                    prop_assert_eq!(held, model.iter().map(|m| m.1).collect::<Vec<_>>());
                    prop_assert_eq!(list.first(), model.front().map(|m| m.0));
                }
                prop_assert!(slots.slots.len() <= most, "free slots are used first");
            }
        }
    }
}
