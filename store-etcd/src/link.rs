//! Links to a cluster: one connection at a time for each, to the next member when one fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::connection::{Connection, Trouble, Unreachable, connect};
use crate::location::Location;
use crate::shared::{Shared, lock};

/// A round over all members that failed is not repeated sooner.
const PAUSE_BETWEEN_ROUNDS: Duration = Duration::from_millis(100);

/// One connection at a time, to whichever member works.
pub(crate) struct Link {
    pub(crate) shared: Arc<Shared>,
    current: Mutex<Option<Arc<Connection>>>,
    connecting: tokio::sync::Mutex<Option<(Instant, Unreachable)>>,
    /// The member to try first.
    preferred: AtomicUsize,
}

impl Link {
    pub(crate) fn new(shared: Arc<Shared>, preferred: usize) -> Self {
        Self {
            shared,
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(None),
            preferred: AtomicUsize::new(preferred),
        }
    }

    fn usable(&self) -> Option<Arc<Connection>> {
        let current = lock(&self.current);
        current.as_ref().filter(|held| !held.is_closed()).cloned()
    }

    /// The connection, made when there is none. Asks every member once.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, Unreachable> {
        if let Some(connection) = self.usable() {
            return Ok(connection);
        }
        let mut last = self.connecting.lock().await;
        if let Some(connection) = self.usable() {
            return Ok(connection);
        }
        if let Some((when, unreachable)) = &*last
            && when.elapsed() < PAUSE_BETWEEN_ROUNDS
        {
            return Err(unreachable.clone());
        }
        match self.round().await {
            Ok(connection) => {
                *last = None;
                *lock(&self.current) = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(unreachable) => {
                *last = Some((Instant::now(), unreachable.clone()));
                Err(unreachable)
            }
        }
    }

    /// Makes another connection and uses it from then on; the one before ends with its calls.
    /// Keeps the one before when none can be made.
    pub(crate) async fn renew(&self) -> Result<(), Unreachable> {
        let _alone = self.connecting.lock().await;
        let connection = self.round().await?;
        *lock(&self.current) = Some(connection);
        Ok(())
    }

    /// The member that is used now.
    pub(crate) fn member(&self) -> Option<String> {
        let endpoints = self.shared.location.endpoints();
        self.usable().map(|held| endpoints[held.member].to_string())
    }

    /// Uses another connection, to another member where there is one, from now on.
    pub(crate) fn give_up(&self, connection: &Connection) {
        let mut current = lock(&self.current);
        if current
            .as_ref()
            .is_some_and(|held| held.number == connection.number)
        {
            *current = None;
            let next = (connection.member + 1) % self.shared.location.endpoints().len();
            self.preferred.store(next, Ordering::Relaxed);
        }
    }

    async fn round(&self) -> Result<Arc<Connection>, Unreachable> {
        let endpoints = self.shared.location.endpoints();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut kinds = Vec::new();
        let mut reasons = Vec::new();
        for offset in 0..endpoints.len() {
            let member = (first + offset) % endpoints.len();
            match connect(&self.shared, member).await {
                Ok(connection) => {
                    self.preferred.store(member, Ordering::Relaxed);
                    return Ok(Arc::new(connection));
                }
                Err(unreachable) => {
                    kinds.push(unreachable.kind);
                    reasons.push(unreachable.reason);
                }
            }
        }
        // A password is the same for all members; a certificate or a port is each one's own.
        let kind = if kinds.contains(&Trouble::Rights) {
            Trouble::Rights
        } else if kinds.contains(&Trouble::Time) {
            Trouble::Time
        } else {
            Trouble::Configuration
        };
        let reason = reasons.join("; ");
        Err(Unreachable { kind, reason })
    }
}

/// Which member a new link tries first, so that clients spread over the members.
pub(crate) fn any_member(location: &Location) -> usize {
    rand::rng().random_range(0..location.endpoints().len())
}
