//! One of our transactions as one of Consul's.
//!
//! First come the checks, then the writes, then what watchers go by (`layout`). A compare and a
//! put of the same key are one `cas`. Each put has flags of its own: to Consul a put of the same
//! value with the same flags is no change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use platctrl_framework::store::{Compare, Key, LeaseId, Revision, StoreError, Transaction, Write};

use crate::layout::{CLOCK, MANY, Scope, bucket_key, hint, is_own, lease_key, top_key, top_over};
use crate::leases::Known;
use crate::pack::PACKED;
use crate::shared::{ATTEMPTS, Claim, LIMITS, Shared, Wanted, locked};
use crate::wire::{MAX_OPS, Op, OpError, Pair, Txn};

/// An index that no key ever has: a check against it fails, also when the key is absent.
const NEVER: u64 = u64::MAX >> 1;

/// What an operation is for.
#[derive(Clone, Debug, PartialEq)]
enum Role {
    Compare(usize),
    Anchor,
    /// The lease is held.
    Lease(LeaseId),
    /// The lease's list of keys.
    LeaseKeys(LeaseId),
    Gone(String),
    Other,
}

/// Operations under way to become a transaction of Consul.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    ops: Vec<(Op, Role)>,
    scopes: BTreeSet<Scope>,
    deleted: BTreeMap<Scope, Vec<String>>,
    gones: HashMap<String, crate::gone::Gone>,
}

impl Batch {
    fn push(&mut self, role: Role, op: Op) {
        self.ops.push((op, role));
    }

    /// An operation whose failure means that something moved meanwhile.
    pub(crate) fn check(&mut self, op: Op) {
        self.push(Role::Other, op);
    }

    fn put(&mut self, role: Role, key: &Key, op: Op) {
        self.scopes.insert(Scope::of(key));
        self.push(role, op);
    }

    pub(crate) fn delete(&mut self, shared: &Shared, key: &Key) {
        let scope = Scope::of(key);
        if scope.is_group() {
            let name = key.as_str()[scope.to_string().len() + 1..].to_owned();
            self.deleted.entry(scope.clone()).or_default().push(name);
        }
        self.scopes.insert(scope);
        self.push(Role::Other, Op::delete(shared.api.at(key.as_str())));
    }

    /// Adds what watchers go by, at the end the clock.
    async fn finish(&mut self, shared: &Shared) -> Result<(), StoreError> {
        for (scope, names) in std::mem::take(&mut self.deleted) {
            let Some(key) = scope.gone() else { continue };
            let (index, gone) = shared.gone(&key).await?;
            let gone = gone.and(index, names);
            let op = Op::swap(
                shared.api.at(&key),
                gone.write().into(),
                shared.environment.random_u64(),
                index,
            );
            self.gones.insert(key.clone(), gone);
            self.push(Role::Gone(key), op);
        }
        let nonce = || shared.environment.random_u64();
        let mark = |key: String| {
            (
                Op::set(shared.api.at(&key), Bytes::new(), nonce()),
                Role::Other,
            )
        };
        let buckets: BTreeSet<u8> = self.scopes.iter().map(Scope::bucket).collect();
        let tops: BTreeSet<u8> = buckets.iter().copied().map(top_over).collect();
        let scopes = self.scopes.iter().map(Scope::generation);
        self.ops.extend(scopes.map(mark));
        // Tops and buckets only make the search shorter: without room for them all is searched.
        let room = MAX_OPS.saturating_sub(self.ops.len() + 1);
        if buckets.len() + tops.len() <= room {
            let marked = buckets.into_iter().map(bucket_key);
            self.ops
                .extend(marked.chain(tops.into_iter().map(top_key)).map(mark));
        } else {
            self.ops.push(mark(MANY.to_owned()));
        }
        let clock = Op::set(shared.api.at(CLOCK), hint(self.scopes.iter()), nonce());
        self.ops.push((clock, Role::Other));
        Ok(())
    }

    fn ops(&self) -> Vec<Op> {
        self.ops.iter().map(|(op, _)| op.clone()).collect()
    }
}

/// How a batch ended on the server.
pub(crate) enum Ended {
    Done,
    /// Nothing happened: a check failed.
    Moved,
}

impl Shared {
    /// Sends a batch of the store's own.
    pub(crate) async fn send(&self, mut batch: Batch) -> Result<Ended, StoreError> {
        batch.finish(self).await?;
        match self.write(&batch).await? {
            Ok(_) => Ok(Ended::Done),
            Err(errors) => {
                self.judge(&batch, &errors)?;
                Ok(Ended::Moved)
            }
        }
    }

