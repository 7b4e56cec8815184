//! One step of a view, judged: what became of each intent, and whether that is more than happens
//! without an order.
//!
//! A step is one read of everything compared with what was known, or one delivery of a watch.
//! What people and controllers do through this library declares itself: a change of a spec raises
//! the generation, an end has a tombstone. What a lost disk, a script or a restored backup does,
//! does not.

use serde::Deserialize;
use serde_json::Value;

use super::limits::Limits;
use super::switch::Safeguard;
use crate::model::Uid;

/// What became of an object's intent in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is as it was, or changed by an order: a newer generation, a tombstone, other labels.
    Ordered,
    /// Its spec, or the whole object, is another one without an order, or cannot be read any more.
    Changed,
    /// It is older than it was.
    WentBack,
    /// It is gone, and nobody ordered its end.
    Vanished,
}

#[derive(Deserialize)]
struct Header {
    metadata: HeaderMetadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
struct HeaderMetadata {
    #[serde(default)]
    uid: Uid,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    deletion: Option<Tombstone>,
}

#[derive(Deserialize)]
struct Tombstone {
    uid: Uid,
}

impl Header {
    fn parse(value: &[u8]) -> Option<Self> {
        let header: Self = serde_json::from_slice(value).ok()?;
        (!header.metadata.uid.is_empty()).then_some(header)
    }

    fn is_ended(&self) -> bool {
        let tombstone = self.metadata.deletion.as_ref();
        tombstone.is_some_and(|tombstone| tombstone.uid == self.metadata.uid)
    }
}

/// Compares the last good intent record of an object with what is there now.
pub(crate) fn fate(before: &[u8], after: Option<&[u8]>) -> Fate {
    if after == Some(before) {
        return Fate::Ordered;
    }
    let Some(before) = Header::parse(before) else {
        // Nothing good was known.
        return Fate::Ordered;
    };
    let Some(after) = after else {
        return if before.is_ended() {
            Fate::Ordered
        } else {
            Fate::Vanished
        };
    };
    let Some(after) = Header::parse(after) else {
        return Fate::Changed;
    };
    if before.metadata.uid != after.metadata.uid {
        return if before.is_ended() {
            Fate::Ordered
        } else {
            Fate::Changed
        };
    }
    // An end that is taken back raises the generation, which no older record has.
    if after.metadata.generation < before.metadata.generation
        || before.is_ended()
            && !after.is_ended()
            && after.metadata.generation == before.metadata.generation
    {
        return Fate::WentBack;
    }
    if after.metadata.generation == before.metadata.generation && after.spec != before.spec {
        return Fate::Changed;
    }
    Fate::Ordered
}

/// Whether `after` is an order that came later than `before`: a newer generation of the same
/// object, or its end.
pub(crate) fn is_newer_order(before: &[u8], after: &[u8]) -> bool {
    let (Some(before), Some(after)) = (Header::parse(before), Header::parse(after)) else {
        return false;
    };
    before.metadata.uid == after.metadata.uid
        && (after.metadata.generation > before.metadata.generation
            || after.is_ended() && after.metadata.generation == before.metadata.generation)
}

/// What a step does to the objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Objects of the kind before the step.
    pub(crate) known: usize,
    pub(crate) vanished: usize,
    pub(crate) changed: usize,
    pub(crate) back: usize,
}

/// Why a step is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    Vanished,
    Changed,
    WentBack,
}

impl Alarm {
    /// What keeps it from doing harm.
    pub(crate) fn safeguard(self) -> Safeguard {
        match self {
            Self::Vanished => Safeguard::Vanished,
            Self::Changed => Safeguard::Changed,
            Self::WentBack => Safeguard::WentBack,
        }
    }
}

impl Step {
    pub(crate) fn add(&mut self, fate: Fate) {
        match fate {
            Fate::Ordered => {}
            Fate::Vanished => self.vanished += 1,
            Fate::Changed => self.changed += 1,
            Fate::WentBack => self.back += 1,
        }
    }

    /// How many objects it is about that nobody ordered anything for.
    pub(crate) fn affected(&self) -> usize {
        self.vanished + self.changed + self.back
    }
}

