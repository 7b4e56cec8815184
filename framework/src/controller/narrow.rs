//! A runtime that mirrors its own kinds alone: what it watches, and how each prefix gets its
//! anchor.
//!
//! Whoever watches a prefix by itself needs an anchor in it, without which an answer proves
//! nothing. Where nobody wrote one yet the runtime does, once, before it reads. It never replaces
//! one: that of another store is what tells that it is another.

use std::sync::Arc;

use crate::backoff::Backoff;
use crate::cache::{Source, feed, write_prefix_anchor};
use crate::environment::Environment;
use crate::failsafe::Safeguards;
use crate::model::identity::{IdentityError, PREFIX_ANCHOR};
use crate::model::{Kinds, Tree};
use crate::store::{Prefix, Store, StoreError};

/// Everything that can be said of objects of some kinds.
pub(super) fn prefixes_of(kinds: &Kinds) -> Vec<Prefix> {
    let kinds = kinds.iter().map(|known| known.definition.group_plural());
    let prefixes = kinds.flat_map(|kind| Tree::ALL.map(|tree| kind.prefix(tree)));
    prefixes.collect()
}

/// Writes the anchor of a prefix, unless there is one.
async fn anchor(store: &dyn Store, prefix: &Prefix) -> Result<(), IdentityError> {
    let key = prefix.key(PREFIX_ANCHOR).map_err(|error| {
        let reason = error.to_string();
        StoreError::Invalid { reason }
    })?;
    let held = store
        .get(&[key])
        .await?
        .records
        .into_iter()
        .flatten()
        .next();
    match held {
        Some(_) => Ok(()),
        None => write_prefix_anchor(store, prefix).await,
    }
}

/// Feeds the mirror from a prefix that the runtime chose.
pub(super) async fn feed_anchored(
    source: Source,
    prefix: Prefix,
    store: Arc<dyn Store>,
    environment: Environment,
    guards: Arc<Safeguards>,
) {
    let try_once = async || {
        // Nothing is written into a store that may not be this one, nor while all is frozen.
        guards.runs_allowed(false).await;
        let tried = anchor(&*store, &prefix).await;
        if let Err(error) = &tried {
            tracing::warn!(%prefix, %error, "it is not known that the prefix has an anchor");
        }
        tried.is_ok()
    };
    if try_once().await {
        return feed(source).await;
    }
    let anchored = async {
        for failures in 1.. {
            let delay = Backoff::SOURCE.delay(failures, &environment);
            environment.sleep(delay).await;
            if try_once().await {
                break;
            }
        }
    };
    // What keeps it from being written, the source tells: it is read all the same.
    tokio::join!(anchored, feed(source));
}
