//! Two processes with one claim.

use std::sync::Mutex;

use platctrl_framework::controller::CommitError;
use platctrl_framework::store::{Key, Prefix};
use tokio::sync::Notify;

use super::*;

fn leads(running: &Running) -> bool {
    running.handle.status().and_then(|status| status.leads) == Some(true)
}

fn elected(world: &World, controller: Controller<Site>) -> Running {
    let runtime = world.runtime().controller(controller);
    world.run(runtime.elect_leader("sites"))
}

#[tokio::test(start_paused = true)]
async fn one_of_two_works_and_the_other_takes_over_after_a_crash() {
    let world = World::new().await;
    world.site("a", 1).await;
    let first = elected(&world, sites());
    until("the first leads", || async { leads(&first) }).await;
    let second = elected(&world, sites());
    until("it has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(leads(&first) && !leads(&second));
    first.crash().await;
    world.site("b", 1).await;
    let begun = world.environment.monotonic();
    until("the second leads", || async { leads(&second) }).await;
    let took = world.environment.monotonic() - begun;
    assert!(took <= Duration::from_secs(11), "{took:?}");
    until("it works", || async {
        world.count("o/intent/example.dev/pages/") == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_hands_over_at_once() {
    let world = World::new().await;
    let first = elected(&world, sites());
    until("the first leads", || async { leads(&first) }).await;
    let second = elected(&world, sites());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let begun = world.environment.monotonic();
    first.stop().await;
    until("the second leads", || async { leads(&second) }).await;
    let took = world.environment.monotonic() - begun;
    assert!(took <= Duration::from_millis(100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_of_a_paused_holder_is_refused() {
    let world = World::new().await;
    world.site("a", 1).await;
    let go_on = Arc::new(Notify::new());
    let refused: Arc<Mutex<Vec<String>>> = Arc::default();
    let (paused, told) = (go_on.clone(), refused.clone());
    let first = Controller::<Site>::new("sites", move |site, context| {
        let (paused, told) = (paused.clone(), told.clone());
        async move {
            let fence = context.fence().cloned();
            paused.notified().await;
            assert!(
                fence.is_some_and(|fence| fence.is_held()),
                "it does not know yet"
            );
            let mut changes = context.changes();
            let mut metadata = named("late");
            metadata.owner_references.push(site.owner_reference());
            let text = "late".to_owned();
            changes.create(&Object::<Page>::new(metadata, PageSpec { text }))?;
            let outcome = changes.commit().await;
            if let Err(CommitError::Fenced { claim }) = &outcome {
                told.lock().unwrap().push(claim.clone());
            }
            outcome?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    });
    let first = elected(&world, first);
    until("the first runs", || async {
        let status = first.handle.status();
        status.is_some_and(|status| status.controllers[0].running == 1)
    })
    .await;
    let key = Key::new("x/lease/sites").unwrap();
    let lease = world.store.peek(&key).unwrap().lease.unwrap();
    assert!(world.store.faults().end_lease(lease));
    go_on.notify_one();
    until("it is told", || async {
        !refused.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(world.count("o/intent/example.dev/pages/"), 0);
    assert_eq!(*refused.lock().unwrap(), ["sites"]);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_reach_the_store_stops_before_its_claim_ends() {
    let world = World::new().await;
    let first = elected(&world, sites());
    until("it leads", || async { leads(&first) }).await;
    let key = Key::new("x/lease/sites").unwrap();
    world.store.faults().set_away(true);
    let begun = world.environment.monotonic();
    until("it stops", || async { !leads(&first) }).await;
    let took = world.environment.monotonic() - begun;
    assert!(took < Duration::from_secs(10), "{took:?}");
    world.store.faults().set_away(false);
    until("it leads again", || async {
        leads(&first) && world.store.peek(&key).is_some()
    })
    .await;
    // What came meanwhile is worked on.
    world.site("a", 1).await;
    until("it works", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_holder_with_a_stale_view_decides_nothing_on_it() {
    let world = World::new().await;
    let first = elected(&world, sites());
    until("the first leads", || async { leads(&first) }).await;
    let runs = Arc::new(Mutex::new(0));
    let counted = runs.clone();
    let second = Controller::<Site>::new("sites", move |site, context| {
        let epoch = context.fence().unwrap().epoch();
        assert!(context.view().revision() >= epoch, "older than its claim");
        *counted.lock().unwrap() += 1;
        make_pages(site, context)
    });
    let second = elected(&world, second.owns::<Page>());
    until("the second has a view", || async {
        second.handle.view().is_some()
    })
    .await;
    world.site("a", 1).await;
    until("both know the site", || async {
        second.handle.view().unwrap().list::<Site>().keys().len() == 1
    })
    .await;
    until("it has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    // From here the second hears nothing: it does not know what the first does next.
    world
        .store
        .faults()
        .hold_watches(Prefix::new("o/").unwrap());
    let mut site = world.client.get::<Site>(&site_key("a")).await.unwrap();
    site.spec.pages = 2;
    world.client.update(&site).await.unwrap();
    first.stop().await;
    until("two pages", || async {
        world.count("o/intent/example.dev/pages/") >= 2
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.count("o/intent/example.dev/pages/"), 2);
    assert!(leads(&second) && *runs.lock().unwrap() > 0);
    let status = second.handle.status().unwrap();
    assert_eq!(status.controllers[0].panics, 0);
}
