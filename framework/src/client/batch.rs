//! One transaction over objects, with the compares that make it safe.

mod create;

use serde_json::{Map, Value};

use super::{ClientError, Result};
use crate::model::{
    Deletion, FieldError, Intent, Joined, KindChecks, Metadata, Object, ObjectKey, Phase,
    Propagation, RawObject, Reality, RealityMetadata, Resource, Status, Tree, Uid, Versioned,
    in_stored_version, preserve_unknown,
};
use crate::store::{Capabilities, Compare, Transaction, Write};

/// The largest record, on every backend.
const MAX_OBJECT_BYTES: usize = 384 * 1024;

/// What writing an object came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Created,
    /// It is different now.
    Configured,
    /// It was so already; nothing was written.
    Unchanged,
}

/// How an object is to end.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeleteOptions {
    /// What becomes of the objects it owns. None: what its own policy, given in `policy`, says.
    pub propagation: Option<Propagation>,
    /// The object's own policy.
    pub policy: Propagation,
    /// Only if it is this one.
    pub uid: Option<Uid>,
    /// Only if it was not changed since this revision.
    pub resource_version: Option<crate::store::Revision>,
    /// Seconds that an orderly end may take.
    pub grace_seconds: Option<u32>,
    /// Why, in words.
    pub reason: Option<String>,
    /// Nobody ordered it: a controller decided it from what it sees. Set by
    /// [`Changes::delete`](crate::controller::Changes::delete).
    pub undeclared: bool,
}

/// Collects changes of several objects into one transaction.
///
/// Each change compares the records it was decided on, as they were read into a [`Joined`], so
/// the batch happens as a whole on exactly that state or not at all. An object may be changed
/// once in a batch, except that intent and reality are separate records.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    transaction: Transaction,
    range_compare: bool,
}

impl Batch {
    /// A batch without changes, fit for any store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch without changes, which may use what a store can do.
    #[must_use]
    pub fn for_store(capabilities: &Capabilities) -> Self {
        Self {
            range_compare: capabilities.range_compare,
            ..Self::default()
        }
    }

