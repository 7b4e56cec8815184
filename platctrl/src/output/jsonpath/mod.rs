//! `-o jsonpath=TEMPLATE` and `--sort-by PATH`, as kubectl's users write them.
//!
//! A template is text with paths in braces: `{.items[*].metadata.name}`. A path that leads
//! nowhere prints nothing, one that leads to several values prints them with blanks between.
//! `{range PATH}…{end}` goes through values, `{"\n"}` is a text with escapes.

mod parse;

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value;

pub(crate) use parse::ParseError;

/// A text with paths in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Values(JsonPath),
    Range(JsonPath, Vec<Node>),
}

/// A way through a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonPath {
    /// From the whole object (`$`) and not from the item that a range or filter is at.
    from_root: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `.name` or `['a','b']`.
    Fields(Vec<String>),
    /// `[2]`, `[-1]`, `[0,2]`.
    Items(Vec<i64>),
    /// `[from:to:by]`.
    Slice(Option<i64>, Option<i64>, i64),
    /// `.*` or `[*]`.
    Every,
    /// `..`: the value itself and everything in it.
    Deep,
    /// `[?(@.type=="Ready")]`.
    Where(JsonPath, Option<(Operator, Operand)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Value(Value),
    Path(JsonPath),
}

impl Template {
    /// Reads a template; text without braces is taken for a path.
    pub(crate) fn parse(text: &str) -> Result<Self, ParseError> {
        parse::template(text).map(|nodes| Self { nodes })
    }

    /// The template filled in from an object.
    pub(crate) fn render(&self, object: &Value) -> String {
        let mut text = String::new();
        render(&self.nodes, object, object, &mut text);
        text
    }
}

fn render(nodes: &[Node], root: &Value, here: &Value, text: &mut String) {
    for node in nodes {
        match node {
            Node::Text(literal) => text.push_str(literal),
            Node::Values(path) => {
                for (number, value) in path.select(root, here).into_iter().enumerate() {
                    if number > 0 {
                        text.push(' ');
                    }
                    match value {
                        Value::String(value) => text.push_str(value),
                        value => {
                            let _ = write!(text, "{value}");
                        }
                    }
                }
            }
            Node::Range(path, nodes) => {
                for value in path.select(root, here) {
                    render(nodes, root, value, text);
                }
            }
        }
    }
}

impl JsonPath {
    /// Reads a path, in braces or not: `.metadata.name`.
    pub(crate) fn parse(text: &str) -> Result<Self, ParseError> {
        parse::path(text)
    }

    /// The first value that it leads to.
    pub(crate) fn first<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.select(object, object).into_iter().next()
    }

    fn select<'a>(&self, root: &'a Value, here: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![if self.from_root { root } else { here }];
        for step in &self.steps {
            let mut next = Vec::new();
            for value in found {
                step.take(root, value, &mut next);
            }
            found = next;
        }
        found
    }
}

impl Step {
    fn take<'a>(&self, root: &'a Value, value: &'a Value, found: &mut Vec<&'a Value>) {
        match self {
            Self::Fields(names) => found.extend(names.iter().filter_map(|name| value.get(name))),
            Self::Items(numbers) => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                let item = |number: &i64| items.get(place(*number, items.len())?);
                found.extend(numbers.iter().filter_map(item));
            }
            Self::Slice(from, to, by) => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                let bound = |number: Option<i64>, default: usize| {
                    let Some(number) = number else { return default };
                    let from_end = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
                    match number < 0 {
                        true => items.len().saturating_sub(from_end),
                        false => from_end.min(items.len()),
                    }
                };
                let (from, to) = (bound(*from, 0), bound(*to, items.len()));
                let by = usize::try_from(*by).unwrap_or(1).max(1);
                found.extend(items.get(from..to).unwrap_or_default().iter().step_by(by));
            }
            Self::Every => found.extend(children(value)),
            Self::Deep => {
                // Objects nest no deeper than the reader of JSON allows.
                found.push(value);
                for child in children(value) {
                    self.take(root, child, found);
                }
            }
            Self::Where(path, comparison) => {
                let fits = |item: &&'a Value| path.fits(root, item, comparison.as_ref());
                found.extend(children(value).filter(fits));
            }
        }
    }
}

impl JsonPath {
    fn fits(&self, root: &Value, item: &Value, comparison: Option<&(Operator, Operand)>) -> bool {
        let left = self.select(root, item);
        let Some((operator, operand)) = comparison else {
            return !left.is_empty();
        };
        let right = match operand {
            Operand::Value(value) => Some(value),
            Operand::Path(path) => path.select(root, item).into_iter().next(),
        };
        match (left.first(), right) {
            (Some(left), Some(right)) => operator.holds(left, right),
            _ => false,
        }
    }
}

impl Operator {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = comparable(left, right);
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::Unequal => order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::AtMost => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::More => order == Some(Ordering::Greater),
            Self::AtLeast => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

/// The order of two values of one type; of others nothing is said.
fn comparable(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (left, right) => (left == right).then_some(Ordering::Equal),
    }
}

