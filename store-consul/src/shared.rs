//! What all calls share: the server, the anchor, and what is remembered of earlier answers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::Anchor;
use platctrl_framework::store::{Key, Limits, Record, Revision, StoreError};

use crate::api::Api;
use crate::feed::Feed;
use crate::gone::Gone;
use crate::layout::{ANCHOR, CLOCK};
use crate::leases::Leases;
use crate::options::Options;
use crate::read::Cursors;
use crate::wire::{Op, Pair, Txn};

/// Scopes whose lists of deleted names are remembered.
const REMEMBERED: usize = 1_024;
/// How often a read or commit is tried again because something moved meanwhile.
pub(crate) const ATTEMPTS: usize = 12;

/// What one transaction takes. Of Consul's 64 operations each write needs up to three (itself,
/// its scope's generation, its scope's list of deleted names), each compare one, and five are for
/// the clock, the anchor, the bucket of all, and a lease. Of 512 KiB, which base64 makes a third
/// less, the keys and the small records take a share.
pub(crate) const LIMITS: Limits = Limits {
    max_writes: 16,
    max_compares: 26,
    max_operations: 26,
    max_transaction_bytes: 320 * 1024,
    max_value_bytes: 320 * 1024,
};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) environment: Environment,
    pub(crate) options: Options,
    anchor: Mutex<Seen>,
    gones: Mutex<HashMap<String, (u64, Gone)>>,
    /// The records of claims, as last seen: a commit under a claim compares their index.
    pub(crate) claims: Mutex<HashMap<Key, Claim>>,
    pub(crate) leases: Leases,
    pub(crate) cursors: Cursors,
    pub(crate) feed: Feed,
}

/// The anchor as last seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Zero: there was none.
    index: u64,
    epoch: u16,
    /// The first that was seen: another one is another store.
    store: Option<String>,
}

/// A record that hangs on a lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) created: u64,
    pub(crate) modified: u64,
    pub(crate) lease: u64,
}

/// What one read showed, all at the same moment.
#[derive(Debug)]
pub(crate) struct View {
    /// The index of the newest commit; zero before the first.
    pub(crate) clock: u64,
    /// For each exact key asked for, in that order.
    pub(crate) exact: Vec<Option<Pair>>,
    /// Of all trees asked for, in that order.
    pub(crate) trees: Vec<Pair>,
}

