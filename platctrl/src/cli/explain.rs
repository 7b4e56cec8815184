//! `explain`: the fields of a kind, from the schema that its objects are checked against.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use platctrl_framework::model::{KindDefinition, schema};
use serde_json::{Value, json};

use super::Setting;
use crate::error::{Code, Failure, Result};
use crate::output;

/// How wide descriptions are.
const WIDTH: usize = 80;
/// How deep --recursive goes; deeper, a schema repeats itself.
const MAX_DEPTH: usize = 12;

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// A kind, or a field of it as rc.spec.template
    #[arg(value_name = "KIND[.FIELD]")]
    what: String,
    /// Show all fields below it, without their descriptions
    #[arg(long)]
    recursive: bool,
}

pub(crate) async fn run(args: &ExplainArgs, setting: &Setting) -> Result<()> {
    let (_, catalog) = setting.connect().await?;
    let (word, path) = args.what.split_once('.').unwrap_or((&args.what, ""));
    let kind = catalog.named(word)?;
    output::print(explain(&kind, path, args.recursive)?)
}

/// The whole schema of a kind: what its definition holds, and the metadata that all kinds share.
fn whole(kind: &KindDefinition) -> Value {
    let mut whole = kind.schema.clone();
    // It is a server's word, and may be anything.
    if !whole.is_object() {
        whole = json!({});
    }
    if !whole["properties"].is_object() {
        whole["properties"] = json!({});
    }
    let described = |schema: Value, description: &str| {
        let mut schema = schema;
        schema["description"] = description.into();
        schema
    };
    let metadata = described(
        schema::metadata_schema().clone(),
        "The name, labels and owners of the object.",
    );
    whole["properties"]["metadata"] = metadata;
    for (field, description) in [
        (
            "apiVersion",
            "The version of the form that the object is written in.",
        ),
        ("kind", "What the object is."),
    ] {
        whole["properties"][field] = described(json!({"type": "string"}), description);
    }
    whole
}

fn explain(kind: &KindDefinition, path: &str, recursive: bool) -> Result<String> {
    let root = whole(kind);
    let field = schema::field_at(&root, path).ok_or_else(|| missing(kind, &root, path))?;
    let mut text = format!("KIND:     {} ({})\n", kind.kind, kind.api_version());
    if !path.is_empty() {
        let (of, default) = (schema::type_name(field), default(field));
        let _ = writeln!(text, "FIELD:    {path} <{of}>{default}");
    }
    if let Some(description) = description(field) {
        let _ = write!(text, "\n{}", wrapped(description, 0));
    }
    let fields = fields(field);
    if fields.is_empty() {
        return Ok(output::plain(&text));
    }
    let below = match (path.is_empty(), each(field)) {
        (true, _) | (_, None) => "FIELDS",
        (false, Some(of)) => of,
    };
    let _ = write!(text, "\n{below}:\n");
    if recursive {
        outline(&fields, 1, &mut text);
    } else {
        for (
            name,
            Field {
                schema: of,
                required,
            },
        ) in &fields
        {
            let required = if *required { "  required" } else { "" };
            let default = default(of);
            let _ = writeln!(
                text,
                "  {name} <{}>{required}{default}",
                schema::type_name(of)
            );
            if let Some(description) = description(of) {
                text.push_str(&wrapped(description, 6));
            }
        }
    }
    Ok(output::plain(&text))
}

fn outline(fields: &BTreeMap<String, Field<'_>>, depth: usize, text: &mut String) {
    for (name, Field { schema: of, .. }) in fields {
        let _ = writeln!(
            text,
            "{:width$}{name} <{}>",
            "",
            schema::type_name(of),
            width = depth * 2
        );
        if depth < MAX_DEPTH {
            outline(&self::fields(of), depth + 1, text);
        }
    }
}

fn description(schema: &Value) -> Option<&str> {
    schema["description"].as_str().map(str::trim)
}

/// The value that a field has where nobody gives it one, unless that is nothing.
fn default(schema: &Value) -> String {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    match schema.get("default").filter(|value| !is_nothing(value)) {
        Some(value) => format!("  default {value}"),
        None => String::new(),
    }
}

/// What the fields belong to, when it is not the value itself.
fn each(schema: &Value) -> Option<&'static str> {
    match schema["type"].as_str() {
        Some("array") => Some("FIELDS OF EACH ITEM"),
        Some("object") if schema["properties"].is_null() => Some("FIELDS OF EACH ENTRY"),
        _ => None,
    }
}

#[derive(Debug)]
struct Field<'s> {
    schema: &'s Value,
    required: bool,
}

