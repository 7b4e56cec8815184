//! Digests: of artifacts, and of specs in their canonical form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: it must be `sha256:` and 64 lower-case hex digits")]
pub struct InvalidDigest(String);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(bytes.as_ref()).into())
    }

    /// A digest that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of a JSON value whatever the order of its fields and its white space.
    #[must_use]
    pub fn of_json(value: &Value) -> Self {
        let mut hasher = Sha256::new();
        canonical(value, &mut |text| hasher.update(text));
        Self(hasher.finalize().into())
    }

    /// The 64 hex digits alone.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Feeds the value to `write` with object fields sorted by their bytes and nothing between
/// tokens. Equal values feed equal bytes; the form is only ever hashed, never stored.
fn canonical(value: &Value, write: &mut dyn FnMut(&[u8])) {
    match value {
        Value::Null => write(b"null"),
        Value::Bool(flag) => write(if *flag { b"true" } else { b"false" }),
        Value::Number(number) => write(number.to_string().as_bytes()),
        Value::String(text) => write_text(text, write),
        Value::Array(items) => {
            write(b"[");
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    write(b",");
                }
                canonical(item, write);
            }
            write(b"]");
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by(|a, b| a.0.cmp(b.0));
            write(b"{");
            for (position, (name, field)) in fields.into_iter().enumerate() {
                if position > 0 {
                    write(b",");
                }
                write_text(name, write);
                write(b":");
                canonical(field, write);
            }
            write(b"}");
        }
    }
}

fn write_text(text: &str, write: &mut dyn FnMut(&[u8])) {
    // The length in front makes any two texts differ without escaping.
    write(format!("{}\"", text.len()).as_bytes());
    write(text.as_bytes());
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || {
            InvalidDigest(
                text.chars()
                    .take(80)
                    .flat_map(char::escape_default)
                    .collect(),
            )
        };
        let hex = text
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64)
            .ok_or_else(invalid)?;
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let (high, low) = (nibble(pair[0]), nibble(pair[1]));
            *byte = high
                .zip(low)
                .map(|(high, low)| high << 4 | low)
                .ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl schemars::JsonSchema for Digest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^sha256:[0-9a-f]{64}$" })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_fields_does_not_change_a_spec_digest() {
        let a: Value = serde_json::from_str(r#"{"b":1,"a":{"y":[1,2],"x":null}}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{ "a": {"x":null, "y":[1,2]}, "b":1 }"#).unwrap();
        assert_eq!(Digest::of_json(&a), Digest::of_json(&b));
    }

    #[test]
    fn values_that_print_alike_have_different_digests() {
        let values = [
            json!("1"),
            json!(1),
            json!([1]),
            json!({"a":"b\",\"c"}),
            json!({"a":"b","c":""}),
            json!(null),
        ];
        for (i, a) in values.iter().enumerate() {
            for b in &values[i + 1..] {
                assert_ne!(Digest::of_json(a), Digest::of_json(b), "{a} {b}");
            }
        }
    }

    #[test]
    fn text_round_trips_and_other_text_is_refused() {
        let digest = Digest::of("hello");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let upper = digest.to_string().to_uppercase();
        for text in ["", "sha256:", "sha512:00", &upper, "sha256:zz", "é"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
