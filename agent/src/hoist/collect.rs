//! What to remove when artifacts take too much room: decided over plain data, done elsewhere.
//!
//! Nothing is removed below the high water. Above it, the longest unused go first, down to the low
//! water, one after the other, each gone before the next is looked at. What is kept for a reason
//! (a version that runs, the one before it, what is to be there in advance) is never removed; of
//! those at most the packed copy, which can be fetched again.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::Digest;

/// When artifacts take too much room, and how much is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Water {
    /// Bytes of installs and cached artifacts together above which some are removed: 20 GiB.
    pub high: u64,
    /// How far down: 15 GiB.
    pub low: u64,
    /// The same for the file system they are on, in hundredths of it: 85.
    pub full: u8,
    /// How far down: 80.
    pub enough: u8,
    /// What was used so recently is left alone, also when nothing says why it is there: 10 minutes.
    pub rest: Duration,
}

impl Default for Water {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self {
            high: 20 * GIB,
            low: 15 * GIB,
            full: 85,
            enough: 80,
            rest: Duration::from_secs(600),
        }
    }
}

impl Water {
    /// Everything that is not kept and not in use at this moment: for a disk that is full.
    #[must_use]
    pub fn none() -> Self {
        Self {
            high: 0,
            low: 0,
            rest: Duration::from_secs(60),
            ..Self::default()
        }
    }
}

/// The room that artifacts take, and that there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Use {
    /// Bytes of installs.
    pub installs: u64,
    /// Bytes of cached artifacts.
    pub cached: u64,
    /// Bytes of the file system.
    pub disk: u64,
    /// Bytes of it that are free.
    pub free: u64,
}

/// What [`Store::collect`](super::Store::collect) removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// Installs removed.
    pub installs: BTreeSet<Digest>,
    /// Cached artifacts removed.
    pub cached: BTreeSet<Digest>,
    /// Bytes that these had.
    pub freed: u64,
    /// Bytes that should have gone, too, but are kept for a reason.
    pub short: u64,
}

/// A digest of which something is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) digest: Digest,
    pub(super) install: Option<u64>,
    pub(super) cached: Option<u64>,
    pub(super) used: SystemTime,
}

impl Item {
    fn bytes(&self) -> u64 {
        self.install
            .unwrap_or(0)
            .saturating_add(self.cached.unwrap_or(0))
    }
}

/// One thing to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) digest: Digest,
    /// The install as well, not only the packed copy.
    pub(super) install: bool,
    pub(super) bytes: u64,
}

/// How many bytes are to go.
pub(super) fn excess(room: Use, water: Water) -> u64 {
    let held = room.installs.saturating_add(room.cached);
    let by_hand = match held > water.high {
        true => held.saturating_sub(water.low),
        false => 0,
    };
    let share = |hundredths: u8| room.disk / 100 * u64::from(hundredths);
    let used = room.disk.saturating_sub(room.free);
    let by_disk = match used > share(water.full) {
        true => used.saturating_sub(share(water.enough)),
        false => 0,
    };
    by_hand.max(by_disk)
}

/// What may go, in the order in which it goes.
pub(super) fn candidates(
    mut items: Vec<Item>,
    keep: &BTreeSet<Digest>,
    water: Water,
    now: SystemTime,
) -> Vec<Removal> {
    items.sort_by_key(|item| (item.used, item.digest));
    let (kept, free): (Vec<_>, Vec<_>) = items
        .into_iter()
        .partition(|item| keep.contains(&item.digest));
    // A clock that was set back makes nothing old.
    let rested = |item: &Item| {
        now.duration_since(item.used)
            .is_ok_and(|age| age >= water.rest)
    };
    let whole = free.into_iter().filter(rested).map(|item| Removal {
        digest: item.digest,
        install: item.install.is_some(),
        bytes: item.bytes(),
    });
    let copies = kept.into_iter().filter_map(|item| {
        item.install?;
        Some(Removal {
            digest: item.digest,
            install: false,
            bytes: item.cached?,
        })
    });
    whole.chain(copies).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(name: u8, age: u64, install: Option<u64>, cached: Option<u64>) -> Item {
        Item {
            digest: Digest::of([name]),
            install,
            cached,
            used: now() - Duration::from_secs(age),
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    #[test]
    fn nothing_goes_below_the_high_water_and_all_above_the_low_one_beyond_it() {
        let water = Water {
            high: 100,
            low: 60,
            ..Water::default()
        };
        let room = |installs, cached| Use {
            installs,
            cached,
            ..Use::default()
        };
        assert_eq!(excess(room(50, 50), water), 0);
        assert_eq!(excess(room(51, 50), water), 41);
        let disk = |free| Use {
            disk: 1000,
            free,
            ..Use::default()
        };
        assert_eq!(excess(disk(150), water), 0);
        assert_eq!(excess(disk(149), water), 51);
        assert_eq!(excess(disk(0), water), 200);
    }

    proptest! {
        #[test]
        fn what_is_kept_stays_installed_and_the_longest_unused_goes_first(
            drawn in proptest::collection::vec((0..40_u64, any::<bool>(), any::<bool>(), any::<bool>()), 0..12),
        ) {
            let mut keep = BTreeSet::new();
            let mut items = Vec::new();
            for (number, (minutes, kept, install, cached)) in drawn.into_iter().enumerate() {
                let number = u8::try_from(number).unwrap();
                let item = item(number, minutes * 60, install.then_some(7), cached.then_some(5));
                if kept {
                    keep.insert(item.digest);
                }
                items.push(item);
            }
            let water = Water::default();
            let order = candidates(items.clone(), &keep, water, now());
            let of = |digest: &Digest| items.iter().find(|item| item.digest == *digest).unwrap();
            for removal in &order {
                let item = of(&removal.digest);
                prop_assert!(!(removal.install && keep.contains(&removal.digest)));
                prop_assert!(removal.install || item.cached.is_some() || removal.bytes == 0);
                if !keep.contains(&removal.digest) {
                    prop_assert!(now().duration_since(item.used).unwrap() >= water.rest);
                }
            }
            for pair in order.windows(2) {
                let (first, second) = (&pair[0], &pair[1]);
                match (keep.contains(&first.digest), keep.contains(&second.digest)) {
                    (true, second) => prop_assert!(second, "copies of what is kept go last"),
                    (false, true) => {}
                    (false, false) => prop_assert!(of(&first.digest).used <= of(&second.digest).used),
                }
            }
        }
    }
}
