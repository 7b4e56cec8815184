//! From the JSON that clients send to objects: defaults, checks, and what is dropped on the way.

use platctrl_framework::model::{FieldError, KnownKind, RawObject, Scope, schema};
use platctrl_kinds::DEFAULT_NAMESPACE;
use serde_json::{Map, Value};

use super::status::{Failure, Result};

/// What tools send back though the server says it, or keep for themselves.
const NOT_KEPT: [&str; 7] = [
    "managedFields",
    "selfLink",
    "generateName",
    "deletion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
];

/// What an object is called in messages.
pub(super) fn title(kind: &KnownKind, name: &str) -> String {
    format!("{} \"{name}\"", kind.definition.kind)
}

/// Gives an object the namespace and name of the path, and refuses others.
pub(super) fn place(
    kind: &KnownKind,
    namespace: Option<&str>,
    name: Option<&str>,
    object: &mut Value,
) -> Result<()> {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        // The schema's check says what is missing.
        return Ok(());
    };
    let given = |metadata: &Map<String, Value>, field: &str| {
        let text = metadata.get(field).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(ToOwned::to_owned)
    };
    let contradiction = |field: &str, given: &str, path: &str| {
        let given = super::request::shown(given);
        Failure::bad_request(format!(
            "metadata.{field} is `{given}` and the path says `{path}`: make them equal"
        ))
    };
    if kind.definition.scope != Scope::Cluster {
        match (given(metadata, "namespace"), namespace) {
            (Some(given), Some(path)) if given != path => {
                return Err(contradiction("namespace", &given, path));
            }
            (Some(_), _) => {}
            // What is no text is left to the schema's check.
            (None, _)
                if metadata
                    .get("namespace")
                    .is_some_and(|it| !it.is_null() && it != "") => {}
            (None, path) => {
                let namespace = path.unwrap_or(DEFAULT_NAMESPACE);
                metadata.insert("namespace".to_owned(), namespace.into());
            }
        }
    }
    if let Some(path) = name {
        match given(metadata, "name") {
            Some(given) if given != path => return Err(contradiction("name", &given, path)),
            Some(_) => {}
            None if metadata
                .get("name")
                .is_some_and(|it| !it.is_null() && it != "") => {}
            None => {
                metadata.insert("name".to_owned(), path.into());
            }
        }
    }
    Ok(())
}

/// All that is wrong with an object.
pub(super) fn problems(kind: &KnownKind, object: &Value) -> Vec<FieldError> {
    let mut errors = schema::check_object(&kind.definition, object);
    let namespace = object
        .pointer("/metadata/namespace")
        .and_then(Value::as_str);
    if kind.definition.scope == Scope::Cluster && namespace.is_some_and(|it| !it.is_empty()) {
        let text = format!(
            "{} are in no namespace: remove the field",
            kind.definition.plural
        );
        errors.push(FieldError::new("metadata.namespace", text));
    }
    if !errors.is_empty() {
        return errors;
    }
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if let Some(checks) = &kind.checks {
        errors = checks.validate(spec);
    }
    // The kind's own checks may have said so already.
    let homeless = kind.definition.scope == Scope::Node
        && kind.node(spec).is_none_or(|node| node.is_empty())
        && !errors.iter().any(|error| error.path == "spec.nodeName");
    if homeless {
        let text = "is required: name the node, or let a ReplicationController choose nodes";
        errors.push(FieldError::new("spec.nodeName", text));
    }
    errors
}

/// The same, as a failure.
pub(super) fn check(kind: &KnownKind, object: &Value) -> Result<()> {
    refuse(kind, object, problems(kind, object))
}

/// As [`check`], for a change: what was wrong before and stays as it was is not held against it,
/// so that an object written by a newer version can still be scaled by an older one.
pub(super) fn check_change(kind: &KnownKind, before: &Value, object: &Value) -> Result<()> {
    let mut errors = problems(kind, object);
    if !errors.is_empty() {
        let old = problems(kind, before);
        errors.retain(|error| !old.contains(error));
    }
    refuse(kind, object, errors)
}

fn refuse(kind: &KnownKind, object: &Value, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let name = super::request::shown(name);
    let definition = &kind.definition;
    let failure = Failure::invalid(title(kind, &name), errors);
    Err(failure.about(&definition.group, &definition.plural, &name))
}

/// A checked object without what is not kept. A status is left out: it is written on its own.
pub(super) fn decode(kind: &KnownKind, mut object: Value) -> Result<RawObject> {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        clean(metadata);
    }
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let title = title(kind, name);
    serde_json::from_value(object).map_err(|error| {
        Failure::invalid(title, vec![FieldError::new("metadata", error.to_string())])
    })
}

fn clean(metadata: &mut Map<String, Value>) {
    metadata.retain(|name, value| !NOT_KEPT.contains(&name.as_str()) && !value.is_null());
    if metadata.get("resourceVersion").is_some_and(|it| it == "") {
        metadata.remove("resourceVersion");
    }
    let owners = metadata
        .get_mut("ownerReferences")
        .and_then(Value::as_array_mut);
    for owner in owners
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        owner.retain(|_, value| !value.is_null());
    }
}
