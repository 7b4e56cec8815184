//! Reads records of the form that nearly all have: strings without escapes, every field once.
//!
//! Each change of an object is read twice, for the indexes and for its reconcile, and general
//! JSON reading is most of what either costs. What is in the least unusual is None here, and read
//! in the general way; what is not None is the same there.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Map;

use crate::model::{Metadata, Uid};

/// A place in a record.
#[derive(Debug)]
pub(super) struct Scan<'r> {
    /// Checked once, instead of each string by itself.
    rest: &'r str,
    /// Something stands before the next field of the object that is read.
    behind: bool,
}

/// Metadata whose strings are in the record.
#[derive(Debug, Default)]
pub(super) struct Plain<'r> {
    pub(super) name: Option<&'r str>,
    pub(super) namespace: Option<&'r str>,
    pub(super) uid: Option<&'r str>,
    resource_version: Option<&'r str>,
    generation: Option<u64>,
    creation_timestamp: Option<&'r str>,
    /// In the order in which they were written.
    pub(super) labels: Option<Pairs<'r>>,
    annotations: Option<Pairs<'r>>,
    /// JSON.
    pub(super) owner_references: Option<&'r str>,
    pub(super) deletion: Option<&'r str>,
    other: Vec<(&'r str, &'r str)>,
}

pub(super) type Pairs<'r> = Vec<(&'r str, &'r str)>;

/// Takes a field that may be there once.
fn once<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

impl<'r> Scan<'r> {
    /// At the beginning of a record; None if that is no text.
    pub(super) fn new(record: &'r [u8]) -> Option<Self> {
        Some(Self {
            rest: std::str::from_utf8(record).ok()?,
            behind: false,
        })
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
        if self.rest.as_bytes().first().is_some_and(is_space) {
            self.rest = self.rest.trim_start_matches([' ', '\n', '\t', '\r']);
        }
        self.rest.as_bytes().first().copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.rest = &self.rest[1..])
    }

    /// Goes into an object.
    pub(super) fn open(&mut self) -> Option<()> {
        self.behind = false;
        self.expect(b'{')
    }

    /// The name of the object's next field; `Some(None)` behind the last one.
    pub(super) fn field(&mut self) -> Option<Option<&'r str>> {
        if self.peek()? == b'}' {
            self.rest = &self.rest[1..];
            self.behind = true;
            return Some(None);
        }
        if std::mem::replace(&mut self.behind, true) {
            self.expect(b',')?;
        }
        let name = self.string()?;
        self.expect(b':')?;
        Some(Some(name))
    }

    pub(super) fn string(&mut self) -> Option<&'r str> {
        self.expect(b'"')?;
        let ends = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < b' ';
        let length = self.rest.as_bytes().iter().position(ends)?;
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest.strip_prefix('"')?;
        Some(text)
    }

    /// Any value, by the general way.
    pub(super) fn value<T: Deserialize<'r>>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<T>();
        let value = values.next()?.ok()?;
        self.rest = self.rest.get(values.byte_offset()..)?;
        Some(value)
    }

    /// Any value as it is written.
    fn raw(&mut self) -> Option<&'r str> {
        let begin = self.rest;
        if self.peek()? == b'"' {
            // Most are.
            let whole = self.rest;
            if self.string().is_some() {
                return Some(&whole[..whole.len() - self.rest.len()]);
            }
            self.rest = whole;
        }
        self.value::<IgnoredAny>()?;
        Some(&begin[..begin.len() - self.rest.len()])
    }

    pub(super) fn skip(&mut self) -> Option<()> {
        self.raw().map(drop)
    }

    fn number(&mut self) -> Option<u64> {
        self.peek()?;
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit);
        let (digits, rest) = self.rest.split_at(digits.count());
        let whole = matches!(
            rest.as_bytes(),
            [b',' | b'}' | b' ' | b'\n' | b'\t' | b'\r', ..]
        );
        if !whole || matches!(digits.as_bytes(), [] | [b'0', _, ..]) {
            return None;
        }
        self.rest = rest;
        digits.parse().ok()
    }

    fn pairs(&mut self) -> Option<Pairs<'r>> {
        self.open()?;
        let mut pairs = Vec::new();
        while let Some(name) = self.field()? {
            pairs.push((name, self.string()?));
        }
        Some(pairs)
    }

    pub(super) fn metadata(&mut self) -> Option<Plain<'r>> {
        let mut plain = Plain::default();
        self.open()?;
        while let Some(name) = self.field()? {
            match name {
                "name" => once(&mut plain.name, self.string()?)?,
                "namespace" => once(&mut plain.namespace, self.string()?)?,
                "uid" => once(&mut plain.uid, self.string()?)?,
                "resourceVersion" => once(&mut plain.resource_version, self.string()?)?,
                "generation" => once(&mut plain.generation, self.number()?)?,
                "creationTimestamp" => once(&mut plain.creation_timestamp, self.string()?)?,
                "labels" => once(&mut plain.labels, self.pairs()?)?,
                "annotations" => once(&mut plain.annotations, self.pairs()?)?,
                "ownerReferences" => once(&mut plain.owner_references, self.raw()?)?,
                "deletion" => once(&mut plain.deletion, self.raw()?)?,
                other => plain.other.push((other, self.raw()?)),
            }
        }
        Some(plain)
    }

    /// Nothing follows.
    pub(super) fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }
}

