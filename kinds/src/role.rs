//! Roles and who has them: what callers of the API may do beyond what their token or certificate
//! says.

use platctrl_framework::model::{FieldError, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the server's own artifacts are.
const OWN_ARTIFACTS: &str = "artifact:";
/// Longest pattern or name.
const LONGEST: usize = 1024;
/// Most patterns or names of one list.
const MOST: usize = 1000;

/// What somebody may do, and where.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "Role",
    scope = "Cluster",
    validate = validate,
    column(name = "Grants", path = ".spec.grants"),
    column(name = "Namespaces", path = ".spec.namespaces"),
    column(name = "Apps", path = ".spec.apps")
)]
#[serde(rename_all = "camelCase")]
pub struct RoleSpec {
    /// What may be done.
    pub grants: Grants,
    /// In which namespaces: names, in which `*` stands for anything. Only an admin's has none: it
    /// is for everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// For a deployer, which apps: names, in which `*` stands for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<String>,
    /// For a deployer, how the objects may be called, in which `*` stands for anything. Left out: in
    /// any way that is free.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// For a deployer, which unix users a pod may name in `runAs`, in which `*` stands for
    /// anything. The user that is made for an app needs no mention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub run_as: Vec<String>,
    /// For a deployer, where artifacts may come from: locations, in which `*` stands for anything.
    /// Left out: the server's own artifacts (`artifact:`), which deployers may upload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<String>,
    /// For a deployer, which files a pod may name in `secrets`, in which `*` stands for anything.
    /// Left out: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
}

/// What may be done by who has a role; each may do what those before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Grants {
    /// Reads objects, events and logs.
    Viewer,
    /// Creates, changes and deletes what runs certain apps.
    Deployer,
    /// Changes every object but roles and who has them.
    Operator,
    /// Everything, also giving and taking access.
    Admin,
}

/// Gives a role to people and programs.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "RoleBinding",
    short("rb"),
    scope = "Cluster",
    validate = validate_binding,
    column(name = "Role", path = ".spec.role"),
    column(name = "Subjects", path = ".spec.subjects")
)]
#[serde(rename_all = "camelCase")]
pub struct RoleBindingSpec {
    /// The name of a role; `viewer`, `operator` and `admin` are there without being created, for
    /// all namespaces.
    pub role: String,
    /// The names that tokens were made for, or that certificates name.
    pub subjects: Vec<String>,
}

