//! Many processes share the keys of their controllers: each claims some of the shards.
//!
//! All records of a group are under `x/lease/<name>/`: `member-<id>` for each process, `shard-<n>`
//! for each shard that somebody works on, all of a process on one lease, and `shards`, which says
//! how many there are. Every process watches that range and computes the same [`assign`]ment from
//! it. A shard that is another's is left in order and its claim deleted; one that is ours and free
//! is claimed. Whatever processes see and when, a shard has one holder, because its claim's key
//! has, and every commit compares that claim.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::assign::assign;
use super::claim::{Fence, Kept, holder};
use super::event::EventRecorder;
use super::lead::{LOST_GRACE, Lead};
use super::posts::Post;
use super::runtime::RunError;
use super::status::ShardStatus;
use crate::backoff::Backoff;
use crate::model::check_name;
use crate::store::{
    Change, Key, ListRequest, Prefix, Record, Revision, Store, StoreError, Transaction, WatchEvent,
};

/// The most shards: so many claims can be read and given up on every backend without ado.
pub(super) const MOST_SHARDS: usize = 256;

/// Whatever makes a process read or join again and again does so at this pace.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the last events are waited for.
const FLUSH: Duration = Duration::from_secs(2);

const COUNT: &str = "shards";
const MEMBER: &str = "member-";
const SHARD: &str = "shard-";

/// How many shards a group has.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Count {
    shards: usize,
}

/// This process's part in a group.
#[derive(Debug)]
pub(super) struct Sharding {
    prefix: Prefix,
    count: usize,
    seen: Mutex<ShardStatus>,
}

/// Everything under the group's prefix.
#[derive(Debug, Default)]
struct Group {
    records: BTreeMap<Key, Record>,
    revision: Revision,
}

/// This process as a member.
struct Member {
    id: String,
    key: Key,
    kept: Kept,
    posts: BTreeMap<usize, Arc<Post>>,
    /// Shards that are being left.
    leaving: BTreeSet<usize>,
    /// The newest revision that was seen: nothing older is decided on.
    seen: Revision,
}

/// Why a membership ended.
enum Ended {
    Stopped,
    Lost,
}

type Leaving<'a> = FuturesUnordered<BoxFuture<'a, usize>>;

impl Sharding {
    pub(super) fn new(name: &str, count: usize) -> Result<Self, RunError> {
        check_name("runtime name", name)?;
        if !(1..=MOST_SHARDS).contains(&count) {
            return Err(RunError::Shards {
                count,
                most: MOST_SHARDS,
            });
        }
        let prefix = Prefix::new(format!("x/lease/{name}/"));
        Ok(Self {
            prefix: prefix.expect("a checked name makes a valid prefix"),
            count,
            seen: Mutex::new(ShardStatus {
                count,
                ..ShardStatus::default()
            }),
        })
    }

