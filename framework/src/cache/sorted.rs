//! A sorted map whose clones share structure: what the states of a cache are made of.
//!
//! It is a B+ tree. A clone costs one reference count. A change copies the nodes from the root to
//! one leaf, but none that was copied since the map was last cloned, so that a batch of changes
//! copies each node once. Comparing seldom leaves a node: it holds eight bytes of each key, taken
//! from behind what all of its keys begin with.

use std::cmp::Ordering;
use std::sync::Arc;

/// A value with the text that it is found by.
pub(crate) trait Keyed: Clone {
    fn key(&self) -> &Arc<str>;
}

impl<V: Clone> Keyed for (Arc<str>, V) {
    fn key(&self) -> &Arc<str> {
        &self.0
    }
}

/// The most keys of a node.
const WIDTH: usize = 24;
/// A node with fewer is joined with its neighbour if both fit into one.
const FEW: usize = WIDTH / 4;

/// A part of each key of a node.
#[derive(Clone, Debug)]
struct Heads {
    /// What all keys begin with.
    all: Arc<[u8]>,
    len: usize,
    /// Eight bytes of each key from there on, as a number that sorts as they do.
    of: [u64; WIDTH],
}

fn head(key: &str, skip: usize) -> u64 {
    let rest = key.as_bytes().get(skip..).unwrap_or_default();
    u64::from_be_bytes(match rest.first_chunk() {
        Some(head) => *head,
        None => std::array::from_fn(|at| rest.get(at).copied().unwrap_or(0)),
    })
}

/// How many bytes two keys have in common at their beginning.
fn common(a: &str, b: &str) -> usize {
    let both = a.bytes().zip(b.bytes());
    both.take_while(|(a, b)| a == b).count()
}

impl Heads {
    fn new() -> Self {
        Self {
            all: Arc::default(),
            len: 0,
            of: [0; WIDTH],
        }
    }

    /// Of `len` keys, which are sorted.
    fn over<'k>(len: usize, key_at: impl Fn(usize) -> &'k str) -> Self {
        let mut heads = Self::new();
        heads.len = len;
        if len > 1 {
            let first = key_at(0);
            heads.all = first.as_bytes()[..common(first, key_at(len - 1))].into();
        }
        for (at, head_at) in heads.of.iter_mut().take(len).enumerate() {
            *head_at = head(key_at(at), heads.all.len());
        }
        heads
    }

    /// Where a key is, or would be.
    fn find<'k>(&self, key: &str, key_at: impl Fn(usize) -> &'k str) -> Result<usize, usize> {
        if self.len == 0 {
            return Err(0);
        }
        let skip = self.all.len();
        match key.as_bytes()[..skip.min(key.len())].cmp(&self.all) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.len),
            Ordering::Equal => {}
        }
        let heads = &self.of[..self.len];
        let wanted = head(key, skip);
        let begin = heads.partition_point(|&head| head < wanted);
        for (at, _) in (begin..).zip(heads[begin..].iter().take_while(|&&head| head == wanted)) {
            match key_at(at).cmp(key) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(at),
                Ordering::Greater => return Err(at),
            }
        }
        Err(begin
            + heads[begin..]
                .iter()
                .take_while(|&&head| head == wanted)
                .count())
    }

    /// A key was put at `at`; `key_at` knows it already.
    fn inserted<'k>(&mut self, at: usize, key_at: impl Fn(usize) -> &'k str) {
        let len = self.len + 1;
        let at_an_end = at == 0 || at == self.len;
        let begins_so = || key_at(at).as_bytes().starts_with(&self.all);
        // What lies between two begins as both do; of one key it is not known what all begin with.
        if self.len < 2 || at_an_end && !begins_so() {
            *self = Self::over(len, key_at);
            return;
        }
        self.of[self.len] = head(key_at(at), self.all.len());
        self.of[at..len].rotate_right(1);
        self.len = len;
    }

    fn removed(&mut self, at: usize) {
        self.of[at..self.len].rotate_left(1);
        self.len -= 1;
    }
}

