//! Manifests: YAML files whose every problem has a file, a line and a field.
//!
//! All documents of all files are read before anything is done with one of them. Each remembers
//! on which line each of its fields is, so that what a check says about `spec.replicas` can be
//! said about `hello.yaml:7`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use platctrl_framework::model::schema::child_path;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::error::{Failure, Result};
use crate::output;

/// The largest file that is read. An object has at most 384 KiB; this is room for many.
const MAX_FILE: u64 = 4 << 20;
/// Files of one directory.
const MAX_FILES: usize = 10_000;

/// A document of a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// The file as it was named; `-` is standard input.
    pub(crate) file: String,
    /// The directory that relative paths in it start from.
    pub(crate) base: PathBuf,
    /// What it says.
    pub(crate) value: Value,
    lines: BTreeMap<String, u64>,
    first: u64,
}

impl Document {
    /// The line of a field; of the nearest one above it that is there when it is missing.
    pub(crate) fn line(&self, field: &str) -> u64 {
        let mut field = field;
        loop {
            if let Some(line) = self.lines.get(field) {
                return *line;
            }
            match field.rfind(['.', '[']) {
                Some(end) => field = &field[..end],
                None => return self.first,
            }
        }
    }

    /// `file:line: field: problem`.
    pub(crate) fn problem(&self, field: &str, problem: &str) -> String {
        let line = self.line(field);
        output::plain(&format!("{}:{line}: {field}: {problem}", self.file))
    }

    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.value
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

/// What was read, and everything that is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) documents: Vec<Document>,
    pub(crate) problems: Vec<String>,
}

impl Manifests {
    /// Reads files, the YAML files of directories, and standard input (`-`).
    pub(crate) fn read(names: &[PathBuf]) -> Result<Self> {
        let mut manifests = Self::default();
        for name in names {
            if name.as_os_str() == "-" {
                let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
                manifests.add("-", &base, take(std::io::stdin().lock()));
                continue;
            }
            for file in files(name)? {
                let base = file.parent().unwrap_or(Path::new("")).to_owned();
                let text = std::fs::File::open(&file).and_then(|opened| {
                    match opened.metadata()?.is_dir() {
                        true => Err(std::io::ErrorKind::IsADirectory.into()),
                        false => take(opened),
                    }
                });
                manifests.add(&file.display().to_string(), &base, text);
            }
        }
        if manifests.documents.is_empty() && manifests.problems.is_empty() {
            let names: Vec<_> = names
                .iter()
                .map(|name| name.display().to_string())
                .collect();
            return Err(Failure::usage(format!(
                "there is no document in {}",
                names.join(", ")
            )));
        }
        Ok(manifests)
    }

    /// The same, while something else goes on: somebody may be typing.
    pub(crate) async fn read_aside(names: &[PathBuf]) -> Result<Self> {
        let names = names.to_owned();
        let read = tokio::task::spawn_blocking(move || Self::read(&names)).await;
        read.map_err(|error| Failure::failed(format!("the manifests were not read: {error}")))?
    }

    fn add(&mut self, file: &str, base: &Path, text: std::io::Result<String>) {
        let added = text
            .map_err(|error| format!("{file}: {error}"))
            .and_then(|text| parse(file, base, &text));
        match added {
            Ok(documents) => self.documents.extend(documents),
            Err(problem) => self.problems.push(output::plain(&problem)),
        }
    }

    /// Fails with all problems that were found.
    pub(crate) fn check(self) -> Result<Vec<Document>> {
        if self.problems.is_empty() {
            return Ok(self.documents);
        }
        Err(problems(&self.problems))
    }
}

/// The failure that lists these problems.
pub(crate) fn problems(problems: &[String]) -> Failure {
    let count = problems.len();
    let what = if count == 1 {
        "a problem".to_owned()
    } else {
        format!("{count} problems")
    };
    Failure::failed(format!(
        "{what} in what was to be applied; nothing was changed\n  {}",
        problems.join("\n  ")
    ))
    .hint("`platctrl explain KIND.FIELD` shows what a field takes")
}

fn take(source: impl std::io::Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    source.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        let limit = format!(
            "is larger than {} MiB, the most that is read of a file: split it",
            MAX_FILE >> 20
        );
        return Err(std::io::Error::other(limit));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        std::io::Error::other(format!(
            "line {line} is not text in UTF-8: is this a YAML file?"
        ))
    })
}

