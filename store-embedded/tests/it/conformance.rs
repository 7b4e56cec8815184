//! The framework's conformance suite on a store in a fresh directory.

use std::sync::Arc;

use platctrl_framework::conformance::{Subject, conformance_tests};
use platctrl_framework::store::Store;

use std::path::Path;
use std::time::Duration;

use platctrl_store_embedded::{EmbeddedStore, Options};

use crate::helpers::HandClock;

fn open(dir: &Path, clock: &HandClock) -> EmbeddedStore {
    EmbeddedStore::open_with(dir, clock.environment(), Options::default()).unwrap()
}

async fn fresh() -> Subject {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let clock = HandClock::default();
    let store = Arc::new(open(dir.path(), &clock));
    // The suite drops the store before it opens it again, which needs the directory to be free.
    let held = Arc::new(std::sync::Mutex::new(Arc::downgrade(&store)));
    let compacted = Arc::clone(&held);
    let path = Arc::clone(&dir);
    Subject::new(store)
        .with_lease_ttl(Duration::from_secs(10))
        .with_time({
            let clock = clock.clone();
            move |by| {
                clock.advance(by);
                // The store acts on the new time with threads of its own.
                Box::pin(tokio::time::sleep(Duration::from_millis(5)))
            }
        })
        .with_compaction(move |revision| {
            let store = compacted.lock().unwrap().upgrade();
            Box::pin(async move {
                let store = store.expect("the store under test is open");
                store.forget_history_before(revision).await.unwrap();
            })
        })
        .with_reopening(move || {
            let store = Arc::new(open(path.path(), &clock));
            *held.lock().unwrap() = Arc::downgrade(&store);
            Box::pin(async move { store as Arc<dyn Store> })
        })
        .with_guard(dir)
}

// The limits on writes and compares add up to the one on operations, so that none is reached
// before the others. Answers are not lost inside one process; a process that dies with them is in `crash`.
conformance_tests! {
    fresh,
    without: [
        operations_up_to_the_limit_are_taken,
        a_lost_answer_is_unknown_and_never_a_refusal,
        lost_answers_leave_the_history_linearizable,
    ]
}
