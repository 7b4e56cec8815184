//! Walks a value and its schema together and writes down all that is wrong.

use std::collections::{BTreeSet, HashMap};

use regex_lite::Regex;
use serde_json::{Map, Value};

use super::path::Path;
use super::scalar;
use super::text::{choice, did_you_mean, found};
use super::union;

/// How deep a value may nest.
pub(super) const MAX_LEVEL: usize = 64;
/// How deep the walk may nest: values, and references and alternatives of the schema.
const MAX_DEPTH: usize = 256;
/// Problems of one object that are reported.
pub(super) const MAX_PROBLEMS: usize = 100;
/// How much work one check may be: schemas tried on values, roughly. The largest object that a
/// store takes needs less than half against schemas without many alternatives.
const MAX_STEPS: usize = 2_000_000;
/// Bytes of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 16;

/// Something wrong at a place.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) path: String,
    pub(super) text: String,
    /// It is a field that the schema does not know, or a part that could not be looked at.
    pub(super) unknown: bool,
}

/// Which fields of one object the schemas that apply to it know.
#[derive(Debug, Default)]
pub(super) struct Known<'a> {
    pub(super) names: BTreeSet<&'a str>,
    /// Fields that are known by a pattern of their names.
    matched: BTreeSet<&'a str>,
    /// Fields of any name are allowed, or others were reported already.
    open: bool,
}

impl Known<'_> {
    /// Keeps quiet about fields: the object as a whole is not what it should be.
    pub(super) fn allow_all(&mut self) {
        self.open = true;
    }

    pub(super) fn merge(&mut self, mut other: Self) {
        self.names.append(&mut other.names);
        self.matched.append(&mut other.matched);
        self.open |= other.open;
    }
}

/// A value that is checked, where it is, and how deep the walk is there.
#[derive(Clone, Copy)]
pub(super) struct Place<'p, 'a> {
    pub(super) value: &'a Value,
    pub(super) path: &'p Path<'p>,
    pub(super) depth: usize,
}

impl<'p, 'a> Place<'p, 'a> {
    pub(super) fn deeper(self) -> Self {
        Self {
            depth: self.depth + 1,
            ..self
        }
    }

    fn child(self, value: &'a Value, path: &'p Path<'p>) -> Self {
        Self {
            value,
            path,
            depth: self.depth + 1,
        }
    }
}

