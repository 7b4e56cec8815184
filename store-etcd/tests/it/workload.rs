//! What goes on while faults are made: commits, recorded calls, a watch and a lease, each held
//! against its promise.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use platctrl_framework::conformance::{Recorded, record_while};
use platctrl_framework::store::{
    Change, Key, LeaseId, ListRequest, Prefix, Record, Revision, Store, StoreError, Transaction,
    WatchEvent,
};
use platctrl_store_etcd::Options;
use tokio::task::JoinHandle;

/// Options whose waits are short, so that faults show soon.
pub(crate) fn brisk(mut options: Options) -> Options {
    options.deadline = Duration::from_secs(4);
    options.connect_timeout = Duration::from_secs(1);
    options.attempt_timeout = Duration::from_secs(1);
    options.keep_alive = Duration::from_secs(1);
    options
}

/// What a watcher of `o/seq/` was told.
#[derive(Debug, Default)]
struct Mirror {
    /// Where the first watch began.
    from: Option<Revision>,
    at: Revision,
    state: BTreeMap<Key, Record>,
    /// Every put that was told.
    told: Vec<(Key, Revision)>,
    /// Whether it had to read again, so that not every put need have been told.
    resets: u64,
    errors: u64,
}

/// Clients at work.
pub(crate) struct Workload {
    store: Arc<dyn Store>,
    going_on: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    mirror: Arc<Mutex<Mirror>>,
    recording: JoinHandle<Result<Recorded, String>>,
    writing: JoinHandle<Vec<(Key, Revision)>>,
    watching: JoinHandle<()>,
    keeping: JoinHandle<LeaseId>,
}

/// What came of it all.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) recorded: Recorded,
    pub(crate) resets: u64,
    pub(crate) watch_errors: u64,
}

fn key(text: impl AsRef<str>) -> Key {
    Key::new(text).unwrap()
}

fn watched() -> Prefix {
    Prefix::new("o/seq/").unwrap()
}

impl Workload {
    pub(crate) fn start(store: Arc<dyn Store>) -> Self {
        let going_on = Arc::new(AtomicBool::new(true));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(AtomicU64::new(0));
        let mirror = Arc::new(Mutex::new(Mirror::default()));
        let recording = tokio::spawn({
            let (store, going_on) = (Arc::clone(&store), Arc::clone(&going_on));
            async move { record_while(&store, || going_on.load(Ordering::SeqCst)).await }
        });
        let writing = tokio::spawn(write(
            Arc::clone(&store),
            Arc::clone(&going_on),
            Arc::clone(&acknowledged),
            Arc::clone(&failed),
        ));
        let watching = tokio::spawn(watch(Arc::clone(&store), Arc::clone(&mirror)));
        let keeping = tokio::spawn(keep(Arc::clone(&store), Arc::clone(&going_on)));
        Self {
            store,
            going_on,
            acknowledged,
            failed,
            mirror,
            recording,
            writing,
            watching,
            keeping,
        }
    }

    /// Waits for so many more commits to be acknowledged.
    pub(crate) async fn commits(&self, more: u64) {
        let wanted = self.acknowledged.load(Ordering::SeqCst) + more;
        self.wait("more commits", || {
            self.acknowledged.load(Ordering::SeqCst) >= wanted
        })
        .await;
    }

    /// Waits until a commit was refused or not confirmed.
    pub(crate) async fn failure(&self) {
        let before = self.failed.load(Ordering::SeqCst);
        self.wait("a commit that fails", || {
            self.failed.load(Ordering::SeqCst) > before
        })
        .await;
    }

