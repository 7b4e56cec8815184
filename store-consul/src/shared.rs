//! What all calls share: the server, the anchor, and what is remembered of earlier answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
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
use crate::wire::{MAX_OPS, Op, Pair, Txn, Verb};

/// Scopes whose lists of deleted names are remembered.
const REMEMBERED: usize = 1_024;
/// The name of a key that nobody has, by which it is found out what may be read.
pub(crate) const PROBE: &str = ".may-read";
/// How often a read or commit is tried again because something moved meanwhile.
pub(crate) const ATTEMPTS: usize = 12;

/// What one transaction takes. Of Consul's 64 operations each write needs up to three (itself,
/// its scope's generation, its scope's list of deleted names), each compare one, and five are for
/// the clock, the anchor, the bucket of all, and a lease. Consul's 512 KiB, which base64 makes a
/// third less, hold the bytes promised here because values are packed where need be (`pack`).
pub(crate) const LIMITS: Limits = Limits {
    max_writes: 16,
    max_compares: 26,
    max_operations: 26,
    max_transaction_bytes: 400 * 1024,
    max_value_bytes: 384 * 1024,
};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) environment: Environment,
    pub(crate) options: Options,
    anchor: Mutex<Seen>,
    gones: Mutex<HashMap<String, (u64, Gone)>>,
    /// Keys that the credential may not write, as was found out.
    weak: Mutex<HashSet<String>>,
    /// The records of claims, as last seen: a commit under a claim compares their index.
    pub(crate) claims: Mutex<HashMap<Key, Claim>>,
    pub(crate) leases: Leases,
    pub(crate) cursors: Cursors,
    pub(crate) feed: Feed,
}

/// The anchor as last seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Whether it was looked for at all.
    known: bool,
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
    /// What the clock says about that commit.
    pub(crate) hint: Bytes,
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

/// How a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It exists.
    Get,
    /// It does not, which is checked. Consul allows the check only to who may write the key.
    Absent,
    /// With all keys that begin like it. Fails in no case, which also hides what is denied.
    Tree,
}

/// How one read is done, which is found out by trying.
#[derive(Debug)]
struct Plan {
    clock: How,
    keys: Vec<String>,
    exact: Vec<How>,
    /// Of what must be readable, the keys that the credential may not write.
    weak: Vec<String>,
}

impl Plan {
    fn of(shared: &Shared, wanted: &Wanted) -> Self {
        let weak = locked(&shared.weak);
        let known = wanted.readable.iter().filter(|key| weak.contains(*key));
        Self {
            clock: How::Get,
            keys: wanted.exact.clone(),
            exact: vec![How::Get; wanted.exact.len()],
            weak: known.cloned().collect(),
        }
    }

