//! The conformance suite, on the memory store and on stores that break one promise each.

mod anchored;
mod bites;
mod broken;
mod failsafe;
mod slow;
mod spoiled;

use std::sync::Arc;
use std::time::Duration;

use anchored::Anchored;
use platctrl_framework::conformance::{self, Subject, conformance_tests};
use platctrl_framework::environment::Environment;
use platctrl_framework::root::RootedStore;
use platctrl_framework::store::{
    CommitFault, MemoryOptions, MemoryStore, Pipeline, Revision, Store,
};
use tokio::runtime::{Handle, RuntimeFlavor};

/// A memory store with every hook it can have.
fn subject_of(store: MemoryStore) -> Subject {
    let paused = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
    if paused {
        tokio::time::pause();
    }
    let (compacted, lossy) = (store.clone(), store.clone());
    Subject::new(Arc::new(store))
        .with_time(move |duration| {
            Box::pin(async move {
                if paused {
                    tokio::time::advance(duration).await;
                } else {
                    tokio::time::sleep(duration).await;
                }
            })
        })
        .with_compaction(move |revision: Revision| {
            // The backend's own revision, whatever epoch a store above gives it.
            compacted
                .faults()
                .compact(Revision::new(0, revision.counter()));
            Box::pin(std::future::ready(()))
        })
        .with_lost_answers(move || {
            lossy.faults().next_commits(1, CommitFault::UnknownApplied);
            Box::pin(std::future::ready(()))
        })
}

async fn memory() -> Subject {
    subject_of(MemoryStore::new(Environment::system()))
}

/// The least that a backend may do: few operations, small values, watches that merge.
async fn modest() -> Subject {
    let mut options = MemoryOptions::default();
    options.limits.max_writes = 20;
    options.limits.max_compares = 20;
    options.limits.max_operations = 32;
    options.limits.max_value_bytes = 4096;
    options.limits.max_transaction_bytes = 16 * 1024;
    options.exact_watch = false;
    options.history = 60;
    subject_of(MemoryStore::with_options(Environment::system(), options))
}

/// Commits that meet share transactions, and the store is slow enough for them to meet.
async fn pipelined() -> Subject {
    let pipeline = |store| Arc::new(Pipeline::new(slow::Slow::wrap(store))) as Arc<dyn Store>;
    memory().await.wrap(pipeline)
}

/// The same with one transaction in flight, in front of the least that a backend may do.
async fn narrow() -> Subject {
    let pipeline =
        |store| Arc::new(Pipeline::new(slow::Slow::wrap(store)).in_flight(1)) as Arc<dyn Store>;
    modest().await.wrap(pipeline)
}

mod on_a_pipeline {
    use super::*;

    conformance_tests! {
        pipelined,
        without: [
            operations_up_to_the_limit_are_taken,
            concurrent_commits_have_revisions_of_their_own,
            acknowledged_commits_survive_reopening,
            revisions_go_on_after_reopening,
            a_watch_after_reopening_misses_nothing,
        ]
    }
}

mod on_a_narrow_pipeline {
    use super::*;

    conformance_tests! {
        narrow,
        without: [
            an_exact_watch_tells_every_transaction_in_order,
            concurrent_commits_have_revisions_of_their_own,
            acknowledged_commits_survive_reopening,
            revisions_go_on_after_reopening,
            a_watch_after_reopening_misses_nothing,
        ]
    }
}

/// An opened root that was restored twice.
async fn rooted() -> Subject {
    let root = |store| Arc::new(RootedStore::new(Arc::new(Anchored(store)))) as Arc<dyn Store>;
    memory().await.wrap(root)
}

mod on_a_root {
    use super::*;

    conformance_tests! {
        rooted,
        without: [
            operations_up_to_the_limit_are_taken,
            acknowledged_commits_survive_reopening,
            revisions_go_on_after_reopening,
            a_watch_after_reopening_misses_nothing,
        ]
    }
}

mod on_memory {
    use super::*;

    conformance_tests! {
        memory,
        without: [
            operations_up_to_the_limit_are_taken,
            acknowledged_commits_survive_reopening,
            revisions_go_on_after_reopening,
            a_watch_after_reopening_misses_nothing,
        ]
    }
}

mod on_modest_memory {
    use super::*;

    conformance_tests! {
        modest,
        without: [
            an_exact_watch_tells_every_transaction_in_order,
            acknowledged_commits_survive_reopening,
            revisions_go_on_after_reopening,
            a_watch_after_reopening_misses_nothing,
        ]
    }
}

#[test]
fn conformance_cases_have_names_of_their_own() {
    let mut names: Vec<&str> = conformance::cases()
        .iter()
        .map(conformance::Case::name)
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 30, "{count}");
}

#[tokio::test(start_paused = true)]
async fn conformance_subjects_wait_on_virtual_time() {
    let store = MemoryStore::new(Environment::system());
    let lease = store.grant_lease(Duration::from_secs(1)).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(store.keep_alive(lease.id).await.is_err());
}
