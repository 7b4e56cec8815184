//! What a controller sees and does from an object's creation to its end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use platctrl_framework::cache::{Freshness, write_prefix_anchor};
use platctrl_framework::controller::{Absent, Cause, EventRecorder, Trigger};
use platctrl_framework::model::{EventType, ObjectReference, Phase, Tree};
use platctrl_framework::store::{Prefix, Transaction};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_controller_makes_what_is_wanted_and_reports_it() {
    let world = World::new().await;
    let site = world.site("a", 3).await;
    let running = world.run(world.runtime().controller(sites()));
    until("three pages are reported", || async {
        let site = world.client.get::<Site>(&site_key("a")).await.unwrap();
        site.status.detail.pages == 3
    })
    .await;
    let key = site.key().unwrap();
    let reality = world.client.joined(&key).await.unwrap().reality.unwrap();
    assert_eq!(reality.value.metadata.claim.as_deref(), Some("sites"));
    assert_eq!(world.count("o/intent/example.dev/pages/"), 3);
    let view = running.handle.view().unwrap();
    assert!(matches!(view.freshness(), Freshness::Exact(_)));
    assert_eq!(
        view.list::<Page>().in_namespace("default").to_vec().len(),
        3
    );
    assert_eq!(view.list::<Page>().in_namespace("other").to_vec().len(), 0);
    // Nothing is left to do, and nothing is done.
    let revision = world.store.revision();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.store.revision(), revision);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_that_vanishes_is_made_again() {
    let world = World::new().await;
    world.site("a", 2).await;
    let _running = world.run(world.runtime().controller(sites()));
    let pages = || async { world.count("o/intent/example.dev/pages/") == 2 };
    until("two pages", pages).await;
    let page = world.store.dump();
    let page = page
        .iter()
        .find(|record| record.key.as_str().contains("/pages/default/"))
        .unwrap();
    let before = world.store.revision();
    world
        .store
        .commit(Transaction::new().delete(page.key.clone()))
        .await
        .unwrap();
    until("two pages again", || async {
        world.store.revision() > before.next() && pages().await
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_object_ends_and_the_reaper_removes_its_records() {
    let world = World::new().await;
    let _running = world.run(world.runtime().controller(sites()).reap());
    world.site("b", 1).await;
    until("it is worked on", || async {
        world.count("o/reality/example.dev/sites/") == 1
    })
    .await;
    world.delete(&site_key("b")).await;
    until("its records are gone", || async {
        world.count("o/intent/example.dev/sites/default/b") == 0
            && world.count("o/reality/example.dev/sites/") == 0
    })
    .await;
    // Its page is another object: it stays.
    assert_eq!(world.count("o/intent/example.dev/pages/"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_holds_something_outside_is_called_to_give_it_back() {
    let world = World::new().await;
    let outside = Arc::new(AtomicU32::new(0));
    let (make, take) = (outside.clone(), outside.clone());
    let controller = Controller::<Site>::new("sites", move |_, context| {
        let make = make.clone();
        async move {
            let claimed = context.claim().await?;
            assert!(!claimed.uid().is_empty());
            make.store(1, Ordering::SeqCst);
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .on_delete(move |_, context| {
        let take = take.clone();
        async move {
            take.store(0, Ordering::SeqCst);
            let mut changes = context.changes();
            changes.report_gone()?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    });
    world.site("a", 0).await;
    let _running = world.run(world.runtime().controller(controller).reap());
    until("it was made", || async {
        outside.load(Ordering::SeqCst) == 1
    })
    .await;
    let joined = world.client.joined(&site_key("a")).await.unwrap();
    assert!(joined.own_reality().is_some(), "claimed before the effect");
    world.delete(&site_key("a")).await;
    until("all is gone", || async {
        world.count("o/intent/example.dev/sites/") == 0
    })
    .await;
    assert_eq!(outside.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_missing_intent_is_shown_as_unexplained_and_takes_nothing_away() {
    let world = World::new().await;
    world.site("a", 7).await;
    type Seen = Vec<(bool, Option<u32>)>;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let absent = seen.clone();
    let controller = sites().on_absent(move |object: Absent<Site>, _| {
        let last = object.last.map(|site| site.spec.pages);
        absent
            .lock()
            .unwrap()
            .push((object.reality.is_some(), last));
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    });
    let running = world.run(world.runtime().controller(controller));
    until("it is worked on", || async {
        world.count("o/reality/example.dev/sites/") == 1
            && world.count("o/intent/example.dev/pages/") == 7
    })
    .await;
    let key = site_key("a");
    let lose = |tree| Transaction::new().delete(key.store_key(tree));
    world.store.commit(lose(Tree::Intent)).await.unwrap();
    until("it is seen", || async { !seen.lock().unwrap().is_empty() }).await;
    assert_eq!(seen.lock().unwrap()[0], (true, Some(7)));
    let view = running.handle.view().unwrap();
    assert_eq!(view.unexplained::<Site>().count(), 1);
    assert_eq!(world.count("o/reality/example.dev/sites/"), 1);
    assert_eq!(world.count("o/intent/example.dev/pages/"), 7);
    world.store.commit(lose(Tree::Reality)).await.unwrap();
    until("the rest is seen", || async {
        seen.lock().unwrap().last() == Some(&(false, None))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_delete_while_the_watch_is_broken_is_seen_with_the_last_known_object() {
    let world = World::new().await;
    world.site("a", 7).await;
    let seen: Arc<Mutex<Vec<Option<u32>>>> = Arc::default();
    let absent = seen.clone();
    let controller = Controller::<Site>::new("sites", |_, _| async {
        Ok::<_, ReconcileError>(Action::await_change())
    })
    .on_absent(move |object: Absent<Site>, _| {
        absent
            .lock()
            .unwrap()
            .push(object.last.map(|site| site.spec.pages));
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    });
    let running = world.run(world.runtime().controller(controller));
    until("it is known", || async {
        running
            .handle
            .view()
            .is_some_and(|view| view.list::<Site>().keys().len() == 1)
    })
    .await;
    let faults = world.store.faults();
    faults.hold_watches(Prefix::all());
    world.delete(&site_key("a")).await;
    faults.compact(world.store.revision());
    faults.reset_watches();
    faults.release_watches();
    until("the delete is seen", || async {
        !seen.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(*seen.lock().unwrap(), [Some(7)]);
    let source = &running.handle.status().unwrap().sources[0];
    assert!(source.lists >= 2, "it was found by a list: {source:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_on_another_kind_makes_those_run_that_the_map_names() {
    let world = World::new().await;
    world.site("a", 0).await;
    world.site("b", 0).await;
    type Runs = Vec<(String, Vec<Cause>)>;
    let runs: Arc<Mutex<Runs>> = Arc::default();
    let ran = runs.clone();
    let controller = Controller::<Site>::new("sites", move |site, context| {
        let causes = context.causes().to_vec();
        ran.lock()
            .unwrap()
            .push((site.metadata.name.clone(), causes));
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
    .watches::<Page>(|_, view| view.list::<Site>().keys());
    let _running = world.run(world.runtime().controller(controller));
    until("both ran", || async { runs.lock().unwrap().len() == 2 }).await;
    runs.lock().unwrap().clear();
    let spec = PageSpec { text: "x".into() };
    let page = Object::<Page>::new(named("p"), spec);
    world.client.create(&page).await.unwrap();
    until("both ran again", || async {
        runs.lock().unwrap().len() == 2
    })
    .await;
    for (_, causes) in runs.lock().unwrap().iter() {
        assert!(matches!(&causes[..], [Cause::Related { key, .. }] if key.name() == "p"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_trigger_from_outside_makes_a_key_run() {
    let world = World::new().await;
    world.site("a", 0).await;
    let trigger = Trigger::new();
    let runs: Arc<Mutex<Vec<Vec<Cause>>>> = Arc::default();
    let ran = runs.clone();
    let controller = Controller::<Site>::new("sites", move |_, context| {
        ran.lock().unwrap().push(context.causes().to_vec());
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
    .triggered_by(&trigger);
    let _running = world.run(world.runtime().controller(controller));
    until("it ran", || async { runs.lock().unwrap().len() == 1 }).await;
    trigger.fire(site_key("a"), "the process ended");
    until("it ran again", || async { runs.lock().unwrap().len() == 2 }).await;
    assert_eq!(
        runs.lock().unwrap()[1],
        [Cause::Triggered("the process ended".into())]
    );
}

#[tokio::test(start_paused = true)]
async fn a_runtime_can_mirror_a_few_prefixes_that_have_their_anchors() {
    let world = World::new().await;
    world.site("a", 2).await;
    let prefixes = ["o/intent/example.dev/", "o/reality/example.dev/sites/"];
    let prefixes = prefixes.map(|prefix| Prefix::new(prefix).unwrap());
    for prefix in &prefixes {
        write_prefix_anchor(&world.store, prefix).await.unwrap();
    }
    let runtime = prefixes
        .into_iter()
        .fold(world.runtime(), Runtime::watch)
        .controller(sites());
    let running = world.run(runtime);
    until("two pages are reported", || async {
        let site = world.client.get::<Site>(&site_key("a")).await.unwrap();
        site.status.detail.pages == 2
    })
    .await;
    let freshness = running.handle.view().unwrap().freshness();
    assert!(matches!(freshness, Freshness::Bounded(..)));
}

#[tokio::test(start_paused = true)]
async fn a_single_key_can_be_mirrored_beside_a_prefix() {
    let world = World::new().await;
    let trees = [Tree::Intent, Tree::Reality];
    let kind = Site::group_plural();
    let sites = trees.map(|tree| kind.prefix(tree));
    for prefix in &sites {
        write_prefix_anchor(&world.store, prefix).await.unwrap();
    }
    let page = ObjectKey::namespaced("example.dev", "pages", "default", "p").unwrap();
    let only = Prefix::only(&page.store_key(Tree::Intent));
    write_prefix_anchor(&world.store, &only).await.unwrap();
    let seen: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
    let (told, watched) = (seen.clone(), page.clone());
    let controller = Controller::<Site>::new("sites", move |_, context| {
        let page = context.view().get::<Page>(&watched);
        told.lock()
            .unwrap()
            .push(page.map(|page| page.spec.text.clone()));
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
    .watches::<Page>(|_, view| view.list::<Site>().keys());
    world.site("a", 0).await;
    let runtime = sites.into_iter().fold(world.runtime(), Runtime::watch);
    let running = world.run(runtime.watch(only).controller(controller));
    let saw = |expected: Option<&str>| {
        let expected = expected.map(ToOwned::to_owned);
        let seen = seen.clone();
        async move { seen.lock().unwrap().last() == Some(&expected) }
    };
    until("nothing is there", || saw(None)).await;
    let create = async |name: &str, text: &str| {
        let spec = PageSpec { text: text.into() };
        let page = Object::<Page>::new(named(name), spec);
        world.client.create(&page).await.unwrap();
    };
    create("p", "one").await;
    until("it is there", || saw(Some("one"))).await;
    // Names that only begin alike are other keys.
    create("p1", "other").await;
    let mut page = world.client.get::<Page>(&page).await.unwrap();
    page.spec.text = "two".into();
    world.client.update(&page).await.unwrap();
    until("the change is there", || saw(Some("two"))).await;
    let view = running.handle.view().unwrap();
    assert_eq!(view.list::<Page>().to_vec().len(), 1);
    // Gone while nobody was told: a read of the key finds it.
    let faults = world.store.faults();
    faults.hold_watches(Prefix::all());
    let key = page.key().unwrap().store_key(Tree::Intent);
    let lost = Transaction::new().delete(key);
    world.store.commit(lost).await.unwrap();
    faults.compact(world.store.revision());
    faults.release_watches();
    until("it is gone", || saw(None)).await;
    // An answer that does not show whose it is shows nothing.
    faults.hide(Prefix::all());
    faults.break_watches();
    until("it is noticed", || async {
        let sources = running.handle.status().unwrap().sources;
        sources.iter().all(|source| source.failing.is_some())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn events_are_added_up_and_continue_behind_the_newest() {
    let world = World::new().await;
    let store = world.store();
    let recorder = || {
        EventRecorder::new(
            store.clone(),
            "web1",
            "agent/web1",
            world.environment.clone(),
        )
    };
    let object = ObjectReference {
        api_version: "example.dev/v1".into(),
        kind: "Site".into(),
        namespace: Some("default".into()),
        name: "a".into(),
        uid: "u1".into(),
    };
    let first = recorder().unwrap();
    for _ in 0..3 {
        first.record(
            object.clone(),
            EventType::Warning,
            "Restarted",
            "it exited with 1",
        );
    }
    first.record(object.clone(), EventType::Normal, "Ready", "it answers");
    first.flush().await;
    let second = recorder().unwrap();
    second.record(object.clone(), EventType::Normal, "Ready", "it answers");
    second.flush().await;
    let events: Vec<platctrl_framework::model::Event> = world
        .store
        .dump()
        .iter()
        .filter(|record| record.key.as_str().starts_with("x/event/web1/"))
        .map(|record| serde_json::from_slice(&record.value).unwrap())
        .collect();
    let shown: Vec<_> = events
        .iter()
        .map(|event| (event.reason.as_str(), event.count, event.sequence))
        .collect();
    assert_eq!(
        shown,
        [("Restarted", 3, 0), ("Ready", 1, 1), ("Ready", 1, 2)]
    );
    assert!(world.store.peek(&"x/event/web1/002".parse_key()).is_some());
}

trait ParseKey {
    fn parse_key(&self) -> platctrl_framework::store::Key;
}

impl ParseKey for &str {
    fn parse_key(&self) -> platctrl_framework::store::Key {
        platctrl_framework::store::Key::new(self).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_ends_reports_gone_before_its_records_go() {
    let world = World::new().await;
    world.site("a", 1).await;
    let _running = world.run(world.runtime().controller(sites()));
    until("it is worked on", || async {
        world.count("o/reality/example.dev/sites/") == 1
    })
    .await;
    world.delete(&site_key("a")).await;
    until("it is gone", || async {
        let joined = world.client.joined(&site_key("a")).await.unwrap();
        joined.reality.unwrap().value.status.phase == Phase::GONE
    })
    .await;
}
