//! What a controller does when store, records or its own code misbehave.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use platctrl_framework::cache::{SourceError, write_prefix_anchor};
use platctrl_framework::controller::{Cause, ControllerStatus, Trigger};
use platctrl_framework::store::{CommitFault, Key, Prefix, Transaction};

use super::*;

fn status(running: &Running) -> ControllerStatus {
    let status = running.handle.status();
    status.map_or_else(ControllerStatus::default, |status| {
        status.controllers[0].clone()
    })
}

fn failing(running: &Running) -> Option<SourceError> {
    running.handle.status()?.sources[0].failing.clone()
}

/// A controller that counts its runs for each object and then does what `act` says.
fn counting(
    runs: &Arc<Mutex<BTreeMap<String, u32>>>,
    act: impl Fn(&str, u32) -> Result<Action, ReconcileError> + Send + Sync + 'static,
) -> Controller<Site> {
    let runs = runs.clone();
    Controller::new("sites", move |site: Arc<Object<Site>>, _| {
        let name = site.metadata.name.clone();
        let count = {
            let mut runs = runs.lock().unwrap();
            let count = runs.entry(name.clone()).or_default();
            *count += 1;
            *count
        };
        let outcome = act(&name, count);
        async move { outcome }
    })
}

async fn put(world: &World, key: &str, value: &str) {
    let key = Key::new(key).unwrap();
    let put = Transaction::new().put(key, value.to_owned());
    world.store.commit(put).await.unwrap();
}

