//! What two ends have in common whatever names were drawn: a normal form, and how two differ.
//!
//! Times, generations and revisions are left out. Names and uids that a controller draws are
//! replaced by what they name: an object's colour is a hash of its content, with each mention of
//! another object replaced by that one's colour, a few rounds over. Two ends are the same if they
//! have the same objects and processes by colour.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::run::End;
use super::simulation::Config;
use crate::model::Digest;

/// Left out wherever they are.
const NOISE: [&str; 11] = [
    "uid",
    "generation",
    "observedGeneration",
    "resourceVersion",
    "creationTimestamp",
    "lastTransitionTime",
    "firstTimestamp",
    "lastTimestamp",
    "at",
    "by",
    "platctrl.dev/last-applied",
];
/// Colours follow references this far.
const ROUNDS: usize = 4;
const MAX_SHOWN: usize = 12;

/// The paths of the objects of an end, for telling drawn names from given ones.
pub(super) fn paths(end: &End) -> BTreeSet<String> {
    end.records
        .iter()
        .filter_map(|record| split(record.key.as_str()))
        .map(|(_, path)| path)
        .collect()
}

/// The tree, and the path behind it; the writer of a part belongs to the tree.
fn split(key: &str) -> Option<(String, String)> {
    let rest = key.strip_prefix("o/")?;
    let (tree, path) = rest.split_once('/')?;
    if path.starts_with('.') || path.ends_with("/.anchor") {
        return None;
    }
    match (tree, path.rsplit_once('/')) {
        ("part", Some((path, writer))) => Some((format!("part {writer}"), path.to_owned())),
        _ => Some((tree.to_owned(), path.to_owned())),
    }
}

struct Thing {
    path: String,
    drawn: bool,
    uid: Option<String>,
    /// By tree, and `process` for what runs.
    content: Map<String, Value>,
}

impl Thing {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn plural(&self) -> &str {
        self.path.split('/').nth(1).unwrap_or_default()
    }
}

/// An end without what may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normal {
    /// Content by colours, and the same for people, sorted.
    things: Vec<(String, String)>,
}

impl Normal {
    /// Objects whose path is in `given` are compared by name, all others by content.
    pub(super) fn of(end: &End, given: &BTreeSet<String>, config: &Config) -> Self {
        let mut things = gather(end, given);
        let marks = mark(&mut things, config);
        let mut colours: Vec<String> = things
            .iter()
            .map(|thing| match thing.drawn {
                true => thing.plural().to_owned(),
                false => thing.path.clone(),
            })
            .collect();
        let texts: Vec<String> = things.iter().map(|thing| text(thing, config)).collect();
        for _ in 0..ROUNDS {
            colours = texts
                .iter()
                .zip(&colours)
                .map(|(text, old)| {
                    let content = substitute(text, &marks, &colours);
                    let digest = Digest::of(format!("{old}\n{content}")).hex();
                    digest.chars().take(16).collect()
                })
                .collect();
        }
        let shown: Vec<String> = things
            .iter()
            .map(|thing| match thing.drawn {
                true => format!("<{}>", thing.plural()),
                false => thing.name().to_owned(),
            })
            .collect();
        let mut things: Vec<(String, String)> = texts
            .iter()
            .map(|text| {
                (
                    substitute(text, &marks, &colours),
                    substitute(text, &marks, &shown),
                )
            })
            .collect();
        things.sort();
        Self { things }
    }

    /// What is only in `other` (`-`) and only here (`+`); empty when both are the same.
    pub(super) fn difference(&self, other: &Self) -> Vec<String> {
        let mut balance: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
        for (sign, things) in [(1, &self.things), (-1, &other.things)] {
            for (exact, shown) in things {
                balance.entry(exact).or_insert((0, shown)).0 += sign;
            }
        }
        let mut lines = Vec::new();
        for (count, shown) in balance.values().filter(|(count, _)| *count != 0) {
            let sign = if *count > 0 { '+' } else { '-' };
            let times = match count.abs() {
                1 => String::new(),
                more => format!(" ({more} times)"),
            };
            lines.push(format!("{sign} {shown}{times}"));
        }
        // Those that belong together, one below the other.
        lines.sort_by(|a, b| a[2..].cmp(&b[2..]));
        let more = lines.len().saturating_sub(MAX_SHOWN);
        lines.truncate(MAX_SHOWN);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

fn gather(end: &End, given: &BTreeSet<String>) -> Vec<Thing> {
    let mut by_path: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for record in &end.records {
        if let Some((tree, path)) = split(record.key.as_str()) {
            let value = serde_json::from_slice(&record.value)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&record.value).into()));
            by_path.entry(path).or_default().insert(tree, value);
        }
    }
    for process in &end.processes {
        let key = process.key();
        let mut path = format!("{}/{}", key.kind().group, key.kind().plural);
        for segment in [key.node(), key.namespace(), Some(key.name())]
            .into_iter()
            .flatten()
        {
            path = format!("{path}/{segment}");
        }
        let value = serde_json::json!({
            "phase": format!("{:?}", process.phase()),
            "healthy": process.is_healthy(),
            "spec": *process.spec,
        });
        by_path
            .entry(path)
            .or_default()
            .insert("process".to_owned(), value);
    }
    by_path
        .into_iter()
        .map(|(path, mut content)| {
            let intent = content.get("intent").cloned().unwrap_or_default();
            let uid = intent["metadata"]["uid"].as_str().map(ToOwned::to_owned);
            // When something was last ordered, each run has its own.
            if let Some(Value::Object(metadata)) = content
                .get_mut("reality")
                .and_then(|value| value.get_mut("metadata"))
            {
                metadata.remove("declared");
            }
            // Whether a report is about the spec as it is, instead of a digest.
            let digest = Digest::of_json(&intent["spec"]);
            if let Some(status) = content
                .get_mut("reality")
                .and_then(|value| value.get_mut("status"))
                && let Some(observed) = status.get_mut("observedSpec")
            {
                let current = serde_json::to_value(digest).is_ok_and(|digest| digest == *observed);
                *observed = Value::Bool(current);
            }
            Thing {
                drawn: !given.contains(&path),
                path,
                uid,
                content,
            }
        })
        .collect()
}

