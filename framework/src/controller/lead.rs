//! The times in which this process works: always, while it leads, or for the shards it holds.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::claim::{Campaign, Held};
use super::event::EventRecorder;
use super::posts::{Post, Posts};
use super::runtime::RunError;
use super::sharding::Sharding;
use crate::environment::Environment;
use crate::store::Store;

/// How long runs may take to end once nothing that they commit is taken any more.
pub(super) const LOST_GRACE: Duration = Duration::from_secs(5);

/// How many processes share the work of a runtime's controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Division {
    /// There is one process.
    Alone,
    /// One of them works at a time.
    Leader { claim: String },
    /// Each works on some of so many shards.
    Shards { count: usize },
}

impl Division {
    pub(super) fn shards(&self) -> usize {
        match self {
            Self::Alone | Self::Leader { .. } => 1,
            Self::Shards { count } => *count,
        }
    }
}

/// Works as the division says, until stopped.
pub(super) struct Lead {
    pub(super) store: Arc<dyn Store>,
    pub(super) environment: Environment,
    /// The runtime's name.
    pub(super) name: String,
    pub(super) ttl: Duration,
    pub(super) grace: Duration,
    pub(super) posts: Arc<Posts>,
    pub(super) recorder: EventRecorder,
}

impl Lead {
    pub(super) async fn work(
        &self,
        division: &Division,
        sharding: Option<&Sharding>,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        match (division, sharding) {
            (Division::Leader { claim }, _) => self.while_leading(claim, stop).await,
            (_, Some(sharding)) => sharding.work(self, stop).await,
            (_, None) => {
                self.alone(stop).await;
                Ok(())
            }
        }
    }

    async fn alone(&self, stop: &CancellationToken) {
        let post = Post::new(0, None, None);
        self.posts.take_up(post.clone());
        stop.cancelled().await;
        post.close(self.grace, &self.environment).await;
        self.posts.leave(0);
    }

    async fn while_leading(&self, claim: &str, stop: &CancellationToken) -> Result<(), RunError> {
        let campaign = Campaign {
            store: self.store.clone(),
            environment: self.environment.clone(),
            name: claim.to_owned(),
            holder: self.holder(),
            ttl: self.ttl,
        };
        loop {
            let held = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                held = campaign.win() => held?,
            };
            self.term(held, stop).await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// One time of leading, from winning the claim to its end.
    async fn term(&self, held: Held, stop: &CancellationToken) {
        let fence = held.fence().clone();
        tracing::info!(claim = fence.name(), epoch = %fence.epoch(), "this process leads");
        self.recorder.reload();
        let post = Post::new(0, Some(fence.clone()), None);
        self.posts.take_up(post.clone());
        let grace = tokio::select! {
            biased;
            () = stop.cancelled() => self.grace,
            () = fence.lost() => self.grace.min(LOST_GRACE),
        };
        post.close(grace, &self.environment).await;
        self.posts.leave(0);
        tracing::info!(claim = fence.name(), "this process does not lead any more");
        held.release().await;
    }

    /// Names this process, for people.
    pub(super) fn holder(&self) -> String {
        format!("{}-{}", self.name, self.environment.process())
    }
}
