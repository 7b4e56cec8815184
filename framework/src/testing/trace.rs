//! What happened in a run, in order: kept as data while it runs, told in words afterwards.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::store::{Key, Record, Revision, Transaction, Write};

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    /// Whoever makes the world before anything begins.
    World,
    /// The scenario: people.
    Scenario,
    /// A replica of the controllers, and how often it has begun.
    Replica(usize, u32),
    /// The agent of a node.
    Agent(Arc<str>),
    /// Somebody who is in the way.
    Somebody,
}

impl Actor {
    pub(super) fn name(&self) -> String {
        match self {
            Self::World => "world".to_owned(),
            Self::Scenario => "scenario".to_owned(),
            Self::Replica(index, _) => format!("replica {index}"),
            Self::Agent(node) if node.is_empty() => "agent".to_owned(),
            Self::Agent(node) => format!("agent {node}"),
            Self::Somebody => "somebody".to_owned(),
        }
    }
}

/// One key's change in a commit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Touched {
    pub(super) key: Key,
    pub(super) before: Option<Bytes>,
    pub(super) after: Option<Bytes>,
}

impl Touched {
    /// What a transaction is about to change.
    pub(super) fn by(
        transaction: &Transaction,
        peek: impl Fn(&Key) -> Option<Record>,
    ) -> Vec<Self> {
        let touched = |write: &Write| Self {
            key: write.key().clone(),
            before: peek(write.key()).map(|record| record.value),
            after: match write {
                Write::Put { value, .. } => Some(value.clone()),
                Write::Delete { .. } => None,
            },
        };
        transaction.writes.iter().map(touched).collect()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// A transaction happened; numbered if it wrote objects.
    Commit {
        write: Option<u32>,
        revision: Revision,
        touched: Vec<Touched>,
    },
    /// A transaction was refused.
    Refused { touched: Vec<Touched> },
    /// Something about processes, replicas or nodes.
    Note(String),
    /// Something that was made to go wrong.
    Fault(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) at: Duration,
    pub(super) actor: Actor,
    pub(super) what: What,
}

/// What happened in a run, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trace {
    pub(super) lines: Vec<Line>,
}

/// Fields that say nothing about why something changed.
const NOISE: [&str; 6] = [
    "creationTimestamp",
    "lastTransitionTime",
    "observedGeneration",
    "observedSpec",
    "generation",
    "claim",
];
const MAX_FIELDS: usize = 4;
const MAX_VALUE_CHARS: usize = 40;

fn short(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_VALUE_CHARS {
        return text;
    }
    let cut: String = text.chars().take(MAX_VALUE_CHARS - 1).collect();
    format!("{cut}…")
}

/// Lists the fields that differ.
fn differences(path: &str, before: &Value, after: &Value, out: &mut Vec<String>) {
    if before == after {
        return;
    }
    let empty = Value::Object(serde_json::Map::new());
    match (before, after) {
        (Value::Null, Value::Object(_)) => differences(path, &empty, after, out),
        (Value::Object(old), Value::Object(new)) => {
            let names = old
                .keys()
                .chain(new.keys().filter(|name| !old.contains_key(*name)));
            for name in names.filter(|name| !NOISE.contains(&name.as_str())) {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                let get = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or_default()
                };
                differences(&path, &get(old), &get(new), out);
            }
        }
        (Value::Array(old), Value::Array(new))
            if conditions(old).is_some() && conditions(new).is_some() =>
        {
            let (old, new) = (
                conditions(old).unwrap_or_default(),
                conditions(new).unwrap_or_default(),
            );
            differences(path, &old, &new, out);
        }
        (Value::Null, Value::Array(new)) if conditions(new).is_some() => {
            differences(path, &empty, &conditions(new).unwrap_or_default(), out);
        }
        (Value::Null, after) => out.push(format!("{path}={}", short(after))),
        (before, after) => out.push(format!("{path} {}→{}", short(before), short(after))),
    }
}

/// Conditions by their type, so that one that is new does not look like all have changed.
fn conditions(list: &[Value]) -> Option<Value> {
    let entry = |value: &Value| {
        let name = value.get("type")?.as_str()?.to_owned();
        Some((name, value.get("status")?.clone()))
    };
    list.iter()
        .map(entry)
        .collect::<Option<_>>()
        .map(Value::Object)
}

/// `web/default/a` and the tree, from `o/intent/example.dev/web/default/a`.
pub(super) fn place(key: &Key) -> Option<(&str, &str)> {
    let mut segments = key.as_str().strip_prefix("o/")?.splitn(3, '/');
    let (tree, _group, rest) = (segments.next()?, segments.next()?, segments.next()?);
    Some((tree, rest))
}

