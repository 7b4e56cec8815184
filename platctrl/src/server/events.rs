//! Events, read-only: the rings of all writers as one list of objects.
//!
//! Nothing about an event is stored that an object has, so its metadata is made up from where it
//! is: `<name of its object>.<writer>.<slot>` in the namespace of its object.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use platctrl_framework::model::{Event, KindDefinition, KnownKind};
use platctrl_framework::store::{Key, Prefix, Record, Revision, Store, StoreError};
use platctrl_kinds::{DEFAULT_NAMESPACE, GROUP};
use serde_json::{Value, json};

use super::scan::Pages;
use super::selection::Selection;
use super::status::{Failure, Result};

const RING: &str = "x/event/";
/// Events that are told in the order of time, if there are no more: a large fleet remembers
/// millions.
const FEW: usize = 2_000;

/// Whether a kind is this one.
pub(super) fn is(kind: &KnownKind) -> bool {
    kind.definition.group == GROUP && kind.definition.plural == "events"
}

/// The kind, which no store knows.
pub(super) fn kind() -> KnownKind {
    let text = json!({"type": "string"});
    let reference = json!({
        "type": "object",
        "description": "The object it happened to.",
        "properties": {
            "apiVersion": text, "kind": text, "namespace": text, "name": text, "uid": text,
        },
    });
    let described =
        |description: &str, kind: &str| json!({"type": kind, "description": description});
    let schema = json!({
        "type": "object",
        "properties": {
            "apiVersion": text,
            "kind": text,
            "metadata": {"type": "object", "properties": {
                "name": text, "namespace": text, "resourceVersion": text, "creationTimestamp": text,
            }},
            "involvedObject": reference,
            "type": described("Normal, or Warning if somebody should look.", "string"),
            "reason": described("One word in camel case for programs.", "string"),
            "message": described("What happened and why.", "string"),
            "source": {"type": "object", "description": "Who says so.", "properties": {"component": text}},
            "firstTimestamp": described("When it first happened.", "string"),
            "lastTimestamp": described("When it last happened.", "string"),
            "count": described("How often it happened.", "integer"),
        },
    });
    let column =
        |name: &str, path: &str, wide: bool| json!({"name": name, "path": path, "wide": wide});
    let definition = json!({
        "group": GROUP,
        "version": "v1",
        "kind": "Event",
        "plural": "events",
        "singular": "event",
        "shortNames": ["ev"],
        "scope": "Namespaced",
        "columns": [
            column("Last", ".lastTimestamp", false),
            column("Type", ".type", false),
            column("Reason", ".reason", false),
            column("Kind", ".involvedObject.kind", false),
            column("Object", ".involvedObject.name", false),
            column("Count", ".count", true),
            column("From", ".source.component", true),
            column("Message", ".message", false),
        ],
        "schema": schema,
    });
    let definition: KindDefinition = serde_json::from_value(definition)
        .expect("a literal has the fields of a kind's definition");
    KnownKind {
        definition,
        checks: None,
    }
}

/// An event's record as an object. None for a record that is no event.
pub(super) fn shown(record: &Record) -> Option<(Timestamp, u64, Value)> {
    let (writer, slot) = record.key.as_str().strip_prefix(RING)?.split_once('/')?;
    let event: Event = serde_json::from_slice(&record.value).ok()?;
    let object = &event.involved_object;
    let namespace = object.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let value = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": "Event",
        "metadata": {
            "name": format!("{}.{writer}.{slot}", object.name),
            "namespace": namespace,
            "resourceVersion": record.modified,
            "creationTimestamp": Timestamp::from_second(event.first_timestamp.as_second()).ok()?,
        },
        "involvedObject": object,
        "type": event.event_type,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": event.source},
        "firstTimestamp": event.first_timestamp,
        "lastTimestamp": event.last_timestamp,
        "count": event.count,
    });
    Some((event.last_timestamp, event.sequence, value))
}

