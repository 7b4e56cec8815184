//! The one thing this program reads from its configuration: top-level `key: value` lines of YAML.
//!
//! A real program would use a YAML library; this one has no dependencies, so that it builds at
//! once and shows that a pod needs none.

/// The value of a top-level `key: value` line, without its quotes.
pub(crate) fn value(text: &str, key: &str) -> Option<String> {
    let raw = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?
        .trim();
    let quoted = |quote: char| raw.strip_prefix(quote)?.strip_suffix(quote);
    Some(
        quoted('"')
            .or_else(|| quoted('\''))
            .unwrap_or(raw)
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn a_value_is_read_with_or_without_quotes() {
        for text in [
            "greeting: hi there",
            "a: 1\ngreeting:   'hi there'\n",
            "greeting: \"hi there\"",
        ] {
            assert_eq!(
                value(text, "greeting").as_deref(),
                Some("hi there"),
                "{text}"
            );
        }
    }

    #[test]
    fn another_key_or_a_nested_one_is_not_taken_for_it() {
        assert_eq!(
            value("greetings: hi\nmore:\n  greeting: hi\n", "greeting"),
            None
        );
    }
}
