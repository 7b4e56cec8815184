//! What this process may work on at the moment, and under which claim.
//!
//! Keys are spread over shards; without sharding there is one. A [`Post`] is the right to work on
//! one shard: it is taken up when its claim was won, and left in order: no new runs, those that
//! have begun are finished, then the claim is given up.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::claim::Fence;
use super::event::EventRecorder;
use crate::environment::Environment;
use crate::model::ObjectKey;

/// The right to work on one shard.
pub(crate) struct Post {
    pub(crate) shard: usize,
    pub(crate) fence: Option<Fence>,
    /// The ring of events that this post's holder writes, where several processes work at once.
    pub(crate) recorder: Option<EventRecorder>,
    /// No new runs.
    closed: CancellationToken,
    /// Runs are ended where they wait.
    cut: CancellationToken,
    running: AtomicUsize,
    idle: Notify,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post")
            .field("shard", &self.shard)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Post {
    pub(crate) fn new(
        shard: usize,
        fence: Option<Fence>,
        recorder: Option<EventRecorder>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shard,
            fence,
            recorder,
            closed: CancellationToken::new(),
            cut: CancellationToken::new(),
            running: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Begins a run; None once no more may begin.
    fn enter(self: &Arc<Self>) -> Option<Duty> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let duty = Duty(self.clone());
        (!self.closed.is_cancelled()).then_some(duty)
    }

    /// Lets runs that have begun finish, for as long as `grace`, and lets none begin. Runs that
    /// take longer are ended where they wait.
    pub(crate) async fn close(&self, grace: Duration, environment: &Environment) {
        self.closed.cancel();
        tokio::select! {
            biased;
            () = self.until_idle() => return,
            () = environment.sleep(grace) => {}
        }
        let running = self.running.load(Ordering::SeqCst);
        tracing::warn!(
            shard = self.shard,
            running,
            ?grace,
            "runs were ended where they waited"
        );
        self.cut.cancel();
        self.until_idle().await;
    }

    async fn until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// A run under a post, which is not left before all of them have ended.
#[derive(Debug)]
pub(crate) struct Duty(Arc<Post>);

impl Duty {
    pub(crate) fn post(&self) -> &Arc<Post> {
        &self.0
    }

    /// Completes when no more runs may begin.
    pub(crate) async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// Completes when the run may not go on.
    pub(crate) async fn cut(&self) {
        self.0.cut.cancelled().await;
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// One place for each shard.
pub(crate) type Held = Arc<[Option<Arc<Post>>]>;

/// The posts that this process holds.
#[derive(Debug)]
pub(crate) struct Posts {
    held: watch::Sender<Held>,
}

impl Posts {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            held: watch::Sender::new(vec![None; shards].into()),
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Held> {
        self.held.subscribe()
    }

    fn set(&self, shard: usize, post: Option<Arc<Post>>) {
        self.held.send_modify(|held| {
            let mut posts = held.to_vec();
            posts[shard] = post;
            *held = posts.into();
        });
    }

    pub(crate) fn take_up(&self, post: Arc<Post>) {
        self.set(post.shard, Some(post));
    }

    pub(crate) fn leave(&self, shard: usize) {
        self.set(shard, None);
    }
}

/// Begins a run of `key` under the post that it belongs to, if that is among `held`.
pub(crate) fn enter(held: &[Option<Arc<Post>>], key: &ObjectKey) -> Option<Duty> {
    held.get(shard_of(key, held.len()))?.as_ref()?.enter()
}

/// `key` belongs to one of `held`.
pub(crate) fn holds(held: &[Option<Arc<Post>>], key: &ObjectKey) -> bool {
    held.get(shard_of(key, held.len()))
        .is_some_and(Option::is_some)
}

/// The shard of a key: the same in every process and every version.
pub(crate) fn shard_of(key: &ObjectKey, shards: usize) -> usize {
    if shards <= 1 {
        return 0;
    }
    let kind = key.kind();
    let mut hash = StableHash::default();
    for segment in [&*kind.group, &*kind.plural]
        .into_iter()
        .chain(key.node())
        .chain(key.namespace())
        .chain([key.name()])
    {
        hash.write(segment.as_bytes());
        hash.write(b"/");
    }
    let shards = shards as u64;
    usize::try_from(hash.finish() % shards).expect("less than a usize")
}

/// FNV-1a with a last mix: processes of different builds have to agree, so it is written down
/// here and never changed.
pub(crate) struct StableHash(u64);

impl Default for StableHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for StableHash {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::namespaced("example.dev", "sites", "default", name).expect("a valid key")
    }

    #[test]
    fn keys_are_spread_evenly_and_never_elsewhere() {
        let mut counts = [0; 8];
        for number in 0..8000 {
            counts[shard_of(&key(&format!("s{number}")), 8)] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
        // Another build that puts them elsewhere would have them worked on twice.
        let places = ["a", "b", "c", "d"].map(|name| shard_of(&key(name), 8));
        assert_eq!(places, [6, 3, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_post_is_left_when_its_runs_have_ended() {
        let environment = Environment::system();
        let post = Post::new(0, None, None);
        let held = [Some(post.clone())];
        let duty = enter(&held, &key("a")).expect("open");
        let closing = tokio::spawn({
            let (post, environment) = (post.clone(), environment.clone());
            async move { post.close(Duration::from_secs(10), &environment).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(enter(&held, &key("a")).is_none());
        assert!(!closing.is_finished());
        drop(duty);
        closing.await.expect("no panic");
        assert!(environment.monotonic() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_takes_longer_than_the_grace_is_told_to_end() {
        let environment = Environment::system();
        let post = Post::new(0, None, None);
        let duty = post.enter().expect("open");
        let run = tokio::spawn(async move {
            duty.cut().await;
        });
        post.close(Duration::from_secs(10), &environment).await;
        run.await.expect("no panic");
    }
}
