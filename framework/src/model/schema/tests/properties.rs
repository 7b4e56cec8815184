//! What holds for every value and every schema.

use proptest::prelude::{Just, any, prop, prop_assert, prop_oneof, proptest};
use proptest::strategy::{BoxedStrategy, Strategy as _};

use super::*;

fn any_json(
    leaf: BoxedStrategy<Value>,
    name: BoxedStrategy<String>,
) -> impl proptest::strategy::Strategy<Value = Value> {
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn leaf() -> BoxedStrategy<Value> {
    let words = prop::sample::select(vec![
        "",
        "a",
        "Git",
        "Http",
        "Off",
        "Never",
        "role=web",
        "#",
        "#/$defs/a",
        "object",
        "string",
        "null",
        "integer",
        "^a",
        "(",
    ]);
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..3_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        "\\PC{0,5}".prop_map(Value::from),
    ]
    .boxed()
}

fn schema_words() -> BoxedStrategy<String> {
    let words = [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "items",
        "prefixItems",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "$defs",
        "minimum",
        "maxLength",
        "pattern",
        "uniqueItems",
        "a",
        "Git",
    ];
    prop::sample::select(words.map(str::to_owned).to_vec()).boxed()
}

fn spec_words() -> BoxedStrategy<String> {
    let words = [
        "replicas",
        "selector",
        "strategy",
        "template",
        "launchables",
        "location",
        "probes",
        "type",
        "path",
        "port",
        "amount",
        "stop",
        "After",
        "When",
        "seconds",
        "name",
        "all",
        "numbers",
        "1",
        "from",
        "url",
        "a",
    ];
    prop::sample::select(words.map(str::to_owned).to_vec()).boxed()
}

/// Puts a value somewhere into another.
fn graft(target: &mut Value, mut at: usize, graft: Value) {
    match target {
        Value::Object(fields) if at > 0 && !fields.is_empty() => {
            at -= 1;
            let position = at % fields.len();
            if let Some((_, inner)) = fields.iter_mut().nth(position) {
                return self::graft(inner, at / 7, graft);
            }
        }
        Value::Array(items) if at > 0 && !items.is_empty() => {
            at -= 1;
            let position = at % items.len();
            return self::graft(&mut items[position], at / 7, graft);
        }
        _ => {}
    }
    match (target, graft) {
        (Value::Object(fields), Value::Object(new)) => fields.extend(new),
        (target, graft) => *target = graft,
    }
}

proptest! {
    #[test]
    fn no_value_and_no_schema_make_a_check_panic(
        value in any_json(leaf(), schema_words()),
        schema in any_json(leaf(), schema_words()),
    ) {
        let _ = check(&value, &schema, "spec");
        let _ = unknown_fields(&value, &schema, "");
        let _ = type_name(&schema);
        let _ = field_at(&schema, "a.Git[0].type");
        let definition = KindDefinition { schema, ..KindDefinition::of::<Fleet>() };
        let _ = check_object(&definition, &value);
    }

    #[test]
    fn what_the_check_accepts_the_types_decode(
        grafts in prop::collection::vec((any_json(leaf(), spec_words()), 0..5000_usize), 1..4),
    ) {
        let mut spec = valid();
        for (value, at) in grafts {
            graft(&mut spec, at, value);
        }
        let errors = check(&spec, &spec_schema(), "spec");
        let decoded = serde_json::from_value::<FleetSpec>(spec.clone());
        match (&decoded, errors.is_empty()) {
            (Err(error), true) => {
                // Only the grammar of selectors is beyond schemas.
                let beyond = error.to_string().contains("selector");
                prop_assert!(beyond, "accepted {}, but {}", spec, error);
            }
            (Ok(decoded), true) => {
                // Nothing that was written is lost.
                let again = serde_json::to_value(decoded).unwrap();
                for name in spec.as_object().unwrap().keys() {
                    prop_assert!(again.get(name).is_some(), "{name} of {spec} is lost");
                }
            }
            (Ok(_) | Err(_), false) => {}
        }
    }
}