fn json(bytes: &Bytes) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn describe_one(touched: &Touched) -> Option<String> {
    let Some((tree, object)) = place(&touched.key) else {
        let (key, after) = (touched.key.as_str(), &touched.after);
        let claim = key.strip_prefix("x/lease/")?;
        return Some(match after {
            Some(_) => format!("wins the claim `{claim}`"),
            None => format!("gives up the claim `{claim}`"),
        });
    };
    let fields = |before: &Value, after: &Value, part: &str| {
        let mut out = Vec::new();
        let get = |value: &Value| value.get(part).cloned().unwrap_or_default();
        differences("", &get(before), &get(after), &mut out);
        out
    };
    let told = |mut list: Vec<String>| {
        let more = list.len().saturating_sub(MAX_FIELDS);
        list.truncate(MAX_FIELDS);
        if more > 0 {
            list.push(format!("{more} more"));
        }
        list.join(", ")
    };
    let text = match (tree, &touched.before, &touched.after) {
        ("intent", None, Some(after)) => {
            let list = fields(&Value::Null, &json(after), "spec");
            format!("creates {object} ({})", told(flat(&json(after), list)))
        }
        ("intent", Some(before), Some(after)) => {
            let (before, after) = (json(before), json(after));
            let ended = |value: &Value| value["metadata"].get("deletion").is_some();
            if ended(&after) && !ended(&before) {
                format!("asks for the end of {object}")
            } else {
                let mut list = fields(&before, &after, "spec");
                list.extend(fields(&before, &after, "metadata"));
                match list.is_empty() {
                    true => format!("touches {object}"),
                    false => format!("changes {object}: {}", told(list)),
                }
            }
        }
        ("reality" | "part", before, Some(after)) => {
            let before = before.as_ref().map(json).unwrap_or_default();
            let after = json(after);
            let list = fields(&before, &after, "status");
            match (list.is_empty(), before.is_null()) {
                (true, true) => format!("claims {object}"),
                (true, false) => format!("decides on {object}"),
                (false, _) => format!("reports {object}: {}", told(list)),
            }
        }
        ("intent", _, None) => format!("removes {object}"),
        // What an object that is removed takes along, and what was not there.
        (_, None, None) => return None,
        (tree, _, None) => format!("removes {tree} of {object}"),
        (tree, _, Some(_)) => format!("writes {tree} of {object}"),
    };
    Some(text)
}

/// The fields of a spec one by one, where it was listed as one value.
fn flat(after: &Value, list: Vec<String>) -> Vec<String> {
    let Some(Value::Object(spec)) = after.get("spec") else {
        return list;
    };
    let field = |(name, value): (&String, &Value)| format!("{name}={}", short(value));
    spec.iter().map(field).collect()
}

/// What a commit did, in words. None when nothing of it concerns people.
pub(super) fn describe(touched: &[Touched]) -> Option<String> {
    let removed = |object: &str| {
        let is = |other: &Touched| {
            other.after.is_none() && place(&other.key) == Some(("intent", object))
        };
        touched.iter().any(is)
    };
    let told = touched.iter().filter(|touched| {
        place(&touched.key).is_none_or(|(tree, object)| tree == "intent" || !removed(object))
    });
    let parts: Vec<String> = told.filter_map(describe_one).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

impl Line {
    fn told(&self) -> Option<String> {
        let seconds = self.at.as_secs_f64();
        let who = self.actor.name();
        let text = match &self.what {
            What::Commit { write, touched, .. } => {
                let text = describe(touched)?;
                match write {
                    Some(write) => format!("{text}   [write {write}]"),
                    None => text,
                }
            }
            What::Refused { touched } => format!("is refused (conflict): {}", describe(touched)?),
            What::Note(text) => text.clone(),
            What::Fault(text) => return Some(format!("{seconds:>9.3}s  !! {text}")),
        };
        Some(format!("{seconds:>9.3}s  {who:<12} {text}"))
    }
}

impl Trace {
    /// One line for each thing that concerns people.
    pub(super) fn timeline(&self) -> Vec<String> {
        self.lines.iter().filter_map(Line::told).collect()
    }

    /// Everything, also what concerns nobody: two runs are the same if and only if this is.
    pub(super) fn full(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let _ = write!(text, "{:?} {}", line.at, line.actor.name());
            match &line.what {
                What::Commit {
                    write,
                    revision,
                    touched,
                } => {
                    let _ = write!(text, " commit {write:?} at {revision}");
                    full_touched(&mut text, touched);
                }
                What::Refused { touched } => {
                    text.push_str(" refused");
                    full_touched(&mut text, touched);
                }
                What::Note(note) | What::Fault(note) => {
                    let _ = write!(text, " {note}");
                }
            }
            text.push('\n');
        }
        text
    }
}

fn full_touched(text: &mut String, touched: &[Touched]) {
    for touched in touched {
        let value = touched
            .after
            .as_ref()
            .map(|value| String::from_utf8_lossy(value));
        let _ = write!(text, " {}={}", touched.key, value.as_deref().unwrap_or("-"));
    }
}
