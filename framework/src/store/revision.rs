//! Positions in a store's history.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A position in the total order of a store's commits.
///
/// It has two parts: the *epoch*, which a person raises after a restore, and a counter. All of a
/// later epoch is newer than all of an earlier one. Both fit one integer, which is what
/// `resourceVersion` shows, so that clients that compare resource versions as numbers are right.
///
/// ```
/// use platctrl_framework::store::Revision;
///
/// let before = Revision::new(0, 41);
/// assert!(before < Revision::new(0, 42) && before < Revision::new(1, 1));
/// assert_eq!(before.to_string(), "41");
/// assert_eq!("41".parse(), Ok(before));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

const COUNTER_BITS: u32 = 48;

impl Revision {
    /// Before every commit.
    pub const ZERO: Self = Self(0);

    /// The revision `counter` of `epoch`. The counter has 48 bits: at a million commits a second
    /// they last nine years.
    #[must_use]
    pub const fn new(epoch: u16, counter: u64) -> Self {
        Self(((epoch as u64) << COUNTER_BITS) | (counter & ((1 << COUNTER_BITS) - 1)))
    }

    /// The part that is raised after a restore.
    #[must_use]
    pub const fn epoch(self) -> u16 {
        (self.0 >> COUNTER_BITS) as u16
    }

    /// The backend's own counter.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }

    /// Both parts as the number that `resourceVersion` shows.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`Revision::as_u64`].
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// The next revision of the same epoch. The last one, which clients may name though no
    /// store comes there, is its own.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text that is no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a resource version: it must be a decimal number as the store returned it")]
pub struct ParseRevisionError(String);

impl FromStr for Revision {
    type Err = ParseRevisionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number
            .map(Self)
            .ok_or_else(|| ParseRevisionError(text.chars().take(40).collect()))
    }
}

// As a string, as `resourceVersion` is: JSON numbers lose precision above 2^53 in many readers.
impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl de::Visitor<'_> for Number {
            type Value = Revision;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a revision as text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Revision, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_the_number() {
        let revision = Revision::new(3, 77);
        assert_eq!((revision.epoch(), revision.counter()), (3, 77));
        assert_eq!(Revision::from_u64(revision.as_u64()), revision);
        assert_eq!(revision.to_string().parse(), Ok(revision));
    }

    #[test]
    fn text_that_is_no_number_is_refused() {
        for text in ["", "-1", "+1", " 1", "1x", "99999999999999999999999"] {
            assert!(text.parse::<Revision>().is_err(), "{text}");
        }
    }
}
