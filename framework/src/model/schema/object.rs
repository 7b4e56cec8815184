//! Checks whole objects as people send them: the envelope, the metadata, and the spec.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::check::{Checker, MAX_PROBLEMS, Problem};
use super::path::Path;
use super::text::{choice, did_you_mean, found};
use crate::model::{FieldError, KindDefinition, check_labels, check_name};

const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Adds a description. Never inlined: as part of [`METADATA`] it makes a function that rustc 1.95
/// compiles wrongly in release builds, where reading the map then panics.
#[inline(never)]
fn described(text: &str, mut schema: Value) -> Value {
    schema["description"] = json!(text);
    schema
}

/// The schema of every object's metadata: what is stored, what is shown, and what Kubernetes
/// tools send along.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let texts = json!({"type": ["object", "null"], "additionalProperties": {"type": "string"}});
    let text = || json!({"type": ["string", "null"]});
    let owner = json!({
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string", "description": "The owner's `group/version`."},
            "kind": {"type": "string", "description": "The owner's kind."},
            "name": {"type": "string", "description": "The owner's name, in the same namespace."},
            "uid": {"type": "string", "description": "The owner's uid."},
            "controller": {"type": ["boolean", "null"], "description": "It is the one owner that manages the object."},
            "blockOwnerDeletion": {"type": ["boolean", "null"], "description": "Accepted from Kubernetes tools; without effect."},
        },
        "required": ["apiVersion", "kind", "name", "uid"],
    });
    json!({
        "type": "object",
        "description": "Who and what the object is.",
        "properties": {
            "name": described("The name, unique among the objects of one kind in one namespace at one time.", json!({"type": "string"})),
            "generateName": described("The beginning of a name that the server completes.", text()),
            "namespace": described("The tenant; `default` when it is left out.", text()),
            "labels": described("For selecting.", texts.clone()),
            "annotations": described("For people and tools; nothing selects by them.", texts),
            "ownerReferences": described("The objects this one was made for.", json!({"type": ["array", "null"], "items": owner})),
            "uid": described("Given at creation; another one when a name is used again.", text()),
            "resourceVersion": described("The highest revision of the object's records. An update that has it is refused when the object changed since.", text()),
            "generation": described("Counts changes of the spec, from 1.", json!({"type": ["integer", "null"]})),
            "creationTimestamp": described("When it was created.", text()),
            "deletion": described("The order to end the object: who gave it, when and why. Written by deleting.", json!({})),
            "deletionTimestamp": described("When its end was ordered.", text()),
            "deletionGracePeriodSeconds": described("Seconds that its end may take.", json!({"type": ["integer", "null"]})),
            "finalizers": described("Not supported: an object's records go when all who work on it say that they are done.", json!({"type": ["array", "null"], "items": {"type": "string"}})),
            "managedFields": described("Who answers for which fields, once somebody applied the object on the server.", json!({})),
            "selfLink": described("Accepted from Kubernetes tools; not kept.", json!({})),
        },
    })
});

/// The schema of every object's metadata, for documents about kinds.
#[must_use]
pub fn metadata_schema() -> &'static Value {
    &METADATA
}

