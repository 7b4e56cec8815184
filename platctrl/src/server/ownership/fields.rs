//! Sets of fields: which parts of an object somebody answers for.
//!
//! A set is a tree of names. A leaf is a value that has no fields: a text, a number, a list (so that
//! a list has one owner), or an object that was empty when it was said. Others may then own fields
//! of that object, so that it depends on the value what two sets have in common.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The deepest tree that is read: as deep as JSON is parsed.
const DEPTH: usize = 128;

/// Some fields of an object. At the top, no names are no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(BTreeMap<String, Fields>);

impl Fields {
    /// The fields that a value has.
    pub(super) fn of(value: &Value) -> Self {
        let fields = value.as_object().into_iter().flatten();
        Self(
            fields
                .map(|(name, value)| (name.clone(), Self::of(value)))
                .collect(),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn is_leaf(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds fields. Whoever has fields of an object has the object.
    pub(super) fn add(&mut self, more: &Self) {
        for (name, more) in &more.0 {
            match self.0.get_mut(name) {
                Some(mine) => mine.add(more),
                None => {
                    self.0.insert(name.clone(), more.clone());
                }
            }
        }
    }

    /// Takes away the fields that a change set or removed, and those below.
    pub(super) fn lose(&mut self, changed: &Self) {
        for (name, changed) in &changed.0 {
            let Some(mine) = self.0.get_mut(name) else {
                continue;
            };
            if !changed.is_leaf() {
                // Others may change fields of an object that is owned as an empty one.
                if mine.is_leaf() {
                    continue;
                }
                mine.lose(changed);
                if !mine.is_leaf() {
                    continue;
                }
            }
            self.0.remove(name);
        }
    }

    /// The paths of a change that this set has, as `.spec.replicas`.
    pub(super) fn met_by(&self, changed: &Self) -> Vec<String> {
        fn walk(mine: &Fields, changed: &Fields, path: &str, found: &mut Vec<String>) {
            for (name, changed) in &changed.0 {
                let Some(mine) = mine.0.get(name) else {
                    continue;
                };
                let path = format!("{path}.{name}");
                if changed.is_leaf() {
                    found.push(path);
                } else {
                    walk(mine, changed, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self, changed, "", &mut found);
        found
    }

    /// Takes away what others have, too.
    pub(super) fn spare(&mut self, others: &Self) {
        for (name, others) in &others.0 {
            let Some(mine) = self.0.get_mut(name) else {
                continue;
            };
            if mine.is_leaf() {
                self.0.remove(name);
                continue;
            }
            mine.spare(others);
            if mine.is_leaf() {
                self.0.remove(name);
            }
        }
    }

    /// A change with the fields below those that it set.
    pub(super) fn unfold(&self, value: &Value) -> Self {
        if self.is_leaf() {
            return Self::of(value);
        }
        let fields = self.0.iter().filter_map(|(name, below)| {
            let value = value.get(name)?;
            Some((name.clone(), below.unfold(value)))
        });
        Self(fields.collect())
    }

    /// The fields of this set that a newer configuration of the same owner has no more.
    pub(super) fn dropped_by(&self, config: &Value) -> Self {
        let Value::Object(fields) = config else {
            return Self::default();
        };
        let mut dropped = Self::default();
        for (name, mine) in &self.0 {
            let Some(value) = fields.get(name) else {
                dropped.0.insert(name.clone(), mine.clone());
                continue;
            };
            if !mine.is_leaf() {
                let below = mine.dropped_by(value);
                if !below.is_empty() {
                    dropped.0.insert(name.clone(), below);
                }
            }
        }
        dropped
    }

    /// Removes these fields from a value, and objects that are left empty by it unless somebody
    /// said that they are there.
    pub(super) fn take_from(&self, value: &mut Value, said: &Self) {
        let Value::Object(fields) = value else {
            return;
        };
        let nothing = Self::default();
        for (name, mine) in &self.0 {
            if mine.is_leaf() {
                fields.remove(name);
            } else if let Some(below) = fields.get_mut(name) {
                let said = said.0.get(name);
                mine.take_from(below, said.unwrap_or(&nothing));
                if said.is_none() && below.as_object().is_some_and(Map::is_empty) {
                    fields.remove(name);
                }
            }
        }
    }

    /// The tree as Kubernetes writes it: `{"f:spec": {"f:replicas": {}}}`.
    pub(super) fn to_json(&self) -> Value {
        let fields = self.0.iter();
        fields
            .map(|(name, below)| (format!("f:{name}"), below.to_json()))
            .collect::<Map<_, _>>()
            .into()
    }

    /// Reads what [`Fields::to_json`] and Kubernetes write. Who owns some items of a list owns it.
    pub(super) fn parse(json: &Value) -> Option<Self> {
        fn read(json: &Value, depth: usize) -> Option<Fields> {
            let mut fields = BTreeMap::new();
            for (name, below) in json.as_object()? {
                // `.` is the object itself; items of lists begin with `k:`, `v:` or `i:`.
                if let Some(name) = name.strip_prefix("f:") {
                    let below = read(below, depth.checked_sub(1)?)?;
                    fields.insert(name.to_owned(), below);
                } else if name != "." && !matches!(name.split(':').next(), Some("k" | "v" | "i")) {
                    return None;
                }
            }
            Some(Fields(fields))
        }
        read(json, DEPTH)
    }
}

/// How a value became another one. A field that is wholly new, or gone, is a leaf.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// What is new or has another value.
    pub(super) set: Fields,
    pub(super) removed: Fields,
}

/// Compares two objects field by field.
pub(super) fn difference(before: &Value, after: &Value) -> Difference {
    let mut found = Difference::default();
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return found;
    };
    for (name, new) in after {
        match before.get(name) {
            Some(old) if old == new => {}
            Some(old @ Value::Object(_)) if new.is_object() => {
                let below = difference(old, new);
                if !below.set.is_empty() {
                    found.set.0.insert(name.clone(), below.set);
                }
                if !below.removed.is_empty() {
                    found.removed.0.insert(name.clone(), below.removed);
                }
            }
            _ => {
                found.set.0.insert(name.clone(), Fields::default());
            }
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        found.removed.0.insert(name.clone(), Fields::default());
    }
    found
}

/// Makes `live` say what `config` says. Objects are merged, all else is taken whole.
pub(super) fn merge(live: &mut Value, config: &Value) {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) => {
            for (name, config) in config {
                match live.get_mut(name) {
                    Some(live) => merge(live, config),
                    None => {
                        live.insert(name.clone(), config.clone());
                    }
                }
            }
        }
        (live, config) => *live = config.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(paths: &Value) -> Fields {
        Fields::of(paths)
    }

    #[test]
    fn lists_are_owned_whole_and_objects_by_their_fields() {
        let value = json!({"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {}});
        let json = json!({"f:a": {"f:b": {}, "f:c": {}}, "f:e": {}});
        assert_eq!(Fields::of(&value).to_json(), json);
        assert_eq!(Fields::parse(&json), Some(Fields::of(&value)));
    }

    #[test]
    fn what_kubernetes_says_of_items_is_said_of_the_list() {
        let json = json!({"f:a": {".": {}, "k:{\"name\":\"x\"}": {"f:b": {}}}, "f:c": {"v:1": {}}});
        assert_eq!(
            Fields::parse(&json),
            Some(fields(&json!({"a": 1, "c": []})))
        );
        for wrong in [json!(1), json!({"a": {}}), json!({"f:a": 1})] {
            assert_eq!(Fields::parse(&wrong), None, "{wrong}");
        }
        let mut deep = json!({});
        for _ in 0..1000 {
            deep = json!({"f:a": deep});
        }
        assert_eq!(Fields::parse(&deep), None);
    }

    #[test]
    fn a_change_meets_those_who_have_what_it_changes() {
        let owner = fields(&json!({"a": {"b": 1, "c": 1}, "empty": {}}));
        let change = |paths: &Value| fields(paths);
        assert_eq!(owner.met_by(&change(&json!({"a": 1}))), [".a"]);
        assert_eq!(
            owner.met_by(&change(&json!({"a": {"c": 1, "d": 1}}))),
            [".a.c"]
        );
        // Fields of an object that was said to be empty are free to all.
        let more = change(&json!({"empty": {"x": 1}}));
        assert!(owner.met_by(&more).is_empty());
        let mut rest = owner.clone();
        rest.lose(&more);
        assert_eq!(rest, owner);
        rest.lose(&change(&json!({"a": {"b": 1}, "empty": 1})));
        assert_eq!(rest, fields(&json!({"a": {"c": 1}})));
        rest.lose(&change(&json!({"a": {"c": 1}})));
        assert!(rest.is_empty());
    }

    #[test]
    fn what_a_new_configuration_does_not_say_any_more_is_dropped() {
        let old = fields(&json!({"spec": {"env": {"A": 1, "B": 1}, "n": 1}}));
        let dropped = |config: &Value| old.dropped_by(config);
        let config = json!({"spec": {"env": {"A": 2}}});
        assert_eq!(
            dropped(&config),
            fields(&json!({"spec": {"env": {"B": 1}, "n": 1}}))
        );
        // An empty object is said, and its fields are not.
        let config = json!({"spec": {"env": {}, "n": 1}});
        assert_eq!(
            dropped(&config),
            fields(&json!({"spec": {"env": {"A": 1, "B": 1}}}))
        );
        // A value in the place of an object replaces it.
        assert!(dropped(&json!({"spec": 1})).is_empty());

        let nobody = Fields::default();
        let mut live = json!({"spec": {"env": {"A": 1, "B": 1}, "n": 1, "own": 2}});
        old.take_from(&mut live, &nobody);
        assert_eq!(live, json!({"spec": {"own": 2}}));
        let mut live = json!({"spec": {"env": {"A": 1, "B": 1}, "n": 1}});
        old.take_from(&mut live, &fields(&json!({"spec": {"env": {}}})));
        assert_eq!(live, json!({"spec": {"env": {}}}));
    }

    #[test]
    fn what_others_say_too_is_spared() {
        let mut dropped = fields(&json!({"ports": {"http": {}, "admin": {}}, "env": {"A": 1}}));
        dropped.spare(&fields(&json!({"ports": {"http": {"port": 1}}, "env": {}})));
        assert_eq!(
            dropped,
            fields(&json!({"ports": {"admin": {}}, "env": {"A": 1}}))
        );
    }

    #[test]
    fn a_difference_is_what_was_set_and_what_was_removed() {
        let before = json!({"a": 1, "b": {"c": 1, "d": {"x": 1}}, "e": [1], "same": {"x": 1}});
        let after = json!({"a": {"n": 1}, "b": {"c": 2}, "e": [2], "same": {"x": 1}, "f": {}});
        let found = difference(&before, &after);
        assert_eq!(
            found.set,
            fields(&json!({"a": 1, "b": {"c": 1}, "e": 1, "f": {}}))
        );
        assert_eq!(
            found.set.unfold(&after),
            fields(&json!({"a": {"n": 1}, "b": {"c": 1}, "e": 1, "f": {}}))
        );
        assert_eq!(found.removed, fields(&json!({"b": {"d": 1}})));
        assert_eq!(difference(&after, &after), Difference::default());
    }
}
