//! Where an object's records are in the store.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::store::{Key, Prefix};

/// The most bytes a name may have.
pub const MAX_NAME_BYTES: usize = 63;

/// A name that cannot be a segment of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid {what}: {reason}")]
pub struct InvalidName {
    what: &'static str,
    name: String,
    reason: &'static str,
}

/// Checks a name (`what` says of what, for the error): `a-z`, `0-9`, `.`, `_`, `-`, beginning
/// and ending with a letter or digit, at most 63 bytes.
///
/// # Errors
/// [`InvalidName`] says what is wrong.
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let reason = match (bytes.first(), bytes.last()) {
        (None, _) | (_, None) => "it is empty",
        _ if bytes.len() > MAX_NAME_BYTES => "it is longer than 63 bytes",
        _ if !bytes
            .iter()
            .all(|&byte| plain(byte) || b"._-".contains(&byte)) =>
        {
            "only a-z, 0-9, `.`, `_` and `-` are allowed"
        }
        (Some(&first), Some(&last)) if !plain(first) || !plain(last) => {
            "it must begin and end with a letter or digit"
        }
        _ => return Ok(()),
    };
    let name = name
        .chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect();
    Err(InvalidName { what, name, reason })
}

/// Whether a segment of a store key is a name: which bytes it has is known already. Every record
/// that is read has such segments.
fn is_name_of_key(segment: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = segment.as_bytes();
    bytes.len() <= MAX_NAME_BYTES
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
}

/// How the keys of a kind are scoped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// One name space for the whole root, as nodes.
    Cluster,
    /// A name space for each namespace.
    Namespaced,
    /// As `Namespaced`, with the node that works on the object in front, so that a node's agent
    /// reads one range.
    Node,
}

/// One of the trees that an object's records are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tree {
    /// Metadata and spec.
    Intent,
    /// Status, by the one who does the work.
    Reality,
    /// Status, by further writers.
    Part,
    /// Permissions to disrupt, for agents.
    Grant,
    /// Disruptions under way, for each workload.
    Ledger,
}

impl Tree {
    /// All trees.
    pub(crate) const ALL: [Self; 5] = [
        Self::Intent,
        Self::Reality,
        Self::Part,
        Self::Grant,
        Self::Ledger,
    ];

    /// The tree's segment in keys.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Reality => "reality",
            Self::Part => "part",
            Self::Grant => "grant",
            Self::Ledger => "ledger",
        }
    }

    pub(crate) fn parse(segment: &str) -> Option<Self> {
        [
            Self::Intent,
            Self::Reality,
            Self::Part,
            Self::Grant,
            Self::Ledger,
        ]
        .into_iter()
        .find(|tree| tree.as_str() == segment)
    }
}

/// The part of a key that names a kind: its group and its plural.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupPlural {
    /// As `platctrl.dev`.
    pub group: Arc<str>,
    /// As `pods`.
    pub plural: Arc<str>,
}

impl GroupPlural {
    /// The kind of this group and plural.
    pub fn new(group: impl AsRef<str>, plural: impl AsRef<str>) -> Self {
        Self {
            group: group.as_ref().into(),
            plural: plural.as_ref().into(),
        }
    }

    /// The range of this kind's records in one tree.
    ///
    /// # Panics
    /// When group or plural are no valid key segments, which the registration of kinds refuses.
    #[must_use]
    pub fn prefix(&self, tree: Tree) -> Prefix {
        Prefix::new(format!(
            "o/{}/{}/{}/",
            tree.as_str(),
            self.group,
            self.plural
        ))
        .expect("group and plural of a registered kind are valid key segments")
    }
}

impl fmt::Display for GroupPlural {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.plural, self.group)
    }
}

