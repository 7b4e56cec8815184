//! What the tests share.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use platctrl_framework::environment::{Clock, Environment};
use platctrl_framework::store::{
    Key, ListRequest, Prefix, Record, Revision, Store, Transaction, WatchEvent, WatchStream,
};
use platctrl_store_embedded::{EmbeddedStore, Options};

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

pub(crate) fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, Environment::system()).unwrap()
}

pub(crate) fn open_with(dir: &Path, change: impl FnOnce(&mut Options)) -> EmbeddedStore {
    let mut options = Options::default();
    change(&mut options);
    EmbeddedStore::open_with(dir, Environment::system(), options).unwrap()
}

pub(crate) async fn put(store: &EmbeddedStore, name: &str, value: impl Into<String>) -> Revision {
    let transaction = Transaction::new().put(key(name), value.into());
    store.commit(transaction).await.unwrap()
}

pub(crate) async fn value(store: &EmbeddedStore, name: &str) -> Option<String> {
    let snapshot = store.get(&[key(name)]).await.unwrap();
    snapshot.records[0].as_ref().map(text)
}

pub(crate) fn text(record: &Record) -> String {
    String::from_utf8(record.value.to_vec()).unwrap()
}

/// All records as of a revision, read in pages of the given size.
pub(crate) async fn dump(
    store: &EmbeddedStore,
    at: Option<Revision>,
    page: usize,
) -> (Vec<Record>, Revision) {
    let mut request = ListRequest::new(Prefix::all());
    request.at = at;
    request.limit = page;
    let mut records = Vec::new();
    loop {
        let answer = store.list(&request).await.unwrap();
        request.at = Some(answer.revision);
        records.extend(answer.records);
        if !answer.more {
            return (records, answer.revision);
        }
        request.after = records.last().map(|record| record.key.clone());
    }
}

/// The next event, which must come soon.
pub(crate) async fn next(watch: &mut WatchStream) -> WatchEvent {
    let event = tokio::time::timeout(Duration::from_secs(20), watch.next());
    let event = event.await.expect("an event comes in time");
    event.expect("the watch goes on").unwrap()
}

/// The next changes, as `key=value` or `-key`; progress is skipped.
pub(crate) async fn next_changes(watch: &mut WatchStream) -> (Revision, Vec<String>) {
    use platctrl_framework::store::Change;
    loop {
        match next(watch).await {
            WatchEvent::Changes { revision, changes } => {
                let show = |change: &Change| match change {
                    Change::Put(record) => format!("{}={}", record.key, text(record)),
                    Change::Delete { key, .. } => format!("-{key}"),
                };
                return (revision, changes.iter().map(show).collect());
            }
            WatchEvent::Progress(_) => {}
            WatchEvent::Reset { reason } => panic!("reset: {reason}"),
        }
    }
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A clock that is moved by hand.
#[derive(Clone, Default)]
pub(crate) struct HandClock(Arc<Mutex<HandState>>);

#[derive(Default)]
struct HandState {
    now: Duration,
    waiting: Vec<(Duration, tokio::sync::oneshot::Sender<()>)>,
}

impl HandClock {
    pub(crate) fn environment(&self) -> Environment {
        Environment::seeded(Arc::new(self.clone()), 1)
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut state = self.0.lock().unwrap();
        state.now += by;
        let now = state.now;
        for (due, wake) in std::mem::take(&mut state.waiting) {
            if due <= now {
                let _ = wake.send(());
            } else {
                state.waiting.push((due, wake));
            }
        }
    }
}

impl Clock for HandClock {
    fn now(&self) -> jiff::Timestamp {
        let millis = self.monotonic().as_millis() as i64;
        jiff::Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (wake, woken) = tokio::sync::oneshot::channel();
        let mut state = self.0.lock().unwrap();
        let due = state.now + duration;
        state.waiting.push((due, wake));
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}
