//! What people and scripts read: the result on standard output, everything else on standard error.

mod describe;
pub(crate) mod jsonpath;
mod next;
pub(crate) mod progress;
pub(crate) mod screen;
mod table;
mod why;

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::str::FromStr;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) use describe::describe;
use jsonpath::Template;
pub(crate) use table::{Cells, Table, at, cell, headings, row};
pub(crate) use why::why;

use crate::error::{Failure, Result};

/// The forms that objects are printed in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    /// A line for each object.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// JSON: one object, or a List.
    Json,
    /// YAML: one object, or a List.
    Yaml,
    /// KIND/NAME, one a line.
    Name,
    /// A text with values of the objects in it.
    JsonPath(Template),
}

/// What is given after `-o`, for help and for mistakes.
pub(crate) const FORMATS: &str = "table, wide, json, yaml, name or jsonpath=TEMPLATE";

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "table" => Self::Table,
            "wide" => Self::Wide,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "name" => Self::Name,
            _ => match text.strip_prefix("jsonpath=") {
                Some(template) if !template.is_empty() => {
                    Self::JsonPath(Template::parse(template).map_err(|error| error.to_string())?)
                }
                _ => return Err(format!("write {FORMATS}")),
            },
        })
    }
}

impl Format {
    /// Objects as lines.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Writes to standard output.
pub(crate) fn print(text: impl fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::output(&error))
}

/// Writes bytes to standard output as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::output(&error))
}

/// Tells what was done. That nobody reads it any more is no reason to stop half-way: the rest is
/// done all the same, and what else went wrong is found by [`told`].
pub(crate) fn done(text: impl fmt::Display) {
    let mut out = io::stdout().lock();
    let written = write!(out, "{text}").and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // The first is the one to tell.
        let _ = UNTOLD.set(error);
    }
}

/// Why something that was done could not be told.
static UNTOLD: OnceLock<io::Error> = OnceLock::new();

/// Fails if something that was done could not be told.
pub(crate) fn told() -> Result<()> {
    match UNTOLD.get() {
        None => Ok(()),
        Some(error) => Err(Failure::output(error).hint("what was ordered is done")),
    }
}

/// Whether standard output is a terminal whose reader wants colours.
pub(crate) fn is_coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes a line to standard error. There is nowhere to complain when that fails.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether somebody watches standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Text from elsewhere, fit for a terminal: nothing in it moves the cursor or turns its direction.
pub(crate) fn plain(text: &str) -> String {
    let unsafe_to_show = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if unsafe_to_show(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The name that somebody may have meant.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), name));
    let (distance, name) = scored.min_by_key(|(distance, _)| *distance)?;
    let limit = (word.chars().count().max(name.chars().count()) / 3).max(1);
    (distance > 0 && distance <= limit).then_some(name)
}

/// A value as JSON text with its end of line.
pub(crate) fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A value as a YAML document.
pub(crate) fn yaml_text(value: &Value) -> Result<String> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|error| Failure::failed(format!("this cannot be written as YAML: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Objects as a List.
pub(crate) fn list(items: &[Value], resource_version: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "metadata": { "resourceVersion": resource_version },
        "items": items,
    })
}

/// How long ago something was, in the two largest units that matter.
pub(crate) fn age(since: &Value, now: Timestamp) -> String {
    let Some(since) = since
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok())
    else {
        return "-".to_owned();
    };
    span(now.as_second().saturating_sub(since.as_second()))
}

/// A number of seconds, as `90s`, `5m`, `3h12m`, `2d4h`.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let with = |first: i64, unit: char, rest: i64, small: char| {
        if rest == 0 {
            format!("{first}{unit}")
        } else {
            format!("{first}{unit}{rest}{small}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 10 => with(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if days < 10 => with(days, 'd', hours % 24, 'h'),
        () => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [
            5,
            119,
            120,
            185,
            3600,
            3 * 3600,
            4 * 3600 + 60,
            2 * 86400,
            20 * 86400,
        ]
        .map(span);
        assert_eq!(
            ages,
            ["5s", "119s", "2m", "3m5s", "60m", "3h", "4h1m", "2d", "20d"]
        );
        assert_eq!(span(-4), "0s");
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("helo", ["hello", "world"]), Some("hello"));
        assert_eq!(nearest("zebra", ["hello", "world"]), None);
        assert_eq!(
            nearest("hello", ["hello"]),
            None,
            "it is no suggestion to write the same"
        );
    }

    #[test]
    fn text_from_elsewhere_cannot_write_over_a_terminal() {
        assert_eq!(plain("a\x1b[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\n\\u{202e}c");
    }
}
