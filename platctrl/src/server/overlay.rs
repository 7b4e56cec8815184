//! What the store holds after a commit, without reading it again; and the parts of objects that
//! requests speak of.

use platctrl_framework::client::ClientError;
use platctrl_framework::model::{Intent, Joined, RawObject, Reality, Tree, Versioned};
use platctrl_framework::store::{Record, Revision, Write};
use serde_json::{Value, json};

use super::status::{Failure, Result};

pub(super) fn revision_of(object: &Value) -> Result<Option<Revision>> {
    let text = object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str);
    let parsed = text
        .filter(|text| !text.is_empty())
        .map(str::parse)
        .transpose();
    parsed.map_err(|error| {
        let error: platctrl_framework::store::ParseRevisionError = error;
        Failure::bad_request(format!("metadata.resourceVersion: {error}"))
    })
}

pub(super) fn scale_of(object: &RawObject) -> Value {
    let api = object.to_api();
    let of = |path: &str| api.pointer(path).cloned().unwrap_or(Value::Null);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": of("/metadata/name"),
            "namespace": of("/metadata/namespace"),
            "uid": of("/metadata/uid"),
            "resourceVersion": of("/metadata/resourceVersion"),
            "creationTimestamp": of("/metadata/creationTimestamp"),
        },
        "spec": {"replicas": of("/spec/replicas")},
        "status": {"replicas": api.pointer("/status/replicas").cloned().unwrap_or(json!(0))},
    })
}

/// What was read with what was written: the present state without reading it again. Without a
/// revision nothing was written, and the versions stay as they were.
pub(super) fn overlay(
    mut joined: Joined,
    writes: Vec<Write>,
    revision: Option<Revision>,
) -> Result<Joined, ClientError> {
    let intent_key = joined.key.store_key(Tree::Intent);
    let reality_key = joined.key.store_key(Tree::Reality);
    for write in writes {
        match write {
            Write::Delete { key } if key == intent_key => joined.intent = None,
            Write::Put { key, value, .. } if key == intent_key => {
                let before = joined.intent.as_ref().map(|it| (it.created, it.modified));
                let record = record(key, value, before, revision);
                joined.intent = Some(Versioned::<Intent>::from_record(&joined.key, &record)?);
            }
            Write::Put { key, value, .. } if key == reality_key => {
                let before = joined.reality.as_ref().map(|it| (it.created, it.modified));
                let record = record(key, value, before, revision);
                joined.reality = Some(Versioned::<Reality>::from_record(&joined.key, &record)?);
            }
            _ => {}
        }
    }
    Ok(joined)
}

fn record(
    key: platctrl_framework::store::Key,
    value: bytes::Bytes,
    before: Option<(Revision, Revision)>,
    revision: Option<Revision>,
) -> Record {
    let (created, modified) = before.unwrap_or_default();
    Record {
        key,
        value,
        created: if before.is_some() {
            created
        } else {
            revision.unwrap_or(created)
        },
        modified: revision.unwrap_or(modified),
        lease: None,
    }
}