/// The file itself, or the YAML and JSON files of a directory in the order of their names.
fn files(name: &Path) -> Result<Vec<PathBuf>> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", name.display()));
    if !std::fs::metadata(name).map_err(failed)?.is_dir() {
        return Ok(vec![name.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(name).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path
            .extension()
            .and_then(|it| it.to_str())
            .unwrap_or_default();
        if ["yaml", "yml", "json"].contains(&extension) && !path.is_dir() {
            found.push(path);
        }
        if found.len() > MAX_FILES {
            return Err(Failure::failed(format!(
                "{} has more than {MAX_FILES} files",
                name.display()
            )));
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn parse(file: &str, base: &Path, text: &str) -> Result<Vec<Document>, String> {
    let nodes: Vec<Option<Spanned<Node>>> = serde_saphyr::from_multiple(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let bare = error.without_snippet().to_string();
        let message = bare.split(" at line ").next().unwrap_or(&bare);
        let message = message
            .split(", set DuplicateKeyPolicy")
            .next()
            .unwrap_or(message);
        format!("{file}:{line}: not a YAML document: {message}")
    })?;
    let mut documents = Vec::new();
    for node in nodes.into_iter().flatten() {
        let first = node.referenced.line();
        let mut lines = BTreeMap::new();
        let value = node.value.into_value("", &mut lines);
        match value {
            Value::Null => continue,
            Value::Object(_) => {}
            _ => {
                return Err(format!(
                    "{file}:{first}: not a manifest: expected fields, as `kind: ReplicationController`"
                ));
            }
        }
        documents.extend(unlist(Document {
            file: file.to_owned(),
            base: base.to_owned(),
            value,
            lines,
            first,
        }));
    }
    Ok(documents)
}

/// The objects of a List, as `get -o yaml` prints it; anything else is itself.
fn unlist(document: Document) -> Vec<Document> {
    let is_list = document.value["kind"] == "List" && document.value["items"].is_array();
    if !is_list {
        return vec![document];
    }
    let Value::Array(items) = document.value["items"].clone() else {
        return vec![document];
    };
    let items = items.into_iter().enumerate().map(|(index, value)| {
        let prefix = format!("items[{index}]");
        let inner = document.lines.iter().filter_map(|(path, line)| {
            Some((
                path.strip_prefix(&prefix)?.strip_prefix('.')?.to_owned(),
                *line,
            ))
        });
        Document {
            value,
            lines: inner.collect(),
            first: document.line(&prefix),
            ..document.clone()
        }
    });
    items.collect()
}

/// Any YAML value, with the lines of what is in it.
#[derive(Debug)]
enum Node {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Spanned<Node>>),
    Mapping(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    fn into_value(self, path: &str, lines: &mut BTreeMap<String, u64>) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Number(value) => Value::Number(value),
            Self::String(value) => Value::String(value),
            Self::Sequence(items) => {
                let items = items.into_iter().enumerate().map(|(index, item)| {
                    let path = format!("{path}[{index}]");
                    lines.insert(path.clone(), item.referenced.line());
                    item.value.into_value(&path, lines)
                });
                Value::Array(items.collect())
            }
            Self::Mapping(fields) => {
                let mut map = Map::new();
                for (name, value) in fields {
                    let path = child_path(path, &name.value);
                    lines.insert(path.clone(), name.referenced.line());
                    let value = value.value.into_value(&path, lines);
                    map.insert(name.value, value);
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nodes)
    }
}

struct Nodes;

impl<'de> Visitor<'de> for Nodes {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value);
        number
            .map(Node::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut found = Vec::new();
        while let Some(item) = items.next_element()? {
            found.push(item);
        }
        Ok(Node::Sequence(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut found: Vec<(Spanned<String>, Spanned<Node>)> = Vec::new();
        while let Some(field) = fields.next_entry()? {
            found.push(field);
        }
        if found.len() > 100_000 {
            return Err(A::Error::custom("more than 100000 fields"));
        }
        Ok(Node::Mapping(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(text: &str) -> Vec<Document> {
        parse("a.yaml", Path::new("dir"), text).unwrap()
    }

    #[test]
    fn every_field_has_its_line() {
        let text = "# hello\nkind: A\nspec:\n  list:\n    - name: x\n    - 2\n  \"a/b\": {c: 1}\n---\n---\nkind: B\n";
        let documents = documents(text);
        let [a, b] = documents.as_slice() else {
            panic!("{documents:?}")
        };
        let lines = [
            "kind",
            "spec",
            "spec.list[0].name",
            "spec.list[1]",
            "spec.\"a/b\".c",
        ]
        .map(|field| a.line(field));
        assert_eq!(lines, [2, 3, 5, 6, 7]);
        assert_eq!(
            a.line("spec.list[0].missing.deep"),
            5,
            "of what is missing, where it is missing"
        );
        assert_eq!(a.line("metadata.name"), 2);
        assert_eq!(b.line("kind"), 10);
        assert_eq!(
            a.problem("spec.list", "is odd"),
            "a.yaml:4: spec.list: is odd"
        );
    }

    #[test]
    fn what_is_no_yaml_is_told_with_its_line() {
        let wrong = |text: &str| parse("a.yaml", Path::new(""), text).unwrap_err();
        assert_eq!(
            wrong("a: 1\nb: [1\nc: 2\n"),
            "a.yaml:3: not a YAML document: illegal placement of ':' indicator"
        );
        assert_eq!(
            wrong("a: 1\na: 2\n"),
            "a.yaml:2: not a YAML document: duplicate mapping key: a"
        );
        assert!(wrong("hello there").starts_with("a.yaml:1: not a manifest"));
    }

    #[test]
    fn a_file_that_is_too_large_or_no_text_is_refused_by_its_limit() {
        let large = take(std::io::repeat(b'a')).unwrap_err().to_string();
        assert!(large.contains("larger than 4 MiB"), "{large}");
        let binary = take(&b"a\nb\xff"[..]).unwrap_err().to_string();
        assert!(binary.contains("line 2 is not text"), "{binary}");
    }

    #[test]
    fn the_items_of_a_list_are_documents() {
        let list = documents("kind: List\nitems:\n- kind: A\n  spec: 1\n- kind: B\n  spec: 2\n");
        let lines: Vec<_> = list
            .iter()
            .map(|it| (it.text("/kind"), it.line("spec")))
            .collect();
        assert_eq!(lines, [("A", 4), ("B", 6)]);
    }
}
