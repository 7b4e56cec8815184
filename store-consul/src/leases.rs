//! Leases: each is a session of Consul that locks one key of its own, `x/gen1/lease-<id>`.
//!
//! The key names the session and the keys that hang on the lease. While the session lasts, the
//! key is locked, and every commit under the lease or under a claim checks that. When it ends,
//! whoever notices first (whoever watches anything waits for that, too) deletes what hung on it, in
//! one commit like any other. Consul's own way, deleting what a session has locked, would do
//! that behind the back of the generations, and would let nobody move a key to another lease.
//!
//! Nobody else ever locks such a key, so the lock delay holds nobody up; what it is meant to
//! protect is protected by the check in each commit.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use platctrl_framework::store::{Key, Lease, LeaseId, StoreError};
use serde::{Deserialize, Serialize};

use crate::commit::{Batch, Ended};
use crate::layout::lease_key;
use crate::shared::{ATTEMPTS, Shared, Wanted, locked};
use crate::wire::{Op, Pair, Txn};

/// Consul's own limit.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Keys that are deleted in one commit; a claim is one key.
const AT_ONCE: usize = 10;

/// The lease in a pair's flags.
pub(crate) fn lease_in(flags: u64) -> Option<LeaseId> {
    let id = flags & u64::from(u32::MAX);
    (id != 0).then_some(LeaseId(id))
}

/// What a lease's key says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    session: String,
    keys: Vec<String>,
}

/// A lease as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) index: u64,
    /// None when it has ended.
    pub(crate) session: Option<String>,
    content: Content,
}

impl Known {
    fn read(pair: &Pair) -> Option<Self> {
        let content: Content = serde_json::from_slice(&pair.value).ok()?;
        let session = pair.session.clone();
        Some(Self {
            index: pair.modified,
            session: session.filter(|session| *session == content.session),
            content,
        })
    }

    pub(crate) fn write(&self) -> Bytes {
        let value = serde_json::to_vec(&self.content);
        value.expect("plain records are written as JSON").into()
    }

    /// With more keys, if some are new.
    pub(crate) fn with_keys(&self, keys: &[&Key]) -> Option<Self> {
        let mut more = self.clone();
        for key in keys {
            if !more.content.keys.iter().any(|known| known == key.as_str()) {
                more.content.keys.push(key.as_str().to_owned());
            }
        }
        (more != *self).then_some(more)
    }
}

/// The leases that this process has to do with.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    known: Mutex<HashMap<LeaseId, Known>>,
    /// What a commit under way makes of them.
    expected: Mutex<HashMap<LeaseId, Known>>,
}

impl Leases {
    pub(crate) fn forget(&self, lease: LeaseId) {
        locked(&self.known).remove(&lease);
    }

    pub(crate) fn expect(&self, lease: LeaseId, known: Known) {
        locked(&self.expected).insert(lease, known);
    }

    pub(crate) fn confirm(&self, lease: LeaseId, index: u64) {
        if let Some(mut known) = locked(&self.expected).remove(&lease) {
            known.index = index;
            locked(&self.known).insert(lease, known);
        }
    }
}

impl Shared {
    /// A lease, from memory or from the server; None when there is none of this id.
    pub(crate) async fn lease(&self, lease: LeaseId) -> Result<Option<Known>, StoreError> {
        let known = locked(&self.leases.known).get(&lease).cloned();
        match known {
            Some(known) => Ok(Some(known)),
            None => self.look_up_lease(lease).await,
        }
    }

    async fn look_up_lease(&self, lease: LeaseId) -> Result<Option<Known>, StoreError> {
        self.leases.forget(lease);
        if u32::try_from(lease.0).is_err() {
            return Ok(None);
        }
        let wanted = Wanted {
            exact: vec![lease_key(lease.0)],
            ..Wanted::default()
        };
        let view = self.view(&wanted).await?;
        let known = view.exact.into_iter().flatten().next();
        let known = known.as_ref().and_then(Known::read);
        if let Some(known) = known.as_ref().filter(|known| known.session.is_some()) {
            let mut all = locked(&self.leases.known);
            if all.len() >= 4_096 {
                all.clear();
            }
            all.insert(lease, known.clone());
        }
        Ok(known)
    }

