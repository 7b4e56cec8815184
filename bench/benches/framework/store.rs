//! The server as a store, which the framework's controllers read: the same bytes over the same
//! connection as the other sides have.
//!
//! A store hands out keys, revisions and values, so it finds the two fields that say them in each
//! line and passes on the object as it is. It is read only.

use std::io::BufRead;
use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use platctrl_bench::Result;
use platctrl_framework::model::identity::{Anchor, AnchorState, PREFIX_ANCHOR, anchor_key};
use platctrl_framework::store::{
    Capabilities, Change, Key, Lease, LeaseId, Limits, ListRequest, Page, Prefix, Record, Revision,
    Snapshot, Store, StoreError, Transaction, WatchEvent, WatchStream,
};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::api::{Connection, Lines};
use crate::widget::FIRST_VERSION;

/// Objects in a page, for every side.
pub(crate) const PAGE: usize = 500;

#[derive(Debug)]
pub(crate) struct ApiStore {
    port: u16,
    lists: Mutex<Lists>,
}

/// A page that is being read, and the connection that it comes over.
type Reading = JoinHandle<Result<(Connection, Bytes)>>;

/// The connection that lists are read over.
#[derive(Debug, Default)]
struct Lists {
    connection: Option<Connection>,
    /// The page after the object of this name, which is read while the one before is decoded.
    ahead: Option<(String, Reading)>,
}

impl Lists {
    /// The page after the object of this name.
    async fn page(&mut self, port: u16, limit: usize, after: Option<&str>) -> Result<Bytes> {
        if let Some((name, ahead)) = self.ahead.take()
            && after == Some(name.as_str())
        {
            let (connection, body) = ahead.await??;
            self.connection = Some(connection);
            return Ok(body);
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(port).await?),
        };
        connection.page(limit, after).await
    }

    /// Begins to read the page after the object of this name.
    fn read_ahead(&mut self, limit: usize, after: String) {
        if let Some(mut connection) = self.connection.take() {
            let name = after.clone();
            let page = async move {
                let body = connection.page(limit, Some(&name)).await?;
                Ok((connection, body))
            };
            self.ahead = Some((after, tokio::spawn(page)));
        }
    }
}

fn broken(error: impl std::fmt::Display) -> StoreError {
    StoreError::unavailable(error.to_string())
}

/// The text behind `name`, up to the next quote.
fn field(line: &[u8], name: &str) -> Option<Range<usize>> {
    // Both fields are in the first part of every line.
    let head = line.get(..line.len().min(300))?;
    let name = name.as_bytes();
    // The first letter behind the quote is rare enough for the rest to be compared seldom.
    let begins = |window: &[u8]| window.get(1) == name.get(1) && window == name;
    let begin = head.windows(name.len()).position(begins)? + name.len();
    let length = head.get(begin..)?.iter().position(|&byte| byte == b'"')?;
    Some(begin..begin + length)
}

fn text<'l>(line: &'l [u8], name: &str) -> Option<&'l str> {
    std::str::from_utf8(line.get(field(line, name)?)?).ok()
}