pub(super) struct Checker<'a> {
    /// What references are relative to.
    root: &'a Value,
    pub(super) problems: Vec<Problem>,
    steps: usize,
    exhausted: bool,
    patterns: HashMap<&'a str, Option<Regex>>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        Self {
            root,
            problems: Vec::new(),
            steps: 0,
            exhausted: false,
            patterns: HashMap::new(),
        }
    }

    /// Checks a value against the root schema.
    pub(super) fn run(mut self, value: &'a Value, path: &Path<'_>) -> Vec<Problem> {
        let place = Place {
            value,
            path,
            depth: 0,
        };
        self.check(place, self.root);
        if self.exhausted {
            // Whatever alternatives were not looked at may have looked wrong: only this is sure.
            self.problems.clear();
            let text = "it has too much in it to be checked: make it smaller".to_owned();
            self.problems.push(Problem {
                path: path.to_string(),
                text,
                unknown: true,
            });
        }
        self.problems
    }

    /// Counts work; false when there was too much.
    fn spend(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_add(steps);
        self.exhausted |= self.steps > MAX_STEPS;
        !self.exhausted
    }

    pub(super) fn report(&mut self, path: &Path<'_>, text: impl Into<String>) {
        self.push(path, text.into(), false);
    }

    fn push(&mut self, path: &Path<'_>, text: String, unknown: bool) {
        if self.problems.len() < MAX_PROBLEMS {
            let path = path.to_string();
            self.problems.push(Problem {
                path,
                text,
                unknown,
            });
        }
    }

    /// What a schema would report and know, without reporting it.
    pub(super) fn attempt(
        &mut self,
        place: Place<'_, 'a>,
        schema: &'a Value,
    ) -> (Vec<Problem>, Known<'a>) {
        let outer = std::mem::take(&mut self.problems);
        let mut known = Known::default();
        self.apply(place.deeper(), schema, &mut known);
        (std::mem::replace(&mut self.problems, outer), known)
    }

    /// Checks one value: what its schema says, and that it has no fields that nothing knows.
    fn check(&mut self, place: Place<'_, 'a>, schema: &'a Value) {
        if place.path.level > MAX_LEVEL {
            let text = format!("it nests deeper than {MAX_LEVEL} levels");
            return self.push(place.path, text, true);
        }
        let mut known = Known::default();
        self.apply(place, schema, &mut known);
        if let Value::Object(fields) = place.value
            && !known.open
        {
            self.report_unknown(place, fields, &known);
        }
    }

    fn report_unknown(
        &mut self,
        place: Place<'_, 'a>,
        fields: &'a Map<String, Value>,
        known: &Known<'a>,
    ) {
        let unknown = fields
            .keys()
            .filter(|name| !known.names.contains(name.as_str()))
            .filter(|name| !known.matched.contains(name.as_str()));
        for name in unknown {
            if self.problems.len() >= MAX_PROBLEMS || !self.spend(1 + known.names.len()) {
                return;
            }
            let unused = || {
                let names = known.names.iter().copied();
                names.filter(|name| !fields.contains_key(*name))
            };
            let mut text = "unknown field".to_owned();
            let hint = did_you_mean(name, unused());
            if !hint.is_empty() {
                text.push_str(&hint);
            } else if known.names.is_empty() {
                text.push_str("; no fields are known here");
            } else {
                text.push_str("; known here: ");
                text.push_str(&choice(known.names.iter().copied()));
            }
            self.push(&place.path.field(name), text, true);
        }
    }

    /// Follows references. None when they lead nowhere or in a circle.
    pub(super) fn resolve(&self, schema: &'a Value) -> Option<&'a Value> {
        resolve(self.root, schema)
    }

    /// Applies one schema of perhaps several to a value, and collects the fields it knows.
    fn apply(&mut self, place: Place<'_, 'a>, schema: &'a Value, known: &mut Known<'a>) {
        if !self.spend(1) {
            return;
        }
        if place.depth > MAX_DEPTH {
            known.open = true;
            return self.push(
                place.path,
                "it nests too deep to be checked".to_owned(),
                true,
            );
        }
        let schema = match schema {
            Value::Bool(false) => {
                known.open = true;
                return self.report(place.path, "nothing is allowed here");
            }
            Value::Object(schema) => schema,
            _ => {
                known.open = true;
                return;
            }
        };
        if allows_anything(schema) {
            known.open = true;
        }
        if let Some(reference) = schema.get("$ref") {
            let target = reference
                .as_str()
                .and_then(|reference| referenced(self.root, reference));
            match target {
                Some(target) => self.apply(place.deeper(), target, known),
                None => {
                    known.open = true;
                    let text = format!(
                        "the kind's schema refers to {}, which it does not have",
                        found(reference)
                    );
                    self.report(place.path, text);
                }
            }
        }
        if let Some(text) = scalar::type_problem(schema, place.value)
            .or_else(|| scalar::enum_problem(schema, place.value))
        {
            // What follows would only say the same again.
            known.open = true;
            return self.report(place.path, text);
        }
        match place.value {
            Value::String(text) => self.apply_string(place, schema, text),
            Value::Number(number) => {
                for text in scalar::number_problems(schema, number) {
                    self.report(place.path, text);
                }
            }
            Value::Array(items) => self.apply_array(place, schema, items),
            Value::Object(fields) => self.apply_object(place, schema, fields, known),
            Value::Null | Value::Bool(_) => {}
        }
        for member in members(schema, "allOf") {
            self.apply(place.deeper(), member, known);
        }
        for keyword in ["anyOf", "oneOf"] {
            if schema.contains_key(keyword) {
                union::apply(self, place, members(schema, keyword), known);
            }
        }
    }

    fn apply_string(&mut self, place: Place<'_, 'a>, schema: &'a Map<String, Value>, text: &str) {
        for problem in scalar::length_problems(schema, text) {
            self.report(place.path, problem);
        }
        let Some(pattern) = schema.get("pattern").and_then(Value::as_str) else {
            return;
        };
        match self.matches(pattern, text) {
            Some(true) => {}
            Some(false) => {
                let value = found(place.value);
                self.report(
                    place.path,
                    format!("must match the pattern `{pattern}`, found {value}"),
                );
            }
            None => self.report_bad_pattern(place, pattern),
        }
    }

    fn report_bad_pattern(&mut self, place: Place<'_, 'a>, pattern: &str) {
        let text = format!("the kind's schema has a pattern that cannot be used: `{pattern}`");
        self.report(place.path, text);
    }

    /// None when the pattern is none.
    fn matches(&mut self, pattern: &'a str, text: &str) -> Option<bool> {
        if !self.spend(1 + pattern.len().saturating_mul(text.len()) / 32) {
            return Some(true);
        }
        let compiled = self.patterns.entry(pattern).or_insert_with(|| {
            let mut builder = regex_lite::RegexBuilder::new(pattern);
            builder.size_limit(MAX_PATTERN_BYTES).build().ok()
        });
        compiled.as_ref().map(|compiled| compiled.is_match(text))
    }

    fn apply_array(
        &mut self,
        place: Place<'_, 'a>,
        schema: &'a Map<String, Value>,
        items: &'a [Value],
    ) {
        for problem in scalar::count_problems(schema, "minItems", "maxItems", items.len(), "items")
        {
            self.report(place.path, problem);
        }
        let first = members(schema, "prefixItems");
        let rest = schema.get("items");
        for (position, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(position).or(rest) {
                let path = place.path.item(position);
                self.check(place.child(item, &path), schema);
            }
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) && self.spend(items.len()) {
            let mut seen = HashMap::new();
            for (position, item) in items.iter().enumerate() {
                if let Some(earlier) = seen.insert(item.to_string(), position) {
                    let text = format!("it is the same as item {earlier}: each is allowed once");
                    self.report(&place.path.item(position), text);
                }
            }
        }
    }

    fn apply_object(
        &mut self,
        place: Place<'_, 'a>,
        schema: &'a Map<String, Value>,
        fields: &'a Map<String, Value>,
        known: &mut Known<'a>,
    ) {
        let limits = scalar::count_problems(
            schema,
            "minProperties",
            "maxProperties",
            fields.len(),
            "fields",
        );
        for problem in limits {
            self.report(place.path, problem);
        }
        for name in members(schema, "required").iter().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.report(&place.path.field(name), "is required");
            }
        }
        let none = Map::new();
        let properties = match schema.get("properties") {
            Some(Value::Object(properties)) => Some(properties),
            _ => None,
        };
        if !self.spend(properties.map_or(0, Map::len)) {
            return;
        }
        for (name, schema) in properties.into_iter().flatten() {
            known.names.insert(name);
            if let Some(value) = fields.get(name) {
                let path = place.path.field(name);
                self.check(place.child(value, &path), schema);
            }
        }
        let declared = |name: &str| properties.unwrap_or(&none).contains_key(name);
        let matched = self.apply_patterns(place, schema, fields);
        let others = fields
            .iter()
            .filter(|(name, _)| !declared(name) && !matched.contains(name.as_str()));
        match schema
            .get("additionalProperties")
            .or_else(|| schema.get("unevaluatedProperties"))
        {
            None => {}
            Some(Value::Bool(false)) => {
                let own = Known {
                    names: properties
                        .into_iter()
                        .flat_map(Map::keys)
                        .map(String::as_str)
                        .collect(),
                    matched: matched.clone(),
                    ..Known::default()
                };
                self.report_unknown(place, fields, &own);
                known.open = true;
            }
            Some(schema) => {
                known.open = true;
                if *schema != Value::Bool(true) {
                    for (name, value) in others {
                        let path = place.path.field(name);
                        self.check(place.child(value, &path), schema);
                    }
                }
            }
        }
        known.matched.extend(matched);
    }

    /// Checks fields whose schema is chosen by a pattern of their names; returns which they are.
    fn apply_patterns(
        &mut self,
        place: Place<'_, 'a>,
        schema: &'a Map<String, Value>,
        fields: &'a Map<String, Value>,
    ) -> BTreeSet<&'a str> {
        let mut matched = BTreeSet::new();
        let Some(Value::Object(patterns)) = schema.get("patternProperties") else {
            return matched;
        };
        for (pattern, schema) in patterns {
            for (name, value) in fields {
                match self.matches(pattern, name) {
                    Some(true) => {
                        matched.insert(name.as_str());
                        let path = place.path.field(name);
                        self.check(place.child(value, &path), schema);
                    }
                    Some(false) => {}
                    None => {
                        self.report_bad_pattern(place, pattern);
                        break;
                    }
                }
            }
        }
        matched
    }
}

/// The schema says nothing about what a value is.
pub(super) fn allows_anything(schema: &Map<String, Value>) -> bool {
    const STRUCTURE: [&str; 13] = [
        "$ref",
        "type",
        "enum",
        "const",
        "properties",
        "patternProperties",
        "additionalProperties",
        "unevaluatedProperties",
        "required",
        "items",
        "allOf",
        "anyOf",
        "oneOf",
    ];
    schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
        || !STRUCTURE
            .iter()
            .any(|keyword| schema.contains_key(*keyword))
}

/// The schemas, or names, listed under a keyword.
pub(super) fn members<'a>(schema: &'a Map<String, Value>, keyword: &str) -> &'a [Value] {
    match schema.get(keyword) {
        Some(Value::Array(members)) => members,
        _ => &[],
    }
}

/// Where `#`, `#/$defs/X` or another pointer leads.
fn referenced<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// Follows a schema's reference, if it is one. None when that leads nowhere or in a circle.
pub(super) fn resolve<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let mut schema = schema;
    for _ in 0..MAX_LEVEL {
        let Some(reference) = schema.get("$ref") else {
            return Some(schema);
        };
        schema = referenced(root, reference.as_str()?)?;
    }
    None
}