/// Events one after the other, as of one revision: oldest first if they are few enough to be told
/// at once, else in the order of their keys.
#[derive(Debug)]
pub(super) struct Events {
    pages: Pages,
    revision: Revision,
    /// How many may still be read.
    left: usize,
    /// Read and not told yet, with their places.
    ready: VecDeque<(String, Value)>,
}

impl Events {
    /// Begins to read so many: behind `after`, as of `at`, where they are given.
    pub(super) async fn open(
        store: &Arc<dyn Store>,
        selection: &Selection,
        limit: Option<u64>,
        after: Option<&str>,
        at: Option<Revision>,
    ) -> Result<Self> {
        let mut pages = Pages::new(store.clone(), prefix(), at);
        if let Some(after) = after {
            let key = Key::new(format!("{RING}{after}")).ok();
            let foreign = || Failure::bad_request("`continue` is of another list");
            let key = key.filter(|key| key.is_under(&prefix()));
            pages.go_on(key.ok_or_else(foreign)?, at);
        }
        let left = limit.and_then(|limit| usize::try_from(limit).ok());
        let left = left.unwrap_or(usize::MAX);
        pages.at_most(left);
        let revision = pages.revision().await?;
        if at.is_some_and(|at| at != revision) {
            return Err(Failure::expired(
                "the list of events is no longer kept: list again from the beginning",
            ));
        }
        let mut events = Self {
            pages,
            revision,
            left,
            ready: VecDeque::new(),
        };
        let mut few = Vec::new();
        while few.len() < left.min(FEW)
            && let Some(event) = events.read(selection).await?
        {
            few.push(event);
        }
        if after.is_none() && !events.pages.is_more() {
            few.sort_by_key(|(_, (last, sequence, _))| (*last, *sequence));
        }
        let ready = few.into_iter().map(|(place, (_, _, event))| (place, event));
        events.ready = ready.collect();
        Ok(events)
    }

    async fn read(
        &mut self,
        selection: &Selection,
    ) -> Result<Option<(String, (Timestamp, u64, Value))>, StoreError> {
        loop {
            self.pages.at_most(self.left);
            let Some(record) = self.pages.next().await? else {
                return Ok(None);
            };
            let event = shown(&record).filter(|(_, _, event)| selection.matches_value(event));
            if let Some(event) = event {
                self.left = self.left.saturating_sub(1);
                let place = record.key.as_str().strip_prefix(RING).unwrap_or_default();
                return Ok(Some((place.to_owned(), event)));
            }
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// The next one that is selected, and its place.
    pub(super) async fn next(
        &mut self,
        selection: &Selection,
    ) -> Result<Option<(String, Value)>, StoreError> {
        if let Some(ready) = self.ready.pop_front() {
            return Ok(Some(ready));
        }
        let event = self.read(selection).await?;
        Ok(event.map(|(place, (_, _, event))| (place, event)))
    }

    /// There may be more, if only of those that are not selected.
    pub(super) fn is_more(&self) -> bool {
        !self.ready.is_empty() || self.pages.is_more()
    }
}

pub(super) fn prefix() -> Prefix {
    Prefix::new(RING).expect("a literal prefix is valid")
}

/// One event.
pub(super) async fn get(store: &dyn Store, namespace: Option<&str>, name: &str) -> Result<Value> {
    let missing = || Failure::no_object(GROUP, "events", &super::request::shown(name));
    // The slot is digits, and the writer has no slash; names may have dots.
    let (rest, slot) = name.rsplit_once('.').ok_or_else(missing)?;
    for (dot, _) in rest.match_indices('.') {
        let writer = &rest[dot + 1..];
        let Ok(key) = Key::new(format!("{RING}{writer}/{slot}")) else {
            continue;
        };
        let record = store
            .get(&[key])
            .await?
            .records
            .into_iter()
            .next()
            .flatten();
        let event = record.as_ref().and_then(shown).map(|(_, _, event)| event);
        let is_it = |event: &Value| {
            event["metadata"]["name"] == name
                && namespace.is_none_or(|namespace| event["metadata"]["namespace"] == namespace)
        };
        if let Some(event) = event.filter(is_it) {
            return Ok(event);
        }
    }
    Err(missing())
}
