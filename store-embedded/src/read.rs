//! Reads: records as they are, records as they were, and what changed since.
//!
//! The history holds what every change replaced. A read at an older revision is the newest state
//! with the later changes taken back; the value that a change wrote is found in the record itself
//! or in what the key's next change replaced.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use bytes::Bytes;
use platctrl_framework::store::{
    Change, Key, ListRequest, Page, Prefix, Record, Revision, Snapshot, StoreError,
};

use crate::codec::{Event, Put, Segment, Stored, is_in, to_key};
use crate::engine::View;
use crate::error::{EngineError, ReadError};

/// A page ends early once it holds this much.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

pub(crate) fn get(view: &View, keys: &[Key]) -> Result<Snapshot, ReadError> {
    let mut records = Vec::with_capacity(keys.len());
    for key in keys {
        let found = view.records.get(key.as_str().as_bytes())?;
        let decode = |guard: redb::AccessGuard<'_, &[u8]>| {
            let stored = Stored::decode(key.as_str().as_bytes(), guard.value())?;
            Ok::<_, EngineError>(Record {
                key: key.clone(),
                value: Bytes::copy_from_slice(stored.value),
                created: stored.created,
                modified: stored.modified,
                lease: stored.lease,
            })
        };
        records.push(found.map(decode).transpose()?);
    }
    Ok(Snapshot {
        records,
        revision: view.state.revision,
    })
}

/// Whether the state of a revision is kept.
pub(crate) fn readable(view: &View, revision: Revision) -> Result<(), StoreError> {
    let (oldest, newest) = (view.state.oldest, view.state.revision);
    if revision < oldest {
        return Err(StoreError::Compacted {
            requested: revision,
            oldest,
        });
    }
    if revision > newest {
        let reason = format!(
            "revision {revision} is ahead of the store's {newest}: it is of another history"
        );
        return Err(StoreError::Invalid { reason });
    }
    Ok(())
}

pub(crate) fn list(view: &View, request: &ListRequest) -> Result<Page, ReadError> {
    let revision = request.at.unwrap_or(view.state.revision);
    readable(view, revision)?;
    let prefix = request.prefix.as_str();
    let start = match &request.after {
        Some(key) if key.as_str() >= prefix => Bound::Excluded(key.as_str().as_bytes()),
        _ => Bound::Included(prefix.as_bytes()),
    };
    let before = if revision < view.state.revision {
        replaced_since(view, &request.prefix, start, revision)?
    } else {
        BTreeMap::new()
    };
    let mut before = before.into_iter().peekable();
    let mut collector = Collector::new(request.limit);
    let end = request.prefix.end();
    let end = end
        .as_ref()
        .map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_bytes()));
    for entry in view.records.range::<&[u8]>((start, end))? {
        let (key, value) = entry?;
        let key = key.value();
        // Keys that are gone now, and were there then, lie between those that are.
        while let Some((_, record)) = before.next_if(|(gone, _)| gone.as_slice() < key) {
            if !collector.add(record) {
                return Ok(collector.page(revision));
            }
        }
        let record = match before.next_if(|(changed, _)| changed.as_slice() == key) {
            Some((_, record)) => record,
            None => {
                if collector.is_full() {
                    return Ok(collector.cut(revision));
                }
                Some(Stored::decode(key, value.value())?.to_record(key)?)
            }
        };
        if !collector.add(record) {
            return Ok(collector.page(revision));
        }
    }
    for (_, record) in before {
        if !collector.add(record) {
            break;
        }
    }
    Ok(collector.page(revision))
}

/// Gathers a page and notices that there is more.
struct Collector {
    records: Vec<Record>,
    limit: usize,
    bytes: usize,
    more: bool,
}

impl Collector {
    fn new(limit: usize) -> Self {
        Self {
            records: Vec::new(),
            limit,
            bytes: 0,
            more: false,
        }
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.limit || self.bytes >= PAGE_BYTES
    }

    /// False once the page is full and something more was found.
    fn add(&mut self, record: Option<Record>) -> bool {
        let Some(record) = record else {
            return true;
        };
        if self.is_full() {
            self.more = true;
            return false;
        }
        self.bytes += record.key.as_str().len() + record.value.len();
        self.records.push(record);
        true
    }

    fn cut(mut self, revision: Revision) -> Page {
        self.more = true;
        self.page(revision)
    }

    fn page(self, revision: Revision) -> Page {
        Page {
            records: self.records,
            revision,
            more: self.more,
        }
    }
}

