//! The chain: whether a store's history is still the one that was seen before.
//!
//! One program appends a link each minute, and everybody remembers the last link that they saw.
//! A link that is missing or another one tells that this is another history: a backup was
//! restored, though revisions may even have gone forward. Links are kept for a week; the head
//! names the newest, so that nobody has to list them.

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::model::identity::{Anchor, ChainLink, Format, anchor_key, chain_key, format_key};
use crate::store::{
    Compare, Key, ListRequest, Prefix, Record, Revision, Store, StoreError, Transaction,
};

/// Links that are kept: a week of minutes.
pub(crate) const KEPT: u64 = 7 * 24 * 60;

/// A link that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Which one.
    pub number: u64,
    /// What it held.
    pub nonce: String,
}

/// What the store shows of its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The store's revision.
    pub(crate) revision: Revision,
    /// The store's identity, where it can be read.
    pub(crate) store_id: Option<String>,
    /// What has to be understood to work here; the reason if it cannot be read.
    pub(crate) format: Option<Result<Format, String>>,
    /// The newest link, and the revision of the head that names it (None: there is no head yet).
    pub(crate) newest: Option<(Link, Option<Revision>)>,
    /// The link that was asked for.
    pub(crate) asked: Option<Link>,
}

/// What a chain says about a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// Nothing was remembered, or there is no chain: nothing can be said.
    Unknown,
    /// It is the same.
    Same,
    /// It is another one.
    Other(String),
}

/// Where the newest link is named.
pub(crate) fn head_key() -> Key {
    Key::new("x/chain/head").expect("a constant that is a valid key")
}

/// Compares what is remembered with what a store shows.
pub(crate) fn compare(remembered: Option<&Link>, shown: &Shown) -> History {
    let Some(remembered) = remembered else {
        return History::Unknown;
    };
    match &shown.asked {
        Some(link) if link.nonce == remembered.nonce => History::Same,
        Some(_) => History::Other(format!(
            "link {} of the chain is another one than before",
            remembered.number
        )),
        None => {
            let newest = shown.newest.as_ref().map(|(link, _)| link.number);
            History::Other(match newest {
                Some(newest) if newest >= remembered.number.saturating_add(KEPT) => format!(
                    "link {} of the chain is no longer kept, so whether this is the same history cannot be told",
                    remembered.number
                ),
                Some(newest) => format!(
                    "link {} of the chain is missing; the newest is {newest}",
                    remembered.number
                ),
                None => format!(
                    "link {} of the chain is missing, as is every other",
                    remembered.number
                ),
            })
        }
    }
}

fn number_of(key: &Key) -> Option<u64> {
    key.as_str().strip_prefix("x/chain/")?.parse().ok()
}

fn link_of(record: &Record) -> Option<Link> {
    let link: ChainLink = serde_json::from_slice(&record.value).ok()?;
    Some(Link {
        number: number_of(&record.key)?,
        nonce: link.nonce,
    })
}

/// Reads what a store shows of its chain: one request, but for a store without a head.
pub(crate) async fn read(
    store: &dyn Store,
    remembered: Option<&Link>,
) -> Result<Shown, StoreError> {
    let mut keys = vec![anchor_key(), format_key(), head_key()];
    keys.extend(remembered.map(|link| chain_key(link.number)));
    let snapshot = store.get(&keys).await?;
    let mut records = snapshot.records.into_iter();
    let anchor = records.next().flatten();
    let anchor = anchor.and_then(|record| serde_json::from_slice::<Anchor>(&record.value).ok());
    let format = records
        .next()
        .flatten()
        .map(|record| serde_json::from_slice(&record.value).map_err(|error| error.to_string()));
    let head = records.next().flatten();
    // A link that cannot be read is as good as none.
    let asked = records.next().flatten().and_then(|record| link_of(&record));
    let named = head.and_then(|head| {
        let link: Link = serde_json::from_slice(&head.value).ok()?;
        Some((link, Some(head.modified)))
    });
    let newest = match named {
        Some(named) => Some(named),
        None => newest_listed(store).await?.map(|link| (link, None)),
    };
    Ok(Shown {
        revision: snapshot.revision,
        store_id: anchor.map(|anchor| anchor.store_id),
        format,
        newest,
        asked,
    })
}