#[derive(Clone, Debug)]
struct Leaf<V> {
    heads: Heads,
    values: Vec<V>,
}

impl<V: Keyed> Leaf<V> {
    fn new(values: Vec<V>) -> Self {
        let heads = Heads::over(values.len(), |at| values[at].key());
        Self { heads, values }
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.heads.find(key, |at| self.values[at].key())
    }

    fn insert(&mut self, at: usize, value: V) {
        if self.values.len() == self.values.capacity() {
            // At once what it can ever have, and no more.
            self.values.reserve_exact(WIDTH - self.values.len());
        }
        self.values.insert(at, value);
        self.heads.inserted(at, |at| self.values[at].key());
    }
}

/// What separates the children of a branch: the first key that each but the first can have.
/// Shared by the copies of a branch, because most changes leave it as it is.
#[derive(Clone, Debug)]
struct Separators {
    heads: Heads,
    keys: Vec<Arc<str>>,
}

impl Separators {
    fn new(keys: Vec<Arc<str>>) -> Self {
        let heads = Heads::over(keys.len(), |at| &keys[at]);
        Self { heads, keys }
    }

    /// The child that a key belongs to.
    fn child_of(&self, key: &str) -> usize {
        match self.heads.find(key, |at| &self.keys[at]) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }
}

#[derive(Clone, Debug)]
struct Branch<V> {
    separators: Arc<Separators>,
    children: Vec<Node<V>>,
}

#[derive(Clone, Debug)]
enum Node<V> {
    Leaf(Arc<Leaf<V>>),
    Branch(Arc<Branch<V>>),
}

/// What an insertion did to a node.
enum Put<V> {
    Replaced(V),
    Added,
    /// Added, and the node has a new neighbour behind it, with this first key.
    Split(Arc<str>, Node<V>),
}

impl<V: Keyed> Node<V> {
    fn leaf(values: Vec<V>) -> Self {
        Self::Leaf(Arc::new(Leaf::new(values)))
    }

    fn branch(separators: Vec<Arc<str>>, children: Vec<Self>) -> Self {
        Self::Branch(Arc::new(Branch {
            separators: Arc::new(Separators::new(separators)),
            children,
        }))
    }

