//! Label selectors, in the grammar that Kubernetes made common.
//!
//! A selector is a text: `az in (east,west), role=web, !retired`. All of its requirements must
//! hold. Where Kubernetes reads an empty selector as *everything*, here everything is written
//! `*`, and an empty or missing selector is refused: a forgotten line must not reach all nodes.

mod label;
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use label::check_labels;

/// The most bytes that a selector's text may have.
pub const MAX_SELECTOR_BYTES: usize = 4096;
/// The most requirements that a selector may have.
const MAX_REQUIREMENTS: usize = 128;

/// Selects by labels.
///
/// | text | holds for labels where |
/// |---|---|
/// | `a=x`, `a==x` | `a` is `x` |
/// | `a!=x` | `a` is something else, or missing |
/// | `a in (x,y)` | `a` is one of them |
/// | `a notin (x,y)` | `a` is none of them, or missing |
/// | `a`, `!a` | `a` is there, is missing |
/// | `a>1`, `a<1` | `a` is a whole number above, below |
/// | `*` | always; stands alone |
///
/// Requirements are separated by commas, and their order does not matter: equal selectors are
/// written alike.
///
/// ```
/// use platctrl_framework::model::Selector;
///
/// let selector: Selector = "role=web, az in (west,east)".parse()?;
/// assert!(selector.matches(&[("role".into(), "web".into()), ("az".into(), "east".into())].into()));
/// assert!(!selector.matches(&[("role".into(), "web".into())].into()));
/// assert_eq!(selector.to_string(), "az in (east,west),role=web");
///
/// let error = "role=web az=east".parse::<Selector>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid selector at character 10: expected `,` before the next label, or the end, found `az`"
/// );
/// # Ok::<(), platctrl_framework::model::SelectorError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    /// Sorted, each once; none for everything.
    requirements: Vec<Requirement>,
}

/// One of the conditions of a [`Selector`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Operator {
    /// Never of no values.
    In(BTreeSet<String>),
    /// Never of no values.
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// Text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid selector at character {}: {problem}", position + 1)]
#[non_exhaustive]
pub struct SelectorError {
    /// How many characters of the text are before the problem.
    pub position: usize,
    /// What is wrong and what to write.
    pub problem: String,
}

impl Selector {
    /// Selects everything: `*`.
    #[must_use]
    pub const fn everything() -> Self {
        Self {
            requirements: Vec::new(),
        }
    }

    /// Selects what has all of these labels with these values.
    ///
    /// # Errors
    /// [`SelectorError`] when a label is not valid, or there is none: that would select
    /// everything, which is never meant by accident.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Result<Self, SelectorError> {
        for (key, value) in labels {
            let problem = label::key_problem(key).or_else(|| label::value_problem(value));
            if let Some(problem) = problem {
                return Err(SelectorError {
                    position: 0,
                    problem,
                });
            }
        }
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In([value.clone()].into()),
        };
        let selector = Self {
            requirements: labels.iter().map(requirement).collect(),
        };
        // The limits of the text are limits of every selector. No labels are `*` here.
        let text = if labels.is_empty() {
            String::new()
        } else {
            selector.to_string()
        };
        parse::parse(&text)
    }

    /// It is `*`.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// All requirements hold for these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(labels))
    }

    /// Its conditions, to say which of them nothing meets. None for everything.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl Requirement {
    /// The label that it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The values of which the label must have one, if it must have one of some.
    pub(crate) fn values(&self) -> Option<&BTreeSet<String>> {
        match &self.operator {
            Operator::In(values) => Some(values),
            _ => None,
        }
    }

    /// It holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(limit) => number().is_some_and(|number| number > *limit),
            Operator::LessThan(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("*");
        }
        for (position, requirement) in self.requirements.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let (one, many, values) = match &self.operator {
            Operator::In(values) => ("=", "in", values),
            Operator::NotIn(values) => ("!=", "notin", values),
            Operator::Exists => return f.write_str(key),
            Operator::DoesNotExist => return write!(f, "!{key}"),
            Operator::GreaterThan(limit) => return write!(f, "{key}>{limit}"),
            Operator::LessThan(limit) => return write!(f, "{key}<{limit}"),
        };
        match values.first() {
            Some(value) if values.len() == 1 => write!(f, "{key}{one}{value}"),
            _ => {
                let values: Vec<_> = values.iter().map(String::as_str).collect();
                write!(f, "{key} {many} ({})", values.join(","))
            }
        }
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({self})")
    }
}

impl fmt::Debug for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Requirement({self})")
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Selector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a selector as text, as \"role=web\", or \"*\" for everything")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Selector, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selector".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Selects by labels: requirements with commas between them, as \
                            `az in (east,west),role=web,!retired`; `*` selects everything.",
            "minLength": 1,
            "maxLength": MAX_SELECTOR_BYTES,
        })
    }
}

#[cfg(test)]
mod tests;
