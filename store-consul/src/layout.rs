//! Where things are below the root: scopes, and the generations by which changes are found.
//!
//! Consul has no history and no watch of single changes: whoever waits for a prefix is handed
//! all of it. So every commit also touches a small tree. A key belongs to one *scope*: itself,
//! or the group of keys that share its first segments. For each scope that a commit writes to,
//! it sets `x/gen/<hh>/<scope>`, `x/gen1/<hh>` and `x/gen1/top-<h>`, where `hh` is a hash of the
//! scope and `h` its first digit; and it sets `x/gen1/now`, the *clock*, whose index is therefore
//! the revision of the newest commit. A watcher waits on the clock, and goes down from the sixteen
//! tops to what changed. How much it reads on the way hardly depends on how much there is.
//!
//! The clock's value names the scopes of its commit. That is a hint: whoever reads these along
//! need not come back for them, if the tops show that nothing else changed.
//!
//! A scope of many keys also has `<scope>/.gone`, the names deleted last, since a key that is no
//! longer there cannot tell when it went.

use std::sync::Arc;

use bytes::Bytes;
use platctrl_framework::store::{Key, Prefix};

/// Below it are the clock, the tops, one key for each bucket of scopes, and one for each lease.
pub(crate) const GENERATIONS_ABOVE: &str = "x/gen1/";
/// The revision of the newest commit is the index of this key.
pub(crate) const CLOCK: &str = "x/gen1/now";
/// What the keys of the tops begin with: one for each first digit of a bucket.
pub(crate) const TOPS: &str = "x/gen1/top-";
/// Stands for all buckets, in a transaction without room for those that it touches.
pub(crate) const MANY: &str = "x/gen1/many";
/// Below it is one key for each scope.
pub(crate) const GENERATIONS: &str = "x/gen/";
/// Which store this is (`framework::model::identity`).
pub(crate) const ANCHOR: &str = "x/anchor";

/// What the keys of leases begin with.
pub(crate) const LEASES: &str = "x/gen1/lease-";
const GONE: &str = ".gone";

/// Keys that change together as far as watchers can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scope {
    path: Arc<str>,
    /// It is the group of the keys below the path, not the key of the path.
    group: bool,
}

impl Scope {
    /// The scope that a key belongs to.
    pub(crate) fn of(key: &Key) -> Self {
        let text = key.as_str();
        let depth = depth(text);
        let cut = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'/')
            .nth(depth - 1)
            .map(|(at, _)| at);
        match cut {
            Some(at) => Self {
                path: text[..at].into(),
                group: true,
            },
            None => Self {
                path: text.into(),
                group: false,
            },
        }
    }

    /// The group that has exactly the keys of a prefix.
    pub(crate) fn of_group(prefix: &Prefix) -> Option<Self> {
        let scope = Self::of(&prefix.key("-").ok()?);
        let same = scope.group && prefix.as_str().strip_suffix('/') == Some(&*scope.path);
        same.then_some(scope)
    }

    /// What a watcher reads to know the scope's state: an exact key, or the beginning of all.
    pub(crate) fn place(&self) -> Place {
        if self.group {
            Place::Below(format!("{}/", self.path))
        } else {
            Place::Exactly(self.path.to_string())
        }
    }

    pub(crate) fn is_group(&self) -> bool {
        self.group
    }

    /// Some key of the scope can be in the prefix.
    pub(crate) fn meets(&self, prefix: &Prefix) -> bool {
        if !self.group {
            return prefix.covers(&self.path);
        }
        let begin = self.path.as_ref();
        let below = |text: &str| {
            text.strip_prefix(begin)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        // The group is `path/…`: in the prefix, or around it.
        prefix.covers(&format!("{begin}/-")) || below(prefix.as_str())
    }

    /// The key whose index is the revision of the last commit to the scope.
    pub(crate) fn generation(&self) -> String {
        format!("{GENERATIONS}{:02x}/{}", self.bucket(), self.name())
    }

    /// The scope of a generation's key; None for what was written there by somebody else.
    pub(crate) fn of_generation(key: &str) -> Option<Self> {
        let rest = key.strip_prefix(GENERATIONS)?;
        let (bucket, name) = rest.split_once('/')?;
        let found = Self::named(name)?;
        (digits(bucket, 2) == Some(found.bucket())).then_some(found)
    }

    /// What tells this scope from all others: its path, with `/-` behind it for a group.
    fn name(&self) -> String {
        let end = if self.group { "/-" } else { "" };
        format!("{}{end}", self.path)
    }

    fn named(path: &str) -> Option<Self> {
        let found = match path.strip_suffix("/-") {
            Some(group) if group.split('/').count() == depth(group) => Self {
                path: group.into(),
                group: true,
            },
            _ => Self {
                path: path.into(),
                group: false,
            },
        };
        Key::new(path).is_ok().then_some(found)
    }

    /// The one scope that all keys of a range are in, if there is one.
    pub(crate) fn around(range: &Prefix) -> Option<Self> {
        if let Some(key) = range.as_key() {
            return Some(Self::of(&key));
        }
        let below = |name: &str| Some(Self::of(&range.key(name).ok()?));
        let (one, other) = (below("a")?, below("b/c")?);
        (one == other && one.is_group()).then_some(one)
    }

    /// The bucket, shown as two hex digits.
    pub(crate) fn bucket(&self) -> u8 {
        let fnv = self
            .path
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        // The low byte alone depends on the low bits alone.
        let byte = fnv ^ (fnv >> 32);
        ((byte ^ (byte >> 16) ^ (byte >> 8)) & 0xff) as u8
    }

    /// The key that names what was deleted last; groups have one.
    pub(crate) fn gone(&self) -> Option<String> {
        self.group.then(|| format!("{}/{GONE}", self.path))
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)
    }
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Exactly(String),
    Below(String),
}