async fn newest_listed(store: &dyn Store) -> Result<Option<Link>, StoreError> {
    let prefix = Prefix::new("x/chain/").expect("a constant that is a valid prefix");
    let mut request = ListRequest::new(prefix);
    let mut newest: Option<Link> = None;
    loop {
        let page = store.list(&request).await?;
        for link in page.records.iter().filter_map(link_of) {
            if newest.as_ref().is_none_or(|had| had.number < link.number) {
                newest = Some(link);
            }
        }
        request.after = page.records.last().map(|record| record.key.clone());
        if !page.more || request.after.is_none() {
            return Ok(newest);
        }
    }
}

/// Appends a link behind the one that `shown` names as the newest, unless somebody else did.
/// `fence` is compared where a claim is held.
pub(crate) async fn append(
    store: &dyn Store,
    environment: &Environment,
    shown: &Shown,
    fence: Option<Compare>,
) -> Result<Link, StoreError> {
    let newest = shown.newest.as_ref();
    let number = newest.map_or(0, |(link, _)| link.number.saturating_add(1));
    let nonce = format!(
        "{:016x}{:016x}",
        environment.random_u64(),
        environment.random_u64()
    );
    let link = Link {
        number,
        nonce: nonce.clone(),
    };
    let record = ChainLink {
        nonce,
        at: environment.now(),
    };
    let encoded = (serde_json::to_vec(&link), serde_json::to_vec(&record));
    let (Ok(head), Ok(record)) = encoded else {
        let reason = "a link of the chain cannot be written as JSON".to_owned();
        return Err(StoreError::Invalid { reason });
    };
    let mut transaction = Transaction::new()
        .require_unchanged(head_key(), newest.and_then(|(_, revision)| *revision))
        .require_absent(chain_key(number))
        .put(chain_key(number), record)
        .put(head_key(), head);
    if let Some(old) = number.checked_sub(KEPT) {
        transaction = transaction.delete(chain_key(old));
    }
    if let Some(fence) = fence {
        transaction = transaction.require(fence);
    }
    store.commit(transaction).await?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::initialise;
    use crate::store::MemoryStore;

    fn link(number: u64, nonce: &str) -> Link {
        Link {
            number,
            nonce: nonce.into(),
        }
    }

    #[test]
    fn a_link_that_is_missing_or_another_one_is_another_history() {
        let shown = |newest: u64, asked: Option<Link>| Shown {
            revision: Revision::ZERO,
            store_id: None,
            format: None,
            newest: Some((link(newest, "n"), None)),
            asked,
        };
        let remembered = link(7, "a");
        let of = |shown: Shown| compare(Some(&remembered), &shown);
        assert_eq!(of(shown(9, Some(link(7, "a")))), History::Same);
        assert!(matches!(
            of(shown(9, Some(link(7, "b")))),
            History::Other(_)
        ));
        assert!(matches!(of(shown(5, None)), History::Other(text) if text.contains("newest is 5")));
        assert!(
            matches!(of(shown(7 + KEPT, None)), History::Other(text) if text.contains("no longer kept"))
        );
        assert_eq!(compare(None, &shown(9, None)), History::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn links_are_appended_once_and_kept_for_a_week() {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        initialise(&store, &environment).await.unwrap();
        let shown = read(&store, None).await.unwrap();
        assert_eq!(shown.newest.as_ref().unwrap().0.number, 0);
        let first = append(&store, &environment, &shown, None).await.unwrap();
        assert_eq!(first.number, 1);
        // Another one that read the same cannot append too.
        let error = append(&store, &environment, &shown, None).await;
        assert!(error.unwrap_err().is_conflict());
        let shown = read(&store, Some(&first)).await.unwrap();
        assert_eq!(compare(Some(&first), &shown), History::Same);
        // Far ahead, the oldest are removed one by one.
        let far = Shown {
            revision: Revision::ZERO,
            store_id: None,
            format: None,
            newest: Some((link(KEPT, "n"), shown.newest.unwrap().1)),
            asked: None,
        };
        append(&store, &environment, &far, None).await.unwrap();
        assert!(store.peek(&chain_key(1)).is_none());
        assert!(store.peek(&chain_key(KEPT + 1)).is_some());
    }
}