    /// Sends the operations; what the server said about those that failed is the inner error.
    async fn write(
        &self,
        batch: &Batch,
    ) -> Result<Result<(u64, Vec<Pair>), Vec<OpError>>, StoreError> {
        let ops = batch.ops();
        if ops.len() > MAX_OPS {
            return Err(StoreError::TooLarge {
                what: "operations that the transaction takes on Consul".to_owned(),
                size: ops.len(),
                limit: MAX_OPS,
            });
        }
        match self.api.write(&ops).await? {
            Txn::Refused(errors) => Ok(Err(errors)),
            Txn::Done(pairs) => {
                let clock = pairs.iter().rev().find(|pair| pair.key == CLOCK);
                let Some(index) = clock.map(|clock| clock.modified) else {
                    return Err(self.api.nonsense("a commit", "its index is missing", true));
                };
                for (key, gone) in &batch.gones {
                    self.remember_gone(key, (index, gone.clone()));
                }
                Ok(Ok((index, pairs)))
            }
        }
    }

    /// Sorts the failures of a refused transaction: what is denied, which compares failed, and
    /// what was only remembered wrongly and is forgotten here.
    fn judge(&self, batch: &Batch, errors: &[OpError]) -> Result<Vec<Role>, StoreError> {
        let mut roles = Vec::new();
        for error in errors {
            let Some((op, role)) = batch.ops.get(error.op_index) else {
                return Err(self.api.unavailable("a commit", &error.what));
            };
            let key = self.api.without_root(op.key());
            if error.is_denied() {
                return Err(self.api.denied(&format!("{key} in a commit")));
            }
            match role {
                Role::Gone(key) => self.forget_gone(key),
                Role::LeaseKeys(lease) => self.leases.forget(*lease),
                Role::Other if !error.what.contains("failed") => {
                    // No check of ours: Consul does not take the operation.
                    let reason = format!("{}: {key}: {}", self.api.name(), error.what);
                    return Err(StoreError::Invalid { reason });
                }
                _ => {}
            }
            roles.push(role.clone());
        }
        Ok(roles)
    }

    pub(crate) async fn commit(&self, transaction: &Transaction) -> Result<Revision, StoreError> {
        LIMITS.check(transaction)?;
        refuse_own(transaction)?;
        self.know_anchor().await?;
        for _ in 0..ATTEMPTS {
            match self.attempt(transaction).await? {
                Some(revision) => return Ok(revision),
                None => tokio::task::yield_now().await,
            }
        }
        let reason = "others change the same scopes all the time, and nothing happened";
        Err(self.api.unavailable("a commit", reason))
    }

    /// One attempt; None when only something remembered was out of date.
    async fn attempt(&self, transaction: &Transaction) -> Result<Option<Revision>, StoreError> {
        let mut batch = Batch::default();
        batch.push(Role::Anchor, self.anchor_check());
        let merged = self.checks(&mut batch, transaction).await?;
        if transaction.writes.is_empty() {
            return self.judge_only(batch, transaction).await;
        }
        self.leases_of(&mut batch, transaction).await?;
        // The lease of a claim is remembered with it, so that the next compare need not look.
        let mut hung: HashMap<&str, (&Key, LeaseId)> = HashMap::new();
        for write in &transaction.writes {
            match write {
                Write::Put { key, value, lease } => {
                    let at = self.api.at(key.as_str());
                    let flags = self.flags(*lease);
                    let (role, op) = match merged.get(key) {
                        None => (Role::Other, Op::set(at, value.clone(), flags)),
                        Some((compare, index)) => (
                            Role::Compare(*compare),
                            Op::swap(at, value.clone(), flags, *index),
                        ),
                    };
                    batch.put(role, key, op);
                    if let Some(lease) = lease {
                        hung.insert(key.as_str(), (key, *lease));
                    }
                }
                Write::Delete { key } => batch.delete(self, key),
            }
        }
        batch.finish(self).await?;
        match self.write(&batch).await? {
            Ok((index, pairs)) => {
                for pair in &pairs {
                    if let Some((key, lease)) = hung.get(pair.key.as_str()) {
                        self.remember_claim(key, pair, lease.0);
                    }
                }
                self.took_keys(&batch, index);
                let anchor = crate::layout::ANCHOR;
                if transaction
                    .writes
                    .iter()
                    .any(|write| write.key().as_str() == anchor)
                {
                    // It happened; what the anchor is now is found out again by the next call.
                    let _ = self.refresh_anchor().await;
                }
                Ok(Some(self.revision(index)))
            }
            Err(errors) => {
                let failed = self.judge(&batch, &errors)?;
                self.conflict(transaction, failed).await
            }
        }
    }

