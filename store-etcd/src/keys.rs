//! The store's keys as etcd's: below the root.

use bytes::Bytes;
use platctrl_framework::store::{Key, Prefix};

/// Translates keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// The root with a slash at its end.
    root: String,
}

impl Keys {
    pub(crate) fn new(root: &str) -> Self {
        Self {
            root: format!("{root}/"),
        }
    }

    pub(crate) fn key(&self, key: &Key) -> Bytes {
        self.below(key.as_str())
    }

    /// The first key of a prefix and the first behind it, which is empty for a single key.
    pub(crate) fn range(&self, prefix: &Prefix) -> (Bytes, Bytes) {
        let start = self.below(prefix.as_str());
        let end = match prefix.as_key() {
            Some(_) => Bytes::new(),
            None => behind(&start),
        };
        (start, end)
    }

    /// The part of a prefix's range that comes after a key; None when nothing can.
    pub(crate) fn range_after(&self, prefix: &Prefix, after: &[u8]) -> Option<(Bytes, Bytes)> {
        let (start, end) = self.range(prefix);
        if &start[..] > after {
            return Some((start, end));
        }
        let mut next = after.to_vec();
        next.push(0);
        (next[..] < end[..]).then(|| (next.into(), end))
    }

    /// The key of the store; None when no such key can be, because somebody else wrote it.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(key).ok()?;
        Key::new(text.strip_prefix(&self.root)?).ok()
    }

    fn below(&self, text: &str) -> Bytes {
        let mut bytes = Vec::with_capacity(self.root.len() + text.len());
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.into()
    }
}

/// The first key behind all that begin with a text which ends with a slash.
pub(crate) fn behind(start: &[u8]) -> Bytes {
    let mut end = start.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_is_below_it_and_no_neighbour() {
        let keys = Keys::new("prod");
        let (start, end) = keys.range(&Prefix::new("n/web1/").unwrap());
        let within = |text: &str| {
            let key = keys.key(&Key::new(text).unwrap());
            start <= key && key < end
        };
        assert!(within("n/web1/a") && within("n/web1/zz/z"));
        assert!(!within("n/web1") && !within("n/web10/a") && !within("n/web1-/a"));
        let (start, end) = keys.range(&Prefix::all());
        assert_eq!((&start[..], &end[..]), (&b"prod/"[..], &b"prod0"[..]));
        let a = Key::new("n/a").unwrap();
        let only = Prefix::only(&a);
        assert_eq!(keys.range(&only), (keys.key(&a), Bytes::new()));
        assert_eq!(keys.range_after(&only, b"prod/n/a"), None);
        assert!(keys.range_after(&only, b"prod/n/").is_some());
        assert_eq!(keys.parse(b"prod/o/a"), Some(Key::new("o/a").unwrap()));
        for foreign in [&b"prod/O A"[..], b"other/a", b"prod/\xff", b"prod/"] {
            assert_eq!(keys.parse(foreign), None);
        }
    }
}
