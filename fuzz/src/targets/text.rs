//! Short texts: selectors, labels, keys, revisions, digests, quantities, locations.
//!
//! All of them hold: what is read can be written, and what was written is read as the same.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use platctrl_agent::hoist::Source;
use platctrl_framework::model::{Digest, ObjectKey, Scope, Selector, check_labels, check_name};
use platctrl_framework::store::{Key, Prefix, Revision};
use platctrl_kinds::{Bytes, Cpu, Span};

use super::Target;

pub(super) const SELECTOR: Target = Target {
    name: "selector",
    run: selector,
    longest: 2048,
    words: &[
        "az in (east,west)",
        "notin",
        "!",
        "==",
        "!=",
        ">",
        "<",
        ",",
        "(",
        ")",
        "exists",
        "*",
        "example.com/",
    ],
};

pub(super) const LABELS: Target = Target {
    name: "labels",
    run: labels,
    longest: 1024,
    words: &["\n", "=", "example.com/", "/", ".", "-", "_"],
};

pub(super) const KEY: Target = Target {
    name: "key",
    run: key,
    longest: 1024,
    words: &[
        "o/intent/",
        "o/reality/",
        "o/part/",
        "o/grant/",
        "o/ledger/",
        "platctrl.dev/pods/",
        "platctrl.dev/nodes/",
        "default/",
        ".anchor",
        "..",
        "//",
    ],
};

pub(super) const REVISION: Target = Target {
    name: "revision",
    run: revision,
    longest: 128,
    words: &[
        "18446744073709551615",
        "18446744073709551616",
        "-",
        "+",
        "0",
    ],
};

pub(super) const DIGEST: Target = Target {
    name: "digest",
    run: digest,
    longest: 256,
    words: &["sha256:", "sha512:", "SHA256:"],
};

pub(super) const QUANTITY: Target = Target {
    name: "quantity",
    run: quantity,
    longest: 128,
    words: &[
        "ms",
        "s",
        "m",
        "h",
        "d",
        "Ki",
        "Mi",
        "Ti",
        "k",
        "T",
        ".5",
        "18446744073709551615",
    ],
};

pub(super) const LOCATION: Target = Target {
    name: "location",
    run: location,
    longest: 1024,
    words: &[
        "file:",
        "artifact:sha256:",
        "https://",
        "../",
        "%2e%2e",
        "//",
        "\0",
    ],
};

/// What is read can be written, and what was written is the same.
fn round_trip<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T>
where
    T::Err: Display,
{
    match text.parse::<T>() {
        Ok(read) => {
            let written = read.to_string();
            match written.parse::<T>() {
                Ok(again) => assert_eq!(again, read, "{text:?} was written as {written:?}"),
                Err(error) => panic!("{text:?} was written as {written:?}: {error}"),
            }
            Some(read)
        }
        Err(error) => {
            bounded(&error, text);
            None
        }
    }
}

/// An error says something, on one line that hostile text cannot flood.
fn bounded(error: &dyn Display, text: &str) {
    let said = error.to_string();
    assert!(!said.is_empty(), "{text:?}");
    assert!(said.len() < 4096, "{} bytes about {text:?}", said.len());
}

fn selector(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Some(selector) = round_trip::<Selector>(text) else {
        return;
    };
    let some: BTreeMap<String, String> = [("az", "east"), ("role", "web"), ("n", "12")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    for labels in [BTreeMap::new(), some] {
        let mut each = selector.requirements().iter();
        let plainly = each.all(|requirement| requirement.matches(&labels));
        assert_eq!(
            selector.matches(&labels),
            plainly,
            "{selector} on {labels:?}"
        );
    }
}

fn labels(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let labels: BTreeMap<String, String> = text
        .lines()
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut errors = Vec::new();
    check_labels("metadata.labels", &labels, &mut errors);
    if errors.is_empty() && !labels.is_empty() {
        // What may be set can be selected by.
        let selector = Selector::of_labels(&labels).expect("valid labels make a selector");
        assert!(selector.matches(&labels), "{selector}");
        let again: Selector = selector.to_string().parse().expect("it was written by us");
        assert!(again.matches(&labels), "{again}");
    }
}

fn scope(_: &str, plural: &str) -> Option<Scope> {
    match plural {
        "nodes" => Some(Scope::Cluster),
        "pods" => Some(Scope::Node),
        "unknown" => None,
        _ => Some(Scope::Namespaced),
    }
}

fn key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Err(error) = check_name("name", text) {
        bounded(&error, text);
    }
    match Prefix::new(text) {
        Ok(prefix) => {
            assert_eq!(prefix.as_str(), text);
            let end = prefix.end();
            assert!(end.is_none_or(|end| end.as_str() > text), "{text:?}");
        }
        Err(error) => bounded(&error, text),
    }
    let key = match Key::new(text) {
        Ok(key) => key,
        Err(error) => return bounded(&error, text),
    };
    assert_eq!(key.as_str(), text);
    let Some((tree, object, writer)) = ObjectKey::parse(&key, scope) else {
        return;
    };
    let again = match writer {
        None => object.store_key(tree),
        Some(writer) => match object.part(writer) {
            Ok(part) => part,
            // A writer that nobody could have written under.
            Err(_) => return,
        },
    };
    assert_eq!(again, key);
}

fn revision(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Some(revision) = round_trip::<Revision>(text) {
        let parts = Revision::new(revision.epoch(), revision.counter());
        assert_eq!(parts, revision);
        assert!(revision.next() >= revision, "{text:?}");
    }
}

fn digest(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    round_trip::<Digest>(text);
    if let Ok(digest) = Digest::from_hex(text) {
        assert_eq!(digest.hex(), text);
    }
}

fn quantity(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    round_trip::<Span>(text);
    round_trip::<Cpu>(text);
    round_trip::<Bytes>(text);
}

fn location(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Source::parse(text) {
        Ok(Source::File(path)) => {
            assert!(path.is_absolute(), "{text:?} is {path:?}");
            let up = std::path::Component::ParentDir;
            assert!(path.components().all(|part| part != up), "{path:?}");
        }
        Ok(_) => {}
        Err(error) => bounded(&error, text),
    }
}
