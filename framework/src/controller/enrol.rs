//! A runtime registers the kinds that its controllers declare, so that every server serves them.
//!
//! Each form of a kind is written once; whoever finds it there writes nothing. A store that does
//! not let this program register, or a kind that was registered in a form with which this one is
//! not compatible, is told, and the controllers work on. Kinds that come later, with a controller
//! that is added, are registered when they come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::backoff::Backoff;
use crate::client::{RegisterError, Registered, register_kind};
use crate::environment::Environment;
use crate::failsafe::Safeguards;
use crate::model::KindDefinition;
use crate::store::{Store, StoreError};

/// Kinds that were not registered, by name, and why.
pub(super) type Refused = Arc<Mutex<BTreeMap<String, String>>>;

/// What registers kinds.
pub(super) struct Enrolment {
    pub(super) store: Arc<dyn Store>,
    pub(super) environment: Environment,
    pub(super) guards: Arc<Safeguards>,
    pub(super) refused: Refused,
}

impl Enrolment {
    /// Registers the kinds that are told, one after the other, for as long as any may be.
    pub(super) async fn work(self, mut told: mpsc::UnboundedReceiver<KindDefinition>) {
        let mut done = BTreeMap::new();
        while let Some(kind) = told.recv().await {
            let name = kind.group_plural().to_string();
            if done.get(&name) == Some(&kind) {
                continue;
            }
            self.enrol(&name, &kind).await;
            done.insert(name, kind);
        }
    }

    /// Tries until the kind is registered or refused.
    async fn enrol(&self, name: &str, kind: &KindDefinition) {
        let mut failures = 0;
        loop {
            // Nothing is written into a store that may not be this one, nor while all is frozen.
            self.guards.runs_allowed(false).await;
            let error = match register_kind(&*self.store, kind).await {
                Ok(outcome) => {
                    if matches!(outcome, Registered::New | Registered::Updated) {
                        tracing::info!(kind = name, ?outcome, "registered");
                    }
                    self.refused().remove(name);
                    return;
                }
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
                self.refused().insert(name.to_owned(), error.to_string());
                return;
            }
            failures += 1;
            tracing::debug!(kind = name, %error, "the kind is not registered yet");
            let delay = Backoff::SOURCE.delay(failures, &self.environment);
            self.environment.sleep(delay).await;
        }
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