/// How many segments name a group. In `o/` the fifth is the node or namespace of most kinds and
/// the object itself of the others; elsewhere the third is the writer or the record.
fn depth(text: &str) -> usize {
    match text.split('/').next() {
        Some("o") => 5,
        // Links of the chain come and go, one a minute.
        Some("x") if text.starts_with("x/chain") => 2,
        _ => 3,
    }
}

/// So many hex digits and nothing else.
fn digits(text: &str, count: usize) -> Option<u8> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let plain = text.len() == count && text.bytes().all(hex);
    plain.then(|| u8::from_str_radix(text, 16).ok())?
}

/// The key of a bucket.
pub(crate) fn bucket_key(bucket: u8) -> String {
    format!("{GENERATIONS_ABOVE}{bucket:02x}")
}

/// The bucket of a bucket's key.
pub(crate) fn bucket_of(key: &str) -> Option<u8> {
    digits(key.strip_prefix(GENERATIONS_ABOVE)?, 2)
}

/// The top that a bucket is under.
pub(crate) fn top_over(bucket: u8) -> u8 {
    bucket >> 4
}

/// The key of a top.
pub(crate) fn top_key(top: u8) -> String {
    format!("{TOPS}{top:x}")
}

/// The top of a top's key.
pub(crate) fn top_of(key: &str) -> Option<u8> {
    digits(key.strip_prefix(TOPS)?, 1)
}

/// What the keys of a top's buckets begin with, and no others.
pub(crate) fn buckets_under(top: u8) -> String {
    format!("{GENERATIONS_ABOVE}{top:x}")
}

/// Scopes and bytes that a hint has at most.
const HINTED: usize = 8;
const HINT_BYTES: usize = 1_024;

/// What the clock says about the commit that set it: which scopes it wrote to. A list that would
/// be long is left empty.
pub(crate) fn hint<'a>(scopes: impl ExactSizeIterator<Item = &'a Scope>) -> Bytes {
    let names: Vec<String> = match scopes.len() {
        0..=HINTED => scopes.map(Scope::name).collect(),
        _ => Vec::new(),
    };
    let bytes = serde_json::to_vec(&names).expect("names are written as JSON");
    if bytes.len() > HINT_BYTES {
        return Bytes::from_static(b"[]");
    }
    bytes.into()
}

/// The scopes that a clock names. None where it says nothing of the kind: then whoever set it need
/// not know of the tops.
pub(crate) fn hinted(value: &[u8]) -> Option<Vec<Scope>> {
    let names: Vec<String> = serde_json::from_slice(value).ok()?;
    let scopes = names.iter().take(HINTED);
    Some(scopes.filter_map(|name| Scope::named(name)).collect())
}

/// The key of a lease.
pub(crate) fn lease_key(id: u64) -> String {
    format!("{LEASES}{id:08x}")
}

/// The lease of a lease's key.
pub(crate) fn lease_of(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(LEASES)?;
    u32::from_str_radix(digits, 16).ok().map(u64::from)
}

