//! What runs, as a tree: for people as indented text, for programs as JSON.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

/// How something stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Standing {
    /// As it should.
    #[default]
    Well,
    /// It does not work yet, or not for this process to do.
    Waiting,
    /// Something is wrong.
    Troubled,
}

/// One thing and what it consists of.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct StatusTree {
    /// What it is and its name, as `controller sites`.
    pub name: String,
    /// How it stands, not counting its parts.
    pub standing: Standing,
    /// Why it does not stand well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What is known of it, in the order of importance.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub facts: Map<String, Value>,
    /// Its parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<StatusTree>,
}

impl StatusTree {
    /// Something that stands well, without facts and parts.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a part.
    #[must_use]
    pub fn part(mut self, part: Self) -> Self {
        self.parts.push(part);
        self
    }

    /// Says that it does not stand well, and why. The worst that was said stays.
    #[must_use]
    pub fn but(mut self, standing: Standing, reason: impl Into<String>) -> Self {
        if standing > self.standing {
            self.standing = standing;
            self.reason = reason.into();
        }
        self
    }

    /// The worst standing of it and all its parts.
    #[must_use]
    pub fn worst(&self) -> Standing {
        let parts = self.parts.iter().map(Self::worst);
        parts.max().unwrap_or_default().max(self.standing)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let mark = match self.standing {
            Standing::Well => "ok  ",
            Standing::Waiting => "wait",
            Standing::Troubled => "BAD ",
        };
        write!(f, "{mark} {:indent$}{}", "", self.name, indent = 2 * depth)?;
        let mut separator = ": ";
        for (name, value) in &self.facts {
            match value {
                Value::String(text) => write!(f, "{separator}{name} {text}")?,
                other => write!(f, "{separator}{name} {other}")?,
            }
            separator = ", ";
        }
        writeln!(f)?;
        if !self.reason.is_empty() {
            writeln!(
                f,
                "     {:indent$}{}",
                "",
                self.reason,
                indent = 2 * depth + 2
            )?;
        }
        self.parts
            .iter()
            .try_for_each(|part| part.write(f, depth + 1))
    }
}

impl fmt::Display for StatusTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> StatusTree {
        let source = StatusTree::new("source o/").but(Standing::Troubled, "the store is away");
        let sites = StatusTree::new("controller sites")
            .with("ready", 3)
            .with("leads", "yes");
        StatusTree::new("runtime controllers")
            .part(source)
            .part(sites)
    }

    #[test]
    fn a_tree_is_read_by_people_from_the_left() {
        let lines = [
            "ok   runtime controllers",
            "BAD    source o/",
            "         the store is away",
            "ok     controller sites: ready 3, leads yes",
            "",
        ];
        // The facts come in the order of a map.
        let text = tree()
            .to_string()
            .replace("leads yes, ready 3", "ready 3, leads yes");
        assert_eq!(text, lines.join("\n"));
        assert_eq!(tree().worst(), Standing::Troubled);
        assert_eq!(tree().standing, Standing::Well);
    }

    #[test]
    fn programs_get_json_without_what_is_empty() {
        let json = serde_json::to_value(tree()).unwrap();
        assert_eq!(json["parts"][0]["standing"], "troubled");
        assert_eq!(json["parts"][1]["facts"]["ready"], 3);
        assert_eq!(json.get("facts"), None);
    }
}
