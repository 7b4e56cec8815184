//! The two records of an object as the store holds them, and how they are read together.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Condition, ConditionStatus, Conditions, Digest, Metadata, ObjectKey, RawObject, Uid};
use crate::store::{Record, Revision};

/// What people and owning controllers want: metadata and spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// `group/version` that the spec is written in.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Who and what it is.
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(default)]
    pub spec: Value,
    /// Fields of other versions, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Intent {
    /// The digest that reality names to say which spec it is about.
    #[must_use]
    pub fn spec_digest(&self) -> Digest {
        Digest::of_json(&self.spec)
    }
}

/// What is so, by the one who does the work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reality {
    /// `group/version` that the status is written in.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Whose status it is.
    pub metadata: RealityMetadata,
    /// The status.
    #[serde(default)]
    pub status: Status<Map<String, Value>>,
    /// Fields of other versions, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Says whose status a reality record is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealityMetadata {
    /// The object's name.
    pub name: String,
    /// The object's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The object's uid; that of another incarnation makes the record somebody else's.
    #[serde(default)]
    pub uid: Uid,
    /// Set before the first effect outside the store: names who has begun to work on this uid,
    /// so that its end is not forgotten even if nothing else was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Written by the runtime with what it takes away for an order: a process that takes over
    /// knows by it that the order goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Declared>,
    /// Commits may be under way that compare this record and do not rewrite it: what they write
    /// may be missing from a view that shows the record so. Whoever decides on one rewrites the
    /// record first, so that none of them happens any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abreast: bool,
    /// Fields of other versions, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// That something was taken away because a generation of the object's own spec orders it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declared {
    /// The generation.
    pub generation: u64,
    /// When, by the clock of who did it.
    pub at: Timestamp,
}

/// A status: what every kind's has, and the kind's own `detail` beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status<S> {
    /// Where in its life the object is; empty for kinds without phases.
    #[serde(default, skip_serializing_if = "Phase::is_empty")]
    pub phase: Phase,
    /// The generation of the spec that was last worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<u64>,
    /// The digest of the canonical spec that was last worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_spec: Option<Digest>,
    /// What is so about the object.
    #[serde(default, skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
    /// The kind's own fields.
    #[serde(flatten)]
    pub detail: S,
}

/// Where in its life an object is. Kinds choose their own; [`Phase::GONE`] is common to all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Phase(Cow<'static, str>);

impl Phase {
    /// Everything outside the store that was made for the object is taken away: its records may
    /// be removed.
    pub const GONE: Self = Self::new("Gone");

    /// A phase of a kind.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The phase as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A record's content with the revisions of the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// The content.
    pub value: T,
    /// The revision that created the record.
    pub created: Revision,
    /// The revision of its last put.
    pub modified: Revision,
}

/// A record that is not what its key says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {key} at revision {revision} cannot be read: {reason}")]
pub struct RecordError {
    /// Where it is.
    pub key: String,
    /// Which put wrote it.
    pub revision: Revision,
    /// What is wrong.
    pub reason: String,
}

fn decode<T: for<'de> Deserialize<'de>>(record: &Record) -> Result<Versioned<T>, RecordError> {
    let value = serde_json::from_slice(&record.value).map_err(|error| RecordError {
        key: record.key.to_string(),
        revision: record.modified,
        reason: error.to_string(),
    })?;
    Ok(Versioned {
        value,
        created: record.created,
        modified: record.modified,
    })
}

fn check_name(
    key: &ObjectKey,
    record: &Record,
    name: &str,
    namespace: Option<&str>,
) -> Result<(), RecordError> {
    if name == key.name() && namespace == key.namespace() {
        return Ok(());
    }
    let reason = format!(
        "it says it is {}/{name}, which is not its key",
        namespace.unwrap_or("-")
    );
    Err(RecordError {
        key: record.key.to_string(),
        revision: record.modified,
        reason,
    })
}

impl Versioned<Intent> {
    /// Reads an intent record.
    ///
    /// # Errors
    /// [`RecordError`] when it is no intent, or not that of `key`.
    pub fn from_record(key: &ObjectKey, record: &Record) -> Result<Self, RecordError> {
        let intent: Self = decode(record)?;
        let metadata = &intent.value.metadata;
        check_name(key, record, &metadata.name, metadata.namespace.as_deref())?;
        if metadata.uid.is_empty() {
            let reason = "its metadata has no uid".to_owned();
            return Err(RecordError {
                key: record.key.to_string(),
                revision: record.modified,
                reason,
            });
        }
        Ok(intent)
    }
}

impl Versioned<Reality> {
    /// Reads a reality record, or a part.
    ///
    /// # Errors
    /// [`RecordError`] when it is no reality, or not that of `key`.
    pub fn from_record(key: &ObjectKey, record: &Record) -> Result<Self, RecordError> {
        let reality: Self = decode(record)?;
        let metadata = &reality.value.metadata;
        check_name(key, record, &metadata.name, metadata.namespace.as_deref())?;
        Ok(reality)
    }
}

