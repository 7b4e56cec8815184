//! Finding out whether the store still shows the history that was seen before.

use super::chain::{self, History, Link};
use super::control::{self, freeze_key, parse_freeze};
use super::guards::{Safeguards, State};
use super::record::{Failsafe, FailsafeStatus, Guard};
use super::switch::Safeguard;
use crate::model::identity::{FORMAT_VERSION, Format, IdentityError};
use crate::model::{ObjectKey, Reality, Resource as _, Tree};
use crate::store::{Key, Record, Store, StoreError};

impl Safeguards {
    /// The object that lists what this program holds.
    pub(super) fn holder_key(&self) -> Option<ObjectKey> {
        ObjectKey::cluster(Failsafe::GROUP, Failsafe::PLURAL, &self.setup.holder).ok()
    }

    /// Once, before anything else is read: whether everything is frozen, and what this program
    /// left for itself in its own record.
    async fn prepare(&self, store: &dyn Store) -> Result<(), StoreError> {
        let read = async || {
            let mut keys = vec![freeze_key(), control::expected_key()];
            keys.extend(self.holder_key().map(|key| key.store_key(Tree::Reality)));
            let records = match store.get(&keys).await {
                Ok(snapshot) => snapshot.records,
                Err(StoreError::Denied { what }) => {
                    tracing::warn!(
                        what,
                        "whether everything is frozen cannot be read, so it is taken not to be"
                    );
                    self.hear_nothing();
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let mut records = records.into_iter();
            let freeze = records.next().flatten();
            let expected = records.next().flatten();
            self.hear(parse_freeze(freeze.as_ref()), parse(expected.as_ref()));
            if let Some(own) = records.next().flatten()
                && let Ok(reality) = serde_json::from_slice::<Reality>(&own.value)
                && let Ok(status) = serde_json::from_value::<FailsafeStatus>(
                    serde_json::Value::Object(reality.status.detail),
                )
                && let Some(baseline) = status.baseline
            {
                self.recall_stored(baseline);
            }
            Ok(())
        };
        self.prepared.get_or_try_init(read).await.map(|_| ())
    }

    /// Compares the store's chain with the link that is remembered. Returns a number that grows
    /// whenever the answer changes: who sees it grow reads everything again.
    ///
    /// Called before anything that was read is used: after each list, before a watch goes on
    /// after an interruption, and each minute.
    pub(crate) async fn verify(&self, store: &dyn Store) -> Result<u64, StoreError> {
        self.prepare(store).await?;
        let (remembered, known_store) = {
            let state = self.state();
            (state.link.clone(), state.store_id.clone())
        };
        let shown = match chain::read(store, remembered.as_ref()).await {
            Ok(shown) => shown,
            // A credential that was never allowed to read the chain has nothing to compare.
            Err(StoreError::Denied { .. }) if remembered.is_none() => {
                return Ok(self.state().turns);
            }
            Err(error) => return Err(error),
        };
        let other_store = shown.store_id.as_ref().filter(|id| {
            let known = !known_store.is_empty();
            known && **id != known_store && self.is_on(Safeguard::IdentityMemory)
        });
        let history = match other_store {
            Some(found) => {
                let file = self.setup.file.as_deref();
                let way_out =
                    file.map(|file| format!("; if this one is meant, remove {}", file.display()));
                History::Other(format!(
                    "this is the store {found}, what was read before is {known_store}{}",
                    way_out.unwrap_or_default()
                ))
            }
            None => {
                let safeguard = match &shown.asked {
                    Some(_) => Safeguard::ChainOther,
                    None => Safeguard::ChainMissing,
                };
                match chain::compare(remembered.as_ref(), &shown) {
                    History::Other(_) if !self.is_on(safeguard) => History::Unknown,
                    history => history,
                }
            }
        };
        let mut state = self.state();
        self.heed(&mut state, shown.format.as_ref());
        match history {
            History::Other(why) => {
                // Somebody may have accepted it meanwhile.
                let still = state.link == remembered && state.store_id == known_store;
                if still {
                    state.chain_tells = true;
                    self.turn(&mut state, why);
                }
            }
            History::Same | History::Unknown => {
                // Whoever writes moves the revision on. Only a chain that told the difference can
                // tell that it is gone.
                let had = state.older_than;
                let newer = had.is_none_or(|had| state.chain_tells && shown.revision >= had);
                if history == History::Same && newer && state.other_history.take().is_some() {
                    state.older_than = None;
                    state.chain_tells = false;
                    state.turns += 1;
                    Self::see(&mut state);
                    let why = "the store shows the history again that was seen before";
                    self.release(&mut state, Guard::History.as_str(), why);
                }
                if state.other_history.is_none() {
                    if let Some((newest, _)) = shown.newest {
                        remember(&mut state.link, newest);
                    }
                    if let Some(id) = shown.store_id
                        && state.store_id.is_empty()
                    {
                        state.store_id = id;
                    }
                }
            }
        }
        Ok(state.turns)
    }

    /// Takes note of what a program has to understand to work here. Without that record nothing
    /// says that this one does not; one that it cannot read may say so.
    fn heed(&self, state: &mut State, format: Option<&Result<Format, String>>) {
        let too_new = match format {
            _ if !self.is_on(Safeguard::Format) => None,
            None => None,
            Some(Ok(format)) if format.min_reader <= FORMAT_VERSION => None,
            Some(Ok(format)) => {
                let (needed, known) = (format.min_reader, FORMAT_VERSION);
                Some(IdentityError::TooNew { needed, known }.to_string())
            }
            Some(Err(reason)) => Some(format!("the store's format is not readable: {reason}")),
        };
        if state.too_new == too_new {
            return;
        }
        match &too_new {
            Some(why) => tracing::error!("nothing is changed: {why}"),
            None => tracing::warn!("the store's format is one that this program understands"),
        }
        state.too_new = too_new;
        self.announce();
    }

    /// Takes note of a link that this program appended itself.
    pub(super) fn appended(&self, link: Link) {
        remember(&mut self.state().link, link);
    }
}

fn remember(known: &mut Option<Link>, newest: Link) {
    if known.as_ref().is_none_or(|had| had.number < newest.number) {
        *known = Some(newest);
    }
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(record: Option<&Record>) -> Option<T> {
    serde_json::from_slice(&record?.value).ok()
}

/// The key of a holder's intent and of what everybody is told.
pub(super) fn told_keys(holder: Option<&ObjectKey>) -> Vec<Key> {
    let mut keys = vec![freeze_key(), control::expected_key()];
    keys.extend(holder.map(|key| key.store_key(Tree::Intent)));
    keys
}
