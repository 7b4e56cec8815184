//! What goes over the wire: operations of a transaction and the pairs that come back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;

use crate::pack::{PACKED, pack, unpack};

/// The most operations that Consul takes in one transaction.
pub(crate) const MAX_OPS: usize = 64;
/// The largest body of a transaction that Consul takes (`limits.txn_max_req_len`).
pub(crate) const MAX_BODY: usize = 512 * 1024;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verb {
    Set,
    Cas,
    Lock,
    Get,
    GetTree,
    CheckIndex,
    CheckSession,
    CheckNotExists,
    Delete,
}

/// One operation. The key is as on the server, with the root.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Op {
    verb: Verb,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "base64")]
    value: Option<Bytes>,
    #[serde(skip_serializing_if = "is_zero")]
    flags: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn base64<S: Serializer>(value: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(value.as_deref().unwrap_or_default()))
}

impl Op {
    fn new(verb: Verb, key: String) -> Self {
        Self {
            verb,
            key,
            value: None,
            flags: 0,
            index: None,
            session: None,
        }
    }

    pub(crate) fn get(key: String) -> Self {
        Self::new(Verb::Get, key)
    }

    /// Every pair whose key begins with this text.
    pub(crate) fn get_tree(begin: String) -> Self {
        Self::new(Verb::GetTree, begin)
    }

    /// Fails when the key exists, and also when it may not be read: unlike a get, which then
    /// answers as if there were nothing.
    pub(crate) fn absent(key: String) -> Self {
        Self::new(Verb::CheckNotExists, key)
    }

    pub(crate) fn unchanged(key: String, index: u64) -> Self {
        Self {
            index: Some(index),
            ..Self::new(Verb::CheckIndex, key)
        }
    }

    pub(crate) fn held_by(key: String, session: &str) -> Self {
        Self {
            session: Some(session.to_owned()),
            ..Self::new(Verb::CheckSession, key)
        }
    }

    pub(crate) fn set(key: String, value: Bytes, flags: u64) -> Self {
        Self {
            value: Some(value),
            flags,
            ..Self::new(Verb::Set, key)
        }
    }

    /// A set that fails unless the key was last changed at this index; 0 is an absent key.
    pub(crate) fn swap(key: String, value: Bytes, flags: u64, index: u64) -> Self {
        Self {
            value: Some(value),
            flags,
            index: Some(index),
            ..Self::new(Verb::Cas, key)
        }
    }

    pub(crate) fn lock(key: String, value: Bytes, flags: u64, session: &str) -> Self {
        Self {
            value: Some(value),
            flags,
            session: Some(session.to_owned()),
            ..Self::new(Verb::Lock, key)
        }
    }

    pub(crate) fn delete(key: String) -> Self {
        Self::new(Verb::Delete, key)
    }

    /// The same with its value packed, where that makes it shorter.
    fn packed(&self) -> Self {
        let value = self.value.as_ref().and_then(pack);
        let flags = self.flags | value.as_ref().map_or(0, |_| PACKED);
        Self {
            flags,
            value: value.or_else(|| self.value.clone()),
            ..self.clone()
        }
    }

    pub(crate) fn verb(&self) -> Verb {
        self.verb
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

#[derive(Serialize)]
#[serde(rename_all = "UPPERCASE")]
struct Envelope<'a> {
    kv: &'a Op,
}

/// The body of a transaction, with its values packed if Consul would not take it otherwise.
pub(crate) fn encode(ops: &[Op]) -> Result<Bytes, serde_json::Error> {
    let body = encode_plain(ops)?;
    if body.len() <= MAX_BODY {
        return Ok(body);
    }
    let packed: Vec<Op> = ops.iter().map(Op::packed).collect();
    encode_plain(&packed)
}

fn encode_plain(ops: &[Op]) -> Result<Bytes, serde_json::Error> {
    let envelopes: Vec<Envelope<'_>> = ops.iter().map(|kv| Envelope { kv }).collect();
    serde_json::to_vec(&envelopes).map(Bytes::from)
}

/// A key with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Without the root.
    pub(crate) key: String,
    pub(crate) value: Bytes,
    pub(crate) flags: u64,
    pub(crate) created: u64,
    pub(crate) modified: u64,
    pub(crate) session: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPair<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
    #[serde(default)]
    flags: u64,
    create_index: u64,
    modify_index: u64,
    #[serde(borrow, default)]
    session: Option<Cow<'a, str>>,
}

/// Why one operation of a transaction failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct OpError {
    pub(crate) op_index: usize,
    pub(crate) what: String,
}

