use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

type Pairs = Sorted<(Arc<str>, u32)>;

/// All leaves are equally deep, no node is too wide, and every key is where it is looked for.
fn check(node: &Node<(Arc<str>, u32)>, is_root: bool) -> (usize, usize) {
    let heads = |heads: &Heads, keys: &[&str]| {
        assert_eq!(heads.len, keys.len());
        assert!(keys.is_sorted() && keys.len() <= WIDTH);
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(heads.of[at], head(key, heads.all.len()));
            assert!(key.as_bytes().starts_with(&heads.all));
            assert_eq!(heads.find(key, |at| keys[at]), Ok(at));
        }
    };
    match node {
        Node::Leaf(leaf) => {
            assert!(is_root || !leaf.values.is_empty());
            let keys: Vec<&str> = leaf.values.iter().map(|value| &*value.0).collect();
            heads(&leaf.heads, &keys);
            (1, keys.len())
        }
        Node::Branch(branch) => {
            let keys: Vec<&str> = branch.separators.keys.iter().map(|key| &**key).collect();
            heads(&branch.separators.heads, &keys);
            assert_eq!(branch.children.len(), keys.len() + 1);
            assert!(!is_root || branch.children.len() > 1);
            let parts: Vec<_> = branch
                .children
                .iter()
                .map(|child| check(child, false))
                .collect();
            assert!(parts.iter().all(|part| part.0 == parts[0].0));
            (parts[0].0 + 1, parts.iter().map(|part| part.1).sum())
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(String),
    Remove(String),
    /// So many in a row, in order.
    Fill(u8, u16),
    /// All that begin with this.
    Clear(String),
    Hold,
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab\0]{0,3}",
        "kind/(d|default)/[ab]{0,9}[0-9]{0,2}",
        (0..400u16).prop_map(|number| format!("kind/default/{number:05}")),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => name().prop_map(Step::Insert),
        10 => name().prop_map(Step::Remove),
        1 => (0..4u8, 0..400u16).prop_map(|(kind, count)| Step::Fill(kind, count)),
        1 => "(kind/|kind/default/000?|a|)".prop_map(Step::Clear),
        2 => Just(Step::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn it_holds_what_a_map_would_and_what_was_cloned_does_not_change(steps in prop::collection::vec(step(), 0..80)) {
        let (mut tree, mut model) = (Pairs::default(), BTreeMap::<String, u32>::new());
        let mut held: Vec<(Pairs, BTreeMap<String, u32>)> = Vec::new();
        for (number, step) in (0u32..).zip(steps) {
            match step {
                Step::Insert(key) => {
                    let old = tree.insert((key.as_str().into(), number));
                    prop_assert_eq!(old.map(|old| old.1), model.insert(key, number));
                }
                Step::Remove(key) => {
                    prop_assert_eq!(tree.remove(&key).map(|old| old.1), model.remove(&key));
                }
                Step::Fill(kind, count) => for at in 0..count {
                    let key = format!("kind/{kind}/{at:05}");
                    if count % 2 == 0 {
                        tree.append((key.as_str().into(), number));
                    } else {
                        tree.insert((key.as_str().into(), number));
                    }
                    model.insert(key, number);
                },
                Step::Clear(prefix) => {
                    let keys: Vec<_> = tree.below(&prefix).map(|value| value.0.clone()).collect();
                    let known = model.keys().filter(|key| key.starts_with(&prefix));
                    prop_assert_eq!(keys.iter().map(|key| &**key).collect::<Vec<_>>(), known.collect::<Vec<_>>());
                    for key in keys {
                        tree.remove(&key);
                    }
                    model.retain(|key, _| !key.starts_with(&prefix));
                }
                Step::Hold => held.push((tree.clone(), model.clone())),
            }
            let (_, values) = check(&tree.root, true);
            prop_assert_eq!((tree.len(), values), (model.len(), model.len()));
        }
        held.push((tree, model));
        for pair in held.windows(2) {
            let [(tree, model), (later, later_model)] = pair else { unreachable!() };
            let mut found = Vec::new();
            later.differences(tree, |one, other| one == other, |(was, is)| {
                found.push((was.map(|it| it.1), is.map(|it| it.1)));
            });
            let keys: BTreeSet<_> = model.keys().chain(later_model.keys()).collect();
            let pairs = keys.iter().map(|&key| (model.get(key).copied(), later_model.get(key).copied()));
            prop_assert_eq!(found, pairs.filter(|(was, is)| was != is).collect::<Vec<_>>());
        }
        for (tree, model) in held {
            let all: Vec<_> = tree.iter().map(|(key, value)| (&**key, *value)).collect();
            prop_assert_eq!(all, model.iter().map(|(key, value)| (key.as_str(), *value)).collect::<Vec<_>>());
            for key in model.keys() {
                prop_assert_eq!(tree.get(key).map(|value| value.1), model.get(key).copied());
            }
            prop_assert_eq!(tree.get("kind/default/none").map(|value| value.1), None);
        }
    }
}

#[test]
fn what_the_keys_before_began_with_is_forgotten_with_the_last_of_them() {
    let mut tree = Pairs::default();
    for key in ["ab1", "ab2"] {
        tree.insert((key.into(), 0));
    }
    for key in ["ab1", "ab2"] {
        tree.remove(key);
    }
    // As long as what they began with, and something else.
    tree.insert(("xy".into(), 1));
    check(&tree.root, true);
    assert_eq!(tree.get("xy").map(|value| value.1), Some(1));
}

#[test]
fn what_comes_in_order_fills_its_nodes() {
    let mut tree = Pairs::default();
    for number in 0..10_000 {
        tree.insert((format!("kind/default/{number:05}").into(), number));
    }
    fn leaves(node: &Node<(Arc<str>, u32)>) -> usize {
        match node {
            Node::Leaf(_) => 1,
            Node::Branch(branch) => branch.children.iter().map(leaves).sum(),
        }
    }
    assert_eq!(leaves(&tree.root), 10_000usize.div_ceil(WIDTH));
}

#[test]
fn a_batch_copies_each_node_once() {
    let mut tree = Pairs::default();
    for number in 0..10_000 {
        tree.insert((format!("kind/default/{number:05}").into(), number));
    }
    let held = tree.clone();
    let first = |tree: &Pairs| match &tree.root {
        Node::Branch(root) => Arc::as_ptr(root),
        Node::Leaf(_) => panic!("ten thousand values are no leaf"),
    };
    tree.insert(("kind/default/00001".into(), 0));
    let copied = first(&tree);
    assert_ne!(copied, first(&held));
    tree.insert(("kind/default/00002".into(), 0));
    assert_eq!(copied, first(&tree));
    assert_eq!(held.get("kind/default/00001").unwrap().1, 1);
}

#[test]
fn a_difference_costs_what_is_different() {
    let mut tree = Pairs::default();
    for number in 0..100_000 {
        tree.append((format!("kind/default/{number:06}").into(), number));
    }
    let held = tree.clone();
    for number in [0, 5_000, 99_999] {
        tree.insert((format!("kind/default/{number:06}").into(), 1));
    }
    tree.remove("kind/default/070000");
    tree.insert(("kind/default/0700001".into(), 2));
    let looked = std::cell::Cell::new(0);
    let mut found = Vec::new();
    let same = |one: &(Arc<str>, u32), other: &(Arc<str>, u32)| {
        looked.set(looked.get() + 1);
        one == other
    };
    tree.differences(&held, same, |(was, is)| {
        found.push((was.map(|it| it.1), is.map(|it| it.1)));
    });
    let one = |was, is| (Some(was), Some(is));
    let (gone, new) = ((Some(70_000), None), (None, Some(2)));
    assert_eq!(found, [one(0, 1), one(5_000, 1), gone, new, one(99_999, 1)]);
    assert!(looked.get() < 10 * WIDTH, "{} were looked at", looked.get());
}
