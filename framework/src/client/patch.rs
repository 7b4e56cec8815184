//! Patches: changes of an object that say only what is different.
//!
//! Merge patches (RFC 7386) and JSON patches (RFC 6902). There are no strategic merge patches:
//! what they do to a list depends on a kind's Go types, and applying a manifest does what they
//! are used for. A patch may come from anybody, so what it may cost is bounded.

use json_patch::PatchOperation;
use serde_json::{Map, Value};

/// The most operations of a JSON patch.
const MAX_OPERATIONS: usize = 1_000;
/// What a JSON patch may copy and move, roughly in bytes: enough for any object several times.
const MAX_MOVED: usize = 4 << 20;
/// How deep what a patch makes may nest; text that nests deeper is not read as JSON either.
const MAX_DEPTH: usize = 128;

/// A change of an object: see [`Patch::merge`] and [`Patch::json`].
#[derive(Clone, Debug, PartialEq)]
pub struct Patch(Form);

#[derive(Clone, Debug, PartialEq)]
enum Form {
    Merge(Value),
    Json(Vec<PatchOperation>),
}

/// Why a patch cannot be read or does not fit what it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// It is no patch.
    #[error("this is no JSON patch: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// An operation cannot be done, or a test does not hold.
    #[error("operation {operation} of the JSON patch, at `{path}`, fails: {reason}")]
    Failed {
        /// Which one, counted from 0.
        operation: usize,
        /// What it is about.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// It would make too much.
    #[error("operation {operation} of the JSON patch makes too much: it {limit}")]
    TooMuch {
        /// Which one, counted from 0.
        operation: usize,
        /// The limit that is exceeded.
        limit: String,
    },
}

impl Patch {
    /// A merge patch: fields are set, those that are null are removed, lists are replaced.
    ///
    /// ```
    /// use platctrl_framework::client::Patch;
    /// use serde_json::json;
    ///
    /// let patch = Patch::merge(json!({"spec": {"replicas": 3, "paused": null}}));
    /// let object = json!({"spec": {"replicas": 2, "paused": true, "app": "a"}});
    /// assert_eq!(patch.apply(&object).unwrap(), json!({"spec": {"replicas": 3, "app": "a"}}));
    /// ```
    #[must_use]
    pub fn merge(patch: Value) -> Self {
        Self(Form::Merge(patch))
    }

    /// A JSON patch: operations that happen all or not at all.
    ///
    /// ```
    /// use platctrl_framework::client::Patch;
    /// use serde_json::json;
    ///
    /// let patch = Patch::json(json!([
    ///     {"op": "test", "path": "/spec/replicas", "value": 2},
    ///     {"op": "replace", "path": "/spec/replicas", "value": 3},
    /// ])).unwrap();
    /// assert_eq!(patch.apply(&json!({"spec": {"replicas": 2}})).unwrap(), json!({"spec": {"replicas": 3}}));
    /// assert!(patch.apply(&json!({"spec": {"replicas": 5}})).is_err());
    /// ```
    ///
    /// # Errors
    /// [`PatchError::Malformed`] when it is no list of operations, or a list of more than 1,000.
    pub fn json(patch: Value) -> Result<Self, PatchError> {
        let malformed = |reason: String| PatchError::Malformed { reason };
        if let Value::Array(operations) = &patch
            && operations.len() > MAX_OPERATIONS
        {
            let count = operations.len();
            return Err(malformed(format!(
                "it has {count} operations; at most {MAX_OPERATIONS} are taken"
            )));
        }
        let operations: Vec<PatchOperation> =
            serde_json::from_value(patch).map_err(|error| malformed(error.to_string()))?;
        Ok(Self(Form::Json(operations)))
    }

