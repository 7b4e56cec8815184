//! What the kinds look like, for tools that check and explain manifests: OpenAPI 2 and 3.
//!
//! A kind's own JSON schema becomes what both can say: a field that may be null is one that may be
//! left out, and where a value has several forms nothing is said of it but that it may be anything.
//! The server checks all of it in any case.

mod message;

use std::sync::OnceLock;

use platctrl_framework::model::{KindDefinition, Scope};
use serde_json::{Map, Value, json};

use super::status::{Failure, Result};
use super::target::{Served, has_scale};

/// The media type of OpenAPI 2 as a protocol buffer.
pub(super) const MESSAGE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What kubectl calls it that is older than 1.27. It is no media type, so no answer has it.
pub(super) const OLD_MESSAGE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// How an object says which kind it is, to tools.
const KIND: &str = "x-kubernetes-group-version-kind";
/// The schema may hold more than is said of it.
const ANYTHING: &str = "x-kubernetes-preserve-unknown-fields";
/// What a schema keeps of what both versions know.
const KEPT: [&str; 14] = [
    "description",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "default",
    "enum",
];

/// The documents of the kinds that a server has, made when first asked for.
#[derive(Debug, Default)]
pub(super) struct Documents {
    second: OnceLock<Value>,
    message: OnceLock<Vec<u8>>,
}

impl Documents {
    /// `/openapi/v2`.
    pub(super) fn second(&self, served: &Served) -> &Value {
        self.second.get_or_init(|| second(served))
    }

    /// The same as a protocol buffer.
    pub(super) fn message(&self, served: &Served) -> &[u8] {
        self.message
            .get_or_init(|| message::encode(self.second(served)))
    }
}

/// A kind's name in a document: `dev.platctrl.v1.Pod`.
fn name(definition: &KindDefinition) -> String {
    let mut group: Vec<_> = definition.group.split('.').collect();
    group.reverse();
    format!(
        "{}.{}.{}",
        group.join("."),
        definition.version,
        definition.kind
    )
}

fn group_version_kind(definition: &KindDefinition) -> Value {
    json!({"group": definition.group, "version": definition.version, "kind": definition.kind})
}

/// A schema as both versions of OpenAPI can say it.
fn simplify(schema: &Value) -> Value {
    let Value::Object(fields) = schema else {
        return json!({ANYTHING: true});
    };
    let alternatives = ["anyOf", "oneOf", "allOf"]
        .iter()
        .find_map(|name| fields.get(*name)?.as_array());
    let mut said = Map::new();
    if let Some(alternatives) = alternatives {
        let some: Vec<_> = alternatives
            .iter()
            .filter(|it| it["type"] != "null")
            .collect();
        said = match some.as_slice() {
            [only] => match simplify(only) {
                Value::Object(said) => said,
                _ => Map::new(),
            },
            several => words(several).unwrap_or_else(anything),
        };
    }
    for name in KEPT {
        if let Some(value) = fields.get(name) {
            said.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(only) = fields.get("const") {
        said.insert("enum".to_owned(), json!([only]));
    }
    match fields.get("type") {
        Some(Value::String(one)) => {
            said.insert("type".to_owned(), one.clone().into());
        }
        Some(Value::Array(several)) => {
            let some: Vec<_> = several.iter().filter(|it| **it != "null").collect();
            match some.as_slice() {
                [only] => {
                    said.insert("type".to_owned(), (*only).clone());
                }
                _ => said.extend(anything()),
            }
        }
        _ if alternatives.is_none() && !said.contains_key("enum") => said.extend(anything()),
        _ => {}
    }
    if let Some(Value::Object(properties)) = fields.get("properties") {
        let simple = properties
            .iter()
            .map(|(name, schema)| (name.clone(), simplify(schema)));
        said.insert(
            "properties".to_owned(),
            simple.collect::<Map<_, _>>().into(),
        );
    }
    if let Some(items) = fields.get("items") {
        said.insert("items".to_owned(), simplify(items));
    }
    // `false` is what both take as said where properties are listed.
    match fields.get("additionalProperties") {
        Some(Value::Bool(true)) => said.extend(anything()),
        Some(values @ Value::Object(_)) => {
            said.insert("additionalProperties".to_owned(), simplify(values));
        }
        _ => {}
    }
    said.into()
}

fn anything() -> Map<String, Value> {
    Map::from_iter([(ANYTHING.to_owned(), true.into())])
}

/// One of several words, each described on its own.
fn words(alternatives: &[&Value]) -> Option<Map<String, Value>> {
    let mut words = Vec::new();
    for alternative in alternatives {
        match (alternative.get("const"), alternative.get("enum")) {
            (Some(word @ Value::String(_)), _) => words.push(word.clone()),
            (None, Some(Value::Array(some))) if some.iter().all(Value::is_string) => {
                words.extend(some.iter().cloned());
            }
            _ => return None,
        }
    }
    (!words.is_empty()).then(|| {
        Map::from_iter([
            ("type".to_owned(), "string".into()),
            ("enum".to_owned(), words.into()),
        ])
    })
}

fn schema_of(definition: &KindDefinition) -> Value {
    let mut schema = simplify(&definition.schema);
    // Tools send back what servers of other makes keep there.
    if let Some(metadata) = schema
        .pointer_mut("/properties/metadata")
        .and_then(Value::as_object_mut)
    {
        metadata.extend(anything());
    }
    schema[KIND] = json!([group_version_kind(definition)]);
    schema
}

/// A method of a path.
struct Operation<'a> {
    method: &'a str,
    action: &'a str,
    /// Query parameters and their types.
    query: &'a [(&'a str, &'a str)],
    takes: &'a [&'a str],
}

