//! The rules of a schema that look at one value only: types, choices, limits.

use serde_json::{Map, Number, Value};

use super::text::{did_you_mean, found, list, shown};

/// Whether a value is of a type as schemas name it. Numbers with a fraction are no integers,
/// whatever the fraction, as for the types that will read them.
fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

/// A type's name for people.
fn type_words(name: &str) -> String {
    let words = match name {
        "null" => "nothing",
        "boolean" => "true or false",
        "string" => "a string",
        "integer" => "an integer",
        "number" => "a number",
        "array" => "a list",
        "object" => "an object",
        other => return format!("`{}`", shown(other)),
    };
    words.to_owned()
}

/// The types that a schema names; none if it does not.
pub(super) fn types(schema: &Map<String, Value>) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// What the types are, for people: `a string or nothing`.
pub(super) fn expected(types: &[&str]) -> String {
    // That a value may be left out is no help to whom it is wrong.
    let optional = types.len() > 1;
    let named = types.iter().filter(|name| !(optional && **name == "null"));
    list(named.map(|name| type_words(name)).collect())
}

pub(super) fn accepts_type(schema: &Map<String, Value>, value: &Value) -> bool {
    let types = types(schema);
    types.is_empty() || types.iter().any(|name| is_type(name, value))
}

pub(super) fn type_problem(schema: &Map<String, Value>, value: &Value) -> Option<String> {
    if accepts_type(schema, value) {
        return None;
    }
    let mut text = format!(
        "expected {}, found {}",
        expected(&types(schema)),
        found(value)
    );
    if value.is_null() {
        text.push_str(": give it a value, or remove the field");
    }
    Some(text)
}

/// The values that a schema lists, if it lists any.
pub(super) fn choices(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

pub(super) fn enum_problem(schema: &Map<String, Value>, value: &Value) -> Option<String> {
    let choices = choices(schema)?;
    if choices.contains(&value) {
        return None;
    }
    Some(choice_problem(&choices, value))
}

/// What to say of a value that is none of the choices.
pub(super) fn choice_problem(choices: &[&Value], value: &Value) -> String {
    let written = |choice: &&Value| match choice {
        Value::String(text) => format!("`{}`", shown(text)),
        other => format!("`{}`", shown(&other.to_string())),
    };
    let listed = choices.iter().filter(|choice| !choice.is_null());
    let listed = list(listed.map(written).collect());
    let one_of = if choices.len() > 1 { "one of " } else { "" };
    let names = choices.iter().filter_map(|choice| choice.as_str());
    let hint = value
        .as_str()
        .map_or_else(String::new, |text| did_you_mean(text, names));
    format!("expected {one_of}{listed}, found {}{hint}", found(value))
}

fn count(schema: &Map<String, Value>, keyword: &str) -> Option<usize> {
    schema
        .get(keyword)
        .and_then(Value::as_u64)
        .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// Limits on how many things there are.
pub(super) fn count_problems(
    schema: &Map<String, Value>,
    least: &str,
    most: &str,
    has: usize,
    things: &str,
) -> Vec<String> {
    let least = count(schema, least).filter(|least| has < *least);
    let most = count(schema, most).filter(|most| has > *most);
    let few = least.map(|least| format!("must have at least {least} {things}, it has {has}"));
    let many = most.map(|most| format!("must have at most {most} {things}, it has {has}"));
    few.into_iter().chain(many).collect()
}

pub(super) fn length_problems(schema: &Map<String, Value>, text: &str) -> Vec<String> {
    if text.is_empty() && count(schema, "minLength").is_some_and(|least| least > 0) {
        return vec!["must not be empty".to_owned()];
    }
    let length = text.chars().count();
    count_problems(schema, "minLength", "maxLength", length, "characters")
}

/// A limit, or a value, that may be larger than a float is exact for.
#[derive(Clone, Copy)]
pub(super) enum Amount {
    Whole(i128),
    Fraction(f64),
}

impl Amount {
    fn of(number: &Number) -> Option<Self> {
        let whole = number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from));
        whole
            .map(Self::Whole)
            .or_else(|| number.as_f64().map(Self::Fraction))
    }

    fn compare(self, other: Self) -> Option<std::cmp::Ordering> {
        // Comparing as floats only where one is a float already.
        #[expect(
            clippy::cast_precision_loss,
            reason = "limits beyond 2^53 with a fraction are no limits in practice"
        )]
        let float = |amount| match amount {
            Self::Whole(whole) => whole as f64,
            Self::Fraction(fraction) => fraction,
        };
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            (a, b) => float(a).partial_cmp(&float(b)),
        }
    }
}

