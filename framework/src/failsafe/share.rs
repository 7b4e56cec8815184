//! Lost signs of life: when so many are lost at once, the view is the more likely fault.
//!
//! For whoever judges others by their heartbeats, as a controller of nodes does: below the limit
//! each loss is what it seems; above it nothing is concluded from any of them, because a network
//! that is cut, a store that lost a tree or a clock that jumped looks just so.

use std::collections::BTreeSet;

/// How many signs of life may be lost before none of the losses is believed.
///
/// ```
/// use platctrl_framework::failsafe::LostShare;
///
/// let share = LostShare::default();
/// assert!(share.believes(3, 20), "three of twenty are lost");
/// assert!(!share.believes(4, 20), "20 %: the view is the more likely fault");
/// assert!(share.believes(2, 4), "two are never a mass");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LostShare {
    /// This share of all that are watched is too much to believe.
    pub share: f64,
    /// ... from this many on.
    pub least: usize,
}

impl Default for LostShare {
    fn default() -> Self {
        Self {
            share: 0.20,
            least: 3,
        }
    }
}

/// What is concluded from lost signs of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Losses<K> {
    /// These are lost.
    Lost(BTreeSet<K>),
    /// Too many at once: nothing is concluded from any, and people are told.
    Doubted {
        /// Those that are silent.
        silent: BTreeSet<K>,
        /// How many are watched.
        watched: usize,
    },
}

impl LostShare {
    /// Whether so many `silent` ones among those `watched` are taken for lost.
    #[must_use]
    pub fn believes(&self, silent: usize, watched: usize) -> bool {
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of objects in memory are far below 2^52"
        )]
        let is_mass = silent as f64 >= watched as f64 * self.share;
        silent < self.least || !is_mass
    }

    /// Judges the silent ones of `watched`. Those that were given up before (`lost_before`) count
    /// as watched and silent no more: only who falls silent anew can make a mass.
    #[must_use]
    pub fn judge<K: Ord + Clone>(
        &self,
        watched: &BTreeSet<K>,
        silent: &BTreeSet<K>,
        lost_before: &BTreeSet<K>,
    ) -> Losses<K> {
        let counted = watched.difference(lost_before).count();
        let silent: BTreeSet<K> = silent.intersection(watched).cloned().collect();
        let anew: BTreeSet<K> = silent.difference(lost_before).cloned().collect();
        if self.believes(anew.len(), counted) {
            Losses::Lost(silent)
        } else {
            Losses::Doubted {
                silent: anew,
                watched: counted,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(range: std::ops::Range<u32>) -> BTreeSet<u32> {
        range.collect()
    }

    #[test]
    fn failsafe_beat_lost_one_is_lost_and_many_are_doubted() {
        let share = LostShare::default();
        let all = names(0..10);
        let judge = |silent| share.judge(&all, &silent, &BTreeSet::new());
        assert_eq!(judge(names(0..1)), Losses::Lost(names(0..1)));
        assert_eq!(judge(names(0..2)), Losses::Lost(names(0..2)));
        let doubted = Losses::Doubted {
            silent: names(0..3),
            watched: 10,
        };
        assert_eq!(judge(names(0..3)), doubted);
        // A large fleet loses more before the view is doubted.
        assert!(share.believes(19, 100) && !share.believes(20, 100));
        assert!(!share.believes(5, 5) && share.believes(0, 0));
    }

    #[test]
    fn failsafe_beat_lost_before_does_not_make_a_mass_of_the_next() {
        let share = LostShare::default();
        let before = names(0..2);
        let silent = names(0..3);
        let judged = share.judge(&names(0..10), &silent, &before);
        assert_eq!(judged, Losses::Lost(names(0..3)));
        // Who is not watched is nobody's loss.
        let judged = share.judge(&names(5..10), &silent, &BTreeSet::new());
        assert_eq!(judged, Losses::Lost(BTreeSet::new()));
    }

    proptest! {
        #[test]
        fn who_doubts_some_doubts_more(silent in 0usize..200, more in 0usize..50, watched in 0usize..300) {
            let share = LostShare::default();
            prop_assert!(share.believes(silent, watched) || !share.believes(silent + more, watched));
        }
    }
}
