//! The store as one replica has it: the world's store, behind everything that can go wrong between
//! the two.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};

use super::core::{Admission, Core};
use super::trace::Actor;
use crate::store::{
    Capabilities, Change, Key, Lease, LeaseId, ListRequest, Page, Prefix, Result, Revision,
    Snapshot, Store, StoreError, Transaction, WatchEvent, WatchStream,
};

/// How long it takes to find out that the store cannot be reached.
const UNREACHABLE: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub(super) struct SimulatedStore {
    pub(super) core: Arc<Core>,
    pub(super) actor: Actor,
}

impl SimulatedStore {
    /// Takes the time of a call. Whoever is dead never comes back from it.
    async fn enter(&self) -> Result<()> {
        match self.core.admit(&self.actor) {
            Admission::Go(latency) if latency.is_zero() => {
                tokio::task::coop::consume_budget().await;
                return Ok(());
            }
            Admission::Go(latency) => tokio::time::sleep(latency).await,
            Admission::Away => {
                tokio::time::sleep(UNREACHABLE).await;
                return Err(unreachable());
            }
            Admission::Dead => return std::future::pending().await,
        }
        match self.core.admit(&self.actor) {
            Admission::Go(_) => Ok(()),
            Admission::Away => Err(unreachable()),
            Admission::Dead => std::future::pending().await,
        }
    }
}

fn unreachable() -> StoreError {
    StoreError::unavailable("simulated: the store cannot be reached")
}

impl Store for SimulatedStore {
    fn capabilities(&self) -> Capabilities {
        self.core.store.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        Box::pin(async move {
            self.enter().await?;
            self.core.store.get(keys).await
        })
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            self.enter().await?;
            let mut request = request.clone();
            if let Some(ceiling) = self.core.gate(&self.actor).ceiling {
                request.at = Some(request.at.map_or(ceiling, |at| at.min(ceiling)));
            }
            self.core.store.list(&request).await
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            self.enter().await?;
            match self.core.commit(&self.actor, &transaction) {
                Some(outcome) => outcome,
                None => std::future::pending().await,
            }
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        if !matches!(self.actor, Actor::Replica(..)) {
            return self.core.store.watch(prefix, after);
        }
        let gated = Gated {
            base: self.core.store.watch(prefix, after),
            breaks: self.core.gate(&self.actor).breaks,
            store: self.clone(),
            held: None,
            behind: None,
            ended: false,
        };
        futures::stream::unfold(gated, |mut gated| async move {
            let event = gated.next().await?;
            Some((event, gated))
        })
        .boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            self.enter().await?;
            self.core.store.grant_lease(ttl).await
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter().await?;
            self.core.store.keep_alive(lease).await
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter().await?;
            self.core.store.revoke_lease(lease).await
        })
    }
}

/// A watch that shows no more than its replica may see, and merges what it kept back.
struct Gated {
    store: SimulatedStore,
    base: WatchStream,
    breaks: u64,
    held: Option<Held>,
    /// What ended the merging and comes next.
    behind: Option<Result<WatchEvent>>,
    ended: bool,
}

struct Held {
    revision: Revision,
    changes: BTreeMap<Key, Change>,
}

impl Held {
    /// Takes an event in, or gives it back.
    fn merge(&mut self, event: Result<WatchEvent>) -> Option<Result<WatchEvent>> {
        match event {
            Ok(WatchEvent::Changes { revision, changes }) => {
                self.revision = revision;
                let changes = changes.into_iter();
                self.changes
                    .extend(changes.map(|change| (change.key().clone(), change)));
            }
            Ok(WatchEvent::Progress(revision)) => self.revision = revision,
            other => return Some(other),
        }
        None
    }
}

fn revision_of(event: &Result<WatchEvent>) -> Option<Revision> {
    match event {
        Ok(WatchEvent::Changes { revision, .. } | WatchEvent::Progress(revision)) => {
            Some(*revision)
        }
        _ => None,
    }
}

impl Gated {
    async fn next(&mut self) -> Option<Result<WatchEvent>> {
        if self.ended {
            return None;
        }
        let Actor::Replica(index, _) = &self.store.actor else {
            return None;
        };
        let moved = self.store.core.state().replicas[*index].gate.clone();
        loop {
            let mut lifted = pin!(moved.notified());
            lifted.as_mut().enable();
            let gate = self.store.core.gate(&self.store.actor);
            if !gate.alive {
                return std::future::pending().await;
            }
            if gate.away || gate.breaks != self.breaks {
                self.ended = true;
                return Some(Err(unreachable()));
            }
            if let Some(event) = self.behind.take() {
                return Some(event);
            }
            if self.held.is_some() {
                if gate.ceiling.is_some() {
                    lifted.await;
                    continue;
                }
                return Some(Ok(self.release()));
            }
            let event = tokio::select! {
                biased;
                () = &mut lifted => continue,
                event = self.base.next() => event?,
            };
            // It may have been lowered just now.
            let ceiling = self.store.core.gate(&self.store.actor).ceiling;
            match (ceiling, revision_of(&event)) {
                (Some(ceiling), Some(revision)) if revision > ceiling => {
                    let mut held = Held {
                        revision,
                        changes: BTreeMap::new(),
                    };
                    held.merge(event);
                    self.held = Some(held);
                }
                _ => return Some(event),
            }
        }
    }

    /// Everything that was kept back and what has come meanwhile, as one event.
    fn release(&mut self) -> WatchEvent {
        let mut held = self.held.take().unwrap_or(Held {
            revision: Revision::ZERO,
            changes: BTreeMap::new(),
        });
        while let Some(Some(event)) = self.base.next().now_or_never() {
            self.behind = held.merge(event);
            if self.behind.is_some() {
                break;
            }
        }
        if held.changes.is_empty() {
            return WatchEvent::Progress(held.revision);
        }
        WatchEvent::Changes {
            revision: held.revision,
            changes: held.changes.into_values().collect(),
        }
    }
}