const LIST: &[(&str, &str)] = &[
    ("labelSelector", "string"),
    ("fieldSelector", "string"),
    ("limit", "integer"),
    ("continue", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("watch", "boolean"),
    ("sendInitialEvents", "boolean"),
    ("allowWatchBookmarks", "boolean"),
    ("timeoutSeconds", "integer"),
];
const WRITE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
];
const JSON_BODY: &[&str] = &["application/json"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];
const PATCH: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("force", "boolean"),
];

const COLLECTION: &[Operation<'_>] = &[
    Operation {
        method: "get",
        action: "list",
        query: LIST,
        takes: &[],
    },
    Operation {
        method: "post",
        action: "post",
        query: WRITE,
        takes: JSON_BODY,
    },
];
const OBJECT: &[Operation<'_>] = &[
    Operation {
        method: "get",
        action: "get",
        query: &[],
        takes: &[],
    },
    Operation {
        method: "put",
        action: "put",
        query: WRITE,
        takes: JSON_BODY,
    },
    Operation {
        method: "patch",
        action: "patch",
        query: PATCH,
        takes: PATCHES,
    },
    Operation {
        method: "delete",
        action: "delete",
        query: &[("dryRun", "string"), ("propagationPolicy", "string")],
        takes: JSON_BODY,
    },
];

/// The paths of a kind with what may be done there. A part of an object has no delete.
fn paths(
    served: &Served,
    definition: &KindDefinition,
) -> Vec<(String, &'static [Operation<'static>])> {
    let root = format!("/apis/{}/{}", definition.group, definition.version);
    let plural = &definition.plural;
    let known = served.iter().find(|known| {
        known.definition.group == definition.group && known.definition.plural == *plural
    });
    let reads_only = known.is_some_and(|known| served.is_events(known));
    let one = if reads_only {
        &COLLECTION[..1]
    } else {
        COLLECTION
    };
    let object = if reads_only { &OBJECT[..1] } else { OBJECT };
    let place = match definition.scope {
        Scope::Cluster => root.clone(),
        _ => format!("{root}/namespaces/{{namespace}}"),
    };
    let mut paths = vec![
        (format!("{place}/{plural}"), one),
        (format!("{place}/{plural}/{{name}}"), object),
    ];
    if definition.scope != Scope::Cluster {
        // What is created here names its namespace itself.
        paths.push((format!("{root}/{plural}"), one));
    }
    if !reads_only {
        paths.push((format!("{place}/{plural}/{{name}}/status"), &OBJECT[..3]));
        if known.is_some_and(has_scale) {
            paths.push((format!("{place}/{plural}/{{name}}/scale"), &OBJECT[..3]));
        }
    }
    paths
}

