//! Finding out what changed for some watchers, at one moment of the store.
//!
//! A search goes down from the tops to buckets, to generations, to what their scopes hold. Each
//! read asks again for all that led there, so that what is found in the end was so at the moment
//! of one read. The clock's hint makes it short: what the last commit says it changed is read at
//! once, beside the tops that tell whether there was more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use platctrl_framework::store::{Change, Key, Prefix};

use crate::gone::Gone;
use crate::layout::{
    GENERATIONS, GENERATIONS_ABOVE, MANY, Place, Scope, TOPS, bucket_of, buckets_under, hinted,
    top_of, top_over,
};
use crate::shared::{PROBE, Shared, View, Wanted};
use crate::wire::Pair;

/// Tops, buckets and scopes that one read goes into, within Consul's 64 operations.
const TOPS_READ: usize = 4;
const BUCKETS: usize = 17;
const SCOPES: usize = 18;

/// Somebody who wants to know what changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeker<'a> {
    pub(crate) prefix: &'a Prefix,
    /// The only bucket that has anything for it; None: any may have.
    pub(crate) bucket: Option<u8>,
    /// Everything up to here is known to it.
    pub(crate) at: u64,
}

/// What a scope held at a moment.
#[derive(Debug)]
struct Content {
    clock: u64,
    pairs: Vec<Pair>,
    gone: Option<(u64, Gone)>,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The index of the newest commit that was seen.
    clock: u64,
    /// What the newest commits said of themselves.
    hint: BTreeSet<Scope>,
    /// A commit said nothing, and may have left the tops alone.
    silent: bool,
    /// The index of each top, of each bucket that was read, and of what stands for all of them.
    tops: BTreeMap<u8, u64>,
    buckets: BTreeMap<u8, u64>,
    many: u64,
    generations: BTreeMap<Scope, u64>,
    contents: HashMap<Scope, Content>,
}

/// What one read goes into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// The tops whose buckets are read, or those of all.
    tops: BTreeSet<u8>,
    all_tops: bool,
    /// The buckets whose generations are read, or those of all.
    buckets: BTreeSet<u8>,
    all_buckets: bool,
    scopes: Vec<Scope>,
}

impl Step {
    /// The step is enough for what another one asks of tops and buckets.
    fn covers(&self, other: &Self) -> bool {
        let tops = self.all_tops || (!other.all_tops && other.tops.is_subset(&self.tops));
        let buckets =
            self.all_buckets || (!other.all_buckets && other.buckets.is_subset(&self.buckets));
        tops && buckets
    }

    pub(crate) fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.readable.push(format!("{GENERATIONS_ABOVE}{PROBE}"));
        if self.all_tops {
            wanted.trees.push(GENERATIONS_ABOVE.to_owned());
        } else {
            // No other key begins like what stands for all.
            wanted.trees.extend([TOPS, MANY].map(str::to_owned));
            let below = self.tops.iter().map(|top| buckets_under(*top));
            wanted.trees.extend(below);
        }
        if self.all_buckets {
            wanted.trees.push(GENERATIONS.to_owned());
        } else {
            let begins = self.buckets.iter();
            let begins = begins.map(|bucket| format!("{GENERATIONS}{bucket:02x}/"));
            wanted.trees.extend(begins);
        }
        if self.all_buckets || !self.buckets.is_empty() {
            wanted.readable.push(format!("{GENERATIONS}{PROBE}"));
        }
        for scope in &self.scopes {
            match scope.place() {
                Place::Exactly(key) => wanted.exact.push(key),
                Place::Below(begin) => {
                    wanted.readable.push(format!("{begin}{PROBE}"));
                    wanted.trees.push(begin);
                }
            }
        }
        wanted
    }
}

fn newer(indexes: &BTreeMap<u8, u64>, base: u64) -> impl Iterator<Item = u8> {
    let changed = indexes.iter().filter(move |(_, index)| **index > base);
    changed.map(|(which, _)| *which)
}

impl Search {
    /// Takes in what the clock said at an index.
    pub(crate) fn hear(&mut self, clock: u64, hint: &[u8]) {
        if clock <= self.clock {
            return;
        }
        self.clock = clock;
        match hinted(hint) {
            Some(scopes) => self.hint.extend(scopes),
            None => self.silent = true,
        }
    }

