//! Reading: keys by name, and prefixes page by page.
//!
//! Consul hands out a prefix whole or not at all. What a page leaves over is kept for a while, so
//! that the next page neither asks again nor shows another moment.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use platctrl_framework::store::{
    Key, LeaseId, ListRequest, Page, Prefix, Record, Revision, Snapshot, StoreError,
};

use crate::layout::{GENERATIONS, Place, Scope, is_own, lease_key};
use crate::shared::{ATTEMPTS, LIMITS, PROBE, Shared, View, Wanted, locked};
use crate::wire::Pair;

/// How long what is left of a list is kept.
const KEPT: Duration = Duration::from_secs(60);
/// How many lists are under way at once.
const LISTS: usize = 4;

/// What is left of lists whose pages are still being fetched.
#[derive(Debug, Default)]
pub(crate) struct Cursors {
    all: Mutex<VecDeque<Cursor>>,
}

#[derive(Debug)]
struct Cursor {
    prefix: Prefix,
    revision: Revision,
    after: Key,
    /// In reverse: the next one is the last.
    rest: Vec<Record>,
    since: Instant,
}

impl Cursors {
    fn take(&self, request: &ListRequest) -> Option<Cursor> {
        let (at, after) = (request.at?, request.after.as_ref()?);
        let mut all = locked(&self.all);
        all.retain(|cursor| cursor.since.elapsed() < KEPT);
        let place = all.iter().position(|cursor| {
            cursor.revision == at && cursor.after == *after && cursor.prefix == request.prefix
        })?;
        all.remove(place)
    }

    fn keep(&self, cursor: Cursor) {
        let mut all = locked(&self.all);
        while all.len() >= LISTS {
            all.pop_front();
        }
        all.push_back(cursor);
    }

    fn page(&self, mut cursor: Cursor, limit: usize) -> Page {
        let left = cursor.rest.len().saturating_sub(limit);
        let mut records = cursor.rest.split_off(left);
        records.reverse();
        let revision = cursor.revision;
        let more = !cursor.rest.is_empty();
        if let Some(last) = records.last().filter(|_| more) {
            cursor.after = last.key.clone();
            cursor.since = Instant::now();
            self.keep(cursor);
        }
        Page {
            records,
            revision,
            more,
        }
    }
}

impl Shared {
    /// The revision of a view: no record in it is newer.
    fn revision_of(&self, view: &View) -> Revision {
        let exact = view.exact.iter().flatten();
        let newest = exact.chain(&view.trees).map(|pair| pair.modified).max();
        self.revision(view.clock.max(newest.unwrap_or(0)))
    }

    /// Leases among these that are held; what hung on the others is gone afterwards. None when
    /// there were such: what was read is to be read again.
    async fn held_leases(&self, records: &[Record]) -> Result<Option<Vec<LeaseId>>, StoreError> {
        let mut leases: Vec<LeaseId> = records.iter().filter_map(|record| record.lease).collect();
        leases.sort();
        leases.dedup();
        let (mut held, mut ended) = (Vec::new(), Vec::new());
        for some in leases.chunks(LIMITS.max_operations) {
            let wanted = Wanted {
                exact: some.iter().map(|lease| lease_key(lease.0)).collect(),
                ..Wanted::default()
            };
            let view = self.view(&wanted).await?;
            for (lease, pair) in some.iter().zip(view.exact) {
                match pair {
                    Some(pair) if pair.session.is_some() => held.push(*lease),
                    Some(_) => ended.push(*lease),
                    // Flags that somebody else wrote.
                    None => {}
                }
            }
        }
        for lease in &ended {
            self.bury(*lease).await?;
        }
        Ok(ended.is_empty().then_some(held))
    }

    pub(crate) async fn get(&self, keys: &[Key]) -> Result<Snapshot, StoreError> {
        let limit = LIMITS.max_operations;
        if keys.len() > limit {
            let reason = format!(
                "{} keys in one get; the store takes {limit}: ask in several calls",
                keys.len()
            );
            return Err(StoreError::Invalid { reason });
        }
        if let Some(key) = keys.iter().find(|key| is_own(key.as_str())) {
            let reason = format!("{key} belongs to the store on Consul itself");
            return Err(StoreError::Invalid { reason });
        }
        let wanted = Wanted {
            exact: keys.iter().map(|key| key.as_str().to_owned()).collect(),
            ..Wanted::default()
        };
        for _ in 0..ATTEMPTS {
            let view = self.view(&wanted).await?;
            let revision = self.revision_of(&view);
            let records: Vec<Option<Record>> = view
                .exact
                .into_iter()
                .map(|pair| pair.and_then(|pair| self.record(pair)))
                .collect();
            let there: Vec<Record> = records.iter().flatten().cloned().collect();
            let Some(held) = self.held_leases(&there).await? else {
                continue;
            };
            let records = records
                .into_iter()
                .map(|record| record.map(|record| with_held(record, &held)))
                .collect();
            return Ok(Snapshot { records, revision });
        }
        Err(self.api.unavailable("a read", "leases end all the time"))
    }