fn own(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn own_pairs(pairs: Option<Pairs<'_>>) -> std::collections::BTreeMap<String, String> {
    let pairs = pairs.unwrap_or_default().into_iter();
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// A value that is left out, or is what is written.
fn written<'r, T: Default + Deserialize<'r>>(json: Option<&'r str>) -> Option<T> {
    match json {
        Some(json) => serde_json::from_str(json).ok(),
        None => Some(T::default()),
    }
}

impl<'r> Plain<'r> {
    /// The metadata of a record up to the end of its metadata.
    pub(super) fn of(record: &'r [u8]) -> Option<Self> {
        let mut scan = Scan::new(record)?;
        scan.open()?;
        while let Some(name) = scan.field()? {
            if name == "metadata" {
                return scan.metadata();
            }
            scan.skip()?;
        }
        None
    }

    pub(super) fn into_metadata(self) -> Option<Metadata> {
        let mut other = Map::new();
        for (name, json) in self.other {
            // As in a map, the last counts.
            other.insert(name.to_owned(), serde_json::from_str(json).ok()?);
        }
        Some(Metadata {
            name: own(self.name),
            namespace: self.namespace.map(ToOwned::to_owned),
            uid: Uid::from(own(self.uid)),
            resource_version: match self.resource_version {
                Some(version) => Some(version.parse().ok()?),
                None => None,
            },
            generation: self.generation.unwrap_or_default(),
            creation_timestamp: match self.creation_timestamp {
                Some(time) => Some(time.parse().ok()?),
                None => None,
            },
            labels: own_pairs(self.labels),
            annotations: own_pairs(self.annotations),
            owner_references: written(self.owner_references)?,
            deletion: written(self.deletion)?,
            other,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIELDS: [&str; 16] = [
        r#""name":"a""#,
        r#""name":"\u0061""#,
        r#""namespace":"d""#,
        r#""namespace":null"#,
        r#""uid" : "u""#,
        r#""uid":"ü""#,
        r#""resourceVersion":"7""#,
        r#""generation":12"#,
        r#""generation":0"#,
        r#""creationTimestamp":"2026-01-01T00:00:00Z""#,
        r#""labels":{"a":"b", "c":"d"}"#,
        r#""labels":{"a":"b","a":"c"}"#,
        r#""annotations":{}"#,
        r#""ownerReferences":[{"apiVersion":"e/v1","kind":"K","name":"n","uid":"o","controller":true}]"#,
        r#""deletion":{"uid":"u","at":"2026-01-01T00:00:00Z","by":"p","propagation":"Orphan"}"#,
        r#""future": {"x": [1, "}"]}"#,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_it_reads_is_what_is_read_in_the_general_way(
            fields in prop::collection::vec(prop::sample::select(&FIELDS[..]), 0..6),
            broken in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(&b"\"\\{}[],: 01nx\x01\xff"[..]), 0..3u8)),
        ) {
            let mut json = format!("{{{}}}", fields.join(",")).into_bytes();
            if let Some((at, byte, how)) = broken {
                let at = at.index(json.len());
                match how {
                    0 => json[at] = byte,
                    1 => json.insert(at, byte),
                    _ => drop(json.remove(at)),
                }
            }
            let plain = Scan::new(&json).and_then(|mut scan| {
                scan.metadata().filter(|_| scan.end().is_some())
            });
            if let Some(metadata) = plain.and_then(Plain::into_metadata) {
                let general: Metadata = serde_json::from_slice(&json).unwrap();
                prop_assert_eq!(metadata, general);
            }
        }
    }

    #[test]
    fn it_reads_what_this_library_writes() {
        let json = format!(
            "{{{}}}",
            [0, 2, 4, 6, 7, 9, 10, 12, 13, 14, 15]
                .map(|at| FIELDS[at])
                .join(",")
        );
        let metadata: Metadata = serde_json::from_str(&json).unwrap();
        let written = serde_json::to_vec(&metadata).unwrap();
        let plain = Scan::new(&written).unwrap().metadata().unwrap();
        assert_eq!(plain.into_metadata().unwrap(), metadata);
    }
}
