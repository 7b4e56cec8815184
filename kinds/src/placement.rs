//! What a pod asks of its node besides room: which apps it runs beside, and which never.

use platctrl_framework::model::FieldError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a pod may run, by the apps that run there.
///
/// Patterns are matched against the `app` of pods in the same namespace: `*` stands for any
/// letters, `?` for one, `[abc]` and `[a-c]` for one of these, `[^a]` for one that is none of
/// these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodPlacement {
    /// For each of these patterns a pod of such an app must be on the node already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<String>,
    /// No pod of such an app is on the node. It counts from both sides: a pod that names no
    /// conflict is not put beside one that names it. A pattern that matches the pod's own app
    /// keeps its copies apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
}

const MAX_PATTERNS: usize = 32;
const MAX_PATTERN: usize = 128;

impl PodPlacement {
    /// Nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what is wrong with it, at `path` of some object.
    pub(crate) fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        for (field, patterns) in [("with", &self.with), ("conflicts", &self.conflicts)] {
            if patterns.len() > MAX_PATTERNS {
                let problem = format!("has more than {MAX_PATTERNS} patterns");
                errors.push(FieldError::new(format!("{path}.{field}"), problem));
            }
            for (index, pattern) in patterns.iter().enumerate() {
                if let Some(problem) = wrong_pattern(pattern) {
                    errors.push(FieldError::new(format!("{path}.{field}[{index}]"), problem));
                }
            }
        }
        for (index, with) in self.with.iter().enumerate() {
            let clash = |conflict: &&String| *conflict == with || app_matches(conflict, with);
            if let Some(conflict) = self.conflicts.iter().find(clash) {
                let problem = format!(
                    "`{with}` is also a conflict, by `{conflict}`: no node can have it and not have it"
                );
                errors.push(FieldError::new(format!("{path}.with[{index}]"), problem));
            }
        }
    }
}

/// What is wrong with a pattern for apps.
fn wrong_pattern(pattern: &str) -> Option<String> {
    if pattern.is_empty() {
        return Some("is empty: name an app, or a pattern as `web-*`".into());
    }
    if pattern.len() > MAX_PATTERN {
        return Some(format!("is longer than {MAX_PATTERN} characters"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*?[]^".contains(&byte);
    if let Some(other) = pattern
        .chars()
        .find(|c| !u8::try_from(*c).is_ok_and(allowed))
    {
        return Some(format!(
            "has `{}`, which is in no app's name and stands for nothing",
            other.escape_default()
        ));
    }
    parse(pattern.as_bytes())
        .is_none()
        .then(|| "has a `[` without its `]`, or nothing between them".into())
}

/// One step of a pattern.
enum Step<'p> {
    Any,
    One,
    Of { not: bool, set: &'p [u8] },
    Byte(u8),
}

/// The first step of a pattern and the rest; None when it is no pattern.
fn step(pattern: &[u8]) -> Option<(Step<'_>, &[u8])> {
    let (&first, rest) = pattern.split_first()?;
    match first {
        b'*' => Some((Step::Any, rest)),
        b'?' => Some((Step::One, rest)),
        b'[' => {
            let (not, rest) = match rest.split_first() {
                Some((b'^', rest)) => (true, rest),
                _ => (false, rest),
            };
            let end = rest.iter().position(|&byte| byte == b']')?;
            let (set, rest) = (&rest[..end], &rest[end + 1..]);
            (!set.is_empty()).then_some((Step::Of { not, set }, rest))
        }
        byte => Some((Step::Byte(byte), rest)),
    }
}

fn parse(mut pattern: &[u8]) -> Option<()> {
    while !pattern.is_empty() {
        pattern = step(pattern)?.1;
    }
    Some(())
}

fn is_in(set: &[u8], byte: u8) -> bool {
    let mut rest = set;
    while let Some((&low, after)) = rest.split_first() {
        match after {
            [b'-', high, after @ ..] => {
                if (low..=*high).contains(&byte) {
                    return true;
                }
                rest = after;
            }
            _ => {
                if low == byte {
                    return true;
                }
                rest = after;
            }
        }
    }
    false
}

/// Whether a pattern of a [`PodPlacement`] matches an app. One that is no pattern matches nothing.
#[must_use]
pub fn app_matches(pattern: &str, app: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), app.as_bytes());
    // Where to go on if the newest `*` stands for one byte more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let matched = match (step(pattern), text.split_first()) {
            (Some((Step::Any, rest)), _) => {
                retry = Some((rest, text));
                pattern = rest;
                continue;
            }
            (None, None) => return pattern.is_empty(),
            (None, Some(_)) if !pattern.is_empty() => return false,
            (None, Some(_)) | (Some(_), None) => None,
            (Some((step, rest)), Some((&byte, after))) => {
                let is = match step {
                    Step::Any | Step::One => true,
                    Step::Of { not, set } => is_in(set, byte) != not,
                    Step::Byte(wanted) => wanted == byte,
                };
                is.then_some((rest, after))
            }
        };
        if let Some(next) = matched {
            (pattern, text) = next;
            continue;
        }
        match retry {
            Some((rest, from)) if !from.is_empty() => {
                retry = Some((rest, &from[1..]));
                (pattern, text) = (rest, &from[1..]);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_what_people_mean() {
        for (pattern, app) in [
            ("*", "foo"),
            ("foo.*", "foo.service"),
            ("foo-*-web", "foo-1-2-web"),
            ("foo-[abc]", "foo-b"),
            ("foo-[a-c]x", "foo-bx"),
            ("foo-[^a]", "foo-b"),
            ("foo-?", "foo-d"),
            ("foo", "foo"),
            ("*o*o", "foo"),
        ] {
            assert!(app_matches(pattern, app), "{pattern} {app}");
        }
        for (pattern, app) in [
            ("foo-[abc]", "foo-d"),
            ("foo-[^a]", "foo-a"),
            ("foo", "foo2"),
            ("foo-?", "foo-"),
            ("foo-[", "foo-["),
            ("", "foo"),
            ("f*x", "foo"),
        ] {
            assert!(!app_matches(pattern, app), "{pattern} {app}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for pattern in ["", "a b", "a[", "a[]", "ä", "a/b"] {
            assert!(wrong_pattern(pattern).is_some(), "{pattern}");
        }
        for pattern in ["web", "web-*", "[a-z]?", "*"] {
            assert_eq!(wrong_pattern(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn a_pod_cannot_need_what_it_conflicts_with() {
        let placement = PodPlacement {
            with: vec!["db".into()],
            conflicts: vec!["d*".into()],
        };
        let mut errors = Vec::new();
        placement.validate("spec.placement", &mut errors);
        assert_eq!(errors.len(), 1, "{errors:?}");
    }

    proptest! {
        #[test]
        fn any_pattern_is_matched_as_by_trying_everything(pattern in "[ab*?]{0,7}", app in "[ab]{0,7}") {
            fn tried(pattern: &[u8], app: &[u8]) -> bool {
                match (pattern.first(), app.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => tried(&pattern[1..], app) || (!app.is_empty() && tried(pattern, &app[1..])),
                    (Some(b'?'), Some(_)) => tried(&pattern[1..], &app[1..]),
                    (Some(wanted), Some(byte)) if wanted == byte => tried(&pattern[1..], &app[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(app_matches(&pattern, &app), tried(pattern.as_bytes(), app.as_bytes()));
        }

        #[test]
        fn no_pattern_panics(pattern in "[a-c*?\\[\\]^-]{0,12}", app in ".{0,12}") {
            let _ = (app_matches(&pattern, &app), wrong_pattern(&pattern));
        }
    }
}