    async fn wait(&self, what: &str, is_true: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_true() {
            assert!(
                Instant::now() < deadline,
                "no {what}: {:?}",
                self.mirror.lock().unwrap().at
            );
            for task in [self.recording.is_finished(), self.writing.is_finished()] {
                assert!(!task, "a client ended: see its panic");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the clients and checks what they were told.
    pub(crate) async fn finish(self) -> Report {
        self.going_on.store(false, Ordering::SeqCst);
        let recorded = self.recording.await.unwrap().unwrap();
        let acknowledged = self.writing.await.unwrap();
        assert!(!acknowledged.is_empty() && recorded.answered > 0);

        // The lease was kept alive all the time.
        let lease = self.keeping.await.unwrap();
        let held = self.store.get(&[key("x/lease/w")]).await.unwrap();
        let held = held.records[0].as_ref().expect("the lease lives");
        assert_eq!(held.lease, Some(lease));

        // The watch reaches the last commit, and what it told adds up to what there is.
        let end = self
            .store
            .commit(Transaction::new().put(key("o/seq/end"), "x"))
            .await
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.mirror.lock().unwrap().at < end {
            assert!(Instant::now() < deadline, "the watch does not reach {end}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.watching.abort();
        let page = self.store.list(&ListRequest::new(watched())).await.unwrap();
        let mirror = std::mem::take(&mut *self.mirror.lock().unwrap());
        let state: Vec<Record> = mirror.state.into_values().collect();
        assert_eq!(state, page.records);
        if mirror.resets == 0 && mirror.errors == 0 {
            let from = mirror.from.expect("it has begun");
            for put in acknowledged.iter().filter(|(_, at)| *at > from) {
                assert!(mirror.told.contains(put), "{put:?} was not told");
            }
        }
        Report {
            recorded,
            resets: mirror.resets,
            watch_errors: mirror.errors,
        }
    }
}

async fn write(
    store: Arc<dyn Store>,
    going_on: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
) -> Vec<(Key, Revision)> {
    let mut done = Vec::new();
    let mut n = 0;
    while going_on.load(Ordering::SeqCst) {
        n += 1;
        let key = key(format!("o/seq/{:02}", n % 40));
        match store
            .commit(Transaction::new().put(key.clone(), n.to_string()))
            .await
        {
            Ok(revision) => {
                done.push((key, revision));
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                failed.fetch_add(1, Ordering::SeqCst);
            }
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    done
}

async fn watch(store: Arc<dyn Store>, mirror: Arc<Mutex<Mirror>>) {
    loop {
        // Everything, and from there what changes.
        let page = match store.list(&ListRequest::new(watched())).await {
            Ok(page) => page,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let mut stream = store.watch(watched(), page.revision);
        {
            let mut mirror = mirror.lock().unwrap();
            mirror.at = page.revision;
            mirror.from.get_or_insert(page.revision);
            let records = page.records.into_iter();
            mirror.state = records.map(|record| (record.key.clone(), record)).collect();
        }
        while let Some(item) = stream.next().await {
            let mut mirror = mirror.lock().unwrap();
            match item {
                Ok(WatchEvent::Changes { revision, changes }) => {
                    assert!(revision > mirror.at, "{revision} after {}", mirror.at);
                    mirror.at = revision;
                    for change in changes {
                        assert_eq!(change.revision(), revision);
                        match change {
                            Change::Put(record) => {
                                mirror.told.push((record.key.clone(), revision));
                                mirror.state.insert(record.key.clone(), record);
                            }
                            Change::Delete { key, .. } => {
                                mirror.state.remove(&key);
                            }
                        }
                    }
                }
                Ok(WatchEvent::Progress(revision)) => {
                    assert!(revision >= mirror.at, "{revision} after {}", mirror.at);
                    mirror.at = revision;
                }
                Ok(WatchEvent::Reset { .. }) => mirror.resets += 1,
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    mirror.errors += 1;
                }
            }
        }
    }
}

async fn keep(store: Arc<dyn Store>, going_on: Arc<AtomicBool>) -> LeaseId {
    let lease = store.grant_lease(Duration::from_secs(15)).await.unwrap().id;
    let hang = Transaction::new().put_with_lease(key("x/lease/w"), "w", lease);
    store.commit(hang).await.unwrap();
    while going_on.load(Ordering::SeqCst) {
        match store.keep_alive(lease).await {
            Ok(()) | Err(StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("keep alive: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    lease
}
