//! Reading templates and paths. What is wrong is told with its place, counted in characters.

use serde_json::Value;

use super::{JsonPath, Node, Operand, Operator, Step};

/// Ranges within ranges, filters within filters.
const MAX_DEPTH: usize = 16;

/// Why a template or path cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` at {place}: {problem}")]
pub(crate) struct ParseError {
    text: String,
    place: usize,
    problem: String,
}

/// Reads a whole template.
pub(super) fn template(text: &str) -> Result<Vec<Node>, ParseError> {
    if !text.contains('{') {
        return path(text).map(|path| vec![Node::Values(path)]);
    }
    let mut reader = Reader::new(text);
    let nodes = reader.nodes(0)?;
    match reader.peek() {
        None => Ok(nodes),
        Some(_) => Err(reader.wrong("{end} without a {range …}")),
    }
}

/// Reads a path, in braces or not.
pub(super) fn path(text: &str) -> Result<JsonPath, ParseError> {
    let trimmed = text.trim();
    let inner = trimmed
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap_or(trimmed);
    let mut reader = Reader::new(inner);
    let path = reader.path(0)?;
    match reader.peek() {
        None => Ok(path),
        Some(_) => Err(reader.wrong("a path goes on with . or [")),
    }
}

struct Reader {
    text: String,
    chars: Vec<char>,
    at: usize,
}

