//! What a person says about a root: it was restored, it is closed, it is open again.
//!
//! These work on the backend itself, not on a [`RootedStore`](super::RootedStore), which keeps
//! everybody else from writing the anchor.

use crate::environment::Environment;
use crate::model::identity::{
    Anchor, AnchorState, ChainLink, IdentityError, anchor_key, chain_key, open,
};
use crate::store::{ListRequest, Prefix, Revision, Store, StoreError, Transaction};

/// Keeps everybody from writing: the root was, or is about to be, copied elsewhere. Sealing twice
/// is sealing once.
///
/// # Errors
/// A root without an anchor; the store's errors.
pub async fn seal(store: &dyn Store) -> Result<Anchor, IdentityError> {
    set(store, |anchor| anchor.state = AnchorState::Sealed).await
}

/// Lets everybody write again. Only where the copy is not in use: two active roots with one
/// identity would both be believed.
///
/// # Errors
/// As for [`seal`].
pub async fn unseal(store: &dyn Store) -> Result<Anchor, IdentityError> {
    set(store, |anchor| anchor.state = AnchorState::Active).await
}

async fn set(store: &dyn Store, change: impl Fn(&mut Anchor)) -> Result<Anchor, IdentityError> {
    loop {
        let (mut anchor, revision) = read(store).await?;
        let before = anchor.clone();
        change(&mut anchor);
        if anchor == before {
            return Ok(anchor);
        }
        let key = anchor_key();
        let transaction = Transaction::new()
            .require_unchanged(key.clone(), Some(revision))
            .put(key, encode(&anchor));
        match store.commit(transaction).await {
            Ok(_) => return Ok(anchor),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says that this root was restored from an older copy, and that this is meant: raises the epoch,
/// so that every revision from now on is newer than all that were seen before, and appends a link
/// of the chain, so that clients can tell. What they hold is compared, under failsafes, with what
/// is here.
///
/// # Errors
/// A root without an anchor; the 65,535th restore; the store's errors.
pub async fn restored(
    store: &dyn Store,
    environment: &Environment,
) -> Result<Anchor, IdentityError> {
    loop {
        let (mut anchor, revision) = read(store).await?;
        anchor.epoch = anchor.epoch.checked_add(1).ok_or_else(|| {
            let reason = "the epoch cannot be raised any more: copy the root into a new one";
            StoreError::Invalid {
                reason: reason.to_owned(),
            }
        })?;
        anchor.state = AnchorState::Active;
        let link = chain_key(next_link(store).await?);
        let key = anchor_key();
        let transaction = Transaction::new()
            .require_unchanged(key.clone(), Some(revision))
            .put(key, encode(&anchor))
            .require_absent(link.clone())
            .put(link, encode(&ChainLink::new(environment)));
        match store.commit(transaction).await {
            Ok(_) => return Ok(anchor),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn encode(record: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("plain records are written as JSON")
}

/// The anchor and its revision.
async fn read(store: &dyn Store) -> Result<(Anchor, Revision), IdentityError> {
    // Checks the format too: a newer version's root is not for this one to change.
    open(store).await?;
    let snapshot = store.get(&[anchor_key()]).await?;
    let record = snapshot.records.into_iter().next().flatten();
    let record = record.ok_or(IdentityError::Uninitialised)?;
    let anchor = serde_json::from_slice(&record.value).map_err(|error| IdentityError::Damaged {
        what: "anchor",
        reason: error.to_string(),
    })?;
    Ok((anchor, record.modified))
}

/// The number after the newest link's.
async fn next_link(store: &dyn Store) -> Result<u64, StoreError> {
    let prefix = Prefix::new("x/chain/").expect("a constant that is a valid prefix");
    let mut request = ListRequest::new(prefix.clone());
    let mut next = 0;
    loop {
        let page = store.list(&request).await?;
        for record in &page.records {
            let number = record.key.as_str().strip_prefix(prefix.as_str());
            if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
                next = next.max(number.saturating_add(1));
            }
        }
        let Some(last) = page.records.into_iter().last().filter(|_| page.more) else {
            return Ok(next);
        };
        request.after = Some(last.key);
    }
}
