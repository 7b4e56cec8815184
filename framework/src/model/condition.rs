//! Conditions: what is so about an object, since when, and why.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One observation about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// One word in camel case for programs.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// When `status` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_transition_time: Option<Timestamp>,
    /// The generation of the spec that this was seen for.
    #[serde(default)]
    pub observed_generation: u64,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows, or the last report is about something else.
    Unknown,
}

impl Condition {
    /// A condition without its time and generation, which [`Conditions::set`] adds.
    pub fn new(
        kind: impl Into<String>,
        status: ConditionStatus,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind: kind.into(),
            status,
            reason: reason.into(),
            message: message.into(),
            last_transition_time: None,
            observed_generation: 0,
        }
    }
}

/// An object's conditions, at most one of each type, in the order they were first set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// The condition of this type.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.kind == kind)
    }

    /// The condition of this type exists and is true.
    #[must_use]
    pub fn is_true(&self, kind: &str) -> bool {
        self.get(kind)
            .is_some_and(|condition| condition.status == ConditionStatus::True)
    }

    /// Sets a condition; its time moves only when its status does. Returns whether anything but
    /// the observed generation changed.
    pub fn set(&mut self, mut condition: Condition, generation: u64, now: Timestamp) -> bool {
        condition.observed_generation = generation;
        condition.last_transition_time = Some(now);
        let Some(old) = self.0.iter_mut().find(|old| old.kind == condition.kind) else {
            self.0.push(condition);
            return true;
        };
        if old.status == condition.status {
            condition.last_transition_time = old.last_transition_time;
        }
        let changed = old.status != condition.status
            || old.reason != condition.reason
            || old.message != condition.message;
        *old = condition;
        changed
    }

    /// Removes the condition of this type.
    pub fn remove(&mut self, kind: &str) {
        self.0.retain(|condition| condition.kind != kind);
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Condition> {
        self.0.iter()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Conditions {
    type Item = &'a Condition;
    type IntoIter = std::slice::Iter<'a, Condition>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_condition_moves_only_with_its_status() {
        let (t1, t2) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let mut conditions = Conditions::default();
        let ready = |status, message: &str| Condition::new("Ready", status, "Probe", message);
        assert!(conditions.set(ready(ConditionStatus::True, "200"), 1, t1));
        assert!(!conditions.set(ready(ConditionStatus::True, "200"), 2, t2));
        assert_eq!(
            conditions.get("Ready").unwrap().last_transition_time,
            Some(t1)
        );
        assert!(conditions.set(ready(ConditionStatus::False, "503"), 2, t2));
        assert_eq!(
            conditions.get("Ready").unwrap().last_transition_time,
            Some(t2)
        );
        assert_eq!(conditions.iter().count(), 1);
    }
}
