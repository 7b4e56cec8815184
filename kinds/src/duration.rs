//! Durations as people write them: `500ms`, `30s`, `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time of at most 100 years, in whole milliseconds.
///
/// ```
/// use platctrl_kinds::Span;
///
/// let span: Span = "1h30m".parse().unwrap();
/// assert_eq!(span.duration().as_secs(), 5400);
/// assert_eq!(span.to_string(), "1h30m");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

/// Text that is no span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write numbers with units, as `500ms`, `30s` or `1h30m`")]
pub struct InvalidDuration(String);

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const LIMIT: u64 = 100 * 365 * 86_400_000;

impl Span {
    /// A span of whole milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A span of whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// The span.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || {
            InvalidDuration(
                text.chars()
                    .take(40)
                    .flat_map(char::escape_default)
                    .collect(),
            )
        };
        let mut rest = text;
        let mut millis: u64 = 0;
        let mut largest = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, tail) = tail.split_at(letters);
            let size = UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(invalid)?
                .1;
            // Each unit once, from large to small: `1m1h` is a slip more often than a wish.
            if size >= largest {
                return Err(invalid());
            }
            largest = size;
            let number: u64 = number.parse().map_err(|_| invalid())?;
            let part = number.checked_mul(size).ok_or_else(invalid)?;
            millis = millis
                .checked_add(part)
                .filter(|&sum| sum <= LIMIT)
                .ok_or_else(invalid)?;
            rest = tail;
        }
        if text.is_empty() {
            return Err(invalid());
        }
        Ok(Self::from_millis(millis))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(LIMIT);
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in UNITS {
            if millis >= size {
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$",
            "examples": ["30s", "1h30m"],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_span_is_read_back_as_it_is_shown(millis in 0..LIMIT) {
            let span = Span::from_millis(millis);
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }

    #[test]
    fn text_that_is_no_span_is_refused() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1m1h",
            "1s1s",
            "1y",
            "99999999999999999999s",
            "1000000d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
