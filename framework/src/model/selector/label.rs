//! What labels may look like: the rules of Kubernetes, so that its tools can set and select them.

use std::collections::BTreeMap;

use crate::model::FieldError;
use crate::model::schema::child_path;

/// The most bytes that a label's name, without its prefix, and a label's value may have.
const MAX_BYTES: usize = 63;
/// The most bytes that the prefix of a label's key may have.
const MAX_PREFIX_BYTES: usize = 253;

const KEY_FORM: &str = "a key is a name of letters, digits, `-`, `_` and `.`, with a domain and \
                        `/` before it if it is not your own: `role` or `example.dev/role`";

/// Letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit.
fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= MAX_BYTES
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A domain name in lower case.
fn is_domain(text: &str) -> bool {
    let plain = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let part = |part: &str| {
        let bytes = part.as_bytes();
        plain(bytes.first())
            && plain(bytes.last())
            && bytes.iter().all(|byte| plain(Some(byte)) || *byte == b'-')
    };
    text.len() <= MAX_PREFIX_BYTES && text.split('.').all(part)
}

/// Why this cannot be a label's key; None if it can.
pub(super) fn key_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if name.len() > MAX_BYTES {
        return Some(format!(
            "a label's name is at most {MAX_BYTES} bytes long, this one has {}",
            name.len()
        ));
    }
    match prefix {
        Some(prefix) if !is_domain(prefix) => Some(format!(
            "`{}` before the `/` is no domain name in lower case; {KEY_FORM}",
            shown(prefix)
        )),
        _ if !is_word(name) => Some(format!("`{}` is no label key; {KEY_FORM}", shown(key))),
        _ => None,
    }
}

/// Why this cannot be a label's value; None if it can.
pub(super) fn value_problem(value: &str) -> Option<String> {
    if value.is_empty() || is_word(value) {
        return None;
    }
    if value.len() > MAX_BYTES {
        return Some(format!(
            "a label's value is at most {MAX_BYTES} bytes long, this one has {}",
            value.len()
        ));
    }
    Some(format!(
        "`{}` is no label value: only letters, digits, `-`, `_` and `.` are allowed, and a letter \
         or digit at both ends",
        shown(value)
    ))
}

/// Checks labels as they are in metadata. Problems are added to `errors`; `path` is where the
/// labels are.
///
/// ```
/// use platctrl_framework::model::check_labels;
///
/// let labels = [("role".to_owned(), "web server".to_owned())].into();
/// let mut errors = Vec::new();
/// check_labels("metadata.labels", &labels, &mut errors);
/// assert_eq!(errors[0].path, "metadata.labels.role");
/// assert!(errors[0].problem.starts_with("`web server` is no label value"));
/// ```
pub fn check_labels(path: &str, labels: &BTreeMap<String, String>, errors: &mut Vec<FieldError>) {
    for (key, value) in labels {
        let problems = [key_problem(key), value_problem(value)];
        for problem in problems.into_iter().flatten() {
            errors.push(FieldError::new(child_path(path, key), problem));
        }
    }
}

/// Hostile text for an error: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(80)
        .flat_map(|c| {
            let control =
                c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let escaped = control.then(|| c.escape_default());
            escaped.into_iter().flatten().chain((!control).then_some(c))
        })
        .collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_and_values_are_those_of_kubernetes() {
        let (name, prefix) = ("a".repeat(63), format!("{}.b", "a".repeat(251)));
        let long_key = format!("{prefix}/{name}");
        for key in ["a", "A_b-c.D", "example.dev/role", "x/1", &long_key] {
            assert_eq!(key_problem(key), None, "{key}");
        }
        let too_long = (format!("{name}a"), format!("a{prefix}/a"));
        for key in [
            "",
            "-a",
            "a-",
            "a b",
            "é",
            "/a",
            "a/",
            "a/b/c",
            "A/b",
            "a..b/c",
            "a_b/c",
            "*",
            "a\0",
            &too_long.0,
            &too_long.1,
        ] {
            assert!(key_problem(key).is_some(), "{key}");
        }
        for value in ["", "1", "a.b_c-D", &name] {
            assert_eq!(value_problem(value), None, "{value}");
        }
        for value in ["-", "a ", "a/b", "é", ".a", &too_long.0] {
            assert!(value_problem(value).is_some(), "{value}");
        }
    }

    #[test]
    fn every_wrong_label_is_reported_at_its_path() {
        let labels = BTreeMap::from([
            ("example.dev/a".to_owned(), "!".to_owned()),
            ("b c".to_owned(), "fine".to_owned()),
            ("fine".to_owned(), "fine".to_owned()),
        ]);
        let mut errors = Vec::new();
        check_labels("metadata.labels", &labels, &mut errors);
        let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "metadata.labels.\"b c\"",
                "metadata.labels.\"example.dev/a\""
            ]
        );
    }

    #[test]
    fn hostile_text_is_shown_short_and_harmless() {
        let text = shown(&format!("\u{1b}[2J\u{202e}{}", "x".repeat(100)));
        assert!(text.starts_with("\\u{1b}[2J\\u{202e}x") && text.ends_with('…'));
        assert!(text.chars().count() < 100);
    }
}
