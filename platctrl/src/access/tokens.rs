//! Tokens: `<name>.<secret>`. The store holds what the secret's digest is, never the secret.
//!
//! A secret has 256 random bits, so that its digest need be neither salted nor slow, and nothing
//! is learnt from how long a comparison of digests takes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Key, ListRequest, Prefix, Store, StoreError, Transaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Caller, Role};

/// Where the records are.
const PREFIX: &str = "x/auth/tokens";
/// Bytes of a secret.
const SECRET: usize = 32;
/// How long an answer of the store is good: a token that was taken away works no longer than that.
const FRESH: Duration = Duration::from_secs(2);
/// Answers that are kept.
const KEPT: usize = 1_024;

/// A token as its owner has it. It is shown once, to whoever asked for it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What the store knows of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenRecord {
    /// The person or program that it stands for.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The digest of the secret, in hexadecimal digits.
    pub(crate) sha256: String,
    pub(crate) created_at: Timestamp,
    pub(crate) created_by: String,
    /// It is good until then; for ever without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
}

/// Why a token could not be made or looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error(
        "`{0}` cannot be a token's name: letters, digits, `.`, `_` and `-`, beginning and ending with a letter or digit, at most 63"
    )]
    Name(String),
    #[error("there is a token `{0}` already: choose another name, or delete that one first")]
    Taken(String),
    #[error("there is no token `{0}`")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn key(name: &str) -> Result<Key, TokenError> {
    let fits = name.len() <= 63
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    let wrong = || TokenError::Name(name.chars().take(80).collect());
    if !fits {
        return Err(wrong());
    }
    Key::new(format!("{PREFIX}/{name}")).map_err(|_| wrong())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

/// The tokens of a store.
pub(crate) struct Tokens {
    store: Arc<dyn Store>,
    environment: Environment,
    /// Records by name, and when they were read.
    seen: Mutex<HashMap<String, (Duration, Option<TokenRecord>)>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    pub(crate) fn new(store: Arc<dyn Store>, environment: Environment) -> Self {
        Self {
            store,
            environment,
            seen: Mutex::default(),
        }
    }

    /// Makes a token. What it answers is not kept anywhere else. With what the caller adds to the
    /// transaction.
    pub(crate) async fn create(
        &self,
        name: &str,
        role: Role,
        lifetime: Option<Duration>,
        by: &str,
        beside: impl FnOnce(Transaction) -> Transaction,
    ) -> Result<(Secret, TokenRecord), TokenError> {
        let key = key(name)?;
        let mut bytes = [0; SECRET];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
        let secret = hex(&bytes);
        let now = self.environment.now();
        let record = TokenRecord {
            name: name.to_owned(),
            role,
            sha256: digest(&secret),
            created_at: now,
            created_by: by.to_owned(),
            expires_at: lifetime.and_then(|lifetime| now.checked_add(lifetime).ok()),
        };
        let value = serde_json::to_vec(&record).map_err(|_| TokenError::Name(name.to_owned()))?;
        let transaction = Transaction::new()
            .require_absent(key.clone())
            .put(key, value);
        match self.store.commit(beside(transaction)).await {
            Ok(_) => {}
            Err(StoreError::Conflict { .. }) => return Err(TokenError::Taken(name.to_owned())),
            Err(error) => return Err(error.into()),
        }
        self.forget(name);
        Ok((Secret(format!("{name}.{secret}")), record))
    }

    /// Takes a token away. Servers notice within two seconds. With what the caller adds to the
    /// transaction.
    pub(crate) async fn revoke(
        &self,
        name: &str,
        beside: impl FnOnce(Transaction) -> Transaction,
    ) -> Result<(), TokenError> {
        let key = key(name)?;
        if self.read(&key).await?.is_none() {
            return Err(TokenError::Unknown(name.to_owned()));
        }
        let transaction = beside(Transaction::new().delete(key));
        self.store.commit(transaction).await?;
        self.forget(name);
        Ok(())
    }

    /// All of them by name; what cannot be read is left out and told to the log.
    pub(crate) async fn list(&self) -> Result<Vec<TokenRecord>, TokenError> {
        let prefix =
            Prefix::new(format!("{PREFIX}/")).map_err(|_| TokenError::Name(PREFIX.to_owned()))?;
        let mut request = ListRequest::new(prefix);
        let mut records = Vec::new();
        loop {
            let page = self.store.list(&request).await?;
            records.extend(page.records.iter().filter_map(|record| {
                let read = serde_json::from_slice(&record.value);
                read.inspect_err(
                    |error| tracing::warn!(key = %record.key, %error, "not a token's record"),
                )
                .ok()
            }));
            match page.records.last() {
                Some(last) if page.more => {
                    request.after = Some(last.key.clone());
                    request.at = Some(page.revision);
                }
                _ => return Ok(records),
            }
        }
    }

