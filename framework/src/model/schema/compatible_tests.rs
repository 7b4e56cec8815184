//! Comparisons of schemas, by hand and against values.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{check, compatible};

fn problems(old: &Value, new: &Value) -> Vec<String> {
    let problems = compatible(old, new, "spec");
    problems.iter().map(ToString::to_string).collect()
}

fn fields(fields: &Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": fields, "required": required})
}

#[test]
fn changes_that_refuse_what_was_allowed_are_named() {
    let string = || json!({"type": "string"});
    for (old, new, problem) in [
        (
            fields(&json!({"a": string()}), &[]),
            fields(&json!({}), &[]),
            "spec.a: is not known any more, and may be there",
        ),
        (
            fields(&json!({"a": string()}), &[]),
            fields(&json!({"a": string()}), &["a"]),
            "spec.a: is required now, and was not",
        ),
        (
            string(),
            json!({"type": "integer"}),
            "spec: could be a string, must be an integer now",
        ),
        (
            json!({"type": ["string", "null"]}),
            string(),
            "spec: could be nothing, must be a string now",
        ),
        (
            json!({"type": "number"}),
            json!({"type": "integer"}),
            "spec: could be a number, must be an integer now",
        ),
        (
            json!({}),
            string(),
            "spec: could be anything, must be a string now",
        ),
        (
            json!({"enum": ["a", "b"]}),
            json!({"enum": ["a"]}),
            "spec: may not be `b` any more",
        ),
        (
            string(),
            json!({"type": "string", "enum": ["a"]}),
            "spec: must be one of `a` now",
        ),
        (
            json!({"type": "integer"}),
            json!({"type": "integer", "minimum": 1}),
            "spec: could be any number, must be at least 1 now",
        ),
        (
            json!({"type": "integer", "format": "uint32"}),
            json!({"type": "integer", "format": "uint8"}),
            "spec: could be at least 0 and at most 4294967295, must be at least 0 and at most 255 now",
        ),
        (
            string(),
            json!({"type": "string", "maxLength": 9}),
            "spec: maxLength is 9 now, and was more",
        ),
        (
            string(),
            json!({"type": "string", "pattern": "^a"}),
            "spec: must match the pattern \"^a\" now",
        ),
        (
            json!({"type": "array", "items": string()}),
            json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true}),
            "spec: must have each item once now",
        ),
        (
            json!({"type": "object", "additionalProperties": string()}),
            fields(&json!({"a": string()}), &[]),
            "spec: could have fields of any name, and may have only known ones now",
        ),
        (
            json!({"type": "object", "additionalProperties": string()}),
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            "spec.\"*\": could be a string, must be an integer now",
        ),
        (
            json!({"anyOf": [string(), {"type": "boolean"}]}),
            json!({"anyOf": [string(), {"type": "integer"}]}),
            "spec: could be true or false, must be a string now",
        ),
        (string(), json!(false), "spec: is not allowed any more"),
    ] {
        let found = problems(&old, &new);
        assert!(
            found.contains(&problem.to_owned()),
            "{old} to {new}: {found:#?}"
        );
    }
}

#[test]
fn changes_that_only_allow_more_are_no_problem() {
    let string = || json!({"type": "string"});
    for (old, new) in [
        (
            fields(&json!({"a": string()}), &["a"]),
            fields(&json!({"a": string(), "b": {}}), &[]),
        ),
        (
            string(),
            json!({"type": ["string", "null"], "description": "New words."}),
        ),
        (
            json!({"type": "integer", "format": "uint8"}),
            json!({"type": "integer", "format": "int32"}),
        ),
        (json!({"enum": ["a"]}), json!({"enum": ["b", "a"]})),
        (json!({"enum": ["a"]}), string()),
        (string(), json!({"anyOf": [{"type": "integer"}, string()]})),
        (
            json!({"oneOf": [fields(&json!({"x": string()}), &["x"]), fields(&json!({"y": string()}), &["y"])]}),
            json!({"oneOf": [fields(&json!({"y": string()}), &["y"]), fields(&json!({"x": string(), "z": {}}), &["x"])]}),
        ),
        (
            json!({"type": "array", "items": {"type": "integer"}}),
            json!({"type": "array", "items": {"type": "number"}}),
        ),
        (
            fields(&json!({"a": string()}), &[]),
            json!({"type": "object", "additionalProperties": string()}),
        ),
        (json!(false), string()),
        (string(), json!({})),
        (
            json!({"$ref": "#/$defs/A", "$defs": {"A": string()}}),
            json!({"allOf": [{"$ref": "#/$defs/B"}], "$defs": {"B": {"type": ["string", "null"]}}}),
        ),
    ] {
        assert_eq!(problems(&old, &new), Vec::<String>::new(), "{old} to {new}");
    }
}