/// All records of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// Which object.
    pub key: ObjectKey,
    /// What is wanted.
    pub intent: Option<Versioned<Intent>>,
    /// What is so.
    pub reality: Option<Versioned<Reality>>,
    /// What further writers say, by writer.
    pub parts: BTreeMap<String, Versioned<Reality>>,
}

impl Joined {
    /// An object of which no record is known.
    #[must_use]
    pub fn empty(key: ObjectKey) -> Self {
        Self {
            key,
            intent: None,
            reality: None,
            parts: BTreeMap::new(),
        }
    }

    /// The highest revision of its records, which is what `resourceVersion` shows.
    #[must_use]
    pub fn resource_version(&self) -> Revision {
        let intent = self.intent.iter().map(|intent| intent.modified);
        let others = self
            .reality
            .iter()
            .chain(self.parts.values())
            .map(|reality| reality.modified);
        intent.chain(others).max().unwrap_or(Revision::ZERO)
    }

    /// The reality, if it is about the uid that is wanted now.
    #[must_use]
    pub fn own_reality(&self) -> Option<&Versioned<Reality>> {
        let uid = &self.intent.as_ref()?.value.metadata.uid;
        self.reality
            .as_ref()
            .filter(|reality| reality.value.metadata.uid == *uid)
    }

    /// The intent is missing while somebody still reports: nobody ordered an end, so whoever
    /// works keeps working, and people are told.
    #[must_use]
    pub fn is_unexplained(&self) -> bool {
        let live = |reality: &Versioned<Reality>| {
            !reality.value.metadata.uid.is_empty() && reality.value.status.phase != Phase::GONE
        };
        self.intent.is_none() && self.reality.as_ref().is_some_and(live)
    }

