//! Freeze and thaw.

use platctrl_framework::failsafe::{freeze, thaw};

use super::*;

#[tokio::test(start_paused = true)]
pub(super) async fn frozen_nothing_is_changed_until_it_is_thawed() {
    let world = World::new().await;
    world.site("a", 2).await;
    let running = world.run(world.runtime().controller(sites()).reap());
    let pages = || world.count("o/intent/example.dev/pages/");
    until("it has its pages", || async { pages() == 2 }).await;
    freeze(&world.store, &world.environment, "ann", Some("an incident"))
        .await
        .unwrap();
    until("it is heard", || async { held(&running).frozen.is_some() }).await;
    let by = held(&running).frozen.unwrap();
    assert_eq!(
        (by.by.as_str(), by.reason.as_deref()),
        ("ann", Some("an incident"))
    );
    world.site("b", 3).await;
    world.delete(&site_key("a")).await;
    minutes(60).await;
    assert_eq!(pages(), 2);
    assert_eq!(world.count("o/intent/example.dev/sites/"), 2);
    assert!(world.written().await.frozen);
    thaw(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    until("all is done", || async {
        pages() == 5 && world.count("o/intent/example.dev/sites/") == 1
    })
    .await;
    assert!(held(&running).frozen.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_program_that_starts_while_all_is_frozen_changes_nothing() {
    let world = World::new().await;
    world.site("a", 2).await;
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    let running = world.run(world.runtime().controller(sites()));
    minutes(60).await;
    assert!(held(&running).frozen.is_some());
    assert_eq!(world.count("o/intent/example.dev/pages/"), 0);
    assert_eq!(world.count("o/reality/example.dev/"), 0);
    thaw(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    until("it works", || async {
        world.count("o/intent/example.dev/pages/") == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_has_begun_before_a_freeze_commits_nothing_in_it() {
    let world = World::new().await;
    world.site("a", 2).await;
    let begun = Arc::new(tokio::sync::Notify::new());
    let told = begun.clone();
    let controller = Controller::<Site>::new("sites", move |site, context| {
        let told = told.clone();
        async move {
            told.notify_one();
            tokio::time::sleep(Duration::from_secs(30)).await;
            make_pages(site, context).await
        }
    });
    let running = world.run(world.runtime().controller(controller));
    begun.notified().await;
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    minutes(10).await;
    assert_eq!(world.count("o/intent/example.dev/pages/"), 0);
    let status = running.handle.status().unwrap();
    assert_eq!(status.controllers[0].errors, 1, "it was refused");
    assert!(
        status.controllers[0].failing[0]
            .error
            .contains("frozen by ann")
    );
}

#[tokio::test(start_paused = true)]
async fn who_watches_what_changes_by_itself_reports_it_also_while_all_is_frozen() {
    let world = World::new().await;
    world.site("a", 2).await;
    let (so, done) = (Arc::new(Mutex::new(1)), Arc::new(Mutex::new(0)));
    let trigger = platctrl_framework::controller::Trigger::new();
    let (is, did) = (so.clone(), done.clone());
    let controller =
        Controller::<Site>::new("sites", move |site: Arc<Object<Site>>, context: Context| {
            let (is, did) = (is.clone(), did.clone());
            async move {
                let mut changes = context.changes();
                if context.is_frozen() {
                    // A change that is tried all the same is refused.
                    let mut other = context.changes();
                    other.create(&page_of(&site, &context))?;
                    assert!(other.commit().await.is_err());
                } else {
                    *did.lock().unwrap() = site.spec.pages;
                }
                let detail = SiteStatus {
                    pages: *is.lock().unwrap(),
                };
                changes.report::<Site>(&Status {
                    detail,
                    ..site.status.clone()
                })?;
                changes.commit().await?;
                Ok::<_, ReconcileError>(Action::await_change())
            }
        })
        .triggered_by(&trigger)
        .reports_while_frozen();
    let _running = world.run(world.runtime().controller(controller));
    let reported = |pages| {
        let client = world.client.clone();
        async move {
            client
                .get::<Site>(&site_key("a"))
                .await
                .unwrap()
                .status
                .detail
                .pages
                == pages
        }
    };
    until("it is reported", || reported(1)).await;
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut site = world.client.get::<Site>(&site_key("a")).await.unwrap();
    site.spec.pages = 9;
    world.client.update(&site).await.unwrap();
    *so.lock().unwrap() = 5;
    trigger.fire(site_key("a"), "something happened");
    until("that is reported", || reported(5)).await;
    assert_eq!(*done.lock().unwrap(), 2);
    assert_eq!(world.count("o/intent/example.dev/pages/"), 0);
    thaw(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    until("it is done", || async { *done.lock().unwrap() == 9 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_stops_in_order_while_all_is_frozen() {
    let world = World::new().await;
    world.site("a", 2).await;
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    let running = world.run(world.runtime().controller(sites()));
    minutes(1).await;
    let before = world.environment.monotonic();
    running.stop().await;
    assert!(world.environment.monotonic() - before < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_freeze_is_heard_after_the_store_was_away() {
    let world = World::new().await;
    world.site("a", 1).await;
    let running = world.run(world.runtime().controller(sites()));
    until("it has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    let faults = world.store.faults();
    faults.set_away(true);
    minutes(5).await;
    faults.set_away(false);
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    until("it is heard", || async { held(&running).frozen.is_some() }).await;
}