#[test]
fn schemas_without_end_are_no_problem_for_the_comparison() {
    let circle = json!({"$ref": "#"});
    assert!(!compatible(&circle, &json!({"type": "string"}), "spec").is_empty());
    let tree = |also: Value| json!({"type": "object", "properties": {"below": {"$ref": "#"}, "also": also}});
    let found = compatible(&tree(json!({})), &tree(json!({"type": "string"})), "spec");
    assert!(!found.is_empty() && found.len() <= 100, "{}", found.len());
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"type": "string"})),
        Just(json!({"type": ["string", "null"]})),
        (0..3_u8).prop_map(|n| json!({"type": "string", "minLength": n})),
        (0..3_u8).prop_map(|n| json!({"type": "string", "maxLength": n})),
        Just(json!({"type": "integer"})),
        Just(json!({"type": "number"})),
        (0..3_u8, 0..3_u8)
            .prop_map(|(n, m)| json!({"type": "integer", "minimum": n, "maximum": m + 1})),
        (0..3_u8).prop_map(|n| json!({"type": "integer", "exclusiveMaximum": n})),
        Just(json!({"enum": ["a", "b"]})),
        Just(json!({"enum": ["a", 1, null]})),
        Just(json!({"const": "a"})),
    ]
}

fn a_schema() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(2, 12, 3, |inner| {
        let required = prop::sample::subsequence(vec!["a", "b"], 0..=2);
        let more = prop_oneof![
            Just(None),
            Just(Some(json!(true))),
            inner.clone().prop_map(Some)
        ];
        let named = prop::collection::btree_map("[abc]", inner.clone(), 0..3);
        let object = (named, required, more).prop_map(|(properties, required, more)| {
            let mut schema =
                json!({"type": "object", "properties": properties, "required": required});
            if let Some(more) = more {
                schema["additionalProperties"] = more;
            }
            schema
        });
        let list = (inner.clone(), 0..3_u8)
            .prop_map(|(items, most)| json!({"type": "array", "items": items, "maxItems": most}));
        let any = prop::collection::vec(inner, 1..3).prop_map(|any| json!({"anyOf": any}));
        prop_oneof![4 => object, 1 => list, 1 => any]
    })
}

fn a_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(0.5)),
        (0..4_i8).prop_map(|n| json!(n)),
        "[ab]{0,3}".prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::btree_map("[abc]", inner.clone(), 0..3).prop_map(|it| json!(it)),
            prop::collection::vec(inner, 0..3).prop_map(|it| json!(it)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

    /// What was valid stays valid wherever no problem is named.
    #[test]
    fn no_value_is_refused_behind_a_change_that_is_called_compatible(
        old in a_schema(), new in a_schema(), values in prop::collection::vec(a_value(), 8),
    ) {
        prop_assert!(compatible(&old, &old, "").is_empty(), "{old} with itself");
        if compatible(&old, &new, "").is_empty() {
            for value in values {
                let problems = check(&value, &new, "");
                prop_assert!(
                    !check(&value, &old, "").is_empty() || problems.is_empty(),
                    "{value} was valid by {old}; by {new}: {problems:?}"
                );
            }
        }
    }
}
