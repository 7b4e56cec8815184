//! How long what is done for an object follows from an order, also for whoever takes over.
//!
//! A newer generation of an object declares what is taken away for it, for as long as that goes
//! on. The process that saw the order remembers it; with each thing that it takes away it writes
//! so into the object's own report ([`Declared`]), where the next process finds it.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{Declared, Reality, Versioned};

/// How long ago something was last taken away for an order of this generation, if that is less
/// than `lasts`. A clock that is ahead of the one that wrote it makes it older, one that is behind
/// makes it new, and one that is far behind is not believed.
pub(super) fn recalled(
    own: &Versioned<Reality>,
    generation: u64,
    now: Timestamp,
    lasts: Duration,
) -> Option<Duration> {
    let Declared { generation: of, at } = own.value.metadata.declared?;
    let passed = now.duration_since(at);
    let ago = if passed.is_negative() {
        (passed.unsigned_abs() < lasts).then_some(Duration::ZERO)?
    } else {
        passed.unsigned_abs()
    };
    (of == generation && ago < lasts).then_some(ago)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Revision;

    #[test]
    fn an_order_is_remembered_for_its_generation_and_for_a_while() {
        let reality = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {
            "name": "n", "declared": {"generation": 3, "at": "2026-01-01T00:10:00Z"},
        }});
        let own = Versioned {
            value: serde_json::from_value(reality).unwrap(),
            created: Revision::ZERO,
            modified: Revision::ZERO,
        };
        let at = |generation, now: &str| {
            let lasts = Duration::from_secs(600);
            recalled(&own, generation, now.parse().unwrap(), lasts).map(|ago| ago.as_secs())
        };
        assert_eq!(at(3, "2026-01-01T00:14:00Z"), Some(240));
        assert_eq!(at(3, "2026-01-01T00:20:00Z"), None, "too long ago");
        assert_eq!(at(4, "2026-01-01T00:14:00Z"), None, "another order");
        assert_eq!(
            at(3, "2026-01-01T00:09:00Z"),
            Some(0),
            "a clock that is behind"
        );
        assert_eq!(at(3, "2025-01-01T00:00:00Z"), None, "... by a year");
    }
}
