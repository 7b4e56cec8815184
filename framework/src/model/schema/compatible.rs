//! Whether what an old schema allows is still allowed by a new one.
//!
//! The comparison errs on the side of naming a change: where two schemas cannot be told to be the
//! same in effect (a pattern that was rewritten), they are named. It never says that a change is
//! harmless when some value of the old schema is refused by the new one, as far as the keywords go
//! that [`check`](super::check) knows.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::check::{MAX_LEVEL, MAX_PROBLEMS, allows_anything, members, resolve};
use super::path::Path;
use super::scalar;
use super::text::choice;
use crate::model::FieldError;

/// How many pairs of schemas one comparison looks at.
const MAX_STEPS: usize = 100_000;

/// What makes objects of the schema `old` invalid under `new`, up to 100 problems; nothing if
/// every object stays valid. `base` is the path of what the schemas are about, as `spec`.
///
/// ```
/// use platctrl_framework::model::schema;
/// use serde_json::json;
///
/// let old = json!({"type": "object", "properties": {"pages": {"type": "integer"}}});
/// let wider = json!({"type": "object", "properties": {"pages": {"type": "number"}, "text": {}}});
/// assert!(schema::compatible(&old, &wider, "spec").is_empty());
///
/// let required = json!({"type": "object", "properties": {"pages": {"type": "integer"}}, "required": ["pages"]});
/// let problems = schema::compatible(&old, &required, "spec");
/// assert_eq!(problems[0].to_string(), "spec.pages: is required now, and was not");
/// ```
#[must_use]
pub fn compatible(old: &Value, new: &Value, base: &str) -> Vec<FieldError> {
    let mut comparison = Comparison {
        old,
        new,
        problems: Vec::new(),
        steps: 0,
    };
    comparison.compare(old, new, &Path::base(base));
    let mut problems = comparison.problems;
    problems.dedup();
    problems
}

struct Comparison<'a> {
    old: &'a Value,
    new: &'a Value,
    problems: Vec<FieldError>,
    steps: usize,
}

/// A schema with everything that must hold at once in one map.
type Flat = Map<String, Value>;

