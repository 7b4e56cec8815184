//! Parts: further writers' share of an object's status, each in a record of its own.
//!
//! A syncer of names beside a balancer reports on the same object, and neither waits for the
//! other. Readers are shown one status. A part follows the rules of the reality: it names the
//! uid it is about, it is begun only on the intent that its writer read, and the object's end
//! waits until it says `Gone`.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Batch, ClientError, Outcome, Result};
use crate::model::{Conditions, Joined, Phase, Reality, RealityMetadata, Status, Tree};
use crate::store::Compare;

impl Joined {
    /// A writer's part, if it is about the uid that is wanted now.
    #[must_use]
    pub fn own_part(&self, writer: &str) -> Option<&crate::model::Versioned<Reality>> {
        let uid = &self.intent.as_ref()?.value.metadata.uid;
        let part = self.parts.get(writer);
        part.filter(|part| part.value.metadata.uid == *uid)
    }
}

impl Batch {
    /// Reports a further writer's share of an object's status. Fields and conditions of the same
    /// name that the object's own worker reports win. A condition's time moves only with its
    /// status, so that it may be made anew for each report.
    ///
    /// # Errors
    /// `NotFound` when there is neither intent nor this part; `Invalid` when it is too large, or
    /// `writer` is no name, or the status is not an object.
    pub fn report_part<S: Serialize>(
        &mut self,
        joined: &Joined,
        writer: &str,
        status: &Status<S>,
    ) -> Result<Outcome> {
        let part = next_part(joined, writer)?;
        let Value::Object(detail) = serde_json::to_value(&status.detail)? else {
            return Err(ClientError::Encode(serde::ser::Error::custom(
                "a status is an object",
            )));
        };
        let status = Status {
            phase: status.phase.clone(),
            observed_generation: status.observed_generation,
            observed_spec: status.observed_spec,
            conditions: in_time(&part.status.conditions, &status.conditions),
            detail,
        };
        self.write_part(joined, writer, &Reality { status, ..part })
    }

    /// Records who begins to work on a part of an object, before the first effect outside the
    /// store: from then on the object's end waits for this writer's word.
    ///
    /// # Errors
    /// `NotFound` without intent.
    pub fn claim_part(&mut self, joined: &Joined, writer: &str, claimant: &str) -> Result<Outcome> {
        if joined.intent.is_none() {
            return Err(ClientError::not_found(&joined.key));
        }
        let mut part = next_part(joined, writer)?;
        part.metadata.claim = Some(claimant.to_owned());
        self.write_part(joined, writer, &part)
    }

    /// Says that all that this writer did for the object is undone.
    ///
    /// # Errors
    /// See [`Batch::report_part`].
    pub fn report_part_gone(&mut self, joined: &Joined, writer: &str) -> Result<Outcome> {
        let mut part = next_part(joined, writer)?;
        part.status.phase = Phase::GONE;
        self.write_part(joined, writer, &part)
    }

    /// Rewrites a part even if nothing in it changes: see [`Batch::bump`].
    ///
    /// # Errors
    /// See [`Batch::report_part`].
    pub fn bump_part(&mut self, joined: &Joined, writer: &str) -> Result<()> {
        let key = joined.key.part(writer)?;
        let mut writes = self.transaction().writes.iter();
        if writes.any(|write| *write.key() == key) {
            return Ok(());
        }
        let part = next_part(joined, writer)?;
        self.put_part(joined, writer, &part)
    }

    fn write_part(&mut self, joined: &Joined, writer: &str, part: &Reality) -> Result<Outcome> {
        let stored = joined.parts.get(writer);
        if stored.is_some_and(|stored| stored.value == *part) {
            return Ok(Outcome::Unchanged);
        }
        self.put_part(joined, writer, part)?;
        Ok(Outcome::Configured)
    }

    fn put_part(&mut self, joined: &Joined, writer: &str, part: &Reality) -> Result<()> {
        let key = joined.key.part(writer)?;
        if joined.own_part(writer).is_none()
            && let Some(intent) = &joined.intent
        {
            // Begun on this very intent: a late one brings back nothing that was removed.
            let intent_key = joined.key.store_key(Tree::Intent);
            self.require(Compare::Revision(intent_key, intent.modified));
        }
        self.require(match joined.parts.get(writer) {
            Some(stored) => Compare::Revision(key.clone(), stored.modified),
            None => Compare::Absent(key.clone()),
        });
        self.put_at(&joined.key, key, "status", part)
    }
}

/// The conditions, each with the time since when it has its status.
fn in_time(before: &Conditions, now: &Conditions) -> Conditions {
    let mut conditions = Conditions::default();
    for condition in now {
        let same = before
            .get(&condition.kind)
            .filter(|before| before.status == condition.status)
            .and_then(|before| before.last_transition_time);
        let since = same.or(condition.last_transition_time);
        conditions.set(
            condition.clone(),
            condition.observed_generation,
            since.unwrap_or(Timestamp::UNIX_EPOCH),
        );
    }
    conditions
}

/// The part that a report now would change: the stored one if it is about the wanted uid, else
/// an empty one.
fn next_part(joined: &Joined, writer: &str) -> Result<Reality> {
    let Some(intent) = &joined.intent else {
        let part = joined.parts.get(writer);
        let part = part.ok_or_else(|| ClientError::not_found(&joined.key))?;
        return Ok(part.value.clone());
    };
    if let Some(own) = joined.own_part(writer) {
        return Ok(own.value.clone());
    }
    let metadata = &intent.value.metadata;
    Ok(Reality {
        api_version: intent.value.api_version.clone(),
        kind: intent.value.kind.clone(),
        metadata: RealityMetadata {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            claim: None,
            declared: None,
            abreast: false,
            other: Map::new(),
        },
        status: Status::default(),
        other: Map::new(),
    })
}