    /// Nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transaction.writes.is_empty()
    }

    /// The transaction that the batch came to.
    #[must_use]
    pub fn into_transaction(self) -> Transaction {
        self.transaction
    }

    /// The transaction as it is so far.
    #[must_use]
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// Adds a compare of the caller's own.
    pub fn require(&mut self, compare: Compare) {
        if !self.transaction.compares.contains(&compare) {
            self.transaction.compares.push(compare);
        }
    }

    fn put(&mut self, key: &ObjectKey, tree: Tree, record: &impl serde::Serialize) -> Result<()> {
        let field = if tree == Tree::Intent {
            "spec"
        } else {
            "status"
        };
        self.put_at(key, key.store_key(tree), field, record)
    }

    /// Puts a record of the object `of`; `field` is named if it is too large.
    pub(super) fn put_at(
        &mut self,
        of: &ObjectKey,
        key: crate::store::Key,
        field: &str,
        record: &impl serde::Serialize,
    ) -> Result<()> {
        let value = serde_json::to_vec(record)?;
        if value.len() > MAX_OBJECT_BYTES {
            let problem = format!(
                "has {} bytes; an object has at most {MAX_OBJECT_BYTES}",
                value.len()
            );
            return Err(ClientError::Invalid {
                key: of.to_string(),
                errors: vec![FieldError::new(field, problem)],
            });
        }
        self.transaction.writes.push(Write::Put {
            key,
            value: value.into(),
            lease: None,
        });
        Ok(())
    }

    fn require_intent(&mut self, joined: &Joined) {
        let key = joined.key.store_key(Tree::Intent);
        self.require(match &joined.intent {
            Some(intent) => Compare::Revision(key, intent.modified),
            None => Compare::Absent(key),
        });
    }

    fn require_reality(&mut self, joined: &Joined) {
        let key = joined.key.store_key(Tree::Reality);
        self.require(match &joined.reality {
            Some(reality) => Compare::Revision(key, reality.modified),
            None => Compare::Absent(key),
        });
    }

    /// Compares everything that was read of an object.
    pub(super) fn require_read(&mut self, joined: &Joined) {
        self.require_intent(joined);
        self.require_reality(joined);
        for (writer, part) in &joined.parts {
            if let Ok(key) = joined.key.part(writer) {
                self.require(Compare::Revision(key, part.modified));
            }
        }
    }

    /// Replaces labels, annotations, owners and spec. Name, uid, creation time and a tombstone
    /// stay; the generation grows when the spec changes. A `resourceVersion` in `object` that is
    /// older than the intent is a conflict. Without a difference nothing is written.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`.
    pub fn update(
        &mut self,
        joined: &Joined,
        object: RawObject,
        kind: Option<&KindChecks>,
    ) -> Result<Outcome> {
        let key = &joined.key;
        let stored = joined
            .intent
            .as_ref()
            .ok_or_else(|| ClientError::not_found(key))?;
        let old = &stored.value;
        if object
            .metadata
            .resource_version
            .is_some_and(|seen| stored.modified > seen)
        {
            return Err(ClientError::conflict(
                key,
                "it has changed since it was read",
            ));
        }
        if !object.metadata.uid.is_empty() && object.metadata.uid != old.metadata.uid {
            return Err(ClientError::conflict(
                key,
                "it was deleted and created again since it was read",
            ));
        }
        let mut object = object;
        // A spec that is stored in another of the kind's versions is compared in the form of now,
        // and stays in its own if nothing else about it changes.
        let old_spec = match kind.filter(|_| object.api_version != old.api_version) {
            Some(kind) => kind.in_stored_version(&old.api_version, &old.spec).ok(),
            None => None,
        };
        if old_spec.as_ref() == Some(&object.spec) {
            object.spec.clone_from(&old.spec);
            object.api_version.clone_from(&old.api_version);
        }
        let spec_changed = object.spec != old.spec;
        if spec_changed && old.metadata.is_deleted() {
            return Err(ClientError::conflict(key, "it is being deleted"));
        }
        if let Some(kind) = kind.filter(|_| spec_changed) {
            let errors = kind.validate_update(old_spec.as_ref().unwrap_or(&old.spec), &object.spec);
            if !errors.is_empty() {
                return Err(ClientError::Invalid {
                    key: key.to_string(),
                    errors,
                });
            }
        }
        let metadata = Metadata {
            name: old.metadata.name.clone(),
            namespace: old.metadata.namespace.clone(),
            uid: old.metadata.uid.clone(),
            resource_version: None,
            generation: old.metadata.generation + u64::from(spec_changed),
            creation_timestamp: old.metadata.creation_timestamp,
            deletion: old.metadata.deletion.clone(),
            ..object.metadata
        };
        let intent = Intent {
            api_version: object.api_version,
            kind: object.kind,
            metadata,
            spec: object.spec,
            other: old.other.clone(),
        };
        if intent == *old {
            return Ok(Outcome::Unchanged);
        }
        self.require_intent(joined);
        self.put(key, Tree::Intent, &intent)?;
        Ok(Outcome::Configured)
    }

    /// As [`Batch::update`], for an object of a known kind; what its types do not know stays as
    /// stored.
    ///
    /// # Errors
    /// See [`Batch::update`].
    pub fn update_typed<K: Resource>(
        &mut self,
        joined: &Joined,
        object: &Object<K>,
    ) -> Result<Outcome> {
        let stored = joined
            .object()
            .ok_or_else(|| ClientError::not_found(&joined.key))?;
        let known = stored
            .typed::<K>()
            .map_err(|error| ClientError::unreadable(&joined.key, &error))?;
        let mut raw = object.to_raw()?;
        let before = serde_json::to_value(&known.spec)?;
        if before == raw.spec {
            // Only another reason to write makes a spec anew in another version.
            raw.api_version.clone_from(&stored.api_version);
            raw.spec.clone_from(&stored.spec);
        } else {
            let spec = in_stored_version::<K>(&stored.api_version, &stored.spec)?;
            raw.spec = preserve_unknown(&spec, &before, &raw.spec);
        }
        self.update(joined, raw, None)
    }

    /// Reports an object's status, as the one who does the work. The report names the uid it is
    /// about. The first report of an object also compares its intent, so that a late one cannot
    /// bring back what was removed. A status that is stored already is not written again.
    ///
    /// # Errors
    /// `NotFound` when there is neither intent nor reality; `Invalid` when it is too large.
    pub fn report(
        &mut self,
        joined: &Joined,
        status: Status<Map<String, Value>>,
    ) -> Result<Outcome> {
        let reality = self.next_reality(joined)?;
        self.write_reality(joined, &Reality { status, ..reality })
    }

    /// As [`Batch::report`], with a note in the record's metadata that later reports keep; `Null`
    /// removes it.
    ///
    /// # Errors
    /// See [`Batch::report`].
    pub fn report_with_note(
        &mut self,
        joined: &Joined,
        status: Status<Map<String, Value>>,
        name: &str,
        note: Value,
    ) -> Result<Outcome> {
        let mut reality = self.next_reality(joined)?;
        let notes = &mut reality.metadata.other;
        match note {
            Value::Null => drop(notes.remove(name)),
            note => drop(notes.insert(name.to_owned(), note)),
        }
        self.write_reality(joined, &Reality { status, ..reality })
    }

    /// As [`Batch::report`], for an object of a known kind; what its types do not know stays as
    /// stored.
    ///
    /// # Errors
    /// See [`Batch::report`].
    pub fn report_typed<K: Resource>(
        &mut self,
        joined: &Joined,
        status: &Status<K::Status>,
    ) -> Result<Outcome> {
        let reality = self.next_reality(joined)?;
        let stored = &reality.status.detail;
        // A status that these types cannot read is replaced by one that they can.
        let known = serde_json::from_value::<K::Status>(Value::Object(stored.clone()))
            .and_then(serde_json::to_value)
            .unwrap_or(Value::Null);
        let after = serde_json::to_value(&status.detail)?;
        let mut detail = preserve_unknown(&Value::Object(stored.clone()), &known, &after);
        let (Value::Object(detail_fields), Value::Object(after)) = (&mut detail, after) else {
            return Err(ClientError::Encode(serde::ser::Error::custom(
                "a status is an object",
            )));
        };
        // A report says everything its types know, a count of 0 too.
        for (name, value) in after {
            detail_fields.entry(name).or_insert(value);
        }
        let detail = std::mem::take(detail_fields);
        let status = Status {
            phase: status.phase.clone(),
            observed_generation: status.observed_generation,
            observed_spec: status.observed_spec,
            conditions: status.conditions.clone(),
            detail,
        };
        self.write_reality(joined, &Reality { status, ..reality })
    }

    /// Records who begins to work on an object, before the first effect outside the store: from
    /// then on the object's end waits for the worker's word.
    ///
    /// # Errors
    /// `NotFound` without intent.
    pub fn claim(&mut self, joined: &Joined, claimant: &str) -> Result<Outcome> {
        if joined.intent.is_none() {
            return Err(ClientError::not_found(&joined.key));
        }
        let mut reality = self.next_reality(joined)?;
        reality.metadata.claim = Some(claimant.to_owned());
        self.write_reality(joined, &reality)
    }

    /// The reality that a report now would change: the stored one if it is about the wanted uid,
    /// else an empty one.
    fn next_reality(&self, joined: &Joined) -> Result<Reality> {
        let Some(intent) = &joined.intent else {
            let reality = joined
                .reality
                .as_ref()
                .ok_or_else(|| ClientError::not_found(&joined.key))?;
            return Ok(reality.value.clone());
        };
        if let Some(own) = joined.own_reality() {
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

    fn write_reality(&mut self, joined: &Joined, reality: &Reality) -> Result<Outcome> {
        if joined
            .reality
            .as_ref()
            .is_some_and(|stored| stored.value == *reality)
        {
            return Ok(Outcome::Unchanged);
        }
        if joined.reality.is_none() {
            self.require_intent(joined);
        }
        self.require_reality(joined);
        self.put(&joined.key, Tree::Reality, reality)?;
        Ok(Outcome::Configured)
    }

    /// Rewrites an object's reality even if nothing in it changes, so that of two commits decided
    /// on the same state only one can happen, however late the other one lands.
    ///
    /// # Errors
    /// See [`Batch::report`].
    pub fn bump(&mut self, joined: &Joined) -> Result<()> {
        let key = joined.key.store_key(Tree::Reality);
        if self
            .transaction
            .writes
            .iter()
            .any(|write| *write.key() == key)
        {
            return Ok(());
        }
        let reality = self.next_reality(joined)?;
        if joined.reality.is_none() {
            self.require_intent(joined);
        }
        self.require_reality(joined);
        self.put(&joined.key, Tree::Reality, &reality)
    }

    /// Asks for an object's end. Where nobody has reported on the object, nothing was begun and
    /// its intent is removed at once, if the store can compare that it is so
    /// ([`Batch::for_store`]); else the intent gets a tombstone, and who works on the object ends
    /// it. An object that has a tombstone keeps it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is not the one that `options` names.
    pub fn delete(
        &mut self,
        joined: &Joined,
        options: &DeleteOptions,
        by: &str,
        at: jiff::Timestamp,
    ) -> Result<Outcome> {
        let key = &joined.key;
        let stored = joined
            .intent
            .as_ref()
            .ok_or_else(|| ClientError::not_found(key))?;
        let uid = &stored.value.metadata.uid;
        if options.uid.as_ref().is_some_and(|wanted| wanted != uid) {
            return Err(ClientError::conflict(
                key,
                "it was deleted and created again since it was read",
            ));
        }
        if options
            .resource_version
            .is_some_and(|seen| joined.resource_version() > seen)
        {
            return Err(ClientError::conflict(
                key,
                "it has changed since it was read",
            ));
        }
        if stored.value.metadata.is_deleted() {
            return Ok(Outcome::Unchanged);
        }
        self.require_intent(joined);
        if self.range_compare && joined.reality.is_none() && joined.parts.is_empty() {
            self.require_reality(joined);
            // A part that was begun since then is begun on this very intent.
            self.require(Compare::RangeNotNewer(key.parts(), stored.modified));
            self.transaction.writes.push(Write::Delete {
                key: key.store_key(Tree::Intent),
            });
            return Ok(Outcome::Configured);
        }
        let mut intent = stored.value.clone();
        intent.metadata.deletion = Some(Deletion {
            uid: uid.clone(),
            at,
            by: by.to_owned(),
            propagation: options.propagation.unwrap_or(options.policy),
            grace_seconds: options.grace_seconds,
            reason: options.reason.clone(),
            declared: !options.undeclared,
        });
        self.put(key, Tree::Intent, &intent)?;
        Ok(Outcome::Configured)
    }

    /// Takes the order to end an object back, while nobody who works on it has confirmed its end.
    /// That is an order of its own: it raises the generation.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when its end is confirmed already, by anybody.
    pub fn restore(&mut self, joined: &Joined) -> Result<Outcome> {
        let key = &joined.key;
        let stored = joined
            .intent
            .as_ref()
            .ok_or_else(|| ClientError::not_found(key))?;
        if !stored.value.metadata.is_deleted() {
            return Ok(Outcome::Unchanged);
        }
        let uid = &stored.value.metadata.uid;
        let is_gone = |reality: &Versioned<Reality>| {
            reality.value.metadata.uid == *uid && reality.value.status.phase == Phase::GONE
        };
        if joined
            .reality
            .iter()
            .chain(joined.parts.values())
            .any(is_gone)
        {
            return Err(ClientError::conflict(
                key,
                "its end is confirmed: what it was made of is taken away",
            ));
        }
        self.require_intent(joined);
        // Nobody confirms it meanwhile.
        self.require_reality(joined);
        for (writer, part) in &joined.parts {
            self.require(Compare::Revision(key.part(writer)?, part.modified));
        }
        let mut intent = stored.value.clone();
        intent.metadata.deletion = None;
        intent.metadata.generation += 1;
        self.put(key, Tree::Intent, &intent)?;
        Ok(Outcome::Configured)
    }

    /// Removes all records of an object whose end everybody has confirmed.
    ///
    /// # Errors
    /// `Conflict` when somebody still works on it.
    pub fn remove(&mut self, joined: &Joined) -> Result<()> {
        if !joined.is_finished() {
            return Err(ClientError::conflict(
                &joined.key,
                "not everybody who works on it is done",
            ));
        }
        self.require_intent(joined);
        self.require_reality(joined);
        let mut keys = vec![
            joined.key.store_key(Tree::Intent),
            joined.key.store_key(Tree::Reality),
        ];
        for (writer, part) in &joined.parts {
            let key = joined.key.part(writer)?;
            self.require(Compare::Revision(key.clone(), part.modified));
            keys.push(key);
        }
        keys.push(joined.key.store_key(Tree::Grant));
        self.transaction
            .writes
            .extend(keys.into_iter().map(|key| Write::Delete { key }));
        Ok(())
    }

    /// Writes a record beside an object: its grant or its ledger. `read_at` is the revision of
    /// the record that it replaces, None where there was none; another one is a conflict.
    ///
    /// # Errors
    /// `Invalid` when it is too large, or when `tree` holds intents or reports, which have rules
    /// of their own.
    pub fn put_beside(
        &mut self,
        key: &ObjectKey,
        tree: Tree,
        read_at: Option<crate::store::Revision>,
        record: &impl serde::Serialize,
    ) -> Result<()> {
        if !matches!(tree, Tree::Grant | Tree::Ledger) {
            let problem = "is written by the functions that are made for it";
            return Err(ClientError::Invalid {
                key: key.to_string(),
                errors: vec![FieldError::new(tree.as_str(), problem)],
            });
        }
        let record_key = key.store_key(tree);
        self.require(match read_at {
            Some(revision) => Compare::Revision(record_key, revision),
            None => Compare::Absent(record_key),
        });
        self.put(key, tree, record)
    }

    /// Says that all that was done for the object is undone: phase `Gone`.
    ///
    /// # Errors
    /// See [`Batch::report`].
    pub fn report_gone(&mut self, joined: &Joined) -> Result<Outcome> {
        let mut reality = self.next_reality(joined)?;
        reality.status.phase = Phase::GONE;
        self.write_reality(joined, &reality)
    }
}