    pub(super) fn status(&self) -> ShardStatus {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, change: impl FnOnce(&mut ShardStatus)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn key(&self, name: &str) -> Key {
        let key = self.prefix.key(name);
        key.expect("names of a group's records are valid")
    }

    fn shard_key(&self, shard: usize) -> Key {
        self.key(&format!("{SHARD}{shard:03}"))
    }

    /// Takes part until stopped.
    pub(super) async fn work(&self, lead: &Lead, stop: &CancellationToken) -> Result<(), RunError> {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let joined = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                joined = self.join(lead) => joined,
            };
            match joined {
                Ok(Some(mut member)) => {
                    failures = 0;
                    self.serve(lead, &mut member, stop).await;
                    self.tell(|seen| {
                        seen.held.clear();
                        seen.member = None;
                    });
                    member.kept.release().await;
                }
                // Others join too, or the list was an old one.
                Ok(None) => {
                    failures = 0;
                    let pause = lead.environment.jitter(PAUSE);
                    lead.environment.sleep(pause).await;
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(prefix = %self.prefix, %error, "cannot take part");
                    let delay = Backoff::SOURCE.delay(failures, &lead.environment);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = lead.environment.sleep(delay) => {}
                    }
                }
            }
        }
        Ok(())
    }

    async fn read(&self, store: &dyn Store) -> Result<Group, StoreError> {
        let mut request = ListRequest::new(self.prefix.clone());
        let mut group = Group::default();
        loop {
            let page = store.list(&request).await?;
            let revision = *request.at.get_or_insert(page.revision);
            group.revision = revision;
            request.after = page.records.last().map(|record| record.key.clone());
            let records = page.records.into_iter();
            group
                .records
                .extend(records.map(|record| (record.key.clone(), record)));
            if !page.more || request.after.is_none() {
                return Ok(group);
            }
        }
    }

    /// Becomes a member, unless the others go by another number of shards: then None, after a
    /// while.
    async fn join(&self, lead: &Lead) -> Result<Option<Member>, StoreError> {
        let group = self.read(&*lead.store).await?;
        let count_key = self.key(COUNT);
        let count = group.records.get(&count_key);
        let wanted = Count { shards: self.count };
        let agreed = count.is_some_and(|record| {
            serde_json::from_slice::<Count>(&record.value).is_ok_and(|count| count == wanted)
        });
        let others = group.records.keys().any(|key| *key != count_key);
        if !agreed && others {
            tracing::warn!(
                prefix = %self.prefix,
                count = self.count,
                "waiting: processes that go by another number of shards are still there"
            );
            self.tell(|seen| seen.waits_for_others = true);
            let again = lead.environment.jitter(lead.ttl / 2);
            lead.environment.sleep(again).await;
            return Ok(None);
        }
        self.tell(|seen| seen.waits_for_others = false);
        let kept = Kept::grant(&lead.store, &lead.environment, lead.ttl).await?;
        let id = lead.environment.suffix(12);
        let key = self.key(&format!("{MEMBER}{id}"));
        // Rewriting the number makes those who join at once come one after the other, so that
        // none joins while another changes it.
        let join = Transaction::new()
            .require_absent(key.clone())
            .require_unchanged(count_key.clone(), count.map(|record| record.modified))
            .put_with_lease(
                key.clone(),
                holder(&lead.holder(), &lead.environment),
                kept.lease(),
            )
            .put(
                count_key,
                serde_json::to_vec(&wanted).expect("plain records are written as JSON"),
            );
        let joined = match lead.store.commit(join).await {
            Ok(joined) => joined,
            // If it happened, it ends with the lease.
            Err(error) => {
                kept.release().await;
                return if error.is_conflict() {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
        };
        tracing::info!(prefix = %self.prefix, member = id, "this process takes part");
        self.tell(|seen| seen.member = Some(id.clone()));
        Ok(Some(Member {
            id,
            key,
            kept,
            posts: BTreeMap::new(),
            leaving: BTreeSet::new(),
            seen: joined,
        }))
    }

    /// Works on the shards that are this member's, as the group changes.
    async fn serve(&self, lead: &Lead, member: &mut Member, stop: &CancellationToken) {
        let mut leaving = Leaving::new();
        let mut failures = 0;
        loop {
            let outcome = self.follow(lead, member, &mut leaving, stop).await;
            match outcome {
                Ok(Ended::Stopped) => {
                    self.leave_all(lead, member, leaving).await;
                    return;
                }
                Ok(Ended::Lost) => break,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(prefix = %self.prefix, %error, "cannot follow the other members");
                    let delay = Backoff::SOURCE.delay(failures, &lead.environment);
                    tokio::select! {
                        biased;
                        () = member.kept.lost() => break,
                        () = stop.cancelled() => {
                            self.leave_all(lead, member, leaving).await;
                            return;
                        }
                        () = lead.environment.sleep(delay) => {}
                    }
                }
            }
        }
        tracing::warn!(prefix = %self.prefix, member = member.id, "this process lost its shards");
        let grace = lead.grace.min(LOST_GRACE);
        let closing = member.posts.values();
        let closing = closing.map(|post| post.close(grace, &lead.environment));
        futures::future::join_all(closing).await;
        for shard in std::mem::take(&mut member.posts).into_keys() {
            lead.posts.leave(shard);
        }
    }

    /// Reads the group and follows it until something goes wrong. Read again now and then, as
    /// watches have bugs.
    async fn follow<'a>(
        &'a self,
        lead: &'a Lead,
        member: &mut Member,
        leaving: &mut Leaving<'a>,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        loop {
            let mut group = self.read(&*lead.store).await?;
            if group.revision < member.seen {
                return Err(StoreError::unavailable(format!(
                    "the list of {} is as of revision {}, and {} was seen before",
                    self.prefix, group.revision, member.seen
                )));
            }
            member.seen = group.revision;
            let mut watch = lead.store.watch(self.prefix.clone(), group.revision);
            let again = lead.environment.jitter(lead.ttl / 2);
            let again = lead.environment.sleep(again);
            tokio::pin!(again);
            loop {
                self.settle(lead, member, &mut group, leaving).await?;
                tokio::select! {
                    biased;
                    () = member.kept.lost() => return Ok(Ended::Lost),
                    () = stop.cancelled() => return Ok(Ended::Stopped),
                    Some(shard) = leaving.next(), if !leaving.is_empty() => {
                        let fences = self.left(lead, member, [shard]);
                        let given_up = self.give_up(lead, &fences, None).await?;
                        member.seen = member.seen.max(given_up);
                        for fence in &fences {
                            group.records.remove(fence.key());
                        }
                    }
                    event = watch.next() => match event {
                        Some(Ok(WatchEvent::Changes { revision, changes })) => {
                            group.revision = revision;
                            member.seen = member.seen.max(revision);
                            for change in changes {
                                match change {
                                    Change::Put(record) => {
                                        group.records.insert(record.key.clone(), record);
                                    }
                                    Change::Delete { key, .. } => {
                                        group.records.remove(&key);
                                    }
                                }
                            }
                        }
                        Some(Ok(WatchEvent::Progress(revision))) => {
                            group.revision = revision;
                            member.seen = member.seen.max(revision);
                        }
                        Some(Err(error)) => return Err(error),
                        Some(Ok(WatchEvent::Reset { .. })) | None => {
                            let pause = lead.environment.jitter(PAUSE);
                            lead.environment.sleep(pause).await;
                            break;
                        }
                    },
                    () = &mut again => break,
                }
            }
        }
    }

    /// Does what the group's state asks of this member.
    async fn settle<'a>(
        &'a self,
        lead: &'a Lead,
        member: &mut Member,
        group: &mut Group,
        leaving: &mut Leaving<'a>,
    ) -> Result<(), StoreError> {
        let name = |key: &Key, start: &str| {
            let name = key.as_str().strip_prefix(self.prefix.as_str())?;
            name.strip_prefix(start).map(ToOwned::to_owned)
        };
        let records = || group.records.iter();
        let mut members: BTreeSet<_> = records().filter_map(|(key, _)| name(key, MEMBER)).collect();
        let by_lease: BTreeMap<_, _> = records()
            .filter_map(|(key, record)| Some((record.lease?, name(key, MEMBER)?)))
            .collect();
        // Its own record may be newer than what was read.
        members.insert(member.id.clone());
        let holders: Vec<_> = (0..self.count)
            .map(|shard| {
                let record = group.records.get(&self.shard_key(shard))?;
                let lease = record.lease?;
                let of = by_lease.get(&lease).cloned();
                // Held by somebody who is leaving: nobody's, but not free.
                Some(of.unwrap_or_default())
            })
            .collect();
        let assigned = assign(&members, &holders);
        for (shard, (holder, wanted)) in holders.iter().zip(&assigned).enumerate() {
            let wanted = *wanted == Some(member.id.as_str());
            let key = self.shard_key(shard);
            let created = group.records.get(&key).map(|record| record.created);
            if let Some(post) = member.posts.get(&shard).cloned() {
                let fence = post.fence.as_ref();
                // What was won after the group was read is not in it yet.
                let gone = fence.filter(|fence| {
                    fence.epoch() <= group.revision && created != Some(fence.epoch())
                });
                if let Some(fence) = gone {
                    fence.lose();
                }
                if (gone.is_some() || !wanted) && member.leaving.insert(shard) {
                    let grace = gone.map_or(lead.grace, |_| LOST_GRACE);
                    leaving.push(leave(lead, post.clone(), grace));
                }
                continue;
            }
            match (holder.as_deref(), created) {
                (None, _) if wanted => {
                    if let Some(epoch) = self.claim(lead, member, key.clone()).await? {
                        self.take_up(lead, member, shard, epoch);
                    }
                }
                // A claim whose answer was lost, won or given up.
                (Some(holder), Some(epoch)) if holder == member.id => {
                    if wanted {
                        self.take_up(lead, member, shard, epoch);
                    } else {
                        let fence = self.fence(member, shard, epoch);
                        let given_up = self.give_up(lead, &[fence], None).await?;
                        member.seen = member.seen.max(given_up);
                        group.records.remove(&key);
                    }
                }
                _ => {}
            }
        }
        self.tell(|seen| {
            seen.members = members.len();
            seen.held = member.posts.keys().copied().collect();
        });
        Ok(())
    }

    /// Claims a shard that is free; None when it may be another's.
    async fn claim(
        &self,
        lead: &Lead,
        member: &Member,
        key: Key,
    ) -> Result<Option<Revision>, StoreError> {
        let value = holder(&lead.holder(), &lead.environment);
        let claim = Transaction::new()
            .require_absent(key.clone())
            .put_with_lease(key, value, member.kept.lease());
        match lead.store.commit(claim).await {
            Ok(epoch) => Ok(Some(epoch)),
            // The watch tells who has it.
            Err(StoreError::Conflict { .. } | StoreError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fence(&self, member: &Member, shard: usize, epoch: Revision) -> Fence {
        let key = self.shard_key(shard);
        let name = key.as_str().trim_start_matches("x/lease/").to_owned();
        Fence::new(name, key, epoch, member.kept.tenure())
    }

    fn take_up(&self, lead: &Lead, member: &mut Member, shard: usize, epoch: Revision) {
        member.seen = member.seen.max(epoch);
        let fence = self.fence(member, shard, epoch);
        let writer = format!("{}.{shard:03}", lead.name);
        let recorder = EventRecorder::new(
            lead.store.clone(),
            &writer,
            &lead.name,
            lead.environment.clone(),
        );
        tracing::info!(shard, epoch = %epoch, "this process works on the shard");
        let post = Post::new(shard, Some(fence), recorder.ok());
        member.posts.insert(shard, post.clone());
        lead.posts.take_up(post);
    }

    /// Leaves shards whose runs have ended, and returns their claims.
    fn left(
        &self,
        lead: &Lead,
        member: &mut Member,
        shards: impl IntoIterator<Item = usize>,
    ) -> Vec<Fence> {
        let mut left = Vec::new();
        for shard in shards {
            lead.posts.leave(shard);
            member.leaving.remove(&shard);
            let post = member.posts.remove(&shard);
            left.extend(post.and_then(|post| post.fence.clone()));
        }
        for fence in &left {
            fence.lose();
            tracing::info!(claim = fence.name(), "this process gives the shard up");
        }
        left
    }

    /// Deletes claims of this member, so that their next holders begin at once, and its own record
    /// with them if it leaves.
    async fn give_up(
        &self,
        lead: &Lead,
        fences: &[Fence],
        mut own: Option<Key>,
    ) -> Result<Revision, StoreError> {
        let mut last = Revision::ZERO;
        let most = lead.store.capabilities().limits.max_operations;
        for fences in fences.chunks((most / 2).saturating_sub(1).clamp(1, 30)) {
            let delete = |fence: &Fence, transaction: Transaction| {
                let delete = transaction.require(fence.compare());
                delete.delete(fence.key().clone())
            };
            let all = Transaction::new();
            let mut all = fences.iter().fold(all, |all, fence| delete(fence, all));
            if let Some(key) = own.take() {
                all = all.delete(key);
            }
            match lead.store.commit(all).await {
                // One of them is gone already: each by itself.
                Err(StoreError::Conflict { .. }) => {
                    for fence in fences {
                        match lead.store.commit(delete(fence, Transaction::new())).await {
                            Ok(revision) => last = revision,
                            Err(StoreError::Conflict { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                outcome => last = outcome?,
            }
        }
        if let Some(key) = own {
            last = lead.store.commit(Transaction::new().delete(key)).await?;
        }
        Ok(last)
    }

    /// Leaves everything in order: what is idle at once, and each other shard when its runs have
    /// ended.
    async fn leave_all<'a>(
        &'a self,
        lead: &'a Lead,
        member: &mut Member,
        mut leaving: Leaving<'a>,
    ) {
        let posts: Vec<_> = member.posts.values().cloned().collect();
        for post in &posts {
            if member.leaving.insert(post.shard) {
                leaving.push(leave(lead, post.clone(), lead.grace));
            }
        }
        // Without the member's record the others share its shards among them.
        let mut own = Some(member.key.clone());
        loop {
            let mut ended = Vec::new();
            while let Some(Some(shard)) = leaving.next().now_or_never() {
                ended.push(shard);
            }
            let fences = self.left(lead, member, ended);
            let given_up = self.give_up(lead, &fences, own.take());
            let outcome = tokio::select! {
                biased;
                outcome = given_up => outcome,
                () = member.kept.lost() => return,
                () = lead.environment.sleep(LOST_GRACE) => return,
            };
            if let Err(error) = outcome {
                tracing::debug!(prefix = %self.prefix, %error, "the shards end with their lease");
            }
            let Some(shard) = leaving.next().await else {
                break;
            };
            let fences = self.left(lead, member, [shard]);
            // What fails ends with the lease, which is released next.
            let _ = self.give_up(lead, &fences, None).await;
        }
        let flushed = posts.iter().filter_map(|post| post.recorder.as_ref());
        let flushed = futures::future::join_all(flushed.map(EventRecorder::flush));
        tokio::select! {
            biased;
            _ = flushed => {}
            () = lead.environment.sleep(FLUSH) => {}
        }
    }
}

/// Leaves a post in order.
fn leave(lead: &Lead, post: Arc<Post>, grace: Duration) -> BoxFuture<'_, usize> {
    Box::pin(async move {
        post.close(grace, &lead.environment).await;
        post.shard
    })
}
