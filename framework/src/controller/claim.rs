//! Claims: at most one process works on something, and a late write of another one is refused.
//!
//! A claim is a key that hangs on a lease. Whoever creates it holds it while the lease is kept
//! alive; the revision that created it is its *epoch*. Every commit under a claim compares it, so
//! that a holder that was paused and does not know that it lost writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::environment::Environment;
use crate::model::{InvalidName, check_name};
use crate::store::{
    Change, Compare, Key, LeaseId, Prefix, Revision, Store, StoreError, Transaction, WatchEvent,
};

/// How long a claim outlives its holder.
pub(crate) const TTL: Duration = Duration::from_secs(10);

/// What the claim's key holds, for people.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    holder: String,
    since: jiff::Timestamp,
}

#[derive(Debug)]
struct Inner {
    name: String,
    key: Key,
    epoch: Revision,
    lease: LeaseId,
    /// Microseconds of monotonic time.
    deadline: AtomicU64,
    lost: CancellationToken,
    environment: Environment,
}

/// A claim that was won. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fence {
    inner: Arc<Inner>,
}

impl Fence {
    /// The claim's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Grows with each holder: whoever takes orders outside of the store refuses a lower one.
    #[must_use]
    pub fn epoch(&self) -> Revision {
        self.inner.epoch
    }

    /// The claim is held for sure. Once false it stays false.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let now = self.inner.environment.monotonic().as_micros();
        !self.inner.lost.is_cancelled()
            && now < u128::from(self.inner.deadline.load(Ordering::Acquire))
    }

    /// The compare that refuses a commit of a holder that lost.
    #[must_use]
    pub fn compare(&self) -> Compare {
        Compare::ClaimHeld {
            key: self.inner.key.clone(),
            epoch: self.inner.epoch,
            lease: self.inner.lease,
        }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.inner.key
    }

    pub(crate) fn lose(&self) {
        self.inner.lost.cancel();
    }

    /// Completes when the claim is lost.
    pub async fn lost(&self) {
        self.inner.lost.cancelled().await;
    }

    fn extend(&self, sent: Duration, ttl: Duration) {
        let deadline = sent + ttl * 4 / 5;
        let micros = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
        self.inner.deadline.store(micros, Ordering::Release);
    }

    fn remaining(&self) -> Duration {
        let deadline = Duration::from_micros(self.inner.deadline.load(Ordering::Acquire));
        deadline.saturating_sub(self.inner.environment.monotonic())
    }
}

/// A claim that is kept. Dropping it stops keeping it; [`Held::release`] ends it at once.
#[derive(Debug)]
pub(crate) struct Held {
    fence: Fence,
    store: Arc<dyn Store>,
    keeper: AbortHandle,
}

impl Held {
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Gives the claim up, so that the next one need not wait.
    pub(crate) async fn release(self) {
        self.fence.lose();
        let lease = self.fence.inner.lease;
        if let Err(error) = self.store.revoke_lease(lease).await {
            tracing::debug!(claim = self.fence.name(), %error, "the claim ends with its lease");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.abort();
        self.fence.lose();
    }
}

/// Somebody who wants a claim.
#[derive(Clone, Debug)]
pub(crate) struct Campaign {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) environment: Environment,
    pub(crate) name: String,
    pub(crate) holder: String,
    pub(crate) ttl: Duration,
}

impl Campaign {
    /// Waits until the claim is won.
    ///
    /// # Errors
    /// The claim's name cannot be part of a key. Everything else is tried again.
    pub(crate) async fn win(&self) -> Result<Held, InvalidName> {
        check_name("claim", &self.name)?;
        let prefix = Prefix::new("x/lease/").expect("a constant that is a valid prefix");
        let key = prefix
            .key(&self.name)
            .expect("a checked name makes a valid key");
        let mut failures = 0;
        loop {
            match self.attempt(&prefix, &key).await {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(claim = self.name, %error, "cannot ask for the claim");
                    let delay = Backoff::SOURCE.delay(failures, &self.environment);
                    self.environment.sleep(delay).await;
                }
            }
        }
    }

    async fn attempt(&self, prefix: &Prefix, key: &Key) -> Result<Option<Held>, StoreError> {
        let keys = [key.clone()];
        let snapshot = self.store.get(&keys).await?;
        if snapshot.records.into_iter().flatten().next().is_some() {
            self.until_free(prefix, key, snapshot.revision).await;
            return Ok(None);
        }
        let sent = self.environment.monotonic();
        let lease = self.store.grant_lease(self.ttl).await?;
        let value = serde_json::to_vec(&Holder {
            holder: self.holder.clone(),
            since: self.environment.now(),
        })
        .expect("plain records are written as JSON");
        let transaction = Transaction::new()
            .require_absent(key.clone())
            .put_with_lease(key.clone(), value, lease.id);
        let epoch = match self.store.commit(transaction).await {
            Ok(epoch) => Some(epoch),
            Err(StoreError::Unknown { .. }) => {
                let records = self.store.get(&keys).await?.records;
                let record = records.into_iter().flatten().next();
                record
                    .filter(|record| record.lease == Some(lease.id))
                    .map(|record| record.created)
            }
            Err(error) => {
                // Left alone it would end by itself.
                let _ = self.store.revoke_lease(lease.id).await;
                return if error.is_conflict() {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
        };
        let Some(epoch) = epoch else {
            // With its lease a late commit ends too.
            let _ = self.store.revoke_lease(lease.id).await;
            return Ok(None);
        };
        let fence = Fence {
            inner: Arc::new(Inner {
                name: self.name.clone(),
                key: key.clone(),
                epoch,
                lease: lease.id,
                deadline: AtomicU64::new(0),
                lost: CancellationToken::new(),
                environment: self.environment.clone(),
            }),
        };
        fence.extend(sent, lease.ttl);
        let keeper = tokio::spawn(keep(self.store.clone(), fence.clone(), lease.ttl));
        Ok(Some(Held {
            fence,
            store: self.store.clone(),
            keeper: keeper.abort_handle(),
        }))
    }

    /// Waits until the key is gone, or long enough to look again.
    async fn until_free(&self, prefix: &Prefix, key: &Key, after: Revision) {
        let mut watch = self.store.watch(prefix.clone(), after);
        let freed = async {
            while let Some(Ok(event)) = watch.next().await {
                let WatchEvent::Changes { changes, .. } = event else {
                    continue;
                };
                let freed = |change: &Change| matches!(change, Change::Delete { key: deleted, .. } if deleted == key);
                if changes.iter().any(freed) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = freed => {}
            () = self.environment.sleep(self.environment.jitter(self.ttl / 2)) => {}
        }
    }
}

/// Keeps the lease alive until it is lost.
async fn keep(store: Arc<dyn Store>, fence: Fence, ttl: Duration) {
    let environment = fence.inner.environment.clone();
    let mut wait = ttl / 3;
    loop {
        let remaining = fence.remaining();
        environment.sleep(wait.min(remaining)).await;
        let remaining = fence.remaining();
        if remaining.is_zero() {
            break;
        }
        let sent = environment.monotonic();
        let answer = tokio::select! {
            biased;
            answer = store.keep_alive(fence.inner.lease) => answer,
            () = environment.sleep(remaining) => break,
        };
        wait = match answer {
            Ok(()) => {
                fence.extend(sent, ttl);
                ttl / 3
            }
            Err(StoreError::LeaseNotFound { .. }) => break,
            Err(error) => {
                tracing::warn!(claim = fence.name(), %error, "cannot keep the claim alive");
                ttl / 20
            }
        };
    }
    fence.lose();
}