/// What one read asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) exact: Vec<String>,
    /// Beginnings of keys.
    pub(crate) trees: Vec<String>,
    /// Keys that nobody has, but that the credential must be allowed to read: a tree that may
    /// not be read looks empty.
    pub(crate) readable: Vec<String>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(api: Api, environment: Environment, options: Options) -> Self {
        Self {
            api,
            environment,
            options,
            anchor: Mutex::default(),
            gones: Mutex::default(),
            claims: Mutex::default(),
            leases: Leases::default(),
            cursors: Cursors::default(),
            feed: Feed::default(),
        }
    }

    pub(crate) fn epoch(&self) -> u16 {
        locked(&self.anchor).epoch
    }

    pub(crate) fn revision(&self, index: u64) -> Revision {
        Revision::new(self.epoch(), index)
    }

    /// The operation that fails, or shows another index, unless the anchor is what it was.
    fn anchor_read(&self) -> Op {
        match locked(&self.anchor).index {
            0 => Op::absent(self.api.at(ANCHOR)),
            _ => Op::get(self.api.at(ANCHOR)),
        }
    }

    /// The operation that makes a commit fail unless the anchor is what it was.
    pub(crate) fn anchor_check(&self) -> Op {
        match locked(&self.anchor).index {
            0 => Op::absent(self.api.at(ANCHOR)),
            index => Op::unchanged(self.api.at(ANCHOR), index),
        }
    }

    /// Looks at the anchor anew.
    ///
    /// # Errors
    /// It was there and is gone, or is another store's: then nothing that is read here means
    /// anything. Nothing is taken for an empty store.
    pub(crate) async fn refresh_anchor(&self) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            match self.api.read(&[Op::get(self.api.at(ANCHOR))]).await? {
                Txn::Done(pairs) => match pairs.first() {
                    Some(pair) if pair.key == ANCHOR => return self.adopt(pair),
                    _ => return Err(self.api.denied("reading the anchor x/anchor")),
                },
                Txn::Refused(errors) => {
                    if errors.iter().any(crate::wire::OpError::is_denied) {
                        return Err(self.api.denied("reading the anchor x/anchor"));
                    }
                }
            }
            match self.api.read(&[Op::absent(self.api.at(ANCHOR))]).await? {
                Txn::Done(_) => {
                    let mut seen = locked(&self.anchor);
                    if let Some(store) = &seen.store {
                        let reason = format!(
                            "the anchor of store {store} is gone; nothing is taken from a root \
                             without it"
                        );
                        return Err(self.api.unavailable("reading the anchor", &reason));
                    }
                    *seen = Seen::default();
                    return Ok(());
                }
                Txn::Refused(errors) if errors.iter().any(crate::wire::OpError::is_denied) => {
                    return Err(self.api.denied("reading the anchor x/anchor"));
                }
                Txn::Refused(_) => {}
            }
        }
        Err(self
            .api
            .unavailable("reading the anchor", "it comes and goes"))
    }

    fn adopt(&self, pair: &Pair) -> Result<(), StoreError> {
        let mut seen = locked(&self.anchor);
        if seen.index == pair.modified {
            return Ok(());
        }
        // One that cannot be read is not for this layer to judge: who opens the store does.
        let anchor: Option<Anchor> = serde_json::from_slice(&pair.value).ok();
        let (store, epoch) =
            anchor.map_or((None, 0), |anchor| (Some(anchor.store_id), anchor.epoch));
        if let (Some(expected), found) = (&seen.store, &store)
            && Some(expected) != found.as_ref()
        {
            let found = found.as_deref().unwrap_or("unreadable");
            let reason =
                format!("another store answers: the anchor is {found}, before it was {expected}");
            return Err(self.api.unavailable("reading the anchor", &reason));
        }
        *seen = Seen {
            index: pair.modified,
            epoch,
            store: store.or(seen.store.take()),
        };
        Ok(())
    }

    /// Reads everything wanted at one moment, with the clock, under the anchor.
    ///
    /// # Errors
    /// `Denied` when the credential may not read some of it; `Unavailable`.
    pub(crate) async fn view(&self, wanted: &Wanted) -> Result<View, StoreError> {
        let at = |key: &String| self.api.at(key);
        // What exists is read, of the rest is checked that it does not exist; which is which
        // is found out by trying.
        let mut exists = vec![true; wanted.exact.len()];
        let mut clock_exists = true;
        for _ in 0..ATTEMPTS {
            let mut ops = Vec::with_capacity(2 + exists.len() + wanted.trees.len());
            ops.push(self.anchor_read());
            let anchor_exists = ops[0].verb() == crate::wire::Verb::Get;
            let clock = self.api.at(CLOCK);
            ops.push(if clock_exists {
                Op::get(clock)
            } else {
                Op::absent(clock)
            });
            for (key, exists) in wanted.exact.iter().zip(&exists) {
                ops.push(if *exists {
                    Op::get(at(key))
                } else {
                    Op::absent(at(key))
                });
            }
            ops.extend(wanted.readable.iter().map(|key| Op::absent(at(key))));
            ops.extend(wanted.trees.iter().map(|begin| Op::get_tree(at(begin))));
            let pairs = match self.api.read(&ops).await? {
                Txn::Done(pairs) => pairs,
                Txn::Refused(errors) => {
                    for error in errors {
                        let Some(op) = ops.get(error.op_index) else {
                            return Err(self.api.nonsense("a read", &error.what, false));
                        };
                        if error.is_denied() {
                            let key = self.api.without_root(op.key());
                            return Err(self.api.denied(&format!("reading {key}")));
                        }
                        match error.op_index {
                            0 => self.refresh_anchor().await?,
                            1 => clock_exists = !clock_exists,
                            n => match exists.get_mut(n - 2) {
                                Some(exists) => *exists = !*exists,
                                None => {
                                    return Err(self.api.nonsense("a read", &error.what, false));
                                }
                            },
                        }
                    }
                    continue;
                }
            };
            let mut pairs = pairs.into_iter().peekable();
            let mut next = |key: &str| {
                let found = pairs.next_if(|pair| pair.key == key);
                found.ok_or_else(|| self.api.denied(&format!("reading {key}")))
            };
            if anchor_exists {
                let anchor = next(ANCHOR)?;
                self.adopt(&anchor)?;
            }
            let clock = if clock_exists {
                next(CLOCK)?.modified
            } else {
                0
            };
            let exact: Result<Vec<Option<Pair>>, StoreError> = wanted
                .exact
                .iter()
                .zip(&exists)
                .map(|(key, exists)| exists.then(|| next(key)).transpose())
                .collect();
            return Ok(View {
                clock,
                exact: exact?,
                trees: pairs.collect(),
            });
        }
        Err(self
            .api
            .unavailable("a read", "what is read comes and goes too fast"))
    }

    /// The list of names deleted from a scope, and its index, as last seen.
    pub(crate) async fn gone(&self, key: &str) -> Result<(u64, Gone), StoreError> {
        if let Some(known) = locked(&self.gones).get(key) {
            return Ok(known.clone());
        }
        let wanted = Wanted {
            exact: vec![key.to_owned()],
            ..Wanted::default()
        };
        let view = self.view(&wanted).await?;
        let found = view.exact.into_iter().next().flatten();
        let known = found.map_or_else(
            || (0, Gone::default()),
            // A list that somebody spoiled begins anew, and says from where it is complete.
            |pair| {
                (
                    pair.modified,
                    Gone::read(&pair.value).unwrap_or_else(|| Gone::from(pair.modified)),
                )
            },
        );
        self.remember_gone(key, known.clone());
        Ok(known)
    }

    pub(crate) fn remember_gone(&self, key: &str, known: (u64, Gone)) {
        let mut gones = locked(&self.gones);
        if gones.len() >= REMEMBERED {
            gones.clear();
        }
        gones.insert(key.to_owned(), known);
    }

    pub(crate) fn forget_gone(&self, key: &str) {
        locked(&self.gones).remove(key);
    }

    /// Everything remembered about the store's content: after a jump in history none of it
    /// holds.
    pub(crate) fn forget(&self) {
        locked(&self.gones).clear();
        locked(&self.claims).clear();
    }

    /// A record as callers know it; None for what is not theirs to see, or has a name that none
    /// of our keys has.
    pub(crate) fn record(&self, pair: Pair) -> Option<Record> {
        if crate::layout::is_own(&pair.key) {
            return None;
        }
        let key = Key::new(&pair.key)
            .inspect_err(|error| tracing::debug!(%error, "somebody else's key is left out"))
            .ok()?;
        Some(Record {
            key,
            value: pair.value,
            created: self.revision(pair.created),
            modified: self.revision(pair.modified),
            lease: crate::leases::lease_in(pair.flags),
        })
    }
}