async fn one_child_each(seed: u64, watched: impl Fn(Runtime) -> Runtime) {
    let world = World::new().await;
    let faults = world.store.faults();
    const SITES: usize = 12;
    for site in 0..SITES {
        world.site(&format!("s{site}"), 1).await;
    }
    // It never reports, so that nothing but the library touches its own reality.
    let controller = Controller::<Site>::new("sites", |site, context| async move {
        let pages = context
            .view()
            .list::<Page>()
            .owned_by(&site.metadata.uid)
            .keys();
        let mut changes = context.changes();
        if pages.is_empty() {
            changes.create(&page_of(&site, &context))?;
        }
        changes.commit().await?;
        Ok::<_, ReconcileError>(Action::await_change())
    });
    let runtime = world.runtime().controller(controller.owns::<Page>());
    let running = world.run(watched(runtime));
    // Any generator will do that gives the same numbers for the same seed.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let everything = Prefix::new("o/").unwrap();
    // How often a commit comes while a fault waits for one is not for the seed alone to say: it goes
    // on until there were enough.
    let mut steps = 0;
    while steps < 150 || faults.counts().unknown <= 5 {
        steps += 1;
        assert!(steps < 5_000, "seed {seed}: the faults did not happen");
        let fault = random(9);
        match fault {
            0..=3 if faults.planned_commits() > 0 => {}
            0 => faults.next_commits(2, CommitFault::UnknownApplied),
            1 => faults.next_commits(1, CommitFault::UnknownLost),
            2 | 3 => faults.next_commits(1, CommitFault::UnknownDelayed),
            4 | 5 => faults.hold_watches(everything.clone()),
            6 => faults.release_watches(),
            7 => drop(faults.apply_delayed()),
            _ => {
                // A page vanishes, so that there is something to do.
                let page = world.store.dump().into_iter();
                let mut page =
                    page.filter(|record| record.key.as_str().contains("/pages/default/"));
                if let Some(page) = page.nth(random(SITES as u64) as usize) {
                    let lost = Transaction::new().delete(page.key);
                    drop(world.store.commit(lost).await);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random(400))).await;
        let mut owners = BTreeMap::<String, u32>::new();
        for record in world.store.dump() {
            if let Some(page) = record.key.as_str().split("/pages/default/").nth(1) {
                let owner = page.split('-').next().unwrap().to_owned();
                *owners.entry(owner).or_default() += 1;
            }
        }
        assert!(
            owners.values().all(|&pages| pages == 1),
            "seed {seed}: {owners:?}"
        );
    }
    drop(faults.apply_delayed());
    faults.release_watches();
    until("each site has its page", || async {
        world.count("o/intent/example.dev/pages/") == SITES
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_is_never_made_twice_however_stale_the_view_and_lost_the_answers() {
    for seed in 1..=12 {
        one_child_each(seed, |runtime| runtime).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_is_never_made_twice_where_each_kind_is_watched_by_itself() {
    for seed in 1..=12 {
        one_child_each(seed, Runtime::watch_declared).await;
    }
}

#[tokio::test(start_paused = true)]
async fn records_that_cannot_be_read_are_set_aside_and_stop_nothing() {
    let world = World::new().await;
    world.site("good", 1).await;
    put(&world, "o/intent/example.dev/sites/default/torn", "{\"meta").await;
    let typed = r#"{"apiVersion":"example.dev/v1","kind":"Site","metadata":{"name":"typed","namespace":"default","uid":"u"},"spec":{"pages":"many"}}"#;
    put(&world, "o/intent/example.dev/sites/default/typed", typed).await;
    put(&world, "o/intent/example.dev/sites/default/a/b/c", "{}").await;
    put(&world, "o/reality/example.dev/sites/default/good", "]").await;
    let running = world.run(world.runtime().controller(sites()));
    until("the good one has its page", || async {
        world.count("o/intent/example.dev/pages/default/good-") == 1
    })
    .await;
    let view = running.handle.view().unwrap();
    let mut keys: Vec<_> = view
        .set_aside()
        .iter()
        .map(|error| error.key.clone())
        .collect();
    keys.sort();
    let sites = "o/intent/example.dev/sites/default";
    assert_eq!(
        keys,
        [
            format!("{sites}/a/b/c"),
            format!("{sites}/torn"),
            format!("{sites}/typed")
        ]
    );
    assert_eq!(view.unreadable::<Site>().len(), 3);
    assert_eq!(view.list::<Site>().to_vec().len(), 1);
    assert_eq!(view.list::<Site>().keys().len(), 3);
    put(
        &world,
        "o/intent/example.dev/sites/default/typed",
        &typed.replace("\"many\"", "1"),
    )
    .await;
    until("the mended one has its page", || async {
        world.count("o/intent/example.dev/pages/default/typed-") == 1
    })
    .await;
    assert_eq!(running.handle.status().unwrap().set_aside, 2);
    assert_eq!(status(&running).panics, 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_stops_no_other_and_is_tried_again() {
    let world = World::new().await;
    for name in ["bad", "good", "fine"] {
        world.site(name, 0).await;
    }
    let runs = Arc::default();
    let controller = counting(&runs, |name, count| {
        assert!(name != "bad" || count > 3, "on purpose");
        Ok(Action::await_change())
    })
    .concurrency(1);
    let running = world.run(world.runtime().controller(controller));
    until("the bad one recovers", || async {
        runs.lock().unwrap().get("bad") == Some(&4)
    })
    .await;
    until("nothing fails", || async {
        status(&running).failing.is_empty()
    })
    .await;
    let status = status(&running);
    assert_eq!((status.panics, status.errors), (3, 0));
    assert_eq!(runs.lock().unwrap()["good"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_never_returns_is_ended_and_counted() {
    let world = World::new().await;
    world.site("stuck", 0).await;
    world.site("good", 0).await;
    let done = Arc::new(AtomicU32::new(0));
    let counted = done.clone();
    let controller = Controller::<Site>::new("sites", move |site, _| {
        let counted = counted.clone();
        async move {
            if site.metadata.name == "stuck" {
                std::future::pending::<()>().await;
            }
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .concurrency(1)
    .timeout(Duration::from_secs(5));
    let running = world.run(world.runtime().controller(controller));
    until(
        "the good one ran and the stuck one was ended twice",
        || async { done.load(Ordering::SeqCst) == 1 && status(&running).timeouts >= 2 },
    )
    .await;
    let failing = &status(&running).failing;
    assert_eq!(failing[0].key, site_key("stuck"));
}

#[tokio::test(start_paused = true)]
async fn failures_wait_longer_and_longer_and_success_ends_that() {
    let world = World::new().await;
    world.site("a", 0).await;
    let runs = Arc::default();
    let controller = counting(&runs, |_, count| {
        if count == 12 {
            return Ok(Action::requeue_after(Duration::from_secs(1)));
        }
        Err(ReconcileError::transient("not yet"))
    });
    let running = world.run(world.runtime().controller(controller));
    let begun = world.environment.monotonic();
    until("it succeeds", || async {
        runs.lock().unwrap().get("a") == Some(&12)
    })
    .await;
    let took = world.environment.monotonic() - begun;
    // 50 ms, 100 ms … 51.2 s, each cut by at most half.
    assert!(
        took > Duration::from_secs(50) && took < Duration::from_secs(103),
        "{took:?}"
    );
    until("it fails again", || async { status(&running).errors == 12 }).await;
    assert_eq!(status(&running).failing[0].failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_terminal_error_is_not_repeated_until_something_changes() {
    let world = World::new().await;
    let site = world.site("a", 0).await;
    let runs = Arc::default();
    let controller = counting(&runs, |_, _| Err(ReconcileError::terminal("never")));
    let running = world.run(world.runtime().controller(controller));
    until("it failed", || async { status(&running).errors == 1 }).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(status(&running).errors, 1);
    let mut changed = world
        .client
        .get::<Site>(&site.key().unwrap())
        .await
        .unwrap();
    changed.spec.pages = 1;
    world.client.update(&changed).await.unwrap();
    until("it ran again", || async { status(&running).errors == 2 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_writes_and_fails_does_not_wake_itself() {
    let world = World::new().await;
    world.site("a", 0).await;
    let controller = Controller::<Site>::new("sites", |site, context| async move {
        let mut changes = context.changes();
        let pages = site.status.detail.pages + 1;
        let detail = SiteStatus { pages };
        changes.report::<Site>(&Status {
            detail,
            ..site.status.clone()
        })?;
        changes.commit().await?;
        Err::<Action, _>(ReconcileError::transient("after the write"))
    });
    let running = world.run(world.runtime().controller(controller));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let errors = status(&running).errors;
    assert!((8..=13).contains(&errors), "{errors} runs in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_quiet_and_repeated_on_a_newer_view() {
    let world = World::new().await;
    world.site("a", 0).await;
    let meddled = Arc::new(AtomicU32::new(0));
    let (meddle, client) = (meddled.clone(), world.client.clone());
    let controller = Controller::<Site>::new("sites", move |site, context| {
        let (meddle, client) = (meddle.clone(), client.clone());
        async move {
            if meddle.fetch_add(1, Ordering::SeqCst) < 2 {
                let detail = SiteStatus {
                    pages: 90 + meddle.load(Ordering::SeqCst),
                };
                let mut other = (*site).clone();
                other.metadata.resource_version = None;
                other.status.detail = detail;
                client.update_status(&other).await?;
            }
            let mut changes = context.changes();
            let detail = SiteStatus { pages: 7 };
            changes.report::<Site>(&Status {
                detail,
                ..site.status.clone()
            })?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    });
    let running = world.run(world.runtime().controller(controller));
    until("it is reported", || async {
        let site = world.client.get::<Site>(&site_key("a")).await.unwrap();
        site.status.detail.pages == 7
    })
    .await;
    let status = status(&running);
    assert_eq!((status.conflicts, status.errors), (2, 0), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_an_hour_is_read_again_when_it_is_back() {
    let world = World::new().await;
    world.site("a", 1).await;
    let running = world.run(world.runtime().controller(sites()));
    until("it has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    let faults = world.store.faults();
    faults.set_away(true);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(matches!(failing(&running), Some(SourceError::Store(_))));
    assert!(running.handle.view().is_some(), "the last view stays");
    faults.set_away(false);
    world.site("b", 1).await;
    until("the new one has its page", || async {
        world.count("o/intent/example.dev/pages/") == 2
    })
    .await;
    assert_eq!(failing(&running), None);
}

#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_root_an_answer_without_its_anchor_is_no_empty_fleet() {
    let world = World::new().await;
    world.site("a", 1).await;
    let gone = Arc::new(AtomicU32::new(0));
    let counted = gone.clone();
    let controller = sites().on_absent(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    });
    let running = world.run(world.runtime().controller(controller));
    until("it has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    let faults = world.store.faults();
    faults.hide(Prefix::all());
    until("it is noticed", || async {
        matches!(failing(&running), Some(SourceError::NoAnchor { .. }))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let view = running.handle.view().unwrap();
    assert_eq!(view.list::<Site>().to_vec().len(), 1);
    assert_eq!(gone.load(Ordering::SeqCst), 0);
    faults.allow_all();
    until("it is read again", || async { failing(&running).is_none() }).await;
}

#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_root_a_refused_read_at_the_start_is_no_empty_fleet() {
    let world = World::new().await;
    world.site("a", 1).await;
    let faults = world.store.faults();
    // The root's anchor is readable, the objects are not, and the store does not say so.
    faults.hide(Prefix::new("o/").unwrap());
    let running = world.run(world.runtime().controller(sites()));
    until("it is noticed", || async {
        matches!(failing(&running), Some(SourceError::NoAnchor { .. }))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(running.handle.view().is_none());
    faults.allow_all();
    until("it works", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_does_not_hold_another_up() {
    let world = World::new().await;
    world.site("a", 0).await;
    let prefixes = ["o/intent/example.dev/", "o/reality/example.dev/"];
    let mut runtime = world.runtime().controller(sites());
    for prefix in prefixes {
        let prefix = Prefix::new(prefix).unwrap();
        write_prefix_anchor(&world.store, &prefix).await.unwrap();
        runtime = runtime.watch(prefix);
    }
    let running = world.run(runtime);
    until("it is worked on", || async {
        world.count("o/reality/") == 1
    })
    .await;
    let faults = world.store.faults();
    faults.deny_reads(Prefix::new("o/reality/").unwrap());
    faults.break_watches();
    until("one source fails", || async {
        let sources = running.handle.status().unwrap().sources;
        sources[0].failing.is_none() && sources[1].failing.is_some()
    })
    .await;
    // It is created; only the answer cannot be read.
    let site = Object::<Site>::new(named("b"), SiteSpec { pages: 2 });
    assert!(world.client.create(&site).await.is_err());
    until("the other goes on", || async {
        world.count("o/intent/example.dev/pages/") == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_root_another_store_or_an_older_one_is_not_taken_for_this() {
    let world = World::new().await;
    world.site("a", 1).await;
    let early = world.store.snapshot();
    let running = world.run(world.runtime().controller(sites()));
    until("it has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    let faults = world.store.faults();
    let now = world.store.snapshot();
    faults.come_back_older(&early);
    until("it is noticed", || async {
        matches!(failing(&running), Some(SourceError::OlderHistory { .. }))
    })
    .await;
    assert_eq!(
        running.handle.view().unwrap().list::<Page>().to_vec().len(),
        1
    );
    faults.come_back_newer(&now, 10);
    until("it is read again", || async { failing(&running).is_none() }).await;
    let anchor = r#"{"storeId":"another","epoch":0,"state":"Active"}"#;
    put(&world, "o/.anchor", anchor).await;
    faults.reset_watches();
    until("the other store is refused", || async {
        matches!(failing(&running), Some(SourceError::OtherStore { .. }))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_goes_silent_is_found_out() {
    let world = World::new().await;
    let running = world.run(world.runtime().controller(sites()));
    until("it is read", || async { running.handle.view().is_some() }).await;
    let site = world.site("a", 0).await;
    until("it is reported on", || async {
        world.count("o/reality/") == 1
    })
    .await;
    world
        .store
        .faults()
        .hold_watches(Prefix::new("o/").unwrap());
    // Nobody tells the runtime of this.
    let mut site = world
        .client
        .get::<Site>(&site.key().unwrap())
        .await
        .unwrap();
    site.spec.pages = 1;
    world.client.update(&site).await.unwrap();
    until("the change is found", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_too_long_for_its_own_writes_is_named_and_helped() {
    let world = World::new().await;
    world.site("a", 0).await;
    let trigger = Trigger::new();
    let controller = Controller::<Site>::new("sites", |site, context| async move {
        let triggered = |cause: &Cause| matches!(cause, Cause::Triggered(_));
        if context.causes().iter().any(triggered) {
            let mut changes = context.changes();
            let pages = site.status.detail.pages + 1;
            changes.report::<Site>(&Status {
                detail: SiteStatus { pages },
                ..site.status.clone()
            })?;
            changes.commit().await?;
        }
        Ok::<_, ReconcileError>(Action::await_change())
    })
    .triggered_by(&trigger);
    let running = world.run(world.runtime().controller(controller));
    until("it ran", || async { status(&running).runs == 1 }).await;
    let everything = Prefix::new("o/").unwrap();
    world.store.faults().hold_watches(everything.clone());
    trigger.fire(site_key("a"), "first");
    until("it wrote", || async { status(&running).runs == 2 }).await;
    trigger.fire(site_key("a"), "second");
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!((status(&running).runs, status(&running).parked), (2, 1));
    let parked = status(&running).longest_parked.unwrap();
    assert_eq!((parked.key, parked.source), (site_key("a"), everything));
    until("the source is read afresh and the key runs", || async {
        status(&running).runs == 3
    })
    .await;
    assert_eq!(running.handle.status().unwrap().sources[0].lists, 2);
    let site = world.client.get::<Site>(&site_key("a")).await.unwrap();
    assert_eq!(site.status.detail.pages, 2, "it saw what it wrote");
}

#[tokio::test(start_paused = true)]
async fn runs_that_have_begun_are_finished_on_a_stop() {
    let world = World::new().await;
    world.site("a", 0).await;
    let finished = Arc::new(AtomicU32::new(0));
    let counted = finished.clone();
    let controller = Controller::<Site>::new("sites", move |_, _| {
        let counted = counted.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ReconcileError>(Action::await_change())
        }
    });
    let running = world.run(world.runtime().controller(controller));
    until("it runs", || async {
        running
            .handle
            .status()
            .is_some_and(|status| status.controllers[0].running == 1)
    })
    .await;
    let (handle, weak) = (running.handle.clone(), Arc::downgrade(&finished));
    running.stop().await;
    assert!(handle.status().is_none());
    assert_eq!(finished.load(Ordering::SeqCst), 1);
    drop(finished);
    until("the handle keeps nothing alive", || async {
        weak.upgrade().is_none()
    })
    .await;
}