impl Comparison<'_> {
    fn report(&mut self, path: &Path<'_>, problem: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems
                .push(FieldError::new(path.to_string(), problem));
        }
    }

    fn compare(&mut self, old: &Value, new: &Value, path: &Path<'_>) {
        self.steps += 1;
        if self.steps > MAX_STEPS || path.level > MAX_LEVEL {
            return self.report(path, "there is too much to compare");
        }
        if old == new && self.old == self.new {
            return;
        }
        let (Some(old), Some(new)) = (flat(self.old, old, 0), flat(self.new, new, 0)) else {
            return self.report(path, "refers to something that is not in the schema");
        };
        for old in alternatives(old) {
            let news = alternatives(new.clone());
            let attempts = news.into_iter().map(|new| {
                let outer = std::mem::take(&mut self.problems);
                self.compare_flat(&old, &new, path);
                std::mem::replace(&mut self.problems, outer)
            });
            // What one alternative of the new schema takes is taken.
            let best = attempts.min_by_key(Vec::len).unwrap_or_default();
            let room = MAX_PROBLEMS.saturating_sub(self.problems.len());
            self.problems.extend(best.into_iter().take(room));
        }
    }

    fn compare_flat(&mut self, old: &Flat, new: &Flat, path: &Path<'_>) {
        if old.get("false").is_some() {
            return;
        }
        if new.get("false").is_some() {
            return self.report(path, "is not allowed any more");
        }
        if says_nothing(new) {
            return;
        }
        if let Some(choices) = scalar::choices(old) {
            for choice in choices {
                let is_type = scalar::accepts_type(old, choice);
                let whole = Value::Object(new.clone());
                if is_type && !super::check(choice, &whole, "").is_empty() {
                    self.report(path, format!("may not be {} any more", quoted(choice)));
                }
            }
            return;
        }
        if let Some(choices) = scalar::choices(new) {
            let words = choice(choices.into_iter().filter_map(Value::as_str));
            return self.report(path, format!("must be one of {words} now"));
        }
        let Some(types) = self.compare_types(old, new, path) else {
            return;
        };
        if types.contains("integer") || types.contains("number") {
            self.compare_numbers(old, new, path);
        }
        if types.contains("string") {
            self.compare_counts(old, new, ["minLength", "maxLength"], path);
            if let Some(pattern) = new.get("pattern")
                && old.get("pattern") != Some(pattern)
            {
                self.report(path, format!("must match the pattern {pattern} now"));
            }
        }
        if types.contains("array") {
            self.compare_lists(old, new, path);
        }
        if types.contains("object") {
            self.compare_objects(old, new, path);
        }
    }

    /// The types that values may have, if the new schema takes them all.
    fn compare_types(
        &mut self,
        old: &Flat,
        new: &Flat,
        path: &Path<'_>,
    ) -> Option<BTreeSet<&'static str>> {
        const ALL: [&str; 6] = ["null", "boolean", "string", "number", "array", "object"];
        let of = |schema: &Flat| -> BTreeSet<&'static str> {
            let named = scalar::types(schema);
            if named.is_empty() {
                return ALL.into();
            }
            let all = ALL.into_iter().chain(["integer"]);
            all.filter(|name| named.contains(name)).collect()
        };
        let (before, now) = (of(old), of(new));
        let taken = |name: &&'static str| {
            now.contains(name) || (*name == "integer" && now.contains("number"))
        };
        let lost: Vec<&str> = before.iter().filter(|name| !taken(name)).copied().collect();
        if lost.is_empty() {
            return Some(before);
        }
        let all = before.len() >= ALL.len();
        let was = if all {
            "anything".to_owned()
        } else {
            scalar::expected(&lost)
        };
        let now: Vec<&str> = now.into_iter().collect();
        self.report(
            path,
            format!("could be {was}, must be {} now", scalar::expected(&now)),
        );
        None
    }

    fn compare_numbers(&mut self, old: &Flat, new: &Flat, path: &Path<'_>) {
        let (before, now) = (scalar::Range::of(old), scalar::Range::of(new));
        if !now.covers(&before) {
            let text = format!("could be {before}, must be {now} now");
            self.report(path, text);
        }
        if let Some(step) = new.get("multipleOf")
            && old.get("multipleOf") != Some(step)
        {
            self.report(path, format!("must be a multiple of {step} now"));
        }
    }

    /// Limits on how much there is: the least and the most.
    fn compare_counts(&mut self, old: &Flat, new: &Flat, keywords: [&str; 2], path: &Path<'_>) {
        let [least, most] = keywords;
        let limit = |schema: &Flat, keyword: &str| schema.get(keyword).and_then(Value::as_u64);
        let (was, now) = (
            limit(old, least).unwrap_or(0),
            limit(new, least).unwrap_or(0),
        );
        if now > was {
            self.report(path, format!("{least} is {now} now, and was {was}"));
        }
        if let Some(now) = limit(new, most)
            && limit(old, most).is_none_or(|was| was > now)
        {
            self.report(path, format!("{most} is {now} now, and was more"));
        }
    }

    fn compare_lists(&mut self, old: &Flat, new: &Flat, path: &Path<'_>) {
        self.compare_counts(old, new, ["minItems", "maxItems"], path);
        let unique = |schema: &Flat| schema.get("uniqueItems") == Some(&Value::Bool(true));
        if unique(new) && !unique(old) {
            self.report(path, "must have each item once now");
        }
        let any = Value::Bool(true);
        let item = |schema: &Flat, at: usize| {
            let first = members(schema, "prefixItems").get(at);
            first
                .or_else(|| schema.get("items"))
                .unwrap_or(&any)
                .clone()
        };
        let first = members(old, "prefixItems").len();
        let first = first.max(members(new, "prefixItems").len());
        // Behind the first ones all are alike.
        for at in 0..=first {
            let path = path.item(at);
            self.compare(&item(old, at), &item(new, at), &path);
        }
    }

    fn compare_objects(&mut self, old: &Flat, new: &Flat, path: &Path<'_>) {
        self.compare_counts(old, new, ["minProperties", "maxProperties"], path);
        let required = |schema: &Flat| -> BTreeSet<String> {
            let names = members(schema, "required").iter().filter_map(Value::as_str);
            names.map(ToOwned::to_owned).collect()
        };
        let before = required(old);
        for name in required(new).difference(&before) {
            self.report(&path.field(name), "is required now, and was not");
        }
        let (before, now) = (Fields::of(old), Fields::of(new));
        for (name, was) in before.named {
            let path = path.field(name);
            match now.of_name(name) {
                Some(now) => self.compare(was, &now, &path),
                None => self.report(&path, "is not known any more, and may be there"),
            }
        }
        if now.patterns != before.patterns {
            if !before.patterns.is_empty() {
                self.report(path, "its fields have other patterns now");
            } else if before.others.is_some() {
                self.report(path, "some of its fields must match patterns now");
            }
        }
        let Some(was) = &before.others else { return };
        for (name, now) in now.named {
            if before.of_exact_name(name).is_none() {
                self.compare(was, now, &path.field(name));
            }
        }
        match &now.others {
            Some(now) => self.compare(was, now, &path.field("*")),
            None => self.report(
                path,
                "could have fields of any name, and may have only known ones now",
            ),
        }
    }
}