/// The range of the integer type that a schema names as its format: the types will refuse what
/// is outside, without saying where.
fn format_range(format: &str) -> Option<(i128, i128)> {
    Some(match format {
        "int8" => (i8::MIN.into(), i8::MAX.into()),
        "int16" => (i16::MIN.into(), i16::MAX.into()),
        "int32" => (i32::MIN.into(), i32::MAX.into()),
        "int64" | "int" => (i64::MIN.into(), i64::MAX.into()),
        "uint8" => (0, u8::MAX.into()),
        "uint16" => (0, u16::MAX.into()),
        "uint32" => (0, u32::MAX.into()),
        "uint64" | "uint" => (0, u64::MAX.into()),
        _ => return None,
    })
}

pub(super) fn number_problems(schema: &Map<String, Value>, number: &Number) -> Vec<String> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let Some(amount) = Amount::of(number) else {
        return Vec::new();
    };
    let limit = |keyword: &str| match schema.get(keyword) {
        Some(Value::Number(limit)) => Amount::of(limit).map(|amount| (amount, limit.to_string())),
        _ => None,
    };
    let is_integer = matches!(amount, Amount::Whole(_)) && types(schema).contains(&"integer");
    let range = schema
        .get("format")
        .and_then(Value::as_str)
        .filter(|_| is_integer)
        .and_then(format_range);
    let bound = |end: i128| (Amount::Whole(end), end.to_string());
    let lower = limit("minimum").or_else(|| range.map(|(start, _)| bound(start)));
    let upper = limit("maximum").or_else(|| range.map(|(_, end)| bound(end)));
    let rules = [
        (lower, "at least", [Some(Greater), Some(Equal)]),
        (upper, "at most", [Some(Less), Some(Equal)]),
        (
            limit("exclusiveMinimum"),
            "more than",
            [Some(Greater), None],
        ),
        (limit("exclusiveMaximum"), "less than", [Some(Less), None]),
    ];
    let mut problems = Vec::new();
    for (limit, words, allowed) in rules {
        if let Some((limit, written)) = limit
            && let order @ Some(_) = amount.compare(limit)
            && !allowed.contains(&order)
        {
            problems.push(format!("must be {words} {written}, found {number}"));
        }
    }
    problems
}

/// The numbers that a schema allows.
pub(super) struct Range {
    /// The end, whether it is excluded, and how it is written.
    lower: Option<(Amount, bool, String)>,
    upper: Option<(Amount, bool, String)>,
}

impl Range {
    pub(super) fn of(schema: &Map<String, Value>) -> Self {
        let limit = |keyword: &str, excluded: bool| match schema.get(keyword) {
            Some(Value::Number(limit)) => {
                Amount::of(limit).map(|amount| (amount, excluded, limit.to_string()))
            }
            _ => None,
        };
        let is_integer = types(schema).contains(&"integer");
        let format = schema.get("format").and_then(Value::as_str);
        let range = format.filter(|_| is_integer).and_then(format_range);
        let bound = |end: i128| (Amount::Whole(end), false, end.to_string());
        Self {
            lower: limit("exclusiveMinimum", true)
                .or_else(|| limit("minimum", false))
                .or_else(|| range.map(|(start, _)| bound(start))),
            upper: limit("exclusiveMaximum", true)
                .or_else(|| limit("maximum", false))
                .or_else(|| range.map(|(_, end)| bound(end))),
        }
    }

    /// Every number of the other one is in this one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        type End = Option<(Amount, bool, String)>;
        let covers = |ours: &End, theirs: &End, beyond| match (ours, theirs) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((ours, excluded, _)), Some((theirs, theirs_excluded, _))) => {
                match theirs.compare(*ours) {
                    Some(Equal) => !excluded || *theirs_excluded,
                    order => order == Some(beyond),
                }
            }
        };
        covers(&self.lower, &other.lower, Greater) && covers(&self.upper, &other.upper, Less)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |excluded: &bool, words: [&'static str; 2]| words[usize::from(*excluded)];
        let lower = self.lower.as_ref().map(|(_, excluded, text)| {
            format!("{} {text}", end(excluded, ["at least", "more than"]))
        });
        let upper = self.upper.as_ref().map(|(_, excluded, text)| {
            format!("{} {text}", end(excluded, ["at most", "less than"]))
        });
        let ends: Vec<String> = lower.into_iter().chain(upper).collect();
        match ends.as_slice() {
            [] => f.write_str("any number"),
            ends => f.write_str(&ends.join(" and ")),
        }
    }
}