/// Replaces each mention of a drawn name or of a uid by a mark, and returns the things that marks
/// stand for.
fn mark(things: &mut [Thing], config: &Config) -> Vec<(String, usize)> {
    let mut mentions: Vec<(String, usize)> = Vec::new();
    for (index, thing) in things.iter().enumerate() {
        mentions.extend(thing.uid.clone().map(|uid| (uid, index)));
        if thing.drawn {
            mentions.push((thing.name().to_owned(), index));
        }
    }
    // Longer ones first: one may be part of another.
    mentions.sort_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
    let marks: Vec<(String, usize)> = mentions
        .iter()
        .map(|(_, index)| (format!("\u{1}{index}\u{2}"), *index))
        .collect();
    let nodes: Vec<&str> = match config.any_node {
        true => config.nodes.iter().map(String::as_str).collect(),
        false => Vec::new(),
    };
    for thing in things.iter_mut() {
        for value in thing.content.values_mut() {
            clean(value, &mentions, &marks, &nodes);
        }
    }
    let mut marks = marks;
    marks.sort();
    marks.dedup();
    marks
}

fn clean(
    value: &mut Value,
    mentions: &[(String, usize)],
    marks: &[(String, usize)],
    nodes: &[&str],
) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !NOISE.contains(&name.as_str()));
            let old = std::mem::take(fields);
            for (mut name, mut value) in old {
                clean(&mut value, mentions, marks, nodes);
                replace(&mut name, mentions, marks);
                fields.insert(name, value);
            }
            // The owners' uids went with all others; their kinds and names stay.
        }
        Value::Array(values) => {
            values
                .iter_mut()
                .for_each(|value| clean(value, mentions, marks, nodes));
        }
        Value::String(text) => {
            if nodes.contains(&text.as_str()) {
                *text = "<node>".to_owned();
            }
            replace(text, mentions, marks);
        }
        _ => {}
    }
}

fn replace(text: &mut String, mentions: &[(String, usize)], marks: &[(String, usize)]) {
    for ((mention, _), (mark, _)) in mentions.iter().zip(marks) {
        if text.contains(mention.as_str()) {
            *text = text.replace(mention.as_str(), mark);
        }
    }
}

fn substitute(text: &str, marks: &[(String, usize)], names: &[String]) -> String {
    let mut text = text.to_owned();
    for (mark, index) in marks {
        if text.contains(mark.as_str()) {
            text = text.replace(mark.as_str(), &names[*index]);
        }
    }
    text
}

/// One thing as a line: where it is, and its content.
fn text(thing: &Thing, config: &Config) -> String {
    let mut content = thing.content.clone();
    for field in &config.ignored {
        let mut segments: Vec<&str> = field.split('.').collect();
        if segments == ["ledger"] {
            content.remove("ledger");
            continue;
        }
        let trees: &[&str] = match segments.first() {
            Some(&"status") => &["reality"],
            Some(&"spec") => &["intent", "process"],
            _ => &["intent", "reality"],
        };
        let Some(last) = segments.pop() else {
            continue;
        };
        for tree in trees {
            let mut place = content.get_mut(*tree);
            for segment in &segments {
                place = place.and_then(|value| value.get_mut(*segment));
            }
            if let Some(Value::Object(fields)) = place {
                fields.remove(last);
            }
        }
    }
    let mut place: Vec<&str> = thing.path.split('/').skip(1).collect();
    if thing.drawn {
        place.pop();
        place.push("<drawn>");
    }
    let segments = place.iter().map(|segment| {
        let is_node = config.any_node && config.nodes.iter().any(|node| node == segment);
        if is_node { "<node>" } else { segment }
    });
    let place: Vec<&str> = segments.collect();
    let mut parts = vec![place.join("/")];
    for (tree, value) in &content {
        let what = match tree.as_str() {
            "intent" => brief(value, "spec"),
            "reality" => brief(value, "status"),
            _ => value.to_string(),
        };
        parts.push(format!("{tree} {what}"));
    }
    parts.join(" ")
}

/// What matters of a record: its metadata where there is some, and its body.
fn brief(value: &Value, body: &str) -> String {
    let mut metadata = value["metadata"].clone();
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("name");
        fields.remove("namespace");
        fields.retain(|_, value| !value.is_null());
    }
    match metadata.as_object().is_none_or(Map::is_empty) {
        true => value[body].to_string(),
        false => format!("{metadata} {}", value[body]),
    }
}
