//! Alternatives: of several schemas at least one must fit, and when none does, the error should
//! be about the one that was meant.

use serde_json::{Map, Value};

use super::check::{Checker, Known, Place, Problem, members};
use super::scalar;
use super::text::{choice, found, list};

/// One alternative, tried.
struct Tried<'a> {
    /// With its reference followed; None for one that says nothing about structure.
    schema: Option<&'a Map<String, Value>>,
    problems: Vec<Problem>,
    known: Known<'a>,
}

pub(super) fn apply<'a>(
    checker: &mut Checker<'a>,
    place: Place<'_, 'a>,
    alternatives: &'a [Value],
    known: &mut Known<'a>,
) {
    let mut tried = Vec::new();
    let mut fits = false;
    for alternative in alternatives {
        let (problems, branch) = checker.attempt(place, alternative);
        if problems.is_empty() {
            fits = true;
            known.merge(branch);
            continue;
        }
        let schema = checker.resolve(alternative).and_then(Value::as_object);
        tried.push(Tried {
            schema,
            problems,
            known: branch,
        });
    }
    if fits || tried.is_empty() {
        return;
    }
    // That nothing may be there is no help to whom what is there is wrong.
    if !place.value.is_null() && tried.len() > 1 {
        tried.retain(|tried| {
            tried
                .schema
                .is_none_or(|schema| scalar::types(schema) != ["null"])
        });
    }
    explain(checker, place, tried, known);
}

fn explain<'a>(
    checker: &mut Checker<'a>,
    place: Place<'_, 'a>,
    mut tried: Vec<Tried<'a>>,
    known: &mut Known<'a>,
) {
    if let Some(choices) = all_choices(&tried) {
        let text = scalar::choice_problem(&choices, place.value);
        known.allow_all();
        return checker.report(place.path, text);
    }
    if let Value::Object(fields) = place.value {
        let is_object = |tried: &Tried<'a>| {
            tried.schema.is_some_and(|schema| {
                scalar::accepts_type(schema, place.value) && scalar::choices(schema).is_none()
            })
        };
        if tried.iter().any(is_object) {
            tried.retain(is_object);
            if explain_by_tag(checker, place, fields, &mut tried, known)
                || explain_by_field(checker, place, fields, &mut tried, known)
            {
                return;
            }
        }
    }
    let of_type = |tried: &Tried<'a>| {
        tried
            .schema
            .is_none_or(|schema| scalar::accepts_type(schema, place.value))
    };
    if tried.iter().any(of_type) {
        tried.retain(of_type);
        take_best(checker, tried, known);
    } else {
        known.allow_all();
        let text = format!("expected {}, found {}", forms(&tried), found(place.value));
        checker.report(place.path, text);
    }
}

/// Reports the problems of the alternative with the fewest.
fn take_best<'a>(checker: &mut Checker<'a>, tried: Vec<Tried<'a>>, known: &mut Known<'a>) {
    if let Some(best) = tried.into_iter().min_by_key(|tried| tried.problems.len()) {
        checker.problems.extend(best.problems);
        known.merge(best.known);
    }
}

/// The values of alternatives that all list theirs.
fn all_choices<'a>(tried: &[Tried<'a>]) -> Option<Vec<&'a Value>> {
    let mut all = Vec::new();
    for tried in tried {
        all.extend(scalar::choices(tried.schema?)?);
    }
    Some(all)
}

fn properties<'a>(tried: &Tried<'a>) -> Option<&'a Map<String, Value>> {
    tried.schema?.get("properties")?.as_object()
}

/// The one text that a field must be in an alternative.
fn tag_of<'a>(tried: &Tried<'a>, field: &str) -> Option<&'a str> {
    let schema = properties(tried)?.get(field)?.as_object()?;
    match scalar::choices(schema)?.as_slice() {
        [Value::String(tag)] => Some(tag),
        _ => None,
    }
}

/// Alternatives that one field tells apart, as `type: Http`. Returns whether they are.
fn explain_by_tag<'a>(
    checker: &mut Checker<'a>,
    place: Place<'_, 'a>,
    fields: &Map<String, Value>,
    tried: &mut Vec<Tried<'a>>,
    known: &mut Known<'a>,
) -> bool {
    let first = tried.first().and_then(properties);
    let field = first
        .into_iter()
        .flat_map(Map::keys)
        .find(|field| tried.iter().all(|tried| tag_of(tried, field).is_some()));
    let Some(field) = field else { return false };
    let value = fields.get(field);
    let meant = |tried: &Tried<'a>| {
        let tag = tag_of(tried, field);
        tag.is_some() && tag == value.and_then(Value::as_str)
    };
    if tried.iter().any(meant) {
        tried.retain(meant);
        take_best(checker, std::mem::take(tried), known);
        return true;
    }
    let text = {
        let tags = tried.iter().filter_map(|tried| tag_of(tried, field));
        match value {
            None => format!("is required: {}", choice(tags)),
            Some(value) => {
                let tags: Vec<Value> = tags.map(Value::from).collect();
                scalar::choice_problem(&tags.iter().collect::<Vec<_>>(), value)
            }
        }
    };
    checker.report(&place.path.field(field), text);
    know_all(tried, known);
    true
}

/// Alternatives that are told apart by the one field each has, as `http: {…}`. Returns whether
/// they are.
fn explain_by_field<'a>(
    checker: &mut Checker<'a>,
    place: Place<'_, 'a>,
    fields: &Map<String, Value>,
    tried: &mut Vec<Tried<'a>>,
    known: &mut Known<'a>,
) -> bool {
    let key = |tried: &Tried<'a>| -> Option<&'a str> {
        let only = properties(tried).filter(|properties| properties.len() == 1)?;
        let name = only.keys().next()?;
        members(tried.schema?, "required")
            .iter()
            .any(|required| required == name)
            .then_some(name)
    };
    if !tried.iter().all(|tried| key(tried).is_some()) {
        return false;
    }
    let meant = |tried: &Tried<'a>| key(tried).is_some_and(|name| fields.contains_key(name));
    if tried.iter().any(meant) {
        tried.retain(meant);
        if tried.len() > 1 {
            let names = choice(tried.iter().filter_map(key));
            checker.report(place.path, format!("only one of {names} is allowed"));
            know_all(tried, known);
        } else {
            take_best(checker, std::mem::take(tried), known);
        }
        return true;
    }
    let names = choice(tried.iter().filter_map(key));
    checker.report(place.path, format!("needs one of the fields {names}"));
    know_all(tried, known);
    true
}

/// Of alternatives none of which was meant, all fields are known: others are still reported.
fn know_all<'a>(tried: &mut Vec<Tried<'a>>, known: &mut Known<'a>) {
    for tried in std::mem::take(tried) {
        known.names.extend(tried.known.names);
    }
}

/// What the alternatives are, for people.
fn forms(tried: &[Tried<'_>]) -> String {
    let mut forms: Vec<String> = Vec::new();
    for schema in tried.iter().filter_map(|tried| tried.schema) {
        let form = match scalar::choices(schema) {
            Some(choices) => choice(choices.into_iter().filter_map(Value::as_str)),
            None => scalar::expected(&scalar::types(schema)),
        };
        if !form.is_empty() && !forms.contains(&form) {
            forms.push(form);
        }
    }
    list(forms)
}
