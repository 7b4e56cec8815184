//! Applying a manifest: changing what it says and nothing else.

use serde_json::{Map, Value};

use super::{ATTEMPTS, Client, ClientError, Outcome, Result, objects};
use crate::model::{KindChecks, ObjectKey, RawObject};

/// The annotation that keeps the manifest as it was last applied, so that a field removed from
/// the manifest is told from one that somebody else set.
pub const LAST_APPLIED: &str = "platctrl.dev/last-applied";

/// Merges `new` into `live`: fields of `new` are set, fields that were in `last` and are not in
/// `new` are removed, all others stay. Lists are taken whole.
#[must_use]
pub fn three_way_merge(last: &Value, live: &Value, new: &Value) -> Value {
    let (Value::Object(live), Value::Object(new)) = (live, new) else {
        return new.clone();
    };
    let nothing = Map::new();
    let last = last.as_object().unwrap_or(&nothing);
    let mut merged = live.clone();
    for name in last.keys().filter(|name| !new.contains_key(*name)) {
        merged.remove(name);
    }
    for (name, value) in new {
        let before = last.get(name).unwrap_or(&Value::Null);
        let merged_value = match merged.get(name) {
            Some(live) => three_way_merge(before, live, value),
            None => value.clone(),
        };
        merged.insert(name.clone(), merged_value);
    }
    Value::Object(merged)
}

/// The part of an object that a manifest speaks of.
fn manifest(object: &RawObject) -> Result<Value> {
    let mut annotations = object.metadata.annotations.clone();
    annotations.remove(LAST_APPLIED);
    let mut manifest = Map::new();
    manifest.insert("spec".into(), object.spec.clone());
    for (name, value) in [
        ("labels", serde_json::to_value(&object.metadata.labels)?),
        ("annotations", serde_json::to_value(annotations)?),
    ] {
        if value.as_object().is_some_and(|fields| !fields.is_empty()) {
            manifest.insert(name.into(), value);
        }
    }
    Ok(Value::Object(manifest))
}

/// The object that a manifest makes where there is none: it remembers the manifest.
///
/// # Errors
/// When the manifest cannot be written as JSON.
pub fn first_applied(mut manifested: RawObject) -> Result<RawObject> {
    let text = manifest(&manifested)?.to_string();
    let annotations = &mut manifested.metadata.annotations;
    annotations.insert(LAST_APPLIED.to_owned(), text);
    Ok(manifested)
}

/// What an object becomes when a manifest is applied to it: see [`three_way_merge`]. Nothing is
/// written; the revision is that of `live`, so that an update with the result meets a conflict if
/// somebody else was faster.
///
/// # Errors
/// When one of them cannot be written as JSON.
pub fn applied(live: &RawObject, manifested: &RawObject) -> Result<RawObject> {
    let new = manifest(manifested)?;
    let text = new.to_string();
    // A manifest that has no more labels at all says nothing of those that others set.
    let mut new = new;
    for field in ["labels", "annotations"] {
        if let Value::Object(fields) = &mut new {
            fields.entry(field).or_insert_with(|| Map::new().into());
        }
    }
    let last = live
        .metadata
        .annotations
        .get(LAST_APPLIED)
        .and_then(|text| serde_json::from_str(text).ok());
    let mut merged = three_way_merge(&last.unwrap_or(Value::Null), &manifest(live)?, &new);
    let mut take = |field: &str| {
        let value = merged.get_mut(field).map(Value::take);
        value.unwrap_or_else(|| Map::new().into())
    };
    let mut next = live.clone();
    next.api_version.clone_from(&manifested.api_version);
    next.spec = take("spec");
    next.metadata.labels = serde_json::from_value(take("labels"))?;
    next.metadata.annotations = serde_json::from_value(take("annotations"))?;
    let annotations = &mut next.metadata.annotations;
    annotations.insert(LAST_APPLIED.to_owned(), text);
    Ok(next)
}

impl Client {
    /// Creates the object, or changes what its manifest says: see [`three_way_merge`]. A change
    /// by somebody else in between is taken into account, not overwritten.
    ///
    /// # Errors
    /// `AlreadyExists` while the object of that name is being deleted, `Invalid`, `Conflict` when
    /// others keep changing it, the store's.
    pub async fn apply(
        &self,
        key: &ObjectKey,
        object: RawObject,
        kind: Option<&KindChecks>,
    ) -> Result<(RawObject, Outcome)> {
        for _ in 0..ATTEMPTS {
            let joined = self.joined(key).await?;
            let Some(live) = joined.object() else {
                match self.create_raw(key, first_applied(object.clone())?).await {
                    Ok(created) => return Ok((created, Outcome::Created)),
                    Err(ClientError::AlreadyExists { hint: "", .. }) => continue,
                    Err(error) => return Err(error),
                }
            };
            if live.metadata.is_deleted() {
                return Err(ClientError::exists(&joined));
            }
            let live = objects::in_stored_version(key, live, kind)?;
            let next = applied(&live, &object)?;
            match self.update_raw(key, next, kind).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(ClientError::conflict(key, "others kept changing it"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_changes_what_it_says_and_removes_what_it_no_longer_says() {
        let last = json!({"replicas": 2, "env": {"A": "1", "B": "2"}});
        let live =
            json!({"replicas": 5, "env": {"A": "1", "B": "2", "C": "by hand"}, "defaulted": true});
        let new = json!({"replicas": 3, "env": {"A": "9"}});
        let merged = three_way_merge(&last, &live, &new);
        assert_eq!(
            merged,
            json!({"replicas": 3, "env": {"A": "9", "C": "by hand"}, "defaulted": true})
        );
    }
}