/// The key is the store's own: nobody else reads or writes it, and no list shows it.
pub(crate) fn is_own(key: &str) -> bool {
    let last = key.rsplit('/').next();
    key.starts_with(GENERATIONS_ABOVE) || key.starts_with(GENERATIONS) || last == Some(GONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        Scope::of(&Key::new(text).unwrap())
    }

    #[test]
    fn a_scope_is_a_node_or_namespace_of_a_kind() {
        for (key, path, group) in [
            (
                "o/intent/platctrl.dev/pods/web1/default/hello",
                "o/intent/platctrl.dev/pods/web1",
                true,
            ),
            (
                "o/reality/platctrl.dev/replicationcontrollers/default/hello",
                "o/reality/platctrl.dev/replicationcontrollers/default",
                true,
            ),
            (
                "o/intent/platctrl.dev/nodes/web1",
                "o/intent/platctrl.dev/nodes/web1",
                false,
            ),
            ("o/.anchor", "o/.anchor", false),
            ("x/anchor", "x/anchor", false),
            ("x/chain/17", "x/chain", true),
            ("x/beat/web1", "x/beat/web1", false),
            ("x/event/web1/007", "x/event/web1", true),
            ("a", "a", false),
        ] {
            let found = scope(key);
            assert_eq!((found.path.as_ref(), found.group), (path, group), "{key}");
            let back = Scope::of_generation(&found.generation());
            assert_eq!(back.as_ref(), Some(&found), "{key}");
        }
    }

    #[test]
    fn scopes_meet_the_prefixes_that_may_hold_their_keys() {
        let prefix = |text: &str| Prefix::new(text).unwrap();
        let pods = scope("o/intent/platctrl.dev/pods/web1/default/hello");
        for text in [
            "",
            "o/",
            "o/intent/platctrl.dev/pods/",
            "o/intent/platctrl.dev/pods/web1/",
            "o/intent/platctrl.dev/pods/web1/default/",
        ] {
            assert!(pods.meets(&prefix(text)), "{text}");
        }
        for text in [
            "x/",
            "o/reality/",
            "o/intent/platctrl.dev/pods/web10/",
            "o/intent/platctrl.dev/pods/web/",
        ] {
            assert!(!pods.meets(&prefix(text)), "{text}");
        }
        let one = Prefix::only(&Key::new("o/intent/platctrl.dev/pods/web1/default/a").unwrap());
        assert!(pods.meets(&one));
        let node = scope("o/intent/platctrl.dev/nodes/web1");
        assert!(node.meets(&prefix("o/intent/platctrl.dev/nodes/")));
        assert!(!node.meets(&prefix("o/intent/platctrl.dev/nodes/web1/")));
    }

    #[test]
    fn what_others_write_among_the_generations_is_no_scope() {
        for key in [
            "x/gen/zz/o/a",
            "x/gen/00",
            "x/gen/f0/pods-web1",
            "x/gen/00/A",
            "o/a",
        ] {
            assert_eq!(Scope::of_generation(key), None, "{key}");
        }
    }

    #[test]
    fn buckets_are_spread() {
        let buckets: std::collections::HashSet<u8> = (0..2_000)
            .map(|n| scope(&format!("o/intent/platctrl.dev/pods/node-{n:05}/default/a")).bucket())
            .collect();
        assert!(buckets.len() > 240, "{}", buckets.len());
    }

    #[test]
    fn the_stores_own_keys_are_known_by_their_names() {
        for key in ["x/gen1/now", "x/gen/00/o/a", "o/intent/a/b/c/.gone"] {
            assert!(is_own(key), "{key}");
        }
        for key in [
            "x/gender",
            "x/gen2/a",
            "o/.anchor",
            "o/a/.gone/b",
            "o/.gone1",
        ] {
            assert!(!is_own(key), "{key}");
        }
        assert_eq!(lease_of(&lease_key(77)), Some(77));
        assert_eq!(bucket_of("x/gen1/a0"), Some(0xa0));
        for key in ["x/gen1/now", "x/gen1/a", "x/gen1/top-a", "x/gen1/A0"] {
            assert_eq!(bucket_of(key), None, "{key}");
        }
        assert_eq!(bucket_of(&bucket_key(0x0c)), Some(0x0c));
        assert!(bucket_key(0xa7).starts_with(&buckets_under(top_over(0xa7))));
        assert_eq!(top_of(&top_key(top_over(0xa7))), Some(0xa));
        assert_eq!((top_of(MANY), bucket_of(MANY)), (None, None));
    }

    #[test]
    fn a_hint_names_a_few_scopes_and_is_only_believed_as_far_as_it_is_one() {
        let few: std::collections::BTreeSet<Scope> = [
            scope("o/intent/platctrl.dev/pods/web1/default/hello"),
            scope("o/intent/platctrl.dev/nodes/web1"),
        ]
        .into();
        let told = hinted(&hint(few.iter())).unwrap();
        assert_eq!(told, few.into_iter().collect::<Vec<_>>());
        let names = |count: usize, length: usize| -> Vec<Scope> {
            (0..count)
                .map(|n| scope(&format!("o/intent/a/nodes/{n}{}", "x".repeat(length))))
                .collect()
        };
        for many in [names(9, 1), names(8, 200)] {
            assert_eq!(hinted(&hint(many.iter())), Some(Vec::new()));
        }
        // What a commit without tops left, and what somebody else wrote.
        for value in [&b""[..], b"{}", b"\xff", b"[1]"] {
            assert_eq!(hinted(value), None, "{value:?}");
        }
        assert_eq!(hinted(br#"["", "A/b", "x/a"]"#).unwrap().len(), 1);
    }

    #[test]
    fn the_scope_around_a_range_is_known_only_when_it_is_one() {
        let prefix = |text: &str| Prefix::new(text).unwrap();
        for one in [
            "x/event/web1/",
            "x/chain/",
            "o/reality/platctrl.dev/pods/web1/default/",
        ] {
            assert!(Scope::around(&prefix(one)).is_some(), "{one}");
        }
        for several in ["o/", "x/", "x/event/", "o/reality/platctrl.dev/pods/", ""] {
            assert!(Scope::around(&prefix(several)).is_none(), "{several}");
        }
    }
}
