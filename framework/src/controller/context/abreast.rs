//! Commits of one run that are under way together.
//!
//! A run's commits follow one another, because each compares and rewrites the own report: of two
//! attempts at one decision only one happens. Where one decision is hundreds of commits that have
//! nothing to do with each other, the first of them says in the report that more are under way;
//! those compare the report as that one left it, and leave it so; and the run's next ordinary
//! commit says that none are left. Each of them happens at most once, and none behind that.
//!
//! What a run does not come to say, the next one does: it finds in the report that commits were
//! under way, of which one may still happen after the view that it decided on. Instead of its own
//! first commit it rewrites the report, after which none of them can happen, and the key runs
//! again on a view that shows this. See `docs/decisions/0036`.

use std::sync::atomic::Ordering;

use super::{Changes, Context};
use crate::client::Batch;
use crate::controller::error::CommitError;
use crate::model::Joined;
use crate::store::{Compare, Revision};

/// Commits that are under way together, since [`Changes::commit_abreast`]. They end with the
/// run's next ordinary commit, which should be made when all of them are answered.
#[derive(Debug)]
pub struct Abreast<'c> {
    context: &'c Context,
    /// The own report as the first of them left it.
    report: Compare,
    revision: Revision,
}

impl<'c> Changes<'c> {
    /// Commits the changes as [`Changes::commit`] does, as the first of several commits that are
    /// to be under way together.
    ///
    /// # Errors
    /// See [`Context::commit`].
    pub async fn commit_abreast(self) -> Result<Abreast<'c>, CommitError> {
        let context = self.context;
        let revision = context.commit_own(self.batch, true).await?;
        context.run.abreast.store(true, Ordering::Release);
        let key = context.report_key(&context.joined())?;
        Ok(Abreast {
            context,
            report: Compare::Revision(key, revision),
            revision,
        })
    }
}

impl Abreast<'_> {
    /// The revision of the first commit.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Commits further changes, beside whichever others are under way. They must not be about the
    /// same objects as those, nor hold a report: that is for the commit that ends these.
    ///
    /// # Errors
    /// See [`Context::commit`].
    pub async fn commit(&self, changes: Changes<'_>) -> Result<Revision, CommitError> {
        let mut batch = changes.batch;
        if batch.is_empty() {
            return Ok(self.revision);
        }
        batch.require(self.report.clone());
        self.context.send(batch.into_transaction()).await
    }
}

impl Context {
    /// Commits of an earlier run may still happen that the view does not show.
    pub(super) fn is_left_abreast(&self, own: &Joined) -> bool {
        !self.run.abreast.load(Ordering::Acquire)
            && (self.own_report(own)).is_some_and(|report| report.value.metadata.abreast)
    }

    /// Rewrites the report that they compare. What this run has decided is to be decided anew.
    pub(super) async fn end_abreast(&self, own: &Joined) -> CommitError {
        match self.rewrite(own).await {
            Ok(_) => CommitError::Conflict {
                key: self.key().clone(),
                failed: Vec::new(),
            },
            Err(error) => error,
        }
    }

    async fn rewrite(&self, own: &Joined) -> Result<Revision, CommitError> {
        let mut batch = Batch::for_store(&self.capabilities());
        match self.part() {
            Some(writer) => batch.bump_part(own, writer)?,
            None => batch.bump(own)?,
        }
        let mut transaction = batch.into_transaction();
        self.sign(own, &mut transaction, false)?;
        self.send(transaction).await
    }
}
