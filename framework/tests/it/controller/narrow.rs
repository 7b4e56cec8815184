//! A runtime that mirrors its own kinds alone.

use std::sync::Mutex;

use platctrl_framework::cache::{Freshness, SourceError};
use platctrl_framework::failsafe::{freeze, thaw};
use platctrl_framework::model::Tree;
use platctrl_framework::store::{Key, Prefix, Transaction};

use super::*;

fn prefix(kind: &str, tree: &str) -> Prefix {
    Prefix::new(format!("o/{tree}/example.dev/{kind}/")).unwrap()
}

/// Notes the names that it is called with.
fn noting(seen: &Arc<Mutex<Vec<String>>>) -> Controller<Site> {
    let seen = seen.clone();
    Controller::new("sites", move |site: Arc<Object<Site>>, _| {
        seen.lock().unwrap().push(site.metadata.name.clone());
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
}

#[tokio::test(start_paused = true)]
async fn a_runtime_of_its_own_kinds_reads_nothing_of_others() {
    let world = World::new().await;
    world.site("a", 1).await;
    let page = Object::<Page>::new(
        named("p"),
        PageSpec {
            text: String::new(),
        },
    );
    world.client.create(&page).await.unwrap();
    // Whoever read more than its own would fail.
    let faults = world.store.faults();
    faults.deny_reads(prefix("pages", "intent"));
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let runtime = world.runtime().controller(noting(&seen)).watch_declared();
    let running = world.run(runtime);
    until("it works", || async { seen.lock().unwrap().len() == 1 }).await;
    let status = running.handle.status().unwrap();
    assert!(matches!(status.freshness, Some(Freshness::Bounded(..))));
    let sources = status.sources.iter();
    let mut watched: Vec<_> = sources.map(|it| it.prefix.to_string()).collect();
    watched.sort_unstable();
    let trees = ["grant", "intent", "ledger", "part", "reality"];
    let own = trees.map(|tree| prefix("sites", tree).to_string());
    assert_eq!(watched, own);
    for tree in trees {
        let anchor = prefix("sites", tree).key(".anchor").unwrap();
        let root = Key::new("x/anchor").unwrap();
        let value = |key: &Key| world.store.peek(key).unwrap().value;
        assert_eq!(value(&anchor), value(&root));
    }
    let more = running.handle.add_kind::<Page>().await;
    assert!(matches!(more, Err(RunError::NotWatched { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_belongs_together_is_made_once_and_ends_though_it_is_watched_apart() {
    let world = World::new().await;
    world.store.faults().set_latency(Duration::from_millis(3));
    world.site("a", 3).await;
    let runtime = world.runtime().controller(sites()).reap().watch_declared();
    let running = world.run(runtime);
    let pages = || world.count("o/intent/example.dev/pages/");
    until("it has its pages", || async { pages() == 3 }).await;
    world.site("b", 2).await;
    until("it has its pages, too", || async { pages() == 5 }).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(pages(), 5, "none is made twice");
    world.delete(&site_key("a")).await;
    until("it is gone", || async {
        world.count("o/intent/example.dev/sites/default/a") == 0
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_prefix_that_loses_its_anchor_is_no_empty_fleet() {
    let world = World::new().await;
    world.site("a", 1).await;
    world.site("b", 1).await;
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let runtime = || world.runtime().controller(noting(&seen)).watch_declared();
    let running = world.run(runtime());
    until("it works", || async { seen.lock().unwrap().len() == 2 }).await;
    let records = world.store.dump();
    let intents = prefix("sites", "intent");
    let lost = records.iter().filter(|it| it.key.is_under(&intents));
    let lost: Vec<_> = lost.cloned().collect();
    assert_eq!(lost.len(), 3, "two sites and the anchor");
    let lose = |all: Transaction, key: &Key| all.delete(key.clone());
    let wipe = lost.iter().map(|it| &it.key).fold(Transaction::new(), lose);
    world.store.commit(wipe).await.unwrap();
    world.store.faults().reset_watches();
    until("it is noticed", || async {
        let sources = running.handle.status().unwrap().sources;
        let mut failing = sources.into_iter().filter_map(|it| it.failing);
        failing.any(|it| matches!(it, SourceError::NoAnchor { .. }))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(
        !intents
            .key(".anchor")
            .is_ok_and(|key| world.store.peek(&key).is_some())
    );
    let put = |all: Transaction, it: &platctrl_framework::store::Record| {
        all.put(it.key.clone(), it.value.clone())
    };
    let bring_back = lost.iter().fold(Transaction::new(), put);
    world.store.commit(bring_back).await.unwrap();
    until("it is read again", || async {
        let sources = running.handle.status().unwrap().sources;
        sources.iter().all(|it| it.failing.is_none())
    })
    .await;
    assert_eq!(
        running.handle.view().unwrap().list::<Site>().keys().len(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn an_anchor_is_written_once_the_store_is_there_and_nothing_is_frozen() {
    let world = World::new().await;
    world.site("a", 1).await;
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let faults = world.store.faults();
    faults.set_away(true);
    let runtime = world.runtime().controller(noting(&seen)).watch_declared();
    let running = world.run(runtime);
    tokio::time::sleep(Duration::from_secs(60)).await;
    faults.set_away(false);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let anchor = Site::group_plural()
        .prefix(Tree::Intent)
        .key(".anchor")
        .unwrap();
    assert!(
        world.store.peek(&anchor).is_none(),
        "nothing is written while all is frozen"
    );
    assert!(running.handle.view().is_none());
    thaw(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    until("it works", || async { seen.lock().unwrap().len() == 1 }).await;
    assert!(world.store.peek(&anchor).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_program_that_may_not_write_the_anchor_says_why_it_reads_nothing() {
    let world = World::new().await;
    let faults = world.store.faults();
    faults.deny_writes(Prefix::new("o/").unwrap());
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let runtime = world.runtime().controller(noting(&seen)).watch_declared();
    let running = world.run(runtime);
    until("it is told", || async {
        let Some(status) = running.handle.status() else {
            return false;
        };
        let mut failing = status.sources.into_iter().filter_map(|it| it.failing);
        failing.any(|it| matches!(it, SourceError::NoAnchor { .. }))
    })
    .await;
    faults.allow_all();
    world.site("a", 1).await;
    until("it works", || async { seen.lock().unwrap().len() == 1 }).await;
}