/// Decides whether a step may be taken as it is. In another history (`strict`) nothing that
/// nobody ordered may; else a mass may not.
pub(crate) fn judge(step: &Step, limits: &Limits, strict: bool) -> Option<Alarm> {
    let affected = step.affected();
    if affected == 0 || !(strict || limits.is_mass(affected, step.known)) {
        return None;
    }
    // A restore shows all three: going back tells it from the others.
    if step.back > 0 && step.back * 2 >= step.vanished.max(step.changed) {
        return Some(Alarm::WentBack);
    }
    Some(if step.vanished >= step.changed {
        Alarm::Vanished
    } else {
        Alarm::Changed
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn intent(uid: &str, generation: u64, pages: u32, ended: bool) -> Vec<u8> {
        let mut intent =
            json!({"metadata": {"uid": uid, "generation": generation}, "spec": {"pages": pages}});
        if ended {
            intent["metadata"]["deletion"] = json!({"uid": uid, "at": "x"});
        }
        intent.to_string().into_bytes()
    }

    #[test]
    fn orders_declare_themselves_and_nothing_else_does() {
        let before = intent("u", 3, 7, false);
        let of = |after: &[u8]| fate(&before, Some(after));
        assert_eq!(of(&before), Fate::Ordered);
        assert_eq!(of(&intent("u", 4, 1, false)), Fate::Ordered);
        assert_eq!(of(&intent("u", 3, 7, true)), Fate::Ordered);
        assert_eq!(of(&intent("u", 3, 1, false)), Fate::Changed);
        assert_eq!(of(&intent("other", 1, 7, false)), Fate::Changed);
        assert_eq!(of(b"{broken"), Fate::Changed);
        assert_eq!(of(&intent("u", 2, 7, false)), Fate::WentBack);
        assert_eq!(fate(&before, None), Fate::Vanished);
        let ended = intent("u", 3, 7, true);
        assert_eq!(fate(&ended, None), Fate::Ordered, "reaped");
        assert_eq!(
            fate(&ended, Some(&intent("other", 1, 1, false))),
            Fate::Ordered
        );
        assert_eq!(
            fate(&ended, Some(&before)),
            Fate::WentBack,
            "the tombstone is lost"
        );
        assert_eq!(
            fate(&ended, Some(&intent("u", 4, 7, false))),
            Fate::Ordered,
            "its end is taken back"
        );
        assert_eq!(fate(b"{broken", None), Fate::Ordered);
        assert!(is_newer_order(&before, &intent("u", 4, 1, false)));
        assert!(is_newer_order(&before, &ended));
        assert!(!is_newer_order(&before, &intent("u", 2, 1, true)));
        assert!(!is_newer_order(&before, &before));
    }

    #[test]
    fn the_alarm_names_what_happened_most_and_a_restore_as_one() {
        let limits = Limits::default();
        let step = |vanished, changed, back| Step {
            known: 10,
            vanished,
            changed,
            back,
        };
        let judged = |step| judge(&step, &limits, false);
        assert_eq!(judged(step(4, 0, 0)), None);
        assert_eq!(judged(step(5, 0, 0)), Some(Alarm::Vanished));
        assert_eq!(judged(step(1, 4, 0)), Some(Alarm::Changed));
        assert_eq!(judged(step(3, 0, 3)), Some(Alarm::WentBack));
        assert_eq!(judge(&step(1, 0, 0), &limits, true), Some(Alarm::Vanished));
        assert_eq!(judge(&step(0, 0, 0), &limits, true), None);
    }

    proptest! {
        #[test]
        fn what_is_held_of_some_is_held_of_more(
            known in 0usize..200, vanished in 0usize..100, changed in 0usize..100, more in 0usize..50,
        ) {
            let limits = Limits::default();
            let step = Step { known, vanished, changed, back: 0 };
            let worse = Step { vanished: vanished + more, ..step };
            prop_assert!(judge(&step, &limits, false).is_none() || judge(&worse, &limits, false).is_some());
        }

        #[test]
        fn no_record_makes_it_panic(before in any::<Vec<u8>>(), after in any::<Option<Vec<u8>>>()) {
            let _ = fate(&before, after.as_deref());
        }
    }
}
