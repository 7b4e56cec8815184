//! Words for errors: what was found, what was meant, what there is.

use serde_json::Value;

use super::path::is_unsafe_to_show;

/// The most characters of a text that an error shows.
const MAX_SHOWN: usize = 60;
/// The most choices that an error lists.
const MAX_LISTED: usize = 16;
/// Longer names are not compared with others.
const MAX_COMPARED: usize = 64;

/// What a value is, for people: ``the string `two` `` with double quotes.
pub(super) fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing (null)".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string \"{}\"", shown(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Hostile text: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (position, c) in text.chars().enumerate() {
        if position == MAX_SHOWN {
            shown.push('…');
            break;
        }
        match c {
            '"' => shown.push_str("\\\""),
            c if is_unsafe_to_show(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// `` `a`, `b` or `c` ``.
pub(super) fn choice<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let quoted = names.into_iter().map(|name| format!("`{}`", shown(name)));
    list(quoted.collect())
}

/// `a, b or c`.
pub(super) fn list(mut items: Vec<String>) -> String {
    if items.len() > MAX_LISTED {
        let more = items.len() - MAX_LISTED;
        items.truncate(MAX_LISTED);
        return format!("{} and {more} more", items.join(", "));
    }
    match items.pop() {
        Some(last) if !items.is_empty() => format!("{} or {last}", items.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// The candidate that was probably meant.
pub(super) fn nearest<'n>(
    name: &str,
    candidates: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    if name.len() > MAX_COMPARED {
        return None;
    }
    let lower = name.to_lowercase();
    // A third of the letters may differ: `replica` is near to `replicas`, `a` to nothing.
    let limit = lower.chars().count().div_ceil(3).min(3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= MAX_COMPARED)
        .map(|candidate| {
            let distance = strsim::osa_distance(&lower, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// ``; did you mean `x`?``, or nothing.
pub(super) fn did_you_mean<'n>(
    name: &str,
    candidates: impl IntoIterator<Item = &'n str>,
) -> String {
    nearest(name, candidates).map_or_else(String::new, |nearest| {
        format!("; did you mean `{}`?", shown(nearest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_recognised_and_other_words_are_not() {
        let known = ["stopTimeout", "replicas", "env", "template"];
        for (typed, meant) in [
            ("stopTimout", Some("stopTimeout")),
            ("stoptimeout", Some("stopTimeout")),
            ("replica", Some("replicas")),
            ("enviroment", None),
            ("evn", Some("env")),
            ("x", None),
            ("metadata", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(choice(["a", "b", "c"]), "`a`, `b` or `c`");
        assert_eq!(choice(["a"]), "`a`");
        assert!(list((0..20).map(|n| n.to_string()).collect()).ends_with("15 and 4 more"));
    }
}
