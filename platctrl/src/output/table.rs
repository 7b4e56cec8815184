//! Objects as lines of columns. A kind says itself what its columns are.

use jiff::Timestamp;
use platctrl_framework::model::{KindDefinition, Scope};
use serde_json::Value;

use super::{age, plain};

/// One line.
pub(crate) type Cells = Vec<String>;

/// Lines whose columns are aligned, also when they come one after the other.
#[derive(Debug, Default)]
pub(crate) struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// The lines as text. Columns are as wide as these and all lines before need them.
    pub(crate) fn render(&mut self, lines: &[Cells]) -> String {
        for line in lines {
            self.widths.resize(self.widths.len().max(line.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in lines {
            let begin = text.len();
            for (cell, width) in line.iter().zip(&self.widths) {
                text.push_str(cell);
                let missing = width.saturating_sub(cell.chars().count());
                text.extend(std::iter::repeat_n(' ', missing + 3));
            }
            text.truncate(begin + text[begin..].trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// What is shown of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) namespaces: bool,
    pub(crate) wide: bool,
}

/// The names of a kind's columns.
pub(crate) fn headings(kind: &KindDefinition, namespaces: bool, wide: bool) -> Cells {
    let shape = Shape { namespaces, wide };
    let mut cells = Vec::new();
    if shape.namespaces && kind.scope != Scope::Cluster {
        cells.push("NAMESPACE".to_owned());
    }
    cells.push("NAME".to_owned());
    let columns = kind
        .columns
        .iter()
        .filter(|column| shape.wide || !column.wide);
    cells.extend(columns.map(|column| column.name.to_uppercase()));
    cells.push("AGE".to_owned());
    cells
}

/// An object's line.
pub(crate) fn row(
    kind: &KindDefinition,
    object: &Value,
    namespaces: bool,
    wide: bool,
    now: Timestamp,
) -> Cells {
    let metadata = &object["metadata"];
    let text = |value: &Value| plain(value.as_str().unwrap_or_default());
    let mut cells = Vec::new();
    if namespaces && kind.scope != Scope::Cluster {
        cells.push(text(&metadata["namespace"]));
    }
    cells.push(text(&metadata["name"]));
    for column in kind.columns.iter().filter(|column| wide || !column.wide) {
        cells.push(cell(at(object, &column.path)));
    }
    cells.push(age(&metadata["creationTimestamp"], now));
    cells
}

/// The value at a path like `.status.conditions.Ready`: an item of a list of named things is
/// found by its `type` or `name`, and a condition stands for its status.
pub(crate) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        value = match value {
            Value::Array(items) => {
                let named = |item: &&Value| item["type"] == step || item["name"] == step;
                let item = items.iter().find(named)?;
                if item["type"] == step {
                    &item["status"]
                } else {
                    item
                }
            }
            other => other.get(step)?,
        };
    }
    Some(value)
}

/// A value as the text of a cell.
pub(crate) fn cell(value: Option<&Value>) -> String {
    let shown = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => plain(text),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| cell(Some(item)))
            .collect::<Vec<_>>()
            .join(","),
        Some(Value::Object(fields)) => {
            let pairs = fields
                .iter()
                .map(|(name, value)| format!("{}:{}", plain(name), cell(Some(value))));
            pairs.collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    };
    if shown.is_empty() {
        "-".to_owned()
    } else {
        shown.replace(['\n', '\t'], " ")
    }
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_a_line_of_its_kinds_columns() {
        let kind = KindDefinition::of::<Pod>();
        let pod = json!({
            "metadata": {"name": "hello-1", "namespace": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "ports": {"http": 3000, "admin": 3001},
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let lines = [
            headings(&kind, true, false),
            row(&kind, &pod, true, false, now),
        ];
        let text = Table::default().render(&lines);
        assert_eq!(
            text,
            "\
NAMESPACE   NAME      READY   PHASE     RESTARTS   NODE   PORTS                  AGE
a           hello-1   True    Running   -          n1     admin:3001,http:3000   60s\n"
        );
    }

    #[test]
    fn later_lines_keep_the_columns_of_earlier_ones() {
        let mut table = Table::default();
        table.render(&[vec!["long name".into(), "b".into()]]);
        assert_eq!(
            table.render(&[vec!["a".into(), "b".into()]]),
            "a           b\n"
        );
    }
}
