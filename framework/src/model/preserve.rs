//! Writing through types without losing what they do not know.

use serde_json::Value;

/// Applies the difference between `before` and `after` to `stored`, and leaves the rest of it as
/// it is.
///
/// A typed program reads `stored` into its types (which written back give `before`), changes
/// them, and writes `after`. Fields that its types do not know are in `stored` only: they stay.
/// A field that the program removed is removed. Arrays are replaced whole when they changed.
#[must_use]
pub fn preserve_unknown(stored: &Value, before: &Value, after: &Value) -> Value {
    if before == after {
        return stored.clone();
    }
    let (Value::Object(stored), Value::Object(before), Value::Object(after)) =
        (stored, before, after)
    else {
        return after.clone();
    };
    let mut merged = stored.clone();
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        merged.remove(name);
    }
    for (name, new) in after {
        let value = match (merged.get(name), before.get(name)) {
            (Some(stored), Some(old)) => preserve_unknown(stored, old, new),
            // Not in the store and unchanged: the types' default, which needs no writing.
            (None, Some(old)) if old == new => continue,
            _ => new.clone(),
        };
        merged.insert(name.clone(), value);
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_the_program_changed_changes() {
        let stored =
            json!({"replicas": 2, "future": {"x": 1}, "template": {"app": "a", "novel": true}});
        let before = json!({"replicas": 2, "template": {"app": "a"}, "paused": false});
        let after = json!({"replicas": 3, "template": {"app": "b"}, "paused": false});
        let merged = preserve_unknown(&stored, &before, &after);
        assert_eq!(
            merged,
            json!({"replicas": 3, "future": {"x": 1}, "template": {"app": "b", "novel": true}})
        );
    }

    #[test]
    fn removed_fields_go_and_changed_lists_are_replaced() {
        let stored = json!({"a": 1, "list": [{"x": 1, "unknown": 2}]});
        let merged = preserve_unknown(
            &stored,
            &json!({"a": 1, "list": [{"x": 1}]}),
            &json!({"list": [{"x": 2}]}),
        );
        assert_eq!(merged, json!({"list": [{"x": 2}]}));
    }
}