/// Sorts objects by what a path leads to: those where it leads nowhere first, then truth values,
/// numbers, texts; objects that are equal in it keep their order.
pub(crate) fn sort(items: &mut [Value], path: &JsonPath) {
    let rank = |value: Option<&Value>| match value {
        None | Some(Value::Null) => 0,
        Some(Value::Bool(_)) => 1,
        Some(Value::Number(_)) => 2,
        Some(Value::String(_)) => 3,
        Some(_) => 4,
    };
    items.sort_by(|left, right| {
        let (left, right) = (path.first(left), path.first(right));
        rank(left)
            .cmp(&rank(right))
            .then_with(|| match (left, right) {
                (Some(left), Some(right)) => comparable(left, right).unwrap_or(Ordering::Equal),
                _ => Ordering::Equal,
            })
    });
}

fn place(number: i64, length: usize) -> Option<usize> {
    match usize::try_from(number) {
        Ok(number) => Some(number),
        Err(_) => length.checked_sub(usize::try_from(number.unsigned_abs()).ok()?),
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> Value {
        json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "web"}},
             "status": {"restarts": 3, "conditions": [{"type": "Ready", "status": "True"}, {"type": "Held", "status": "False"}]}},
            {"metadata": {"name": "b"}, "status": {"restarts": 11, "conditions": [{"type": "Ready", "status": "False"}]}},
            {"metadata": {"name": "c"}, "status": {"phase": "Pending"}},
        ]})
    }

    #[test]
    fn templates_print_what_kubectl_prints() {
        let pods = pods();
        for (template, printed) in [
            ("{.items[*].metadata.name}", "a b c"),
            ("{$.items[0].metadata.name}", "a"),
            (".items[1].metadata.name", "b"),
            ("{.items[-1:].metadata.name}", "c"),
            ("{.items[0:3:2].metadata.name}", "a c"),
            ("{.items[0,2].metadata.name}", "a c"),
            ("{.items[-1].metadata['name']}", "c"),
            (
                "{.items[0].metadata.labels.app\\.kubernetes\\.io/name}",
                "web",
            ),
            ("{.items[0]['metadata','status']['name','restarts']}", "a 3"),
            ("{..name}", "a b c"),
            ("{.items[?(@.metadata.name==\"b\")].status.restarts}", "11"),
            ("{.items[?(@.status.restarts > 3)].metadata.name}", "b"),
            ("{.items[?(@.status.restarts<=3)].metadata.name}", "a"),
            ("{.items[?(@.status.phase)].metadata.name}", "c"),
            (
                "{.items[*].status.conditions[?(@.type=='Ready')].status}",
                "True False",
            ),
            (
                "{range .items[*]}{.metadata.name}={.status.restarts}{\"\\n\"}{end}",
                "a=3\nb=11\nc=\n",
            ),
            (
                "{range .items[*]}[{.metadata.name},{$.kind}] {end}",
                "[a,List] [b,List] [c,List] ",
            ),
            ("{.missing}", ""),
            ("{.items[9].metadata.name}", ""),
            ("names: {.items[*].metadata.name}!", "names: a b c!"),
            (
                "{.items[0].status.conditions[0]}",
                "{\"status\":\"True\",\"type\":\"Ready\"}",
            ),
        ] {
            let template =
                Template::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
            assert_eq!(template.render(&pods), printed, "{template:?}");
        }
    }

    #[test]
    fn a_wrong_template_is_refused_with_the_place() {
        for (template, part) in [
            ("{.items[", "] is missing"),
            ("{.items", "} is missing"),
            ("{range .items[*]}{.a}", "{end} is missing"),
            ("{end}", "without a {range"),
            ("{.items[x]}", "at 8"),
            ("{.items[?(@.a ~ 1)]}", "an operator"),
            ("{.items[0:2:0]}", "at least 1"),
            ("{\"a}", "quotation mark"),
            ("{.}b{", "} is missing"),
            ("{items,}", "at "),
        ] {
            let error = Template::parse(template).unwrap_err().to_string();
            assert!(error.contains(part), "{template}: {error}");
        }
    }

    #[test]
    fn objects_are_sorted_by_numbers_and_texts() {
        let Value::Array(mut items) = pods()["items"].take() else {
            panic!("no items")
        };
        items.reverse();
        let names = |items: &[Value]| {
            items
                .iter()
                .map(|it| it["metadata"]["name"].to_string())
                .collect::<String>()
        };
        sort(&mut items, &JsonPath::parse(".status.restarts").unwrap());
        assert_eq!(names(&items), "\"c\"\"a\"\"b\"");
        sort(&mut items, &JsonPath::parse("{.metadata.name}").unwrap());
        assert_eq!(names(&items), "\"a\"\"b\"\"c\"");
    }
}
