//! Which store this is, and whether it is the same history: anchor, format and chain.
//!
//! A root has an *anchor* (which store, in which epoch). An answer without its anchor is an
//! error, never an empty fleet: a wrong root, a refused read and a wiped store all look empty.
//! The *chain* is a link that the elected controller appends every minute; a client that
//! remembers a link which is missing now sees another history. The *format* says which versions
//! may read and write.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::store::{Key, ListRequest, Prefix, Revision, Store, StoreError, Transaction};

/// The name of the anchor in a prefix that is watched alone. No object can have it.
pub const PREFIX_ANCHOR: &str = ".anchor";

/// The version of the key layout and records that this library writes.
pub const FORMAT_VERSION: u32 = 1;

/// Which store this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Anchor {
    /// Random, given when the root was initialised; part of every exported identity.
    pub store_id: String,
    /// Raised by a person after a restore.
    pub epoch: u16,
    /// Whether it may be written.
    pub state: AnchorState,
}

/// Whether a root may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnchorState {
    /// In use.
    Active,
    /// Copied elsewhere: nobody writes here.
    Sealed,
}

/// Which versions may read and write a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Format {
    /// The form in which everybody writes.
    pub write_version: u32,
    /// The oldest version that can read what is written.
    pub min_reader: u32,
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLink {
    /// Random: tells this history from every other.
    pub nonce: String,
    /// When it was appended.
    pub at: Timestamp,
}

impl ChainLink {
    /// A new link, unlike every other.
    #[must_use]
    pub fn new(environment: &Environment) -> Self {
        Self {
            nonce: nonce(environment),
            at: environment.now(),
        }
    }
}

/// Why a root cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is no anchor.
    #[error(
        "the store has no anchor: nothing was ever initialised here, or the credential may not read it; `platctrl store init` initialises an empty root"
    )]
    Uninitialised,
    /// The root holds something already.
    #[error(
        "the root is not empty (it holds `{key}`): choose an empty root, or use the store that is there"
    )]
    NotEmpty {
        /// A key that is there.
        key: Key,
    },
    /// A record is not readable.
    #[error("the store's {what} is not readable: {reason}")]
    Damaged {
        /// Which record.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer version wrote here.
    #[error(
        "the store's format needs version {needed}, this program reads up to {known}: upgrade it"
    )]
    TooNew {
        /// The version needed.
        needed: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a constant that is a valid key")
}

/// Where the anchor is.
#[must_use]
pub fn anchor_key() -> Key {
    key("x/anchor")
}

/// Where the format is.
#[must_use]
pub fn format_key() -> Key {
    key("x/format")
}

/// Where link `number` of the chain is.
#[must_use]
pub fn chain_key(number: u64) -> Key {
    key(&format!("x/chain/{number}"))
}

/// 128 random bits as hex digits.
fn nonce(environment: &Environment) -> String {
    let mut text = String::with_capacity(32);
    for _ in 0..2 {
        let _ = write!(text, "{:016x}", environment.random_u64());
    }
    text
}

/// Makes an empty root a store: writes its anchor and that of all objects, format and the first
/// link of the chain.
///
/// # Errors
/// `NotEmpty` when the root holds anything; the store's own errors.
pub async fn initialise(
    store: &dyn Store,
    environment: &Environment,
) -> Result<Anchor, IdentityError> {
    let mut anything = ListRequest::new(Prefix::all());
    anything.limit = 1;
    if let Some(record) = store.list(&anything).await?.records.into_iter().next() {
        return Err(IdentityError::NotEmpty { key: record.key });
    }
    let anchor = Anchor {
        store_id: nonce(environment),
        epoch: 0,
        state: AnchorState::Active,
    };
    let format = Format {
        write_version: FORMAT_VERSION,
        min_reader: FORMAT_VERSION,
    };
    let link = ChainLink::new(environment);
    let mut transaction = Transaction::new();
    for (key, value) in [
        (anchor_key(), serde_json::to_vec(&anchor)),
        // Objects are read by this prefix, also with a credential for nothing else.
        (
            key(&format!("o/{PREFIX_ANCHOR}")),
            serde_json::to_vec(&anchor),
        ),
        (format_key(), serde_json::to_vec(&format)),
        (chain_key(0), serde_json::to_vec(&link)),
    ] {
        let value = value.expect("plain records are written as JSON");
        transaction = transaction.require_absent(key.clone()).put(key, value);
    }
    match store.commit(transaction).await {
        Ok(_) => Ok(anchor),
        Err(error) if error.is_conflict() => Err(IdentityError::NotEmpty { key: anchor_key() }),
        Err(error) => Err(error.into()),
    }
}

/// The anchor of a root; an empty root is made a store first. For a program whose store is its
/// own: elsewhere an empty root is a reason to ask a person.
///
/// # Errors
/// As for [`open`] and [`initialise`].
pub async fn open_or_initialise(
    store: &dyn Store,
    environment: &Environment,
) -> Result<Anchor, IdentityError> {
    match open(store).await {
        Ok((anchor, _)) => Ok(anchor),
        Err(IdentityError::Uninitialised) => initialise(store, environment).await,
        Err(error) => Err(error),
    }
}

/// Reads the anchor and checks that this version can use the root. Also returns the revision of
/// the read.
///
/// # Errors
/// `Uninitialised` without an anchor; `TooNew`, `Damaged`; the store's own errors.
pub async fn open(store: &dyn Store) -> Result<(Anchor, Revision), IdentityError> {
    let snapshot = store.get(&[anchor_key(), format_key()]).await?;
    let mut records = snapshot.records.into_iter();
    let anchor = records
        .next()
        .flatten()
        .ok_or(IdentityError::Uninitialised)?;
    let damaged = |what, reason: &dyn std::fmt::Display| IdentityError::Damaged {
        what,
        reason: reason.to_string(),
    };
    let format = records
        .next()
        .flatten()
        .ok_or_else(|| damaged("format", &"it is missing"))?;
    let anchor: Anchor =
        serde_json::from_slice(&anchor.value).map_err(|error| damaged("anchor", &error))?;
    let format: Format =
        serde_json::from_slice(&format.value).map_err(|error| damaged("format", &error))?;
    if format.min_reader > FORMAT_VERSION {
        return Err(IdentityError::TooNew {
            needed: format.min_reader,
            known: FORMAT_VERSION,
        });
    }
    Ok((anchor, snapshot.revision))
}