fn version(line: &[u8]) -> Option<Revision> {
    let number = text(line, r#""resourceVersion":""#)?.parse().ok()?;
    Some(Revision::new(0, number))
}

fn record(all: &Bytes, object: &[u8]) -> Option<Record> {
    let name = field(object, r#""name":""#)?;
    let modified = version(object.get(name.end..)?)?;
    let name = std::str::from_utf8(object.get(name)?).ok()?;
    Some(Record {
        key: Key::new(format!("o/intent/bench.dev/widgets/default/{name}")).ok()?,
        value: all.slice_ref(object),
        created: modified,
        modified,
        lease: None,
    })
}

fn lines(bytes: &Bytes) -> impl Iterator<Item = &[u8]> {
    let mut rest: &[u8] = bytes;
    std::iter::from_fn(move || {
        let whole = rest;
        // Reading from bytes does not fail.
        let length = rest.skip_until(b'\n').unwrap_or(0);
        (length > 0).then(|| whole[..length].strip_suffix(b"\n").unwrap_or(whole))
    })
    .filter(|line| !line.is_empty())
}

fn anchor(at: Revision) -> Result<Record, StoreError> {
    let anchor = Anchor {
        store_id: "bench".to_owned(),
        epoch: 0,
        state: AnchorState::Active,
    };
    Ok(Record {
        key: Key::new(format!("o/{PREFIX_ANCHOR}")).map_err(broken)?,
        value: serde_json::to_vec(&anchor).map_err(broken)?.into(),
        created: at,
        modified: at,
        lease: None,
    })
}

impl ApiStore {
    pub(crate) fn new(port: u16) -> Self {
        Self {
            port,
            lists: Mutex::default(),
        }
    }

    async fn page(&self, request: &ListRequest) -> Result<Page> {
        if !"o/intent/bench.dev/widgets/".starts_with(request.prefix.as_str()) {
            // There is nothing else here.
            return Ok(Page {
                records: Vec::new(),
                revision: request.at.unwrap_or(Revision::new(0, FIRST_VERSION)),
                more: false,
            });
        }
        let mut lists = self.lists.lock().await;
        let after = request.after.as_ref();
        let after = after.and_then(|key| key.as_str().rsplit('/').next());
        let limit = PAGE.min(request.limit);
        let body = lists.page(self.port, limit, after).await?;
        let mut rows = lines(&body);
        let head = rows.next().ok_or("an empty page")?;
        let next = text(head, r#""continue":""#).filter(|next| !next.is_empty());
        if let Some(next) = next {
            lists.read_ahead(limit, next.to_owned());
        }
        drop(lists);
        let revision = version(head).ok_or("a page without a version")?;
        let mut records = Vec::with_capacity(PAGE + 1);
        if after.is_none() {
            records.push(anchor(revision)?);
        }
        for line in rows.filter(|line| line.starts_with(b"{")) {
            let object = line.strip_suffix(b",").unwrap_or(line);
            records.push(record(&body, object).ok_or("an object without a name")?);
        }
        Ok(Page {
            records,
            revision,
            more: next.is_some(),
        })
    }
}

/// What one read of the connection brought, each key at most once, in key order.
fn changes(batch: &Bytes) -> Result<WatchEvent> {
    let mut changes = Vec::new();
    for line in lines(batch) {
        let object = line.strip_prefix(br#"{"type":"MODIFIED","object":"#);
        let object = object.and_then(|object| object.strip_suffix(b"}"));
        let object = object.ok_or("a line that is no change")?;
        changes.push(record(batch, object).ok_or("an object without a name")?);
    }
    let newest = changes.iter().map(|record| record.modified).max();
    // Of one key the last stays.
    changes.sort_by(|a, b| a.key.cmp(&b.key).then(b.modified.cmp(&a.modified)));
    changes.dedup_by(|later, first| later.key == first.key);
    Ok(WatchEvent::Changes {
        revision: newest.unwrap_or(Revision::ZERO),
        changes: changes.into_iter().map(Change::Put).collect(),
    })
}

enum Watching {
    Begin,
    Lines(Box<Lines>),
    Ended,
}

impl Store for ApiStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Limits {
            max_writes: 128,
            max_compares: 128,
            max_operations: 128,
            max_transaction_bytes: 1 << 20,
            max_value_bytes: 1 << 20,
        })
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Box::pin(async move {
            // Asked for by a source that heard nothing for long: the anchor alone.
            let request = ListRequest::new(Prefix::all());
            let revision = self.page(&request).await.map_err(broken)?.revision;
            // The root's and the prefix's: a runtime compares the former in what it commits.
            let anchor = anchor(revision)?;
            let found = |key: &Key| {
                let (key, known) = (key.clone(), *key == anchor.key || *key == anchor_key());
                known.then(|| Record {
                    key,
                    ..anchor.clone()
                })
            };
            Ok(Snapshot {
                records: keys.iter().map(found).collect(),
                revision,
            })
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move { self.page(request).await.map_err(broken) })
    }

    fn commit(&self, _: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let reason = "this store is read only".to_owned();
        Box::pin(async { Err(StoreError::Invalid { reason }) })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        if !"o/intent/bench.dev/widgets/".starts_with(prefix.as_str()) {
            return futures::stream::pending().boxed();
        }
        let port = self.port;
        let next = move |watching| async move {
            let mut lines = match watching {
                Watching::Begin => {
                    let begun = async {
                        let connection = Connection::open(port).await?;
                        connection.watch(after.counter()).await
                    };
                    match begun.await {
                        Ok(lines) => Box::new(lines),
                        Err(error) => return Some((Err(broken(error)), Watching::Ended)),
                    }
                }
                Watching::Lines(lines) => lines,
                Watching::Ended => return None,
            };
            let event = match lines.next().await {
                Ok(Some(batch)) => changes(&batch),
                Ok(None) => Err("the watch ended".into()),
                Err(error) => Err(error),
            };
            Some(match event {
                Ok(event) => (Ok(event), Watching::Lines(lines)),
                Err(error) => (Err(broken(error)), Watching::Ended),
            })
        };
        futures::stream::unfold(Watching::Begin, next).boxed()
    }

    fn grant_lease(&self, _: std::time::Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(async { Err(broken("there are no leases here")) })
    }

    fn keep_alive(&self, _: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(broken("there are no leases here")) })
    }

    fn revoke_lease(&self, _: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(broken("there are no leases here")) })
    }
}
