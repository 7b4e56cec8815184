//! Finds fields in a schema, to explain them.

use serde_json::{Map, Value};

use super::check::{members, resolve};
use super::path::{Segment, parse};
use super::scalar;
use super::text::{choice, list, shown};

/// How many schemas a search looks at, and so how deep it nests.
const MAX_STEPS: usize = 512;
/// How many levels of lists, maps and alternatives the name of a type tells.
const MAX_NAME_DEPTH: usize = 6;

/// The schema of a field, from the schema of a whole object ([`KindDefinition::schema`]), with
/// its `description`, `type`, `properties` and so on.
///
/// The path is written as in errors, with or without a dot before it: `spec.template.labels`. A
/// list may be skipped or written (`spec.items.name`, `spec.items[].name`); for the entries of a
/// map any name will do. None if there is no such field.
///
/// ```
/// use platctrl_framework::model::schema;
///
/// let kind = serde_json::json!({"properties": {"spec": {"properties": {
///     "replicas": {"type": "integer", "description": "How many pods."},
/// }}}});
/// let field = schema::field_at(&kind, "spec.replicas").unwrap();
/// assert_eq!(field["description"], "How many pods.");
/// assert_eq!(schema::type_name(field), "integer");
/// assert_eq!(schema::field_at(&kind, "spec.replica"), None);
/// ```
///
/// [`KindDefinition::schema`]: crate::model::KindDefinition::schema
#[must_use]
pub fn field_at<'s>(schema: &'s Value, path: &str) -> Option<&'s Value> {
    let mut search = Search {
        root: schema,
        steps: 0,
    };
    let mut at = schema;
    for (position, segment) in parse(path)?.iter().enumerate() {
        at = search.step(at, segment)?;
        if position == 0 {
            // References are relative to the schema of the spec, or of another part.
            search.root = at;
        }
    }
    resolve(search.root, at)
}

struct Search<'s> {
    root: &'s Value,
    /// Schemas looked at: alternatives that refer to each other are without end.
    steps: usize,
}

impl<'s> Search<'s> {
    fn step(&mut self, schema: &'s Value, segment: &Segment) -> Option<&'s Value> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return None;
        }
        let schema = resolve(self.root, schema)?.as_object()?;
        let here = match segment {
            Segment::Item(_) => schema.get("items"),
            Segment::Name(name) => named(schema, name),
        };
        if here.is_some() {
            return here;
        }
        let groups = ["allOf", "anyOf", "oneOf"];
        let parts = groups.into_iter().flat_map(|group| members(schema, group));
        let items = schema
            .get("items")
            .filter(|_| !matches!(segment, Segment::Item(_)));
        parts.chain(items).find_map(|part| self.step(part, segment))
    }
}

fn named<'s>(schema: &'s Map<String, Value>, name: &str) -> Option<&'s Value> {
    let property = schema.get("properties").and_then(|fields| fields.get(name));
    property
        .or_else(|| {
            schema
                .get("additionalProperties")
                .filter(|any| any.is_object())
        })
        .or_else(|| {
            schema
                .get("patternProperties")?
                .as_object()?
                .values()
                .next()
        })
}

/// What a schema's values are, in a few words: ``string``, ``list of integer``, ``map of object``,
/// ``one of `Static` or `Dynamic` ``, ``any``.
#[must_use]
pub fn type_name(schema: &Value) -> String {
    name_of(schema, 0)
}

fn name_of(schema: &Value, depth: usize) -> String {
    let names = names_of(schema, depth);
    let (choices, mut names): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.starts_with('`'));
    match choices.as_slice() {
        [] => {}
        [only] => names.insert(0, only.clone()),
        _ => names.insert(0, format!("one of {}", list(choices))),
    }
    if names.is_empty() {
        return "any".to_owned();
    }
    names.join(" or ")
}

/// The names of all that a schema allows, each once; texts to choose from are quoted.
fn names_of(schema: &Value, depth: usize) -> Vec<String> {
    let Some(schema) = schema.as_object().filter(|_| depth < MAX_NAME_DEPTH) else {
        return Vec::new();
    };
    if let Some(choices) = scalar::choices(schema) {
        let texts = choices.into_iter().filter_map(Value::as_str);
        return texts.map(|text| choice([text])).collect();
    }
    let inner = |keyword: &str| {
        let inner = schema.get(keyword).filter(|inner| inner.is_object());
        inner.map(|inner| name_of(inner, depth + 1))
    };
    let types = scalar::types(schema);
    let named = types.into_iter().filter(|name| *name != "null");
    let own = named.map(|name| match name {
        "array" => match inner("items") {
            Some(item) => format!("list of {item}"),
            None => "list".to_owned(),
        },
        "object" if !schema.contains_key("properties") => match inner("additionalProperties") {
            Some(entry) => format!("map of {entry}"),
            None => "object".to_owned(),
        },
        other => shown(other),
    });
    let mut names: Vec<String> = own.collect();
    if names.is_empty() {
        let groups = ["allOf", "anyOf", "oneOf"];
        let parts = groups.into_iter().flat_map(|group| members(schema, group));
        for name in parts.flat_map(|part| names_of(part, depth + 1)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}