/// Whether text is what a pattern says, in which `*` stands for any text.
///
/// ```
/// use platctrl_kinds::fits_pattern;
///
/// assert!(fits_pattern("hello-*", "hello-web"));
/// assert!(!fits_pattern("hello", "hello-web"));
/// ```
#[must_use]
pub fn fits_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        // What was between two stars may be anywhere, and the nearest place leaves most room.
        if let Some(between) = last.replace(part) {
            let between: &str = between;
            match rest.find(between) {
                Some(at) => rest = &rest[at + between.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

/// Whether one of the patterns matches.
#[must_use]
pub fn fits_any(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| fits_pattern(pattern, text))
}

/// Whether artifacts may come from a location, by patterns of locations; without any, from the
/// server alone. What leads out of a directory that a pattern names does not match it.
#[must_use]
pub fn fits_location(patterns: &[String], location: &str) -> bool {
    if patterns.is_empty() {
        return location.starts_with(OWN_ARTIFACTS);
    }
    let lower = location.to_ascii_lowercase();
    let path = lower.split(['?', '#']).next().unwrap_or_default();
    let dots = path
        .replace("%2e", ".")
        .replace("%2f", "/")
        .replace('\\', "/");
    let leads_out = dots.split('/').any(|segment| matches!(segment, "." | ".."));
    !leads_out && fits_any(patterns, location)
}

fn texts(field: &str, texts: &[String], errors: &mut Vec<FieldError>) {
    if texts.len() > MOST {
        let problem = format!("has {} entries; {MOST} are the most", texts.len());
        errors.push(FieldError::new(format!("spec.{field}"), problem));
    }
    for (at, text) in texts.iter().enumerate().take(MOST) {
        let bad = text.is_empty() || text.len() > LONGEST || text.chars().any(char::is_control);
        if bad {
            errors.push(FieldError::new(
                format!("spec.{field}[{at}]"),
                "is a text of 1 to 1024 bytes without control characters",
            ));
        }
    }
}

fn validate(spec: &RoleSpec, errors: &mut Vec<FieldError>) {
    let lists = [
        ("namespaces", &spec.namespaces),
        ("apps", &spec.apps),
        ("names", &spec.names),
        ("runAs", &spec.run_as),
        ("locations", &spec.locations),
        ("secrets", &spec.secrets),
    ];
    for (field, list) in lists {
        texts(field, list, errors);
        let fits = match field {
            "namespaces" => spec.grants != Grants::Admin,
            _ => spec.grants == Grants::Deployer,
        };
        if !fits && !list.is_empty() {
            let problem = match field {
                "namespaces" => "an admin's role is for everything: leave it out",
                _ => "is for roles that grant `deployer`: leave it out",
            };
            errors.push(FieldError::new(format!("spec.{field}"), problem));
        }
        let needed = matches!(field, "namespaces" | "apps") && fits;
        if needed && list.is_empty() {
            let problem = format!("is required: name {field}, or write [\"*\"] for all");
            errors.push(FieldError::new(format!("spec.{field}"), problem));
        }
    }
    for (at, pattern) in spec.locations.iter().enumerate() {
        if let Some(problem) = too_wide(pattern) {
            errors.push(FieldError::new(format!("spec.locations[{at}]"), problem));
        }
    }
}

/// A star in the place of a server's name would match servers of anybody.
fn too_wide(pattern: &str) -> Option<&'static str> {
    let (_, rest) = pattern.split_once("://")?;
    match rest.split_once('/') {
        Some((server, _)) if !server.contains('*') => None,
        None if !rest.contains('*') => None,
        _ => Some("names the server whole: a `*` comes after the `/` behind it"),
    }
}

fn validate_binding(spec: &RoleBindingSpec, errors: &mut Vec<FieldError>) {
    texts("subjects", &spec.subjects, errors);
    if spec.subjects.iter().any(|subject| subject.contains('*')) {
        errors.push(FieldError::new(
            "spec.subjects",
            "are names: `*` does not stand for anybody",
        ));
    }
    if let Err(error) = platctrl_framework::model::check_name("role", &spec.role) {
        errors.push(FieldError::new("spec.role", error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(role: &serde_json::Value) -> Vec<String> {
        let spec: RoleSpec = serde_json::from_value(role.clone()).unwrap();
        let mut errors = Vec::new();
        validate(&spec, &mut errors);
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_star_stands_for_any_text_and_everything_else_for_itself() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("*", "a", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("", "a", false),
            ("a*", "ab", true),
            ("a*", "ba", false),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a**b", "ab", true),
            ("*.b.*", "a.b.b.c", true),
            ("a.c", "abc", false),
        ] {
            assert_eq!(fits_pattern(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn a_role_says_for_what_it_is() {
        let none = Vec::<String>::new();
        for (role, wrong) in [
            (serde_json::json!({"grants": "admin"}), none.clone()),
            (
                serde_json::json!({"grants": "deployer", "namespaces": ["a"], "apps": ["b*"]}),
                none.clone(),
            ),
            (
                serde_json::json!({"grants": "viewer"}),
                vec!["spec.namespaces".to_owned()],
            ),
            (
                serde_json::json!({"grants": "admin", "namespaces": ["a"]}),
                vec!["spec.namespaces".to_owned()],
            ),
            (
                serde_json::json!({"grants": "deployer", "namespaces": ["a"]}),
                vec!["spec.apps".to_owned()],
            ),
            (
                serde_json::json!({"grants": "operator", "namespaces": ["*"], "apps": ["a"]}),
                vec!["spec.apps".to_owned()],
            ),
            (
                serde_json::json!({"grants": "viewer", "namespaces": [""]}),
                vec!["spec.namespaces[0]".to_owned()],
            ),
            (
                serde_json::json!({"grants": "deployer", "namespaces": ["a"], "apps": ["b"],
                    "locations": ["https://a.example*", "https://*/x", "https://a.example/*", "artifact:*"]}),
                vec![
                    "spec.locations[0]".to_owned(),
                    "spec.locations[1]".to_owned(),
                ],
            ),
        ] {
            assert_eq!(problems(&role), wrong, "{role}");
        }
    }

    #[test]
    fn a_binding_names_people_and_not_anybody() {
        let spec = RoleBindingSpec {
            role: "A/b".to_owned(),
            subjects: vec!["*".to_owned()],
        };
        let mut errors = Vec::new();
        validate_binding(&spec, &mut errors);
        let fields: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(fields, ["spec.subjects", "spec.role"]);
    }
}