impl fmt::Debug for GroupPlural {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names an object: its kind and its place in the kind's scope.
///
/// ```
/// use platctrl_framework::model::{ObjectKey, Tree};
///
/// let key = ObjectKey::on_node("platctrl.dev", "pods", "web1", "default", "hello-x2").unwrap();
/// assert_eq!(key.store_key(Tree::Intent).as_str(), "o/intent/platctrl.dev/pods/web1/default/hello-x2");
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Segments", into = "Segments")]
pub struct ObjectKey {
    kind: GroupPlural,
    /// What its keys are behind `o/<tree>/`. One text, shared by all who name the object: there
    /// are as many keys as objects, and more.
    path: Arc<str>,
    /// Bytes of the last segments; 0 for one that the scope does not have.
    node: u8,
    namespace: u8,
    name: u8,
}

/// A key as it is written.
#[derive(Serialize, Deserialize)]
struct Segments {
    kind: GroupPlural,
    node: Option<Box<str>>,
    namespace: Option<Box<str>>,
    name: Box<str>,
}

impl From<ObjectKey> for Segments {
    fn from(key: ObjectKey) -> Self {
        Self {
            node: key.node().map(Into::into),
            namespace: key.namespace().map(Into::into),
            name: key.name().into(),
            kind: key.kind,
        }
    }
}

impl TryFrom<Segments> for ObjectKey {
    type Error = InvalidName;