    /// The tops and buckets that a read must go into, by all that is known.
    fn needed(&self, seekers: &[Seeker<'_>]) -> Step {
        let base = seekers.iter().map(|seeker| seeker.at).min();
        let base = base.unwrap_or(u64::MAX);
        let concerned: Option<BTreeSet<u8>> = seekers.iter().map(|seeker| seeker.bucket).collect();
        let mut buckets: BTreeSet<u8> = newer(&self.buckets, base).collect();
        let mut tops: BTreeSet<u8> = newer(&self.tops, base).collect();
        if let Some(concerned) = &concerned {
            buckets.retain(|bucket| concerned.contains(bucket));
            tops.retain(|top| concerned.iter().any(|bucket| top_over(*bucket) == *top));
        }
        let mut all_buckets = buckets.len() > BUCKETS;
        if self.many > base {
            match concerned {
                Some(some) if some.len() <= BUCKETS => buckets.extend(some),
                _ => all_buckets = true,
            }
        }
        Step {
            all_tops: tops.len() > TOPS_READ || (self.silent && self.clock > base),
            tops,
            buckets,
            all_buckets,
            scopes: Vec::new(),
        }
    }

    /// The scopes whose content somebody needs and that was not read since it changed.
    fn missing(&self, seekers: &[Seeker<'_>]) -> impl Iterator<Item = &Scope> {
        let needed = |scope: &Scope, index: u64| {
            let needs = |seeker: &Seeker<'_>| seeker.at < index && scope.meets(seeker.prefix);
            seekers.iter().any(needs)
        };
        let read = |scope: &Scope, index: u64| {
            let content = self.contents.get(scope);
            content.is_some_and(|content| content.clock >= index)
        };
        let changed = self.generations.iter();
        changed
            .filter(move |(scope, index)| !read(scope, **index) && needed(scope, **index))
            .map(|(scope, _)| scope)
    }

    /// What the next read goes into: what is needed, and what the hints make likely.
    pub(crate) fn step(&self, seekers: &[Seeker<'_>]) -> Step {
        let mut step = self.needed(seekers);
        let mut scopes: BTreeSet<&Scope> = self.missing(seekers).take(SCOPES).collect();
        for scope in &self.hint {
            let bucket = scope.bucket();
            let may_have = |seeker: &Seeker<'_>| seeker.bucket.is_none_or(|one| one == bucket);
            let (tops, buckets) = (step.tops.len(), step.buckets.len());
            if !seekers.iter().any(may_have) || tops >= TOPS_READ || buckets >= BUCKETS {
                continue;
            }
            step.tops.insert(top_over(bucket));
            step.buckets.insert(bucket);
            let known = self.contents.contains_key(scope) || scopes.len() >= SCOPES;
            if !known && seekers.iter().any(|seeker| scope.meets(seeker.prefix)) {
                scopes.insert(scope);
            }
        }
        step.scopes = scopes.into_iter().cloned().collect();
        step
    }

    /// Takes in what a read showed.
    pub(crate) fn take(&mut self, step: &Step, view: View) {
        let clock = view.clock;
        self.hear(clock, &view.hint);
        let mut found: BTreeMap<String, Pair> = BTreeMap::new();
        for pair in view.exact.into_iter().flatten().chain(view.trees) {
            if let Some(top) = top_of(&pair.key) {
                self.tops.insert(top, pair.modified);
            } else if let Some(bucket) = bucket_of(&pair.key) {
                self.buckets.insert(bucket, pair.modified);
            } else if pair.key == MANY {
                self.many = self.many.max(pair.modified);
            } else if pair.key.starts_with(GENERATIONS) {
                if let Some(scope) = Scope::of_generation(&pair.key) {
                    self.generations.insert(scope, pair.modified);
                }
            } else {
                found.insert(pair.key.clone(), pair);
            }
        }
        for scope in &step.scopes {
            let (pairs, gone) = match scope.place() {
                Place::Exactly(key) => (found.remove(&key).into_iter().collect(), None),
                Place::Below(begin) => {
                    let gone = scope.gone().and_then(|key| found.get(&key));
                    let gone = gone.map(|pair| {
                        let list = Gone::read(&pair.value);
                        // A list that somebody spoiled knows nothing up to now.
                        let unknown = || Gone::from(pair.modified);
                        (pair.modified, list.unwrap_or_else(unknown))
                    });
                    let below = found.range(begin.clone()..);
                    let below = below.take_while(|(key, _)| key.starts_with(&begin));
                    (below.map(|(_, pair)| pair.clone()).collect(), gone)
                }
            };
            let content = Content { clock, pairs, gone };
            self.contents.insert(scope.clone(), content);
        }
    }

    /// Whether a read, which was taken in, showed all that anybody needs to know at its moment.
    pub(crate) fn is_complete(&self, step: &Step, seekers: &[Seeker<'_>]) -> bool {
        step.covers(&self.needed(seekers)) && self.missing(seekers).next().is_none()
    }

    /// What changed for a seeker, and the newest index among it; None when deletes may be missing.
    pub(crate) fn changes(
        &self,
        shared: &Shared,
        seeker: Seeker<'_>,
    ) -> Option<(Vec<Change>, u64)> {
        let Seeker { prefix, at, .. } = seeker;
        let mut changes = BTreeMap::new();
        let mut newest = 0;
        for (scope, index) in &self.generations {
            if *index <= at || !scope.meets(prefix) {
                continue;
            }
            let Some(content) = self.contents.get(scope) else {
                continue;
            };
            let mut there = BTreeSet::new();
            for pair in &content.pairs {
                there.insert(pair.key.as_str());
                if pair.modified <= at || !prefix.covers(&pair.key) {
                    continue;
                }
                if let Some(record) = shared.record(pair.clone()) {
                    newest = newest.max(pair.modified);
                    changes.insert(record.key.clone(), Change::Put(record));
                }
            }
            let gone = match scope.place() {
                Place::Exactly(key) if there.contains(key.as_str()) => Vec::new(),
                Place::Exactly(key) => vec![(*index, key)],
                Place::Below(begin) => match &content.gone {
                    None => Vec::new(),
                    Some((list_index, list)) => list
                        .clone()
                        .since(*list_index, at)?
                        .into_iter()
                        .map(|(index, name)| (index, format!("{begin}{name}")))
                        .collect(),
                },
            };
            for (index, key) in gone {
                if there.contains(key.as_str()) || !prefix.covers(&key) {
                    continue;
                }
                if let Ok(key) = Key::new(&key) {
                    newest = newest.max(index);
                    let revision = shared.revision(index);
                    changes.insert(key.clone(), Change::Delete { key, revision });
                }
            }
        }
        Some((changes.into_values().collect(), newest))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::layout::{bucket_key, hint, top_key};

    fn scope(text: &str) -> Scope {
        Scope::of(&Key::new(text).unwrap())
    }

    fn pod(node: usize) -> Scope {
        scope(&format!("o/intent/platctrl.dev/pods/node-{node}/default/a"))
    }

    fn pair(key: &str, modified: u64) -> Pair {
        Pair {
            key: key.to_owned(),
            value: Bytes::new(),
            flags: 0,
            created: 1,
            modified,
            session: None,
        }
    }

    /// A store in which some nodes' pods changed at some index each.
    #[derive(Default)]
    struct Model {
        commits: Vec<(Vec<Scope>, u64)>,
        /// The newest commit says nothing and leaves the tops alone.
        is_old: bool,
    }

    impl Model {
        /// What a read shows.
        fn view(&self, step: &Step) -> View {
            let wanted = step.wanted();
            let mut all: BTreeMap<String, u64> = BTreeMap::new();
            let (mut clock, mut said) = (0, Bytes::new());
            for (place, (scopes, index)) in self.commits.iter().enumerate() {
                let is_old = self.is_old && place + 1 == self.commits.len();
                clock = *index;
                said = if is_old {
                    Bytes::new()
                } else {
                    hint(scopes.iter())
                };
                for scope in scopes {
                    all.insert(scope.generation(), *index);
                    all.insert(bucket_key(scope.bucket()), *index);
                    if !is_old {
                        all.insert(top_key(top_over(scope.bucket())), *index);
                    }
                    if let Place::Below(begin) = scope.place() {
                        all.insert(format!("{begin}default/a"), *index);
                    }
                }
            }
            let asked = |key: &String| wanted.trees.iter().any(|begin| key.starts_with(begin));
            let trees = all.iter().filter(|(key, _)| asked(key));
            View {
                clock,
                hint: said,
                exact: Vec::new(),
                trees: trees.map(|(key, index)| pair(key, *index)).collect(),
            }
        }

        /// Reads until a moment is found; returns the reads that it took, and the search.
        fn search(&self, wake: Option<(u64, Bytes)>, seekers: &[Seeker<'_>]) -> (usize, Search) {
            let mut search = Search::default();
            if let Some((clock, hint)) = wake {
                search.hear(clock, &hint);
            }
            for reads in 1..20 {
                let step = search.step(seekers);
                assert!(
                    step.wanted().trees.len() + step.scopes.len() < 62,
                    "{step:?}"
                );
                search.take(&step, self.view(&step));
                if search.is_complete(&step, seekers) {
                    return (reads, search);
                }
            }
            panic!("no moment is found: {search:?}");
        }
    }

    fn seeker(prefix: &Prefix, at: u64) -> Seeker<'_> {
        Seeker {
            prefix,
            bucket: Scope::around(prefix).map(|scope| scope.bucket()),
            at,
        }
    }

    fn read(search: &Search) -> Vec<&Scope> {
        let mut scopes: Vec<&Scope> = search.contents.keys().collect();
        scopes.sort();
        scopes
    }

    #[test]
    fn one_change_is_found_with_one_read_when_the_wake_told_of_it() {
        let all = Prefix::new("o/").unwrap();
        let model = Model {
            commits: (0..500).map(|n| (vec![pod(n)], 100 + n as u64)).collect(),
            is_old: false,
        };
        let wake = (599, hint([pod(499)].iter()));
        let (reads, search) = model.search(Some(wake), &[seeker(&all, 598)]);
        assert_eq!(reads, 1);
        assert_eq!(read(&search), [&pod(499)]);
        // Without a wake it takes one more.
        let (reads, search) = model.search(None, &[seeker(&all, 598)]);
        assert_eq!((reads, read(&search)), (2, vec![&pod(499)]));
        // Nothing changed: one read of the tops.
        let (reads, search) = model.search(None, &[seeker(&all, 599)]);
        assert_eq!((reads, read(&search)), (1, Vec::new()));
    }

    #[test]
    fn a_hint_never_hides_what_else_changed() {
        let all = Prefix::new("o/").unwrap();
        for between in 0..300 {
            // The commit before the one that woke, of another scope: maybe of the same bucket.
            let model = Model {
                commits: vec![(vec![pod(between)], 11), (vec![pod(499)], 12)],
                is_old: false,
            };
            let wake = (12, hint([pod(499)].iter()));
            let (_, search) = model.search(Some(wake), &[seeker(&all, 10)]);
            let mut expected = [pod(between), pod(499)];
            expected.sort();
            assert_eq!(read(&search), expected.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_commit_that_says_nothing_is_looked_for_everywhere() {
        let all = Prefix::new("o/").unwrap();
        let model = Model {
            commits: vec![(vec![pod(1)], 11), (vec![pod(2)], 12)],
            is_old: true,
        };
        let wake = (12, Bytes::new());
        let (_, search) = model.search(Some(wake), &[seeker(&all, 11)]);
        assert_eq!(read(&search), [&pod(2)]);
    }

    #[test]
    fn who_watches_one_node_reads_nothing_of_the_others() {
        let own = Prefix::new("o/intent/platctrl.dev/pods/node-7/").unwrap();
        let model = Model {
            commits: (0..500).map(|n| (vec![pod(n)], 100 + n as u64)).collect(),
            is_old: false,
        };
        let (reads, search) = model.search(None, &[seeker(&own, 107)]);
        assert!(read(&search).is_empty(), "{search:?}");
        assert!(reads <= 3, "{reads}");
        let generations: BTreeSet<u8> = search.generations.keys().map(Scope::bucket).collect();
        assert!(generations.len() <= 1, "{generations:?}");
        let (_, search) = model.search(None, &[seeker(&own, 106)]);
        assert_eq!(read(&search), [&pod(7)]);
    }

    #[test]
    fn many_changes_are_found_within_what_consul_takes_at_once() {
        let all = Prefix::new("o/").unwrap();
        let model = Model {
            commits: (0..200).map(|n| (vec![pod(n)], 100 + n as u64)).collect(),
            is_old: false,
        };
        let (_, search) = model.search(None, &[seeker(&all, 99)]);
        assert_eq!(read(&search).len(), 200);
    }
}