    pub(crate) async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let ttl = ttl.max(self.options.min_lease);
        if ttl > LONGEST {
            let reason = format!("a lease of {ttl:?}: Consul's sessions last {LONGEST:?} at most");
            return Err(StoreError::Invalid { reason });
        }
        self.know_anchor().await?;
        let session = self.api.create_session(ttl).await?;
        let content = Content {
            session: session.clone(),
            keys: Vec::new(),
        };
        let mut known = Known {
            index: 0,
            session: Some(session.clone()),
            content,
        };
        for _ in 0..ATTEMPTS {
            let id = self.environment.random_u64() & u64::from(u32::MAX);
            if id == 0 {
                continue;
            }
            let key = self.api.at(&lease_key(id));
            let nonce = self.environment.random_u64();
            let ops = [
                self.anchor_check(),
                Op::absent(key.clone()),
                Op::lock(key, known.write(), nonce, &session),
            ];
            match self.api.write(&ops).await? {
                Txn::Done(pairs) => {
                    let index = pairs.last().map(|pair| pair.modified);
                    known.index = index.ok_or_else(|| {
                        self.api.nonsense("a lease", "its index is missing", true)
                    })?;
                    let lease = LeaseId(id);
                    locked(&self.leases.known).insert(lease, known);
                    return Ok(Lease { id: lease, ttl });
                }
                Txn::Refused(errors) => {
                    for error in &errors {
                        if error.is_denied() {
                            let _ = self.api.destroy_session(&session).await;
                            return Err(self.api.denied("making a lease"));
                        }
                        if error.op_index == 0 {
                            self.refresh_anchor().await?;
                        } else if error.what.contains("invalid session") {
                            return Err(self.api.unavailable("a lease", &error.what));
                        }
                    }
                }
            }
        }
        let _ = self.api.destroy_session(&session).await;
        Err(self.api.unavailable("a lease", "no id is free"))
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let ended = StoreError::LeaseNotFound { lease };
        let Some(known) = self.lease(lease).await? else {
            return Err(ended);
        };
        let Some(session) = known.session else {
            return Err(ended);
        };
        if self.api.renew_session(&session).await? {
            return Ok(());
        }
        self.leases.forget(lease);
        Err(ended)
    }

    pub(crate) async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let ended = StoreError::LeaseNotFound { lease };
        let Some(known) = self.look_up_lease(lease).await? else {
            return Err(ended);
        };
        let Some(session) = known.session else {
            self.bury(lease).await?;
            return Err(ended);
        };
        if !self.end_lease(lease, true).await? {
            return Err(ended);
        }
        if let Err(error) = self.api.destroy_session(&session).await {
            tracing::debug!(%error, "the session of a lease that was ended ends by itself");
        }
        Ok(())
    }

    /// Deletes what hangs on a lease that has ended, if that is left to do.
    pub(crate) async fn bury(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.end_lease(lease, false).await.map(|_| ())
    }

    /// Deletes the keys that hang on a lease, then its own; false when somebody else did, or when
    /// it is not (or no longer) `held`.
    async fn end_lease(&self, lease: LeaseId, held: bool) -> Result<bool, StoreError> {
        let own = lease_key(lease.0);
        for _ in 0..ATTEMPTS {
            let wanted = Wanted {
                exact: vec![own.clone()],
                ..Wanted::default()
            };
            let found = self.view(&wanted).await?.exact.into_iter().flatten().next();
            let Some((pair, known)) = found.and_then(|pair| {
                let known = Known::read(&pair)?;
                Some((pair, known))
            }) else {
                return Ok(false);
            };
            if known.session.is_some() != held {
                return Ok(false);
            }
            let mut left = Vec::new();
            for names in known.content.keys.chunks(AT_ONCE * 2) {
                let wanted = Wanted {
                    exact: names.to_vec(),
                    ..Wanted::default()
                };
                let view = self.view(&wanted).await?;
                let hanging = view.exact.into_iter().flatten();
                left.extend(hanging.filter(|pair| lease_in(pair.flags) == Some(lease)));
            }
            let (now, later) = left.split_at(left.len().min(AT_ONCE));
            let mut batch = Batch::default();
            batch.check(self.anchor_check());
            let at = self.api.at(&own);
            batch.check(Op::unchanged(at.clone(), pair.modified));
            for pair in now {
                batch.check(Op::unchanged(self.api.at(&pair.key), pair.modified));
            }
            for pair in now {
                if let Ok(key) = Key::new(&pair.key) {
                    batch.delete(self, &key);
                }
            }
            if later.is_empty() {
                batch.check(Op::delete(at));
            }
            match self.send(batch).await? {
                Ended::Done if later.is_empty() => {
                    self.leases.forget(lease);
                    return Ok(true);
                }
                Ended::Done => {}
                Ended::Moved => self.refresh_anchor().await?,
            }
        }
        Err(self
            .api
            .unavailable("ending a lease", "its keys change all the time"))
    }
}
