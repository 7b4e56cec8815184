//! What a transaction takes away: the objects it ends, replaces or restarts.

use serde::Deserialize;
use serde_json::Value;

use crate::cache::View;
use crate::model::{Kinds, ObjectKey, Tree, Uid};
use crate::store::{Transaction, Write};

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Remove,
    Replace,
    Restart,
}

#[derive(Deserialize)]
struct Intent {
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: Uid,
    #[serde(default)]
    deletion: Option<serde::de::IgnoredAny>,
}

/// What replacing one intent record by another does; None when it takes nothing away.
fn effect(before: &[u8], after: &[u8]) -> Option<Effect> {
    let (Ok(before), Ok(after)) = (
        serde_json::from_slice::<Intent>(before),
        serde_json::from_slice::<Intent>(after),
    ) else {
        // What it was or is to be cannot be told.
        return Some(Effect::Replace);
    };
    if before.metadata.deletion.is_some() {
        // It ends already.
        return None;
    }
    if after.metadata.deletion.is_some() {
        return Some(Effect::Remove);
    }
    let another = before.metadata.uid != after.metadata.uid || before.spec != after.spec;
    another.then_some(Effect::Replace)
}

/// The objects that a transaction takes something away from, as `view` shows them. The object
/// that is reconciled (`own`) may be changed by its controller: that replaces nothing.
pub(crate) fn taken_away(
    transaction: &Transaction,
    view: &View,
    kinds: &Kinds,
    own: &ObjectKey,
) -> Vec<ObjectKey> {
    let mut victims = Vec::new();
    for write in &transaction.writes {
        let text = write.key().as_str();
        if !(text.starts_with("o/intent/") || text.starts_with("o/grant/")) {
            continue;
        }
        let scope = |group: &str, plural: &str| kinds.scope(group, plural);
        let Some((tree, key, _)) = ObjectKey::parse(write.key(), scope) else {
            continue;
        };
        let effect = match (tree, write) {
            (Tree::Intent, Write::Put { value, .. }) => {
                let before = view.record(&key, Tree::Intent);
                before.and_then(|(before, _)| effect(&before, value))
            }
            (Tree::Intent, Write::Delete { .. }) => {
                let before = view.record(&key, Tree::Intent);
                before.map(|_| Effect::Remove)
            }
            (Tree::Grant, Write::Put { .. }) => Some(Effect::Restart),
            _ => None,
        };
        let Some(effect) = effect else {
            continue;
        };
        if !(effect == Effect::Replace && key == *own) {
            victims.push(key);
        }
    }
    victims
}

/// The objects that get a tombstone in a transaction.
pub(crate) fn ends(transaction: &Transaction) -> impl Iterator<Item = Uid> {
    transaction.writes.iter().filter_map(|write| match write {
        Write::Put { key, value, .. } if key.as_str().starts_with("o/intent/") => {
            let intent = serde_json::from_slice::<Intent>(value).ok()?;
            intent.metadata.deletion?;
            Some(intent.metadata.uid)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_owners_take_nothing_away() {
        let intent = |metadata: Value, pages: u32| {
            let record = json!({"metadata": metadata, "spec": {"pages": pages}});
            record.to_string().into_bytes()
        };
        let before = intent(json!({"uid": "u"}), 1);
        let of = |after: &[u8]| effect(&before, after);
        assert_eq!(
            of(&intent(json!({"uid": "u", "labels": {"a": "b"}}), 1)),
            None
        );
        assert_eq!(of(&intent(json!({"uid": "u"}), 2)), Some(Effect::Replace));
        assert_eq!(of(&intent(json!({"uid": "v"}), 1)), Some(Effect::Replace));
        let ended = intent(json!({"uid": "u", "deletion": {"uid": "u"}}), 1);
        assert_eq!(of(&ended), Some(Effect::Remove));
        assert_eq!(effect(&ended, &ended), None);
        assert_eq!(of(b"{"), Some(Effect::Replace));
    }
}