    /// Adds the checks. Those of keys that are also put are left to the put: returned are their
    /// position and index.
    async fn checks<'a>(
        &self,
        batch: &mut Batch,
        transaction: &'a Transaction,
    ) -> Result<HashMap<&'a Key, (usize, u64)>, StoreError> {
        let epoch = self.epoch();
        let puts: BTreeSet<&Key> = transaction
            .writes
            .iter()
            .filter(|write| matches!(write, Write::Put { .. }))
            .map(Write::key)
            .collect();
        let mut merged = HashMap::new();
        for (position, compare) in transaction.compares.iter().enumerate() {
            let role = Role::Compare(position);
            match compare {
                Compare::Absent(key) => {
                    if puts.contains(key) && !merged.contains_key(key) {
                        merged.insert(key, (position, 0));
                    } else {
                        batch.push(role, Op::absent(self.api.at(key.as_str())));
                    }
                }
                Compare::Revision(key, revision) => {
                    let index = match revision.counter() {
                        // To Consul zero is an absent key.
                        0 => NEVER,
                        _ if revision.epoch() != epoch => NEVER,
                        index => index,
                    };
                    if index != NEVER && puts.contains(key) && !merged.contains_key(key) {
                        merged.insert(key, (position, index));
                    } else {
                        batch.push(role, Op::unchanged(self.api.at(key.as_str()), index));
                    }
                }
                Compare::ClaimHeld { key, epoch, lease } => {
                    let at = self.api.at(key.as_str());
                    match self.held(key, *epoch, *lease).await? {
                        Some((session, modified)) => {
                            let lease_key = self.api.at(&lease_key(lease.0));
                            batch.push(role.clone(), Op::held_by(lease_key, &session));
                            batch.push(role, Op::unchanged(at, modified));
                        }
                        None => batch.push(role, Op::unchanged(at, NEVER)),
                    }
                }
                Compare::RangeNotNewer(prefix, revision)
                    if let Some(scope) = Scope::of_group(prefix) =>
                {
                    batch.push(role, self.group_check(&scope, *revision).await?);
                }
                _ => {
                    let reason = "Consul has no such compare (see the capabilities)".to_owned();
                    return Err(StoreError::Invalid { reason });
                }
            }
        }
        Ok(merged)
    }

    /// That a group was not written to after a revision: its generation is as it is now, and that
    /// is not newer. A delete counts as a write.
    async fn group_check(&self, scope: &Scope, seen: Revision) -> Result<Op, StoreError> {
        let key = scope.generation();
        let wanted = Wanted {
            exact: vec![key.clone()],
            ..Wanted::default()
        };
        let found = self.view(&wanted).await?.exact.into_iter().next().flatten();
        let at = self.api.at(&key);
        Ok(match found.map(|pair| pair.modified) {
            None => Op::absent(at),
            Some(index) if self.revision(index) > seen => Op::unchanged(at, NEVER),
            Some(index) => Op::unchanged(at, index),
        })
    }

    /// For each lease that is put under: that it is held, and that it knows the keys.
    async fn leases_of(
        &self,
        batch: &mut Batch,
        transaction: &Transaction,
    ) -> Result<(), StoreError> {
        let mut keys: BTreeMap<LeaseId, Vec<&Key>> = BTreeMap::new();
        for write in &transaction.writes {
            if let Write::Put {
                key,
                lease: Some(lease),
                ..
            } = write
            {
                keys.entry(*lease).or_default().push(key);
            }
        }
        for (lease, keys) in keys {
            let known = self.lease(lease).await?;
            let Some(known) = known.filter(|known| known.session.is_some()) else {
                return Err(StoreError::LeaseNotFound { lease });
            };
            let session = known.session.clone().unwrap_or_default();
            let at = self.api.at(&lease_key(lease.0));
            batch.push(Role::Lease(lease), Op::held_by(at.clone(), &session));
            if let Some(more) = known.with_keys(&keys) {
                let nonce = self.environment.random_u64();
                let op = Op::swap(at, more.write(), nonce, known.index);
                batch.push(Role::LeaseKeys(lease), op);
                self.leases.expect(lease, more);
            }
        }
        Ok(())
    }

    fn took_keys(&self, batch: &Batch, index: u64) {
        for (_, role) in &batch.ops {
            if let Role::LeaseKeys(lease) = role {
                self.leases.confirm(*lease, index);
            }
        }
    }

    /// A transaction without writes: judged, and nothing else.
    async fn judge_only(
        &self,
        mut batch: Batch,
        transaction: &Transaction,
    ) -> Result<Option<Revision>, StoreError> {
        // Before the first commit there is no clock; no other key begins like it.
        let clock = Op::get_tree(self.api.at(CLOCK));
        batch.ops.push((clock, Role::Other));
        match self.api.read(&batch.ops()).await? {
            Txn::Done(pairs) => {
                let clock = pairs.iter().find(|pair| pair.key == CLOCK);
                let index = clock.map_or(0, |clock| clock.modified);
                Ok(Some(self.revision(index)))
            }
            Txn::Refused(errors) => {
                let failed = self.judge(&batch, &errors)?;
                self.conflict(transaction, failed).await
            }
        }
    }

    /// What failed checks mean for the caller; None: try again.
    async fn conflict(
        &self,
        transaction: &Transaction,
        failed: Vec<Role>,
    ) -> Result<Option<Revision>, StoreError> {
        if failed.contains(&Role::Anchor) {
            self.forget();
            self.refresh_anchor().await?;
        }
        let mut positions = BTreeSet::new();
        let mut lease_ended = None;
        for role in &failed {
            match role {
                Role::Compare(position) => {
                    positions.insert(*position);
                }
                Role::Lease(lease) => lease_ended = Some(*lease),
                _ => {}
            }
        }
        // A claim's record may have been rewritten by its holder since it was last seen.
        let mut looked_again = false;
        for position in positions.clone() {
            if let Some(Compare::ClaimHeld { key, epoch, lease }) =
                transaction.compares.get(position)
            {
                locked(&self.claims).remove(key);
                self.leases.forget(*lease);
                if self.held(key, *epoch, *lease).await?.is_some() {
                    positions.remove(&position);
                    looked_again = true;
                }
            }
        }
        if !positions.is_empty() && !looked_again {
            let failed = positions.into_iter().collect();
            return Err(StoreError::Conflict { failed });
        }
        if let Some(lease) = lease_ended {
            self.leases.forget(lease);
            return Err(StoreError::LeaseNotFound { lease });
        }
        Ok(None)
    }

    /// Whether the claim of an epoch is held by a lease, as far as can be told beforehand: the
    /// session and the index to compare.
    async fn held(
        &self,
        key: &Key,
        epoch: Revision,
        lease: LeaseId,
    ) -> Result<Option<(String, u64)>, StoreError> {
        if epoch.epoch() != self.epoch() {
            return Ok(None);
        }
        let fits = |claim: &Claim| claim.created == epoch.counter() && claim.lease == lease.0;
        let known = locked(&self.claims).get(key).copied();
        let claim = match known.filter(fits) {
            Some(claim) => claim,
            None => {
                let wanted = Wanted {
                    exact: vec![key.as_str().to_owned()],
                    ..Wanted::default()
                };
                let view = self.view(&wanted).await?;
                let Some(pair) = view.exact.into_iter().next().flatten() else {
                    return Ok(None);
                };
                let lease = crate::leases::lease_in(pair.flags).map_or(0, |lease| lease.0);
                match Some(self.remember_claim(key, &pair, lease)).filter(fits) {
                    Some(claim) => claim,
                    None => return Ok(None),
                }
            }
        };
        let session = self
            .lease(lease)
            .await?
            .and_then(|known: Known| known.session);
        Ok(session.map(|session| (session, claim.modified)))
    }

    fn remember_claim(&self, key: &Key, pair: &Pair, lease: u64) -> Claim {
        let claim = Claim {
            created: pair.created,
            modified: pair.modified,
            lease,
        };
        let mut claims = locked(&self.claims);
        if claims.len() >= 1_024 {
            claims.clear();
        }
        claims.insert(key.clone(), claim);
        claim
    }

    /// Flags of a put: its lease below, above it what makes each put a change.
    fn flags(&self, lease: Option<LeaseId>) -> u64 {
        (self.environment.random_u64() << 32) & !PACKED | lease.map_or(0, |lease| lease.0)
    }
}

fn refuse_own(transaction: &Transaction) -> Result<(), StoreError> {
    let compared = transaction
        .compares
        .iter()
        .filter_map(|compare| match compare {
            Compare::Absent(key) | Compare::Revision(key, _) | Compare::ClaimHeld { key, .. } => {
                Some(key)
            }
            _ => None,
        });
    let mut keys = compared.chain(transaction.writes.iter().map(Write::key));
    match keys.find(|key| is_own(key.as_str())) {
        None => Ok(()),
        Some(key) => Err(StoreError::Invalid {
            reason: format!("{key} belongs to the store on Consul itself"),
        }),
    }
}