    fn try_from(segments: Segments) -> Result<Self, InvalidName> {
        let Segments {
            kind,
            node,
            namespace,
            name,
        } = segments;
        check_name("API group", &kind.group)?;
        check_name("kind", &kind.plural)?;
        Self::checked(kind, node.as_deref(), namespace.as_deref(), &name)
    }
}

// The path says all: names have no slash, so that as many segments are one scope.

impl PartialEq for ObjectKey {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for ObjectKey {}

impl Hash for ObjectKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}

impl PartialOrd for ObjectKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ObjectKey {
    fn cmp(&self, other: &Self) -> Ordering {
        fn parts(key: &ObjectKey) -> (&GroupPlural, Option<&str>, Option<&str>, &str) {
            (&key.kind, key.node(), key.namespace(), key.name())
        }
        parts(self).cmp(&parts(other))
    }
}

impl ObjectKey {
    /// Group and plural are checked already.
    fn checked(
        kind: GroupPlural,
        node: Option<&str>,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Self, InvalidName> {
        if let Some(node) = node {
            check_name("node name", node)?;
        }
        if let Some(namespace) = namespace {
            check_name("namespace", namespace)?;
        }
        check_name("name", name)?;
        let mut path =
            String::with_capacity(kind.group.len() + kind.plural.len() + 3 * MAX_NAME_BYTES);
        path.push_str(&kind.group);
        let segments = [Some(&*kind.plural), node, namespace, Some(name)];
        for segment in segments.into_iter().flatten() {
            path.push('/');
            path.push_str(segment);
        }
        let length = |segment: Option<&str>| segment.map_or(0, |segment| segment.len() as u8);
        Ok(Self {
            kind,
            path: path.into(),
            node: length(node),
            namespace: length(namespace),
            name: length(Some(name)),
        })
    }

    fn new(
        (group, plural): (&str, &str),
        node: Option<&str>,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Self, InvalidName> {
        check_name("API group", group)?;
        check_name("kind", plural)?;
        Self::checked(GroupPlural::new(group, plural), node, namespace, name)
    }

    /// The key of a cluster-scoped object.
    ///
    /// # Errors
    /// [`InvalidName`] for a segment that breaks [the rules](check_name); so for all makers.
    pub fn cluster(group: &str, plural: &str, name: &str) -> Result<Self, InvalidName> {
        Self::new((group, plural), None, None, name)
    }

    /// The key of a namespaced object.
    ///
    /// # Errors
    /// See [`ObjectKey::cluster`].
    pub fn namespaced(
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Self, InvalidName> {
        Self::new((group, plural), None, Some(namespace), name)
    }

    /// The key of an object that one node works on.
    ///
    /// # Errors
    /// See [`ObjectKey::cluster`].
    pub fn on_node(
        group: &str,
        plural: &str,
        node: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Self, InvalidName> {
        Self::new((group, plural), Some(node), Some(namespace), name)
    }

    /// The key of an object of this scope, from its parts.
    ///
    /// # Errors
    /// [`InvalidName`] also when the scope asks for a node or namespace that is missing.
    pub fn of_scope(
        kind: &GroupPlural,
        scope: Scope,
        node: Option<&str>,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Self, InvalidName> {
        let (node, namespace) = match scope {
            Scope::Cluster => (None, None),
            Scope::Namespaced => (None, Some(namespace.unwrap_or_default())),
            Scope::Node => (
                Some(node.unwrap_or_default()),
                Some(namespace.unwrap_or_default()),
            ),
        };
        check_name("API group", &kind.group)?;
        check_name("kind", &kind.plural)?;
        Self::checked(kind.clone(), node, namespace, name)
    }

    /// The object's kind.
    #[must_use]
    pub fn kind(&self) -> &GroupPlural {
        &self.kind
    }

    /// The segment of `length` bytes, `behind` bytes before the end.
    fn segment(&self, length: u8, behind: usize) -> Option<&str> {
        let end = self.path.len().checked_sub(behind)?;
        let begin = end.checked_sub(usize::from(length))?;
        self.path.get(begin..end).filter(|_| length > 0)
    }

    /// The node that works on the object, for kinds scoped by node.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        let behind = usize::from(self.name) + usize::from(self.namespace) + 2;
        self.segment(self.node, behind)
    }

    /// The namespace, except for cluster-scoped kinds.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.segment(self.namespace, usize::from(self.name) + 1)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.segment(self.name, 0).unwrap_or_default()
    }

    /// What all keys of the object are behind `o/<tree>/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn shared_path(&self) -> &Arc<str> {
        &self.path
    }

    fn in_tree(&self, tree: Tree) -> String {
        format!("o/{}/{}", tree.as_str(), self.path)
    }

    /// The key of the object's record in a tree. Parts have one more segment: see
    /// [`ObjectKey::part`].
    #[must_use]
    pub fn store_key(&self, tree: Tree) -> Key {
        Key::new(self.in_tree(tree)).expect("checked segments make a valid key")
    }

    /// The key of a further writer's share of the status.
    ///
    /// # Errors
    /// [`InvalidName`] when `writer` is no valid segment.
    pub fn part(&self, writer: &str) -> Result<Key, InvalidName> {
        check_name("writer", writer)?;
        Ok(Key::new(format!("{}/{writer}", self.in_tree(Tree::Part)))
            .expect("checked segments make a valid key"))
    }

    /// The range of all further writers' shares.
    #[must_use]
    pub fn parts(&self) -> Prefix {
        Prefix::new(format!("{}/", self.in_tree(Tree::Part)))
            .expect("checked segments make a valid prefix")
    }

    /// Finds tree and object in a store key. `scope` tells the scope of a kind, None for a kind
    /// that is not known; a key that fits neither its scope nor the rules is None too. The last
    /// part of the answer is the writer, for [`Tree::Part`].
    pub fn parse(
        key: &Key,
        scope: impl FnOnce(&str, &str) -> Option<Scope>,
    ) -> Option<(Tree, Self, Option<&str>)> {
        Self::parse_known(key, |group, plural| {
            let scope = scope(group, plural)?;
            check_name("API group", group).ok()?;
            check_name("kind", plural).ok()?;
            Some((GroupPlural::new(group, plural), scope))
        })
    }

    /// As [`ObjectKey::parse`], with kinds that exist already and so need no memory each time.
    pub(crate) fn parse_known(
        key: &Key,
        known: impl FnOnce(&str, &str) -> Option<(GroupPlural, Scope)>,
    ) -> Option<(Tree, Self, Option<&str>)> {
        let (tree, path) = key.as_str().strip_prefix("o/")?.split_once('/')?;
        let tree = Tree::parse(tree)?;
        let mut segments = path.split('/');
        let (kind, scope) = known(segments.next()?, segments.next()?)?;
        let (node, namespace) = match scope {
            Scope::Cluster => (None, None),
            Scope::Namespaced => (None, Some(segments.next()?)),
            Scope::Node => (Some(segments.next()?), Some(segments.next()?)),
        };
        let name = segments.next()?;
        let (path, writer) = match tree {
            Tree::Part => {
                let writer = segments.next()?;
                (path.strip_suffix(writer)?.strip_suffix('/')?, Some(writer))
            }
            _ => (path, None),
        };
        let names = [node, namespace, Some(name)].into_iter().flatten();
        if segments.next().is_some() || !names.into_iter().all(is_name_of_key) {
            return None;
        }
        let length = |segment: Option<&str>| segment.map_or(0, |segment| segment.len() as u8);
        let object = Self {
            kind,
            path: path.into(),
            node: length(node),
            namespace: length(namespace),
            name: length(Some(name)),
        };
        Some((tree, object, writer))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All of the path but the group.
        let path = self.path.get(self.kind.group.len() + 1..);
        f.write_str(path.unwrap_or_default())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scopes(_: &str, plural: &str) -> Option<Scope> {
        match plural {
            "nodes" => Some(Scope::Cluster),
            "pods" => Some(Scope::Node),
            "unknown" => None,
            _ => Some(Scope::Namespaced),
        }
    }

    fn name() -> impl Strategy<Value = String> {
        "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?"
    }

    proptest! {
        #[test]
        fn an_object_is_found_again_in_its_keys(node in name(), namespace in name(), object in name(), writer in name()) {
            let keys = [
                ObjectKey::cluster("platctrl.dev", "nodes", &object).unwrap(),
                ObjectKey::namespaced("platctrl.dev", "things", &namespace, &object).unwrap(),
                ObjectKey::on_node("platctrl.dev", "pods", &node, &namespace, &object).unwrap(),
            ];
            for key in keys {
                for tree in [Tree::Intent, Tree::Reality, Tree::Grant, Tree::Ledger] {
                    let stored = key.store_key(tree);
                    prop_assert!(stored.is_under(&key.kind().prefix(tree)));
                    prop_assert_eq!(ObjectKey::parse(&stored, scopes), Some((tree, key.clone(), None)));
                }
                let part = key.part(&writer).unwrap();
                prop_assert!(part.is_under(&key.parts()));
                let written = serde_json::to_string(&key).unwrap();
                prop_assert_eq!(&serde_json::from_str::<ObjectKey>(&written).unwrap(), &key);
                prop_assert_eq!(ObjectKey::parse(&part, scopes), Some((Tree::Part, key.clone(), Some(writer.as_str()))));
            }
        }

        #[test]
        fn any_text_is_a_checked_name_or_refused(text in ".{0,70}") {
            let valid = check_name("name", &text).is_ok();
            let fits = !text.is_empty() && text.len() <= 63
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
                && !text.starts_with(['.', '_', '-']) && !text.ends_with(['.', '_', '-']);
            prop_assert_eq!(valid, fits);
        }
    }

    #[test]
    fn keys_that_are_no_objects_are_none() {
        for text in [
            "x/anchor",
            "o/intent/platctrl.dev/pods/.anchor",
            "o/intent/platctrl.dev/pods/web1/default",
            "o/intent/platctrl.dev/pods/web1/default/a/b",
            "o/intent/platctrl.dev/nodes/a/b",
            "o/dream/platctrl.dev/nodes/a",
            "o/intent/platctrl.dev/unknown/default/a",
            "o/intent/platctrl.dev/nodes/-a",
        ] {
            assert_eq!(
                ObjectKey::parse(&Key::new(text).unwrap(), scopes),
                None,
                "{text}"
            );
        }
    }
}
