//! Finds what somebody wrote around the store, with `consul kv put` for example.
//!
//! Such a write touches no generation, so watchers are not woken by it. But Consul knows the
//! index of the last change, deletes included, of everything below a text, and tells it without
//! sending what is there. Where that is newer than the newest generation, somebody else wrote.
//! Some scopes are looked at each time, in turn; and all at once, which tells of scopes that no
//! generation names, as long as no commit comes right behind.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use platctrl_framework::store::{Prefix, StoreError};
use tokio::time::Instant;

use crate::layout::{GENERATIONS, Place, Scope};
use crate::shared::{PROBE, Shared, Wanted};

/// Scopes looked at each time.
const SCOPES: usize = 64;
/// Exact keys read at once.
const KEYS: usize = 24;

/// What somebody else changed.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// Where.
    pub(crate) range: Prefix,
    /// The index of the change: who read the range at this or later has seen it.
    pub(crate) index: u64,
}

/// What was seen before.
#[derive(Debug)]
pub(crate) struct Probe {
    due: Instant,
    /// The newest index that was told of each text.
    told: HashMap<String, u64>,
    /// The index of each single key and of its generation.
    keys: HashMap<String, (u64, u64)>,
    generations: Vec<Scope>,
    next: usize,
}

impl Probe {
    pub(crate) fn new(due: Instant) -> Self {
        Self {
            due,
            told: HashMap::new(),
            keys: HashMap::new(),
            generations: Vec::new(),
            next: 0,
        }
    }

    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    pub(crate) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Looks once, and says what of it is new.
    pub(crate) async fn run(
        &mut self,
        shared: &Shared,
        prefixes: &[Prefix],
        interval: Duration,
    ) -> Result<Vec<Foreign>, StoreError> {
        self.due = Instant::now() + interval;
        // First the indexes, then the generations: whatever of ours the first show, the second
        // show too.
        let mut ranges = BTreeMap::new();
        for prefix in widest(prefixes) {
            if prefix.as_key().is_none() {
                let index = shared.api.index_of(prefix.as_str()).await?;
                ranges.insert(prefix, index);
            }
        }
        let scopes = self.turn(prefixes);
        let mut groups = Vec::new();
        let mut singles = Vec::new();
        for scope in scopes {
            match scope.place() {
                Place::Below(begin) => {
                    let index = shared.api.index_of(&begin).await?;
                    groups.push((scope, begin, index));
                }
                Place::Exactly(key) => singles.push((scope, key)),
            }
        }
        let mut found: HashMap<String, u64> = HashMap::new();
        for some in singles.chunks(KEYS) {
            let wanted = Wanted {
                exact: some.iter().map(|(_, key)| key.clone()).collect(),
                ..Wanted::default()
            };
            let pairs = shared.view(&wanted).await?.exact.into_iter().flatten();
            found.extend(pairs.map(|pair| (pair.key, pair.modified)));
        }
        let wanted = Wanted {
            trees: vec![GENERATIONS.to_owned()],
            readable: vec![format!("{GENERATIONS}{PROBE}")],
            ..Wanted::default()
        };
        let view = shared.view(&wanted).await?;
        let generations: HashMap<Scope, u64> = view
            .trees
            .iter()
            .filter_map(|pair| Some((Scope::of_generation(&pair.key)?, pair.modified)))
            .collect();
        let of = |scope: &Scope| generations.get(scope).copied().unwrap_or(0);
        let mut foreign = Vec::new();
        for (prefix, index) in ranges {
            if index > view.clock {
                self.tell(&mut foreign, prefix, index);
            }
        }
        for (scope, begin, index) in groups {
            if index > of(&scope)
                && let Ok(range) = Prefix::new(&begin)
            {
                self.tell(&mut foreign, range, index);
            }
        }
        for (scope, key) in singles {
            let generation = of(&scope);
            let now = found.get(&key).copied();
            let before = match now {
                Some(now) => self.keys.insert(key.clone(), (now, generation)),
                None => self.keys.remove(&key),
            };
            let index = match (before, now) {
                (_, Some(now)) if now > generation => now,
                // It went, and no commit of ours took it.
                (Some((_, then)), None) if then == generation => view.clock,
                _ => continue,
            };
            if let Ok(key) = platctrl_framework::store::Key::new(&key) {
                self.tell(&mut foreign, Prefix::only(&key), index);
            }
        }
        self.generations = generations.into_keys().collect();
        self.generations.sort();
        self.told
            .retain(|_, index| *index > view.clock.saturating_sub(1_000_000));
        Ok(foreign)
    }

    fn tell(&mut self, foreign: &mut Vec<Foreign>, range: Prefix, index: u64) {
        let told = self.told.entry(range.as_str().to_owned()).or_default();
        if *told < index {
            *told = index;
            foreign.push(Foreign { range, index });
        }
    }

    /// The scopes whose turn it is, among those that somebody watches.
    fn turn(&mut self, prefixes: &[Prefix]) -> Vec<Scope> {
        let watched: Vec<&Scope> = self
            .generations
            .iter()
            .filter(|scope| prefixes.iter().any(|prefix| scope.meets(prefix)))
            .collect();
        let count = watched.len().min(SCOPES);
        let chosen: Vec<Scope> = watched
            .iter()
            .cycle()
            .skip(self.next)
            .take(count)
            .map(|scope| (*scope).clone())
            .collect();
        self.next = (self.next + count) % watched.len().max(1);
        chosen
    }
}

/// The prefixes that no other one covers.
fn widest(prefixes: &[Prefix]) -> Vec<Prefix> {
    let mut widest: Vec<Prefix> = Vec::new();
    for prefix in prefixes {
        if widest.iter().any(|wide| wide.covers(prefix.as_str())) {
            continue;
        }
        widest.retain(|narrow| !prefix.covers(narrow.as_str()));
        widest.push(prefix.clone());
    }
    widest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_widest_prefixes_are_looked_at() {
        let prefix = |text: &str| Prefix::new(text).unwrap();
        let all = [prefix("o/a/b/"), prefix("o/"), prefix("o/a/"), prefix("x/")];
        assert_eq!(widest(&all), [prefix("o/"), prefix("x/")]);
        assert_eq!(widest(&[prefix("o/"), Prefix::all()]), [Prefix::all()]);
    }
}