    /// How many values or children it has.
    fn size(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.values.len(),
            Self::Branch(branch) => branch.children.len(),
        }
    }

    /// `last`: there is nothing behind this node.
    fn insert(&mut self, value: V, last: bool) -> Put<V> {
        match self {
            Self::Leaf(leaf) => {
                let leaf = Arc::make_mut(leaf);
                match leaf.find(value.key()) {
                    Ok(at) => Put::Replaced(std::mem::replace(&mut leaf.values[at], value)),
                    Err(at) if leaf.values.len() < WIDTH => {
                        leaf.insert(at, value);
                        Put::Added
                    }
                    Err(at) => {
                        // What is added in order fills nodes.
                        let half = if last && at == WIDTH {
                            WIDTH
                        } else {
                            WIDTH / 2
                        };
                        let mut behind = Vec::with_capacity(WIDTH);
                        behind.extend(leaf.values.drain(half..));
                        if at < half || at == half && half < WIDTH {
                            leaf.values.insert(at, value);
                        } else {
                            behind.insert(at - half, value);
                        }
                        leaf.heads = Heads::over(leaf.values.len(), |at| leaf.values[at].key());
                        Put::Split(behind[0].key().clone(), Self::leaf(behind))
                    }
                }
            }
            Self::Branch(branch) => {
                let Branch {
                    separators,
                    children,
                } = Arc::make_mut(branch);
                let at = separators.child_of(value.key());
                let last = last && at + 1 == children.len();
                let (key, node) = match children[at].insert(value, last) {
                    Put::Split(key, node) => (key, node),
                    done => return done,
                };
                let separators = Arc::make_mut(separators);
                separators.keys.insert(at, key);
                children.insert(at + 1, node);
                if separators.keys.len() <= WIDTH {
                    let keys = &separators.keys;
                    separators.heads.inserted(at, |at| &keys[at]);
                    return Put::Added;
                }
                let half = if last { WIDTH - 1 } else { WIDTH / 2 };
                let behind = separators.keys.split_off(half + 1);
                let key = separators.keys.pop().expect("half of the keys are left");
                *separators = Separators::new(std::mem::take(&mut separators.keys));
                Put::Split(key, Self::branch(behind, children.split_off(half + 1)))
            }
        }
    }

    /// Puts a value behind all others; the new neighbour behind this node, if it needs one.
    fn append(&mut self, value: V) -> Option<(Arc<str>, Self)> {
        match self {
            Self::Leaf(leaf) => {
                let at = leaf.values.len();
                if at == WIDTH {
                    let mut behind = Vec::with_capacity(WIDTH);
                    let key = value.key().clone();
                    behind.push(value);
                    return Some((key, Self::leaf(behind)));
                }
                Arc::make_mut(leaf).insert(at, value);
                None
            }
            Self::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let last = branch.children.last_mut();
                let (key, node) = last.expect("a branch has children").append(value)?;
                if branch.separators.keys.len() == WIDTH {
                    return Some((key, Self::branch(Vec::new(), vec![node])));
                }
                let separators = Arc::make_mut(&mut branch.separators);
                let at = separators.keys.len();
                separators.keys.push(key);
                let keys = &separators.keys;
                separators.heads.inserted(at, |at| &keys[at]);
                branch.children.push(node);
                None
            }
        }
    }

    fn last(&self) -> Option<&V> {
        match self {
            Self::Leaf(leaf) => leaf.values.last(),
            Self::Branch(branch) => branch.children.last()?.last(),
        }
    }

    /// Removes what is there.
    fn remove(&mut self, key: &str) -> Option<V> {
        match self {
            Self::Leaf(leaf) => {
                let leaf = Arc::make_mut(leaf);
                let at = leaf.find(key).ok()?;
                leaf.heads.removed(at);
                Some(leaf.values.remove(at))
            }
            Self::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let at = branch.separators.child_of(key);
                let removed = branch.children[at].remove(key)?;
                let size = branch.children[at].size();
                if size == 0 {
                    branch.children.remove(at);
                    branch.forget(at.saturating_sub(1));
                } else if size < FEW && branch.children.len() > 1 {
                    // The one behind it or, for the last, the one before.
                    branch.join(at.min(branch.children.len() - 2));
                }
                Some(removed)
            }
        }
    }
}

impl<V: Keyed> Branch<V> {
    /// Two children do not have to be told apart any more.
    fn forget(&mut self, at: usize) -> Option<Arc<str>> {
        if at >= self.separators.keys.len() {
            return None;
        }
        let separators = Arc::make_mut(&mut self.separators);
        separators.heads.removed(at);
        Some(separators.keys.remove(at))
    }

    /// Makes one child of this one and the next, if they fit.
    fn join(&mut self, at: usize) {
        let [one, other] = &self.children[at..at + 2] else {
            return;
        };
        if one.size() + other.size() > WIDTH {
            return;
        }
        let joined = match (one, other) {
            (Node::Leaf(one), Node::Leaf(other)) => {
                let mut values = Vec::with_capacity(WIDTH);
                values.extend(one.values.iter().chain(&other.values).cloned());
                Node::leaf(values)
            }
            (Node::Branch(one), Node::Branch(other)) => {
                let between = &self.separators.keys[at];
                let (before, behind) = (&one.separators.keys, &other.separators.keys);
                let keys = before.iter().chain([between]).chain(behind);
                let children = one.children.iter().chain(&other.children);
                Node::branch(keys.cloned().collect(), children.cloned().collect())
            }
            // All leaves are equally far from the root.
            _ => return,
        };
        self.children[at] = joined;
        self.children.remove(at + 1);
        self.forget(at);
    }
}

