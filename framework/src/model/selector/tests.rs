use proptest::prelude::*;
use serde_json::json;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn parse(text: &str) -> Selector {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn all_forms_of_the_grammar_are_read() {
    let forms = [
        ("*", "*"),
        (" *\n", "*"),
        ("a=x", "a=x"),
        ("a == x", "a=x"),
        ("a!=x", "a!=x"),
        ("a in (y,\tx , y)", "a in (x,y)"),
        ("a notin(x)", "a!=x"),
        ("a", "a"),
        ("! a", "!a"),
        ("a>1,a<12", "a>1,a<12"),
        ("a=", "a="),
        ("a=,b!=", "a=,b!="),
        ("a in (,x)", "a in (,x)"),
        ("a in (x,)", "a in (,x)"),
        ("b,a,b", "a,b"),
        // Keys and values may be called like operators.
        ("in in (in,notin)", "in in (in,notin)"),
        ("notin=in", "notin=in"),
        ("example.dev/az in (east)", "example.dev/az=east"),
    ];
    for (text, canonical) in forms {
        assert_eq!(parse(text).to_string(), canonical, "{text}");
    }
    assert!(parse("*").is_everything() && !parse("a").is_everything());
}

#[test]
fn what_is_no_selector_is_refused_with_its_place() {
    let cases = [
        ("", 0, "it is empty"),
        (" \n", 0, "it is empty"),
        ("a=b,", 4, "expected a label key"),
        (",a", 0, "expected a label key"),
        ("a,,b", 2, "expected a label key"),
        ("a b", 2, "expected `=`"),
        ("a=b c", 4, "expected `,`"),
        ("a=b=c", 3, "expected `,`"),
        ("!a=b", 2, "expected `,`"),
        ("!!a", 1, "expected a label key"),
        ("a!b", 1, "expected `=`"),
        ("a===b", 3, "expected a label value"),
        ("a=!b", 2, "expected a label value"),
        ("a in b", 5, "expected values in parentheses"),
        ("a in", 4, "expected values in parentheses"),
        ("a in ()", 6, "there are no values"),
        ("a in (x", 7, "expected `,` or `)`"),
        ("a in (x y)", 8, "expected `,` or `)`"),
        ("a>x", 2, "expected a whole number"),
        ("a>-1", 2, "expected a whole number"),
        ("a<", 2, "expected a whole number"),
        ("a>9223372036854775808", 2, "expected a whole number"),
        ("*,a", 0, "`*` selects everything"),
        ("a,*", 2, "`*` selects everything"),
        ("a=*", 2, "`*` is no label value"),
        ("é=a", 0, "`é` is no label key"),
        ("a=é,b c", 2, "`é` is no label value"),
        ("Example/a", 0, "`Example` before the `/`"),
    ];
    for (text, position, problem) in cases {
        let error = text.parse::<Selector>().unwrap_err();
        assert_eq!(error.position, position, "{text}: {error}");
        assert!(error.problem.starts_with(problem), "{text}: {error}");
    }
}

#[test]
fn a_missing_label_is_neither_in_nor_equal_but_not_in_and_unequal() {
    let none = labels(&[]);
    for text in ["a=x", "a in (x,)", "a", "a>0", "a<1", "a="] {
        assert!(!parse(text).matches(&none), "{text}");
    }
    for text in ["a!=x", "a notin (x)", "!a", "*"] {
        assert!(parse(text).matches(&none), "{text}");
    }
    assert!(parse("a<10").matches(&labels(&[("a", "9")])), "by number");
    assert!(!parse("a>1").matches(&labels(&[("a", "2x")])));
}

#[test]
fn long_text_and_many_requirements_are_refused() {
    let many: Vec<_> = (0..=MAX_REQUIREMENTS).map(|n| format!("k{n}")).collect();
    let error = many.join(",").parse::<Selector>().unwrap_err();
    assert!(error.problem.contains("requirements"), "{error}");
    assert!(many[1..].join(",").parse::<Selector>().is_ok());
    let long = format!("a in ({})", "x,".repeat(MAX_SELECTOR_BYTES));
    let error = long.parse::<Selector>().unwrap_err();
    assert!(error.problem.contains("4096"), "{error}");
}

#[test]
fn labels_make_a_selector_unless_there_are_none() {
    let pairs = labels(&[("app", "web"), ("az", "")]);
    let selector = Selector::of_labels(&pairs).unwrap();
    assert_eq!(selector.to_string(), "app=web,az=");
    assert!(selector.matches(&pairs));
    for refused in [
        labels(&[]),
        labels(&[("a b", "c")]),
        labels(&[("a", "b c")]),
    ] {
        assert!(Selector::of_labels(&refused).is_err(), "{refused:?}");
    }
}

#[test]
fn json_has_the_text_and_errors_say_what_to_write() {
    let selector: Selector = serde_json::from_value(json!("b=1, a")).unwrap();
    assert_eq!(serde_json::to_value(&selector).unwrap(), json!("a,b=1"));
    let refused = [
        (json!(""), "it is empty"),
        (json!({"matchLabels": {"a": "b"}}), "a selector as text"),
        (json!(null), "a selector as text"),
        (json!("a in b"), "invalid selector at character 6"),
    ];
    for (value, problem) in refused {
        let error = serde_json::from_value::<Selector>(value).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    assert_eq!(
        schemars::schema_for!(Selector).get("type"),
        Some(&json!("string"))
    );
}

/// A requirement written down in one of its forms, with a plain reading of what it means.
#[derive(Clone, Debug)]
enum Written {
    Equal(String, String),
    Unequal(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    There(String),
    Missing(String),
    Above(String, u32),
    Below(String, u32),
}

impl Written {
    fn text(&self, space: &str) -> String {
        match self {
            Self::Equal(key, value) => format!("{key}{space}={space}{value}"),
            Self::Unequal(key, value) => format!("{key}{space}!={space}{value}"),
            Self::In(key, values) => format!("{key} in{space}({})", values.join(",")),
            Self::NotIn(key, values) => format!("{key} notin ({})", values.join(",")),
            Self::There(key) => key.clone(),
            Self::Missing(key) => format!("!{space}{key}"),
            Self::Above(key, number) => format!("{key}>{space}{number}"),
            Self::Below(key, number) => format!("{key}{space}<{number}"),
        }
    }

    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let equals = |key: &String, value: &String| labels.get(key) == Some(value);
        let number = |key: &String| labels.get(key).and_then(|value| value.parse::<u32>().ok());
        match self {
            Self::Equal(key, value) => equals(key, value),
            Self::Unequal(key, value) => !equals(key, value),
            Self::In(key, values) => values.iter().any(|value| equals(key, value)),
            Self::NotIn(key, values) => !values.iter().any(|value| equals(key, value)),
            Self::There(key) => labels.contains_key(key),
            Self::Missing(key) => !labels.contains_key(key),
            Self::Above(key, limit) => number(key) > Some(*limit),
            Self::Below(key, limit) => number(key).is_some_and(|number| number < *limit),
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[abc]",
        1 => "[a-z0-9]{1,5}(\\.[a-z]{1,3})?/[A-Za-z]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?",
        1 => "in|notin",
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[xy12]?", 1 => "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", 1 => "in|notin"]
}

fn written() -> impl Strategy<Value = Written> {
    let values = || prop::collection::vec(value(), 2..5);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Written::Equal(key, value)),
        (key(), value()).prop_map(|(key, value)| Written::Unequal(key, value)),
        (key(), values()).prop_map(|(key, values)| Written::In(key, values)),
        (key(), values()).prop_map(|(key, values)| Written::NotIn(key, values)),
        key().prop_map(Written::There),
        key().prop_map(Written::Missing),
        (key(), 0..4_u32).prop_map(|(key, number)| Written::Above(key, number)),
        (key(), 0..4_u32).prop_map(|(key, number)| Written::Below(key, number)),
    ]
}

proptest! {
    #[test]
    fn a_selector_is_read_and_written_and_means_what_it_says(
        written in prop::collection::vec(written(), 1..6),
        space in "[ \t\n]{0,2}",
        labels in prop::collection::btree_map(key(), value(), 0..5),
    ) {
        let texts: Vec<_> = written.iter().map(|written| written.text(&space)).collect();
        let selector = parse(&texts.join(&format!("{space},{space}")));
        prop_assert_eq!(&parse(&selector.to_string()), &selector);
        let plainly = written.iter().all(|written| written.holds(&labels));
        prop_assert_eq!(selector.matches(&labels), plainly, "{}", selector);
        let each = selector.requirements().iter().all(|requirement| requirement.matches(&labels));
        prop_assert_eq!(each, plainly);
    }

    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_reads_it_can_write(text in "([a-c=!<>,() *]|in|notin|\\PC){0,40}") {
        if let Ok(selector) = text.parse::<Selector>() {
            prop_assert_eq!(parse(&selector.to_string()), selector);
        }
    }
}
