//! Names and sizes, at their limits and beyond.

use std::sync::Mutex;

use jiff::Timestamp;
use platctrl_framework::client::{Batch, ClientError};
use platctrl_framework::environment::Clock;
use platctrl_framework::model::Tree;
use platctrl_framework::store;

use super::*;

const MOST: usize = 384 * 1024;

/// A clock whose wall stands still, so that records have one length.
#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> Duration {
        Environment::system().monotonic()
    }

    fn sleep(&self, duration: Duration) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

fn page(name: &str, bytes: usize) -> Object<Page> {
    let text = "x".repeat(bytes);
    Object::new(named(name), PageSpec { text })
}

/// How long the text of a page of this name can be.
fn most_text(environment: &Environment, name: &str) -> usize {
    let mut batch = Batch::new();
    batch.create_typed(environment, &page(name, 0)).unwrap();
    let [store::Write::Put { value, .. }] = &batch.transaction().writes[..] else {
        panic!("one write");
    };
    MOST - value.len()
}

#[tokio::test(start_paused = true)]
async fn an_object_of_384_kib_is_taken_and_one_byte_more_is_refused_by_size() {
    let mut world = World::new().await;
    world.environment = Environment::seeded(Arc::new(Still), 7);
    world.client = Client::new(world.store(), world.environment.clone(), "test");
    let most = most_text(&world.environment, "p");
    world.client.create(&page("p", most)).await.unwrap();
    let key = page("p", 0).key().unwrap();
    let stored = world.store.peek(&key.store_key(Tree::Intent)).unwrap();
    assert_eq!(stored.value.len(), MOST);
    let refused = world.client.create(&page("q", most + 1)).await.unwrap_err();
    assert!(matches!(refused, ClientError::Invalid { .. }));
    let told = refused.to_string();
    assert!(
        told.contains("393217") && told.contains("393216") && told.contains("/q"),
        "{told}"
    );
    assert!(
        !world
            .store
            .dump()
            .iter()
            .any(|record| record.key.as_str().ends_with("/q"))
    );
    // Read, and worked on, as any other.
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let sees = seen.clone();
    let controller =
        Controller::<Page>::new("pages", move |page: Arc<Object<Page>>, _: Context| {
            sees.lock().unwrap().push(page.spec.text.len());
            async { Ok::<_, ReconcileError>(Action::await_change()) }
        });
    let _running = world.run(world.runtime().controller(controller));
    until("it is seen", || async { *seen.lock().unwrap() == [most] }).await;
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_that_wants_what_can_never_be_is_told_once_and_stops_nobody() {
    let world = World::new().await;
    for site in ["big", "good", "named", "status"] {
        world.site(site, 1).await;
    }
    let controller = Controller::<Site>::new(
        "sites",
        |site: Arc<Object<Site>>, context: Context| async move {
            let mut changes = context.changes();
            match &*site.metadata.name {
                "big" => drop(changes.create(&page("child", MOST + 1))?),
                "named" => drop(changes.create(&page("Not A Name", 1))?),
                "status" => {
                    let mut status = site.status.clone();
                    let text = "x".repeat(MOST);
                    let ready = platctrl_framework::model::ConditionStatus::True;
                    let condition =
                        platctrl_framework::model::Condition::new("Big", ready, "Text", text);
                    status
                        .conditions
                        .set(condition, 1, context.environment().now());
                    changes.report::<Site>(&status)?;
                }
                _ => {
                    let pages = context.view().list::<Page>().owned_by(&site.metadata.uid);
                    if pages.keys().is_empty() {
                        changes.create(&page_of(&site, &context))?;
                    }
                }
            }
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        },
    );
    let running = world.run(world.runtime().controller(controller.owns::<Page>()));
    until("the good one has its page", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let status = running.handle.status().unwrap().controllers.remove(0);
    assert_eq!(status.errors, 3, "trying again is useless");
    let failing: Vec<_> = status.failing.iter().map(|key| key.key.name()).collect();
    assert_eq!(failing, ["big", "named", "status"]);
    assert!(
        status.failing[0].error.contains("at most 393216"),
        "{}",
        status.failing[0].error
    );
    assert!(
        status.failing[1].error.contains("Not A Name"),
        "{}",
        status.failing[1].error
    );
}

#[tokio::test(start_paused = true)]
async fn legal_names_are_worked_on_and_illegal_ones_reach_no_store() {
    let world = World::new().await;
    let long = "a".repeat(63);
    let legal = [
        "a", "0", "a.b", "a-b", "a_b", "x--y", "1.2.3", "default", &long,
    ];
    let longer = "a".repeat(64);
    let illegal = [
        "", "A", "-a", "a-", ".a", "a.", "_a", "a/b", "a b", "é", "a\0", "..", ".anchor", "%61",
        &longer,
    ];
    for name in legal {
        world.site(name, 1).await;
    }
    for name in illegal {
        let site = Object::<Site>::new(named(name), SiteSpec { pages: 1 });
        let refused = world.client.create(&site).await.unwrap_err();
        assert!(
            matches!(refused, ClientError::Name(_)),
            "{name:?}: {refused}"
        );
        let metadata = Metadata {
            namespace: Some(name.to_owned()),
            ..Metadata::named("a")
        };
        let site = Object::<Site>::new(metadata, SiteSpec { pages: 1 });
        let refused = world.client.create(&site).await.unwrap_err();
        assert!(
            matches!(refused, ClientError::Name(_)),
            "namespace {name:?}: {refused}"
        );
    }
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let sees = seen.clone();
    let controller =
        Controller::<Site>::new("sites", move |site: Arc<Object<Site>>, _: Context| {
            sees.lock().unwrap().push(site.metadata.name.clone());
            async { Ok::<_, ReconcileError>(Action::await_change()) }
        });
    let _running = world.run(world.runtime().controller(controller).reap());
    until("all are seen", || async {
        seen.lock().unwrap().len() == legal.len()
    })
    .await;
    assert_eq!(world.count("o/intent/"), legal.len());
    for name in legal {
        world.delete(&site_key(name)).await;
    }
    until("all are gone", || async { world.count("o/") == 0 }).await;
}