/// Checks an object that somebody wants to create or update: that it is of this kind, its
/// metadata with names and labels, and its spec by the kind's schema.
///
/// All problems are returned, up to 100, in the order apiVersion, kind, metadata, spec. The
/// status is ignored: it is written by whoever does the work, and tools send it back.
///
/// ```
/// use platctrl_framework::model::{KindDefinition, NoStatus, Resource, schema};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// #
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// #[resource(group = "example.dev", version = "v1", kind = "Site")]
/// struct SiteSpec {
///     domain: String,
///     pages: u32,
/// }
///
/// let errors = schema::check_object(
///     &KindDefinition::of::<Site>(),
///     &serde_json::json!({
///         "apiVersion": "example.dev/v1",
///         "kind": "Site",
///         "metadata": {"name": "home", "lables": {}},
///         "spec": {"domian": "example.org", "pages": "two"},
///     }),
/// );
/// let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
/// assert_eq!(
///     errors,
///     [
///         "metadata.lables: unknown field; did you mean `labels`?",
///         "spec.domain: is required",
///         "spec.pages: expected an integer, found the string \"two\"",
///         "spec.domian: unknown field; did you mean `domain`?",
///     ]
/// );
/// ```
#[must_use]
pub fn check_object(definition: &KindDefinition, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Value::Object(fields) = object else {
        let text = format!("expected an object, found {}", found(object));
        return vec![FieldError::new(".", text)];
    };
    let names = [
        ("apiVersion", definition.api_version()),
        ("kind", definition.kind.clone()),
    ];
    for (field, expected) in names {
        match fields.get(field) {
            Some(Value::String(text)) if *text == expected => {}
            Some(other) => {
                let text = format!("expected `{expected}`, found {}", found(other));
                errors.push(FieldError::new(field, text));
            }
            None => errors.push(FieldError::new(field, format!("is required: `{expected}`"))),
        }
    }
    match fields.get("metadata") {
        Some(metadata) => check_metadata(metadata, &mut errors),
        None => errors.push(FieldError::new("metadata.name", "is required")),
    }
    let spec_schema = definition.schema.pointer("/properties/spec");
    match (spec_schema, fields.get("spec")) {
        (Some(schema), Some(spec)) => errors.extend(super::check(spec, schema, "spec")),
        (_, None) => errors.push(FieldError::new("spec", "is required")),
        (None, Some(_)) => {}
    }
    for name in fields
        .keys()
        .filter(|name| !FIELDS.contains(&name.as_str()))
    {
        errors.push(unknown_top_level(name));
        if errors.len() >= MAX_PROBLEMS {
            break;
        }
    }
    errors.truncate(MAX_PROBLEMS);
    errors
}

fn unknown_top_level(name: &str) -> FieldError {
    let hint = did_you_mean(name, FIELDS);
    let text = if hint.is_empty() {
        format!(
            "unknown field; an object has {}",
            choice(FIELDS).replace(" or ", " and ")
        )
    } else {
        format!("unknown field{hint}")
    };
    FieldError::new(super::child_path("", name), text)
}

fn check_metadata(metadata: &Value, errors: &mut Vec<FieldError>) {
    let problems = Checker::new(&METADATA).run(metadata, &Path::base("metadata"));
    errors.extend(problems.into_iter().map(Problem::into_error));
    let Value::Object(fields) = metadata else {
        return;
    };
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    match (text("name"), text("generateName")) {
        (Some(name), _) if !name.is_empty() => check_segment("name", name, errors),
        (_, Some(prefix)) if !prefix.is_empty() => {}
        // A name that is no text was reported.
        _ if fields.get("name").is_some_and(|name| !name.is_string()) => {}
        _ => errors.push(FieldError::new("metadata.name", "is required")),
    }
    if let Some(namespace) = text("namespace") {
        check_segment("namespace", namespace, errors);
    }
    check_labels("metadata.labels", &texts(fields.get("labels")), errors);
    if let Some(Value::Array(finalizers)) = fields.get("finalizers")
        && !finalizers.is_empty()
    {
        let text = "finalizers are not supported: an object's records go when all who work on it \
                    say that they are done; remove the field";
        errors.push(FieldError::new("metadata.finalizers", text));
    }
}

fn check_segment(field: &'static str, name: &str, errors: &mut Vec<FieldError>) {
    if let Err(error) = check_name(field, name) {
        errors.push(FieldError::new(
            format!("metadata.{field}"),
            error.to_string(),
        ));
    }
}

/// The entries that are texts; others were reported.
fn texts(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter);
    entries
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

impl Problem {
    pub(super) fn into_error(self) -> FieldError {
        FieldError::new(self.path, self.text)
    }
}