    /// Who shows this token, unless it is none or good no more.
    pub(crate) async fn caller(&self, token: &str) -> Result<Option<Caller>, StoreError> {
        let Some((name, secret)) = token.rsplit_once('.') else {
            return Ok(None);
        };
        let Ok(key) = key(name) else {
            return Ok(None);
        };
        let record = match self.remembered(name) {
            Some(record) => record,
            None => {
                let read_at = self.environment.monotonic();
                let record = self.read(&key).await?;
                self.remember(name, read_at, record.clone());
                record
            }
        };
        let now = self.environment.now();
        let good = record.filter(|record| {
            record.sha256 == digest(secret) && record.expires_at.is_none_or(|until| now < until)
        });
        Ok(good.map(|record| Caller {
            name: record.name,
            role: record.role,
        }))
    }

    async fn read(&self, key: &Key) -> Result<Option<TokenRecord>, StoreError> {
        let held = self.store.get(std::slice::from_ref(key)).await?;
        let Some(record) = held.records.into_iter().next().flatten() else {
            return Ok(None);
        };
        match serde_json::from_slice(&record.value) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(%key, %error, "not a token's record: nobody is let in by it");
                Ok(None)
            }
        }
    }

    fn remembered(&self, name: &str) -> Option<Option<TokenRecord>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (read_at, record) = seen.get(name)?;
        let age = self.environment.monotonic().saturating_sub(*read_at);
        (age < FRESH).then(|| record.clone())
    }

    fn remember(&self, name: &str, read_at: Duration, record: Option<TokenRecord>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever tries names makes the server read, and not grow.
        if seen.len() >= KEPT {
            seen.clear();
        }
        seen.insert(name.to_owned(), (read_at, record));
    }

    fn forget(&self, name: &str) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }
}

#[cfg(test)]
mod tests {
    use platctrl_framework::store::MemoryStore;

    use super::*;

    fn tokens() -> (MemoryStore, Tokens) {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        (store.clone(), Tokens::new(Arc::new(store), environment))
    }

    #[tokio::test]
    async fn a_token_names_its_owner_until_it_is_taken_away() {
        let (_, tokens) = tokens();
        let (secret, record) = tokens
            .create("ann", Role::Operator, None, "root", |it| it)
            .await
            .unwrap();
        assert!(!format!("{record:?}").contains(secret.reveal().split_once('.').unwrap().1));
        assert!(!format!("{secret:?}").contains("ann."));
        let caller = tokens.caller(secret.reveal()).await.unwrap().unwrap();
        assert_eq!((caller.name.as_str(), caller.role), ("ann", Role::Operator));
        let again = tokens
            .create("ann", Role::Viewer, None, "root", |it| it)
            .await;
        assert!(matches!(again, Err(TokenError::Taken(_))));

        tokens.revoke("ann", |it| it).await.unwrap();
        assert_eq!(tokens.caller(secret.reveal()).await.unwrap(), None);
        let gone = tokens.revoke("ann", |it| it).await;
        assert!(matches!(gone, Err(TokenError::Unknown(_))));
    }

    #[tokio::test]
    async fn what_is_not_a_token_lets_nobody_in() {
        let (_, tokens) = tokens();
        let (secret, _) = tokens
            .create("bob", Role::Admin, None, "root", |it| it)
            .await
            .unwrap();
        let (_, other) = secret.reveal().split_once('.').unwrap();
        let wrong = "0".repeat(other.len());
        for text in [
            "",
            ".",
            "bob",
            "bob.",
            &format!("bob.{wrong}"),
            &format!("carol.{other}"),
            &format!("../../anchor.{other}"),
            &format!("{}.{other}", "b".repeat(2_000)),
        ] {
            assert_eq!(tokens.caller(text).await.unwrap(), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_token_ends_at_its_time_and_a_record_that_cannot_be_read_lets_nobody_in() {
        let (store, tokens) = tokens();
        let (secret, _) = tokens
            .create("brief", Role::Viewer, Some(Duration::ZERO), "root", |it| it)
            .await
            .unwrap();
        assert_eq!(tokens.caller(secret.reveal()).await.unwrap(), None);

        let (secret, _) = tokens
            .create("odd", Role::Viewer, None, "root", |it| it)
            .await
            .unwrap();
        let record = key("odd").unwrap();
        let broken = Transaction::new().put(record, "{}");
        store.commit(broken).await.unwrap();
        assert_eq!(tokens.caller(secret.reveal()).await.unwrap(), None);
        let names: Vec<_> = tokens.list().await.unwrap();
        assert_eq!(names.len(), 1, "the other one: {names:?}");
    }
}
