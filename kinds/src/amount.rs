//! Numbers of pods as people write them: `3`, or `10%` of how many there are to be.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// So many, or so many of a hundred.
///
/// ```
/// use platctrl_kinds::Amount;
///
/// let share: Amount = "25%".parse().unwrap();
/// assert_eq!((share.rounded_up(10), share.rounded_down(10)), (3, 2));
/// assert_eq!(Amount::Count(4).rounded_up(10), 4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So many of a hundred, at most 100.
    Percent(u8),
}

/// Text that is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a count, as 3, nor a share from 0% to 100%")]
pub struct InvalidAmount(String);

impl Amount {
    /// How many of `total` that is; a part of one counts as one.
    #[must_use]
    pub const fn rounded_up(self, total: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(share) => share_of(total, share, 99),
        }
    }

    /// How many of `total` that is; a part of one does not count.
    #[must_use]
    pub const fn rounded_down(self, total: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(share) => share_of(total, share, 0),
        }
    }

    /// It is 0 of anything.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        matches!(self, Self::Count(0) | Self::Percent(0))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "at most a hundred percent of a u32"
)]
const fn share_of(total: u32, share: u8, more: u64) -> u32 {
    ((total as u64 * share as u64 + more) / 100) as u32
}

impl Default for Amount {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, is_share) = match text.strip_suffix('%') {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: Option<u32> = plain.then(|| digits.parse().ok()).flatten();
        let amount = match (number, is_share) {
            (Some(count), false) => Some(Self::Count(count)),
            (Some(share), true) => u8::try_from(share)
                .ok()
                .filter(|share| *share <= 100)
                .map(Self::Percent),
            (None, _) => None,
        };
        amount.ok_or_else(|| {
            let shown = text.chars().take(40).flat_map(char::escape_default);
            InvalidAmount(shown.collect())
        })
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a count, as 3, or a share, as \"10%\"")
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Amount, E> {
                let count = u32::try_from(count);
                count
                    .map(Amount::Count)
                    .map_err(|_| E::custom("the count is too large"))
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Amount, E> {
                let count = u32::try_from(count);
                count
                    .map(Amount::Count)
                    .map_err(|_| E::custom("the count is below 0 or too large"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Amount, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Amount {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A count, as 3, or a share, as 10%.",
            "anyOf": [
                { "type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32 },
                { "type": "string", "pattern": "^(100|[0-9]{1,2})%$|^[0-9]{1,10}$" },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_count_or_a_share() {
        let read = |json: &str| serde_json::from_str::<Amount>(json);
        assert_eq!(read("3").unwrap(), Amount::Count(3));
        assert_eq!(read("\"3\"").unwrap(), Amount::Count(3));
        assert_eq!(read("\"10%\"").unwrap(), Amount::Percent(10));
        for bad in [
            "-1",
            "4294967296",
            "\"101%\"",
            "\"-1%\"",
            "\"%\"",
            "\"a\"",
            "1.5",
            "\"1 %\"",
            "null",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::to_string(&Amount::Percent(10)).unwrap(),
            "\"10%\""
        );
        assert_eq!(Amount::Percent(100).rounded_down(u32::MAX), u32::MAX);
    }
}