/// The names in braces of a path.
fn placeholders(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn operation_id(operation: &Operation<'_>, definition: &KindDefinition, path: &str) -> String {
    let mut words = path
        .split('/')
        .skip(4)
        .filter(|part| !part.starts_with('{'));
    let rest: Vec<_> = words.by_ref().collect();
    format!(
        "{}_{}_{}_{}",
        operation.action,
        definition.group.replace('.', "_"),
        definition.version,
        rest.join("_")
    )
}

fn info(version: &str) -> Value {
    json!({"title": "platctrl", "version": version})
}

/// What a list of a kind is.
fn list_of(reference: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {
                "resourceVersion": {"type": "string"}, "continue": {"type": "string"},
            }},
            "items": {"type": "array", "items": reference},
        },
    })
}

/// What says why something was not done.
fn status() -> Value {
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "status", "code", "reason", "message"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string", "enum": ["Status"]},
            "metadata": {"type": "object"},
            "status": {"type": "string"},
            "code": {"type": "integer"},
            "reason": {"type": "string"},
            "message": {"type": "string"},
            "details": {"type": "object"},
        },
    })
}

/// The answers of an operation: code, words and schema.
fn answers(
    operation: &Operation<'_>,
    path: &str,
    reference: &Value,
) -> Vec<(&'static str, &'static str, Value)> {
    let object = match path.ends_with("/scale") || operation.action == "delete" {
        // A scale, or what was deleted, or that it is gone.
        true => json!({"type": "object"}),
        false => reference.clone(),
    };
    let mut answers = match operation.action {
        "list" => vec![("200", "OK", list_of(reference))],
        "post" => vec![("201", "Created", object)],
        // What is applied is made where there was none.
        "patch" => vec![("200", "OK", object.clone()), ("201", "Created", object)],
        _ => vec![("200", "OK", object)],
    };
    answers.push(("default", "Not done", status()));
    answers
}

fn second(served: &Served) -> Value {
    let (mut definitions, mut all) = (Map::new(), Map::new());
    for known in served.iter() {
        let definition = &known.definition;
        definitions.insert(name(definition), schema_of(definition));
        let reference = json!({"$ref": format!("#/definitions/{}", name(definition))});
        for (path, operations) in paths(served, definition) {
            let mut item = Map::new();
            for operation in operations {
                let mut parameters: Vec<_> = placeholders(&path)
                    .map(|name| json!({"name": name, "in": "path", "required": true, "type": "string"}))
                    .collect();
                parameters.extend(
                    operation
                        .query
                        .iter()
                        .map(|(name, kind)| json!({"name": name, "in": "query", "type": kind})),
                );
                if !operation.takes.is_empty() {
                    parameters
                        .push(json!({"name": "body", "in": "body", "schema": {"type": "object"}}));
                }
                let answers = answers(operation, &path, &reference).into_iter();
                let answers = answers.map(|(code, words, schema)| {
                    (
                        code.to_owned(),
                        json!({"description": words, "schema": schema}),
                    )
                });
                item.insert(
                    operation.method.to_owned(),
                    json!({
                        "operationId": operation_id(operation, definition, &path),
                        "produces": ["application/json"],
                        "consumes": if operation.takes.is_empty() { JSON_BODY } else { operation.takes },
                        "parameters": parameters,
                        "responses": answers.collect::<Map<String, Value>>(),
                        "x-kubernetes-action": operation.action,
                        KIND: group_version_kind(definition),
                    }),
                );
            }
            all.insert(path, item.into());
        }
    }
    json!({
        "swagger": "2.0",
        "info": info(env!("CARGO_PKG_VERSION")),
        "paths": all,
        "definitions": definitions,
    })
}

/// `/openapi/v3`: where the documents are, one for each group and version.
pub(super) fn index(served: &Served) -> Value {
    let mut paths = Map::new();
    for known in served.iter() {
        let definition = &known.definition;
        let path = format!("apis/{}/{}", definition.group, definition.version);
        let place = json!({"serverRelativeURL": format!("/openapi/v3/{path}")});
        paths.insert(path, place);
    }
    json!({"paths": paths})
}

