//! What is slow, broken or new holds up nobody but those who asked for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use platctrl_framework::cache::write_prefix_anchor;
use platctrl_framework::controller::{CommitError, ControllerStatus};
use platctrl_framework::model::Tree;
use platctrl_framework::store::{Key, Prefix, Transaction};

use super::*;

/// A controller of any kind that counts its runs.
fn counting<K: Resource>(name: &str, runs: &Arc<AtomicU32>) -> Controller<K> {
    let runs = runs.clone();
    Controller::new(name, move |_, _| {
        runs.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
}

fn count(runs: &Arc<AtomicU32>) -> u32 {
    runs.load(Ordering::SeqCst)
}

fn status(running: &Running, name: &str) -> ControllerStatus {
    let status = running.handle.status().unwrap();
    let mut all = status.controllers.into_iter();
    all.find(|controller| controller.name == name).unwrap()
}

/// A runtime that reads each kind by sources of its own.
async fn by_kind(world: &World) -> Runtime {
    let mut runtime = world.runtime();
    for kind in [Site::group_plural(), Page::group_plural()] {
        for tree in [Tree::Intent, Tree::Reality] {
            let prefix = kind.prefix(tree);
            write_prefix_anchor(&world.store, &prefix).await.unwrap();
            runtime = runtime.watch(prefix);
        }
    }
    runtime
}

async fn page(world: &World, name: &str) -> Object<Page> {
    let page = Object::<Page>::new(named(name), PageSpec { text: "x".into() });
    world.client.create(&page).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_read_holds_only_the_controllers_that_named_its_kind() {
    for elected in [false, true] {
        let world = World::new().await;
        world.site("a", 0).await;
        page(&world, "p").await;
        let pages = Page::group_plural().prefix(Tree::Intent);
        let runtime = by_kind(&world).await;
        world.store.faults().deny_reads(pages.clone());
        let (only_sites, both) = (Arc::default(), Arc::default());
        let runtime = runtime
            .controller(counting::<Site>("only-sites", &only_sites))
            .controller(counting::<Site>("both", &both).owns::<Page>())
            .reap();
        let runtime = if elected {
            runtime.elect_leader("sites")
        } else {
            runtime
        };
        let running = world.run(runtime);
        until("the one runs", || async { count(&only_sites) == 1 }).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((count(&only_sites), count(&both)), (1, 0));
        assert_eq!(status(&running, "both").waits_for, [pages]);
        assert_eq!(status(&running, "only-sites").waits_for, []);
        // The reaper works on what is read.
        world.delete(&site_key("a")).await;
        until("the site is gone", || async {
            world.count("o/intent/example.dev/sites/") == 0
        })
        .await;
        world.site("b", 0).await;
        world.store.faults().allow_all();
        until("the other runs", || async { count(&both) == 1 }).await;
        assert_eq!(status(&running, "both").waits_for, []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_without_a_kind_that_is_not_read_is_not_written() {
    let world = World::new().await;
    let site = world.site("a", 1).await;
    let mut child = Object::<Page>::new(named("child"), PageSpec { text: "x".into() });
    child.metadata.owner_references.push(site.owner_reference());
    world.client.create(&child).await.unwrap();
    let runtime = by_kind(&world).await;
    let pages = Page::group_plural().prefix(Tree::Intent);
    world.store.faults().deny_reads(pages);
    // It counts pages without saying that it works with them.
    let refused: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = refused.clone();
    let careless = Controller::<Site>::new("careless", move |site, context| {
        let told = told.clone();
        async move {
            let outcome = make_pages(site, context).await;
            if let Err(error) = &outcome {
                told.lock().unwrap().push(error.to_string());
            }
            outcome
        }
    });
    let careful = counting::<Page>("careful", &Arc::default());
    let running = world.run(runtime.controller(careless).controller(careful));
    until("it was refused", || async {
        refused.lock().unwrap().len() > 2
    })
    .await;
    assert!(refused.lock().unwrap()[0].contains("pages.example.dev"));
    assert_eq!(world.count("o/intent/example.dev/pages/"), 1);
    world.store.faults().allow_all();
    until("it works once the kind is read", || async {
        status(&running, "careless").failing.is_empty() && world.count("o/reality/") == 1
    })
    .await;
    assert_eq!(world.count("o/intent/example.dev/pages/"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_no_watched_prefix_tells_of_is_refused_by_name() {
    let world = World::new().await;
    let sites = Site::group_plural().prefix(Tree::Intent);
    write_prefix_anchor(&world.store, &sites).await.unwrap();
    let runtime = || world.runtime().watch(sites.clone());
    let refused = runtime()
        .controller(super::sites())
        .run()
        .await
        .unwrap_err();
    let RunError::NotWatched { who, kind } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(
        (&**who, &**kind),
        ("the controller `sites`", "pages.example.dev")
    );
    let refused = runtime().kind::<Page>().run().await;
    assert!(matches!(refused, Err(RunError::NotWatched { .. })));
    let running = world.run(runtime());
    until("it runs", || async { running.handle.status().is_some() }).await;
    let refused = running.handle.add_kind::<Page>().await;
    assert!(matches!(refused, Err(RunError::NotWatched { .. })));
}

/// Rewrites every page, one after the other, so that the types here cannot read it, as a newer
/// schema would, or so that they can again.
async fn rewrite_pages(world: &World, readable: bool) {
    for record in world.store.dump() {
        if record
            .key
            .as_str()
            .starts_with("o/intent/example.dev/pages/default/")
        {
            let mut value: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            value["spec"] = if readable {
                serde_json::json!({"text": "hello"})
            } else {
                serde_json::json!({"text": {"lang": "en", "body": "hello"}})
            };
            let put = Transaction::new().put(record.key, value.to_string());
            world.store.commit(put).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_incompatible_schema_change_doubles_nothing_and_holds_only_those_who_named_the_kind() {
    let world = World::new().await;
    for site in ["a", "b", "c"] {
        world.site(site, 3).await;
    }
    let others = Arc::default();
    let runtime = || {
        let others = counting::<Site>("others", &others);
        world.runtime().controller(sites()).controller(others)
    };
    let running = world.run(runtime());
    let pages = || world.count("o/intent/example.dev/pages/");
    until("all pages are there", || async { pages() == 9 }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rewrite_pages(&world, false).await;
    until("the kind is found unreadable", || async {
        status(&running, "sites").unreadable.is_some()
    })
    .await;
    let told = status(&running, "sites").unreadable.unwrap();
    assert!(
        told.contains("of 9 pages") && told.contains("9 cannot be read"),
        "{told}"
    );
    let before = count(&others);
    world.site("d", 1).await;
    until("the other goes on", || async {
        count(&others) == before + 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(pages(), 9, "nothing was made twice");
    // A restart finds it at once.
    running.crash().await;
    let running = world.run(runtime());
    until("it is found again", || async {
        let status = running.handle.status();
        status.is_some_and(|status| status.controllers[0].unreadable.is_some())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(pages(), 9);
    rewrite_pages(&world, true).await;
    until("the new site has its page", || async { pages() == 10 }).await;
    assert_eq!(status(&running, "sites").unreadable, None);
}

#[tokio::test(start_paused = true)]
async fn an_owned_object_that_cannot_be_read_is_not_made_again() {
    let world = World::new().await;
    world.site("a", 1).await;
    world.site("b", 1).await;
    let running = world.run(world.runtime().controller(sites()));
    let pages = || world.count("o/intent/example.dev/pages/");
    until("each has its page", || async { pages() == 2 }).await;
    let page = world.store.dump().into_iter();
    let mut page = page.filter(|record| record.key.as_str().contains("/pages/default/a-"));
    let page = page.next().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&page.value).unwrap();
    value["spec"] = serde_json::json!("?");
    let spoil = Transaction::new().put(page.key, value.to_string());
    world.store.commit(spoil).await.unwrap();
    until("its owner says so", || async {
        let failing = status(&running, "sites").failing;
        failing.first().is_some_and(|key| key.key == site_key("a"))
    })
    .await;
    let mut other = world.client.get::<Site>(&site_key("b")).await.unwrap();
    other.spec.pages = 2;
    world.client.update(&other).await.unwrap();
    until("the other one is worked on", || async { pages() == 3 }).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(pages(), 3);
}

#[tokio::test(start_paused = true)]
async fn controllers_and_kinds_come_and_go_while_the_others_work() {
    let world = World::new().await;
    world.site("a", 2).await;
    page(&world, "p").await;
    let runs = Arc::default();
    let running = world.run(
        world
            .runtime()
            .controller(counting::<Site>("counting", &runs)),
    );
    until("it runs", || async { count(&runs) == 1 }).await;
    let handle = &running.handle;
    let shown = || handle.view().unwrap().list::<Page>().keys().len();
    assert_eq!(shown(), 0, "nobody asked for pages");

    // A kind by itself.
    handle.add_kind::<Page>().await.unwrap();
    assert_eq!(shown(), 1);
    handle.remove_kind::<Page>().unwrap();
    until("it is forgotten", || async { shown() == 0 }).await;

    // A controller with a kind that is new.
    handle.add_controller(sites()).await.unwrap();
    until("it works", || async {
        world.count("o/intent/example.dev/pages/") == 3
    })
    .await;
    let twice = handle.add_controller(sites()).await;
    assert!(matches!(twice, Err(RunError::DuplicateController { .. })));
    assert_eq!(shown(), 3);
    let before = count(&runs);
    page(&world, "q").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        count(&runs),
        before,
        "the first one does not care for pages"
    );

    // It goes again, with its kind.
    handle.remove_controller("sites").await.unwrap();
    until("pages are forgotten", || async { shown() == 0 }).await;
    world.site("b", 5).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        world.count("o/intent/example.dev/pages/"),
        4,
        "nobody makes pages"
    );
    let nobody = handle.remove_controller("sites").await;
    assert!(matches!(nobody, Err(RunError::NoController { .. })));
    until("the first one went on", || async { count(&runs) > before }).await;

    // And comes back, to what happened meanwhile.
    handle.add_controller(sites()).await.unwrap();
    until("it works", || async {
        world.count("o/intent/example.dev/pages/") == 9
    })
    .await;
    let handle = handle.clone();
    running.stop().await;
    let late = handle.add_controller(sites()).await;
    assert!(matches!(late, Err(RunError::NotRunning)));
}

#[tokio::test(start_paused = true)]
async fn a_removed_controllers_runs_are_finished_and_none_begins() {
    let world = World::new().await;
    world.site("a", 0).await;
    world.site("b", 0).await;
    let (begun, ended) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let (begins, ends) = (begun.clone(), ended.clone());
    let slow = Controller::<Site>::new("slow", move |_, _| {
        let (begins, ends) = (begins.clone(), ends.clone());
        async move {
            begins.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(10)).await;
            ends.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ReconcileError>(Action::await_change())
        }
    });
    let running = world.run(world.runtime().controller(slow.concurrency(1)));
    until("one began", || async { count(&begun) == 1 }).await;
    running.handle.remove_controller("slow").await.unwrap();
    assert_eq!((count(&begun), count(&ended)), (1, 1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(count(&begun), 1);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_was_added_with_a_kind_that_cannot_be_read_waits_alone() {
    let world = World::new().await;
    world.site("a", 0).await;
    let runs = Arc::default();
    let runtime = by_kind(&world).await;
    let pages = Page::group_plural().prefix(Tree::Intent);
    world.store.faults().deny_reads(pages);
    let running = world.run(runtime.controller(counting::<Site>("first", &runs)));
    until("it runs", || async { count(&runs) == 1 }).await;
    let late = Arc::default();
    let controller = counting::<Site>("late", &late).owns::<Page>();
    running.handle.add_controller(controller).await.unwrap();
    world.site("b", 0).await;
    until("the first goes on", || async { count(&runs) == 2 }).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(count(&late), 0);
    world.store.faults().allow_all();
    until("the late one begins", || async { count(&late) == 2 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_the_start_is_waited_for() {
    for division in 0..3 {
        let world = World::new().await;
        world.site("a", 2).await;
        world.store.faults().set_away(true);
        let runtime = world.runtime().controller(sites());
        let running = world.run(match division {
            0 => runtime,
            1 => runtime.elect_leader("sites"),
            _ => runtime.shards(4),
        });
        tokio::time::sleep(Duration::from_secs(600)).await;
        let sources = running.handle.status().unwrap().sources;
        assert!(sources[0].failing.is_some());
        world.store.faults().set_away(false);
        until("it works", || async {
            world.count("o/intent/example.dev/pages/") == 2
        })
        .await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_within_its_grace_even_if_store_and_runs_do_not_answer() {
    for division in 0..3 {
        let world = World::new().await;
        world.site("a", 0).await;
        let begun = Arc::<AtomicU32>::default();
        let begins = begun.clone();
        let stuck = Controller::<Site>::new("stuck", move |_, _| {
            begins.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<Action, CommitError>>()
        });
        let runtime = world
            .runtime()
            .controller(stuck)
            .grace(Duration::from_secs(10));
        let running = world.run(match division {
            0 => runtime,
            1 => runtime.elect_leader("sites"),
            _ => runtime.shards(4),
        });
        until("it is stuck", || async { count(&begun) == 1 }).await;
        world.store.faults().set_away(true);
        let asked = world.environment.monotonic();
        running.stop().await;
        let took = world.environment.monotonic() - asked;
        assert!(took <= Duration::from_secs(25), "{division}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_empty_or_newer_takes_nothing_away_and_makes_nothing_twice() {
    let world = World::new().await;
    world.site("a", 3).await;
    let running = world.run(world.runtime().controller(sites()).reap());
    until("it has its pages", || async {
        world.count("o/intent/example.dev/pages/") == 3
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let snapshot = world.store.snapshot();
    let faults = world.store.faults();
    faults.come_back_empty();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(
        running.handle.status().unwrap().sources[0]
            .failing
            .is_some()
    );
    assert_eq!(world.count("o/"), 0, "nothing is made in an empty store");
    let shown = running.handle.view().unwrap().list::<Page>().keys().len();
    assert_eq!(shown, 3, "the last view stays");
    faults.come_back_newer(&snapshot, 100);
    until("it is read again", || async {
        running.handle.status().unwrap().sources[0]
            .failing
            .is_none()
    })
    .await;
    world.site("b", 1).await;
    until("it goes on", || async {
        world.count("o/intent/example.dev/pages/") == 4
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_prefix_can_be_added_to_by_single_keys_of_other_kinds() {
    // What an agent watches: its own pods, and its own node among all nodes.
    let world = World::new().await;
    let sites = Site::group_plural().prefix(Tree::Intent);
    let status_of_sites = Site::group_plural().prefix(Tree::Reality);
    for prefix in [&sites, &status_of_sites] {
        write_prefix_anchor(&world.store, prefix).await.unwrap();
    }
    let own = Key::new("o/intent/example.dev/pages/default/own").unwrap();
    page(&world, "own2").await;
    world.site("a", 0).await;
    // Rights that a node's credential has: nothing but what it watches, and the root's anchor.
    let runs = Arc::default();
    let controller = counting::<Site>("agent", &runs);
    let controller = controller.watches::<Page>(|_, view| view.list::<Site>().keys());
    let runtime = world.runtime().watch(sites).watch(status_of_sites);
    let running = world.run(runtime.watch(Prefix::only(&own)).controller(controller));
    until("it runs", || async { count(&runs) == 1 }).await;
    page(&world, "own").await;
    until("it hears of its own", || async { count(&runs) == 2 }).await;
    page(&world, "own3").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(count(&runs), 2, "and of no other");
    drop(running);
}
