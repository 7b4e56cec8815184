//! Paths of fields as people read and write them: `spec.items[2].labels."example.dev/role"`.

/// The most characters of one name that a path shows.
const MAX_SHOWN: usize = 80;

/// The path of a field of what is at `parent`; names that are no plain words are quoted.
#[must_use]
pub fn child_path(parent: &str, name: &str) -> String {
    let mut path = parent.to_owned();
    push_name(&mut path, name);
    path
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_SHOWN
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-$".contains(&byte))
}

fn push_name(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    if is_plain(name) {
        path.push_str(name);
        return;
    }
    path.push('"');
    for c in name.chars().take(MAX_SHOWN) {
        match c {
            '"' | '\\' => path.extend(['\\', c]),
            c if is_unsafe_to_show(c) => path.extend(c.escape_default()),
            c => path.push(c),
        }
    }
    if name.chars().nth(MAX_SHOWN).is_some() {
        path.push('…');
    }
    path.push('"');
}

/// Control characters, and those that turn the direction of text, would let hostile text write
/// over a terminal.
pub(crate) fn is_unsafe_to_show(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Where a check is, written only when there is something to report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
    /// How many fields and items are above.
    pub(super) level: usize,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Base(&'a str),
    Field(&'a str),
    Item(usize),
}

impl<'a> Path<'a> {
    pub(super) fn base(base: &'a str) -> Self {
        Self {
            parent: None,
            step: Step::Base(base),
            level: 0,
        }
    }

    pub(super) fn field<'b>(&'b self, name: &'b str) -> Path<'b> {
        self.below(Step::Field(name))
    }

    pub(super) fn item(&self, position: usize) -> Path<'_> {
        self.below(Step::Item(position))
    }

    fn below<'b>(&'b self, step: Step<'b>) -> Path<'b> {
        Path {
            parent: Some(self),
            step,
            level: self.level + 1,
        }
    }

    fn push_to(&self, text: &mut String) {
        if let Some(parent) = self.parent {
            parent.push_to(text);
        }
        match self.step {
            Step::Base(base) => text.push_str(base),
            Step::Field(name) => push_name(text, name),
            Step::Item(position) => {
                text.push('[');
                text.push_str(&position.to_string());
                text.push(']');
            }
        }
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        self.push_to(&mut text);
        f.write_str(if text.is_empty() { "." } else { &text })
    }
}

/// A step of a path that somebody wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Name(String),
    /// An item of a list, `[2]`; or any, `[]` or `[*]`.
    Item(Option<usize>),
}

/// Reads a path; a dot before it is allowed. None if it is no path.
pub(crate) fn parse(text: &str) -> Option<Vec<Segment>> {
    let mut rest = text.strip_prefix('.').unwrap_or(text);
    let mut segments = Vec::new();
    if rest.is_empty() {
        return Some(segments);
    }
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (name, after) = unquote(quoted)?;
            segments.push(Segment::Name(name));
            rest = after;
        } else if !rest.starts_with('[') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                return None;
            }
            segments.push(Segment::Name(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        while let Some(bracket) = rest.strip_prefix('[') {
            let (position, after) = bracket.split_once(']')?;
            if position != "*" && !position.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            segments.push(Segment::Item(position.parse().ok()));
            rest = after;
        }
        if rest.is_empty() {
            return Some(segments);
        }
        rest = rest.strip_prefix('.')?;
    }
}

/// The name up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((name, &quoted[at + 1..])),
            '\\' => name.push(chars.next()?.1),
            c => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_written_as_people_write_them() {
        let base = Path::base("spec");
        let (items, second);
        let path = {
            items = base.field("items");
            second = items.item(2);
            second.field("example.dev/x")
        };
        assert_eq!(path.to_string(), "spec.items[2].\"example.dev/x\"");
        assert_eq!(child_path("", "a\u{1b}\"b"), "\"a\\u{1b}\\\"b\"");
        assert_eq!(Path::base("").to_string(), ".");
        assert!(child_path("a", &"x".repeat(10_000)).len() < 100);
    }

    #[test]
    fn written_paths_are_read_in_all_their_forms() {
        let name = |name: &str| Segment::Name(name.to_owned());
        assert_eq!(
            parse(".spec.a[2].\"b.c\".d[]"),
            Some(vec![
                name("spec"),
                name("a"),
                Segment::Item(Some(2)),
                name("b.c"),
                name("d"),
                Segment::Item(None)
            ])
        );
        assert_eq!(parse(""), Some(vec![]));
        for text in ["a..b", "a.", "a[", "a[x]", "\"a", "a\"b\"c.", "..a"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_name_is_read_again(names in prop::collection::vec("[ -~]{1,20}", 1..4)) {
            let path = names.iter().fold(String::new(), |path, name| child_path(&path, name));
            let read: Vec<_> = names.into_iter().map(Segment::Name).collect();
            prop_assert_eq!(parse(&path), Some(read), "{}", path);
        }

        #[test]
        fn no_text_makes_reading_a_path_panic(text in "([\\[\\]\".\\\\a1*]|\\PC){0,20}") {
            parse(&text);
        }
    }
}