    /// Holds a list of objects against the generations: a scope that once had something and now
    /// shows nothing must be one that the credential may read. Consul leaves out what may not be
    /// read, as if it were not there.
    async fn must_be_readable(&self, prefix: &Prefix, pairs: &[Pair]) -> Result<(), StoreError> {
        let objects = Prefix::new("o/").is_ok_and(|objects| objects.overlaps(prefix));
        if !objects || prefix.as_key().is_some() {
            return Ok(());
        }
        let shown: HashSet<Scope> = pairs
            .iter()
            .filter_map(|pair| Key::new(&pair.key).ok())
            .map(|key| Scope::of(&key))
            .collect();
        let wanted = Wanted {
            trees: vec![GENERATIONS.to_owned()],
            readable: vec![format!("{GENERATIONS}{PROBE}")],
            ..Wanted::default()
        };
        let view = self.view(&wanted).await?;
        let empty: Vec<Scope> = view
            .trees
            .iter()
            .filter_map(|pair| Scope::of_generation(&pair.key))
            .filter(|scope| scope.meets(prefix) && !shown.contains(scope))
            .collect();
        let place = |scope: &Scope| match scope.place() {
            Place::Exactly(key) => key,
            Place::Below(begin) => format!("{begin}{PROBE}"),
        };
        let doubtful: Vec<String> = empty.iter().map(place).collect();
        self.must_be_allowed(&doubtful).await
    }

    pub(crate) async fn list(&self, request: &ListRequest) -> Result<Page, StoreError> {
        if let Some(cursor) = self.cursors.take(request) {
            return Ok(self.cursors.page(cursor, request.limit));
        }
        for _ in 0..ATTEMPTS {
            let view = self.view(&wanted_of(&request.prefix)).await?;
            let revision = self.revision_of(&view);
            let pairs = view.exact.into_iter().flatten().chain(view.trees);
            let pairs: Vec<Pair> = pairs.collect();
            self.must_be_readable(&request.prefix, &pairs).await?;
            let mut records: Vec<Record> = pairs
                .into_iter()
                .filter_map(|pair| self.record(pair))
                .filter(|record| record.key.is_under(&request.prefix))
                .filter(|record| {
                    request
                        .after
                        .as_ref()
                        .is_none_or(|after| record.key > *after)
                })
                .collect();
            records.sort_by(|a, b| a.key.cmp(&b.key));
            if request.limit == 0 {
                return Ok(Page {
                    more: !records.is_empty(),
                    records: Vec::new(),
                    revision,
                });
            }
            let Some(held) = self.held_leases(&records).await? else {
                continue;
            };
            let records = records.into_iter().map(|record| with_held(record, &held));
            let mut rest: Vec<Record> = records.collect();
            let Some(first) = rest.first().map(|record| record.key.clone()) else {
                return Ok(Page {
                    records: rest,
                    revision,
                    more: false,
                });
            };
            rest.reverse();
            let cursor = Cursor {
                prefix: request.prefix.clone(),
                revision,
                after: first,
                rest,
                since: Instant::now(),
            };
            return Ok(self.cursors.page(cursor, request.limit));
        }
        Err(self.api.unavailable("a list", "leases end all the time"))
    }
}

/// Flags name a lease only while there is one.
fn with_held(mut record: Record, held: &[LeaseId]) -> Record {
    record.lease = record.lease.filter(|lease| held.contains(lease));
    record
}

/// What a prefix's whole state takes to read.
pub(crate) fn wanted_of(prefix: &Prefix) -> Wanted {
    match prefix.as_key() {
        Some(key) => Wanted {
            exact: vec![key.as_str().to_owned()],
            ..Wanted::default()
        },
        None => Wanted {
            trees: vec![prefix.as_str().to_owned()],
            readable: vec![format!("{}{PROBE}", prefix.as_str())],
            ..Wanted::default()
        },
    }
}
