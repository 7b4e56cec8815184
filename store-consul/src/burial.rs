//! Waits for leases that end, and deletes what hung on them.
//!
//! The server ends a session without a word to the generations: only the lock on the lease's key
//! goes. So whoever watches anything waits for that, too, and whoever may, buries.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::store::{LeaseId, StoreError};

use crate::layout::{LEASES, lease_of};
use crate::shared::Shared;

/// How long to leave it to others after a failure: one that passes, and one that does not.
const AGAIN: Duration = Duration::from_secs(1);
const LEFT_TO_OTHERS: Duration = Duration::from_secs(30);

/// Goes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Burial(tokio::task::JoinHandle<()>);

impl Drop for Burial {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Burial {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        Self(tokio::spawn(bury_all(Arc::clone(shared))))
    }
}

async fn bury_all(shared: Arc<Shared>) {
    let mut index = 1;
    loop {
        let error = match bury_next(&shared, index).await {
            Ok(next) => {
                index = next;
                continue;
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "what hangs on ended leases is left to others until the next round");
        index = 1;
        let pause = if error.is_transient() {
            AGAIN
        } else {
            LEFT_TO_OTHERS
        };
        tokio::time::sleep(shared.environment.jitter(pause)).await;
    }
}

/// Waits until leases changed after an index, buries those that have ended, and returns the index
/// to wait from.
async fn bury_next(shared: &Shared, index: u64) -> Result<u64, StoreError> {
    let wake = shared.api.wait_below(LEASES, index).await?;
    for pair in &wake.pairs {
        if let Some(lease) = lease_of(&pair.key)
            && pair.session.is_none()
        {
            shared.bury(LeaseId(lease)).await?;
        }
    }
    // Backwards is another history, or tombstones that were reaped.
    let backwards = wake.index < index;
    Ok(if backwards { 1 } else { wake.index.max(1) })
}