/// `/openapi/v3/apis/<group>/<version>`.
pub(super) fn third(served: &Served, group: &str, version: &str) -> Result<Value> {
    let (mut schemas, mut all) = (Map::new(), Map::new());
    let here = served
        .iter()
        .filter(|known| known.definition.group == group && known.definition.version == version);
    for known in here {
        let definition = &known.definition;
        schemas.insert(name(definition), schema_of(definition));
        let reference = json!({"$ref": format!("#/components/schemas/{}", name(definition))});
        for (path, operations) in paths(served, definition) {
            let mut item = Map::new();
            for operation in operations {
                let schema = |kind: &str| json!({"type": kind});
                let mut parameters: Vec<_> = placeholders(&path)
                    .map(|name| json!({"name": name, "in": "path", "required": true, "schema": schema("string")}))
                    .collect();
                parameters.extend(operation.query.iter().map(
                    |(name, kind)| json!({"name": name, "in": "query", "schema": schema(kind)}),
                ));
                let answers = answers(operation, &path, &reference).into_iter();
                let answers = answers.map(|(code, words, schema)| {
                    let content = json!({"application/json": {"schema": schema}});
                    (
                        code.to_owned(),
                        json!({"description": words, "content": content}),
                    )
                });
                let mut described = json!({
                    "operationId": operation_id(operation, definition, &path),
                    "parameters": parameters,
                    "responses": answers.collect::<Map<String, Value>>(),
                    "x-kubernetes-action": operation.action,
                    KIND: group_version_kind(definition),
                });
                if !operation.takes.is_empty() {
                    let content = operation
                        .takes
                        .iter()
                        .map(|media| ((*media).to_owned(), json!({"schema": {"type": "object"}})));
                    described["requestBody"] =
                        json!({"content": content.collect::<Map<String, Value>>()});
                }
                item.insert(operation.method.to_owned(), described);
            }
            all.insert(path, item.into());
        }
    }
    if schemas.is_empty() {
        return Err(Failure::not_found(
            "there is no such group and version; /openapi/v3 lists them",
        ));
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": info(env!("CARGO_PKG_VERSION")),
        "paths": all,
        "components": {"schemas": schemas},
    }))
}

#[cfg(test)]
mod tests {
    use platctrl_framework::model::Kinds;
    use platctrl_kinds::{Node, Pod, ReplicationController};

    use super::*;

    fn served() -> Served {
        let kinds = Kinds::new().with::<Node>().with::<Pod>();
        Served::new(kinds.with::<ReplicationController>())
    }

    #[test]
    fn a_schema_says_what_both_versions_can_say() {
        let simple = simplify(&json!({
            "type": "object",
            "properties": {
                "replicas": {"type": ["integer", "null"], "format": "uint32", "minimum": 0},
                "policy": {"oneOf": [{"const": "Always", "description": "…"}, {"enum": ["Never"]}]},
                "maybe": {"anyOf": [{"type": "string", "pattern": "^a"}, {"type": "null"}], "description": "d"},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "any": true,
            },
            "additionalProperties": false,
            "required": ["policy"],
        }));
        assert_eq!(
            simple,
            json!({
                "type": "object",
                "properties": {
                    "replicas": {"type": "integer", "format": "uint32", "minimum": 0},
                    "policy": {"type": "string", "enum": ["Always", "Never"]},
                    "maybe": {"type": "string", "pattern": "^a", "description": "d"},
                    "either": {ANYTHING: true},
                    "any": {ANYTHING: true},
                },
                "required": ["policy"],
            })
        );
    }

    #[test]
    fn every_kind_is_found_by_its_name_and_every_reference_leads_somewhere() {
        let served = served();
        let second = second(&served);
        let pod = &second["definitions"]["dev.platctrl.v1.Pod"];
        assert_eq!(pod[KIND][0]["kind"], "Pod");
        let third = third(&served, "platctrl.dev", "v1").unwrap();
        let path = "/apis/platctrl.dev/v1/namespaces/{namespace}/pods/{name}";
        let parameters = third["paths"][path]["patch"]["parameters"]
            .as_array()
            .unwrap();
        assert!(parameters.iter().any(|it| it["name"] == "fieldValidation"));
        for document in [&second, &third] {
            let text = document.to_string();
            for reference in text.split("\"$ref\":\"#").skip(1) {
                let pointer = reference.split('"').next().unwrap();
                assert!(document.pointer(pointer).is_some(), "{pointer}");
            }
        }
        assert!(super::third(&served, "platctrl.dev", "v9").is_err());
        let root = index(&served);
        assert!(root["paths"]["apis/platctrl.dev/v1"].is_object(), "{root}");
    }
}
