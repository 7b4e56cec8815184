//! Keys and prefixes of the store, checked once when they are made.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The most bytes a key may have, without the root.
pub const MAX_KEY_BYTES: usize = 512;

/// A key of the store, relative to the root: segments of `a-z 0-9 . _ -` with `/` between them,
/// no leading or trailing slash, no segment `.` or `..`. Every backend takes every such key as
/// it is; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// A range of keys: all of them (empty), those below some segments (with a slash at the end, so
/// that `web1/` never covers `web10/…`), or one key alone ([`Prefix::only`], without the slash).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Arc<str>);

/// Text that cannot be a key or prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid store key `{key}`: {reason}")]
pub struct InvalidKey {
    key: String,
    reason: &'static str,
}

/// The bytes that a segment may have. A table, because every record that is read has a key.
const ALLOWED: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        allowed[byte] = matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        byte += 1;
    }
    allowed
};

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_KEY_BYTES {
        return Err("it is longer than 512 bytes");
    }
    for segment in text.as_bytes().split(|&byte| byte == b'/') {
        match segment {
            b"" => return Err("it has an empty segment"),
            b"." | b".." => return Err("`.` and `..` are no segments"),
            _ => {}
        }
        if !segment.iter().all(|&byte| ALLOWED[usize::from(byte)]) {
            return Err("only a-z, 0-9, `.`, `_`, `-` and `/` are allowed");
        }
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect()
}

impl Key {
    /// Checks and keeps a key.
    ///
    /// # Errors
    /// [`InvalidKey`] says what is wrong with it.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidKey> {
        let text = text.as_ref();
        check(text).map_err(|reason| InvalidKey {
            key: shown(text),
            reason,
        })?;
        Ok(Self(text.into()))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key is in the prefix's range.
    #[must_use]
    pub fn is_under(&self, prefix: &Prefix) -> bool {
        prefix.covers(&self.0)
    }
}

impl Prefix {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self("".into())
    }

    /// Checks and keeps a prefix, which ends with a slash or is empty.
    ///
    /// # Errors
    /// [`InvalidKey`] says what is wrong with it.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidKey> {
        let text = text.as_ref();
        if text.is_empty() {
            return Ok(Self::all());
        }
        let invalid = |reason| InvalidKey {
            key: shown(text),
            reason,
        };
        let body = text
            .strip_suffix('/')
            .ok_or_else(|| invalid("a prefix ends with `/`"))?;
        check(body).map_err(invalid)?;
        Ok(Self(text.into()))
    }

    /// This key and no other: neither the keys below it nor those whose names only begin alike.
    ///
    /// ```
    /// use platctrl_framework::store::{Key, Prefix};
    ///
    /// let node = Key::new("o/intent/platctrl.dev/nodes/web1").unwrap();
    /// let only = Prefix::only(&node);
    /// assert!(node.is_under(&only));
    /// assert!(!Key::new("o/intent/platctrl.dev/nodes/web10").unwrap().is_under(&only));
    /// assert_eq!(only.as_key(), Some(node));
    /// ```
    #[must_use]
    pub fn only(key: &Key) -> Self {
        Self(key.0.clone())
    }

    /// The one key that this is the range of, if it was made by [`Prefix::only`].
    #[must_use]
    pub fn as_key(&self) -> Option<Key> {
        self.is_only().then(|| Key(self.0.clone()))
    }

    fn is_only(&self) -> bool {
        !self.0.is_empty() && !self.0.ends_with('/')
    }

    /// A key of this text is in the range.
    #[must_use]
    pub fn covers(&self, key: &str) -> bool {
        if self.is_only() {
            *self.0 == *key
        } else {
            key.starts_with(&*self.0)
        }
    }

    /// Some key can be in both ranges.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(&other.0) || other.covers(&self.0)
    }

    /// The prefix as text: where its range begins.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A key below this prefix.
    ///
    /// # Errors
    /// [`InvalidKey`] when `rest` is no valid rest of a key, or the range is that of one key.
    pub fn key(&self, rest: impl AsRef<str>) -> Result<Key, InvalidKey> {
        let text = format!("{}{}", self.0, rest.as_ref());
        if self.is_only() {
            return Err(InvalidKey {
                key: shown(&text),
                reason: "the range of one key has no keys below it",
            });
        }
        Key::new(text)
    }

    /// The first text, in byte order, that is behind every key of this prefix; None when there
    /// is no such text. With [`Prefix::as_str`] it bounds a range scan.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        if self.is_only() {
            return Some(format!("{}\0", self.0));
        }
        // Any other prefix ends with `/`, and `0` is the byte after it.
        let body = self.0.strip_suffix('/')?;
        Some(format!("{body}0"))
    }
}

impl Key {
    fn read(text: &str) -> Result<Self, InvalidKey> {
        Self::new(text)
    }
}

impl Prefix {
    /// Reads what was written: the range of one key is written as the key.
    fn read(text: &str) -> Result<Self, InvalidKey> {
        if text.is_empty() || text.ends_with('/') {
            Self::new(text)
        } else {
            Key::new(text).map(|key| Self::only(&key))
        }
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

macro_rules! as_text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::read(&text).map_err(de::Error::custom)
            }
        }
    };
}

as_text!(Key);
as_text!(Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_its_own_segment_only() {
        let prefix = Prefix::new("o/intent/web1/").unwrap();
        assert!(Key::new("o/intent/web1/a").unwrap().is_under(&prefix));
        assert!(!Key::new("o/intent/web10/a").unwrap().is_under(&prefix));
        let end = prefix.end().unwrap();
        assert!("o/intent/web1/zzz" < end.as_str() && end.as_str() < "o/intent/web10/a");
    }

    #[test]
    fn the_range_of_one_key_is_that_key() {
        let key = Key::new("o/nodes/web1").unwrap();
        let only = Prefix::only(&key);
        for other in [
            "o/nodes/web10",
            "o/nodes/web1/a",
            "o/nodes/web",
            "o/nodes/web1-a",
        ] {
            assert!(!Key::new(other).unwrap().is_under(&only), "{other}");
            assert!(only.end().unwrap().as_str() <= other || other < only.as_str());
        }
        assert!(only.key("a").is_err());
        let nodes = Prefix::new("o/nodes/").unwrap();
        assert!(only.overlaps(&nodes) && nodes.overlaps(&only) && only.overlaps(&only));
        assert!(!only.overlaps(&Prefix::new("o/nodes/web1/").unwrap()));
        let text = serde_json::to_string(&only).unwrap();
        assert_eq!(serde_json::from_str::<Prefix>(&text).unwrap(), only);
        assert_eq!((only.as_key(), nodes.as_key()), (Some(key), None));
    }

    #[test]
    fn keys_that_a_backend_would_clean_or_refuse_are_refused() {
        let long = "a".repeat(513);
        for text in [
            "", "/a", "a/", "a//b", "a/../b", "./a", "A", "a b", "a%2fb", "a\0", "é", &long,
        ] {
            assert!(Key::new(text).is_err(), "{text:?}");
        }
        assert!(Key::new("o/intent/platctrl.dev/pods/.anchor").is_ok());
    }

    #[test]
    fn a_prefix_without_its_slash_is_refused() {
        assert!(Prefix::new("o").is_err());
        assert_eq!(Prefix::new("").unwrap(), Prefix::all());
    }
}
