//! Amounts of processor and memory as people write them: `500m`, `1.5`, `256Mi`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an amount of {what}: write {example}")]
pub struct InvalidQuantity {
    what: &'static str,
    text: String,
    example: &'static str,
}

/// Processor time, in thousandths of a processor: `500m` is half of one, `2` is two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(u32);

impl Cpu {
    /// Thousandths of a processor.
    #[must_use]
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis)
    }

    /// Thousandths of a processor.
    #[must_use]
    pub const fn millis(self) -> u32 {
        self.0
    }
}

/// A number of bytes: `1024`, `64Ki`, `256Mi`, `2Gi`, or decimal `k`, `M`, `G`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    /// So many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

fn invalid(what: &'static str, text: &str, example: &'static str) -> InvalidQuantity {
    InvalidQuantity {
        what,
        text: text
            .chars()
            .take(40)
            .flat_map(char::escape_default)
            .collect(),
        example,
    }
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

impl FromStr for Cpu {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let millis = if let Some(number) = text.strip_suffix('m') {
            digits(number)
        } else if let Some((whole, fraction)) = text.split_once('.') {
            let scale = match fraction.len() {
                1 => Some(100),
                2 => Some(10),
                3 => Some(1),
                _ => None,
            };
            let fraction = digits(fraction)
                .zip(scale)
                .map(|(number, scale)| number * scale);
            digits(whole)
                .and_then(|whole| whole.checked_mul(1000))
                .zip(fraction)
                .map(|(a, b)| a.saturating_add(b))
        } else {
            digits(text).and_then(|number| number.checked_mul(1000))
        };
        millis
            .and_then(|millis| u32::try_from(millis).ok())
            .map(Self)
            .ok_or_else(|| {
                invalid(
                    "cpu",
                    text,
                    "processors or thousandths of one, as `2`, `1.5` or `500m`",
                )
            })
    }
}

const SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for Bytes {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = SUFFIXES
            .iter()
            .find_map(|(suffix, size)| Some((text.strip_suffix(suffix)?, *size)));
        let (number, size) = found.unwrap_or((text, 1));
        digits(number)
            .and_then(|number| number.checked_mul(size))
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .map(Self)
            .ok_or_else(|| invalid("memory", text, "bytes, as `1048576`, `256Mi` or `2Gi`"))
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SUFFIXES[..4]
            .iter()
            .find(|(_, size)| self.0 > 0 && self.0.is_multiple_of(*size));
        match binary {
            Some((suffix, size)) => write!(f, "{}{suffix}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

macro_rules! as_text {
    ($type:ident, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // YAML has `cpu: 2` as a number.
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Either {
                    Number(u64),
                    Fraction(f64),
                    Text(String),
                }
                let text = match Either::deserialize(deserializer)? {
                    Either::Number(number) => number.to_string(),
                    Either::Fraction(number) => number.to_string(),
                    Either::Text(text) => text,
                };
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "number"], "pattern": $pattern })
            }
        }
    };
}

as_text!(Cpu, "^[0-9]+(m|\\.[0-9]{1,3})?$");
as_text!(Bytes, "^[0-9]+([KMGT]i|[kMGT])?$");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_amount_is_read_back_as_it_is_shown(millis: u32, bytes in 0..i64::MAX as u64) {
            let (cpu, bytes) = (Cpu::from_millis(millis), Bytes::new(bytes));
            prop_assert_eq!(cpu.to_string().parse(), Ok(cpu));
            prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,30}") {
            let _ = (text.parse::<Cpu>(), text.parse::<Bytes>());
        }
    }

    #[test]
    fn amounts_are_what_people_mean() {
        assert_eq!("500m".parse(), Ok(Cpu::from_millis(500)));
        assert_eq!("1.5".parse(), Ok(Cpu::from_millis(1500)));
        assert_eq!("2".parse(), Ok(Cpu::from_millis(2000)));
        assert_eq!("256Mi".parse(), Ok(Bytes::new(256 << 20)));
        assert_eq!("3k".parse(), Ok(Bytes::new(3000)));
        assert_eq!(
            serde_json::from_str::<Cpu>("1.5").unwrap(),
            Cpu::from_millis(1500)
        );
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "m", "-1", "1..5", "1.2345", "5m5", "9999999999"] {
            assert!(text.parse::<Cpu>().is_err(), "{text}");
        }
        for text in ["", "Mi", "1.5Gi", "-1", "1 Mi", "9999999Ti"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
