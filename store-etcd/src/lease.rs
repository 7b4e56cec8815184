//! Leases: granted, kept alive and ended by whichever member answers.

use std::time::Duration;

use platctrl_framework::store::{Lease, LeaseId, Result, StoreError};

use crate::call::Repeat;
use crate::commit::lease_number;
use crate::connection::methods;
use crate::error::{About, Failure, Refusal};
use crate::link::Link;
use crate::wire;

impl Link {
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<Lease> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let request = wire::LeaseGrantRequest {
            ttl: i64::try_from(seconds.max(1)).unwrap_or(i64::MAX),
        };
        let about = || About {
            what: format!("grant a lease of {ttl:?}"),
            ..About::default()
        };
        // A lease whose grant was lost hangs on no key and ends by itself.
        let answer = self
            .call::<_, wire::LeaseGrantResponse>(methods::GRANT, &request, Repeat::Freely)
            .await
            .map_err(|failure| failure.into_store_error(about()))?;
        if !answer.error.is_empty() {
            let reason = format!("{}: {}", about().what, answer.error);
            return Err(StoreError::Invalid { reason });
        }
        Ok(Lease {
            id: LeaseId(u64::try_from(answer.id).unwrap_or_default()),
            ttl: Duration::from_secs(u64::try_from(answer.ttl).unwrap_or_default()),
        })
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        let id = lease_number(lease).ok_or(StoreError::LeaseNotFound { lease })?;
        let request = wire::LeaseRequest { id };
        let answer = self
            .call::<_, wire::LeaseTtlResponse>(methods::KEEP_ALIVE, &request, Repeat::Freely)
            .await
            .map_err(|failure| failure.into_store_error(about("keep alive", lease)))?;
        // No status tells it: an ended lease has no time left.
        if answer.ttl <= 0 {
            return Err(StoreError::LeaseNotFound { lease });
        }
        Ok(())
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let id = lease_number(lease).ok_or(StoreError::LeaseNotFound { lease })?;
        let request = wire::LeaseRequest { id };
        let ask = |repeat| self.call::<_, wire::Acknowledged>(methods::REVOKE, &request, repeat);
        match ask(Repeat::Never).await {
            Ok(_) => Ok(()),
            Err(Failure::Unknown(_)) => match ask(Repeat::Freely).await {
                // The first time did it.
                Err(failure) if failure.is_refused_as(Refusal::LeaseNotFound) => Ok(()),
                Err(Failure::Unavailable(reason)) => {
                    Err(Failure::Unknown(reason).into_store_error(about("end", lease)))
                }
                outcome => outcome
                    .map(|_| ())
                    .map_err(|failure| failure.into_store_error(about("end", lease))),
            },
            Err(failure) => Err(failure.into_store_error(about("end", lease))),
        }
    }
}

fn about(verb: &str, lease: LeaseId) -> About {
    About {
        what: format!("{verb} lease {:x}", lease.0),
        lease: Some(lease),
        ..About::default()
    }
}
