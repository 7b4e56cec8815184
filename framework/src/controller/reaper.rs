//! The reaper: removes the records of objects that have come to their end.
//!
//! Whoever works on an object that has a tombstone reports `Gone` when everything is undone.
//! Once all have, the reaper removes intent, reality, parts, grants and ledger in one
//! transaction, which compares all that was read. It works on every kind that the runtime knows.

use std::sync::Arc;
use std::time::Duration;

use super::action::Action;
use super::builder::{Outcome, Registered};
use super::context::Context;
use crate::client::Batch;
use crate::model::{GroupPlural, Kinds, Tree};
use crate::store::{Compare, Write};

/// The name of the reaper among the controllers of a runtime.
pub(crate) const NAME: &str = "reaper";

/// When to look again at an object of a kind that is not read yet.
const UNREAD: Duration = Duration::from_secs(1);

pub(crate) fn register() -> Registered {
    Registered {
        name: Arc::from(NAME),
        api_version: String::new(),
        kind: String::new(),
        group_plural: GroupPlural::new("", ""),
        kinds: Kinds::new(),
        checks: Vec::new(),
        maps: vec![Box::new(|change, _, emit| {
            if let Some(entry) = change.after.as_ref().filter(|entry| entry.deleted) {
                emit(entry.key.clone());
            }
        })],
        run: Box::new(|context| Box::pin(reap(context))),
        concurrency: Some(4),
        timeout: Duration::from_secs(60),
        writes_per_second: None,
        triggers: Vec::new(),
        reports_while_frozen: false,
        part: None,
    }
}

async fn reap(context: Context) -> Outcome {
    let joined = context.joined();
    if !joined.is_finished() {
        return Ok(Action::await_change());
    }
    if !context.view().is_read(context.key().kind()) {
        // Somebody may report who was not heard yet.
        return Ok(Action::requeue_after(UNREAD));
    }
    let mut batch = Batch::new();
    batch.remove(&joined)?;
    if context.capabilities().range_compare {
        // A part that was begun meanwhile has to end first.
        let seen = context.view().revision();
        batch.require(Compare::RangeNotNewer(joined.key.parts(), seen));
    }
    let mut transaction = batch.into_transaction();
    transaction.writes.push(Write::Delete {
        key: joined.key.store_key(Tree::Ledger),
    });
    context.commit_bare(transaction).await?;
    tracing::info!(key = %joined.key, "removed: the object has come to its end");
    Ok(Action::await_change())
}
