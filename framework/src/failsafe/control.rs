//! What a person tells every program at once: freeze, thaw, and "many changes are expected".
//!
//! Both are records under `x/control/`, which every program reads and watches. Each freeze and
//! thaw is kept with who, when and why.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::store::{Key, Prefix, Record, Store, StoreError, Transaction};

/// Freezes and thaws that are remembered.
const HISTORY: usize = 50;
/// Attempts when others write at the same time.
const ATTEMPTS: usize = 8;
/// How long a word about expected changes counts.
pub(crate) const EXPECTED_FOR: Duration = Duration::from_secs(600);
const MAX_REASON_CHARS: usize = 512;

/// Whether everything is frozen, and who said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Freeze {
    /// Nothing is changed by any program.
    pub frozen: bool,
    /// Who said so.
    #[serde(default)]
    pub by: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The freezes and thaws before this one, newest first, at most fifty.
    #[serde(default)]
    pub history: Vec<FreezeEntry>,
}

/// One freeze or thaw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct FreezeEntry {
    /// It was a freeze.
    pub frozen: bool,
    /// Whose.
    #[serde(default)]
    pub by: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Somebody said that so many changes are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Expected {
    pub(crate) changes: u32,
    pub(crate) by: String,
    pub(crate) at: Timestamp,
    /// Tells it from others, so that it counts once.
    pub(crate) nonce: String,
}

/// Where these records are.
pub(crate) fn prefix() -> Prefix {
    Prefix::new("x/control/").expect("a constant that is a valid prefix")
}

fn key(name: &str) -> Key {
    prefix().key(name).expect("a constant that is a valid key")
}

pub(crate) fn freeze_key() -> Key {
    key("freeze")
}

pub(crate) fn expected_key() -> Key {
    key("expected")
}

/// Written to make every program look at once whether it is told to reset something.
pub(crate) fn bell_key() -> Key {
    key("bell")
}

/// Reads a freeze record. One that cannot be read freezes: somebody meant to say something.
pub(crate) fn parse_freeze(record: Option<&Record>) -> Option<Freeze> {
    let record = record?;
    Some(
        serde_json::from_slice(&record.value).unwrap_or_else(|error| {
            let key = &record.key;
            Freeze {
                frozen: true,
                by: "nobody".to_owned(),
                at: None,
                reason: Some(format!("the record {key} cannot be read: {error}")),
                history: Vec::new(),
            }
        }),
    )
}

/// The state of the freeze; None when nothing was ever frozen.
///
/// # Errors
/// The store's.
pub async fn frozen(store: &dyn Store) -> Result<Option<Freeze>, StoreError> {
    let records = store.get(&[freeze_key()]).await?.records;
    Ok(parse_freeze(records.into_iter().next().flatten().as_ref()))
}

/// Stops every program's changes: what runs keeps running, and nobody changes anything until
/// [`thaw`]. Frozen twice, it is frozen once.
///
/// # Errors
/// The store's.
pub async fn freeze(
    store: &dyn Store,
    environment: &Environment,
    by: &str,
    reason: Option<&str>,
) -> Result<Freeze, StoreError> {
    set(store, environment, by, reason, true).await
}

/// Ends a [`freeze`].
///
/// # Errors
/// The store's.
pub async fn thaw(
    store: &dyn Store,
    environment: &Environment,
    by: &str,
    reason: Option<&str>,
) -> Result<Freeze, StoreError> {
    set(store, environment, by, reason, false).await
}

async fn set(
    store: &dyn Store,
    environment: &Environment,
    by: &str,
    reason: Option<&str>,
    frozen: bool,
) -> Result<Freeze, StoreError> {
    let mut last = StoreError::Conflict { failed: vec![0] };
    for _ in 0..ATTEMPTS {
        let records = store.get(&[freeze_key()]).await?.records;
        let record = records.into_iter().next().flatten();
        let before = parse_freeze(record.as_ref());
        let mut history = Vec::new();
        if let Some(before) = before {
            if before.frozen == frozen {
                return Ok(before);
            }
            history.push(FreezeEntry {
                frozen: before.frozen,
                by: before.by,
                at: before.at,
                reason: before.reason,
            });
            history.extend(before.history);
            history.truncate(HISTORY);
        } else if !frozen {
            return Ok(Freeze {
                frozen: false,
                by: String::new(),
                at: None,
                reason: None,
                history,
            });
        }
        let now = Freeze {
            frozen,
            by: by.to_owned(),
            at: Some(environment.now()),
            reason: reason.map(|reason| reason.chars().take(MAX_REASON_CHARS).collect()),
            history,
        };
        let value = serde_json::to_vec(&now).map_err(|error| StoreError::Invalid {
            reason: error.to_string(),
        })?;
        let transaction = Transaction::new()
            .require_unchanged(freeze_key(), record.map(|record| record.modified))
            .put(freeze_key(), value);
        match store.commit(transaction).await {
            Ok(_) => return Ok(now),
            // Read again: it may have happened.
            Err(error @ (StoreError::Conflict { .. } | StoreError::Unknown { .. })) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Says that so many changes without an order are meant: for ten minutes every program lets that
/// many pass its guards and budgets.
///
/// # Errors
/// The store's.
pub async fn expect_changes(
    store: &dyn Store,
    environment: &Environment,
    by: &str,
    changes: u32,
) -> Result<(), StoreError> {
    let expected = Expected {
        changes,
        by: by.to_owned(),
        at: environment.now(),
        nonce: format!("{:016x}", environment.random_u64()),
    };
    let value = serde_json::to_vec(&expected).map_err(|error| StoreError::Invalid {
        reason: error.to_string(),
    })?;
    let put = Transaction::new().put(expected_key(), value);
    store.commit(put).await.map(|_| ())
}

/// Makes every program look now, not within a minute, whether it is told to reset something.
///
/// # Errors
/// The store's.
pub async fn ring(store: &dyn Store, environment: &Environment) -> Result<(), StoreError> {
    let put = Transaction::new().put(bell_key(), format!("{:016x}", environment.random_u64()));
    store.commit(put).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn a_freeze_is_kept_with_who_and_why_and_so_is_its_end() {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        assert_eq!(frozen(&store).await.unwrap(), None);
        assert!(
            !thaw(&store, &environment, "ann", None)
                .await
                .unwrap()
                .frozen
        );
        freeze(&store, &environment, "ann", Some("an incident"))
            .await
            .unwrap();
        let again = freeze(&store, &environment, "bob", None).await.unwrap();
        assert_eq!((again.by.as_str(), again.frozen), ("ann", true));
        let now = thaw(&store, &environment, "bob", None).await.unwrap();
        assert!(!now.frozen);
        assert_eq!(now.history.len(), 1);
        assert_eq!(now.history[0].reason.as_deref(), Some("an incident"));
        assert_eq!(frozen(&store).await.unwrap(), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_freeze_record_that_cannot_be_read_freezes() {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        let broken = Transaction::new().put(freeze_key(), "{");
        store.commit(broken).await.unwrap();
        assert!(frozen(&store).await.unwrap().unwrap().frozen);
        assert!(
            !thaw(&store, &environment, "ann", None)
                .await
                .unwrap()
                .frozen
        );
    }
}
