//! Events, read-only: the rings of all writers as one list of objects.
//!
//! Nothing about an event is stored that an object has, so its metadata is made up from where it
//! is: `<name of its object>.<writer>.<slot>` in the namespace of its object.

use jiff::Timestamp;
use platctrl_framework::model::{Event, KindDefinition, KnownKind};
use platctrl_framework::store::{Key, ListRequest, Prefix, Record, Revision, Store};
use platctrl_kinds::{DEFAULT_NAMESPACE, GROUP};
use serde_json::{Value, json};

use super::selection::Selection;
use super::status::{Failure, Result};

const RING: &str = "x/event/";
/// Events of one list: a large fleet remembers more than a list is read for.
const MOST: usize = 10_000;

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

/// Leaves the newest, oldest first.
fn newest(events: &mut Vec<(Timestamp, u64, Value)>, most: usize) {
    events.sort_by_key(|(last, sequence, _)| (*last, *sequence));
    events.drain(..events.len().saturating_sub(most));
}

/// The events that are selected, oldest first: the newest of them, where there are very many.
pub(super) async fn list(
    store: &dyn Store,
    selection: &Selection,
) -> Result<(Vec<Value>, Revision)> {
    let prefix = prefix();
    let mut request = ListRequest::new(prefix);
    let mut events = Vec::new();
    let mut revision = None;
    loop {
        let page = store.list(&request).await?;
        let first = *revision.get_or_insert(page.revision);
        request.at = Some(first).filter(|_| store.capabilities().pinned_reads);
        request.after = page.records.last().map(|record| record.key.clone());
        let shown = page.records.iter().filter_map(shown);
        events.extend(shown.filter(|(_, _, event)| selection.matches_value(event)));
        if events.len() > 2 * MOST {
            newest(&mut events, MOST);
        }
        if !page.more || request.after.is_none() {
            break;
        }
    }
    newest(&mut events, MOST);
    let events = events.into_iter().map(|(_, _, event)| event).collect();
    Ok((events, revision.unwrap_or(Revision::ZERO)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_events_the_newest_are_listed() {
        let event = |at: i64| {
            (
                Timestamp::from_second(at).unwrap_or_default(),
                0,
                Value::Null,
            )
        };
        let mut events: Vec<_> = [3, 1, 5, 2, 4].map(event).into();
        newest(&mut events, 3);
        assert_eq!(events, [3, 4, 5].map(event));
    }
}