/// For every key that changed after `revision`: what it held then; None where there was none.
fn replaced_since(
    view: &View,
    prefix: &Prefix,
    start: Bound<&[u8]>,
    revision: Revision,
) -> Result<BTreeMap<Vec<u8>, Option<Record>>, ReadError> {
    let wanted = |key: &[u8]| {
        is_in(prefix, key)
            && match start {
                Bound::Excluded(start) => key > start,
                _ => true,
            }
    };
    let mut before = BTreeMap::new();
    events_after(view, revision, |_, event| {
        // The first change after the revision replaced what was there at it.
        if wanted(event.key) && !before.contains_key(event.key) {
            let record = event.before.map(|stored| stored.to_record(event.key));
            before.insert(event.key.to_vec(), record.transpose()?);
        }
        Ok(true)
    })?;
    Ok(before)
}

/// Visits the events after `revision`, oldest first, until `visit` returns false.
fn events_after(
    view: &View,
    revision: Revision,
    mut visit: impl FnMut(Revision, Event<'_>) -> Result<bool, EngineError>,
) -> Result<(), EngineError> {
    let first = revision.next().as_u64();
    let start = match view.history.range(..=first)?.next_back() {
        Some(entry) => entry?.0.value(),
        None => first,
    };
    for entry in view.history.range(start..)? {
        let (first, bytes) = entry?;
        let segment = Segment::decode(first.value(), bytes.value())?;
        let go_on = segment.for_each(|at, event| {
            if at <= revision {
                return Ok(true);
            }
            visit(at, event)
        })?;
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// What one revision changed under a prefix, in key order.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<Change>,
}

/// A stretch of the history.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) changed: Vec<Changed>,
    /// Everything up to here is in `changed`.
    pub(crate) until: Revision,
}

/// The changes under a prefix after `after`, up to about `limit` of them.
///
/// `Compacted` when the history begins later.
pub(crate) fn changes_after(
    view: &View,
    prefix: &Prefix,
    after: Revision,
    limit: usize,
) -> Result<Stretch, ReadError> {
    readable(view, after)?;
    let mut found: Vec<(Revision, Vec<u8>, Option<Put>)> = Vec::new();
    let mut until = view.state.revision;
    events_after(view, after, |revision, event| {
        if found.len() >= limit && found.last().is_some_and(|(last, ..)| *last < revision) {
            until = found.last().map_or(after, |(last, ..)| *last);
            return Ok(false);
        }
        if is_in(prefix, event.key) {
            found.push((revision, event.key.to_vec(), event.put));
        }
        Ok(true)
    })?;
    let mut values = values_of(view, &found)?;
    let mut changed: Vec<Changed> = Vec::new();
    for (revision, key_bytes, put) in found {
        let key = to_key(&key_bytes)?;
        let change = match put {
            None => Change::Delete { key, revision },
            Some(put) => Change::Put(Record {
                value: values.remove(&(key_bytes, revision)).ok_or_else(|| {
                    EngineError::damaged(format!("the history of {key} has a gap at {revision}"))
                })?,
                key,
                created: put.created,
                modified: revision,
                lease: put.lease,
            }),
        };
        match changed.last_mut() {
            Some(last) if last.revision == revision => last.changes.push(change),
            _ => changed.push(Changed {
                revision,
                changes: vec![change],
            }),
        }
    }
    Ok(Stretch { changed, until })
}

/// The values that the given puts wrote.
fn values_of(
    view: &View,
    found: &[(Revision, Vec<u8>, Option<Put>)],
) -> Result<HashMap<(Vec<u8>, Revision), Bytes>, EngineError> {
    let mut values = HashMap::new();
    // Puts that were replaced since: their value is what the key's next change replaced.
    let mut missing: HashMap<&[u8], Vec<Revision>> = HashMap::new();
    let mut first_missing = None;
    for (revision, key, put) in found {
        if put.is_none() {
            continue;
        }
        let now = view.records.get(key.as_slice())?;
        let now = now
            .as_ref()
            .map(|guard| Stored::decode(key, guard.value()))
            .transpose()?;
        match now {
            Some(stored) if stored.modified == *revision => {
                let value = Bytes::copy_from_slice(stored.value);
                values.insert((key.clone(), *revision), value);
            }
            _ => {
                missing.entry(key).or_default().push(*revision);
                first_missing.get_or_insert(*revision);
            }
        }
    }
    let Some(first) = first_missing else {
        return Ok(values);
    };
    events_after(view, first, |_, event| {
        if let Some(before) = event.before
            && let Some(revisions) = missing.get_mut(event.key)
        {
            if let Some(at) = revisions.iter().position(|r| *r == before.modified) {
                revisions.swap_remove(at);
                let value = Bytes::copy_from_slice(before.value);
                values.insert((event.key.to_vec(), before.modified), value);
            }
            if revisions.is_empty() {
                missing.remove(event.key);
            }
        }
        Ok(!missing.is_empty())
    })?;
    Ok(values)
}