impl OpError {
    pub(crate) fn is_denied(&self) -> bool {
        self.what.contains("Permission denied")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct RawResult<'a> {
    #[serde(borrow, default)]
    kv: Option<RawPair<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawTxn<'a> {
    #[serde(borrow, default)]
    results: Option<Vec<RawResult<'a>>>,
    #[serde(default)]
    errors: Option<Vec<OpError>>,
}

/// How a transaction ended on the server.
#[derive(Debug)]
pub(crate) enum Txn {
    Done(Vec<Pair>),
    /// Nothing of it happened.
    Refused(Vec<OpError>),
}

fn pair(raw: RawPair<'_>, root: &str) -> Result<Pair, String> {
    let key = raw
        .key
        .strip_prefix(root)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| format!("a key outside of the root {root}"))?
        .to_owned();
    let value = match raw.value.as_deref() {
        None | Some("") => Bytes::new(),
        Some(text) => STANDARD
            .decode(text)
            .map_err(|error| format!("the value of {key} is not base64: {error}"))?
            .into(),
    };
    Ok(Pair {
        key,
        value: unpack(value, raw.flags),
        flags: raw.flags,
        created: raw.create_index,
        modified: raw.modify_index,
        session: raw.session.map(Cow::into_owned).filter(|s| !s.is_empty()),
    })
}

/// Reads the answer to a transaction.
pub(crate) fn decode_txn(body: &[u8], root: &str) -> Result<Txn, String> {
    let raw: RawTxn<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if let Some(errors) = raw.errors.filter(|errors| !errors.is_empty()) {
        return Ok(Txn::Refused(errors));
    }
    raw.results
        .unwrap_or_default()
        .into_iter()
        .filter_map(|result| result.kv)
        .map(|raw| pair(raw, root))
        .collect::<Result<_, _>>()
        .map(Txn::Done)
}

/// Reads the answer to a recursive get.
pub(crate) fn decode_pairs(body: &[u8], root: &str) -> Result<Vec<Pair>, String> {
    let raw: Vec<RawPair<'_>> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    raw.into_iter().map(|raw| pair(raw, root)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_written_as_consul_reads_them() {
        let ops = [
            Op::swap("r/a".to_owned(), Bytes::from_static(b"\xff"), 7, 0),
            Op::held_by("r/b".to_owned(), "s-1"),
            Op::set("r/c".to_owned(), Bytes::new(), 0),
        ];
        let text = String::from_utf8(encode(&ops).unwrap().to_vec()).unwrap();
        assert_eq!(
            text,
            r#"[{"KV":{"Verb":"cas","Key":"r/a","Value":"/w==","Flags":7,"Index":0}},{"KV":{"Verb":"check-session","Key":"r/b","Session":"s-1"}},{"KV":{"Verb":"set","Key":"r/c","Value":""}}]"#
        );
    }

    #[test]
    fn values_are_packed_only_where_the_body_would_be_too_large() {
        let op = |size: usize| Op::set("r/a".to_owned(), vec![b'x'; size].into(), 7);
        let flags = |body: &Bytes| {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            body[0]["KV"]["Flags"].as_u64().unwrap()
        };
        let fits = encode(&[op(390_000)]).unwrap();
        assert_eq!((flags(&fits), fits.len() > 500_000), (7, true));
        let packed = encode(&[op(394_000)]).unwrap();
        assert_eq!((flags(&packed), packed.len() < 10_000), (PACKED | 7, true));
    }

    #[test]
    fn answers_that_make_no_sense_are_errors_and_never_empty() {
        for body in [
            &b""[..],
            b"<html>502</html>",
            b"{\"Results\":[{\"KV\":{\"Key\":\"r/a\",\"Value\":\"MQ==\"",
            b"{\"Results\":[{\"KV\":{\"Key\":\"other/a\",\"Value\":\"MQ==\",\"CreateIndex\":1,\"ModifyIndex\":1}}]}",
            b"{\"Results\":[{\"KV\":{\"Key\":\"r/a\",\"Value\":\"*\",\"CreateIndex\":1,\"ModifyIndex\":1}}]}",
            b"{\"Results\":[{\"KV\":{\"Key\":\"r/a\",\"Value\":\"MQ==\"}}]}",
        ] {
            let shown = String::from_utf8_lossy(body);
            assert!(decode_txn(body, "r").is_err(), "{shown}");
            assert!(decode_pairs(body, "r").is_err(), "{shown}");
        }
    }
}