    /// The object is to end, and everybody who worked on it says that all is taken away. Without
    /// any reality nobody has begun.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let Some(intent) = self.intent.as_ref() else {
            return false;
        };
        let metadata = &intent.value.metadata;
        let tombstoned = metadata
            .deletion
            .as_ref()
            .is_some_and(|deletion| deletion.uid == metadata.uid);
        let done = |reality: &Versioned<Reality>| {
            let mine = reality.value.metadata.uid == metadata.uid;
            !mine || reality.value.status.phase == Phase::GONE
        };
        tombstoned && self.reality.iter().chain(self.parts.values()).all(done)
    }

    /// The object as everybody is shown it: the intent with the status that is about it.
    ///
    /// A reality of another uid is left out. One about another spec is shown with `Ready` set to
    /// `Unknown`, because it says nothing about what is wanted now. None without an intent.
    #[must_use]
    pub fn object(&self) -> Option<RawObject> {
        let intent = &self.intent.as_ref()?.value;
        let mut metadata = intent.metadata.clone();
        metadata.resource_version = Some(self.resource_version());
        let mut status = self
            .own_reality()
            .map(|reality| reality.value.status.clone())
            .unwrap_or_default();
        for part in self
            .parts
            .values()
            .filter(|part| part.value.metadata.uid == metadata.uid)
        {
            for (name, value) in &part.value.status.detail {
                status
                    .detail
                    .entry(name.clone())
                    .or_insert_with(|| value.clone());
            }
            for condition in &part.value.status.conditions {
                if status.conditions.get(&condition.kind).is_none() {
                    let at = condition
                        .last_transition_time
                        .unwrap_or(Timestamp::UNIX_EPOCH);
                    status
                        .conditions
                        .set(condition.clone(), condition.observed_generation, at);
                }
            }
        }
        if status.conditions.get("Ready").is_some()
            && status.observed_spec != Some(intent.spec_digest())
        {
            let ready = status.conditions.get("Ready").cloned();
            let (at, generation) = ready
                .map(|ready| (ready.last_transition_time, ready.observed_generation))
                .unwrap_or_default();
            let message = "the last report is about an earlier spec";
            let unknown = Condition::new(
                "Ready",
                ConditionStatus::Unknown,
                "SpecNotObserved",
                message,
            );
            status
                .conditions
                .set(unknown, generation, at.unwrap_or(Timestamp::UNIX_EPOCH));
        }
        Some(RawObject {
            api_version: intent.api_version.clone(),
            kind: intent.kind.clone(),
            metadata,
            spec: intent.spec.clone(),
            status,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Deletion, Propagation};

    fn key() -> ObjectKey {
        ObjectKey::namespaced("example.dev", "sites", "default", "a").unwrap()
    }

    fn intent(uid: &str, spec: &Value) -> Versioned<Intent> {
        let metadata = json!({"name": "a", "namespace": "default", "uid": uid, "generation": 1});
        let value = json!({"apiVersion": "example.dev/v1", "kind": "Site", "metadata": metadata, "spec": spec});
        Versioned {
            value: serde_json::from_value(value).unwrap(),
            created: Revision::new(0, 3),
            modified: Revision::new(0, 5),
        }
    }

    fn reality(uid: &str, spec: &Value, phase: &str) -> Versioned<Reality> {
        let ready = json!({"type": "Ready", "status": "True"});
        let status = json!({
            "phase": phase, "observedSpec": Digest::of_json(spec), "conditions": [ready], "pages": 7,
        });
        let metadata = json!({"name": "a", "namespace": "default", "uid": uid});
        let value = json!({"apiVersion": "example.dev/v1", "kind": "Site", "metadata": metadata, "status": status});
        Versioned {
            value: serde_json::from_value(value).unwrap(),
            created: Revision::new(0, 4),
            modified: Revision::new(0, 9),
        }
    }

    fn joined(intent: Option<Versioned<Intent>>, reality: Option<Versioned<Reality>>) -> Joined {
        Joined {
            key: key(),
            intent,
            reality,
            parts: BTreeMap::new(),
        }
    }

    fn tombstone(intent: &mut Versioned<Intent>) {
        intent.value.metadata.deletion = Some(Deletion {
            uid: intent.value.metadata.uid.clone(),
            at: Timestamp::UNIX_EPOCH,
            by: "test".into(),
            propagation: Propagation::Orphan,
            grace_seconds: None,
            reason: None,
            declared: true,
        });
    }

    #[test]
    fn both_records_are_shown_as_one_object_at_the_higher_revision() {
        let spec = json!({"x": 1});
        let object = joined(
            Some(intent("u1", &spec)),
            Some(reality("u1", &spec, "Running")),
        )
        .object()
        .unwrap();
        assert_eq!(object.metadata.resource_version, Some(Revision::new(0, 9)));
        assert_eq!(object.status.detail["pages"], 7);
        assert!(object.status.conditions.is_true("Ready"));
    }

    #[test]
    fn the_reality_of_another_uid_is_served_as_empty() {
        let spec = json!({"x": 1});
        let object = joined(
            Some(intent("u2", &spec)),
            Some(reality("u1", &spec, "Running")),
        )
        .object()
        .unwrap();
        assert_eq!(object.status, Status::default());
    }

    #[test]
    fn a_report_about_another_spec_is_no_news_about_readiness() {
        let object = joined(
            Some(intent("u1", &json!({"x": 2}))),
            Some(reality("u1", &json!({"x": 1}), "Running")),
        );
        let object = object.object().unwrap();
        assert_eq!(
            object.status.conditions.get("Ready").unwrap().status,
            ConditionStatus::Unknown
        );
    }

    #[test]
    fn an_object_is_finished_only_when_ordered_to_end_and_everybody_is_done() {
        let spec = json!({});
        let mut wanted = intent("u1", &spec);
        let gone = || Some(reality("u1", &spec, "Gone"));
        assert!(
            !joined(Some(wanted.clone()), gone()).is_finished(),
            "no tombstone"
        );
        tombstone(&mut wanted);
        assert!(
            !joined(Some(wanted.clone()), Some(reality("u1", &spec, "Running"))).is_finished(),
            "still running"
        );
        assert!(joined(Some(wanted.clone()), gone()).is_finished());
        assert!(
            joined(Some(wanted.clone()), None).is_finished(),
            "nobody has begun"
        );
        let mut with_part = joined(Some(wanted.clone()), gone());
        with_part
            .parts
            .insert("dns".into(), reality("u1", &spec, "Synced"));
        assert!(!with_part.is_finished(), "a part is not gone");
        wanted.value.metadata.deletion.as_mut().unwrap().uid = "u0".into();
        assert!(
            !joined(Some(wanted), gone()).is_finished(),
            "the tombstone is for another uid"
        );
    }

    #[test]
    fn a_missing_intent_is_unexplained_and_not_an_order() {
        let unexplained = joined(None, Some(reality("u1", &json!({}), "Running")));
        assert!(unexplained.is_unexplained() && !unexplained.is_finished());
        assert!(!joined(None, Some(reality("u1", &json!({}), "Gone"))).is_unexplained());
    }

    #[test]
    fn fields_of_other_versions_survive_a_round_trip() {
        let text = r#"{"apiVersion":"e/v1","kind":"Site","metadata":{"name":"a","uid":"u","zebra":[1]},"spec":{"q":1},"top":true}"#;
        let intent: Intent = serde_json::from_str(text).unwrap();
        let again: Value = serde_json::to_value(&intent).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_record_that_names_another_object_is_refused() {
        let record = Record {
            key: key().store_key(crate::model::Tree::Intent),
            value: serde_json::to_vec(&json!({"apiVersion":"e/v1","kind":"Site","metadata":{"name":"b","namespace":"default","uid":"u"}})).unwrap().into(),
            created: Revision::ZERO,
            modified: Revision::ZERO,
            lease: None,
        };
        let error = Versioned::<Intent>::from_record(&key(), &record).unwrap_err();
        assert!(error.to_string().contains("not its key"), "{error}");
    }
}
