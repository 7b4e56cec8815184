//! Controllers that do not come to rest, and controllers that write too much.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use platctrl_framework::controller::{ControllerStatus, Trigger};
use platctrl_framework::model::Event;

use super::*;

fn status(running: &Running, name: &str) -> ControllerStatus {
    let status = running.handle.status().unwrap();
    let mut all = status.controllers.into_iter();
    all.find(|controller| controller.name == name).unwrap()
}

fn events(world: &World, reason: &str) -> Vec<Event> {
    let records = world.store.dump().into_iter();
    let records = records.filter(|record| record.key.as_str().starts_with("x/event/"));
    records
        .map(|record| serde_json::from_slice::<Event>(&record.value).unwrap())
        .filter(|event| event.reason == reason)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_that_writes_to_its_own_trigger_is_slowed_and_named() {
    let world = World::new().await;
    world.site("hot", 0).await;
    world.site("calm", 1).await;
    let fixed = Arc::<AtomicU32>::default();
    let is_fixed = fixed.clone();
    let controller =
        Controller::<Site>::new("sites", move |site: Arc<Object<Site>>, context: Context| {
            let is_fixed = is_fixed.clone();
            async move {
                // As a time of the last check would be: different in each run.
                let again = site.metadata.name == "hot" && is_fixed.load(Ordering::SeqCst) == 0;
                let pages = site.status.detail.pages + u32::from(again);
                let mut changes = context.changes();
                changes.report::<Site>(&Status {
                    detail: SiteStatus { pages },
                    ..site.status.clone()
                })?;
                changes.commit().await?;
                Ok::<_, ReconcileError>(Action::await_change())
            }
        });
    let running = world.run(world.runtime().controller(controller));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = status(&running, "sites");
    assert!(
        (10..25).contains(&seen.runs),
        "{} runs in a minute",
        seen.runs
    );
    let [restless] = &seen.restless[..] else {
        panic!("{:?}", seen.restless);
    };
    assert_eq!(
        (&restless.key, &restless.contender),
        (&site_key("hot"), &None)
    );
    assert_eq!(restless.fields, ["status.pages"]);
    assert_eq!(
        restless.record.as_str(),
        "o/reality/example.dev/sites/default/hot"
    );
    assert!(seen.slowed > 0);
    let [event] = &events(&world, "HotLoop")[..] else {
        panic!("{:?}", events(&world, "HotLoop"));
    };
    assert_eq!(event.involved_object.name, "hot");
    assert!(event.message.contains("status.pages"), "{}", event.message);
    // What others change is not slowed.
    let before = status(&running, "sites").runs;
    let mut site = world.client.get::<Site>(&site_key("hot")).await.unwrap();
    site.spec.pages = 7;
    world.client.update(&site).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(status(&running, "sites").runs > before);
    // Once it rests, it is named no more.
    fixed.store(1, Ordering::SeqCst);
    until("it rests", || async {
        status(&running, "sites").restless.is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_loop_over_owned_objects_is_found_too() {
    let world = World::new().await;
    world.site("a", 0).await;
    let controller = Controller::<Site>::new(
        "sites",
        |site: Arc<Object<Site>>, context: Context| async move {
            let pages = context
                .view()
                .list::<Page>()
                .owned_by(&site.metadata.uid)
                .to_vec();
            let mut changes = context.changes();
            match pages.first() {
                None => drop(changes.create(&page_of(&site, &context))?),
                Some(page) => {
                    let mut page = (**page).clone();
                    page.spec.text.push('!');
                    changes.update(&page)?;
                }
            }
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        },
    );
    let running = world.run(world.runtime().controller(controller.owns::<Page>()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = status(&running, "sites");
    assert!(
        (10..25).contains(&seen.runs),
        "{} runs in a minute",
        seen.runs
    );
    assert_eq!(seen.restless[0].fields, ["spec.text"]);
}

#[tokio::test(start_paused = true)]
async fn work_that_comes_to_an_end_is_no_loop() {
    let world = World::new().await;
    world.site("a", 8).await;
    // One page with each run, as one that is careful would.
    let controller = Controller::<Site>::new(
        "sites",
        |site: Arc<Object<Site>>, context: Context| async move {
            let pages = context
                .view()
                .list::<Page>()
                .owned_by(&site.metadata.uid)
                .keys();
            let mut changes = context.changes();
            if pages.len() < site.spec.pages as usize {
                changes.create(&page_of(&site, &context))?;
            }
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        },
    );
    let running = world.run(world.runtime().controller(controller.owns::<Page>()));
    until("all are there", || async {
        world.count("o/intent/example.dev/pages/") == 8
    })
    .await;
    assert_eq!(status(&running, "sites").slowed, 0);
}

/// Keeps the text of every page as it wants it.
fn texts(name: &'static str, text: &'static str) -> Controller<Page> {
    Controller::new(
        name,
        move |page: Arc<Object<Page>>, context: Context| async move {
            if page.spec.text != text {
                let mut page = (*page).clone();
                page.spec.text = text.to_owned();
                let mut changes = context.changes();
                changes.update(&page)?;
                changes.commit().await?;
            }
            Ok::<_, ReconcileError>(Action::await_change())
        },
    )
}

#[tokio::test(start_paused = true)]
async fn two_controllers_that_undo_each_other_are_slowed_and_named() {
    let world = World::new().await;
    let page = Object::<Page>::new(named("p"), PageSpec { text: "?".into() });
    world.client.create(&page).await.unwrap();
    let runtime = world.runtime();
    let runtime = runtime
        .controller(texts("one", "1"))
        .controller(texts("two", "2"));
    let running = world.run(runtime);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let begun = world.store.revision();
    let seen = [status(&running, "one"), status(&running, "two")];
    let named = seen.iter().flat_map(|status| &status.restless);
    let named: Vec<_> = named
        .filter_map(|restless| restless.contender.clone())
        .collect();
    assert!(
        named.contains(&"`one`".to_owned()) || named.contains(&"`two`".to_owned()),
        "{named:?}"
    );
    let restless = seen
        .iter()
        .find_map(|status| status.restless.first())
        .unwrap();
    assert!(
        restless.fields.contains(&"spec.text".to_owned()),
        "{restless:?}"
    );
    let event = &events(&world, "Contested")[0];
    assert!(event.message.contains("spec.text"), "{}", event.message);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writes = world.store.revision().counter() - begun.counter();
    assert!(writes < 30, "{writes} writes in a minute");
    // Once one of them gives way, nobody is named.
    running.handle.remove_controller("two").await.unwrap();
    until("it is over", || async {
        status(&running, "one").restless.is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_contest_with_somebody_outside_is_found_too() {
    let world = World::new().await;
    let page = Object::<Page>::new(named("p"), PageSpec { text: "?".into() });
    let key = world.client.create(&page).await.unwrap().key().unwrap();
    let running = world.run(world.runtime().controller(texts("one", "1")));
    for _ in 0..8 {
        until("it is put back", || async {
            world.client.get::<Page>(&key).await.unwrap().spec.text == "1"
        })
        .await;
        let mut page = world.client.get::<Page>(&key).await.unwrap();
        page.spec.text = "mine".to_owned();
        world.client.update(&page).await.unwrap();
    }
    until("it is named", || async {
        let restless = status(&running, "one").restless;
        restless.first().is_some_and(|restless| {
            restless.contender.as_deref() == Some("another program")
                && restless.fields == ["spec.text"]
        })
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn over_its_write_budget_a_controller_waits_and_shows_it_and_nothing_fails() {
    let world = World::new().await;
    for site in 0..60 {
        world.site(&format!("s{site:02}"), 0).await;
    }
    let controller = sites().write_budget(5).concurrency(4);
    let begun = world.environment.monotonic();
    let running = world.run(world.runtime().controller(controller));
    let done = || world.count("o/reality/example.dev/sites/");
    until("it waits", || async {
        running.handle.status().is_some() && status(&running, "sites").over_budget.is_some()
    })
    .await;
    for second in 1..8_u32 {
        let at = begun + Duration::from_secs(u64::from(second));
        tokio::time::sleep(at.saturating_sub(world.environment.monotonic())).await;
        let most = 5 * (second as usize + 1) + 4;
        assert!(done() <= most, "{} writes after {second} s", done());
    }
    assert!(
        status(&running, "sites").ready > 10,
        "the others wait in the queue"
    );
    until("all is done", || async { done() == 60 }).await;
    let seen = status(&running, "sites");
    assert_eq!((seen.errors, seen.timeouts, seen.conflicts), (0, 0, 0));
    let took = world.environment.monotonic() - begun;
    assert!(
        took >= Duration::from_secs(10) && took < Duration::from_secs(15),
        "{took:?}"
    );
    until("there is something to spend", || async {
        status(&running, "sites").over_budget.is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_commits_often_waits_for_its_budget_without_being_too_late() {
    let world = World::new().await;
    world.site("a", 0).await;
    let trigger = Trigger::new();
    let done: Arc<Mutex<u32>> = Arc::default();
    let counted = done.clone();
    let controller =
        Controller::<Site>::new("sites", move |site: Arc<Object<Site>>, context: Context| {
            let counted = counted.clone();
            async move {
                for _ in 0..20 {
                    let mut changes = context.changes();
                    changes.create(&page_of(&site, &context))?;
                    changes.commit().await?;
                }
                *counted.lock().unwrap() += 1;
                Ok::<_, ReconcileError>(Action::await_change())
            }
        });
    let controller = controller
        .triggered_by(&trigger)
        .write_budget(2)
        .timeout(Duration::from_secs(5));
    let running = world.run(world.runtime().controller(controller));
    until("it ends", || async { *done.lock().unwrap() == 1 }).await;
    let seen = status(&running, "sites");
    assert_eq!((seen.timeouts, seen.errors), (0, 0));
    assert!(world.environment.monotonic() > Duration::from_secs(15));
}