    /// The positions and keys that are read in one way.
    fn placed<'a>(
        &'a self,
        wanted: &'a Wanted,
        how: How,
    ) -> impl Iterator<Item = (usize, &'a String)> {
        let keys = wanted.exact.iter().zip(&self.exact).enumerate();
        keys.filter(move |(_, (_, found))| **found == how)
            .map(|(place, (key, _))| (place, key))
    }

    /// Anchor and clock come first, then what is got key by key, trees last: so the answers can
    /// be told apart.
    fn ops(&self, shared: &Shared, wanted: &Wanted) -> Vec<Op> {
        let at = |key: &String| shared.api.at(key);
        let clock = shared.api.at(CLOCK);
        let mut ops = vec![
            shared.anchor_read(),
            match self.clock {
                How::Get => Op::get(clock),
                // No other key begins like this.
                _ => Op::get_tree(clock),
            },
        ];
        let placed = |how| self.placed(wanted, how).map(|(_, key)| at(key));
        ops.extend(placed(How::Get).map(Op::get));
        ops.extend(placed(How::Absent).map(Op::absent));
        let readable = wanted.readable.iter();
        let readable = readable.filter(|key| !self.weak.contains(key));
        ops.extend(readable.map(|key| Op::absent(at(key))));
        ops.extend(wanted.trees.iter().map(|begin| Op::get_tree(at(begin))));
        ops.extend(placed(How::Tree).map(Op::get_tree));
        ops
    }

    /// Takes in that an operation failed; false when that cannot be helped.
    fn learn(&mut self, op: &Op, shared: &Shared, denied: bool) -> bool {
        let key = shared.api.without_root(op.key()).to_owned();
        match (op.verb(), denied) {
            (Verb::Get, false) if key == CLOCK => self.clock = How::Tree,
            (Verb::Get, false) => self.turn(&key, How::Absent),
            (Verb::CheckNotExists, false) => self.turn(&key, How::Get),
            (Verb::CheckNotExists, true) if key.ends_with(PROBE) => {
                let mut weak = locked(&shared.weak);
                if weak.len() >= REMEMBERED {
                    weak.clear();
                }
                weak.insert(key.clone());
                self.weak.push(key);
            }
            (Verb::CheckNotExists, true) => self.turn(&key, How::Tree),
            _ => return false,
        }
        true
    }

    fn turn(&mut self, key: &str, to: How) {
        for (known, how) in self.keys.iter().zip(&mut self.exact) {
            if known == key {
                *how = to;
            }
        }
    }
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
            weak: Mutex::default(),
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
            // No other key begins like this.
            0 => Op::get_tree(self.api.at(ANCHOR)),
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
        if let Txn::Done(pairs) = self.api.read(&[Op::get(self.api.at(ANCHOR))]).await? {
            return match pairs.first() {
                Some(pair) if pair.key == ANCHOR => self.adopt(pair),
                _ => Err(self.api.denied("reading the anchor x/anchor")),
            };
        }
        self.must_be_allowed(&[ANCHOR.to_owned()]).await?;
        let mut seen = locked(&self.anchor);
        if let Some(store) = &seen.store {
            let reason = format!(
                "the anchor of store {store} is gone; nothing is taken from a root without it"
            );
            return Err(self.api.unavailable("reading the anchor", &reason));
        }
        *seen = Seen {
            known: true,
            ..Seen::default()
        };
        Ok(())
    }

    /// Looks at the anchor, unless somebody did: a store may be opened before it can be reached.
    pub(crate) async fn know_anchor(&self) -> Result<(), StoreError> {
        if locked(&self.anchor).known {
            return Ok(());
        }
        self.refresh_anchor().await
    }

    fn adopt(&self, pair: &Pair) -> Result<(), StoreError> {
        let mut seen = locked(&self.anchor);
        seen.known = true;
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
            known: true,
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
        self.know_anchor().await?;
        let mut plan = Plan::of(self, wanted);
        for _ in 0..ATTEMPTS {
            let ops = plan.ops(self, wanted);
            match self.api.read(&ops).await? {
                Txn::Done(pairs) => return self.sort(&plan, wanted, &ops, pairs).await,
                Txn::Refused(errors) => {
                    for error in errors {
                        let Some(op) = ops.get(error.op_index) else {
                            return Err(self.api.nonsense("a read", &error.what, false));
                        };
                        if error.op_index == 0 {
                            self.refresh_anchor().await?;
                        } else if !plan.learn(op, self, error.is_denied()) {
                            let key = self.api.without_root(op.key());
                            return Err(if error.is_denied() {
                                self.api.denied(&format!("reading {key}"))
                            } else {
                                self.api.nonsense("a read", &error.what, false)
                            });
                        }
                    }
                }
            }
        }
        let reason = "what is read comes and goes too fast";
        Err(self.api.unavailable("a read", reason))
    }

    /// Sorts the pairs that answer a plan's operations, and makes sure that none is missing
    /// because it may not be read.
    async fn sort(
        &self,
        plan: &Plan,
        wanted: &Wanted,
        ops: &[Op],
        pairs: Vec<Pair>,
    ) -> Result<View, StoreError> {
        let mut pairs = pairs.into_iter().peekable();
        let mut next = |key: &str| {
            let found = pairs.next_if(|pair| pair.key == key);
            found.ok_or_else(|| self.api.denied(&format!("reading {key}")))
        };
        match (ops.first().map(Op::verb), next(ANCHOR)) {
            (_, Ok(anchor)) => self.adopt(&anchor)?,
            (Some(Verb::Get), Err(error)) => return Err(error),
            _ => {}
        }
        let clock = match (plan.clock, next(CLOCK)) {
            (_, Ok(clock)) => Some(clock),
            (How::Get, Err(error)) => return Err(error),
            _ => None,
        };
        let (clock, hint) = clock.map_or((0, Bytes::new()), |pair| (pair.modified, pair.value));
        let mut exact = vec![None; wanted.exact.len()];
        for (place, key) in plan.placed(wanted, How::Get) {
            exact[place] = Some(next(key)?);
        }
        let trees: Vec<Pair> = pairs.collect();
        let mut doubtful = plan.weak.clone();
        for (place, key) in plan.placed(wanted, How::Tree) {
            exact[place] = trees.iter().find(|pair| pair.key == *key).cloned();
            if exact[place].is_none() {
                doubtful.push(key.clone());
            }
        }
        self.must_be_allowed(&doubtful).await?;
        Ok(View {
            clock,
            hint,
            exact,
            trees,
        })
    }

    /// Fails unless the credential may read each of these keys, whether they exist or not.
    pub(crate) async fn must_be_allowed(&self, keys: &[String]) -> Result<(), StoreError> {
        for some in keys.chunks(MAX_OPS) {
            // The check fails in any case; how, tells what is allowed.
            let never = |key: &String| Op::unchanged(self.api.at(key), u64::MAX >> 1);
            let ops: Vec<Op> = some.iter().map(never).collect();
            if let Txn::Refused(errors) = self.api.read(&ops).await?
                && let Some(error) = errors.iter().find(|error| error.is_denied())
            {
                let key = some.get(error.op_index).map_or("", String::as_str);
                return Err(self.api.denied(&format!("reading {key}")));
            }
        }
        Ok(())
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