/// What an object's fields may be.
struct Fields<'s> {
    named: &'s Map<String, Value>,
    patterns: &'s Map<String, Value>,
    /// Of any other name; None when there are none.
    others: Option<Value>,
}

impl<'s> Fields<'s> {
    fn of(schema: &'s Flat) -> Self {
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let map = |keyword: &str| match schema.get(keyword) {
            Some(Value::Object(fields)) => fields,
            _ => &*NONE,
        };
        let others = schema.get("additionalProperties");
        let others = others.or_else(|| schema.get("unevaluatedProperties"));
        let others = match others {
            Some(Value::Bool(false)) => None,
            Some(others) => Some(others.clone()),
            None => allows_anything(schema).then_some(Value::Bool(true)),
        };
        Self {
            named: map("properties"),
            patterns: map("patternProperties"),
            others,
        }
    }

    fn of_exact_name(&self, name: &str) -> Option<&Value> {
        self.named.get(name)
    }

    fn of_name(&self, name: &str) -> Option<Value> {
        let named = self.of_exact_name(name).cloned();
        named.or_else(|| self.others.clone().filter(|_| self.patterns.is_empty()))
    }
}

/// No keyword of the schema refuses anything.
fn says_nothing(schema: &Flat) -> bool {
    const WORDS: [&str; 10] = [
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "deprecated",
        "description",
        "examples",
        "format",
        "title",
    ];
    schema
        .keys()
        .all(|keyword| WORDS.contains(&keyword.as_str()))
}

fn quoted(value: &Value) -> String {
    match value {
        Value::String(text) => choice([text.as_str()]),
        other => format!("`{other}`"),
    }
}

/// A schema with its references followed and its `allOf` in it. None where that leads nowhere.
fn flat(root: &Value, schema: &Value, depth: usize) -> Option<Flat> {
    if depth > MAX_LEVEL {
        return None;
    }
    let schema = match schema {
        Value::Bool(true) => return Some(Flat::new()),
        Value::Bool(false) => {
            return Some([("false".to_owned(), Value::Null)].into_iter().collect());
        }
        other => other.as_object()?,
    };
    let mut whole = Flat::new();
    if schema.contains_key("$ref") {
        let reference = Value::Object(schema.clone());
        whole = flat(root, &resolve(root, &reference)?.clone(), depth + 1)?;
    }
    for member in members(schema, "allOf") {
        add(&mut whole, flat(root, member, depth + 1)?);
    }
    let mut own = schema.clone();
    own.remove("$ref");
    own.remove("allOf");
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Value::Array(members)) = own.get_mut(keyword) {
            let flattened: Option<Vec<Value>> = members
                .iter()
                .map(|member| flat(root, member, depth + 1).map(Value::Object))
                .collect();
            *members = flattened?;
        }
    }
    add(&mut whole, own);
    Some(whole)
}

/// Adds what else must hold.
fn add(whole: &mut Flat, more: Flat) {
    for (keyword, value) in more {
        match (whole.get_mut(&keyword), value) {
            (Some(Value::Object(known)), Value::Object(value)) if keyword == "properties" => {
                known.extend(value);
            }
            (Some(Value::Array(known)), Value::Array(value)) if keyword == "required" => {
                known.extend(value);
            }
            (_, value) => drop(whole.insert(keyword, value)),
        }
    }
}

/// The schemas of which at least one must hold, each with what holds besides.
fn alternatives(mut schema: Flat) -> Vec<Flat> {
    let Some(keyword) = ["anyOf", "oneOf"]
        .into_iter()
        .find(|it| schema.contains_key(*it))
    else {
        return vec![schema];
    };
    let Some(Value::Array(members)) = schema.remove(keyword) else {
        return vec![schema];
    };
    let members = members.into_iter().filter_map(|member| match member {
        Value::Object(member) => Some(member),
        _ => None,
    });
    let whole = members.flat_map(|member| {
        let mut whole = schema.clone();
        add(&mut whole, member);
        alternatives(whole)
    });
    whole.collect()
}