/// The fields of an object, of each item of a list, of each entry of a map: of all alternatives.
fn fields(schema: &Value) -> BTreeMap<String, Field<'_>> {
    let mut found = BTreeMap::new();
    gather(schema, 0, &mut found);
    found
}

fn gather<'s>(schema: &'s Value, depth: usize, found: &mut BTreeMap<String, Field<'s>>) {
    if depth > MAX_DEPTH {
        return;
    }
    let required = |name: &String| {
        let names = schema["required"].as_array();
        names.is_some_and(|names| names.iter().any(|it| it == name))
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        found.entry(name.clone()).or_insert(Field {
            schema: field,
            required: required(name),
        });
    }
    let groups = ["allOf", "anyOf", "oneOf"];
    let parts = groups.iter().filter_map(|group| schema[group].as_array());
    for part in parts.flatten() {
        gather(part, depth + 1, found);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            gather(&schema[inner], depth + 1, found);
        }
    }
}

/// Says which part of a path is wrong, and what may have been meant.
fn missing(kind: &KindDefinition, root: &Value, path: &str) -> Failure {
    let mut parent = String::new();
    for name in path.split('.') {
        let here = schema::child_path(&parent, name);
        if schema::field_at(root, &here).is_some() {
            parent = here;
            continue;
        }
        let known = schema::field_at(root, &parent)
            .map(fields)
            .unwrap_or_default();
        let title = if parent.is_empty() {
            &kind.singular
        } else {
            &parent
        };
        let failure = Failure::new(
            Code::NotFound,
            format!(
                "{} has no field `{}`",
                output::plain(title),
                output::plain(name)
            ),
        );
        let near = output::nearest(name, known.keys().map(String::as_str));
        return match near {
            Some(near) => failure.hint(format!(
                "did you mean `{}`?",
                schema::child_path(&parent, near)
            )),
            None if known.is_empty() => failure.hint("it is a plain value"),
            None => failure.hint(format!(
                "its fields are {}",
                known
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        };
    }
    Failure::new(
        Code::NotFound,
        format!("{} has no such field", kind.singular),
    )
}

/// Words in lines, each begun with blanks.
fn wrapped(words: &str, indent: usize) -> String {
    let mut text = String::new();
    for paragraph in words.split("\n\n") {
        let mut width = 0;
        for word in paragraph.split_whitespace() {
            let length = word.chars().count();
            if width > 0 && width + 1 + length > WIDTH {
                text.push('\n');
                width = 0;
            }
            if width == 0 {
                let _ = write!(text, "{:indent$}", "");
                width = indent;
            } else {
                text.push(' ');
                width += 1;
            }
            text.push_str(word);
            width += length;
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::{Pod, ReplicationController};

    use super::*;

    #[test]
    fn a_kind_and_its_fields_are_explained() {
        let kind = KindDefinition::of::<ReplicationController>();
        let text = explain(&kind, "", false).unwrap();
        for part in [
            "ReplicationController (platctrl.dev/v1)",
            "  metadata <",
            "  spec <",
            "  kind <string>",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let text = explain(&kind, "spec.replicas", false).unwrap();
        assert!(text.contains("FIELD:    spec.replicas <integer>"), "{text}");
        assert!(!text.contains("FIELDS"), "{text}");
        let text = explain(&kind, "spec.template.spec.launchables", false).unwrap();
        assert!(text.contains("FIELDS OF EACH ENTRY:"), "{text}");
        assert!(text.contains("  location <string>"), "{text}");
        let text = explain(&kind, "spec", false).unwrap();
        assert!(
            text.contains("  maxPerNode <integer>  default 1\n"),
            "{text}"
        );
        let text = explain(&kind, "spec.maxPerNode", false).unwrap();
        assert!(
            text.contains("FIELD:    spec.maxPerNode <integer>  default 1\n"),
            "{text}"
        );
        let text = explain(&kind, "spec", true).unwrap();
        assert!(
            text.lines()
                .any(|line| line.starts_with("    ") && line.contains("labels <")),
            "{text}"
        );
        assert!(
            explain(&kind, "metadata.labels", false)
                .unwrap()
                .contains("map of string")
        );
    }

    #[test]
    fn a_wrong_field_is_named_and_a_near_one_suggested() {
        let kind = KindDefinition::of::<Pod>();
        let failure = explain(&kind, "spec.launchable.web", false).unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
        assert_eq!(failure.message, "spec has no field `launchable`");
        assert_eq!(failure.hint.unwrap(), "did you mean `spec.launchables`?");
    }

    #[test]
    fn descriptions_are_wrapped() {
        let text = wrapped(&"word ".repeat(40), 4);
        assert!(
            text.lines()
                .all(|line| line.len() <= WIDTH && line.starts_with("    word")),
            "{text}"
        );
    }
}
