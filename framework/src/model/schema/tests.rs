mod properties;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;
use crate::model::{KindDefinition, Resource, Selector};

/// All forms that specs are made of.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Fleet")]
#[serde(rename_all = "camelCase")]
struct FleetSpec {
    replicas: u32,
    /// Which nodes.
    selector: Selector,
    #[serde(default)]
    strategy: Strategy,
    template: Option<Template>,
    #[serde(default)]
    probes: Vec<Probe>,
    amount: Option<Amount>,
    stop: Option<Stop>,
    #[serde(default)]
    config: serde_json::Value,
    #[serde(default)]
    numbers: BTreeMap<u8, bool>,
    ratio: Option<f32>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    source: Source,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
enum Strategy {
    /// Pods stay.
    #[default]
    Static,
    /// Pods move.
    Dynamic,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Template {
    launchables: BTreeMap<String, Launchable>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Launchable {
    location: String,
    stop_timeout: Option<u16>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(tag = "type")]
enum Probe {
    Http { path: String },
    Tcp { port: u16 },
    Off,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(untagged)]
enum Amount {
    Whole(u16),
    Share(String),
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
enum Stop {
    Never,
    After { seconds: u32 },
    When(Box<Condition>),
}

/// It refers to itself.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
struct Condition {
    name: String,
    #[serde(default)]
    all: Vec<Condition>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
struct Common {
    #[serde(default)]
    paused: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(tag = "from")]
enum Source {
    Git { url: String },
    Archive { digest: String },
}

fn spec_schema() -> Value {
    KindDefinition::of::<Fleet>().schema["properties"]["spec"].clone()
}

fn valid() -> Value {
    json!({
        "replicas": 2,
        "selector": "role=web",
        "strategy": "Dynamic",
        "template": {"launchables": {"web": {"location": "a", "stopTimeout": 5, "env": {"A": "b"}}}},
        "probes": [{"type": "Http", "path": "/"}, {"type": "Tcp", "port": 1}, {"type": "Off"}],
        "amount": "10%",
        "stop": {"When": {"name": "a", "all": [{"name": "b"}]}},
        "config": {"any": ["thing", null, {"x": 1}]},
        "numbers": {"1": true},
        "ratio": 0.5,
        "paused": true,
        "from": "Git",
        "url": "u",
    })
}

/// The problems of the valid spec after a change, one a line.
fn after(pointer: &str, value: Value) -> String {
    let mut spec = valid();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    match parent {
        Value::Object(fields) => {
            fields.insert(name.to_owned(), value);
        }
        list => list[name.parse::<usize>().unwrap()] = value,
    }
    problems(&spec)
}

fn problems(spec: &Value) -> String {
    let errors = check(spec, &spec_schema(), "spec");
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn without(name: &str) -> String {
    let mut spec = valid();
    spec.as_object_mut().unwrap().remove(name).unwrap();
    problems(&spec)
}

#[test]
fn a_valid_spec_has_no_problems_and_can_be_decoded() {
    assert_eq!(problems(&valid()), "");
    serde_json::from_value::<FleetSpec>(valid()).unwrap();
    for optional in [
        "strategy", "template", "probes", "amount", "stop", "config", "paused",
    ] {
        assert_eq!(without(optional), "", "{optional}");
    }
    assert_eq!(after("/template", json!(null)), "");
    assert_eq!(after("/stop", json!("Never")), "");
}

#[test]
fn unknown_fields_are_refused_with_their_path_and_what_was_meant() {
    assert_eq!(
        after("/template/launchables/web/stopTimout", json!(1)),
        "spec.template.launchables.web.stopTimout: unknown field; known here: `env`, `location` or `stopTimeout`"
    );
    let mut spec = valid();
    let web = spec.pointer_mut("/template/launchables/web").unwrap();
    *web = json!({"location": "a", "stopTimout": 5});
    assert_eq!(
        problems(&spec),
        "spec.template.launchables.web.stopTimout: unknown field; did you mean `stopTimeout`?"
    );
    assert!(
        after("/nodeSelector", json!("*"))
            .starts_with("spec.nodeSelector: unknown field; known here: ")
    );
    assert_eq!(
        after("/stop/When/all/0/nam", json!(1)),
        "spec.stop.When.all[0].nam: unknown field; known here: `all` or `name`"
    );
    assert_eq!(
        after(
            "/template/launchables/a.b",
            json!({"location": "a", "x y": 1})
        ),
        "spec.template.launchables.\"a.b\".\"x y\": unknown field; known here: `env`, `location` or `stopTimeout`"
    );
}

#[test]
fn wrong_types_say_what_was_expected_and_found() {
    for (pointer, value, expected) in [
        (
            "/replicas",
            json!("two"),
            "spec.replicas: expected an integer, found the string \"two\"",
        ),
        (
            "/replicas",
            json!(1.5),
            "spec.replicas: expected an integer, found the number 1.5",
        ),
        (
            "/replicas",
            json!(-1),
            "spec.replicas: must be at least 0, found -1",
        ),
        (
            "/replicas",
            json!(4_294_967_296_u64),
            "spec.replicas: must be at most 4294967295, found 4294967296",
        ),
        (
            "/replicas",
            json!(null),
            "spec.replicas: expected an integer, found nothing (null): give it a value, or remove the field",
        ),
        ("/selector", json!(""), "spec.selector: must not be empty"),
        (
            "/paused",
            json!("yes"),
            "spec.paused: expected true or false, found the string \"yes\"",
        ),
        (
            "/template",
            json!([1]),
            "spec.template: expected an object, found a list",
        ),
        (
            "/probes",
            json!({}),
            "spec.probes: expected a list, found an object",
        ),
        (
            "/ratio",
            json!("x"),
            "spec.ratio: expected a number, found the string \"x\"",
        ),
        (
            "/template/launchables/web/env/A",
            json!(1),
            "spec.template.launchables.web.env.A: expected a string, found the number 1",
        ),
        (
            "/numbers/x",
            json!(true),
            "spec.numbers.x: unknown field; no fields are known here",
        ),
    ] {
        assert_eq!(after(pointer, value), expected);
    }
    assert_eq!(
        problems(&json!(1)),
        "spec: expected an object, found the number 1"
    );
    assert_eq!(without("replicas"), "spec.replicas: is required");
}

#[test]
fn choices_are_listed_and_the_alternative_that_was_meant_is_explained() {
    for (pointer, value, expected) in [
        (
            "/strategy",
            json!("dynamic"),
            "spec.strategy: expected one of `Static` or `Dynamic`, found the string \"dynamic\"; did you mean `Dynamic`?",
        ),
        (
            "/probes/1",
            json!({"type": "Tcp", "port": "x"}),
            "spec.probes[1].port: expected an integer, found the string \"x\"",
        ),
        (
            "/probes/1",
            json!({"type": "Tpc", "port": 1}),
            "spec.probes[1].type: expected one of `Http`, `Tcp` or `Off`, found the string \"Tpc\"; did you mean `Tcp`?",
        ),
        (
            "/probes/1",
            json!({"port": 1}),
            "spec.probes[1].type: is required: `Http`, `Tcp` or `Off`",
        ),
        (
            "/probes/1",
            json!({"type": "Off", "port": 1}),
            "spec.probes[1].port: unknown field; known here: `type`",
        ),
        (
            "/probes/1",
            json!(7),
            "spec.probes[1]: expected an object, found the number 7",
        ),
        (
            "/amount",
            json!(true),
            "spec.amount: expected an integer or a string, found true",
        ),
        (
            "/amount",
            json!(70000),
            "spec.amount: must be at most 65535, found 70000",
        ),
        (
            "/stop",
            json!({"After": {"second": 1}}),
            "spec.stop.After.seconds: is required\nspec.stop.After.second: unknown field; did you mean `seconds`?",
        ),
        (
            "/stop",
            json!({"Aftre": {}}),
            "spec.stop: needs one of the fields `After` or `When`\nspec.stop.Aftre: unknown field; did you mean `After`?",
        ),
        (
            "/stop",
            json!({"After": {"seconds": 1}, "When": {"name": "a"}}),
            "spec.stop: only one of `After` or `When` is allowed",
        ),
        (
            "/stop",
            json!("Nevr"),
            "spec.stop: expected `Never`, found the string \"Nevr\"; did you mean `Never`?",
        ),
    ] {
        assert_eq!(after(pointer, value), expected);
    }
    let lines = after("/from", json!("Archive"));
    assert!(
        lines.starts_with("spec.digest: is required\nspec.url: unknown field"),
        "{lines}"
    );
}

#[test]
fn all_problems_are_reported_at_once_but_not_without_end() {
    let spec = json!({"replicas": "x", "strategy": "y", "probes": [{"type": "Off"}, 1, 2], "z": 1});
    let lines = problems(&spec);
    for path in [
        "replicas",
        "strategy",
        "selector",
        "probes[1]",
        "probes[2]",
        "z",
        "from",
    ] {
        assert!(
            lines.contains(&format!("spec.{path}: ")),
            "{path} in {lines}"
        );
    }
    let many: Vec<_> = (0..1000).map(|_| json!(1)).collect();
    let errors = check(&json!({ "probes": many }), &spec_schema(), "spec");
    assert_eq!(errors.len(), 100);
}

#[test]
fn limits_and_patterns_are_checked() {
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
        "list": {"type": "array", "minItems": 1, "maxItems": 2, "uniqueItems": true},
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
        "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
        "bad": {"type": "string", "pattern": "("},
        "away": {"$ref": "#/$defs/none"},
        "never": false,
    }});
    let at = |value: Value| {
        let errors = check(&value, &schema, "");
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    let fine = json!({"name": "abc", "list": [1, 2], "pair": [1, "a"], "share": 1.25});
    assert_eq!(at(fine), "");
    for (value, expected) in [
        (
            json!({"name": "A"}),
            "name: must match the pattern `^[a-z]+$`, found the string \"A\"",
        ),
        (
            json!({"name": "abcd"}),
            "name: must have at most 3 characters, it has 4",
        ),
        (
            json!({"list": []}),
            "list: must have at least 1 items, it has 0",
        ),
        (
            json!({"list": [1, 1]}),
            "list[1]: it is the same as item 0: each is allowed once",
        ),
        (
            json!({"pair": ["a"]}),
            "pair[0]: expected an integer, found the string \"a\"",
        ),
        (json!({"share": 0}), "share: must be more than 0, found 0"),
        (
            json!({"share": 1.5}),
            "share: must be less than 1.5, found 1.5",
        ),
        (
            json!({"bad": ""}),
            "bad: the kind's schema has a pattern that cannot be used: `(`",
        ),
        (
            json!({"away": ""}),
            "away: the kind's schema refers to the string \"#/$defs/none\", which it does not have",
        ),
        (json!({"never": 1}), "never: nothing is allowed here"),
        (json!([]), ".: expected an object, found a list"),
    ] {
        assert_eq!(at(value), expected);
    }
}

#[test]
fn executors_get_the_unknown_fields_only() {
    let mut spec = valid();
    spec["replicas"] = json!("x");
    spec["gpus"] = json!(1);
    spec["template"]["launchables"]["web"]["sandbox"] = json!({});
    let unknown = unknown_fields(&spec, &spec_schema(), "spec");
    assert_eq!(
        unknown,
        ["spec.template.launchables.web.sandbox", "spec.gpus"]
    );
    assert!(unknown_fields(&valid(), &spec_schema(), "spec").is_empty());
}

#[test]
fn what_nests_too_deep_or_is_too_much_is_a_problem_and_no_crash() {
    let deep = (0..100).fold(
        json!({"name": "a"}),
        |inner, _| json!({"name": "a", "all": [inner]}),
    );
    let line = after("/stop/When", deep);
    assert!(line.contains("nests deeper than 64 levels"), "{line}");

    // Each value of a list is tried on 2^n alternatives.
    let doubled = (0..40).fold(
        json!({"type": "integer"}),
        |inner, _| json!({"anyOf": [inner, {"$ref": "#/$defs/x"}]}),
    );
    let circle = json!({
        "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}]}},
        "items": doubled,
    });
    let value = json!(["a", "b"]);
    let problems = Checker::new(&circle).run(&value, &Path::base("spec"));
    let [problem] = problems.as_slice() else {
        panic!("{problems:?}")
    };
    assert!(
        problem.text.contains("too much in it") && problem.unknown,
        "{problem:?}"
    );
    let own_tail = json!({"$ref": "#"});
    assert!(
        check(&json!({}), &own_tail, "spec")[0]
            .problem
            .contains("too deep")
    );
    assert_eq!(field_at(&own_tail, "a"), None);
    assert_eq!(
        field_at(
            &json!({"properties": {"spec": circle["$defs"]["x"]}}),
            "spec.a"
        ),
        None
    );
    let endless = json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]});
    assert_eq!(field_at(&endless, "a"), None);
}

fn object() -> Value {
    json!({"apiVersion": "example.dev/v1", "kind": "Fleet", "metadata": {"name": "a"}, "spec": valid()})
}

fn object_problems(object: &Value) -> String {
    let errors = check_object(&KindDefinition::of::<Fleet>(), object);
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn objects_as_tools_send_them_are_accepted() {
    let mut sent = object();
    sent["metadata"] = json!({
        "name": "a", "namespace": "default", "creationTimestamp": null, "uid": "u", "generation": 3,
        "resourceVersion": "12", "labels": {"example.dev/app": "web"}, "annotations": {"any key": "any\nvalue"},
        "managedFields": [{"manager": "kubectl"}], "finalizers": [], "deletion": {"uid": "u"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true, "blockOwnerDeletion": true}],
    });
    sent["status"] = json!({"anything": ["goes", 1], "phase": 7});
    assert_eq!(object_problems(&sent), "");
    sent["metadata"] = json!({"generateName": "a-", "labels": null});
    assert_eq!(object_problems(&sent), "");
}

#[test]
fn the_envelope_and_the_metadata_are_checked_like_the_spec() {
    for (field, value, expected) in [
        (
            "apiVersion",
            json!("v1"),
            "apiVersion: expected `example.dev/v1`, found the string \"v1\"",
        ),
        (
            "kind",
            json!(1),
            "kind: expected `Fleet`, found the number 1",
        ),
        (
            "spce",
            json!({}),
            "spce: unknown field; did you mean `spec`?",
        ),
        (
            "data",
            json!({}),
            "data: unknown field; an object has `apiVersion`, `kind`, `metadata`, `spec` and `status`",
        ),
        (
            "metadata",
            json!("a"),
            "metadata: expected an object, found the string \"a\"",
        ),
        ("metadata", json!({}), "metadata.name: is required"),
        (
            "metadata",
            json!({"name": 1}),
            "metadata.name: expected a string, found the number 1",
        ),
        (
            "metadata",
            json!({"name": "a", "lables": {}}),
            "metadata.lables: unknown field; did you mean `labels`?",
        ),
        (
            "metadata",
            json!({"name": "A"}),
            "metadata.name: `A` is not a valid name: only a-z, 0-9, `.`, `_` and `-` are allowed",
        ),
        (
            "metadata",
            json!({"name": "a", "labels": {"a": 1}}),
            "metadata.labels.a: expected a string, found the number 1",
        ),
    ] {
        let mut object = object();
        object[field] = value;
        assert_eq!(object_problems(&object), expected);
    }
    let mut wrong = object();
    wrong["metadata"] =
        json!({"name": "a", "namespace": "b/c", "labels": {"a": "b c"}, "finalizers": ["x"]});
    let lines = object_problems(&wrong);
    for path in [
        "metadata.namespace: ",
        "metadata.labels.a: ",
        "metadata.finalizers: finalizers are not supported",
    ] {
        assert!(lines.contains(path), "{path} in {lines}");
    }
    assert_eq!(
        object_problems(&json!([])),
        ".: expected an object, found a list"
    );
    let empty = object_problems(&json!({}));
    for path in [
        "apiVersion: is required: `example.dev/v1`",
        "kind: is required",
        "metadata.name: is",
        "spec: is required",
    ] {
        assert!(empty.contains(path), "{path} in {empty}");
    }
}

#[test]
fn fields_are_found_to_be_explained() {
    let definition = KindDefinition::of::<Fleet>();
    let named = |path: &str| field_at(&definition.schema, path).map(type_name);
    for (path, expected) in [
        ("spec", "object"),
        ("spec.replicas", "integer"),
        (".spec.strategy", "one of `Static` or `Dynamic`"),
        ("spec.template.launchables", "map of object"),
        ("spec.template.launchables.web.location", "string"),
        ("spec.template.launchables.\"a.b\".env", "map of string"),
        ("spec.probes", "list of object"),
        ("spec.probes[0].port", "integer"),
        ("spec.probes.path", "string"),
        ("spec.stop.When.all.all.all[2].name", "string"),
        ("spec.amount", "integer or string"),
        ("spec.url", "string"),
        ("spec.config", "any"),
        ("metadata.labels", "map of string"),
        ("metadata.ownerReferences.uid", "string"),
        (
            "status.conditions.status",
            "one of `True`, `False` or `Unknown`",
        ),
    ] {
        assert_eq!(named(path).as_deref(), Some(expected), "{path}");
    }
    for path in ["spec.replica", "spec.replicas.x", "spec..x", "spec[0]"] {
        assert_eq!(named(path), None, "{path}");
    }
    let selector = field_at(&definition.schema, "spec.selector").unwrap();
    assert_eq!(selector["description"], "Which nodes.");
}
