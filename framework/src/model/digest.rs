//! Digests: of artifacts, and of specs in their canonical form.

use std::fmt;
use std::io;
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

    /// Reads `reader` to its end; the digest of it, and the number of bytes.
    ///
    /// # Errors
    /// What the reader fails with.
    pub fn of_reader(mut reader: impl io::Read) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 128 * 1024];
        let mut bytes = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok((Self(hasher.finalize().into()), bytes)),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The digest with these 64 lower-case hex digits.
    ///
    /// # Errors
    /// [`InvalidDigest`] for any other text.
    pub fn from_hex(hex: &str) -> Result<Self, InvalidDigest> {
        let invalid = || {
            InvalidDigest(
                hex.chars()
                    .take(80)
                    .flat_map(char::escape_default)
                    .collect(),
            )
        };
        if hex.len() != 64 {
            return Err(invalid());
        }
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
        text.strip_prefix("sha256:")
            .and_then(|hex| Self::from_hex(hex).ok())
            .ok_or_else(|| {
                InvalidDigest(
                    text.chars()
                        .take(80)
                        .flat_map(char::escape_default)
                        .collect(),
                )
            })
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
    fn a_digest_has_one_spelling() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(Digest::of_reader(&b""[..]).unwrap(), (digest, 0));
        for wrong in [
            "",
            "sha256:",
            &text.to_uppercase(),
            &text[..70],
            &format!("{text}0"),
            &format!(" {text}"),
            &format!("{text}\n"),
            &text.replace("sha256", "sha512"),
            &text.replace("sha256", "md5"),
            &text.replace("e3b0", "E3B0"),
            &text.replace("e3b0", "é3"),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_wrong_digest_is_quoted_without_its_control_characters() {
        let error = "sha256:\u{1b}[2J".parse::<Digest>().unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }
}