/// Values sorted by their keys. Clones share structure.
#[derive(Clone, Debug)]
pub(crate) struct Sorted<V> {
    root: Node<V>,
    len: usize,
}

impl<V: Keyed> Default for Sorted<V> {
    fn default() -> Self {
        Self {
            root: Node::leaf(Vec::new()),
            len: 0,
        }
    }
}

impl<V: Keyed> Sorted<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.values.get(leaf.find(key).ok()?),
                Node::Branch(branch) => {
                    node = &branch.children[branch.separators.child_of(key)];
                }
            }
        }
    }

    /// Puts a value in the place of the one that has its key, which is returned.
    pub(crate) fn insert(&mut self, value: V) -> Option<V> {
        match self.root.insert(value, true) {
            Put::Replaced(old) => return Some(old),
            Put::Added => {}
            Put::Split(key, behind) => {
                let before = std::mem::replace(&mut self.root, Node::leaf(Vec::new()));
                self.root = Node::branch(vec![key], vec![before, behind]);
            }
        }
        self.len += 1;
        None
    }

    /// A key that is behind all others.
    pub(crate) fn is_behind(&self, key: &str) -> bool {
        self.root.last().is_none_or(|last| **last.key() < *key)
    }

    /// Puts a value behind all others, for much less than [`Sorted::insert`]: nothing is looked
    /// for. One that belongs elsewhere is put there.
    pub(crate) fn append(&mut self, value: V) {
        if !self.is_behind(value.key()) {
            self.insert(value);
            return;
        }
        if let Some((key, behind)) = self.root.append(value) {
            let before = std::mem::replace(&mut self.root, Node::leaf(Vec::new()));
            self.root = Node::branch(vec![key], vec![before, behind]);
        }
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        // So that what is not there copies nothing.
        self.get(key)?;
        let removed = self.root.remove(key)?;
        self.len -= 1;
        while let Node::Branch(branch) = &self.root
            && let [only] = &*branch.children
        {
            let only = only.clone();
            self.root = only;
        }
        Some(removed)
    }

    /// All values, in the order of their keys.
    pub(crate) fn iter(&self) -> Iter<'_, V> {
        self.from("")
    }

    /// Those from a key on.
    fn from(&self, key: &str) -> Iter<'_, V> {
        let (mut above, mut node) = (Vec::new(), &self.root);
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let (Ok(at) | Err(at)) = leaf.find(key);
                    let values = leaf.values[at..].iter();
                    return Iter { above, values };
                }
                Node::Branch(branch) => {
                    let at = branch.separators.child_of(key);
                    above.push(branch.children[at + 1..].iter());
                    node = &branch.children[at];
                }
            }
        }
    }

    /// Those whose keys begin with `prefix`.
    pub(crate) fn below<'t, 'p>(&'t self, prefix: &'p str) -> impl Iterator<Item = &'t V>
    where
        V: 'p,
    {
        let from = self.from(prefix);
        from.take_while(move |value| value.key().starts_with(prefix))
    }
}

/// Values in the order of their keys.
#[derive(Debug)]
pub(crate) struct Iter<'t, V> {
    /// What is left of the nodes above.
    above: Vec<std::slice::Iter<'t, Node<V>>>,
    values: std::slice::Iter<'t, V>,
}

impl<'t, V> Iterator for Iter<'t, V> {
    type Item = &'t V;

    fn next(&mut self) -> Option<&'t V> {
        loop {
            if let Some(value) = self.values.next() {
                return Some(value);
            }
            match self.above.last_mut()?.next() {
                None => {
                    self.above.pop();
                }
                Some(Node::Leaf(leaf)) => self.values = leaf.values.iter(),
                Some(Node::Branch(branch)) => self.above.push(branch.children.iter()),
            }
        }
    }
}

mod difference;
#[cfg(test)]
mod tests;
