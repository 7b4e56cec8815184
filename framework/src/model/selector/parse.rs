//! Reads the text form of selectors.

use std::collections::BTreeSet;

use super::label::{key_problem, shown, value_problem};
use super::{MAX_REQUIREMENTS, MAX_SELECTOR_BYTES, Operator, Requirement, Selector, SelectorError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'t> {
    /// A key, a value, `in` or `notin`.
    Word(&'t str),
    /// `= == != ! > < , ( )`
    Symbol(&'static str),
    End,
}

/// Longer ones first.
const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", ">", "<", ",", "(", ")"];

struct Parser<'t> {
    text: &'t str,
    /// Bytes before the next token.
    at: usize,
}

impl<'t> Parser<'t> {
    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
    }

    fn peek(&mut self) -> Token<'t> {
        self.skip_space();
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return Token::End;
        }
        if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            return Token::Symbol(symbol);
        }
        let ends = |c: char| " \t\r\n=!><,()".contains(c);
        Token::Word(&rest[..rest.find(ends).unwrap_or(rest.len())])
    }

    fn take(&mut self) -> Token<'t> {
        let token = self.peek();
        self.at += match token {
            Token::Word(text) => text.len(),
            Token::Symbol(text) => text.len(),
            Token::End => 0,
        };
        token
    }

    fn error(&self, at: usize, problem: impl Into<String>) -> SelectorError {
        SelectorError {
            position: self.text[..at].chars().count(),
            problem: problem.into(),
        }
    }

    /// The error of a next token that is not what it should be.
    fn unexpected(&mut self, expected: &str) -> SelectorError {
        let found = match self.peek() {
            Token::Word(text) => format!("`{}`", shown(text)),
            Token::Symbol(text) => format!("`{text}`"),
            Token::End => "the end".to_owned(),
        };
        self.error(self.at, format!("expected {expected}, found {found}"))
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let Token::Word(key) = self.peek() else {
            return Err(self.unexpected("a label key, as in `role=web`"));
        };
        if key == "*" {
            let text = "`*` selects everything and stands alone: remove it, or everything else";
            return Err(self.error(self.at, text));
        }
        if let Some(problem) = key_problem(key) {
            return Err(self.error(self.at, problem));
        }
        self.take();
        Ok(key.to_owned())
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            // `a=` and `a in (,b)` name the empty value.
            Token::End | Token::Symbol("," | ")") => Ok(String::new()),
            Token::Word(value) => {
                if let Some(problem) = value_problem(value) {
                    return Err(self.error(self.at, problem));
                }
                self.take();
                Ok(value.to_owned())
            }
            Token::Symbol(_) => Err(self.unexpected("a label value, as in `role=web`")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if self.peek() != Token::Symbol("(") {
            return Err(self.unexpected("values in parentheses, as in `az in (east,west)`"));
        }
        self.take();
        if self.peek() == Token::Symbol(")") {
            let text = "there are no values between the parentheses: write `az in (east,west)`";
            return Err(self.error(self.at, text));
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            match self.peek() {
                Token::Symbol(",") => self.take(),
                Token::Symbol(")") => {
                    self.take();
                    return Ok(values);
                }
                _ => return Err(self.unexpected("`,` or `)`")),
            };
        }
    }

    fn number(&mut self) -> Result<i64, SelectorError> {
        let number = match self.peek() {
            // Label values have no sign.
            Token::Word(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok()
            }
            _ => None,
        };
        let Some(number) = number else {
            return Err(self.unexpected("a whole number without sign, as in `cores>8`"));
        };
        self.take();
        Ok(number)
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.peek() == Token::Symbol("!") {
            self.take();
            let key = self.key()?;
            let operator = Operator::DoesNotExist;
            return Ok(Requirement { key, operator });
        }
        let key = self.key()?;
        let operator = match self.peek() {
            Token::End | Token::Symbol(",") => Operator::Exists,
            token => {
                let before = self.at;
                self.take();
                match token {
                    Token::Symbol("=" | "==") => Operator::In([self.value()?].into()),
                    Token::Symbol("!=") => Operator::NotIn([self.value()?].into()),
                    Token::Symbol(">") => Operator::GreaterThan(self.number()?),
                    Token::Symbol("<") => Operator::LessThan(self.number()?),
                    Token::Word("in") => Operator::In(self.values()?),
                    Token::Word("notin") => Operator::NotIn(self.values()?),
                    _ => {
                        self.at = before;
                        let operators = "`=`, `!=`, `in (…)`, `notin (…)`, `>`, `<`, or `,` \
                                         before the next label";
                        return Err(self.unexpected(operators));
                    }
                }
            }
        };
        Ok(Requirement { key, operator })
    }
}

pub(super) fn parse(text: &str) -> Result<Selector, SelectorError> {
    let refused = |problem: String| SelectorError {
        position: 0,
        problem,
    };
    if text.len() > MAX_SELECTOR_BYTES {
        return Err(refused(format!(
            "it has {} bytes, more than {MAX_SELECTOR_BYTES}",
            text.len()
        )));
    }
    let trimmed = text.trim_matches([' ', '\t', '\r', '\n']);
    if trimmed.is_empty() {
        let problem = "it is empty: write labels as `role=web`, or `*` to select everything";
        return Err(refused(problem.to_owned()));
    }
    if trimmed == "*" {
        return Ok(Selector::everything());
    }
    let mut parser = Parser { text, at: 0 };
    let mut requirements = BTreeSet::new();
    loop {
        parser.skip_space();
        let at = parser.at;
        requirements.insert(parser.requirement()?);
        if requirements.len() > MAX_REQUIREMENTS {
            let text = format!("more than {MAX_REQUIREMENTS} requirements");
            return Err(parser.error(at, text));
        }
        match parser.peek() {
            Token::End => break,
            Token::Symbol(",") => parser.take(),
            _ => return Err(parser.unexpected("`,` before the next label, or the end")),
        };
    }
    Ok(Selector {
        requirements: requirements.into_iter().collect(),
    })
}
