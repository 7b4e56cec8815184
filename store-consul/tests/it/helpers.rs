//! What the tests share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use platctrl_framework::store::{
    Change, Key, ListRequest, Prefix, Record, Revision, Store, StoreError, Transaction, WatchEvent,
    WatchStream,
};

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

/// Runs a test on several threads, as programs run.
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

pub(crate) async fn put(store: &dyn Store, name: &str, value: &str) -> Revision {
    let transaction = Transaction::new().put(key(name), value.to_owned());
    store.commit(transaction).await.unwrap()
}

pub(crate) async fn value(store: &dyn Store, name: &str) -> Option<String> {
    let snapshot = store.get(&[key(name)]).await.unwrap();
    let record = snapshot.records.into_iter().flatten().next();
    record.map(|record| String::from_utf8(record.value.to_vec()).unwrap())
}

pub(crate) async fn list(
    store: &dyn Store,
    text: &str,
) -> Result<(Vec<Record>, Revision), StoreError> {
    let mut request = ListRequest::new(prefix(text));
    request.limit = 100_000;
    let page = store.list(&request).await?;
    Ok((page.records, page.revision))
}

/// The next event, which must come soon.
pub(crate) async fn next(watch: &mut WatchStream) -> Option<Result<WatchEvent, StoreError>> {
    let event = tokio::time::timeout(Duration::from_secs(30), watch.next());
    event.await.expect("an event comes in time")
}

/// The next event that is no progress.
pub(crate) async fn next_news(watch: &mut WatchStream) -> Option<Result<WatchEvent, StoreError>> {
    loop {
        match next(watch).await {
            Some(Ok(WatchEvent::Progress(_))) => {}
            other => return other,
        }
    }
}

/// Asks until it is true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A cache as controllers have one: listed, watched, and listed again after a reset or an
/// error. It keeps what it was told to have been deleted.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) state: BTreeMap<Key, Record>,
    pub(crate) at: Revision,
    pub(crate) resets: usize,
}

impl Mirror {
    /// Follows a prefix until everything up to a revision was told.
    pub(crate) async fn follow(
        store: Arc<dyn Store>,
        text: &str,
        mut last: impl FnMut() -> Option<Revision>,
    ) -> Self {
        let mut mirror = Self {
            state: BTreeMap::new(),
            at: Revision::ZERO,
            resets: 0,
        };
        loop {
            let Ok((records, revision)) = list(store.as_ref(), text).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            mirror.state = records
                .into_iter()
                .map(|record| (record.key.clone(), record))
                .collect();
            mirror.at = revision;
            let mut watch = store.watch(prefix(text), revision);
            loop {
                if last().is_some_and(|last| mirror.at >= last) {
                    return mirror;
                }
                let event = tokio::time::timeout(Duration::from_millis(100), watch.next());
                match event.await {
                    Err(_) => {}
                    Ok(Some(Ok(WatchEvent::Changes { revision, changes }))) => {
                        mirror.at = revision;
                        for change in changes {
                            match change {
                                Change::Put(record) => {
                                    mirror.state.insert(record.key.clone(), record);
                                }
                                Change::Delete { key, .. } => {
                                    mirror.state.remove(&key);
                                }
                            }
                        }
                    }
                    Ok(Some(Ok(WatchEvent::Progress(revision)))) => mirror.at = revision,
                    Ok(_) => {
                        mirror.resets += 1;
                        break;
                    }
                }
            }
        }
    }
}