    /// What becomes of a document. It is not changed itself.
    ///
    /// # Errors
    /// `Failed` when an operation of a JSON patch cannot be done; `TooMuch` when it copies or
    /// moves more than 4 MiB, or nests deeper than 128 levels.
    pub fn apply(&self, document: &Value) -> Result<Value, PatchError> {
        let mut document = document.clone();
        match &self.0 {
            Form::Merge(patch) => merge(&mut document, patch),
            Form::Json(operations) => {
                let mut moved = 0;
                for (at, operation) in operations.iter().enumerate() {
                    moved += check_cost(&document, at, operation, moved)?;
                    // The document is a copy, so a failure has nothing to take back.
                    let only = std::slice::from_ref(operation);
                    json_patch::patch_unsafe(&mut document, only).map_err(|error| {
                        PatchError::Failed {
                            operation: at,
                            path: error.path.to_string(),
                            reason: error.kind.to_string(),
                        }
                    })?;
                }
            }
        }
        Ok(document)
    }

    /// The patch gives `metadata.<field>` a value.
    pub(super) fn names(&self, field: &str) -> bool {
        let path = format!("/metadata/{field}");
        match &self.0 {
            Form::Merge(patch) => patch.pointer(&path).is_some_and(|value| !value.is_null()),
            Form::Json(operations) => operations.iter().any(|operation| match operation {
                PatchOperation::Remove(_) => false,
                other => other.path().as_str() == path,
            }),
        }
    }
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// What an operation copies or moves; an error if that is too much, or would nest too deep.
fn check_cost(
    document: &Value,
    at: usize,
    operation: &PatchOperation,
    moved: usize,
) -> Result<usize, PatchError> {
    let (value, path, counts) = match operation {
        PatchOperation::Add(add) => (Some(&add.value), &add.path, false),
        PatchOperation::Replace(replace) => (Some(&replace.value), &replace.path, false),
        PatchOperation::Copy(copy) => (document.pointer(copy.from.as_str()), &copy.path, true),
        PatchOperation::Move(from) => (document.pointer(from.from.as_str()), &from.path, true),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(0),
    };
    // What is not there is an error when it is done.
    let Some(value) = value else { return Ok(0) };
    let too_much = |limit: String| PatchError::TooMuch {
        operation: at,
        limit,
    };
    let levels = path.as_str().matches('/').count();
    let size = MAX_DEPTH
        .checked_sub(levels)
        .and_then(|rest| size_within(value, rest))
        .ok_or_else(|| too_much(format!("nests deeper than {MAX_DEPTH} levels")))?;
    let size = if counts { size } else { 0 };
    if moved + size > MAX_MOVED {
        return Err(too_much(format!(
            "copies and moves more than {MAX_MOVED} bytes"
        )));
    }
    Ok(size)
}

/// Roughly the bytes of a value; None if it nests deeper than `levels`.
fn size_within(value: &Value, levels: usize) -> Option<usize> {
    let below = |value: &Value| size_within(value, levels.checked_sub(1)?);
    Some(match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => 8 + text.len(),
        Value::Array(items) => items
            .iter()
            .try_fold(8, |sum, item| Some(sum + below(item)?))?,
        Value::Object(fields) => fields.iter().try_fold(8, |sum, (name, field)| {
            Some(sum + name.len() + below(field)?)
        })?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn json_patch(operations: Value) -> Patch {
        Patch::json(operations).unwrap()
    }

    #[test]
    fn merge_patches_do_what_their_standard_says() {
        // The examples of RFC 7386.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), Value::Null, Value::Null),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let merged = Patch::merge(patch.clone()).apply(&target).unwrap();
            assert_eq!(merged, result, "{target} with {patch}");
        }
    }

    #[test]
    fn json_patches_do_what_their_standard_says() {
        // After the appendix of RFC 6902.
        for (target, patch, result) in [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "qux"}]),
                json!({"baz": "qux", "foo": "bar"}),
            ),
            (
                json!({"foo": ["bar", "baz"]}),
                json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
                json!({"foo": ["bar", "qux", "baz"]}),
            ),
            (
                json!({"foo": ["bar"]}),
                json!([{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]),
                json!({"foo": ["bar", ["abc", "def"]]}),
            ),
            (
                json!({"foo": ["bar", "qux", "baz"]}),
                json!([{"op": "remove", "path": "/foo/1"}]),
                json!({"foo": ["bar", "baz"]}),
            ),
            (
                json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {}}),
                json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
                json!({"foo": {"bar": "baz"}, "qux": {"thud": "fred"}}),
            ),
            (
                json!({"foo": ["all", "grass", "cows", "eat"]}),
                json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
                json!({"foo": ["all", "cows", "eat", "grass"]}),
            ),
            (
                json!({"a/b": 1, "m~n": 2}),
                json!([{"op": "copy", "from": "/a~1b", "path": "/m~0n"}]),
                json!({"a/b": 1, "m~n": 1}),
            ),
            (
                json!({"foo": null}),
                json!([{"op": "replace", "path": "/foo", "value": "x"}, {"op": "test", "path": "/foo", "value": "x"}]),
                json!({"foo": "x"}),
            ),
        ] {
            assert_eq!(
                json_patch(patch.clone()).apply(&target),
                Ok(result),
                "{patch}"
            );
        }
    }

    #[test]
    fn what_cannot_be_done_is_named_with_its_operation() {
        let document = json!({"foo": ["bar"], "n": 1});
        for (operation, reason) in [
            (json!({"op": "remove", "path": "/none"}), "path is invalid"),
            (
                json!({"op": "add", "path": "/none/x", "value": 1}),
                "path is invalid",
            ),
            (
                json!({"op": "add", "path": "/foo/5", "value": 1}),
                "path is invalid",
            ),
            (
                json!({"op": "add", "path": "/foo/01", "value": 1}),
                "path is invalid",
            ),
            (json!({"op": "remove", "path": "/foo/-"}), "path is invalid"),
            (json!({"op": "remove", "path": ""}), "path is invalid"),
            (
                json!({"op": "test", "path": "/n", "value": 2}),
                "did not match",
            ),
            (
                json!({"op": "copy", "from": "/x", "path": "/y"}),
                "\"from\" path",
            ),
            (
                json!({"op": "move", "from": "/foo", "path": "/foo/0"}),
                "inside itself",
            ),
        ] {
            let patch = json!([{"op": "test", "path": "/n", "value": 1}, operation]);
            let error = json_patch(patch).apply(&document).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("operation 1") && text.contains(reason),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for patch in [
            json!({}),
            json!("add"),
            json!([{"op": "add", "path": "/a"}]),
            json!([{"op": "destroy", "path": "/a"}]),
            json!([{"op": "remove", "path": "a"}]),
            json!([{"op": "remove", "path": "/~2"}]),
            json!(vec![json!({"op": "remove", "path": "/a"}); 1_001]),
        ] {
            let error = Patch::json(patch.clone()).unwrap_err();
            assert!(
                matches!(error, PatchError::Malformed { .. }),
                "{patch}: {error}"
            );
        }
    }

    #[test]
    fn a_patch_that_doubles_what_it_copies_is_stopped() {
        let copies = |from: &str, path: &str| json!({"op": "copy", "from": from, "path": path});
        let wide = vec![copies("/a", "/a/-"); 900];
        let error = json_patch(json!(wide))
            .apply(&json!({"a": ["x"]}))
            .unwrap_err();
        assert!(matches!(error, PatchError::TooMuch { .. }), "{error}");
        let deep = vec![copies("", "/a"); 900];
        let error = json_patch(json!(deep)).apply(&json!({"a": 1})).unwrap_err();
        assert!(matches!(error, PatchError::TooMuch { .. }), "{error}");
        let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
        let add = |path: &str| json!({"op": "add", "path": path, "value": nested});
        let error = json_patch(json!([add("/a"), add(&format!("/a{}/-", "/0".repeat(99)))]));
        let error = error.apply(&json!({})).unwrap_err();
        assert!(matches!(error, PatchError::TooMuch { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_patch_makes_applying_it_panic(
            steps in prop::collection::vec((0..6_usize, "(/[ab0-2~-]{0,2}){0,3}", "(/[ab0-1]){0,2}"), 0..12),
        ) {
            let names = ["add", "remove", "replace", "move", "copy", "test"];
            let operation = |(op, path, from): (usize, String, String)| {
                json!({"op": names[op], "path": path, "from": from, "value": {"a": [1]}})
            };
            let operations: Vec<Value> = steps.into_iter().map(operation).collect();
            if let Ok(patch) = Patch::json(json!(operations)) {
                let _ = patch.apply(&json!({"a": [1, {"b": 2}], "b": {"a": "x"}}));
            }
        }
    }
}
