//! A runtime registers the kinds that its controllers declare, so that every server serves them.
//!
//! Each form of a kind is written once; whoever finds it there writes nothing. A store that does
//! not let this program register, or a kind that was registered in a form with which this one is
//! not compatible, is told, and the controllers work on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backoff::Backoff;
use crate::client::{RegisterError, Registered, register_kind};
use crate::environment::Environment;
use crate::failsafe::Safeguards;
use crate::model::KindDefinition;
use crate::store::{Store, StoreError};

/// Kinds that were not registered, by name, and why.
pub(super) type Refused = Arc<Mutex<BTreeMap<String, String>>>;

/// Registers kinds, one after the other, until all are or were refused.
pub(super) async fn enrol(
    store: Arc<dyn Store>,
    environment: Environment,
    guards: Arc<Safeguards>,
    kinds: Vec<KindDefinition>,
    refused: Refused,
) {
    for kind in kinds {
        let name = kind.group_plural().to_string();
        let mut failures = 0;
        loop {
            // Nothing is written into a store that may not be this one, nor while all is frozen.
            guards.runs_allowed(false).await;
            let error = match register_kind(&*store, &kind).await {
                Ok(outcome @ (Registered::New | Registered::Updated)) => {
                    tracing::info!(kind = name, ?outcome, "registered");
                    break;
                }
                Ok(_) => break,
                Err(error) => error,
            };
            let again = matches!(
                &error,
                RegisterError::Store(
                    StoreError::Unavailable { .. }
                        | StoreError::Unknown { .. }
                        | StoreError::Conflict { .. }
                )
            );
            if !again {
                tracing::warn!(kind = name, %error, "the kind is not registered, so servers may not serve it");
                let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
                refused.insert(name, error.to_string());
                break;
            }
            failures += 1;
            tracing::debug!(kind = name, %error, "the kind is not registered yet");
            let delay = Backoff::SOURCE.delay(failures, &environment);
            environment.sleep(delay).await;
        }
    }
}