impl Reader {
    fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            chars: text.chars().collect(),
            at: 0,
        }
    }

    fn wrong(&self, problem: impl Into<String>) -> ParseError {
        ParseError {
            text: crate::output::plain(&self.text),
            place: self.at,
            problem: problem.into(),
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn takes(&mut self, word: &str) -> bool {
        let fits = word
            .chars()
            .enumerate()
            .all(|(number, c)| self.chars.get(self.at + number) == Some(&c));
        if fits {
            self.at += word.chars().count();
        }
        fits
    }

    fn must(&mut self, word: &str) -> Result<(), ParseError> {
        self.blanks();
        match self.takes(word) {
            true => Ok(()),
            false => Err(self.wrong(format!("{word} is missing"))),
        }
    }

    fn blanks(&mut self) {
        while self.peek() == Some(' ') {
            self.at += 1;
        }
    }

    /// Text and expressions up to the end, or up to the `{end}` of a range.
    fn nodes(&mut self, depth: usize) -> Result<Vec<Node>, ParseError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("ranges nest too deep"));
        }
        let mut nodes = Vec::new();
        let mut literal = String::new();
        while let Some(next) = self.peek() {
            if next != '{' {
                literal.push(next);
                self.at += 1;
                continue;
            }
            if !literal.is_empty() {
                nodes.push(Node::Text(std::mem::take(&mut literal)));
            }
            let begin = self.at;
            self.at += 1;
            self.blanks();
            match self.peek() {
                Some(quote @ ('"' | '\'')) => {
                    nodes.push(Node::Text(self.quoted(quote)?));
                    self.must("}")?;
                }
                _ if self.takes("end}") => {
                    // Whoever began the range takes it.
                    self.at = begin;
                    return Ok(nodes);
                }
                _ if self.takes("range ") => {
                    self.blanks();
                    let path = self.path(depth)?;
                    self.must("}")?;
                    let inner = self.nodes(depth + 1)?;
                    self.must("{end}")?;
                    nodes.push(Node::Range(path, inner));
                }
                _ => {
                    nodes.push(Node::Values(self.path(depth)?));
                    self.must("}")?;
                }
            }
        }
        if !literal.is_empty() {
            nodes.push(Node::Text(literal));
        }
        Ok(nodes)
    }

    fn path(&mut self, depth: usize) -> Result<JsonPath, ParseError> {
        let from_root = self.takes("$");
        if !from_root {
            self.takes("@");
        }
        let mut steps = Vec::new();
        if self.peek().is_some_and(is_of_name) {
            steps.push(Step::Fields(vec![self.name()?]));
        }
        loop {
            match self.peek() {
                Some('.') if self.takes("..") => {
                    steps.push(Step::Deep);
                    match self.peek() {
                        Some('*') => {
                            self.at += 1;
                            steps.push(Step::Every);
                        }
                        Some('[') => {}
                        _ => steps.push(Step::Fields(vec![self.name()?])),
                    }
                }
                Some('.') => {
                    self.at += 1;
                    match self.peek() {
                        Some('*') => {
                            self.at += 1;
                            steps.push(Step::Every);
                        }
                        // `{.}` is the object itself.
                        None | Some('}' | '[') => {}
                        _ => steps.push(Step::Fields(vec![self.name()?])),
                    }
                }
                Some('[') => {
                    self.at += 1;
                    steps.push(self.bracket(depth)?);
                    self.must("]")?;
                }
                _ => return Ok(JsonPath { from_root, steps }),
            }
        }
    }

    fn name(&mut self) -> Result<String, ParseError> {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if c == '\\' {
                self.at += 1;
                name.push(
                    self.peek()
                        .ok_or_else(|| self.wrong("\\ escapes nothing"))?,
                );
            } else if is_of_name(c) {
                name.push(c);
            } else {
                break;
            }
            self.at += 1;
        }
        match name.is_empty() {
            true => Err(self.wrong("the name of a field is missing")),
            false => Ok(name),
        }
    }

    fn bracket(&mut self, depth: usize) -> Result<Step, ParseError> {
        self.blanks();
        match self.peek() {
            Some('*') => {
                self.at += 1;
                Ok(Step::Every)
            }
            Some('?') => self.filter(depth),
            Some('"' | '\'') => {
                let mut names = Vec::new();
                loop {
                    self.blanks();
                    match self.peek() {
                        Some(quote @ ('"' | '\'')) => names.push(self.quoted(quote)?),
                        _ => return Err(self.wrong("a name in quotation marks is missing")),
                    }
                    self.blanks();
                    if !self.takes(",") {
                        return Ok(Step::Fields(names));
                    }
                }
            }
            _ => self.numbers(),
        }
    }

    fn numbers(&mut self) -> Result<Step, ParseError> {
        let first = self.number()?;
        self.blanks();
        if self.takes(":") {
            let to = self.number()?;
            let by = match self.takes(":") {
                true => self.number()?.unwrap_or(1),
                false => 1,
            };
            if by < 1 {
                return Err(self.wrong("the step of a slice is at least 1"));
            }
            return Ok(Step::Slice(first, to, by));
        }
        let expected = "a number, a name in quotation marks, * or ?(…) is expected";
        let mut numbers = vec![first.ok_or_else(|| match self.peek() {
            None => self.wrong("] is missing"),
            Some(_) => self.wrong(expected),
        })?];
        loop {
            self.blanks();
            if !self.takes(",") {
                return Ok(Step::Items(numbers));
            }
            numbers.push(
                self.number()?
                    .ok_or_else(|| self.wrong("a number is missing"))?,
            );
        }
    }

    fn number(&mut self) -> Result<Option<i64>, ParseError> {
        self.blanks();
        let begin = self.at;
        self.takes("-");
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        if begin == self.at {
            return Ok(None);
        }
        let text: String = self.chars[begin..self.at].iter().collect();
        text.parse()
            .map(Some)
            .map_err(|_| self.wrong(format!("{text} is no number that can be used")))
    }

    fn filter(&mut self, depth: usize) -> Result<Step, ParseError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("filters nest too deep"));
        }
        self.must("?(")?;
        self.blanks();
        let left = self.path(depth + 1)?;
        self.blanks();
        if self.takes(")") {
            return Ok(Step::Where(left, None));
        }
        let operators = [
            ("==", Operator::Equal),
            ("!=", Operator::Unequal),
            ("<=", Operator::AtMost),
            (">=", Operator::AtLeast),
            ("<", Operator::Less),
            (">", Operator::More),
        ];
        let operator = operators
            .into_iter()
            .find(|(sign, _)| self.takes(sign))
            .map(|(_, operator)| operator)
            .ok_or_else(|| self.wrong("an operator is missing: ==, !=, <, <=, > or >="))?;
        self.blanks();
        let right = self.operand(depth)?;
        self.must(")")?;
        Ok(Step::Where(left, Some((operator, right))))
    }

    fn operand(&mut self, depth: usize) -> Result<Operand, ParseError> {
        match self.peek() {
            Some(quote @ ('"' | '\'')) => Ok(Operand::Value(self.quoted(quote)?.into())),
            Some('@' | '$' | '.') => Ok(Operand::Path(self.path(depth + 1)?)),
            _ => {
                let begin = self.at;
                while self.peek().is_some_and(|c| !matches!(c, ')' | ' ')) {
                    self.at += 1;
                }
                let text: String = self.chars[begin..self.at].iter().collect();
                match serde_json::from_str(&text) {
                    Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => {
                        Ok(Operand::Value(value))
                    }
                    _ => Err(self.wrong(format!(
                        "`{text}` is no value: write texts in quotation marks"
                    ))),
                }
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, ParseError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let c = self
                .peek()
                .ok_or_else(|| self.wrong("the closing quotation mark is missing"))?;
            self.at += 1;
            if c == quote {
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let escaped = self
                .peek()
                .ok_or_else(|| self.wrong("\\ escapes nothing"))?;
            self.at += 1;
            text.push(match escaped {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            });
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '\\')
}
