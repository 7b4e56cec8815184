//! Records in the store, and objects on their way there.

use std::sync::LazyLock;

use bytes::Bytes;
use platctrl_framework::model::{
    Intent, Joined, Kinds, ObjectKey, RawObject, Reality, Tree, Versioned, schema,
};
use platctrl_framework::store::{Record, Revision};
use platctrl_kinds::{Node, Pod, ReplicationController};
use serde_json::Value;

use super::Target;

pub(super) const RECORD: Target = Target {
    name: "record",
    run: record,
    longest: 8192,
    words: WORDS,
};

pub(super) const MANIFEST_OBJECT: Target = Target {
    name: "object",
    run: object,
    longest: 8192,
    words: WORDS,
};

pub(super) const WORDS: &[&str] = &[
    "\"metadata\":{",
    "\"spec\":{",
    "\"status\":{",
    "\"uid\":\"",
    "\"deletion\":{",
    "\"phase\":\"Gone\"",
    "\"conditions\":[",
    "\"launchables\":{",
    "\"nodeSelector\":\"*\"",
    "null",
    "1e309",
    "-1",
    "18446744073709551616",
    "\\ud800",
    "[[[[",
    "2026-01-01T00:00:00Z",
    "99999-01-01T00:00:00Z",
];

/// The kinds that this project ships. Making their schemas takes longer than most inputs.
pub(super) fn kinds() -> &'static Kinds {
    static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
        Kinds::new()
            .with::<Node>()
            .with::<Pod>()
            .with::<ReplicationController>()
    });
    &KINDS
}

fn record(input: &[u8]) {
    let pod = ObjectKey::on_node("platctrl.dev", "pods", "web1", "default", "a")
        .expect("a constant that is a valid key");
    let stored = |tree| Record {
        key: pod.store_key(tree),
        value: Bytes::copy_from_slice(input),
        created: Revision::from_u64(3),
        modified: Revision::from_u64(4),
        lease: None,
    };
    let intent = Versioned::<Intent>::from_record(&pod, &stored(Tree::Intent)).ok();
    let reality = Versioned::<Reality>::from_record(&pod, &stored(Tree::Reality)).ok();
    let mut joined = Joined::empty(pod.clone());
    joined.intent = intent.clone();
    joined.reality = reality.clone();
    if let Some(part) = &reality {
        joined.parts.insert("balancer".to_owned(), part.clone());
    }
    let _ = (joined.is_finished(), joined.is_unexplained());
    if let Some(shown) = joined.object() {
        let _ = shown.to_api();
        let _ = shown.typed::<Pod>();
    }
    // Nothing that was stored is lost by reading and writing it again.
    if let Some(intent) = intent {
        let written = serde_json::to_vec(&intent.value).expect("what was read can be written");
        let again: Intent = serde_json::from_slice(&written).expect("what was written is read");
        assert_eq!(again, intent.value);
        assert_eq!(again.spec_digest(), intent.value.spec_digest());
    }
    if let Some(reality) = reality {
        let written = serde_json::to_vec(&reality.value).expect("what was read can be written");
        let again: Reality = serde_json::from_slice(&written).expect("what was written is read");
        assert_eq!(again, reality.value);
    }
}

fn object(input: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<Value>(input) {
        check(&value);
    }
}

/// What the checks let through, the types can read.
pub(super) fn check(value: &Value) {
    for known in kinds().iter() {
        let errors = schema::check_object(&known.definition, value);
        for error in &errors {
            assert!(!error.to_string().is_empty());
        }
        if !errors.is_empty() {
            continue;
        }
        // A status is not checked: it comes from who does the work.
        let mut wanted = value.clone();
        if let Some(fields) = wanted.as_object_mut() {
            fields.remove("status");
        }
        let raw: RawObject = serde_json::from_value(wanted).expect("what was checked is an object");
        let checks = known.checks.expect("the checks of our kinds are known");
        let problems = checks.validate(&raw.spec);
        let typed = match known.definition.plural.as_str() {
            "nodes" => raw.typed::<Node>().err(),
            "pods" => raw.typed::<Pod>().err(),
            _ => raw.typed::<ReplicationController>().err(),
        };
        if let Some(error) = typed {
            assert!(!problems.is_empty(), "accepted, but: {error}");
        }
    }
}
