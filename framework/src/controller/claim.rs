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

/// Giving a lease up waits this long for the store.
const RELEASE: Duration = Duration::from_secs(2);

/// What the claim's key holds, for people.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    holder: String,
    since: jiff::Timestamp,
}

/// The value of a claim's key.
pub(crate) fn holder(name: &str, environment: &Environment) -> Vec<u8> {
    serde_json::to_vec(&Holder {
        holder: name.to_owned(),
        since: environment.now(),
    })
    .expect("plain records are written as JSON")
}

/// The time that a kept lease has left, and its end.
#[derive(Debug)]
pub(crate) struct Tenure {
    lease: LeaseId,
    /// Microseconds of monotonic time.
    deadline: AtomicU64,
    ended: CancellationToken,
    environment: Environment,
}

impl Tenure {
    fn extend(&self, sent: Duration, ttl: Duration) {
        let deadline = sent + ttl * 4 / 5;
        let micros = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
        self.deadline.store(micros, Ordering::Release);
    }

    fn remaining(&self) -> Duration {
        let deadline = Duration::from_micros(self.deadline.load(Ordering::Acquire));
        deadline.saturating_sub(self.environment.monotonic())
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    key: Key,
    epoch: Revision,
    tenure: Arc<Tenure>,
    lost: CancellationToken,
}

/// A claim that was won. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fence {
    inner: Arc<Inner>,
}

impl Fence {
    /// A claim that was created at `epoch` and hangs on the lease of `tenure`.
    pub(crate) fn new(name: String, key: Key, epoch: Revision, tenure: &Arc<Tenure>) -> Self {
        Self {
            inner: Arc::new(Inner {
                name,
                key,
                epoch,
                tenure: tenure.clone(),
                lost: tenure.ended.child_token(),
            }),
        }
    }

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
        !self.inner.lost.is_cancelled() && !self.inner.tenure.remaining().is_zero()
    }

    /// The compare that refuses a commit of a holder that lost.
    #[must_use]
    pub fn compare(&self) -> Compare {
        Compare::ClaimHeld {
            key: self.inner.key.clone(),
            epoch: self.inner.epoch,
            lease: self.inner.tenure.lease,
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
}

/// A lease that is kept alive. Dropping it stops that; [`Kept::release`] ends it at once.
#[derive(Debug)]
pub(crate) struct Kept {
    tenure: Arc<Tenure>,
    store: Arc<dyn Store>,
    keeper: AbortHandle,
}

impl Kept {
    /// Grants a lease of `ttl` and keeps it alive until it is lost, released or dropped.
    pub(crate) async fn grant(
        store: &Arc<dyn Store>,
        environment: &Environment,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let sent = environment.monotonic();
        let lease = store.grant_lease(ttl).await?;
        let tenure = Arc::new(Tenure {
            lease: lease.id,
            deadline: AtomicU64::new(0),
            ended: CancellationToken::new(),
            environment: environment.clone(),
        });
        tenure.extend(sent, lease.ttl);
        let keeper = tokio::spawn(keep(store.clone(), tenure.clone(), lease.ttl));
        Ok(Self {
            tenure,
            store: store.clone(),
            keeper: keeper.abort_handle(),
        })
    }

    pub(crate) fn lease(&self) -> LeaseId {
        self.tenure.lease
    }

    pub(crate) fn tenure(&self) -> &Arc<Tenure> {
        &self.tenure
    }

    /// Completes when the lease is lost, or cannot be known to be held.
    pub(crate) async fn lost(&self) {
        self.tenure.ended.cancelled().await;
    }

    /// Ends the lease and with it all that hangs on it, so that the next one need not wait.
    pub(crate) async fn release(self) {
        self.tenure.ended.cancel();
        let lease = self.tenure.lease;
        let revoked = self.store.revoke_lease(lease);
        tokio::select! {
            biased;
            outcome = revoked => {
                if let Err(error) = outcome {
                    tracing::debug!(lease = lease.0, %error, "what hangs on the lease ends with its time");
                }
            }
            () = self.tenure.environment.sleep(RELEASE) => {}
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
        self.tenure.ended.cancel();
    }
}

/// A claim that is kept. Dropping it stops keeping it; [`Held::release`] ends it at once.
#[derive(Debug)]
pub(crate) struct Held {
    fence: Fence,
    kept: Kept,
}

impl Held {
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Gives the claim up, so that the next one need not wait.
    pub(crate) async fn release(self) {
        self.kept.release().await;
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
            match self.attempt(&key).await {
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

    async fn attempt(&self, key: &Key) -> Result<Option<Held>, StoreError> {
        let keys = [key.clone()];
        let snapshot = self.store.get(&keys).await?;
        if snapshot.records.into_iter().flatten().next().is_some() {
            self.until_free(key, snapshot.revision).await;
            return Ok(None);
        }
        let kept = Kept::grant(&self.store, &self.environment, self.ttl).await?;
        let value = holder(&self.holder, &self.environment);
        let transaction = Transaction::new()
            .require_absent(key.clone())
            .put_with_lease(key.clone(), value, kept.lease());
        let epoch = match self.store.commit(transaction).await {
            Ok(epoch) => Some(epoch),
            Err(StoreError::Unknown { .. }) => {
                let records = self.store.get(&keys).await?.records;
                let record = records.into_iter().flatten().next();
                record
                    .filter(|record| record.lease == Some(kept.lease()))
                    .map(|record| record.created)
            }
            Err(error) => {
                // Left alone it would end by itself.
                kept.release().await;
                return if error.is_conflict() {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
        };
        let Some(epoch) = epoch else {
            // With its lease a late commit ends too.
            kept.release().await;
            return Ok(None);
        };
        let fence = Fence::new(self.name.clone(), key.clone(), epoch, kept.tenure());
        Ok(Some(Held { fence, kept }))
    }

    /// Waits until the key is gone, or long enough to look again.
    async fn until_free(&self, key: &Key, after: Revision) {
        let mut watch = self.store.watch(Prefix::only(key), after);
        let freed = async {
            while let Some(Ok(event)) = watch.next().await {
                let WatchEvent::Changes { changes, .. } = event else {
                    continue;
                };
                let freed = |change: &Change| matches!(change, Change::Delete { .. });
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
async fn keep(store: Arc<dyn Store>, tenure: Arc<Tenure>, ttl: Duration) {
    let environment = tenure.environment.clone();
    let mut wait = ttl / 3;
    loop {
        let remaining = tenure.remaining();
        environment.sleep(wait.min(remaining)).await;
        let remaining = tenure.remaining();
        if remaining.is_zero() {
            break;
        }
        let sent = environment.monotonic();
        let answer = tokio::select! {
            biased;
            answer = store.keep_alive(tenure.lease) => answer,
            () = environment.sleep(remaining) => break,
        };
        wait = match answer {
            Ok(()) => {
                tenure.extend(sent, ttl);
                ttl / 3
            }
            Err(StoreError::LeaseNotFound { .. }) => break,
            Err(error) => {
                tracing::warn!(lease = tenure.lease.0, %error, "cannot keep the lease alive");
                ttl / 20
            }
        };
    }
    tenure.ended.cancel();
}
