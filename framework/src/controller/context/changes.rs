//! Changes that a reconcile makes together, each against what its run saw.

use super::Context;
use crate::client::{Batch, ClientError, DeleteOptions, Outcome};
use crate::controller::error::CommitError;
use crate::model::{FieldError, Joined, Metadata, Object, ObjectKey, Resource, Status, Tree};
use crate::store::{Compare, Prefix, Revision};

/// Changes that happen together or not at all. Each one compares what the run saw.
#[derive(Debug)]
#[must_use = "nothing is written before `commit`"]
pub struct Changes<'c> {
    pub(super) context: &'c Context,
    pub(super) batch: Batch,
}

impl Changes<'_> {
    fn joined(&self, key: &ObjectKey) -> Result<Joined, ClientError> {
        if key == self.context.key() {
            return Ok(self.context.joined());
        }
        Ok(self.context.view().joined(key)?)
    }

    /// Creates an object, and returns it with its uid.
    ///
    /// # Errors
    /// See [`Batch::create_typed`].
    pub fn create<K: Resource>(&mut self, object: &Object<K>) -> Result<Object<K>, ClientError> {
        self.batch.create_typed(self.context.environment(), object)
    }

    /// Creates an object in a group of objects that is `as_seen`, and returns its metadata, with
    /// its uid. Where that shows that there is nothing of its name, nothing else is compared: of
    /// many objects in one group only the group is.
    ///
    /// # Errors
    /// See [`Batch::create_typed`].
    pub fn create_in<K: Resource>(
        &mut self,
        as_seen: Compare,
        object: &Object<K>,
    ) -> Result<Metadata, ClientError> {
        let key = object.key()?;
        // No intent was put there since the view, and the view has none. A reality is begun by
        // who works on an intent, and one of another uid is nobody's.
        let shows = |group: &Prefix, seen: Revision| {
            let view = self.context.view();
            key.store_key(Tree::Intent).is_under(group)
                && seen <= view.revision_of::<K>()
                && view.is_nothing(&key)
        };
        let is_shown = match &as_seen {
            Compare::RangeNotNewer(group, seen) => shows(group, *seen),
            _ => false,
        };
        self.batch.require(as_seen);
        if !is_shown {
            self.batch.require_nothing_of(&key);
        }
        let environment = self.context.environment();
        self.batch.create_unseen(environment, &key, object)
    }

    /// Replaces labels, annotations, owners and spec of an object.
    ///
    /// # Errors
    /// See [`Batch::update_typed`].
    pub fn update<K: Resource>(&mut self, object: &Object<K>) -> Result<Outcome, ClientError> {
        let joined = self.joined(&object.key()?)?;
        self.batch.update_typed(&joined, object)
    }

    /// Asks for an object's end.
    ///
    /// # Errors
    /// See [`Batch::delete`].
    pub fn delete(
        &mut self,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Outcome, ClientError> {
        let joined = self.joined(key)?;
        let at = self.context.environment().now();
        let setting = &self.context.run.setting;
        let mut options = options.clone();
        options.undeclared |= !setting.guards.is_declared(&self.context.joined());
        self.batch
            .delete(&joined, &options, &setting.controller, at)
    }

    /// Reports the status of the object that is reconciled. Without a difference nothing is
    /// written.
    ///
    /// # Errors
    /// See [`Batch::report_typed`]. `Invalid` for a controller that
    /// [writes a part](crate::controller::Controller::writes_part): only the object's own worker reports so.
    pub fn report<K: Resource>(
        &mut self,
        status: &Status<K::Status>,
    ) -> Result<Outcome, ClientError> {
        let joined = self.context.joined();
        if let Some(writer) = self.context.part() {
            let problem = format!("is another's to report: use `report_part`, into `{writer}`");
            return Err(ClientError::Invalid {
                key: joined.key.to_string(),
                errors: vec![FieldError::new("status", problem)],
            });
        }
        self.batch.report_typed::<K>(&joined, status)
    }

    /// Reports this controller's share of the status of the object that is reconciled, into the
    /// part that it [writes](crate::controller::Controller::writes_part). Without a difference nothing is
    /// written.
    ///
    /// # Errors
    /// See [`Batch::report_part`]. `Invalid` for a controller that writes no part.
    pub fn report_part<S: serde::Serialize>(
        &mut self,
        status: &Status<S>,
    ) -> Result<Outcome, ClientError> {
        let joined = self.context.joined();
        let Some(writer) = self.context.part() else {
            let problem = "has no part by this controller: declare it by `writes_part`";
            return Err(ClientError::Invalid {
                key: joined.key.to_string(),
                errors: vec![FieldError::new("status", problem)],
            });
        };
        self.batch.report_part(&joined, writer, status)
    }

    /// Says that everything that this controller did for the object that is reconciled is undone:
    /// its records may be removed once everybody says so.
    ///
    /// # Errors
    /// See [`Batch::report`].
    pub fn report_gone(&mut self) -> Result<Outcome, ClientError> {
        let joined = self.context.joined();
        match self.context.part() {
            Some(writer) => self.batch.report_part_gone(&joined, writer),
            None => self.batch.report_gone(&joined),
        }
    }

    /// Only if this holds.
    pub fn require(&mut self, compare: Compare) {
        self.batch.require(compare);
    }

    /// The batch underneath, for what has no method here.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// Commits the changes: see [`Context::commit`].
    ///
    /// # Errors
    /// See [`Context::commit`].
    pub async fn commit(self) -> Result<Revision, CommitError> {
        self.context.commit(self.batch).await
    }
}
